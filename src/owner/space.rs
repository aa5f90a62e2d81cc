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
use crate::placement::holds::{Holder, Holds, Room, Slots};
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
    /// Slots held for reservations.
    held: u32,
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
        if self.is_closed() { 0 } else { self.slots.free() - self.promised() }
    }

    /// Whether nothing can come to it, however many of its slots are free.
    pub fn is_closed(&self) -> bool {
        !self.open || self.left || self.state.is_failed()
    }

    /// Slots that are free, but not for anybody: for thick VHDs that are being given their room, and for reservations.
    pub fn promised(&self) -> u32 {
        self.reserved + self.held
    }

    /// Its role for what is to come.
    pub fn accepts(&self) -> Accept {
        if self.open { self.accept } else { Accept::None }
    }

    /// As [`DiskSpace::free`], with slots that are on their way back.
    pub fn free_soon(&self) -> u32 {
        if self.is_closed() { 0 } else { self.free() + self.slots.limbo() }
    }

    /// Slots that hold something, or can. A disk that has failed has no room.
    pub fn capacity(&self) -> u32 {
        let empty = if self.state.is_failed() { self.slots.free() - self.promised() } else { 0 };
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

/// Whose slots are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Those that are free to anybody.
    Free,
    /// Those promised to a thick VHD that is being given its room.
    Fill,
    /// Those held for a reservation.
    Held(Holder),
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
    holds: Holds,
}

impl Space {
    pub fn new() -> Space {
        Space { disks: (0..DISKS_MAX).map(|_| None).collect(), holds: Holds::default() }
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
            held: 0,
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

    /// The disks with a slot to give out, or where one can be made free.
    pub fn with_room(&self) -> DiskSet {
        if self.holds.is_empty() {
            return self.iter().filter(|disk| disk.free() > 0).map(|disk| disk.state.id).collect();
        }
        self.holds.with_room(&self.room(DiskSpace::free))
    }

    /// Whether slots of these disks are on their way back.
    pub fn is_reclaiming(&self, disks: DiskSet) -> bool {
        disks.iter().any(|disk| {
            let disk = self.disk(disk);
            !disk.state.is_failed() && disk.slots.limbo() > 0
        })
    }

    /// Takes a free slot of the disk, ideally at the VHD's home there. `None` if no slot is free to anybody, and none was promised.
    pub fn take(&mut self, id: DiskId, ideal: &Ideal, source: Source) -> Option<SlotIndex> {
        let disk = self.disk_mut(id);
        let promised = match source {
            Source::Free if disk.free() == 0 => return None,
            Source::Free => 1,
            Source::Fill => disk.reserved,
            Source::Held(_) => disk.held,
        };
        assert!(promised > 0 && disk.slots.free() >= disk.promised(), "what is promised is free");
        let home = disk.homes.slot(&disk.slots, ideal.vhd, ideal.position, ideal.len);
        let after = ideal.after.map(|slot| SlotIndex(slot.0.saturating_add(1)));
        let slot = match (home, after) {
            (Some(home), _) if disk.slots.take(home) => home,
            (_, Some(after)) if disk.slots.take(after) => after,
            (home, after) => disk.slots.take_near(home.or(after).unwrap_or_default())?,
        };
        let slot = disk.rather_not_bad(slot);
        match source {
            Source::Free => {}
            Source::Fill => disk.reserved -= 1,
            Source::Held(holder) => {
                disk.held -= 1;
                self.holds.take(holder, id);
            }
        }
        Some(slot)
    }

    /// The slot could not be written. How many such slots there are now; `None` if that is nothing new, or too many are known.
    pub fn note_bad(&mut self, disk: DiskId, slot: SlotIndex) -> Option<usize> {
        let bad = &mut self.disk_mut(disk).bad;
        (bad.len() < BAD_PLACES_MAX && bad.insert(slot)).then_some(bad.len())
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

    /// What is held for reservations.
    pub fn holds(&self) -> &Holds {
        &self.holds
    }

    /// The disks as places for what is held; `free`: their room.
    pub fn room(&self, free: fn(&DiskSpace) -> u32) -> Room {
        let usable = self.iter().filter(|disk| !disk.is_closed()).map(|disk| disk.state.id).collect();
        let mut room = Room { free: Box::new([0; DISKS_MAX]), domain: [0; DISKS_MAX], usable };
        let mut domains: Vec<&str> = Vec::new();
        for disk in self.iter() {
            let index = disk.state.id.index();
            room.free[index] = free(disk);
            let known = domains.iter().position(|known| *known == disk.failure_domain);
            room.domain[index] = u8::try_from(known.unwrap_or(domains.len())).expect("at most 64 disks");
            if known.is_none() {
                domains.push(&disk.failure_domain);
            }
        }
        room
    }

    /// Changes what is held; `change` has to account for each slot in the room that it is given.
    pub fn change_holds(&mut self, change: impl FnOnce(&mut Holds, &mut Room)) {
        let mut room = self.room(DiskSpace::free);
        change(&mut self.holds, &mut room);
        for disk in self.disks.iter_mut().flatten() {
            disk.held = self.holds.on_disk(disk.state.id);
        }
    }

    /// Gives those who lack something what they can have without keeping others from what is on its way back to them: slots that are on
    /// their way are held, too, and whoever has one of them waits. Otherwise one that could wait for any disk would use up the only disk
    /// of another one.
    pub fn hold_for_short(&mut self) {
        if !self.holds.is_short() {
            return;
        }
        let now = self.room(DiskSpace::free);
        let mut soon = self.room(DiskSpace::free_soon);
        let mut there = now.free;
        there.iter_mut().enumerate().for_each(|(disk, free)| *free += self.disks[disk].as_ref().map_or(0, |d| d.held));
        let before = self.holds.all_held();
        self.holds.fill_short(&mut soon);
        self.holds.keep_at_most(&there, &before);
        for disk in self.disks.iter_mut().flatten() {
            disk.held = self.holds.on_disk(disk.state.id);
        }
    }

    /// What one that lacks something will hold when what is on its way back is there; `None` if it lacks nothing, or will then, too.
    pub fn held_soon(&self, holder: Holder) -> Option<Slots> {
        if self.holds.lacks(holder) == 0 {
            return None;
        }
        let mut holds = self.holds.clone();
        holds.fill_short(&mut self.room(DiskSpace::free_soon));
        if holds.lacks(holder) == 0 { holds.held(holder).cloned() } else { None }
    }

    /// Slots of the disk that are held for one.
    pub fn held_on(&self, holder: Holder, disk: DiskId) -> u32 {
        self.holds.held(holder).map_or(0, |slots| slots[disk.index()])
    }

    /// Makes `wanted` slots of the disk free, as far as what is held there can be held elsewhere.
    pub fn clear(&mut self, disk: DiskId, wanted: u32) {
        if !self.holds.is_empty() && !self.disk(disk).is_closed() {
            self.change_holds(|holds, room| holds.clear(disk, wanted, room));
        }
    }

    /// Those of the disks on which something may be placed.
    pub fn usable(&self, disks: DiskSet) -> DiskSet {
        disks.iter().filter(|disk| self.get(*disk).is_some_and(|disk| !disk.is_closed())).collect()
    }

    /// Promises `count` slots of a disk to a thick VHD.
    pub fn reserve(&mut self, disk: DiskId, count: u32) {
        let disk = self.disk_mut(disk);
        assert!(disk.slots.free() - disk.promised() >= count);
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
