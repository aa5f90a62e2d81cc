//! What VHDs get of host disks that several of them want: weight, priority and latency target in the records of VHDs and VMs.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::base::limits::{LATENCY_TARGET_MAX_MICROS, LATENCY_TARGET_MIN_MICROS};
use crate::qos::{Priority, Share, Weight};

/// What a VHD asks of disks that others want, too; `None`: as its VM says. Of a VM: what its VHDs ask that say nothing themselves, each for
/// itself; `None`: weight 100, priority normal, no target.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sharing {
    /// How much it counts against others of its priority.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<u32>,
    /// Whether it goes before others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
    /// What 99 of 100 requests should take at most, in microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency_target_us: Option<u64>,
}

/// What changes of it; `None` leaves something as it is, `Some(None)` takes it away.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SharingChange {
    /// See [`Sharing`].
    pub weight: Option<Option<u32>>,
    /// See [`Sharing`].
    pub priority: Option<Option<Priority>>,
    /// See [`Sharing`].
    pub latency_target_us: Option<Option<u64>>,
}

/// What holds for a VHD, with all that it does not say itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Settled {
    /// See [`Sharing`].
    pub weight: Weight,
    /// See [`Sharing`].
    pub priority: Priority,
    /// See [`Sharing`].
    pub latency_target_us: Option<u64>,
}

/// Why nothing can be shared out that way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SharingError {
    /// No weight.
    #[error("{asked} is no weight: give {} to {}; who gives none has {}", Weight::MIN.get(), Weight::MAX.get(), Weight::DEFAULT.get())]
    Weight {
        /// What was asked for.
        asked: u32,
    },
    /// No disk is that fast, or nobody would wait for that long.
    #[error(
        "a latency target of {asked} us is none: give {LATENCY_TARGET_MIN_MICROS} us to {} s, and more than the disk takes when nobody \
         else wants it",
        LATENCY_TARGET_MAX_MICROS / 1_000_000
    )]
    LatencyTarget {
        /// What was asked for, in microseconds.
        asked: u64,
    },
}

impl Sharing {
    /// Whether nothing is said.
    #[must_use]
    pub fn is_none(&self) -> bool {
        *self == Sharing::default()
    }

    /// Whether disks can be shared out that way.
    ///
    /// # Errors
    /// If not.
    pub fn check(&self) -> Result<(), SharingError> {
        if let Some(asked) = self.weight
            && Weight::new(asked).is_none()
        {
            return Err(SharingError::Weight { asked });
        }
        match self.latency_target_us {
            Some(asked) if !(LATENCY_TARGET_MIN_MICROS..=LATENCY_TARGET_MAX_MICROS).contains(&asked) => {
                Err(SharingError::LatencyTarget { asked })
            }
            _ => Ok(()),
        }
    }

    /// This, with what changes.
    #[must_use]
    pub fn with(self, change: SharingChange) -> Sharing {
        Sharing {
            weight: change.weight.unwrap_or(self.weight),
            priority: change.priority.unwrap_or(self.priority),
            latency_target_us: change.latency_target_us.unwrap_or(self.latency_target_us),
        }
    }

    /// What holds for a VHD that says this, in a VM that says `vm`.
    #[must_use]
    pub fn settled(self, vm: Sharing) -> Settled {
        Settled {
            weight: self.weight.or(vm.weight).and_then(Weight::new).unwrap_or_default(),
            priority: self.priority.or(vm.priority).unwrap_or_default(),
            latency_target_us: self.latency_target_us.or(vm.latency_target_us),
        }
    }
}

impl Settled {
    /// Its part of disks.
    #[must_use]
    pub fn share(&self) -> Share {
        Share::new(self.weight, self.priority)
    }

    /// The target in nanoseconds.
    #[must_use]
    pub fn target_ns(&self) -> Option<u64> {
        self.latency_target_us.map(|micros| micros.saturating_mul(1000))
    }
}

impl fmt::Display for Sharing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let weight = self.weight.map(|weight| format!("weight {weight}"));
        let priority = self.priority.map(|priority| format!("priority {}", priority.word()));
        let target = self.latency_target_us.map(|micros| format!("latency target {micros} us"));
        let texts: Vec<String> = [weight, priority, target].into_iter().flatten().collect();
        f.write_str(if texts.is_empty() { "nothing of its own".to_owned() } else { texts.join(", ") }.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weight(weight: u32) -> Sharing {
        Sharing { weight: Some(weight), ..Sharing::default() }
    }

    fn target(micros: u64) -> Sharing {
        Sharing { latency_target_us: Some(micros), ..Sharing::default() }
    }

    #[test]
    fn what_a_vhd_does_not_say_its_vm_does() {
        assert_eq!(Sharing::default().settled(Sharing::default()), Settled::default());
        assert_eq!(Settled::default().share(), Share::default());
        let vm = Sharing { priority: Some(Priority::High), latency_target_us: Some(2000), ..weight(300) };
        let vhd = Sharing { priority: Some(Priority::Low), ..Sharing::default() };
        let settled = vhd.settled(vm);
        assert_eq!(settled.share(), Share::new(Weight::new(300).unwrap(), Priority::Low));
        assert_eq!(settled.target_ns(), Some(2_000_000));
        assert_eq!(weight(7).settled(vm).weight.get(), 7);
    }

    #[test]
    fn weights_and_targets_have_bounds() {
        for fine in [weight(1), weight(10_000), target(LATENCY_TARGET_MIN_MICROS), target(LATENCY_TARGET_MAX_MICROS)] {
            assert_eq!(fine.check(), Ok(()));
        }
        for wrong in [weight(0), weight(10_001), target(0), target(LATENCY_TARGET_MAX_MICROS + 1)] {
            assert!(wrong.check().is_err(), "{wrong}");
        }
        assert_eq!(
            weight(0).check().unwrap_err().to_string(),
            "0 is no weight: give 1 to 10000; who gives none has 100"
        );
    }

    #[test]
    fn what_is_not_given_stays() {
        let both = Sharing { latency_target_us: Some(500), ..weight(5) };
        assert_eq!(both.with(SharingChange::default()), both);
        let change = SharingChange { weight: Some(None), ..SharingChange::default() };
        assert_eq!(both.with(change), target(500));
    }
}
