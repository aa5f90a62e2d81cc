//! Ending moves before they are durable: the extent is dropped, its VHD deleted, the job stopped, or the target lost.

use super::wave::{Fault, Move, Stage, Wave};
use crate::base::ids::{JobId, VhdId};
use crate::base::units::ExtentIndex;
use crate::engine::IoError;
use crate::mover::messages::{MoveId, WaveId};
use crate::owner::Owner;
use crate::owner::outbox::{Event, OwnerOutbox};
use crate::placement::{Replica, ReplicaSet, ReplicaState};

impl Owner {
    /// The owner drops the extent, and sees to its slots, that of a copy being made included: there is nothing to move any more.
    /// Returns a slot that is not one of them any more, for as long as the table has the extent.
    pub(in crate::owner) fn forget_move(
        &mut self,
        vhd: VhdId,
        extent: ExtentIndex,
        out: &mut impl OwnerOutbox,
    ) -> Option<ReplicaSet> {
        let (_, moved) = self.waves.of_extent(vhd, extent)?;
        let moved = self.end_move(moved, out)?;
        moved.vacated().map(|(disk, slot)| ReplicaSet::single(disk, slot))
    }

    /// Takes a move out of its wave, which goes on if that was the last it waited for.
    fn end_move(&mut self, id: MoveId, out: &mut impl OwnerOutbox) -> Option<Move> {
        let (wave, moved) = self.waves.remove_move(id)?;
        self.go_on_without(wave, out);
        Some(moved)
    }

    fn go_on_without(&mut self, id: WaveId, out: &mut impl OwnerOutbox) {
        let Some(wave) = self.waves.get(id) else { return };
        match wave.stage {
            // The edit is answered, or never.
            Stage::Committing { .. } | Stage::Undecided => {}
            // Nobody waits for what it has been asking for: fences and syncs that come now are of no wave.
            _ if wave.moves.is_empty() => self.wave_done(id, out),
            // Copies are counted one by one. Fences and syncs are answered for the wave as a whole.
            Stage::Copying => self.seal_if_copied(id, out),
            Stage::Draining { .. } | Stage::Sealing { .. } | Stage::Syncing { .. } => {}
        }
    }

    /// Takes back a copy that is not in the table: the view is as it was, and the slot is free once nothing uses it. False if
    /// the move cannot be taken back any more.
    pub(super) fn give_up(&mut self, id: MoveId, out: &mut impl OwnerOutbox) -> bool {
        let Some(wave_id) = self.waves.of_move(id) else { return true };
        let wave = self.waves.get(wave_id).expect("of_move names waves that are there");
        if matches!(wave.stage, Stage::Committing { .. } | Stage::Undecided) {
            return false;
        }
        let vhd = self.vhds.get(wave.vhd).expect("moves of a VHD end with it").state.clone();
        let Some(moved) = wave.moves.iter().find(|moved| moved.id == id).cloned() else { return true };
        if let Some(to) = moved.to {
            let before = vhd.map.lookup(moved.extent).replicas;
            if moved.in_place {
                let slot = moved.vacates.unwrap_or(to.slot);
                let stale = Replica { state: ReplicaState::Stale, slot, ..to };
                vhd.map.set_replicas(moved.extent, before.with(to.disk, stale));
                self.vhds.get_mut(vhd.id()).expect("just looked up").counts[to.disk.index()] += 1;
            } else {
                vhd.map.set_replicas(moved.extent, before.settled());
            }
            if let Some(slot) = moved.vacates {
                self.space.take_again(to.disk, slot);
            }
            if !moved.in_place || moved.vacates.is_some() {
                self.space.give_back(to.disk, to.slot);
                self.reuse.freed_durably(to.disk, vec![to.slot], out);
                self.usage.update(&self.space, to.disk, out);
            }
        }
        self.end_move(id, out);
        true
    }

    /// Gives up what can be given up of the moves that `which` chooses.
    pub(in crate::owner) fn give_up_all(
        &mut self,
        which: impl Fn(JobId, VhdId, &Move) -> bool,
        out: &mut impl OwnerOutbox,
    ) {
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
            let vacated: Vec<_> =
                self.waves.get(id).iter().flat_map(|wave| &wave.moves).filter_map(Move::vacated).collect();
            vacated.into_iter().for_each(|(disk, slot)| self.reuse.freed_durably(disk, vec![slot], out));
            self.wave_done(id, out);
        }
    }

    /// Nothing can be written to a disk any more: moves to it end, and their jobs stop. If it has failed, replicas that were about to go because
    /// of the ones there stay, and nobody waits for a sync of it. (If it is slow only, they wait. Guests do not: what they
    /// wait for gives moves up.)
    pub(in crate::owner) fn target_failed(&mut self, fault: Fault, out: &mut impl OwnerOutbox) {
        let awaits = |wave: &Wave| matches!(wave.stage, Stage::Syncing { missing } if missing.contains(fault.disk));
        let has_failed = self.space.disk(fault.disk).state.is_failed();
        let waves = self.waves.iter().filter(|(_, wave)| has_failed && awaits(wave));
        let (waiting, goes): (Vec<WaveId>, Vec<Vec<MoveId>>) =
            waves.map(|(id, wave)| (id, wave.moves.iter().filter(|m| m.to.is_none()).map(|m| m.id).collect())).unzip();
        for id in goes.into_iter().flatten() {
            self.give_up(id, out);
        }
        let to_it = |moved: &Move| moved.to.is_some_and(|to| to.disk == fault.disk);
        let mut jobs: Vec<JobId> =
            self.waves.iter().filter(|(_, wave)| wave.moves.iter().any(to_it)).map(|(_, wave)| wave.job).collect();
        jobs.dedup();
        // Before the waves end: the jobs would begin with others there at once.
        for job in &jobs {
            let why = format!("disk '{}': {}", self.pool.disk_name(fault.disk), fault.error);
            self.stop_job(*job, &why, out);
        }
        // Of jobs that are not running, too.
        self.give_up_all(|job, _, moved| jobs.contains(&job) && to_it(moved), out);
        waiting.into_iter().for_each(|wave| self.wave_awaits_no_sync(wave, fault.disk, out));
    }

    /// The extent is not where the copy was to be made from any more. Mostly the owner has ended the move itself; if not, it cannot
    /// be carried out as it was begun.
    pub(in crate::owner) fn copy_gone(&mut self, id: MoveId, out: &mut impl OwnerOutbox) {
        self.give_up(id, out);
    }

    /// The mover could not read the extent, or not write its copy.
    pub(in crate::owner) fn copy_failed(&mut self, id: MoveId, fault: Fault, out: &mut impl OwnerOutbox) {
        let Some(wave) = self.waves.of_move(id).and_then(|wave| self.waves.get(wave)) else { return };
        let (job, vhd) = (wave.job, wave.vhd);
        let Some(Move { extent, to, .. }) = wave.moves.iter().find(|moved| moved.id == id).cloned() else { return };
        self.disk_error(fault.disk, fault.error, false, out);
        // Before the wave ends, and the job with it.
        match to.filter(|to| to.disk == fault.disk) {
            Some(to) => {
                if !self.note_bad_place(vhd, extent, to, fault.error, out) || !self.job_unwritable(job, vhd, extent) {
                    return self.target_failed(fault, out);
                }
            }
            None => self.job_unreadable(job, vhd, extent),
        }
        self.give_up(id, out);
    }

    /// A place on a disk could not be written. If it may be that place only, it is remembered and avoided; false if it is the disk.
    pub(in crate::owner) fn note_bad_place(
        &mut self,
        vhd: VhdId,
        extent: ExtentIndex,
        place: Replica,
        error: IoError,
        out: &mut impl OwnerOutbox,
    ) -> bool {
        let of_place = !matches!(error, IoError::Os(libc::ETIMEDOUT | libc::ENOSPC | libc::EDQUOT));
        if !of_place || self.space.disk(place.disk).state.is_failed() {
            return false;
        }
        if let Some(count) = self.space.note_bad(place.disk, place.slot) {
            out.event(Event::BadPlace {
                disk: self.pool.disk_name(place.disk),
                slot: place.slot,
                error: error.to_string(),
                vhd: self.vhds.get(vhd).map_or_else(String::new, |vhd| vhd.record.name.clone()),
                extent,
                count,
            });
        }
        true
    }
}
