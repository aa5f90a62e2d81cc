//! Writes to extents that have replicas, or are being moved (ordering rules 3 and 7).
//!
//! A write goes to every copy, and claims the blocks it touches whether they are present or not: so neither the copier nor
//! another write comes between its parts, and all copies end up the same. What becomes of it does not depend on the copies that
//! the move is making, nor on a replica as long as another one in sync has it: a copy that misses the write is given up, a
//! replica is made durably stale, and only when the owner says so is the write acknowledged.

use crate::base::ids::DiskId;
use crate::base::limits::BOUNCE_LEN;
use crate::base::units::ExtentIndex;
use crate::engine::Engine;
use crate::metrics::IoKind;
use crate::placement::view::{ClaimError, Lookup};
use crate::placement::{ReplicaSet, ReplicaState};
use crate::reactor::messages::{MissedBy, Outbox, OwnerRequest};
use crate::shared::disk::SyncPoint;
use crate::virtio::request::Status;

use super::data::{Chunk, Fill, Plan, padding, written_disks, written_replicas};
use super::slots::{PieceSlot, RequestSlot};
use super::{Pipeline, Step};

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    pub(super) fn write_claimed(&mut self, slot: RequestSlot, mut chunk: Chunk, seen: Lookup, fill: Fill) -> Step {
        if let Some(parked) = self.park_unless_room(slot, written_replicas(seen.replicas), chunk.len) {
            return parked;
        }
        if fill == Fill::Guest && self.needs_bounce(slot, chunk, seen.replicas) {
            if let Some(parked) = self.park_unless_bounce(slot, written_disks(seen.replicas)) {
                return parked;
            }
            chunk.len = chunk.len.min(BOUNCE_LEN as u64);
        }
        if let Some(parked) = self.park_unless_intended(slot, chunk.extent, seen.replicas) {
            return parked;
        }
        if let Some(parked) = self.park_unless_copier_rests(slot, chunk.extent) {
            return parked;
        }
        let vhd = self.slots.request(slot).vhd();
        let geometry = vhd.settings.geometry;
        let touched = geometry.blocks(chunk.within, chunk.len);
        let present = match vhd.map.claim_any(chunk.extent, touched, seen.version) {
            Err(ClaimError::Changed) => return self.claim_changed(slot),
            Err(ClaimError::Busy) => {
                let still =
                    |vhd: &crate::shared::VhdState| !vhd.map.lookup(chunk.extent).claimed.and(touched).is_empty();
                return if seen.replicas.is_moving() {
                    self.park_on_copier(slot, still)
                } else {
                    self.park_on_claim(slot, still)
                };
            }
            Ok(present) => present,
        };
        let fresh = touched.without(present);
        let pad = if fresh.is_empty() { (0, 0) } else { padding(geometry, chunk, fresh) };
        self.write_piece(slot, Plan { chunk, seen, claimed: touched, fresh, pad, fill })
    }

    /// Asks for a write intent, if there is none for the page and the extent has several replicas that are written, or its blocks
    /// have checksums.
    pub(super) fn park_unless_intended(
        &mut self,
        slot: RequestSlot,
        extent: ExtentIndex,
        replicas: ReplicaSet,
    ) -> Option<Step> {
        let needs_none = replicas.in_sync() < 2 && !self.is_checked(slot);
        if needs_none || self.slots.request(slot).vhd().map.may_write_replicas(extent) {
            return None;
        }
        let (reactor, ticket) = (self.id, self.slots.ticket(slot));
        let vhd = self.slots.request(slot).vhd().id();
        self.outbox.to_owner(OwnerRequest::Intend { reactor, ticket, vhd, extent });
        Some(self.park(slot))
    }

    /// Lets the copier go first if it has been waiting for a claim in this extent: a guest that writes to one block all the time
    /// would keep it from ever getting one.
    pub(super) fn park_unless_copier_rests(&mut self, slot: RequestSlot, extent: ExtentIndex) -> Option<Step> {
        if !self.slots.request(slot).vhd().copier_waits(extent) {
            return None;
        }
        Some(self.park_on_copier(slot, |vhd| vhd.copier_waits(extent)))
    }

    fn park_on_copier(&mut self, slot: RequestSlot, still: impl Fn(&crate::shared::VhdState) -> bool) -> Step {
        let metrics = self.slots.request(slot).vhd().metrics.of(self.id);
        metrics.copy_waits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.park_on_claim(slot, still)
    }

    /// A transfer of a write has completed on a copy: which sync covers it. A copy that is only being filled is synced by the
    /// move itself.
    pub(super) fn note_written(&mut self, slot: PieceSlot, point: SyncPoint) {
        let piece = self.slots.piece_mut(slot);
        let found = written_replicas(piece.replicas).enumerate().find(|(_, r)| r.disk == point.disk);
        let (index, replica) = found.expect("the disk of a copy");
        if replica.state == ReplicaState::Syncing {
            return;
        }
        piece.needs[index] = Some(point);
        let (request, extent) = (piece.request, piece.extent);
        let state = self.slots.request_mut(request);
        state.wrote.insert(point.disk);
        match replica.state {
            ReplicaState::Sealing => return state.vhd().note_copied(extent, point),
            _ => state.vhd().note_written(point),
        }
        // The owner may excuse a FLUSH from this sync, if by then nothing here has to wait for it: either it sees what was noted, or a
        // later sync is seen to be the one to come.
        let later = self.disk(point.disk).sync_needed();
        if later != point {
            self.slots.request(request).vhd().note_written(later);
            self.slots.piece_mut(slot).needs[index] = Some(later);
        }
    }

    /// A copy missed a write that others have, or has not got it yet: the write waits until the owner has seen to it that nobody
    /// reads the copy, or says that it cannot. Its claims are kept meanwhile.
    pub(super) fn report_missed(&mut self, slot: PieceSlot, disk: DiskId) {
        let piece = self.slots.piece_mut(slot);
        piece.asked.insert(disk);
        let (request, extent) = (piece.request, piece.extent);
        let vhd = self.slots.request(request).vhd().id();
        let by = MissedBy::Write { piece: slot.number(), extent };
        self.outbox.to_owner(OwnerRequest::CopyMissed { reactor: self.id, vhd, disk, by });
    }

    /// A disk that a FLUSH should sync has failed, or does not answer and is needed for the sake of a move only. The FLUSH waits
    /// until the owner knows whether the disk can be done without.
    pub(super) fn report_unsynced(&mut self, slot: RequestSlot, disk: DiskId) {
        if self.disk(disk).is_failed() {
            self.slots.request_mut(slot).asked_failed.insert(disk);
        }
        let by = MissedBy::Flush { ticket: self.slots.ticket(slot), disk };
        let vhd = self.slots.request(slot).vhd().id();
        self.outbox.to_owner(OwnerRequest::CopyMissed { reactor: self.id, vhd, disk, by });
    }

    /// Nobody reads the copy as it is (`ok`); or it is the last one: then the extent is where the write is missing.
    pub(super) fn copy_dropped(&mut self, by: MissedBy, disk: DiskId, ok: bool) {
        match by {
            MissedBy::Write { piece, .. } => {
                let slot = PieceSlot::numbered(piece);
                let piece = self.slots.piece_mut(slot);
                piece.asked.remove(disk);
                let request = piece.request;
                if ok {
                    piece.missed.remove(disk);
                    // What is still in flight goes to a place that nobody will read before it has completed.
                    if self.slots.orphan(slot, disk, IoKind::Write).is_some() {
                        self.slots.piece_mut(slot).outstanding -= 1;
                    }
                } else {
                    // The extent is there by now. What is in flight is a write like any other: it would overwrite later ones.
                    piece.failed |= piece.missed.contains(disk);
                }
                if self.end_piece(slot) {
                    self.run_if_waiting(request);
                }
            }
            MissedBy::Flush { ticket, .. } => {
                let Some(slot) = self.slots.by_ticket(ticket) else { return };
                if !ok && !self.wait_on(slot, disk) {
                    if !self.slots.request(slot).asked_failed.contains(disk) {
                        // It has failed since: the owner knows another answer to that.
                        return self.report_unsynced(slot, disk);
                    }
                    self.slots.request_mut(slot).fail(Status::IoError);
                }
                self.run_if_waiting(slot);
            }
        }
    }
}
