//! Classes of extents with equal replicas, and how many extents of each class go where.
//!
//! What a copy costs depends on nothing but the disks that an extent is on. So the fewest copies are found on classes, of which
//! there are few, and not on extents: a minimum-cost flow from the classes through the failure domains (one replica
//! of each extent) to the disks (their shares).

use std::collections::HashMap;

use super::flow::Network;
use super::share::Limits;
use super::windows::Bans;
use super::{Disks, PlanError, disk_id};
use crate::base::bits::ones;
use crate::base::ids::DiskSet;
use crate::base::limits::DISKS_MAX;
use crate::base::units::ExtentIndex;

/// What making one replica costs. Less than this decides only between plans with equally many copies; a path
/// through the network visits each disk once, so that these small costs never add up to it.
const COPY: i64 = 1 << 10;

/// What a replica costs on a disk that it is banned from: more than moving it away and another one there instead.
const BANNED: i64 = 4 * COPY;

/// What it is worth that a disk has its share, rounded down: more than any path can cost.
const SHARE: i64 = 1 << 24;

/// What an extent has to do with the goal's disks.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    /// Those that have a replica.
    on: u64,
    /// Those of them that should not.
    banned: u64,
}

/// Replicas that a class is still to have on one disk.
#[derive(Clone, Copy)]
pub(super) struct Quota {
    /// Index of the disk.
    pub disk: usize,
    /// Of all extents of the class.
    pub total: u64,
    /// Of those that have not been dealt.
    pub left: u64,
}

/// Extents of one kind.
pub(super) struct Class {
    kind: Kind,
    /// How many there are.
    pub extents: u64,
    /// How many have been dealt.
    pub dealt: u64,
    /// Where their replicas go; disks that get none are not listed.
    pub quotas: Vec<Quota>,
    /// Whether every extent stays as it is.
    pub stays: bool,
}

/// All classes, and which extent is of which.
pub(super) struct Classes {
    pub classes: Vec<Class>,
    /// For each placed extent its class.
    pub of: Vec<u32>,
}

impl Classes {
    pub(super) fn new(
        placed: &[(ExtentIndex, DiskSet)],
        disks: &Disks,
        limits: &Limits,
        bans: Option<&Bans>,
    ) -> Result<Classes, PlanError> {
        let mut classes: Vec<Class> = Vec::new();
        let mut known: HashMap<Kind, u32> = HashMap::new();
        // Few kinds alternate: most extents are found here, without hashing.
        let mut recent: [Option<(Kind, u32)>; 64] = [None; 64];
        let class_of = |(at, (_, set)): (usize, &(ExtentIndex, DiskSet))| {
            let on = set.0 & disks.all.0;
            let kind = Kind { on, banned: bans.map_or(0, |bans| bans.of(at, on)) };
            let place =
                &mut recent[((on ^ kind.banned.rotate_left(7)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize];
            let class = match *place {
                Some((found, class)) if found == kind => class,
                _ => *known.entry(kind).or_insert_with(|| {
                    classes.push(Class { kind, extents: 0, dealt: 0, quotas: Vec::new(), stays: false });
                    u32::try_from(classes.len() - 1).expect("at most one class per extent")
                }),
            };
            *place = Some((kind, class));
            classes[class as usize].extents += 1;
            class
        };
        let of = placed.iter().enumerate().map(class_of).collect();
        fill(&mut classes, disks, limits)?;
        Ok(Classes { classes, of })
    }
}

/// Gives each class its quotas. An error if what is not on closed disks has not room enough on the others.
fn fill(classes: &mut [Class], disks: &Disks, limits: &Limits) -> Result<(), PlanError> {
    let replicas = u64::from(disks.replicas);
    let estimate = Estimate::new(classes, disks, limits);
    let (source, sink, first_class) = (DISKS_MAX, DISKS_MAX + 1, DISKS_MAX + 2);
    let domains: Vec<u64> = {
        let mut seen = 0u64;
        let fresh = |disk: &usize| {
            let fresh = seen >> disk & 1 == 0;
            seen |= disks.domain[*disk].0;
            fresh
        };
        ones(disks.all.0).filter(fresh).map(|disk| disks.domain[disk].0).collect()
    };
    let mut network = Network::new(first_class + classes.len() * (1 + domains.len()));
    for disk in ones(disks.all.0) {
        network.edge(disk, sink, limits.least[disk], -SHARE);
        network.edge(disk, sink, limits.most[disk] - limits.least[disk], 0);
        if !disks.closed.is_empty() && !disks.closed.contains(disk_id(disk)) {
            // The shares of closed disks may be for extents that are not there.
            network.edge(disk, sink, limits.room[disk] - limits.most[disk], SHARE);
        }
    }
    // (class, disk, edge)
    let mut carriers: Vec<(usize, usize, usize)> = Vec::new();
    for (index, class) in classes.iter().enumerate() {
        let node = first_class + index * (1 + domains.len());
        network.edge(source, node, class.extents * replicas, 0);
        for (domain, place) in domains.iter().zip(node + 1..) {
            network.edge(node, place, class.extents, 0);
            for disk in ones(*domain).filter(|disk| disks.is_open_to(class.kind.on, *disk)) {
                let cost = class.kind.cost(disk);
                // Up to what is expected of a class it goes there first, so that equal plans mix the classes evenly.
                let expected = estimate.expect(class, disk).min(class.extents);
                carriers.push((index, disk, network.edge(place, disk, expected, cost)));
                carriers.push((index, disk, network.edge(place, disk, class.extents - expected, cost + 1)));
            }
        }
    }
    let wanted = classes.iter().map(|class| class.extents * replicas).sum::<u64>();
    let sent = network.send(source, sink);
    if !disks.closed.is_empty() && sent < wanted {
        return Err(too_little_is_open(wanted, sent, disks, limits));
    }
    assert_eq!(sent, wanted, "the shares leave room for every replica");
    for (index, disk, edge) in carriers {
        let carried = network.carried(edge);
        let quotas = &mut classes[index].quotas;
        match quotas.last_mut() {
            Some(last) if last.disk == disk => (last.total, last.left) = (last.total + carried, last.left + carried),
            _ => quotas.push(Quota { disk, total: carried, left: carried }),
        }
    }
    for class in classes {
        class.quotas.retain(|quota| quota.total > 0);
        class.stays = class.quotas.iter().all(|quota| class.kind.on >> quota.disk & 1 == 1)
            && u64::from(class.kind.on.count_ones()) == replicas;
    }
    Ok(())
}

/// `wanted` replicas are more than have a place. The one that lacks most is the open disk with the least room.
fn too_little_is_open(wanted: u64, room: u64, disks: &Disks, limits: &Limits) -> PlanError {
    let open = ones(disks.all.0 & !disks.closed.0).min_by_key(|disk| limits.room[*disk]);
    let disk = open.or_else(|| ones(disks.all.0).next()).unwrap_or(0);
    let disk_room = limits.room[disk];
    let disk_needed = disk_room + (wanted - room);
    PlanError::NotEnoughRoom { needed: wanted, room, disk: disk_id(disk), disk_needed, disk_room }
}

impl Kind {
    /// What a replica on `disk` costs.
    fn cost(self, disk: usize) -> i64 {
        match (self.on >> disk & 1, self.banned >> disk & 1) {
            (_, 1) => BANNED,
            (1, _) => 0,
            _ => COPY,
        }
    }
}

/// What to expect of each class if all did the same.
struct Estimate {
    had: [u64; DISKS_MAX],
    gains: [u64; DISKS_MAX],
    gains_all: u64,
    most: [u64; DISKS_MAX],
    replicas: u32,
}

impl Estimate {
    fn new(classes: &[Class], disks: &Disks, limits: &Limits) -> Estimate {
        let mut had = [0; DISKS_MAX];
        for class in classes {
            ones(class.kind.on & !class.kind.banned).for_each(|disk| had[disk] += class.extents);
        }
        let gains = std::array::from_fn(|disk| limits.most[disk].saturating_sub(had[disk]));
        Estimate { had, gains, gains_all: gains.iter().sum(), most: limits.most, replicas: disks.replicas }
    }

    /// Replicas of `class` on `disk`.
    fn expect(&self, class: &Class, disk: usize) -> u64 {
        let stay = class.kind.on & !class.kind.banned;
        let part = |of: u64, over: u64, under: u64| {
            let part = (u128::from(of) * u128::from(over)).div_ceil(u128::from(under.max(1)));
            u64::try_from(part).unwrap_or(u64::MAX)
        };
        let kept = |disk: usize| part(class.extents, self.most[disk].min(self.had[disk]), self.had[disk]);
        if stay >> disk & 1 == 1 {
            return kept(disk);
        }
        let kept_all: u64 = ones(stay).map(kept).sum();
        let moved = (class.extents * u64::from(self.replicas)).saturating_sub(kept_all);
        part(moved, self.gains[disk], self.gains_all)
    }
}
