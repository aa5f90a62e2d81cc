//! Messages between reactors and the rest. Queues are the only meeting place besides `shared`.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::base::ids::{DiskId, ReactorId, VhdId};
use crate::base::units::ExtentIndex;
use crate::qos::LimitKind;
use crate::shared::dirty_log::DirtyLog;
use crate::shared::inflight::InflightQueue;
use crate::shared::{DiskState, Load, VhdState};
use crate::store::change::{Change, CommitRequest};

/// From a reactor to the owner.
#[derive(Debug)]
pub enum OwnerRequest {
    /// A write found the extent absent: place it. Answered by [`ReactorMessage::Allocated`]; asking for an extent that is
    /// placed already is answered at once.
    Allocate {
        /// Who asks.
        reactor: ReactorId,
        /// The reactor's name for the request.
        ticket: u64,
        /// The VHD.
        vhd: VhdId,
        /// The extent.
        extent: ExtentIndex,
    },
    /// A discard claimed and cleared all blocks of the extent: drop it. Answered by [`ReactorMessage::Freed`]. The claim
    /// stays with the reactor, which releases it after the answer.
    Free {
        /// Who asks.
        reactor: ReactorId,
        /// The reactor's name for the request.
        ticket: u64,
        /// The VHD.
        vhd: VhdId,
        /// The extent.
        extent: ExtentIndex,
    },
    /// Answer to [`ReactorMessage::Fence`].
    FenceReached {
        /// Who reached it.
        reactor: ReactorId,
        /// Which fence.
        fence: u64,
    },
    /// A copy of an extent missed a write or a sync of a guest. One that a move is making: give it up, unless it is the extent's
    /// place by now. A replica: make it durably stale, unless it is the last one in sync. Answered by
    /// [`ReactorMessage::CopyDropped`]; the guest waits.
    CopyMissed {
        /// Who asks.
        reactor: ReactorId,
        /// The VHD.
        vhd: VhdId,
        /// The disk of the copy.
        disk: DiskId,
        /// What waits.
        by: MissedBy,
    },
    /// A write to several replicas found no write intent for their page: make one. Answered by [`ReactorMessage::Allocated`].
    Intend {
        /// Who asks.
        reactor: ReactorId,
        /// The reactor's name for the request.
        ticket: u64,
        /// The VHD.
        vhd: VhdId,
        /// The extent.
        extent: ExtentIndex,
    },
    /// A replica could not be read, and another one answers: make it equal to that.
    ReadFailed {
        /// The VHD.
        vhd: VhdId,
        /// The extent.
        extent: ExtentIndex,
        /// The disk of the bad replica.
        disk: DiskId,
    },
    /// A write failed, and some replicas may have it: make all equal to the first one.
    ReplicasDiffer {
        /// The VHD.
        vhd: VhdId,
        /// The extent.
        extent: ExtentIndex,
    },
    /// A limit of rates holds back what a guest asks, which it has not done for a while.
    LimitHit {
        /// The VHD.
        vhd: VhdId,
        /// Which limit.
        by: LimitKind,
    },
    /// It has something to do, after a [`Rest`](crate::shared::Rest) of the owner's.
    Stirred,
    /// Answer to [`ReactorMessage::Turn`].
    Turned {
        /// Who.
        reactor: ReactorId,
    },
    /// A host disk gave an error (counted; the owner decides what it means).
    DiskError {
        /// The disk.
        disk: DiskId,
        /// What the engine said.
        error: crate::engine::IoError,
        /// Whether it was a sync, after which the disk is failed for good.
        sync: bool,
    },
}

/// What of a reactor waits for the answer about a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissedBy {
    /// A write that the other copies have.
    Write {
        /// The reactor's name for it.
        piece: u32,
        /// The extent.
        extent: ExtentIndex,
    },
    /// A FLUSH, or a write in cache mode writethrough.
    Flush {
        /// The reactor's name for the request.
        ticket: u64,
        /// The disk that it was to be durable on.
        disk: DiskId,
    },
}

/// Why an extent could not be placed, or not be written to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocateError {
    /// No room, and none came in time.
    NoSpace,
    /// The metadata region is nearly full.
    MetadataFull,
    /// The VHD is gone.
    Deleted,
    /// The placement store has failed.
    Store,
}

/// To a reactor.
pub enum ReactorMessage {
    /// Answer to [`OwnerRequest::Allocate`] and [`OwnerRequest::Intend`]: look again, or fail the write.
    Allocated {
        /// The request.
        ticket: u64,
        /// Whether the extent has a slot, or its page an intent, now.
        result: Result<(), AllocateError>,
    },
    /// There may be room on a disk for whoever waits first on this reactor.
    Room,
    /// Answer to [`OwnerRequest::Free`].
    Freed {
        /// The request.
        ticket: u64,
    },
    /// Answer to [`CommitRequest`]; `ok` is false when no majority of the store could commit.
    Committed {
        /// The request.
        ticket: u64,
        /// Whether the changes are durable.
        ok: bool,
    },
    /// Another reactor, or the mover, released a claim of this VHD: look again.
    ClaimReleased {
        /// The VHD.
        vhd: VhdId,
    },
    /// Answer to [`OwnerRequest::CopyMissed`].
    CopyDropped {
        /// What waits.
        by: MissedBy,
        /// The disk of the copy.
        disk: DiskId,
        /// Nobody will read the copy as it is; false: it is the extent's only place, which lacks the data.
        ok: bool,
    },
    /// A host disk has failed: what can do without it does not wait for it any more.
    DiskFailed {
        /// The disk.
        disk: DiskId,
    },
    /// Answer with [`OwnerRequest::FenceReached`] once every operation on `disk` whose place was looked up before this
    /// message has completed (submitted ones, and ones that wait for an engine slot and will not look up again).
    ///
    /// Other disks do not count: a hung disk must not stop the others from reusing their slots. Parked requests that will
    /// look up again do not count either: they may be waiting for the very room that this fence makes. The owner sends at
    /// most one unanswered fence per disk.
    Fence {
        /// Which fence.
        fence: u64,
        /// The disk.
        disk: DiskId,
    },
    /// A host disk was added; its engine file is `file`. (At start every reactor is given all disks.)
    AddDisk {
        /// Shared state of the disk.
        disk: Arc<DiskState>,
        /// The open disk.
        file: Arc<OwnedFd>,
    },
    /// A host disk left the pool: let go of its file. Nothing is on it, a fence on it has been passed since, and no VHD needs a
    /// sync of it.
    RemoveDisk {
        /// The disk.
        disk: DiskId,
    },
    /// A vring starts, stops or changes.
    Ring(RingCommand),
    /// Limits of rates have changed: what they hold back asks again.
    LimitsChanged,
    /// Show that the loop gets on: answered when it comes to this.
    Alive(crossbeam_channel::Sender<()>),
    /// Answer with [`OwnerRequest::Turned`]: whoever does so has taken what had completed before.
    Turn,
    /// Finish what is in flight, then leave the loop.
    Shutdown,
}

/// Names a vring among all rings of the daemon; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RingKey(pub u64);

/// Addresses of a split virtqueue in guest physical memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingAddresses {
    /// Descriptor table.
    pub descriptors: u64,
    /// Available ring.
    pub available: u64,
    /// Used ring.
    pub used: u64,
}

/// Where a ring notes which guest memory it has written to, during a live migration.
#[derive(Clone, Debug)]
pub struct RingLog {
    /// The log of its device.
    pub log: Arc<DirtyLog>,
    /// The used ring's guest physical address for the log; `None`: writes to the used ring are not noted.
    pub used: Option<u64>,
    /// Written to when something was noted, if the frontend gave an eventfd for that.
    pub call: Option<Arc<OwnedFd>>,
}

/// Everything a reactor needs to serve a vring.
pub struct RingConfig {
    /// Its name.
    pub key: RingKey,
    /// The VHD.
    pub vhd: Arc<VhdState>,
    /// Queue index on the device, for logs and metrics.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Where it is.
    pub addresses: RingAddresses,
    /// Next available index to pop, unless `inflight` says otherwise.
    pub next_available: u16,
    /// Where the frontend keeps what is in flight, if it does.
    pub inflight: Option<InflightQueue>,
    /// Where it notes what it writes; `None`: nowhere.
    pub log: Option<RingLog>,
    /// VIRTIO_RING_F_EVENT_IDX was acknowledged.
    pub event_idx: bool,
    /// VIRTIO_RING_F_INDIRECT_DESC was acknowledged.
    pub indirect: bool,
    /// Cache mode of the device, shared by its rings: true is writeback. (A driver without FLUSH is writethrough.)
    pub writeback: Arc<std::sync::atomic::AtomicBool>,
    /// Features acknowledged by the driver.
    pub features: u64,
    /// Counts the chains that are popped.
    pub load: Arc<Load>,
    /// Guest memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// Readable when the guest has kicked. `None`: poll mode, as the specification allows.
    pub kick: Option<OwnedFd>,
    /// Written to interrupt the guest.
    pub call: Option<OwnedFd>,
    /// Written when the ring is broken.
    pub error: Option<OwnedFd>,
}

/// A stopped ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingStopped {
    /// The available index after the last chain that was popped (and completed).
    pub next_available: u16,
    /// Something was written to guest memory that its dirty log had no bit for: a copy that follows the log lacks it.
    pub is_unlogged: bool,
    /// Its guest or its frontend had broken it: whoever serves it next does not go on with it, until it is configured anew.
    pub is_broken: bool,
}

/// Commands for vrings, sent by vhost-user connections.
pub enum RingCommand {
    /// Start serving.
    Start(Box<RingConfig>),
    /// Stop popping, complete what was popped, then answer. The reply is dropped if the ring is unknown or could not start
    /// (then nothing was popped).
    Stop {
        /// The ring.
        key: RingKey,
        /// Where to answer.
        reply: crossbeam_channel::Sender<RingStopped>,
    },
    /// As [`RingCommand::Stop`], for a ring that is to go on elsewhere: [`RingCommand::GoOn`] takes the command back. The reply
    /// of one that breaks meanwhile is dropped.
    Yield {
        /// The ring.
        key: RingKey,
        /// Whether one that is broken already stops, too; otherwise its reply is dropped.
        even_broken: bool,
        /// Where to answer.
        reply: crossbeam_channel::Sender<RingStopped>,
    },
    /// What the ring has in flight takes too long: it goes on here, and the reply to [`RingCommand::Yield`] is dropped. Nothing
    /// happens if it has stopped already.
    GoOn {
        /// The ring.
        key: RingKey,
    },
    /// The frontend gave another call eventfd (or none).
    SetCall {
        /// The ring.
        key: RingKey,
        /// The eventfd.
        call: Option<OwnedFd>,
    },
    /// The frontend gave another kick eventfd.
    SetKick {
        /// The ring.
        key: RingKey,
        /// The eventfd.
        kick: Option<OwnedFd>,
    },
    /// Note what is written from now on elsewhere, or nowhere. Answered once nothing is noted as before any more.
    SetLog {
        /// The ring.
        key: RingKey,
        /// Where.
        log: Option<RingLog>,
        /// Where to answer; dropped if the ring is unknown.
        reply: crossbeam_channel::Sender<()>,
    },
    /// Guest memory grew; what was mapped before stays mapped.
    SetMemory {
        /// The ring.
        key: RingKey,
        /// The new map.
        memory: Arc<GuestMemoryMmap>,
    },
    /// Switch the device's cache mode: to writethrough, answer only when everything that this ring popped before is durable.
    /// Send it for *every* started ring of the device: each waits for what it has in flight itself.
    SetWriteback {
        /// The ring.
        key: RingKey,
        /// The new mode.
        writeback: bool,
        /// Where to answer: false if the flush failed.
        reply: crossbeam_channel::Sender<bool>,
    },
}

/// Where a pipeline's messages go. Threads and queues in production, a scheduler in the simulation.
pub trait Outbox {
    /// To the owner.
    fn to_owner(&mut self, message: OwnerRequest);
    /// To the committer.
    fn change(&mut self, change: Change);
    /// To the committer.
    fn commit(&mut self, request: CommitRequest);
    /// To another reactor.
    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage);
    /// To the mover: there may be room on a disk for what waits first there, as [`ReactorMessage::Room`].
    fn room_for_mover(&mut self);
}
