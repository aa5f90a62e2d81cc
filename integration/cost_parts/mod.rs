//! The measurements of `bench_costs.rs`.

pub mod beside;
pub mod layouts;
pub mod opening;
pub mod protection;
pub mod random;
pub mod sharing;
pub mod thin;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::peers_parts::workloads::Kind;
use lab::cost::Cost;
use lab::daemon::spanblk;
use lab::outputs::{self, version};
use lab::ram_disk::RamDisk;
use lab::tally::{Outcome, count};
use lab::tools::{RunDir, machine, number_from_env};

pub const MIB: u64 = 1 << 20;

/// Bytes of a request.
pub const LEN: u64 = 4 << 10;

/// Room of a file system in memory: for the larger of what layouts and first writes need, and for itself.
const RAM_SIZE: u64 = larger(larger(layouts::ROOM, sharing::ROOM), larger(thin::ROOM, protection::ROOM)) + 64 * MIB;

const fn larger(a: u64, b: u64) -> u64 {
    if a > b { a } else { b }
}

/// A part of the results.
#[derive(Clone, Copy)]
pub struct PartName {
    pub name: &'static str,
    /// What its rows are beside each other.
    pub what: &'static str,
}

/// How a run is made, and what has been found.
pub struct Bench {
    pub machine: String,
    pub time: Duration,
    pub rounds: usize,
    /// Placed TiB of the pools that are opened.
    pub tib: Vec<u64>,
    only: Option<String>,
    ram: Option<RamDisk>,
    results: Vec<Value>,
}

impl Bench {
    /// # Errors
    /// The environment asks for what is no number.
    pub fn new() -> Result<Bench> {
        let tib = std::env::var("LAB_BENCH_TIB").unwrap_or("1 2".to_owned());
        let tib: Result<Vec<u64>, _> = tib.split_whitespace().map(str::parse).collect();
        Ok(Bench {
            machine: machine(),
            time: Duration::from_secs(number_from_env("LAB_BENCH_SECS", 2)),
            rounds: usize::try_from(number_from_env("LAB_BENCH_ROUNDS", 5)).unwrap_or(1).max(1),
            tib: tib.context("LAB_BENCH_TIB: numbers with spaces between them")?,
            only: std::env::var("LAB_BENCH_ONLY").ok().filter(|part| !part.is_empty()),
            ram: None,
            results: Vec::new(),
        })
    }

    #[must_use]
    pub fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| part.contains(only.as_str()))
    }

    /// Makes a file system in memory, which is there until the run ends.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn make_ram(&mut self, dir: &RunDir) -> Result<()> {
        self.ram = Some(RamDisk::new(&dir.disks().join("ram"), RAM_SIZE)?);
        Ok(())
    }

    /// The kind of disks with the least to wait for that there is.
    #[must_use]
    pub fn fastest(&self) -> Kind {
        if self.ram.is_some() { Kind::Ram } else { Kind::Ssd }
    }

    /// New directories for files of disks of this kind, and for sockets; the latter is called `name`.
    ///
    /// # Errors
    /// As of the file system.
    pub fn dirs(&self, dir: &RunDir, kind: Kind, name: &str) -> Result<(PathBuf, PathBuf)> {
        let disks: &Path = match (&self.ram, kind) {
            (Some(ram), Kind::Ram) => &ram.mount,
            _ => dir.disks(),
        };
        let (disks, sockets) = (disks.join(name), dir.sockets().join(name));
        fs::create_dir(&disks)?;
        fs::create_dir(&sockets)?;
        Ok((disks, sockets))
    }

    /// Keeps a result for the file.
    pub fn note(&mut self, part: &str, what: Value) {
        self.results.push(json!({ "part": part, "result": what }));
    }

    /// Prints a goal, and whether it is met: at most `bound`.
    pub fn goal(&mut self, part: &str, what: &str, bound: f64, reached: f64) {
        let met = reached <= bound;
        println!("   goal: {what:<52} <= {bound:<5} {reached:>7.2}  {}", if met { "ok" } else { "MISSED" });
        let goal = json!({ "goal": what, "bound": bound, "at_least": false, "reached": reached, "met": met });
        self.note(part, goal);
    }

    /// Writes all results to a file.
    ///
    /// # Errors
    /// As of the file system.
    pub fn save(&self) -> Result<()> {
        let all = json!({
            "machine": self.machine,
            "versions": { "spanblk": version(spanblk())? },
            "secs": self.time.as_secs_f64(),
            "rounds": self.rounds,
            "results": self.results,
        });
        outputs::save("costs.json", &serde_json::to_string_pretty(&all)?)
    }
}

/// What one measurement has found.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    pub iops: f64,
    /// CPU time of the daemon for a request, in microseconds.
    pub cpu_us: f64,
    pub p50_us: f64,
    pub p99_us: f64,
}

impl Figures {
    #[must_use]
    pub fn of(outcome: &Outcome, cost: Cost) -> Figures {
        let cpu_us = cost.cpu_us / count(outcome.requests);
        Figures { iops: outcome.iops, cpu_us, p50_us: outcome.p50_us, p99_us: outcome.p99_us }
    }

    /// The median of each figure.
    #[must_use]
    pub fn medians(all: &[Figures]) -> Figures {
        let of = |figure: fn(&Figures) -> f64| median(all.iter().map(figure).collect());
        Figures { iops: of(|f| f.iops), cpu_us: of(|f| f.cpu_us), p50_us: of(|f| f.p50_us), p99_us: of(|f| f.p99_us) }
    }

    /// The median of the ratios of the rounds, of each figure: what disturbs a round mostly disturbs all who have a turn in it.
    #[must_use]
    pub fn ratios(own: &[Figures], base: &[Figures]) -> Figures {
        let of = |figure: fn(&Figures) -> f64| {
            median(own.iter().zip(base).map(|(own, base)| figure(own) / figure(base)).collect())
        };
        Figures { iops: of(|f| f.iops), cpu_us: of(|f| f.cpu_us), p50_us: of(|f| f.p50_us), p99_us: of(|f| f.p99_us) }
    }

    #[must_use]
    pub fn json(&self) -> Value {
        json!({ "iops": self.iops, "cpu_us_per_io": self.cpu_us, "p50_us": self.p50_us, "p99_us": self.p99_us })
    }
}

/// The value in the middle.
#[must_use]
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
