//! Typed commands to the owner, and its answers. The wire types of the API are mapped to these; they carry no wire format.
//!
//! Commands are idempotent: asking again for what is already so succeeds and says that nothing changed. Deleting is not:
//! whoever mistypes a name must hear that there is no such VHD or VM.

mod capacity;
mod growth;
mod job;
mod vm;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::base::ids::{DiskId, JobId, VhdId};
use crate::placement::capacity::Capacity;
use crate::placement::check::CheckReport;
use crate::placement::limits::{IoLimits, IoLimitsChange};
use crate::placement::record::{Accept, DiskRecord, Expand, Layout, PoolRecord, SocketOwner, VhdRecord, WhenFull};
use crate::placement::sharing::{Settled, Sharing, SharingChange};
use crate::policy::rules::Rules;
use crate::shared::{DiskState, VhdState};

pub use super::error::{CapacityError, CommandError, ErrorKind};
pub use capacity::{CapacityUse, SetCapacity};
pub use growth::{Growth, GrowthSaid};
pub use job::{
    DiskShare, JobInfo, JobRequest, JoiningDisk, LostData, PlanInfo, PlannedVhd, Replacement, SetJob, StartJob,
};
pub use vm::{CreateVm, SetVm, VmInfo};

/// The caller's name for a command, given back with its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CommandId(pub u64);

impl CommandId {
    /// Of commands that the owner gives itself: whoever carries its answers drops them.
    pub const NOBODY: CommandId = CommandId(u64::MAX);
}

/// What the owner can be asked to do. A VHD, a VM or a disk is named by its name or its UUID in text form.
#[derive(Debug)]
pub enum Command {
    /// Creates a VHD. Answered by [`Reply::Vhd`] once it is durable.
    CreateVhd(Box<CreateVhd>),
    /// Deletes a VHD and frees its room. Answered by [`Reply::Deleted`] once it is durable.
    DeleteVhd {
        /// Which.
        vhd: String,
        /// Even if a frontend is attached.
        force: bool,
    },
    /// Gives a VHD another name. Answered by [`Reply::Vhd`].
    RenameVhd {
        /// Which.
        vhd: String,
        /// The new name.
        to: String,
    },
    /// Gives a VHD another size. Answered by [`Reply::Vhd`], a thick one's once it has its room.
    ResizeVhd(ResizeVhd),
    /// Changes settings of a VHD. Answered by [`Reply::Vhd`].
    SetVhd(Box<SetVhd>),
    /// A guest has chosen a cache mode. Answered by [`Reply::Vhd`] once it is durable. Never refused for being one too many:
    /// the one frontend of a VHD waits for the answer, so that there is at most one per VHD.
    SetCacheMode {
        /// Its VHD.
        vhd: VhdId,
        /// Whether the mode is writeback.
        writeback: bool,
    },
    /// Asks for one VHD. Answered by [`Reply::Vhd`].
    ShowVhd {
        /// Which.
        vhd: String,
    },
    /// Asks for all VHDs. Answered by [`Reply::Vhds`], by name.
    ListVhds,
    /// Creates a VM. Answered by [`Reply::Vm`] once it is durable.
    CreateVm(CreateVm),
    /// Changes settings of a VM. Answered by [`Reply::Vm`].
    SetVm(SetVm),
    /// Deletes a VM without VHDs. Answered by [`Reply::VmDeleted`] once it is durable.
    DeleteVm {
        /// Which.
        vm: String,
    },
    /// Asks for one VM. Answered by [`Reply::Vm`].
    ShowVm {
        /// Which.
        vm: String,
    },
    /// Asks for all VMs. Answered by [`Reply::Vms`], by name.
    ListVms,
    /// Asks for the pool and its disks. Answered by [`Reply::Pool`].
    ShowPool,
    /// Adds a disk that has been opened, locked and labelled. Answered by [`Reply::Disk`].
    AddDisk(Box<AddDisk>),
    /// Takes a disk with nothing on it out of the pool, in steps. Answered by [`Reply::Disk`], but taking it out by
    /// [`Reply::DiskRemoved`] once that is durable.
    RemoveDisk {
        /// Which.
        disk: String,
        /// The step.
        step: RemovalStep,
    },
    /// Changes settings of the pool. Answered by [`Reply::Pool`].
    SetPool {
        /// Whether VHDs that do not say grow onto other disks; `Some(None)`: spanned ones do, isolated ones do not.
        expand: Option<Option<Expand>>,
    },
    /// Keeps what administrators want of the policy. Answered by [`Reply::PolicyKept`] once it is durable.
    KeepPolicy(Box<Rules>),
    /// Changes settings of a disk. Answered by [`Reply::Disk`].
    SetDisk(Box<SetDisk>),
    /// Marks a disk as failed, by order of the operator: nothing more is submitted to it until the pool is opened again. Answered
    /// by [`Reply::Disk`], at once.
    FailDisk {
        /// Which.
        disk: String,
    },
    /// Moves VHDs. Answered by [`Reply::Job`] once its record is durable; by [`Reply::Plan`] if it is only asked what would be
    /// moved, or nothing would.
    StartJob(Box<StartJob>),
    /// Pauses or resumes a job, or changes its speed. Answered by [`Reply::Job`].
    SetJob(SetJob),
    /// Ends a job. What it has moved stays where it is. Answered by [`Reply::Job`]: of the job that moves everything back, if
    /// there is one.
    CancelJob {
        /// Which.
        job: JobId,
        /// Move everything back.
        revert: bool,
        /// Seconds since the Unix epoch.
        now: u64,
    },
    /// Brings replicas back, of VHDs that no other job is about. Only by the owner itself; nobody is answered.
    Restore {
        /// The disk.
        disk: DiskId,
        /// What to do about it.
        what: Restoration,
    },
    /// Asks for one job. Answered by [`Reply::Job`].
    ShowJob(JobId),
    /// Asks for all jobs that are remembered. Answered by [`Reply::Jobs`].
    ListJobs,
    /// Proves that table and allocator are consistent. Answered by [`Reply::Check`].
    Check,
}

/// How redundancy comes back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Restoration {
    /// What a failed disk had is made anew on others.
    Rebuild,
    /// What replicas on a disk have missed is copied into them.
    Resync,
}

/// Where a new VHD should be; disks by name or UUID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LayoutRequest {
    /// Wherever is best: nobody has said anything.
    Any,
    /// On one disk.
    Isolated {
        /// Which; `None`: the one with the most room that accepts isolated VHDs.
        disk: Option<String>,
    },
    /// Over several disks.
    Spanned {
        /// Which; `None`: those with the most room that accept spanned VHDs.
        disks: Option<Vec<String>>,
        /// How many; `None`: all of them.
        width: Option<u32>,
    },
}

/// What a new VHD should be. Defaults are the caller's business.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreateVhd {
    /// Its name.
    pub name: String,
    /// Its UUID if it is new (randomness is an argument). Not compared if the VHD exists.
    pub uuid: uuid::Uuid,
    /// When it is created, if it is new, in seconds since the Unix epoch.
    pub created: u64,
    /// Bytes.
    pub size: u64,
    /// Where its extents should be.
    pub layout: LayoutRequest,
    /// Where the policy would put it: taken if it goes with `layout` and can be done now, else the owner chooses. Not compared if the VHD
    /// exists.
    pub hint: Option<Layout>,
    /// Replicas of each extent, 1 to [`REPLICAS_MAX`](crate::base::limits::REPLICAS_MAX).
    pub replicas: u8,
    /// Whether to give all extents their slots now.
    pub thick: bool,
    /// Whether its blocks are to have checksums.
    pub checksums: bool,
    /// Whether guest writes are refused.
    pub read_only: bool,
    /// Logical block size that the guest sees, in bytes (512 or 4096).
    pub block_size: u32,
    /// Virtqueues.
    pub queues: u16,
    /// The VM it belongs to; it is made if there is none of that name.
    pub vm: Option<String>,
    /// Owner of its socket; `None`: the daemon's own.
    pub socket_owner: Option<SocketOwner>,
    /// Permission bits of its socket.
    pub socket_mode: u32,
    /// What becomes of a write that finds no room.
    pub when_full: WhenFull,
    /// Whether it grows onto other disks; `None`: as the pool says.
    pub expand: Option<Expand>,
    /// What it is limited to.
    pub limits: IoLimits,
    /// What it asks of disks that others want, too.
    pub sharing: Sharing,
    /// Its quota and reservation; rounded up to whole extents.
    pub capacity: Capacity,
}

/// A new size of a VHD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResizeVhd {
    /// Name or UUID.
    pub vhd: String,
    /// Bytes.
    pub size: u64,
    /// Even if it becomes smaller, and what is written beyond its new end is lost.
    pub force: bool,
}

/// New settings of a VHD; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetVhd {
    /// Name or UUID.
    pub vhd: String,
    /// The VM it belongs to, which is made if there is none of that name; `Some(None)`: none.
    pub vm: Option<Option<String>>,
    /// Owner of its socket; `Some(None)`: the daemon's own.
    pub socket_owner: Option<Option<SocketOwner>>,
    /// Permission bits of its socket.
    pub socket_mode: Option<u32>,
    /// What becomes of a write that finds no room.
    pub when_full: Option<WhenFull>,
    /// Whether it grows onto other disks; `Some(None)`: as the pool says.
    pub expand: Option<Option<Expand>>,
    /// What it is limited to.
    pub limits: IoLimitsChange,
    /// What it asks of disks that others want, too.
    pub sharing: SharingChange,
    /// Virtqueues; refused while a frontend is attached.
    pub queues: Option<u16>,
    /// Its quota and reservation.
    pub capacity: SetCapacity,
}

/// A step of taking a disk out of the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemovalStep {
    /// Nothing is put there from now on; refused unless it is empty.
    Hold,
    /// It is taken out.
    Take,
    /// It is used again.
    Release,
}

/// A disk to add. It has been labelled as a member of this pool with the identifier of the record, which must be
/// [`PoolInfo::next_disk`] of the pool as [`Command::ShowPool`] gave it.
#[derive(Debug)]
pub struct AddDisk {
    /// What the store will say about it.
    pub record: DiskRecord,
    /// Shared state of the open disk.
    pub state: Arc<DiskState>,
}

/// New settings of a disk; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetDisk {
    /// Name or UUID.
    pub disk: String,
    /// Which VHDs may be put there from now on. VHDs that are there stay.
    pub accept: Option<Accept>,
    /// What fails together with it.
    pub failure_domain: Option<String>,
}

/// A successful answer.
#[derive(Clone, Debug)]
pub enum Reply {
    /// One VHD, as it is now.
    Vhd {
        /// What the command did.
        outcome: Outcome,
        /// The VHD.
        vhd: Box<VhdInfo>,
    },
    /// The VHD is gone.
    Deleted {
        /// Its identifier.
        id: VhdId,
        /// Its name.
        name: String,
    },
    /// VHDs, by name.
    Vhds(Vec<VhdInfo>),
    /// One VM, as it is now.
    Vm {
        /// What the command did.
        outcome: Outcome,
        /// The VM.
        vm: Box<VmInfo>,
    },
    /// VMs, by name.
    Vms(Vec<VmInfo>),
    /// The VM is gone.
    VmDeleted {
        /// Its name.
        name: String,
    },
    /// What is wanted of the policy is durable.
    PolicyKept,
    /// The pool.
    Pool(Box<PoolInfo>),
    /// One disk, as it is now.
    Disk {
        /// What the command did.
        outcome: Outcome,
        /// The disk.
        disk: Box<DiskInfo>,
    },
    /// The disk has left the pool.
    DiskRemoved {
        /// Its identifier.
        id: DiskId,
        /// Its name.
        name: String,
    },
    /// One job, as it is now.
    Job {
        /// What the command did.
        outcome: Outcome,
        /// The job.
        job: Box<JobInfo>,
    },
    /// Jobs, in the order in which they were created.
    Jobs(Vec<JobInfo>),
    /// What a job would move. Without anything to move no job was created.
    Plan(Box<PlanInfo>),
    /// What the check found.
    Check(Box<CheckReport>),
}

/// What a command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It made something new.
    Created,
    /// It changed something.
    Changed,
    /// All was so already (or it was only a question).
    Unchanged,
}

/// A VHD as it is now.
#[derive(Clone)]
pub struct VhdInfo {
    /// What the store says.
    pub record: VhdRecord,
    /// Shared state: metrics, and the map for whoever wants to see each extent. The bytes written are
    /// `state.map.present_blocks()` blocks; counting them reads all of the map, so that is left to the caller's thread.
    pub state: Arc<VhdState>,
    /// Process that has it attached (0 if the process is not known).
    pub attached: Option<u32>,
    /// Whether it is served: false while room for a thick VHD is still being given.
    pub ready: bool,
    /// Slots in use per disk.
    pub slots: BTreeMap<DiskId, u32>,
    /// Bytes of those slots.
    pub allocated: u64,
    /// What it asks of disks that others want, with what its VM says.
    pub sharing: Settled,
    /// How much of its quota and reservation is used.
    pub capacity: CapacityUse,
    /// Whether it grows onto other disks when its own have no room for a write.
    pub growth: Growth,
}

impl std::fmt::Debug for VhdInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VhdInfo")
            .field("record", &self.record)
            .field("attached", &self.attached)
            .field("ready", &self.ready)
            .field("slots", &self.slots)
            .finish_non_exhaustive()
    }
}

/// How much room there is and what became of it, in bytes. `allocated + reserved + reclaiming + free == capacity`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Space {
    /// All slots; without the empty ones of disks that have failed.
    pub capacity: u64,
    /// Slots that hold an extent.
    pub allocated: u64,
    /// Slots promised: to thick VHDs that are being made, and to reservations for what they do not use yet.
    pub reserved: u64,
    /// Slots given back that may not be used again yet.
    pub reclaiming: u64,
    /// Slots that can be given out now.
    pub free: u64,
    /// Sizes of the VHDs: all of them for the pool, their shares for a disk. May exceed the capacity.
    pub provisioned: u64,
}

/// Steps of a move, in their order.
pub const MOVE_STEPS: [&str; 5] = ["draining", "copying", "sealing", "syncing", "committing"];

/// The pool as it is now.
#[derive(Clone, Debug)]
pub struct PoolInfo {
    /// What the store says.
    pub record: PoolRecord,
    /// Its room.
    pub space: Space,
    /// Its disks, by identifier.
    pub disks: Vec<DiskInfo>,
    /// The identifier for one more disk; `None` if the pool has all it can have.
    pub next_disk: Option<DiskId>,
    /// Number of VHDs.
    pub vhds: u32,
    /// Requests that wait for room.
    pub waiting: u32,
    /// Bytes used in the metadata region, once the committer has told.
    pub metadata_used: u64,
    /// Bytes of the metadata region.
    pub metadata_size: u64,
    /// Whether the metadata region is so full that no extent can be placed.
    pub metadata_low: bool,
    /// Extents being moved, by [`MOVE_STEPS`].
    pub moves: [u64; MOVE_STEPS.len()],
    /// Moves that ended before they were durable since the daemon started, by the step they were at.
    pub moves_ended_early: [u64; MOVE_STEPS.len()],
    /// Replicas made stale since the daemon started, because they missed a write or may have.
    pub made_stale: u64,
    /// Replicas made equal to another one where they are since then, and those for which that failed.
    pub repaired: u64,
    /// See `repaired`.
    pub not_repaired: u64,
}

/// A host disk as it is now.
#[derive(Clone, Debug)]
pub struct DiskInfo {
    /// What the store says.
    pub record: DiskRecord,
    /// Shared state.
    pub state: Arc<DiskState>,
    /// Its room.
    pub space: Space,
    /// VHDs whose layout has this disk or that have extents on it, by name.
    pub vhds: Vec<String>,
    /// Errors it gave since the daemon started.
    pub errors: u64,
    /// Why it is suspect, for people.
    pub suspicion: Option<String>,
    /// Other disks with the same failure domain, by name.
    pub shares_domain_with: Vec<String>,
}
