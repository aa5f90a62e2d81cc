//! Answers to questions.

use super::Owner;
use super::command::{DiskInfo, Outcome, PoolInfo, Reply, Space, VhdInfo};
use super::space::DiskSpace;
use super::vhds::Vhd;
use crate::base::ids::DiskId;
use crate::base::units::{ExtentIndex, SlotIndex};
use crate::placement::allocator::SlotState;
use crate::placement::check::{CheckReport, Checker, TableExtent, Violation};
use crate::placement::holds::Holder;

impl Owner {
    pub(super) fn vhd_info(&self, vhd: &Vhd) -> VhdInfo {
        VhdInfo {
            record: vhd.record.clone(),
            state: std::sync::Arc::clone(&vhd.state),
            attached: vhd.attached,
            ready: vhd.ready,
            slots: vhd.slots(),
            allocated: vhd.slots_used() * self.geometry.extent_size(),
            sharing: self.sharing_of(&vhd.record),
            capacity: self.capacity_use(Holder::Vhd(vhd.record.id), self.charged(vhd)),
            growth: self.growth_of(vhd),
        }
    }

    /// The pool and all VHDs, by name, as they are now.
    #[must_use]
    pub fn overview(&self) -> (PoolInfo, Vec<VhdInfo>) {
        (self.pool_info(), self.vhds.by_name().map(|vhd| self.vhd_info(vhd)).collect())
    }

    pub(super) fn disk_reply(&self, disk: DiskId, outcome: Outcome) -> Reply {
        Reply::Disk { outcome, disk: Box::new(self.disk_info(self.space.disk(disk))) }
    }

    fn disk_info(&self, disk: &DiskSpace) -> DiskInfo {
        let id = disk.state.id;
        let record = self.pool.disk(id).expect("the disk is in the pool");
        let here = |vhd: &&Vhd| vhd.record.layout.disks().contains(id) || vhd.counts[id.index()] > 0;
        let shares = |other: &&crate::placement::record::DiskRecord| {
            other.id != id && other.failure_domain == record.failure_domain
        };
        DiskInfo {
            record: record.clone(),
            state: std::sync::Arc::clone(&disk.state),
            space: self.disk_space(disk),
            vhds: self.vhds.by_name().filter(here).map(|vhd| vhd.record.name.clone()).collect(),
            errors: disk.errors,
            suspicion: disk.watch.suspicion().filter(|_| !disk.state.is_failed()),
            shares_domain_with: self.pool.disks.iter().filter(shares).map(|other| other.name.clone()).collect(),
        }
    }

    fn disk_space(&self, disk: &DiskSpace) -> Space {
        let bytes = |slots: u32| u64::from(slots) * self.geometry.extent_size();
        let slots = disk.slots();
        let provisioned: u64 = self.vhds.iter().map(|vhd| vhd.share(disk.state.id, &self.space)).sum();
        Space {
            capacity: bytes(disk.capacity()),
            allocated: bytes(slots.used()),
            reserved: bytes(disk.promised()),
            reclaiming: bytes(slots.limbo()),
            free: if disk.state.is_failed() { 0 } else { bytes(slots.free() - disk.promised()) },
            provisioned: provisioned * self.geometry.extent_size(),
        }
    }

    pub(super) fn pool_info(&self) -> PoolInfo {
        let disks: Vec<DiskInfo> = self.space.iter().map(|disk| self.disk_info(disk)).collect();
        let sum = |part: fn(&Space) -> u64| disks.iter().map(|disk| part(&disk.space)).sum();
        let space = Space {
            capacity: sum(|s| s.capacity),
            allocated: sum(|s| s.allocated),
            reserved: sum(|s| s.reserved),
            reclaiming: sum(|s| s.reclaiming),
            free: sum(|s| s.free),
            provisioned: self.vhds.iter().map(|vhd| vhd.record.size * u64::from(vhd.record.replicas)).sum(),
        };
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        PoolInfo {
            record: self.pool.clone(),
            space,
            disks,
            next_disk: self.next_disk_id(),
            vhds: count(self.vhds.len()),
            waiting: count(self.waiters.len()),
            metadata_used: self.metadata.used,
            metadata_size: self.metadata.size,
            metadata_low: self.metadata.low,
            moves: self.waves.by_step(),
            moves_ended_early: self.waves.ended_early,
            made_stale: self.stale.made,
            repaired: self.repairs.made,
            not_repaired: self.repairs.failed,
        }
    }

    /// Proves that the live table is consistent and that the allocators agree with it. Takes about 1 s for 10 million
    /// extents; allocations wait meanwhile, other I/O does not.
    #[must_use]
    pub fn check(&self) -> CheckReport {
        let extents = || {
            self.vhds.iter().flat_map(|vhd| {
                vhd.state.map.placed_from(ExtentIndex(0)).map(|extent| {
                    let found = vhd.state.map.lookup(extent);
                    TableExtent { vhd: vhd.record.id, extent, replicas: found.replicas, present: found.present }
                })
            })
        };
        let checker = Checker::new(&self.pool, self.vhds.iter().map(|vhd| &vhd.record));
        let mut checker = checker.with_vms(&self.vm_records());
        extents().for_each(|extent| checker.add(&extent));
        if checker.wants_owners() {
            extents().for_each(|extent| checker.add_owners(&extent));
        }
        for disk in self.space.iter() {
            check_allocator(disk, &mut checker);
        }
        checker.finish()
    }
}

/// Whether the allocator has in use just what the table has.
fn check_allocator(disk: &DiskSpace, checker: &mut Checker<'_>) {
    for slot in (0..disk.slots().slots()).map(SlotIndex) {
        let state = disk.slots().state(slot);
        let owned = checker.is_owned(disk.state.id, slot);
        if owned != (state == SlotState::Used) {
            checker.violation(Violation::AllocatorDisagrees {
                disk: disk.state.name.clone(),
                slot: slot.0,
                allocator: match state {
                    SlotState::Free => "free",
                    SlotState::Used => "used",
                    SlotState::Limbo => "being reclaimed",
                },
                table: if owned { "used" } else { "free" },
            });
        }
    }
}
