//! Numbers about layouts, on throttled loop devices as independent disks: what spanning gives, what a layout change costs
//! guests, and how much it moves.
//!
//! `LAB_BENCH_SECS` is the length of one measurement (3), `LAB_BENCH_ROUNDS` how often each is repeated (1; the median counts).
//! Goals are printed, and whether they are met; no number fails the run. All numbers also go to
//! `target/lab/bench_layouts.json`. Names of measurements on the command line choose among them.

#[path = "bench_parts/layouts/mod.rs"]
mod layouts;

use std::process::ExitCode;

use anyhow::Result;
use lab::report::Report;
use lab::throttle::SlowDisks;
use lab::tools::RunDir;
use layouts::{Bench, Disks, bytes, isolation, jobs, throughput};

/// A measurement: its name on the command line, its title.
type Part = (&'static str, &'static str, fn(&mut Bench) -> Result<()>);

const ON_FILES: [Part; 3] = [
    ("throughput", "a spanned VHD against its disks", throughput::measure),
    ("bandwidth", "job bandwidth without guests", jobs::bandwidth),
    ("bytes", "bytes that changes move", bytes::measure),
];

const IN_MEMORY: [Part; 2] = [
    ("guests", "guests during a job", jobs::guests),
    ("isolation", "an isolated VHD while its neighbours are moved", isolation::measure),
];

fn main() -> ExitCode {
    let mut report = Report::new("bench_layouts");
    if let Some(reason) = SlowDisks::unavailable() {
        report.skip("benchmarks of layouts", reason);
        return report.finish();
    }
    if cfg!(debug_assertions) {
        report.note("not a release build: these numbers say little");
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let chosen: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let is_chosen = |name: &str| chosen.is_empty() || chosen.iter().any(|arg| arg == name);
    let mut bench = Bench::new(&dir);
    report.note(&bench.machine());
    for (disks, parts) in [(Disks::OnFiles, &ON_FILES[..]), (Disks::InMemory, &IN_MEMORY[..])] {
        let parts: Vec<_> = parts.iter().filter(|part| is_chosen(part.0)).collect();
        if parts.is_empty() || report.check(disks.title(), || bench.take(disks)).is_none() {
            continue;
        }
        for (_, title, measure) in parts {
            report.check(title, || measure(&mut bench));
        }
    }
    report.check("results as JSON", || bench.save());
    report.finish()
}
