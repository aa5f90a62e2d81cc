//! What somebody waits for on a disk that takes no turns there: syncs, and what is read and written for the placement store and for labels.
//!
//! A FLUSH is a sync and then a commit, which is a row of reads, writes and syncs, one after the other. Each would wait in the disk's own
//! queue behind all that others have there, and cannot take turns: the store must never wait for guests. So it is the others that
//! leave it room, for as long as it lasts: see [`Shares::begin`](super::shares::Shares::begin).

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// What is under way of that, on one disk.
#[derive(Debug, Default)]
#[repr(align(64))]
pub struct Awaited {
    under_way: AtomicU32,
    /// There was some since somebody asked.
    lately: AtomicBool,
}

impl Awaited {
    /// Something begins, which [`Awaited::end`] is to be told of.
    pub fn begin(&self) {
        self.under_way.fetch_add(1, Ordering::SeqCst);
        self.lately.store(true, Ordering::SeqCst);
    }

    /// It has ended, one way or another.
    pub fn end(&self) {
        self.under_way.fetch_sub(1, Ordering::SeqCst);
    }

    /// As [`Awaited::begin`], until the result is dropped.
    #[must_use]
    pub fn under_way(&self) -> UnderWay<'_> {
        self.begin();
        UnderWay(self)
    }

    /// Whether something is under way.
    #[must_use]
    pub fn is_under_way(&self) -> bool {
        self.under_way.load(Ordering::Relaxed) > 0
    }

    /// Whether something was under way since the last call.
    pub fn take_lately(&self) -> bool {
        self.lately.swap(false, Ordering::SeqCst) || self.is_under_way()
    }
}

/// Something is under way.
#[derive(Debug)]
pub struct UnderWay<'a>(&'a Awaited);

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_for_as_long_as_it_lasts_and_once_more() {
        let awaited = Awaited::default();
        assert!(!awaited.is_under_way() && !awaited.take_lately());
        let under_way = awaited.under_way();
        assert!(awaited.is_under_way() && awaited.take_lately() && awaited.take_lately());
        drop(under_way);
        assert!(!awaited.is_under_way() && !awaited.take_lately());
        drop(awaited.under_way());
        assert!(awaited.take_lately(), "it was too short to be seen");
        assert!(!awaited.take_lately());
    }
}
