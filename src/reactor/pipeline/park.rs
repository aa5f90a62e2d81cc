//! Where requests wait, and how they are woken.

use std::collections::VecDeque;

use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::limits::{DISK_IN_FLIGHT_MAX, DISKS_MAX};
use crate::engine::Engine;
use crate::placement::{Replica, ReplicaState};
use crate::qos::shares::Turn;
use crate::reactor::messages::{AllocateError, Outbox, OwnerRequest, ReactorMessage};
use crate::shared::VhdState;
use crate::virtio::request::Status;

use super::slots::RequestSlot;
use super::turns::Line;
use super::{Pipeline, Step};

/// Queues of waiting requests.
pub(super) struct Parking {
    /// To be stepped again at the next poll.
    ready: VecDeque<RequestSlot>,
    /// Wait for a claim to be released.
    on_claim: Vec<(VhdId, RequestSlot)>,
    /// Wait for a slot of the engine.
    on_engine: VecDeque<RequestSlot>,
    /// Wait until a disk may have more operations in flight.
    on_disk: [Line; DISKS_MAX],
    /// Wait until a disk may have more bounce buffers.
    on_bounce: [VecDeque<RequestSlot>; DISKS_MAX],
    /// Disks that somebody may wait for in one of the two.
    waited_for: DiskSet,
    in_flight: [usize; DISKS_MAX],
    /// Disks in whose lines something has changed, or on which something has ended, and nobody else has been told.
    unannounced: DiskSet,
    /// For [`Pipeline::resume_disk_waiters`].
    everybody: Vec<RequestSlot>,
}

impl Parking {
    pub fn new() -> Parking {
        Parking {
            ready: VecDeque::new(),
            on_claim: Vec::new(),
            on_engine: VecDeque::new(),
            on_disk: std::array::from_fn(|_| Line::default()),
            on_bounce: [const { VecDeque::new() }; DISKS_MAX],
            waited_for: DiskSet::default(),
            in_flight: [0; DISKS_MAX],
            unannounced: DiskSet::default(),
            everybody: Vec::new(),
        }
    }

    /// Makes room for `requests` requests to wait without allocating.
    pub fn reserve(&mut self, requests: usize) {
        self.ready.reserve(requests);
        self.on_claim.reserve(requests);
        self.on_engine.reserve(requests);
        self.everybody.reserve(requests);
    }

    /// The same for what they wait for on one disk.
    pub fn reserve_on(&mut self, disk: DiskId, requests: usize) {
        self.on_disk[disk.index()].reserve(requests);
        self.on_bounce[disk.index()].reserve(requests);
    }

    /// Whether something waits for the next poll.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.unannounced.is_empty()
    }

    /// Whether the disk may have one more operation in flight, when the engine has `free` slots: only while it has fewer
    /// than are free. So disks that hang always leave some to the others, however many of them there are.
    fn disk_has_room(&self, disk: DiskId, free: usize) -> bool {
        self.in_flight[disk.index()] < free.min(DISK_IN_FLIGHT_MAX)
    }

    /// Whether somebody waits for room on a disk.
    pub fn waits_for_disks(&self) -> bool {
        !self.waited_for.is_empty()
    }

    /// Operations in flight on a disk.
    pub fn in_flight_on(&self, disk: DiskId) -> usize {
        self.in_flight[disk.index()]
    }

    pub fn line(&self, disk: DiskId) -> &Line {
        &self.on_disk[disk.index()]
    }

    pub fn line_mut(&mut self, disk: DiskId) -> &mut Line {
        self.unannounced.insert(disk);
        &mut self.on_disk[disk.index()]
    }

    /// Notes who is published as the first in the line of a disk; who was before.
    pub fn say_first(&mut self, disk: DiskId, first: Option<Turn>) -> Option<Turn> {
        self.on_disk[disk.index()].say(first)
    }

    /// An operation that counted has ended on the disk.
    pub fn note_ended(&mut self, disk: DiskId) {
        self.unannounced.insert(disk);
    }

    pub fn take_unannounced(&mut self) -> DiskSet {
        std::mem::take(&mut self.unannounced)
    }

    pub fn operation_begun(&mut self, disk: DiskId) {
        self.in_flight[disk.index()] += 1;
    }

    pub fn operation_done(&mut self, disk: DiskId) {
        self.in_flight[disk.index()] -= 1;
    }
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// Whether the engine takes `count` operations more.
    pub(super) fn engine_has_room(&self, count: usize) -> bool {
        self.engine.available() >= count && self.slots.operations_free() >= count && self.slots.pieces_free() > 0
    }

    /// Parks the request unless the engine and every disk that works take one more operation, of so many bytes; fails it if no replica
    /// is in sync on a disk that works.
    pub(super) fn park_unless_room(
        &mut self,
        slot: RequestSlot,
        replicas: impl Iterator<Item = Replica> + Clone,
        bytes: u64,
    ) -> Option<Step> {
        let count = replicas.clone().count();
        let works = |r: &Replica| !self.disk(r.disk).is_failed();
        if !replicas.clone().any(|r| r.state == ReplicaState::InSync && works(&r)) {
            self.slots.request_mut(slot).fail(Status::IoError);
            return Some(Step::Again);
        }
        // What a failed disk misses waits for the owner: many of those must not use up what others need.
        let misses = replicas.clone().any(|r| !works(&r));
        if !self.engine_has_room(count) || misses && !self.slots.spares_pieces() {
            return Some(self.park_on_engine(slot));
        }
        let free = self.slots.operations_free();
        let disks: DiskSet = replicas.filter(works).map(|r| r.disk).collect();
        if let Some(full) = disks.iter().find(|&disk| !self.parking.disk_has_room(disk, free)) {
            return Some(self.park_in_line(slot, full, bytes));
        }
        self.park_unless_turn(slot, disks, bytes)
    }

    /// Parks the request unless every disk may take a bounce buffer.
    pub(super) fn park_unless_bounce(&mut self, slot: RequestSlot, disks: DiskSet) -> Option<Step> {
        let works = |disk: &DiskId| !self.disk(*disk).is_failed();
        let full = disks.iter().filter(works).find(|&disk| !self.bounce.has_room(disk));
        let full = full.or_else(|| disks.iter().next().filter(|_| self.bounce.is_empty()))?;
        self.parking.on_bounce[full.index()].push_back(slot);
        Some(self.park_for_disk(slot, full))
    }

    pub(super) fn park_for_disk(&mut self, slot: RequestSlot, disk: DiskId) -> Step {
        self.parking.waited_for.insert(disk);
        self.park(slot)
    }

    /// Waits for a free engine slot.
    pub(super) fn park_on_engine(&mut self, slot: RequestSlot) -> Step {
        self.parking.on_engine.push_back(slot);
        self.park(slot)
    }

    pub(super) fn park(&mut self, slot: RequestSlot) -> Step {
        self.count_wait(slot);
        self.slots.request_mut(slot).parked = true;
        Step::Parked
    }

    /// Steps those who wait for room, as long as there is some. Not one for each completion: one who is woken may not be able
    /// to use the room (it needs more, or something else by now), and what it leaves must reach the next one; the completions
    /// that would wake that one later may be those of a disk that hangs. Returns whether anybody got further.
    pub(super) fn resume_waiting(&mut self) -> bool {
        let mut any = false;
        for _ in 0..self.parking.on_engine.len() {
            if !self.engine_has_room(1) {
                break;
            }
            any |= self.resume_front(|parking| &mut parking.on_engine);
        }
        for disk in self.parking.waited_for.iter() {
            let index = disk.index();
            any |= self.resume_line(disk);
            for _ in 0..self.parking.on_bounce[index].len() {
                if !self.bounce.has_room(disk) && !self.disk(disk).is_failed() {
                    break;
                }
                let before = self.parking.line(disk).len();
                any |= self.resume_front(|parking| &mut parking.on_bounce[index]);
                // Whoever waits for its turn now has not taken the buffer, and the next one would not either.
                if self.parking.line(disk).len() > before {
                    break;
                }
            }
            if self.parking.on_disk[index].is_empty() && self.parking.on_bounce[index].is_empty() {
                self.parking.waited_for.remove(disk);
            }
        }
        any
    }

    /// Steps those whose turn it is in the line of a disk. Returns whether anybody got further.
    pub(super) fn resume_line(&mut self, disk: DiskId) -> bool {
        let mut any = false;
        for _ in 0..self.parking.line(disk).len() {
            let has_room = self.parking.disk_has_room(disk, self.slots.operations_free());
            if !has_room || !self.is_turn_of_first(disk) {
                break;
            }
            let Some(slot) = self.parking.line_mut(disk).pop() else { break };
            let others = self.parking.line(disk).len();
            self.resume(slot);
            any |= self.parking.line(disk).len() == others;
        }
        any
    }

    /// Steps everybody who waits for room on a disk, once.
    pub(super) fn resume_disk_waiters(&mut self) {
        self.resume_waiters_of(self.parking.waited_for);
    }

    /// The same on disks where nobody has got on for a while: elsewhere everybody is stepped when it is his turn, and hundreds may wait.
    pub(super) fn resume_stalled_waiters(&mut self) {
        let is_due = |disk: &DiskId| self.parking.line(*disk).is_due(self.now);
        self.resume_waiters_of(self.parking.waited_for.iter().filter(is_due).collect());
    }

    fn resume_waiters_of(&mut self, disks: DiskSet) {
        for disk in disks.iter() {
            let index = disk.index();
            let mut everybody = std::mem::take(&mut self.parking.everybody);
            self.parking.line_mut(disk).take_all(&mut everybody);
            everybody.drain(..).for_each(|slot| self.resume(slot));
            self.parking.everybody = everybody;
            self.parking.on_disk[index].note_stepped(self.now);
            for _ in 0..self.parking.on_bounce[index].len() {
                self.resume_front(|parking| &mut parking.on_bounce[index]);
            }
        }
    }

    /// Steps the first of a queue. False if it waits in the same queue again.
    fn resume_front(&mut self, queue: impl Fn(&mut Parking) -> &mut VecDeque<RequestSlot>) -> bool {
        let Some(slot) = queue(&mut self.parking).pop_front() else { return false };
        let others = queue(&mut self.parking).len();
        self.resume(slot);
        queue(&mut self.parking).len() == others
    }

    /// Waits for the release of a claim; `still_busy` looks once more, after the wish to be woken is known to others.
    pub(super) fn park_on_claim(&mut self, slot: RequestSlot, still_busy: impl Fn(&VhdState) -> bool) -> Step {
        let bit = self.reactor_bit();
        let state = self.slots.request_mut(slot);
        let vhd = state.vhd();
        vhd.wait_for_release(bit);
        if !still_busy(vhd) {
            return Step::Again;
        }
        let id = vhd.id();
        self.parking.on_claim.push((id, slot));
        self.park(slot)
    }

    /// A claim of `vhd` was released on this reactor: wakes who waits for it, here and elsewhere.
    pub(super) fn claim_released(&mut self, vhd: &VhdState) {
        let mut waiters = vhd.take_release_waiters();
        if waiters == 0 {
            return;
        }
        if waiters & self.reactor_bit() != 0 {
            waiters &= !self.reactor_bit();
            self.ready_claim_waiters(vhd.id());
        }
        while waiters != 0 {
            let reactor = u16::try_from(waiters.trailing_zeros()).expect("a bit of a u64");
            waiters &= waiters - 1;
            let message = ReactorMessage::ClaimReleased { vhd: vhd.id() };
            self.outbox.to_reactor(crate::base::ids::ReactorId(reactor), message);
        }
    }

    /// A claim was refused because the extent changed: looks again. The claim may have been held for a moment, and somebody
    /// may have begun to wait for it.
    pub(super) fn claim_changed(&mut self, slot: RequestSlot) -> Step {
        let vhd = std::sync::Arc::clone(self.slots.request(slot).vhd());
        self.claim_released(&vhd);
        Step::Again
    }

    /// Steps everybody who waits for a claim of `vhd`.
    pub(super) fn wake_claim_waiters(&mut self, vhd: VhdId) {
        self.ready_claim_waiters(vhd);
        self.resume_ready();
    }

    fn ready_claim_waiters(&mut self, vhd: VhdId) {
        let mut i = 0;
        while i < self.parking.on_claim.len() {
            if self.parking.on_claim[i].0 == vhd {
                // Keeps the order of arrival; the list is short and only exists while blocks are written for the first time.
                let (_, slot) = self.parking.on_claim.remove(i);
                self.parking.ready.push_back(slot);
            } else {
                i += 1;
            }
        }
    }

    /// Steps everybody who is ready now; one that parks again waits for the next time. Returns whether there was any.
    pub(super) fn resume_ready(&mut self) -> bool {
        let count = self.parking.ready.len();
        for _ in 0..count {
            let Some(slot) = self.parking.ready.pop_front() else { break };
            self.resume(slot);
        }
        count > 0
    }

    /// Steps a request that was parked. If its VHD was deleted meanwhile it fails: the slots that its map still names may
    /// belong to others by now.
    pub(super) fn resume(&mut self, slot: RequestSlot) {
        let state = self.slots.request_mut(slot);
        assert!(state.parked);
        state.parked = false;
        if state.vhd().is_deleted() {
            state.fail(Status::IoError);
        }
        self.run(slot);
    }

    /// Goes on at the next poll.
    pub(super) fn park_for_a_turn(&mut self, slot: RequestSlot) -> Step {
        self.parking.ready.push_back(slot);
        self.slots.request_mut(slot).parked = true;
        Step::Parked
    }

    /// Asks the owner to place an extent, and waits for the answer.
    pub(super) fn park_on_allocation(&mut self, slot: RequestSlot, extent: crate::base::units::ExtentIndex) -> Step {
        let ticket = self.slots.ticket(slot);
        let vhd = self.slots.request(slot).vhd().id();
        self.outbox.to_owner(OwnerRequest::Allocate { reactor: self.id, ticket, vhd, extent });
        self.park(slot)
    }

    pub(super) fn allocated(&mut self, ticket: u64, result: Result<(), AllocateError>) {
        let Some(slot) = self.slots.by_ticket(ticket) else { return };
        if result.is_err() {
            self.slots.request_mut(slot).fail(Status::IoError);
        }
        self.resume(slot);
    }

    fn reactor_bit(&self) -> u64 {
        1 << self.id.0
    }

    fn count_wait(&self, slot: RequestSlot) {
        let metrics = self.slots.request(slot).vhd().metrics.of(self.id);
        metrics.waits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    }
}
