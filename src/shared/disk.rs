//! What everybody may know of an open host disk.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::failure::Failure;
use crate::base::ids::{DiskId, ReactorId};
use crate::base::limits::REACTORS_MAX;
use crate::metrics::{IoMetrics, IoMetricsSet, Work};
use crate::qos::Awaited;
use crate::qos::shares::Shares;

/// Number of a sync of one host disk, counted in the order in which they begin. 0 comes before the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SyncNumber(pub u64);

/// A promise to wait for: what was written is durable once sync `number` of `disk` (or a later one) has succeeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyncPoint {
    /// The host disk written to.
    pub disk: DiskId,
    /// The first sync that covers the write.
    pub number: SyncNumber,
}

/// What one thread has asked of a disk. On a cache line of its own: it changes with every operation.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Progress {
    in_flight: AtomicU32,
    done: AtomicU32,
}

impl Progress {
    /// One operation more in flight. By the one thread that it is of.
    pub fn begun(&self) {
        self.in_flight.store(self.in_flight.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }

    /// One of them has completed.
    pub fn completed(&self) {
        self.done.store(self.done.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        self.in_flight.store(self.in_flight.load(Ordering::Relaxed) - 1, Ordering::Relaxed);
    }

    /// Operations that have completed so far, modulo 2^32, if any are in flight.
    #[must_use]
    pub fn waiting_since(&self) -> Option<u32> {
        (self.in_flight.load(Ordering::Relaxed) > 0).then(|| self.done())
    }

    fn done(&self) -> u32 {
        self.done.load(Ordering::Relaxed)
    }
}

/// Sets of counters: disks live longer than a choice of how many reactors there are.
#[allow(clippy::cast_possible_truncation, reason = "at most 64")]
const REACTORS: u16 = REACTORS_MAX as u16;

/// The mover's number among those who submit to a disk that is shared out: after all reactors.
pub const MOVER_THREAD: usize = REACTORS_MAX;

/// Shared state of one host disk.
///
/// The rule that everything rests on: a write is covered by a sync only if the sync *began* after the write completed.
#[derive(Debug)]
pub struct DiskState {
    /// The disk.
    pub id: DiskId,
    /// Its name, for people.
    pub name: String,
    /// Byte offset of slot 0.
    pub data_offset: u64,
    /// Slots on the disk.
    pub slots: u32,
    /// Logical block size for O_DIRECT offsets and lengths, in bytes (512 or 4096).
    pub block_size: u32,
    /// Alignment that O_DIRECT asks of memory addresses, in bytes (`statx` `dio_mem_align`).
    pub memory_alignment: u32,
    /// What was done on it for guests, per reactor; a sync counts as a flush.
    pub metrics: IoMetricsSet,
    /// What the mover copied from it and to it.
    pub copy_metrics: IoMetrics,
    /// What the mover only read, to compare it.
    pub scrub_work: Work,
    /// What was done on it for the placement store and for labels.
    pub metadata_work: Arc<Work>,
    /// What each reactor has in flight.
    progress: Box<[Progress]>,
    /// What the mover has in flight.
    pub copying: Progress,
    /// How VHDs and jobs share it.
    pub shares: Shares,
    sync_begun: AtomicU64,
    sync_done: AtomicU64,
    failed: Arc<Failure>,
}

impl DiskState {
    /// A healthy disk with no sync begun.
    #[must_use]
    pub fn new(
        id: DiskId,
        name: String,
        data_offset: u64,
        slots: u32,
        block_size: u32,
        memory_alignment: u32,
    ) -> DiskState {
        DiskState {
            id,
            name,
            data_offset,
            slots,
            block_size,
            memory_alignment,
            metrics: IoMetricsSet::new(REACTORS),
            copy_metrics: IoMetrics::default(),
            scrub_work: Work::default(),
            metadata_work: Arc::default(),
            progress: (0..REACTORS_MAX).map(|_| Progress::default()).collect(),
            copying: Progress::default(),
            shares: Shares::new(MOVER_THREAD + 1),
            sync_begun: AtomicU64::new(0),
            sync_done: AtomicU64::new(0),
            failed: Arc::default(),
        }
    }

    /// Fails together with whatever else has the flag: see `disk::file::FileDisk::failed`.
    #[must_use]
    pub fn failing_with(mut self, failed: &Arc<Failure>) -> DiskState {
        self.failed = Arc::clone(failed);
        self
    }

    /// What is done for the placement store and for labels is counted there: see `disk::file::FileDisk::work`.
    #[must_use]
    pub fn with_metadata_work(mut self, work: &Arc<Work>) -> DiskState {
        self.metadata_work = Arc::clone(work);
        self
    }

    /// Guests leave room for what is awaited there besides their syncs: see `disk::file::FileDisk::awaited`.
    #[must_use]
    pub fn awaiting_with(mut self, awaited: &Arc<Awaited>) -> DiskState {
        self.shares.await_with(awaited);
        self
    }

    /// What a reactor has in flight.
    #[must_use]
    pub fn progress_of(&self, reactor: ReactorId) -> &Progress {
        &self.progress[usize::from(reactor.0)]
    }

    /// As [`Progress::waiting_since`], of what the mover has in flight, but counting what anybody has got from the disk.
    #[must_use]
    pub fn copying_waits_since(&self) -> Option<u32> {
        let all = || self.progress.iter().chain([&self.copying]).fold(0u32, |sum, of| sum.wrapping_add(of.done()));
        self.copying.waiting_since().map(|_| all())
    }

    /// Whether reactors or mover have something in flight, be it that nobody waits for it any more.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.progress.iter().chain([&self.copying]).any(|progress| progress.waiting_since().is_some())
    }

    /// Call when a write has completed: the sync it needs.
    #[must_use]
    pub fn sync_needed(&self) -> SyncPoint {
        SyncPoint { disk: self.id, number: SyncNumber(self.sync_begun.load(Ordering::SeqCst) + 1) }
    }

    /// Call before a sync is submitted: its number.
    #[must_use]
    pub fn begin_sync(&self) -> SyncNumber {
        SyncNumber(self.sync_begun.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Call when sync `number` has succeeded.
    pub fn sync_succeeded(&self, number: SyncNumber) {
        if !self.is_failed() {
            self.sync_done.fetch_max(number.0, Ordering::SeqCst);
        }
    }

    /// Whether everything that needed sync `number` is durable.
    #[must_use]
    pub fn is_synced(&self, number: SyncNumber) -> bool {
        self.sync_done.load(Ordering::SeqCst) >= number.0
    }

    /// Marks the disk failed, also for the next daemon. A failed sync does this and is never retried into success: the kernel may
    /// have dropped the dirty data.
    pub fn fail(&self) {
        self.failed.fail();
    }

    /// Whether the disk has failed: nothing more is submitted to it.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed.is_failed()
    }
}
