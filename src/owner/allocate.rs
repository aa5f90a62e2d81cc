//! Requests of reactors: place an extent, drop an extent; and waiting for room.

use std::collections::BTreeSet;
use std::time::Duration;

use super::Owner;
use super::moves::wave::Fault;
use super::outbox::{Event, OwnerOutbox, SlotRun};
use super::quota::Reached;
use super::reservation::Patience;
use super::vhds::Vhd;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, DiskSet, ReactorId, VhdId};
use crate::base::limits::RECLAIM_WAIT_MILLIS;
use crate::base::units::{BlockMask, ExtentIndex};
use crate::engine::IoError;
use crate::placement::holds::Holder;
use crate::placement::record::WhenFull;
use crate::reactor::messages::{AllocateError, ReactorMessage};
use crate::store::change::{Change, ChangeKind};

/// An allocation request that is not answered yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Waiter {
    pub reactor: ReactorId,
    pub ticket: u64,
    pub vhd: VhdId,
    pub extent: ExtentIndex,
    pub deadline: Nanos,
    /// Whether it may grow when its time is up, and waits longer if it finds no room then either.
    pub grows: bool,
}

/// What trying to place an extent came to.
enum Attempt {
    Answer(Result<(), AllocateError>),
    NoRoom,
    Quota(Reached),
}

impl Owner {
    pub(super) fn allocate(&mut self, request: Waiter, now: Nanos, out: &mut impl OwnerOutbox) {
        match self.try_place(&request, Patience::Waits, out) {
            Attempt::Answer(result) => answer(&request, result, out),
            Attempt::NoRoom => self.wait_for_room(request, now, out),
            Attempt::Quota(reached) => {
                self.tell_quota(request.vhd, reached, out);
                self.wait_for_quota(request, now, out);
            }
        }
    }

    fn try_place(&mut self, request: &Waiter, patience: Patience, out: &mut impl OwnerOutbox) -> Attempt {
        let Some(vhd) = self.vhds.get(request.vhd) else {
            return Attempt::Answer(Err(AllocateError::Deleted));
        };
        // Requests are checked against the size of their VHD; but one that its ring has given up may be answered here only after
        // the VHD was detached and shrunk.
        if request.extent.0 >= vhd.state.map.extents() {
            return Attempt::Answer(Err(AllocateError::Deleted));
        }
        if !vhd.state.map.lookup(request.extent).replicas.is_absent() {
            return Attempt::Answer(Ok(()));
        }
        if self.metadata.low {
            return Attempt::Answer(Err(AllocateError::MetadataFull));
        }
        if let Some(reached) = self.quota_against_extent(request.vhd) {
            return Attempt::Quota(reached);
        }
        let Some((replicas, grown)) = self.place_extent(request.vhd, request.extent, patience) else {
            return Attempt::NoRoom;
        };
        self.quota_let_pass(request.vhd);
        let vhd = self.vhds.get_mut(request.vhd).expect("just placed");
        vhd.told_out_of_room = false;
        if let Some(disk) = grown {
            out.event(Event::VhdExpanded { vhd: vhd.record.name.clone(), disk: self.pool.disk_name(disk) });
        }
        for replica in replicas.iter() {
            self.usage.update(&self.space, replica.disk, out);
        }
        Attempt::Answer(Ok(()))
    }

    fn wait_for_room(&mut self, mut request: Waiter, now: Nanos, out: &mut impl OwnerOutbox) {
        let Some(vhd) = self.vhds.get(request.vhd) else { return };
        let is_reclaiming = self.space.is_reclaiming(vhd.record.layout.disks());
        request.grows = is_reclaiming && self.grows_if_need_be(vhd);
        let wait = match vhd.record.when_full {
            _ if request.grows => Duration::from_millis(RECLAIM_WAIT_MILLIS),
            WhenFull::Queue { secs } => Duration::from_secs(secs),
            // Not full if slots are on their way back: that takes a commit and a punch, not a guest's patience.
            WhenFull::Error if is_reclaiming => Duration::from_millis(RECLAIM_WAIT_MILLIS),
            WhenFull::Error => Duration::ZERO,
        };
        if wait.is_zero() {
            self.out_of_room(&request, out);
            return;
        }
        // Whoever can grow is not short of room.
        if !request.grows {
            self.tell_waiting(request.vhd, out);
        }
        request.deadline = now.after(wait);
        self.waiters.push(request);
        self.reuse.ask_for_commit(now, true, out);
    }

    fn tell_waiting(&mut self, id: VhdId, out: &mut impl OwnerOutbox) {
        let Some(vhd) = self.vhds.get_mut(id) else { return };
        if !std::mem::replace(&mut vhd.told_waiting, true) {
            out.event(Event::WaitingForRoom { vhd: vhd.record.name.clone() });
        }
    }

    /// As [`Owner::wait_for_room`], but nothing that is on its way back helps.
    fn wait_for_quota(&mut self, mut request: Waiter, now: Nanos, out: &mut impl OwnerOutbox) {
        let Some(vhd) = self.vhds.get(request.vhd) else { return };
        match vhd.record.when_full {
            WhenFull::Queue { secs } if secs > 0 => {
                request.deadline = now.after(Duration::from_secs(secs));
                self.waiters.push(request);
            }
            WhenFull::Queue { .. } | WhenFull::Error => answer(&request, Err(AllocateError::NoSpace), out),
        }
    }

    /// The time of a request is up. If that was so short because its VHD could have grown, it waits as others do.
    fn wait_longer(&mut self, request: Waiter, now: Nanos, out: &mut impl OwnerOutbox) {
        match self.vhds.get(request.vhd).map(|vhd| vhd.record.when_full) {
            Some(WhenFull::Queue { secs }) if request.grows && secs > 0 => {
                self.tell_waiting(request.vhd, out);
                let deadline = now.after(Duration::from_secs(secs));
                self.waiters.push(Waiter { deadline, grows: false, ..request });
            }
            _ => self.out_of_room(&request, out),
        }
    }

    fn out_of_room(&mut self, request: &Waiter, out: &mut impl OwnerOutbox) {
        answer(request, Err(AllocateError::NoSpace), out);
        let Some(vhd) = self.vhds.get_mut(request.vhd) else { return };
        if !std::mem::replace(&mut vhd.told_out_of_room, true) {
            out.event(Event::OutOfRoom { vhd: vhd.record.name.clone() });
        }
    }

    /// Tries all who wait, in the order in which they came.
    pub(super) fn retry_waiters(&mut self, out: &mut impl OwnerOutbox) {
        self.refill_holds(out);
        if self.waiters.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.waiters);
        let mut with_room = self.space.with_room();
        // There is no more room for the others of a VHD: trying each of them would take longer the more there are.
        let mut in_vain: BTreeSet<VhdId> = BTreeSet::new();
        for request in waiting {
            let expands = |vhd: &Vhd| vhd.expands(self.expand_unless_said(vhd));
            let vhd = self.vhds.get(request.vhd);
            let disks = vhd.filter(|vhd| !expands(vhd));
            let disks = disks.map_or(DiskSet(u64::MAX), |vhd| vhd.record.layout.disks());
            let placed = || Some(!self.vhds.get(request.vhd)?.state.map.lookup(request.extent).replicas.is_absent());
            // Several may wait for one extent: those after the first for which it was placed have it.
            if in_vain.contains(&request.vhd) && placed() == Some(false) {
                self.waiters.push(request);
                continue;
            }
            let is_needed = |of: Holder| self.space.holds().need(of).is_some_and(|need| need.extents > 0);
            let is_held = vhd.is_some_and(|vhd| self.holders_of(vhd).any(is_needed));
            if disks.0 & with_room.0 == 0 && !is_held && !self.metadata.low && placed() == Some(false) {
                self.waiters.push(request);
                continue;
            }
            match self.try_place(&request, Patience::Waits, out) {
                Attempt::Answer(result) => {
                    answer(&request, result, out);
                    with_room = self.space.with_room();
                }
                Attempt::NoRoom => {
                    in_vain.insert(request.vhd);
                    self.waiters.push(request);
                }
                Attempt::Quota(reached) => {
                    self.tell_quota(request.vhd, reached, out);
                    self.waiters.push(request);
                }
            }
        }
        self.note_waiting();
    }

    /// Answers those whose time is up, once it has been tried for the last time.
    pub(super) fn expire_waiters(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        if self.waiters.iter().all(|request| request.deadline > now) {
            return;
        }
        let (late, waiting) = std::mem::take(&mut self.waiters).into_iter().partition(|w| w.deadline <= now);
        self.waiters = waiting;
        let late: Vec<Waiter> = late;
        let mut in_vain: BTreeSet<VhdId> = BTreeSet::new();
        for request in &late {
            let vhd = self.vhds.get(request.vhd);
            let is_placed = |vhd: &Vhd| !vhd.state.map.lookup(request.extent).replicas.is_absent();
            let attempt = if in_vain.contains(&request.vhd) && !vhd.is_some_and(is_placed) {
                Attempt::NoRoom
            } else {
                self.try_place(request, Patience::Ends, out)
            };
            match attempt {
                Attempt::Answer(result) => answer(request, result, out),
                // Told when it was reached; the disks have room, as far as anybody knows.
                Attempt::Quota(_) => answer(request, Err(AllocateError::NoSpace), out),
                Attempt::NoRoom => {
                    in_vain.insert(request.vhd);
                    self.wait_longer(*request, now, out);
                }
            }
        }
        self.note_waiting();
    }

    /// VHDs of which nothing waits any more may be reported again.
    fn note_waiting(&mut self) {
        let waiting: std::collections::HashSet<VhdId> = self.waiters.iter().map(|request| request.vhd).collect();
        let silent = |vhd: &&Vhd| vhd.told_waiting && !waiting.contains(&vhd.record.id);
        let silent: Vec<VhdId> = self.vhds.iter().filter(silent).map(|vhd| vhd.record.id).collect();
        for id in silent {
            self.vhds.get_mut(id).expect("just looked up").told_waiting = false;
        }
    }

    pub(super) fn free(&mut self, id: VhdId, extent: ExtentIndex, now: Nanos, out: &mut impl OwnerOutbox) {
        if self.drop_claimed(id, extent, out) {
            self.reuse.handed_over(now);
            self.reuse.ask_for_commit(now, !self.waiters.is_empty(), out);
            if !self.waiters.is_empty() && self.vhds.get(id).is_some_and(|vhd| self.has_quota(vhd)) {
                self.retry_waiters(out);
            }
        }
    }

    /// Drops an extent, all blocks of which are claimed and cleared. Of a thick VHD only what was in it is dropped. Whether slots
    /// are on their way back.
    pub(super) fn drop_claimed(&mut self, id: VhdId, extent: ExtentIndex, out: &mut impl OwnerOutbox) -> bool {
        // A VHD that is gone has given back its slots already.
        let Some(vhd) = self.vhds.get_mut(id) else { return false };
        let before = vhd.state.map.lookup(extent);
        if before.replicas.is_absent() {
            return false;
        }
        vhd.state.change_handed_over();
        if vhd.record.thick {
            let kind = ChangeKind::Cleared { blocks: BlockMask::ALL };
            out.change(Change { vhd: id, extent, generation: before.generation, kind });
            return false;
        }
        let state = vhd.state.clone();
        vhd.state.map.drop_extent(extent);
        vhd.note_dropped(before.replicas);
        let generation = vhd.state.map.lookup(extent).generation;
        for replica in before.replicas.iter() {
            if !replica.state.is_moving() {
                vhd.counts[replica.disk.index()] -= 1;
            }
            self.space.give_back(replica.disk, replica.slot);
            self.usage.update(&self.space, replica.disk, out);
        }
        out.change(Change { vhd: id, extent, generation, kind: ChangeKind::Freed { freed: before.replicas } });
        // The table may still have the slot that a replica was about to leave for another one on the same disk.
        if let Some(vacated) = self.forget_move(id, extent, out) {
            state.change_handed_over();
            out.change(Change { vhd: id, extent, generation, kind: ChangeKind::Freed { freed: vacated } });
        }
        self.hold_again(id);
        true
    }

    /// Tells everybody who waits for room for this VHD that it is gone.
    pub(super) fn drop_waiters(&mut self, vhd: VhdId, out: &mut impl OwnerOutbox) {
        self.drop_waiters_beyond(vhd, ExtentIndex(0), out);
    }

    /// The same of those who wait for room for extents from `from` on.
    pub(super) fn drop_waiters_beyond(&mut self, vhd: VhdId, from: ExtentIndex, out: &mut impl OwnerOutbox) {
        self.waiters.retain(|request| {
            let gone = request.vhd == vhd && request.extent >= from;
            if gone {
                answer(request, Err(AllocateError::Deleted), out);
            }
            !gone
        });
    }

    /// The worker of a disk has done what [`OwnerOutbox::punch`] asked, or could not: what a slot holds is never shown to
    /// its next owner, so the slots can be used again either way.
    pub fn handle_punched(&mut self, disk: DiskId, run: SlotRun, out: &mut impl OwnerOutbox) {
        self.reuse.punched(disk, run);
        let was_room = self.space.disk(disk).has_good_slot();
        self.space.release(disk, run);
        self.usage.update(&self.space, disk, out);
        if !was_room && !self.space.disk(disk).bad().is_empty() {
            // What is in bad places may have found another one.
            self.look_at_redundancy(Some(disk));
        }
        self.retry_waiters(out);
        self.run_jobs(out);
    }

    pub(super) fn disk_error(&mut self, id: DiskId, error: IoError, sync: bool, out: &mut impl OwnerOutbox) {
        let disk = self.space.disk_mut(id);
        disk.errors += 1;
        disk.last_error = Some(error);
        let (name, count) = (disk.state.name.clone(), disk.errors);
        if sync || error.is_gone() {
            disk.state.fail();
        }
        if disk.state.is_failed() && !std::mem::replace(&mut disk.failure_told, true) {
            out.event(Event::DiskFailed { disk: name, error: error.to_string() });
            self.disk_failed(Fault { disk: id, error }, out);
        } else if count.is_power_of_two() {
            out.event(Event::DiskError { disk: name, error: error.to_string(), count });
        }
    }
}

fn answer(request: &Waiter, result: Result<(), AllocateError>, out: &mut impl OwnerOutbox) {
    out.to_reactor(request.reactor, ReactorMessage::Allocated { ticket: request.ticket, result });
}
