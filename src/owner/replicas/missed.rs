//! Writes and FLUSHes that a copy missed: they wait here until nobody can be shown what the copy has instead.
//!
//! A copy that a move is making is given up. A replica is made durably stale, if another one in sync has the write; if none has,
//! the write fails. A FLUSH that cannot sync a disk succeeds once every replica there that may lack something is stale.

use crate::base::ids::{DiskId, JobId, ReactorId, VhdId};
use crate::base::units::ExtentIndex;
use crate::mover::messages::WaveId;
use crate::owner::Owner;
use crate::owner::moves::wave::{Fault, Missed, Move};
use crate::owner::outbox::OwnerOutbox;
use crate::placement::ReplicaState;
use crate::reactor::messages::{MissedBy, ReactorMessage};
use crate::shared::disk::SyncPoint;

/// What is known of the place that missed something.
enum Verdict {
    /// Nobody is shown what is there.
    Without,
    /// It is, or may be, what the extent consists of.
    Needed,
    /// Something under way decides.
    Waits,
}

impl Owner {
    /// A copy missed a write or a sync of a guest, which waits for the answer.
    pub(in crate::owner) fn copy_missed(&mut self, missed: Missed, out: &mut impl OwnerOutbox) {
        let same_extent = |extent| match missed.by {
            MissedBy::Write { extent: of, .. } => extent == of,
            MissedBy::Flush { .. } => true,
        };
        let to_it = |vhd: VhdId, moved: &Move| {
            vhd == missed.vhd && same_extent(moved.extent) && moved.to.is_some_and(|to| to.disk == missed.disk)
        };
        let mut jobs: Vec<JobId> = Vec::new();
        for (_, wave) in self.waves.iter() {
            if wave.moves.iter().any(|moved| to_it(wave.vhd, moved)) && !jobs.contains(&wave.job) {
                jobs.push(wave.job);
            }
        }
        if self.missed_by_place(&missed, &jobs, out) {
            jobs.clear();
        }
        self.give_up_all(|_, vhd, moved| to_it(vhd, moved), out);
        if let Some(ok) = self.judge(&missed, out) {
            self.answer(&missed, ok, out);
        } else {
            self.waves.missed.push(missed);
        }
        self.make_stale_and_answer(out);
        for job in jobs {
            let why = format!("disk '{}' does not take what is written to it", self.pool.disk_name(missed.disk));
            self.stop_job(job, &why, out);
        }
    }

    /// Whether a copy that is being made could not be written in one place only: then its job goes on with the others.
    fn missed_by_place(&mut self, missed: &Missed, jobs: &[JobId], out: &mut impl OwnerOutbox) -> bool {
        let (MissedBy::Write { extent, .. }, [job]) = (missed.by, jobs) else { return false };
        let copy = self.vhds.get(missed.vhd).and_then(|vhd| vhd.state.map.lookup(extent).replicas.on(missed.disk));
        // The reactor has told of the error before.
        match copy.zip(self.space.disk(missed.disk).last_error) {
            Some((copy, error)) if copy.state.is_moving() => {
                self.note_bad_place(missed.vhd, extent, copy, error, out)
                    && self.job_unwritable(*job, missed.vhd, extent)
            }
            _ => false,
        }
    }

    /// Answers those for whom it is clear by now what became of the copy.
    pub(in crate::owner) fn answer_missed(&mut self, out: &mut impl OwnerOutbox) {
        self.answer_waiting(out);
        self.make_stale_and_answer(out);
    }

    fn answer_waiting(&mut self, out: &mut impl OwnerOutbox) {
        let waiting = std::mem::take(&mut self.waves.missed);
        for missed in waiting {
            match self.judge(&missed, out) {
                Some(ok) => self.answer(&missed, ok, out),
                None => self.waves.missed.push(missed),
            }
        }
    }

    /// Begins an edit for what is wished. Wishes may be void by now, and nothing else will come to say so to who waits for them.
    fn make_stale_and_answer(&mut self, out: &mut impl OwnerOutbox) {
        while self.make_stale(out) {
            self.answer_waiting(out);
        }
        if self.waves.take_released() {
            self.run_jobs(out);
        }
    }

    /// Whether nobody is shown what the copy has, as far as can be told before [`Owner::answer`]; `None`: something under way decides.
    pub(in crate::owner) fn judge(&mut self, missed: &Missed, out: &mut impl OwnerOutbox) -> Option<bool> {
        let verdict = match missed.by {
            MissedBy::Write { extent, .. } => self.write_verdict(missed.vhd, extent, missed.disk, out),
            MissedBy::Flush { .. } => {
                let verdict = self.flush_verdict(missed.vhd, missed.disk, out);
                if !matches!(verdict, Verdict::Waits) {
                    self.waves.release(missed.vhd, missed.disk);
                }
                verdict
            }
        };
        match verdict {
            Verdict::Without => Some(true),
            Verdict::Needed => Some(false),
            Verdict::Waits => None,
        }
    }

    /// Answers what has been judged: a FLUSH that was found good is looked at once more.
    pub(in crate::owner) fn answer(&mut self, missed: &Missed, ok: bool, out: &mut impl OwnerOutbox) {
        let is_flush = matches!(missed.by, MissedBy::Flush { .. });
        let ok = ok && (!is_flush || self.excuse(missed, out));
        let message = ReactorMessage::CopyDropped { by: missed.by, disk: missed.disk, ok };
        out.to_reactor(missed.reactor, message);
    }

    /// Whether a write is good without the disk that it missed.
    fn write_verdict(&mut self, id: VhdId, extent: ExtentIndex, disk: DiskId, out: &mut impl OwnerOutbox) -> Verdict {
        if self.waves.is_committing(id, Some(extent), disk) {
            return Verdict::Waits;
        }
        let Some(vhd) = self.vhds.get(id) else { return Verdict::Needed };
        if self.waves.is_undecided(id, Some(extent), disk) {
            return Verdict::Needed;
        }
        // A copy on that disk which is being made by now is another one: it is filled from those that have the write.
        let settled = vhd.state.map.lookup(extent).replicas.settled();
        if settled.on(disk).is_none_or(|replica| replica.state == ReplicaState::Stale) {
            return Verdict::Without;
        }
        // A move of the extent elsewhere ends, or is carried through.
        if self.waves.is_carried_through(id, extent) {
            return if self.waves.is_under_way(id, extent) { Verdict::Waits } else { Verdict::Needed };
        }
        // Wished before: the job would begin with the extent anew at once, and wait for the claims that this write has.
        let wished = self.wish_stale(id, extent, disk);
        self.give_up_all(|_, of, moved| of == id && moved.extent == extent, out);
        if wished { Verdict::Waits } else { Verdict::Needed }
    }

    /// Whether a FLUSH is good without a sync of the disk.
    fn flush_verdict(&mut self, id: VhdId, disk: DiskId, out: &mut impl OwnerOutbox) -> Verdict {
        if self.waves.is_committing(id, None, disk) {
            return Verdict::Waits;
        }
        let Some(vhd) = self.vhds.get(id) else { return Verdict::Needed };
        if self.waves.is_undecided(id, None, disk) {
            return Verdict::Needed;
        }
        let (state, counts) = (vhd.state.clone(), vhd.counts[disk.index()]);
        let here = std::sync::Arc::clone(&self.space.disk(disk).state);
        if counts == 0 || here.is_synced(state.sync_wanted_on(disk)) {
            return Verdict::Without;
        }
        if here.is_synced(state.sync_needed_on(disk)) {
            // Only copies that moves were making there are not synced, and those have been given up: what was written to one that has taken
            // its place would be needed, and none is about to, see above. So nobody waits for a disk either that does not answer. Copies that
            // have been begun since are given up like those, or what they need would be excused, too.
            self.give_up_all(|_, of, moved| of == id && moved.to.is_some_and(|to| to.disk == disk), out);
            return Verdict::Without;
        }
        if !here.is_failed() {
            // It hangs, and some of what was written there is nowhere else, as far as anybody knows.
            return Verdict::Needed;
        }
        if self.stale.concerns_disk(id, disk) {
            return Verdict::Waits;
        }
        // The rows of a move and those of a stale replica must not cross. Jobs would begin with other extents at once, again and
        // again until nothing is left of their plans.
        self.waves.hold(id, disk);
        self.give_up_all(|_, of, _| of == id, out);
        if self.waves.is_moving(id) {
            // Another FLUSH, answered meanwhile, may have let them go on.
            self.waves.hold(id, disk);
            return if self.waves.is_decided(id) { Verdict::Waits } else { Verdict::Needed };
        }
        self.wish_stale_what_was_written(id, disk)
            .map_or(Verdict::Needed, |wishes| if wishes == 0 { Verdict::Without } else { Verdict::Waits })
    }

    /// A disk has failed: reactors do without it where they can, and so do moves. What may be missing on it is stale from now on,
    /// so that it is not taken for whole should the disk come back.
    pub(in crate::owner) fn disk_failed(&mut self, fault: Fault, out: &mut impl OwnerOutbox) {
        let disk = fault.disk;
        for reactor in 0..self.reactors {
            out.to_reactor(ReactorId(reactor), ReactorMessage::DiskFailed { disk });
        }
        self.target_failed(fault, out);
        // Writes that it has not answered are in other copies as well, which have fences of their own.
        let waiting: Vec<WaveId> = self.waves.iter().map(|(id, _)| id).collect();
        waiting.into_iter().for_each(|wave| self.wave_fence_reached(wave, disk, out));
        self.cancel_cleaning();
        let here: Vec<VhdId> =
            self.vhds.iter().filter(|vhd| vhd.counts[disk.index()] > 0).map(|vhd| vhd.record.id).collect();
        for vhd in here {
            self.give_up_vhd(vhd, out);
            if !self.waves.is_moving(vhd) {
                self.wish_stale_what_was_written(vhd, disk);
            }
        }
        self.make_stale(out);
        self.refresh_holds();
        self.tell_reservations(out);
        self.look_at_redundancy(Some(disk));
    }

    /// A FLUSH succeeds without a sync of this disk: nothing that is pending for the VHD may go on waiting for one. A number of a
    /// sync that never comes tells what was written before from what comes later. False if a disk that works has answered a write to a
    /// replica since it was looked at: that must be synced before its change is committed, and has the same number.
    fn excuse(&self, missed: &Missed, out: &mut impl OwnerOutbox) -> bool {
        let Some(vhd) = self.vhds.get(missed.vhd) else { return true };
        let disk = &self.space.disk(missed.disk).state;
        let number = disk.begin_sync();
        let is_needed = !disk.is_synced(vhd.state.sync_needed_on(missed.disk));
        if is_needed && !disk.is_failed() && vhd.counts[missed.disk.index()] > 0 {
            return false;
        }
        out.excuse(missed.vhd, SyncPoint { disk: missed.disk, number });
        vhd.state.excuse_copies(missed.disk, number);
        if disk.is_failed() {
            vhd.state.excuse_replicas(missed.disk, number);
        }
        true
    }
}
