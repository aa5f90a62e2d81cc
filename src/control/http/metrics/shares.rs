//! How host disks are shared out, and what that costs guests.

use std::sync::atomic::Ordering;

use super::{Exposition, NANOS};
use crate::metrics::IoMetrics;
use crate::owner::command::{PoolInfo, VhdInfo};
use crate::qos::shares::Shares;

/// Shares of VHDs, what they wait for them, and which disks are shared out just now.
pub(super) fn share_metrics(out: &mut Exposition, pool: &PoolInfo, vhds: &[VhdInfo]) {
    let each = || vhds.iter().map(|vhd| (vhd.record.name.as_str(), vhd));
    let sum = |vhd: &VhdInfo, field: fn(&IoMetrics) -> u64| vhd.state.metrics.iter().map(field).sum::<u64>();
    out.labelled(
        (
            "spanblk_vhd_share",
            "gauge",
            "What a VHD counts on host disks that others want, too: its weight, times 100 for priority high, 10 for normal and 1 for low.",
        ),
        "vhd",
        each().map(|(name, vhd)| (name, vhd.sharing.share().get().into())),
    );
    out.labelled(
        (
            "spanblk_vhd_share_waits_total",
            "counter",
            "Operations that waited for their turn on a host disk that is shared out.",
        ),
        "vhd",
        each().map(|(name, vhd)| (name, sum(vhd, |m| m.turn_waits.load(Ordering::Relaxed)))),
    );
    let name = "spanblk_vhd_share_waiting_seconds_total";
    out.family(name, "counter", "Time that they waited; it is in the latency of requests.");
    for (vhd, info) in each() {
        let ns = sum(info, |m| m.turn_waits_ns.load(Ordering::Relaxed));
        out.line(format_args!("{name}{{vhd=\"{vhd}\"}} {}.{:09}", ns / NANOS, ns % NANOS));
    }
    out.labelled(
        (
            "spanblk_vhd_latency_target_missed_total",
            "counter",
            "Requests that took longer than the latency target, where there is one.",
        ),
        "vhd",
        each()
            .filter(|(_, vhd)| vhd.sharing.latency_target_us.is_some())
            .map(|(name, vhd)| (name, sum(vhd, |m| m.late.load(Ordering::Relaxed)))),
    );
    disk_metrics(out, pool);
}

fn disk_metrics(out: &mut Exposition, pool: &PoolInfo) {
    let each = || pool.disks.iter().map(|disk| (disk.record.name.as_str(), &disk.state.shares));
    out.labelled(
        ("spanblk_disk_shared", "gauge", "1: several want the disk, which is shared out among them."),
        "disk",
        each().map(|(name, shares)| (name, shares.is_on().into())),
    );
    out.labelled(
        (
            "spanblk_disk_window_bytes",
            "gauge",
            "What may be in flight on a disk that is shared out, each operation counted 16 KiB longer; absent: any amount.",
        ),
        "disk",
        each().filter_map(|(name, shares)| Some((name, window(shares)?))),
    );
}

fn window(shares: &Shares) -> Option<u64> {
    let window = shares.window().0;
    (shares.is_on() && window != u64::MAX).then_some(window)
}
