//! Replicas that are made equal again where they are: what could not be read is written anew, and what is in doubt after a power cut
//! is copied from the replica that guests read.
//!
//! The mover copies them like extents that are moved, under the same claims. The table does not change.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Bound;

use super::super::moves::wave::{Fault, Move};
use super::extents_of;
use crate::base::ids::{DiskId, DiskSet, JobId, VhdId};
use crate::base::limits::{REPAIRS_MAX, REPAIRS_WAITING_MAX};
use crate::base::units::ExtentIndex;
use crate::mover::messages::{CopyTask, MoveId, MoverMessage, Speed};
use crate::owner::Owner;
use crate::owner::outbox::OwnerOutbox;
use crate::placement::{Replica, ReplicaState};
use crate::store::page::PageKey;

/// Whose pace repairs go at: jobs begin with 1.
const REPAIR: JobId = JobId(0);

/// A replica to be made equal to another one of its extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::owner) struct Place {
    pub vhd: VhdId,
    pub extent: ExtentIndex,
    pub disk: DiskId,
}

/// Replicas that are being made equal.
#[derive(Debug, Default)]
pub(in crate::owner) struct Repairs {
    /// Pages in doubt of which nothing has been begun.
    pages: BTreeSet<PageKey>,
    /// The one that was begun last: pages take turns.
    last_page: Option<PageKey>,
    /// Of those that have been begun, what is left.
    left: BTreeMap<PageKey, BTreeSet<Place>>,
    /// Of that, what waits. Apart from what has been reported, of which there may always be more.
    of_pages: VecDeque<Place>,
    /// What is in doubt comes next, not what has been reported.
    doubt_is_next: bool,
    /// Wait for the end of a move of their extent: rows of the one and of the other must not cross.
    postponed: Vec<(Place, bool)>,
    waiting: VecDeque<(Place, bool)>,
    /// Extents that are being moved, and of which replicas, or the copy that is being made, may differ.
    moving: BTreeSet<(VhdId, ExtentIndex)>,
    known: BTreeSet<Place>,
    running: BTreeMap<MoveId, (Place, bool)>,
    /// Of those, what differs anew since they began: the mover may have been there already.
    again: BTreeSet<Place>,
    /// From which disks a replica could not be made equal.
    bad: BTreeMap<Place, DiskSet>,
    announced: bool,
    /// A job may have waited for what has ended.
    told_jobs: bool,
    /// Replicas made equal since the daemon started, and those for which that failed.
    pub made: u64,
    pub failed: u64,
}

impl Repairs {
    /// Whether replicas of the VHD may differ: it matters then which of them goes.
    pub fn concerns(&self, vhd: VhdId) -> bool {
        let (first, last) = (PageKey { vhd, page: 0 }, PageKey { vhd, page: u32::MAX });
        self.pages.range(first..=last).next().is_some() || self.left.range(first..=last).next().is_some()
    }

    /// Whether a replica of the VHD is to be made equal, or may be.
    pub fn knows(&self, vhd: VhdId) -> bool {
        self.concerns(vhd) || self.known.iter().any(|place| place.vhd == vhd)
    }

    /// Whether a replica of the extent is to be made equal.
    pub fn knows_extent(&self, vhd: VhdId, extent: ExtentIndex) -> bool {
        let places = |disk| Place { vhd, extent, disk };
        self.known.range(places(DiskId(0))..=places(DiskId(u8::MAX))).next().is_some()
    }

    /// Whether a replica of the extent is to be made equal, or its page is in doubt and will be gone through.
    pub fn knows_extent_or_page(&self, vhd: VhdId, extent: ExtentIndex) -> bool {
        let (page, _) = PageKey::of(vhd, extent);
        self.pages.contains(&page) || self.left.contains_key(&page) || self.knows_extent(vhd, extent)
    }

    /// Whether a replica of the page is to be made equal.
    pub fn knows_page(&self, page: PageKey) -> bool {
        self.known.iter().any(|place| PageKey::of(place.vhd, place.extent).0 == page)
    }

    /// Whether a replica of the extent is being made equal.
    pub fn is_running(&self, vhd: VhdId, extent: ExtentIndex) -> bool {
        self.running.values().any(|(place, _)| place.vhd == vhd && place.extent == extent)
    }

    /// Whether a replica of the VHD is being made equal.
    pub fn is_running_on(&self, vhd: VhdId) -> bool {
        self.running.values().any(|(place, _)| place.vhd == vhd)
    }

    /// Pages that are gone.
    pub fn forget_pages(&mut self, stays: impl Fn(&PageKey) -> bool) {
        self.pages.retain(&stays);
        self.left.retain(|page, _| stays(page));
    }
}

impl Owner {
    /// At start: what was written to when the daemon ended may differ between replicas. Those that cannot be made equal because
    /// their disk is not there lack what the others have from now on.
    pub(in crate::owner) fn look_for_doubt(&mut self, out: &mut impl OwnerOutbox) {
        let mut absent = Vec::new();
        for vhd in self.vhds.iter() {
            let (id, map) = (vhd.record.id, &vhd.state.map);
            for page in map.pages_with_intent() {
                let key = PageKey { vhd: id, page };
                self.intents.found(key);
                self.repairs.pages.insert(key);
                for extent in extents_of(key, map.extents()) {
                    let replicas = map.lookup(extent).replicas;
                    let dead = |r: &Replica| self.space.disk(r.disk).state.is_failed();
                    let in_sync = || replicas.iter().filter(|r| r.state == ReplicaState::InSync);
                    absent.extend(in_sync().filter(dead).map(|replica| (id, extent, replica.disk)));
                }
            }
        }
        for (vhd, extent, disk) in absent {
            self.wish_stale(vhd, extent, disk);
        }
        self.make_stale(out);
        self.run_repairs(out);
    }

    /// A replica could not be read, and another one can.
    pub(in crate::owner) fn read_failed(
        &mut self,
        vhd: VhdId,
        extent: ExtentIndex,
        disk: DiskId,
        out: &mut impl OwnerOutbox,
    ) {
        if self.repairs.waiting.len() < REPAIRS_WAITING_MAX {
            self.want_repair(Place { vhd, extent, disk }, true);
            self.run_repairs(out);
        }
    }

    /// A write failed that some replicas of the extent may have: they must not be read in turn. Unlike what cannot be read, nothing would
    /// find that again: so if too much waits, the page is in doubt, as after a power cut, and gone through later.
    pub(in crate::owner) fn replicas_differ(&mut self, vhd: VhdId, extent: ExtentIndex, out: &mut impl OwnerOutbox) {
        if self.waves.of_extent(vhd, extent).is_some() {
            self.repairs.moving.insert((vhd, extent));
        }
        let others: Vec<Replica> = self.working_replicas(vhd, extent).into_iter().skip(1).collect();
        if others.is_empty() {
            return;
        }
        let running = self.repairs.running.values().map(|(place, _)| *place);
        self.repairs.again.extend(running.filter(|place| place.vhd == vhd && place.extent == extent));
        if self.repairs.waiting.len() < REPAIRS_WAITING_MAX {
            others.iter().for_each(|other| self.want_repair(Place { vhd, extent, disk: other.disk }, true));
        } else {
            self.doubt_page(PageKey::of(vhd, extent).0, out);
        }
        self.run_repairs(out);
    }

    fn doubt_page(&mut self, page: PageKey, out: &mut impl OwnerOutbox) {
        if !self.keep_intent(page) {
            return;
        }
        if let Some(vhd) = self.vhds.get(page.vhd) {
            vhd.state.map.set_in_doubt(page.page);
        }
        self.repairs.pages.insert(page);
        // Which of its replicas goes matters from now on.
        let goes = |moved: &Move| moved.to.is_none() && PageKey::of(page.vhd, moved.extent).0 == page;
        self.give_up_all(|_, vhd, moved| vhd == page.vhd && goes(moved), out);
    }

    pub(in crate::owner) fn want_repair(&mut self, place: Place, may_turn: bool) {
        if self.repairs.known.insert(place) {
            self.repairs.waiting.push_back((place, may_turn));
        }
    }

    /// Begins as many as may be on their way at the same time.
    pub(in crate::owner) fn run_repairs(&mut self, out: &mut impl OwnerOutbox) {
        while self.repairs.running.len() < REPAIRS_MAX {
            let Some((place, may_turn)) = self.next_repair() else { break };
            self.begin_repair(place, may_turn, out);
        }
        if std::mem::take(&mut self.repairs.told_jobs) {
            self.run_jobs(out);
        }
    }

    /// What was reported and what is in doubt take turns: of neither there may be an end.
    fn next_repair(&mut self) -> Option<(Place, bool)> {
        let doubt_first = self.repairs.doubt_is_next;
        self.repairs.doubt_is_next = !doubt_first;
        if !doubt_first && let Some(next) = self.repairs.waiting.pop_front() {
            return Some(next);
        }
        let in_doubt = self.next_in_doubt().map(|place| (place, true));
        in_doubt.or_else(|| self.repairs.waiting.pop_front())
    }

    /// The next place of the page that has been begun, or of the page behind it.
    fn next_in_doubt(&mut self) -> Option<Place> {
        while self.repairs.of_pages.is_empty() {
            let pages = &self.repairs.pages;
            let behind = |last| pages.range((Bound::Excluded(last), Bound::Unbounded)).next();
            let page = self.repairs.last_page.and_then(behind).or_else(|| pages.first()).copied()?;
            self.repairs.pages.remove(&page);
            self.repairs.last_page = Some(page);
            self.begin_page(page);
        }
        self.repairs.of_pages.pop_front()
    }

    /// A move has ended: what waited for it is looked at again.
    pub(in crate::owner) fn resume_repairs(&mut self, out: &mut impl OwnerOutbox) {
        // Other replicas than before, maybe.
        for (vhd, extent) in std::mem::take(&mut self.repairs.moving) {
            self.replicas_differ(vhd, extent, out);
        }
        if !self.repairs.postponed.is_empty() {
            let postponed = std::mem::take(&mut self.repairs.postponed);
            self.repairs.waiting.extend(postponed);
            self.run_repairs(out);
        }
    }

    /// Whether rows of the VHD are about to change because replicas of it have missed something.
    pub(in crate::owner) fn is_mending(&self, vhd: VhdId) -> bool {
        self.repairs.is_running_on(vhd) || self.stale.concerns(vhd)
    }

    /// All replicas of the page but those that guests read.
    fn begin_page(&mut self, page: PageKey) {
        let Some(vhd) = self.vhds.get(page.vhd) else { return };
        let state = vhd.state.clone();
        let mut left = BTreeSet::new();
        for extent in extents_of(page, state.map.extents()) {
            let in_sync = self.working_replicas(page.vhd, extent);
            // Of one replica there is nothing to be made equal, but the checksums are not known.
            let first = usize::from(in_sync.len() > 1 || !state.map.has_checksums());
            for replica in in_sync.iter().skip(first) {
                let place = Place { vhd: page.vhd, extent, disk: replica.disk };
                // It may have been reported.
                if self.repairs.known.insert(place) {
                    self.repairs.of_pages.push_back(place);
                }
                left.insert(place);
            }
        }
        if left.is_empty() {
            state.map.clear_doubt(page.page);
            self.repairs.told_jobs |= !self.repairs.concerns(page.vhd);
        } else {
            self.repairs.left.insert(page, left);
        }
    }

    /// Replicas in sync on disks that work, in the order in which they are read.
    pub(in crate::owner) fn working_replicas(&self, vhd: VhdId, extent: ExtentIndex) -> Vec<Replica> {
        let Some(vhd) = self.vhds.get(vhd).filter(|vhd| extent.0 < vhd.state.map.extents()) else { return Vec::new() };
        let replicas = vhd.state.map.lookup(extent).replicas;
        let works = |r: &Replica| r.state == ReplicaState::InSync && !self.space.disk(r.disk).state.is_failed();
        replicas.iter().filter(works).collect()
    }

    fn begin_repair(&mut self, place: Place, may_turn: bool, out: &mut impl OwnerOutbox) {
        // The replica that was about to go may be the only one that it can come from.
        let goes = |moved: &Move| moved.extent == place.extent && moved.to.is_none();
        self.give_up_all(|_, vhd, moved| vhd == place.vhd && goes(moved), out);
        if self.waves.of_extent(place.vhd, place.extent).is_some() {
            self.repairs.postponed.push((place, may_turn));
            return;
        }
        let working = self.working_replicas(place.vhd, place.extent);
        let map = self.vhds.get(place.vhd).map(|vhd| &vhd.state.map);
        let in_doubt = map.is_some_and(|map| map.is_in_doubt(place.extent));
        let is_read = working.first().is_some_and(|read| read.disk == place.disk);
        let only_checked = in_doubt && is_read && working.len() == 1 && self.is_checked(place.vhd);
        if in_doubt && is_read && !only_checked {
            // It is the one that the others are made equal to.
            return self.repair_done(place, false);
        }
        let target = working.iter().find(|replica| replica.disk == place.disk);
        let bad = self.repairs.bad.get(&place).copied().unwrap_or_default();
        let source =
            working.iter().find(|replica| only_checked || replica.disk != place.disk && !bad.contains(replica.disk));
        let (Some(source), Some(target), Some(vhd)) = (source, target, self.vhds.get(place.vhd)) else {
            // It is stale by now, or elsewhere, or the only one left.
            return self.repair_done(place, false);
        };
        if !std::mem::replace(&mut self.repairs.announced, true) {
            out.to_mover(MoverMessage::SetSpeed { job: REPAIR, speed: Speed::default() });
        }
        let id = self.waves.next_move();
        let (vhd, extent) = (vhd.state.clone(), place.extent);
        self.repairs.running.insert(id, (place, may_turn));
        out.to_mover(MoverMessage::Copy(CopyTask { id, job: REPAIR, vhd, extent, source: *source, target: *target }));
    }

    fn repair_done(&mut self, place: Place, made: bool) {
        self.repairs.known.remove(&place);
        self.repairs.bad.remove(&place);
        self.repairs.again.remove(&place);
        self.scrub_repair_ended(place, made);
        // A scrub may have waited for it.
        self.repairs.told_jobs = true;
        let (page, _) = PageKey::of(place.vhd, place.extent);
        let Some(left) = self.repairs.left.get_mut(&page) else { return };
        if left.remove(&place) && left.is_empty() {
            self.repairs.left.remove(&page);
            // Unless it has come into doubt once more.
            if let Some(vhd) = self.vhds.get(page.vhd).filter(|_| !self.repairs.pages.contains(&page)) {
                vhd.state.map.clear_doubt(page.page);
            }
            self.repairs.told_jobs |= !self.repairs.concerns(page.vhd);
        }
    }

    /// The mover is done with a copy, or has given it up. False if it is not one of these.
    pub(in crate::owner) fn repair_ended(
        &mut self,
        id: MoveId,
        ended: Result<bool, Fault>,
        out: &mut impl OwnerOutbox,
    ) -> bool {
        let Some((place, may_turn)) = self.repairs.running.get(&id).copied() else { return false };
        self.repairs.told_jobs = true;
        if let Err(fault) = ended {
            // It runs until it is known what becomes of the replica. A disk that fails ends moves, and jobs begin with others: one of this
            // extent would cross with the row that makes the replica stale.
            self.disk_error(fault.disk, fault.error, false, out);
            self.repair_failed(place, may_turn, fault, out);
        }
        self.repairs.running.remove(&id);
        match ended {
            Ok(true) => {
                self.repairs.made += 1;
                if self.repairs.again.remove(&place) {
                    self.repairs.waiting.push_back((place, may_turn));
                } else {
                    self.repair_done(place, true);
                }
            }
            // The extent has been moved, or dropped: looks again.
            Ok(false) => self.repairs.waiting.push_back((place, may_turn)),
            Err(_) => {}
        }
        self.run_repairs(out);
        true
    }

    fn repair_failed(&mut self, place: Place, may_turn: bool, fault: Fault, out: &mut impl OwnerOutbox) {
        self.repairs.failed += 1;
        if fault.disk == place.disk {
            let working = self.working_replicas(place.vhd, place.extent);
            // Of the only one nothing was to be written.
            let here = working.iter().find(|replica| working.len() > 1 && replica.disk == place.disk);
            if let Some(&replica) = here {
                self.note_bad_place(place.vhd, place.extent, replica, fault.error, out);
            }
            self.wish_stale(place.vhd, place.extent, place.disk);
            self.make_stale(out);
        } else {
            let (page, _) = PageKey::of(place.vhd, place.extent);
            let in_doubt = self.vhds.get(place.vhd).is_some_and(|vhd| vhd.state.map.is_in_doubt(place.extent));
            if self.repairs.left.remove(&page).is_some() || in_doubt {
                // What guests read cannot be read as a whole, so that the others are not made equal to it: the page stays in
                // doubt, and is always read in the same order.
                log::warn!(
                    "replicas of extent {} of VHD #{} stay as they are, since disk '{}' cannot be read there",
                    place.extent.0,
                    place.vhd.0,
                    self.pool.disk_name(fault.disk)
                );
            } else {
                if may_turn {
                    // The one that was to be read is bad itself, in another place: the other way round.
                    self.want_repair(Place { disk: fault.disk, ..place }, false);
                }
                self.repairs.bad.entry(place).or_default().insert(fault.disk);
                // As long as there is one more that it could come from.
                return self.repairs.waiting.push_back((place, false));
            }
        }
        self.repair_done(place, false);
    }
}
