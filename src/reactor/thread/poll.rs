//! When a reactor keeps looking instead of going to sleep. Pure: time is an argument.
//!
//! Falling asleep and being woken costs more than a few microseconds of looking, for us, and for a guest that need not kick
//! meanwhile. So when what we wait for has mostly come within that time, we look; if it mostly has not, we sleep at once, and try
//! again only after sleeps that were short. Waiting for guests and waiting for disks are learned apart. What is spent on looking
//! in vain and not is at most a share of the time, and nothing while nobody asks for anything.

use crate::base::clock::Nanos;

/// What is said about the last looks: this many of a thousand came to something.
const ALL: u32 = 1024;

/// Looking goes on as long as half of it comes to something.
const ENOUGH: u32 = ALL / 2;

/// Each look counts for an eighth of what is said.
const WEIGHT: u32 = 8;

/// Of short sleeps, every so many is replaced by a look.
const PROBE_EVERY: u32 = 16;

/// What sleeping itself takes: a sleep that was longer than the longest look by more than this would not have been avoided.
const SLEEP_NS: u64 = 30_000;

/// Time spent looking is at most one part in so many.
const SHARE: u64 = 2;

/// Unused time for looking is kept for so long.
const SAVED_NS: u64 = 1_000_000;

/// What the reactor waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// Only for guests.
    Guests,
    /// For disks, too.
    Disks,
}

#[derive(Clone, Copy, Debug)]
struct Learned {
    /// Looks that came to something, of [`ALL`].
    hits: u32,
    /// Short sleeps since the last look.
    short_sleeps: u32,
}

impl Learned {
    const NEW: Learned = Learned { hits: ALL, short_sleeps: 0 };
}

/// What a reactor knows about its waits.
#[derive(Debug)]
pub(super) struct Polling {
    /// Longest look; 0: never looks.
    longest_ns: u64,
    guests: Learned,
    disks: Learned,
    /// Time that may be spent.
    budget_ns: u64,
    filled: Nanos,
}

impl Polling {
    /// Looks for at most `longest_ns` at a time.
    pub fn new(longest_ns: u64) -> Polling {
        Polling { longest_ns, guests: Learned::NEW, disks: Learned::NEW, budget_ns: 0, filled: Nanos(0) }
    }

    fn learned(&mut self, what: For) -> &mut Learned {
        match what {
            For::Guests => &mut self.guests,
            For::Disks => &mut self.disks,
        }
    }

    /// How long to look at `now` before sleeping; `None`: not at all.
    pub fn look(&mut self, what: For, now: Nanos) -> Option<u64> {
        if self.longest_ns == 0 {
            return None;
        }
        self.budget_ns = (self.budget_ns + now.since(self.filled) / SHARE).min(SAVED_NS.max(self.longest_ns));
        self.filled = now;
        let learned = self.learned(what);
        if learned.hits < ENOUGH && learned.short_sleeps < PROBE_EVERY {
            return None;
        }
        learned.short_sleeps = 0;
        (self.budget_ns >= self.longest_ns).then_some(self.longest_ns)
    }

    /// A look has ended after `spent_ns`.
    pub fn looked(&mut self, what: For, spent_ns: u64, came: bool) {
        self.budget_ns = self.budget_ns.saturating_sub(spent_ns);
        let learned = self.learned(what);
        let one = if came { ALL } else { 0 };
        learned.hits = (learned.hits * (WEIGHT - 1) + one) / WEIGHT;
    }

    /// A sleep has ended after `slept_ns`, because something came, or because it was time.
    pub fn slept(&mut self, what: For, slept_ns: u64, came: bool) {
        let short = came && slept_ns <= self.longest_ns + SLEEP_NS;
        let learned = self.learned(what);
        learned.short_sleeps = if short { learned.short_sleeps.saturating_add(1) } else { 0 };
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
    fn waits_for_disks_are_learned_apart() {
        let (mut polling, mut now) = (Polling::new(LONGEST), Nanos(1));
        for _ in 0..100 {
            run(&mut polling, &mut now, For::Disks, 1, 80_000);
            run(&mut polling, &mut now, For::Guests, 1, 5_000);
        }
        let (_, _, hits) = run(&mut polling, &mut now, For::Guests, 100, 5_000);
        let (spent, ..) = run(&mut polling, &mut now, For::Disks, 100, 80_000);
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
        let (spent, time, _) = run(&mut polling, &mut now, For::Guests, 10_000, 19_000);
        assert!(spent <= time / 2 + SAVED_NS, "{spent} of {time}");
        let (spent, ..) = run(&mut Polling::new(0), &mut now, For::Guests, 1000, 1000);
        assert_eq!(spent, 0, "switched off");
    }
}
