//! What VHDs get of host disks that several of them want.

use crate::control::wire::{Sharing, SharingInEffect, SharingPriority, SharingUpdate};
use crate::placement::sharing;
use crate::qos::Priority;

/// What a request asks.
#[must_use]
pub fn sharing_record(asked: Sharing) -> sharing::Sharing {
    sharing::Sharing {
        weight: asked.weight,
        priority: asked.priority.map(Into::into),
        latency_target_us: asked.latency_target_us,
    }
}

/// What a request changes.
#[must_use]
pub fn sharing_change(update: SharingUpdate) -> sharing::SharingChange {
    sharing::SharingChange {
        weight: update.weight,
        priority: update.priority.map(|priority| priority.map(Into::into)),
        latency_target_us: update.latency_target_us,
    }
}

/// What a record says, as the API shows it.
#[must_use]
pub fn sharing_info(says: sharing::Sharing) -> Sharing {
    Sharing { weight: says.weight, priority: says.priority.map(Into::into), latency_target_us: says.latency_target_us }
}

/// What holds, as the API shows it.
#[must_use]
pub fn sharing_in_effect(settled: sharing::Settled) -> SharingInEffect {
    SharingInEffect {
        weight: settled.weight.get(),
        priority: settled.priority.into(),
        latency_target_us: settled.latency_target_us,
    }
}

impl From<SharingPriority> for Priority {
    fn from(priority: SharingPriority) -> Priority {
        match priority {
            SharingPriority::High => Priority::High,
            SharingPriority::Normal => Priority::Normal,
            SharingPriority::Low => Priority::Low,
        }
    }
}

impl From<Priority> for SharingPriority {
    fn from(priority: Priority) -> SharingPriority {
        match priority {
            Priority::High => SharingPriority::High,
            Priority::Normal => SharingPriority::Normal,
            Priority::Low => SharingPriority::Low,
        }
    }
}
