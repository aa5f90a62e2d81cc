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

/// What a label says about its pool's disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Its epoch, from 1.
    pub epoch: u64,
    /// The store members, 1 to 3.
    pub members: Vec<Member>,
    /// If it is only proposed: the settled membership that it follows.
    pub proposed_after: Option<Settled>,
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
    /// The disks of the pool.
    pub roster: Vec<RosterEntry>,
    /// The highest epoch seen: the next one must be higher.
    pub epoch_highest: u64,
    /// Majorities that are missing. With any, the missing disks may hold newer state.
    pub shortfalls: Vec<Shortfall>,
}

/// Why the labels give no membership at all.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// No disk.
    #[error("no disk of the pool is here")]
    NoDisk,
    /// The pool lives in two versions.
    #[error(
        "the disks hold two different states of the pool, both of epoch {epoch}: it was opened with --accept-stale while other \
         disks were away; keep the disks of one state and wipe the others"
    )]
    Forked {
        /// Their common epoch.
        epoch: u64,
        /// Disks that tell of the one.
        one: Vec<DiskId>,
        /// Disks that tell of the other.
        other: Vec<DiskId>,
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
    let settled = last_settled(witnesses)?;
    let mut shortfalls: Vec<Shortfall> = Vec::new();
    let mut want = |members: &[Member]| {
        let present = present(witnesses, members);
        if present < majority(members.len()) && !shortfalls.iter().any(|s| same_members(&s.members, members)) {
            shortfalls.push(Shortfall { members: members.to_vec(), present });
        }
    };
    want(&settled.members);
    for witness in witnesses.iter().filter(|w| w.membership.epoch > settled.epoch) {
        let proposal = witness.membership;
        let follows = proposal.proposed_after.as_ref().expect("later than the last settled one, so only proposed");
        if can_have_been_accepted(witnesses, proposal.epoch, &follows.members) {
            want(&proposal.members);
        }
    }
    // The roster that was written with it; failing that, the one of the earliest change after it.
    let knows = witnesses.iter().filter(|w| w.membership.settled() == settled);
    let roster = knows.min_by_key(|w| w.membership.epoch).map(|w| w.membership.roster.clone()).unwrap_or_default();
    Ok(Decision { settled, roster, epoch_highest, shortfalls })
}

fn last_settled(witnesses: &[Witness<'_>]) -> Result<Settled, MembershipError> {
    let settled =
        witnesses.iter().map(|w| w.membership.settled()).max_by_key(|s| s.epoch).ok_or(MembershipError::NoDisk)?;
    let tells = |witness: &&Witness<'_>| witness.membership.settled().epoch == settled.epoch;
    let same = |witness: &&Witness<'_>| same_members(&witness.membership.settled().members, &settled.members);
    let (one, other): (Vec<_>, Vec<_>) = witnesses.iter().filter(tells).partition(same);
    if other.is_empty() {
        return Ok(settled);
    }
    let ids = |list: Vec<&Witness<'_>>| list.into_iter().map(|w| w.disk.id).collect();
    Err(MembershipError::Forked { epoch: settled.epoch, one: ids(one), other: ids(other) })
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
