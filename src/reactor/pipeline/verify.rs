//! VHDs with checksums: reads are compared, writes go through memory of ours.
//!
//! The guest can change its buffers while we look at them. So what is written is first copied, and the checksum is that of the copy;
//! what is read goes to the guest after it was compared. Reads and writes are of whole blocks, since these have the checksums: a
//! write of a part of one is read, changed and written back, like those of parts of disk blocks (`emulate`).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::BOUNCE_LEN;
use crate::base::units::{BlockMask, Geometry};
use crate::engine::{Buffer, Engine, IoError};
use crate::placement::Replica;
use crate::placement::view::{Checksum, ClaimError, Lookup};
use crate::reactor::messages::{Outbox, OwnerRequest};
use crate::shared::VhdState;

use super::data::{Chunk, Fill, Plan, to_usize};
use super::slots::{Bounced, Piece, PieceSlot, RequestSlot, Unread};
use super::{Pipeline, Step};

/// Whole blocks of an extent that memory of ours holds: byte offset and length.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Whole {
    pub within: u64,
    pub len: u64,
}

impl Whole {
    /// The blocks around a chunk that begin in its first `limit` bytes.
    fn around(geometry: Geometry, chunk: Chunk, limit: u64) -> Whole {
        let block = geometry.block_size();
        let within = chunk.within / block * block;
        let len = (chunk.within + chunk.len - within).next_multiple_of(block);
        Whole { within, len: len.min(limit / block * block) }
    }

    /// The number of each block, with its bytes.
    fn blocks(self, geometry: Geometry, bytes: &[u8]) -> impl Iterator<Item = (u32, &[u8])> {
        let block = geometry.block_size();
        let first = u32::try_from(self.within / block).expect("an extent has few blocks");
        (first..).zip(bytes[..to_usize(self.len)].chunks_exact(to_usize(block)))
    }
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// Whether blocks of the VHD have checksums.
    pub(super) fn is_checked(&self, slot: RequestSlot) -> bool {
        self.slots.request(slot).vhd().settings.checksums
    }

    /// Reads whole blocks into memory of ours. If something was not as it should be before, under a claim.
    pub(super) fn read_checked(&mut self, slot: RequestSlot, mut chunk: Chunk, seen: Lookup, replica: Replica) -> Step {
        let disks: DiskSet = [replica.disk].into_iter().collect();
        if let Some(parked) = self.park_unless_bounce(slot, disks) {
            return parked;
        }
        let state = self.slots.request(slot);
        let (geometry, careful, request_offset) = (state.vhd().settings.geometry, state.careful, state.cursor);
        // Replicas may be wrong in different blocks.
        let limit = if careful { geometry.block_size() } else { BOUNCE_LEN as u64 };
        let whole = Whole::around(geometry, chunk, limit);
        let skip = chunk.within - whole.within;
        chunk.len = chunk.len.min(whole.len - skip);
        let mut claimed = BlockMask::NONE;
        if careful {
            claimed = geometry.blocks(whole.within, whole.len);
            if let Err(step) = self.claim_present(slot, chunk, seen, claimed) {
                return step;
            }
        }
        let buffer = self.bounce.take(disks);
        self.buffers.clear();
        self.buffers.push(Buffer { ptr: buffer.as_ptr(), len: to_usize(whole.len) });
        let bounced = Bounced { buffer, skip: to_usize(skip), len: to_usize(chunk.len), request_offset, disks };
        let plan = Plan { chunk, seen, claimed, fresh: BlockMask::NONE, pad: (0, 0), fill: Fill::Guest };
        let piece = self.add_piece(slot, &plan, false, Some(bounced));
        self.slots.piece_mut(piece).checked = Some(whole);
        let offset = self.disk_offset(slot, replica, whole.within);
        self.submit(piece, replica.disk, offset);
        self.advance(slot, chunk.len)
    }

    /// Claims blocks that are all present.
    fn claim_present(&mut self, slot: RequestSlot, chunk: Chunk, seen: Lookup, blocks: BlockMask) -> Result<(), Step> {
        let vhd = Arc::clone(self.slots.request(slot).vhd());
        match vhd.map.claim_any(chunk.extent, blocks, seen.version) {
            Err(ClaimError::Changed) => Err(self.claim_changed(slot)),
            Err(ClaimError::Busy) => {
                let still = |vhd: &VhdState| !vhd.map.lookup(chunk.extent).claimed.and(blocks).is_empty();
                Err(self.park_on_claim(slot, still))
            }
            Ok(present) if present == blocks => Ok(()),
            Ok(_) => {
                // Discarded since it was looked at.
                vhd.map.release(chunk.extent, blocks, BlockMask::NONE);
                Err(self.claim_changed(slot))
            }
        }
    }

    /// Blocks have been read into the memory of a piece: compares them.
    pub(super) fn compare(&mut self, slot: PieceSlot, disk: DiskId) {
        let piece = self.slots.piece_mut(slot);
        let Some(whole) = piece.checked else { return };
        let bounced = piece.bounce.take().expect("blocks are compared in memory of ours");
        let (request, extent, claimed, cursor) = (piece.request, piece.extent, piece.claimed, piece.cursor);
        let vhd = self.slots.request(request).vhd();
        let is_right = |(block, bytes): (u32, &[u8])| {
            vhd.map.checksum(extent, block).is_none_or(|checksum| checksum == Checksum::of(bytes))
        };
        let are_right = whole.blocks(vhd.settings.geometry, &bounced.buffer).all(is_right);
        if !are_right && !claimed.is_empty() {
            vhd.checksum_errors.fetch_add(1, Ordering::Relaxed);
        }
        let piece = self.slots.piece_mut(slot);
        piece.bounce = Some(bounced);
        if are_right {
            return;
        }
        if claimed.is_empty() {
            // Somebody may have been writing there.
            piece.unfilled.insert(disk);
            self.slots.request_mut(request).careful = true;
            return self.read_again_from(request, Unread { cursor, extent, disk: None });
        }
        self.read_failed(slot, disk);
        self.outbox.to_owner(OwnerRequest::DiskError { disk, error: IoError::Checksum, sync: false });
    }

    /// A write of whole blocks has ended, and its claims have not: whoever reads them next compares with what was written. If it
    /// has failed, nobody knows what is there.
    pub(super) fn note_checksums(&self, piece: &Piece) {
        let Some(whole) = piece.checked.filter(|_| piece.is_write && !piece.filling) else { return };
        let vhd = self.slots.request(piece.request).vhd();
        if piece.failed {
            return vhd.map.forget_checksums(piece.extent, piece.claimed);
        }
        let bytes = piece.bounce.as_ref().map_or(&self.zeros[..], |bounced| &bounced.buffer[..]);
        for (block, bytes) in whole.blocks(vhd.settings.geometry, bytes) {
            vhd.map.set_checksum(piece.extent, block, Some(Checksum::of(bytes)));
        }
    }
}
