//! Limits of rates in the records of VHDs and VMs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::limits::{BYTES_BURST_MAX, BYTES_LIMIT_MAX, IOPS_BURST_MAX, IOPS_LIMIT_MAX};
use crate::qos::{Rate, Rates};

/// The burst of who does not say is what its rate gives in this part of a second.
const BURST_PART: u64 = 10;

/// Nor is it less than this many requests: one that starts, and one that has become possible before the reactor is awake.
const IOPS_BURST_LEAST: u64 = 2;

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// In every second.
    pub per_sec: u64,
    /// At once, after a pause; `None`: what 100 ms bring.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst: Option<u64>,
}

/// What a VHD, or a VM with all its VHDs together, is limited to; `None`: as much as there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IoLimits {
    /// Requests: reads, writes, discards and write-zeroes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<RateLimit>,
    /// Bytes read and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<RateLimit>,
}

/// Other limits; `None` leaves one as it is, `Some(None)` takes it away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IoLimitsChange {
    /// See [`IoLimits`].
    pub iops: Option<Option<RateLimit>>,
    /// See [`IoLimits`].
    pub bytes: Option<Option<RateLimit>>,
}

/// Why there cannot be such a limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// Nothing could ever be done.
    #[error("a limit of 0 {what} a second would let nothing start: give 1 or more, or 'none' for no limit")]
    Zero {
        /// "requests" or "bytes".
        what: &'static str,
    },
    /// More than there can be.
    #[error("a limit of {asked} {what} a second is none: give at most {most}, or 'none' for no limit")]
    TooHigh {
        /// See [`LimitError::Zero`].
        what: &'static str,
        /// What was asked for.
        asked: u64,
        /// The highest.
        most: u64,
    },
    /// Nothing could ever start.
    #[error(
        "a burst of 0 {what} would let nothing start: give 1 or more, or no burst for what the limit brings in 100 ms"
    )]
    BurstZero {
        /// See [`LimitError::Zero`].
        what: &'static str,
    },
    /// More than there can be.
    #[error(
        "a burst of {asked} {what} is too large: give at most {most}, or no burst for what the limit brings in 100 ms"
    )]
    BurstTooHigh {
        /// See [`LimitError::Zero`].
        what: &'static str,
        /// What was asked for.
        asked: u64,
        /// The largest.
        most: u64,
    },
}

impl RateLimit {
    fn check(self, what: &'static str, most: u64, burst_most: u64) -> Result<(), LimitError> {
        match (self.per_sec, self.burst) {
            (0, _) => Err(LimitError::Zero { what }),
            (_, Some(0)) => Err(LimitError::BurstZero { what }),
            (asked, _) if asked > most => Err(LimitError::TooHigh { what, asked, most }),
            (_, Some(asked)) if asked > burst_most => Err(LimitError::BurstTooHigh { what, asked, most: burst_most }),
            _ => Ok(()),
        }
    }

    fn rate(self, least: u64) -> Rate {
        Rate { per_sec: self.per_sec, burst: self.burst.unwrap_or((self.per_sec / BURST_PART).max(least)) }
    }
}

impl IoLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == IoLimits::default()
    }

    /// Whether there can be such limits.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self) -> Result<(), LimitError> {
        self.iops.map_or(Ok(()), |limit| limit.check("requests", IOPS_LIMIT_MAX, IOPS_BURST_MAX))?;
        self.bytes.map_or(Ok(()), |limit| limit.check("bytes", BYTES_LIMIT_MAX, BYTES_BURST_MAX))
    }

    /// The rates, with bursts for those that do not say.
    #[must_use]
    pub fn rates(&self) -> Rates {
        Rates {
            iops: self.iops.map(|limit| limit.rate(IOPS_BURST_LEAST)),
            bytes: self.bytes.map(|limit| limit.rate(1)),
        }
    }

    /// These, with what changes.
    #[must_use]
    pub fn with(self, change: IoLimitsChange) -> IoLimits {
        IoLimits { iops: change.iops.unwrap_or(self.iops), bytes: change.bytes.unwrap_or(self.bytes) }
    }
}

impl fmt::Display for IoLimits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |rate: Option<Rate>, what: &str| {
            rate.map(|Rate { per_sec, burst }| format!("{per_sec} {what} a second (burst {burst})"))
        };
        let Rates { iops, bytes } = self.rates();
        let texts: Vec<String> = [text(iops, "requests"), text(bytes, "bytes")].into_iter().flatten().collect();
        f.write_str(if texts.is_empty() { "none".to_owned() } else { texts.join(", ") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn iops(per_sec: u64, burst: Option<u64>) -> IoLimits {
        IoLimits { iops: Some(RateLimit { per_sec, burst }), bytes: None }
    }

    #[test]
    fn a_burst_that_is_not_given_is_a_tenth_of_a_second() {
        let burst = |limits: IoLimits| limits.rates().iops.unwrap().burst;
        assert_eq!([1, 10, 50, 500_000].map(|per_sec| burst(iops(per_sec, None))), [2, 2, 5, 50_000]);
        assert_eq!(burst(iops(500, Some(1))), 1);
        let bytes = IoLimits { iops: None, bytes: Some(RateLimit { per_sec: 4096, burst: None }) };
        assert_eq!(bytes.rates().bytes, Some(Rate { per_sec: 4096, burst: 409 }));
        assert_eq!(bytes.to_string(), "4096 bytes a second (burst 409)");
        assert_eq!(IoLimits::default().to_string(), "none");
    }

    #[test]
    fn limits_that_let_nothing_start_are_refused() {
        assert_eq!(iops(1, Some(1)).check(), Ok(()));
        assert_eq!(iops(IOPS_LIMIT_MAX, Some(IOPS_BURST_MAX)).check(), Ok(()));
        for (per_sec, burst) in [(0, None), (1, Some(0)), (IOPS_LIMIT_MAX + 1, None), (1, Some(IOPS_BURST_MAX + 1))] {
            assert!(iops(per_sec, burst).check().is_err(), "{per_sec} {burst:?}");
        }
    }

    #[test]
    fn what_is_not_given_stays() {
        let limit = Some(RateLimit { per_sec: 5, burst: None });
        let both = IoLimits { iops: limit, bytes: limit };
        assert_eq!(both.with(IoLimitsChange::default()), both);
        let change = IoLimitsChange { iops: Some(None), bytes: None };
        assert_eq!(both.with(change), IoLimits { iops: None, bytes: limit });
    }
}
