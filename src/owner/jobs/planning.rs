//! From a layout to a plan: what the planner is told of where extents are, and what it does not know.
//!
//! The planner knows of replicas only that they are there. Of one that missed something a copy is there as soon as it has been filled
//! again, where it is; one on a disk that has been given up is as good as gone. Of more replicas than there are to be, those that
//! cannot be read now go first.

use std::collections::{BTreeMap, HashSet};

use super::super::Owner;
use super::super::space::DiskSpace;
use super::super::vhds::Vhd;
use super::goal::{Outlook, Unplanned};
use crate::base::ids::{DiskId, DiskSet, JobId, VhdId};
use crate::base::units::ExtentIndex;
use crate::placement::job::JobKind;
use crate::placement::record::Layout;
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::plan::{Plan, PlanError, Relocation, plan};

/// Replicas of one extent, sorted by what a plan does with them.
#[derive(Default)]
struct Sorted {
    /// Those that count.
    there: DiskSet,
    /// Those among them that have to be filled again.
    refill: Vec<DiskId>,
    /// Those that are as good as gone: their disk has been given up, or has failed and they are stale, or it has failed and there are
    /// enough without them.
    gone: Vec<DiskId>,
    /// Whether one of those that count can be read.
    is_readable: bool,
}

impl Owner {
    /// The moves that bring a VHD where its record wants it, as far as the job is for that.
    pub(in crate::owner) fn plan_for(&self, job: JobId, id: VhdId) -> Result<Plan, Unplanned> {
        let vhd = self.vhds.get(id).ok_or(Unplanned::Gone)?;
        let goal = (&vhd.record.layout, vhd.record.replicas);
        let outlook = Outlook { free: DiskSpace::free, joining: None };
        let kind = &self.jobs.get(job).ok_or(Unplanned::Gone)?.record.kind;
        self.plan_of(kind, vhd, goal, &[], &outlook).map_err(Unplanned::NoRoom)
    }

    /// The moves that bring a VHD to a layout and a number of replicas, once extents that are `lost` (in order) are dropped.
    pub(super) fn plan_of(
        &self,
        kind: &JobKind,
        vhd: &Vhd,
        (layout, replicas): (&Layout, u8),
        lost: &[ExtentIndex],
        outlook: &Outlook,
    ) -> Result<Plan, PlanError> {
        if let JobKind::Resync { disk } = kind {
            return Ok(self.refill_on(vhd, *disk));
        }
        let given_up = match kind {
            JobKind::Rebuild { disk } if self.space.disk(*disk).state.is_failed() => Some(*disk),
            _ => None,
        };
        let map = &vhd.state.map;
        let stays = |extent: &ExtentIndex| lost.binary_search(extent).is_err();
        let (mut placed, mut refill, mut gone) = (Vec::new(), Vec::new(), BTreeMap::<ExtentIndex, Vec<DiskId>>::new());
        for extent in map.placed_from(ExtentIndex(0)).filter(stays) {
            let sorted = self.sort(map.lookup(extent).replicas, given_up, replicas);
            if given_up.is_some() && !sorted.is_readable {
                // There is nothing that it could be made from.
                continue;
            }
            placed.push((extent, sorted.there));
            refill.extend(sorted.refill.into_iter().map(|to| Relocation { extent, from: None, to: Some(to) }));
            if !sorted.gone.is_empty() {
                gone.insert(extent, sorted.gone);
            }
        }
        // What a VHD has lost is made good from what is held for it, too, if there is nothing else.
        let makes_good = matches!(kind, JobKind::Rebuild { .. });
        let held = |disk: &DiskSpace| if makes_good { self.held_for(vhd, disk.state.id) } else { 0 };
        let size = |disk: &DiskSpace| (disk.slots().slots(), (outlook.free)(disk) + held(disk));
        let mut plan = plan(&placed, &self.space.goal(layout.disks(), replicas, outlook.joining, size))?;
        // What goes elsewhere, or goes, need not be filled before.
        let goes: HashSet<(ExtentIndex, DiskId)> =
            plan.relocations.iter().filter_map(|step| Some((step.extent, step.from?))).collect();
        refill.retain(|step| step.to.is_none_or(|disk| !goes.contains(&(step.extent, disk))));
        for step in plan.relocations.iter_mut().filter(|step| step.from.is_none()) {
            step.from = gone.get_mut(&step.extent).and_then(Vec::pop);
        }
        let dropped = |(extent, disks): (ExtentIndex, Vec<DiskId>)| {
            disks.into_iter().map(move |disk| Relocation { extent, from: Some(disk), to: None })
        };
        plan.relocations.extend(gone.into_iter().flat_map(dropped));
        plan.copies += refill.len() as u64;
        plan.refill = refill;
        Ok(plan)
    }

    /// How many extents of a VHD this plan would still bring to where the job is to bring them. Not those that it only evens out, since
    /// guests place some all the time.
    pub(super) fn left_by(&self, job: JobId, id: VhdId, plan: &Plan) -> usize {
        let (Some(vhd), Some(job)) = (self.vhds.get(id), self.jobs.get(job)) else { return 0 };
        let disks = vhd.record.layout.disks();
        let (counts_replicas, rebuilt) = match job.record.kind {
            JobKind::Replicas { .. } => (true, None),
            JobKind::Rebuild { disk } => (true, Some(disk).filter(|disk| self.space.disk(*disk).state.is_failed())),
            _ => (false, None),
        };
        let is_left = |step: &&Relocation| match (step.from, step.to) {
            (Some(from), _) if !disks.contains(from) || rebuilt == Some(from) => true,
            (None, _) | (_, None) => counts_replicas,
            _ => false,
        };
        plan.relocations.iter().filter(is_left).map(|step| step.extent).collect::<HashSet<ExtentIndex>>().len()
    }

    /// Fills the replicas on one disk that are stale.
    fn refill_on(&self, vhd: &Vhd, disk: DiskId) -> Plan {
        let map = &vhd.state.map;
        let is_stale = |extent: &ExtentIndex| {
            let replica = map.lookup(*extent).replicas.on(disk);
            replica.is_some_and(|replica| replica.state == ReplicaState::Stale)
        };
        let step = |extent| Relocation { extent, from: None, to: Some(disk) };
        let stale = map.placed_from(ExtentIndex(0)).filter(is_stale).map(step);
        let refill: Vec<Relocation> =
            if self.space.disk(disk).state.is_failed() { Vec::new() } else { stale.collect() };
        Plan { copies: refill.len() as u64, refill, ..Plan::default() }
    }

    fn sort(&self, replicas: ReplicaSet, given_up: Option<DiskId>, wanted: u8) -> Sorted {
        let mut sorted = Sorted::default();
        for Replica { disk, state, .. } in replicas.settled().iter() {
            let works = !self.space.disk(disk).state.is_failed();
            if given_up == Some(disk) || (state == ReplicaState::Stale && !works) {
                sorted.gone.push(disk);
                continue;
            }
            sorted.there.insert(disk);
            match state {
                ReplicaState::Stale if works => sorted.refill.push(disk),
                ReplicaState::InSync => sorted.is_readable |= works,
                _ => {}
            }
        }
        let failed = |disk: &DiskId| self.space.disk(*disk).state.is_failed();
        for disk in sorted.there.iter().filter(failed) {
            if sorted.is_readable && sorted.there.len() > usize::from(wanted) {
                sorted.there.remove(disk);
                sorted.gone.push(disk);
            }
        }
        sorted
    }
}
