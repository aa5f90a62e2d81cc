//! VHDs whose blocks are smaller than what is written as a whole (512 bytes on disks of 4096; blocks that have checksums): a part of
//! such a block is read, changed and written back. It is called a disk block here, whichever it is.
//!
//! Two such writes to one disk block must not overlap, nor may an aligned write slip between the read and the write back. So
//! every write of such a VHD claims the blocks it touches, present or not.

use crate::engine::Engine;
use crate::placement::view::{ClaimError, Lookup};
use crate::placement::{Replica, ReplicaSet};
use crate::reactor::messages::Outbox;
use crate::virtio::request::Status;

use super::data::{Chunk, Fill, Plan, padding, to_usize, written_disks, written_replicas};
use super::slots::{Bounced, RequestSlot};
use super::verify::Whole;
use super::{Pipeline, Step, gather};
use crate::base::limits::BOUNCE_LEN;
use crate::engine::Buffer;

/// The first part of a write that is either whole disk blocks, or lies within one; and which of the two it is.
fn split(chunk: Chunk, disk_block: u64) -> (Chunk, bool) {
    let to_border = disk_block - chunk.within % disk_block;
    if to_border < disk_block || chunk.len < disk_block {
        return (Chunk { len: chunk.len.min(to_border), ..chunk }, true);
    }
    (Chunk { len: chunk.len / disk_block * disk_block, ..chunk }, false)
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// Whether the guest's blocks are smaller than what is written as a whole: blocks of the disks its extent lies on, or those that
    /// have checksums.
    pub(super) fn rewrites_blocks(&self, slot: RequestSlot, replicas: ReplicaSet) -> bool {
        let settings = &self.slots.request(slot).vhd().settings;
        settings.checksums || written_replicas(replicas).any(|r| self.disk(r.disk).block_size > settings.block_size)
    }

    /// What is written as a whole, in bytes.
    fn written_unit(&self, slot: RequestSlot, replicas: ReplicaSet) -> u64 {
        let settings = &self.slots.request(slot).vhd().settings;
        if settings.checksums {
            return settings.geometry.block_size();
        }
        let disk_block = written_replicas(replicas).map(|r| self.disk(r.disk).block_size).max();
        u64::from(disk_block.expect("a placed extent has a replica"))
    }

    pub(super) fn write_emulated(&mut self, slot: RequestSlot, chunk: Chunk, seen: Lookup, fill: Fill) -> Step {
        if let Some(parked) = self.park_unless_room(slot, written_replicas(seen.replicas), chunk.len) {
            return parked;
        }
        let disk_block = self.written_unit(slot, seen.replicas);
        let checked = self.is_checked(slot);
        let (mut chunk, is_part) = split(chunk, disk_block);
        if is_part || (fill == Fill::Guest && (checked || self.needs_bounce(slot, chunk, seen.replicas))) {
            if let Some(parked) = self.park_unless_bounce(slot, written_disks(seen.replicas)) {
                return parked;
            }
            chunk.len = chunk.len.min(BOUNCE_LEN as u64);
        }
        // Chosen before anything is claimed: a disk can fail at any moment.
        let Some(source) = self.replica_for(slot, chunk.extent, seen.replicas) else {
            self.slots.request_mut(slot).fail(Status::IoError);
            return Step::Again;
        };
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
                return self.park_on_claim(slot, |vhd| !vhd.map.lookup(chunk.extent).claimed.and(touched).is_empty());
            }
            Ok(present) => present,
        };
        let fresh = touched.without(present);
        let plan = Plan { chunk, seen, claimed: touched, fresh, pad: (0, 0), fill };
        if is_part {
            return self.write_part(slot, plan, disk_block, source);
        }
        self.write_piece(slot, Plan { pad: padding(geometry, chunk, fresh), ..plan })
    }

    /// Writes a part of one disk block through bounce memory, which is filled from `source` first unless the block is new.
    fn write_part(&mut self, slot: RequestSlot, plan: Plan, disk_block: u64, source: Replica) -> Step {
        let chunk = plan.chunk;
        let disks = written_disks(plan.seen.replicas);
        let mut buffer = self.bounce.take(disks);
        let start = chunk.within & !(disk_block - 1);
        let skip = to_usize(chunk.within - start);
        let len = to_usize(chunk.len);
        let state = self.slots.request(slot);
        let request_offset = state.cursor;
        let geometry = state.vhd().settings.geometry;
        buffer[..to_usize(disk_block)].fill(0);
        if !plan.fresh.is_empty() {
            if plan.fill == Fill::Guest {
                gather::gather_from(state.request.segments(), request_offset, &mut buffer[skip..skip + len]);
            }
            let whole = Chunk { within: start, len: disk_block, ..chunk };
            let pad = padding(geometry, whole, plan.fresh);
            return self.write_bounced(slot, plan, buffer, pad, start, disk_block);
        }
        let bounced = Bounced { buffer, skip, len, request_offset, disks };
        self.buffers.clear();
        self.buffers.push(Buffer { ptr: bounced.buffer.as_ptr(), len: to_usize(disk_block) });
        let piece = self.add_piece(slot, &plan, true, Some(bounced));
        let checked = self.is_checked(slot);
        let state = self.slots.piece_mut(piece);
        state.filling = true;
        state.part = Some((plan.fill, start, disk_block));
        state.checked = checked.then_some(Whole { within: start, len: disk_block });
        // The place that it will be written to was looked up now: fences must wait for the write, too.
        for (held, disk) in state.held.iter_mut().zip(disks.iter()) {
            *held = Some((disk, self.fences[disk.index()].enter()));
        }
        let offset = self.disk_offset(slot, source, start);
        self.submit(piece, source.disk, offset);
        self.advance(slot, chunk.len)
    }

    /// Writes a disk block that is new, with zeros up to the borders of its block.
    fn write_bounced(
        &mut self,
        slot: RequestSlot,
        plan: Plan,
        buffer: super::bounce::BounceBuffer,
        pad: (u64, u64),
        start: u64,
        disk_block: u64,
    ) -> Step {
        let zeros = self.zeros.as_ptr();
        self.buffers.clear();
        if pad.0 > 0 {
            self.buffers.push(Buffer { ptr: zeros, len: to_usize(pad.0) });
        }
        self.buffers.push(Buffer { ptr: buffer.as_ptr(), len: to_usize(disk_block) });
        if pad.1 > 0 {
            self.buffers.push(Buffer { ptr: zeros, len: to_usize(pad.1) });
        }
        let disks = written_disks(plan.seen.replicas);
        let bounced = Bounced { buffer, skip: 0, len: to_usize(disk_block), request_offset: 0, disks };
        let piece = self.add_piece(slot, &plan, true, Some(bounced));
        if self.is_checked(slot) {
            self.slots.piece_mut(piece).checked = Some(Whole { within: start, len: disk_block });
        }
        self.submit_write(slot, piece, plan.seen.replicas, start - pad.0);
        self.advance(slot, plan.chunk.len)
    }

    /// Writes back disk blocks that have been read, as far as the engine has room. Called at every completion, so that
    /// one that finds no room goes on as soon as something else completes.
    pub(super) fn write_filled(&mut self) {
        while let Some(&slot) = self.filled.front() {
            let piece = self.slots.piece_mut(slot);
            let count = written_replicas(piece.replicas).count();
            if !self.engine_has_room(count) {
                return;
            }
            self.filled.pop_front();
            let piece = self.slots.piece_mut(slot);
            piece.filling = false;
            let (replicas, request) = (piece.replicas, piece.request);
            let (fill, start, disk_block) = piece.part.expect("a piece that was filled");
            let mut bounced = piece.bounce.take().expect("a piece that was filled");
            let guest = &mut bounced.buffer[bounced.skip..bounced.skip + bounced.len];
            match fill {
                Fill::Guest => {
                    let segments = self.slots.request(request).request.segments();
                    gather::gather_from(segments, bounced.request_offset, guest);
                }
                Fill::Zeros => guest.fill(0),
            }
            self.buffers.clear();
            self.buffers.push(Buffer { ptr: bounced.buffer.as_ptr(), len: to_usize(disk_block) });
            self.slots.piece_mut(slot).bounce = Some(bounced);
            self.submit_write(request, slot, replicas, start);
        }
    }
}
