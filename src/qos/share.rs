//! What part of a host disk somebody gets whenever others want it, too.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

/// How much counts against others of the same priority.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Weight(u32);

impl Weight {
    /// The least.
    pub const MIN: Weight = Weight(1);
    /// Of who asked for nothing.
    pub const DEFAULT: Weight = Weight(100);
    /// The most.
    pub const MAX: Weight = Weight(10_000);

    /// A weight from [`Weight::MIN`] to [`Weight::MAX`]; `None` if it is not.
    #[must_use]
    pub fn new(weight: u32) -> Option<Weight> {
        (Weight::MIN..=Weight::MAX).contains(&Weight(weight)).then_some(Weight(weight))
    }

    /// The number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Weight {
        Weight::DEFAULT
    }
}

/// Whose requests go first. Each counts ten times as much as the next one: nobody has to wait until the others want nothing any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Priority {
    /// Goes behind; jobs have it.
    Low,
    /// Of who asked for nothing.
    #[default]
    Normal,
    /// Goes first.
    High,
}

impl Priority {
    /// The word of the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Priority::Low => "low",
            Priority::Normal => "normal",
            Priority::High => "high",
        }
    }

    /// What it multiplies a weight by.
    fn factor(self) -> u32 {
        match self {
            Priority::Low => 1,
            Priority::Normal => 10,
            Priority::High => 100,
        }
    }
}

/// Weight and priority together: among those that want the same disk, each gets as much of it as its number is of the sum of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Share(u32);

impl Share {
    /// Of jobs: what is left, and a tenth of what a VHD gets that asked for nothing, so that they end.
    pub const BACKGROUND: Share = Share(Weight::DEFAULT.0);

    /// Of this weight and priority.
    #[must_use]
    pub fn new(weight: Weight, priority: Priority) -> Share {
        Share(weight.0 * priority.factor())
    }

    /// The number; never 0.
    #[must_use]
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Share {
    fn default() -> Share {
        Share::new(Weight::default(), Priority::default())
    }
}

/// A share, and a latency target, that may become other ones at any time.
#[derive(Debug)]
pub struct CurrentShare {
    share: AtomicU32,
    /// In nanoseconds; the largest number: none.
    target_ns: AtomicU64,
}

impl CurrentShare {
    /// What it is now.
    #[must_use]
    pub fn get(&self) -> Share {
        Share(self.share.load(Ordering::Relaxed))
    }

    /// Another one. Whoever waits already keeps the turn that it has.
    pub fn set(&self, share: Share, target_ns: Option<u64>) {
        self.share.store(share.0, Ordering::Relaxed);
        self.target_ns.store(target_ns.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether there is a latency target.
    #[must_use]
    pub fn has_target(&self) -> bool {
        self.target_ns.load(Ordering::Relaxed) != u64::MAX
    }

    /// Whether so much is more than the latency target; never without one.
    #[must_use]
    pub fn is_late(&self, latency_ns: u64) -> bool {
        latency_ns > self.target_ns.load(Ordering::Relaxed)
    }
}

impl Default for CurrentShare {
    fn default() -> CurrentShare {
        CurrentShare { share: AtomicU32::new(Share::default().0), target_ns: AtomicU64::new(u64::MAX) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_priority_counts_ten_times_the_next_one() {
        let of = |weight, priority| Share::new(Weight::new(weight).unwrap(), priority).get();
        assert_eq!(of(70, Priority::High), 10 * of(70, Priority::Normal));
        assert_eq!(of(70, Priority::Normal), 10 * of(70, Priority::Low));
        assert_eq!(Share::default().get(), of(100, Priority::Normal));
        assert_eq!(Share::BACKGROUND.get(), of(100, Priority::Low));
    }

    #[test]
    fn nothing_is_late_without_a_target() {
        let current = CurrentShare::default();
        assert!(!current.has_target() && !current.is_late(u64::MAX));
        current.set(Share::default(), Some(1000));
        assert!(current.has_target() && current.is_late(1001) && !current.is_late(1000));
    }

    #[test]
    fn weights_have_bounds() {
        assert!(Weight::new(0).is_none() && Weight::new(10_001).is_none());
        assert_eq!((Weight::new(1), Weight::new(10_000)), (Some(Weight::MIN), Some(Weight::MAX)));
    }
}
