//! VMs: named groups of VHDs.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::limits::{IoLimits, IoLimitsUpdate};
use super::sharing::{Sharing, SharingUpdate};
use super::vhd::{Attachment, CapacityInfo, VhdHealth, given};

/// Creates a VM. Creating one that exists with the same labels, owner and limits changes nothing and succeeds. A VHD that names a VM
/// that does not exist makes it, too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmCreate {
    /// Unique name: 1 to 64 letters, digits, '-', '_' or '.', starting with a letter or digit.
    pub name: String,
    /// What to find it by, at most 32. Keys: 1 to 64 letters, digits, '-', '_', '.' or '/', starting with a letter or digit. Values: 1 to 256
    /// bytes without control characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Whose it is, for people: 1 to 256 bytes without control characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What its VHDs together are limited to.
    #[serde(default, skip_serializing_if = "IoLimits::is_none")]
    pub limits: IoLimits,
    /// What each of its VHDs asks of host disks that says nothing itself. They do not share one part of a disk: each has its own.
    #[serde(default, skip_serializing_if = "Sharing::is_none")]
    pub sharing: Sharing,
    /// The most slots that its VHDs may take together, in bytes, rounded up to whole extents. No limit when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// Slots that its VHDs together can always take on their disks, in bytes, rounded up to whole extents. What they have reserved for
    /// themselves counts. Nothing when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation_bytes: Option<u64>,
}

/// Changes settings of a VM. What is absent stays as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct VmUpdate {
    /// Another name; its VHDs go with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Labels to add or to give another value; `null` removes one. Others stay.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Option<String>>,
    /// Whose it is; `null` for nobody's.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>)]
    pub owner: Option<Option<String>>,
    /// What its VHDs together are limited to.
    #[serde(default, skip_serializing_if = "IoLimitsUpdate::is_none")]
    pub limits: IoLimitsUpdate,
    /// What each of its VHDs asks of host disks that says nothing itself.
    #[serde(default, skip_serializing_if = "SharingUpdate::is_none")]
    pub sharing: SharingUpdate,
    /// The most slots that its VHDs may take together, in bytes, rounded up to whole extents; `null` for no limit. What is more already
    /// stays.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub quota_bytes: Option<Option<u64>>,
    /// Slots that its VHDs together can always take on their disks, in bytes, rounded up to whole extents; `null` for none.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>)]
    pub reservation_bytes: Option<Option<u64>>,
}

/// A VM: a named group of VHDs. Sums are over its VHDs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmInfo {
    /// Unique name.
    pub name: String,
    /// UUID.
    pub uuid: Uuid,
    /// What to find it by.
    pub labels: BTreeMap<String, String>,
    /// Whose it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// What its VHDs together are limited to; absent: nothing.
    #[serde(default, skip_serializing_if = "IoLimits::is_none")]
    pub limits: IoLimits,
    /// What each of its VHDs asks of host disks that says nothing itself; absent: nothing.
    #[serde(default, skip_serializing_if = "Sharing::is_none")]
    pub sharing: Sharing,
    /// Its VHDs, by name.
    pub vhds: Vec<VmVhd>,
    /// The worst of its VHDs; healthy if it has none.
    pub health: VhdHealth,
    /// VHDs that have a frontend.
    pub attached: u64,
    /// Sizes that the guest sees.
    pub size_bytes: u64,
    /// Room taken, whole extents counted.
    pub allocated_bytes: u64,
    /// Blocks written, whole blocks counted.
    pub written_bytes: u64,
    /// Quota and reservation of its VHDs together, and how much of them is used.
    #[serde(default)]
    pub capacity: CapacityInfo,
    /// Extents that have fewer readable replicas than they should.
    pub degraded_extents: u64,
    /// Names of the host disks that its VHDs have extents on, or may have.
    pub disks: Vec<String>,
    /// What guests have asked of its VHDs since the daemon started.
    pub io: VmIo,
    /// When it was created, seconds since 1970. Of a VM that was only a name of its VHDs before: when it was first served by a version that
    /// knows VMs.
    pub created_secs: u64,
}

/// A VHD of a VM, in short.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmVhd {
    /// Its name.
    pub name: String,
    /// Size the guest sees.
    pub size_bytes: u64,
    /// Room taken, whole extents counted.
    pub allocated_bytes: u64,
    /// Blocks written, whole blocks counted.
    pub written_bytes: u64,
    /// Whether all of it can be read and written.
    pub health: VhdHealth,
    /// What is wrong with it; absent if it is healthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// The frontend that is connected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attached: Option<Attachment>,
}

/// Requests of guests, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmIo {
    /// Reads.
    pub read: VmIoStats,
    /// Writes.
    pub write: VmIoStats,
    /// Flushes.
    pub flush: VmIoStats,
    /// Discards.
    pub discard: VmIoStats,
    /// Write-zeroes.
    pub write_zeroes: VmIoStats,
}

/// Requests of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmIoStats {
    /// Completed, failed ones included.
    pub requests: u64,
    /// Bytes of those that succeeded.
    pub bytes: u64,
    /// Failed.
    pub errors: u64,
}

/// All VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmList {
    /// Sorted by name.
    pub vms: Vec<VmInfo>,
}

/// A VM after a request that may have changed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmResult {
    /// Whether anything changed; false if it was as asked for already.
    pub changed: bool,
    /// The VM now.
    pub vm: VmInfo,
}

/// A VM that is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmDeleted {
    /// The name it had.
    pub name: String,
}
