//! What the daemon does on a host disk for itself, apart from what guests ask.

use std::sync::atomic::{AtomicU64, Ordering};

/// Transfers of one kind of work. Whoever does it adds to them.
#[derive(Debug, Default)]
pub struct Work {
    /// Reads that succeeded.
    pub reads: AtomicU64,
    /// Their bytes.
    pub read_bytes: AtomicU64,
    /// Writes that succeeded.
    pub writes: AtomicU64,
    /// Their bytes.
    pub written_bytes: AtomicU64,
    /// Syncs that succeeded.
    pub syncs: AtomicU64,
}

impl Work {
    /// So much has been read.
    pub fn read(&self, bytes: u64) {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.read_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So much has been written.
    pub fn written(&self, bytes: u64) {
        self.writes.fetch_add(1, Ordering::Relaxed);
        self.written_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// A sync has succeeded.
    pub fn synced(&self) {
        self.syncs.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes read and written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.read_bytes.load(Ordering::Relaxed) + self.written_bytes.load(Ordering::Relaxed)
    }
}
