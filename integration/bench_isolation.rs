//! Two guests of one host disk: what a quiet one (the victim) feels of a busy one (the aggressor) without fair shares and with them,
//! what weights and latency targets do, and what is left once either has been moved away. What that costs, too.
//!
//! The disks are loop devices on memory that take 2 ms for a request and serve four at once; what is more waits in the disk. Guests are
//! processes of their own with the frontend of `bench_peers.rs`.
//!
//! * `LAB_BENCH_SECS`: length of one measurement (3)
//! * `LAB_BENCH_ROUNDS`: how often each is repeated, in turns (1); medians count
//! * `LAB_BENCH_ONLY`: one part only
//! * `LAB_BENCH_OUT`: where `isolation.json` goes (`target/bench`)
//!
//! Goals are printed, and whether they are met; no number fails the run.

mod isolation_parts;
#[allow(dead_code, reason = "what compares peers is not used here")]
mod peers_parts;

use std::process::ExitCode;

use isolation_parts::{Bench, PARTS};
use lab::report::Report;
use lab::throttle::SlowDisks;
use lab::tools::RunDir;
use peers_parts::frontend;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(frontend::ARGUMENT) {
        return frontend::main(&args.next().unwrap_or_default());
    }
    let mut report = Report::new("bench_isolation");
    if let Some(reason) = SlowDisks::unavailable() {
        report.skip("benchmarks of isolation", reason);
        return report.finish();
    }
    if cfg!(debug_assertions) {
        report.note("not a release build: these numbers say little");
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let Some(mut bench) = report.check("disks", || Bench::new(&dir)) else { return report.finish() };
    report.note(&bench.machine());
    for (name, title, measure) in PARTS {
        if bench.wants(name) {
            report.check(title, || measure(&mut bench));
        }
    }
    report.check("results as JSON", || bench.save());
    report.finish()
}
