//! What came of all seeds: means, how much they differ, and which goals were reached.

use std::collections::BTreeMap;

use serde::Serialize;

use super::strategy::Strategy;
use super::tally::{Figures, Tally};

/// A strategy's line in the table.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the strategy.
    pub strategy: &'static str,
    /// Means over the seeds.
    pub mean: Figures,
    /// Standard deviations over the seeds.
    pub spread: Figures,
}

/// What the policy should reach, compared with the others.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Goal {
    /// What.
    pub what: &'static str,
    /// The policy's value.
    pub value: f64,
    /// The bound.
    pub bound: f64,
    /// Whether it is on the right side of it.
    pub reached: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Hosts; of a trace those in it.
    pub hosts: u32,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// In the order of [`Strategy::ALL`].
    pub rows: Vec<Row>,
    /// The goals.
    pub goals: Vec<Goal>,
}

impl Report {
    /// From what was counted, seed by seed.
    pub(super) fn new(hosts: u32, seeds: Vec<u64>, runs: &[BTreeMap<Strategy, Tally>]) -> Report {
        let row = |strategy: Strategy| {
            let figures: Vec<Figures> = runs.iter().filter_map(|run| run.get(&strategy)).map(Tally::figures).collect();
            let (mean, spread) = sum_up(&figures);
            Row { strategy: strategy.word(), mean, spread }
        };
        let rows: Vec<Row> = Strategy::ALL.into_iter().map(row).collect();
        let goals = goals(&rows[0].mean, &rows[1].mean, &rows[3].mean);
        Report { hosts, seeds, rows, goals }
    }
}

fn goals(spanned: &Figures, isolated: &Figures, policy: &Figures) -> Vec<Goal> {
    let most = |what, value: f64, bound: f64| Goal { what, value, bound, reached: value <= bound };
    let least = |what, value: f64, bound: f64| Goal { what, value, bound, reached: value > bound };
    let better = |figure: fn(&Figures) -> f64| figure(spanned).min(figure(isolated));
    vec![
        most("moved a day: at most 1 % of the capacity", policy.moved, 0.01),
        most("imbalance: at most half of all-isolated", policy.imbalance, 0.5 * isolated.imbalance),
        most("VMs touched: at most half of all-spanned", policy.touched, 0.5 * spanned.touched),
        most("imbalance: within 15 % of the better one", policy.imbalance, 1.15 * better(|f| f.imbalance)),
        most("VMs touched: within 15 % of the better one", policy.touched, 1.15 * better(|f| f.touched)),
        most("p99 proxy: better than both", policy.p99, better(|f| f.p99)),
        least("VHDs that fit: more than both", policy.fit, spanned.fit.max(isolated.fit)),
    ]
}

fn sum_up(figures: &[Figures]) -> (Figures, Figures) {
    let of = |figure: fn(&Figures) -> f64| {
        let count = figures.len().max(1) as f64;
        let mean = figures.iter().map(figure).sum::<f64>() / count;
        let square = figures.iter().map(|f| (figure(f) - mean).powi(2)).sum::<f64>() / count;
        (mean, square.sqrt())
    };
    let all = [
        of(|f| f.busy),
        of(|f| f.imbalance),
        of(|f| f.p99),
        of(|f| f.p99_median),
        of(|f| f.fit),
        of(|f| f.touched),
        of(|f| f.moved),
    ];
    let pick = |from: fn((f64, f64)) -> f64| {
        let [busy, imbalance, p99, p99_median, fit, touched, moved] = all.map(from);
        Figures { busy, imbalance, p99, p99_median, fit, touched, moved }
    };
    (pick(|pair| pair.0), pick(|pair| pair.1))
}
