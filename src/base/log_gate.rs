//! Log lines that a guest or a frontend can cause: at most one per second and place, the others counted.

use std::sync::atomic::{AtomicU64, Ordering};

use super::clock::Nanos;

const INTERVAL_NS: u64 = 1_000_000_000;

/// One place that logs, shared by whoever comes there.
#[derive(Debug, Default)]
pub struct LogGate {
    /// When the last line passed, plus one; 0 before the first.
    last: AtomicU64,
    held_back: AtomicU64,
}

impl LogGate {
    /// A gate that lets the next line pass.
    #[must_use]
    pub const fn new() -> LogGate {
        LogGate { last: AtomicU64::new(0), held_back: AtomicU64::new(0) }
    }

    /// Whether to log now; then, how many lines were held back since the last one.
    pub fn pass(&self, now: Nanos) -> Option<u64> {
        let last = self.last.load(Ordering::Relaxed);
        let open = last == 0 || now.0.saturating_sub(last - 1) >= INTERVAL_NS;
        if open && self.last.compare_exchange(last, now.0 + 1, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
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
}
