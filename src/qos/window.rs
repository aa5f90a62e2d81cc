//! How much a disk needs in flight. Pure: time and counters are arguments.
//!
//! What waits in the disk's own queue is served in the disk's order, whosever it is. So no more should be in flight than the disk can make
//! use of. How much that is differs by orders of magnitude from disk to disk, and with what is asked of it. So it is tried: a wider and a
//! narrower window take turns. If the wider one gets noticeably more done, both become wider, and if it does not, narrower. Where a
//! few per cent are still to be gained, they stay.
//!
//! With one client there is nobody to protect, and no window. If clients want less than the window allows, it is lowered to a part of
//! what they had in flight, in order to see whether they need that: a disk that serves few at a time does not.
//!
//! Clients with a *latency target* narrow the window further if more of their requests are late than a percentile allows, for as long as
//! that is so.

use super::shares::Work;
use crate::base::clock::Nanos;

/// The wider window is so much wider, in percent.
const WIDER: u64 = 30;

/// Gain in throughput over gain in window, in thousandths: above the first the window becomes wider, below the second narrower.
const GROWS: i64 = 100;
const SHRINKS: i64 = 40;

/// Far above, or far below: larger steps.
const GROWS_FAST: i64 = 500;
const SHRINKS_FAST: i64 = 15;

/// What is believed at first: neither.
const UNKNOWN: i64 = 50;

/// Each trial counts for so much of what is believed.
const TRIAL_WEIGHT: i64 = 4;

/// A window is tried for so long, and until so many operations have completed, but not for longer than the third.
const PERIOD_NS: u64 = 20_000_000;
const PERIOD_OPERATIONS: u64 = 48;
const PERIOD_MAX_NS: u64 = 400_000_000;

/// One operation in so many must have waited if a window is to be judged.
const HELD_PART: u64 = 8;

/// A window that nobody fills is lowered to this part of what was in flight, in percent.
const LOWERED: u64 = 75;

/// If that was too low it is not tried again for this long, then twice as long, and so on.
const RETRY_MIN_NS: u64 = 1_000_000_000;
const RETRY_MAX_NS: u64 = 60_000_000_000;

/// Requests of clients with targets that are looked at together, unless so many of them are late.
const TARGET_SAMPLE: u64 = 250;
const TARGET_LATE: u64 = 4;

/// Of a thousand requests with a target: more late ones narrow the window, fewer than the second widen it.
const LATE_MANY: u64 = 8;
const LATE_FEW: u64 = 4;

/// After requests were late because it had become wider, it does not for this long, then twice as long, and so on.
const CALM_MIN_NS: u64 = 500_000_000;
const CALM_MAX_NS: u64 = 8_000_000_000;

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
    /// Clients that wanted something lately.
    pub clients: usize,
    /// Requests of clients with a latency target that have completed since the last look.
    pub targeted: u64,
    /// Those of them that took longer.
    pub late: u64,
}

/// The two windows, each tried twice, so that a load that rises or falls meanwhile favours neither.
const TRIALS: [bool; 4] = [false, true, true, false];

/// The window of one disk.
#[derive(Debug)]
pub struct Window {
    min: u64,
    max: u64,
    /// The narrower window, as far as throughput goes.
    base: u64,
    /// What latency targets allow; `None`: they are met.
    allowed: Option<u64>,
    shared: bool,
    trial: usize,
    begun: Nanos,
    counted: Counted,
    rates: [u64; 4],
    judged: bool,
    /// Gain over gain, in thousandths.
    gain: i64,
    retry_at: Nanos,
    retry_ns: u64,
    targeted: u64,
    late: u64,
    /// It became wider after requests were late last.
    has_widened: bool,
    widen_at: Nanos,
    calm_ns: u64,
}

impl Window {
    /// A window between `min` and `max`.
    #[must_use]
    pub fn new(min: Work, max: Work) -> Window {
        Window {
            min: min.0,
            max: max.0,
            base: max.0,
            allowed: None,
            shared: false,
            trial: 0,
            begun: Nanos(0),
            counted: Counted::default(),
            rates: [0; 4],
            judged: true,
            gain: UNKNOWN,
            retry_at: Nanos(0),
            retry_ns: RETRY_MIN_NS,
            targeted: 0,
            late: 0,
            has_widened: false,
            widen_at: Nanos(0),
            calm_ns: CALM_MIN_NS,
        }
    }

    /// What may be in flight now; `None`: as much as anybody wants.
    #[must_use]
    pub fn now(&self) -> Option<Work> {
        let wanted = if TRIALS[self.trial] { self.wide() } else { self.base };
        self.shared.then_some(Work(self.allowed.map_or(wanted, |allowed| allowed.min(wanted))))
    }

    /// The wider window.
    fn wide(&self) -> u64 {
        self.base.saturating_add(self.base / 100 * WIDER)
    }

    /// Whether latency targets keep it narrower than throughput would: then nothing can be learnt about that.
    #[must_use]
    pub fn is_narrowed(&self) -> bool {
        self.allowed.is_some()
    }

    /// Whether it is as narrow as can be, and requests are late all the same.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.allowed == Some(self.min)
    }

    /// Looks at what has been counted. Call every [`PERIOD_NS`] or so.
    pub fn look(&mut self, counted: Counted, now: Nanos) {
        let shared = counted.clients > 1;
        if shared && !self.shared {
            self.lower(counted.peak);
            (self.gain, self.retry_at, self.retry_ns) = (UNKNOWN, now, RETRY_MIN_NS);
            self.begin_trial(0, counted, now);
        }
        self.shared = shared;
        if !shared {
            self.allowed = None;
            return;
        }
        self.look_at_targets(counted, now);
        let elapsed_ns = now.since(self.begun);
        let operations = counted.operations.saturating_sub(self.counted.operations);
        if elapsed_ns < PERIOD_NS || operations < PERIOD_OPERATIONS && elapsed_ns < PERIOD_MAX_NS {
            return;
        }
        let done = u128::from(counted.done.0.saturating_sub(self.counted.done.0));
        let rate = done * 1_000_000_000 / u128::from(elapsed_ns);
        self.rates[self.trial] = u64::try_from(rate).unwrap_or(u64::MAX);
        let held = counted.held.saturating_sub(self.counted.held);
        self.judged &= TRIALS[self.trial] || held > operations / HELD_PART;
        let next = (self.trial + 1) % TRIALS.len();
        self.begin_trial(next, counted, now);
        if next == 0 {
            self.judge(counted.peak, now);
            self.judged = true;
        }
    }

    fn begin_trial(&mut self, trial: usize, counted: Counted, now: Nanos) {
        (self.trial, self.counted, self.begun) = (trial, counted, now);
    }

    /// All windows have been tried.
    fn judge(&mut self, peak: Work, now: Nanos) {
        if self.is_narrowed() {
            return;
        }
        if self.judged {
            return self.adjust();
        }
        // It is wider than anybody wants. Whether less would do is tried now and then.
        if now >= self.retry_at {
            if self.gain > GROWS {
                self.retry_ns = (self.retry_ns * 2).min(RETRY_MAX_NS);
                self.gain = UNKNOWN;
            }
            self.retry_at = Nanos(now.0.saturating_add(self.retry_ns));
            self.lower(peak);
        }
    }

    fn lower(&mut self, peak: Work) {
        self.base = self.base.min(peak.0 / 100 * LOWERED).clamp(self.min, self.max);
    }

    fn adjust(&mut self) {
        let [narrow, wide, wide_again, narrow_again] = self.rates.map(i128::from);
        let (narrow, wide) = ((narrow + narrow_again).max(1), wide + wide_again);
        let gain = (wide - narrow) * 100_000 / (narrow * i128::from(WIDER));
        let gain = i64::try_from(gain.clamp(-500, 1500)).expect("clamped");
        self.gain += (gain - self.gain) / TRIAL_WEIGHT;
        let percent = match self.gain {
            gain if gain > GROWS_FAST => 150,
            gain if gain > GROWS => 108,
            gain if gain < SHRINKS_FAST => 83,
            gain if gain < SHRINKS => 93,
            _ => 100,
        };
        self.base = (self.base / 100 * percent).clamp(self.min, self.max);
    }

    fn look_at_targets(&mut self, counted: Counted, now: Nanos) {
        self.targeted += counted.targeted;
        self.late += counted.late;
        if self.targeted == 0 {
            return;
        }
        if self.targeted < TARGET_SAMPLE && self.late < TARGET_LATE {
            return;
        }
        let late = self.late * 1000 / self.targeted;
        (self.targeted, self.late) = (0, 0);
        if late > LATE_MANY {
            self.narrow(now);
        } else if late < LATE_FEW && now >= self.widen_at {
            self.widen();
        }
    }

    fn narrow(&mut self, now: Nanos) {
        let wide = self.wide();
        let allowed = self.allowed.map_or(wide, |allowed| allowed.min(wide));
        self.allowed = Some((allowed / 100 * 88).max(self.min));
        if std::mem::take(&mut self.has_widened) {
            self.calm_ns = (self.calm_ns * 2).min(CALM_MAX_NS);
        }
        self.widen_at = Nanos(now.0.saturating_add(self.calm_ns));
    }

    fn widen(&mut self) {
        let Some(allowed) = self.allowed else { return };
        let wider = allowed.saturating_add((allowed / 32).max(1));
        self.allowed = (wider < self.wide()).then_some(wider);
        self.has_widened = true;
        if self.allowed.is_none() {
            self.calm_ns = CALM_MIN_NS;
        }
    }
}

#[cfg(test)]
mod tests;
