//! The pool as a whole.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::disk::DiskInfo;
use super::vhd::{Expand, given};

/// The pool: identity, disks, space, placement store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PoolInfo {
    /// UUID, in the label of every disk.
    pub uuid: Uuid,
    /// Unit of placement, in bytes.
    pub extent_bytes: u64,
    /// Unit of "has this been written", in bytes.
    pub block_bytes: u64,
    /// Its disks, in the order of the pool's disk table.
    pub disks: Vec<DiskInfo>,
    /// Room.
    pub space: SpaceInfo,
    /// Where the placement table is kept, and how full it is.
    pub store: StoreInfo,
    /// VHDs in the pool.
    pub vhds: u32,
    /// Requests that wait for room.
    pub requests_waiting: u32,
    /// Whether VHDs that do not say grow onto other disks when their own have no room; absent: spanned ones do, and
    /// isolated ones that the policy may change (mode `auto`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expand: Option<Expand>,
    /// Disks that can fail together.
    pub shared_failure_domains: Vec<DomainWarning>,
    /// What an administrator should look at, for people; empty when all is well.
    pub warnings: Vec<String>,
}

/// Changes settings of the pool. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PoolUpdate {
    /// Whether VHDs that do not say grow onto other disks when their own have no room; `null`: spanned ones do, and
    /// isolated ones that the policy may change (mode `auto`).
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Expand>)]
    pub expand: Option<Option<Expand>>,
}

/// Room in the pool. All numbers count data slots, not metadata.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct SpaceInfo {
    /// Room on all disks together.
    pub total_bytes: u64,
    /// Room taken by extents, whole extents counted.
    pub allocated_bytes: u64,
    /// Room promised: to thick VHDs that are being made, and to reservations for what they do not use yet.
    pub reserved_bytes: u64,
    /// Room that can be allocated now.
    pub free_bytes: u64,
    /// Room given up by VHDs and not allocatable yet: its release is being made durable and its backing punched.
    pub freeing_bytes: u64,
    /// Sizes of all VHDs together.
    pub provisioned_bytes: u64,
    /// Blocks that guests have written, whole blocks counted.
    pub written_bytes: u64,
    /// `provisioned_bytes / total_bytes`; above 1 the pool is overcommitted.
    pub overcommit_ratio: f64,
    /// `allocated_bytes / total_bytes`, in percent.
    pub used_percent: f64,
}

/// The placement store.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreInfo {
    /// Raised at every opening of the pool.
    pub epoch: u64,
    /// Last durable commit of the epoch.
    pub commit: u64,
    /// Bytes in use of a region, as the fullest member has it.
    pub used_bytes: u64,
    /// Size of the smallest region.
    pub region_bytes: u64,
    /// Whether a region is so full that no extent can be placed.
    pub low: bool,
    /// Whether no majority of the regions works: nothing is committed until the daemon is restarted.
    pub failed: bool,
    /// Regions that carry it.
    pub members: Vec<StoreMember>,
}

/// One region that carries the placement store.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreMember {
    /// Name of the disk it is on.
    pub disk: String,
    /// Whether it takes part in commits.
    pub health: MemberHealth,
    /// Size of the region.
    pub region_bytes: u64,
    /// Why it takes part no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Whether a region takes part in commits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum MemberHealth {
    /// Has every commit.
    InSync,
    /// Was dropped: failed, hung, or too slow.
    Failed,
}

/// Disks in one failure domain: no two replicas of an extent are put on them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DomainWarning {
    /// The failure domain.
    pub failure_domain: String,
    /// Names of the disks in it.
    pub disks: Vec<String>,
}
