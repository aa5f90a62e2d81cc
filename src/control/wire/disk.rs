//! Host disks.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::job::{JobInfo, PlanInfo};

/// A host disk of the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskInfo {
    /// Its place in the pool's disk table.
    pub id: u8,
    /// Unique name.
    pub name: String,
    /// UUID, from its label.
    pub uuid: Uuid,
    /// Where it is now; absent for a missing disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Whether it can be used.
    pub health: DiskHealth,
    /// What new extents it takes.
    pub accept: Accept,
    /// What it can fail together with.
    pub failure_domain: String,
    /// Logical block size.
    pub block_bytes: u32,
    /// Size of its metadata region, 0 on a data-only disk.
    pub metadata_bytes: u64,
    /// Room for extents.
    pub total_bytes: u64,
    /// Room taken by extents.
    pub allocated_bytes: u64,
    /// Room that can be allocated now.
    pub free_bytes: u64,
    /// Why it is suspect.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspicion: Option<String>,
    /// Errors that it gave since the pool was opened, those that retries and other replicas have made good included.
    pub errors: u64,
    /// What was done on it for guests since then.
    pub io: DiskIo,
    /// Names of the VHDs that have extents on it or may get some.
    pub vhds: Vec<String>,
}

/// What guests' requests have done on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskIo {
    /// Reads.
    pub read: IoStats,
    /// Writes.
    pub write: IoStats,
    /// Syncs.
    pub sync: IoStats,
}

/// Operations of one kind on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct IoStats {
    /// Completed, failed ones included.
    pub operations: u64,
    /// Failed.
    pub errors: u64,
    /// Mean time from submission to completion, in microseconds.
    pub latency_us_mean: u64,
    /// 99 of 100 took at most this long, in microseconds, as far as the histogram tells: powers of two.
    pub latency_us_p99: u64,
    /// Took longer than 8 seconds.
    pub slow: u64,
}

/// Whether a disk can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskHealth {
    /// Works.
    Healthy,
    /// Works, but gave errors or took very long several times lately.
    Suspect,
    /// Failed a sync, or was given up; nothing is submitted to it until the pool is opened again.
    Failed,
    /// Not found among the paths given.
    Missing,
}

/// What new extents a disk takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Accept {
    /// Extents of any VHD.
    #[default]
    Any,
    /// Extents of isolated VHDs only.
    Isolated,
    /// Extents of spanned VHDs only.
    Spanned,
    /// None: what is there stays.
    None,
}

/// All disks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskList {
    /// In the order of the pool's disk table.
    pub disks: Vec<DiskInfo>,
}

/// Adds a disk to the pool: formats it and starts to use it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskAdd {
    /// Absolute path of a block device or regular file on the daemon's host.
    pub path: String,
    /// Unique name; by default from the by-id link or the file name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Creates the file with this size if it does not exist (sparse).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_bytes: Option<u64>,
    /// What it can fail together with; by default its parent device, or that of a file's filesystem.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_domain: Option<String>,
    /// What new extents it takes.
    #[serde(default)]
    pub accept: Accept,
    /// Overwrites a filesystem, partition table or label that is found on it.
    #[serde(default)]
    pub force: bool,
}

/// Changes a disk. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskUpdate {
    /// What new extents it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accept: Option<Accept>,
    /// What it can fail together with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure_domain: Option<String>,
}

/// A disk after a request that may have changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskResult {
    /// Whether anything changed; false if it was as asked for already.
    pub changed: bool,
    /// The disk now.
    pub disk: DiskInfo,
    /// What an administrator should know, for people.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// A disk that has left the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskRemoved {
    /// The name it had.
    pub name: String,
    /// The UUID it had.
    pub uuid: Uuid,
    /// Where it is; absent if it was missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// What an administrator should know, for people.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// Lets another disk take the place of one: all that is on it or may be put there goes to the other, and at the end it leaves
/// the pool.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskReplace {
    /// Name or UUID of the disk of the pool that takes its place; this or `add`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// A disk to add to the pool for that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub add: Option<DiskAdd>,
    /// Give up what only failed disks have: it reads as zeros then.
    #[serde(default)]
    pub accept_loss: bool,
    /// Leave the old disk in the pool, empty.
    #[serde(default)]
    pub keep: bool,
    /// Only say what would be moved and lost.
    #[serde(default)]
    pub dry_run: bool,
    /// Bytes per second at most; as fast as guests bear when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate_bytes: Option<u64>,
    /// Go as fast as the disks can, leaving guests little: for a disk that is dying.
    #[serde(default)]
    pub urgent: bool,
}

/// What came of a request to replace a disk.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskReplaced {
    /// Whether anything changed.
    pub changed: bool,
    /// The job that moves everything; when it is done, the old disk leaves the pool.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobInfo>,
    /// What is or would be moved and lost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<PlanInfo>,
    /// The disk that takes the place of the old one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<DiskInfo>,
    /// What an administrator should know, for people.
    #[serde(default)]
    pub warnings: Vec<String>,
}
