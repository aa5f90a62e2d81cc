//! The policy in mode `auto` on a daemon with disks that are slow, and independent of each other: a guest that makes its neighbour wait
//! is found and the two are parted; a VHD whose disk gets full grows before its guest sees an error, and becomes narrow again when there is
//! little left of it; and what can never be is refused.
//!
//! The disks of the first are those of `bench_isolation.rs`: 2 ms for a request, four at once; those of the other are files, as a guest that
//! fills a fast disk leaves the policy the least time. Nobody tells the policy when to look: what is shown
//! comes of its own looks, every 10 to 30 seconds.
//!
//! What is checked is what happens: who is moved, that guests see no error, that their data is there, that the budget is kept. Times and
//! latencies are printed, with goals and whether they are met; no number fails the run.

#[allow(dead_code, reason = "what compares peers is not used here")]
mod peers_parts;
mod policy_parts;

use std::process::ExitCode;

use lab::report::Report;
use lab::throttle::SlowDisks;
use lab::tools::RunDir;
use peers_parts::frontend;
use policy_parts::{Lab, filling, neighbour};

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    if args.next().as_deref() == Some(frontend::ARGUMENT) {
        return frontend::main(&args.next().unwrap_or_default());
    }
    let mut report = Report::new("the policy in mode auto");
    if let Some(reason) = SlowDisks::unavailable() {
        report.skip("the policy on slow disks", reason);
        return report.finish();
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let Some(lab) = report.check("disks", || Lab::new(&dir)) else { return report.finish() };
    // The policy makes narrow again what has been emptied while the other scene is played, on other disks.
    let filling = filling::begin(&mut report, &lab);
    neighbour::run(&mut report, &lab);
    if let Some(filling) = filling {
        filling.end(&mut report);
    }
    report.finish()
}
