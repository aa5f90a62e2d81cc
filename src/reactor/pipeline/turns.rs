//! Room on a disk, and whose turn it is to use it: see [`crate::qos::shares`].
//!
//! A request asks for room before it submits a piece. If the disk is shared out among VHDs, it takes a turn there, and has *begun* once the
//! disk counts it; the operation that it submits next takes that over, and ends it. One that begins and then has to wait for something else
//! leaves the room to others and keeps its turn. A write to several disks waits for the one on which its VHD has had most of what is its,
//! and only pays on the others: so nobody waits for one disk with room on another.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::atomic::Ordering;

use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, DiskSet, ReactorId};
use crate::engine::Engine;
use crate::qos::Share;
use crate::qos::shares::{Turn, Work};
use crate::reactor::messages::{Outbox, ReactorMessage};
use crate::shared::disk::MOVER_THREAD;

use super::slots::{Operation, Purpose, RequestSlot};
use super::{Pipeline, Step};

/// Those who wait for room on one disk, by turn; without turns, as they came.
#[derive(Default)]
pub(super) struct Line {
    waiting: BinaryHeap<Reverse<(Turn, u64, RequestSlot)>>,
    came: u64,
    /// The first turn, as published.
    said: Option<Turn>,
}

impl Line {
    pub fn reserve(&mut self, requests: usize) {
        self.waiting.reserve(requests.saturating_sub(self.waiting.len()));
    }

    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    pub fn push(&mut self, turn: Turn, slot: RequestSlot) {
        self.came += 1;
        self.waiting.push(Reverse((turn, self.came, slot)));
    }

    pub fn pop(&mut self) -> Option<RequestSlot> {
        self.waiting.pop().map(|Reverse((.., slot))| slot)
    }

    /// Takes everybody, in order.
    pub fn take_all(&mut self, into: &mut Vec<RequestSlot>) {
        into.clear();
        while let Some(slot) = self.pop() {
            into.push(slot);
        }
    }

    pub fn say(&mut self, first: Option<Turn>) -> Option<Turn> {
        std::mem::replace(&mut self.said, first)
    }

    fn first(&self) -> Option<(Turn, RequestSlot)> {
        self.waiting.peek().map(|Reverse((turn, _, slot))| (*turn, *slot))
    }
}

/// The turn of a request on a disk.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    disk: DiskId,
    turn: Turn,
    work: Work,
    /// What it was charged by.
    share: Share,
    /// The disk counts it as in flight.
    begun: bool,
    /// When it was taken.
    since: Nanos,
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    fn thread(&self) -> usize {
        usize::from(self.id.0)
    }

    /// Parks the request unless it may begin an operation of so many bytes on the disks.
    pub(super) fn park_unless_turn(&mut self, slot: RequestSlot, disks: DiskSet, bytes: u64) -> Option<Step> {
        let shared: DiskSet = disks.iter().filter(|disk| self.disk(*disk).shares.is_on()).collect();
        if self.slots.request(slot).turn.is_some_and(|taken| taken.begun && shared.contains(taken.disk)) {
            return None;
        }
        let vhd = self.slots.request(slot).vhd();
        let reason = |disk: &DiskId| self.disk(*disk).shares.reason_to_wait(vhd.account(*disk));
        let Some(disk) = shared.iter().max_by_key(reason) else {
            self.drop_turn(slot);
            return None;
        };
        let taken = self.turn_on(slot, disk, bytes);
        let first = self.parking.line(disk).first();
        let is_first = first.is_none_or(|(first, _)| taken.turn < first);
        if is_first && self.disk(disk).shares.begin(self.thread(), taken.turn, taken.work) {
            self.slots.request_mut(slot).turn = Some(Taken { begun: true, ..taken });
            return None;
        }
        self.disk(disk).shares.hold();
        Some(self.park_in_line(slot, disk, bytes))
    }

    /// Waits for room on a disk.
    pub(super) fn park_in_line(&mut self, slot: RequestSlot, disk: DiskId, bytes: u64) -> Step {
        let is_shared = self.disk(disk).shares.is_on();
        let turn = if is_shared { self.turn_on(slot, disk, bytes).turn } else { Turn(0) };
        self.parking.line_mut(disk).push(turn, slot);
        self.park_for_disk(slot, disk)
    }

    /// The turn of the request on this disk: the one that it has, or the next one of its VHD.
    fn turn_on(&mut self, slot: RequestSlot, disk: DiskId, bytes: u64) -> Taken {
        if let Some(taken) = self.slots.request(slot).turn.filter(|taken| taken.disk == disk)
            && !self.disk(disk).shares.has_expired(taken.turn)
        {
            return taken;
        }
        self.drop_turn(slot);
        let vhd = self.slots.request(slot).vhd();
        let (share, work) = (vhd.share.get(), Work::of(bytes));
        let turn = self.disk(disk).shares.take_turn(vhd.account(disk), share, work);
        let taken = Taken { disk, turn, work, share, begun: false, since: self.now };
        self.slots.request_mut(slot).turn = Some(taken);
        taken
    }

    /// The request waits for something else: what it has begun is for others, its turn stays.
    pub(super) fn leave_room(&mut self, slot: RequestSlot) {
        if let Some(taken) = &mut self.slots.request_mut(slot).turn
            && std::mem::take(&mut taken.begun)
        {
            let (disk, work) = (taken.disk, taken.work);
            self.disk(disk).shares.end(work);
            self.parking.note_ended(disk);
        }
    }

    /// The request does not need its turn any more.
    pub(super) fn drop_turn(&mut self, slot: RequestSlot) {
        self.leave_room(slot);
        let Some(taken) = self.slots.request_mut(slot).turn.take() else { return };
        let vhd = self.slots.request(slot).vhd();
        self.disk(taken.disk).shares.give_back_turn(vhd.account(taken.disk), taken.share, taken.work);
    }

    /// An operation of the request is about to be submitted: what the disk counts it as, which may be nothing.
    pub(super) fn begin_operation(&mut self, slot: RequestSlot, disk: DiskId, bytes: u64) -> Work {
        if !self.disk(disk).shares.is_on() {
            return Work::default();
        }
        let now = self.now;
        let state = self.slots.request_mut(slot);
        if let Some(taken) = state.turn.take_if(|taken| taken.begun && taken.disk == disk) {
            let waited_ns = now.since(taken.since);
            if waited_ns > 0 {
                let metrics = state.vhd().metrics.of(self.id);
                metrics.turn_waits.fetch_add(1, Ordering::Relaxed);
                metrics.turn_waits_ns.fetch_add(waited_ns, Ordering::Relaxed);
            }
            // What the guest asked for was charged: padding comes on top, and a bounce buffer may hold only a part.
            let (vhd, work) = (self.slots.request(slot).vhd(), Work::of(bytes));
            self.disk(disk).shares.settle(vhd.account(disk), taken.share, taken.work, work);
            return work;
        }
        let (vhd, work) = (self.slots.request(slot).vhd(), Work::of(bytes));
        let shares = &self.disk(disk).shares;
        shares.begin_anyway(shares.take_turn_anyway(vhd.account(disk), vhd.share.get(), work), work)
    }

    /// An operation has completed: what the disk counted it as is not in flight any more.
    pub(super) fn end_operation(&mut self, operation: &Operation) {
        let (disk, work) = (operation.disk, operation.work);
        if work > Work::default() {
            self.disk(disk).shares.end(work);
            self.parking.note_ended(disk);
        } else if !self.disk(disk).shares.is_on() {
            return;
        }
        let Purpose::Transfer { piece, .. } = operation.purpose else { return };
        let request = self.slots.piece_mut(piece).request;
        let state = self.slots.request(request);
        let share = &state.vhd().share;
        if share.has_target() {
            self.disk(disk).shares.count_targeted(share.is_late(self.now.since(state.started)));
        }
    }

    /// Whether the first in the line of a disk may go on; it has begun then.
    pub(super) fn is_turn_of_first(&mut self, disk: DiskId) -> bool {
        if !self.disk(disk).shares.is_on() {
            return true;
        }
        let Some((_, slot)) = self.parking.line(disk).first() else { return false };
        // It may have come before the disk was shared out, or its time began anew: then it takes its turn when it is stepped.
        let Some(taken) = self.slots.request(slot).turn.filter(|taken| taken.disk == disk) else { return true };
        if self.disk(disk).shares.has_expired(taken.turn) {
            return true;
        }
        if !self.disk(disk).shares.begin(self.thread(), taken.turn, taken.work) {
            return false;
        }
        self.slots.request_mut(slot).turn = Some(Taken { begun: true, ..taken });
        true
    }

    /// Tells the other reactors who waits first on this one, and wakes one of them if its turn is before that. Whether something has
    /// begun here that had not before.
    pub(super) fn announce_turns(&mut self) -> bool {
        let mut any = false;
        for disk in self.parking.take_unannounced().iter() {
            let index = self.thread();
            let is_on = self.disk(disk).shares.is_on();
            let first = self.parking.line(disk).first().filter(|_| is_on).map(|(turn, _)| turn);
            let said = self.parking.say_first(disk, first);
            if first != said {
                self.disk(disk).shares.publish(index, said, first);
            }
            // What has ended before that was known has woken nobody; nor has who has ended the sharing.
            if !self.parking.line(disk).is_empty() && (first != said || !is_on) {
                any |= self.resume_line(disk);
            }
            match self.disk(disk).shares.call_first(index) {
                Some(MOVER_THREAD) => self.outbox.room_for_mover(),
                Some(other) => {
                    let other = ReactorId(u16::try_from(other).expect("threads are numbered like reactors"));
                    self.outbox.to_reactor(other, ReactorMessage::Room);
                }
                None => {}
            }
        }
        any
    }
}
