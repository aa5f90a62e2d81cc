//! `spanblk simulate`: needs no daemon and no pool.

use std::fs::{self, File};
use std::io::BufReader;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;

use super::Session;
use super::args::SimulateArgs;
use super::output::{Failure, Outcome, Table};
use crate::base::clock::{self, Nanos};
use crate::control::wire::ErrorKind;
use crate::simulate::{self, Figures, Report, Spec};

/// Runs it.
pub fn run(session: &Session, args: &SimulateArgs) -> Outcome {
    let text = match args.synthetic.as_deref() {
        None => String::new(),
        Some(text) => match text.strip_prefix('@') {
            Some(path) => fs::read_to_string(path).with_context(|| format!("cannot read {path}"))?,
            None => text.to_owned(),
        },
    };
    let spec = Spec::parse(&text).map_err(|error| {
        Failure::new(ErrorKind::Invalid, error.to_string()).hint("see `spanblk simulate --help` for all settings")
    })?;
    let seeds: Vec<u64> = args.seed.map_or_else(|| (1..=args.seeds).collect(), |seed| vec![seed]);
    let report = match &args.trace {
        None => simulate::synthetic(&spec, &seeds, &progress(clock::now())),
        Some(path) => {
            let file = File::open(path).with_context(|| format!("cannot open the trace {}", path.display()))?;
            let invalid = |error: simulate::TraceError| {
                Failure::new(ErrorKind::Invalid, format!("{:#}", anyhow::Error::from(error)))
            };
            simulate::trace(BufReader::new(file), &spec, &seeds).map_err(invalid)?
        }
    };
    if let Some(path) = &args.svg {
        fs::write(path, simulate::svg(&report)).with_context(|| format!("cannot write {}", path.display()))?;
    }
    session.output().show(&report, table)
}

/// Nanoseconds between two lines about how far it is.
const TEN_SECS_NS: u64 = 10_000_000_000;

/// Says on standard error how far a long run is, every ten seconds from the tenth on.
fn progress(began: Nanos) -> impl Fn(u64, u64) + Sync {
    let said = AtomicU64::new(0);
    move |done, all| {
        let tens = clock::now().since(began) / TEN_SECS_NS;
        // Threads that come at the same time: one of them says it.
        if said.fetch_max(tens, Ordering::Relaxed) < tens && done < all {
            eprintln!("{done} of {all} hosts after {} s", tens * 10);
        }
    }
}

fn table(report: &Report) -> String {
    let headers = ["Strategy", ">Busy %", ">Imbalance", ">p99 proxy", ">Fit %", ">Touched", ">Moved %/day"];
    let mut table = Table::new(&headers);
    let columns: [fn(&Figures) -> f64; 6] =
        [|f| 100.0 * f.busy, |f| 100.0 * f.imbalance, |f| f.p99, |f| 100.0 * f.fit, |f| f.touched, |f| 100.0 * f.moved];
    for row in &report.rows {
        let cell = |figure: fn(&Figures) -> f64| format!("{:.2} +- {:.2}", figure(&row.mean), figure(&row.spread));
        table.row([row.strategy.to_owned()].into_iter().chain(columns.map(cell)).collect());
    }
    let seeds: Vec<String> = report.seeds.iter().map(u64::to_string).collect();
    let mut text =
        format!("{} hosts, seeds {}\n\n{}\nGoals of the policy:\n", report.hosts, seeds.join(" "), table.render());
    for goal in &report.goals {
        let verdict = if goal.reached { "reached" } else { "MISSED " };
        text.push_str(&format!("  {verdict}  {} ({:.4}, bound {:.4})\n", goal.what, goal.value, goal.bound));
    }
    text
}
