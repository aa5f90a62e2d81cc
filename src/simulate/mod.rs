//! A look ahead: many hosts through days of virtual time, to compare ways to place VHDs before a real pool has to find out.
//!
//! What is the program's own: new extents go where `placement::layout` says, plans are those of `plan`, and the policy is
//! `policy::judge`, which sees what a daemon could tell it. What is a model: disks (`service` says which and what it leaves out),
//! fair shares of them (`shares`), guests (`synthetic`, or a trace), and time, in steps of some minutes in which nothing changes. What is
//! coarser than in a pool: extents are larger (1 GiB instead of 1 MiB), and have no slots but numbers of them. What is left out: the
//! placement store, caches, the pace of moves (they have a fixed rate), flushes, discards by parts of extents.
//!
//! Everything follows from the specification and the seed: every strategy meets the same guests, and equal calls give equal results,
//! on however many threads.
//!
//! Uses `base`, `placement`, `plan` and `policy`.

mod averages;
mod host;
mod report;
mod run;
mod service;
mod shares;
mod spec;
mod strategy;
mod svg;
mod synthetic;
mod tally;
mod trace;

use std::collections::BTreeMap;
use std::io::{BufRead, Seek};
use std::sync::atomic::{AtomicU64, Ordering};

pub use report::{Goal, Report, Row};
pub use spec::{HostKind, KEYS, Spec, SpecError};
pub use strategy::Strategy;
pub use svg::svg;
pub use tally::Figures;
pub use trace::{HEADER, TraceError};

use tally::Tally;

/// Compares the strategies on hosts and guests that are made up, for these seeds. `progress` is told after each host how many are done,
/// of how many, over all seeds; by several threads.
#[must_use]
pub fn synthetic(spec: &Spec, seeds: &[u64], progress: &(dyn Fn(u64, u64) + Sync)) -> Report {
    let (done, all) = (AtomicU64::new(0), u64::from(spec.hosts) * seeds.len() as u64);
    let host_done = || progress(done.fetch_add(1, Ordering::Relaxed) + 1, all);
    let runs: Vec<BTreeMap<Strategy, Tally>> = seeds.iter().map(|seed| one_seed(spec, *seed, &host_done)).collect();
    Report::new(spec.hosts, seeds.to_vec(), &runs)
}

/// Compares the strategies on a trace, which is read once for each seed, from its beginning.
///
/// # Errors
/// What is wrong with it, by line.
pub fn trace<R: BufRead + Seek>(mut input: R, spec: &Spec, seeds: &[u64]) -> Result<Report, TraceError> {
    let mut hosts = 0;
    let mut runs = Vec::new();
    for seed in seeds {
        input.rewind().map_err(|source| TraceError::Read { line: 0, source })?;
        let (count, tallies) = trace::run(&mut input, spec, *seed)?;
        hosts = count;
        runs.push(tallies);
    }
    Ok(Report::new(hosts, seeds.to_vec(), &runs))
}

/// All hosts of a seed, on as many threads as there are processors. The sums are made in the order of the hosts.
fn one_seed(spec: &Spec, seed: u64, host_done: &(dyn Fn() + Sync)) -> BTreeMap<Strategy, Tally> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = u32::try_from(threads).unwrap_or(1).clamp(1, spec.hosts);
    let part = |first: u32| {
        let mine = (first..spec.hosts).step_by(threads as usize);
        mine.map(move |index| {
            let tallies = run::synthetic(spec, seed, index).into_iter().map(|trial| (trial.strategy, trial.tally));
            let tallies: Vec<_> = tallies.collect();
            host_done();
            (index, tallies)
        })
    };
    let mut hosts: BTreeMap<u32, Vec<(Strategy, Tally)>> = BTreeMap::new();
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..threads).map(|first| scope.spawn(move || part(first).collect::<Vec<_>>())).collect();
        for thread in all {
            hosts.extend(thread.join().expect("a thread of the simulation does not panic"));
        }
    });
    let mut sums: BTreeMap<Strategy, Tally> = BTreeMap::new();
    for (strategy, tally) in hosts.into_values().flatten() {
        sums.entry(strategy).or_default().merge(&tally);
    }
    sums
}

/// The nearest whole number; 0 for what is negative or none, the largest one for what is too large.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates, as it should here")]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

#[cfg(test)]
mod tests;
