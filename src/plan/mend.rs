//! Mends windows that are too dense: extents exchange replicas, without one copy more where that is possible.
//!
//! An exchange is a circle of replacements: one extent gives its replica on the disk that has too much for one on another
//! disk, where another extent gives one up, and so on, until some extent elsewhere takes the one on the first disk. Every disk
//! keeps its number. Most exchanges are between two extents; only if these would cost a copy, longer ones are looked for.

use super::Disks;
use super::share::Limits;
use super::windows::has_room;
use crate::base::bits::ones;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::DISKS_MAX;
use crate::base::units::ExtentIndex;

/// Extents that are looked at for an exchange before one is accepted that costs a copy.
const LOOKED_AT_MAX: usize = 1 << 14;

/// Extents in one circle.
const CIRCLE_MAX: usize = 6;

/// Exchanges replicas until no window has too much of a disk.
pub(super) fn mend(placed: &[(ExtentIndex, DiskSet)], target: &mut [DiskSet], disks: &Disks, limits: &Limits) {
    let mut cursor = 0;
    for disk in limits.limited.iter().map(DiskId::index) {
        let mut count = 0u64;
        for at in 0..target.len() {
            let on = |at: usize| target[at].0 >> disk & 1 == 1;
            count += u64::from(on(at));
            count -= u64::from(at >= limits.window && on(at - limits.window));
            if count <= limits.window_most[disk] {
                continue;
            }
            let window = (at + 1).saturating_sub(limits.window)..at + 1;
            let search = Search { placed, disks, limits, window, disk };
            let Some(exchange) = search.run(target, &mut cursor) else { continue };
            exchange.into_iter().for_each(|step| step.carry_out(target));
            count -= 1;
        }
    }
}

/// Extent `at` gives its replica on `from` for one on `to`.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Replacement {
    at: usize,
    from: usize,
    to: usize,
}

impl Replacement {
    fn carry_out(self, target: &mut [DiskSet]) {
        target[self.at].0 ^= 1 << self.from | 1 << self.to;
    }

    /// Copies that it costs more than now.
    fn cost(self, placed: &[(ExtentIndex, DiskSet)]) -> i32 {
        let is_new = |disk: usize| i32::from(placed[self.at].1.0 >> disk & 1 == 0);
        is_new(self.to) - is_new(self.from)
    }
}

/// Looks for the exchange that takes one replica on `disk` out of `window` at the least cost.
struct Search<'a> {
    placed: &'a [(ExtentIndex, DiskSet)],
    disks: &'a Disks,
    limits: &'a Limits,
    window: std::ops::Range<usize>,
    disk: usize,
}

impl Search<'_> {
    fn run(&self, target: &mut [DiskSet], cursor: &mut usize) -> Option<Vec<Replacement>> {
        let two = self.two(target, cursor);
        let cost = two.map(|two| two.iter().map(|step| step.cost(self.placed)).sum::<i32>());
        if cost.is_some_and(|cost| cost <= 0) {
            return two.map(Vec::from);
        }
        self.circle(target, *cursor, cost.unwrap_or(i32::MAX)).or(two.map(Vec::from))
    }

    /// The extents of the window that can give their replica; first those that have to move anyway.
    fn gives(&self, target: &[DiskSet]) -> Vec<usize> {
        let mut gives: Vec<usize> =
            self.window.clone().rev().filter(|at| target[*at].0 >> self.disk & 1 == 1).collect();
        gives.sort_by_key(|at| self.placed[*at].1.0 >> self.disk & 1);
        gives
    }

    /// An exchange with one other extent.
    fn two(&self, target: &[DiskSet], cursor: &mut usize) -> Option<[Replacement; 2]> {
        let mut best: Option<(i32, [Replacement; 2])> = None;
        for give in self.gives(target) {
            for step in 0..target.len() {
                let other = (*cursor + step) % target.len();
                if step > LOOKED_AT_MAX && best.is_some() {
                    break;
                }
                if target[other].0 >> self.disk & 1 == 1 || self.window.contains(&other) {
                    continue;
                }
                for back in ones(target[other].0 & !target[give].0) {
                    let there = Replacement { at: other, from: back, to: self.disk };
                    let here = Replacement { at: give, from: self.disk, to: back };
                    let cost = there.cost(self.placed) + here.cost(self.placed);
                    let better = best.is_none_or(|(least, _)| cost < least);
                    if better && self.is_legal(target, there, give) && self.is_legal(target, here, other) {
                        best = Some((cost, [here, there]));
                    }
                }
                if best.is_some_and(|(cost, _)| cost <= 0) {
                    *cursor = other;
                    return best.map(|(_, two)| two);
                }
            }
        }
        best.map(|(_, two)| two)
    }

    /// Whether the extent can have a replica there, if extent `without` has none there.
    fn is_legal(&self, target: &[DiskSet], step: Replacement, without: usize) -> bool {
        let others = target[step.at].0 & !(1 << step.from);
        (self.disks.domains_of(others) | others) >> step.to & 1 == 0
            && self.disks.is_open_to(self.placed[step.at].1.0, step.to)
            && has_room(target, step.at, step.to, without, self.limits)
    }

    /// An exchange between more extents that costs less than `cost`: the cheapest way through the disks back to `disk`.
    fn circle(&self, target: &mut [DiskSet], cursor: usize, cost: i32) -> Option<Vec<Replacement>> {
        let cheapest = self.cheapest(target, cursor);
        // By number of replacements and disk reached: the cost, and the last replacement.
        let mut ways: Vec<[Option<(i32, Replacement)>; DISKS_MAX]> = vec![[None; DISKS_MAX]; CIRCLE_MAX];
        for give in self.gives(target) {
            for to in ones(self.disks.all.0 & !target[give].0) {
                let step = Replacement { at: give, from: self.disk, to };
                let first = step.cost(self.placed);
                if ways[0][to].is_none_or(|(least, _)| first < least) && self.is_legal(target, step, give) {
                    ways[0][to] = Some((first, step));
                }
            }
        }
        for length in 1..CIRCLE_MAX {
            for step in &cheapest {
                let Some((so_far, _)) = ways[length - 1][step.from] else { continue };
                let reached = so_far + step.cost(self.placed);
                if step.from != self.disk && ways[length][step.to].is_none_or(|(least, _)| reached < least) {
                    ways[length][step.to] = Some((reached, *step));
                }
            }
            let Some((reached, _)) = ways[length][self.disk] else { continue };
            let mut steps = Vec::new();
            let mut end = self.disk;
            for way in ways[..=length].iter().rev() {
                let (_, step) = way[end].expect("a way is as long as the number of its replacements");
                steps.push(step);
                end = step.from;
            }
            if reached < cost && self.holds(target, &steps) {
                return Some(steps);
            }
        }
        None
    }

    /// For each two disks the cheapest replacement of one by the other outside the window.
    fn cheapest(&self, target: &[DiskSet], cursor: usize) -> Vec<Replacement> {
        let mut cheapest: Vec<Option<Replacement>> = vec![None; DISKS_MAX * DISKS_MAX];
        for step in 0..target.len().min(LOOKED_AT_MAX) {
            let at = (cursor + step) % target.len();
            if self.window.contains(&at) {
                continue;
            }
            for from in ones(target[at].0) {
                for to in ones(self.disks.all.0 & !target[at].0) {
                    let step = Replacement { at, from, to };
                    let known = &mut cheapest[from * DISKS_MAX + to];
                    let better = known.is_none_or(|known| step.cost(self.placed) < known.cost(self.placed));
                    if better && self.is_legal(target, step, at) {
                        *known = Some(step);
                    }
                }
            }
        }
        cheapest.into_iter().flatten().collect()
    }

    /// Whether replacements that are legal one by one are so together.
    fn holds(&self, target: &mut [DiskSet], steps: &[Replacement]) -> bool {
        let twice = |(i, step): (usize, &Replacement)| steps[..i].iter().any(|other| other.at == step.at);
        if steps.iter().enumerate().any(twice) {
            return false;
        }
        steps.iter().for_each(|step| step.carry_out(target));
        let holds = steps.iter().all(|step| has_room(target, step.at, step.to, step.at, self.limits));
        steps.iter().for_each(|step| step.carry_out(target));
        holds
    }
}
