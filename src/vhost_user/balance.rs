//! Which ring should move to which reactor, so that a reactor with much to do gets help from one with little. Pure: it is told
//! what was counted.
//!
//! Rings are spread by number when they start, for nobody knows then which of them will be busy. Moving one stops it for as long
//! as its requests in flight take, so it is done only for what lasts, and only if it helps.

use std::collections::HashMap;

use crate::base::clock::Nanos;
use crate::base::ids::ReactorId;
use crate::reactor::messages::RingKey;

/// Parts of a reactor's time, of this many.
const WHOLE: u64 = 1000;

/// A reactor that works less than this part of the time needs no help.
const BUSY: u64 = 700;

/// If all work less than this part of it, they are looked at ever more rarely.
const QUIET: u64 = 10;

/// It gets none from one that works nearly as much.
const DIFFERENCE: u64 = 300;

/// What a move must bring: the busier of the two is less busy by this part of the time.
const GAIN: u64 = 100;

/// So many observations in a row must say the same.
const OBSERVATIONS: u32 = 2;

/// A ring that has been moved, or could not be, stays for so many observations.
const REST: u64 = 10;

/// A ring that should be served by another reactor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) ring: RingKey,
    pub(super) to: ReactorId,
}

/// A ring, and how many chains it has popped since it began.
#[derive(Clone, Copy, Debug)]
pub(super) struct RingSeen {
    pub(super) ring: RingKey,
    pub(super) reactor: ReactorId,
    pub(super) chains: u64,
}

/// What was counted last, and what follows from it.
#[derive(Debug, Default)]
pub(super) struct Balance {
    at: Nanos,
    busy_ns: Vec<u64>,
    chains: HashMap<RingKey, u64>,
    /// Observations so far.
    round: u64,
    /// Observations in a row that called for a move.
    called: u32,
    /// The part of the time that the busiest reactor has worked since the observation before.
    busiest: u64,
    /// Rings that stay where they are for now, and since when.
    rests: HashMap<RingKey, u64>,
}

impl Balance {
    /// Takes in what was counted by `now`: how long each reactor has worked in all, and what the rings have done, which nobody asks
    /// for while the reactors are quiet. Returns what should move; the caller
    /// says with [`Balance::stays`] what became of that.
    pub(super) fn observe(
        &mut self,
        now: Nanos,
        busy_ns: Vec<u64>,
        rings: impl FnOnce() -> Vec<RingSeen>,
    ) -> Option<Move> {
        self.round += 1;
        let elapsed = now.since(self.at).max(1);
        let is_first = self.busy_ns.len() != busy_ns.len();
        let shares: Vec<u64> = busy_ns
            .iter()
            .zip(self.busy_ns.iter().chain(std::iter::repeat(&0)))
            .map(|(now, before)| (now.saturating_sub(*before).saturating_mul(WHOLE) / elapsed).min(WHOLE))
            .collect();
        (self.at, self.busy_ns) = (now, busy_ns);
        self.busiest = shares.iter().max().copied().unwrap_or(0);
        if !self.is_awake() {
            self.called = 0;
            return None;
        }
        let rings = rings();
        let done = |seen: &RingSeen| seen.chains.saturating_sub(self.chains.get(&seen.ring).copied().unwrap_or(0));
        let work: Vec<(RingSeen, u64)> = rings.iter().map(|seen| (*seen, done(seen))).collect();
        self.chains = rings.iter().map(|seen| (seen.ring, seen.chains)).collect();
        let round = self.round;
        self.rests.retain(|_, since| *since + REST > round);
        let found = if is_first { None } else { self.best_move(&shares, &work) };
        self.called = if found.is_some() { self.called + 1 } else { 0 };
        found.filter(|_| self.called >= OBSERVATIONS)
    }

    /// Whether some reactor had something to do when it was looked at last.
    pub(super) fn is_awake(&self) -> bool {
        self.busiest >= QUIET
    }

    /// A ring has been moved, and has another name since; or it could not be.
    pub(super) fn stays(&mut self, ring: RingKey) {
        self.rests.insert(ring, self.round);
        self.called = 0;
    }

    /// The move that leaves the busiest reactor and the idlest one closest to each other.
    fn best_move(&self, shares: &[u64], work: &[(RingSeen, u64)]) -> Option<Move> {
        let (from, &high) = shares.iter().enumerate().max_by_key(|(_, share)| **share)?;
        let (to, &low) = shares.iter().enumerate().min_by_key(|(_, share)| **share)?;
        if high < BUSY || high - low < DIFFERENCE {
            return None;
        }
        let here = work.iter().filter(|(seen, _)| usize::from(seen.reactor.0) == from);
        let all: u64 = here.clone().map(|(_, chains)| chains).sum();
        let after = |chains: u64| {
            // What the ring takes of its reactor's time, taking all chains for alike.
            let part = high.saturating_mul(chains) / all.max(1);
            (high - part).max(low + part)
        };
        let candidates = here.filter(|(seen, chains)| *chains > 0 && !self.rests.contains_key(&seen.ring));
        let (seen, chains) = candidates.min_by_key(|(seen, chains)| (after(*chains), seen.ring))?;
        let to = ReactorId(u16::try_from(to).expect("reactors are counted in u16"));
        (after(*chains) + GAIN <= high).then_some(Move { ring: seen.ring, to })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// Reactors and rings whose counters grow by the same amounts each second.
    struct World {
        now: u64,
        busy: Vec<u64>,
        rings: Vec<RingSeen>,
        balance: Balance,
    }

    impl World {
        /// Rings by the reactor that they are on.
        fn new(reactors: usize, rings: &[u16]) -> World {
            let ring = |(index, reactor): (usize, &u16)| RingSeen {
                ring: RingKey(index as u64),
                reactor: ReactorId(*reactor),
                chains: 0,
            };
            let rings = rings.iter().enumerate().map(ring).collect();
            World { now: SECOND, busy: vec![0; reactors], rings, balance: Balance::default() }
        }

        /// A second in which reactors work for so many thousandths, and rings pop so many chains.
        fn second(&mut self, shares: &[u64], chains: &[u64]) -> Option<Move> {
            self.now += SECOND;
            self.busy.iter_mut().zip(shares).for_each(|(busy, share)| *busy += share * SECOND / WHOLE);
            self.rings.iter_mut().zip(chains).for_each(|(ring, chains)| ring.chains += chains);
            self.balance.observe(Nanos(self.now), self.busy.clone(), || self.rings.clone())
        }

        fn seconds(&mut self, count: usize, shares: &[u64], chains: &[u64]) -> Vec<Option<Move>> {
            (0..count).map(|_| self.second(shares, chains)).collect()
        }
    }

    fn to(ring: u64, reactor: u16) -> Option<Move> {
        Some(Move { ring: RingKey(ring), to: ReactorId(reactor) })
    }

    #[test]
    fn one_of_two_busy_rings_moves_to_an_idle_reactor() {
        let mut world = World::new(2, &[0, 0, 1]);
        assert_eq!(world.seconds(3, &[950, 20], &[1000, 900, 0]), [None, None, to(1, 1)]);
    }

    #[test]
    fn a_ring_that_is_busy_alone_stays() {
        let mut world = World::new(2, &[0, 0, 1]);
        assert_eq!(world.seconds(20, &[990, 0], &[100_000, 3, 0]), [None; 20]);
    }

    #[test]
    fn the_others_leave_the_busiest_ring() {
        // 60 % of the work is one ring's; the small one that is moved brings too little, the middle one the most.
        let mut world = World::new(3, &[0, 0, 0, 1, 2]);
        assert_eq!(world.seconds(3, &[1000, 100, 400], &[600, 350, 50, 100, 400])[2], to(1, 1));
    }

    #[test]
    fn nothing_moves_for_a_moment_or_for_little() {
        let mut world = World::new(2, &[0, 0, 1, 1]);
        for _ in 0..10 {
            assert_eq!(world.second(&[900, 100], &[10, 10, 1, 1]), None);
            assert_eq!(world.second(&[500, 500], &[10, 10, 10, 10]), None);
        }
        assert_eq!(world.seconds(10, &[690, 0], &[10, 10, 0, 0]), [None; 10], "not busy");
        assert_eq!(world.seconds(10, &[1000, 800], &[10, 10, 10, 10]), [None; 10], "no help");
    }

    #[test]
    fn quiet_reactors_are_known() {
        let mut world = World::new(2, &[0, 1]);
        for (shares, awake) in [([0, 0], false), ([30, 0], true), ([0, 9], false), ([0, 300], true), ([0, 0], false)] {
            world.second(&shares, &[1, 1]);
            assert_eq!(world.balance.is_awake(), awake, "{shares:?}");
        }
    }

    #[test]
    fn a_ring_that_was_moved_rests() {
        let mut world = World::new(2, &[0, 0]);
        assert_eq!(world.seconds(3, &[900, 0], &[10, 10])[2], to(0, 1));
        // It has another name on its new reactor, where it turns out to be in the way again.
        world.rings[0] = RingSeen { ring: RingKey(7), reactor: ReactorId(0), chains: 0 };
        world.balance.stays(RingKey(7));
        let moves = world.seconds(4, &[900, 0], &[10, 5]);
        assert_eq!(moves, [None, to(1, 1), to(1, 1), to(1, 1)], "the other one may");
        world.rings.pop();
        world.rings.push(RingSeen { ring: RingKey(8), reactor: ReactorId(0), chains: 0 });
        world.balance.stays(RingKey(8));
        assert_eq!(world.seconds(4, &[900, 0], &[10, 5]), [None; 4], "both rest");
        assert!(world.seconds(8, &[900, 0], &[10, 5]).contains(&to(7, 1)), "not for ever");
    }

    #[test]
    fn the_busiest_reactor_never_becomes_busier_by_a_move() {
        let mut random = crate::base::rng::Rng::new(11);
        for _ in 0..2000 {
            let reactors = 2 + random.index(6);
            let count = random.index(30);
            let places: Vec<u16> = (0..count).map(|_| u16::try_from(random.index(reactors)).unwrap()).collect();
            let chains: Vec<u64> = (0..count).map(|_| random.below(1000)).collect();
            let mut shares = vec![0; reactors];
            places.iter().zip(&chains).for_each(|(place, chains)| shares[usize::from(*place)] += chains);
            let highest = shares.iter().max().copied().unwrap_or(0).max(1);
            shares.iter_mut().for_each(|share| *share = *share * WHOLE / highest);
            let mut world = World::new(reactors, &places);
            let Some(found) = world.seconds(3, &shares, &chains)[2] else { continue };
            let ring = usize::try_from(found.ring.0).unwrap();
            let part = chains[ring] * WHOLE / highest;
            let target = shares[usize::from(found.to.0)] + part;
            assert!(target + GAIN <= WHOLE + 2, "{shares:?} {places:?} {chains:?} {found:?}");
        }
    }
}
