//! Simulated host disks that can lose power at any point.
//!
//! A [`SimTrace`] owns any number of [`SimDisk`]s and keeps one totally ordered log of what happened to all of them. A crash
//! test runs its workload once and then asks, for every cut `0..=trace.len()`, for the disks as they may be found if the
//! power failed there:
//!
//! * Content is tracked per 512-byte sector. A sector written since the last sync that covers it may hold, after the cut,
//!   its old content or *any* version written since; each sector is decided for itself, so writes tear.
//! * A sync covers a write only if the write *ended before the sync began*. Writes and syncs are begin/end pairs, so an
//!   asynchronous engine can overlap them. A write in flight at the cut counts as written and not synced.
//! * A failed sync loses what it should have covered: the writes stay visible, and no later sync makes them durable.
//! * Of two writes in flight to one sector, the one that ends last wins (a real disk may do it the other way round).
//!
//! Not modelled: sectors that become unreadable, sectors with bytes of both old and new content, writes that land elsewhere.

mod disk;
mod fault;
mod model;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use crate::base::units::SECTOR_SIZE;
pub use disk::SimDisk;
use fault::FaultPlan;
pub use fault::{Fault, FaultKind, OpCounts, OpKind};
use model::{DiskIndex, Event, Model, SECTOR, Survival};
pub use model::{OpId, PUNCHED};

/// The seed of [`SimTrace::crash_images`] that keeps only what was synced.
pub const SEED_OLDEST: u64 = 0;

/// The seed of [`SimTrace::crash_images`] that keeps everything, also what was in flight.
pub const SEED_NEWEST: u64 = 1;

#[derive(Clone, Debug)]
struct Spec {
    size: u64,
    block_size: u32,
}

#[derive(Debug, Default)]
struct State {
    specs: Vec<Spec>,
    /// Now.
    model: Model,
    /// Where the log starts.
    start: Model,
    log: Vec<Event>,
    next_op: u64,
    faults: Vec<FaultPlan>,
    paused: Vec<bool>,
    /// How long each sync takes.
    slow: Vec<std::time::Duration>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    resumed: Condvar,
}

/// The common history of several simulated disks. Cheap to clone; clones are the same trace.
#[derive(Clone, Debug, Default)]
pub struct SimTrace {
    shared: Arc<Shared>,
}

impl SimTrace {
    /// A trace without disks.
    #[must_use]
    pub fn new() -> SimTrace {
        SimTrace::default()
    }

    /// Adds a disk full of zeros.
    ///
    /// # Panics
    /// Unless `block_size` is 512 or 4096 and divides `size`.
    #[must_use]
    pub fn add_disk(&self, size: u64, block_size: u32) -> SimDisk {
        assert!(matches!(block_size, 512 | 4096), "a block size of 512 or 4096");
        assert!(size.is_multiple_of(u64::from(block_size)), "a size of whole blocks");
        let mut state = self.lock();
        state.model.disks.push(model::DiskModel::default());
        state.start.disks.push(model::DiskModel::default());
        self.push_disk(&mut state, Spec { size, block_size })
    }

    fn push_disk(&self, state: &mut State, spec: Spec) -> SimDisk {
        state.specs.push(spec.clone());
        state.faults.push(FaultPlan::default());
        state.paused.push(false);
        state.slow.push(std::time::Duration::ZERO);
        SimDisk::new_on(self.clone(), state.specs.len() - 1, spec)
    }

    /// Steps recorded so far: the last cut for [`SimTrace::crash_images`].
    #[must_use]
    pub fn len(&self) -> usize {
        self.lock().log.len()
    }

    /// Whether nothing is recorded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Forgets the log so far, so that cut 0 means now. What was written stays unsynced.
    pub fn restart(&self) {
        let mut state = self.lock();
        state.log.clear();
        state.start = state.model.clone();
    }

    /// The disks (in the order of [`SimTrace::add_disk`], on a trace of their own) as they may be found after a power cut
    /// between step `cut - 1` and step `cut`.
    ///
    /// `seed` chooses what survives of the unsynced sectors: [`SEED_OLDEST`], [`SEED_NEWEST`], anything else is random.
    ///
    /// # Panics
    /// If `cut` is greater than [`SimTrace::len`].
    #[must_use]
    pub fn crash_images(&self, cut: usize, seed: u64) -> Vec<SimDisk> {
        let mut replay = self.replay();
        replay.advance_to(cut);
        replay.crash_images(seed)
    }

    /// The disks as they may be found after a power cut now; needs no replay.
    #[must_use]
    pub fn crash_now(&self, seed: u64) -> Vec<SimDisk> {
        let state = self.lock();
        crashed(&state.model, &state.specs, seed)
    }

    /// The log so far, to walk through every cut in order without starting over each time.
    #[must_use]
    pub fn replay(&self) -> Replay {
        let state = self.lock();
        Replay { specs: state.specs.clone(), model: state.start.clone(), log: state.log.clone(), done: 0 }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock().expect("no panic while the trace is locked")
    }
}

/// A recorded log being replayed, see [`SimTrace::replay`].
#[derive(Debug)]
pub struct Replay {
    specs: Vec<Spec>,
    model: Model,
    log: Vec<Event>,
    done: usize,
}

impl Replay {
    /// Steps in the log.
    #[must_use]
    pub fn len(&self) -> usize {
        self.log.len()
    }

    /// Whether the log has no step.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.log.is_empty()
    }

    /// Goes forward to just before step `cut`.
    ///
    /// # Panics
    /// If `cut` lies behind, or past the end.
    pub fn advance_to(&mut self, cut: usize) {
        assert!(cut >= self.done && cut <= self.log.len(), "cut {cut} of {}, {} done", self.log.len(), self.done);
        for event in &self.log[self.done..cut] {
            self.model.apply(event);
        }
        self.done = cut;
    }

    /// As [`SimTrace::crash_images`], at the current cut.
    #[must_use]
    pub fn crash_images(&self, seed: u64) -> Vec<SimDisk> {
        crashed(&self.model, &self.specs, seed)
    }

    /// Number of sectors (over all disks) whose content after a cut here is not decided. With 0, all seeds give the same.
    #[must_use]
    pub fn undecided_sectors(&self) -> usize {
        self.model.disks.iter().map(model::DiskModel::undecided).sum()
    }
}

fn crashed(model: &Model, specs: &[Spec], seed: u64) -> Vec<SimDisk> {
    let mut survival = Survival::from_seed(seed);
    let trace = SimTrace::new();
    let mut state = trace.lock();
    state.model.disks = model.disks.iter().map(|disk| disk.after_crash(&mut survival)).collect();
    state.start = state.model.clone();
    let disks = specs.iter().map(|spec| trace.push_disk(&mut state, spec.clone())).collect();
    drop(state);
    disks
}

impl State {
    fn record(&mut self, event: Event) {
        self.model.apply(&event);
        self.log.push(event);
    }

    fn new_op(&mut self) -> OpId {
        self.next_op += 1;
        OpId(self.next_op)
    }

    fn read(&self, disk: DiskIndex, offset: u64, into: &mut [u8]) {
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let skip = usize::try_from(at % SECTOR_SIZE).expect("less than a sector");
            let (now, later) = rest.split_at_mut(rest.len().min(SECTOR - skip));
            match self.model.disks[disk].visible(at / SECTOR_SIZE) {
                Some(bytes) => now.copy_from_slice(&bytes[skip..skip + now.len()]),
                None => now.fill(0),
            }
            at += now.len() as u64;
            rest = later;
        }
    }
}
