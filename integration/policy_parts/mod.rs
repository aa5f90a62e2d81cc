//! The scenes of `policy_auto.rs`, and what they share: disks, pools, data that is known.

pub mod filling;
pub mod neighbour;

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use lab::daemon::Pool;
use lab::frontend::{Frontend, Options};
use lab::ring::Op;
use lab::throttle::SlowDisks;
use lab::tools::RunDir;

pub const MIB: u64 = 1 << 20;

/// Sectors of an extent.
const EXTENT_SECTORS: u64 = MIB / 512;

const DISKS: usize = 3;
const DISK_SIZE: u64 = 384 * MIB;

/// What a disk takes for a request, and how many it serves at once.
const DELAY: Duration = Duration::from_millis(2);
const AT_ONCE: u32 = 4;

/// Disks and directories of the pools.
pub struct Lab<'a> {
    slow: SlowDisks,
    dir: &'a RunDir,
}

impl<'a> Lab<'a> {
    /// # Errors
    /// There are no such disks.
    pub fn new(dir: &'a RunDir) -> Result<Lab<'a>> {
        Ok(Lab { slow: SlowDisks::in_memory(dir.disks(), DISKS, DISK_SIZE, DELAY, AT_ONCE)?, dir })
    }

    /// A pool of slow disks, d0, d1 and d2, that is not served yet.
    ///
    /// # Errors
    /// What spanblk says.
    pub fn slow_pool(&self) -> Result<Pool> {
        self.pool("slow", self.slow.devices.clone(), &["--force"])
    }

    /// The same of files.
    ///
    /// # Errors
    /// What spanblk says.
    pub fn fast_pool(&self) -> Result<Pool> {
        let files = (0..DISKS).map(|index| self.dir.disks().join(format!("fast{index}.img"))).collect();
        self.pool("fast", files, &["--size", &DISK_SIZE.to_string()])
    }

    fn pool(&self, name: &str, disks: Vec<PathBuf>, options: &[&str]) -> Result<Pool> {
        let sockets = self.dir.sockets().join(name);
        fs::create_dir(&sockets)?;
        let names: Vec<String> = (0..DISKS).map(|index| format!("d{index}")).collect();
        let mut options = options.to_vec();
        names.iter().for_each(|name| options.extend(["--name", name]));
        Pool::create(&sockets, disks, &options)
    }
}

/// Serves a pool whose disks nobody shares out: what one guest does, the other one feels, until they are parted.
///
/// # Errors
/// What spanblk says.
pub fn serve(pool: &mut Pool) -> Result<()> {
    let order: Vec<usize> = (0..DISKS).collect();
    pool.serve(&order, &["--fair-shares", "off"]).map(drop)
}

/// What a guest has written: of each extent whether it is there.
pub struct Contents {
    seed: u64,
    written: Vec<bool>,
}

impl Contents {
    /// Of a VHD of so many extents in which nothing was written.
    #[must_use]
    pub fn new(seed: u64, extents: u64) -> Contents {
        Contents { seed, written: (0..extents).map(|_| false).collect() }
    }

    /// Data that no other extent has, nor another VHD.
    fn data(&self, extent: usize) -> Vec<u8> {
        let words = (0..MIB / 8).map(|word| {
            let place = ((self.seed << 32 | extent as u64) << 20) | word;
            place.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        words.flat_map(u64::to_le_bytes).collect()
    }

    /// Writes an extent.
    ///
    /// # Errors
    /// The guest sees an error.
    pub fn write(&mut self, guest: &mut Frontend, extent: usize) -> Result<()> {
        let written = guest.ring().write(sector(extent), &self.data(extent));
        written.with_context(|| format!("writing extent {extent}"))?;
        self.written[extent] = true;
        Ok(())
    }

    /// Discards an extent.
    ///
    /// # Errors
    /// The guest sees an error.
    pub fn discard(&mut self, guest: &mut Frontend, extent: usize) -> Result<()> {
        let sectors = u32::try_from(EXTENT_SECTORS)?;
        let done = guest.ring().range_request(Op::Discard, sector(extent), sectors);
        done.with_context(|| format!("discarding extent {extent}"))?;
        self.written[extent] = false;
        Ok(())
    }

    /// Writes all extents.
    ///
    /// # Errors
    /// The guest sees an error.
    pub fn fill(&mut self, guest: &mut Frontend) -> Result<()> {
        (0..self.written.len()).try_for_each(|extent| self.write(guest, extent))?;
        guest.ring().flush()
    }

    /// Reads everything: what was written is there, and nothing else.
    ///
    /// # Errors
    /// It is not.
    pub fn check(&self, guest: &mut Frontend) -> Result<()> {
        for (extent, written) in self.written.iter().enumerate() {
            let data = guest.ring().read(sector(extent), MIB).with_context(|| format!("reading extent {extent}"))?;
            let is_right = if *written { data == self.data(extent) } else { data.iter().all(|byte| *byte == 0) };
            ensure!(is_right, "extent {extent} is not what was written (seed {})", self.seed);
        }
        Ok(())
    }
}

fn sector(extent: usize) -> u64 {
    extent as u64 * EXTENT_SECTORS
}

/// A guest of a VHD.
///
/// # Errors
/// What the backend refuses.
pub fn guest(pool: &Pool, vhd: &str) -> Result<Frontend> {
    Frontend::connect(&pool.socket(vhd), &Options::for_data())
}

/// Extents of a VHD by disk.
///
/// # Errors
/// What spanblk says.
pub fn placement(pool: &Pool, vhd: &str) -> Result<Vec<(String, u64)>> {
    let shown = pool.json(&["vhd", "show", vhd])?;
    let places = shown["placement"].as_array().context("a placement in vhd show")?;
    let place = |place: &Value| Some((place["disk"].as_str()?.to_owned(), place["extents"].as_u64()?));
    places.iter().map(|one| place(one).context("a disk and extents")).collect()
}

/// A placement in words.
#[must_use]
pub fn words(placement: &[(String, u64)]) -> String {
    placement.iter().map(|(disk, extents)| format!("{disk} {extents}")).collect::<Vec<_>>().join(", ")
}

/// Events of this kind that there have been.
///
/// # Errors
/// What spanblk says.
pub fn events(pool: &Pool, kind: &str) -> Result<Vec<Value>> {
    let text = pool.cli(&["--json", "events"])?;
    let events: Result<Vec<Value>, _> = text.lines().map(serde_json::from_str).collect();
    Ok(events?.into_iter().filter(|event| event["event"] == kind).collect())
}

/// Bytes that jobs have moved, the jobs that have not ended, and those that did not end well.
///
/// # Errors
/// What spanblk says.
pub fn jobs(pool: &Pool) -> Result<(u64, usize, Vec<Value>)> {
    let listed = pool.json(&["job", "list"])?;
    let jobs = listed["jobs"].as_array().context("a list of jobs")?;
    let moved = jobs.iter().filter_map(|job| job["moved_bytes"].as_u64()).sum();
    let open = jobs.iter().filter(|job| job["state"] == "running").count();
    let bad = jobs.iter().filter(|job| job["state"] != "running" && job["state"] != "done");
    Ok((moved, open, bad.cloned().collect()))
}

/// That what the policy has moved is within its budget, and that its jobs ended well; how many bytes that were, and of how many.
///
/// # Errors
/// It is not.
pub fn check_budget(pool: &Pool) -> Result<(u64, u64)> {
    let (moved, _, bad) = jobs(pool)?;
    ensure!(bad.is_empty(), "jobs that did not end well: {bad:?}");
    let budget = pool.json(&["advise"])?["budget_bytes"].as_u64().context("a budget in advise")?;
    ensure!(moved <= budget, "{moved} bytes moved, of {budget}");
    Ok((moved, budget))
}

/// Waits until something is so; how long that took.
///
/// # Errors
/// It is not in time: with what the policy has to say.
pub fn until(pool: &Pool, what: &str, limit: Duration, mut is: impl FnMut() -> Result<bool>) -> Result<Duration> {
    let started = Instant::now();
    while !is()? {
        if started.elapsed() > limit {
            bail!(
                "{what}: not within {} s\n{}\n{}",
                limit.as_secs(),
                pool.cli(&["advise"])?,
                pool.cli(&["job", "list"])?
            );
        }
        std::thread::sleep(Duration::from_millis(250));
    }
    Ok(started.elapsed())
}

/// Prints a goal, and whether it is met.
pub fn goal(goal: &str, reached: f64, met: bool) {
    println!("   goal: {goal:<72} {reached:>7.3}  {}", if met { "ok" } else { "MISSED" });
}
