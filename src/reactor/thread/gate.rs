//! Log lines that a guest can cause: at most one per second and place, the others counted.

use crate::base::clock::Nanos;

const INTERVAL_NS: u64 = 1_000_000_000;

/// One place that logs.
#[derive(Debug, Default)]
pub(super) struct LogGate {
    last: Option<Nanos>,
    held_back: u64,
}

impl LogGate {
    /// Whether to log now; then, how many lines were held back since the last one.
    pub fn pass(&mut self, now: Nanos) -> Option<u64> {
        if self.last.is_some_and(|last| now.since(last) < INTERVAL_NS) {
            self.held_back += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.held_back))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_second_and_the_others_are_counted() {
        let mut gate = LogGate::default();
        let at = |millis: u64| Nanos(millis * 1_000_000);
        assert_eq!(gate.pass(at(0)), Some(0));
        assert_eq!(gate.pass(at(1)), None);
        assert_eq!(gate.pass(at(999)), None);
        assert_eq!(gate.pass(at(1000)), Some(2));
        assert_eq!(gate.pass(at(5000)), Some(0));
    }
}
