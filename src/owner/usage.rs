//! Reports when a disk, or the pool, fills up: once per crossing of a threshold.

use super::outbox::{Event, OwnerOutbox};
use super::space::{DiskSpace, Space};
use crate::base::ids::DiskId;
use crate::base::limits::{DISKS_MAX, FILL_HYSTERESIS, FILL_THRESHOLDS};
use crate::base::units::Geometry;

/// Which thresholds a subject is above of.
type Above = [bool; FILL_THRESHOLDS.len()];

/// What has been reported.
#[derive(Debug)]
pub(super) struct Usage {
    geometry: Geometry,
    pool: Above,
    disks: [Above; DISKS_MAX],
}

fn taken(disk: &DiskSpace) -> u64 {
    u64::from(disk.slots().used()) + u64::from(disk.promised())
}

impl Usage {
    pub fn new(geometry: Geometry) -> Usage {
        Usage { geometry, pool: Above::default(), disks: [Above::default(); DISKS_MAX] }
    }

    /// Slots of the disk were taken or given back.
    pub fn update(&mut self, space: &Space, disk: DiskId, out: &mut impl OwnerOutbox) {
        let geometry = self.geometry;
        let of_disk = space.disk(disk);
        let name = || Some(of_disk.state.name.clone());
        let slots = u64::from(of_disk.capacity());
        compare(&mut self.disks[disk.index()], geometry, taken(of_disk), slots, name, out);
        let (used, slots) = space.iter().fold((0, 0), |sum, d| (sum.0 + taken(d), sum.1 + u64::from(d.capacity())));
        compare(&mut self.pool, geometry, used, slots, || None, out);
    }
}

fn compare(
    above: &mut Above,
    geometry: Geometry,
    used: u64,
    slots: u64,
    name: impl Fn() -> Option<String>,
    out: &mut impl OwnerOutbox,
) {
    for (above, percent) in above.iter_mut().zip(FILL_THRESHOLDS) {
        let exceeds = |percent: u32| used * 100 > slots * u64::from(percent);
        let now = if *above { exceeds(percent - FILL_HYSTERESIS) } else { exceeds(percent) };
        if now != *above {
            *above = now;
            let (allocated, capacity) = (used * geometry.extent_size(), slots * geometry.extent_size());
            out.event(Event::Fill { disk: name(), percent, above: now, allocated, capacity });
        }
    }
}
