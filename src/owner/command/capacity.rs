//! Quotas and reservations.

use crate::placement::capacity::Capacity;

/// A new quota or reservation; `None` leaves it as it is, `Some(None)`: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SetCapacity {
    /// Bytes of slots that may be placed at most; rounded up to whole extents.
    pub quota: Option<Option<u64>>,
    /// Bytes of slots that can always be placed; rounded up to whole extents.
    pub reservation: Option<Option<u64>>,
}

impl SetCapacity {
    /// To exactly this.
    #[must_use]
    pub fn to(capacity: Capacity) -> SetCapacity {
        SetCapacity { quota: Some(capacity.quota), reservation: Some(capacity.reservation) }
    }

    /// What there is once this is set.
    #[must_use]
    pub fn of(self, before: Capacity, extent_size: u64) -> Capacity {
        let quota = self.quota.unwrap_or(before.quota);
        let reservation = self.reservation.unwrap_or(before.reservation);
        Capacity { quota, reservation }.rounded(extent_size)
    }
}

/// What became of a quota and a reservation, in bytes of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CapacityUse {
    /// What counts against the quota: extents that have a place, or of a thick VHD all, times the replicas that they should have; more
    /// while there are more.
    pub charged: u64,
    /// What is kept free for the part of the reservation that is not used.
    pub held: u64,
    /// What should be kept free as well, and there is no room for.
    pub short: u64,
}
