//! The table, the goals, and the file that a run leaves.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Bench, Busy, Quiet, Step};
use lab::daemon::spanblk;
use lab::outputs::{self, version};
use lab::tally::count;

/// The time that the goal of quiet VHDs is about, in seconds.
const QUIET_SECS: f64 = 60.0;

/// A goal with all VHDs attached, and what was reached.
#[derive(Clone, Copy, Debug)]
pub struct Goal {
    what: &'static str,
    at_most: f64,
    reached: f64,
}

impl Goal {
    fn met(&self) -> bool {
        self.reached <= self.at_most
    }
}

impl Busy {
    /// CPU time of the daemon for a request, in microseconds.
    fn cpu_us(&self) -> f64 {
        self.cost.cpu_us / count(self.outcome.requests)
    }
}

impl Quiet {
    fn ticks_a_minute(&self) -> f64 {
        count(self.ticks) * QUIET_SECS / self.time.as_secs_f64()
    }

    fn cpu_us_a_minute(&self) -> f64 {
        self.cost.cpu_us * QUIET_SECS / self.time.as_secs_f64()
    }

    fn switches_a_minute(&self) -> f64 {
        self.cost.switches * QUIET_SECS / self.time.as_secs_f64()
    }
}

impl Step {
    /// The median over all rounds.
    fn median(&self, figure: impl Fn(&Busy) -> f64) -> f64 {
        let mut all: Vec<f64> = self.rounds.iter().map(figure).collect();
        all.sort_by(f64::total_cmp);
        all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
    }

    /// CPU time for a request, as a multiple of what it is in another step.
    fn ratio(&self, one: &Step) -> f64 {
        self.median(Busy::cpu_us) / one.median(Busy::cpu_us)
    }

    fn memory_mb(&self) -> f64 {
        count(self.quiet.footprint.memory) / 1e6
    }
}

pub fn print_heading() {
    println!("   {:>6} |{:^53} |{:^61}", "", "quiet", "busy");
    println!(
        "   {:>6} |{:>10}{:>12}{:>9}{:>7}{:>9}{:>6} |{:>7}{:>7}{:>7}{:>7}{:>7}{:>9}{:>9}{:>8}",
        "VHDs",
        "ticks/60s",
        "us CPU/60s",
        "ctx/60s",
        "MB",
        "threads",
        "fds",
        "IOPS",
        "us/IO",
        "ratio",
        "p50",
        "p99",
        "kick/IO",
        "call/IO",
        "ctx/IO"
    );
}

/// Prints what was found with a number of VHDs, beside what it was with `one`.
pub fn print_row(step: &Step, one: &Step) {
    let Quiet { footprint, .. } = &step.quiet;
    let per_request = |figure: fn(&Busy) -> f64| step.median(|busy| figure(busy) / count(busy.outcome.requests));
    println!(
        "   {:>6} |{:>10.0}{:>12.0}{:>9.0}{:>7.1}{:>9}{:>6} |{:>7.0}{:>7.2}{:>7.2}{:>7.0}{:>7.0}{:>9.2}{:>9.2}{:>8.2}",
        step.vhds,
        step.quiet.ticks_a_minute(),
        step.quiet.cpu_us_a_minute(),
        step.quiet.switches_a_minute(),
        step.memory_mb(),
        footprint.threads,
        footprint.descriptors,
        step.median(|busy| busy.outcome.iops),
        step.median(Busy::cpu_us),
        step.ratio(one),
        step.median(|busy| busy.outcome.p50_us),
        step.median(|busy| busy.outcome.p99_us),
        per_request(|busy| count(busy.outcome.kicks)),
        per_request(|busy| count(busy.outcome.wakeups)),
        per_request(|busy| busy.cost.switches),
    );
}

/// The goals of many VHDs.
#[must_use]
pub fn goals(steps: &[Step]) -> Vec<Goal> {
    let (Some(one), Some(all)) = (steps.first(), steps.last()) else { return Vec::new() };
    let threads = |step: &Step| count(step.quiet.footprint.threads as u64);
    vec![
        Goal { what: "quiet: ticks of CPU time in 60 s", at_most: 0.0, reached: all.quiet.ticks_a_minute() },
        Goal { what: "quiet: MB of resident memory, without guests'", at_most: 200.0, reached: all.memory_mb() },
        Goal { what: "quiet: threads more than with one VHD", at_most: 0.0, reached: threads(all) - threads(one) },
        Goal { what: "busy: CPU time of a request, of that with one VHD", at_most: 1.3, reached: all.ratio(one) },
    ]
}

/// Prints the goals, and whether they are met.
pub fn print_goals(goals: &[Goal]) {
    println!("   {:<52}{:>9}{:>9}", "all VHDs", "goal", "reached");
    for goal in goals {
        let outcome = if goal.met() { "ok" } else { "MISSED" };
        println!("   {:<52}{:>9}{:>9.2}  {outcome}", goal.what, format!("<= {}", goal.at_most), goal.reached);
    }
}

/// Writes all results.
///
/// # Errors
/// As of the file system, or spanblk does not tell its version.
pub fn save(bench: &Bench) -> Result<()> {
    let goal = |goal: &Goal| {
        let Goal { what, at_most, reached } = *goal;
        json!({ "goal": what, "at_most": at_most, "reached": reached, "met": goal.met() })
    };
    let results = json!({
        "machine": bench.machine,
        "versions": { "spanblk": version(spanblk())? },
        "disk": bench.disk,
        "secs": bench.time.as_secs_f64(),
        "rounds": bench.rounds,
        "rate": bench.rate,
        "poll_max_us": bench.poll_max_us,
        "steps": bench.steps.iter().map(Step::json).collect::<Vec<Value>>(),
        "goals": goals(&bench.steps).iter().map(goal).collect::<Vec<Value>>(),
    });
    outputs::save("many.json", &serde_json::to_string_pretty(&results)?)
}

impl Step {
    /// Everything, for a file.
    fn json(&self) -> Value {
        let Quiet { time, ticks, cost, footprint } = &self.quiet;
        let round = |busy: &Busy| {
            json!({
                "outcome": busy.outcome,
                "cpu_us_per_io": busy.cpu_us(),
                "switches_per_io": busy.cost.switches / count(busy.outcome.requests),
            })
        };
        json!({
            "vhds": self.vhds,
            "quiet": {
                "secs": time.as_secs_f64(),
                "ticks": ticks,
                "cpu_us": cost.cpu_us,
                "switches": cost.switches,
                "memory": footprint.memory,
                "threads": footprint.threads,
                "reactors": footprint.reactors,
                "descriptors": footprint.descriptors,
            },
            "cpu_us_per_io": self.median(Busy::cpu_us),
            "rounds": self.rounds.iter().map(round).collect::<Vec<Value>>(),
        })
    }
}
