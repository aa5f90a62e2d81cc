//! What part of a host disk somebody gets whenever others want it, too.

use std::sync::atomic::{AtomicU32, Ordering};

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
    pub fn get(self) -> u32 {
        self.0
    }
}

impl Default for Weight {
    fn default() -> Weight {
        Weight::DEFAULT
    }
}

/// Whose requests go first. Each counts ten times as much as the next one: nobody has to wait until the others want nothing any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
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

/// A share that may become another one at any time.
#[derive(Debug)]
pub struct CurrentShare(AtomicU32);

impl CurrentShare {
    /// What it is now.
    #[must_use]
    pub fn get(&self) -> Share {
        Share(self.0.load(Ordering::Relaxed))
    }

    /// Another one. Whoever waits already keeps the turn that it has.
    pub fn set(&self, share: Share) {
        self.0.store(share.0, Ordering::Relaxed);
    }
}

impl Default for CurrentShare {
    fn default() -> CurrentShare {
        CurrentShare(AtomicU32::new(Share::default().0))
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
    fn weights_have_bounds() {
        assert!(Weight::new(0).is_none() && Weight::new(10_001).is_none());
        assert_eq!((Weight::new(1), Weight::new(10_000)), (Some(Weight::MIN), Some(Weight::MAX)));
    }
}
