//! Limits of rates, of VHDs and VMs.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::vhd::given;

/// A limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    /// In every second; at least 1.
    #[schema(minimum = 1)]
    pub per_sec: u64,
    /// At once, after a pause; at least 1. What the limit brings in 100 ms when absent, but no less than two requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1)]
    pub burst: Option<u64>,
}

/// What a VHD, or a VM with all its VHDs together, is limited to. What is absent has no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IoLimits {
    /// Requests: reads, writes, discards and write-zeroes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iops: Option<RateLimit>,
    /// Bytes read and written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<RateLimit>,
}

impl IoLimits {
    /// Whether nothing is limited.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == IoLimits::default()
    }
}

/// Changes limits, at once. What is absent stays as it is; `null` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct IoLimitsUpdate {
    /// Requests: reads, writes, discards and write-zeroes.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<RateLimit>)]
    pub iops: Option<Option<RateLimit>>,
    /// Bytes read and written.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<RateLimit>)]
    pub bytes: Option<Option<RateLimit>>,
}

impl IoLimitsUpdate {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == IoLimitsUpdate::default()
    }
}
