//! VMs.

use std::collections::BTreeSet;

use super::{io_limits, limits_change, limits_info, sharing_change, sharing_info, sharing_record};
use crate::control::wire::{VhdHealth, VhdInfo, VmCreate, VmInfo, VmIo, VmIoStats, VmUpdate, VmVhd};
use crate::metrics::{IoKind, Totals};
use crate::owner::command::{self, CreateVm, SetCapacity, SetVm};
use crate::placement::capacity::Capacity;

/// The command for a new VM. The time of creation is an argument.
#[must_use]
pub fn create_vm(request: VmCreate, created: u64) -> CreateVm {
    let limits = io_limits(request.limits);
    let sharing = sharing_record(request.sharing);
    let capacity = Capacity { quota: request.quota_bytes, reservation: request.reservation_bytes };
    CreateVm { name: request.name, created, labels: request.labels, owner: request.owner, limits, sharing, capacity }
}

/// The command for new settings of `vm`.
#[must_use]
pub fn set_vm(vm: String, update: VmUpdate) -> SetVm {
    let limits = limits_change(update.limits);
    let sharing = sharing_change(update.sharing);
    let capacity = SetCapacity { quota: update.quota_bytes, reservation: update.reservation_bytes };
    SetVm { vm, name: update.name, labels: update.labels, owner: update.owner, limits, sharing, capacity }
}

/// A VM as the API shows it; `vhds` are its VHDs as the API shows them.
#[must_use]
pub fn vm_info(vm: &command::VmInfo, vhds: &[VhdInfo]) -> VmInfo {
    let record = &vm.record;
    let sum = |field: fn(&VhdInfo) -> u64| vhds.iter().map(field).sum();
    let on = |vhd: &VhdInfo| {
        let placed: Vec<String> = vhd.placement.iter().map(|part| part.disk.clone()).collect();
        vhd.disks.iter().cloned().chain(placed).collect::<Vec<_>>()
    };
    let disks: BTreeSet<String> = vhds.iter().flat_map(on).collect();
    let io = |kind| {
        vm.vhds.iter().map(|vhd| Totals::of(&vhd.state.metrics, kind)).fold(VmIoStats::default(), |sum, of| VmIoStats {
            requests: sum.requests + of.requests,
            bytes: sum.bytes + of.bytes,
            errors: sum.errors + of.errors,
        })
    };
    VmInfo {
        name: record.name.clone(),
        uuid: record.uuid,
        labels: record.labels.clone(),
        owner: record.owner.clone(),
        limits: limits_info(record.limits),
        sharing: sharing_info(record.sharing),
        health: vhds.iter().map(|vhd| vhd.health).max().unwrap_or(VhdHealth::Healthy),
        attached: sum(|vhd| u64::from(vhd.attached.is_some())),
        size_bytes: sum(|vhd| vhd.size_bytes),
        allocated_bytes: sum(|vhd| vhd.allocated_bytes),
        written_bytes: sum(|vhd| vhd.written_bytes),
        capacity: super::vhd::capacity_info(record.capacity, vm.capacity),
        degraded_extents: sum(|vhd| vhd.degraded_extents),
        vhds: vhds.iter().map(vm_vhd).collect(),
        disks: disks.into_iter().collect(),
        io: VmIo {
            read: io(IoKind::Read),
            write: io(IoKind::Write),
            flush: io(IoKind::Flush),
            discard: io(IoKind::Discard),
            write_zeroes: io(IoKind::WriteZeroes),
        },
        created_secs: record.created,
    }
}

fn vm_vhd(vhd: &VhdInfo) -> VmVhd {
    VmVhd {
        name: vhd.name.clone(),
        size_bytes: vhd.size_bytes,
        allocated_bytes: vhd.allocated_bytes,
        written_bytes: vhd.written_bytes,
        health: vhd.health,
        problem: vhd.problem.clone(),
        attached: vhd.attached.clone(),
    }
}
