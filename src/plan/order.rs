//! Turns differences into relocations, in an order that keeps all disks busy.

use super::{Disks, Relocation, disk_id};
use crate::base::bits::ones;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::DISKS_MAX;
use crate::base::units::ExtentIndex;

/// Place of "no disk" among sources and targets.
const NONE: usize = DISKS_MAX;
const ENDS: usize = DISKS_MAX + 1;

/// The steps from where the extents are to `target`.
///
/// What only drops replicas comes first, in extent order: it takes no time, and from then on it is settled which ones stay.
/// Of the rest, every pair of source and target has its steps in extent order; the pairs take turns, each in proportion to its number of
/// steps, so that all end together.
pub(super) fn relocations(placed: &[(ExtentIndex, DiskSet)], target: &[DiskSet], disks: &Disks) -> Vec<Relocation> {
    let mut counts = vec![0usize; ENDS * ENDS];
    let mut steps = Vec::new();
    each_step(placed, target, disks, |step| match step.to {
        Some(_) => counts[pair(&step)] += 1,
        None => steps.push(step),
    });
    let mut starts = counts.clone();
    let mut total = 0;
    for start in &mut starts {
        (*start, total) = (total, total + *start);
    }
    let nothing = Relocation { extent: ExtentIndex(0), from: None, to: None };
    let (mut by_pair, mut places) = (vec![nothing; total], starts.clone());
    each_step(placed, target, disks, |step| {
        if step.to.is_some() {
            let place = &mut places[pair(&step)];
            by_pair[*place] = step;
            *place += 1;
        }
    });
    let pairs: Vec<(usize, usize)> = starts.into_iter().zip(counts).filter(|(_, count)| *count > 0).collect();
    // One step per pair and round on average: linear, however unequal they are.
    let rounds = total.div_ceil(pairs.len().max(1));
    steps.reserve_exact(total);
    let until = |count: usize, round: usize| {
        let part = count as u128 * round as u128 / rounds as u128;
        usize::try_from(part).expect("at most the number of steps")
    };
    for round in 0..rounds {
        for (start, count) in &pairs {
            steps.extend_from_slice(&by_pair[start + until(*count, round)..start + until(*count, round + 1)]);
        }
    }
    steps
}

fn pair(step: &Relocation) -> usize {
    let place = |end: Option<DiskId>| end.map_or(NONE, DiskId::index);
    place(step.from) * ENDS + place(step.to)
}

fn each_step(placed: &[(ExtentIndex, DiskSet)], target: &[DiskSet], disks: &Disks, mut take: impl FnMut(Relocation)) {
    for ((extent, now), then) in placed.iter().zip(target) {
        let mut gone = now.0 & !then.0;
        let mut new = then.0 & !now.0;
        // A replica that is replaced within its failure domain is dropped for that one: no two are ever in one domain
        // that were not before.
        for within_domain in [true, false] {
            for to in ones(new) {
                let from = gone & if within_domain { disks.domain[to].0 } else { u64::MAX };
                let Some(from) = ones(from).next() else { continue };
                gone &= !(1 << from);
                new &= !(1 << to);
                take(Relocation { extent: *extent, from: Some(disk_id(from)), to: Some(disk_id(to)) });
            }
        }
        ones(new).for_each(|to| take(Relocation { extent: *extent, from: None, to: Some(disk_id(to)) }));
        ones(gone).for_each(|from| take(Relocation { extent: *extent, from: Some(disk_id(from)), to: None }));
    }
}
