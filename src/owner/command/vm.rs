//! VMs: named groups of VHDs.

use std::collections::BTreeMap;

use super::{CapacityUse, SetCapacity, VhdInfo};
use crate::placement::capacity::Capacity;
use crate::placement::limits::{IoLimits, IoLimitsChange};
use crate::placement::sharing::{Sharing, SharingChange};
use crate::placement::vm::VmRecord;

/// What a new VM should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CreateVm {
    /// Its name.
    pub name: String,
    /// When it is created, if it is new, in seconds since the Unix epoch.
    pub created: u64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whose it is.
    pub owner: Option<String>,
    /// What its VHDs together are limited to.
    pub limits: IoLimits,
    /// What each of its VHDs asks of disks that others want, too, if it says nothing itself.
    pub sharing: Sharing,
    /// Quota and reservation of its VHDs together; rounded up to whole extents.
    pub capacity: Capacity,
}

/// New settings of a VM; `None` leaves one as it is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SetVm {
    /// Name or UUID.
    pub vm: String,
    /// Its name. Its VHDs go with it.
    pub name: Option<String>,
    /// Labels that are added or get another value; `None`: those that it loses. Others stay.
    pub labels: BTreeMap<String, Option<String>>,
    /// Whose it is; `Some(None)`: not said.
    pub owner: Option<Option<String>>,
    /// What its VHDs together are limited to.
    pub limits: IoLimitsChange,
    /// See [`CreateVm::sharing`].
    pub sharing: SharingChange,
    /// Quota and reservation of its VHDs together.
    pub capacity: SetCapacity,
}

/// A VM as it is now.
#[derive(Clone, Debug)]
pub struct VmInfo {
    /// What the store says.
    pub record: VmRecord,
    /// Its VHDs, by name.
    pub vhds: Vec<VhdInfo>,
    /// How much of its quota and reservation is used.
    pub capacity: CapacityUse,
}
