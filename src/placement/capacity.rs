//! How much room on host disks a VHD, or all VHDs of a VM together, may take at most (its quota), and how much it can always have,
//! whatever others take (its reservation).
//!
//! Both are raw: a VHD with two replicas takes two slots for each extent. How a reservation is kept: [`super::holds`].

use serde::{Deserialize, Serialize};

use super::record::{RecordError, impossible};

/// Quota and reservation of a VHD or a VM, in bytes of slots. Left out of records where neither is set, so that programs which know
/// neither read the pools that have none, and refuse the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Capacity {
    /// The most that may be placed; `None`: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quota: Option<u64>,
    /// What can always be placed; `None`: nothing is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reservation: Option<u64>,
}

impl Capacity {
    /// Whether neither is set.
    #[must_use]
    pub fn is_unset(&self) -> bool {
        *self == Capacity::default()
    }

    /// Both rounded up to whole extents.
    #[must_use]
    pub fn rounded(self, extent_size: u64) -> Capacity {
        let up =
            |bytes: u64| bytes.checked_next_multiple_of(extent_size).unwrap_or(u64::MAX / extent_size * extent_size);
        Capacity { quota: self.quota.map(up), reservation: self.reservation.map(up) }
    }

    /// Whether the reservation is beyond the quota: then it could not be used.
    #[must_use]
    pub fn contradicts_itself(&self) -> bool {
        self.quota.zip(self.reservation).is_some_and(|(quota, reservation)| reservation > quota)
    }

    /// Checks what the record of `subject` says.
    pub(super) fn check(&self, subject: &str) -> Result<(), RecordError> {
        if self.quota == Some(0) {
            return Err(impossible(subject, "quota", 0));
        }
        match self.reservation {
            Some(reservation) if reservation == 0 || self.contradicts_itself() => {
                Err(impossible(subject, "reservation", reservation))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_extents_are_rounded_up_and_nothing_overflows() {
        let of = |quota, reservation| Capacity { quota: Some(quota), reservation: Some(reservation) };
        assert_eq!(of(1, 8).rounded(8), of(8, 8));
        assert_eq!(of(9, 0).rounded(8), of(16, 0));
        assert_eq!(of(u64::MAX, 1).rounded(8), of(u64::MAX - 7, 8));
        assert_eq!(Capacity::default().rounded(8), Capacity::default());
    }

    #[test]
    fn records_have_no_zero_and_no_reservation_beyond_the_quota() {
        let of = |quota, reservation| Capacity { quota, reservation };
        for good in [of(None, None), of(Some(1), None), of(None, Some(1)), of(Some(2), Some(2))] {
            assert!(good.check("a").is_ok(), "{good:?}");
        }
        for bad in [of(Some(0), None), of(None, Some(0)), of(Some(1), Some(2))] {
            assert!(bad.check("a").is_err(), "{bad:?}");
        }
    }
}
