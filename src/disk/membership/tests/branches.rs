use super::*;

/// The branch that left the first one after epoch 5.
const CHILD: Branch = Branch { id: 77, parent: 0, since: 5 };

/// The branch that left that one after epoch 6.
const GRANDCHILD: Branch = Branch { id: 88, parent: 77, since: 6 };

fn on(branch: Branch, membership: Membership) -> Membership {
    Membership { branch, ..membership }
}

/// What disks have that missed all changes.
fn old(id: u8) -> (u8, Membership) {
    (id, settled(5, &[0, 1, 2]))
}

/// The sides of a fork, by disk.
fn forked(labels: &[(u8, Membership)]) -> (Vec<u8>, Vec<u8>) {
    let result = judge(labels);
    let Err(MembershipError::Forked { one, other }) = result else { panic!("{result:?}") };
    let ids = |told: Vec<Told>| told.iter().map(|disk| disk.id.0).collect();
    (ids(one), ids(other))
}

#[test]
fn a_fork_is_found_whichever_side_has_the_higher_epoch() {
    let ours = |epoch| move |id| (id, settled(epoch, &[0, 1, 2]));
    let theirs = |epoch| move |id| (id, on(CHILD, settled(epoch, &[2])));
    for (one, other) in [(7, 6), (6, 7), (6, 6), (6, 9), (9, 6)] {
        let (ours, theirs) = (ours(one), theirs(other));
        let (newest, rest) = forked(&[ours(0), ours(1), theirs(2), theirs(3)]);
        let (higher, lower) = if one > other { (vec![0, 1], vec![2, 3]) } else { (vec![2, 3], vec![0, 1]) };
        assert_eq!((newest, rest), (higher, lower), "{one} {other}");
        // The disk that carries no placement store tells of it as well.
        forked(&[ours(0), ours(1), theirs(3)]);
        // One that is out of date for both does not hide it.
        forked(&[old(4), ours(0), theirs(2)]);
    }
    let error = judge(&[ours(7)(0), theirs(6)(2)]).unwrap_err().to_string();
    for part in ["--accept-stale", "'#0' (epoch 7)", "'#2' (epoch 6)", "wipe"] {
        assert!(error.contains(part), "no {part} in: {error}");
    }
}

#[test]
fn two_branches_that_left_at_the_same_place_are_a_fork() {
    let other = Branch { id: 78, ..CHILD };
    assert_eq!(forked(&[(0, on(CHILD, settled(6, &[0]))), (1, on(other, settled(7, &[1])))]), (vec![1], vec![0]));
}

#[test]
fn what_was_shared_is_out_of_date() {
    let new = |id| (id, on(CHILD, settled(6, &[2])));
    let decision = judge(&[old(0), old(1), new(2), new(3), (4, settled(3, &[0, 1]))]).unwrap();
    assert_eq!((decision.settled.epoch, decision.branch, decision.next_branch), (6, 77, Some(CHILD)));
    assert_eq!(decision.shortfalls, []);
    // Also a proposal of that time that was given up.
    assert!(opens(&[(0, proposed(4, &[0], 3, &[0, 1, 2])), new(2)]));
    // And one that was settled on others.
    assert!(opens(&[(0, proposed(5, &[0, 1, 2], 4, &[0, 1, 2])), new(2)]));
}

#[test]
fn labels_that_an_interruption_left_behind_are_out_of_date() {
    let begun = |id| (id, on(CHILD, proposed(6, &[2], 5, &[0, 1, 2])));
    let done = |id| (id, on(CHILD, settled(6, &[2])));
    // Settled on one disk, proposed on another one, and not there on a third one.
    let decision = judge(&[old(0), old(1), done(2), begun(3), old(4)]).unwrap();
    assert_eq!((decision.settled.epoch, decision.branch, decision.next_branch), (6, 77, Some(CHILD)));
    assert_eq!(decision.shortfalls, []);
    // Proposed only, and the disk that could know better is here: it never was.
    let decision = judge(&[old(0), old(1), begun(2), begun(3)]).unwrap();
    assert_eq!((decision.settled.epoch, decision.branch, decision.epoch_highest), (5, 0, 6));
    assert_eq!(decision.shortfalls, []);
    // The one that follows the branch in which the interruption was.
    let next = |id| (id, on(GRANDCHILD, settled(7, &[2])));
    assert!(opens(&[next(2), begun(3), done(4)]));
    assert!(opens(&[(2, on(GRANDCHILD, proposed(7, &[2], 6, &[2]))), begun(3), done(4)]));
}

/// It needed no majority of the members before it: that these lack it does not prove that it was given up.
#[test]
fn a_proposal_that_begins_a_branch_is_doubted_until_its_members_are_here() {
    let begun = |id| (id, on(CHILD, proposed(6, &[2], 5, &[0, 1, 2])));
    let doubt = [Shortfall { members: members(&[2]), present: 0 }];
    assert_eq!(judge(&[old(0), old(1), begun(3)]).unwrap().shortfalls, doubt);
    // Nor when the others have gone on.
    let later = |id| (id, settled(8, &[0, 1, 2]));
    assert_eq!(judge(&[later(0), later(1), begun(3)]).unwrap().shortfalls, doubt);
    assert!(opens(&[later(0), later(1), begun(2), begun(3)]));
    forked(&[later(0), later(1), (2, on(CHILD, settled(6, &[2]))), begun(3)]);
}

/// A label tells of the branch that its own one left, and not of what was before that: another one has to.
#[test]
fn what_left_two_branches_ago_is_not_trusted() {
    let new = |id| (id, on(GRANDCHILD, settled(7, &[2])));
    assert_eq!(forked(&[old(0), new(2)]), (vec![2], vec![0]));
    assert!(opens(&[(0, on(CHILD, settled(6, &[2]))), new(2)]));
    assert!(opens(&[old(0), (1, on(CHILD, settled(6, &[2]))), new(2)]));
    assert_eq!(forked(&[(0, settled(6, &[0, 1, 2])), (1, on(CHILD, settled(6, &[2]))), new(2)]), (vec![1, 2], vec![0]));
    assert_eq!(forked(&[(0, on(CHILD, settled(7, &[2]))), new(2)]).1.len(), 1);
}

/// What the disks know of later changes may have been overwritten by an acceptance that was interrupted.
#[test]
fn after_an_interrupted_acceptance_a_branch_begins_in_any_case() {
    // 6 was proposed to all and served by 3 and 4. The others accepted that it is lost, and their power failed.
    let begun = |id| (id, on(CHILD, proposed(7, &[0, 1, 2], 5, &[0, 1, 2])));
    let decision = judge(&[begun(0), begun(1), begun(2)]).unwrap();
    assert_eq!((decision.settled.epoch, decision.shortfalls.len()), (5, 0));
    assert_eq!((decision.branch, decision.next_branch), (0, None));
    let again = Branch { id: 99, parent: 0, since: 5 };
    let now = |id| (id, on(again, settled(8, &[0, 1, 2])));
    let served = |id| (id, settled(6, &[2, 3, 4]));
    assert_eq!(forked(&[now(0), now(1), now(2), served(3), served(4)]), (vec![0, 1, 2], vec![3, 4]));
    // One that was interrupted before others went on is of no matter to them.
    let decision = judge(&[begun(0), served(3), served(4), served(2)]).unwrap();
    assert_eq!((decision.settled.epoch, decision.next_branch), (6, Some(Branch::FIRST)));
    // Where the branch itself came from may be known to nobody: that is no obstacle.
    let both = |id, branch| (id, on(Branch { id: branch, ..GRANDCHILD }, proposed(7, &[id], 6, &[2, 3])));
    let decision = judge(&[both(2, 91), both(3, 92)]).unwrap();
    assert_eq!((decision.branch, decision.next_branch, decision.shortfalls.len()), (77, None, 0));
}

/// A pool that is also opened without a majority. A serving is an event that follows another one.
#[derive(Default)]
struct Histories {
    labels: BTreeMap<u8, Membership>,
    /// Per event the one that it follows.
    follows: Vec<usize>,
    /// Per disk the last event that it was told of.
    told: BTreeMap<u8, usize>,
    /// By branch and epoch the event in whose state the pool is then.
    events: BTreeMap<(u64, u64), usize>,
    by_itself: u32,
    accepted: u32,
    forked: u32,
}

impl Histories {
    fn new() -> Histories {
        let labels = (0..5).map(|id| (id, settled(1, &[0, 1, 2]))).collect();
        let (told, events) = ((0..5).map(|id| (id, 0)).collect(), [((0, 1), 0)].into());
        Histories { labels, follows: vec![0], told, events, ..Histories::default() }
    }

    fn is_of(&self, event: usize, mut history: usize) -> bool {
        while history > event {
            history = self.follows[history];
        }
        history == event
    }

    /// One life of the daemon with the disks `here`; a loss is accepted if `accept`.
    fn live(&mut self, rng: &mut Rng, here: &[u8], accept: bool) {
        let labels: Vec<_> = here.iter().map(|id| (*id, self.labels[id].clone())).collect();
        let Ok(decision) = judge(&labels) else {
            self.forked += 1;
            return;
        };
        let stale = !decision.shortfalls.is_empty();
        if stale && !accept {
            return;
        }
        let before = self.events[&(decision.branch, decision.settled.epoch)];
        for id in here.iter().filter(|_| !stale) {
            assert!(self.is_of(self.told[id], before), "disk {id} is of another history: {labels:?}");
        }
        let mut candidates = here.to_vec();
        let count = 1 + rng.index(3.min(candidates.len()));
        let new: Vec<u8> = (0..count).map(|_| candidates.swap_remove(rng.index(candidates.len()))).collect();
        let next = decision.next_branch.filter(|_| !stale);
        let begin = || Branch { id: rng.next_u64() | 1, parent: decision.branch, since: decision.settled.epoch };
        let branch = next.unwrap_or_else(begin);
        let epoch = decision.epoch_highest + 1;
        let proposal = on(branch, proposed(epoch, &new, decision.settled.epoch, &[]));
        let proposal = Membership { proposed_after: Some(decision.settled.clone()), ..proposal };
        let works = [2, 6, 8][rng.index(3)];
        let first = self.write(rng, here, &proposal, works);
        // That a disk which is here may be of a history that only missing ones know was accepted with it.
        for id in first.iter().filter(|_| stale) {
            if !self.is_of(self.told[id], before) {
                self.told.insert(*id, before);
            }
        }
        let has = |wrote: &[u8], list: &[Member]| wrote.iter().filter(|id| list.contains(&member(**id))).count();
        let enough = |wrote: &[u8], list: &[Member]| has(wrote, list) >= majority(list.len());
        let old_agree = stale || enough(&first, &decision.settled.members);
        if !old_agree || !enough(&first, &members(&new)) || rng.chance(1, 6) {
            return;
        }
        // Settled on a disk, it may be found without having been served.
        self.events.insert((branch.id, epoch), before);
        let second = self.write(rng, here, &on(branch, settled(epoch, &new)), works);
        if !enough(&second, &members(&new)) {
            return;
        }
        let event = self.follows.len();
        self.follows.push(before);
        self.events.insert((branch.id, epoch), event);
        for id in first.iter().chain(&second) {
            self.told.insert(*id, event);
        }
        *(if stale { &mut self.accepted } else { &mut self.by_itself }) += 1;
    }

    fn write(&mut self, rng: &mut Rng, here: &[u8], membership: &Membership, works: u64) -> Vec<u8> {
        let wrote: Vec<u8> = here.iter().copied().filter(|_| rng.chance(works, 8)).collect();
        for id in &wrote {
            self.labels.insert(*id, membership.clone());
        }
        wrote
    }
}

/// Whatever is missing, wherever changes are interrupted and whenever a loss is accepted: a pool that opens by itself has disks of
/// one history only.
#[test]
fn a_pool_that_opens_by_itself_is_of_one_history() {
    let (mut by_itself, mut accepted, mut forked) = (0, 0, 0);
    for seed in 0..6000 {
        let mut rng = Rng::new(seed);
        let mut world = Histories::new();
        for _ in 0..20 {
            let often = 1 + rng.below(3);
            let here: Vec<u8> = (0..5).filter(|_| rng.chance(often, 4)).collect();
            let accept = rng.chance(1, 4);
            if !here.is_empty() {
                world.live(&mut rng, &here, accept);
            }
        }
        by_itself += world.by_itself;
        accepted += world.accepted;
        forked += world.forked;
    }
    assert!(by_itself > 3000 && accepted > 3000 && forked > 1000, "{by_itself} {accepted} {forked}");
}
