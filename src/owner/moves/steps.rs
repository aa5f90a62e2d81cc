//! What happens next to a wave.

use super::wave::{Fault, Move, Planned, Stage, Wave};
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, DiskSet, JobId, VhdId};
use crate::base::units::{BLOCKS_PER_EXTENT, ExtentIndex, SlotIndex};
use crate::engine::IoError;
use crate::mover::messages::{CopyTask, MoveId, MoverMessage, MoverReport, WaveId};
use crate::owner::Owner;
use crate::owner::outbox::OwnerOutbox;
use crate::placement::job::JobKind;
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::plan::Relocation;
use crate::store::edit::{EditFailed, EditId, MovedExtent, StoreEdit};
use crate::store::page::PageKey;

impl Owner {
    /// Takes a report of the mover.
    pub fn handle_mover(&mut self, report: MoverReport, now: Nanos, out: &mut impl OwnerOutbox) {
        match report {
            MoverReport::Copied { id } => {
                if !self.scrub_ended(id, Ok(true), out) && !self.repair_ended(id, Ok(true), out) {
                    self.copied(id, out);
                }
            }
            MoverReport::Gone { id } => {
                if !self.scrub_ended(id, Ok(false), out) && !self.repair_ended(id, Ok(false), out) {
                    self.copy_gone(id, out);
                }
            }
            MoverReport::Failed { id, disk, error } => {
                let fault = Fault { disk, error };
                if !self.scrub_ended(id, Err(fault), out) && !self.repair_ended(id, Err(fault), out) {
                    self.copy_failed(id, fault, out);
                }
            }
            MoverReport::Stuck { disk } => self.target_failed(Fault { disk, error: IoError::Os(libc::ETIMEDOUT) }, out),
            MoverReport::Progress { job, bytes } => self.job_progress(job, bytes, now),
            MoverReport::Synced { wave, disk, result } => self.synced(wave, disk, result, out),
            MoverReport::Turned => self.turned(self.reuse.mover()),
            MoverReport::FenceReached { fence } => {
                let mover = self.reuse.mover();
                if let Some(reached) = self.reuse.reached(mover, fence, out) {
                    self.fence_reached(reached, out);
                }
            }
        }
    }

    /// Begins to move extents. Those that cannot be moved now (dropped or moved since they were planned, or no slot to be had)
    /// are left out. Returns how many are on their way.
    pub(in crate::owner) fn begin_wave(
        &mut self,
        job: JobId,
        id: VhdId,
        planned: &[Planned],
        out: &mut impl OwnerOutbox,
    ) -> usize {
        let moves: Vec<Move> = planned.iter().filter_map(|planned| self.begin_move(job, id, planned, out)).collect();
        let count = moves.len();
        if count == 0 {
            return 0;
        }
        let vhd = self.vhds.get(id).expect("moves of a VHD end with it");
        let mut missing = DiskSet::default();
        for moved in moves.iter().filter(|moved| moved.to.is_some()) {
            vhd.state.map.lookup(moved.extent).replicas.settled().iter().for_each(|r| missing.insert(r.disk));
            // Writes that were given up because the disk did not answer may still be on their way.
            missing.insert(moved.to.expect("just looked").disk);
        }
        // What a disk that has failed has not answered is elsewhere, too.
        let works = |disk: &DiskId| !self.space.disk(*disk).state.is_failed();
        let missing: DiskSet = missing.iter().filter(works).collect();
        let wave = self.waves.insert(Wave { job, vhd: id, stage: Stage::Draining { missing }, moves });
        if missing.is_empty() {
            self.sync_wave(wave, out);
        }
        missing.iter().for_each(|disk| self.reuse.fence_for(wave, disk, out));
        count
    }

    /// Whether the extent has been dropped since the plan was made.
    pub(in crate::owner) fn is_outdated(&self, id: VhdId, planned: &Planned) -> bool {
        let extent = planned.relocation.extent;
        self.vhds.get(id).is_none_or(|vhd| vhd.state.map.lookup(extent).generation != planned.generation)
    }

    /// Whether a copy that the job makes is for a replica that is lost.
    pub(in crate::owner) fn makes_good(&self, job: JobId, from: Option<DiskId>) -> bool {
        let rebuilds = self.jobs.get(job).is_some_and(|job| matches!(job.record.kind, JobKind::Rebuild { .. }));
        rebuilds || from.is_some_and(|from| self.space.disk(from).state.is_failed())
    }

    /// Takes a slot and publishes the copy.
    fn begin_move(&mut self, job: JobId, id: VhdId, planned: &Planned, out: &mut impl OwnerOutbox) -> Option<Move> {
        let Planned { relocation: planned, generation } = *planned;
        let vhd = self.vhds.get(id)?;
        let seen = vhd.state.map.lookup(planned.extent);
        let from = planned.from.map(|disk| seen.replicas.on(disk));
        let is_possible = seen.generation == generation
            && from.is_none_or(|from| from.is_some())
            && planned.to.is_none_or(|to| seen.replicas.on(to).is_none_or(|there| there.state == ReplicaState::Stale))
            && !seen.replicas.is_moving()
            && self.waves.of_extent(id, planned.extent).is_none()
            && !self.stale.concerns_extent(id, planned.extent)
            && !self.repairs.is_running(id, planned.extent)
            && (planned.to.is_some() || !self.repairs.knows_extent_or_page(id, planned.extent))
            && self.keeps_one(seen.replicas, planned);
        if !is_possible || seen.replicas.is_absent() {
            return None;
        }
        let mut to = None;
        let (mut in_place, mut vacates) = (false, None);
        if let Some(stale) = planned.to.and_then(|disk| seen.replicas.on(disk)) {
            let replica = Replica {
                state: ReplicaState::Syncing,
                slot: self.slot_to_refill(id, planned.extent, stale)?,
                ..stale
            };
            let vhd = self.vhds.get_mut(id)?;
            vhd.state.map.set_replicas(planned.extent, seen.replicas.with(stale.disk, replica));
            // Counted like any copy: once it is in sync.
            vhd.counts[stale.disk.index()] -= 1;
            (to, in_place) = (Some(replica), true);
            vacates = (replica.slot != stale.slot).then_some(stale.slot);
        } else if let Some(disk) = planned.to {
            let ideal = vhd.ideal(planned.extent, disk, &self.space);
            let makes_good = self.makes_good(job, planned.from);
            let slot = self.take_for_copy(id, disk, &ideal, makes_good)?;
            let replica = Replica { disk, slot, state: ReplicaState::Syncing };
            let mut copies = seen.replicas;
            copies.push(replica);
            let vhd = self.vhds.get(id)?;
            vhd.state.map.set_replicas(planned.extent, copies);
            self.usage.update(&self.space, disk, out);
            to = Some(replica);
        }
        let id = self.waves.next_move();
        let (extent, from) = (planned.extent, from.flatten());
        Some(Move { id, extent, generation, from, to, in_place, vacates, copied: false })
    }

    /// Where a stale replica is filled again: where it is, or in another slot of its disk if that one cannot be written.
    fn slot_to_refill(&mut self, id: VhdId, extent: ExtentIndex, stale: Replica) -> Option<SlotIndex> {
        let disk = self.space.disk(stale.disk);
        if disk.state.is_failed() {
            return None;
        }
        if !disk.bad().contains(&stale.slot) {
            return Some(stale.slot);
        }
        let ideal = self.vhds.get(id)?.ideal(extent, stale.disk, &self.space);
        // Without another one, it may have been an error that passes.
        let Some(slot) = self.take_for_copy(id, stale.disk, &ideal, true) else { return Some(stale.slot) };
        if self.space.disk(stale.disk).bad().contains(&slot) {
            self.space.put_back(stale.disk, slot);
            self.hold_again(id);
            return Some(stale.slot);
        }
        self.space.give_back(stale.disk, stale.slot);
        Some(slot)
    }

    /// Whether a replica that can be read is left once the move is done.
    fn keeps_one(&self, replicas: ReplicaSet, planned: Relocation) -> bool {
        let works = |r: &Replica| r.state == ReplicaState::InSync && !self.space.disk(r.disk).state.is_failed();
        planned.to.is_some() || replicas.iter().any(|r| works(&r) && Some(r.disk) != planned.from)
    }

    /// A fence that a wave waits for was reached.
    pub(in crate::owner) fn wave_fence_reached(&mut self, id: WaveId, disk: DiskId, out: &mut impl OwnerOutbox) {
        let Some(wave) = self.waves.get_mut(id) else { return };
        let (Stage::Draining { missing } | Stage::Sealing { missing }) = &mut wave.stage else { return };
        missing.remove(disk);
        if !missing.is_empty() {
            return;
        }
        match wave.stage {
            Stage::Draining { .. } => self.copy_wave(id, out),
            _ => self.sync_wave(id, out),
        }
    }

    fn copy_wave(&mut self, id: WaveId, out: &mut impl OwnerOutbox) {
        let wave = self.waves.get_mut(id).expect("looked up by the caller");
        wave.stage = Stage::Copying;
        let (job, moves) = (wave.job, wave.moves.clone());
        let vhd = self.vhds.get(wave.vhd).expect("moves of a VHD end with it");
        let mut lost = Vec::new();
        for moved in &moves {
            let Some(target) = moved.to else { continue };
            let seen = vhd.state.map.lookup(moved.extent);
            let settled = seen.replicas.settled();
            let works = |r: &Replica| r.state == ReplicaState::InSync && !self.space.disk(r.disk).state.is_failed();
            // The one that guests read: if a power cut has left replicas different, what was read once stays.
            // Nothing has to be read of an extent in which nothing is, nor is about to be. A first write that saw the old view may still
            // be on its way to a disk that has failed, since no fence there is waited for: then it holds its claim, and if the disk answers
            // after all, that disk is the only one that has it. (One that had no claim by now sees the copy.)
            let is_empty = seen.present.is_empty() && seen.claimed.is_empty();
            let empty = || settled.iter().find(|r| r.state == ReplicaState::InSync).filter(|_| is_empty);
            let Some(source) = settled.iter().find(works).or_else(empty) else {
                lost.push((moved.id, settled.iter().next().map_or(target.disk, |r| r.disk)));
                continue;
            };
            let copy = CopyTask { id: moved.id, job, vhd: vhd.state.clone(), extent: moved.extent, source, target };
            out.to_mover(MoverMessage::Copy(copy));
        }
        for (id, disk) in lost {
            self.copy_failed(id, Fault { disk, error: IoError::Os(libc::EIO) }, out);
        }
        self.seal_if_copied(id, out);
    }

    fn copied(&mut self, id: MoveId, out: &mut impl OwnerOutbox) {
        let Some(wave_id) = self.waves.of_move(id) else { return };
        let wave = self.waves.get_mut(wave_id).expect("of_move names waves that are there");
        let (job, vhd) = (wave.job, wave.vhd);
        if let Some(moved) = wave.moves.iter_mut().find(|moved| moved.id == id) {
            moved.copied = true;
            let extent = moved.extent;
            self.job_readable(job, vhd, extent);
        }
        self.seal_if_copied(wave_id, out);
    }

    /// Goes on to the next step if every copy of the wave is filled.
    pub(in crate::owner) fn seal_if_copied(&mut self, id: WaveId, out: &mut impl OwnerOutbox) {
        let Some(wave) = self.waves.get_mut(id) else { return };
        if wave.stage != Stage::Copying || wave.moves.iter().any(|moved| moved.to.is_some() && !moved.copied) {
            return;
        }
        let vhd = self.vhds.get(wave.vhd).expect("moves of a VHD end with it");
        for moved in &mut wave.moves {
            let Some(to) = &mut moved.to else { continue };
            to.state = ReplicaState::Sealing;
            let mut copies = vhd.state.map.lookup(moved.extent).replicas.without(to.disk);
            copies.push(*to);
            vhd.state.map.set_replicas(moved.extent, copies);
        }
        let missing = wave.targets();
        wave.stage = Stage::Sealing { missing };
        if missing.is_empty() {
            return self.sync_wave(id, out);
        }
        missing.iter().for_each(|disk| self.reuse.fence_for(id, disk, out));
    }

    /// Copies must be on their disks before they are in the table (ordering rule 3). And so must replicas that stay where another one goes
    /// for good: what it had, and they were given after a power cut, may be in their caches only; then the next power cut would bring
    /// back what nobody has read since.
    fn sync_wave(&mut self, id: WaveId, out: &mut impl OwnerOutbox) {
        let wave = self.waves.get_mut(id).expect("looked up by the caller");
        wave.stage = Stage::Syncing { missing: DiskSet::default() };
        let (vhd, moves) = (wave.vhd, wave.moves.clone());
        let (mut missing, mut last) = (DiskSet::default(), Vec::new());
        for moved in &moves {
            let disks = moved.to.map_or_else(|| self.staying(vhd, moved), |to| [to.disk].into_iter().collect());
            // A disk may have failed since the move began: what nothing works beside does not go.
            if disks.is_empty() {
                last.push(moved.id);
            }
            disks.iter().for_each(|disk| missing.insert(disk));
        }
        for moved in last {
            self.give_up(moved, out);
        }
        let Some(wave) = self.waves.get_mut(id) else { return };
        wave.stage = Stage::Syncing { missing };
        if missing.is_empty() {
            return self.commit_wave(id, out);
        }
        missing.iter().for_each(|disk| out.to_mover(MoverMessage::Sync { wave: id, disk }));
    }

    /// The disks that work and have all of the extent, without the one that the move takes it from.
    fn staying(&self, id: VhdId, moved: &Move) -> DiskSet {
        let vhd = self.vhds.get(id).expect("moves of a VHD end with it");
        let goes = |disk| moved.from.is_some_and(|from| from.disk == disk);
        let stays = |r: &Replica| {
            r.state == ReplicaState::InSync && !goes(r.disk) && !self.space.disk(r.disk).state.is_failed()
        };
        vhd.state.map.lookup(moved.extent).replicas.iter().filter(stays).map(|r| r.disk).collect()
    }

    fn synced(&mut self, id: WaveId, disk: DiskId, result: Result<(), IoError>, out: &mut impl OwnerOutbox) {
        if let Err(error) = result {
            // The disk has failed, whoever asked for the sync.
            self.disk_error(disk, error, true, out);
            self.target_failed(Fault { disk, error }, out);
        }
        self.wave_awaits_no_sync(id, disk, out);
    }

    /// The disk was synced for the wave, or has failed and what needed that was given up.
    pub(in crate::owner) fn wave_awaits_no_sync(&mut self, id: WaveId, disk: DiskId, out: &mut impl OwnerOutbox) {
        let Some(wave) = self.waves.get_mut(id) else { return };
        let Stage::Syncing { missing } = &mut wave.stage else { return };
        missing.remove(disk);
        if missing.is_empty() {
            self.commit_wave(id, out);
        }
    }

    fn commit_wave(&mut self, id: WaveId, out: &mut impl OwnerOutbox) {
        let wave = self.waves.get(id).expect("looked up by the caller");
        if wave.moves.is_empty() {
            return self.wave_done(id, out);
        }
        let vhd = self.vhds.get(wave.vhd).expect("moves of a VHD end with it");
        let place = |moved: &Move| {
            let before = vhd.state.map.lookup(moved.extent).replicas;
            MovedExtent {
                extent: moved.extent,
                generation: moved.generation,
                from: moved.from.map(|from| from.disk),
                replicas: place_after(before, moved),
            }
        };
        let mut moves: Vec<MovedExtent> = wave.moves.iter().map(place).collect();
        moves.sort_unstable_by_key(|moved| moved.extent);
        let (of, pages) = (wave.vhd, pages_with_replicas(&moves));
        let mut rows = vec![StoreEdit::Move { vhd: of, moves }];
        // What was written to one replica while another one was made may be durable on one of them only.
        rows.extend(self.intend_with(of, pages));
        let edit = self.next_edit();
        self.waves.get_mut(id).expect("looked up above").stage = Stage::Committing { edit };
        out.edit(edit, rows);
    }

    /// The rows of a wave are durable, or failed. False if the edit is not one of a wave.
    pub(in crate::owner) fn wave_edit_done(
        &mut self,
        edit: EditId,
        result: Result<(), EditFailed>,
        out: &mut impl OwnerOutbox,
    ) -> bool {
        let Some(id) = self.waves.committing(edit) else { return false };
        match result {
            Ok(()) => self.switch_wave(id, out),
            // Nobody knows which place the table has: both are kept, and both get every write, until the pool is opened again.
            Err(failed) => {
                let wave = self.waves.get_mut(id).expect("just found");
                wave.stage = Stage::Undecided;
                let job = wave.job;
                self.stop_job(job, &failed.to_string(), out);
                self.answer_missed(out);
            }
        }
        true
    }

    /// The new places are durable: they are the only ones from now on.
    fn switch_wave(&mut self, id: WaveId, out: &mut impl OwnerOutbox) {
        let wave = self.waves.get(id).expect("looked up by the caller").clone();
        let vhd = self.vhds.get_mut(wave.vhd).expect("moves of a VHD end with it");
        let mut freed: std::collections::BTreeMap<DiskId, Vec<_>> = std::collections::BTreeMap::new();
        let (mut absent_blocks, mut intended) = (0, std::collections::BTreeSet::new());
        for moved in &wave.moves {
            let before = vhd.state.map.lookup(moved.extent).replicas;
            let after = place_after(before, moved);
            if after.in_sync() > 1 {
                intended.insert(PageKey::of(wave.vhd, moved.extent).0);
            }
            vhd.state.map.set_replicas(moved.extent, after);
            if let Some((disk, slot)) = moved.vacated() {
                freed.entry(disk).or_default().push(slot);
            }
            if let Some(to) = moved.to {
                absent_blocks += u64::from(BLOCKS_PER_EXTENT - vhd.state.map.lookup(moved.extent).present.len());
                vhd.counts[to.disk.index()] += 1;
                vhd.state.arrive_at(to.disk);
            }
            if let Some(from) = moved.from {
                vhd.counts[from.disk.index()] -= 1;
                self.space.give_back(from.disk, from.slot);
                freed.entry(from.disk).or_default().push(from.slot);
            }
        }
        // In the rows that are durable now, or in earlier ones.
        intended.into_iter().for_each(|page| self.intent_is_durable(page));
        self.job_spared(wave.job, absent_blocks * self.geometry.block_size());
        for (disk, slots) in freed {
            self.reuse.freed_durably(disk, slots, out);
            self.usage.update(&self.space, disk, out);
        }
        self.wave_done(id, out);
    }

    pub(in crate::owner) fn wave_done(&mut self, id: WaveId, out: &mut impl OwnerOutbox) {
        let Some(wave) = self.waves.remove(id) else { return };
        self.answer_missed(out);
        self.resume_repairs(out);
        self.job_wave_done(wave.job, out);
    }
}

/// The pages of extents that have several replicas in sync from now on.
fn pages_with_replicas(moves: &[MovedExtent]) -> Vec<u32> {
    let replicated = moves.iter().filter(|moved| moved.replicas.in_sync() > 1);
    let mut pages: Vec<u32> = replicated.map(|moved| PageKey::of(VhdId(0), moved.extent).0.page).collect();
    pages.dedup();
    pages
}

/// Where an extent is once its move is durable. A copy comes in the place of the replica that goes: it was made from the first
/// one, which guests read, and is the one they go on reading if that goes.
fn place_after(before: ReplicaSet, moved: &Move) -> ReplicaSet {
    let mut settled = before.settled();
    let to = moved.to.map(|to| Replica { state: ReplicaState::InSync, ..to });
    match (moved.from, to) {
        (Some(from), Some(to)) => settled.with(from.disk, to),
        (Some(from), None) => settled.without(from.disk),
        (None, Some(to)) => {
            settled.push(to);
            settled
        }
        (None, None) => settled,
    }
}
