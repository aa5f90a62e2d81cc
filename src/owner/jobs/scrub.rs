//! Scrubbing: every replica of a VHD is read, and compared with the checksums of its blocks if it has any. What a disk has changed, or
//! cannot read, is written anew from a replica that is good (`replicas::repair`).
//!
//! It moves nothing, so that it neither waits for other jobs nor keeps them from going on.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::base::ids::{JobId, VhdId};
use crate::base::limits::SCRUBS_MAX;
use crate::base::units::{BLOCKS_PER_EXTENT, ExtentIndex};
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
use crate::store::page::PageKey;

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
    /// Those among them that could not be repaired as a whole, to be read once more.
    read_again: BTreeSet<Place>,
}

impl Scrub {
    /// Whether something of it is under way.
    pub fn is_busy(&self) -> bool {
        !self.running.is_empty() || !self.repairing.is_empty()
    }

    /// Whether something of the VHD is being read.
    pub(super) fn is_reading(&self, vhd: VhdId) -> bool {
        self.running.values().any(|place| place.vhd == vhd)
    }

    /// From the beginning of a VHD, the next one or the first.
    pub(super) fn restart(&mut self) {
        self.next = None;
        self.todo.clear();
        self.later.clear();
        self.read_again.clear();
    }
}

impl Owner {
    pub(super) fn begin_scrub(
        &self,
        start: &StartJob,
        kind: JobKind,
        wanted: Vec<Wanted>,
    ) -> Result<Step, CommandError> {
        for Wanted { vhd, .. } in &wanted {
            if let Some(job) = self.jobs.scrub_of(*vhd) {
                let vhd = self.vhds.get(*vhd).expect("a VHD that was just looked up").record.name.clone();
                return Err(CommandError::ScrubExists { vhd, job: job.record.id.0 });
            }
        }
        if start.dry_run {
            return Ok(Step::Done(Reply::Plan(Box::default())));
        }
        let start = self.job_start(start, kind, wanted);
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
            // Which of its replicas is right is not known yet, or it is about to be deleted or to shrink.
            if self.repairs.concerns(vhd) || self.vhds.get(vhd).is_some_and(|vhd| vhd.frozen) {
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
        // Replicas that are about to be made equal must not be read before: the other one would count from then on.
        let is_moving =
            |extent: ExtentIndex| self.waves.of_extent(vhd, extent).is_some() || self.repairs.knows_extent(vhd, extent);
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
        self.keep_learned(place, out);
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
        // Of replicas that may differ, only the one that guests read counts.
        let is_read = || self.working_replicas(place.vhd, place.extent).first().is_some_and(|r| r.disk == place.disk);
        let counts = !map.is_in_doubt(place.extent) || is_read();
        (replica.state == ReplicaState::InSync && works && counts).then_some(replica)
    }

    /// Checksums that are not known are about to be learned: the page gets a write intent, with whose end they come into the table.
    fn keep_learned(&mut self, place: Place, out: &mut impl OwnerOutbox) {
        let Some(map) = self.vhds.get(place.vhd).map(|vhd| &vhd.state.map) else { return };
        let present = map.lookup(place.extent).present;
        let is_unknown = |block: u32| present.has(block) && map.checksum(place.extent, block).is_none();
        if !map.has_checksums() || !(0..BLOCKS_PER_EXTENT).any(is_unknown) {
            return;
        }
        let (page, _) = PageKey::of(place.vhd, place.extent);
        self.intend_to_learn(page, out);
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
            Ok(true) => {
                // Nobody knew any more which parts of which replica were good.
                let is_mended = job.scrub.read_again.remove(&place);
                if let (JobKind::Scrub { repaired, .. }, true) = (&mut job.record.kind, is_mended) {
                    *repaired += 1;
                }
            }
            // It was dropped, or has begun to move.
            Ok(false) if job.record.vhds.get(job.next) == Some(&place.vhd) => {
                job.scrub.later.insert(place.extent);
            }
            Ok(false) => {}
            Err(fault) if job.scrub.read_again.remove(&place) => {
                job.unreadable.insert((place.vhd, place.extent));
                self.disk_error(fault.disk, fault.error, false, out);
            }
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
        let is_going = self.stale.concerns_extent(place.vhd, place.extent);
        let is_left = !made && !is_going && self.counting_replica(place).is_some();
        for job in self.jobs.iter_mut().filter(|job| job.scrub.repairing.contains(&place)) {
            job.scrub.repairing.remove(&place);
            if let JobKind::Scrub { repaired, .. } = &mut job.record.kind {
                *repaired += u64::from(made);
            }
            if is_left {
                // It may have got the parts that were bad, and others were bad where it was to come from: this ends when all are done.
                job.scrub.read_again.insert(place);
                job.scrub.later.insert(place.extent);
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
