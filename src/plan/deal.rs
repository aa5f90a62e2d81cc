//! Deals the quotas of the classes out to single extents, in one pass in extent order.
//!
//! Each class deals in proportion: after `t` of its `n` extents, `t / n` of every quota. Among what is equally due the disk is
//! preferred that the neighbours use least. A disk that would get more of a window than it may is passed over as long as the
//! quotas still work out without it.

use super::classes::{Class, Classes, Quota};
use super::share::Limits;
use super::windows::{Bans, Near};
use super::{Disks, PlanError};
use crate::base::ids::DiskSet;
use crate::base::units::ExtentIndex;

/// Added to what must be dealt now, or the quotas do not work out.
const MUST: f64 = 1e12;

/// Added to what would make a window too dense.
const DENSE: f64 = -1e6;

/// Weights of the neighbourhood against what is due, which seldom exceeds 1.
const JUST_USED: f64 = 0.4;
const USED_NEXT: f64 = 0.3;

/// The disks that each placed extent should be on. An error if what is not on closed disks has not room enough on the others.
pub(super) fn deal(
    placed: &[(ExtentIndex, DiskSet)],
    disks: &Disks,
    limits: &Limits,
    bans: Option<&Bans>,
) -> Result<Vec<DiskSet>, PlanError> {
    let Classes { mut classes, of } = Classes::new(placed, disks, limits, bans)?;
    // What an extent has until it is its turn: what it is likely to keep.
    let stays = |at: usize, set: DiskSet| {
        let on = set.0 & disks.all.0 & !bans.map_or(0, |bans| bans.of(at, set.0));
        DiskSet(if disks.can_all_stay(on) { on } else { 0 })
    };
    let mut target: Vec<DiskSet> = placed.iter().enumerate().map(|(at, (_, set))| stays(at, *set)).collect();
    if classes.iter().all(|class| class.stays) {
        return Ok(target);
    }
    let mut near = Near::new(limits);
    for at in 0..placed.len() {
        let class = &mut classes[of[at] as usize];
        near.advance(&target, at);
        target[at] = if class.stays {
            DiskSet(placed[at].1.0 & disks.all.0)
        } else {
            Dealer { class, disks, near: &near, target: &target, at }.deal()
        };
        near.chosen(at, target[at]);
    }
    Ok(target)
}

/// One extent and what it gets.
struct Dealer<'a> {
    class: &'a mut Class,
    disks: &'a Disks,
    near: &'a Near<'a>,
    target: &'a [DiskSet],
    at: usize,
}

impl Dealer<'_> {
    fn deal(&mut self) -> DiskSet {
        let left = self.class.extents - self.class.dealt;
        let mut scores = [f64::NEG_INFINITY; crate::base::limits::DISKS_MAX];
        for (score, quota) in scores.iter_mut().zip(&self.class.quotas) {
            *score = self.score(*quota, left);
        }
        let (mut chosen, mut taken) = (0u64, 0u64);
        let mut looked = 0u64;
        while chosen.count_ones() < self.disks.replicas {
            let open = |place: &usize| taken >> self.class.quotas[*place].disk & 1 == 0;
            let better = |a: usize, b: usize| if scores[b] > scores[a] { b } else { a };
            let best = (0..self.class.quotas.len()).filter(open).reduce(better);
            let best = best.expect("the quotas of a class are for as many domains as there are replicas");
            let disk = self.class.quotas[best].disk;
            let seen = looked >> disk & 1 == 1;
            looked |= 1 << disk;
            if self.target[self.at].0 >> disk & 1 == 0 && !seen && !self.near.has_room(self.target, self.at, disk) {
                scores[best] += DENSE;
                continue;
            }
            assert!(scores[best].is_finite(), "a quota that is used up is not chosen");
            self.class.quotas[best].left -= 1;
            chosen |= 1 << disk;
            taken |= self.disks.domain[disk].0;
        }
        self.class.dealt += 1;
        DiskSet(chosen)
    }

    /// How much the disk of a quota is due for this extent, of `left` that have not been dealt.
    fn score(&self, quota: Quota, left: u64) -> f64 {
        if quota.left == 0 {
            return f64::NEG_INFINITY;
        }
        let rate = quota.total as f64 / self.class.extents as f64;
        let due = rate * (self.class.dealt + 1) as f64 - (quota.total - quota.left) as f64;
        let gap = self.near.gap(self.at, quota.disk);
        let mut score = due - self.near.density(quota.disk) - JUST_USED * (1.0 - gap);
        let is_new = self.target[self.at].0 >> quota.disk & 1 == 0;
        if is_new && self.target.get(self.at + 1).is_some_and(|next| next.0 >> quota.disk & 1 == 1) {
            score -= USED_NEXT;
        }
        if self.is_due_in_domain(quota, left) { score + MUST } else { score }
    }

    /// Whether every extent of the class from now on needs a replica in the domain of the quota's disk.
    fn is_due_in_domain(&self, quota: Quota, left: u64) -> bool {
        let domain = self.disks.domain[quota.disk].0;
        if domain.count_ones() == 1 {
            return quota.left == left;
        }
        let members = self.class.quotas.iter().filter(|quota| domain >> quota.disk & 1 == 1);
        members.map(|quota| quota.left).sum::<u64>() == left
    }
}
