//! Which members must have a commit for it to count. Pure.

use crate::base::ids::DiskSet;

/// How many of `members` are a majority.
#[must_use]
pub fn majority(members: usize) -> usize {
    members / 2 + 1
}

/// Members of a store, a majority of which must have every commit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quorum {
    /// Those that are here.
    pub members: DiskSet,
    /// All of them.
    total: usize,
}

impl Quorum {
    pub fn new(members: DiskSet, total: usize) -> Quorum {
        assert!(members.len() <= total);
        Quorum { members, total }
    }

    /// Whether `have` are enough.
    pub fn is_reached(self, have: DiskSet) -> bool {
        DiskSet(have.0 & self.members.0).len() >= majority(self.total)
    }
}

/// The rule for commits: while a change of the members is being written to the labels, a majority of the ones and a majority of
/// the others. So whichever of the two a crash leaves in the labels, each of its majorities knows every commit that counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    pub current: Quorum,
    pub next: Option<Quorum>,
}

impl Rule {
    /// How many members must have a commit, at least.
    pub fn needed(self) -> usize {
        let next = self.next.map_or(0, |next| majority(next.total));
        majority(self.current.total).max(next)
    }

    /// Whether a commit that `have` have counts.
    pub fn is_met(self, have: DiskSet) -> bool {
        self.current.is_reached(have) && self.next.is_none_or(|next| next.is_reached(have))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::DiskId;

    fn set(disks: &[u8]) -> DiskSet {
        disks.iter().map(|&disk| DiskId(disk)).collect()
    }

    #[test]
    fn majorities_are_of_all_members_here_or_not() {
        let two_of_three = Quorum::new(set(&[0, 1]), 3);
        assert!(two_of_three.is_reached(set(&[0, 1, 7])) && !two_of_three.is_reached(set(&[0, 7])));
        let alone = Quorum::new(set(&[4]), 1);
        assert!(alone.is_reached(set(&[4])) && !alone.is_reached(set(&[])));
    }

    #[test]
    fn a_change_wants_both_majorities() {
        let rule = Rule { current: Quorum::new(set(&[0, 1, 2]), 3), next: Some(Quorum::new(set(&[0, 3]), 2)) };
        assert_eq!(rule.needed(), 2);
        assert!(!rule.is_met(set(&[0, 1])) && !rule.is_met(set(&[0, 3])) && rule.is_met(set(&[0, 1, 3])));
    }
}
