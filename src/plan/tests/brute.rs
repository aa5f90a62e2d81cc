//! What the planner is compared with: shares by bisection in floating point, and the fewest copies by trying everything.
//! Shares no code with it.

use std::collections::HashMap;

use super::super::{Goal, GoalDisk};
use crate::base::ids::DiskSet;

/// The even share of each disk of the goal, as a number that need not be whole. There must be room.
pub(super) fn even(starts: &[DiskSet], goal: &Goal) -> Vec<f64> {
    let extents = starts.len() as f64;
    let most = |disk: &GoalDisk| {
        let had = starts.iter().filter(|set| set.contains(disk.disk)).count() as f64;
        extents.min(if disk.closed { had } else { had + f64::from(disk.free) })
    };
    let at_level = |disk: &GoalDisk, level: f64| most(disk).min(level * f64::from(disk.slots));
    let bisect = |is_enough: &dyn Fn(f64) -> bool| {
        let (mut low, mut high) = (0.0, 1e12);
        for _ in 0..200 {
            let middle = (low + high) / 2.0;
            if is_enough(middle) { high = middle } else { low = middle }
        }
        high
    };
    // Within a domain the level can only be lower than elsewhere: where the domain is full.
    let in_domain = |domain: u32, level: f64| -> f64 {
        goal.disks.iter().filter(|disk| disk.domain == domain).map(|disk| at_level(disk, level)).sum()
    };
    let mut domains: Vec<u32> = goal.disks.iter().map(|disk| disk.domain).collect();
    domains.sort_unstable();
    domains.dedup();
    let wanted = extents * goal.replicas as f64 - 1e-9;
    let level = bisect(&|level| domains.iter().map(|d| in_domain(*d, level).min(extents)).sum::<f64>() >= wanted);
    let share = |disk: &GoalDisk| {
        let full = bisect(&|level| in_domain(disk.domain, level) >= extents - 1e-9);
        at_level(disk, level.min(full))
    };
    goal.disks.iter().map(share).collect()
}

/// The smallest and the largest whole number that counts as even.
pub(super) fn bounds(share: f64) -> (u64, u64) {
    let whole = |x: f64| (0..).find(|n| *n as f64 >= x).expect("a small number");
    let ceil = whole(share - 1e-6);
    let floor = if (share - ceil as f64).abs() < 1e-6 { ceil } else { ceil - 1 };
    (floor, ceil)
}

/// Whether every extent can have its replicas apart, with no disk beyond its room and nothing new on closed ones.
pub(super) fn is_possible(starts: &[DiskSet], goal: &Goal) -> bool {
    let room = |disk: &GoalDisk| {
        let had = starts.iter().filter(|set| set.contains(disk.disk)).count() as u64;
        had + if disk.closed { 0 } else { u64::from(disk.free) }
    };
    let rooms: Vec<u64> = goal.disks.iter().map(room).collect();
    reached(starts, goal).keys().any(|counts| counts.iter().zip(&rooms).all(|(n, room)| n <= room))
}

/// The fewest copies, over every placement of every extent that ends in even counts; `None` if there is no such placement.
pub(super) fn fewest(starts: &[DiskSet], goal: &Goal) -> Option<u64> {
    let even: Vec<(u64, u64)> = even(starts, goal).into_iter().map(bounds).collect();
    let is_even = |counts: &[u64]| counts.iter().zip(&even).all(|(n, (low, high))| (low..=high).contains(&n));
    reached(starts, goal).into_iter().filter(|(counts, _)| is_even(counts)).map(|(_, copies)| copies).min()
}

/// The counts by disk that placements lead to, each with its fewest copies.
fn reached(starts: &[DiskSet], goal: &Goal) -> HashMap<Vec<u64>, u64> {
    let sets: Vec<Vec<usize>> = (0u32..1 << goal.disks.len())
        .map(|mask| (0..goal.disks.len()).filter(|i| mask >> i & 1 == 1).collect::<Vec<usize>>())
        .filter(|set| set.len() == goal.replicas)
        .filter(|set| set.iter().all(|a| set.iter().all(|b| a == b || goal.disks[*a].domain != goal.disks[*b].domain)))
        .collect();
    // Every way to place the extents so far, by the counts that it leads to; of equal ones only the cheapest matters.
    let mut reached: HashMap<Vec<u64>, u64> = HashMap::from([(vec![0; goal.disks.len()], 0)]);
    for start in starts {
        let mut next: HashMap<Vec<u64>, u64> = HashMap::new();
        for (counts, copies) in &reached {
            let is_open = |i: &usize| !goal.disks[*i].closed || start.contains(goal.disks[*i].disk);
            for set in sets.iter().filter(|set| set.iter().all(is_open)) {
                let mut counts = counts.clone();
                set.iter().for_each(|i| counts[*i] += 1);
                let more = set.iter().filter(|i| !start.contains(goal.disks[**i].disk)).count() as u64;
                let best = next.entry(counts).or_insert(u64::MAX);
                *best = (*best).min(copies + more);
            }
        }
        reached = next;
    }
    reached
}
