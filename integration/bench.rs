//! Numbers: memory of VHDs.

mod bench_parts;

use std::process::ExitCode;

use lab::report::Report;
use lab::tools::RunDir;

fn main() -> ExitCode {
    let mut report = Report::new("bench");
    if cfg!(debug_assertions) {
        report.note("not a release build: these numbers say little");
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    report.check("memory with 1 and with 64 VHDs", || bench_parts::memory(&dir));
    report.finish()
}
