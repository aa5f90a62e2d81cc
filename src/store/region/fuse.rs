//! Cutting a region off from its disk.

use std::sync::atomic::{AtomicBool, Ordering};

/// What outsiders share with the holder of a region, whatever happens to the database in it.
#[derive(Debug, Default)]
pub struct Fuse {
    cut: AtomicBool,
    sync_failed: AtomicBool,
}

impl Fuse {
    /// From here on nothing reaches the disk any more: a member that was given up must not write later.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::SeqCst);
    }

    /// Whether a sync of the disk failed here. The kernel tells so only once, so whoever else writes to the disk must be told.
    #[must_use]
    pub fn sync_failed(&self) -> bool {
        self.sync_failed.load(Ordering::Acquire)
    }

    pub(super) fn is_cut(&self) -> bool {
        self.cut.load(Ordering::SeqCst)
    }

    pub(super) fn note_failed_sync(&self) {
        self.sync_failed.store(true, Ordering::Release);
    }
}
