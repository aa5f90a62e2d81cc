//! The measurements of `bench_isolation.rs`. Each has a pool of its own on the same disks.

pub mod guests;
pub mod neighbours;
pub mod weights;

use std::fs;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::{Value, json};

use lab::daemon::{Pool, spanblk};
use lab::jobs::{begin, finish};
use lab::outputs::{self, version};
use lab::throttle::SlowDisks;
use lab::tools::{RunDir, machine, number_from_env};

pub const MIB: u64 = 1 << 20;

/// Bytes of a request.
pub const LEN: u64 = 4 << 10;

/// Disks: one that is shared, and two where somebody can go.
const DISKS: usize = 3;

const DISK_SIZE: u64 = 384 * MIB;

/// What a disk takes for a request, and how many it serves at once.
const DELAY: Duration = Duration::from_millis(2);
const AT_ONCE: u32 = 4;

/// A measurement: its name for `LAB_BENCH_ONLY`, its title.
type Part = (&'static str, &'static str, fn(&mut Bench) -> Result<()>);

pub const PARTS: [Part; 3] = [
    ("reads", "a victim that reads", neighbours::reads),
    ("flushes", "a victim that writes where nothing was, with a FLUSH after each", neighbours::first_writes),
    ("weights", "two guests that both want all of a disk", weights::measure),
];

/// The disks, how a run is made, and what has been found.
pub struct Bench<'a> {
    pub time: Duration,
    pub rounds: usize,
    only: Option<String>,
    disks: SlowDisks,
    dir: &'a RunDir,
    pools: u32,
    results: Vec<Value>,
}

impl<'a> Bench<'a> {
    /// # Errors
    /// There are no such disks.
    pub fn new(dir: &'a RunDir) -> Result<Bench<'a>> {
        Ok(Bench {
            time: Duration::from_secs(number_from_env("LAB_BENCH_SECS", 3)),
            rounds: usize::try_from(number_from_env("LAB_BENCH_ROUNDS", 1)).unwrap_or(1).max(1),
            only: std::env::var("LAB_BENCH_ONLY").ok().filter(|part| !part.is_empty()),
            disks: SlowDisks::in_memory(dir.disks(), DISKS, DISK_SIZE, DELAY, AT_ONCE)?,
            dir,
            pools: 0,
            results: Vec::new(),
        })
    }

    /// What this was measured on.
    #[must_use]
    pub fn machine(&self) -> String {
        format!("{}; {} s, {} rounds", machine(), self.time.as_secs(), self.rounds)
    }

    #[must_use]
    pub fn wants(&self, part: &str) -> bool {
        self.only.as_ref().is_none_or(|only| part.contains(only.as_str()))
    }

    /// A pool of the disks, named d0, d1 and so on, and a daemon.
    ///
    /// # Errors
    /// What spanblk says.
    pub fn pool(&mut self, shares: Shares) -> Result<Pool> {
        self.pools += 1;
        let sockets = self.dir.sockets().join(format!("pool{}", self.pools));
        fs::create_dir(&sockets)?;
        let names: Vec<String> = (0..DISKS).map(|index| format!("d{index}")).collect();
        let mut options = vec!["--force"];
        names.iter().for_each(|name| options.extend(["--name", name]));
        let mut pool = Pool::create(&sockets, self.disks.devices.clone(), &options)?;
        serve(&mut pool, shares)?;
        Ok(pool)
    }

    /// Stops and checks a pool.
    ///
    /// # Errors
    /// It is not as it should be.
    pub fn end(&self, mut pool: Pool) -> Result<()> {
        pool.stop()?;
        pool.check()
    }

    /// Keeps a result for the file.
    pub fn note(&mut self, part: &str, what: Value) {
        self.results.push(json!({ "part": part, "result": what }));
    }

    /// Prints a goal, and whether it is met.
    pub fn goal(&mut self, part: &str, goal: &str, reached: f64, met: bool) {
        println!("   goal: {goal:<72} {reached:>7.3}  {}", if met { "ok" } else { "MISSED" });
        self.note(part, json!({ "goal": goal, "reached": reached, "met": met }));
    }

    /// Writes all results to a file.
    ///
    /// # Errors
    /// As of the file system.
    pub fn save(&self) -> Result<()> {
        let all = json!({
            "machine": self.machine(),
            "versions": { "spanblk": version(spanblk())? },
            "results": self.results,
        });
        outputs::save("isolation.json", &serde_json::to_string_pretty(&all)?)
    }
}

/// Whether the daemon shares out disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shares {
    /// It leaves that to the disks.
    Off,
    /// As it comes.
    On,
}

/// Starts the daemon of a pool.
///
/// # Errors
/// What spanblk says.
pub fn serve(pool: &mut Pool, shares: Shares) -> Result<()> {
    let order: Vec<usize> = (0..DISKS).collect();
    let options: &[&str] = if shares == Shares::Off { &["--fair-shares", "off"] } else { &[] };
    pool.serve(&order, options).map(drop)
}

/// Has a job done; how long it took, and how many bytes it moved.
///
/// # Errors
/// What spanblk says, or that the job does not end well.
pub fn job(pool: &Pool, args: &[&str]) -> Result<(Duration, u64)> {
    let started = Instant::now();
    let moved = finish(pool, begin(pool, args)?)?;
    Ok((started.elapsed(), moved))
}

/// The value in the middle.
#[must_use]
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}
