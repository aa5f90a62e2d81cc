//! How much work is done, for whoever spreads it: each counter is written by one thread and read by others.

use std::sync::atomic::{AtomicU64, Ordering};

/// A sum that one thread adds to. Has a cache line of its own, so that its writer waits for nobody.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Load(AtomicU64);

impl Load {
    /// Adds to the sum. Only the thread that it belongs to may.
    pub fn add(&self, by: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
    }

    /// The sum so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
