//! Log lines that a guest or a frontend can cause: at most one per second and place (and a few at once, where single ones are
//! part of normal life), the others counted.

use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::Nanos;

const INTERVAL_NS: u64 = 1_000_000_000;

/// One place that logs, shared by whoever comes there.
#[derive(Debug)]
pub struct LogGate {
    /// When as many lines may pass at once as ever.
    rested: AtomicU64,
    /// How far in the future that may be for a line to pass.
    credit_ns: u64,
    held_back: AtomicU64,
}

impl Default for LogGate {
    fn default() -> LogGate {
        LogGate::new()
    }
}

impl LogGate {
    /// A gate that lets the next line pass.
    #[must_use]
    pub const fn new() -> LogGate {
        LogGate::with_burst(1)
    }

    /// A gate that lets `lines` lines pass at once.
    #[must_use]
    pub const fn with_burst(lines: u64) -> LogGate {
        assert!(lines > 0);
        let credit_ns = (lines - 1) * INTERVAL_NS;
        LogGate { rested: AtomicU64::new(0), credit_ns, held_back: AtomicU64::new(0) }
    }

    /// Whether to log now; then, how many lines were held back since the last one.
    pub fn pass(&self, now: Nanos) -> Option<u64> {
        let rested = self.rested.load(Ordering::Relaxed);
        let next = rested.max(now.0) + INTERVAL_NS;
        let open = rested.saturating_sub(now.0) <= self.credit_ns;
        if open && self.rested.compare_exchange(rested, next, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            return Some(self.held_back.swap(0, Ordering::Relaxed));
        }
        self.held_back.fetch_add(1, Ordering::Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_others_are_counted() {
        let gate = LogGate::new();
        assert_eq!(gate.pass(Nanos(0)), Some(0));
        assert_eq!(gate.pass(Nanos(1)), None);
        assert_eq!(gate.pass(Nanos(INTERVAL_NS - 1)), None);
        assert_eq!(gate.pass(Nanos(INTERVAL_NS)), Some(2));
        assert_eq!(gate.pass(Nanos(INTERVAL_NS + 5)), None);
        assert_eq!(gate.pass(Nanos(3 * INTERVAL_NS)), Some(1));
    }

    #[test]
    fn a_few_at_once_and_then_one_a_second() {
        let gate = LogGate::with_burst(3);
        let passes = |at: u64| (0..10).filter(|_| gate.pass(Nanos(at)).is_some()).count();
        assert_eq!([passes(5), passes(6), passes(INTERVAL_NS + 5)], [3, 0, 1]);
        assert_eq!(passes(100 * INTERVAL_NS), 3);
    }
}
