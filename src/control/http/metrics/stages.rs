//! Reads and writes more closely: stages, sizes, sequence; and what disks do besides.
//!
//! Each VHD and each disk has so many series more, at most: 2 kinds times 3 stages times 25, and 2 times 19. Those of what never happened
//! are left out.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{Exposition, NANOS, histogram, kind_name};
use crate::metrics::{IoKind, IoMetrics, IoMetricsSet, SIZE_BUCKETS, STAGES, Totals, TransferTotals, Work};
use crate::owner::command::{PoolInfo, VhdInfo};

const KINDS: [IoKind; 2] = [IoKind::Read, IoKind::Write];

/// A subject, a kind of transfers, and what there was of it.
type Row<'a> = (&'a str, IoKind, TransferTotals);

pub(super) fn transfer_metrics(out: &mut Exposition, pool: &PoolInfo, vhds: &[VhdInfo]) {
    let vhds_of = || vhds.iter().map(|vhd| (vhd.record.name.as_str(), &vhd.state.metrics));
    let disks_of = || pool.disks.iter().map(|disk| (disk.record.name.as_str(), &disk.state.metrics));
    let (of_vhds, of_disks) = (rows(vhds_of()), rows(disks_of()));
    stages(out, &of_vhds);
    for (label, rows) in [("vhd", &of_vhds), ("disk", &of_disks)] {
        sizes(out, label, rows);
        let name = format!("spanblk_{label}_sequential_requests_total");
        out.family(&name, "counter", "Requests that began where an earlier one had ended.");
        for (subject, kind, totals) in rows {
            let kind = kind_name(*kind);
            out.line(format_args!("{name}{{{label}=\"{subject}\",kind=\"{kind}\"}} {}", totals.sequential));
        }
    }
    held(out, vhds);
    background(out, pool);
}

fn rows<'a>(subjects: impl Iterator<Item = (&'a str, &'a IoMetricsSet)>) -> Vec<Row<'a>> {
    let of_kind =
        |set: &'a IoMetricsSet, kind| TransferTotals::of(set.iter().filter_map(|metrics| metrics.transfers(kind)));
    let both = |(subject, set): (&'a str, &'a IoMetricsSet)| KINDS.map(|kind| (subject, kind, of_kind(set, kind)));
    subjects.flat_map(both).collect()
}

fn stages(out: &mut Exposition, rows: &[Row<'_>]) {
    let name = "spanblk_vhd_stage_seconds";
    let help = "Time of reads and writes until they came to a host disk (admission), there (disk), and until the guest had them back (completion).";
    out.family(name, "histogram", help);
    for (subject, kind, totals) in rows {
        for stage in STAGES {
            let (latency_ns_sum, buckets) = totals.stages[stage as usize];
            let labels = format!("vhd=\"{subject}\",kind=\"{}\",stage=\"{}\"", kind_name(*kind), stage.word());
            if buckets.iter().any(|count| *count > 0) {
                histogram(out, name, &labels, &Totals { latency_ns_sum, buckets, ..Totals::default() });
            }
        }
    }
}

fn sizes(out: &mut Exposition, label: &str, rows: &[Row<'_>]) {
    let name = format!("spanblk_{label}_request_size_bytes");
    out.family(&name, "histogram", "Lengths of requests.");
    for (subject, kind, totals) in rows.iter().filter(|(.., totals)| totals.sizes.iter().any(|count| *count > 0)) {
        let labels = format!("{label}=\"{subject}\",kind=\"{}\"", kind_name(*kind));
        let mut up_to = 0;
        for (bucket, count) in totals.sizes[..SIZE_BUCKETS - 1].iter().enumerate() {
            up_to += count;
            out.line(format_args!("{name}_bucket{{{labels},le=\"{}\"}} {up_to}", 512 << bucket));
        }
        let count = up_to + totals.sizes[SIZE_BUCKETS - 1];
        out.line(format_args!("{name}_bucket{{{labels},le=\"+Inf\"}} {count}"));
        out.line(format_args!("{name}_sum{{{labels}}} {}", totals.size_sum));
        out.line(format_args!("{name}_count{{{labels}}} {count}"));
    }
}

fn held(out: &mut Exposition, vhds: &[VhdInfo]) {
    let sum = |vhd: &VhdInfo, of: fn(&IoMetrics) -> &AtomicU64| -> u64 {
        vhd.state.metrics.iter().map(|metrics| of(metrics).load(Ordering::Relaxed)).sum()
    };
    let name = "spanblk_vhd_held_seconds_total";
    out.family(
        name,
        "counter",
        "Time that reads and writes were in virtqueues which were not popped from; part of their admission.",
    );
    for vhd in vhds {
        let ns = sum(vhd, |metrics| &metrics.held_ns);
        out.line(format_args!("{name}{{vhd=\"{}\"}} {}.{:09}", vhd.record.name, ns / NANOS, ns % NANOS));
    }
    out.labelled(
        ("spanblk_vhd_touched_extents_total", "counter", "Extents read or written, each once in five minutes."),
        "vhd",
        vhds.iter().map(|vhd| (vhd.record.name.as_str(), sum(vhd, |metrics| &metrics.touched))),
    );
}

/// The work of the daemon on each disk: a name, and what has been done.
fn background(out: &mut Exposition, pool: &PoolInfo) {
    let bytes = "spanblk_disk_background_bytes_total";
    out.family(bytes, "counter", "Bytes of the daemon's own work on the disk: moves, repairs and rebuilds (copy), scrubs, placement store and labels (metadata).");
    for disk in &pool.disks {
        let copies = |kind| disk.state.copy_metrics.kind(kind).bytes.load(Ordering::Relaxed);
        let of_work =
            |work: &Work| (work.read_bytes.load(Ordering::Relaxed), work.written_bytes.load(Ordering::Relaxed));
        let works = [
            ("copy", (copies(IoKind::Read), copies(IoKind::Write))),
            ("scrub", of_work(&disk.state.scrub_work)),
            ("metadata", of_work(&disk.state.metadata_work)),
        ];
        for (work, (read, written)) in works {
            for (direction, bytes_done) in [("read", read), ("write", written)] {
                let disk = &disk.record.name;
                out.line(format_args!(
                    "{bytes}{{disk=\"{disk}\",work=\"{work}\",direction=\"{direction}\"}} {bytes_done}"
                ));
            }
        }
    }
    let syncs = pool
        .disks
        .iter()
        .map(|disk| (disk.record.name.as_str(), disk.state.metadata_work.syncs.load(Ordering::Relaxed)));
    out.labelled(
        ("spanblk_disk_metadata_syncs_total", "counter", "Syncs of the disk for the placement store and labels."),
        "disk",
        syncs,
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::ReactorId;
    use crate::metrics::Stage;

    #[test]
    fn stages_and_sizes_are_cumulative_and_those_of_nothing_are_left_out() {
        let set = IoMetricsSet::new(2);
        let reads = |reactor| set.of(ReactorId(reactor)).transfers(IoKind::Read).unwrap();
        reads(0).begun(0, 4096);
        reads(1).begun(4096, 1 << 20);
        reads(1).staged(Stage::Disk, 10_000, 1);
        reads(0).staged(Stage::Disk, 1_000_000, 1);
        let mut out = Exposition::default();
        let rows = rows([("a", &set)].into_iter());
        stages(&mut out, &rows);
        sizes(&mut out, "vhd", &rows);
        for line in [
            "spanblk_vhd_stage_seconds_bucket{vhd=\"a\",kind=\"read\",stage=\"disk\",le=\"0.000016\"} 1",
            "spanblk_vhd_stage_seconds_bucket{vhd=\"a\",kind=\"read\",stage=\"disk\",le=\"+Inf\"} 2",
            "spanblk_vhd_stage_seconds_sum{vhd=\"a\",kind=\"read\",stage=\"disk\"} 0.00101",
            "spanblk_vhd_request_size_bytes_bucket{vhd=\"a\",kind=\"read\",le=\"2048\"} 0",
            "spanblk_vhd_request_size_bytes_bucket{vhd=\"a\",kind=\"read\",le=\"4096\"} 1",
            "spanblk_vhd_request_size_bytes_bucket{vhd=\"a\",kind=\"read\",le=\"+Inf\"} 2",
            "spanblk_vhd_request_size_bytes_sum{vhd=\"a\",kind=\"read\"} 1052672",
        ] {
            assert!(out.text.lines().any(|found| found == line), "{line}\nnot in\n{}", out.text);
        }
        assert!(!out.text.contains("admission\"") && !out.text.contains("kind=\"write\""));
    }
}
