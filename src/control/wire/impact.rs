//! What the loss of a host disk means: for extents, VHDs, VMs, and the placement store.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::disk::{DiskHealth, DiskInfo};

/// What the loss of disks means, or has meant if they are failed or missing already.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImpactInfo {
    /// Names of the disks that it is about.
    pub disks: Vec<String>,
    /// All disks of the pool that are failed or missing now. What only they and `disks` have is lost.
    pub gone: Vec<GoneDisk>,
    /// Sums over all VHDs.
    pub totals: ImpactTotals,
    /// What it means for the placement table.
    pub store: StoreImpact,
    /// VMs that have VHDs here, the worst first; VHDs of no VM come last, without a name.
    pub vms: Vec<VmImpact>,
    /// Affected VHDs that `vms` leaves out for brevity: only in events.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub vhds_left_out: u64,
    /// Why this may not be the whole truth, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caveat: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// A disk that cannot be read now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GoneDisk {
    /// Its name.
    pub disk: String,
    /// `failed` or `missing`.
    pub health: DiskHealth,
}

/// How bad it is for a VHD or a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Written data is lost: nobody else has a readable replica of it.
    Lost,
    /// No data is lost, but it has fewer replicas, or less room to write to.
    Degraded,
    /// Nothing changes.
    Untouched,
}

/// Sums, by what becomes of the data. A VHD or VM counts once, where it is hit worst.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImpactTotals {
    /// No readable replica is left.
    pub lost: ImpactSum,
    /// A readable replica is left.
    pub degraded: ImpactSum,
    /// As before.
    pub untouched: ImpactSum,
    /// What disks that are gone have taken already: not part of the others.
    pub lost_before: ExtentSum,
}

/// One sum.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ImpactSum {
    /// VHDs.
    pub vhds: u64,
    /// VMs.
    pub vms: u64,
    /// Extents.
    #[serde(flatten)]
    pub extents: ExtentSum,
}

/// Extents of one kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ExtentSum {
    /// Extents.
    pub extents: u64,
    /// Their size, whole extents counted, each once whatever its replicas.
    pub bytes: u64,
    /// Blocks written in them, whole blocks counted; absent for untouched ones, which are not looked into.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written_bytes: Option<u64>,
}

/// What becomes of the placement table.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct StoreImpact {
    /// Disks that carry it and take part now.
    pub members: u64,
    /// How many of those would be left.
    pub left: u64,
    /// How many it takes for a commit: a majority of all, here or not.
    pub needed: u64,
    /// Whether enough are left. If not, no flush of any guest succeeds.
    pub keeps_majority: bool,
}

/// What becomes of the VHDs of one VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VmImpact {
    /// Its name; absent for the VHDs that belong to none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<String>,
    /// The worst that happens to one of its VHDs.
    pub fate: Fate,
    /// Its VHDs, the worst first.
    pub vhds: Vec<VhdImpact>,
}

/// What becomes of one VHD.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct VhdImpact {
    /// Its name.
    pub name: String,
    /// The worst that happens to it.
    pub fate: Fate,
    /// Whether a frontend is attached.
    pub attached: bool,
    /// Extents of which no readable replica is left: reads and writes fail there.
    pub lost: ExtentSum,
    /// Extents with fewer replicas.
    pub degraded: ExtentSum,
    /// Extents that have nothing on the disks.
    pub untouched: ExtentSum,
    /// Extents that disks have taken which are gone already.
    pub lost_before: ExtentSum,
    /// Extents that were given room on the disks and never written: they go on reading as zeros, and writes fail there.
    pub empty_extents: u64,
    /// Whether extents that have no place yet could get none: no disk is left that the VHD may be on.
    pub no_room: bool,
}

/// Marks a disk as failed: nothing more is submitted to it until the pool is opened again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct DiskFail {
    /// Even if data can be read nowhere else.
    #[serde(default)]
    pub accept_loss: bool,
    /// Even if the placement store loses its majority, so that no flush succeeds any more.
    #[serde(default)]
    pub force: bool,
    /// Only say what it would mean.
    #[serde(default)]
    pub dry_run: bool,
}

/// What came of a request to mark a disk as failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskFailed {
    /// Whether anything changed; false if it had failed already, or it was only asked what it would mean.
    pub changed: bool,
    /// The disk now.
    pub disk: DiskInfo,
    /// What it means.
    pub impact: ImpactInfo,
}
