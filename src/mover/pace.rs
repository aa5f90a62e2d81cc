//! How fast a job copies: at most its own limit, and no faster than guests bear.
//!
//! Every interval the latency of guest I/O on the disks involved is compared with what it is when the job hardly moves. A disk
//! often shows nothing until it can do no more, and then everybody waits long: so the rate at which guests began to suffer is
//! remembered, and the job stays well below it for a while before it tries again. Without guest I/O it has no limit but its own.
//! It never goes below a floor, so that every job ends. Pure: time and counters are arguments.

use std::collections::BTreeMap;
use std::time::Duration;

use self::guests::{Guests, Verdict};
use super::messages::Speed;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, JobId};
use crate::base::limits::{COPY_CHUNKS_BUSY, COPY_CHUNKS_MAX, COPY_CHUNKS_URGENT};
use crate::shared::DiskState;

mod guests;

/// How often the rate is reconsidered.
const INTERVAL_NS: u64 = 100_000_000;

/// The floor, in percent of what the job moved in its best interval.
const FLOOR_PERCENT: u64 = 10;

/// The floor as long as nothing is known, in bytes per second.
const FLOOR_FIRST: u64 = 8 << 20;

/// What is saved up at most while nothing is asked for: this part of a second.
const BURST_PART: u64 = 20;

/// Guests that have asked nothing for so long are idle. Those that wait for us ask nothing, either.
const IDLE_NS: u64 = 500_000_000;

/// Where guests suffer is not tried again for so long: what they suffer until it is noticed must be rare.
const HOLD_NS: u64 = 30_000_000_000;

/// How far below that the job stays meanwhile, in percent.
const HOLD_PERCENT: u64 = 60;

/// What was asked for too fast takes so long to get done: until then guests suffer from that, and not from the rate now.
const DRAIN_NS: u64 = 300_000_000;

/// The rate rises by this part of it.
const STEP_PART: u64 = 4;

/// The pace of each job that is being carried out.
#[derive(Debug, Default)]
pub struct Paces(BTreeMap<JobId, Pace>);

impl Paces {
    /// A job begins at `now`, or goes at another speed from now on.
    pub fn set_speed(&mut self, job: JobId, speed: Speed, now: Nanos) {
        self.0.entry(job).or_insert_with(|| Pace::new(speed, now)).speed = speed;
    }

    /// The job has ended.
    pub fn forget(&mut self, job: JobId) {
        self.0.remove(&job);
    }

    /// The pace of a job.
    pub fn get_mut(&mut self, job: JobId) -> Option<&mut Pace> {
        self.0.get_mut(&job)
    }

    /// Whether the job goes on as fast as the disks can.
    #[must_use]
    pub fn is_urgent(&self, job: JobId) -> bool {
        self.0.get(&job).is_some_and(|pace| pace.speed.urgent)
    }

    /// Chunks that the job may have in flight on a disk.
    #[must_use]
    pub fn depth(&self, job: JobId) -> usize {
        self.0.get(&job).map_or(COPY_CHUNKS_MAX / 2, Pace::depth)
    }
}

/// A rate that was too much for guests.
#[derive(Clone, Copy, Debug)]
struct Ceiling {
    /// What the job keeps to instead.
    rate: u64,
    since: Nanos,
}

/// The pace of one job.
#[derive(Debug)]
pub struct Pace {
    speed: Speed,
    /// Bytes per second; `None`: no limit (guests are idle).
    rate: Option<u64>,
    /// The last rate while guests were busy.
    busy_rate: u64,
    ceiling: Option<Ceiling>,
    /// Bytes that may be copied now; below zero: how far ahead the job is.
    tokens: i128,
    filled: Nanos,
    observed: Nanos,
    /// When a guest was last seen to do something; `None`: never.
    busy: Option<Nanos>,
    guests: BTreeMap<DiskId, Guests>,
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
            ceiling: None,
            tokens: 0,
            filled: now,
            // The first look comes at once.
            observed: Nanos(0),
            busy: None,
            guests: BTreeMap::new(),
            moved: 0,
            best: 0,
        }
    }

    /// Bytes per second at most, now; `None`: no limit.
    #[must_use]
    pub fn limit(&self) -> Option<u64> {
        match (self.speed.max_rate, self.adaptive()) {
            (Some(own), Some(borne)) => Some(own.min(borne)),
            (own, borne) => own.or(borne),
        }
    }

    fn adaptive(&self) -> Option<u64> {
        if self.speed.urgent { None } else { self.rate }
    }

    /// Chunks that it may have in flight on a disk. Behind each of them guests may have to wait.
    fn depth(&self) -> usize {
        match self.rate {
            None => COPY_CHUNKS_MAX / 2,
            Some(_) if self.speed.urgent => COPY_CHUNKS_URGENT,
            Some(_) => COPY_CHUNKS_BUSY,
        }
    }

    /// Whether it is time to look at guests again.
    #[must_use]
    pub fn must_observe(&self, now: Nanos) -> bool {
        now.since(self.observed) >= INTERVAL_NS
    }

    /// Looks at the guests of the disks that the job works on.
    pub fn observe<'a>(&mut self, disks: impl Iterator<Item = &'a DiskState>, now: Nanos) {
        let elapsed_ns = now.since(self.observed).max(1);
        let achieved = u128::from(self.moved) * 1_000_000_000 / u128::from(elapsed_ns);
        let achieved = u64::try_from(achieved).unwrap_or(u64::MAX);
        self.best = self.best.max(achieved);
        (self.moved, self.observed) = (0, now);
        let at_floor = self.rate.is_some_and(|rate| rate <= self.floor());
        let verdict = disks.map(|disk| self.guests.entry(disk.id).or_default().look(disk, at_floor, now)).max();
        self.reconsider(verdict.unwrap_or(Verdict::Unseen), achieved, now);
    }

    fn floor(&self) -> u64 {
        (self.best / 100 * FLOOR_PERCENT).max(FLOOR_FIRST)
    }

    fn reconsider(&mut self, verdict: Verdict, achieved: u64, now: Nanos) {
        match verdict {
            Verdict::Unseen => return,
            Verdict::Idle => {
                if self.busy.is_none_or(|busy| now.since(busy) >= IDLE_NS) {
                    self.rate = None;
                }
                return;
            }
            _ => self.busy = Some(now),
        }
        let before = self.rate.unwrap_or(self.busy_rate);
        let next = match verdict {
            Verdict::Strained => self.retreat(achieved, now),
            Verdict::Untold => 0,
            Verdict::Calm => self.advance(before, achieved, now),
            _ => before,
        };
        self.busy_rate = next.max(self.floor());
        self.rate = Some(self.busy_rate);
    }

    /// Guests suffer: remembers at which rate. The rate after that.
    fn retreat(&mut self, achieved: u64, now: Nanos) -> u64 {
        let draining = self.ceiling.filter(|ceiling| now.since(ceiling.since) < DRAIN_NS);
        let rate = match draining {
            Some(ceiling) => ceiling.rate,
            None => {
                let tried = self.rate.unwrap_or(u64::MAX).min(achieved) / 100 * HOLD_PERCENT;
                self.ceiling = Some(Ceiling { rate: tried, since: now });
                tried
            }
        };
        rate / 2
    }

    /// Guests hardly feel the job: the next higher rate.
    fn advance(&mut self, before: u64, achieved: u64, now: Nanos) -> u64 {
        if self.ceiling.is_some_and(|ceiling| now.since(ceiling.since) >= HOLD_NS) {
            self.ceiling = None;
        }
        // A limit that is not made use of does not rise.
        let step = if achieved < before / 2 { 0 } else { (before / STEP_PART).max(1 << 20) };
        (before + step).min(self.ceiling.map_or(u64::MAX, |ceiling| ceiling.rate))
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

#[cfg(test)]
mod tests;
