//! What each part of a request's way costs: taking it from the guest, finding its place, cutting it, giving it back. One thread,
//! no system call, no disk: what is left is what our own code does.
//!
//! `cargo bench --bench hot_path -- [--quick] [parse] [lookup] [split] [complete] [limits] [shares] [metrics]` prints nanoseconds per
//! operation: the best of some turns, which other load on the machine disturbs least, and their median. `--quick` shows that it runs, in
//! a second.
//!
//! The product is compiled as one crate and inlines more than what is measured here across two: expect it to be a little
//! faster.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a benchmark")]

mod limits;
mod lookup;
mod metrics;
mod parse;
mod reactor;
mod shares;

use std::time::{Duration, Instant};

// What is compiled here from `src` looks for these at the root of its crate.
use spanblk::{base, disk, engine, placement, qos, shared, store, virtio};

/// Measures in turns.
pub struct Bench {
    turns: usize,
    /// How long each of them is.
    turn: Duration,
    stopwatch: Stopwatch,
}

/// Measures short times.
#[derive(Clone, Copy)]
pub struct Stopwatch {
    began: Instant,
    /// What it measures when nothing happens.
    nothing: Duration,
}

impl Stopwatch {
    fn new() -> Stopwatch {
        let mut stopwatch = Stopwatch { began: Instant::now(), nothing: Duration::ZERO };
        stopwatch.nothing = (0..1000).map(|_| stopwatch.lap()).min().unwrap();
        stopwatch
    }

    /// What has happened until now is not measured.
    pub fn start(&mut self) {
        self.began = Instant::now();
    }

    /// The time since the last call.
    pub fn lap(&mut self) -> Duration {
        let now = Instant::now();
        let time = now - self.began;
        self.began = now;
        time.saturating_sub(self.nothing)
    }
}

impl Bench {
    fn new(quick: bool) -> Bench {
        let (turns, turn) = if quick { (3, Duration::from_millis(2)) } else { (15, Duration::from_millis(100)) };
        Bench { turns, turn, stopwatch: Stopwatch::new() }
    }

    /// Prints what the operations in `names` cost. `batch` runs a number of each: how long that took, and how many they were.
    pub fn run<const N: usize>(
        &self,
        names: [&str; N],
        mut batch: impl FnMut(&mut Stopwatch) -> [(Duration, usize); N],
    ) {
        let mut turn = || {
            let mut stopwatch = self.stopwatch;
            let mut sums = [(Duration::ZERO, 0); N];
            let end = Instant::now() + self.turn;
            while Instant::now() < end {
                for (sum, (time, count)) in sums.iter_mut().zip(batch(&mut stopwatch)) {
                    *sum = (sum.0 + time, sum.1 + count);
                }
            }
            sums.map(|(time, count)| time.as_nanos() as f64 / count as f64)
        };
        // The first one finds caches and branch predictors cold.
        turn();
        let turns: Vec<[f64; N]> = (0..self.turns).map(|_| turn()).collect();
        for (at, name) in names.iter().enumerate() {
            let mut costs: Vec<f64> = turns.iter().map(|turn| turn[at]).collect();
            costs.sort_by(f64::total_cmp);
            println!("{name:<78}{:>9.1}{:>9.1}", costs[0], costs[costs.len() / 2]);
        }
    }
}

/// Measures one part.
type Group = fn(&Bench);

fn main() {
    let groups: [(&str, Group); 7] = [
        ("parse", parse::measure),
        ("lookup", lookup::measure),
        ("split", reactor::measure_split),
        ("complete", reactor::measure_complete),
        ("limits", limits::measure),
        ("shares", shares::measure),
        ("metrics", metrics::measure),
    ];
    // Cargo adds `--bench`.
    let (flags, wanted): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with('-'));
    for name in &wanted {
        assert!(groups.iter().any(|group| group.0 == name), "there is no part {name:?}");
    }
    let bench = Bench::new(flags.iter().any(|flag| flag == "--quick"));
    println!("{:<78}{:>9}{:>9}", "nanoseconds per operation", "best", "median");
    for (name, measure) in groups {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            measure(&bench);
        }
    }
}
