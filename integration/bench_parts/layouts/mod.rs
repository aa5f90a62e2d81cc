//! The measurements of `bench_layouts.rs`. Each makes a pool of its own on the same disks.

pub mod bytes;
pub mod guest;
pub mod isolation;
pub mod jobs;
pub mod throughput;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use lab::daemon::Pool;
pub use lab::jobs::{begin, finish};
use lab::throttle::{Limit, SlowDisks};
use lab::tools::{RunDir, machine, number_from_env, target_dir};

pub const MIB: u64 = 1 << 20;

/// Disks, the last of which only joins in when one is added.
pub const DISKS: usize = 5;

/// What each disk takes for a request, where latency is measured.
const DELAY: Duration = Duration::from_millis(1);

/// How many requests it serves at once there: more than are asked.
const AT_ONCE: u32 = 32;

/// Size of a disk. Pools use the first part of it, see [`FIO_OFFSET`].
pub const DISK_SIZE: u64 = 896 * MIB;

/// The part of a disk that fio uses, while a pool is on it.
pub const FIO_OFFSET: u64 = DISK_SIZE - FIO_SIZE - 4 * MIB;
pub const FIO_SIZE: u64 = 128 * MIB;

/// The disks, and what has been found.
pub struct Bench<'a> {
    disks: Option<SlowDisks>,
    pub time: Duration,
    pub rounds: usize,
    dir: &'a RunDir,
    pools: u32,
    results: Vec<Value>,
}

/// Where the disks are.
#[derive(Clone, Copy, Debug)]
pub enum Disks {
    /// On files: for throughput.
    OnFiles,
    /// In memory, with a millisecond for every request: where latencies are to be told apart.
    InMemory,
}

impl Disks {
    #[must_use]
    pub fn title(self) -> &'static str {
        match self {
            Disks::OnFiles => "disks on files",
            Disks::InMemory => "disks in memory, with 1 ms for each request",
        }
    }
}

impl<'a> Bench<'a> {
    #[must_use]
    pub fn new(dir: &'a RunDir) -> Bench<'a> {
        Bench {
            disks: None,
            time: Duration::from_secs(number_from_env("LAB_BENCH_SECS", 3)),
            rounds: usize::try_from(number_from_env("LAB_BENCH_ROUNDS", 1)).unwrap_or(1).max(1),
            dir,
            pools: 0,
            results: Vec::new(),
        }
    }

    /// From now on measures on these disks.
    ///
    /// # Errors
    /// There are none.
    pub fn take(&mut self, which: Disks) -> Result<()> {
        // The last ones make room.
        self.disks = None;
        self.disks = Some(match which {
            Disks::OnFiles => SlowDisks::on_files(self.dir.disks(), DISKS, DISK_SIZE)?,
            Disks::InMemory => SlowDisks::in_memory(self.dir.disks(), DISKS - 1, DISK_SIZE, DELAY, AT_ONCE)?,
        });
        Ok(())
    }

    /// The disks that are measured on.
    ///
    /// # Panics
    /// Before there are any.
    #[must_use]
    pub fn disks(&self) -> &SlowDisks {
        self.disks.as_ref().expect("disks were taken")
    }

    /// What this was measured on.
    #[must_use]
    pub fn machine(&self) -> String {
        format!("{}; {} s, {} rounds", machine(), self.time.as_secs(), self.rounds)
    }

    /// From now on each disk can do this.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn limit(&self, limit: Limit) -> Result<()> {
        let Limit { bytes, requests } = limit;
        println!("   each disk: {} MiB/s and {requests} requests/s, for reads and for writes", bytes / MIB);
        self.disks().limit(limit)
    }

    /// A pool of the first `count` disks, named d0, d1 and so on, and a daemon that is not held back yet.
    ///
    /// # Errors
    /// What spanblk says.
    pub fn pool(&mut self, count: usize) -> Result<Pool> {
        self.pools += 1;
        let sockets = self.dir.sockets().join(format!("pool{}", self.pools));
        fs::create_dir(&sockets)?;
        let names: Vec<String> = (0..count).map(|index| format!("d{index}")).collect();
        let mut options = vec!["--force"];
        names.iter().for_each(|name| options.extend(["--name", name]));
        let mut pool = Pool::create(&sockets, self.disks().devices[..count].to_vec(), &options)?;
        pool.serve_all()?;
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

    /// Notes a result, and prints whether it is as good as it should be.
    pub fn note(&mut self, what: &str, figures: Value) {
        self.results.push(json!({ "what": what, "figures": figures }));
    }

    /// Prints a goal with what was reached.
    pub fn goal(&mut self, goal: &str, reached: f64, met: bool) {
        println!("   goal: {goal}: {reached:.2}, {}", if met { "met" } else { "MISSED" });
        self.results.push(json!({ "goal": goal, "reached": reached, "met": met }));
    }

    /// Writes all results to a file.
    ///
    /// # Errors
    /// As of the file system.
    pub fn save(&self) -> Result<()> {
        let path: PathBuf = target_dir().join("bench_layouts.json");
        let all = json!({ "machine": self.machine(), "results": self.results });
        fs::write(&path, serde_json::to_string_pretty(&all)?).with_context(|| format!("writing {}", path.display()))?;
        println!("   {}", path.display());
        Ok(())
    }
}

/// An isolated VHD, every block of which is there.
///
/// # Errors
/// What spanblk says.
pub fn create(pool: &Pool, name: &str, disk: &str, size: u64) -> Result<()> {
    pool.create_vhd(name, size, &["--layout", "isolated", "--disks", disk, "--thick", "--queues", "1"])?;
    guest::fill(&mut guest::connect(&pool.socket(name))?, size)
}

/// Ends a job if it has not ended by itself; how many bytes it moved.
///
/// # Errors
/// What spanblk says.
pub fn cancel(pool: &Pool, id: u64) -> Result<u64> {
    let info = pool.json(&["job", "show", &id.to_string()])?;
    if info["state"] == "running" {
        pool.cli(&["job", "cancel", &id.to_string()])?;
    }
    info["moved_bytes"].as_u64().context("a job tells how much it moved")
}

/// The value in the middle.
#[must_use]
pub fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(0.0)
}

/// Bytes as MiB.
#[must_use]
pub fn mib(bytes: f64) -> f64 {
    bytes / f64::from(1 << 20)
}

/// A rate.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "far fewer bytes than a double counts exactly")]
pub fn per_second(bytes: u64, time: Duration) -> f64 {
    bytes as f64 / time.as_secs_f64()
}
