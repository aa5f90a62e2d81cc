//! What things cost: layouts beside each other, writes to places that were never written, protections, keeping guests apart, and opening a
//! large pool.
//!
//! Layouts and first writes are measured on a file system in memory where there can be one, else on the machine's disk, and first
//! writes with FLUSHes on both; with the frontend of `bench_peers.rs`. Every daemon runs as it comes.
//!
//! * `LAB_BENCH_SECS`: length of one measurement of layouts (2)
//! * `LAB_BENCH_ROUNDS`: how often each is repeated, in turns (5); medians count
//! * `LAB_BENCH_TIB`: the placed TiB of the pools that are opened ("1 2")
//! * `LAB_BENCH_ONLY`: one part only: "layouts", "thin", "protection", "sharing" or "opening"
//! * `LAB_BENCH_BEFORE`: the program of another build, beside which protections and fair shares are measured (none)
//! * `LAB_BENCH_OUT`: where `costs.json` goes (`target/bench`)
//!
//! Goals are printed, and whether they are met; no number fails the run.

mod cost_parts;
#[allow(dead_code, reason = "what compares peers is not used here")]
mod peers_parts;

use std::process::ExitCode;

use cost_parts::{Bench, layouts, opening, protection, sharing, thin};
use lab::ram_disk::RamDisk;
use lab::report::Report;
use lab::tools::RunDir;
use peers_parts::frontend;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(frontend::ARGUMENT) {
        return frontend::main(&args.next().unwrap_or_default());
    }
    let mut report = Report::new("bench_costs");
    if cfg!(debug_assertions) {
        report.note("not a release build: these numbers say little");
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let Some(mut bench) = report.check("what to measure", Bench::new) else { return report.finish() };
    report.note(&bench.machine);
    if ["layouts", "thin", "protection", "sharing"].iter().any(|part| bench.wants(part)) {
        match RamDisk::unavailable() {
            Some(reason) => report.note(&format!("no disks in memory, so on the machine's disk: {reason}")),
            None => {
                report.check("a file system in memory", || bench.make_ram(&dir));
            }
        }
    }
    if bench.wants("layouts") {
        report.check("layouts: CPU time for a request", || layouts::measure(&mut bench, &dir));
    }
    if bench.wants("thin") {
        report.check("first writes to thin VHDs", || thin::measure(&mut bench, &dir));
    }
    if bench.wants("protection") {
        report.check("protections: CPU time for a request", || protection::measure(&mut bench, &dir));
    }
    if bench.wants("sharing") {
        report.check("keeping guests apart: CPU time for a request", || sharing::measure(&mut bench, &dir));
    }
    if bench.wants("opening") {
        report.check("opening large pools", || opening::measure(&mut bench, &dir));
    }
    report.check("results as JSON", || bench.save());
    report.finish()
}
