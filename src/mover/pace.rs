//! How fast a job copies: at most its own limit, and no faster than guests bear.
//!
//! Every interval the mean latency of guest I/O on the disks involved is compared with what it is when the job hardly
//! moves. Above the target the job halves its rate, below it goes faster a step at a time; without guest I/O it has no limit
//! but its own. It never goes below a floor, so that every job ends. Pure: time and counters are arguments.

use std::time::Duration;

use super::messages::Speed;
use crate::base::clock::Nanos;
use crate::metrics::{IO_KINDS, IoMetrics};
use crate::shared::DiskState;

/// How often the rate is reconsidered.
const INTERVAL: Duration = Duration::from_millis(100);

/// Guest latency that is borne: this many percent of what it is while the job goes at its floor, and this much more.
const TARGET_PERCENT: u64 = 130;
const TARGET_SLACK_NS: u64 = 50_000;

/// The floor, in percent of what the job moved in its best interval.
const FLOOR_PERCENT: u64 = 10;

/// The floor as long as nothing is known, in bytes per second.
const FLOOR_FIRST: u64 = 8 << 20;

/// What is saved up at most while nothing is asked for: this part of a second.
const BURST_PART: u64 = 20;

/// Counters of guest I/O.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sample {
    requests: u64,
    latency_ns: u64,
}

/// The pace of one job.
#[derive(Debug)]
pub struct Pace {
    speed: Speed,
    /// Bytes per second; `None`: no limit (guests are idle).
    rate: Option<u64>,
    /// The last rate while guests were busy.
    busy_rate: u64,
    /// Bytes that may be copied now; below zero: how far ahead the job is.
    tokens: i128,
    filled: Nanos,
    observed: Nanos,
    last: Sample,
    /// Guest latency while the job went at its floor.
    quiet_ns: Option<u64>,
    /// Bytes in this interval, and the most per second of any.
    moved: u64,
    best: u64,
}

impl Pace {
    /// A job that begins at `now`.
    #[must_use]
    pub fn new(speed: Speed, now: Nanos) -> Pace {
        Pace {
            speed,
            rate: Some(FLOOR_FIRST),
            busy_rate: FLOOR_FIRST,
            tokens: 0,
            filled: now,
            observed: now,
            last: Sample::default(),
            quiet_ns: None,
            moved: 0,
            best: 0,
        }
    }

    /// From now on at another speed.
    pub fn set_speed(&mut self, speed: Speed) {
        self.speed = speed;
    }

    /// Bytes per second at most, now; `None`: no limit.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        let adaptive = if self.speed.urgent { None } else { self.rate };
        match (self.speed.max_rate, adaptive) {
            (Some(own), Some(borne)) => Some(own.min(borne)),
            (own, borne) => own.or(borne),
        }
    }

    /// Looks at the guests of the disks that the job works on, once per interval.
    pub fn observe<'a>(&mut self, disks: impl Iterator<Item = &'a DiskState>, now: Nanos) {
        let elapsed = now.since(self.observed);
        if elapsed < u64::try_from(INTERVAL.as_nanos()).unwrap_or(u64::MAX) {
            return;
        }
        let sample = disks.fold(Sample::default(), |sum, disk| disk.metrics.iter().fold(sum, add));
        self.reconsider(sample, elapsed);
        self.observed = now;
    }

    fn reconsider(&mut self, sample: Sample, elapsed_ns: u64) {
        let per_second = u128::from(self.moved) * 1_000_000_000 / u128::from(elapsed_ns.max(1));
        let achieved = u64::try_from(per_second).unwrap_or(u64::MAX);
        self.best = self.best.max(achieved);
        self.moved = 0;
        let floor = (self.best / 100 * FLOOR_PERCENT).max(FLOOR_FIRST);
        let requests = sample.requests.saturating_sub(self.last.requests);
        let latency_ns = sample.latency_ns.saturating_sub(self.last.latency_ns);
        let first = self.last == Sample::default();
        self.last = sample;
        if first && sample.requests > 0 {
            // The counters go back to before the job.
            return;
        }
        if requests == 0 {
            self.rate = None;
            return;
        }
        let mean = latency_ns / requests;
        let at_floor = self.rate.is_some_and(|rate| rate <= floor);
        let quiet = match self.quiet_ns {
            // What counts as quiet follows a guest that changes its habits, slowly.
            Some(quiet) if at_floor => quiet - quiet / 8 + mean / 8,
            Some(quiet) => quiet.min(mean),
            None if at_floor => mean,
            None => {
                self.rate = Some(floor);
                return;
            }
        };
        self.quiet_ns = Some(quiet);
        let target = quiet / 100 * TARGET_PERCENT + TARGET_SLACK_NS;
        let rate = self.rate.unwrap_or(self.busy_rate);
        let next = if mean > target { rate / 2 } else { rate + (rate / 8).max(1 << 20) };
        // A limit that is not made use of does not rise.
        let next = if next > rate && achieved < rate / 2 { rate } else { next };
        self.busy_rate = next.max(floor);
        self.rate = Some(self.busy_rate);
    }

    /// When the job may copy its next chunk: `None`, now.
    pub fn due(&mut self, now: Nanos) -> Option<Nanos> {
        let limit = self.limit()?;
        let limit = limit.max(1);
        let gained = u128::from(now.since(self.filled)) * u128::from(limit) / 1_000_000_000;
        let most = i128::from(limit / BURST_PART);
        if gained > 0 {
            self.tokens = (self.tokens + i128::try_from(gained).unwrap_or(i128::MAX)).min(most);
            self.filled = now;
        }
        if self.tokens >= 0 {
            return None;
        }
        let missing = self.tokens.unsigned_abs() * 1_000_000_000 / u128::from(limit) + 1;
        Some(now.after(Duration::from_nanos(u64::try_from(missing).unwrap_or(u64::MAX))))
    }

    /// A chunk has been begun.
    pub fn take(&mut self, bytes: u64, now: Nanos) {
        self.moved += bytes;
        match self.limit() {
            Some(_) => self.tokens -= i128::from(bytes),
            None => (self.tokens, self.filled) = (0, now),
        }
    }
}

fn add(sum: Sample, metrics: &IoMetrics) -> Sample {
    IO_KINDS.iter().fold(sum, |sum, kind| {
        let kind = metrics.kind(*kind);
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        Sample {
            requests: sum.requests + load(&kind.requests),
            latency_ns: sum.latency_ns + load(&kind.latency_ns_sum),
        }
    })
}

#[cfg(test)]
mod tests;
