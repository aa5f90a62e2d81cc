//! Who carries the placement store, and what to warn of. Pure.

use super::Warning;
use crate::base::limits::STORE_MEMBERS_MAX;
use crate::disk::geometry::Role;
use crate::disk::identity::{FailureDomain, sharing};

/// Chooses up to three disks (indices) for the placement store: metadata-only disks first, then in the order given; a disk
/// that shares a failure domain with a chosen one only if there is no other.
pub(super) fn store_members(disks: &[(Role, &FailureDomain)]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..disks.len()).filter(|&i| disks[i].0 != Role::DataOnly).collect();
    order.sort_by_key(|&i| disks[i].0 != Role::MetadataOnly);
    let mut chosen: Vec<usize> = Vec::new();
    for apart in [true, false] {
        for &i in &order {
            let shares = chosen.iter().any(|&c| disks[c].1.shares_with(disks[i].1));
            if chosen.len() < STORE_MEMBERS_MAX && !chosen.contains(&i) && !(apart && shares) {
                chosen.push(i);
            }
        }
    }
    chosen.sort_unstable();
    chosen
}

/// What to warn of, given (name, failure domain) of all disks and of the store members that are here.
pub(super) fn warnings(
    all: &[(&str, &FailureDomain)],
    members: &[(&str, &FailureDomain)],
    member_count: usize,
    disk_count: usize,
) -> Vec<Warning> {
    let mut warnings: Vec<Warning> = sharing(all).into_iter().map(Warning::SharedDomain).collect();
    warnings.extend(sharing(members).into_iter().map(Warning::MembersShareDomain));
    match member_count {
        2 => warnings.push(Warning::TwoMembers),
        1 if disk_count > 1 => warnings.push(Warning::OneMember),
        _ => {}
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(disks: &[(Role, &str)]) -> Vec<usize> {
        let domains: Vec<FailureDomain> = disks.iter().map(|(_, domain)| FailureDomain::parse(domain)).collect();
        let disks: Vec<_> = disks.iter().zip(&domains).map(|((role, _), domain)| (*role, domain)).collect();
        store_members(&disks)
    }

    const ANY: Role = Role::Any;

    #[test]
    fn members_are_apart_where_possible() {
        assert_eq!(choose(&[(ANY, "a"), (ANY, "b"), (ANY, "c"), (ANY, "d")]), [0, 1, 2]);
        assert_eq!(choose(&[(ANY, "a"), (ANY, "a"), (ANY, "b"), (ANY, "c")]), [0, 2, 3]);
        assert_eq!(choose(&[(ANY, "a"), (ANY, "a"), (ANY, "a+b"), (ANY, "c")]), [0, 1, 3]);
        assert_eq!(choose(&[(ANY, "a"), (ANY, "a")]), [0, 1]);
        assert_eq!(choose(&[(ANY, "a")]), [0]);
    }

    #[test]
    fn roles_are_kept() {
        assert_eq!(choose(&[(Role::DataOnly, "a"), (ANY, "b")]), [1]);
        assert!(choose(&[(Role::DataOnly, "a")]).is_empty());
        assert_eq!(choose(&[(ANY, "a"), (ANY, "b"), (ANY, "c"), (Role::MetadataOnly, "d")]), [0, 1, 3]);
    }
}
