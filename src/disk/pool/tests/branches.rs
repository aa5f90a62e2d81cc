use super::*;

/// One start of the daemon with the disks that are here.
fn start(disks: &[SimDisk], options: &OpenOptions, members: &[u8]) -> u64 {
    let mut pool = reopen_with(disks, options).unwrap();
    let members: Vec<DiskId> = members.iter().copied().map(DiskId).collect();
    pool.write_membership(&members).unwrap().epoch
}

fn alone(disks: &[SimDisk], members: &[u8]) -> u64 {
    start(disks, &OpenOptions::default(), members)
}

/// Three disks with the placement store, one with data only.
fn four() -> Vec<SimDisk> {
    let disks = disks(4);
    create(news(&disks), &options()).unwrap();
    disks
}

fn branch(disk: &SimDisk) -> Branch {
    copies::read(disk).unwrap().label.membership.branch
}

/// The disks of both sides, as the error tells them.
fn sides(result: Result<OpenPool<SimDisk>, AssembleError>) -> (Vec<String>, Vec<String>) {
    let Err(AssembleError::Membership(MembershipError::Forked { one, other })) = result else { panic!("{result:?}") };
    let names = |list: Vec<crate::disk::membership::Told>| list.into_iter().map(|told| told.name).collect();
    (names(one), names(other))
}

fn fork(ours: usize, theirs: usize) -> Vec<SimDisk> {
    let disks = four();
    // The first two are away, and what only they know is given up.
    assert_eq!(start(&disks[2..], &stale(), &[2]), 2);
    for _ in 1..theirs {
        alone(&disks[2..], &[2]);
    }
    // They come back while the others are away: they are a majority of the members that they know.
    assert_eq!(alone(&disks[..2], &[0, 1, 2]), 2);
    for _ in 1..ours {
        alone(&disks[..2], &[0, 1, 2]);
    }
    disks
}

#[test]
fn a_fork_is_found_whatever_the_epochs_are() {
    for (ours, theirs) in [(2, 1), (1, 2), (1, 1), (4, 1), (1, 4)] {
        let disks = fork(ours, theirs);
        let (first, last) =
            (vec!["disk0".to_owned(), "disk1".to_owned()], vec!["disk2".to_owned(), "disk3".to_owned()]);
        let expect = if ours > theirs { (first, last) } else { (last, first) };
        assert_eq!(sides(reopen(&disks)), expect, "{ours} {theirs}");
        // Accepting a loss accepts no mixture, and the disk without the placement store is enough to know.
        assert_eq!(sides(reopen_with(&disks, &stale())), expect);
        let without = [disks[0].clone(), disks[1].clone(), disks[3].clone()];
        if ours > theirs {
            assert_eq!(sides(reopen(&without)).1, ["disk3"]);
        } else {
            assert!(sides(reopen(&without)).0.contains(&"disk3".to_owned()));
        }
        // Each side by itself is in order.
        assert_eq!(reopen(&disks[..2]).unwrap().missing.len(), 2);
        assert_eq!(reopen(&disks[2..]).unwrap().missing.len(), 2);
        // As is the pool when the disks of the other side are wiped.
        disks[2..].iter().for_each(|disk| copies::wipe(disk).unwrap());
        assert_eq!(reopen(&disks).unwrap().disks.len(), 2);
    }
}

#[test]
fn disks_that_were_away_come_back_to_the_state_that_was_accepted() {
    let disks = four();
    assert_eq!(start(&disks[2..], &stale(), &[2]), 2);
    let begun = branch(&disks[2]);
    assert!(begun.id != 0 && begun == Branch { id: begun.id, parent: 0, since: 1 } && branch(&disks[3]) == begun);
    assert_eq!(alone(&disks[2..], &[2]), 3);
    let pool = reopen(&disks).unwrap();
    assert_eq!((pool.membership.epoch, pool.missing.len()), (3, 0));
    for disk in &pool.disks[..2] {
        assert_eq!(disk.notices, [Notice::OutOfDate { epoch: 1, current: 3 }]);
    }
    // From there on they are of the branch, and it is the only one as long as nothing is accepted.
    assert_eq!(alone(&disks, &[0, 1, 2]), 4);
    assert!(disks.iter().all(|disk| branch(disk) == begun));
    assert_eq!(alone(&disks[..2], &[0, 1, 2]), 5);
    assert!(reopen(&disks).unwrap().disks[2].notices[..] == [Notice::OutOfDate { epoch: 4, current: 5 }]);
    // A second loss begins another one, of which the disks of the first are a part.
    assert_eq!(start(&disks[1..2], &stale(), &[1]), 6);
    let next = branch(&disks[1]);
    assert_eq!(next, Branch { id: next.id, parent: begun.id, since: 5 });
    assert_eq!(alone(&disks, &[0, 1, 2]), 7);
    assert!(disks.iter().all(|disk| branch(disk) == next));
}

#[test]
fn without_a_loss_there_is_one_branch_and_labels_are_as_ever() {
    let disks = four();
    assert_eq!(start(&disks[1..], &stale(), &[0, 1, 2]), 2);
    assert!(disks.iter().all(|disk| branch(disk) == Branch::FIRST));
}

#[test]
fn a_new_disk_is_of_the_branch_of_its_pool() {
    let disks = disks(5);
    create(news(&disks[..4]), &options()).unwrap();
    start(&disks[2..4], &stale(), &[2]);
    let mut pool = reopen(&disks[2..4]).unwrap();
    let add = AddOptions { id: DiskId(4), uuid: Uuid::from_u128(0x99), replaces: None, force: false, now: 5 };
    disks[0].trace().restart();
    pool.add_disk(new(&disks[4], 4), &add, &Host::default()).unwrap();
    let mut replay = disks[0].trace().replay();
    for cut in 0..=replay.len() {
        replay.advance_to(cut);
        for seed in [SEED_OLDEST, SEED_NEWEST, 5] {
            reopen(&replay.crash_images(seed)).unwrap_or_else(|e| panic!("cut {cut} seed {seed}: {e}"));
        }
    }
    assert_eq!(branch(&disks[4]), branch(&disks[2]));
}

/// With all disks, whatever was written is in nobody's way; with the others alone, they go on only if it is certain that the
/// branch was never served.
#[test]
fn accepting_the_stale_state_may_be_interrupted_anywhere() {
    let disks = four();
    let mut pool = reopen_with(&disks[2..], &stale()).unwrap();
    disks[0].trace().restart();
    pool.write_membership(&[DiskId(2)]).unwrap();
    let mut replay = disks[0].trace().replay();
    let (mut before, mut after, mut refused, mut forked) = (0, 0, 0, 0);
    for cut in 0..=replay.len() {
        replay.advance_to(cut);
        for seed in [SEED_OLDEST, SEED_NEWEST].into_iter().chain(7..11) {
            let at = format!("cut {cut} seed {seed}");
            let images = replay.crash_images(seed);
            let begun = images.iter().any(|disk| branch(disk) != Branch::FIRST);
            let mut opened = reopen(&images).unwrap_or_else(|e| panic!("{at}: {e}"));
            *(if opened.membership.epoch == 1 { &mut before } else { &mut after }) += 1;
            opened.write_membership(&[DiskId(0), DiskId(1), DiskId(2)]).unwrap();
            assert!(reopen(&images).unwrap().disks.iter().all(|disk| disk.notices.is_empty()), "{at}");
            // What the proposal overwrote is not known any more, so that the branch begins now if it had not.
            assert!(images.iter().all(|disk| (branch(disk) != Branch::FIRST) == begun), "{at}");

            // The disks that were away, and the one without the placement store.
            let images = replay.crash_images(seed);
            let told = branch(&images[3]) != Branch::FIRST;
            match reopen(&[images[0].clone(), images[1].clone(), images[3].clone()]) {
                Ok(_) => assert!(!told, "{at}"),
                Err(AssembleError::NoMajority { .. }) => refused += u32::from(told),
                Err(error) => panic!("{at}: {error}"),
            }
            // The state is accepted again, or opens by itself by now; then the others go their own way.
            start(&images[2..], &stale(), &[2]);
            reopen(&images).unwrap_or_else(|e| panic!("{at}: {e}"));
            for times in 1..4 {
                alone(&images[..2], &[0, 1, 2]);
                assert!(reopen(&images).is_err(), "{at}: {times}");
                forked += 1;
            }
        }
    }
    assert!(before > 0 && after > 0 && refused > 0 && forked > 0, "{before} {after} {refused} {forked}");
}
