//! Jobs: long operations that move extents.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::vhd::{Layout, given};

/// What to move.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum JobWish {
    /// A VHD onto more disks.
    Span {
        /// Name or UUID of the VHD.
        vhd: String,
        /// All the disks it shall be on; chosen when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disks: Option<Vec<String>>,
        /// Over how many disks; all that accept spanned VHDs when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        width: Option<u8>,
    },
    /// A VHD onto fewer disks.
    Unspan {
        /// Name or UUID of the VHD.
        vhd: String,
        /// The one disk it shall be on; chosen when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<String>,
        /// Over how many of its disks; one when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        width: Option<u8>,
    },
    /// An isolated VHD to another disk.
    Migrate {
        /// Name or UUID of the VHD.
        vhd: String,
        /// The disk; the roomiest other one when absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<String>,
    },
    /// A VHD to where its layout wants it.
    Settle {
        /// Name or UUID of the VHD.
        vhd: String,
    },
    /// More or fewer replicas of a VHD: each extent then is on so many disks, no two of which fail together.
    Replicas {
        /// Name or UUID of the VHD.
        vhd: String,
        /// How many replicas of each extent: 1 to 3.
        replicas: u8,
    },
    /// Everything away from a disk, which accepts nothing from then on.
    Evacuate {
        /// Name or UUID of the disk.
        disk: String,
        /// Give up what only failed disks have: it reads as zeros then.
        #[serde(default)]
        accept_loss: bool,
    },
    /// Spanned VHDs in proportion over the disks that they may be on.
    Rebalance {},
    /// The replicas that a failed disk had, onto others. Begun by itself unless that is switched off.
    Rebuild {
        /// Name or UUID of the disk.
        disk: String,
    },
    /// What replicas on a disk have missed, into them. Begun by itself.
    Resync {
        /// Name or UUID of the disk.
        disk: String,
    },
    /// Reads all replicas of a VHD, compares them with the checksums of its blocks if it has any, and writes anew from a good replica
    /// what a disk has changed or cannot read.
    Scrub {
        /// Name or UUID of the VHD.
        vhd: String,
    },
}

/// Creates a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobCreate {
    /// What to move.
    pub wish: JobWish,
    /// Only say what would be moved.
    #[serde(default)]
    pub dry_run: bool,
    /// Bytes per second at most; as fast as guests bear when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate_bytes: Option<u64>,
    /// Go as fast as the disks can, leaving guests little: for a disk that is dying.
    #[serde(default)]
    pub urgent: bool,
}

/// Changes a job. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobUpdate {
    /// Pause it, or go on with it; one that has stopped goes on with `false`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub paused: Option<bool>,
    /// Bytes per second at most; `null`: as fast as guests bear.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub max_rate_bytes: Option<Option<u64>>,
    /// Go as fast as the disks can, leaving guests little.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub urgent: Option<bool>,
}

/// Ends a job. What it has moved stays where it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct JobCancel {
    /// Move everything back, with a job of its own.
    #[serde(default)]
    pub revert: bool,
}

/// How a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    /// It moves extents, or waits for its turn.
    Running,
    /// Somebody paused it.
    Paused,
    /// Something was in the way: see the reason. It can be resumed.
    Stopped,
    /// Everything is where it should be.
    Done,
    /// Somebody ended it.
    Cancelled,
}

/// A job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobInfo {
    /// Its number.
    pub id: u32,
    /// What it does: span, unspan, migrate, settle, replicas, evacuate, replace, rebalance, rebuild, resync, scrub.
    pub kind: String,
    /// How it is.
    pub state: JobState,
    /// Running, and nothing of it is on its way: it waits for another job that uses its disks, or for room.
    pub waiting: bool,
    /// Names of its VHDs, in the order in which they are worked on.
    pub vhds: Vec<String>,
    /// How many of them are where they should be.
    pub vhds_done: u64,
    /// The disk that it empties.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// The disk that takes its place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replacement: Option<String>,
    /// Bytes copied so far.
    pub moved_bytes: u64,
    /// Bytes that the plan for the VHD being worked on has left, at most.
    pub left_bytes: u64,
    /// Bytes per second lately.
    pub rate_bytes: u64,
    /// Seconds until that plan is carried out at that rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_secs: Option<u64>,
    /// Guest requests that waited for a block being copied.
    pub waits: u64,
    /// Extents that could not be read and stay where they are; of a scrub, those of which no replica is good.
    pub unreadable_extents: u64,
    /// What a scrub has found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrubbed: Option<Scrubbed>,
    /// Bytes per second at most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate_bytes: Option<u64>,
    /// Whether it goes as fast as the disks can, leaving guests little.
    pub urgent: bool,
    /// When it was created, seconds since 1970.
    pub created_secs: u64,
    /// When it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_secs: Option<u64>,
    /// Why it stopped; of a scrub that is done, what it could not repair.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What a scrub has found. Replicas are counted per extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Scrubbed {
    /// Replicas that were not what was written, or could not be read.
    pub damaged_replicas: u64,
    /// Those that have been written anew from a good one.
    pub repaired_replicas: u64,
}

/// Jobs, in the order in which they were created.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobList {
    /// The jobs.
    pub jobs: Vec<JobInfo>,
}

/// What a job would move.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlanInfo {
    /// Per VHD, in the order in which they would be worked on.
    pub vhds: Vec<PlannedVhd>,
    /// Bytes that would be copied at most: blocks that were never written are not.
    pub total_bytes: u64,
    /// Bytes of written data that are lost, because only failed disks have them.
    #[serde(default)]
    pub lost_bytes: u64,
}

/// What would be moved of one VHD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedVhd {
    /// Its name.
    pub vhd: String,
    /// Its layout afterwards.
    pub layout: Layout,
    /// Extents that would be copied.
    pub extents: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The disks it is or will be on.
    pub disks: Vec<PlannedDisk>,
    /// Bytes of written data that are lost, because only failed disks have them.
    #[serde(default)]
    pub lost_bytes: u64,
    /// Where they are in the VHD: the first ranges, if there are many.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_ranges: Vec<ByteRange>,
}

/// A part of a VHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ByteRange {
    /// Where it begins.
    pub offset_bytes: u64,
    /// How long it is.
    pub length_bytes: u64,
}

/// Extents of a VHD on one disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PlannedDisk {
    /// Name of the disk.
    pub disk: String,
    /// Extents there now.
    pub before: u64,
    /// Extents there afterwards.
    pub after: u64,
}

/// What came of a request about a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct JobResult {
    /// Whether anything changed.
    pub changed: bool,
    /// The job; absent when there is none: it was only asked what would be moved, or nothing would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobInfo>,
    /// What would be moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanInfo>,
}
