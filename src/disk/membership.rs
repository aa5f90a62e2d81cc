//! Which disks carry the placement store, and whether enough of them are here. Pure.
//!
//! Every label of a pool carries the store members and an epoch. A commit of the store counts when a majority of the
//! members has it, so a pool may be opened only with a majority of the *last* members, and the question is how to know that
//! a membership is the last one when some disks are away. A change is therefore written in two rounds:
//!
//! 1. **Proposed**: all labels get the new epoch and members, and beside them the settled membership that they follow. The
//!    round succeeds when a majority of the old members and a majority of the new members have it.
//! 2. **Settled**: all labels get the new epoch and members alone. When a majority of the new members has this, the pool may
//!    be served under it, and never before.
//!
//! Opening takes the highest membership known to have been settled (from a settled label, or from what a proposal says it
//! follows) and wants a majority of it. If a later one was served, its proposal is on at least one of these disks; so of each
//! visible later proposal it must be certain that it was never served: a majority of the members it follows does not have it,
//! or a majority of its own members is here and none of them calls it settled. Otherwise the missing disks may hold newer
//! state, and the pool opens only when told to accept that.
//!
//! Raising the epoch is a change with the same members. A disk that missed changes is out of date, not in the way.
//!
//! **Branches.** Accepting that begins a history of which the missing disks know nothing. They may be a majority and go on as well,
//! so that epochs alone do not tell which of two disks is out of date and which one is of another history. Therefore a new
//! *branch* begins there, whose labels name the branch they left and its last epoch that they share. What is settled on other
//! branches, or later on that one, is of another history, and then nothing is opened. A proposal that begins a branch does not need
//! a majority of the members it follows; so that these do not have it does not prove that it was never served.
//!
//! Such a proposal may also have overwritten what a disk knew of later proposals. If it is found again and was never served,
//! whoever opens next begins a branch, too, even with a majority.

#[cfg(test)]
mod tests;

use uuid::Uuid;

use crate::base::ids::DiskId;

/// A disk that carries the placement store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Member {
    /// Its place in the pool.
    pub id: DiskId,
    /// Its UUID.
    pub uuid: Uuid,
}

/// A disk of the pool, so that it can be named when it is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RosterEntry {
    /// Its place in the pool.
    pub id: DiskId,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name, or the start of it.
    pub name: String,
    /// Whether the end of the name did not fit.
    pub name_is_cut: bool,
}

/// A membership under which the pool may have been served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settled {
    /// Its epoch, from 1.
    pub epoch: u64,
    /// Its store members.
    pub members: Vec<Member>,
}

/// Which history of the pool a membership is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Branch {
    /// A random number; 0: the first branch, of a pool that has always been opened with a majority.
    pub id: u64,
    /// The branch that it left.
    pub parent: u64,
    /// The last epoch of that branch which is part of this history; 0 on the first branch.
    pub since: u64,
}

impl Branch {
    /// The branch of a new pool.
    pub const FIRST: Branch = Branch { id: 0, parent: 0, since: 0 };

    /// Whether this history has a membership of the branch that it left.
    fn inherits(self, branch: u64, epoch: u64) -> bool {
        self.id != 0 && self.parent == branch && epoch <= self.since
    }
}

/// What a label says about its pool's disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Its epoch, from 1.
    pub epoch: u64,
    /// The store members, 1 to 3.
    pub members: Vec<Member>,
    /// If it is only proposed: the settled membership that it follows.
    pub proposed_after: Option<Settled>,
    /// The history that it is of.
    pub branch: Branch,
    /// All disks of the pool.
    pub roster: Vec<RosterEntry>,
}

impl Membership {
    /// The highest membership that this label knows to have been settled.
    fn settled(&self) -> Settled {
        match &self.proposed_after {
            Some(settled) => settled.clone(),
            None => Settled { epoch: self.epoch, members: self.members.clone() },
        }
    }

    /// The branch of that membership.
    fn settled_branch(&self) -> u64 {
        match &self.proposed_after {
            Some(settled) if settled.epoch <= self.branch.since => self.branch.parent,
            _ => self.branch.id,
        }
    }

    /// Whether it is the proposal with which its branch begins.
    fn begins_branch(&self) -> bool {
        self.settled_branch() != self.branch.id
    }
}

/// A disk that is here, and what its label says.
#[derive(Clone, Copy, Debug)]
pub struct Witness<'a> {
    /// The disk.
    pub disk: Member,
    /// What its label says.
    pub membership: &'a Membership,
}

/// A majority that is not here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shortfall {
    /// Store members of which a majority is wanted.
    pub members: Vec<Member>,
    /// How many of them are here.
    pub present: usize,
}

/// The outcome of [`decide`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The last membership, as far as the disks that are here know.
    pub settled: Settled,
    /// The branch of that membership.
    pub branch: u64,
    /// The branch of the next one; `None`: a new branch has to begin.
    pub next_branch: Option<Branch>,
    /// The disks of the pool.
    pub roster: Vec<RosterEntry>,
    /// The highest epoch seen: the next one must be higher.
    pub epoch_highest: u64,
    /// Majorities that are missing. With any, the missing disks may hold newer state.
    pub shortfalls: Vec<Shortfall>,
}

/// A disk, and how far its label is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Told {
    /// Its place in the pool.
    pub id: DiskId,
    /// Its name, or the start of it.
    pub name: String,
    /// The epoch in its label.
    pub epoch: u64,
}

fn list(disks: &[Told]) -> String {
    let one = |disk: &Told| format!("'{}' (epoch {})", disk.name, disk.epoch);
    disks.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// Why the labels give no membership at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// No disk.
    #[error("no disk of the pool is here")]
    NoDisk,
    /// The pool lives in two versions.
    #[error(
        "the disks hold different states of the pool: it was opened with --accept-stale while other disks were away, and these \
         may have been served without it; of one history: {}; not of it: {}; detach the disks of the one or of the other, look \
         which state is the one you need, keep its disks and wipe the others",
        list(one),
        list(other)
    )]
    Forked {
        /// Disks of the history with the highest epoch.
        one: Vec<Told>,
        /// Disks that are not of it.
        other: Vec<Told>,
    },
}

/// How many of `count` are a majority.
#[must_use]
pub fn majority(count: usize) -> usize {
    count / 2 + 1
}

/// What the labels of the disks that are here (of one pool) say about who carries the store.
///
/// # Errors
/// See [`MembershipError`].
pub fn decide(witnesses: &[Witness<'_>]) -> Result<Decision, MembershipError> {
    let epoch_highest = witnesses.iter().map(|w| w.membership.epoch).max().ok_or(MembershipError::NoDisk)?;
    let history = History::newest(witnesses)?;
    let mut shortfalls: Vec<Shortfall> = Vec::new();
    let mut want = |members: &[Member]| {
        let present = present(witnesses, members);
        if present < majority(members.len()) && !shortfalls.iter().any(|s| same_members(&s.members, members)) {
            shortfalls.push(Shortfall { members: members.to_vec(), present });
        }
    };
    want(&history.settled.members);
    for witness in witnesses.iter().filter(|w| history.leaves_open(witnesses, w.membership)) {
        want(&witness.membership.members);
    }
    let knows =
        |w: &&Witness<'_>| w.membership.settled_branch() == history.branch && w.membership.settled() == history.settled;
    // The roster that was written with it; failing that, the one of the earliest change after it.
    let first = witnesses.iter().filter(knows).min_by_key(|w| w.membership.epoch);
    let roster = first.map(|w| w.membership.roster.clone()).unwrap_or_default();
    let left = witnesses.iter().filter(knows).any(|w| w.membership.begins_branch());
    let History { settled, branch, origin, .. } = history;
    let next_branch = origin.filter(|_| !left);
    Ok(Decision { settled, branch, next_branch, roster, epoch_highest, shortfalls })
}

/// What was served one after the other, up to the highest membership that is known to have been settled.
struct History {
    settled: Settled,
    /// The branch of that.
    branch: u64,
    /// Where that branch comes from. `None`: it is known only from proposals that left it.
    origin: Option<Branch>,
    /// All branches that labels tell of.
    known: Vec<Branch>,
}

impl History {
    /// The history with the highest epoch, if all disks are of it.
    fn newest(witnesses: &[Witness<'_>]) -> Result<History, MembershipError> {
        let memberships = || witnesses.iter().map(|w| w.membership);
        let newest = memberships().max_by_key(|m| m.settled().epoch).ok_or(MembershipError::NoDisk)?;
        let branch = newest.settled_branch();
        let origin = match branch {
            0 => Some(Branch::FIRST),
            _ => memberships().map(|m| m.branch).find(|known| known.id == branch),
        };
        let known = memberships().map(|m| m.branch).collect();
        let history = History { settled: newest.settled(), branch, origin, known };
        let (one, other): (Vec<_>, Vec<_>) = witnesses.iter().partition(|w| history.contains(w.membership));
        if other.is_empty() {
            return Ok(history);
        }
        let told = |list: Vec<&Witness<'_>>| list.into_iter().map(told).collect();
        Err(MembershipError::Forked { one: told(one), other: told(other) })
    }

    /// Whether it has a membership of an earlier branch: of the one that it left, or of those before, as far as labels tell of them.
    fn inherits(&self, branch: u64, epoch: u64) -> bool {
        let left_by = |of: &Branch| self.known.iter().copied().find(|known| known.id == of.parent && known.id != 0);
        let mut line = std::iter::successors(self.origin, left_by).take(self.known.len() + 1);
        line.any(|of| of.inherits(branch, epoch))
    }

    /// Whether what a label calls settled is of this history. A branch of which nobody here knows how it came about is not.
    fn contains(&self, membership: &Membership) -> bool {
        let (settled, branch) = (membership.settled(), membership.settled_branch());
        let is_last = || same_members(&settled.members, &self.settled.members);
        (branch == self.branch && (settled.epoch < self.settled.epoch || is_last()))
            || self.inherits(branch, settled.epoch)
            || self.inherits(membership.branch.id, membership.epoch)
    }

    /// Whether a label proposes what may have been served, as far as the members that it followed tell, and is not of this
    /// history if it was.
    fn leaves_open(&self, witnesses: &[Witness<'_>], membership: &Membership) -> bool {
        let Some(follows) = &membership.proposed_after else { return false };
        let (branch, epoch) = (membership.branch.id, membership.epoch);
        let is_past = (branch == self.branch && epoch <= self.settled.epoch) || self.inherits(branch, epoch);
        !is_past && (membership.begins_branch() || can_have_been_accepted(witnesses, epoch, &follows.members))
    }
}

fn told(witness: &Witness<'_>) -> Told {
    let Witness { disk, membership } = witness;
    let entry = membership.roster.iter().find(|entry| entry.id == disk.id);
    let name = entry.map_or_else(|| format!("#{}", disk.id.0), |entry| entry.name.clone());
    Told { id: disk.id, name, epoch: membership.epoch }
}

fn present(witnesses: &[Witness<'_>], members: &[Member]) -> usize {
    members.iter().filter(|member| witnesses.iter().any(|w| w.disk == **member)).count()
}

/// Whether the first round of a change to `epoch` can have reached a majority of the members it followed.
fn can_have_been_accepted(witnesses: &[Witness<'_>], epoch: u64, follows: &[Member]) -> bool {
    let lacks = |member: &&Member| witnesses.iter().any(|w| w.disk == **member && w.membership.epoch < epoch);
    let without = follows.iter().filter(lacks).count();
    follows.len() - without >= majority(follows.len())
}

/// Whether two lists have the same members, in any order.
#[must_use]
pub fn same_members(one: &[Member], other: &[Member]) -> bool {
    one.len() == other.len() && one.iter().all(|member| other.contains(member))
}
