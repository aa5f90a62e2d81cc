//! Copies on disks that do not answer: a move must never make a guest wait for its target (ordering rule 3).
//!
//! Now and then, while there is something of the kind, what has waited for such a disk for too long is taken up again: the owner
//! is asked to give the copy up. Once it has, the write does without it; the operation itself stays where it is until the kernel
//! gives it back, and holds back the fences of its disk, so that the slot is not used again before. (The kernel only reads the
//! memory of a write, and what it puts into a copy that was given up is never shown.) A copy that the owner cannot give up any
//! more is the extent's place: the write waits for it, since whatever came after it could be overwritten by it.

use crate::base::ids::DiskId;
use crate::base::limits::COPY_PATIENCE_MILLIS;
use crate::engine::{Engine, IoError, OpTag};
use crate::metrics::IoKind;
use crate::reactor::messages::{Outbox, OwnerRequest};

use super::Pipeline;
use super::slots::{Bounced, PieceSlot, Purpose, RequestSlot};

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// Whether [`Pipeline::tick`] may have something to do before anything else happens: call it a few times a second.
    #[must_use]
    pub fn wants_tick(&self) -> bool {
        self.slots.copies_in_flight() > 0 || self.parking.waits_for_disks() || self.syncs_for_moves()
    }

    /// Takes up what has waited too long for the target of a move.
    pub fn tick(&mut self, now: crate::base::clock::Nanos) {
        self.now = now;
        self.give_up_copies();
        self.give_up_syncs();
        // Who waits for room on a disk may not need that disk any more.
        self.resume_stalled_waiters();
        self.write_filled();
    }

    /// A disk has failed, maybe because it does not answer: writes that other replicas have, and FLUSHes, go on without it if the
    /// owner can do without. Whoever waits for room there looks again.
    pub(super) fn disk_failed(&mut self, disk: DiskId) {
        for slot in self.slots.written_on(disk) {
            let piece = self.slots.piece_mut(slot);
            if !piece.replicas.is_single() && !piece.asked.contains(disk) {
                self.report_missed(slot, disk);
            }
        }
        for slot in self.slots.bounced_from(disk) {
            self.read_elsewhere(slot, disk);
        }
        let waiting: Vec<RequestSlot> = self.syncs[disk.index()].waiting().collect();
        for slot in waiting {
            self.syncs[disk.index()].remove(slot);
            self.report_unsynced(slot, disk);
        }
        self.resume_disk_waiters();
        self.write_filled();
    }

    /// A read into a buffer of ours does not wait for its disk any more: the buffer stays with the disk until that answers, and
    /// another replica is asked. (A read straight into guest memory has to wait: a late answer would overwrite what the guest has
    /// there by then.)
    fn read_elsewhere(&mut self, slot: PieceSlot, disk: DiskId) {
        let Some(tag) = self.slots.orphan(slot, disk, IoKind::Read) else { return };
        let piece = self.slots.piece_mut(slot);
        piece.outstanding -= 1;
        let bounced = piece.bounce.take().expect("only pieces with one are asked about");
        let (request, filling, disks) = (piece.request, piece.filling, bounced.disks);
        let (skip, len, request_offset) = (bounced.skip, bounced.len, bounced.request_offset);
        self.leaked.push((tag, bounced));
        if filling && self.bounce.is_empty() {
            self.slots.piece_mut(slot).failed = true;
        } else {
            if filling {
                let buffer = self.bounce.take(disks);
                self.slots.piece_mut(slot).bounce = Some(Bounced { buffer, skip, len, request_offset, disks });
            }
            self.read_failed(slot, disk);
        }
        if self.slots.piece_mut(slot).outstanding == 0 && self.end_piece(slot) {
            self.run_if_waiting(request);
        }
    }

    /// The disk has answered after all: its buffer can be used again.
    pub(super) fn take_back_leaked(&mut self, tag: OpTag) {
        if let Some(at) = self.leaked.iter().position(|(of, _)| *of == tag) {
            let (_, bounced) = self.leaked.swap_remove(at);
            self.bounce.give_back(bounced.buffer, bounced.disks);
        }
    }

    fn give_up_copies(&mut self) {
        if self.slots.copies_in_flight() == 0 {
            return;
        }
        let now = self.now;
        let late = |begun| now.since(begun) >= COPY_PATIENCE_MILLIS * 1_000_000;
        for (slot, disk) in self.slots.take_late_copies(late) {
            if self.slots.piece_mut(slot).asked.contains(disk) {
                continue;
            }
            let error = IoError::Os(libc::ETIMEDOUT);
            self.outbox.to_owner(OwnerRequest::DiskError { disk, error, sync: false });
            self.report_missed(slot, disk);
        }
    }

    /// Whether a FLUSH waits for a sync for the sake of a move only.
    fn syncs_for_moves(&self) -> bool {
        self.syncing.iter().any(|disk| self.syncs[disk.index()].waiting().any(|slot| self.is_moves_only(slot, disk)))
    }

    fn give_up_syncs(&mut self) {
        for disk in self.syncing.iter() {
            let syncs = &self.syncs[disk.index()];
            if syncs.begun().is_none_or(|begun| self.now.since(begun) < COPY_PATIENCE_MILLIS * 1_000_000) {
                continue;
            }
            let moves_only = |slot: &RequestSlot| self.is_moves_only(*slot, disk);
            let late: Vec<RequestSlot> = syncs.waiting().filter(moves_only).collect();
            for slot in late {
                self.syncs[disk.index()].remove(slot);
                self.report_unsynced(slot, disk);
            }
        }
    }

    /// The owner cannot do without the disk for which a FLUSH has waited too long: if it has not failed, waits on.
    pub(super) fn wait_on(&mut self, slot: RequestSlot, disk: DiskId) -> bool {
        if self.disk(disk).is_failed() {
            return false;
        }
        self.slots.request_mut(slot).to_sync.insert(disk);
        true
    }
}

impl Purpose {
    /// The transfer without what it was for.
    pub(super) fn orphaned(self) -> Purpose {
        match self {
            Purpose::Transfer { epoch, .. } | Purpose::Orphan { epoch } => Purpose::Orphan { epoch },
            Purpose::Sync { number } => Purpose::Sync { number },
        }
    }
}
