//! What the guests of one disk feel, by its counters. Pure.

use crate::base::clock::Nanos;
use crate::metrics::{IoKind, LATENCY_BUCKETS};
use crate::shared::DiskState;

/// Latency that is borne: this many percent of what it is while the job goes at its floor, and this much more per request.
const TARGET_PERCENT: u64 = 130;
const TARGET_SLACK_NS: u64 = 50_000;

/// Fewer requests than this say nothing, unless that is all there are in so much time.
const REQUESTS_MIN: u64 = 4;
const PATIENCE_NS: u64 = 1_000_000_000;

/// What was seen longer ago is no beginning for an interval.
const STALE_NS: u64 = 3 * PATIENCE_NS;

/// Each has a latency of its own, so that a guest that begins to flush does not seem to suffer.
const KINDS: [IoKind; 3] = [IoKind::Read, IoKind::Write, IoKind::Flush];

/// Counters of requests of one kind.
#[derive(Clone, Copy, Debug, Default)]
struct Counters {
    requests: u64,
    latency_ns: u64,
    buckets: [u64; LATENCY_BUCKETS],
}

/// What guests of a disk felt lately. The worse, the later.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verdict {
    /// It was not looked at before.
    Unseen,
    /// There are none.
    Idle,
    /// They asked too little to tell.
    Few,
    /// Hardly anything.
    Calm,
    /// Nobody knows what they would feel without the job.
    Untold,
    /// They are slower than they would be without the job.
    Strained,
}

/// The guests of one disk.
#[derive(Debug, Default)]
pub(super) struct Guests {
    /// When the interval began, and counters then; `None`: it has not.
    began: Option<Nanos>,
    before: [Counters; KINDS.len()],
    /// Requests since then, if they were too few when they were last looked at.
    few: u64,
    /// Latency while the job went at its floor.
    quiet_ns: [Option<u64>; KINDS.len()],
}

impl Guests {
    /// Looks at the counters. `at_floor`: what is seen is as good as without the job.
    pub fn look(&mut self, disk: &DiskState, at_floor: bool, now: Nanos) -> Verdict {
        let counters = KINDS.map(|kind| Counters::of(disk, kind));
        let age = self.began.map_or(u64::MAX, |began| now.since(began));
        if age > STALE_NS {
            (self.began, self.before, self.few) = (Some(now), counters, 0);
            return Verdict::Unseen;
        }
        let lately = std::array::from_fn(|kind| counters[kind].since(&self.before[kind]));
        let requests = lately.iter().map(|kind: &Counters| kind.requests).sum::<u64>();
        let is_idle = requests == self.few;
        if requests < REQUESTS_MIN && age < PATIENCE_NS {
            self.few = requests;
            return if is_idle { Verdict::Idle } else { Verdict::Few };
        }
        (self.began, self.before, self.few) = (Some(now), counters, 0);
        if is_idle {
            return Verdict::Idle;
        }
        if !at_floor && self.quiet_ns.iter().all(Option::is_none) {
            return Verdict::Untold;
        }
        self.judge(&lately, at_floor)
    }

    fn judge(&mut self, lately: &[Counters; KINDS.len()], at_floor: bool) -> Verdict {
        // In percent of what is borne, summed over requests: a slow kind must not hide what happens to a fast one.
        let (mut felt, mut borne) = (0, 0);
        for (kind, quiet) in lately.iter().zip(&mut self.quiet_ns) {
            let Some((requests, latency_ns)) = kind.without_slowest() else { continue };
            let mean = latency_ns / requests;
            let known = *quiet.get_or_insert(mean);
            felt += requests * (mean * 100 / (known / 100 * TARGET_PERCENT + TARGET_SLACK_NS));
            borne += requests * 100;
            // Guests change their habits: what they feel at the floor, they would feel anyway. Elsewhere only good news count,
            // or the job would get used to what it does to them.
            if at_floor || mean < known {
                *quiet = Some(known - known / 8 + mean / 8);
            }
        }
        if felt > borne { Verdict::Strained } else { Verdict::Calm }
    }
}

impl Counters {
    fn of(disk: &DiskState, kind: IoKind) -> Counters {
        let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
        let mut sum = Counters::default();
        for metrics in disk.metrics.iter().map(|metrics| metrics.kind(kind)) {
            sum.requests += load(&metrics.requests);
            sum.latency_ns += load(&metrics.latency_ns_sum);
            sum.buckets.iter_mut().zip(&metrics.latency_buckets).for_each(|(sum, bucket)| *sum += load(bucket));
        }
        sum
    }

    /// Counters are read one after the other while others raise them: none of the differences may be relied upon.
    fn since(&self, before: &Counters) -> Counters {
        Counters {
            requests: self.requests.saturating_sub(before.requests),
            latency_ns: self.latency_ns.saturating_sub(before.latency_ns),
            buckets: std::array::from_fn(|i| self.buckets[i].saturating_sub(before.buckets[i])),
        }
    }

    /// Requests and the sum of their latencies without the slowest one, which may have met anything; it took at least as long
    /// as its bucket begins. `None`: there is no other.
    fn without_slowest(&self) -> Option<(u64, u64)> {
        let slowest = self.buckets.iter().rposition(|count| *count > 0)?;
        let least_ns = if slowest == 0 { 0 } else { 1000 << (slowest - 1) };
        (self.requests >= 2).then(|| (self.requests - 1, self.latency_ns.saturating_sub(least_ns)))
    }
}
