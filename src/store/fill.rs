//! How full a member is, and when no new extent may be placed.
//!
//! `redb` can count its pages only by walking through all of them, so it is asked now and then, and in between the growth
//! of rows is added up, generously.

/// Of the space of a member, this many 64ths stay free of new extents: for copy-on-write of the largest commit, for
/// freeing and deleting, and for what the estimate may miss.
const RESERVE_64THS: u64 = 13;

/// Rows that grow by one byte take this many bytes of pages, at most and in the long run (in halves): pages are split in
/// two when they are full.
const GROWTH_HALVES: u64 = 5;

/// How full a member is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fill {
    /// Bytes in use.
    pub used: u64,
    /// Bytes there are.
    pub capacity: u64,
}

impl Fill {
    /// Whether no new extent may be placed. Commits of what is placed already go on.
    #[must_use]
    pub fn is_low(self) -> bool {
        self.used > self.capacity - self.capacity / 64 * RESERVE_64THS
    }

    /// The fuller of two, relative to what there is.
    #[must_use]
    pub fn or_fuller(self, other: Fill) -> Fill {
        let weight = |fill: Fill, by: Fill| u128::from(fill.used) * u128::from(by.capacity);
        if self.capacity == 0 || weight(other, self) > weight(self, other) { other } else { self }
    }
}

/// Keeps count for one member.
#[derive(Clone, Copy, Debug)]
pub(super) struct FillEstimate {
    capacity: u64,
    measured: u64,
    grown_since: u64,
}

impl FillEstimate {
    pub(super) fn new(capacity: u64) -> FillEstimate {
        FillEstimate { capacity, measured: 0, grown_since: 0 }
    }

    /// Rows grew by `bytes` in all.
    pub(super) fn grew(&mut self, bytes: u64) {
        self.grown_since += bytes * GROWTH_HALVES / 2;
    }

    /// Whether it is time to measure.
    pub(super) fn is_stale(&self) -> bool {
        self.grown_since > self.capacity / 32
    }

    /// The database was asked.
    pub(super) fn measured(&mut self, used: u64) {
        (self.measured, self.grown_since) = (used, 0);
    }

    pub(super) fn now(&self) -> Fill {
        Fill { used: (self.measured + self.grown_since).min(self.capacity), capacity: self.capacity }
    }
}
