//! Health of disks and VHDs, for people.

use super::OpenDisks;
use super::impact::measure;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::SLOW_BUCKET;
use crate::control::wire::{DiskHealth, DiskIo, IoStats, VhdHealth};
use crate::metrics::{IoKind, IoMetricsSet, Totals};
use crate::owner::command::{self, PoolInfo};
use crate::placement::impact::{Loss, VhdLoss};
use crate::placement::record::{Layout, PoolRecord};

/// Disks that cannot be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gone {
    /// Not found when the pool was opened.
    pub missing: DiskSet,
    /// Found, and failed since.
    pub failed: DiskSet,
}

impl Gone {
    /// Those of a pool that is served.
    #[must_use]
    pub fn of(pool: &PoolInfo, open: &OpenDisks) -> Gone {
        let ids = |is: &dyn Fn(&command::DiskInfo) -> bool| -> DiskSet {
            pool.disks.iter().filter(|disk| is(disk)).map(|disk| disk.record.id).collect()
        };
        let here = |disk: &command::DiskInfo| open.contains_key(&disk.record.id);
        Gone { missing: ids(&|disk| !here(disk)), failed: ids(&|disk| here(disk) && disk.state.is_failed()) }
    }

    /// All of them.
    #[must_use]
    pub fn all(self) -> DiskSet {
        DiskSet(self.missing.0 | self.failed.0)
    }

    /// Of one that is among them.
    #[must_use]
    pub fn health(self, disk: DiskId) -> DiskHealth {
        if self.missing.contains(disk) { DiskHealth::Missing } else { DiskHealth::Failed }
    }
}

/// Whether all of a VHD can be read and written, and if not, why, and what to do.
#[must_use]
pub fn vhd_health(vhd: &command::VhdInfo, pool: &PoolRecord, gone: Gone) -> (VhdHealth, Option<String>) {
    let all = gone.all();
    let layout = vhd.record.layout.disks();
    let concerns = |disk: &DiskId| layout.contains(*disk) || vhd.slots.contains_key(disk);
    let its: DiskSet = all.iter().filter(concerns).collect();
    if its.is_empty() {
        return (VhdHealth::Healthy, None);
    }
    let loss = measure(vhd, &Loss { disks: all, gone: DiskSet::default() });
    let health = if loss.lost.extents + loss.empty > 0 { VhdHealth::Partial } else { VhdHealth::Degraded };
    (health, Some(problem(vhd, pool, gone, its, &loss)))
}

fn problem(vhd: &command::VhdInfo, pool: &PoolRecord, gone: Gone, its: DiskSet, loss: &VhdLoss) -> String {
    let state = |disk: DiskId| if gone.missing.contains(disk) { "is missing" } else { "has failed" };
    let disks: Vec<String> =
        its.iter().map(|disk| format!("disk '{}' {}", pool.disk_name(disk), state(disk))).collect();
    let unreadable = loss.lost.extents + loss.empty;
    let mut effects = Vec::new();
    if unreadable > 0 {
        effects.push(format!("{unreadable} extents can be neither read nor written"));
    }
    if loss.degraded.extents > 0 {
        effects.push(format!("{} extents have a replica less", loss.degraded.extents));
    }
    if effects.is_empty() {
        let layout = vhd.record.layout.disks();
        let alone = matches!(vhd.record.layout, Layout::Isolated { .. }) || layout.0 & !gone.all().0 == 0;
        let effect = if alone { "extents that are new find no room there" } else { "new extents go to other disks" };
        effects.push(effect.to_owned());
    }
    let first = its.iter().next().map_or_else(String::new, |disk| pool.disk_name(disk));
    let back = if its.0 & gone.missing.0 == 0 {
        "restart the daemon if it works again"
    } else {
        "bring it back and restart the daemon"
    };
    let loses = if loss.lost.extents > 0 { " --accept-loss, then restore what is lost from a backup" } else { "" };
    format!("{}: {}; {back}, or 'spanblk disk replace {first} NEW{loses}'", disks.join(", "), effects.join(", "))
}

/// What guests' requests have done on a disk.
#[must_use]
pub fn disk_io(metrics: &IoMetricsSet) -> DiskIo {
    let of = |kind| stats(&Totals::of(metrics, kind));
    DiskIo { read: of(IoKind::Read), write: of(IoKind::Write), sync: of(IoKind::Flush) }
}

fn stats(totals: &Totals) -> IoStats {
    let counted: u64 = totals.buckets.iter().sum();
    let mut below = 0;
    // The upper end of the bucket that the 99th of 100 is in.
    let p99 = totals.buckets.iter().position(|count| {
        below += count;
        below * 100 >= counted * 99
    });
    IoStats {
        operations: totals.requests,
        errors: totals.errors,
        latency_us_mean: (totals.latency_ns_sum / 1000).checked_div(totals.requests).unwrap_or(0),
        latency_us_p99: p99.filter(|_| counted > 0).map_or(0, |bucket| 1 << bucket),
        slow: totals.buckets[SLOW_BUCKET..].iter().sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::ReactorId;

    #[test]
    fn latencies_of_disks_are_summed_up() {
        let set = IoMetricsSet::new(2);
        assert_eq!(disk_io(&set), DiskIo::default(), "nothing was done");
        for _ in 0..99 {
            set.of(ReactorId(0)).record(IoKind::Read, 4096, 100_000, true);
        }
        set.of(ReactorId(1)).record(IoKind::Read, 4096, 9_000_000_000, false);
        set.of(ReactorId(1)).record(IoKind::Flush, 0, 5_000_000, true);
        let io = disk_io(&set);
        let mean = (99 * 100 + 9_000_000) / 100;
        let read = IoStats { operations: 100, errors: 1, latency_us_mean: mean, latency_us_p99: 128, slow: 1 };
        assert_eq!((io.read, io.write), (read, IoStats::default()));
        assert_eq!((io.sync.operations, io.sync.latency_us_p99), (1, 8192));
    }
}
