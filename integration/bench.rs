//! Numbers: requests through a socket against fio on the same disk, memory, and the time to open a large pool.
//!
//! `LAB_BENCH_SECS` is the length of one measurement (3), `LAB_BENCH_ROUNDS` how often each is repeated (3; the median counts).
//! Build with `--release`.

mod bench_parts;
mod lab;

use std::process::ExitCode;

use lab::report::Report;
use lab::tools::RunDir;

fn main() -> ExitCode {
    let mut report = Report::new("bench");
    if cfg!(debug_assertions) {
        report.note("not a release build: these numbers say little");
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    report.check("4 KiB random requests through a socket against fio", || bench_parts::against_fio(&dir));
    report.check("memory with 1 and with 64 VHDs", || bench_parts::memory(&dir));
    report.check("opening a pool with 1 TiB of placed extents", || bench_parts::open_large(&dir));
    report.finish()
}
