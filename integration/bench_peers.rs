//! spanblk side by side with its peers: `qemu-storage-daemon` behind the same frontend, and fio straight on the same disk.
//!
//! In memory (a file on ext4 on zram, which shows what the daemons themselves cost), and on the machine's own disk. Both daemons
//! run as they come, with one frontend (`peers_parts/frontend.rs`) that sleeps until it is told of completions, as a guest does.
//!
//! * `LAB_BENCH_SECS`: length of one measurement (3)
//! * `LAB_BENCH_ROUNDS`: how often each is repeated, in turns (3); medians count
//! * `LAB_BENCH_ONLY`: a part of the name of what to run, with the disk before or behind it: "RAM", "randwrite", "depth 1 SSD"
//! * `LAB_BENCH_POLL=1`: the frontend looks for completions all the time
//! * `LAB_BENCH_HALT_POLL=0`: idle CPUs halt at once if this machine has it so (`lab/idle.rs`)
//! * `LAB_BENCH_OUT`: where `peers.json` and `peers.svg` go (`target/bench`)
//!
//! Goals are printed, and whether they are met; no number fails the run.

mod peers_parts;

use std::process::ExitCode;

use lab::idle::HaltPolling;
use lab::ram_disk::RamDisk;
use lab::report::Report;
use lab::tools::{RunDir, number_from_env};
use peers_parts::workloads::Kind;
use peers_parts::{Bench, frontend, results};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(frontend::ARGUMENT) {
        return frontend::main(&args.next().unwrap_or_default());
    }
    let mut report = Report::new("bench_peers");
    if cfg!(debug_assertions) {
        report.note("not a release build: these numbers say little");
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let mut bench = Bench::new();
    report.note(&bench.machine);
    let idle = (number_from_env("LAB_BENCH_HALT_POLL", 1) != 0).then(HaltPolling::ensure);
    report.note(idle.as_ref().map_or("idle CPUs: as the machine has it", |idle| &idle.note));
    if let Some(reason) = &bench.no_syscalls {
        report.note(&format!("system calls are not counted: {reason}"));
    }
    match RamDisk::unavailable() {
        Some(reason) => report.skip("disks in memory (left out)", reason),
        None if !bench.wants(Kind::Ram) => {}
        None => {
            report.check("against peers, in memory", || bench.in_memory(&dir));
        }
    }
    if bench.wants(Kind::Ssd) {
        report.check("against peers, on the machine's disk", || bench.on_disk(&dir));
    }
    report.check("results and a picture of them", || results::save(&bench));
    report.finish()
}
