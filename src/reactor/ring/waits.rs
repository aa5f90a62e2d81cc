//! For how long requests have been in their virtqueue while it was not popped from. A guest does not say when it makes a chain available:
//! whoever stops popping notes how far the guest has come by then. What was there already waits from that moment on at least.

use crate::base::clock::Nanos;

/// So many moments are told apart. A chain is taken to have waited since the first one that it was seen at, so that what one waits
/// comes out too short by less than the time between two of them.
const MARKS: usize = 8;

/// What was seen in a virtqueue. Empty while nothing is held back.
#[derive(Debug, Default)]
pub(super) struct Waits {
    /// Index that the guest's next chain would have, and when that was seen; the oldest first.
    marks: [(u16, Nanos); MARKS],
    len: usize,
}

impl Waits {
    /// Popping stops at index `next`, and the guest has made chains available up to `available`.
    pub fn note(&mut self, next: u16, available: u16, now: Nanos) {
        self.forget_before(next);
        let last = self.len.checked_sub(1).map(|last| self.marks[last].0);
        if available != last.unwrap_or(next) && self.len < MARKS {
            self.marks[self.len] = (available, now);
            self.len += 1;
        }
    }

    /// How long the chain at an index has waited, in nanoseconds; it is popped now.
    #[inline]
    pub fn popped(&mut self, index: u16, now: Nanos) -> u64 {
        if self.len == 0 {
            return 0;
        }
        let next = index.wrapping_add(1);
        let since = self.marks[..self.len].iter().find(|(end, _)| is_before(index, *end)).map(|(_, since)| *since);
        self.forget_before(next);
        since.map_or(0, |since| now.since(since))
    }

    /// All chains before `next` have been popped.
    fn forget_before(&mut self, next: u16) {
        let gone = self.marks[..self.len].iter().take_while(|(end, _)| !is_before(next, *end)).count();
        self.marks.copy_within(gone..self.len, 0);
        self.len -= gone;
    }
}

/// Whether an index comes before another one; a ring has at most 32768 entries.
fn is_before(index: u16, end: u16) -> bool {
    (1..=1 << 15).contains(&end.wrapping_sub(index))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_wait_since_they_were_first_seen() {
        let mut waits = Waits::default();
        assert_eq!(waits.popped(65_530, Nanos(5)), 0, "nothing is held back");
        waits.note(65_531, 65_534, Nanos(10));
        waits.note(65_531, 65_534, Nanos(20));
        waits.note(65_531, 2, Nanos(30));
        assert_eq!(waits.popped(65_531, Nanos(40)), 30);
        assert_eq!(waits.popped(65_532, Nanos(50)), 40);
        assert_eq!(waits.popped(65_533, Nanos(50)), 40);
        assert_eq!(waits.popped(65_534, Nanos(50)), 20);
        waits.note(65_535, 3, Nanos(60));
        (65_535..=65_535).chain(0..2).for_each(|index| assert_eq!(waits.popped(index, Nanos(70)), 40));
        assert_eq!(waits.popped(2, Nanos(70)), 10);
        assert_eq!(waits.popped(3, Nanos(70)), 0, "it came after the last look");
        assert_eq!(waits.len, 0);
    }

    #[test]
    fn more_moments_than_there_is_room_for_are_left_out() {
        let mut waits = Waits::default();
        (1..100).for_each(|at| waits.note(0, at, Nanos(u64::from(at) * 10)));
        assert_eq!(waits.popped(0, Nanos(1000)), 990);
        assert_eq!(waits.popped(7, Nanos(1000)), 920);
        assert_eq!(waits.popped(50, Nanos(1000)), 0);
    }
}
