//! What the counters of a VHD or a disk say at one moment.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::clock::Nanos;
use crate::metrics::heat::Window;
use crate::metrics::history::Reading;
use crate::metrics::{IoKind, IoMetrics, IoMetricsSet, Stage, Totals, TransferTotals};
use crate::owner::command::{DiskInfo, VhdInfo};

/// How many extents were touched in a window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Touched {
    window: Window,
    /// What the counter said when the window began.
    began: u64,
    /// What came of the window before.
    before: u64,
}

impl Touched {
    /// Extents touched in the window that is over, or so far in this one if they are more already.
    fn look(&mut self, total: u64, window: Window) -> u64 {
        if window != self.window {
            *self = Touched { window, began: total, before: total.saturating_sub(self.began) };
        }
        self.before.max(total.saturating_sub(self.began))
    }
}

/// What changes with everything that guests and jobs do, and is looked at quickly. What the store writes for itself does not count: it
/// writes this history, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Mark {
    requests: u64,
    throttled_ns: u64,
    touched: u64,
    queues: u16,
    own_bytes: u64,
    allocated: u64,
}

impl Mark {
    fn of(metrics: &IoMetricsSet) -> Mark {
        let mut mark = Mark::default();
        for metrics in metrics.iter() {
            let requests = |kind| metrics.kind(kind).requests.load(Ordering::Relaxed);
            mark.requests += requests(IoKind::Read) + requests(IoKind::Write);
            mark.throttled_ns += metrics.throttled_ns.load(Ordering::Relaxed);
            mark.touched += metrics.touched.load(Ordering::Relaxed);
        }
        mark
    }

    pub fn of_vhd(vhd: &VhdInfo) -> Mark {
        Mark { queues: vhd.record.queues, allocated: vhd.allocated, ..Mark::of(&vhd.state.metrics) }
    }

    pub fn of_disk(disk: &DiskInfo) -> Mark {
        let own_bytes = copied_bytes(disk) + disk.state.scrub_work.bytes();
        Mark { own_bytes, allocated: disk.space.allocated, ..Mark::of(&disk.state.metrics) }
    }
}

fn copied_bytes(disk: &DiskInfo) -> u64 {
    let copied = |kind| disk.state.copy_metrics.kind(kind).bytes.load(Ordering::Relaxed);
    copied(IoKind::Read) + copied(IoKind::Write)
}

/// That of a VHD whose mark is what it was: as before, but for the window of its working set.
pub(super) fn rested(before: &Reading, mark: Mark, touched: &mut Touched, now: Nanos) -> Reading {
    Reading { at: now, working_set: touched.look(mark.touched, Window::at(now.0)), ..before.clone() }
}

/// That of a VHD.
pub(super) fn vhd_reading(vhd: &VhdInfo, touched: &mut Touched, now: Nanos) -> Reading {
    let metrics = &vhd.state.metrics;
    let sum = |of: fn(&IoMetrics) -> &AtomicU64| -> u64 {
        metrics.iter().map(|metrics| of(metrics).load(Ordering::Relaxed)).sum()
    };
    let mut reading = reading(metrics, now);
    reading.latency_ns = reading.latency_ns.saturating_add(sum(|metrics| &metrics.held_ns));
    reading.throttled_ns = sum(|metrics| &metrics.throttled_ns);
    reading.queues = vhd.record.queues.into();
    reading.working_set = touched.look(sum(|metrics| &metrics.touched), Window::at(now.0));
    reading.used_bytes = vhd.allocated;
    reading
}

/// That of a host disk: what guests asked of it, and apart from that what the daemon did there for itself.
pub(super) fn disk_reading(disk: &DiskInfo, now: Nanos) -> Reading {
    let state = &disk.state;
    let mut reading = reading(&state.metrics, now);
    reading.disk = reading.latency;
    reading.background_bytes = copied_bytes(disk) + state.scrub_work.bytes() + state.metadata_work.bytes();
    reading.used_bytes = disk.space.allocated;
    reading
}

fn reading(metrics: &IoMetricsSet, now: Nanos) -> Reading {
    let [reads, writes] = [IoKind::Read, IoKind::Write].map(|kind| Totals::of(metrics, kind));
    let transfers = [IoKind::Read, IoKind::Write]
        .map(|kind| TransferTotals::of(metrics.iter().filter_map(move |metrics| metrics.transfers(kind))));
    let stage = |stage: Stage| {
        let [reads, writes] = [0, 1].map(|kind: usize| &transfers[kind].stages[stage as usize].1);
        std::array::from_fn(|bucket| reads[bucket] + writes[bucket])
    };
    Reading {
        at: now,
        reads: reads.requests,
        writes: writes.requests,
        read_bytes: reads.bytes,
        write_bytes: writes.bytes,
        latency_ns: reads.latency_ns_sum.saturating_add(writes.latency_ns_sum),
        latency: std::array::from_fn(|bucket| reads.buckets[bucket] + writes.buckets[bucket]),
        admission: stage(Stage::Admission),
        disk: stage(Stage::Disk),
        sequential: transfers[0].sequential + transfers[1].sequential,
        queues: 1,
        ..Reading::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_working_set_is_of_a_whole_window() {
        let mut touched = Touched::default();
        let window = |number: u64| Window::at(number * 300_000_000_000);
        assert_eq!([touched.look(0, window(0)), touched.look(10, window(0))], [0, 10]);
        assert_eq!(touched.look(14, window(1)), 14, "all that the window before had");
        assert_eq!(touched.look(20, window(1)), 14);
        assert_eq!(touched.look(40, window(1)), 26);
        assert_eq!(touched.look(40, window(2)), 26);
        assert_eq!(touched.look(40, window(3)), 0);
    }
}
