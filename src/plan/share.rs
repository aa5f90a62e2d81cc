//! How many replicas each disk of a goal should have, and how many of each window of neighbours it may have.
//!
//! Even means in proportion to capacity, as far as three limits allow: a disk holds at most one replica of each extent, a
//! failure domain likewise, and a disk has only so much room. What exceeds a limit goes to the other disks in proportion
//! (water filling), in exact fractions: the numbers must be the same after a part of a plan was carried out.

use super::{Goal, GoalDisk, PlanError};
use crate::base::bits::ones;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::DISKS_MAX;
use crate::base::units::ExtentIndex;

/// Windows are this many times as long as there are disks.
const WINDOW_ROUNDS: usize = 4;

/// What a disk of the goal should have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// The disk.
    pub disk: DiskId,
    /// Replicas, if its even share is rounded down.
    pub least: u64,
    /// Replicas, if its even share is rounded up.
    pub most: u64,
    /// Replicas that it may have of any `4 x width` extents that follow one another: twice its share of them, rounded up.
    pub window_most: u64,
}

/// The shares of the goal's disks, in the goal's order, for the placed extents.
///
/// # Errors
/// If the goal cannot be reached, why not.
pub fn shares(placed: &[(ExtentIndex, DiskSet)], goal: &Goal) -> Result<Vec<Share>, PlanError> {
    shares_of(placed.len() as u64, &had(placed), goal)
}

/// The shares of the goal's disks, in the goal's order, for so many extents that are placed nowhere yet.
///
/// # Errors
/// If the goal cannot be reached, why not.
pub fn shares_of_new(extents: u64, goal: &Goal) -> Result<Vec<Share>, PlanError> {
    shares_of(extents, &[0; DISKS_MAX], goal)
}

fn shares_of(extents: u64, had: &[u64; DISKS_MAX], goal: &Goal) -> Result<Vec<Share>, PlanError> {
    let Some(first) = goal.disks.first() else { return Err(PlanError::NoDisks) };
    let mut domains: Vec<u32> = goal.disks.iter().map(|disk| disk.domain).collect();
    domains.sort_unstable();
    domains.dedup();
    if domains.len() < goal.replicas {
        return Err(PlanError::TooFewDomains { domains: domains.len(), replicas: goal.replicas });
    }
    let room = |disk: &GoalDisk| room_on(disk, had);
    let needed = extents * goal.replicas as u64;
    let within: Vec<u64> = goal.disks.iter().map(|disk| room(disk).min(extents)).collect();
    let in_domain =
        |domain| -> u64 { (0..within.len()).filter(|i| goal.disks[*i].domain == domain).map(|i| within[i]).sum() };
    let usable: u64 = domains.iter().map(|domain| in_domain(*domain).min(extents)).sum();
    if usable < needed {
        let ideal = fill_domains(goal, &vec![extents; goal.disks.len()], &domains, extents);
        let lacks = |(disk, ideal): &(&GoalDisk, Fraction)| ideal.ceil().saturating_sub(room(disk));
        let worst = goal.disks.iter().zip(ideal).max_by_key(lacks);
        let (disk, disk_needed) = worst.map_or((first, 0), |(disk, ideal)| (disk, ideal.ceil()));
        let disk_room = room(disk);
        return Err(PlanError::NotEnoughRoom { needed, room: usable, disk: disk.disk, disk_needed, disk_room });
    }
    let ideal = fill_domains(goal, &within, &domains, extents);
    let window = (WINDOW_ROUNDS * goal.disks.len()) as u128;
    let window_most = |share: Fraction| match extents {
        0 => 0,
        _ => Fraction { over: share.over * 2 * window, under: share.under * u128::from(extents) }.ceil(),
    };
    let share = |(disk, ideal): (&GoalDisk, Fraction)| Share {
        disk: disk.disk,
        least: ideal.floor(),
        most: ideal.ceil(),
        window_most: window_most(ideal),
    };
    Ok(goal.disks.iter().zip(ideal).map(share).collect())
}

/// Slots that the VHD can have on a disk: those it has, and those it can get.
fn room_on(disk: &GoalDisk, had: &[u64; DISKS_MAX]) -> u64 {
    had[disk.disk.index()] + if disk.closed { 0 } else { u64::from(disk.free) }
}

/// Replicas on each disk.
fn had(placed: &[(ExtentIndex, DiskSet)]) -> [u64; DISKS_MAX] {
    let mut had = [0u64; DISKS_MAX];
    placed.iter().for_each(|(_, set)| ones(set.0).for_each(|disk| had[disk] += 1));
    had
}

/// The shares by disk number, for the passes over all extents.
pub(super) struct Limits {
    /// See [`Share::least`]; 0 for other disks.
    pub least: [u64; DISKS_MAX],
    /// See [`Share::most`]; 0 for other disks.
    pub most: [u64; DISKS_MAX],
    /// Replicas that there can be, beyond any share; 0 for other disks.
    pub room: [u64; DISKS_MAX],
    /// See [`Share::window_most`].
    pub window_most: [u64; DISKS_MAX],
    /// Extents of a window.
    pub window: usize,
    /// The disks whose limit can be exceeded at all.
    pub limited: DiskSet,
}

impl Limits {
    pub(super) fn new(placed: &[(ExtentIndex, DiskSet)], goal: &Goal) -> Result<Limits, PlanError> {
        let (least, most, window_most) = ([0; DISKS_MAX], [0; DISKS_MAX], [u64::MAX; DISKS_MAX]);
        let window = WINDOW_ROUNDS * goal.disks.len();
        let mut limits = Limits { least, most, room: most, window_most, window, limited: DiskSet::default() };
        let (extents, had) = (placed.len() as u64, had(placed));
        for (share, of) in shares_of(extents, &had, goal)?.into_iter().zip(&goal.disks) {
            let disk = share.disk.index();
            (limits.least[disk], limits.most[disk]) = (share.least, share.most);
            limits.room[disk] = room_on(of, &had).min(extents);
            limits.window_most[disk] = share.window_most;
            // On one or two disks there is no better way than taking turns, which shares need not allow. A closed disk has what it has.
            if !of.closed && goal.disks.len() > 2 && placed.len() >= window && share.window_most < window as u64 {
                limits.limited.insert(share.disk);
            }
        }
        Ok(limits)
    }
}

/// A number that is not negative.
#[derive(Clone, Copy)]
struct Fraction {
    over: u128,
    under: u128,
}

impl Fraction {
    fn floor(self) -> u64 {
        u64::try_from(self.over / self.under).expect("a share is at most the number of extents")
    }

    fn ceil(self) -> u64 {
        u64::try_from(self.over.div_ceil(self.under)).expect("a share is at most the number of extents")
    }
}

/// Even shares of all replicas, each at most the disk's limit and at most `extents` in a failure domain. There is room.
fn fill_domains(goal: &Goal, most: &[u64], domains: &[u32], extents: u64) -> Vec<Fraction> {
    let members = |chosen: &[u32]| -> Vec<usize> {
        (0..most.len()).filter(|i| chosen.contains(&goal.disks[*i].domain)).collect()
    };
    let mut shares = vec![Fraction { over: 0, under: 1 }; most.len()];
    let (mut open, mut left) = (domains.to_vec(), extents * goal.replicas as u64);
    loop {
        fill(goal, most, &members(&open), left, &mut shares);
        // A domain that is full stays full: what it cannot take only raises the level of the others.
        let is_over = |domain: u32| {
            let inside = members(&[domain]);
            let sum: u128 = inside.iter().map(|i| shares[*i].over).sum();
            inside.first().is_some_and(|i| sum > u128::from(extents) * shares[*i].under)
        };
        let (full, rest): (Vec<u32>, Vec<u32>) = open.iter().partition(|domain| is_over(**domain));
        if full.is_empty() {
            return shares;
        }
        for domain in full {
            fill(goal, most, &members(&[domain]), extents, &mut shares);
            left -= extents;
        }
        open = rest;
    }
}

/// Even shares of `total` for the disks `members`, each at most its limit. All get the same denominator.
fn fill(goal: &Goal, most: &[u64], members: &[usize], total: u64, shares: &mut [Fraction]) {
    // A disk without slots can still hold what it has.
    let weight = |i: usize| u128::from(goal.disks[i].slots.max(1));
    let (mut open, mut left) = (members.to_vec(), u128::from(total));
    let under = loop {
        let weights: u128 = open.iter().map(|i| weight(*i)).sum();
        let is_over = |i: usize| left * weight(i) > u128::from(most[i]) * weights;
        let (full, rest): (Vec<usize>, Vec<usize>) = open.iter().partition(|i| is_over(**i));
        if full.is_empty() {
            open.iter().for_each(|i| shares[*i] = Fraction { over: left * weight(*i), under: weights });
            break weights.max(1);
        }
        left -= full.iter().map(|i| u128::from(most[*i])).sum::<u128>();
        open = rest;
    };
    assert!(!open.is_empty() || left == 0, "there is room for all");
    for i in members.iter().filter(|i| !open.contains(i)) {
        shares[*i] = Fraction { over: u128::from(most[*i]) * under, under };
    }
}
