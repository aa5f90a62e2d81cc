//! What VHDs, VMs and disks did: `stats`.

use super::Session;
use super::args::{StatsTimeArgs, VhdStatsArgs};
use super::client::path_segment;
use super::output::{Outcome, Table, facts};
use crate::control::wire::size::human_size;
use crate::control::wire::{StatsInfo, StatsList, StatsSample};

/// What one VHD did, or all of them.
pub fn vhds(session: &Session, args: &VhdStatsArgs) -> Outcome {
    match &args.vhd {
        Some(vhd) => one(session, "vhds", vhd, args.time),
        None => {
            let list: StatsList = session.client()?.get(&format!("/stats?{}", query(args.time)))?;
            session.output().show(&list, busiest)
        }
    }
}

/// What one of a `kind` (`vhds`, `vms`, `disks`) did.
pub fn one(session: &Session, kind: &str, name: &str, time: StatsTimeArgs) -> Outcome {
    let path = format!("/{kind}/{}/stats?{}", path_segment(name), query(time));
    let info: StatsInfo = session.client()?.get(&path)?;
    session.output().show(&info, details)
}

fn query(time: StatsTimeArgs) -> String {
    let resolution = time.resolution.map(|secs| format!("&resolution_secs={secs}")).unwrap_or_default();
    format!("window_secs={}{resolution}&samples={}", time.since, time.samples)
}

/// Numbers that are rates or sizes, and never negative.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn bytes(value: f64) -> String {
    human_size(value.round() as u64)
}

fn micros(value: f64) -> String {
    if value < 1000.0 { format!("{value:.0}us") } else { format!("{:.1}ms", value / 1000.0) }
}

fn percent(share: f64) -> String {
    format!("{:.0}%", share * 100.0)
}

fn rate(value: f64) -> String {
    if value < 10.0 { format!("{value:.1}") } else { format!("{value:.0}") }
}

const COLUMNS: [&str; 11] = [
    ">Reads/s",
    ">Writes/s",
    ">Read/s",
    ">Written/s",
    ">Depth",
    ">p50",
    ">p99",
    ">Admission",
    ">Sequential",
    ">Throttled",
    ">Working set",
];

fn columns(of: &StatsSample) -> Vec<String> {
    vec![
        rate(of.reads_per_sec),
        rate(of.writes_per_sec),
        bytes(of.read_bytes_per_sec),
        bytes(of.write_bytes_per_sec),
        format!("{:.1}", of.queue_depth),
        micros(of.latency_us_p50),
        micros(of.latency_us_p99),
        micros(of.admission_us_p99),
        percent(of.sequential_share),
        percent(of.throttled_share),
        bytes(of.working_set_bytes),
    ]
}

fn busiest(list: &StatsList) -> String {
    let headers: Vec<&'static str> = ["VHD"].into_iter().chain(COLUMNS).collect();
    let mut table = Table::new(&headers);
    for vhd in &list.vhds {
        table.row([vhd.name.clone()].into_iter().chain(columns(&vhd.summary)).collect());
    }
    table.render()
}

fn details(info: &StatsInfo) -> String {
    let of = &info.summary;
    let seconds = of.ends_secs.saturating_sub(of.begins_secs);
    let mut text = facts(&[
        ("Name", info.name.clone()),
        (
            "Time",
            format!(
                "the last {seconds}s, {:.0}s of it known, from samples of {}s",
                of.covered_secs, info.resolution_secs
            ),
        ),
        ("Reads", format!("{}/s, {}/s", rate(of.reads_per_sec), bytes(of.read_bytes_per_sec))),
        ("Writes", format!("{}/s, {}/s", rate(of.writes_per_sec), bytes(of.write_bytes_per_sec))),
        ("Peak", format!("{}/s, {}/s", rate(of.requests_per_sec_peak), bytes(of.bytes_per_sec_peak))),
        ("Read share", percent(of.read_share)),
        ("Sequential", percent(of.sequential_share)),
        ("Queue depth", format!("{:.1}", of.queue_depth)),
        (
            "Latency",
            format!(
                "p50 {}, p99 {} (at worst {})",
                micros(of.latency_us_p50),
                micros(of.latency_us_p99),
                micros(of.latency_us_p99_peak)
            ),
        ),
        ("p99 by stage", format!("admission {}, disk {}", micros(of.admission_us_p99), micros(of.disk_us_p99))),
        ("Throttled", percent(of.throttled_share)),
        ("Working set", bytes(of.working_set_bytes)),
        ("Used", bytes(of.used_bytes)),
        ("Own work", format!("{}/s", bytes(of.background_bytes_per_sec))),
    ]);
    if !info.hottest.is_empty() {
        let hot: Vec<String> = info.hottest.iter().map(|hot| format!("{} ({})", hot.extent, hot.heat)).collect();
        text.push_str(&format!("Hottest extents: {}\n", hot.join(", ")));
    }
    if !info.samples.is_empty() {
        let headers: Vec<&'static str> = [">Ago"].into_iter().chain(COLUMNS).collect();
        let mut table = Table::new(&headers);
        for sample in &info.samples {
            let ago = format!("{}s", of.ends_secs.saturating_sub(sample.begins_secs));
            table.row([ago].into_iter().chain(columns(sample)).collect());
        }
        text.push('\n');
        text.push_str(&table.render());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> StatsInfo {
        let summary = StatsSample {
            begins_secs: 1000,
            ends_secs: 4600,
            covered_secs: 3590.0,
            reads_per_sec: 999.4,
            read_bytes_per_sec: 4_194_304.0,
            latency_us_p99: 2500.0,
            read_share: 1.0,
            ..StatsSample::default()
        };
        StatsInfo { name: "web".to_owned(), resolution_secs: 10, summary, samples: Vec::new(), hottest: Vec::new() }
    }

    #[test]
    fn what_one_did_is_told_in_words() {
        let text = details(&StatsInfo { samples: vec![info().summary], ..info() });
        for part in ["the last 3600s, 3590s of it known", "999/s, 4MiB/s", "p99 2.5ms", "Read share:   100%", " 3600s "]
        {
            assert!(text.contains(part), "{part} not in\n{text}");
        }
    }

    #[test]
    fn all_of_them_are_a_table() {
        let text = busiest(&StatsList { vhds: vec![info()] });
        assert!(text.lines().count() == 3 && text.contains("web") && text.contains("4MiB"), "{text}");
    }
}
