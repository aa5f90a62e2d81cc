//! Disks that die or are let go of, and what is given up with those that died.

use std::collections::BTreeMap;
use std::sync::Arc;

use spanblk::base::ids::{DiskId, DiskSet};
use spanblk::base::units::ExtentIndex;
use spanblk::disk::sim::{Fault, FaultKind, OpKind, SimDisk};
use spanblk::owner::command::LostData;
use spanblk::placement::job::JobRecord;
use spanblk::placement::{ReplicaSet, ReplicaState};
use spanblk::shared::{DiskState, VhdState};
use spanblk::store::edit::MovedExtent;

use super::guest::Guest;
use super::oracle::{History, SECTOR};
use super::world::{EXTENT, World};

/// The disks of an extent.
#[derive(Clone, Copy, Debug, Default)]
pub struct Place {
    /// Those that have all of it.
    pub in_sync: DiskSet,
    /// Those on which it is, stale replicas included.
    pub on: DiskSet,
}

/// The disks of every placed extent.
pub type Places = BTreeMap<(u32, ExtentIndex), Place>;

/// What may be given up, and what was.
#[derive(Default)]
pub struct Losses {
    /// The disk that is emptied.
    pub of: Option<DiskId>,
    /// Disks that were dead when somebody accepted that what only they have is lost.
    pub accepted: DiskSet,
    /// Disks of which that was accepted before, and which work again.
    pub back: DiskSet,
    /// Where everything was before what is happening now.
    pub places: Places,
    /// Extents that were given up.
    pub extents: usize,
    /// Extents that were moved away from a disk that was dead.
    pub moved_from_dead: usize,
    /// Disks that died while a job was emptying one.
    pub died_late: usize,
}

/// Nothing that is asked of the disk succeeds any more.
pub fn die(state: &DiskState, disk: &SimDisk) {
    state.fail();
    for kind in [OpKind::Read, OpKind::Write, OpKind::Sync] {
        disk.inject(Fault::always(kind, FaultKind::Error(libc::EIO)));
    }
}

/// The daemon has let go of the file: nobody reads or writes it any more. (A sync may still be under way.)
pub fn close(disk: &SimDisk) {
    for kind in [OpKind::Read, OpKind::Write] {
        disk.inject(Fault::always(kind, FaultKind::Error(libc::EBADF)));
    }
}

/// Where the extents of these VHDs are, those of a move that is not over not counted.
pub fn places<'a>(vhds: impl Iterator<Item = &'a Arc<VhdState>>) -> Places {
    let mut places = Places::new();
    for vhd in vhds {
        for extent in vhd.map.placed_from(ExtentIndex(0)) {
            places.insert((vhd.id().0, extent), place_of(vhd.map.lookup(extent).replicas));
        }
    }
    places
}

fn place_of(replicas: ReplicaSet) -> Place {
    let settled = replicas.settled();
    let in_sync = settled.iter().filter(|replica| replica.state == ReplicaState::InSync);
    Place {
        in_sync: in_sync.map(|replica| replica.disk).collect(),
        on: settled.iter().map(|replica| replica.disk).collect(),
    }
}

impl World {
    /// The disks that are dead.
    pub fn dead(&self) -> DiskSet {
        self.states.iter().filter(|disk| disk.is_failed()).map(|disk| disk.id).collect()
    }

    /// A disk dies, and everybody sees it at once.
    pub fn kill(&mut self, disk: DiskId) {
        let is_ordered = |job: &JobRecord| job.kind.empties().is_some() && !job.is_ended();
        self.losses.died_late += usize::from(self.list_jobs().iter().any(is_ordered));
        die(&self.states[disk.index()], &self.disks[disk.index()]);
        let dead = self.dead();
        self.guests.iter_mut().for_each(|guest| guest.dead = dead);
    }

    /// Whether only disks that are dead have something of the one that is emptied.
    pub fn would_lose(&self) -> bool {
        let (queues, dead) = (self.post.queues.borrow(), self.dead());
        let is_lost = |vhd: &VhdState, extent: ExtentIndex| {
            let seen = vhd.map.lookup(extent);
            let Place { in_sync, on } = place_of(seen.replicas);
            !seen.present.is_empty() && in_sync.0 & !dead.0 == 0 && self.losses.of.is_some_and(|of| on.contains(of))
        };
        let there = queues.opened.iter().filter(|vhd| !queues.closed.contains(&vhd.id()));
        there.into_iter().any(|vhd| vhd.map.placed_from(ExtentIndex(0)).any(|extent| is_lost(vhd, extent)))
    }

    /// Compares what was given up with what may be, and lets guests know.
    pub fn note_losses(&mut self) -> Result<(), String> {
        let lost = std::mem::take(&mut self.post.queues.borrow_mut().lost);
        for (vhd, lost) in lost {
            self.note_loss(&vhd, &lost)?;
        }
        self.note_places();
        Ok(())
    }

    /// Remembers where everything is, if something of it may be given up.
    pub fn note_places(&mut self) {
        if !self.losses.accepted.is_empty() {
            self.losses.places = places(self.post.queues.borrow().opened.iter());
        }
    }

    /// These moves are being made durable.
    pub fn note_moves(&mut self, moves: &[MovedExtent]) {
        let dead = self.dead();
        let is_dead = |moved: &&MovedExtent| moved.from.is_some_and(|from| dead.contains(from));
        self.losses.moved_from_dead += moves.iter().filter(is_dead).count();
        self.moves_done += moves.len();
    }

    fn note_loss(&mut self, vhd: &str, lost: &LostData) -> Result<(), String> {
        let at = self.tick();
        let number = self.told.iter().find(|(_, told)| told.record.name == vhd).map(|(number, _)| *number);
        let number = number.ok_or_else(|| format!("something of '{vhd}' is given up, which nobody knows"))?;
        let gone = DiskSet(self.losses.accepted.0 & self.dead().0);
        let mut extents: Vec<u64> =
            lost.ranges.iter().flat_map(|range| range.start / EXTENT..range.end.div_ceil(EXTENT)).collect();
        extents.dedup();
        for extent in extents {
            let key = (number, ExtentIndex(u32::try_from(extent).expect("few extents")));
            let was_on = self.losses.places.get(&key).copied().unwrap_or_default();
            let is_right = was_on.in_sync.0 & !gone.0 == 0 && self.losses.of.is_some_and(|of| was_on.on.contains(of));
            if !is_right {
                return Err(format!(
                    "extent {extent} of VHD {number} is given up, which was on {was_on:?}; only what {gone:?} had may be"
                ));
            }
            let per_extent = EXTENT / SECTOR as u64;
            let history = self.history_of(number).ok_or("it has never had a guest")?;
            (extent * per_extent..(extent + 1) * per_extent).for_each(|sector| history.lose(sector, at));
            self.losses.extents += 1;
        }
        Ok(())
    }

    /// What was done to a VHD that has, or had, a guest.
    pub fn history_of(&mut self, vhd: u32) -> Option<&mut History> {
        let guest = self.guests.iter_mut().find(|guest: &&mut Guest| guest.state.id().0 == vhd);
        match guest {
            Some(guest) => Some(&mut guest.history),
            None => self.histories.get_mut(&vhd),
        }
    }
}
