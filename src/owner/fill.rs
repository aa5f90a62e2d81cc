//! Giving a thick VHD all its room, a part at a time, so that other work goes on between the parts.
//!
//! The room is reserved first. If a crash comes between, the rest is given at the next start.

use super::Owner;
use super::command::{CommandError, CommandId, Outcome};
use super::outbox::{Event, OwnerOutbox};
use super::place::Purse;
use super::space::{DiskSpace, Space};
use super::vhds::PerDisk;
use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::limits::{DISKS_MAX, FILL_EXTENTS};
use crate::base::units::ExtentIndex;
use crate::placement::ReplicaSet;
use crate::plan::{self, GoalDisk, PlanError};
use crate::store::edit::{EditFailed, EditId, StoreEdit};

/// A thick VHD that is being given its room.
#[derive(Debug)]
pub(super) struct Fill {
    /// Extents before this one have a place.
    next: u32,
    /// Slots per disk that are reserved for the rest.
    quota: PerDisk,
    /// The part that is being written.
    edit: Option<EditId>,
    /// Whom to answer when it is done.
    pub asked: Vec<(CommandId, Outcome)>,
    /// What the VHD had before it grew; `None` if it is new.
    grown_from: Option<u64>,
}

impl Fill {
    pub fn new(quota: PerDisk, asked: Vec<(CommandId, Outcome)>) -> Fill {
        Fill { next: 0, quota, edit: None, asked, grown_from: None }
    }

    /// Of extents from `next` on, of a VHD that had `old_bytes`.
    pub fn of_growth(quota: PerDisk, next: u32, old_bytes: u64, asked: Vec<(CommandId, Outcome)>) -> Fill {
        Fill { next, quota, edit: None, asked, grown_from: Some(old_bytes) }
    }
}

/// Shares the replicas of `extents` extents out over the disks, in proportion to their free slots and no more than one of an extent
/// in a failure domain.
///
/// # Errors
/// The replicas that these disks have room for, if they are not enough.
pub(super) fn quota_for(space: &Space, disks: DiskSet, extents: u32, replicas: u8) -> Result<PerDisk, u64> {
    let free = |disk: &DiskSpace| {
        let free = disk.free();
        (free, free)
    };
    let goal = space.goal(disks, replicas, None, free);
    let shares = plan::shares_of_new(extents.into(), &goal).map_err(|error| match error {
        PlanError::NotEnoughRoom { room, .. } => room,
        PlanError::NoDisks | PlanError::TooFewDomains { .. } => 0,
    })?;
    let mut quota: PerDisk = Box::new([0; DISKS_MAX]);
    let mut rest = u64::from(extents) * u64::from(replicas);
    let mut open_in = vec![u64::from(extents); goal.disks.len()];
    let mut give = |disk: &GoalDisk, count: u64| {
        let open = &mut open_in[disk.domain as usize];
        let count = count.min(*open).min(rest);
        *open -= count;
        rest -= count;
        quota[disk.disk.index()] += u32::try_from(count).expect("a share of a u32");
    };
    shares.iter().zip(&goal.disks).for_each(|(share, disk)| give(disk, share.least));
    // What rounding down left: at most one for each disk.
    shares.iter().zip(&goal.disks).for_each(|(share, disk)| give(disk, share.most - share.least));
    assert_eq!(rest, 0, "the shares are those of all replicas");
    Ok(quota)
}

/// The quota for as many of `extents` extents as there is room for.
fn quota_for_some(space: &Space, disks: DiskSet, mut extents: u32, replicas: u8) -> PerDisk {
    loop {
        match quota_for(space, disks, extents, replicas) {
            Ok(quota) => return quota,
            Err(_) if extents == 0 => return Box::new([0; DISKS_MAX]),
            Err(room) => {
                let fewer = u32::try_from(room / u64::from(replicas)).expect("less than what was asked for");
                extents = fewer.min(extents - 1);
            }
        }
    }
}

fn nonzero(quota: &PerDisk) -> impl Iterator<Item = (DiskId, u32)> + '_ {
    let indexed = quota.iter().enumerate().filter(|(_, count)| **count > 0);
    indexed.map(|(disk, count)| (DiskId(u8::try_from(disk).expect("at most 64 disks")), *count))
}

impl Owner {
    pub(super) fn reserve(&mut self, quota: &PerDisk) {
        nonzero(quota).for_each(|(disk, count)| self.space.reserve(disk, count));
    }

    pub(super) fn unreserve(&mut self, quota: &PerDisk) {
        nonzero(quota).for_each(|(disk, count)| self.space.unreserve(disk, count));
    }

    /// At start: reserves room for what the VHD lacks, as far as there is some.
    pub(super) fn resume_fill(&mut self, id: VhdId, out: &mut impl OwnerOutbox) {
        let vhd = self.vhds.get(id).expect("a VHD that wants room");
        let missing = u32::try_from(vhd.absent()).expect("at most all extents");
        let (disks, replicas) = (vhd.record.layout.disks(), vhd.record.replicas);
        self.lend_holds_of(id);
        self.make_room(&[(id, disks, missing, replicas)]);
        let quota = quota_for_some(&self.space, disks, missing, replicas);
        self.reserve(&quota);
        self.refresh_holds();
        self.fills.insert(id, Fill::new(quota, Vec::new()));
        self.continue_fill(id, out);
    }

    /// Places the next part and has it written; or ends, if all is placed.
    pub(super) fn continue_fill(&mut self, id: VhdId, out: &mut impl OwnerOutbox) {
        let fill = self.fills.get_mut(&id).expect("a fill in progress");
        let vhd = self.vhds.get_mut(id).expect("a fill ends before its VHD");
        let extents = vhd.state.map.extents();
        let is_absent = |extent: u32| vhd.state.map.lookup(ExtentIndex(extent)).replicas.is_absent();
        let Some(first) = (fill.next..extents).find(|extent| is_absent(*extent)) else {
            self.end_fill(id, out);
            return;
        };
        let mut replicas = Vec::new();
        let mut generation = None;
        fill.next = first;
        while fill.next < extents && replicas.len() < FILL_EXTENTS {
            let extent = ExtentIndex(fill.next);
            let before = vhd.state.map.lookup(extent);
            if !before.replicas.is_absent() || *generation.get_or_insert(before.generation) != before.generation {
                break;
            }
            let Some(placed) = vhd.place(extent, &mut self.space, Purse::Fill(&mut fill.quota)) else { break };
            replicas.push(placed);
            fill.next += 1;
        }
        if replicas.is_empty() {
            self.end_fill(id, out);
            return;
        }
        let first = ExtentIndex(first);
        let generation = vhd.state.map.lookup(first).generation;
        let touched: DiskSet = replicas.iter().flat_map(ReplicaSet::iter).map(|replica| replica.disk).collect();
        let edit = self.next_edit();
        self.fills.get_mut(&id).expect("still in progress").edit = Some(edit);
        out.edit(edit, vec![StoreEdit::Place { vhd: id, first, generation, replicas }]);
        touched.iter().for_each(|disk| self.usage.update(&self.space, disk, out));
    }

    /// A part has been written.
    pub(super) fn fill_edit_done(&mut self, edit: EditId, result: Result<(), EditFailed>, out: &mut impl OwnerOutbox) {
        let found = self.fills.iter().find(|(_, fill)| fill.edit == Some(edit)).map(|(id, _)| *id);
        // A VHD that is being deleted no longer waits for its parts.
        let Some(id) = found else { return };
        match result {
            Ok(()) => self.continue_fill(id, out),
            Err(failed) => self.stop_fill(id, &failed.into(), out),
        }
    }

    /// All is placed, or there is no more room (possible only at start: others took it before the crash).
    fn end_fill(&mut self, id: VhdId, out: &mut impl OwnerOutbox) {
        let fill = self.fills.remove(&id).expect("a fill in progress");
        self.unreserve(&fill.quota);
        let vhd = self.vhds.get_mut(id).expect("a fill ends before its VHD");
        vhd.ready = true;
        let missing = vhd.absent();
        if missing > 0 {
            out.event(Event::ThickIncomplete { vhd: vhd.record.name.clone(), missing });
        }
        match fill.grown_from {
            Some(old_bytes) => self.resized(id, old_bytes, &fill.asked, out),
            None => self.created(id, &fill.asked, out),
        }
        self.retry_waiters(out);
        self.run_jobs(out);
    }

    /// Gives up filling a VHD, if it is being filled.
    pub(super) fn stop_fill(&mut self, id: VhdId, why: &CommandError, out: &mut impl OwnerOutbox) {
        let Some(fill) = self.fills.remove(&id) else { return };
        self.unreserve(&fill.quota);
        fill.asked.iter().for_each(|(command, _)| out.reply(*command, Err(why.clone())));
        self.retry_waiters(out);
    }
}
