//! How much a disk needs in flight. Pure: time and counters are arguments.
//!
//! What waits in the disk's own queue is served in the disk's order, whosever it is. So no more should be in flight than the disk can make
//! use of. How much that is differs by orders of magnitude from disk to disk, and with what is asked of it. So it is tried: a wider and a
//! narrower window take turns. If the wider one gets noticeably more done, both become wider, and if it does not, narrower. Where a
//! few per cent are still to be gained, they stay. What is noticeable, and what is chance, [`Gain`] says: a step is taken once it is clear
//! in which direction.
//!
//! On a disk that is slowed down now and then by something else such gains are lost in noise. So a window that is far too narrow is tried
//! from time to time, too. By how much more gets done with the usual one tells how much is needed in flight if operations take as long as
//! they do when there are few: the *knee*. The window is not made narrower than that. As wide as it has been before trials have shown
//! anything it does not stay, if that is more.
//!
//! Where something is awaited that takes no turns ([`Awaited`](super::Awaited)), no more than the knee is in flight: that costs little on
//! a disk that serves what it gets in order, and never more than what a disk loses to chance. Now and then the usual windows have
//! their round all the same, because nothing could be learnt otherwise: so neither a guest that does nothing but FLUSH
//! nor a knee that is wrong takes the others' throughput for good.
//!
//! With one client there is nobody to protect, and no window.
//!
//! Clients with a *latency target* narrow the window further: see `targets`.

mod gain;
mod targets;

pub use targets::Targeted;

use gain::Gain;
use targets::{Disk, Targets};

use super::shares::Work;
use crate::base::clock::Nanos;

/// The wider window is so much wider, in percent.
const WIDER: u64 = 30;

/// Gain in throughput over gain in window, in thousandths: above the first the window becomes wider, below the second narrower.
const GROWS: i64 = 100;
const SHRINKS: i64 = 40;

/// The same where a window is wider than the disk would seem to need.
const GROWS_ROOMY: i64 = 130;
const SHRINKS_ROOMY: i64 = 60;

/// With each look this part of the largest operation is forgotten.
const FORGETS: u64 = 64;

/// So few operations fit into a narrow window that the next wider one has room for two more.
const FEW: u64 = 4;

/// Far above, or far below: larger steps.
const GROWS_FAST: i64 = 400;
const SHRINKS_FAST: i64 = 0;

/// A window is tried for so long, and until so many operations have completed, but not for longer than the third.
const PERIOD_NS: u64 = 20_000_000;
const PERIOD_OPERATIONS: u64 = 48;
const PERIOD_MAX_NS: u64 = 400_000_000;

/// One operation in so many must have waited if a window is to be judged.
const HELD_PART: u64 = 8;

/// When clients begin to share a disk, the window begins at this part of what was in flight, in percent.
const LOWERED: u64 = 75;

/// A window that is far too narrow is tried after this long, then after twice as long, and so on.
const PROBE_MIN_NS: u64 = 1_000_000_000;
const PROBE_MAX_NS: u64 = 10_000_000_000;

/// It is this part of the narrower one.
const PROBE_PART: u64 = 8;

/// So many operations are enough there, where little gets done: several probes are put together.
const PROBE_OPERATIONS: u64 = 16;

/// What is in flight before is waited for, but not for longer than this.
const DRAIN_MAX_NS: u64 = 4_000_000_000;

/// If it got this part of all done, in percent, it was not too narrow.
const PROBE_IS_MOST: u64 = 85;

/// Of so many rounds of trials one makes no room for what is awaited.
const LEARNS_IN: u64 = 4;

/// How much more than the knee a window may be without having gained anything, in percent.
const ROOM: u64 = 25;

/// What has been counted on a disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counted {
    /// Work of all that has completed so far.
    pub done: Work,
    /// Operations that have completed so far.
    pub operations: u64,
    /// Operations that had to wait so far.
    pub held: u64,
    /// Most in flight since the last look.
    pub peak: Work,
    /// The largest operation that has begun since the last look.
    pub largest: Work,
    /// Clients that wanted something lately.
    pub clients: usize,
    /// Something was awaited since the last look that takes no turns.
    pub awaited: bool,
}

/// The two windows, each tried twice, so that a load that rises or falls meanwhile favours neither.
const TRIALS: [bool; 4] = [false, true, true, false];

/// What is tried just now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// See [`TRIALS`].
    Trial(usize),
    /// What is in flight ends, until there is as little as in the next phase.
    Drain,
    /// A window that is far too narrow.
    Probe,
}

/// The window of one disk.
#[derive(Debug)]
pub struct Window {
    min: u64,
    max: u64,
    /// The narrower window, as far as throughput goes.
    base: u64,
    shared: bool,
    phase: Phase,
    begun: Nanos,
    counted: Counted,
    /// Most in flight in this phase.
    peak: Work,
    rates: [u64; 4],
    judged: bool,
    /// Rounds of trials so far.
    rounds: u64,
    /// It makes room for what is awaited, and has in this round.
    makes_room: bool,
    has_made_room: bool,
    /// What the wider of the two windows brings.
    gain: Gain,
    /// As wide as this it has become because that brought something, and not narrower since because it did not.
    proven: u64,
    /// How much in flight gets as much done as there can be, if each takes as long as it does when there is little.
    knee: Option<u64>,
    /// What is in flight before a probe takes so long.
    drain_ns: u64,
    probe_at: Nanos,
    probe_ns: u64,
    targets: Targets,
    /// What had completed at the last look.
    done: Work,
    /// The largest operation lately.
    largest: u64,
    /// The work of the operation that has to fit: see [`Window::usual`].
    operation: u64,
}

impl Window {
    /// A window between `min` and `max`.
    #[must_use]
    pub fn new(min: Work, max: Work) -> Window {
        Window {
            min: min.0,
            max: max.0,
            base: max.0,
            shared: false,
            phase: Phase::Trial(0),
            begun: Nanos(0),
            counted: Counted::default(),
            peak: Work(0),
            largest: 0,
            rates: [0; 4],
            judged: true,
            rounds: 0,
            makes_room: false,
            has_made_room: false,
            gain: Gain::default(),
            proven: 0,
            knee: None,
            drain_ns: 0,
            probe_at: Nanos(0),
            probe_ns: PROBE_MIN_NS,
            targets: Targets::default(),
            done: Work(0),
            operation: min.0,
        }
    }

    /// What may be in flight now; `None`: as much as anybody wants.
    #[must_use]
    pub fn now(&self) -> Option<Work> {
        let wanted = match self.phase {
            Phase::Trial(trial) if TRIALS[trial] => self.wide(),
            Phase::Trial(_) => self.base,
            Phase::Drain | Phase::Probe => self.probe(),
        };
        let wanted = self.awaited().filter(|_| self.makes_room).map_or(wanted, |awaited| awaited.0.min(wanted));
        self.shared.then_some(Work(self.targets.allowed().map_or(wanted, |allowed| allowed.min(wanted))))
    }

    /// What may be in flight at most while something is awaited that takes no turns: the knee, where requests hardly wait for one another.
    /// `None`: as much as else, because the knee is not known, or a disk on which something is always awaited has to be learnt about, too.
    #[must_use]
    pub fn awaited(&self) -> Option<Work> {
        let is_trial = matches!(self.phase, Phase::Trial(_));
        let makes_room = self.shared && is_trial && !self.rounds.is_multiple_of(LEARNS_IN);
        self.knee.filter(|_| makes_room).map(|knee| Work(knee.max(self.min)))
    }

    /// What gets done in a second.
    fn most(&self) -> u64 {
        self.rates.iter().sum::<u64>() / 4
    }

    /// The operation that has to fit: the largest one, if those are half of the work, as far as the mean of all tells. Where it does not fit
    /// beside a small one it hardly has a turn at all, and small ones say nothing of that.
    fn usual(&self, mean: u64) -> u64 {
        let (least, mean) = (u128::from(self.min), u128::from(mean.max(self.min)));
        let largest = u128::from(self.largest).max(mean);
        // As if all others were of the smallest.
        let of_largest = (mean - least) * largest / (largest - least).max(1);
        let usual = if of_largest * 2 > mean { largest } else { mean };
        u64::try_from(usual).unwrap_or(u64::MAX)
    }

    /// The window that is far too narrow.
    fn probe(&self) -> u64 {
        (self.base / PROBE_PART).max(self.min)
    }

    /// The wider window: by an operation at least, or it would be the same; by two where few fit, since some are larger than usual ones.
    fn wide(&self) -> u64 {
        let fit = (self.base / self.operation).max(1);
        let more = fit + 1 + u64::from(fit < FEW);
        self.base.saturating_add(self.base / 100 * WIDER).max(more.saturating_mul(self.operation))
    }

    /// Whether latency targets keep it narrower than throughput would: then nothing can be learnt about that.
    #[must_use]
    pub fn is_narrowed(&self) -> bool {
        self.targets.allowed().is_some()
    }

    /// Whether it is as narrow as can be, and requests are late all the same.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.targets.allowed() == Some(self.min)
    }

    /// Looks at what has been counted, and at what clients with latency targets have got. Call every [`PERIOD_NS`] or so.
    pub fn look(&mut self, counted: Counted, targeted: &[Targeted], now: Nanos) {
        let shared = counted.clients > 1;
        if shared && !self.shared {
            self.base = self.base.min(counted.peak.0 / 100 * LOWERED).clamp(self.min, self.max);
            (self.gain, self.knee, self.proven) = (Gain::default(), None, 0);
            (self.probe_at, self.probe_ns) = (now, PROBE_MIN_NS);
            self.begin(Phase::Trial(0), counted, now);
        }
        self.shared = shared;
        if !shared {
            self.targets = Targets::default();
            return;
        }
        let operations = counted.operations.saturating_sub(self.counted.operations);
        let done = counted.done.0.saturating_sub(self.counted.done.0);
        self.largest = counted.largest.0.max(self.largest - self.largest / FORGETS);
        self.operation = done.checked_div(operations).map_or(self.operation, |mean| self.usual(mean));
        // One is in flight in any case: what is narrower would have to become wider in vain, until two fit.
        self.base = self.base.max(self.operation.min(self.max));
        self.makes_room = counted.awaited;
        self.has_made_room |= counted.awaited && self.awaited().is_some();
        let (wide, min, knee, operation) = (self.wide(), self.min, self.knee, self.operation);
        let since = std::mem::replace(&mut self.done, counted.done).0;
        let disk =
            Disk { wide, min, knee, operation, done: counted.done.0.saturating_sub(since), peak: counted.peak.0 };
        self.targets.look(targeted, disk, now);
        self.peak = self.peak.max(counted.peak);
        let elapsed_ns = now.since(self.begun);
        let enough = if self.phase == Phase::Probe { PROBE_OPERATIONS } else { PERIOD_OPERATIONS };
        if elapsed_ns < PERIOD_NS || operations < enough && elapsed_ns < PERIOD_MAX_NS {
            return;
        }
        let rate = u64::try_from(u128::from(done) * 1_000_000_000 / u128::from(elapsed_ns)).unwrap_or(u64::MAX);
        let held = counted.held.saturating_sub(self.counted.held);
        let next = match self.phase {
            Phase::Trial(trial) => {
                self.rates[trial] = rate;
                self.judged &= TRIALS[trial] || held > operations / HELD_PART;
                self.after_trial(trial, now)
            }
            Phase::Drain if elapsed_ns < self.drain_ns => return,
            Phase::Drain => Phase::Probe,
            Phase::Probe => {
                self.after_probe(rate, now);
                Phase::Trial(0)
            }
        };
        self.begin(next, counted, now);
    }

    fn begin(&mut self, phase: Phase, counted: Counted, now: Nanos) {
        (self.phase, self.counted, self.begun, self.peak) = (phase, counted, now, Work(0));
        if phase == Phase::Trial(0) {
            self.rounds += 1;
            (self.judged, self.has_made_room) = (true, false);
        }
    }

    fn after_trial(&mut self, trial: usize, now: Nanos) -> Phase {
        if trial + 1 < TRIALS.len() {
            return Phase::Trial(trial + 1);
        }
        if self.is_narrowed() || self.has_made_room {
            return Phase::Trial(0);
        }
        if self.judged {
            self.adjust();
        }
        if now < self.probe_at {
            return Phase::Trial(0);
        }
        let drains = u128::from(self.peak.0) * 1_000_000_000 / u128::from(self.most().max(1));
        self.drain_ns = u64::try_from(drains).unwrap_or(u64::MAX).min(DRAIN_MAX_NS);
        Phase::Drain
    }

    /// So much got done with so little in flight. As much more as could be done at all, so much more is needed in flight: that is as true
    /// on a disk that is slowed down now and then, which small differences between windows are not.
    fn after_probe(&mut self, rate: u64, now: Nanos) {
        self.probe_at = Nanos(now.0.saturating_add(self.probe_ns));
        if rate == 0 {
            return;
        }
        let most = self.most();
        let knee = u128::from(self.peak.0.max(self.min)) * u128::from(most.max(rate)) / u128::from(rate);
        let knee = u64::try_from(knee).unwrap_or(u64::MAX).min(self.max);
        // If as much got done as with more, even this was more than is needed, and how much more is to be seen.
        let is_most = rate >= most / 100 * PROBE_IS_MOST;
        if is_most {
            self.probe_ns = PROBE_MIN_NS;
        }
        self.probe_at = Nanos(now.0.saturating_add(self.probe_ns));
        self.probe_ns = (self.probe_ns * 2).min(PROBE_MAX_NS);
        let knee = self.knee.filter(|_| !is_most).map_or(knee, |before| before / 2 + knee / 2);
        self.knee = Some(knee);
        let roomy = knee.saturating_add(knee / 100 * ROOM).clamp(self.min, self.max);
        let needed = roomy.max(self.proven);
        if !self.judged {
            (self.base, self.gain) = (self.base.min(roomy), Gain::default());
        } else if self.base > needed {
            (self.base, self.gain) = (self.base / 2 + needed / 2, Gain::default());
        }
    }

    fn adjust(&mut self) {
        let [narrow, wide, wide_again, narrow_again] = self.rates.map(i128::from);
        let (narrow, wide) = ((narrow + narrow_again).max(1), wide + wide_again);
        // Where few are in flight one more is a large part.
        let few = i128::from((self.base / self.operation).max(1));
        let more = i128::from(self.wide() / self.operation).max(few + 1) - few;
        let gain = (wide - narrow) * 1000 * few / (narrow * more);
        self.gain.add(i64::try_from(gain).unwrap_or(i64::MAX));
        let knee = self.knee.unwrap_or(self.min);
        let is_roomy = self.knee.is_some() && self.base > knee.saturating_add(knee / 100 * ROOM);
        let (grows, shrinks) = if is_roomy { (GROWS_ROOMY, SHRINKS_ROOMY) } else { (GROWS, SHRINKS) };
        let percent = match self.gain {
            gain if gain.is_above(GROWS_FAST) && !is_roomy => 150,
            gain if gain.is_above(grows) => 112,
            gain if gain.is_below(SHRINKS_FAST) => 75,
            gain if gain.is_below(shrinks) => 88,
            _ => return,
        };
        let base = self.base / 100 * percent;
        // What noise says must not take away what the disk is known to need, nor anything as long as that is not known.
        let least = if percent < 100 { self.knee.map_or(self.base, |knee| knee.min(self.base)) } else { self.min };
        self.base = base.max(least).clamp(self.min, self.max);
        self.proven = if percent > 100 { self.base } else { self.proven.min(self.base) };
        self.gain = Gain::default();
    }
}

#[cfg(test)]
mod tests;
