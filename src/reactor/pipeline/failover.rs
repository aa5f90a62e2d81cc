//! Reads that a replica could not answer: another one is asked.
//!
//! A read is only repeated once nothing of it is in flight. What has been read already is read again: simple, and seldom.

use crate::base::ids::{DiskId, DiskSet};
use crate::base::units::ExtentIndex;
use crate::engine::{Buffer, Engine};
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::reactor::messages::{Outbox, OwnerRequest};

use super::Pipeline;
use super::data::to_usize;
use super::slots::{Avoid, Piece, PieceSlot, RequestSlot, Unread};

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// The replica that is to answer a read: the one on the disk with the fewest operations in flight here and in line for it: where little
    /// may be in flight little is, however many wait.
    /// If they may differ, the first one.
    pub(super) fn replica_to_read(&self, replicas: ReplicaSet, in_doubt: bool, avoid: DiskSet) -> Option<Replica> {
        let usable =
            |r: &Replica| r.state == ReplicaState::InSync && !avoid.contains(r.disk) && !self.disk(r.disk).is_failed();
        let mut usable = replicas.iter().filter(usable);
        if replicas.is_single() || in_doubt {
            return usable.next();
        }
        usable.min_by_key(|replica| self.parking.in_flight_on(replica.disk) + self.parking.line(replica.disk).len())
    }

    /// As [`Pipeline::replica_to_read`], without those that have failed to answer this request. One that has a turn keeps it: if it went from
    /// line to line it would come last in each.
    pub(super) fn replica_for(&self, slot: RequestSlot, extent: ExtentIndex, replicas: ReplicaSet) -> Option<Replica> {
        let state = self.slots.request(slot);
        let avoid = self.avoided(slot, extent);
        let in_doubt = !replicas.is_single() && state.vhd().map.is_in_doubt(extent);
        let chosen = self.replica_to_read(replicas, in_doubt, avoid)?;
        let is_as_good = |disk: &DiskId| !in_doubt && !avoid.contains(*disk) && !self.disk(*disk).is_failed();
        let kept = self.kept_turn(slot, chosen.disk).filter(is_as_good).and_then(|disk| replicas.on(disk));
        Some(kept.filter(|replica| replica.state == ReplicaState::InSync).unwrap_or(chosen))
    }

    /// Disks that failed to answer this request in the extent. If blocks are compared, a disk that is wrong in one of them may be the only
    /// one that is right in the next.
    fn avoided(&self, slot: RequestSlot, extent: ExtentIndex) -> DiskSet {
        let state = self.slots.request(slot);
        let counts = |avoid: &Avoid| avoid.extent == extent && (!state.careful || avoid.cursor == state.cursor);
        state.avoid.filter(counts).map_or(DiskSet::default(), |avoid| avoid.disks)
    }

    /// A read for the piece failed. If there is another replica it is asked, and the owner told of the bad one; else the piece
    /// has failed.
    pub(super) fn read_failed(&mut self, slot: PieceSlot, disk: DiskId) {
        let piece = self.slots.piece_mut(slot);
        piece.unfilled.insert(disk);
        let (replicas, request, unfilled) = (piece.replicas, piece.request, piece.unfilled);
        let (extent, cursor, filling) = (piece.extent, piece.cursor, piece.filling);
        let in_doubt = self.slots.request(request).vhd().map.is_in_doubt(extent);
        let Some(other) = self.replica_to_read(replicas, in_doubt, unfilled) else {
            self.slots.piece_mut(slot).failed = true;
            return;
        };
        let vhd = self.slots.request(request).vhd().id();
        self.outbox.to_owner(OwnerRequest::ReadFailed { vhd, extent, disk });
        if filling {
            return self.fill_from(slot, other);
        }
        self.read_again_from(request, Unread { cursor, extent, disk: Some(disk) });
    }

    /// The request goes back there, or to what comes first, once nothing of it is in flight.
    pub(super) fn read_again_from(&mut self, request: RequestSlot, unread: Unread) {
        let state = self.slots.request_mut(request);
        if state.unread.is_none_or(|before| unread.cursor < before.cursor) {
            state.unread = Some(unread);
        }
    }

    /// A write failed, and its replicas may have got different parts of it: what a guest reads there is undefined, but not another
    /// thing each time.
    pub(super) fn report_differing(&mut self, piece: &Piece) {
        let vhd = self.slots.request(piece.request).vhd().id();
        // A copy that a move is making may be a replica soon.
        if piece.replicas.iter().filter(|replica| replica.state != ReplicaState::Stale).count() > 1 {
            self.outbox.to_owner(OwnerRequest::ReplicasDiffer { vhd, extent: piece.extent });
        }
    }

    /// Reads the disk block again, from another replica: its place is held like those that will be written.
    fn fill_from(&mut self, slot: PieceSlot, replica: Replica) {
        let piece = self.slots.piece_mut(slot);
        let (_, start, len) = piece.part.expect("a piece that is being filled");
        let request = piece.request;
        let bounced = piece.bounce.as_ref().expect("a piece that is being filled");
        let buffer = Buffer { ptr: bounced.buffer.as_ptr(), len: to_usize(len) };
        self.buffers.clear();
        self.buffers.push(buffer);
        let offset = self.disk_offset(request, replica, start);
        self.submit(slot, replica.disk, offset);
    }

    /// Goes back to what could not be read, once nothing of the request is in flight.
    pub(super) fn reads_again(&mut self, slot: RequestSlot) -> bool {
        let state = self.slots.request_mut(slot);
        let Some(Unread { cursor, extent, disk }) = state.unread.take() else { return false };
        if state.failed.is_some() {
            return false;
        }
        state.cursor = cursor;
        let mut disks = self.avoided(slot, extent);
        disk.iter().for_each(|disk| disks.insert(*disk));
        self.slots.request_mut(slot).avoid = Some(Avoid { extent, cursor, disks });
        true
    }
}
