//! Discard and write-zeroes: present bits are cleared, whole extents are given back.

use crate::base::limits::GENERATION_MAX;
use crate::base::units::{BlockMask, ExtentIndex, Geometry};
use crate::engine::Engine;
use crate::placement::view::{ClaimError, Lookup};
use crate::reactor::messages::{Outbox, OwnerRequest};
use crate::store::change::{Change, ChangeKind};
use crate::virtio::request::RequestKind;

use super::data::{Chunk, Fill};
use super::slots::RequestSlot;
use super::{Pipeline, Step};

/// What to do with the part of a range that lies in one extent, from the cursor on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clear {
    /// All of the extent: give it back.
    Extent,
    /// These whole blocks.
    Blocks(BlockMask),
    /// Less than a block.
    Fraction,
}

/// The first thing to do at `chunk`, and how many bytes it deals with.
fn classify(geometry: Geometry, chunk: Chunk, vhd_size: u64) -> (Clear, u64) {
    let start = u64::from(chunk.extent.0) * geometry.extent_size();
    let extent_len = geometry.extent_size().min(vhd_size - start);
    let block = geometry.block_size();
    // If the VHD ends within a block, that block is not the guest's as a whole: the VHD may be growing just now, and somebody
    // else be writing to the rest of it.
    if chunk.within == 0 && chunk.len == extent_len && extent_len.is_multiple_of(block) {
        return (Clear::Extent, chunk.len);
    }
    let end = chunk.within + chunk.len;
    let to_border = (block - chunk.within % block) % block;
    if to_border > 0 {
        return (Clear::Fraction, to_border.min(chunk.len));
    }
    let covered = geometry.blocks_covered(chunk.within, end - chunk.within);
    if covered.is_empty() {
        return (Clear::Fraction, chunk.len);
    }
    (Clear::Blocks(covered), (u64::from(covered.len()) * block).min(chunk.len))
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// Blocks that somebody else is clearing look absent, but the committer may not know yet: this request would complete, and
    /// be flushed, ahead of the change that makes it true after a power cut. So it waits for claims, absent or not.
    pub(super) fn step_clear(&mut self, slot: RequestSlot) -> Step {
        let state = self.slots.request(slot);
        let Some(range) = state.request.ranges().get(state.range).copied() else { return Step::Exhausted };
        if state.cursor == range.len {
            let state = self.slots.request_mut(slot);
            state.range += 1;
            state.cursor = 0;
            return Step::Again;
        }
        let vhd = state.vhd();
        let settings = &vhd.settings;
        let is_discard = state.request.kind == RequestKind::Discard;
        let may_free = (is_discard || range.unmap) && !settings.thick;
        let chunk = Chunk::at(settings.geometry, range.offset + state.cursor, range.len - state.cursor);
        let (clear, len) = classify(settings.geometry, chunk, vhd.size());
        let lookup = vhd.map.lookup(chunk.extent);
        let may_free = may_free && lookup.generation.0 < GENERATION_MAX;
        let is_absent = lookup.replicas.is_absent();
        let touched = settings.geometry.blocks(chunk.within, if is_absent { chunk.len } else { len });
        if !lookup.claimed.and(touched).is_empty() {
            return self.park_on_claim(slot, |vhd| !vhd.map.lookup(chunk.extent).claimed.and(touched).is_empty());
        }
        if is_absent {
            return self.advance(slot, chunk.len);
        }
        match clear {
            Clear::Extent if may_free => self.free_extent(slot, chunk.extent, touched, lookup),
            Clear::Extent => self.clear_blocks(slot, chunk.extent, lookup, touched, len),
            Clear::Blocks(blocks) => self.clear_blocks(slot, chunk.extent, lookup, blocks, len),
            Clear::Fraction if is_discard => self.advance(slot, len),
            Clear::Fraction => self.zero_fraction(slot, Chunk { len, ..chunk }, lookup),
        }
    }

    pub(super) fn advance(&mut self, slot: RequestSlot, len: u64) -> Step {
        self.slots.request_mut(slot).cursor += len;
        Step::Again
    }

    /// Clears whole blocks. Blocks that are absent (and not claimed) read as zeros already, and their absence has been
    /// handed over: whoever clears gives up its claim after that.
    fn clear_blocks(
        &mut self,
        slot: RequestSlot,
        extent: ExtentIndex,
        seen: Lookup,
        blocks: BlockMask,
        len: u64,
    ) -> Step {
        let blocks = blocks.and(seen.present);
        if blocks.is_empty() {
            return self.advance(slot, len);
        }
        let vhd = std::sync::Arc::clone(self.slots.request(slot).vhd());
        match vhd.map.claim_and_clear(extent, blocks, seen.version) {
            Err(ClaimError::Changed) => self.claim_changed(slot),
            Err(ClaimError::Busy) => self.park_on_claim(slot, |vhd| {
                let now = vhd.map.lookup(extent);
                !now.claimed.and(blocks).is_empty()
            }),
            Ok(cleared) => {
                if !cleared.is_empty() {
                    vhd.change_handed_over();
                    let kind = ChangeKind::Cleared { blocks: cleared };
                    self.outbox.change(Change { vhd: vhd.id(), extent, generation: seen.generation, kind });
                }
                vhd.map.release(extent, blocks, BlockMask::NONE);
                self.claim_released(&vhd);
                self.advance(slot, len)
            }
        }
    }

    /// Claims and clears all blocks, and asks the owner to drop the extent. Only `blocks` are of the VHD: if others are present
    /// by now, it has grown.
    fn free_extent(&mut self, slot: RequestSlot, extent: ExtentIndex, blocks: BlockMask, seen: Lookup) -> Step {
        let ticket = self.slots.ticket(slot);
        let claim = self.slots.request(slot).vhd().map.claim_whole(extent, blocks, seen.version);
        match claim {
            Err(ClaimError::Changed) => self.claim_changed(slot),
            Err(ClaimError::Busy) => self.park_on_claim(slot, |vhd| !vhd.map.lookup(extent).claimed.is_empty()),
            Ok(()) => {
                let state = self.slots.request_mut(slot);
                state.freeing = Some(extent);
                state.parked = true;
                let vhd = state.vhd().id();
                self.outbox.to_owner(OwnerRequest::Free { reactor: self.id, ticket, vhd, extent });
                Step::Parked
            }
        }
    }

    /// The owner has dropped the extent: gives up the claim and goes on.
    pub(super) fn freed(&mut self, ticket: u64) {
        let Some(slot) = self.slots.by_ticket(ticket) else { return };
        let state = self.slots.request_mut(slot);
        let extent = state.freeing.take().expect("an answer to a request that asked");
        let vhd = std::sync::Arc::clone(state.vhd());
        vhd.map.release(extent, BlockMask::ALL, BlockMask::NONE);
        self.claim_released(&vhd);
        self.resume(slot);
    }

    /// Write-zeroes of less than a block: zeros are written if the block is there.
    fn zero_fraction(&mut self, slot: RequestSlot, chunk: Chunk, seen: Lookup) -> Step {
        let geometry = self.slots.request(slot).vhd().settings.geometry;
        let touched = geometry.blocks(chunk.within, chunk.len);
        if seen.present.and(touched).is_empty() {
            return self.advance(slot, chunk.len);
        }
        if self.rewrites_blocks(slot, seen.replicas) {
            return self.write_emulated(slot, chunk, seen, Fill::Zeros);
        }
        if !seen.replicas.is_single() {
            return self.write_claimed(slot, chunk, seen, Fill::Zeros);
        }
        self.write_present(slot, chunk, seen, Fill::Zeros)
    }
}
