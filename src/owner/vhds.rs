//! The VHDs that exist.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::space::{Ideal, Space};
use super::sums::{Sum, Sums};
use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::limits::DISKS_MAX;
use crate::base::units::{ExtentIndex, Geometry};
use crate::placement::record::{Layout, VhdRecord};
use crate::placement::view::{Keep, VhdMap};
use crate::placement::{Replica, ReplicaSet};
use crate::qos::Admission;
use crate::shared::VhdState;
use crate::shared::last_active::LastActive;
use crate::shared::vhd::VhdSettings;

/// Slots per disk.
pub(super) type PerDisk = crate::placement::holds::Slots;

/// Shared state for a VHD with all extents absent: for the owner when it creates one, for the daemon when it opens the pool.
/// `keep`: where its map is kept for the next daemon, should this one be killed.
#[must_use]
pub fn vhd_state(record: &VhdRecord, geometry: Geometry, reactors: u16, keep: Option<&Arc<dyn Keep>>) -> VhdState {
    let settings = VhdSettings {
        id: record.id,
        uuid: record.uuid,
        geometry,
        block_size: record.block_size,
        read_only: record.read_only,
        thick: record.thick,
        checksums: record.checksums,
    };
    let extents = record.extents(geometry);
    let map = match keep {
        Some(keep) => VhdMap::kept(extents, record.checksums, record.uuid, keep),
        None if record.checksums => VhdMap::checked(extents),
        None => VhdMap::new(extents),
    };
    let last_active = keep.map_or_else(LastActive::default, |keep| LastActive::kept(record.uuid, keep));
    VhdState::new(settings, record.size, map, reactors).with_last_active(last_active)
}

/// One VHD.
pub(super) struct Vhd {
    pub record: VhdRecord,
    pub state: Arc<VhdState>,
    /// The process that has it attached.
    pub attached: Option<u32>,
    /// Whether it may be served.
    pub ready: bool,
    /// Its rows, or some of them, are being deleted: no row of an extent may be written until that is durable.
    pub frozen: bool,
    /// Whether it has been reported that a write waits for room, or failed for want of it.
    pub told_waiting: bool,
    pub told_out_of_room: bool,
    /// Disks of which it has been reported that replicas there are not in sync.
    pub told_degraded: DiskSet,
    /// Slots in use per disk.
    pub counts: PerDisk,
    /// What its rates are limited by.
    pub admission: Option<Arc<Admission>>,
    /// Extents that have a place.
    pub placed: u32,
    /// Those of them that have a replica elsewhere than on the disks of the layout. Not kept up to date while a job moves the VHD.
    outside: u32,
    /// Whether a job moves it, or is to.
    pub in_job: bool,
    /// Slots of all disks of the layout.
    layout_slots: u64,
}

impl Vhd {
    pub fn new(record: VhdRecord, state: Arc<VhdState>, ready: bool, space: &Space) -> Vhd {
        let layout_slots = layout_slots(&record.layout, space);
        Vhd {
            record,
            state,
            attached: None,
            ready,
            frozen: false,
            told_waiting: false,
            told_out_of_room: false,
            told_degraded: DiskSet::default(),
            counts: Box::new([0; DISKS_MAX]),
            admission: None,
            placed: 0,
            outside: 0,
            in_job: false,
            layout_slots,
        }
    }

    /// Whether something of it is on the disk, or may be put there.
    pub fn is_on(&self, disk: DiskId) -> bool {
        self.record.layout.disks().contains(disk) || self.counts[disk.index()] > 0
    }

    /// Slots in use.
    pub fn slots_used(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(*count)).sum()
    }

    /// Slots that the VHD is due with such a record: of extents that have a place (of a thick one, of all) and the replicas that they
    /// should have. Neither copies that jobs make count, nor replicas on their way out, nor that some are missing.
    pub fn due(&self, record: &VhdRecord) -> u64 {
        let extents = if record.thick { record.extents(self.state.settings.geometry) } else { self.placed };
        u64::from(extents) * u64::from(record.replicas)
    }

    /// Slots that count against quotas: those it is due or, while it has more than that, those it has.
    pub fn charged(&self) -> u64 {
        self.due(&self.record).max(self.slots_used())
    }

    /// Slots of a reservation that the VHD uses with such a record: of extents that are on the disks of its layout. What it has grown
    /// onto elsewhere uses none; what a job is about to bring there does. Nor does an extent that is there in part: its reservation is for
    /// an extent on the layout, and slots elsewhere, once they are given back, are none.
    pub fn used(&self, record: &VhdRecord) -> u64 {
        let moves = record.layout != self.record.layout || record.replicas != self.record.replicas || self.in_job;
        if record.thick || moves {
            return self.due(record);
        }
        u64::from(self.placed.saturating_sub(self.outside)) * u64::from(record.replicas)
    }

    /// What it adds to the sums of its VM.
    pub fn sum(&self) -> Sum {
        let reserved = self.record.capacity.reservation.unwrap_or(0) / self.state.settings.geometry.extent_size();
        let charged = self.charged();
        Sum { charged, spoken_for: charged.max(reserved), claimed: self.used(&self.record).max(reserved) }
    }

    fn is_outside(&self, replicas: ReplicaSet) -> bool {
        let layout = self.record.layout.disks();
        !replicas.is_absent() && !replicas.iter().all(|replica| layout.contains(replica.disk))
    }

    /// An extent got a place.
    pub fn note_placed(&mut self, replicas: ReplicaSet) {
        self.placed += 1;
        self.outside += u32::from(self.is_outside(replicas));
    }

    /// An extent has no place any more.
    pub fn note_dropped(&mut self, replicas: ReplicaSet) {
        self.placed -= 1;
        self.outside = self.outside.saturating_sub(u32::from(self.is_outside(replicas)));
    }

    /// Counts the placed extents anew, after many have changed. Reads the map.
    pub fn recount(&mut self) {
        let (mut placed, mut outside) = (0, 0);
        for extent in self.state.map.placed_from(ExtentIndex(0)) {
            placed += 1;
            outside += u32::from(self.is_outside(self.state.map.lookup(extent).replicas));
        }
        (self.placed, self.outside) = (placed, outside);
    }

    /// Extents without a place. Reads the map.
    pub fn absent(&self) -> u64 {
        let map = &self.state.map;
        u64::from(map.extents()) - map.placed_from(ExtentIndex(0)).count() as u64
    }

    /// Slots of the disk that the VHD will need when it has been written all over: its share of the layout, by size.
    pub fn share(&self, disk: DiskId, space: &Space) -> u64 {
        if !self.record.layout.disks().contains(disk) {
            return 0;
        }
        // A disk has one replica of an extent at most.
        let extents = self.state.map.extents();
        self.position(extents, disk, space).div_ceil(self.layout_slots.max(1)).min(extents.into())
    }

    /// `extent` x replicas x slots of the disk; divided by the slots of the layout, its position among the replicas on that
    /// disk.
    fn position(&self, extent: u32, disk: DiskId, space: &Space) -> u64 {
        let slots = space.get(disk).map_or(0, |disk| u64::from(disk.slots().slots()));
        u64::from(extent) * u64::from(self.record.replicas) * slots
    }

    /// Where on `disk` the extent should be.
    pub fn ideal(&self, extent: ExtentIndex, disk: DiskId, space: &Space) -> Ideal {
        let extents = self.state.map.extents();
        let (position, len) = match self.share(disk, space) {
            // Not a disk of its layout.
            0 => (extent.0, extents),
            share => {
                let position = self.position(extent.0, disk, space) / self.layout_slots.max(1);
                let position = position.min(extent.0.into());
                let narrow = |n: u64| u32::try_from(n).expect("a share is at most all extents");
                (narrow(position), narrow(share))
            }
        };
        let before = (1..=self.record.layout.width()).map_while(|back| {
            let back = u32::try_from(back).expect("at most 64 disks");
            extent.0.checked_sub(back).map(ExtentIndex)
        });
        let after = before.filter_map(|before| self.state.map.lookup(before).replicas.on(disk)).next();
        Ideal { vhd: self.record.id, position, len, after: after.map(|replica| replica.slot) }
    }

    /// After a restart: takes the slots of all placed extents.
    ///
    /// # Errors
    /// The first extent whose slot does not exist or is taken already.
    pub fn adopt(&mut self, space: &mut Space) -> Result<(), (ExtentIndex, Replica)> {
        let state = Arc::clone(&self.state);
        let mut at_home = DiskSet::default();
        for extent in state.map.placed_from(ExtentIndex(0)) {
            let replicas = state.map.lookup(extent).replicas;
            self.note_placed(replicas);
            for replica in replicas.iter() {
                if !space.adopt(replica.disk, replica.slot) {
                    return Err((extent, replica));
                }
                self.counts[replica.disk.index()] += 1;
                if !at_home.contains(replica.disk) {
                    at_home.insert(replica.disk);
                    let ideal = self.ideal(extent, replica.disk, space);
                    space.adopt_home(replica.disk, replica.slot, &ideal);
                }
            }
        }
        Ok(())
    }

    /// Slots in use, per disk that has any.
    pub fn slots(&self) -> BTreeMap<DiskId, u32> {
        let used = self.counts.iter().enumerate().filter(|(_, count)| **count > 0);
        used.map(|(disk, count)| (DiskId(u8::try_from(disk).expect("at most 64 disks")), *count)).collect()
    }
}

fn layout_slots(layout: &Layout, space: &Space) -> u64 {
    layout.disks().iter().filter_map(|disk| space.get(disk)).map(|disk| u64::from(disk.slots().slots())).sum()
}

/// The VHDs, by identifier and by name.
#[derive(Default)]
pub(super) struct Vhds {
    vhds: BTreeMap<VhdId, Vhd>,
    names: BTreeMap<String, VhdId>,
    sums: Sums,
}

impl Vhds {
    pub fn insert(&mut self, vhd: Vhd) {
        let before = self.names.insert(vhd.record.name.clone(), vhd.record.id);
        assert!(before.is_none(), "names are unique");
        self.sums.touch(vhd.record.id);
        self.vhds.insert(vhd.record.id, vhd);
    }

    pub fn remove(&mut self, id: VhdId) -> Option<Vhd> {
        let vhd = self.vhds.remove(&id)?;
        self.names.remove(&vhd.record.name);
        self.sums.touch(id);
        Some(vhd)
    }

    /// The record of a VHD has changed, maybe its name or layout.
    pub fn replace_record(&mut self, record: VhdRecord, space: &Space) {
        let vhd = self.vhds.get_mut(&record.id).expect("commands follow one another");
        self.names.remove(&vhd.record.name);
        self.names.insert(record.name.clone(), record.id);
        vhd.layout_slots = layout_slots(&record.layout, space);
        let moves = vhd.record.layout.disks() != record.layout.disks();
        self.sums.touch(record.id);
        vhd.record = record;
        if moves {
            vhd.recount();
        }
    }

    pub fn get(&self, id: VhdId) -> Option<&Vhd> {
        self.vhds.get(&id)
    }

    pub fn get_mut(&mut self, id: VhdId) -> Option<&mut Vhd> {
        let vhd = self.vhds.get_mut(&id)?;
        if vhd.record.vm.is_some() {
            self.sums.touch(id);
        }
        Some(vhd)
    }

    /// What the VHDs of a VM come to. Looks at those that have changed since it was asked last.
    pub fn sum_of_vm(&mut self, vm: &str) -> Sum {
        let Vhds { vhds, sums, .. } = self;
        sums.of_vm(vm, |id| vhds.get(&id).and_then(|vhd| Some((vhd.record.vm.as_deref()?, vhd.sum()))))
    }

    pub fn id_of(&self, name: &str) -> Option<VhdId> {
        self.names.get(name).copied()
    }

    /// The VHD of that name, or of that UUID in text form.
    pub fn find(&self, name_or_uuid: &str) -> Option<&Vhd> {
        if let Some(id) = self.id_of(name_or_uuid) {
            return self.get(id);
        }
        let uuid = uuid::Uuid::try_parse(name_or_uuid).ok()?;
        self.vhds.values().find(|vhd| vhd.record.uuid == uuid)
    }

    /// By identifier.
    pub fn iter(&self) -> impl Iterator<Item = &Vhd> {
        self.vhds.values()
    }

    /// By name.
    pub fn by_name(&self) -> impl Iterator<Item = &Vhd> {
        self.names.values().filter_map(|id| self.vhds.get(id))
    }

    pub fn len(&self) -> usize {
        self.vhds.len()
    }
}
