//! Reads, or writes, of one subject more closely: how long they were where, how long they are, and whether they follow each other.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{AddAlone, LATENCY_BUCKETS, latency_bucket};

/// Where the time of a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// From when it could have been taken off its virtqueue until a part of it goes to a host disk: held back by limits, waiting for room,
    /// for a claim or for a place.
    Admission,
    /// From there until the last part of it is back.
    Disk,
    /// From there until the guest has it back: commits of FLUSH and writethrough, copying, the used ring.
    Completion,
}

/// All stages, in their order.
pub const STAGES: [Stage; 3] = [Stage::Admission, Stage::Disk, Stage::Completion];

impl Stage {
    /// The word of the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Stage::Admission => "admission",
            Stage::Disk => "disk",
            Stage::Completion => "completion",
        }
    }
}

/// Size buckets: bucket `i` counts sizes up to `512 << i` bytes; the last one takes the rest.
pub const SIZE_BUCKETS: usize = 17;

/// The size bucket of so many bytes.
#[must_use]
pub fn size_bucket(bytes: u64) -> usize {
    let sectors = bytes.div_ceil(512).max(1);
    (u64::BITS - (sectors - 1).leading_zeros()).min(16) as usize
}

/// How many streams of requests that follow each other are told apart.
const STREAMS: usize = 4;

/// A histogram of latencies.
#[derive(Debug, Default)]
pub struct Histogram {
    /// Their sum, in nanoseconds.
    pub ns_sum: AtomicU64,
    /// See [`LATENCY_BUCKETS`].
    pub counts: [AtomicU64; LATENCY_BUCKETS],
}

impl Histogram {
    fn record(&self, ns: u64, times: u64) {
        self.ns_sum.add_alone(ns.saturating_mul(times));
        self.counts[latency_bucket(ns)].add_alone(times);
    }
}

/// Reads, or writes.
#[derive(Debug, Default)]
pub struct Transfers {
    stages: [Histogram; STAGES.len()],
    /// Requests by length.
    pub sizes: [AtomicU64; SIZE_BUCKETS],
    /// Sum of these lengths.
    pub size_sum: AtomicU64,
    /// Requests that began where an earlier one had ended.
    pub sequential: AtomicU64,
    /// Where the last requests of each stream end.
    ends: [AtomicU64; STREAMS],
    /// The stream that the next request begins which follows none.
    next_stream: AtomicU64,
}

impl Transfers {
    /// A request begins. Only the thread that these counters belong to may say so.
    pub fn begun(&self, offset: u64, bytes: u64) {
        self.sizes[size_bucket(bytes)].add_alone(1);
        self.size_sum.add_alone(bytes);
        let follows = |end: &&AtomicU64| end.load(Ordering::Relaxed) == offset;
        // Nothing has ended at the very beginning.
        let stream = self.ends.iter().find(follows).filter(|_| offset > 0);
        let stream = match stream {
            Some(stream) => {
                self.sequential.add_alone(1);
                stream
            }
            None => {
                let next = self.next_stream.load(Ordering::Relaxed);
                self.next_stream.store(next.wrapping_add(1), Ordering::Relaxed);
                &self.ends[usize::try_from(next).unwrap_or(0) % STREAMS]
            }
        };
        stream.store(offset.saturating_add(bytes), Ordering::Relaxed);
    }

    /// So many requests have been in a stage for so long. Only the thread that these counters belong to may say so.
    pub fn staged(&self, stage: Stage, ns: u64, times: u64) {
        self.stages[stage as usize].record(ns, times);
    }

    /// The histogram of a stage.
    #[must_use]
    pub fn stage(&self, stage: Stage) -> &Histogram {
        &self.stages[stage as usize]
    }
}

/// Reads, or writes, summed over the reactors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferTotals {
    /// By stage: the sum in nanoseconds, and the histogram.
    pub stages: [(u64, [u64; LATENCY_BUCKETS]); STAGES.len()],
    /// See [`Transfers`].
    pub sizes: [u64; SIZE_BUCKETS],
    /// See [`Transfers`].
    pub size_sum: u64,
    /// See [`Transfers`].
    pub sequential: u64,
}

impl TransferTotals {
    /// The sums as they are now.
    pub fn of<'a>(all: impl Iterator<Item = &'a Transfers>) -> TransferTotals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut totals = TransferTotals::default();
        for one in all {
            for ((ns, counts), stage) in totals.stages.iter_mut().zip(&one.stages) {
                *ns += load(&stage.ns_sum);
                counts.iter_mut().zip(&stage.counts).for_each(|(total, count)| *total += load(count));
            }
            totals.sizes.iter_mut().zip(&one.sizes).for_each(|(total, count)| *total += load(count));
            totals.size_sum += load(&one.size_sum);
            totals.sequential += load(&one.sequential);
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_their_buckets() {
        let sizes = [0, 1, 512, 513, 1024, 4096, 4097, 1 << 20, 32 << 20, u64::MAX];
        assert_eq!(sizes.map(size_bucket), [0, 0, 0, 1, 1, 3, 4, 11, 16, 16]);
    }

    #[test]
    fn several_streams_at_once_are_sequential_and_chance_is_not() {
        let transfers = Transfers::default();
        for at in 0..100 {
            for stream in 0..4 {
                transfers.begun((stream << 30) + at * 4096, 4096);
            }
        }
        assert_eq!(TransferTotals::of([&transfers].into_iter()).sequential, 4 * 99);
        let random = Transfers::default();
        (0..100).for_each(|at| random.begun((at * 7919 % 1000) << 20, 4096));
        assert_eq!(random.sequential.load(Ordering::Relaxed), 0);
        let totals = TransferTotals::of([&transfers, &random].into_iter());
        assert_eq!((totals.sizes[3], totals.size_sum), (500, 500 * 4096));
    }

    #[test]
    fn stages_are_kept_apart() {
        let transfers = Transfers::default();
        transfers.staged(Stage::Disk, 100_000, 1);
        transfers.staged(Stage::Completion, 1000, 7);
        let totals = TransferTotals::of([&transfers].into_iter());
        let count = |stage: usize| totals.stages[stage].1.iter().sum::<u64>();
        assert_eq!([0, 1, 2].map(count), [0, 1, 7]);
        assert_eq!((totals.stages[1].0, totals.stages[2].0), (100_000, 7000));
    }
}
