//! What is limited, and what that costs guests.

use std::sync::atomic::Ordering;

use super::{Exposition, NANOS};
use crate::metrics::IoMetrics;
use crate::owner::command::{VhdInfo, VmInfo};
use crate::placement::limits::IoLimits;
use crate::qos::Rate;

/// Limits, as far as there are any, and what they hold back.
pub(super) fn limit_metrics(out: &mut Exposition, vhds: &[VhdInfo], vms: &[VmInfo]) {
    let of_vhds: Vec<(&str, IoLimits)> = vhds.iter().map(|v| (v.record.name.as_str(), v.record.limits)).collect();
    let of_vms: Vec<(&str, IoLimits)> = vms.iter().map(|v| (v.record.name.as_str(), v.record.limits)).collect();
    gauges(out, "vhd", &of_vhds);
    gauges(out, "vm", &of_vms);
    let sum = |vhd: &VhdInfo, field: fn(&IoMetrics) -> u64| vhd.state.metrics.iter().map(field).sum::<u64>();
    let each = || vhds.iter().map(|vhd| (vhd.record.name.as_str(), vhd));
    out.labelled(
        ("spanblk_vhd_throttled_total", "counter", "Times that a virtqueue with requests was held back by a limit."),
        "vhd",
        each().map(|(name, vhd)| (name, sum(vhd, |m| m.throttled.load(Ordering::Relaxed)))),
    );
    let name = "spanblk_vhd_throttled_seconds_total";
    out.family(
        name,
        "counter",
        "Time that virtqueues with requests were held back by a limit. It is in no latency: those begin when a request is taken.",
    );
    for (vhd, info) in each() {
        let ns = sum(info, |m| m.throttled_ns.load(Ordering::Relaxed));
        out.line(format_args!("{name}{{vhd=\"{vhd}\"}} {}.{:09}", ns / NANOS, ns % NANOS));
    }
}

fn gauges(out: &mut Exposition, label: &str, subjects: &[(&str, IoLimits)]) {
    let of = |field: fn(&IoLimits) -> Option<Rate>| {
        subjects.iter().filter_map(move |(subject, limits)| Some((*subject, field(limits)?.per_sec)))
    };
    let name = format!("spanblk_{label}_iops_limit");
    out.labelled((&name, "gauge", "Requests a second, where they are limited."), label, of(|l| l.rates().iops));
    let name = format!("spanblk_{label}_bytes_per_second_limit");
    out.labelled((&name, "gauge", "Bytes a second, where they are limited."), label, of(|l| l.rates().bytes));
}
