//! Ending moves before they are durable: the extent is dropped, its VHD deleted, the job stopped, or the target lost.

use super::wave::{Fault, Missed, Move, Stage};
use crate::base::ids::{JobId, VhdId};
use crate::base::units::ExtentIndex;
use crate::mover::messages::{MoveId, WaveId};
use crate::owner::Owner;
use crate::owner::outbox::OwnerOutbox;
use crate::reactor::messages::{MissedBy, ReactorMessage};
use crate::shared::disk::SyncPoint;

impl Owner {
    /// The owner drops the extent, and sees to its slots, that of a copy being made included: there is nothing to move any more.
    pub(in crate::owner) fn forget_move(&mut self, vhd: VhdId, extent: ExtentIndex, out: &mut impl OwnerOutbox) {
        let Some((_, moved)) = self.waves.of_extent(vhd, extent) else { return };
        self.end_move(moved, out);
    }

    /// Takes a move out of its wave, which goes on if that was the last it waited for.
    fn end_move(&mut self, id: MoveId, out: &mut impl OwnerOutbox) -> Option<Move> {
        let (wave, moved) = self.waves.remove_move(id)?;
        self.go_on_without(wave, out);
        Some(moved)
    }

    fn go_on_without(&mut self, id: WaveId, out: &mut impl OwnerOutbox) {
        let Some(wave) = self.waves.get(id) else { return };
        // What has been asked for is answered for the wave as a whole; copies are counted one by one.
        match wave.stage {
            Stage::Copying if wave.moves.is_empty() => self.wave_done(id, out),
            Stage::Copying => self.seal_if_copied(id, out),
            _ => {}
        }
    }

    /// Takes back a copy that is not in the table: the view is as it was, and the slot is free once nothing uses it. False if
    /// the move cannot be taken back any more.
    fn give_up(&mut self, id: MoveId, out: &mut impl OwnerOutbox) -> bool {
        let Some(wave_id) = self.waves.of_move(id) else { return true };
        let wave = self.waves.get(wave_id).expect("of_move names waves that are there");
        if matches!(wave.stage, Stage::Committing { .. } | Stage::Undecided) {
            return false;
        }
        let vhd = self.vhds.get(wave.vhd).expect("moves of a VHD end with it").state.clone();
        let Some(moved) = wave.moves.iter().find(|moved| moved.id == id).cloned() else { return true };
        if let Some(to) = moved.to {
            let settled = vhd.map.lookup(moved.extent).replicas.settled();
            vhd.map.set_replicas(moved.extent, settled);
            self.space.give_back(to.disk, to.slot);
            self.reuse.freed_durably(to.disk, vec![to.slot], out);
            self.usage.update(&self.space, to.disk, out);
        }
        self.end_move(id, out);
        true
    }

    /// Gives up what can be given up of the moves that `which` chooses.
    fn give_up_all(&mut self, which: impl Fn(JobId, VhdId, &Move) -> bool, out: &mut impl OwnerOutbox) {
        let mut chosen = Vec::new();
        for (_, wave) in self.waves.iter() {
            chosen.extend(wave.moves.iter().filter(|moved| which(wave.job, wave.vhd, moved)).map(|moved| moved.id));
        }
        for id in chosen {
            self.give_up(id, out);
        }
    }

    /// Gives up the moves of a job that are not being made durable.
    pub(in crate::owner) fn give_up_job(&mut self, job: JobId, out: &mut impl OwnerOutbox) {
        self.give_up_all(|of, _, _| of == job, out);
    }

    /// Gives up the moves of a VHD that are not being made durable.
    pub(in crate::owner) fn give_up_vhd(&mut self, vhd: VhdId, out: &mut impl OwnerOutbox) {
        self.give_up_all(|_, of, _| of == vhd, out);
    }

    /// The VHD is gone, and its slots are seen to.
    pub(in crate::owner) fn forget_waves(&mut self, vhd: VhdId, out: &mut impl OwnerOutbox) {
        let gone: Vec<WaveId> = self.waves.iter().filter(|(_, wave)| wave.vhd == vhd).map(|(id, _)| id).collect();
        for id in gone {
            self.wave_done(id, out);
        }
    }

    /// Nothing can be written to a disk any more: moves to it end, and their jobs stop.
    pub(in crate::owner) fn target_failed(&mut self, fault: Fault, out: &mut impl OwnerOutbox) {
        let to_it = |moved: &Move| moved.to.is_some_and(|to| to.disk == fault.disk);
        let mut jobs: Vec<JobId> =
            self.waves.iter().filter(|(_, wave)| wave.moves.iter().any(to_it)).map(|(_, wave)| wave.job).collect();
        jobs.dedup();
        self.give_up_all(|_, _, moved| to_it(moved), out);
        for job in jobs {
            let why = format!("disk '{}': {}", self.pool.disk_name(fault.disk), fault.error);
            self.stop_job(job, &why, out);
        }
    }

    /// The mover could not read the extent, or not write its copy.
    pub(in crate::owner) fn copy_failed(&mut self, id: MoveId, fault: Fault, out: &mut impl OwnerOutbox) {
        let Some(wave) = self.waves.of_move(id).and_then(|wave| self.waves.get(wave)) else { return };
        let (job, vhd) = (wave.job, wave.vhd);
        let Some(Move { extent, to, .. }) = wave.moves.iter().find(|moved| moved.id == id).cloned() else { return };
        self.disk_error(fault.disk, fault.error, false, out);
        if to.is_some_and(|to| to.disk == fault.disk) {
            return self.target_failed(fault, out);
        }
        // Before the wave ends, and the job with it.
        self.job_unreadable(job, vhd, extent);
        self.give_up(id, out);
    }

    /// A copy missed a write or a sync of a guest, which waits for the answer.
    pub(in crate::owner) fn copy_missed(&mut self, missed: Missed, out: &mut impl OwnerOutbox) {
        let concerns = |vhd: VhdId, moved: &Move| {
            let same_extent = match missed.by {
                MissedBy::Write { extent, .. } => moved.extent == extent,
                MissedBy::Flush { .. } => true,
            };
            vhd == missed.vhd && same_extent && moved.to.is_some_and(|to| to.disk == missed.disk)
        };
        let mut jobs: Vec<JobId> = Vec::new();
        for (_, wave) in self.waves.iter() {
            if wave.moves.iter().any(|moved| concerns(wave.vhd, moved)) && !jobs.contains(&wave.job) {
                jobs.push(wave.job);
            }
        }
        self.give_up_all(|_, vhd, moved| concerns(vhd, moved), out);
        self.waves.missed.push(missed);
        self.answer_missed(out);
        for job in jobs {
            let why = format!("disk '{}' does not take what is written to it", self.pool.disk_name(missed.disk));
            self.stop_job(job, &why, out);
        }
    }

    /// Answers those for whom it is clear by now what became of the copy.
    pub(in crate::owner) fn answer_missed(&mut self, out: &mut impl OwnerOutbox) {
        let waiting = std::mem::take(&mut self.waves.missed);
        for missed in waiting {
            if self.waves.is_committing(missed.vhd, missed.disk) {
                self.waves.missed.push(missed);
                continue;
            }
            let ok = self.is_without(&missed);
            if ok && matches!(missed.by, MissedBy::Flush { .. }) {
                self.excuse_copies(&missed, out);
            }
            out.to_reactor(missed.reactor, ReactorMessage::CopyDropped { by: missed.by, ok });
        }
    }

    /// Whether the write or FLUSH is good without the disk that it missed.
    fn is_without(&self, missed: &Missed) -> bool {
        let Some(vhd) = self.vhds.get(missed.vhd) else { return false };
        let extent = match missed.by {
            MissedBy::Write { extent, .. } => Some(extent),
            MissedBy::Flush { .. } => None,
        };
        if self.waves.is_undecided(missed.vhd, extent, missed.disk) {
            return false;
        }
        match missed.by {
            // A copy on that disk which is being made by now is another one: it is filled from those that have the write.
            MissedBy::Write { extent, .. } => vhd.state.map.lookup(extent).replicas.settled().on(missed.disk).is_none(),
            // Something of it lives there by now: which of its writes the failed sync was needed for, nobody knows.
            MissedBy::Flush { .. } if vhd.counts[missed.disk.index()] > 0 => {
                self.space.disk(missed.disk).state.is_synced(vhd.state.sync_wanted_on(missed.disk))
            }
            MissedBy::Flush { .. } => true,
        }
    }

    /// A FLUSH succeeds without a sync of this disk: nothing that is pending for the VHD may go on waiting for one. A number of a
    /// sync that never comes tells what was written before from what comes later.
    fn excuse_copies(&self, missed: &Missed, out: &mut impl OwnerOutbox) {
        let Some(vhd) = self.vhds.get(missed.vhd) else { return };
        let number = self.space.disk(missed.disk).state.begin_sync();
        out.excuse(missed.vhd, SyncPoint { disk: missed.disk, number });
        vhd.state.excuse_copies(missed.disk, number);
    }
}
