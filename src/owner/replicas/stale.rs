//! Replicas that missed a write: the table says so before the write is acknowledged (ordering rule 7).
//!
//! Wishes are gathered while an edit is under way, and go into the next one together. The view says so only once the table does:
//! until then other writes go to the replica, too, miss it, and wait for the same edit.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::STALE_ROWS_MAX;
use crate::base::units::{ExtentIndex, Generation};
use crate::owner::Owner;
use crate::owner::outbox::{Event, OwnerOutbox};
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::store::edit::{EditFailed, EditId, MovedExtent, StoreEdit};
use crate::store::page::PageKey;

type Place = (VhdId, ExtentIndex, DiskId);

/// Replicas that are being made stale.
#[derive(Debug, Default)]
pub(in crate::owner) struct Stale {
    wishes: BTreeSet<Place>,
    /// The edit under way, and the content that each replica had when it began.
    making: Option<(EditId, BTreeMap<Place, Generation>)>,
    /// The store has failed: none can be made stale any more.
    broken: bool,
    /// Replicas made stale since the daemon started.
    pub made: u64,
}

impl Stale {
    /// Whether a replica is stale, or about to be.
    fn is_going(&self, place: Place) -> bool {
        let making = self.making.as_ref().is_some_and(|(_, places)| places.contains_key(&place));
        making || self.wishes.contains(&place)
    }

    /// Whether replicas of the VHD are about to be stale.
    pub fn concerns(&self, vhd: VhdId) -> bool {
        let (first, last) = ((vhd, ExtentIndex(0), DiskId(0)), (vhd, ExtentIndex(u32::MAX), DiskId(u8::MAX)));
        let making = self.making.as_ref().is_some_and(|(_, places)| places.range(first..=last).next().is_some());
        making || self.wishes.range(first..=last).next().is_some()
    }

    /// Whether a replica of the extent is about to be stale.
    pub fn concerns_extent(&self, vhd: VhdId, extent: ExtentIndex) -> bool {
        let (first, last) = ((vhd, extent, DiskId(0)), (vhd, extent, DiskId(u8::MAX)));
        let making = self.making.as_ref().is_some_and(|(_, places)| places.range(first..=last).next().is_some());
        making || self.wishes.range(first..=last).next().is_some()
    }

    /// Whether replicas of the VHD on the disk are about to be stale.
    pub(super) fn concerns_disk(&self, vhd: VhdId, disk: DiskId) -> bool {
        let (first, last) = ((vhd, ExtentIndex(0), DiskId(0)), (vhd, ExtentIndex(u32::MAX), DiskId(u8::MAX)));
        let is_it = |place: &Place| place.2 == disk;
        let mut making = self.making.iter().flat_map(|(_, places)| places.range(first..=last)).map(|(place, _)| place);
        making.any(is_it) || self.wishes.range(first..=last).any(is_it)
    }
}

impl Owner {
    /// Whether a replica is about to be stale: the table does not say so yet, nor does the view.
    #[must_use]
    pub fn is_going_stale(&self, vhd: VhdId, extent: ExtentIndex, disk: DiskId) -> bool {
        self.stale.is_going((vhd, extent, disk))
    }

    /// Wishes that a replica be stale. False if there is no other one in sync: then it is what the extent consists of.
    pub(super) fn wish_stale(&mut self, vhd: VhdId, extent: ExtentIndex, disk: DiskId) -> bool {
        let place = (vhd, extent, disk);
        if self.stale.is_going(place) {
            return true;
        }
        let Some(of) = self.vhds.get(vhd).filter(|vhd| !vhd.frozen) else { return false };
        if self.stale.broken || !self.has_other(vhd, extent, of.state.map.lookup(extent).replicas, disk) {
            return false;
        }
        self.stale.wishes.insert(place);
        true
    }

    /// Whether a replica in sync is left, on a disk that works, if the one on `disk` is none any more.
    fn has_other(&self, vhd: VhdId, extent: ExtentIndex, replicas: ReplicaSet, disk: DiskId) -> bool {
        let lasts = |replica: Replica| {
            replica.state == ReplicaState::InSync
                && replica.disk != disk
                && !self.space.disk(replica.disk).state.is_failed()
                && !self.stale.is_going((vhd, extent, replica.disk))
        };
        replicas.iter().any(lasts)
    }

    /// Wishes that all replicas of a VHD on a disk be stale that may lack something: those in pages with a write intent. How many
    /// are about to be; `None` if one of them is the last of its extent.
    pub(super) fn wish_stale_what_was_written(&mut self, id: VhdId, disk: DiskId) -> Option<usize> {
        let map = &self.vhds.get(id)?.state.map;
        let in_sync = |extent: &ExtentIndex| {
            let replica = map.lookup(*extent).replicas.on(disk);
            replica.is_some_and(|replica| replica.state == ReplicaState::InSync)
        };
        let (mut written, mut sole) = (Vec::new(), false);
        for extent in map.placed_from(ExtentIndex(0)).filter(in_sync) {
            let (page, _) = PageKey::of(id, extent);
            let others = map.lookup(extent).replicas.in_sync() > 1;
            // What has no other replica is written without an intent.
            sole |= !others;
            if others && self.intents.has(page) {
                written.push(extent);
            }
        }
        let wished = written.iter().filter(|extent| self.wish_stale(id, **extent, disk)).count();
        (wished == written.len() && !sole).then_some(wished)
    }

    /// Begins an edit for what is wished, unless one is under way. True if there were wishes and all of them are void by now.
    pub(in crate::owner) fn make_stale(&mut self, out: &mut impl OwnerOutbox) -> bool {
        if self.stale.making.is_some() || self.stale.broken || self.stale.wishes.is_empty() {
            return false;
        }
        let mut places = BTreeMap::new();
        let mut rows: Vec<StoreEdit> = Vec::new();
        while rows.iter().map(StoreEdit::rows).sum::<usize>() < STALE_ROWS_MAX
            && let Some(place) = self.stale.wishes.pop_first()
        {
            let (id, extent, disk) = place;
            let Some(vhd) = self.vhds.get(id).filter(|vhd| !vhd.frozen) else { continue };
            // Wishes are made while nothing moves the extent, and nothing begins to while there are any: the rows of both would cross.
            debug_assert!(self.waves.of_extent(id, extent).is_none(), "extent {} is being moved", extent.0);
            let seen = vhd.state.map.lookup(extent);
            let Some(replica) = seen.replicas.on(disk).filter(|r| r.state == ReplicaState::InSync) else { continue };
            // Of an extent two replicas may go stale in one edit.
            let mut replicas = seen.replicas.settled();
            for going in replicas.iter().filter(|r| places.contains_key(&(id, extent, r.disk))).collect::<Vec<_>>() {
                replicas = stale_in(replicas, going);
            }
            let replicas = stale_in(replicas, replica);
            let moved = MovedExtent { extent, generation: seen.generation, from: Some(disk), replicas };
            match rows.last_mut() {
                Some(StoreEdit::Move { vhd, moves }) if *vhd == id => moves.push(moved),
                _ => rows.push(StoreEdit::Move { vhd: id, moves: vec![moved] }),
            }
            places.insert(place, seen.generation);
        }
        if rows.is_empty() {
            return true;
        }
        let edit = self.next_edit();
        self.stale.making = Some((edit, places));
        out.edit(edit, rows);
        false
    }

    /// Replicas are durably stale, or the store has failed. False if the edit is another one.
    pub(in crate::owner) fn stale_edit_done(
        &mut self,
        edit: EditId,
        result: Result<(), EditFailed>,
        out: &mut impl OwnerOutbox,
    ) -> bool {
        let Some((_, places)) = self.stale.making.take_if(|(making, _)| *making == edit) else { return false };
        match result {
            Ok(()) => {
                let mut degraded = BTreeSet::new();
                for ((id, extent, disk), generation) in places {
                    if self.publish_stale(id, extent, disk, generation) {
                        degraded.insert((id, disk));
                    }
                }
                self.tell_degraded(degraded, out);
                self.run_jobs(out);
                self.look_at_redundancy(None);
            }
            Err(_) => {
                self.stale.broken = true;
                self.stale.wishes.clear();
            }
        }
        self.answer_missed(out);
        true
    }

    fn tell_degraded(&mut self, degraded: BTreeSet<(VhdId, DiskId)>, out: &mut impl OwnerOutbox) {
        for (id, disk) in degraded {
            let Some(vhd) = self.vhds.get_mut(id).filter(|vhd| !vhd.told_degraded.contains(disk)) else { continue };
            vhd.told_degraded.insert(disk);
            out.event(Event::VhdDegraded { vhd: vhd.record.name.clone(), disk: self.pool.disk_name(disk) });
        }
    }

    fn publish_stale(&mut self, id: VhdId, extent: ExtentIndex, disk: DiskId, generation: Generation) -> bool {
        let Some(vhd) = self.vhds.get(id) else { return false };
        let seen = vhd.state.map.lookup(extent);
        let Some(replica) = seen.replicas.on(disk).filter(|_| seen.generation == generation) else { return false };
        vhd.state.map.set_replicas(extent, stale_in(seen.replicas, replica));
        self.stale.made += 1;
        true
    }
}

/// The copies with that one stale, in the same order.
fn stale_in(replicas: ReplicaSet, replica: Replica) -> ReplicaSet {
    replicas.with(replica.disk, Replica { state: ReplicaState::Stale, ..replica })
}
