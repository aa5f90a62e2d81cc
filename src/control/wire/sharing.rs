//! What VHDs get of host disks that several of them want.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::vhd::given;
use crate::qos::Weight;

/// Whose requests go first. Each counts ten times as much as the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SharingPriority {
    /// Goes first.
    High,
    /// What VHDs have that say nothing.
    #[default]
    Normal,
    /// Goes behind, as jobs do.
    Low,
}

/// What a VHD asks of host disks that others want at the same time. Of a VM: what each of its VHDs asks that says nothing itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Sharing {
    /// How much it counts against others of its priority: 1 to 10000. Its VM's when absent, or else 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 1, maximum = 10000)]
    pub weight: Option<u32>,
    /// Its VM's when absent, or else normal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<SharingPriority>,
    /// What 99 of 100 requests should take at most, in microseconds, from being taken off the virtqueue to being done: the disk is used less
    /// than it could be if that is what it takes. Its VM's when absent, or else none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(minimum = 50, maximum = 10000000)]
    pub latency_target_us: Option<u64>,
}

impl Sharing {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Sharing::default()
    }
}

/// What holds for a VHD, with what it has from its VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SharingInEffect {
    /// How much it counts against others of its priority.
    pub weight: u32,
    /// Whose requests go first.
    pub priority: SharingPriority,
    /// What 99 of 100 requests should take at most, in microseconds; absent: nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_target_us: Option<u64>,
}

impl Default for SharingInEffect {
    fn default() -> SharingInEffect {
        SharingInEffect { weight: Weight::DEFAULT.get(), priority: SharingPriority::default(), latency_target_us: None }
    }
}

/// Changes what is asked of host disks, at once. What is absent stays as it is; `null` takes it away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SharingUpdate {
    /// See `Sharing`.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 10000)]
    pub weight: Option<Option<u32>>,
    /// See `Sharing`.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<SharingPriority>)]
    pub priority: Option<Option<SharingPriority>>,
    /// See `Sharing`.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<u64>, minimum = 50, maximum = 10000000)]
    pub latency_target_us: Option<Option<u64>>,
}

impl SharingUpdate {
    /// Whether nothing changes.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == SharingUpdate::default()
    }
}
