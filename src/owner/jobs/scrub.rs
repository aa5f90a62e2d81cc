//! Scrubbing: every replica of a VHD is read, and compared with the checksums of its blocks if it has any. What a disk has changed, or
//! cannot read, is written anew from a replica that is good (`replicas::repair`).
//!
//! It moves nothing, so that it neither waits for other jobs nor keeps them from going on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::base::ids::{JobId, VhdId};
use crate::base::limits::SCRUBS_MAX;
use crate::base::units::ExtentIndex;
use crate::mover::messages::{CopyTask, MoveId, MoverMessage};
use crate::owner::Owner;
use crate::owner::command::{CommandError, Reply, StartJob};
use crate::owner::commands::{Action, Step};
use crate::owner::moves::wave::Fault;
use crate::owner::outbox::OwnerOutbox;
use crate::owner::replicas::Place;
use crate::placement::job::{JobKind, JobState};
use crate::placement::{Replica, ReplicaState};
use crate::store::edit::StoreEdit;

use super::goal::Wanted;

/// How far a scrub is.
#[derive(Debug, Default)]
pub(in crate::owner) struct Scrub {
    /// The first extent of which nothing has been read; `None`: the VHD has not been begun.
    next: Option<ExtentIndex>,
    /// Replicas of extents before that, still to be read.
    todo: VecDeque<Place>,
    running: BTreeMap<MoveId, Place>,
    /// Extents that were on their way elsewhere when their turn came.
    later: BTreeSet<ExtentIndex>,
    /// Replicas that were not as they should be.
    repairing: BTreeSet<Place>,
}

impl Scrub {
    /// Whether something of it is under way.
    pub fn is_busy(&self) -> bool {
        !self.running.is_empty() || !self.repairing.is_empty()
    }

    /// From the beginning of a VHD, the next one or the first.
    pub(super) fn restart(&mut self) {
        self.next = None;
        self.todo.clear();
        self.later.clear();
    }
}

impl Owner {
    pub(super) fn begin_scrub(&self, start: &StartJob, vhd: &str) -> Result<Step, CommandError> {
        let vhd = self.vhd_named(vhd)?;
        if let Some(job) = self.jobs.scrub_of(vhd.record.id) {
            let vhd = vhd.record.name.clone();
            return Err(CommandError::ScrubExists { vhd, job: job.record.id.0 });
        }
        let wanted = vec![Wanted { replicas: vhd.record.replicas, ..Wanted::layout(vhd, vhd.record.layout.clone()) }];
        if start.dry_run {
            return Ok(Step::Done(Reply::Plan(Box::default())));
        }
        let start = self.job_start(start, JobKind::Scrub { damaged: 0, repaired: 0 }, wanted);
        let rows = vec![StoreEdit::PutPool(start.pool.clone()), StoreEdit::PutJob(start.record.clone())];
        Ok(Step::Commit { rows, action: Action::StartJob(Box::new(start)) })
    }

    /// Reads as many replicas as may be on their way at the same time; ends the job after the last one.
    pub(super) fn run_scrub(&mut self, id: JobId, out: &mut impl OwnerOutbox) {
        while let Some(job) = self.jobs.get(id).filter(|job| job.is_running()) {
            if job.scrub.running.len() >= SCRUBS_MAX {
                return;
            }
            let Some(vhd) = job.record.vhds.get(job.next).copied() else {
                if !job.scrub.is_busy() {
                    self.end_scrub(id, out);
                }
                return;
            };
            if self.repairs.concerns(vhd) {
                // Which of its replicas is right is not known yet.
                return self.job_waits(id);
            }
            self.count_bytes(id, vhd);
            match self.next_to_scrub(id, vhd) {
                Some(place) => self.scrub(id, place, out),
                None if self.jobs.get(id).is_some_and(|job| job.scrub.is_busy() || !job.scrub.later.is_empty()) => {
                    return;
                }
                None => {
                    if let Some(job) = self.jobs.get_mut(id) {
                        job.next += 1;
                        job.scrub.restart();
                    }
                }
            }
        }
    }

    /// How much there is to read, when a VHD is begun.
    fn count_bytes(&mut self, id: JobId, vhd: VhdId) {
        let Some(job) = self.jobs.get_mut(id).filter(|job| job.scrub.next.is_none()) else { return };
        job.scrub.next = Some(ExtentIndex(0));
        let Some(vhd) = self.vhds.get(vhd) else { return };
        let block_size = self.geometry.block_size();
        let bytes = |extent| {
            let seen = vhd.state.map.lookup(extent);
            u64::from(seen.present.len()) * block_size * seen.replicas.in_sync() as u64
        };
        job.planned_bytes = job.record.bytes_moved + vhd.state.map.placed_from(ExtentIndex(0)).map(bytes).sum::<u64>();
    }

    /// The replica that is read next; none if all have been, or those that are left are on their way elsewhere.
    fn next_to_scrub(&mut self, id: JobId, vhd: VhdId) -> Option<Place> {
        let map = &self.vhds.get(vhd).filter(|vhd| !vhd.frozen)?.state.map;
        let is_moving = |extent: ExtentIndex| self.waves.of_extent(vhd, extent).is_some();
        let scrub = &mut self.jobs.get_mut(id)?.scrub;
        while scrub.todo.is_empty() {
            let fresh = map.placed_from(scrub.next.unwrap_or_default()).next();
            let extent = fresh.or_else(|| scrub.later.iter().copied().find(|extent| !is_moving(*extent)))?;
            scrub.later.remove(&extent);
            if fresh.is_some() {
                scrub.next = Some(ExtentIndex(extent.0 + 1));
            }
            if is_moving(extent) {
                scrub.later.insert(extent);
                continue;
            }
            let replicas = map.lookup(extent).replicas;
            scrub.todo.extend(replicas.iter().map(|replica| Place { vhd, extent, disk: replica.disk }));
        }
        scrub.todo.pop_front()
    }

    /// Reads one replica, if it is still there and counts.
    fn scrub(&mut self, id: JobId, place: Place, out: &mut impl OwnerOutbox) {
        let Some(replica) = self.counting_replica(place) else { return };
        let Some(vhd) = self.vhds.get(place.vhd).map(|vhd| vhd.state.clone()) else { return };
        let copy = self.waves.next_move();
        let Some(job) = self.jobs.get_mut(id) else { return };
        let speed = job.speed();
        if !std::mem::replace(&mut job.announced, true) {
            out.to_mover(MoverMessage::SetSpeed { job: id, speed });
        }
        job.scrub.running.insert(copy, place);
        let extent = place.extent;
        out.to_mover(MoverMessage::Copy(CopyTask { id: copy, job: id, vhd, extent, source: replica, target: replica }));
    }

    /// The replica in a place, if it is in sync and its disk works.
    fn counting_replica(&self, place: Place) -> Option<Replica> {
        let map = &self.vhds.get(place.vhd)?.state.map;
        let replica = (place.extent.0 < map.extents()).then(|| map.lookup(place.extent).replicas.on(place.disk))??;
        let works = !self.space.disk(place.disk).state.is_failed();
        (replica.state == ReplicaState::InSync && works).then_some(replica)
    }

    /// The mover has read a replica, or could not. False if it was something else.
    pub(in crate::owner) fn scrub_ended(
        &mut self,
        copy: MoveId,
        ended: Result<bool, Fault>,
        out: &mut impl OwnerOutbox,
    ) -> bool {
        let Some(job) = self.jobs.iter_mut().find(|job| job.scrub.running.contains_key(&copy)) else { return false };
        let place = job.scrub.running.remove(&copy).expect("just found");
        match ended {
            Ok(true) => {}
            // It was dropped, or has begun to move.
            Ok(false) => drop(job.scrub.later.insert(place.extent)),
            Err(fault) => {
                if let JobKind::Scrub { damaged, .. } = &mut job.record.kind {
                    *damaged += 1;
                }
                job.scrub.repairing.insert(place);
                self.disk_error(fault.disk, fault.error, false, out);
                self.want_repair(place, true);
                self.run_repairs(out);
            }
        }
        self.run_jobs(out);
        true
    }

    /// A repair has ended, one that a scrub waits for perhaps.
    pub(in crate::owner) fn scrub_repair_ended(&mut self, place: Place, made: bool) {
        // What is elsewhere by now, or stale, is somebody else's business.
        let is_left = !made && self.counting_replica(place).is_some();
        for job in self.jobs.iter_mut().filter(|job| job.scrub.repairing.contains(&place)) {
            job.scrub.repairing.remove(&place);
            if let JobKind::Scrub { repaired, .. } = &mut job.record.kind {
                *repaired += u64::from(made);
            }
            if is_left {
                job.unreadable.insert((place.vhd, place.extent));
            }
        }
    }

    fn end_scrub(&mut self, id: JobId, out: &mut impl OwnerOutbox) {
        let Some(job) = self.jobs.get(id) else { return };
        let bad = job.unreadable.len();
        let first: Vec<String> = job.unreadable.iter().take(3).map(|(_, extent)| extent.0.to_string()).collect();
        let (list, more) = (first.join(", "), if bad > 3 { ", ..." } else { "" });
        let why =
            || format!("{bad} extents have no good replica ({list}{more}): write what was there anew, from a backup");
        self.end_job(id, JobState::Done, (bad > 0).then(why), out);
    }
}
