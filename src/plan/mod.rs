//! Plans: from where the extents of one VHD are, and a goal, to the relocations that lead there.
//!
//! Pure. Span, unspan, migrate, evacuate, rebalance and a change of the number of replicas are all the same question: which
//! disks should hold each extent, so that the goal is met and as little as possible is copied? Only disks matter here; slots
//! are chosen when a relocation is carried out.
//!
//! How it is done:
//! 1. `share`: how many replicas each disk should end up with (a whole number or, if that is not even, the one below or
//!    above), and how many it may have of any window of neighbours.
//! 2. `classes`: extents with equal replicas are one class. A minimum-cost flow from classes to disks says how many
//!    extents of each class stay and go where: the exact minimum, whatever the number of extents.
//! 3. `deal`: one pass in extent order deals these numbers out to single extents, neighbours to different disks.
//! 4. `windows`: if what was kept is too clumpy, the fewest replicas that must go for it are banned from their disks and
//!    2 and 3 are done again. `mend`: what is still too dense after that is exchanged with extents elsewhere.
//! 5. `order`: the differences become relocations, ordered so that all disks are busy.
//!
//! Invariants: the result depends on nothing but the arguments, and nothing is left to do once a plan was carried out. Planning
//! again after a part of a plan copies as much in total as the plan: the plan is a minimum, so its rest is one too. The
//! exception: where windows must be kept, exchanges are found by trying, and the total may differ by a few per cent (in tests
//! seldom, and most of all where replicas are dropped and windows decide which). Where disks are closed, a plan may also be followed
//! by another one: what is on such a disk is all the room it has, so that the others' shares grow when something goes. A relocation never puts a second
//! replica into a failure domain that was not shared before, and nothing onto a disk that is closed: other disks have more than
//! their share if there is no other way.
//!
//! Uses `base` only.

mod classes;
mod deal;
mod flow;
mod mend;
mod order;
mod share;
mod windows;

use crate::base::bits::ones;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::{DISKS_MAX, REPLICAS_MAX};
use crate::base::units::{ExtentIndex, Geometry};

pub use share::{Share, shares, shares_of_new};

/// A disk that the VHD is to be on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GoalDisk {
    /// The disk.
    pub disk: DiskId,
    /// Its capacity in slots: its weight among the others.
    pub slots: u32,
    /// Slots that may be taken now, besides those that the VHD has there.
    pub free: u32,
    /// Its failure domain: disks that fail together have the same number.
    pub domain: u32,
    /// It takes nothing now, whatever its room: what is there may stay.
    pub closed: bool,
}

/// Where the extents of a VHD are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Goal {
    /// The disks, in any order, each once.
    pub disks: Vec<GoalDisk>,
    /// Replicas of each extent, 1 to [`REPLICAS_MAX`].
    pub replicas: usize,
}

/// One step: give `extent` a replica on `to` and, once it is in sync, drop the one on `from`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Relocation {
    /// The extent.
    pub extent: ExtentIndex,
    /// The disk that loses its replica; `None`: the extent gets one replica more.
    pub from: Option<DiskId>,
    /// The disk that gets a replica; `None`: the extent has one replica fewer, nothing is copied.
    pub to: Option<DiskId>,
}

/// What to do, and what it leads to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps, in the order in which to start them.
    pub relocations: Vec<Relocation>,
    /// Replicas on each disk now, by disk: those of the goal, and those with at least one.
    pub before: Vec<(DiskId, u64)>,
    /// Replicas on each disk afterwards; the same disks.
    pub after: Vec<(DiskId, u64)>,
    /// Replicas that are made: what has to be copied, in extents.
    pub copies: u64,
    /// Stale replicas to fill where they are, before the steps. The planner knows of none.
    pub refill: Vec<Relocation>,
}

impl Plan {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.relocations.is_empty() && self.refill.is_empty()
    }

    /// Bytes to copy if all extents are written all over.
    #[must_use]
    pub fn bytes(&self, geometry: Geometry) -> u64 {
        self.copies.saturating_mul(geometry.extent_size())
    }
}

/// Why a goal cannot be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// The goal names no disk.
    #[error("the goal names no disk")]
    NoDisks,
    /// Replicas of an extent would have to share a failure domain.
    #[error("{replicas} replicas need as many failure domains, the disks have {domains}")]
    TooFewDomains {
        /// Failure domains of the goal's disks.
        domains: usize,
        /// Replicas wanted.
        replicas: usize,
    },
    /// The disks have too few slots, or those that take something now. What the VHD has there already counts as room.
    #[error(
        "{needed} slots are needed, the disks have room for {room}; disk #{} lacks most: {disk_needed} needed, room for \
         {disk_room}", disk.0
    )]
    NotEnoughRoom {
        /// Slots that the VHD needs in all.
        needed: u64,
        /// Slots that it can have on the disks in all: those it has and free ones, at most one of each extent in a failure
        /// domain.
        room: u64,
        /// The disk that lacks most.
        disk: DiskId,
        /// The even share of that disk, in slots.
        disk_needed: u64,
        /// Slots that the VHD can have there: those it has and free ones.
        disk_room: u64,
    },
}

/// The fewest copies that bring all extents to the goal.
///
/// `placed`: the extents that are placed, ascending, with the disks of their replicas. Afterwards each has exactly the
/// goal's number of replicas on the goal's disks, no two in one failure domain; every disk has its [`Share`], and its
/// share of each window of neighbours at most twice.
///
/// # Errors
/// If the goal cannot be reached, why not.
///
/// # Panics
/// If the goal names a disk twice or a number of replicas that is not legal, or `placed` is not ascending (a bug: commands
/// and records are checked).
pub fn plan(placed: &[(ExtentIndex, DiskSet)], goal: &Goal) -> Result<Plan, PlanError> {
    assert!(placed.is_sorted_by(|a, b| a.0 < b.0), "the extents are not ascending");
    let disks = Disks::new(goal);
    let limits = share::Limits::new(placed, goal)?;
    let mut target = deal::deal(placed, &disks, &limits, None)?;
    let clumpy = windows::clumpy(placed, &target, &limits);
    if !clumpy.is_empty() {
        let bans = windows::Bans::new(placed, &disks, &limits, clumpy);
        target = deal::deal(placed, &disks, &limits, Some(&bans))?;
    }
    mend::mend(placed, &mut target, &disks, &limits);
    let count = |sets: &mut dyn Iterator<Item = DiskSet>| {
        let mut counts = [0u64; DISKS_MAX];
        sets.for_each(|set| ones(set.0).for_each(|disk| counts[disk] += 1));
        counts
    };
    let before = count(&mut placed.iter().map(|(_, set)| *set));
    let after = count(&mut target.iter().copied());
    let named = |disk: &usize| disks.all.contains(disk_id(*disk)) || before[*disk] > 0;
    let list = |counts: [u64; DISKS_MAX]| (0..DISKS_MAX).filter(named).map(|d| (disk_id(d), counts[d])).collect();
    let relocations = order::relocations(placed, &target, &disks);
    let copies = relocations.iter().filter(|step| step.to.is_some()).count() as u64;
    Ok(Plan { relocations, before: list(before), after: list(after), copies, refill: Vec::new() })
}

/// Whether nothing has to be done for `goal`; `false` also if it cannot be reached.
///
/// # Panics
/// As [`plan`].
#[must_use]
pub fn goal_met(placed: &[(ExtentIndex, DiskSet)], goal: &Goal) -> bool {
    plan(placed, goal).is_ok_and(|plan| plan.relocations.is_empty())
}

/// The disks of a goal, as sets.
struct Disks {
    /// All of them.
    all: DiskSet,
    /// Those that take nothing.
    closed: DiskSet,
    /// By disk: those of its failure domain, itself among them.
    domain: [DiskSet; DISKS_MAX],
    /// Replicas of each extent.
    replicas: u32,
}

impl Disks {
    fn new(goal: &Goal) -> Disks {
        assert!((1..=REPLICAS_MAX).contains(&goal.replicas), "{} replicas", goal.replicas);
        let all: DiskSet = goal.disks.iter().map(|disk| disk.disk).collect();
        assert_eq!(all.len(), goal.disks.len(), "a disk is named twice");
        let mut domain = [DiskSet::default(); DISKS_MAX];
        for disk in &goal.disks {
            let twins = goal.disks.iter().filter(|other| other.domain == disk.domain);
            domain[disk.disk.index()] = twins.map(|other| other.disk).collect();
        }
        let closed = goal.disks.iter().filter(|disk| disk.closed).map(|disk| disk.disk).collect();
        Disks { all, closed, domain, replicas: u32::try_from(goal.replicas).expect("at most three replicas") }
    }

    /// Whether an extent that is on the disks `on` can be on `disk`.
    fn is_open_to(&self, on: u64, disk: usize) -> bool {
        (on | !self.closed.0) >> disk & 1 == 1
    }

    /// Whether replicas on the disks `on` of the goal can all stay.
    fn can_all_stay(&self, on: u64) -> bool {
        let is_alone = |disk: usize| self.domain[disk].0 & on & !(1 << disk) == 0;
        on.count_ones() <= self.replicas && ones(on).all(is_alone)
    }

    /// The disks that fail together with one of `set`.
    fn domains_of(&self, set: u64) -> u64 {
        ones(set).fold(0, |all, disk| all | self.domain[disk].0)
    }
}

fn disk_id(index: usize) -> DiskId {
    DiskId(u8::try_from(index).expect("an index below DISKS_MAX"))
}

#[cfg(test)]
mod tests;
