//! Fixed slabs: requests, pieces of requests, operations. Allocated when rings start, never on the I/O path.

use std::sync::Arc;

use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::{BOUNCE_BUFFERS, COPIES_MAX};
use crate::base::units::{BlockMask, ExtentIndex, Generation};
use crate::engine::OpTag;
use crate::metrics::IoKind;
use crate::placement::ReplicaSet;
use crate::shared::VhdState;
use crate::shared::disk::{SyncNumber, SyncPoint};
use crate::virtio::request::{Request, RequestKind, Status};

use super::Token;
use super::bounce::BounceBuffer;
use super::data::Fill;
use super::stages::Times;
use super::turns::{Begun, Taken};
use super::verify::Whole;

/// A slot for one guest request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestSlot(u32);

/// A slot for one piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct PieceSlot(u32);

impl PieceSlot {
    /// For messages: a piece that waits for an answer keeps its slot.
    pub fn number(self) -> u32 {
        self.0
    }

    /// The slot of that number.
    pub fn numbered(number: u32) -> PieceSlot {
        PieceSlot(number)
    }
}

/// How far a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Moving data or clearing blocks.
    Work,
    /// Waiting for syncs of the disks it wrote to.
    Sync,
    /// Waiting for the table changes to be durable.
    Commit,
}

/// One guest request.
pub(super) struct RequestState {
    pub request: Request,
    pub vhd: Option<Arc<VhdState>>,
    pub token: Token,
    pub started: Nanos,
    /// What became of it since.
    pub times: Times,
    pub writethrough: bool,
    pub phase: Phase,
    /// Bytes of the current range that have been dealt with.
    pub cursor: u64,
    /// Range of a discard or write-zeroes under the cursor.
    pub range: usize,
    /// Pieces and syncs in flight.
    pub outstanding: u32,
    /// Waits for something that will wake it; not stepped meanwhile.
    pub parked: bool,
    /// What the request will report; nothing more is submitted once it is set.
    pub failed: Option<Status>,
    /// An extent claimed whole, while the owner drops it.
    pub freeing: Option<ExtentIndex>,
    /// Disks that it has written to.
    pub wrote: DiskSet,
    /// Disks whose syncs have not been asked for yet.
    pub to_sync: DiskSet,
    /// Disks that the owner was asked about when they had failed already.
    pub asked_failed: DiskSet,
    /// Whether the commit has been asked for.
    pub asked_commit: bool,
    /// A part of a read that a replica could not answer.
    pub unread: Option<Unread>,
    /// Replicas that failed to answer a read of an extent: the others are asked first.
    pub avoid: Option<Avoid>,
    /// What it read did not match its checksum: it reads under claims from now on.
    pub careful: bool,
    /// The kernel has found some of the guest's buffers missing.
    pub memory_lost: bool,
    /// Its turn on a disk that is shared out.
    pub turn: Option<Taken>,
    /// Distinguishes uses of the slot, so that a late answer meets nobody.
    sequence: u32,
    used: bool,
}

impl RequestState {
    fn new() -> RequestState {
        RequestState {
            request: Request::default(),
            vhd: None,
            token: Token(0),
            started: Nanos(0),
            times: Times::default(),
            writethrough: false,
            phase: Phase::Work,
            cursor: 0,
            range: 0,
            outstanding: 0,
            parked: false,
            failed: None,
            freeing: None,
            wrote: DiskSet::default(),
            to_sync: DiskSet::default(),
            asked_failed: DiskSet::default(),
            asked_commit: false,
            unread: None,
            avoid: None,
            careful: false,
            memory_lost: false,
            turn: None,
            sequence: 0,
            used: false,
        }
    }

    /// Makes a prepared request current.
    pub fn begin(&mut self, vhd: Arc<VhdState>, writethrough: bool, token: Token, now: Nanos) {
        assert!(self.used && self.vhd.is_none() && self.turn.is_none());
        self.vhd = Some(vhd);
        self.token = token;
        self.started = now;
        self.writethrough = writethrough;
        self.phase = Phase::Work;
        self.cursor = 0;
        self.range = 0;
        self.outstanding = 0;
        self.parked = false;
        self.failed = None;
        self.freeing = None;
        self.wrote = DiskSet::default();
        self.to_sync = DiskSet::default();
        self.asked_failed = DiskSet::default();
        self.asked_commit = false;
        self.unread = None;
        self.avoid = None;
        self.careful = false;
        self.memory_lost = false;
    }

    /// Goes on to the sync phase. A FLUSH syncs all that its VHD has written; a writethrough write what it wrote itself, so
    /// that it neither waits for other disks nor fails with them.
    pub fn begin_sync(&mut self) {
        self.phase = Phase::Sync;
        self.to_sync = match self.request.kind {
            RequestKind::Flush => self.vhd().disks_to_sync(),
            _ => self.wrote,
        };
    }

    /// Sets what the request will report, unless something went wrong before.
    pub fn fail(&mut self, status: Status) {
        self.failed.get_or_insert(status);
    }

    /// The VHD of a started request.
    pub fn vhd(&self) -> &Arc<VhdState> {
        self.vhd.as_ref().expect("a started request has a VHD")
    }
}

/// Replicas that failed to answer a read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avoid {
    /// Of which extent.
    pub extent: ExtentIndex,
    /// Where the request was then.
    pub cursor: u64,
    pub disks: DiskSet,
}

/// The first part of a read that is to be asked of another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unread {
    /// Where in the request.
    pub cursor: u64,
    pub extent: ExtentIndex,
    /// Who could not answer; `None`: it may be asked again.
    pub disk: Option<DiskId>,
}

/// A part of a request within one extent: one transfer per replica.
pub(super) struct Piece {
    pub request: RequestSlot,
    /// Where its bytes are in the request.
    pub cursor: u64,
    pub extent: ExtentIndex,
    pub generation: Generation,
    pub replicas: ReplicaSet,
    /// Blocks that nobody else may write first, discard or (where guest blocks are smaller than the disk's) write at all.
    pub claimed: BlockMask,
    /// The claimed ones that this piece writes for the first time.
    pub fresh: BlockMask,
    /// Filling a disk block before a part of it is overwritten.
    pub filling: bool,
    /// A part of one disk block: where its bytes come from, and offset within the extent and length of the disk block.
    pub part: Option<(Fill, u64, u64)>,
    /// The blocks in `bounce`, of a VHD with checksums.
    pub checked: Option<Whole>,
    /// A write; else a read.
    pub is_write: bool,
    /// Transfers in flight.
    pub outstanding: u32,
    /// Per replica that will be written after filling: the epoch in which its place was looked up.
    pub held: [Option<(DiskId, u64)>; COPIES_MAX],
    pub failed: bool,
    /// Copies that did not get the write.
    pub missed: DiskSet,
    /// Copies about which the owner has been asked: its answers name this piece.
    pub asked: DiskSet,
    /// Replicas from which it could not be filled.
    pub unfilled: DiskSet,
    /// Per copy written that a FLUSH must sync: the sync that covers it.
    pub needs: [Option<SyncPoint>; COPIES_MAX],
    /// Memory between guest and disk, where alignment asks for it.
    pub bounce: Option<Bounced>,
}

/// Our memory between the guest and a disk.
pub(super) struct Bounced {
    pub buffer: BounceBuffer,
    /// Where the guest's bytes begin in the buffer.
    pub skip: usize,
    /// Bytes of the guest.
    pub len: usize,
    /// Offset of those bytes within the request.
    pub request_offset: u64,
    /// The disks it was taken for.
    pub disks: DiskSet,
}

/// An engine operation in flight.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operation {
    pub disk: DiskId,
    pub purpose: Purpose,
    /// How the disk's metrics count it.
    pub kind: IoKind,
    pub bytes: u64,
    pub begun: Nanos,
    /// A write to a copy that a move is making.
    pub is_copy: bool,
    /// Nothing if the disk is not shared out.
    pub counted: Begun,
}

/// What an engine operation is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Purpose {
    /// Data of a piece; `epoch` is for the fences of the disk.
    Transfer { piece: PieceSlot, epoch: u64 },
    /// Data of a piece that does not wait for it any more.
    Orphan { epoch: u64 },
    /// A sync.
    Sync { number: SyncNumber },
}

/// All slabs of a pipeline.
pub(super) struct Slots {
    #[allow(clippy::vec_box, reason = "growth must not copy the large states of requests in flight")]
    requests: Vec<Box<RequestState>>,
    free_requests: Vec<u32>,
    reserved: usize,
    pieces: Vec<Option<Piece>>,
    free_pieces: Vec<u32>,
    operations: Vec<Option<Operation>>,
    free_operations: Vec<u32>,
    copies_in_flight: usize,
}

impl Slots {
    /// Slabs for `operations` operations in flight, and no requests yet.
    pub fn new(operations: usize) -> Slots {
        let count = u32::try_from(operations).expect("fewer than 2^32 engine slots");
        // A piece has an operation in flight, or has been filled and holds a bounce buffer, or waits for the owner.
        let pieces = u32::try_from(operations + BOUNCE_BUFFERS).expect("fewer than 2^32 engine slots");
        Slots {
            requests: Vec::new(),
            free_requests: Vec::new(),
            reserved: 0,
            pieces: (0..pieces).map(|_| None).collect(),
            free_pieces: (0..pieces).rev().collect(),
            operations: vec![None; operations],
            free_operations: (0..count).rev().collect(),
            copies_in_flight: 0,
        }
    }

    pub fn reserve_requests(&mut self, count: usize) {
        self.reserved += count;
        while self.requests.len() < self.reserved {
            let slot = u32::try_from(self.requests.len()).expect("fewer than 2^32 requests");
            self.requests.push(Box::new(RequestState::new()));
            self.free_requests.push(slot);
        }
        self.free_requests.reserve(self.requests.len());
    }

    pub fn unreserve_requests(&mut self, count: usize) {
        assert!(count <= self.reserved, "gave back more request slots than were reserved");
        self.reserved -= count;
    }

    pub fn request_count(&self) -> usize {
        self.requests.len()
    }

    pub fn requests_used(&self) -> usize {
        self.requests.len() - self.free_requests.len()
    }

    pub fn operations_used(&self) -> usize {
        self.operations.len() - self.free_operations.len()
    }

    pub fn take_request(&mut self) -> Option<RequestSlot> {
        let slot = self.free_requests.pop()?;
        let state = &mut self.requests[slot as usize];
        assert!(!state.used);
        state.used = true;
        state.vhd = None;
        state.times = Times::default();
        Some(RequestSlot(slot))
    }

    /// The request is done: no message meets it any more. What was asked for stays until the slot is free.
    pub fn end_request(&mut self, slot: RequestSlot) {
        let state = &mut self.requests[slot.0 as usize];
        assert!(state.used && state.outstanding == 0, "a request ends with nothing in flight");
        state.vhd = None;
        state.sequence = state.sequence.wrapping_add(1);
    }

    pub fn free_request(&mut self, slot: RequestSlot) {
        let state = &mut self.requests[slot.0 as usize];
        assert!(state.used && state.outstanding == 0, "a request is given back once, with nothing in flight");
        state.used = false;
        state.vhd = None;
        self.free_requests.push(slot.0);
    }

    pub fn request(&self, slot: RequestSlot) -> &RequestState {
        &self.requests[slot.0 as usize]
    }

    pub fn request_mut(&mut self, slot: RequestSlot) -> &mut RequestState {
        &mut self.requests[slot.0 as usize]
    }

    /// A name for the request in messages.
    pub fn ticket(&self, slot: RequestSlot) -> u64 {
        u64::from(self.request(slot).sequence) << 32 | u64::from(slot.0)
    }

    /// The request that a message names, if it is still the same one.
    #[allow(clippy::cast_possible_truncation, reason = "the halves of a ticket")]
    pub fn by_ticket(&self, ticket: u64) -> Option<RequestSlot> {
        let slot = RequestSlot(ticket as u32);
        let state = self.requests.get(slot.0 as usize)?;
        (state.used && state.sequence == (ticket >> 32) as u32).then_some(slot)
    }

    /// Operations that can still be recorded.
    pub fn operations_free(&self) -> usize {
        self.free_operations.len()
    }

    /// Pieces that can still be recorded.
    pub fn pieces_free(&self) -> usize {
        self.free_pieces.len()
    }

    /// Whether pieces that are going to wait for the owner leave enough to others.
    pub fn spares_pieces(&self) -> bool {
        self.free_pieces.len() * 2 > self.pieces.len()
    }

    pub fn add_piece(&mut self, piece: Piece) -> PieceSlot {
        let slot = self.free_pieces.pop().expect("room was checked");
        self.pieces[slot as usize] = Some(piece);
        PieceSlot(slot)
    }

    pub fn piece_mut(&mut self, slot: PieceSlot) -> &mut Piece {
        self.pieces[slot.0 as usize].as_mut().expect("a piece lives until its last operation")
    }

    pub fn take_piece(&mut self, slot: PieceSlot) -> Piece {
        self.free_pieces.push(slot.0);
        self.pieces[slot.0 as usize].take().expect("a piece is taken once")
    }

    pub fn add_operation(&mut self, operation: Operation) -> OpTag {
        let slot = self.free_operations.pop().expect("room for the operation was checked");
        self.copies_in_flight += usize::from(operation.is_copy);
        self.operations[slot as usize] = Some(operation);
        OpTag(u64::from(slot))
    }

    pub fn take_operation(&mut self, tag: OpTag) -> Operation {
        let slot = u32::try_from(tag.0).expect("tags are slots");
        self.free_operations.push(slot);
        let operation = self.operations[slot as usize].take().expect("an operation completes once");
        self.copies_in_flight -= usize::from(operation.is_copy);
        operation
    }

    /// Writes in flight, to copies that moves are making, for which somebody waits.
    pub fn copies_in_flight(&self) -> usize {
        self.copies_in_flight
    }

    /// The writes of copies that have been under way for too long; each is found once.
    pub fn take_late_copies(&mut self, is_late: impl Fn(Nanos) -> bool) -> Vec<(PieceSlot, DiskId)> {
        let mut late = Vec::new();
        for operation in self.operations.iter_mut().flatten().filter(|op| op.is_copy && is_late(op.begun)) {
            if let Purpose::Transfer { piece, .. } = operation.purpose {
                late.push((piece, operation.disk));
                operation.is_copy = false;
                self.copies_in_flight -= 1;
            }
        }
        late
    }

    /// The pieces of which a write is under way on the disk.
    pub fn written_on(&self, disk: DiskId) -> Vec<PieceSlot> {
        let writes = self.operations.iter().flatten().filter(|op| op.disk == disk && op.kind == IoKind::Write);
        let piece = |op: &Operation| match op.purpose {
            Purpose::Transfer { piece, .. } => Some(piece),
            Purpose::Orphan { .. } | Purpose::Sync { .. } => None,
        };
        writes.filter_map(piece).collect()
    }

    /// The pieces of which a read is under way on the disk into a buffer of ours.
    pub fn bounced_from(&self, disk: DiskId) -> Vec<PieceSlot> {
        let reads = self.operations.iter().flatten().filter(|op| op.disk == disk && op.kind == IoKind::Read);
        let piece = |op: &Operation| match op.purpose {
            Purpose::Transfer { piece, .. } => Some(piece),
            Purpose::Orphan { .. } | Purpose::Sync { .. } => None,
        };
        let is_bounced =
            |piece: &PieceSlot| self.pieces[piece.0 as usize].as_ref().is_some_and(|piece| piece.bounce.is_some());
        reads.filter_map(piece).filter(is_bounced).collect()
    }

    /// Takes the transfer of a piece on a disk away from the piece, if it is in flight: which operation that is.
    pub fn orphan(&mut self, slot: PieceSlot, disk: DiskId, kind: IoKind) -> Option<OpTag> {
        let is_it = |(_, op): &(usize, &mut Option<Operation>)| {
            op.as_ref().is_some_and(|op| {
                op.disk == disk
                    && op.kind == kind
                    && matches!(op.purpose, Purpose::Transfer { piece, .. } if piece == slot)
            })
        };
        let (index, operation) = self.operations.iter_mut().enumerate().find(is_it)?;
        let operation = operation.as_mut().expect("just found");
        operation.purpose = operation.purpose.orphaned();
        self.copies_in_flight -= usize::from(std::mem::take(&mut operation.is_copy));
        Some(OpTag(index as u64))
    }
}
