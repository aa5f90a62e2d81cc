//! Jobs: what to move, and how far that is.

use crate::base::ids::JobId;
use crate::mover::messages::Speed;
use crate::placement::job::JobRecord;
use crate::placement::record::{Accept, Layout};

/// What to move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JobRequest {
    /// A VHD onto more disks.
    Span {
        /// Which.
        vhd: String,
        /// All the disks it shall be on; `None`: chosen by width.
        disks: Option<Vec<String>>,
        /// How many disks; `None`: all that accept spanned VHDs.
        width: Option<u32>,
    },
    /// A VHD onto fewer disks.
    Unspan {
        /// Which.
        vhd: String,
        /// The one disk it shall be on; `None`: chosen by width.
        disk: Option<String>,
        /// How many of its disks; `None`: one.
        width: Option<u32>,
    },
    /// An isolated VHD to another disk.
    Migrate {
        /// Which.
        vhd: String,
        /// The disk; `None`: the roomiest other one.
        disk: Option<String>,
    },
    /// A VHD to where its layout wants it.
    Settle {
        /// Which.
        vhd: String,
    },
    /// More or fewer replicas of a VHD.
    Replicas {
        /// Which.
        vhd: String,
        /// How many replicas of each extent.
        replicas: u8,
    },
    /// Everything away from a disk, which accepts nothing from now on.
    Evacuate {
        /// Which.
        disk: String,
        /// Give up what only failed disks have.
        accept_loss: bool,
    },
    /// Everything away from a disk, and all that may be put there, to another one, which takes its place.
    Replace {
        /// Which.
        disk: String,
        /// The other one.
        by: Replacement,
        /// Give up what only failed disks have.
        accept_loss: bool,
        /// The disk stays in the pool, empty.
        keep: bool,
    },
    /// Spanned VHDs in proportion over the disks that they may be on.
    Rebalance,
    /// The replicas that a failed disk had, onto others.
    Rebuild {
        /// Which.
        disk: String,
    },
    /// What replicas on a disk have missed, into them.
    Resync {
        /// Which.
        disk: String,
    },
    /// All replicas of a VHD, to be read and repaired.
    Scrub {
        /// Which.
        vhd: String,
    },
}

/// A disk that takes the place of another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Replacement {
    /// A disk of the pool.
    Disk {
        /// Name or UUID.
        name: String,
    },
    /// One that is not in the pool yet: it can only be said what would be moved.
    Joining(JoiningDisk),
}

/// A disk as it would join the pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoiningDisk {
    /// Its name.
    pub name: String,
    /// Its room.
    pub slots: u32,
    /// Which VHDs it would accept.
    pub accept: Accept,
    /// What would fail together with it.
    pub failure_domain: String,
}

/// A job to create.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartJob {
    /// What to move.
    pub request: JobRequest,
    /// Only say what would be moved.
    pub dry_run: bool,
    /// How fast.
    pub speed: Speed,
    /// Seconds since the Unix epoch.
    pub created: u64,
}

impl StartJob {
    /// A job that nobody has asked for in so many words.
    pub(in crate::owner) fn by_itself(created: u64) -> StartJob {
        let request = JobRequest::Rebalance;
        StartJob { request, dry_run: false, speed: Speed::default(), created }
    }
}

/// New settings of a job; `None` leaves one as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetJob {
    /// Which.
    pub job: JobId,
    /// Whether it is paused. A job that has stopped is resumed with `false`.
    pub paused: Option<bool>,
    /// Bytes per second at most; `Some(None)`: no limit of its own.
    pub max_rate: Option<Option<u64>>,
    /// Whether it goes on at full speed whatever guests feel of it.
    pub urgent: Option<bool>,
}

/// What a job would move.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PlanInfo {
    /// Per VHD, in the order in which they would be worked on.
    pub vhds: Vec<PlannedVhd>,
}

/// What would be moved of one VHD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PlannedVhd {
    /// Its name.
    pub vhd: String,
    /// Its new layout.
    pub layout: Layout,
    /// Extents that would be copied, and their bytes.
    pub extents: u64,
    /// Bytes of slots that would be copied at most: absent blocks are not.
    pub bytes: u64,
    /// Its disks before and after.
    pub disks: Vec<DiskShare>,
    /// What only failed disks have.
    pub lost: LostData,
}

/// Written data of one VHD that only failed disks have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LostData {
    /// Bytes of blocks that have been written.
    pub bytes: u64,
    /// Where they are in the VHD, in bytes, in order: the first ones, if there are many.
    pub ranges: Vec<std::ops::Range<u64>>,
}

/// Extents of a VHD on one disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskShare {
    /// Name of the disk.
    pub disk: String,
    /// Before the job.
    pub before: u64,
    /// After it.
    pub after: u64,
}

/// A job as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobInfo {
    /// What the store says; `bytes_moved` is up to date.
    pub record: JobRecord,
    /// Names of its VHDs that exist.
    pub vhds: Vec<String>,
    /// How many of them are where they should be.
    pub vhds_done: usize,
    /// The disk that it empties.
    pub disk: Option<String>,
    /// The disk that takes its place.
    pub replacement: Option<String>,
    /// Bytes that the current VHD's plan has left.
    pub bytes_left: u64,
    /// Bytes per second lately.
    pub rate: u64,
    /// Guest requests that waited for a block being copied.
    pub waits: u64,
    /// It waits for another job that uses the same disks, or for room.
    pub waiting: bool,
    /// Extents that could not be read.
    pub unreadable: u64,
}
