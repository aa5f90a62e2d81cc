//! Counters and latency histograms. Relaxed atomics, one set per (subject, reactor) so that reactors never share a cache
//! line; summed when somebody asks.
//!
//! * `transfers`: where the time of reads and writes goes. `background`: what the daemon does for itself.
//! * `heat`: which extents are used. `history`: what subjects did in the last hour, week and year.
//!
//! Uses `base` only.

mod background;
pub mod heat;
pub mod history;
mod transfers;

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::ids::ReactorId;
pub use background::Work;
pub use transfers::{SIZE_BUCKETS, STAGES, Stage, TransferTotals, Transfers, size_bucket};

/// What a guest request did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IoKind {
    /// Read.
    Read,
    /// Write.
    Write,
    /// Flush.
    Flush,
    /// Discard.
    Discard,
    /// Write zeroes.
    WriteZeroes,
}

/// All kinds, in the order of their metrics.
pub const IO_KINDS: [IoKind; 5] = [IoKind::Read, IoKind::Write, IoKind::Flush, IoKind::Discard, IoKind::WriteZeroes];

/// Latency buckets: bucket `i` counts latencies below `1 us << i`; the last one takes the rest.
pub const LATENCY_BUCKETS: usize = 26;

/// Counters of one kind of request.
#[derive(Debug, Default)]
pub struct KindMetrics {
    /// Requests completed, failed ones included.
    pub requests: AtomicU64,
    /// Bytes of the requests that succeeded.
    pub bytes: AtomicU64,
    /// Requests that failed.
    pub errors: AtomicU64,
    /// Sum of latencies from popped to completed, in nanoseconds. What a limit holds back in its ring before is in
    /// [`IoMetrics::throttled_ns`].
    pub latency_ns_sum: AtomicU64,
    /// Latency histogram.
    pub latency_buckets: [AtomicU64; LATENCY_BUCKETS],
}

/// One reactor's counters for one subject.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct IoMetrics {
    kinds: [KindMetrics; 5],
    /// Reads and writes.
    transfers: [Transfers; 2],
    /// Extents that were touched for the first time in a window of heat.
    pub touched: AtomicU64,
    /// How long reads and writes were in virtqueues that were not popped from, in nanoseconds; not part of any latency.
    pub held_ns: AtomicU64,
    /// Requests that waited for a claim, for room or for an engine slot.
    pub waits: AtomicU64,
    /// Writes that waited for a block that was being copied by a move, or for the copier to have its turn.
    pub copy_waits: AtomicU64,
    /// Malformed requests.
    pub malformed: AtomicU64,
    /// Times that a virtqueue with requests was held back by a limit of rates.
    pub throttled: AtomicU64,
    /// How long that was, in nanoseconds; not part of any latency, since what is held back has not been popped.
    pub throttled_ns: AtomicU64,
    /// Operations that waited for their turn on a host disk that is shared out.
    pub turn_waits: AtomicU64,
    /// How long that was, in nanoseconds; part of the latency of their requests.
    pub turn_waits_ns: AtomicU64,
    /// Requests that took longer than the latency target.
    pub late: AtomicU64,
}

impl IoMetrics {
    /// Counts a completed request. Only the reactor that these counters belong to may.
    pub fn record(&self, kind: IoKind, bytes: u64, latency_ns: u64, ok: bool) {
        let metrics = self.kind(kind);
        metrics.requests.add_alone(1);
        if ok {
            metrics.bytes.add_alone(bytes);
        } else {
            metrics.errors.add_alone(1);
        }
        metrics.latency_ns_sum.add_alone(latency_ns);
        metrics.latency_buckets[latency_bucket(latency_ns)].add_alone(1);
    }

    /// What is counted of reads or writes only; `None`: of other kinds.
    #[must_use]
    pub fn transfers(&self, kind: IoKind) -> Option<&Transfers> {
        match kind {
            IoKind::Read => Some(&self.transfers[0]),
            IoKind::Write => Some(&self.transfers[1]),
            IoKind::Flush | IoKind::Discard | IoKind::WriteZeroes => None,
        }
    }

    /// An extent is touched for the first time in its window. Only the reactor that these counters belong to may say so.
    pub fn count_touched(&self) {
        self.touched.add_alone(1);
    }

    /// A read or write was in a virtqueue that was not popped from for so long. Only the reactor that these counters belong to may say so.
    pub fn count_held(&self, ns: u64) {
        self.held_ns.add_alone(ns);
    }

    /// The counters of all kinds.
    pub fn kinds(&self) -> impl Iterator<Item = &KindMetrics> {
        self.kinds.iter()
    }

    /// The counters of one kind.
    #[must_use]
    pub fn kind(&self, kind: IoKind) -> &KindMetrics {
        &self.kinds[kind as usize]
    }
}

/// A counter that only the caller writes.
trait AddAlone {
    /// Cheaper than an atomic addition, several of which each request would cost.
    fn add_alone(&self, by: u64);
}

impl AddAlone for AtomicU64 {
    fn add_alone(&self, by: u64) {
        self.store(self.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }
}

/// The histogram bucket of a latency.
#[must_use]
pub fn latency_bucket(latency_ns: u64) -> usize {
    let micros = latency_ns / 1000;
    (u64::BITS - micros.leading_zeros()).min(25) as usize
}

/// Counters of one VHD or host disk, one set per reactor.
#[derive(Debug)]
pub struct IoMetricsSet {
    per_reactor: Box<[IoMetrics]>,
}

impl IoMetricsSet {
    /// Zeroed counters for `reactors` reactors.
    #[must_use]
    pub fn new(reactors: u16) -> IoMetricsSet {
        IoMetricsSet { per_reactor: (0..reactors).map(|_| IoMetrics::default()).collect() }
    }

    /// The counters that only `reactor` writes.
    #[must_use]
    pub fn of(&self, reactor: ReactorId) -> &IoMetrics {
        &self.per_reactor[usize::from(reactor.0)]
    }

    /// The counters of all reactors.
    pub fn iter(&self) -> impl Iterator<Item = &IoMetrics> {
        self.per_reactor.iter()
    }
}

/// One kind of requests of one subject, summed over the reactors.
#[derive(Debug, Default)]
pub struct Totals {
    /// See [`KindMetrics`].
    pub requests: u64,
    /// See [`KindMetrics`].
    pub bytes: u64,
    /// See [`KindMetrics`].
    pub errors: u64,
    /// See [`KindMetrics`].
    pub latency_ns_sum: u64,
    /// See [`KindMetrics`].
    pub buckets: [u64; LATENCY_BUCKETS],
}

impl Totals {
    /// The sums as they are now. Requests go on meanwhile: the numbers are of about the same moment.
    #[must_use]
    pub fn of(set: &IoMetricsSet, kind: IoKind) -> Totals {
        let mut totals = Totals::default();
        for KindMetrics { requests, bytes, errors, latency_ns_sum, latency_buckets } in set.iter().map(|m| m.kind(kind))
        {
            totals.requests += requests.load(Ordering::Relaxed);
            totals.bytes += bytes.load(Ordering::Relaxed);
            totals.errors += errors.load(Ordering::Relaxed);
            totals.latency_ns_sum += latency_ns_sum.load(Ordering::Relaxed);
            for (total, bucket) in totals.buckets.iter_mut().zip(latency_buckets) {
                *total += bucket.load(Ordering::Relaxed);
            }
        }
        totals
    }
}
