//! One host disk, shared out among clients on several threads: start-time fair queueing, with a window for what may be in flight.
//!
//! The disk has a *virtual time*. Each client has an *account* on it: the virtual time up to which it has had its share. An operation
//! takes the client as much further as it is work, divided by the client's share; where it begins is the *turn* of the operation. Who waits
//! with the earliest turn goes next, and the disk's time is the latest turn that has gone. A client that was idle begins at the disk's
//! time: it has neither saved up anything nor anything to make up for.
//!
//! Nobody waits as long as the window has room, so what one does not use is there for the others. And a client whose turn is not later
//! than the disk's time, which therefore has had less than its share, does not wait at all: with one request at a time it
//! would otherwise wait for the end of somebody else's each time. The window is exceeded by one operation for each such client at most,
//! because the first takes its account past the disk's time.
//!
//! Some operations cannot wait: they have waited on another disk, or are urgent. They *begin anyway*, and are charged, but only up to a
//! debt. One that begins before somebody else whose turn is earlier must not undo what the others have among themselves: it neither moves
//! the disk's time, or all of them would seem to have had less than their share, nor takes room from them, or they might never get any.
//!
//! While something is [awaited](Awaited) on the disk that takes no turns there, less may be in flight. Whoever would then be alone in
//! the disk begins all the same, so that this ends by itself.
//!
//! All of it is atomics. Threads publish the turn of the first that waits on them, and do not overtake one another; who ends an operation
//! wakes the thread on which the first of all waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering, fence};

use super::{Awaited, Share};
use crate::base::bits::ones;

/// Virtual time that the work of one byte takes at share 1. Even 4 KiB at the largest share then take enough for two shares that differ by
/// a few percent to be told apart. It passes only while a disk is shared out: at 20 GB/s among VHDs of the default share it would be over
/// after 14 years, and after days where all have the smallest one. See [`Shares::is_worn`].
const BYTE: u64 = 2048;

/// The work of an operation, whatever its length: as much as so many bytes.
const OPERATION: u64 = 16 << 10;

/// How far operations that begin anyway can take a client ahead, in work: it must have something to pay back, and must not be kept from
/// the disk for long afterwards.
const DEBT_MAX: Work = Work(8 << 20);

/// A time beyond this is to begin anew: far from its end, where all turns would be one.
const WORN: u64 = 1 << 62;

/// No turn that is wanted is so far ahead of the disk's time: it was taken before that began anew.
const EXPIRED: u64 = 1 << 61;

/// Nobody waits.
const NOBODY: u64 = u64::MAX;

/// What an operation takes of a disk: its bytes, and something for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Work(pub u64);

impl Work {
    /// Of one operation of so many bytes.
    #[must_use]
    pub const fn of(bytes: u64) -> Work {
        Work::of_all(1, bytes)
    }

    /// Of several, together.
    #[must_use]
    pub const fn of_all(operations: u64, bytes: u64) -> Work {
        Work(operations.saturating_mul(OPERATION).saturating_add(bytes))
    }
}

/// When somebody's turn is, in the virtual time of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Turn(pub u64);

/// What a client has had of a disk.
#[derive(Debug, Default)]
pub struct Account {
    so_far: AtomicU64,
    /// Which of the disk's times that is in.
    era: AtomicU64,
    /// Since somebody asked: it has begun something there.
    wanted: AtomicBool,
    /// Since somebody asked, with a latency target: what has completed, and what of that was late.
    targeted: AtomicU32,
    late: AtomicU32,
}

impl Account {
    /// Something of the client begins there. Whether the disk is shared out or not: by that is known who wants it.
    #[inline]
    pub fn want(&self) {
        // Nearly always known already: then nobody's cache line is taken away.
        if !self.wanted.load(Ordering::Relaxed) {
            self.wanted.store(true, Ordering::Relaxed);
        }
    }

    /// Whether there was any since the last call.
    pub fn take_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed) && self.wanted.swap(false, Ordering::Relaxed)
    }

    /// Something of the client, which has a latency target, has completed there.
    pub fn count_targeted(&self, is_late: bool) {
        self.targeted.fetch_add(1, Ordering::Relaxed);
        if is_late {
            self.late.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How much of that there was since the last call, and how much of it was late.
    pub fn take_targeted(&self) -> (u64, u64) {
        let late = self.late.swap(0, Ordering::Relaxed);
        (self.targeted.swap(0, Ordering::Relaxed).max(late).into(), late.into())
    }

    /// How far the client has got; changes whenever it takes a turn.
    #[must_use]
    pub fn so_far(&self) -> u64 {
        self.so_far.load(Ordering::Relaxed)
    }
}

/// One disk. On cache lines of its own, since whoever submits something writes to it.
#[derive(Debug)]
#[repr(align(128))]
pub struct Shares {
    on: AtomicBool,
    time: AtomicU64,
    /// How often that has begun anew.
    era: AtomicU64,
    window: AtomicU64,
    /// The window while there is something [`Awaited`], if that is narrower.
    awaited_window: AtomicU64,
    awaited: Arc<Awaited>,
    in_flight: AtomicU64,
    /// Most in flight since somebody asked.
    peak: AtomicU64,
    /// The largest operation since it was taken last.
    largest: AtomicU64,
    /// Operations that had to wait.
    held: AtomicU64,
    /// Threads on which somebody waits, a bit for each.
    waiting: AtomicU64,
    threads: Box<[Thread]>,
}

/// One thread, as others see it. On a cache line of its own: threads that say who waits on them would take each other's away.
#[derive(Debug)]
#[repr(align(128))]
struct Thread {
    /// The first turn on it.
    first: AtomicU64,
    /// It has been called, and has not looked since.
    called: AtomicBool,
}

impl Shares {
    /// A disk that is not shared out yet. `threads`: how many may submit to it, at most 64.
    #[must_use]
    pub fn new(threads: usize) -> Shares {
        assert!(threads <= u64::BITS as usize, "a bit for each");
        Shares {
            on: AtomicBool::new(false),
            time: AtomicU64::new(0),
            era: AtomicU64::new(0),
            window: AtomicU64::new(u64::MAX),
            awaited_window: AtomicU64::new(u64::MAX),
            awaited: Arc::default(),
            in_flight: AtomicU64::new(0),
            peak: AtomicU64::new(0),
            largest: AtomicU64::new(0),
            held: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
            threads: (0..threads)
                .map(|_| Thread { first: AtomicU64::new(NOBODY), called: AtomicBool::new(false) })
                .collect(),
        }
    }

    /// With what is awaited there, also by others than those who take turns.
    pub fn await_with(&mut self, awaited: &Arc<Awaited>) {
        self.awaited = Arc::clone(awaited);
    }

    /// What is awaited there without having taken a turn.
    #[must_use]
    pub fn awaited(&self) -> &Awaited {
        &self.awaited
    }

    /// Whether it is shared out at all. If not, nobody need ask for anything.
    #[must_use]
    #[inline]
    pub fn is_on(&self) -> bool {
        self.on.load(Ordering::Relaxed)
    }

    /// Whether its time is to begin anew: that happens when it is shared out the next time.
    #[must_use]
    pub fn is_worn(&self) -> bool {
        self.time.load(Ordering::Relaxed) > WORN
    }

    /// Whether a turn was taken before the time began anew: another one is to be taken.
    #[must_use]
    pub fn has_expired(&self, turn: Turn) -> bool {
        turn.0.saturating_sub(self.time.load(Ordering::Relaxed)) > EXPIRED
    }

    /// The same turn, or the first one whose client has not had less than its share.
    #[must_use]
    pub fn not_behind(&self, turn: Turn) -> Turn {
        Turn(turn.0.max(self.time.load(Ordering::Relaxed).saturating_add(1)))
    }

    /// Begins or ends sharing it out. Who waits must be woken after the end.
    pub fn switch(&self, on: bool) {
        if on && self.is_worn() {
            // In this order: who takes part in the new era sees its time.
            self.time.store(0, Ordering::Relaxed);
            self.era.fetch_add(1, Ordering::Release);
        }
        self.window.store(u64::MAX, Ordering::SeqCst);
        self.awaited_window.store(u64::MAX, Ordering::SeqCst);
        self.on.store(on, Ordering::SeqCst);
    }

    /// What may be in flight from now on; who waits must be woken if that is more.
    pub fn set_window(&self, window: Work) {
        self.window.store(window.0, Ordering::SeqCst);
    }

    /// What may be in flight while something is awaited. When that has ended nobody is woken: something is in flight as long as somebody
    /// waits, and whoever ends that finds the wider window.
    pub fn set_awaited_window(&self, window: Work) {
        self.awaited_window.store(window.0, Ordering::Relaxed);
    }

    /// What may be in flight at this moment.
    fn window_now(&self) -> u64 {
        let (window, awaited) = (self.window.load(Ordering::SeqCst), self.awaited_window.load(Ordering::Relaxed));
        if awaited < window && self.awaited.is_under_way() { awaited } else { window }
    }

    /// What may be in flight.
    #[must_use]
    pub fn window(&self) -> Work {
        Work(self.window.load(Ordering::Relaxed))
    }

    /// What is in flight.
    #[must_use]
    pub fn in_flight(&self) -> Work {
        Work(self.in_flight.load(Ordering::SeqCst))
    }

    /// The most that was in flight since the last call.
    pub fn take_peak(&self) -> Work {
        Work(self.peak.swap(self.in_flight.load(Ordering::Relaxed), Ordering::Relaxed))
    }

    /// Operations that had to wait so far.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// An operation has to wait.
    pub fn hold(&self) {
        self.held.fetch_add(1, Ordering::Relaxed);
    }

    /// How much reason there is to let a client wait here rather than on other disks: how far it is ahead of the disk's time; then how full
    /// the window is, in 1024ths. More in flight is none, where the window is wider.
    #[must_use]
    pub fn reason_to_wait(&self, account: &Account) -> (u64, u64) {
        let ahead = self.so_far(account).saturating_sub(self.time.load(Ordering::Relaxed));
        (ahead, self.in_flight().0.saturating_mul(1024) / self.window().0.max(1))
    }

    /// How far a client has got. One that has had nothing since the time began anew is at its beginning.
    fn so_far(&self, account: &Account) -> u64 {
        let is_of_now = account.era.load(Ordering::Acquire) == self.era.load(Ordering::Acquire);
        if is_of_now { account.so_far() } else { 0 }
    }

    /// Takes a client along into the era.
    fn renew(&self, account: &Account) {
        let era = self.era.load(Ordering::Acquire);
        if account.era.load(Ordering::Acquire) != era {
            // Threads that do so at the same time may forget a turn of each other's, once.
            account.so_far.store(0, Ordering::Relaxed);
            account.era.store(era, Ordering::Release);
        }
    }

    /// The client's next turn, for which it is charged.
    pub fn take_turn(&self, account: &Account, share: Share, work: Work) -> Turn {
        self.renew(account);
        let charge = charge(share, work);
        let time = self.time.load(Ordering::Relaxed);
        let next = |so_far: u64| Some(so_far.max(time).saturating_add(charge));
        match account.so_far.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(so_far) | Err(so_far) => Turn(so_far.max(time)),
        }
    }

    /// As [`Shares::take_turn`], for an operation that is to begin anyway.
    pub fn take_turn_anyway(&self, account: &Account, share: Share, work: Work) -> Turn {
        self.renew(account);
        let (charge, debt) = (charge(share, work), charge(share, DEBT_MAX));
        let time = self.time.load(Ordering::Relaxed);
        let most = time.saturating_add(debt);
        // What it owes by turns that it has taken otherwise stays.
        let next = |so_far: u64| Some(so_far.max(so_far.max(time).saturating_add(charge).min(most)));
        match account.so_far.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next) {
            Ok(so_far) | Err(so_far) => Turn(so_far.max(time)),
        }
    }

    /// A turn that was taken and is not made use of.
    pub fn give_back_turn(&self, account: &Account, share: Share, work: Work) {
        let charge = charge(share, work);
        let less = |so_far: u64| Some(so_far.saturating_sub(charge));
        let _ = account.so_far.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }

    /// Begins an operation on `thread`, if there is room and nobody on another thread comes first.
    #[must_use]
    pub fn begin(&self, thread: usize, turn: Turn, work: Work) -> bool {
        if self.threads[thread].called.load(Ordering::Relaxed) {
            self.threads[thread].called.store(false, Ordering::SeqCst);
        }
        if self.first_elsewhere(thread).is_some_and(|(_, first)| first < turn) {
            return false;
        }
        let window = self.window_now();
        let is_behind = turn.0 <= self.time.load(Ordering::Relaxed);
        let more = |in_flight: u64| {
            let then = in_flight.saturating_add(work.0);
            (is_behind || in_flight == 0 || then <= window).then_some(then)
        };
        let Ok(before) = self.in_flight.fetch_update(Ordering::SeqCst, Ordering::SeqCst, more) else { return false };
        self.begun(turn, before.saturating_add(work.0));
        self.note_largest(work);
        true
    }

    /// Begins an operation that cannot wait here. What the disk counts it as: nothing if somebody waits whose turn is earlier.
    #[must_use = "as much is to end"]
    pub fn begin_anyway(&self, turn: Turn, work: Work) -> Work {
        if self.first_of(self.waiting.load(Ordering::SeqCst)).is_some_and(|(_, first)| first < turn) {
            return Work::default();
        }
        let before = self.in_flight.fetch_add(work.0, Ordering::SeqCst);
        self.begun(turn, before.saturating_add(work.0));
        self.note_largest(work);
        work
    }

    fn begun(&self, turn: Turn, in_flight: u64) {
        if turn.0 > self.time.load(Ordering::Relaxed) && !self.has_expired(turn) {
            self.time.fetch_max(turn.0, Ordering::Relaxed);
        }
        self.note_peak(in_flight);
    }

    fn note_largest(&self, work: Work) {
        if work.0 > self.largest.load(Ordering::Relaxed) {
            self.largest.fetch_max(work.0, Ordering::Relaxed);
        }
    }

    /// The largest operation that has begun since this was asked last.
    pub fn take_largest(&self) -> Work {
        Work(self.largest.swap(0, Ordering::Relaxed))
    }

    fn note_peak(&self, in_flight: u64) {
        if in_flight > self.peak.load(Ordering::Relaxed) {
            self.peak.fetch_max(in_flight, Ordering::Relaxed);
        }
    }

    /// An operation that has begun is other work than its client was charged for.
    pub fn settle(&self, account: &Account, share: Share, before: Work, after: Work) {
        if before == after {
            return;
        }
        let (less, more) = (charge(share, before), charge(share, after));
        let settled = |so_far: u64| Some(so_far.saturating_add(more).saturating_sub(less));
        let _ = account.so_far.fetch_update(Ordering::Relaxed, Ordering::Relaxed, settled);
        if after > before {
            let more = after.0 - before.0;
            self.note_peak(self.in_flight.fetch_add(more, Ordering::SeqCst).saturating_add(more));
        } else {
            self.end(Work(before.0 - after.0));
        }
    }

    /// An operation that was begun has ended, one way or another. Wake who waits first: on this thread, or elsewhere.
    pub fn end(&self, work: Work) {
        let before = self.in_flight.fetch_sub(work.0, Ordering::SeqCst);
        assert!(before >= work.0, "more has ended than was begun");
    }

    /// Says who waits first on `thread`, which has said `before` so far. Afterwards that thread must try once more to begin: what ended
    /// meanwhile has woken nobody.
    pub fn publish(&self, thread: usize, before: Option<Turn>, first: Option<Turn>) {
        self.threads[thread].first.store(first.map_or(NOBODY, |turn| turn.0), Ordering::SeqCst);
        match (before, first) {
            (None, Some(_)) => self.waiting.fetch_or(bit(thread), Ordering::SeqCst),
            (Some(_), None) => self.waiting.fetch_and(!bit(thread), Ordering::SeqCst),
            _ => 0,
        };
        // Pairs with `end`: either the thread sees the room, or who made it sees that it waits.
        fence(Ordering::SeqCst);
    }

    /// The thread other than `thread` on which somebody waits whose turn is first.
    #[must_use]
    pub fn first_elsewhere(&self, thread: usize) -> Option<(usize, Turn)> {
        self.first_of(self.waiting.load(Ordering::SeqCst) & !bit(thread))
    }

    /// The same among threads of which each has its bit set.
    fn first_of(&self, threads: u64) -> Option<(usize, Turn)> {
        let turns = ones(threads).map(|thread| (self.threads[thread].first.load(Ordering::SeqCst), thread));
        turns.min().filter(|(turn, _)| *turn != NOBODY).map(|(turn, thread)| (thread, Turn(turn)))
    }

    /// Threads on which somebody waits: all of them are to be woken when there may be more room than what has ended makes.
    pub fn waiting(&self) -> impl Iterator<Item = usize> + use<> {
        ones(self.waiting.load(Ordering::SeqCst))
    }

    /// Whether a client may be one of those who wait: somebody waits, and it has had its share so far.
    #[must_use]
    pub fn may_wait(&self, account: &Account) -> bool {
        self.waiting().next().is_some() && self.so_far(account) > self.time.load(Ordering::Relaxed)
    }

    /// The thread to be woken because something there comes first, before all on `thread`, and there may be room for it. Each call of a
    /// thread counts until it looks: [`Shares::begin`].
    #[must_use]
    pub fn call_first(&self, thread: usize) -> Option<usize> {
        let (other, turn) = self.first_elsewhere(thread)?;
        let own = self.threads[thread].first.load(Ordering::SeqCst);
        let is_behind = turn.0 <= self.time.load(Ordering::Relaxed);
        let has_room = self.in_flight.load(Ordering::SeqCst) < self.window_now();
        let comes_first = turn.0 < own && (has_room || is_behind);
        (comes_first && !self.threads[other].called.swap(true, Ordering::SeqCst)).then_some(other)
    }
}

fn bit(thread: usize) -> u64 {
    1 << thread
}

fn charge(share: Share, work: Work) -> u64 {
    let charge = u128::from(work.0) * u128::from(BYTE) / u128::from(share.get());
    u64::try_from(charge).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests;
