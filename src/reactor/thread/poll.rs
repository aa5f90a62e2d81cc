//! When a reactor keeps looking instead of going to sleep. Pure: time is an argument.
//!
//! Falling asleep and being woken costs more than a few microseconds of looking, for us, and for a guest that need not kick
//! meanwhile. So when what we wait for has mostly come within that time, we look; if it mostly has not, we sleep at once, and try
//! again only after sleeps that were short, ever more of them as long as it comes to nothing. Waiting for guests, for a disk with
//! little to do and for one with much are learned apart. What is spent on looking in vain and not is at most a share of the time,
//! and nothing while nobody asks for anything.

use crate::base::clock::Nanos;

/// What is said about the last looks: this many of a thousand came to something.
const ALL: u32 = 1024;

/// Looking goes on as long as half of it comes to something.
const ENOUGH: u32 = ALL / 2;

/// Each look counts for an eighth of what is said.
const WEIGHT: u32 = 8;

/// After so many short sleeps we look again, to see whether that pays by now.
const PROBE_AFTER: u32 = 16;

/// After twice as many each time that it did not, but at most so many: a disk that always takes a little longer than the longest
/// look must not cost one every few requests.
const PROBE_AFTER_MAX: u32 = 1024;

/// What sleeping itself takes: a sleep that was longer than the longest look by more than this would not have been avoided.
const SLEEP_NS: u64 = 30_000;

/// Time spent looking is at most one part in so many.
const SHARE: u64 = 2;

/// Unused time for looking is kept for so long.
const SAVED_NS: u64 = 1_000_000;

/// A long sleep makes up for one part in so many of the short ones that are needed.
const LONG_COSTS: u32 = 8;

/// Looks for a guest, or for one or two requests, are at most this part of the longest: all that they save is one sleep.
const FEW_PART: u64 = 2;

/// So many are few.
const FEW: usize = 2;

/// What the reactor waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// Only for guests.
    Guests,
    /// For a disk that has a request or two.
    Few,
    /// For disks with more of them, whose completions come one soon after the other.
    Many,
}

impl For {
    /// What is waited for with so many operations in flight.
    pub fn in_flight(count: usize) -> For {
        match count {
            0 => For::Guests,
            1..=FEW => For::Few,
            _ => For::Many,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Learned {
    /// Looks that came to something, of [`ALL`].
    hits: u32,
    /// Short sleeps since the last look.
    short_sleeps: u32,
    /// Short sleeps until the next one.
    probe_after: u32,
}

impl Learned {
    const NEW: Learned = Learned { hits: ALL, short_sleeps: 0, probe_after: PROBE_AFTER };
}

/// What a reactor knows about its waits.
#[derive(Debug)]
pub(super) struct Polling {
    /// Longest look; 0: never looks.
    longest_ns: u64,
    /// By what was waited for.
    learned: [Learned; 3],
    /// Time that may be spent.
    budget_ns: u64,
    filled: Nanos,
}

impl Polling {
    /// Looks for at most `longest_ns` at a time.
    pub fn new(longest_ns: u64) -> Polling {
        Polling { longest_ns, learned: [Learned::NEW; 3], budget_ns: 0, filled: Nanos(0) }
    }

    /// Longest look for something.
    fn longest_ns(&self, what: For) -> u64 {
        match what {
            For::Guests | For::Few => self.longest_ns / FEW_PART,
            For::Many => self.longest_ns,
        }
    }

    /// Whether looking for something has mostly come to something.
    pub fn pays(&self, what: For) -> bool {
        self.longest_ns > 0 && self.learned[what as usize].hits >= ENOUGH
    }

    /// How long to look at `now` before sleeping; `None`: not at all.
    pub fn look(&mut self, what: For, now: Nanos) -> Option<u64> {
        if self.longest_ns == 0 {
            return None;
        }
        self.budget_ns = (self.budget_ns + now.since(self.filled) / SHARE).min(SAVED_NS.max(self.longest_ns));
        self.filled = now;
        let (budget_ns, longest_ns) = (self.budget_ns, self.longest_ns(what));
        let learned = &mut self.learned[what as usize];
        let pays = learned.hits >= ENOUGH || learned.short_sleeps >= learned.probe_after;
        if !pays || budget_ns < longest_ns {
            return None;
        }
        learned.short_sleeps = 0;
        Some(longest_ns)
    }

    /// A look has ended after `spent_ns`.
    pub fn looked(&mut self, what: For, spent_ns: u64, came: bool) {
        self.budget_ns = self.budget_ns.saturating_sub(spent_ns);
        let learned = &mut self.learned[what as usize];
        let is_probe = learned.hits < ENOUGH;
        let one = if came { ALL } else { 0 };
        learned.hits = (learned.hits * (WEIGHT - 1) + one) / WEIGHT;
        if came {
            learned.probe_after = PROBE_AFTER;
        } else if is_probe {
            learned.probe_after = (learned.probe_after * 2).min(PROBE_AFTER_MAX);
        }
    }

    /// A sleep has ended after `slept_ns`, because something came, or because it was time.
    pub fn slept(&mut self, what: For, slept_ns: u64, came: bool) {
        let short = came && slept_ns <= self.longest_ns(what) + SLEEP_NS;
        let learned = &mut self.learned[what as usize];
        learned.short_sleeps = if short {
            learned.short_sleeps.saturating_add(1)
        } else {
            // Now and then every disk and every guest takes long: that alone says little about the rest.
            learned.short_sleeps.saturating_sub(learned.probe_after / LONG_COSTS)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST: u64 = 20_000;

    /// Runs `turns` waits of `gap_ns` each; the time spent looking, all of it, and the waits that needed no sleep.
    fn run(polling: &mut Polling, now: &mut Nanos, what: For, turns: u64, gap_ns: u64) -> (u64, u64, u64) {
        let (mut spent, mut hits, begun) = (0, 0, now.0);
        for _ in 0..turns {
            let mut left = gap_ns;
            if let Some(limit) = polling.look(what, *now) {
                let looked = limit.min(left);
                polling.looked(what, looked, left <= limit);
                (spent, left, now.0) = (spent + looked, left - looked, now.0 + looked);
                hits += u64::from(left == 0);
            }
            if left > 0 {
                let slept = left + 8_000;
                now.0 += slept;
                polling.slept(what, slept, true);
            }
            // The work in between.
            now.0 += 10_000;
        }
        (spent, now.0 - begun, hits)
    }

    #[test]
    fn short_waits_are_looked_at_and_long_ones_slept_through() {
        let (mut polling, mut now) = (Polling::new(LONGEST), Nanos(1));
        let (_, _, hits) = run(&mut polling, &mut now, For::Guests, 1000, 5_000);
        assert!(hits > 950, "{hits} of 1000 short waits");
        let (spent, time, _) = run(&mut polling, &mut now, For::Guests, 1000, 60_000);
        assert!(spent < time / 100, "{spent} of {time} ns wasted on long waits");
        let (_, _, hits) = run(&mut polling, &mut now, For::Guests, 1000, 5_000);
        assert!(hits > 800, "{hits} of 1000 short waits after long ones");
    }

    #[test]
    fn waits_a_little_longer_than_a_look_are_hardly_looked_at() {
        let (mut polling, mut now) = (Polling::new(LONGEST), Nanos(1));
        run(&mut polling, &mut now, For::Many, 2000, 25_000);
        let (spent, time, _) = run(&mut polling, &mut now, For::Many, 10_000, 25_000);
        assert!(spent < time / 1000, "{spent} of {time} ns wasted");
        run(&mut polling, &mut now, For::Many, 5000, 5_000);
        let (_, _, hits) = run(&mut polling, &mut now, For::Many, 1000, 5_000);
        assert!(hits > 950, "{hits} of 1000 waits that are short by now");
    }

    #[test]
    fn a_long_sleep_now_and_then_hides_no_short_waits() {
        let (mut polling, mut now) = (Polling::new(LONGEST), Nanos(1));
        run(&mut polling, &mut now, For::Many, 10_000, 25_000);
        let mut hits = 0;
        for _ in 0..200 {
            hits = run(&mut polling, &mut now, For::Many, 249, 5_000).2;
            run(&mut polling, &mut now, For::Many, 1, 300_000);
        }
        assert!(hits > 240, "{hits} of 249 waits that are short by now");
        let (spent, time, _) = run(&mut polling, &mut now, For::Many, 10_000, 300_000);
        assert!(spent < time / 1000, "{spent} of {time} ns wasted on long ones");
    }

    #[test]
    fn nobody_looks_long_for_one_request() {
        let (mut polling, mut now) = (Polling::new(50_000), Nanos(1));
        let (spent, time, hits) = run(&mut polling, &mut now, For::in_flight(1), 1000, 45_000);
        assert!(spent < time / 100 && hits == 0, "{spent} of {time}, {hits} hits");
        let (.., hits) = run(&mut polling, &mut now, For::in_flight(1), 1000, 10_000);
        assert!(hits > 800, "{hits} of 1000 short ones");
        let (.., hits) = run(&mut Polling::new(50_000), &mut now, For::in_flight(30), 1000, 45_000);
        assert!(hits > 400, "{hits} hits with many in flight, as far as the share allows");
    }

    #[test]
    fn waits_for_disks_are_learned_apart() {
        let (mut polling, mut now) = (Polling::new(LONGEST), Nanos(1));
        for _ in 0..100 {
            run(&mut polling, &mut now, For::Many, 1, 80_000);
            run(&mut polling, &mut now, For::Guests, 1, 5_000);
        }
        let (_, _, hits) = run(&mut polling, &mut now, For::Guests, 100, 5_000);
        let (spent, ..) = run(&mut polling, &mut now, For::Many, 100, 80_000);
        assert!(hits > 95 && spent == 0, "{hits} {spent}");
    }

    #[test]
    fn an_idle_reactor_does_not_look() {
        let (mut polling, mut now) = (Polling::new(LONGEST), Nanos(1));
        let (spent, time, _) = run(&mut polling, &mut now, For::Guests, 1000, 1_000_000);
        assert!(spent < time / 2000, "{spent} of {time}");
    }

    #[test]
    fn looking_takes_no_more_than_its_share() {
        let (mut polling, mut now) = (Polling::new(LONGEST), Nanos(1));
        // Nearly as long as the longest look, and little to do in between.
        let (spent, time, _) = run(&mut polling, &mut now, For::Many, 10_000, 19_000);
        assert!(spent <= time / 2 + SAVED_NS, "{spent} of {time}");
        let (spent, ..) = run(&mut Polling::new(0), &mut now, For::Guests, 1000, 1000);
        assert_eq!(spent, 0, "switched off");
    }
}
