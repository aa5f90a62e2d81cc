//! FLUSH, and the end of every writethrough write: syncs first, commit second, completion last.

use crate::base::clock::Nanos;
use crate::base::ids::DiskId;
use crate::engine::{Engine, IoError, Op};
use crate::metrics::IoKind;
use crate::reactor::messages::{Outbox, OwnerRequest};
use crate::shared::disk::SyncNumber;
use crate::store::change::CommitRequest;
use crate::virtio::request::Status;

use super::slots::{Operation, Purpose, RequestSlot};
use super::turns::Begun;
use super::{Pipeline, Step};

/// The syncs of one disk on one reactor: at most one in flight, and one more for those who came too late for it.
#[derive(Default)]
pub(super) struct DiskSyncs {
    in_flight: Option<(SyncNumber, Nanos)>,
    /// Wait for the sync in flight.
    waiting: Vec<RequestSlot>,
    /// Wait for the next one: what they need completed after the one in flight began.
    next: Vec<RequestSlot>,
    /// Empty but while those who waited are told; kept for its room.
    told: Vec<RequestSlot>,
}

impl DiskSyncs {
    /// Makes room for `requests` requests to wait without allocating.
    pub fn reserve(&mut self, requests: usize) {
        self.waiting.reserve(requests);
        self.next.reserve(requests);
        self.told.reserve(requests);
    }

    /// When the sync in flight began.
    pub fn begun(&self) -> Option<Nanos> {
        self.in_flight.map(|(_, begun)| begun)
    }

    /// Who waits for the sync in flight or the next one.
    pub fn waiting(&self) -> impl Iterator<Item = RequestSlot> + '_ {
        self.waiting.iter().chain(&self.next).copied()
    }

    /// The request does not wait any more.
    pub fn remove(&mut self, slot: RequestSlot) {
        self.waiting.retain(|waiting| *waiting != slot);
        self.next.retain(|waiting| *waiting != slot);
    }
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    /// Joins or begins a sync of every disk that the request must sync and that is not synced yet. One after the other, as
    /// far as the engine has room: a request that waited for room for all of them could wait for ever.
    pub(super) fn step_sync(&mut self, slot: RequestSlot) -> Step {
        for id in self.slots.request(slot).to_sync.iter() {
            let needed = self.slots.request(slot).vhd().sync_wanted_on(id);
            if !self.disk(id).is_synced(needed) {
                if self.disk(id).is_failed() {
                    self.slots.request_mut(slot).outstanding += 1;
                    self.report_unsynced(slot, id);
                } else if !self.join_sync(slot, id, needed) {
                    return self.park_on_engine(slot);
                }
            }
            self.slots.request_mut(slot).to_sync.remove(id);
        }
        Step::Exhausted
    }

    /// Lets the request wait for a sync of the disk that covers `needed`. False if that takes a new one and the engine is full.
    fn join_sync(&mut self, slot: RequestSlot, id: DiskId, needed: SyncNumber) -> bool {
        let has_room = self.engine_has_room(1);
        let syncs = &mut self.syncs[id.index()];
        match syncs.in_flight {
            Some((number, _)) if number >= needed => syncs.waiting.push(slot),
            Some(_) => syncs.next.push(slot),
            None if !has_room => return false,
            None => {
                syncs.waiting.push(slot);
                self.begin_sync(id);
            }
        }
        self.slots.request_mut(slot).outstanding += 1;
        true
    }

    fn begin_sync(&mut self, id: DiskId) {
        // Numbered before it is submitted: what completes from here on is not covered by it.
        let number = self.disk(id).begin_sync();
        let purpose = Purpose::Sync { number };
        let operation = Operation {
            disk: id,
            purpose,
            kind: IoKind::Flush,
            bytes: 0,
            begun: self.now,
            is_copy: false,
            counted: Begun::default(),
        };
        let tag = self.slots.add_operation(operation);
        // SAFETY: a sync has no buffers.
        unsafe { self.engine.submit(Op::Sync { disk: id }, tag) }.expect("room in the engine was checked");
        self.parking.operation_begun(id);
        self.disk(id).progress_of(self.id).begun();
        self.disk(id).shares.awaited().begin();
        self.syncs[id.index()].in_flight = Some((number, self.now));
        self.syncing.insert(id);
    }

    pub(super) fn sync_done(&mut self, id: DiskId, number: SyncNumber, result: Result<(), IoError>) {
        self.disk(id).shares.awaited().end();
        match result {
            Ok(()) => self.disk(id).sync_succeeded(number),
            Err(error) => {
                self.disk(id).fail();
                self.outbox.to_owner(OwnerRequest::DiskError { disk: id, error, sync: true });
            }
        }
        // Asked of the shared state and not of this result: another reactor's sync may have failed the disk meanwhile.
        let durable = result.is_ok() && self.disk(id).is_synced(number);
        let syncs = &mut self.syncs[id.index()];
        assert!(syncs.in_flight.is_some_and(|(in_flight, _)| in_flight == number));
        syncs.in_flight = None;
        self.syncing.remove(id);
        let mut told = std::mem::take(&mut syncs.told);
        std::mem::swap(&mut told, &mut syncs.waiting);
        let failed = self.disk(id).is_failed();
        if failed || self.left.contains(id) {
            // Of a disk that has left nobody needs another sync.
            told.append(&mut self.syncs[id.index()].next);
        } else if !self.syncs[id.index()].next.is_empty() {
            let syncs = &mut self.syncs[id.index()];
            std::mem::swap(&mut syncs.waiting, &mut syncs.next);
            // The operation that just completed left its place free.
            self.begin_sync(id);
        }
        for slot in told.drain(..) {
            if durable {
                self.run_if_waiting(slot);
            } else {
                self.report_unsynced(slot, id);
            }
        }
        self.syncs[id.index()].told = told;
    }

    /// Whether the request needs a sync of the disk for nothing but copies that moves are making there.
    pub(super) fn is_moves_only(&self, slot: RequestSlot, id: DiskId) -> bool {
        self.disk(id).is_synced(self.slots.request(slot).vhd().sync_needed_on(id))
    }

    /// Joins the next commit, if the VHD has changes that are not durable.
    pub(super) fn step_commit(&mut self, slot: RequestSlot) -> Step {
        let ticket = self.slots.ticket(slot);
        let state = self.slots.request_mut(slot);
        if state.asked_commit || !state.vhd().has_pending_changes() {
            return Step::Exhausted;
        }
        state.asked_commit = true;
        state.parked = true;
        self.outbox.commit(CommitRequest { reactor: self.id, ticket });
        Step::Parked
    }

    pub(super) fn committed(&mut self, ticket: u64, ok: bool) {
        let Some(slot) = self.slots.by_ticket(ticket) else { return };
        if !ok {
            self.slots.request_mut(slot).fail(Status::IoError);
        }
        self.resume(slot);
    }
}
