//! What a VHD is limited to, for the reactors that serve it.
//!
//! The owner changes it, rarely. A reactor keeps what it has found here, and sees by one load whether there is something else: then it
//! tries to look, and if the owner is just about to change it, does so the next time. So no request waits for the lock. The owner takes it
//! for nothing but a change, after which it tells the reactors: so one that has not got it is told again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::base::clock::Nanos;
use crate::base::limits::LIMIT_QUIET_SECS;
use crate::qos::Admission;

/// The limits of one VHD, as they are now.
#[derive(Debug, Default)]
pub struct VhdLimits {
    /// Counts changes.
    version: AtomicU64,
    current: Mutex<Known>,
    /// 1 + when it was held back last; 0: never.
    held: AtomicU64,
}

/// What is known of the limits of a VHD.
#[derive(Clone, Debug, Default)]
pub struct Known {
    version: u64,
    /// What to ask before a request is started; `None`: nothing.
    pub admission: Option<Arc<Admission>>,
}

impl VhdLimits {
    /// Owner only: other limits from now on. Reactors come to know when they look again: tell them to, afterwards.
    pub fn set(&self, admission: Option<Arc<Admission>>) {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        *current = Known { version: current.version + 1, admission };
        self.version.store(current.version, Ordering::Release);
    }

    /// Brings what a reactor knows up to date.
    pub fn refresh(&self, known: &mut Known) {
        if self.version.load(Ordering::Relaxed) == known.version {
            return;
        }
        if let Ok(current) = self.current.try_lock() {
            known.clone_from(&current);
        }
    }

    /// It is being held back. Whether that is news: it has not been for a while.
    pub fn is_held(&self, now: Nanos) -> bool {
        let before = self.held.swap(now.0.saturating_add(1), Ordering::Relaxed);
        before == 0 || now >= Nanos(before - 1).after(Duration::from_secs(LIMIT_QUIET_SECS))
    }

    /// It was held back until now.
    pub fn was_held(&self, now: Nanos) {
        self.held.fetch_max(now.0.saturating_add(1), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qos::{Buckets, Rate, Rates};

    #[test]
    fn reactors_see_changes_by_a_look() {
        let (limits, mut known) = (VhdLimits::default(), Known::default());
        limits.refresh(&mut known);
        assert!(known.admission.is_none());
        let rates = Rates { iops: Some(Rate { per_sec: 10, burst: 1 }), bytes: None };
        let admission = Admission::new(Buckets::new(rates).map(Arc::new), None).map(Arc::new);
        limits.set(admission);
        let busy = limits.current.lock().unwrap();
        limits.refresh(&mut known);
        assert!(known.admission.is_none(), "the next time");
        drop(busy);
        limits.refresh(&mut known);
        assert!(known.admission.is_some());
        limits.set(None);
        limits.refresh(&mut known);
        assert!(known.admission.is_none());
    }

    #[test]
    fn being_held_back_again_and_again_is_news_once() {
        let (limits, second) = (VhdLimits::default(), 1_000_000_000);
        assert!(limits.is_held(Nanos(0)));
        assert!(!limits.is_held(Nanos(59 * second)));
        limits.was_held(Nanos(90 * second));
        assert!(!limits.is_held(Nanos(149 * second)));
        assert!(limits.is_held(Nanos(300 * second)));
    }
}
