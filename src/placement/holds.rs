//! Which free slots are held for whom, so that reservations can be kept.
//!
//! A holder needs room for so many extents, with so many replicas, on some disks. What is held for it is enough if there are that many
//! slots, and in no failure domain more than one for each extent: whoever always takes from the domains in which most is held can
//! place the extents one after the other. Which slots it are does not matter, so the holds of all are a flow from holders over
//! failure domains to disks, and one that lacks something gets it by *augmenting paths*: others move to where there is room. By that
//! a holder lacks something only if no other arrangement of all holds would do.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::base::ids::{DiskId, DiskSet, VhdId, VmId};
use crate::base::limits::DISKS_MAX;

/// Slots per disk.
pub type Slots = Box<[u32; DISKS_MAX]>;

/// What is given at once is this part of what is lacking: disks are to be left equally free.
const PART: u64 = 16;

/// Whose reservation it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holder {
    /// Of a VHD.
    Vhd(VhdId),
    /// Of a VM, beyond what its VHDs have and have reserved.
    Vm(VmId),
}

/// What a holder still may place.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Need {
    /// Where.
    pub disks: DiskSet,
    /// Extents.
    pub extents: u32,
    /// Replicas of each, not 0; no two in one failure domain.
    pub replicas: u8,
}

impl Need {
    /// Slots for all of it.
    #[must_use]
    pub fn slots(&self) -> u64 {
        u64::from(self.extents) * u64::from(self.replicas)
    }
}

/// The disks as places for what is held.
#[derive(Clone, Debug)]
pub struct Room {
    /// Slots that can be given out to anybody.
    pub free: Slots,
    /// Number of the failure domain.
    pub domain: [u8; DISKS_MAX],
    /// Disks where what is given back can be given out again.
    pub usable: DiskSet,
}

impl Room {
    fn back(&mut self, disk: usize, count: u32) {
        if self.usable.0 >> disk & 1 == 1 {
            self.free[disk] += count;
        }
    }
}

#[derive(Clone, Debug)]
struct Hold {
    need: Need,
    slots: Slots,
}

impl Hold {
    fn total(&self) -> u64 {
        self.slots.iter().map(|count| u64::from(*count)).sum()
    }

    fn lacks(&self) -> u64 {
        self.need.slots().saturating_sub(self.total())
    }

    fn in_domain(&self, domain: u8, room: &Room) -> u32 {
        let inside = self.need.disks.iter().filter(|disk| room.domain[disk.index()] == domain);
        inside.map(|disk| self.slots[disk.index()]).sum()
    }

    /// How many more may be held in the failure domain of the disk.
    fn slack(&self, disk: DiskId, room: &Room) -> u32 {
        self.need.extents.saturating_sub(self.in_domain(room.domain[disk.index()], room))
    }

    /// How many slots of `from` may be exchanged for slots of `to`.
    fn movable(&self, from: DiskId, to: DiskId, room: &Room) -> u32 {
        let together = room.domain[from.index()] == room.domain[to.index()];
        let slack = if together { u32::MAX } else { self.slack(to, room) };
        if self.need.disks.contains(to) { self.slots[from.index()].min(slack) } else { 0 }
    }
}

/// What is held for all.
#[derive(Clone, Debug)]
pub struct Holds {
    holds: BTreeMap<Holder, Hold>,
    on_disk: Slots,
    /// Those that lack something.
    short: BTreeSet<Holder>,
}

impl Default for Holds {
    fn default() -> Holds {
        Holds { holds: BTreeMap::new(), on_disk: Box::new([0; DISKS_MAX]), short: BTreeSet::new() }
    }
}

/// Slots of one disk exchanged for slots of another one.
#[derive(Clone, Copy, Debug)]
struct Exchange {
    holder: Holder,
    from: DiskId,
    to: DiskId,
}

impl Holds {
    /// Whether nobody needs anything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.holds.is_empty()
    }

    /// Whether somebody lacks something.
    #[must_use]
    pub fn is_short(&self) -> bool {
        !self.short.is_empty()
    }

    /// All holders.
    pub fn holders(&self) -> impl Iterator<Item = Holder> + '_ {
        self.holds.keys().copied()
    }

    /// What is held for one.
    #[must_use]
    pub fn held(&self, holder: Holder) -> Option<&Slots> {
        self.holds.get(&holder).map(|hold| &hold.slots)
    }

    /// What one needs.
    #[must_use]
    pub fn need(&self, holder: Holder) -> Option<Need> {
        self.holds.get(&holder).map(|hold| hold.need)
    }

    /// Slots that one lacks.
    #[must_use]
    pub fn lacks(&self, holder: Holder) -> u64 {
        self.holds.get(&holder).map_or(0, Hold::lacks)
    }

    /// Slots that are held for one.
    #[must_use]
    pub fn held_slots(&self, holder: Holder) -> u64 {
        self.holds.get(&holder).map_or(0, Hold::total)
    }

    /// Slots held on a disk, for all.
    #[must_use]
    pub fn on_disk(&self, disk: DiskId) -> u32 {
        self.on_disk[disk.index()]
    }

    /// A holder needs something else from now on, or (`None`) nothing: what it has too much is free. What it lacks it gets by
    /// [`Holds::fill`].
    pub fn set(&mut self, holder: Holder, need: Option<Need>, room: &mut Room) {
        self.change_need(holder, need, room);
        self.note_short(holder);
    }

    fn note_short(&mut self, holder: Holder) {
        if self.lacks(holder) > 0 {
            self.short.insert(holder);
        } else {
            self.short.remove(&holder);
        }
    }

    /// Gives all who lack something what can be had.
    pub fn fill_short(&mut self, room: &mut Room) {
        let short: Vec<Holder> = self.short.iter().copied().collect();
        short.into_iter().for_each(|holder| self.fill(holder, room));
    }

    /// Slots of each disk that are held, by holder.
    #[must_use]
    pub fn all_held(&self) -> BTreeMap<Holder, Slots> {
        self.holds.iter().map(|(holder, hold)| (*holder, hold.slots.clone())).collect()
    }

    /// Leaves at most so many slots of each disk held: the others are not there yet. Everybody keeps what it had `before` and should still
    /// have, and the rest is for the others: slots that are on their way to one holder must not be counted against another, which would
    /// lose a disk that it has.
    ///
    /// # Panics
    /// If more was held before than there is.
    pub fn keep_at_most(&mut self, there: &Slots, before: &BTreeMap<Holder, Slots>) {
        for (disk, count) in there.iter().enumerate() {
            let kept = |holder: &Holder, now: u32| before.get(holder).map_or(0, |slots| slots[disk]).min(now);
            let all: u32 = self.holds.iter().map(|(holder, hold)| kept(holder, hold.slots[disk])).sum();
            let mut rest = count.checked_sub(all).expect("what was held is there");
            for (holder, hold) in &mut self.holds {
                let own = kept(holder, hold.slots[disk]);
                let more = (hold.slots[disk] - own).min(rest);
                hold.slots[disk] = own + more;
                rest -= more;
            }
            self.on_disk[disk] = count - rest;
        }
        self.short = self.holds.iter().filter(|(_, hold)| hold.lacks() > 0).map(|(holder, _)| *holder).collect();
    }

    fn change_need(&mut self, holder: Holder, need: Option<Need>, room: &mut Room) {
        let Some(need) = need else {
            if let Some(hold) = self.holds.remove(&holder) {
                hold.slots.iter().enumerate().for_each(|(disk, count)| {
                    self.on_disk[disk] -= count;
                    room.back(disk, *count);
                });
            }
            return;
        };
        let hold = self.holds.entry(holder).or_insert_with(|| Hold { need, slots: Box::new([0; DISKS_MAX]) });
        hold.need = need;
        let domain = room.domain;
        let mut give_back = |hold: &mut Hold, disk: usize, count: u32| {
            hold.slots[disk] -= count;
            self.on_disk[disk] -= count;
            room.back(disk, count);
        };
        for disk in 0..DISKS_MAX {
            if hold.slots[disk] > 0 && need.disks.0 >> disk & 1 == 0 {
                let all = hold.slots[disk];
                give_back(hold, disk, all);
            }
        }
        let in_domain =
            |hold: &Hold, of: u8| -> u32 { (0..DISKS_MAX).filter(|d| domain[*d] == of).map(|d| hold.slots[d]).sum() };
        for (disk, of) in domain.iter().enumerate() {
            let excess = in_domain(hold, *of).saturating_sub(need.extents).min(hold.slots[disk]);
            give_back(hold, disk, excess);
        }
        let mut excess = hold.total().saturating_sub(need.slots());
        while excess > 0 {
            let most = (0..DISKS_MAX).max_by_key(|disk| hold.slots[*disk]).unwrap_or(0);
            let count = u32::try_from((excess / PART).max(1)).unwrap_or(u32::MAX).min(hold.slots[most]);
            give_back(hold, most, count);
            excess -= u64::from(count);
        }
    }

    /// Gives a holder what it lacks, as far as there is room. Nobody else has less afterwards.
    pub fn fill(&mut self, holder: Holder, room: &mut Room) {
        let Some(mut hold) = self.holds.remove(&holder) else { return };
        while hold.lacks() > 0 {
            let places = hold.need.disks.iter().map(|disk| (disk, room.free[disk.index()].min(hold.slack(disk, room))));
            let best = places.filter(|(_, count)| *count > 0).max_by_key(|(disk, _)| room.free[disk.index()]);
            let Some((disk, most)) = best else { break };
            let part = u32::try_from((hold.lacks() / PART).max(1)).unwrap_or(u32::MAX);
            let count = part.min(most);
            hold.slots[disk.index()] += count;
            self.on_disk[disk.index()] += count;
            room.free[disk.index()] -= count;
        }
        self.holds.insert(holder, hold);
        self.augment(holder, room);
        self.note_short(holder);
    }

    fn augment(&mut self, holder: Holder, room: &mut Room) {
        while let Some(hold) = self.holds.get(&holder).filter(|hold| hold.lacks() > 0) {
            let start: DiskSet = hold.need.disks.iter().filter(|disk| hold.slack(*disk, room) > 0).collect();
            let Some((first, path)) = self.path(start, room) else { return };
            let most = u32::try_from(hold.lacks()).unwrap_or(u32::MAX).min(hold.slack(first, room));
            let count = self.exchange(first, &path, most, room);
            let hold = self.holds.get_mut(&holder).expect("looked up above");
            hold.slots[first.index()] += count;
            self.on_disk[first.index()] += count;
            room.free[first.index()] -= count;
        }
    }

    /// The shortest way to room on one of the `start` disks: exchanges, of which the last one is for slots that are free.
    fn path(&self, start: DiskSet, room: &Room) -> Option<(DiskId, Vec<Exchange>)> {
        let mut came: [Option<Exchange>; DISKS_MAX] = [None; DISKS_MAX];
        let mut seen = start;
        let mut queue: VecDeque<DiskId> = start.iter().collect();
        while let Some(disk) = queue.pop_front() {
            if room.free[disk.index()] > 0 {
                let mut path = Vec::new();
                let mut at = disk;
                while let Some(exchange) = came[at.index()] {
                    path.push(exchange);
                    at = exchange.from;
                }
                path.reverse();
                return Some((at, path));
            }
            for (holder, hold) in self.holds.iter().filter(|(_, hold)| hold.slots[disk.index()] > 0) {
                for to in DiskSet(hold.need.disks.0 & !seen.0).iter() {
                    if hold.movable(disk, to, room) > 0 {
                        seen.insert(to);
                        came[to.index()] = Some(Exchange { holder: *holder, from: disk, to });
                        queue.push_back(to);
                    }
                }
            }
        }
        None
    }

    /// Goes along a path with as many slots as can, `most` at most: they are free on its first disk then.
    fn exchange(&mut self, first: DiskId, path: &[Exchange], most: u32, room: &mut Room) -> u32 {
        let last = path.last().map_or(first, |exchange| exchange.to);
        let movable = |e: &Exchange| self.holds.get(&e.holder).map_or(0, |hold| hold.movable(e.from, e.to, room));
        let count = path.iter().map(movable).min().unwrap_or(u32::MAX).min(most).min(room.free[last.index()]);
        for Exchange { holder, from, to } in path {
            let hold = self.holds.get_mut(holder).expect("a path is of holders");
            hold.slots[from.index()] -= count;
            hold.slots[to.index()] += count;
            self.on_disk[from.index()] -= count;
            self.on_disk[to.index()] += count;
        }
        room.free[last.index()] -= count;
        room.free[first.index()] += count;
        count
    }

    /// Makes room on a disk, until `wanted` slots are free there, if what is held there can be held elsewhere.
    pub fn clear(&mut self, disk: DiskId, wanted: u32, room: &mut Room) {
        while room.free[disk.index()] < wanted {
            let had = std::mem::replace(&mut room.free[disk.index()], 0);
            let found = self.path([disk].into_iter().collect(), room);
            let more = found.map_or(0, |(first, path)| self.exchange(first, &path, wanted - had, room));
            room.free[disk.index()] = had + more;
            if more == 0 {
                return;
            }
        }
    }

    /// The disks with a free slot, and those where one could be made free by [`Holds::clear`].
    #[must_use]
    pub fn with_room(&self, room: &Room) -> DiskSet {
        let all = (0..DISKS_MAX).map(|disk| DiskId(u8::try_from(disk).expect("at most 64 disks")));
        let mut found: DiskSet = all.filter(|disk| room.free[disk.index()] > 0).collect();
        loop {
            let before = found;
            for hold in self.holds.values() {
                for from in DiskSet(hold.need.disks.0 & !found.0).iter() {
                    if DiskSet(hold.need.disks.0 & found.0).iter().any(|to| hold.movable(from, to, room) > 0) {
                        found.insert(from);
                    }
                }
            }
            if found == before {
                return found;
            }
        }
    }

    /// A slot that is held is used.
    ///
    /// # Panics
    /// If none is held there.
    pub fn take(&mut self, holder: Holder, disk: DiskId) {
        let hold = self.holds.get_mut(&holder).expect("what is taken is held");
        hold.slots[disk.index()] -= 1;
        self.on_disk[disk.index()] -= 1;
        self.note_short(holder);
    }

    /// Proves that nobody has more than it needs, nor where it does not, and that the sums agree.
    ///
    /// # Errors
    /// What does not agree.
    pub fn check(&self, room: &Room) -> Result<(), String> {
        let mut on_disk = [0_u64; DISKS_MAX];
        for (holder, hold) in &self.holds {
            if hold.total() > hold.need.slots() {
                return Err(format!("{holder:?} holds {} slots for {:?}", hold.total(), hold.need));
            }
            for (disk, count) in hold.slots.iter().enumerate() {
                on_disk[disk] += u64::from(*count);
                if *count > 0 && hold.need.disks.0 >> disk & 1 == 0 {
                    return Err(format!("{holder:?} holds {count} slots of disk #{disk}, which it cannot use"));
                }
            }
            for disk in hold.need.disks.iter() {
                let held = hold.in_domain(room.domain[disk.index()], room);
                if held > hold.need.extents {
                    return Err(format!("{holder:?} holds {held} slots that fail together, for {:?}", hold.need));
                }
            }
        }
        let short = self.holds.iter().filter(|(_, hold)| hold.lacks() > 0).map(|(holder, _)| *holder);
        if !short.eq(self.short.iter().copied()) {
            return Err(format!("not those that are known lack something: {:?}", self.short));
        }
        match (0..DISKS_MAX).find(|disk| u64::from(self.on_disk[*disk]) != on_disk[*disk]) {
            Some(disk) => Err(format!("{} slots of disk #{disk} are held, not {}", on_disk[disk], self.on_disk[disk])),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
