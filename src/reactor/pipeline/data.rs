//! Reads and writes: from the cursor to a piece, from a piece to operations, and back.

use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::{BOUNCE_LEN, COPIES_MAX, ZERO_LEN_MAX};
use crate::base::units::{BlockMask, ExtentIndex, Geometry};
use crate::engine::{Buffer, Engine, IoError, Op};
use crate::metrics::IoKind;
use crate::placement::view::{ClaimError, Lookup};
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::reactor::messages::{Outbox, OwnerRequest};
use crate::store::change::{Change, ChangeKind};
use crate::virtio::request::{RequestKind, Status};

use super::slots::{Bounced, Operation, Piece, PieceSlot, Purpose, RequestSlot};
use super::verify::Whole;
use super::{Pipeline, Step, gather};

/// A part of a request that lies in one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunk {
    /// The extent.
    pub extent: ExtentIndex,
    /// Byte offset in the extent.
    pub within: u64,
    /// Length in bytes.
    pub len: u64,
}

impl Chunk {
    /// The first part of `len > 0` bytes at byte `offset` of a VHD.
    pub fn at(geometry: Geometry, offset: u64, len: u64) -> Chunk {
        let (extent, within) = geometry.locate(offset);
        Chunk { extent, within, len: len.min(geometry.extent_size() - within) }
    }
}

/// Where the bytes of a write come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fill {
    /// The guest's buffers, from the cursor on.
    Guest,
    /// Zeros (write-zeroes of less than a block).
    Zeros,
}

/// A piece that is about to be submitted.
pub(super) struct Plan {
    pub chunk: Chunk,
    pub seen: Lookup,
    /// Blocks claimed for it.
    pub claimed: BlockMask,
    /// Blocks among them that it writes for the first time.
    pub fresh: BlockMask,
    /// Zeros before and behind the guest's bytes, up to the borders of blocks written for the first time.
    pub pad: (u64, u64),
    pub fill: Fill,
}

impl Plan {
    /// A piece that claims nothing.
    fn unclaimed(chunk: Chunk, seen: Lookup, fill: Fill) -> Plan {
        Plan { chunk, seen, claimed: BlockMask::NONE, fresh: BlockMask::NONE, pad: (0, 0), fill }
    }
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// The chunk under the cursor of a read or write; `None` at its end.
    fn chunk(&self, slot: RequestSlot) -> Option<Chunk> {
        let state = self.slots.request(slot);
        let (RequestKind::Read { offset, len } | RequestKind::Write { offset, len }) = state.request.kind else {
            unreachable!("only reads and writes move data under a cursor")
        };
        let geometry = state.vhd().settings.geometry;
        (state.cursor < len).then(|| Chunk::at(geometry, offset + state.cursor, len - state.cursor))
    }

    pub(super) fn step_read(&mut self, slot: RequestSlot) -> Step {
        let Some(mut chunk) = self.chunk(slot) else { return Step::Exhausted };
        let state = self.slots.request(slot);
        let geometry = state.vhd().settings.geometry;
        let seen = state.vhd().map.lookup(chunk.extent);
        let present = if seen.replicas.is_absent() { BlockMask::NONE } else { seen.present };
        let (is_present, len) = first_run(geometry, chunk, present);
        chunk.len = len;
        if !is_present {
            let before = state.cursor;
            let len = len.min(ZERO_LEN_MAX);
            gather::zero(state.request.segments(), before, len);
            let step = self.advance(slot, len);
            // So much memory takes a while: others have their turn before the rest.
            let is_long = (before + len) / ZERO_LEN_MAX > before / ZERO_LEN_MAX && self.chunk(slot).is_some();
            return if is_long { self.park_for_a_turn(slot) } else { step };
        }
        let Some(replica) = self.replica_for(slot, chunk.extent, seen.replicas) else {
            self.slots.request_mut(slot).fail(Status::IoError);
            return Step::Again;
        };
        if let Some(parked) = self.park_unless_room(slot, std::iter::once(replica), chunk.len) {
            return parked;
        }
        if self.is_checked(slot) {
            return self.read_checked(slot, chunk, seen, replica);
        }
        self.read_piece(slot, chunk, seen, replica)
    }

    fn read_piece(&mut self, slot: RequestSlot, mut chunk: Chunk, seen: Lookup, replica: Replica) -> Step {
        let disk = self.disk(replica.disk);
        let (block_size, memory_alignment) = (disk.block_size, disk.memory_alignment);
        let block = u64::from(block_size);
        let offset = self.disk_offset(slot, replica, chunk.within);
        let state = self.slots.request(slot);
        self.buffers.clear();
        gather::gather(state.request.segments(), state.cursor, chunk.len, &mut self.buffers);
        let whole = (offset | chunk.len) & (block - 1) == 0;
        let mut bounce = None;
        let mut from = offset;
        if !whole || !gather::is_aligned(&self.buffers, memory_alignment, block_size) {
            let disks: DiskSet = [replica.disk].into_iter().collect();
            if let Some(parked) = self.park_unless_bounce(slot, disks) {
                return parked;
            }
            let buffer = self.bounce.take(disks);
            from = offset & !(block - 1);
            let skip = offset - from;
            chunk.len = chunk.len.min(BOUNCE_LEN as u64 - skip);
            let len = (skip + chunk.len).next_multiple_of(block).min(BOUNCE_LEN as u64);
            chunk.len = chunk.len.min(len - skip);
            self.buffers.clear();
            self.buffers.push(Buffer { ptr: buffer.as_ptr(), len: to_usize(len) });
            let request_offset = self.slots.request(slot).cursor;
            bounce = Some(Bounced { buffer, skip: to_usize(skip), len: to_usize(chunk.len), request_offset, disks });
        }
        let plan = Plan::unclaimed(chunk, seen, Fill::Guest);
        let piece = self.add_piece(slot, &plan, false, bounce);
        self.submit(piece, replica.disk, from);
        self.advance(slot, chunk.len)
    }

    pub(super) fn step_write(&mut self, slot: RequestSlot) -> Step {
        let Some(chunk) = self.chunk(slot) else { return Step::Exhausted };
        let state = self.slots.request(slot);
        let geometry = state.vhd().settings.geometry;
        let seen = state.vhd().map.lookup(chunk.extent);
        if seen.replicas.is_absent() {
            return self.park_on_allocation(slot, chunk.extent);
        }
        if self.rewrites_blocks(slot, seen.replicas) {
            return self.write_emulated(slot, chunk, seen, Fill::Guest);
        }
        if !seen.replicas.is_single() {
            return self.write_claimed(slot, chunk, seen, Fill::Guest);
        }
        let touched = geometry.blocks(chunk.within, chunk.len);
        let absent = touched.without(seen.present);
        if absent.is_empty() {
            return self.write_present(slot, chunk, seen, Fill::Guest);
        }
        self.write_first(slot, chunk, seen, absent)
    }

    /// Writes to blocks that are all present.
    pub(super) fn write_present(&mut self, slot: RequestSlot, chunk: Chunk, seen: Lookup, fill: Fill) -> Step {
        if let Some(parked) = self.park_unless_room(slot, written_replicas(seen.replicas), chunk.len) {
            return parked;
        }
        self.write_piece(slot, Plan::unclaimed(chunk, seen, fill))
    }

    /// Writes to blocks some of which are `absent`: claims those, and pads with zeros to their borders.
    fn write_first(&mut self, slot: RequestSlot, mut chunk: Chunk, seen: Lookup, mut absent: BlockMask) -> Step {
        if let Some(parked) = self.park_unless_room(slot, written_replicas(seen.replicas), chunk.len) {
            return parked;
        }
        let vhd = self.slots.request(slot).vhd();
        let geometry = vhd.settings.geometry;
        if self.needs_bounce(slot, chunk, seen.replicas) {
            if let Some(parked) = self.park_unless_bounce(slot, written_disks(seen.replicas)) {
                return parked;
            }
            chunk.len = chunk.len.min(BOUNCE_LEN as u64);
            absent = geometry.blocks(chunk.within, chunk.len).without(seen.present);
            if absent.is_empty() {
                return self.write_piece(slot, Plan::unclaimed(chunk, seen, Fill::Guest));
            }
        }
        match self.slots.request(slot).vhd().map.claim_absent(chunk.extent, absent, seen.version) {
            Err(ClaimError::Changed) => return self.claim_changed(slot),
            Err(ClaimError::Busy) => {
                return self.park_on_claim(slot, |vhd| !vhd.map.lookup(chunk.extent).claimed.and(absent).is_empty());
            }
            Ok(()) => {}
        }
        let pad = padding(geometry, chunk, absent);
        self.write_piece(slot, Plan { chunk, seen, claimed: absent, fresh: absent, pad, fill: Fill::Guest })
    }

    /// Submits a write to all replicas. Room in the engine was checked, and for a piece with a claim a bounce buffer, too.
    pub(super) fn write_piece(&mut self, slot: RequestSlot, mut plan: Plan) -> Step {
        let mut bounce = None;
        let checked = self.is_checked(slot);
        let is_guest = plan.fill == Fill::Guest;
        if is_guest && (checked || self.needs_bounce(slot, plan.chunk, plan.seen.replicas)) {
            let disks = written_disks(plan.seen.replicas);
            if let Some(parked) = self.park_unless_bounce(slot, disks) {
                assert!(plan.claimed.is_empty(), "a request that waits holds no claim");
                return parked;
            }
            let mut buffer = self.bounce.take(disks);
            plan.chunk.len = plan.chunk.len.min(BOUNCE_LEN as u64);
            let state = self.slots.request(slot);
            let len = to_usize(plan.chunk.len);
            gather::gather_from(state.request.segments(), state.cursor, &mut buffer[..len]);
            bounce = Some(Bounced { buffer, skip: 0, len, request_offset: state.cursor, disks });
        }
        self.gather_write(slot, &plan, bounce.as_ref());
        let from = plan.chunk.within - plan.pad.0;
        let len = plan.chunk.len;
        let replicas = plan.seen.replicas;
        let piece = self.add_piece(slot, &plan, true, bounce);
        if checked {
            self.slots.piece_mut(piece).checked = Some(Whole { within: from, len });
        }
        self.submit_write(slot, piece, replicas, from);
        self.advance(slot, len)
    }

    pub(super) fn gather_write(&mut self, slot: RequestSlot, plan: &Plan, bounce: Option<&Bounced>) {
        let zeros = self.zeros.as_ptr();
        self.buffers.clear();
        if plan.pad.0 > 0 {
            self.buffers.push(Buffer { ptr: zeros, len: to_usize(plan.pad.0) });
        }
        match (plan.fill, bounce) {
            (Fill::Zeros, _) => self.buffers.push(Buffer { ptr: zeros, len: to_usize(plan.chunk.len) }),
            (Fill::Guest, Some(bounced)) => {
                self.buffers.push(Buffer { ptr: bounced.buffer.as_ptr(), len: bounced.len });
            }
            (Fill::Guest, None) => {
                let state = self.slots.request(slot);
                gather::gather(state.request.segments(), state.cursor, plan.chunk.len, &mut self.buffers);
            }
        }
        if plan.pad.1 > 0 {
            self.buffers.push(Buffer { ptr: zeros, len: to_usize(plan.pad.1) });
        }
    }

    /// Whether direct I/O refuses the guest's buffers on one of the disks.
    pub(super) fn needs_bounce(&mut self, slot: RequestSlot, chunk: Chunk, replicas: ReplicaSet) -> bool {
        let state = self.slots.request(slot);
        self.buffers.clear();
        gather::gather(state.request.segments(), state.cursor, chunk.len, &mut self.buffers);
        replicas.iter().any(|r| {
            let disk = self.disk(r.disk);
            !gather::is_aligned(&self.buffers, disk.memory_alignment, disk.block_size)
        })
    }

    pub(super) fn add_piece(
        &mut self,
        slot: RequestSlot,
        plan: &Plan,
        is_write: bool,
        bounce: Option<Bounced>,
    ) -> PieceSlot {
        self.slots.request_mut(slot).outstanding += 1;
        self.note_piece(slot, plan.chunk.extent);
        self.slots.add_piece(Piece {
            request: slot,
            extent: plan.chunk.extent,
            generation: plan.seen.generation,
            replicas: plan.seen.replicas,
            cursor: self.slots.request(slot).cursor,
            claimed: plan.claimed,
            fresh: plan.fresh,
            filling: false,
            part: None,
            checked: None,
            is_write,
            outstanding: 0,
            held: [None; COPIES_MAX],
            failed: false,
            missed: DiskSet::default(),
            asked: DiskSet::default(),
            unfilled: DiskSet::default(),
            needs: [None; COPIES_MAX],
            bounce,
        })
    }

    /// Submits what is in `buffers` to all copies of the extent. Those on disks that have failed miss it, unless there are no
    /// others: a disk can fail at any moment.
    pub(super) fn submit_write(&mut self, slot: RequestSlot, piece: PieceSlot, replicas: ReplicaSet, within: u64) {
        let failed: DiskSet =
            written_replicas(replicas).map(|r| r.disk).filter(|disk| self.disk(*disk).is_failed()).collect();
        let lasting = |r: &Replica| r.state == ReplicaState::InSync && !failed.contains(r.disk);
        let others_last = replicas.iter().any(|r| lasting(&r));
        for replica in written_replicas(replicas) {
            if failed.contains(replica.disk) && (others_last || replica.state.is_moving()) {
                self.slots.piece_mut(piece).missed.insert(replica.disk);
            } else {
                let offset = self.disk_offset(slot, replica, within);
                self.submit(piece, replica.disk, offset);
            }
        }
    }

    pub(super) fn submit(&mut self, piece: PieceSlot, disk: DiskId, offset: u64) {
        let purpose = Purpose::Transfer { piece, epoch: self.fences[disk.index()].enter() };
        let bytes = self.buffers.iter().map(|b| b.len as u64).sum();
        let request = self.slots.piece_mut(piece).request;
        let counted = self.begin_operation(request, disk, bytes);
        let state = self.slots.piece_mut(piece);
        state.outstanding += 1;
        let (op, kind) = if state.is_write && !state.filling {
            (Op::Write { disk, offset, buffers: &self.buffers }, IoKind::Write)
        } else {
            (Op::Read { disk, offset, buffers: &self.buffers }, IoKind::Read)
        };
        let is_copy = kind == IoKind::Write && state.replicas.on(disk).is_some_and(|replica| replica.state.is_moving());
        let tag = self.slots.add_operation(Operation { disk, purpose, kind, bytes, begun: self.now, is_copy, counted });
        // SAFETY: the buffers are guest memory, which the ring keeps mapped until the request has finished; the zero
        // buffer, which lives as long as the pipeline; or a bounce buffer, which the piece owns until its completion.
        unsafe { self.engine.submit(op, tag) }.expect("room in the engine was checked");
        self.disk(disk).metrics.of(self.id).transfers(kind).into_iter().for_each(|of| of.begun(offset, bytes));
        self.parking.operation_begun(disk);
        self.disk(disk).progress_of(self.id).begun();
    }

    /// A transfer of a piece has completed. Returns the request if it was the piece's last.
    pub(super) fn transfer_done(
        &mut self,
        slot: PieceSlot,
        id: DiskId,
        result: Result<(), IoError>,
    ) -> Option<RequestSlot> {
        // Asked after the completion: the sync to come begins after it, too.
        let point = self.disk(id).sync_needed();
        let request = self.slots.piece_mut(slot).request;
        self.slots.request_mut(request).times.come_back(self.now);
        let piece = self.slots.piece_mut(slot);
        let filling = piece.filling;
        piece.outstanding -= 1;
        match result {
            Ok(()) if piece.is_write && !filling => self.note_written(slot, point),
            Ok(()) => self.compare(slot, id),
            // Memory that the frontend took away, or else the kernel has none for us: no fault of the disk.
            Err(IoError::Os(libc::EFAULT)) => {
                piece.failed = true;
                let bounced = piece.bounce.is_some();
                let state = self.slots.request_mut(request);
                // Whatever else moves data moves zeros of ours.
                let moves = matches!(state.request.kind, RequestKind::Read { .. } | RequestKind::Write { .. });
                state.memory_lost |= moves && !bounced;
            }
            Err(error) => {
                if piece.is_write && !filling {
                    piece.missed.insert(id);
                } else {
                    self.read_failed(slot, id);
                }
                self.outbox.to_owner(OwnerRequest::DiskError { disk: id, error, sync: false });
            }
        }
        let piece = self.slots.piece_mut(slot);
        if piece.outstanding > 0 && filling {
            return None;
        }
        if filling && !piece.failed {
            self.filled.push_back(slot);
            self.write_filled();
            return None;
        }
        self.end_piece(slot).then_some(request)
    }

    /// Ends a piece for which nothing more is awaited; false if something is.
    pub(super) fn end_piece(&mut self, slot: PieceSlot) -> bool {
        let piece = self.slots.piece_mut(slot);
        if piece.outstanding > 0 || !piece.asked.is_empty() {
            return false;
        }
        let (replicas, missed) = (piece.replicas, piece.missed);
        let mut in_sync = replicas.iter().filter(|replica| replica.state == ReplicaState::InSync);
        piece.failed |= in_sync.all(|replica| missed.contains(replica.disk));
        let missed = piece.missed.iter().next().filter(|_| !piece.failed);
        if let Some(disk) = missed {
            self.report_missed(slot, disk);
            return false;
        }
        let piece = self.slots.take_piece(slot);
        if piece.failed && piece.is_write {
            self.report_differing(&piece);
        }
        self.piece_done(piece);
        true
    }

    pub(super) fn piece_done(&mut self, piece: Piece) {
        self.note_checksums(&piece);
        let state = self.slots.request_mut(piece.request);
        if piece.failed {
            state.fail(Status::IoError);
        }
        if let Some(bounced) = piece.bounce {
            // What is in a buffer that was not filled may be another guest's.
            if !piece.is_write && !piece.failed && piece.unfilled.is_empty() {
                let bytes = &bounced.buffer[bounced.skip..bounced.skip + bounced.len];
                gather::scatter_into(state.request.segments(), bounced.request_offset, bytes);
            }
            self.bounce.give_back(bounced.buffer, bounced.disks);
        }
        for (disk, epoch) in piece.held.into_iter().flatten() {
            self.fences[disk.index()].leave(epoch);
            self.report_fences(disk);
        }
        if piece.claimed.is_empty() {
            return;
        }
        let vhd = std::sync::Arc::clone(self.slots.request(piece.request).vhd());
        let mut written = BlockMask::NONE;
        if !piece.failed && !piece.fresh.is_empty() {
            // Handed over before the claim is given up: whoever discards the blocks next comes later in the queue.
            vhd.change_handed_over();
            let kind =
                ChangeKind::Written { replicas: piece.replicas.settled(), blocks: piece.fresh, needs: piece.needs };
            self.outbox.change(Change { vhd: vhd.id(), extent: piece.extent, generation: piece.generation, kind });
            written = piece.fresh;
        }
        vhd.map.release(piece.extent, piece.claimed, written);
        self.claim_released(&vhd);
    }

    pub(super) fn disk_offset(&self, slot: RequestSlot, replica: Replica, within: u64) -> u64 {
        let extent_size = self.slots.request(slot).vhd().settings.geometry.extent_size();
        self.disk(replica.disk).data_offset + u64::from(replica.slot.0) * extent_size + within
    }

    pub(super) fn report_fences(&mut self, disk: DiskId) {
        while let Some(fence) = self.fences[disk.index()].next_reached() {
            self.outbox.to_owner(OwnerRequest::FenceReached { reactor: self.id, fence });
        }
    }
}

/// The replicas that a write goes to.
pub(super) fn written_replicas(replicas: ReplicaSet) -> impl Iterator<Item = Replica> + Clone {
    let all: [Option<Replica>; COPIES_MAX] = {
        let mut kept = replicas.iter().filter(|r| r.state != ReplicaState::Stale);
        std::array::from_fn(|_| kept.next())
    };
    all.into_iter().flatten()
}

/// Their disks.
pub(super) fn written_disks(replicas: ReplicaSet) -> DiskSet {
    written_replicas(replicas).map(|r| r.disk).collect()
}

/// Whether the first bytes of the chunk are present, and how many bytes share that.
fn first_run(geometry: Geometry, chunk: Chunk, present: BlockMask) -> (bool, u64) {
    let touched = geometry.blocks(chunk.within, chunk.len);
    if touched.without(present).is_empty() {
        return (true, chunk.len);
    }
    if touched.and(present).is_empty() {
        return (false, chunk.len);
    }
    let block = geometry.block_size();
    let first = touched.0.trailing_zeros();
    let is_present = present.has(first);
    let same = if is_present { !present.0 } else { present.0 };
    // The mask has a border behind `first`, since `touched` is neither all present nor all absent.
    let border = first + (same >> first).trailing_zeros();
    (is_present, (u64::from(border) * block - chunk.within).min(chunk.len))
}

/// Zeros to write before and behind a chunk whose border blocks are written for the first time.
pub(super) fn padding(geometry: Geometry, chunk: Chunk, absent: BlockMask) -> (u64, u64) {
    let block = geometry.block_size();
    let end = chunk.within + chunk.len;
    let touched = geometry.blocks(chunk.within, chunk.len);
    let first = touched.0.trailing_zeros();
    let last = 31 - touched.0.leading_zeros();
    let head = if absent.has(first) { chunk.within % block } else { 0 };
    let tail = if absent.has(last) { end.next_multiple_of(block) - end } else { 0 };
    (head, tail)
}

pub(super) fn to_usize(len: u64) -> usize {
    usize::try_from(len).expect("a part of a request fits memory")
}
