//! A VHD and the guest that works on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};

use super::daemon::Pool;
use super::load::{Load, Terms, connect};
use super::tools::wait_for;

/// Longest wait for something that takes milliseconds.
const LIMIT: Duration = Duration::from_secs(30);

/// A VHD under load, from time to time.
pub struct Guest {
    /// Name of the VHD.
    pub name: &'static str,
    /// The load and what it knows of the disk, while it does not run.
    load: Option<Load>,
    /// The load while it runs.
    running: Option<Running>,
    /// What else the size in sectors may be: the daemon was killed while it made it so.
    pub maybe: Option<u64>,
    /// How often that turned out to be so: no, yes.
    pub doubts: [u64; 2],
    /// Sectors that the VHD has, as far as is known.
    pub sectors: u64,
    /// Sectors of its logical blocks.
    pub block: u64,
    writethrough: bool,
}

struct Running {
    stop: Arc<AtomicBool>,
    known: Arc<AtomicU64>,
    progress: Arc<AtomicU64>,
    thread: JoinHandle<(Load, Result<()>)>,
}

impl Guest {
    /// A guest of a VHD that was never written. `disk` tells it from other guests.
    #[must_use]
    pub fn new(name: &'static str, disk: u64, sectors: u64, terms: Terms, seed: u64) -> Guest {
        let load = Some(Load::new(disk, sectors, terms, seed));
        Guest {
            name,
            load,
            running: None,
            maybe: None,
            doubts: [0; 2],
            sectors,
            block: terms.block,
            writethrough: terms.writethrough,
        }
    }

    /// Attaches the VHD, checks all of it, and begins the load.
    ///
    /// # Errors
    /// The VHD does not hold what it must, or is not as large as it must be.
    pub fn attach(&mut self, pool: &Pool) -> Result<()> {
        let mut load = self.load.take().context("the guest runs")?;
        let mut frontend = connect(&pool.socket(self.name))?;
        // What the load has heard of counts, even if the command that brought it about was never answered.
        let (capacity, expected) = (frontend.capacity(), load.model.sectors());
        ensure!(
            capacity == expected || Some(capacity) == self.maybe,
            "{} has {capacity} sectors instead of {expected} (perhaps {:?})",
            self.name,
            self.maybe
        );
        if let Some(sectors) = self.maybe.take() {
            self.doubts[usize::from(capacity == sectors)] += 1;
        }
        self.sectors = capacity;
        load.resize(capacity);
        load.verify(&mut frontend).with_context(|| format!("{}, attached", self.name))?;
        frontend.set_writeback(!self.writethrough)?;
        let stop = Arc::new(AtomicBool::new(false));
        let known = Arc::clone(&load.known);
        let progress = Arc::clone(&load.progress);
        let until = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let outcome = load.run(&mut frontend, &until);
            (load, outcome)
        });
        self.running = Some(Running { stop, known, progress, thread });
        Ok(())
    }

    /// Ends the load and detaches the VHD, with requests in flight. Does nothing while none runs.
    ///
    /// # Errors
    /// What the load has found.
    pub fn detach(&mut self) -> Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.stop.store(true, Ordering::Relaxed);
        let (load, outcome) = running.thread.join().map_err(|_| anyhow!("the load on {} panicked", self.name))?;
        self.load = Some(load);
        outcome.with_context(|| format!("the load on {}", self.name))
    }

    /// Waits until the daemon has noticed that the VHD is detached.
    ///
    /// # Errors
    /// It does not.
    pub fn wait_detached(&self, pool: &Pool) -> Result<()> {
        let detached = || pool.json(&["vhd", "show", self.name]).ok()?.get("attached").is_none().then_some(());
        wait_for(&format!("{} is detached", self.name), LIMIT, detached)
    }

    /// The detached VHD has become smaller or larger: the size that it had.
    ///
    /// # Errors
    /// It is not detached.
    pub fn resized_detached(&mut self, sectors: u64) -> Result<u64> {
        self.load.as_mut().context("the guest runs")?.resize(sectors);
        Ok(std::mem::replace(&mut self.sectors, sectors))
    }

    /// Waits until the load works with as many sectors as the VHD has.
    ///
    /// # Errors
    /// Nobody tells it.
    pub fn wait_grown(&self) -> Result<()> {
        let running = self.running.as_ref().context("no load that could be told")?;
        let told = || (running.known.load(Ordering::Relaxed) == self.sectors || self.has_ended()).then_some(());
        wait_for(&format!("the load on {} hears of {} sectors", self.name, self.sectors), LIMIT, told)
    }

    /// Requests that have completed, while the load runs.
    #[must_use]
    pub fn progress(&self) -> Option<u64> {
        self.running.as_ref().map(|running| running.progress.load(Ordering::Relaxed))
    }

    /// Whether the load has ended by itself: it has found something wrong.
    #[must_use]
    pub fn has_ended(&self) -> bool {
        self.running.as_ref().is_some_and(|running| running.thread.is_finished())
    }

    /// The load, once it has ended.
    ///
    /// # Errors
    /// It runs, or was lost.
    pub fn load(&self) -> Result<&Load> {
        self.load.as_ref().context("the load is not here")
    }
}
