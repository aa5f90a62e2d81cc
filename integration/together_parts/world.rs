//! The pool, the loads on it, and how daemon follows daemon.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::lives::{Lives, TAKEOVER};
use super::steps;
use lab::counts::Counts;
use lab::daemon::Pool;
use lab::fio_guest;
use lab::guest::Guest;
use lab::load::Terms;
use lab::model::Random;
use lab::tools::{RunDir, sparse_file, wait_for};

const MIB: u64 = 1 << 20;

/// Disks of the pool, each a failure domain: three replicas find room also while one of them is evacuated.
pub const DISKS: [&str; 4] = ["disk0", "disk1", "disk2", "disk3"];

const DISK_SIZE: u64 = 768 * MIB;

/// Sectors of a VHD under load, at first.
pub const SECTORS: u64 = 32 * MIB / 512;

/// The VHDs under load: name, options, sectors of a block.
pub const LOADS: [(&str, &[&str], u64); 2] = [
    ("two", &["--layout", "spanned", "--replicas", "2"], 1),
    ("three", &["--layout", "spanned", "--replicas", "3", "--checksums", "--block-size", "4096"], 8),
];

/// One of so many steps is a SIGKILL, and one a takeover: a daemon lives for some steps.
const ENDS: u64 = 12;

/// Longest wait for replicas that were in use at a SIGKILL, beside all loads on a small machine.
const WHOLE_LIMIT: Duration = Duration::from_secs(150);

/// A pool, its loads, and the daemons that serve it in turn.
pub struct World {
    pub pool: Pool,
    pub guests: Vec<Guest>,
    pub random: Random,
    pub counts: Counts,
    pub lives: Lives,
    /// Bytes of each of the guest's VHDs.
    pub sizes: [u64; fio_guest::VHDS.len()],
    last: String,
}

impl World {
    /// # Errors
    /// What spanblk says.
    pub fn start(dir: &RunDir, seed: u64) -> Result<World> {
        let paths: Vec<PathBuf> = DISKS.iter().map(|name| dir.disks().join(format!("{name}.img"))).collect();
        paths.iter().try_for_each(|path| sparse_file(path, DISK_SIZE))?;
        let domains: Vec<String> =
            DISKS.iter().zip(&paths).map(|(name, path)| format!("{}={name}", path.display())).collect();
        let mut options = vec!["--extent-size", "256KiB"];
        options.extend(domains.iter().flat_map(|domain| ["--failure-domain", domain]));
        let mut pool = Pool::create(dir.sockets(), paths.clone(), &options)?;
        pool.serve_all()?;
        fio_guest::create_vhds(&pool)?;
        let mut random = Random::new(seed);
        let mut guests = Vec::new();
        for ((name, options, block), disk) in LOADS.iter().zip(1..) {
            pool.create_vhd(name, SECTORS * 512, options)?;
            let terms = Terms { block: *block, discard: 64, writethrough: false, outlives: true };
            guests.push(Guest::new(name, disk, SECTORS, terms, random.next_u64()));
        }
        let (counts, mut lives) = (Counts::default(), Lives::default());
        lives.begin(&pool, "start")?;
        let sizes = [fio_guest::SIZE; _];
        Ok(World { pool, guests, random, counts, lives, sizes, last: String::new() })
    }

    /// Step after step; at the end there was at least one takeover and one SIGKILL, and the last daemon is known well enough.
    ///
    /// # Errors
    /// What a step or a load has found.
    pub fn run(&mut self, time: Duration) -> Result<()> {
        self.attach_all()?;
        let begun = Instant::now();
        while begun.elapsed() < time {
            let end = if self.lives.is_too_young(time) { ENDS } else { self.random.below(ENDS) };
            self.step(end)?;
        }
        for (end, kind) in ["SIGKILL", "takeover"].iter().enumerate() {
            if self.counts.of(kind) == 0 {
                self.step(end as u64)?;
            }
        }
        while !self.lives.is_known() {
            self.step(ENDS)?;
        }
        self.wait_whole()?;
        self.lives.sample(&self.pool, true)
    }

    fn step(&mut self, end: u64) -> Result<()> {
        let begun = Instant::now();
        let outcome = match end {
            0 => self.kill(),
            1 => self.take_over(),
            _ => steps::any(self),
        };
        // What a load has found is the cause of what came of it.
        for guest in &mut self.guests {
            if guest.has_ended() {
                guest.detach()?;
                bail!("the load on {} has ended by itself", guest.name);
            }
        }
        outcome?;
        // What was begun may go on: then this is no quiet moment.
        let quiet = self.is_quiet()?;
        self.lives.sample(&self.pool, quiet)?;
        if std::env::var_os("LAB_VERBOSE").is_some() {
            println!(
                "   {:>6} ms {} {}",
                begun.elapsed().as_millis(),
                if quiet { "quiet" } else { "     " },
                self.last
            );
        }
        Ok(())
    }

    /// Says what is done now, and counts it.
    pub fn doing(&mut self, kind: &'static str, what: &str) {
        self.counts.count(kind);
        self.last = format!("{kind} {what}");
    }

    /// What was done last, for an error.
    #[must_use]
    pub fn told(&self) -> String {
        format!("the last step was: {}; before that: {}", self.last, self.counts.told())
    }

    /// Ends the loads; how many requests there were.
    ///
    /// # Errors
    /// What a load has found.
    pub fn end(&mut self) -> Result<u64> {
        for guest in &mut self.guests {
            // With all of it checked once more.
            guest.detach()?;
            guest.attach(&self.pool)?;
            guest.detach()?;
        }
        self.guests.iter().map(|guest| Ok(guest.load()?.completed)).sum()
    }

    fn attach_all(&mut self) -> Result<()> {
        let pool = &self.pool;
        self.guests.iter_mut().try_for_each(|guest| guest.attach(pool))
    }

    /// SIGKILL, mostly with a job running, and another daemon.
    fn kill(&mut self) -> Result<()> {
        self.begin_something()?;
        self.doing("SIGKILL", "");
        self.pool.kill();
        self.guests.iter_mut().try_for_each(Guest::detach)?;
        self.pool.serve_all()?;
        self.lives.begin(&self.pool, "SIGKILL")?;
        self.attach_all()?;
        self.wait_whole()
    }

    /// A takeover, mostly with a job running.
    fn take_over(&mut self) -> Result<()> {
        self.begin_something()?;
        self.doing("takeover", "");
        self.pool.take_over()?;
        self.lives.begin(&self.pool, TAKEOVER)?;
        let before: Vec<Option<u64>> = self.guests.iter().map(Guest::progress).collect();
        for (guest, before) in self.guests.iter().zip(before) {
            wait_for("requests after a takeover", Duration::from_secs(30), || {
                (guest.progress() != before || guest.has_ended()).then_some(())
            })?;
        }
        self.wait_whole()
    }

    fn begin_something(&mut self) -> Result<()> {
        steps::begin_layout(self)?;
        thread::sleep(Duration::from_millis(self.random.below(300)));
        Ok(())
    }

    /// Whether nothing goes on but the guests' work, on all VHDs.
    fn is_quiet(&self) -> Result<bool> {
        let vhds = self.pool.json(&["vhd", "list"])?;
        let vhds = vhds["vhds"].as_array().context("no VHDs")?;
        let attached = vhds.iter().filter(|vhd| vhd["attached"].is_object()).count();
        ensure!(vhds.len() == LOADS.len() + fio_guest::VHDS.len(), "{} VHDs", vhds.len());
        Ok(attached == vhds.len() && self.pool.is_whole()?)
    }

    /// Waits until every replica is in sync, no job runs, and every guest is back.
    ///
    /// # Errors
    /// That takes too long.
    pub fn wait_whole(&self) -> Result<()> {
        wait_for("guests back, jobs done, replicas in sync", WHOLE_LIMIT, || {
            // For as long as a job may take, not with every glance.
            let quiet = self.is_quiet().ok()?;
            if !quiet {
                thread::sleep(Duration::from_millis(100));
            }
            quiet.then_some(())
        })
        .with_context(|| {
            let said = |args: &[&str]| self.pool.cli(args).unwrap_or_default();
            format!("{}\n{}", said(&["vhd", "list"]), said(&["job", "list"]))
        })
    }
}
