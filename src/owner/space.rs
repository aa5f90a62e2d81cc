//! Room on the disks: which slots are free, and which of them an extent should get.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::command::JoiningDisk;
use super::health::Watch;
use super::outbox::SlotRun;
use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::limits::{BAD_PLACES_MAX, DISKS_MAX};
use crate::base::units::SlotIndex;
use crate::engine::IoError;
use crate::placement::allocator::{SlotAllocator, SlotState};
use crate::placement::homes::Homes;
use crate::placement::record::{Accept, DiskRecord};
use crate::plan::{Goal, GoalDisk};
use crate::shared::DiskState;

/// One disk.
#[derive(Debug)]
pub(super) struct DiskSpace {
    pub state: Arc<DiskState>,
    /// Its role now.
    pub accept: Accept,
    /// What fails together with it.
    pub failure_domain: String,
    /// Errors since the daemon started.
    pub errors: u64,
    /// It was not there when the pool was opened.
    pub missing: bool,
    /// Whether its failure has been reported.
    pub failure_told: bool,
    /// What it did lately.
    pub watch: Watch,
    /// What its last error was.
    pub last_error: Option<IoError>,
    /// Slots that could not be written since the daemon started: used only if there are no others.
    bad: BTreeSet<SlotIndex>,
    /// Slots promised to thick VHDs that are being given their room.
    pub reserved: u32,
    /// Whether extents may be placed on it: not before every reactor knows it, and not while it is about to leave the pool.
    pub open: bool,
    /// It has left the pool: it is known, and counts nowhere.
    pub left: bool,
    slots: SlotAllocator,
    homes: Homes,
}

impl DiskSpace {
    /// Slots that can be given out to anybody. May become 0 at any time: reactors notice when a disk fails.
    pub fn free(&self) -> u32 {
        if self.is_closed() { 0 } else { self.slots.free() - self.reserved }
    }

    /// Whether nothing can come to it, however many of its slots are free.
    pub fn is_closed(&self) -> bool {
        !self.open || self.left || self.state.is_failed()
    }

    /// Its role for what is to come.
    pub fn accepts(&self) -> Accept {
        if self.open { self.accept } else { Accept::None }
    }

    /// As [`DiskSpace::free`], with slots that are on their way back.
    pub fn free_soon(&self) -> u32 {
        if self.is_closed() { 0 } else { self.slots.free() - self.reserved + self.slots.limbo() }
    }

    /// Slots that hold something, or can. A disk that has failed has no room.
    pub fn capacity(&self) -> u32 {
        let empty = if self.state.is_failed() { self.slots.free() - self.reserved } else { 0 };
        self.slots.slots() - empty
    }

    /// The slots.
    pub fn slots(&self) -> &SlotAllocator {
        &self.slots
    }

    /// Slots that could not be written.
    pub fn bad(&self) -> &BTreeSet<SlotIndex> {
        &self.bad
    }

    /// Whether a slot can be given out that is not known to be bad.
    pub fn has_good_slot(&self) -> bool {
        let free = |slot: &&SlotIndex| self.slots.state(**slot) == SlotState::Free;
        self.free() as usize > self.bad.iter().filter(free).count()
    }

    /// The slot that was taken, or a better one in its place, if there is one.
    fn rather_not_bad(&mut self, mut slot: SlotIndex) -> SlotIndex {
        let mut avoided = Vec::new();
        while self.bad.contains(&slot)
            && let Some(next) = self.slots.take_near(slot)
        {
            avoided.push(slot);
            slot = next;
        }
        for slot in avoided {
            self.slots.give_back(slot);
            self.slots.release(slot);
        }
        slot
    }
}

/// Where a VHD's extent would ideally go on one disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ideal {
    pub vhd: VhdId,
    /// Its place among the VHD's extents on this disk, and how many of them there will be.
    pub position: u32,
    pub len: u32,
    /// Slot of the extent before it on this disk, if it is there.
    pub after: Option<SlotIndex>,
}

/// All disks.
#[derive(Debug)]
pub(super) struct Space {
    disks: Vec<Option<Box<DiskSpace>>>,
}

impl Space {
    pub fn new() -> Space {
        Space { disks: (0..DISKS_MAX).map(|_| None).collect() }
    }

    /// Adds a disk with all its slots free.
    pub fn add(&mut self, state: Arc<DiskState>, record: &DiskRecord, open: bool) {
        let index = state.id.index();
        let disk = DiskSpace {
            accept: record.accept,
            failure_domain: record.failure_domain.clone(),
            errors: 0,
            missing: false,
            failure_told: false,
            watch: Watch::default(),
            last_error: None,
            bad: BTreeSet::new(),
            reserved: 0,
            open,
            left: false,
            slots: SlotAllocator::new(state.slots),
            homes: Homes::default(),
            state,
        };
        let before = self.disks[index].replace(Box::new(disk));
        assert!(before.is_none(), "a disk is added once");
    }

    /// A disk that is part of the pool, or was since the daemon started.
    pub fn get(&self, disk: DiskId) -> Option<&DiskSpace> {
        self.disks[disk.index()].as_deref()
    }

    /// As [`Space::get`], of a disk that there is.
    pub fn disk(&self, disk: DiskId) -> &DiskSpace {
        self.get(disk).expect("layouts and replicas name disks of the pool")
    }

    /// As [`Space::disk`].
    pub fn disk_mut(&mut self, disk: DiskId) -> &mut DiskSpace {
        self.disks[disk.index()].as_deref_mut().expect("layouts and replicas name disks of the pool")
    }

    /// The disks of the pool.
    pub fn iter(&self) -> impl Iterator<Item = &DiskSpace> {
        self.disks.iter().flatten().map(|disk| &**disk).filter(|disk| !disk.left)
    }

    /// Those of the disks that do not fail together with any of `others`.
    pub fn apart_from(&self, disks: DiskSet, others: DiskSet) -> DiskSet {
        let domain = |disk| self.disk(disk).failure_domain.as_str();
        disks.iter().filter(|disk| others.iter().all(|other| domain(other) != domain(*disk))).collect()
    }

    /// How many of the disks' failure domains have a disk that works.
    pub fn working_domains(&self, disks: DiskSet) -> usize {
        let working = disks.iter().map(|disk| self.disk(disk)).filter(|disk| !disk.state.is_failed());
        working.map(|disk| disk.failure_domain.as_str()).collect::<std::collections::BTreeSet<_>>().len()
    }

    /// A goal for the planner. `size`: the weight of a disk among the others, and its room, in slots; `joining`: a disk that is
    /// not in the pool yet.
    pub fn goal(
        &self,
        disks: DiskSet,
        replicas: u8,
        joining: Option<(DiskId, &JoiningDisk)>,
        size: impl Fn(&DiskSpace) -> (u32, u32),
    ) -> Goal {
        let mut domains: Vec<&str> = Vec::new();
        let disks = disks.iter().map(|id| {
            let (name, (slots, free), closed) = match joining.filter(|(joining, _)| *joining == id) {
                Some((_, disk)) => (disk.failure_domain.as_str(), (disk.slots, disk.slots), false),
                None => {
                    let disk = self.disk(id);
                    (disk.failure_domain.as_str(), size(disk), disk.is_closed())
                }
            };
            let domain = domains.iter().position(|known| *known == name).unwrap_or_else(|| {
                domains.push(name);
                domains.len() - 1
            });
            GoalDisk { disk: id, slots, free, domain: u32::try_from(domain).expect("at most 64 disks"), closed }
        });
        Goal { disks: disks.collect(), replicas: usize::from(replicas) }
    }

    /// The disks with a slot to give out.
    pub fn with_room(&self) -> DiskSet {
        self.iter().filter(|disk| disk.free() > 0).map(|disk| disk.state.id).collect()
    }

    /// Whether slots of these disks are on their way back.
    pub fn is_reclaiming(&self, disks: DiskSet) -> bool {
        disks.iter().any(|disk| {
            let disk = self.disk(disk);
            !disk.state.is_failed() && disk.slots.limbo() > 0
        })
    }

    /// Takes a free slot of the disk, ideally at the VHD's home there. `None` if no slot is free. `reserved`: out of what
    /// was reserved, else out of what is free to anybody.
    pub fn take(&mut self, disk: DiskId, ideal: &Ideal, reserved: bool) -> Option<SlotIndex> {
        let disk = self.disk_mut(disk);
        if reserved {
            assert!(disk.reserved > 0 && disk.slots.free() >= disk.reserved, "what is reserved is free");
        } else if disk.free() == 0 {
            return None;
        }
        let home = disk.homes.slot(&disk.slots, ideal.vhd, ideal.position, ideal.len);
        let after = ideal.after.map(|slot| SlotIndex(slot.0.saturating_add(1)));
        let slot = match (home, after) {
            (Some(home), _) if disk.slots.take(home) => home,
            (_, Some(after)) if disk.slots.take(after) => after,
            (home, after) => disk.slots.take_near(home.or(after).unwrap_or_default())?,
        };
        let slot = disk.rather_not_bad(slot);
        if reserved {
            disk.reserved -= 1;
        }
        Some(slot)
    }

    /// The slot could not be written. How many such slots there are now; `None` if that is nothing new, or too many are known.
    pub fn note_bad(&mut self, disk: DiskId, slot: SlotIndex) -> Option<usize> {
        let bad = &mut self.disk_mut(disk).bad;
        (bad.len() < BAD_PLACES_MAX && bad.insert(slot)).then_some(bad.len())
    }

    /// Takes another slot than `bad` for what was to be there. `None` if there is none that is known to be good.
    pub fn take_instead(&mut self, disk: DiskId, bad: SlotIndex, ideal: &Ideal) -> Option<SlotIndex> {
        let slot = self.take(disk, ideal, false)?;
        if self.disk(disk).bad.contains(&slot) {
            self.put_back(disk, slot);
            return None;
        }
        self.give_back(disk, bad);
        Some(slot)
    }

    /// Takes a slot back that was given back, and that nobody has had since.
    pub fn take_again(&mut self, disk: DiskId, slot: SlotIndex) {
        let disk = self.disk_mut(disk);
        disk.slots.release(slot);
        let taken = disk.slots.take(slot);
        assert!(taken, "it was released just now");
    }

    /// After a restart: the slot holds an extent. False if there is no such slot, or it holds another one.
    #[must_use]
    pub fn adopt(&mut self, disk: DiskId, slot: SlotIndex) -> bool {
        self.disks[disk.index()].as_deref_mut().is_some_and(|disk| disk.slots.take(slot))
    }

    /// After a restart: the VHD's home on the disk is where the slot is in its ideal place.
    pub fn adopt_home(&mut self, disk: DiskId, slot: SlotIndex, ideal: &Ideal) {
        let disk = self.disk_mut(disk);
        disk.homes.adopt(disk.slots.slots(), ideal.vhd, ideal.position, ideal.len, slot);
    }

    /// The slot holds nothing any more.
    pub fn give_back(&mut self, disk: DiskId, slot: SlotIndex) {
        self.disk_mut(disk).slots.give_back(slot);
    }

    /// The slot has been taken for nothing: nobody has seen it.
    pub fn put_back(&mut self, disk: DiskId, slot: SlotIndex) {
        let disk = self.disk_mut(disk);
        disk.slots.give_back(slot);
        disk.slots.release(slot);
    }

    /// The slots may be used again.
    pub fn release(&mut self, disk: DiskId, run: SlotRun) {
        let disk = self.disk_mut(disk);
        run.iter().for_each(|slot| disk.slots.release(slot));
    }

    /// Promises `count` slots of a disk to a thick VHD.
    pub fn reserve(&mut self, disk: DiskId, count: u32) {
        let disk = self.disk_mut(disk);
        assert!(disk.slots.free() - disk.reserved >= count);
        disk.reserved += count;
    }

    /// Takes back a promise.
    pub fn unreserve(&mut self, disk: DiskId, count: u32) {
        let disk = self.disk_mut(disk);
        assert!(disk.reserved >= count);
        disk.reserved -= count;
    }

    /// The VHD is gone: its homes are free for others.
    pub fn forget(&mut self, vhd: VhdId) {
        self.disks.iter_mut().flatten().for_each(|disk| disk.homes.remove(vhd));
    }
}
