//! Many VHDs on one daemon: what they cost while their guests are quiet, and while all of them ask for a little.
//!
//! With 1, 4, 16, 64 and 256 VHDs attached, of 10 GiB each, to a daemon as it comes. All guests live in one process of their own
//! (`many_parts/crowd.rs`), which is not counted.
//!
//! * Busy: reads of 4 KiB at random places, in turns on all VHDs, at a rate that is the same however many there are. So is the
//!   data that is read, all of which has been written before: what differs is only over how many VHDs it is spread.
//!   A reactor that serves one VHD alone may find it worth while to look for requests instead of sleeping, which is CPU time of
//!   that VHD; without that (`LAB_BENCH_POLL_MAX_US=0`) the ratio shows only what many VHDs add.
//! * Quiet: connected, rings enabled, nothing to do.
//!
//! On ext4 on zram if there can be one, else on the machine's disk, which may not reach the rate.
//!
//! * `LAB_BENCH_SECS`: length of one busy measurement (5)
//! * `LAB_BENCH_ROUNDS`: how often each is repeated (3); medians count
//! * `LAB_BENCH_IDLE_SECS`: length of the quiet measurement of all VHDs (60); with fewer of them a sixth of that
//! * `LAB_BENCH_RATE`: requests a second (20000), as far as the machine has time for the guests
//! * `LAB_BENCH_POLL_MAX_US`: the daemon's `--poll-max-us`
//! * `LAB_BENCH_VHDS`: other numbers of VHDs, as in "1,256"; goals are about the last of them
//! * `LAB_BENCH_OUT`: where `many.json` goes (`target/bench`)
//!
//! Goals are printed, and whether they are met; no number fails the run.

mod many_parts;

use std::process::ExitCode;

use lab::report::Report;
use lab::tools::RunDir;
use many_parts::{Bench, crowd, results};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(crowd::ARGUMENT) {
        return crowd::main(&args.next().unwrap_or_default());
    }
    let mut report = Report::new("bench_many");
    if cfg!(debug_assertions) {
        report.note("not a release build: these numbers say little");
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let mut bench = Bench::new();
    report.note(&bench.machine);
    report.check("1 to 256 VHDs, busy and quiet", || bench.run(&dir));
    report.check("results", || results::save(&bench));
    report.finish()
}
