//! Room on a disk, and whose turn it is to use it: see [`crate::qos::shares`].
//!
//! A request asks for room before it submits a piece. If the disk is shared out among VHDs, it takes a turn there, and has *begun* once the
//! disk counts it; the operation that it submits next takes that over, and ends it. One that begins and then has to wait for something else
//! leaves the room to others and keeps its turn, but is not behind the disk's time any more. A write to several disks waits for the one on
//! which its VHD has had most of what is its, and only pays on the others: so nobody waits for one disk with room on another.

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

/// How long a read waits in the line of one copy where there is another, and a write to several disks in the line of the same of them.
const LINE_KEPT_NS: u64 = 1_000_000_000;

/// Those who wait for room on one disk, by turn; without turns, as they came.
#[derive(Default)]
pub(super) struct Line {
    waiting: BinaryHeap<Reverse<(Turn, u64, RequestSlot)>>,
    came: u64,
    /// The first turn, as published.
    said: Option<Turn>,
    /// Somebody has got on since all were stepped last, and when that was.
    moves: bool,
    stepped: Nanos,
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
        self.moves = true;
        self.waiting.pop().map(|Reverse((.., slot))| slot)
    }

    /// Whether it is time to step all of them: nobody has got on lately, or it is long ago.
    pub fn is_due(&self, now: Nanos) -> bool {
        !self.moves || now.since(self.stepped) >= LINE_KEPT_NS
    }

    /// All are stepped now.
    pub fn note_stepped(&mut self, now: Nanos) {
        (self.moves, self.stepped) = (false, now);
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
    /// It had begun, and then had to wait for something else.
    was_elsewhere: bool,
    /// Since when it waits for its turn, and how long it had before it waited for something else.
    since: Nanos,
    waited_ns: u64,
}

impl Taken {
    /// Now its operation is the next one to be submitted.
    fn begin(self, now: Nanos) -> Taken {
        Taken { begun: true, waited_ns: self.waited_ns + now.since(self.since), ..self }
    }
}

/// An operation that is about to be submitted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Begun {
    /// What the disk counts it as, which may be nothing.
    pub work: Work,
    /// How long it has waited for its turn.
    pub waited_ns: u64,
}

impl<E: Engine, O: Outbox> Pipeline<E, O> {
    fn thread(&self) -> usize {
        usize::from(self.id.0)
    }

    /// The disk on which the request has a turn that has come, or would wait less than on another disk, as far as is known.
    pub(super) fn kept_turn(&self, slot: RequestSlot, other: DiskId) -> Option<DiskId> {
        let taken = self.slots.request(slot).turn?;
        // Not for ever: the disk may not answer any more.
        let is_near = !self.parking.line(other).is_empty() && self.now.since(taken.since) < LINE_KEPT_NS;
        (taken.begun || is_near).then_some(taken.disk)
    }

    /// Parks the request unless it may begin an operation of so many bytes on the disks.
    pub(super) fn park_unless_turn(&mut self, slot: RequestSlot, disks: DiskSet, bytes: u64) -> Option<Step> {
        let shared: DiskSet = disks.iter().filter(|disk| self.disk(*disk).shares.is_on()).collect();
        if self.slots.request(slot).turn.is_some_and(|taken| taken.begun && shared.contains(taken.disk)) {
            return None;
        }
        let vhd = self.slots.request(slot).vhd();
        let reason = |disk: &DiskId| self.disk(*disk).shares.reason_to_wait(vhd.account(*disk));
        let Some(disk) = self.line_kept(slot, shared).or_else(|| shared.iter().max_by_key(reason)) else {
            self.drop_turn(slot);
            return None;
        };
        let taken = self.come_back(slot, disk, bytes);
        let first = self.parking.line(disk).first();
        let is_first = first.is_none_or(|(first, _)| taken.turn < first);
        if is_first && self.disk(disk).shares.begin(self.thread(), taken.turn, taken.work) {
            self.slots.request_mut(slot).turn = Some(taken.begin(self.now));
            return None;
        }
        self.disk(disk).shares.hold();
        Some(self.park_in_line(slot, disk, bytes))
    }

    /// The disk in whose line the request waits, if it is one of these: its turn there would be lost with each change of mind, and the VHD's
    /// later requests would have theirs before it.
    fn line_kept(&self, slot: RequestSlot, disks: DiskSet) -> Option<DiskId> {
        let taken = self.slots.request(slot).turn.filter(|taken| disks.contains(taken.disk))?;
        (self.now.since(taken.since) < LINE_KEPT_NS).then_some(taken.disk)
    }

    /// Waits for room on a disk.
    pub(super) fn park_in_line(&mut self, slot: RequestSlot, disk: DiskId, bytes: u64) -> Step {
        let turn = if self.disk(disk).shares.is_on() {
            self.come_back(slot, disk, bytes).turn
        } else {
            self.drop_turn(slot);
            Turn(0)
        };
        self.parking.line_mut(disk).push(turn, slot);
        self.park_for_disk(slot, disk)
    }

    /// The turn of the request on this disk. If it has waited for something else it is among the first still, but not behind any more: all
    /// that come back at once would begin, however much is in flight.
    fn come_back(&mut self, slot: RequestSlot, disk: DiskId, bytes: u64) -> Taken {
        let mut taken = self.turn_on(slot, disk, bytes);
        if std::mem::take(&mut taken.was_elsewhere) {
            (taken.turn, taken.since) = (self.disk(disk).shares.not_behind(taken.turn), self.now);
            self.slots.request_mut(slot).turn = Some(taken);
        }
        taken
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
        let since = self.now;
        let taken = Taken { disk, turn, work, share, begun: false, was_elsewhere: false, since, waited_ns: 0 };
        self.slots.request_mut(slot).turn = Some(taken);
        taken
    }

    /// The request waits for something else: what it has begun is for others, its turn stays.
    pub(super) fn leave_room(&mut self, slot: RequestSlot) {
        let now = self.now;
        if let Some(taken) = &mut self.slots.request_mut(slot).turn
            && std::mem::take(&mut taken.begun)
        {
            (taken.was_elsewhere, taken.since) = (true, now);
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

    /// An operation of the request is about to be submitted.
    pub(super) fn begin_operation(&mut self, slot: RequestSlot, disk: DiskId, bytes: u64) -> Begun {
        self.slots.request(slot).vhd().account(disk).want();
        if !self.disk(disk).shares.is_on() {
            return Begun::default();
        }
        let state = self.slots.request_mut(slot);
        if let Some(taken) = state.turn.take_if(|taken| taken.begun && taken.disk == disk) {
            let waited_ns = taken.waited_ns;
            if waited_ns > 0 {
                let metrics = state.vhd().metrics.of(self.id);
                metrics.turn_waits.fetch_add(1, Ordering::Relaxed);
                metrics.turn_waits_ns.fetch_add(waited_ns, Ordering::Relaxed);
            }
            // What the guest asked for was charged: padding comes on top, and a bounce buffer may hold only a part.
            let (vhd, work) = (self.slots.request(slot).vhd(), Work::of(bytes));
            self.disk(disk).shares.settle(vhd.account(disk), taken.share, taken.work, work);
            if work < taken.work {
                self.parking.note_ended(disk);
            }
            return Begun { work, waited_ns };
        }
        let (vhd, work) = (self.slots.request(slot).vhd(), Work::of(bytes));
        let shares = &self.disk(disk).shares;
        let turn = shares.take_turn_anyway(vhd.account(disk), vhd.share.get(), work);
        Begun { work: shares.begin_anyway(turn, work), waited_ns: 0 }
    }

    /// An operation has completed: what the disk counted it as is not in flight any more.
    pub(super) fn end_operation(&mut self, operation: &Operation) {
        let (disk, Begun { work, waited_ns }) = (operation.disk, operation.counted);
        if work > Work::default() {
            self.disk(disk).shares.end(work);
            self.parking.note_ended(disk);
        } else if !self.disk(disk).shares.is_on() {
            return;
        }
        let Purpose::Transfer { piece, .. } = operation.purpose else { return };
        let request = self.slots.piece_mut(piece).request;
        let vhd = self.slots.request(request).vhd();
        if vhd.share.has_target() {
            // What else it has waited for is nothing that less in flight here would change.
            let latency_ns = waited_ns + self.now.since(operation.begun);
            vhd.account(disk).count_targeted(vhd.share.is_late(latency_ns));
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
        self.slots.request_mut(slot).turn = Some(taken.begin(self.now));
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
