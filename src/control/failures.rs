//! What the loss of disks means, for the events that tell of it.

use super::convert::Gone;
use super::convert::impact::{Scene, Votes, brief, of_vhds};
use super::events::EventLog;
use super::wire::{EventDetail, ImpactInfo, Severity};
use crate::base::ids::{DiskId, DiskSet};
use crate::owner::Owner;
use crate::owner::command::{PoolInfo, VhdInfo};
use crate::store::thread::StoreStatus;

/// The pool at one moment. The maps of its VHDs are read when it is asked about.
pub struct Snapshot {
    pool: PoolInfo,
    vhds: Vec<VhdInfo>,
    gone: Gone,
    votes: Votes,
}

impl Snapshot {
    /// The pool now. `is_here`: whether a disk was found when the pool was opened.
    pub fn of(owner: &Owner, is_here: impl Fn(DiskId) -> bool, store: &StoreStatus) -> Snapshot {
        let (pool, vhds) = owner.overview();
        let failed = pool.disks.iter().filter(|disk| disk.state.is_failed()).map(|disk| disk.record.id);
        let (here, absent): (Vec<DiskId>, Vec<DiskId>) = failed.partition(|id| is_here(*id));
        let gone = Gone { missing: absent.into_iter().collect(), failed: here.into_iter().collect() };
        Snapshot { pool, vhds, gone, votes: Votes::from(store) }
    }

    /// Records an event for each disk that is missing.
    pub fn tell_missing(&self, events: &EventLog) {
        for id in self.gone.missing.iter() {
            let concerns = |vhd: &&VhdInfo| vhd.record.layout.disks().contains(id) || vhd.slots.contains_key(&id);
            let vhds = self.vhds.iter().filter(concerns).map(|vhd| vhd.record.name.clone()).collect();
            let impact = Box::new(self.impact(id));
            let disk = self.pool.record.disk_name(id);
            events.record(Severity::Error, EventDetail::DiskMissing { disk, vhds, impact });
        }
    }

    /// The event of a failure, with what that means.
    pub fn explain(&self, detail: EventDetail) -> EventDetail {
        match detail {
            EventDetail::DiskFailed { disk, message, .. } => {
                let id = self.pool.record.find_disk(&disk).map(|disk| disk.id);
                let impact = id.map(|id| Box::new(self.impact(id)));
                EventDetail::DiskFailed { disk, message, impact }
            }
            other => other,
        }
    }

    fn impact(&self, disk: DiskId) -> ImpactInfo {
        let disks: DiskSet = std::iter::once(disk).collect();
        let scene = Scene { pool: &self.pool.record, disks, gone: self.gone, votes: self.votes };
        brief(of_vhds(&scene, &self.vhds))
    }
}
