//! Changes of the table that are not durable yet, and which of them may become so. Pure.
//!
//! This is ordering rule 1. A written block may be committed only when every sync it needs has succeeded; taking away may
//! be committed at once. What is not covered yet waits here, and whatever takes it away meanwhile takes it away here, too:
//! otherwise a commit after the next sync would bring discarded data back.
//!
//! Changes of one extent are merged, so that memory is bounded by the extents (and in the worst case their blocks) that
//! changed, not by the number of changes.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::ops::Bound;

use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::limits::COPIES_MAX;
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use crate::placement::ReplicaSet;
use crate::shared::disk::{SyncNumber, SyncPoint};

use super::batch::{Committable, ExtentEdit};
use super::change::{Change, ChangeKind};
use super::edit::MovedExtent;
use super::page::PageKey;

type ExtentKey = (VhdId, ExtentIndex);
type Point = (DiskId, SyncNumber);

const KEY_MIN: ExtentKey = (VhdId(0), ExtentIndex(0));
const KEY_MAX: ExtentKey = (VhdId(u32::MAX), ExtentIndex(u32::MAX));

/// Written blocks that need the same syncs.
#[derive(Clone, Copy, Debug)]
struct Group {
    blocks: BlockMask,
    needs: [Option<SyncPoint>; COPIES_MAX],
    /// Changes that end with this group.
    count: u64,
    /// Where the group is registered in `Pending::waiting`.
    waits_for: Option<Point>,
}

#[derive(Clone, Debug, Default)]
struct Entry {
    /// The newest seen.
    generation: Generation,
    /// Dropped since the last commit.
    freed: Option<Generation>,
    /// By generation: nearly always one.
    cleared: Vec<(Generation, BlockMask)>,
    /// Where the extent is, by the newest generation.
    replicas: Option<ReplicaSet>,
    /// `replicas` may be committed without a written block.
    placed: bool,
    /// Changes that end with the next commit.
    count: u64,
    groups: Vec<Group>,
}

/// Changes that are not durable yet.
#[derive(Debug, Default)]
pub struct Pending {
    entries: BTreeMap<ExtentKey, Entry>,
    /// Entries with something that need not wait.
    ready: BTreeSet<ExtentKey>,
    /// Entries with groups, by the first sync that such a group waits for.
    waiting: BTreeSet<(Point, ExtentKey)>,
    /// Not tied to an entry: changes of deleted VHDs.
    counts: BTreeMap<VhdId, u64>,
    freed: Vec<(DiskId, SlotIndex)>,
    deleted: HashSet<VhdId>,
    /// Syncs that nobody waits for any more, up to this one.
    excused: BTreeMap<(VhdId, DiskId), SyncNumber>,
    #[cfg(test)]
    sabotage: Option<tests::Sabotage>,
}

impl Pending {
    /// Nothing pending.
    #[must_use]
    pub fn new() -> Pending {
        Pending::default()
    }

    /// Whether every change handed over has been taken.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.counts.is_empty() && self.freed.is_empty()
    }

    /// The disks whose syncs the waiting changes need.
    #[must_use]
    pub fn waits_for_disks(&self) -> DiskSet {
        let mut disks = DiskSet::default();
        let mut from = Bound::Unbounded;
        while let Some(&((disk, _), _)) = self.waiting.range((from, Bound::Unbounded)).next() {
            disks.insert(disk);
            from = Bound::Excluded(((disk, SyncNumber(u64::MAX)), KEY_MAX));
        }
        disks
    }

    /// Takes in a change.
    ///
    /// # Panics
    /// If an extent is written or placed nowhere (a bug of whoever made the change).
    pub fn push(&mut self, change: Change) {
        if let ChangeKind::Freed { freed } = change.kind {
            self.freed.extend(freed.iter().map(|replica| (replica.disk, replica.slot)));
        }
        if self.deleted.contains(&change.vhd) {
            *self.counts.entry(change.vhd).or_default() += 1;
            return;
        }
        let key = (change.vhd, change.extent);
        let entry = self.entries.entry(key).or_default();
        let generation = change.generation;
        let dropped = entry.freed == Some(entry.generation);
        if generation < entry.generation || (generation == entry.generation && dropped) {
            entry.count += 1;
            self.ready.insert(key);
            return;
        }
        if generation > entry.generation {
            // What was written to the slots of an older generation is not the extent's content any more.
            let groups = std::mem::take(&mut entry.groups);
            entry.count += groups.iter().map(|group| group.count).sum::<u64>();
            (entry.replicas, entry.placed, entry.generation) = (None, false, generation);
            self.unregister(key, &groups);
            self.ready.insert(key);
        }
        self.merge(key, change.kind);
    }

    fn merge(&mut self, key: ExtentKey, kind: ChangeKind) {
        let keep_cleared = self.sabotage_keeps_cleared();
        let marks = &self.excused;
        let excused = |need: SyncPoint| marks.get(&(key.0, need.disk)).is_some_and(|number| need.number <= *number);
        let entry = self.entries.get_mut(&key).expect("made by push");
        match kind {
            ChangeKind::Written { replicas, blocks, mut needs } => {
                for need in needs.iter_mut().filter(|need| need.is_some_and(&excused)) {
                    *need = None;
                }
                assert!(!replicas.is_absent(), "an extent was written nowhere");
                entry.replicas = Some(replicas);
                match entry.groups.iter_mut().find(|group| group.needs == needs) {
                    Some(group) => {
                        group.blocks = group.blocks.or(blocks);
                        group.count += 1;
                    }
                    None => {
                        let waits_for = needs.iter().flatten().next().map(point);
                        entry.groups.push(Group { blocks, needs, count: 1, waits_for });
                        match waits_for {
                            Some(point) => self.waiting.insert((point, key)),
                            None => self.ready.insert(key),
                        };
                    }
                }
                return;
            }
            ChangeKind::Cleared { blocks } => {
                match entry.cleared.last_mut() {
                    Some((generation, cleared)) if *generation == entry.generation => *cleared = cleared.or(blocks),
                    _ => entry.cleared.push((entry.generation, blocks)),
                }
                let removed = entry.take_away(blocks, keep_cleared);
                self.unregister(key, &removed);
            }
            ChangeKind::Placed { replicas } => {
                assert!(!replicas.is_absent(), "an extent was placed nowhere");
                (entry.replicas, entry.placed) = (Some(replicas), true);
            }
            ChangeKind::Freed { .. } => {
                (entry.replicas, entry.placed) = (None, false);
                entry.cleared.clear();
                entry.freed = Some(entry.generation);
                let removed = entry.take_away(BlockMask::ALL, keep_cleared);
                self.unregister(key, &removed);
            }
        }
        self.entries.get_mut(&key).expect("made by push").count += 1;
        self.ready.insert(key);
    }

    /// Drops everything of a VHD, now and later: its rows are about to be deleted.
    pub fn delete_vhd(&mut self, vhd: VhdId) {
        self.deleted.insert(vhd);
        self.excused.retain(|(of, _), _| *of != vhd);
        self.drop_from(vhd, ExtentIndex(0));
    }

    /// Drops everything of a VHD's extents from `extents` on, and of all blocks but `last` of the extent before: their rows are
    /// about to be deleted.
    pub fn shrink(&mut self, vhd: VhdId, extents: u32, last: BlockMask) {
        self.drop_from(vhd, ExtentIndex(extents));
        let key = (vhd, ExtentIndex(extents - 1));
        if let Some(entry) = self.entries.get_mut(&key) {
            let removed = entry.take_away(BlockMask::ALL.without(last), false);
            self.unregister(key, &removed);
            self.ready.insert(key);
        }
    }

    fn drop_from(&mut self, vhd: VhdId, first: ExtentIndex) {
        let keys: Vec<ExtentKey> =
            self.entries.range((vhd, first)..=(vhd, ExtentIndex(u32::MAX))).map(|(&key, _)| key).collect();
        for key in keys {
            let entry = self.entries.remove(&key).expect("just seen");
            self.ready.remove(&key);
            let count = entry.count + entry.groups.iter().map(|group| group.count).sum::<u64>();
            *self.counts.entry(vhd).or_default() += count;
            for group in &entry.groups {
                if let Some(point) = group.waits_for {
                    self.waiting.remove(&(point, key));
                }
            }
        }
    }

    /// The extent is moved by an edit that is committed after all that was taken so far, and before all that will be: what is
    /// pending for this content is on the new place, too, and was covered there by the sync that went before the edit.
    pub fn moved(&mut self, vhd: VhdId, moved: &MovedExtent) {
        let key = (vhd, moved.extent);
        let is_it = self.entries.get(&key).is_some_and(|entry| entry.generation == moved.generation);
        if let (Some(from), true) = (moved.from, is_it) {
            self.forgo(key, SyncPoint { disk: from, number: SyncNumber(u64::MAX) });
        }
    }

    /// Moves of the VHD to this disk have been given up: what needed it is on other disks. Syncs up to this one are not waited
    /// for any more, neither by what is pending nor by what was written before and comes later.
    pub fn excuse(&mut self, vhd: VhdId, point: SyncPoint) {
        self.excused.insert((vhd, point.disk), point.number);
        let keys: Vec<ExtentKey> =
            self.entries.range((vhd, ExtentIndex(0))..=(vhd, ExtentIndex(u32::MAX))).map(|(&key, _)| key).collect();
        keys.into_iter().for_each(|key| self.forgo(key, point));
    }

    /// What is pending for the extent does not wait for syncs of the disk up to this one.
    fn forgo(&mut self, key: ExtentKey, upto: SyncPoint) {
        let entry = self.entries.get_mut(&key).expect("looked up by the caller");
        let before: Vec<Point> = entry.groups.iter().filter_map(|group| group.waits_for).collect();
        for group in &mut entry.groups {
            let forgone = |need: &SyncPoint| need.disk == upto.disk && need.number <= upto.number;
            for need in group.needs.iter_mut().filter(|need| need.as_ref().is_some_and(forgone)) {
                *need = None;
            }
            group.waits_for = group.needs.iter().flatten().next().map(point);
        }
        let waits: Vec<Point> = entry.groups.iter().filter_map(|group| group.waits_for).collect();
        if entry.groups.iter().any(|group| group.waits_for.is_none()) {
            self.ready.insert(key);
        }
        for point in before {
            self.waiting.remove(&(point, key));
        }
        self.waiting.extend(waits.into_iter().map(|point| (point, key)));
    }

    /// Takes everything that may be committed now.
    pub fn take_committable(&mut self, is_synced: impl Fn(SyncPoint) -> bool) -> Committable {
        self.find_covered(&is_synced);
        let mut taken = Committable { freed: std::mem::take(&mut self.freed), ..Committable::default() };
        let mut counts = std::mem::take(&mut self.counts);
        for key in std::mem::take(&mut self.ready) {
            let (edit, count) = self.take_entry(key, &is_synced);
            if count > 0 {
                *counts.entry(key.0).or_default() += count;
            }
            if !edit.is_empty() {
                taken.extents.push(edit);
            }
        }
        taken.counts = counts.into_iter().collect();
        taken
    }

    /// Marks the entries ready that wait for a sync that has succeeded.
    fn find_covered(&mut self, is_synced: &impl Fn(SyncPoint) -> bool) {
        let mut from = Bound::Unbounded;
        while let Some(&(found, _)) = self.waiting.range((from, Bound::Unbounded)).next() {
            let (disk, number) = found;
            if is_synced(SyncPoint { disk, number }) || self.sabotage_ignores_needs() {
                let covered: Vec<ExtentKey> =
                    self.waiting.range((found, KEY_MIN)..=(found, KEY_MAX)).map(|&(_, key)| key).collect();
                for key in covered {
                    self.waiting.remove(&(found, key));
                    self.ready.insert(key);
                }
            }
            from = Bound::Excluded((found, KEY_MAX));
        }
    }

    fn take_entry(&mut self, key: ExtentKey, is_synced: &impl Fn(SyncPoint) -> bool) -> (ExtentEdit, u64) {
        let ignore_needs = self.sabotage_ignores_needs();
        let entry = self.entries.get_mut(&key).expect("what is ready is there");
        let mut count = std::mem::take(&mut entry.count);
        let mut present = BlockMask::NONE;
        let mut covered = false;
        let before = std::mem::take(&mut entry.groups);
        for mut group in before.iter().copied() {
            let unmet = group.needs.iter().flatten().find(|need| !is_synced(**need) && !ignore_needs);
            match unmet {
                None => {
                    covered = true;
                    present = present.or(group.blocks);
                    count += group.count;
                }
                Some(need) => {
                    group.waits_for = Some(point(need));
                    entry.groups.push(group);
                }
            }
        }
        let (page, place) = PageKey::of(key.0, key.1);
        let edit = ExtentEdit {
            key: page,
            place,
            freed: entry.freed.take(),
            generation: entry.generation,
            cleared: std::mem::take(&mut entry.cleared),
            replicas: entry.replicas.filter(|_| covered || entry.placed),
            present,
        };
        entry.placed = false;
        let waits: Vec<Point> = entry.groups.iter().filter_map(|group| group.waits_for).collect();
        if waits.is_empty() {
            self.entries.remove(&key);
        }
        for point in before.iter().filter_map(|group| group.waits_for) {
            self.waiting.remove(&(point, key));
        }
        self.waiting.extend(waits.into_iter().map(|point| (point, key)));
        (edit, count)
    }

    /// Forgets what `gone` groups of an entry waited for, unless others of its groups wait for the same.
    fn unregister(&mut self, key: ExtentKey, gone: &[Group]) {
        let left = self.entries.get(&key).map_or(&[][..], |entry| &entry.groups);
        for point in gone.iter().filter_map(|group| group.waits_for) {
            if !left.iter().any(|group| group.waits_for == Some(point)) {
                self.waiting.remove(&(point, key));
            }
        }
    }

    #[cfg(test)]
    fn sabotage_ignores_needs(&self) -> bool {
        self.sabotage == Some(tests::Sabotage::IgnoreNeeds)
    }

    #[cfg(not(test))]
    fn sabotage_ignores_needs(&self) -> bool {
        false
    }

    #[cfg(test)]
    fn sabotage_keeps_cleared(&self) -> bool {
        self.sabotage == Some(tests::Sabotage::KeepCleared)
    }

    #[cfg(not(test))]
    fn sabotage_keeps_cleared(&self) -> bool {
        false
    }
}

impl Entry {
    /// Removes blocks from what is waiting; returns the groups of which nothing is left.
    fn take_away(&mut self, blocks: BlockMask, sabotaged: bool) -> Vec<Group> {
        if sabotaged {
            return Vec::new();
        }
        for group in &mut self.groups {
            group.blocks = group.blocks.without(blocks);
        }
        let removed: Vec<Group> = self.groups.extract_if(.., |group| group.blocks.is_empty()).collect();
        self.count += removed.iter().map(|group| group.count).sum::<u64>();
        removed
    }
}

fn point(need: &SyncPoint) -> Point {
    (need.disk, need.number)
}
