//! Windows of neighbouring extents: no disk holds more of one than twice its share.

use super::share::Limits;
use super::{Disks, disk_id};
use crate::base::bits::ones;
use crate::base::ids::DiskSet;
use crate::base::limits::DISKS_MAX;
use crate::base::units::ExtentIndex;

/// Counts of the window before and after the extent that is being dealt.
pub(super) struct Near<'a> {
    limits: &'a Limits,
    /// Of the extents in the same windows that come before.
    before: [u64; DISKS_MAX],
    /// Of this extent and those in the same windows that come after.
    after: [u64; DISKS_MAX],
    /// Where `after` ends.
    end: usize,
    /// For each disk one more than the last extent that got it.
    last: [usize; DISKS_MAX],
    /// For each disk the usual distance between extents on it.
    distance: [f64; DISKS_MAX],
}

impl<'a> Near<'a> {
    pub(super) fn new(limits: &'a Limits) -> Near<'a> {
        // A window has at most twice the share.
        let distance = |disk: usize| 2.0 * limits.window as f64 / limits.window_most[disk].max(1) as f64;
        let none = [0; DISKS_MAX];
        let distance = std::array::from_fn(distance);
        Near { limits, before: none, after: none, end: 0, last: [0; DISKS_MAX], distance }
    }

    /// Moves on to extent `at`, of which and of those behind `target` has what they had.
    pub(super) fn advance(&mut self, target: &[DiskSet], at: usize) {
        if self.limits.limited.is_empty() {
            return;
        }
        let window = self.limits.window;
        while self.end < target.len().min(at + window) {
            ones(target[self.end].0).for_each(|disk| self.after[disk] += 1);
            self.end += 1;
        }
        ones(target[at].0).for_each(|disk| self.after[disk] -= 1);
        if let Some(left) = at.checked_sub(window) {
            ones(target[left].0).for_each(|disk| self.before[disk] -= 1);
        }
    }

    /// Extent `at` is on these disks from now on.
    pub(super) fn chosen(&mut self, at: usize, set: DiskSet) {
        let counted = !self.limits.limited.is_empty();
        for disk in ones(set.0) {
            self.last[disk] = at + 1;
            self.before[disk] += u64::from(counted);
        }
    }

    /// How much of what it may have of the last window a disk has: 0 to 1.
    pub(super) fn density(&self, disk: usize) -> f64 {
        self.before[disk] as f64 / self.limits.window_most[disk].max(1) as f64
    }

    /// How far back the disk was used last, in usual distances, at most 1.
    pub(super) fn gap(&self, at: usize, disk: usize) -> f64 {
        match self.last[disk] {
            0 => 1.0,
            last => ((at + 1 - last) as f64 / self.distance[disk]).min(1.0),
        }
    }

    /// Whether extent `at` can have a replica on `disk`, given its neighbours.
    pub(super) fn has_room(&self, target: &[DiskSet], at: usize, disk: usize) -> bool {
        let quick = self.before[disk] + self.after[disk] < self.limits.window_most[disk];
        quick || has_room(target, at, disk, at, self.limits)
    }
}

/// Whether all windows around extent `at` are within the limit of `disk` if that extent is on it and extent `without` is not.
pub(super) fn has_room(target: &[DiskSet], at: usize, disk: usize, without: usize, limits: &Limits) -> bool {
    if !limits.limited.contains(disk_id(disk)) {
        return true;
    }
    let on = |i: usize| i == at || (i != without && target[i].0 >> disk & 1 == 1);
    let (window, most) = (limits.window, limits.window_most[disk]);
    let first = at.saturating_sub(window - 1).min(target.len() - window);
    let mut count = (first..first + window).filter(|i| on(*i)).count() as u64;
    for start in first..=at.min(target.len() - window) {
        if start > first {
            count -= u64::from(on(start - 1));
            count += u64::from(on(start + window - 1));
        }
        if count > most {
            return false;
        }
    }
    true
}

/// The disks of which some window has too much even if only replicas counted that stay where they are.
pub(super) fn clumpy(placed: &[(ExtentIndex, DiskSet)], target: &[DiskSet], limits: &Limits) -> DiskSet {
    let is_clumpy = |disk: &crate::base::ids::DiskId| {
        let disk = disk.index();
        let kept = |at: usize| (placed[at].1.0 & target[at].0) >> disk & 1 == 1;
        let mut count = 0u64;
        (0..placed.len()).any(|at| {
            count += u64::from(kept(at));
            count -= u64::from(at >= limits.window && kept(at - limits.window));
            count > limits.window_most[disk]
        })
    };
    limits.limited.iter().filter(is_clumpy).collect()
}

/// The fewest replicas that must leave their disks so that no window has too many.
pub(super) struct Bans {
    /// For each placed extent, disks where it may not stay.
    banned: Vec<DiskSet>,
}

impl Bans {
    pub(super) fn new(placed: &[(ExtentIndex, DiskSet)], disks: &Disks, limits: &Limits, clumpy: DiskSet) -> Bans {
        let mut banned = vec![DiskSet::default(); placed.len()];
        for disk in clumpy.iter() {
            let (mut count, index) = (0u64, disk.index());
            let stays = |at: usize, banned: &[DiskSet]| {
                let on = placed[at].1.0 & disks.all.0;
                // One that has to drop a replica anyway may drop this one for nothing.
                disks.can_all_stay(on) && on & !banned[at].0 & 1 << index != 0
            };
            for at in 0..placed.len() {
                count -= u64::from(at >= limits.window && stays(at - limits.window, &banned));
                let more = u64::from(stays(at, &banned));
                // Keeping what comes first keeps most: whatever is kept later is in fewer of the windows so far.
                if count + more > limits.window_most[index] {
                    banned[at].insert(disk);
                } else {
                    count += more;
                }
            }
        }
        Bans { banned }
    }

    /// The disks of `on` where extent `at` may not stay.
    pub(super) fn of(&self, at: usize, on: u64) -> u64 {
        self.banned[at].0 & on
    }
}
