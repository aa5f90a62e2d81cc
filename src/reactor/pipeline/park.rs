//! Where requests wait, and how they are woken.

use std::collections::VecDeque;

use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::{DISK_IN_FLIGHT_MAX, DISKS_MAX};
use crate::engine::Engine;
use crate::reactor::messages::{AllocateError, Outbox, OwnerRequest, ReactorMessage};
use crate::shared::VhdState;
use crate::virtio::request::Status;

use super::slots::RequestSlot;
use super::{Pipeline, Step};

/// Queues of waiting requests.
pub(super) struct Parking {
    /// To be stepped again at the next poll.
    ready: VecDeque<RequestSlot>,
    /// Wait for a claim to be released.
    on_claim: Vec<(VhdId, RequestSlot)>,
    /// Wait for a slot of the engine or a bounce buffer.
    on_engine: VecDeque<RequestSlot>,
    /// Wait for the number of operations on a disk to fall.
    on_disk: [VecDeque<RequestSlot>; DISKS_MAX],
    in_flight: [usize; DISKS_MAX],
}

impl Parking {
    pub fn new() -> Parking {
        Parking {
            ready: VecDeque::new(),
            on_claim: Vec::new(),
            on_engine: VecDeque::new(),
            on_disk: [const { VecDeque::new() }; DISKS_MAX],
            in_flight: [0; DISKS_MAX],
        }
    }

    /// Makes room for `requests` requests to wait without allocating. (A disk's own queue grows when it is first needed.)
    pub fn reserve(&mut self, requests: usize) {
        self.ready.reserve(requests);
        self.on_claim.reserve(requests);
        self.on_engine.reserve(requests);
    }

    /// Whether a request waits for the next poll.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Whether the disk may take `count` operations more.
    pub fn disk_has_room(&self, disk: DiskId) -> bool {
        self.in_flight[disk.index()] < DISK_IN_FLIGHT_MAX
    }

    pub fn operation_begun(&mut self, disk: DiskId) {
        self.in_flight[disk.index()] += 1;
    }

    /// An operation has completed: one request that waited for the disk and one that waited for the engine may go on. When
    /// it was the last one in flight, all may: nobody else would wake them.
    pub fn operation_done(&mut self, disk: DiskId, last: bool) {
        let index = disk.index();
        self.in_flight[index] -= 1;
        let from_disk = if self.in_flight[index] == 0 { self.on_disk[index].len() } else { 1 };
        let from_engine = if last { self.on_engine.len() } else { 1 };
        for _ in 0..from_disk {
            self.ready.extend(self.on_disk[index].pop_front());
        }
        for _ in 0..from_engine {
            self.ready.extend(self.on_engine.pop_front());
        }
    }
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// Waits for a free engine slot or bounce buffer.
    pub(super) fn park_on_engine(&mut self, slot: RequestSlot) -> Step {
        self.count_wait(slot);
        if self.slots.operations_used() == 0 {
            // Nothing is in flight that could wake it: what it waits for is free again.
            self.parking.ready.push_back(slot);
        } else {
            self.parking.on_engine.push_back(slot);
        }
        self.slots.request_mut(slot).parked = true;
        Step::Parked
    }

    /// Waits until fewer operations are in flight on `disk`.
    pub(super) fn park_on_disk(&mut self, slot: RequestSlot, disk: DiskId) -> Step {
        self.count_wait(slot);
        self.parking.on_disk[disk.index()].push_back(slot);
        self.slots.request_mut(slot).parked = true;
        Step::Parked
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
        state.parked = true;
        self.parking.on_claim.push((id, slot));
        self.count_wait(slot);
        Step::Parked
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

    /// Asks the owner to place an extent, and waits for the answer.
    pub(super) fn park_on_allocation(&mut self, slot: RequestSlot, extent: crate::base::units::ExtentIndex) -> Step {
        self.count_wait(slot);
        let ticket = self.slots.ticket(slot);
        let state = self.slots.request_mut(slot);
        state.parked = true;
        let vhd = state.vhd().id();
        self.outbox.to_owner(OwnerRequest::Allocate { reactor: self.id, ticket, vhd, extent });
        Step::Parked
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
