mod branches;

use std::collections::BTreeMap;

use super::*;
use crate::base::rng::Rng;

fn member(id: u8) -> Member {
    Member { id: DiskId(id), uuid: Uuid::from_u128(1 + u128::from(id)) }
}

fn members(ids: &[u8]) -> Vec<Member> {
    ids.iter().map(|&id| member(id)).collect()
}

fn settled(epoch: u64, ids: &[u8]) -> Membership {
    Membership { epoch, members: members(ids), proposed_after: None, branch: Branch::FIRST, roster: Vec::new() }
}

fn proposed(epoch: u64, ids: &[u8], after: u64, before: &[u8]) -> Membership {
    let follows = Settled { epoch: after, members: members(before) };
    let proposed_after = Some(follows);
    Membership { epoch, members: members(ids), proposed_after, branch: Branch::FIRST, roster: Vec::new() }
}

fn judge(labels: &[(u8, Membership)]) -> Result<Decision, MembershipError> {
    let witness = |(id, membership)| Witness { disk: member(id), membership };
    decide(&labels.iter().map(|(id, m)| witness((*id, m))).collect::<Vec<_>>())
}

fn opens(labels: &[(u8, Membership)]) -> bool {
    judge(labels).unwrap().shortfalls.is_empty()
}

#[test]
fn a_majority_of_the_last_members_opens_and_less_does_not() {
    let at = |id| (id, settled(5, &[0, 1, 2]));
    assert!(opens(&[at(0), at(1), at(2)]));
    assert!(opens(&[at(0), at(2)]));
    let alone = judge(&[at(1)]).unwrap();
    assert_eq!(alone.shortfalls, [Shortfall { members: members(&[0, 1, 2]), present: 1 }]);
    // A disk without the store does not count.
    assert!(!opens(&[at(1), at(7)]));
    assert_eq!(judge(&[]), Err(MembershipError::NoDisk));
}

#[test]
fn of_two_members_both_are_needed() {
    let at = |id| (id, settled(5, &[0, 1]));
    assert!(opens(&[at(0), at(1)]));
    assert!(!opens(&[at(0)]));
}

#[test]
fn a_disk_that_missed_changes_is_no_obstacle() {
    let decision = judge(&[(0, settled(5, &[0, 1, 2])), (3, settled(9, &[3, 4, 1])), (4, settled(9, &[3, 4, 1]))]);
    let decision = decision.unwrap();
    assert_eq!((decision.settled.epoch, decision.shortfalls.len()), (9, 0));
}

#[test]
fn former_members_alone_do_not_open() {
    // 2 was dropped: what it and 0 know is enough, but 2 with its old label alone is not.
    assert!(!opens(&[(2, settled(5, &[0, 1, 2]))]));
    assert!(!opens(&[(2, settled(5, &[0, 1, 2])), (1, settled(6, &[0, 1]))]));
    assert!(opens(&[(0, settled(6, &[0, 1])), (1, settled(6, &[0, 1]))]));
}

#[test]
fn a_proposal_that_reached_one_disk_only_is_ignored() {
    let old = |id| (id, settled(5, &[0, 1, 2]));
    let new = proposed(6, &[0, 3], 5, &[0, 1, 2]);
    let decision = judge(&[(0, new.clone()), old(1), old(2)]).unwrap();
    assert_eq!((decision.settled.epoch, decision.epoch_highest, decision.shortfalls.len()), (5, 6, 0));
    // Without disk 2 nobody knows: 2 and 3 may have been served with it.
    let unsure = judge(&[(0, new), old(1)]).unwrap();
    assert_eq!(unsure.shortfalls, [Shortfall { members: members(&[0, 3]), present: 1 }]);
}

#[test]
fn a_proposal_on_all_disks_is_undone_or_done_by_whoever_opens_next() {
    let at = |id| (id, proposed(6, &[0, 1, 3], 5, &[0, 1, 2]));
    let decision = judge(&[at(0), at(1), at(2), at(3)]).unwrap();
    assert_eq!((decision.settled.epoch, decision.shortfalls.len()), (5, 0));
    assert_eq!(decision.settled.members, members(&[0, 1, 2]));
}

#[test]
fn two_states_of_one_epoch_are_a_fork() {
    let error = judge(&[(0, settled(6, &[0])), (1, settled(6, &[1, 2])), (2, settled(6, &[1, 2]))]).unwrap_err();
    let MembershipError::Forked { one, other } = &error else { panic!("{error}") };
    assert_eq!(one.len() + other.len(), 3);
    assert!(error.to_string().contains("--accept-stale"));
}

/// A pool whose disks come and go, and whose changes of membership are interrupted anywhere.
struct World {
    labels: BTreeMap<u8, Membership>,
    /// Per disk the number of the last commit it has.
    commits: BTreeMap<u8, u64>,
    acknowledged: u64,
    served: u32,
    refused: u32,
}

impl World {
    fn new() -> World {
        let labels = (0..5).map(|id| (id, settled(1, &[0, 1, 2]))).collect();
        World { labels, commits: BTreeMap::new(), acknowledged: 0, served: 0, refused: 0 }
    }

    /// One life of the daemon with the disks `here`, of which each label write works with probability `works` of 8.
    fn live(&mut self, rng: &mut Rng, here: &[u8]) {
        let labels: Vec<_> = here.iter().map(|id| (*id, self.labels[id].clone())).collect();
        let decision = judge(&labels).expect("nobody forks a pool without --accept-stale");
        if !decision.shortfalls.is_empty() {
            self.refused += 1;
            return;
        }
        let at = |id: &u8| self.commits.get(id).copied().unwrap_or(0);
        let old: Vec<u8> = decision.settled.members.iter().map(|m| m.id.0).filter(|id| here.contains(id)).collect();
        let newest = old.iter().map(at).max().unwrap();
        assert!(newest >= self.acknowledged, "opened without commit {}: {:?}", self.acknowledged, self.labels);
        // Members that are behind are brought up before they are members again.
        let mut candidates = here.to_vec();
        let count = 1 + rng.index(3.min(candidates.len()));
        let new: Vec<u8> = (0..count).map(|_| candidates.swap_remove(rng.index(candidates.len()))).collect();
        for id in &new {
            self.commits.insert(*id, newest);
        }
        let mut order = here.to_vec();
        order.sort_by_key(|_| rng.next_u64());
        let works = [2, 6, 8][rng.index(3)];
        let epoch = decision.epoch_highest + 1;
        let proposal = Membership {
            epoch,
            members: members(&new),
            proposed_after: Some(decision.settled.clone()),
            branch: decision.next_branch.expect("no branch has been begun"),
            roster: Vec::new(),
        };
        let first = self.write(rng, &order, &proposal, works);
        let has = |wrote: &[u8], list: &[Member]| wrote.iter().filter(|id| list.contains(&member(**id))).count();
        let enough = |wrote: &[u8], list: &[Member]| has(wrote, list) >= majority(list.len());
        if !enough(&first, &decision.settled.members) || !enough(&first, &members(&new)) || rng.chance(1, 6) {
            return;
        }
        let second = self.write(rng, &order, &settled(epoch, &new), works);
        if !enough(&second, &members(&new)) {
            return;
        }
        self.served += 1;
        for _ in 0..rng.below(3) {
            let mut voters = new.clone();
            voters.sort_by_key(|_| rng.next_u64());
            let have = majority(new.len()) + rng.index(new.len() - majority(new.len()) + 1);
            self.acknowledged = newest.max(self.acknowledged) + 1;
            for id in &voters[..have] {
                self.commits.insert(*id, self.acknowledged);
            }
        }
    }

    fn write(&mut self, rng: &mut Rng, order: &[u8], membership: &Membership, works: u64) -> Vec<u8> {
        let mut wrote = Vec::new();
        for id in order {
            if rng.chance(works, 8) {
                self.labels.insert(*id, membership.clone());
                wrote.push(*id);
            }
        }
        wrote
    }
}

/// Whatever is missing at each start and wherever changes are interrupted: a pool that opens has every acknowledged commit.
#[test]
fn a_pool_that_opens_has_every_acknowledged_commit() {
    let (mut served, mut refused) = (0, 0);
    for seed in 0..4000 {
        let mut rng = Rng::new(seed);
        let mut world = World::new();
        for _ in 0..30 {
            let here: Vec<u8> = (0..5).filter(|_| rng.chance(3, 4)).collect();
            if !here.is_empty() {
                world.live(&mut rng, &here);
            }
        }
        served += world.served;
        refused += world.refused;
        // With all disks here it always opens: nothing that was interrupted locks a pool for good.
        let all: Vec<_> = world.labels.iter().map(|(id, m)| (*id, m.clone())).collect();
        assert!(opens(&all), "seed {seed}: {all:?}");
    }
    assert!(served > 10_000 && refused > 10_000, "served {served}, refused {refused}");
}
