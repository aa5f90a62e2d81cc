//! Rings that a limit holds back: what their guests ask stays in them until it may start.
//!
//! Nobody looks at such a ring, and its guest need not kick. It is popped from again when its limit says so, or when limits change. Of
//! several whose time has come, the one that has waited longest goes first; one that asks in vain keeps its place among them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Rings, UringPipeline};
use crate::base::clock::Nanos;
use crate::qos::{Hold, Waiting};
use crate::reactor::messages::{Outbox, OwnerRequest};

/// Says who of two rings waits longer: the one with the smaller number.
pub(super) type Turn = u64;

/// Why a ring does not pop.
pub(super) struct Held {
    since: Nanos,
    /// Counts it among those that wait for the limit.
    _waiting: Waiting,
}

/// The rings that are held back.
#[derive(Default)]
pub(super) struct HeldRings {
    /// When to ask again, whose turn it is then, and the place.
    waiting: BinaryHeap<Reverse<(Nanos, Turn, u32)>>,
    next_turn: Turn,
    /// Those whose time has come.
    due: Vec<(Turn, u32)>,
}

impl HeldRings {
    /// Makes room for so many rings.
    pub fn reserve(&mut self, rings: usize) {
        self.waiting.reserve(rings.saturating_sub(self.waiting.len()));
        self.due.reserve(rings);
    }

    /// One is to ask again at `until`. Its turn, if it has none.
    fn add(&mut self, place: u32, until: Nanos, turn: &mut Option<Turn>) {
        let turn = *turn.get_or_insert_with(|| {
            self.next_turn += 1;
            self.next_turn
        });
        self.waiting.push(Reverse((until, turn, place)));
    }

    /// Takes those out whose time has come, in turn.
    fn take_due(&mut self, now: Nanos) {
        while let Some(&Reverse((until, turn, place))) = self.waiting.peek() {
            if until > now {
                break;
            }
            self.waiting.pop();
            self.due.push((turn, place));
        }
        self.due.sort_unstable();
    }

    /// A ring is gone, or something else is in its place.
    fn forget(&mut self, place: u32) {
        self.waiting.retain(|Reverse((_, _, waiting))| *waiting != place);
    }
}

impl Rings {
    /// When the next ring that is held back asks again.
    pub fn next_due(&self) -> Option<Nanos> {
        self.held.waiting.peek().map(|Reverse((until, ..))| *until)
    }

    /// A limit holds the ring back.
    pub(super) fn hold<O: Outbox>(&mut self, place: u32, hold: Hold, pipeline: &mut UringPipeline<O>, now: Nanos) {
        let reactor = self.reactor;
        let served = self.served(place);
        let admission = Arc::clone(served.ring.admission().expect("something holds it back"));
        served.held = Some(Held { since: now, _waiting: Waiting::begin(admission, hold.by) });
        let vhd = &served.ring.vhd;
        vhd.metrics.of(reactor).throttled.fetch_add(1, Ordering::Relaxed);
        if vhd.limits.is_held(now) {
            pipeline.outbox.to_owner(OwnerRequest::LimitHit { vhd: vhd.id(), by: hold.by });
        }
        let mut turn = served.turn;
        self.held.add(place, hold.until, &mut turn);
        self.served(place).turn = turn;
    }

    /// Queues the rings whose time has come, before all others: these have not waited.
    pub fn queue_due(&mut self, now: Nanos) {
        if self.next_due().is_none_or(|due| due > now) {
            return;
        }
        self.held.take_due(now);
        // The one that has waited longest comes last, and so in front of the others.
        while let Some((_, place)) = self.held.due.pop() {
            self.release(place, now);
            let served = self.served(place);
            if !std::mem::replace(&mut served.queued, true) {
                self.ready.push_front(place);
            }
        }
    }

    /// Limits have changed: all that are held back ask again, in turn.
    pub fn ask_again(&mut self, now: Nanos) {
        let mut waiting = std::mem::take(&mut self.held.waiting).into_vec();
        waiting.iter_mut().for_each(|Reverse((until, ..))| *until = now);
        self.held.waiting = waiting.into();
    }

    /// Nothing holds the ring back any more.
    fn release(&mut self, place: u32, now: Nanos) {
        let reactor = self.reactor;
        let served = self.served(place);
        if let Some(Held { since, .. }) = served.held.take() {
            let vhd = &served.ring.vhd;
            vhd.metrics.of(reactor).throttled_ns.fetch_add(now.since(since), Ordering::Relaxed);
            vhd.limits.was_held(now);
        }
    }

    /// The ring is about to go.
    pub(super) fn let_go(&mut self, place: u32, now: Nanos) {
        if self.served(place).held.is_some() {
            self.release(place, now);
        }
        self.held.forget(place);
    }
}
