//! What one thread of a frontend counts.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Bits of a latency that are told apart: it is known to 1.6 %.
const PRECISION: u32 = 6;

/// What came of a measurement.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Outcome {
    /// Requests per second.
    pub iops: f64,
    /// Half of the requests took at most so many microseconds.
    pub p50_us: f64,
    /// 99 of 100 did.
    pub p99_us: f64,
    /// 999 of 1000 did.
    pub p999_us: f64,
    /// Completed requests.
    pub requests: u64,
    /// How often the device was told of new requests.
    pub kicks: u64,
    /// How often the frontend was woken.
    pub wakeups: u64,
}

/// Counts, and how many requests took how long.
pub struct Tally {
    /// When counting began.
    pub started: Instant,
    /// The last completion.
    pub ended: Instant,
    /// How often the device was told of new requests.
    pub kicks: u64,
    /// How often the frontend was woken.
    pub wakeups: u64,
    /// By [`bucket`] of the latency.
    latencies: Vec<u64>,
}

impl Default for Tally {
    /// Nothing yet, from now on.
    fn default() -> Tally {
        let now = Instant::now();
        let buckets = bucket(u64::MAX) + 1;
        Tally { started: now, ended: now, kicks: 0, wakeups: 0, latencies: vec![0; buckets] }
    }
}

impl Tally {
    /// A request has taken so long.
    pub fn add(&mut self, latency: Duration) {
        self.latencies[bucket(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX))] += 1;
    }

    /// Adds what another thread has counted at the same time.
    pub fn join(&mut self, other: &Tally) {
        let empty = self.requests() == 0;
        self.started = if empty { other.started } else { self.started.min(other.started) };
        self.ended = self.ended.max(other.ended);
        self.kicks += other.kicks;
        self.wakeups += other.wakeups;
        self.latencies.iter_mut().zip(&other.latencies).for_each(|(all, one)| *all += one);
    }

    /// What has been counted.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "far fewer requests than a double counts exactly")]
    pub fn outcome(&self) -> Outcome {
        let requests = self.requests();
        Outcome {
            iops: requests as f64 / (self.ended - self.started).as_secs_f64().max(1e-9),
            p50_us: self.quantile(0.5),
            p99_us: self.quantile(0.99),
            p999_us: self.quantile(0.999),
            requests,
            kicks: self.kicks,
            wakeups: self.wakeups,
        }
    }

    fn requests(&self) -> u64 {
        self.latencies.iter().sum()
    }

    /// The latency in microseconds that this part of all requests did not exceed.
    #[allow(clippy::cast_precision_loss, reason = "the counts are far smaller than a double counts exactly")]
    fn quantile(&self, part: f64) -> f64 {
        let wanted = self.requests() as f64 * part;
        let mut seen = 0.0;
        let reached = self.latencies.iter().position(|count| {
            seen += *count as f64;
            seen >= wanted
        });
        middle(reached.unwrap_or(0)) / 1000.0
    }
}

/// Where a number of nanoseconds is counted: exact while it is small, by its leading bits when it is not.
fn bucket(nanos: u64) -> usize {
    let shift = (u64::BITS - nanos.leading_zeros()).saturating_sub(PRECISION + 1);
    let index = (u64::from(shift) << PRECISION) + (nanos >> shift);
    usize::try_from(index).expect("a few thousand buckets")
}

/// The nanoseconds in the middle of a bucket.
#[allow(clippy::cast_precision_loss, reason = "the leading bits are all there is")]
fn middle(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    let shift = (bucket >> PRECISION).saturating_sub(1);
    let leading = bucket - (shift << PRECISION);
    (leading as f64 + 0.5) * (1_u64 << shift) as f64
}

/// A number of requests, to divide by.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "far fewer requests than a double counts exactly")]
pub fn count(requests: u64) -> f64 {
    requests as f64
}
