//! What the owner makes happen. It never does anything itself: threads and queues carry these out in production, a
//! scheduler in the simulation.

use std::sync::Arc;

use super::command::{CommandError, CommandId, LostData, Reply};
use crate::base::ids::{DiskId, JobId, ReactorId, VhdId};
use crate::base::units::{ExtentIndex, SlotIndex};
use crate::mover::messages::MoverMessage;
use crate::placement::job::JobState;
use crate::placement::record::VhdRecord;
use crate::qos::LimitKind;
use crate::reactor::messages::ReactorMessage;
use crate::shared::VhdState;
use crate::shared::disk::SyncPoint;
use crate::store::change::Change;
use crate::store::edit::{EditId, StoreEdit};

/// Consecutive slots of one disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SlotRun {
    /// The first.
    pub first: SlotIndex,
    /// How many; never 0.
    pub count: u32,
}

impl SlotRun {
    /// The slots.
    pub fn iter(self) -> impl Iterator<Item = SlotIndex> {
        (self.first.0..self.first.0 + self.count).map(SlotIndex)
    }
}

/// Where the owner's messages go. Each receiver gets its messages in the order in which they were sent.
pub trait OwnerOutbox {
    /// To a reactor.
    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage);

    /// To the mover.
    fn to_mover(&mut self, message: MoverMessage);

    /// To the committer. `change_handed_over` of the VHD has been called.
    fn change(&mut self, change: Change);

    /// To the committer: rows to write in one commit, answered by `StoreReport::EditDone`.
    fn edit(&mut self, edit: EditId, rows: Vec<StoreEdit>);

    /// To the committer: what is pending for the VHD, now or later, need not wait for syncs of this disk up to this one. It is on
    /// other disks, and moves to this one have been given up.
    fn excuse(&mut self, vhd: VhdId, point: SyncPoint);

    /// To the committer: commit what is pending soon, even if no guest asks. Not answered.
    fn commit(&mut self);

    /// To the worker of the disk: give the backing of these slots back. Answered by
    /// `Owner::handle_punched` with the same run, however it went.
    fn punch(&mut self, disk: DiskId, run: SlotRun);

    /// A VHD begins to exist (at its creation; not at start, when the caller has the states): the committer must know its
    /// state from here on. It may be served once its creation is answered.
    fn open_vhd(&mut self, state: &Arc<VhdState>);

    /// Record of a served VHD has changed and is durable: name (and so its socket), owner or mode of the
    /// socket, size.
    fn vhd_changed(&mut self, record: &VhdRecord);

    /// A VHD is durably gone: close its socket, stop its rings, forget it.
    fn close_vhd(&mut self, vhd: VhdId);

    /// A disk has become part of the pool: tell the committer and every reactor. A fence follows, and when all reactors have
    /// passed it extents are placed there.
    fn disk_added(&mut self, disk: DiskId);

    /// A disk has left the pool, and reactors and mover have been told to let go of it: its worker may end.
    fn disk_removed(&mut self, disk: DiskId);

    /// The answer to a command.
    fn reply(&mut self, command: CommandId, result: Result<Reply, CommandError>);

    /// Something people and programs may want to know.
    fn event(&mut self, event: Event);
}

/// Whose reservation it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReservationOf {
    /// Of the VHD of this name.
    Vhd(String),
    /// Of the VM of this name.
    Vm(String),
}

/// What happened, for the log and for subscribers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A VHD was created.
    VhdCreated {
        /// Its name.
        vhd: String,
    },
    /// A VHD was deleted.
    VhdDeleted {
        /// Its name.
        vhd: String,
    },
    /// A VHD was renamed.
    VhdRenamed {
        /// Its old name.
        from: String,
        /// Its new name.
        to: String,
    },
    /// A VHD has another size.
    VhdResized {
        /// Its name.
        vhd: String,
        /// What it had.
        old_bytes: u64,
        /// What it has.
        new_bytes: u64,
    },
    /// Settings of a VHD changed.
    VhdChanged {
        /// Its name.
        vhd: String,
    },
    /// A VM was created, by itself or with the first VHD that names it.
    VmCreated {
        /// Its name.
        vm: String,
    },
    /// A VM was deleted.
    VmDeleted {
        /// Its name.
        vm: String,
    },
    /// A VM was renamed, and its VHDs are told so.
    VmRenamed {
        /// Its old name.
        from: String,
        /// Its new name.
        to: String,
    },
    /// Labels or owner of a VM changed.
    VmChanged {
        /// Its name.
        vm: String,
    },
    /// A limit holds back what the VHD's guest asks, which none has done for a minute.
    LimitHit {
        /// The VHD.
        vhd: String,
        /// Which limit.
        by: LimitKind,
    },
    /// A frontend attached.
    VhdAttached {
        /// The VHD.
        vhd: String,
        /// Its process.
        pid: u32,
    },
    /// The frontend left.
    VhdDetached {
        /// The VHD.
        vhd: String,
    },
    /// Written data of a VHD that only failed disks had was given up: it reads as zeros.
    DataLost {
        /// The VHD.
        vhd: String,
        /// The disk that was emptied.
        disk: String,
        /// What it was.
        lost: LostData,
    },
    /// A place on a disk could not be written: from now on it is avoided, and what should be there goes to another slot.
    BadPlace {
        /// The disk.
        disk: String,
        /// The place.
        slot: SlotIndex,
        /// What the disk said.
        error: String,
        /// The VHD that should be there.
        vhd: String,
        /// Its extent.
        extent: ExtentIndex,
        /// Such places on this disk since the daemon started.
        count: usize,
    },
    /// A disk joined the pool.
    DiskAdded {
        /// Its name.
        disk: String,
    },
    /// A disk left the pool.
    DiskRemoved {
        /// Its name.
        disk: String,
    },
    /// Settings of a disk changed.
    DiskChanged {
        /// Its name.
        disk: String,
    },
    /// A disk gave an error. Sent for the 1st, 2nd, 4th, 8th and so on.
    DiskError {
        /// Its name.
        disk: String,
        /// What it said.
        error: String,
        /// Errors so far.
        count: u64,
    },
    /// A disk failed: nothing more is sent to it until the pool is opened again.
    DiskFailed {
        /// Its name.
        disk: String,
        /// What it said.
        error: String,
    },
    /// A disk gave errors, or took very long, several times lately.
    DiskSuspect {
        /// Its name.
        disk: String,
        /// Why.
        reason: String,
    },
    /// A suspect disk has given no reason for that for a while.
    DiskHealthy {
        /// Its name.
        disk: String,
    },
    /// Allocation rose above a threshold, or fell well below it again.
    Fill {
        /// The disk; `None`: the pool as a whole.
        disk: Option<String>,
        /// The threshold in percent: 80, 90 or 95.
        percent: u32,
        /// Whether it rose above.
        above: bool,
        /// Bytes allocated.
        allocated: u64,
        /// Bytes there are.
        capacity: u64,
    },
    /// The disks of the VHD's layout have no room: it has grown onto another one.
    VhdExpanded {
        /// The VHD.
        vhd: String,
        /// The disk.
        disk: String,
    },
    /// A write of this VHD waits for room. Sent once until none of it waits any more.
    WaitingForRoom {
        /// The VHD.
        vhd: String,
    },
    /// Replicas of this VHD on that disk missed a write, or may have: they are not read until they are filled again. Sent once until
    /// they are.
    VhdDegraded {
        /// Its name.
        vhd: String,
        /// Name of the disk.
        disk: String,
    },
    /// A write of this VHD failed for want of room. Sent once until it gets room again.
    OutOfRoom {
        /// The VHD.
        vhd: String,
    },
    /// The metadata region passed its low-water mark, in either direction.
    MetadataLow {
        /// Whether no extent can be placed now.
        low: bool,
        /// Bytes used.
        used: u64,
        /// Bytes there are.
        size: u64,
    },
    /// A job was created, or changed its state.
    Job {
        /// Its number.
        job: JobId,
        /// What it is for.
        kind: &'static str,
        /// Its state now.
        state: JobState,
        /// Why it stopped.
        reason: Option<String>,
        /// Names of the VHDs that it is about, the first [`EVENT_VHDS_MAX`](crate::base::limits::EVENT_VHDS_MAX) of them.
        vhds: Vec<String>,
    },
    /// A write of this VHD was to take more than its quota, or that of its VM, allows. Sent once until there is room again.
    QuotaReached {
        /// The VHD.
        vhd: String,
        /// Its VM, if it is the VM's quota.
        vm: Option<String>,
        /// The quota, in bytes of slots.
        quota: u64,
        /// What is used of it; of a VM's, maybe with what its VHDs have reserved for themselves.
        used: u64,
    },
    /// A reservation cannot be kept. Sent once until it can be.
    ReservationShort {
        /// Whose.
        of: ReservationOf,
        /// Bytes of slots that cannot be kept free for it.
        short: u64,
    },
    /// A reservation can be kept again.
    ReservationKept {
        /// Whose.
        of: ReservationOf,
    },
    /// A thick VHD could not be given all its room: it is served as if it were thin.
    ThickIncomplete {
        /// The VHD.
        vhd: String,
        /// Extents without room.
        missing: u64,
    },
}
