//! Carrying plans out.

use std::collections::{HashSet, VecDeque};

use super::super::Owner;
use super::super::outbox::{Event, OwnerOutbox};
use super::goal::Unplanned;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskSet, JobId, VhdId};
use crate::base::limits::{BAD_PLACES_MAX, EVENT_VHDS_MAX, WAVE_EXTENTS, WAVES_MAX};
use crate::base::units::ExtentIndex;
use crate::mover::messages::MoverMessage;
use crate::owner::moves::wave::Planned;
use crate::placement::job::JobState;
use crate::plan::{Plan, Relocation};

/// Plans for one VHD in one job: what guests place meanwhile may have to be evened out once more, but not for ever.
const PASSES_MAX: u32 = 4;

/// How often the rate is measured.
const RATE_INTERVAL_NS: u64 = 500_000_000;

impl Owner {
    /// At start: goes on with the jobs that a restart interrupted. A disk that has come back may get data again, and should it fail
    /// once more, nobody has accepted the loss of that.
    pub(in crate::owner) fn resume_jobs(&mut self, out: &mut impl OwnerOutbox) {
        let gives_up = |job: &&super::Job| !job.record.is_ended() && !job.record.kind.gives_up().is_empty();
        let jobs: Vec<JobId> = self.jobs.iter().filter(gives_up).map(|job| job.record.id).collect();
        for id in jobs {
            let Some(job) = self.jobs.get_mut(id) else { continue };
            let failed = |disk| self.space.get(disk).is_some_and(|disk| disk.state.is_failed());
            job.record.kind.keep_what_is_on(|disk| !failed(disk));
            self.save_job(id, out);
        }
        self.run_jobs(out);
    }

    /// Lets every job go on that can. Jobs that share a disk go one after the other, in the order in which they were created.
    pub(in crate::owner) fn run_jobs(&mut self, out: &mut impl OwnerOutbox) {
        let running: Vec<JobId> = self.jobs.iter().filter(|job| job.is_running()).map(|job| job.record.id).collect();
        let mut busy = DiskSet::default();
        for id in running {
            if self.jobs.get(id).is_some_and(super::Job::is_scrub) {
                self.run_scrub(id, out);
                continue;
            }
            if self.is_out_of_work(id) {
                self.plan_next(id, out);
            }
            while busy.0 & self.disks_of_job(id).0 == 0 {
                self.begin_waves(id, out);
                if !self.is_out_of_work(id) || self.jobs.get(id).is_some_and(|job| job.waiting) {
                    break;
                }
                // Nothing of the plan could be begun, and nothing will come to say so: another plan, which may be about other disks, or the end.
                self.plan_next(id, out);
            }
            // One that has just ended keeps nobody waiting: nothing will come to say that, either.
            busy.0 |= self.disks_of_job(id).0;
        }
    }

    /// The disks that the plan of a running job takes from and gives to.
    fn disks_of_job(&self, id: JobId) -> DiskSet {
        self.jobs.get(id).filter(|job| job.is_running()).map_or(DiskSet::default(), |job| job.disks)
    }

    /// Whether a running job has nothing left of its plan, and nothing under way.
    fn is_out_of_work(&self, id: JobId) -> bool {
        let is_out = |job: &super::Job| job.is_running() && job.todo.is_empty();
        self.jobs.get(id).is_some_and(is_out) && self.waves.of_job(id) == 0
    }

    /// Begins as many waves of the plan as may be on their way at the same time.
    fn begin_waves(&mut self, id: JobId, out: &mut impl OwnerOutbox) {
        while self.waves.of_job(id) < WAVES_MAX {
            let Some(job) = self.jobs.get_mut(id).filter(|job| job.is_running() && !job.todo.is_empty()) else {
                return;
            };
            let vhd = job.record.vhds[job.next];
            if self.waves.is_held(vhd) {
                return;
            }
            let part = take_part(&mut job.todo, |extent| self.waves.is_under_way(vhd, extent));
            if part.is_empty() {
                return;
            }
            let speed = job.speed();
            if !std::mem::replace(&mut job.announced, true) {
                out.to_mover(MoverMessage::SetSpeed { job: id, speed });
            }
            let outdated = part.iter().filter(|planned| self.is_outdated(vhd, planned)).count();
            let begun = self.begin_wave(id, vhd, &part, out);
            if let Some(job) = self.jobs.get_mut(id) {
                job.begun += begun;
                job.outdated += outdated;
            }
        }
    }

    /// Plans for the VHD that the job is at, or for the next one that is not where it should be; ends the job if there is none.
    fn plan_next(&mut self, id: JobId, out: &mut impl OwnerOutbox) {
        loop {
            let Some(job) = self.jobs.get(id) else { return };
            let Some(vhd) = job.record.vhds.get(job.next).copied() else {
                return self.finish_job(id, out);
            };
            if self.fills.contains_key(&vhd) {
                // Its room is being taken: it is moved once all of it is.
                return self.job_waits(id);
            }
            if self.repairs.concerns(vhd) {
                return self.job_waits(id);
            }
            self.give_up_lost(id, vhd, out);
            self.make_room_again(vhd);
            match self.plan_for(id, vhd) {
                Ok(plan) if plan.is_empty() => {
                    self.forget_unwritable(id, vhd);
                    self.next_vhd(id);
                }
                Ok(plan) => {
                    if self.take_plan(id, vhd, &plan) || !self.leaves_as_it_is(id, vhd, &plan, out) {
                        return;
                    }
                    self.next_vhd(id);
                }
                Err(Unplanned::Gone) => self.next_vhd(id),
                Err(Unplanned::NoRoom(error)) => {
                    if self.waits_for_room(id, vhd) {
                        return;
                    }
                    return self.stop_job(id, &error.to_string(), out);
                }
            }
        }
    }

    fn next_vhd(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.next += 1;
            (job.passes, job.begun, job.waiting) = (0, 0, false);
        }
    }

    /// False if plans for this VHD have not got it where it should be.
    fn take_plan(&mut self, id: JobId, vhd: VhdId, plan: &Plan) -> bool {
        let extent_size = self.geometry.extent_size();
        let (Some(job), Some(of)) = (self.jobs.get_mut(id), self.vhds.get(vhd)) else { return true };
        let with_content = |relocation: &Relocation| {
            let generation = of.state.map.lookup(relocation.extent).generation;
            Planned { relocation: *relocation, generation }
        };
        let stuck = job.passes > 0 && job.begun == 0 && job.outdated == 0;
        if stuck || job.passes >= PASSES_MAX {
            return false;
        }
        job.planned_bytes = job.record.bytes_moved + plan.copies * extent_size;
        let steps = || plan.refill.iter().chain(&plan.relocations);
        let todo = steps().map(with_content).collect();
        let ends = steps().flat_map(|relocation| [relocation.from, relocation.to]);
        job.disks = ends.flatten().collect();
        job.todo = todo;
        job.passes += 1;
        (job.begun, job.outdated) = (0, 0);
        job.waiting = false;
        debug_assert_eq!(job.record.vhds.get(job.next), Some(&vhd));
        true
    }

    /// Whether a VHD that plans did not bring nearer to its layout is left as it is: after a few of them, what guests place meanwhile is.
    /// If nothing could be moved at all, the job waits for what is in the way, or it is said why it stops.
    fn leaves_as_it_is(&mut self, id: JobId, vhd: VhdId, plan: &Plan, out: &mut impl OwnerOutbox) -> bool {
        let is_mending = self.is_mending(vhd) || self.repairs.knows(vhd);
        let left = self.left_by(id, vhd, plan);
        if let Some(job) = self.jobs.get_mut(id)
            && (job.leaves_some() || job.begun > 0 && (left == 0 || !is_mending))
        {
            if left > 0 {
                job.left.insert(vhd, left);
            }
            return true;
        }
        if is_mending {
            // What replicas have missed, or cannot be read there, comes first.
            self.job_waits(id);
        } else if !self.waits_for_room(id, vhd) {
            self.stop_job(id, "no room is left where its extents should go", out);
        }
        false
    }

    pub(super) fn job_waits(&mut self, id: JobId) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.waiting = true;
            // A copy that could not be filled gives its slot back, which may be the room that is waited for: not for ever.
            if !job.leaves_some() {
                job.passes = 0;
            }
        }
    }

    /// Whether room is on its way back to the disks where the VHD should be: then the job goes on once it is there.
    fn waits_for_room(&mut self, id: JobId, vhd: VhdId) -> bool {
        let disks = self.vhds.get(vhd).map_or(DiskSet::default(), |vhd| vhd.record.layout.disks());
        let waits = self.space.is_reclaiming(disks);
        if waits {
            self.job_waits(id);
        }
        waits
    }

    /// A wave of the job has ended.
    pub(in crate::owner) fn job_wave_done(&mut self, id: JobId, out: &mut impl OwnerOutbox) {
        let ended = self.jobs.get(id).is_none_or(|job| !job.is_running());
        if ended && self.waves.of_job(id) == 0 {
            self.forget_speed(id, out);
        }
        self.run_jobs(out);
    }

    pub(in crate::owner) fn forget_speed(&mut self, id: JobId, out: &mut impl OwnerOutbox) {
        if let Some(job) = self.jobs.get_mut(id)
            && std::mem::replace(&mut job.announced, false)
        {
            out.to_mover(MoverMessage::ForgetJob(id));
        }
    }

    pub(in crate::owner) fn job_progress(&mut self, id: JobId, bytes: u64, now: Nanos) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.record.bytes_moved += bytes;
        job.since += bytes;
        let elapsed = now.since(job.measured);
        if elapsed >= RATE_INTERVAL_NS {
            let rate = u128::from(job.since) * 1_000_000_000 / u128::from(elapsed);
            job.rate = if job.measured == Nanos(0) { 0 } else { u64::try_from(rate).unwrap_or(u64::MAX) };
            (job.measured, job.since) = (now, 0);
        }
    }

    /// Blocks of moved extents had never been written: they were in the plan, and were not copied.
    pub(in crate::owner) fn job_spared(&mut self, id: JobId, bytes: u64) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.planned_bytes = job.planned_bytes.saturating_sub(bytes);
        }
    }

    /// An extent of the job could not be read: it stays where it is.
    pub(in crate::owner) fn job_unreadable(&mut self, id: JobId, vhd: VhdId, extent: ExtentIndex) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.unreadable.insert((vhd, extent));
        }
    }

    /// The extent has been read to its end.
    pub(in crate::owner) fn job_readable(&mut self, id: JobId, vhd: VhdId, extent: ExtentIndex) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.unreadable.remove(&(vhd, extent));
            job.unwritable.remove(&(vhd, extent));
        }
    }

    /// An extent of the job could not be written where it should be. The others are not kept waiting for it; false if it is one too many.
    pub(in crate::owner) fn job_unwritable(&mut self, id: JobId, vhd: VhdId, extent: ExtentIndex) -> bool {
        let Some(job) = self.jobs.get_mut(id) else { return false };
        job.unwritable.insert((vhd, extent));
        job.unwritable.len() <= BAD_PLACES_MAX
    }

    /// Every extent of the VHD is where it should be: what could not be written has been dropped or moved since.
    fn forget_unwritable(&mut self, id: JobId, vhd: VhdId) {
        if let Some(job) = self.jobs.get_mut(id) {
            job.unwritable.retain(|(of, _)| *of != vhd);
        }
    }

    /// The deletion of the VHD has just been handed to the committer. Not before: a power cut in between would leave the VHD
    /// where it was, and no job that is about it.
    pub(in crate::owner) fn leave_jobs(&mut self, vhd: VhdId, out: &mut impl OwnerOutbox) {
        let left: Vec<JobId> = self.jobs.unended(vhd).map(|job| job.record.id).collect();
        if left.is_empty() {
            return;
        }
        for id in &left {
            let Some(job) = self.jobs.get_mut(*id) else { continue };
            let place = job.record.vhds.iter().position(|other| *other == vhd).expect("the job is about it");
            if place == job.next {
                job.todo.clear();
                job.scrub.restart();
                (job.passes, job.begun) = (0, 0);
            }
            if place < job.next {
                job.next -= 1;
            }
            job.left.remove(&vhd);
            job.record.vhds.remove(place);
        }
        self.give_up_vhd(vhd, out);
        left.into_iter().for_each(|id| self.save_job(id, out));
        self.run_jobs(out);
    }

    /// Tells that a job has changed its state.
    pub(in crate::owner) fn tell_job(&self, id: JobId, out: &mut impl OwnerOutbox) {
        let Some(job) = self.jobs.get(id) else { return };
        let (kind, reason) = (job.record.kind.word(), job.record.reason.clone());
        let state: JobState = job.record.state;
        let names = job.record.vhds.iter().filter_map(|id| Some(self.vhds.get(*id)?.record.name.clone()));
        let vhds = names.take(EVENT_VHDS_MAX).collect();
        out.event(Event::Job { job: id, kind, state, reason, vhds });
    }
}

/// Takes the next relocations of a plan, except of extents that are under way already: an extent whose replicas all go elsewhere
/// is moved once for each of them, one after the other.
fn take_part(todo: &mut VecDeque<Planned>, is_under_way: impl Fn(ExtentIndex) -> bool) -> Vec<Planned> {
    let mut part: Vec<Planned> = Vec::with_capacity(WAVE_EXTENTS.min(todo.len()));
    let mut taken = HashSet::new();
    let mut later = Vec::new();
    while part.len() < WAVE_EXTENTS
        && let Some(next) = todo.pop_front()
    {
        let extent = next.relocation.extent;
        if is_under_way(extent) || !taken.insert(extent) {
            later.push(next);
        } else {
            part.push(next);
        }
    }
    later.into_iter().rev().for_each(|planned| todo.push_front(planned));
    part
}
