//! Which VHDs a job is about that brings redundancy back.

use super::super::Owner;
use super::super::command::{CommandError, PlanInfo, Reply, Restoration, StartJob};
use super::super::commands::{Action, Step};
use super::super::space::DiskSpace;
use super::super::vhds::Vhd;
use super::goal::{Outlook, Wanted};
use crate::base::ids::DiskId;
use crate::base::units::ExtentIndex;
use crate::placement::ReplicaState;
use crate::placement::job::JobKind;
use crate::placement::layout::DiskRoom;
use crate::store::edit::StoreEdit;

impl Owner {
    /// VHDs with replicas on a disk that has failed, on others. What has no other replica cannot be made anew.
    pub(super) fn rebuilt(&self, disk: DiskId) -> Result<Vec<Wanted>, CommandError> {
        if !self.space.disk(disk).state.is_failed() {
            return Err(CommandError::DiskWorks { disk: self.pool.disk_name(disk) });
        }
        let rooms: Vec<DiskRoom> = self.rooms().into_iter().filter(|room| room.disk != disk).collect();
        let here = self.vhds.iter().filter(|vhd| vhd.record.replicas > 1 && vhd.is_on(disk));
        let wanted = here.map(|vhd| Ok(Wanted::layout(vhd, self.layout_without(vhd, disk, &rooms)?)));
        wanted.collect()
    }

    /// A job for what can be brought back now, of VHDs that no other job is about.
    pub(in crate::owner) fn begin_restore(&mut self, disk: DiskId, what: Restoration) -> Result<Step, CommandError> {
        let (kind, wanted) = match what {
            Restoration::Rebuild => (JobKind::Rebuild { disk }, self.rebuilt(disk)?),
            Restoration::Resync => (JobKind::Resync { disk }, self.resynced(disk)),
        };
        let outlook = Outlook { free: DiskSpace::free_soon, joining: None };
        let mut refused = None;
        let is_due = |wanted: &Wanted| {
            let Some(vhd) = self.vhds.get(wanted.vhd).filter(|_| self.jobs.about(wanted.vhd).is_none()) else {
                return false;
            };
            match self.plan_of(&kind, vhd, (&wanted.layout, wanted.replicas), &[], &outlook) {
                Ok(plan) => !plan.is_empty(),
                Err(error) => {
                    refused.get_or_insert(self.plan_error(&vhd.record.name, &error));
                    false
                }
            }
        };
        let wanted: Vec<Wanted> = wanted.into_iter().filter(is_due).collect();
        if wanted.is_empty() {
            return refused.map_or(Ok(Step::Done(Reply::Plan(Box::new(PlanInfo { vhds: Vec::new() })))), Err);
        }
        let start = self.job_start(&StartJob::by_itself(self.wall_secs), kind, wanted);
        let mut rows = vec![StoreEdit::PutPool(start.pool.clone()), StoreEdit::PutJob(start.record.clone())];
        rows.extend(start.vhds.iter().cloned().map(StoreEdit::PutVhd));
        Ok(Step::Commit { rows, action: Action::StartJob(Box::new(start)) })
    }

    /// VHDs with stale replicas on a disk.
    pub(super) fn resynced(&self, disk: DiskId) -> Vec<Wanted> {
        let stale = self.vhds.iter().filter(|vhd| has_stale(vhd, disk));
        stale.map(|vhd| Wanted::layout(vhd, vhd.record.layout.clone())).collect()
    }
}

/// Whether a replica of the VHD on the disk missed something.
fn has_stale(vhd: &Vhd, disk: DiskId) -> bool {
    let map = &vhd.state.map;
    vhd.counts[disk.index()] > 0
        && map.placed_from(ExtentIndex(0)).any(|extent| {
            map.lookup(extent).replicas.on(disk).is_some_and(|replica| replica.state == ReplicaState::Stale)
        })
}
