//! The measurements of `bench_many.rs`.

pub mod crowd;
pub mod results;

use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::Duration;

use anyhow::Result;

use crowd::Order;
use lab::cost::{Cost, Threads};
use lab::daemon::Pool;
use lab::footprint::{self, Footprint};
use lab::helper::Helper;
use lab::ram_disk::RamDisk;
use lab::tally::Outcome;
use lab::tools::{Fill, RunDir, machine, number_from_env, prefilled, run};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Attached VHDs, step by step, unless the environment says otherwise.
const VHDS: &str = "1,4,16,64,256";

/// What a guest sees of a VHD. Thin: what is written is far less.
const VHD_SIZE: u64 = 10 * GIB;

/// Bytes that are written and read, over all VHDs of a step.
const WORKING_SET: u64 = 128 * MIB;

/// Bytes of the host disk: at each step three quarters of the VHDs are new, which get their share of the data, and no less than
/// an extent of 1 MiB each; labels and the placement table.
const DISK_SIZE: u64 = 5 * WORKING_SET + 64 * MIB;

/// Room of a file system in memory besides its file.
const RAM_SPARE: u64 = 64 * MIB;

/// After this time threads that handle the messages of frontends have ended, and everything is committed.
const SETTLE: Duration = Duration::from_millis(1500);

/// One measurement of busy VHDs.
#[derive(Clone, Copy, Debug)]
pub struct Busy {
    pub outcome: Outcome,
    pub cost: Cost,
}

/// What quiet VHDs cost.
#[derive(Clone, Copy, Debug)]
pub struct Quiet {
    pub time: Duration,
    /// Ticks of CPU time that the kernel has put on the daemon's account meanwhile.
    pub ticks: u64,
    /// The same to the nanosecond, and how often it was scheduled.
    pub cost: Cost,
    /// At the end.
    pub footprint: Footprint,
}

/// What was found with one number of VHDs.
#[derive(Clone, Debug)]
pub struct Step {
    pub vhds: usize,
    pub rounds: Vec<Busy>,
    pub quiet: Quiet,
}

/// How a run is made, and what has been found.
pub struct Bench {
    pub machine: String,
    /// Attached VHDs, step by step.
    vhds: Vec<usize>,
    /// Of one busy measurement.
    pub time: Duration,
    pub rounds: usize,
    /// Of the quiet measurement of all VHDs.
    pub quiet_time: Duration,
    /// Requests a second, over all VHDs.
    pub rate: u64,
    /// How long reactors look for requests, if not as the daemon comes.
    pub poll_max_us: Option<String>,
    /// What the host disk is.
    pub disk: String,
    pub steps: Vec<Step>,
}

impl Bench {
    #[must_use]
    pub fn new() -> Bench {
        Bench {
            machine: machine(),
            vhds: vhds_from_env(),
            time: Duration::from_secs(number_from_env("LAB_BENCH_SECS", 5)),
            rounds: usize::try_from(number_from_env("LAB_BENCH_ROUNDS", 3)).unwrap_or(1).max(1),
            quiet_time: Duration::from_secs(number_from_env("LAB_BENCH_IDLE_SECS", 60).max(1)),
            rate: number_from_env("LAB_BENCH_RATE", 20_000).max(1),
            poll_max_us: std::env::var("LAB_BENCH_POLL_MAX_US").ok().filter(|number| !number.is_empty()),
            disk: String::new(),
            steps: Vec::new(),
        }
    }

    /// All steps.
    ///
    /// # Errors
    /// The kernel refuses a disk, or what spanblk or the guests say.
    pub fn run(&mut self, dir: &RunDir) -> Result<()> {
        match RamDisk::unavailable() {
            None => {
                let ram = RamDisk::new(&dir.disks().join("ram"), DISK_SIZE + RAM_SPARE)?;
                self.disk = format!("ext4 on zram ({})", ram.algorithm);
                self.steps(&ram.mount, dir.sockets())
            }
            Some(reason) => {
                let mut findmnt = Command::new("findmnt");
                let what = run(findmnt.args(["-n", "-r", "-o", "FSTYPE,SOURCE", "-T"]).arg(dir.disks()))?;
                self.disk = format!("{}; not in memory: {reason}", what.trim().replacen(' ', " on ", 1));
                self.steps(dir.disks(), dir.sockets())
            }
        }
    }

    fn steps(&mut self, files: &Path, sockets: &Path) -> Result<()> {
        let disk = files.join("disk.img");
        prefilled(&disk, DISK_SIZE, Fill::Random)?;
        let mut pool = Pool::create(sockets, vec![disk], &["--force"])?;
        match &self.poll_max_us {
            Some(poll_max_us) => pool.serve(&[0], &["--poll-max-us", poll_max_us])?,
            None => pool.serve_all()?,
        };
        println!("   {}", self.disk);
        println!(
            "   VHDs of {} GiB. What is read, {} MiB over all of them, is written before, with random data",
            VHD_SIZE / GIB,
            WORKING_SET / MIB
        );
        results::print_heading();
        let mut there = 0;
        for vhds in self.vhds.clone() {
            for vhd in there..vhds {
                pool.create_vhd(&name(vhd), VHD_SIZE, &["--layout", "isolated", "--queues", "1"])?;
            }
            there = vhds;
            let step = self.step(&pool, vhds)?;
            results::print_row(&step, self.steps.first().unwrap_or(&step));
            self.steps.push(step);
        }
        results::print_goals(&results::goals(&self.steps));
        pool.stop()?;
        pool.check()
    }

    fn step(&self, pool: &Pool, vhds: usize) -> Result<Step> {
        let process = pool.id()?;
        let order = Order {
            sockets: (0..vhds).map(|vhd| pool.socket(&name(vhd))).collect(),
            size: (WORKING_SET / vhds as u64).next_multiple_of(crowd::FILL_LEN),
            rate: self.rate,
            warm_up: self.time / 5,
            time: self.time,
            seed: vhds as u64,
        };
        let mut crowd = Helper::start(crowd::ARGUMENT, &order)?;
        let mut rounds = Vec::new();
        for _ in 0..self.rounds {
            let before = Threads::of(process)?;
            let outcome = crowd.go()?;
            rounds.push(Busy { outcome, cost: Threads::of(process)?.since(&before) });
        }
        let all = self.vhds.last() == Some(&vhds);
        let quiet = quiet(process, if all { self.quiet_time } else { self.quiet_time / 6 })?;
        crowd.finish()?;
        Ok(Step { vhds, rounds, quiet })
    }
}

/// What a daemon costs whose guests are quiet.
fn quiet(process: u32, time: Duration) -> Result<Quiet> {
    thread::sleep(SETTLE);
    let (ticks, threads) = (footprint::ticks(process)?, Threads::of(process)?);
    thread::sleep(time);
    Ok(Quiet {
        time,
        ticks: footprint::ticks(process)? - ticks,
        cost: Threads::of(process)?.since(&threads),
        footprint: Footprint::of(process)?,
    })
}

/// # Panics
/// If the variable is set to something else than growing numbers: a run with other counts than asked for would mislead.
fn vhds_from_env() -> Vec<usize> {
    let text = std::env::var("LAB_BENCH_VHDS").unwrap_or_else(|_| VHDS.to_owned());
    let vhds: Result<Vec<usize>, _> = text.split(',').map(str::parse).collect();
    let vhds = vhds.ok().filter(|vhds| vhds.is_sorted_by(|one, next| one < next) && vhds[0] > 0 && vhds.len() > 1);
    vhds.unwrap_or_else(|| panic!("LAB_BENCH_VHDS={text} are not two or more growing numbers, as in {VHDS}"))
}

fn name(vhd: usize) -> String {
    format!("vhd{vhd}")
}
