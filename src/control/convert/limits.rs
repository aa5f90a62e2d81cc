//! Limits of rates.

use crate::control::wire::{IoLimits, IoLimitsUpdate, RateLimit};
use crate::placement::limits;
use crate::qos::{Rate, Rates};

/// What a request limits.
#[must_use]
pub fn io_limits(limits: IoLimits) -> limits::IoLimits {
    limits::IoLimits { iops: limits.iops.map(Into::into), bytes: limits.bytes.map(Into::into) }
}

/// What a request changes.
#[must_use]
pub fn limits_change(update: IoLimitsUpdate) -> limits::IoLimitsChange {
    let change = |limit: Option<Option<RateLimit>>| limit.map(|limit| limit.map(Into::into));
    limits::IoLimitsChange { iops: change(update.iops), bytes: change(update.bytes) }
}

/// Limits as the API shows them, each with its burst.
#[must_use]
pub fn limits_info(limits: limits::IoLimits) -> IoLimits {
    let info = |Rate { per_sec, burst }| RateLimit { per_sec, burst: Some(burst) };
    let Rates { iops, bytes } = limits.rates();
    IoLimits { iops: iops.map(info), bytes: bytes.map(info) }
}

impl From<RateLimit> for limits::RateLimit {
    fn from(RateLimit { per_sec, burst }: RateLimit) -> limits::RateLimit {
        limits::RateLimit { per_sec, burst }
    }
}
