use super::*;

fn add(id: u8) -> AddOptions {
    AddOptions { id: DiskId(id), uuid: Uuid::from_u128(0x99), replaces: None, force: false, now: 5 }
}

#[test]
fn accepting_the_stale_state_makes_it_the_state() {
    let disks = disks(3);
    create(news(&disks), &options()).unwrap();
    let mut pool = reopen_with(&disks[2..], &stale()).unwrap();
    pool.write_membership(&[DiskId(2)]).unwrap();
    assert!(!reopen(&disks[2..]).unwrap().stale_accepted);
    // The others are out of date when they come back, not in the way.
    let pool = reopen(&disks).unwrap();
    assert_eq!((pool.membership.members.len(), pool.membership.epoch), (1, 2));
    assert!(matches!(pool.disks[0].notices[..], [Notice::OutOfDate { epoch: 1, current: 2 }]));
    // Unless they went their own way meanwhile.
    let mut other = reopen_with(&disks[..2], &OpenOptions::default()).unwrap();
    other.write_membership(&[DiskId(0), DiskId(1)]).unwrap();
    assert!(matches!(reopen(&disks), Err(AssembleError::Membership(MembershipError::Forked { .. }))));
}

#[test]
fn a_membership_survives_a_crash_at_every_cut() {
    let disks = disks(4);
    let mut pool = create(news(&disks), &options()).unwrap();
    disks[0].trace().restart();
    pool.write_membership(&[DiskId(0), DiskId(2)]).unwrap();
    let mut replay = disks[0].trace().replay();
    let (mut before, mut after) = (0, 0);
    for cut in 0..=replay.len() {
        replay.advance_to(cut);
        for seed in [SEED_OLDEST, SEED_NEWEST].into_iter().chain(7..11) {
            let images = replay.crash_images(seed);
            let mut opened = reopen(&images).unwrap_or_else(|e| panic!("cut {cut} seed {seed}: {e}"));
            match opened.membership.epoch {
                1 => before += 1,
                2 => after += 1,
                epoch => panic!("epoch {epoch}"),
            }
            // It can be served, and by then everybody agrees.
            opened.write_membership(&[DiskId(0), DiskId(1)]).unwrap();
            let again = reopen(&images).unwrap();
            assert!(again.disks.iter().all(|disk| disk.notices.is_empty()));
        }
    }
    assert!(before > 0 && after > 0, "{before} {after}");
}

#[test]
fn a_membership_needs_majorities_of_old_and_new() {
    let disks = disks(4);
    let mut pool = create(news(&disks), &options()).unwrap();
    disks[1].inject(Fault::always(OpKind::Write, EIO));
    let written = pool.write_membership(&[DiskId(0), DiskId(2)]).unwrap();
    assert_eq!(written.failed.iter().map(|f| f.disk.0).collect::<Vec<_>>(), [1]);
    disks[2].inject(Fault::always(OpKind::Sync, EIO));
    let error = pool.write_membership(&[DiskId(0)]).unwrap_err();
    assert!(matches!(&error, ChangeError::NoMajority(_)) && error.to_string().contains("disk2"), "{error}");
    assert_eq!(pool.membership.epoch, 2);
    assert!(matches!(pool.write_membership(&[]), Err(ChangeError::BadMembers)));
    assert!(matches!(pool.write_membership(&[DiskId(3)]), Err(ChangeError::BadMembers)), "it has no region");
    assert!(matches!(pool.write_membership(&[DiskId(0), DiskId(0)]), Err(ChangeError::BadMembers)));
    assert!(matches!(pool.write_membership(&[DiskId(9)]), Err(ChangeError::UnknownDisk(DiskId(9)))));
}

#[test]
fn a_disk_that_hangs_does_not_hold_up_a_membership() {
    let disks = disks(3);
    create(news(&disks), &options()).unwrap();
    let mut pool = assemble(found(&disks), Vec::new(), &OpenOptions::default()).unwrap();
    disks[1].set_paused(true);
    let written = pool.write_membership(&[DiskId(0), DiskId(2)]).unwrap();
    assert!(matches!(written.failed[0].reason, LabelFailure::FailedBefore));
    // What comes through late changes nothing: the label is of the first round.
    disks[1].set_paused(false);
    let error = pool.set_accept(DiskId(1), Accept::None).unwrap_err();
    assert!(matches!(error, ChangeError::Label(FailedWrite { reason: LabelFailure::FailedBefore, .. })));
}

#[test]
fn roles_and_domains_in_labels_last() {
    let disks = disks(2);
    let mut pool = create(news(&disks), &options()).unwrap();
    pool.set_accept(DiskId(1), Accept::Isolated).unwrap();
    pool.set_failure_domain(DiskId(0), "shelf-1").unwrap();
    assert!(matches!(pool.set_failure_domain(DiskId(0), "a b"), Err(ChangeError::FailureDomain(_))));
    let pool = reopen(&disks).unwrap();
    assert_eq!(pool.disks[1].label.accept, Accept::Isolated);
    assert_eq!(pool.disks[0].failure_domain, FailureDomain::named("shelf-1"));
    assert_eq!(pool.disks[1].failure_domain, FailureDomain::named("domain1"));
}

#[test]
fn a_disk_is_added_and_removed() {
    let disks = disks(3);
    let mut pool = create(news(&disks[..2]), &options()).unwrap();
    assert_eq!(pool.next_id(), Some(DiskId(2)));
    pool.add_disk(new(&disks[2], 2), &add(2), &Host::default()).unwrap();
    assert!(pool.disks[2].metadata_region().is_some(), "a third disk can become a store member");
    let mut pool = reopen(&disks).unwrap();
    assert_eq!(names(&pool), ["disk0", "disk1", "disk2"]);
    pool.write_membership(&[DiskId(0), DiskId(1), DiskId(2)]).unwrap();
    assert!(matches!(pool.remove_disk(DiskId(2)), Err(ChangeError::IsMember { .. })));
    pool.write_membership(&[DiskId(0), DiskId(1)]).unwrap();
    pool.remove_disk(DiskId(2)).unwrap().unwrap().wipe().unwrap();
    assert_eq!(found(&disks).len(), 2);
    assert!(reopen(&disks).unwrap().missing.is_empty());
}

#[test]
fn a_disk_that_was_removed_while_away_is_a_stranger() {
    let disks = disks(4);
    create(news(&disks), &options()).unwrap();
    let mut pool = reopen(&disks[..3]).unwrap();
    pool.remove_disk(DiskId(3)).unwrap();
    let pool = reopen(&disks).unwrap();
    assert_eq!((pool.disks.len(), pool.missing.len()), (3, 0));
    assert!(matches!(&pool.rejected[0].reason, Rejection::NotInPool { name, .. } if name == "disk3"));
}

#[test]
fn a_disk_that_does_not_fit_is_not_added() {
    let disks = disks(3);
    let mut pool = create(news(&disks[..2]), &options()).unwrap();
    let mut try_add = |new: NewDisk<SimDisk>, id| pool.add_disk(new, &add(id), &Host::default()).unwrap_err();
    assert!(matches!(try_add(new(&disks[2], 2), 1), ChangeError::Taken { .. }));
    let mut same_name = new(&disks[2], 2);
    same_name.name = "disk1".into();
    assert!(matches!(try_add(same_name, 2), ChangeError::Taken { .. }));
    assert!(matches!(try_add(new(&disks[2], 0), 2), ChangeError::Add(CreateError::SameDisk { .. })));
    let large_blocks = new(&SimDisk::new(64 * MIB, 4096), 2);
    assert!(matches!(try_add(large_blocks, 2), ChangeError::Add(CreateError::MixedBlockSizes { .. })));
    assert!(matches!(try_add(new(&disks[0], 7), 2), ChangeError::Add(CreateError::InPool { .. })));
    disks[2].inject(Fault::next(OpKind::Write, EIO));
    assert!(matches!(try_add(new(&disks[2], 2), 2), ChangeError::Add(CreateError::WriteLabel { .. })));
    disks[2].clear_faults();
    // Written, but the others cannot be told.
    disks[0].inject(Fault::always(OpKind::Write, EIO));
    assert!(matches!(try_add(new(&disks[2], 2), 2), ChangeError::NoMajority(_)));
    assert_eq!(found(&disks[2..]).len(), 0);
}

#[test]
fn a_crash_while_adding_leaves_the_pool_with_or_without_the_disk() {
    let disks = disks(3);
    let mut pool = create(news(&disks[..2]), &options()).unwrap();
    disks[0].trace().restart();
    pool.add_disk(new(&disks[2], 2), &add(2), &Host::default()).unwrap();
    let mut replay = disks[0].trace().replay();
    let mut seen = [0; 4];
    for cut in 0..=replay.len() {
        replay.advance_to(cut);
        for seed in [SEED_OLDEST, SEED_NEWEST, 5, 6, 7] {
            let pool = reopen(&replay.crash_images(seed)).unwrap_or_else(|e| panic!("cut {cut} seed {seed}: {e}"));
            assert!(pool.missing.is_empty() || cut < replay.len());
            seen[pool.disks.len()] += 1;
        }
    }
    assert!(seen[2] > 0 && seen[3] > 0, "{seen:?}");
}

/// The label of a new disk comes before its record. After a crash between the two the next disk is given the same id.
#[test]
fn a_disk_that_was_half_added_is_in_nobodys_way() {
    for there in [true, false] {
        let disks = disks(4);
        let mut pool = create(news(&disks[..2]), &options()).unwrap();
        pool.add_disk(new(&disks[2], 2), &add(2), &Host::default()).unwrap();
        let mut pool = reopen(if there { &disks[..3] } else { &disks[..2] }).unwrap();
        let other = AddOptions { uuid: Uuid::from_u128(0x100), ..add(2) };
        let error = pool.add_disk(new(&disks[3], 3), &other, &Host::default()).unwrap_err();
        assert!(matches!(error, ChangeError::Taken { .. }));
        assert_eq!(pool.leave_out_unknown(|uuid| uuid != Uuid::from_u128(0x99)), ["disk2"]);
        pool.write_membership(&[DiskId(0), DiskId(1)]).unwrap();
        pool.add_disk(new(&disks[3], 3), &other, &Host::default()).unwrap();
        let pool = reopen(&disks).unwrap();
        assert_eq!((names(&pool), pool.missing.len()), (vec!["disk0", "disk1", "disk3"], 0));
        assert!(matches!(&pool.rejected[0].reason, Rejection::NotInPool { name, .. } if name == "disk2"));
    }
}

/// The others are told first, and the label is wiped last: at no point is a disk missing.
#[test]
fn a_crash_while_removing_leaves_the_pool_with_or_without_the_disk() {
    let disks = disks(4);
    let mut pool = create(news(&disks), &options()).unwrap();
    disks[0].trace().restart();
    pool.remove_disk(DiskId(3)).unwrap().unwrap().wipe().unwrap();
    let mut replay = disks[0].trace().replay();
    let mut seen = [0; 5];
    for cut in 0..=replay.len() {
        replay.advance_to(cut);
        for seed in [SEED_OLDEST, SEED_NEWEST, 5, 6, 7] {
            let pool = reopen(&replay.crash_images(seed)).unwrap_or_else(|e| panic!("cut {cut} seed {seed}: {e}"));
            assert_eq!(pool.missing, [], "cut {cut} seed {seed}");
            seen[pool.disks.len()] += 1;
        }
    }
    assert!(seen[3] > 0 && seen[4] > 0 && seen[..3] == [0; 3], "{seen:?}");
}

#[test]
fn a_disk_is_not_wiped_unless_the_others_could_be_told() {
    let disks = disks(4);
    let mut pool = create(news(&disks), &options()).unwrap();
    for disk in &disks[..2] {
        disk.inject(Fault::always(OpKind::Write, EIO));
    }
    assert!(matches!(pool.remove_disk(DiskId(3)), Err(ChangeError::NoMajority(_))));
    assert!(copies::read(&disks[3]).is_ok());
}

#[test]
fn a_membership_that_the_labels_cannot_take_is_known_before() {
    let disks = disks(4);
    let mut pool = create(news(&disks), &options()).unwrap();
    let (first, others) = ([DiskId(0)], [DiskId(0), DiskId(1), DiskId(2)]);
    pool.check_membership(&first).unwrap();
    disks[1].inject(Fault::always(OpKind::Write, EIO));
    assert!(pool.set_accept(DiskId(1), Accept::None).is_err());
    // The other two of three are a majority, and one alone is none.
    pool.check_membership(&first).unwrap();
    assert!(matches!(pool.check_membership(&[DiskId(1)]), Err(ChangeError::LabelsFailed(failed)) if failed.len() == 1));
    disks[2].inject(Fault::always(OpKind::Write, EIO));
    assert!(pool.set_accept(DiskId(2), Accept::None).is_err());
    assert!(matches!(pool.check_membership(&others), Err(ChangeError::LabelsFailed(failed)) if failed.len() == 2));
}

#[test]
fn a_disk_that_replaces_another_one_can_carry_the_placement_table_if_that_can() {
    let disks = disks(5);
    let mut pool = create(news(&disks[..3]), &options()).unwrap();
    let regions = |pool: &OpenPool<SimDisk>, id: u8| pool.disk(DiskId(id)).unwrap().metadata_region().is_some();
    assert!((0..3).all(|id| regions(&pool, id)));
    let (host, mut new) = (Host::default(), news(&disks));
    let replacing = AddOptions { replaces: Some(DiskId(1)), uuid: Uuid::from_u128(0x77), ..add(4) };
    pool.add_disk(new.remove(4), &replacing, &host).unwrap();
    pool.add_disk(new.remove(3), &add(3), &host).unwrap();
    assert!(!regions(&pool, 3), "three are enough");
    assert!(regions(&pool, 4));
}
