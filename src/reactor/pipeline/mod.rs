//! Guest requests in, engine operations out, completions back: the state machine of the data path.
//!
//! No thread, no clock, no ring. Generic over the engine and the outbox, so that the crash simulation runs the very code
//! that serves guests.
//!
//! * [`slots`]: fixed slabs of requests, pieces and operations.
//! * `data`: reads and writes. `emulate`: writes of less than a disk block. `verify`: checksums. `bounce`: memory for them.
//! * `clear`: discard and write-zeroes. `flush`: syncs and commits.
//! * `moving`: writes to extents that have several copies. `hung`: when one of them does not answer.
//! * `failover`: reads that another replica has to answer.
//! * `park`: waiting. `turns`: for room on a disk that VHDs share.
//! * `stages`: what metrics ask of all of them.
//! * `gather`: from a byte range of a request to buffers; pure.
//!
//! A request is a cursor over what it asks for. Each step looks up the extent under the cursor and submits one *piece* (one
//! operation per replica), or parks; a wake-up resumes at the cursor. A parked request holds no claim: claims belong to
//! pieces in flight, which complete on their own. So no request waits for another while being waited for.

mod bounce;
mod clear;
mod data;
mod emulate;
mod failover;
mod flush;
mod gather;
mod hung;
mod moving;
mod park;
mod slots;
mod stages;
#[cfg(test)]
mod tests;
mod turns;
mod verify;

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::base::aligned::AlignedBuf;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, DiskSet, ReactorId, VhdId};
use crate::base::limits::{BOUNCE_BUFFERS, DISKS_MAX, EXTENT_SIZE_MAX, IOVECS_MAX};
use crate::base::units::BLOCKS_PER_EXTENT;
use crate::engine::fences::Fences;
use crate::engine::{Buffer, Completion, Engine, OpTag};
use crate::metrics::IoKind;
use crate::reactor::messages::{AllocateError, MissedBy, Outbox, OwnerRequest};
use crate::shared::{DiskState, VhdState};
use crate::virtio::request::{Request, RequestKind, Status};

use bounce::BouncePool;
use flush::DiskSyncs;
use park::Parking;
use slots::{Bounced, Phase, PieceSlot, Purpose, Slots};

pub use slots::RequestSlot;

/// The caller's name for a guest request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Token(pub u64);

/// A request that is done; told exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Finished {
    /// As given to [`Pipeline::start`].
    pub token: Token,
    /// The status byte.
    pub status: Status,
    /// Bytes put into device-writable data buffers, without the status byte.
    pub written: u32,
    /// The kernel has found some of the guest's buffers missing: its frontend took them away.
    pub memory_lost: bool,
    /// How long ago the last part of it came back from a host disk, in nanoseconds; 0: in this turn.
    pub back_ns: u64,
}

/// What the owner, the committer and other reactors tell a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PipelineMessage {
    /// The extent that request `ticket` asked for is placed, or cannot be.
    Allocated {
        /// The request.
        ticket: u64,
        /// Whether it has a slot now.
        result: Result<(), AllocateError>,
    },
    /// The extent that request `ticket` discarded is dropped.
    Freed {
        /// The request.
        ticket: u64,
    },
    /// The commit that request `ticket` asked for is durable, or failed.
    Committed {
        /// The request.
        ticket: u64,
        /// Whether it is durable.
        ok: bool,
    },
    /// A claim of the VHD was released by another reactor, or the mover.
    ClaimReleased {
        /// The VHD.
        vhd: VhdId,
    },
    /// Answer about a copy that missed a write or a sync.
    CopyDropped {
        /// What waits for it.
        by: MissedBy,
        /// Its disk.
        disk: DiskId,
        /// Nobody will read the copy as it is; false: it is the extent's only place.
        ok: bool,
    },
    /// Say that the reactor turns.
    Turn,
    /// A host disk has failed.
    DiskFailed {
        /// The disk.
        disk: DiskId,
    },
    /// Report when every operation in flight on the disk now has completed.
    Fence {
        /// Which fence.
        fence: u64,
        /// The disk.
        disk: DiskId,
    },
}

/// The data path of one reactor.
pub struct Pipeline<E: Engine, O: Outbox> {
    /// Runs the disk operations. Public for the thread that waits on it.
    pub engine: E,
    /// Takes the messages.
    pub outbox: O,
    id: ReactorId,
    /// The time of the call being handled.
    now: Nanos,
    disks: [Option<Arc<DiskState>>; DISKS_MAX],
    /// Those of them that have left the pool.
    left: DiskSet,
    slots: Slots,
    parking: Parking,
    syncs: [DiskSyncs; DISKS_MAX],
    /// Disks with a sync in flight.
    syncing: DiskSet,
    fences: [Fences; DISKS_MAX],
    bounce: BouncePool,
    /// Requests that are done and not given back; what they asked for is still in their slots.
    finished: VecDeque<(Finished, RequestSlot)>,
    /// Pieces whose disk block has been read and that can be written.
    filled: VecDeque<PieceSlot>,
    /// Buffers that a disk which has failed may still write to, by the operation that it has not answered.
    leaked: Vec<(OpTag, Bounced)>,
    /// Zeros to pad first writes with; never written.
    zeros: AlignedBuf,
    buffers: Vec<Buffer>,
}

/// What one step of a request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// The cursor moved, or the view changed: step again.
    Again,
    /// The request waits and will be woken.
    Parked,
    /// Everything has been submitted.
    Exhausted,
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// A pipeline without disks and without request slots.
    #[must_use]
    pub fn new(id: ReactorId, engine: E, outbox: O) -> Self {
        let block_max = usize::try_from(EXTENT_SIZE_MAX / u64::from(BLOCKS_PER_EXTENT)).expect("a block fits memory");
        let operations = engine.available();
        Pipeline {
            engine,
            outbox,
            id,
            now: Nanos(0),
            disks: [const { None }; DISKS_MAX],
            left: DiskSet::default(),
            slots: Slots::new(operations),
            parking: Parking::new(),
            syncs: std::array::from_fn(|_| DiskSyncs::default()),
            syncing: DiskSet::default(),
            fences: std::array::from_fn(|_| Fences::default()),
            bounce: BouncePool::new(),
            finished: VecDeque::new(),
            filled: VecDeque::new(),
            leaked: Vec::with_capacity(BOUNCE_BUFFERS),
            zeros: AlignedBuf::zeroed(block_max),
            buffers: Vec::with_capacity(IOVECS_MAX),
        }
    }

    /// Makes a host disk known. The engine must know it, too.
    pub fn add_disk(&mut self, disk: Arc<DiskState>) {
        let id = disk.id;
        self.disks[id.index()] = Some(disk);
        self.reserve_on(id);
    }

    /// Makes room for every request to wait for the disk.
    fn reserve_on(&mut self, disk: DiskId) {
        let requests = self.slots.request_count();
        self.syncs[disk.index()].reserve(requests);
        self.parking.reserve_on(disk, requests);
    }

    /// A host disk left the pool, see [`ReactorMessage::RemoveDisk`](crate::reactor::messages::ReactorMessage::RemoveDisk). Its
    /// shared state stays, for requests that have it in their list of syncs.
    pub fn remove_disk(&mut self, disk: DiskId) {
        self.left.insert(disk);
    }

    /// Reserves `count` request slots, when a ring starts.
    pub fn reserve(&mut self, count: usize) {
        self.slots.reserve_requests(count);
        self.finished.reserve(self.slots.request_count());
        self.parking.reserve(self.slots.request_count());
        for disk in self.disks.iter().flatten().map(|disk| disk.id).collect::<DiskSet>().iter() {
            self.reserve_on(disk);
        }
    }

    /// Gives back `count` reserved slots, when a ring has stopped. (Their memory is kept for the next ring.)
    pub fn unreserve(&mut self, count: usize) {
        self.slots.unreserve_requests(count);
    }

    /// A free request to parse into; `None` only if more are used than were reserved.
    pub fn prepare(&mut self) -> Option<RequestSlot> {
        self.slots.take_request()
    }

    /// The request in a prepared slot.
    pub fn request_mut(&mut self, slot: RequestSlot) -> &mut Request {
        &mut self.slots.request_mut(slot).request
    }

    /// Gives a prepared slot back: nothing was popped, or it was malformed.
    pub fn abandon(&mut self, slot: RequestSlot) {
        self.slots.free_request(slot);
    }

    /// Starts the request in a prepared slot. It is reported by [`Pipeline::next_finished`] exactly once, maybe at once.
    pub fn start(&mut self, slot: RequestSlot, vhd: &Arc<VhdState>, writethrough: bool, token: Token, now: Nanos) {
        self.now = now;
        let state = self.slots.request_mut(slot);
        state.begin(Arc::clone(vhd), writethrough, token, now);
        if vhd.is_deleted() {
            state.fail(Status::IoError);
        }
        self.note_started(slot);
        self.run(slot);
    }

    /// Makes everything durable that the VHD has completed, as a FLUSH of its guest would.
    ///
    /// # Panics
    /// If no request slot is reserved for it.
    pub fn flush_vhd(&mut self, vhd: &Arc<VhdState>, token: Token, now: Nanos) {
        let slot = self.prepare().expect("a slot reserved for internal flushes");
        self.request_mut(slot).reset(RequestKind::Flush);
        self.start(slot, vhd, false, token, now);
    }

    /// Takes a message.
    pub fn handle(&mut self, message: PipelineMessage, now: Nanos) {
        self.now = now;
        match message {
            PipelineMessage::Allocated { ticket, result } => self.allocated(ticket, result),
            PipelineMessage::Freed { ticket } => self.freed(ticket),
            PipelineMessage::Committed { ticket, ok } => self.committed(ticket, ok),
            PipelineMessage::ClaimReleased { vhd } => self.wake_claim_waiters(vhd),
            PipelineMessage::CopyDropped { by, disk, ok } => self.copy_dropped(by, disk, ok),
            PipelineMessage::Turn => self.outbox.to_owner(OwnerRequest::Turned { reactor: self.id }),
            PipelineMessage::DiskFailed { disk } => self.disk_failed(disk),
            PipelineMessage::Fence { fence, disk } => {
                self.fences[disk.index()].begin(fence);
                self.report_fences(disk);
            }
        }
    }

    /// Takes the engine's completions and lets requests go on. Returns whether anything happened.
    pub fn poll(&mut self, now: Nanos) -> bool {
        self.now = now;
        let mut progress = false;
        while let Some(completion) = self.engine.take_completion() {
            progress = true;
            self.complete(completion);
        }
        progress |= self.resume_ready();
        progress |= self.resume_waiting();
        self.announce_turns() || progress
    }

    /// The next request that is done.
    pub fn next_finished(&mut self) -> Option<Finished> {
        self.next_finished_with(|_, _| ())
    }

    /// The next request that is done; `look` sees what it asked for.
    pub fn next_finished_with(&mut self, look: impl FnOnce(&Finished, &Request)) -> Option<Finished> {
        let (finished, slot) = self.finished.pop_front()?;
        look(&finished, &self.slots.request(slot).request);
        self.slots.free_request(slot);
        Some(finished)
    }

    /// Whether there is work that no completion or message will announce, for [`Pipeline::poll`] or for who calls
    /// [`Pipeline::next_finished`]: do not block.
    #[must_use]
    pub fn has_ready(&self) -> bool {
        self.parking.has_ready() || !self.finished.is_empty()
    }

    /// Whether no request is in progress.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.slots.requests_used() == self.finished.len() && self.slots.operations_used() == 0
    }

    fn disk(&self, disk: DiskId) -> &Arc<DiskState> {
        self.disks[disk.index()].as_ref().expect("a placed extent lies on a disk of the pool")
    }

    /// Runs a request until it parks, or has submitted all it can.
    fn run(&mut self, slot: RequestSlot) {
        loop {
            let state = self.slots.request(slot);
            let step = match state.phase {
                _ if state.failed.is_some() => Step::Exhausted,
                Phase::Work => match state.request.kind {
                    RequestKind::Read { .. } => self.step_read(slot),
                    RequestKind::Write { .. } => self.step_write(slot),
                    RequestKind::Discard | RequestKind::WriteZeroes => self.step_clear(slot),
                    RequestKind::GetId => self.step_get_id(slot),
                    RequestKind::Flush => Step::Exhausted,
                },
                Phase::Sync => self.step_sync(slot),
                Phase::Commit => self.step_commit(slot),
            };
            match step {
                Step::Again => {}
                Step::Parked => return self.leave_room(slot),
                Step::Exhausted => {
                    self.drop_turn(slot);
                    if self.slots.request(slot).outstanding > 0 {
                        return;
                    }
                    if !self.reads_again(slot) && !self.next_phase(slot) {
                        return;
                    }
                }
            }
        }
    }

    /// Everything of this phase is done: goes on to the next one, or finishes the request (and returns false).
    fn next_phase(&mut self, slot: RequestSlot) -> bool {
        let now = self.now;
        let state = self.slots.request_mut(slot);
        assert!(state.outstanding == 0);
        let flushes = match state.request.kind {
            RequestKind::Flush => true,
            RequestKind::Write { .. } | RequestKind::Discard | RequestKind::WriteZeroes => state.writethrough,
            RequestKind::Read { .. } | RequestKind::GetId => false,
        };
        match state.phase {
            Phase::Work if flushes && state.failed.is_none() => state.begin_sync(),
            Phase::Sync if state.failed.is_none() => {
                state.times.come_back(now);
                state.phase = Phase::Commit;
            }
            Phase::Work | Phase::Sync | Phase::Commit => {
                self.finish(slot);
                return false;
            }
        }
        true
    }

    fn finish(&mut self, slot: RequestSlot) {
        let state = self.slots.request_mut(slot);
        let status = state.failed.unwrap_or(Status::Ok);
        let (kind, bytes) = match state.request.kind {
            RequestKind::Read { len, .. } => (Some(IoKind::Read), len),
            RequestKind::Write { len, .. } => (Some(IoKind::Write), len),
            RequestKind::Flush => (Some(IoKind::Flush), 0),
            RequestKind::Discard => (Some(IoKind::Discard), state.request.ranges().iter().map(|r| r.len).sum()),
            RequestKind::WriteZeroes => (Some(IoKind::WriteZeroes), state.request.ranges().iter().map(|r| r.len).sum()),
            RequestKind::GetId => (None, 0),
        };
        let written = match (status, state.request.kind) {
            (Status::Ok, RequestKind::Read { len, .. }) => u32::try_from(len).expect("a request is at most 32 MiB"),
            (Status::Ok, RequestKind::GetId) => GET_ID_LEN,
            _ => 0,
        };
        let mut back_ns = 0;
        if let (Some(kind), Some(vhd)) = (kind, &state.vhd) {
            let (metrics, latency_ns) = (vhd.metrics.of(self.id), self.now.since(state.started));
            metrics.record(kind, bytes, latency_ns, status == Status::Ok);
            if vhd.share.is_late(latency_ns) {
                metrics.late.fetch_add(1, Ordering::Relaxed);
            }
            back_ns = state.times.count(metrics, kind, state.started, self.now);
        }
        let finished = Finished { token: state.token, status, written, memory_lost: state.memory_lost, back_ns };
        self.finished.push_back((finished, slot));
        self.slots.end_request(slot);
    }

    fn complete(&mut self, completion: Completion) {
        let operation = self.slots.take_operation(completion.tag);
        let disk = operation.disk;
        let latency_ns = self.now.since(operation.begun);
        let ok = completion.result.is_ok();
        self.disk(disk).metrics.of(self.id).record(operation.kind, operation.bytes, latency_ns, ok);
        self.parking.operation_done(disk);
        self.end_operation(&operation);
        self.disk(disk).progress_of(self.id).completed();
        match operation.purpose {
            Purpose::Sync { number } => self.sync_done(disk, number, completion.result),
            Purpose::Orphan { epoch } => {
                self.fences[disk.index()].leave(epoch);
                self.take_back_leaked(completion.tag);
            }
            Purpose::Transfer { piece, epoch } => {
                self.fences[disk.index()].leave(epoch);
                if let Some(slot) = self.transfer_done(piece, disk, completion.result) {
                    self.run_if_waiting(slot);
                }
            }
        }
        self.write_filled();
        self.report_fences(disk);
    }

    /// A piece of the request is done: the last one takes it to the next phase.
    pub(super) fn run_if_waiting(&mut self, slot: RequestSlot) {
        let state = self.slots.request_mut(slot);
        assert!(state.outstanding > 0);
        state.outstanding -= 1;
        if state.outstanding == 0 && !state.parked {
            self.run(slot);
        }
    }

    fn step_get_id(&mut self, slot: RequestSlot) -> Step {
        let state = self.slots.request_mut(slot);
        if state.cursor > 0 {
            return Step::Exhausted;
        }
        let mut digits = [0; uuid::fmt::Simple::LENGTH];
        let uuid = state.vhd().settings.uuid.simple().encode_lower(&mut digits);
        let id = uuid.as_bytes().get(..GET_ID_LEN as usize).expect("a UUID has 32 hex digits");
        gather::scatter_into(state.request.segments(), 0, id);
        state.cursor = u64::from(GET_ID_LEN);
        Step::Exhausted
    }
}

/// Length of the device ID string (virtio 1.3, 5.2.6: VIRTIO_BLK_T_GET_ID).
const GET_ID_LEN: u32 = 20;
