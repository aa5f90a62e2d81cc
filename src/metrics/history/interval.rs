//! From counters to samples.

use super::sample::{Field, Sample};
use crate::base::clock::Nanos;
use crate::metrics::LATENCY_BUCKETS;

/// What the counters of a subject say at one moment. All but the last three only ever grow while the daemon runs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// When.
    pub at: Nanos,
    /// Reads that are done.
    pub reads: u64,
    /// Writes that are done.
    pub writes: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Their bytes.
    pub write_bytes: u64,
    /// Sum of the times that these took, waiting in the virtqueue included, in nanoseconds.
    pub latency_ns: u64,
    /// How long each took, by latency bucket.
    pub latency: [u64; LATENCY_BUCKETS],
    /// How long each waited before it came to a host disk, by latency bucket; in the virtqueue, too.
    pub admission: [u64; LATENCY_BUCKETS],
    /// How long each was at the host disk.
    pub disk: [u64; LATENCY_BUCKETS],
    /// How many of them began where another one had ended.
    pub sequential: u64,
    /// For how long a limit held something back, in nanoseconds; of several virtqueues together.
    pub throttled_ns: u64,
    /// Bytes of the daemon's own work.
    pub background_bytes: u64,
    /// Virtqueues that can be held back; at least 1.
    pub queues: u64,
    /// Extents that were touched in the last window that is over.
    pub working_set: u64,
    /// Bytes of room taken.
    pub used_bytes: u64,
}

/// What happened between two readings.
#[derive(Clone, Debug, Default)]
pub(super) struct Interval {
    ns: u64,
    change: Reading,
}

impl Interval {
    /// Counters are read one after the other while others raise them, and begin anew with the daemon: less than before is nothing.
    pub fn between(before: &Reading, after: &Reading) -> Interval {
        let less = |of: fn(&Reading) -> u64| of(after).saturating_sub(of(before));
        let each = |of: fn(&Reading) -> &[u64; LATENCY_BUCKETS]| {
            std::array::from_fn(|bucket| of(after)[bucket].saturating_sub(of(before)[bucket]))
        };
        let change = Reading {
            at: after.at,
            reads: less(|r| r.reads),
            writes: less(|r| r.writes),
            read_bytes: less(|r| r.read_bytes),
            write_bytes: less(|r| r.write_bytes),
            latency_ns: less(|r| r.latency_ns),
            latency: each(|r| &r.latency),
            admission: each(|r| &r.admission),
            disk: each(|r| &r.disk),
            sequential: less(|r| r.sequential),
            throttled_ns: less(|r| r.throttled_ns),
            background_bytes: less(|r| r.background_bytes),
            queues: after.queues,
            working_set: after.working_set,
            used_bytes: after.used_bytes,
        };
        Interval { ns: after.at.since(before.at), change }
    }
}

/// The intervals of one sample so far.
#[derive(Clone, Debug, Default)]
pub(super) struct Sum {
    /// Which sample.
    pub slot: Option<u32>,
    /// What an earlier process has left of it.
    before: Option<Sample>,
    ns: u64,
    total: Reading,
    peak_requests: u64,
    peak_bytes: u64,
}

impl Sum {
    pub fn begin(slot: u32, before: Option<Sample>) -> Sum {
        Sum { slot: Some(slot), before, ..Sum::default() }
    }

    pub fn add(&mut self, interval: &Interval) {
        let Interval { ns, change } = interval;
        let total = &mut self.total;
        let requests = change.reads.saturating_add(change.writes);
        let bytes = change.read_bytes.saturating_add(change.write_bytes);
        self.peak_requests = self.peak_requests.max(thousandths_a_second(requests, *ns));
        self.peak_bytes = self.peak_bytes.max(a_second(bytes, *ns));
        self.ns = self.ns.saturating_add(*ns);
        let counters: [(&mut u64, u64); 8] = [
            (&mut total.reads, change.reads),
            (&mut total.writes, change.writes),
            (&mut total.read_bytes, change.read_bytes),
            (&mut total.write_bytes, change.write_bytes),
            (&mut total.latency_ns, change.latency_ns),
            (&mut total.sequential, change.sequential),
            (&mut total.throttled_ns, change.throttled_ns),
            (&mut total.background_bytes, change.background_bytes),
        ];
        counters.into_iter().for_each(|(sum, more)| *sum = sum.saturating_add(more));
        let histograms: [(&mut [u64; LATENCY_BUCKETS], &[u64; LATENCY_BUCKETS]); 3] = [
            (&mut total.latency, &change.latency),
            (&mut total.admission, &change.admission),
            (&mut total.disk, &change.disk),
        ];
        for (sum, more) in histograms {
            sum.iter_mut().zip(more).for_each(|(sum, more)| *sum = sum.saturating_add(*more));
        }
        total.queues = change.queues;
        total.working_set = total.working_set.max(change.working_set);
        total.used_bytes = change.used_bytes;
    }

    /// What has been seen of a sample of so many seconds.
    pub fn sample(&self, secs: u64) -> Sample {
        let (total, ns) = (&self.total, self.ns);
        let requests = total.reads.saturating_add(total.writes);
        let seen = Sample::default()
            .with(Field::Reads, thousandths_a_second(total.reads, ns))
            .with(Field::Writes, thousandths_a_second(total.writes, ns))
            .with(Field::ReadBytes, a_second(total.read_bytes, ns))
            .with(Field::WriteBytes, a_second(total.write_bytes, ns))
            .with(Field::PeakRequests, self.peak_requests)
            .with(Field::PeakBytes, self.peak_bytes)
            .with(Field::Depth, ratio(total.latency_ns, 1000, ns))
            .with(Field::MedianLatency, percentile(&total.latency, 50))
            .with(Field::P99Latency, percentile(&total.latency, 99))
            .with(Field::P99Admission, percentile(&total.admission, 99))
            .with(Field::P99Disk, percentile(&total.disk, 99))
            .with(Field::Sequential, ratio(total.sequential, 1000, requests).min(1000))
            .with(Field::Throttled, ratio(total.throttled_ns, 1000, ns.saturating_mul(total.queues.max(1))).min(1000))
            .with(Field::WorkingSet, total.working_set)
            .with(Field::Used, total.used_bytes >> 10)
            .with(Field::Background, a_second(total.background_bytes, ns))
            .with(Field::Covered, ratio(ns, 1000, secs * NS).min(1000));
        match &self.before {
            Some(before) => before.merged(&seen),
            None => seen,
        }
    }
}

impl Sample {
    /// Two parts of one interval, this one being the earlier, as one.
    pub(super) fn merged(&self, later: &Sample) -> Sample {
        let weights = [self.get(Field::Covered), later.get(Field::Covered)];
        if weights[0] == 0 {
            return *later;
        }
        let requests = [self, later].map(|part| part.get(Field::Reads).saturating_add(part.get(Field::Writes)));
        let by_requests = [0, 1].map(|part| weights[part].saturating_mul(requests[part]));
        let mean = |field, weights: [u64; 2]| {
            let total: u128 = weights.iter().map(|weight| u128::from(*weight)).sum();
            let parts = [self, later].map(|part| u128::from(part.get(field)));
            let sum: u128 = parts.iter().zip(weights).map(|(value, weight)| value * u128::from(weight)).sum();
            u64::try_from((sum + total / 2).checked_div(total).unwrap_or(0)).unwrap_or(u64::MAX)
        };
        let mut sample = *later;
        for field in [Field::Reads, Field::Writes, Field::ReadBytes, Field::WriteBytes, Field::Depth] {
            sample.set(field, mean(field, weights));
        }
        for field in [Field::Throttled, Field::Background] {
            sample.set(field, mean(field, weights));
        }
        let of_requests = [Field::MedianLatency, Field::P99Latency, Field::P99Admission, Field::P99Disk];
        for field in of_requests.into_iter().chain([Field::Sequential]) {
            sample.set(field, mean(field, by_requests));
        }
        for field in [Field::PeakRequests, Field::PeakBytes, Field::WorkingSet] {
            sample.set(field, self.get(field).max(later.get(field)));
        }
        sample.set(Field::Covered, weights[0].saturating_add(weights[1]).min(1000));
        sample
    }
}

const NS: u64 = 1_000_000_000;

fn ratio(part: u64, times: u64, of: u64) -> u64 {
    // Most numbers are small, or of somebody who does nothing; a wide division takes as long as all the rest.
    if let Some(product) = part.checked_mul(times) {
        return product.checked_div(of).unwrap_or(0);
    }
    let wide = (u128::from(part) * u128::from(times)).checked_div(u128::from(of)).unwrap_or(0);
    u64::try_from(wide).unwrap_or(u64::MAX)
}

fn a_second(count: u64, ns: u64) -> u64 {
    ratio(count, NS, ns)
}

fn thousandths_a_second(count: u64, ns: u64) -> u64 {
    ratio(count, 1000 * NS, ns)
}

/// Microseconds that so many of 100 did not exceed; within a bucket all lengths are taken to be equally likely.
fn percentile(buckets: &[u64; LATENCY_BUCKETS], of_100: u64) -> u64 {
    if buckets.iter().all(|count| *count == 0) {
        return 0;
    }
    let count = |bucket: &u64| u128::from(*bucket);
    let total: u128 = buckets.iter().map(count).sum();
    let wanted = (total * u128::from(of_100)).div_ceil(100);
    let mut below = 0;
    for (bucket, here) in buckets.iter().map(count).enumerate() {
        if here > 0 && below + here >= wanted {
            let (from, to) = if bucket == 0 { (0, 1) } else { (1_u64 << (bucket - 1), 1 << bucket) };
            let part = u128::from(to - from) * (wanted - below) / here;
            return from + u64::try_from(part).unwrap_or(0);
        }
        below += here;
    }
    0
}
