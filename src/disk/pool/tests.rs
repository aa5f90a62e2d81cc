mod branches;
mod changes;

use std::path::Path;

use super::*;
use crate::base::rng::Rng;
use crate::disk::BlockDev;
use crate::disk::geometry::{LABEL_A_OFFSET, TooSmall};
use crate::disk::identity::Overlap;
use crate::disk::label::copies;
use crate::disk::membership::{Branch, Member, MembershipError};
use crate::disk::signature::Foreign;
use crate::disk::sim::{Fault, FaultKind, OpKind, SEED_NEWEST, SEED_OLDEST, SimDisk, SimTrace};

const MIB: u64 = 1 << 20;
const EIO: FaultKind = FaultKind::Error(libc::EIO);

fn new(disk: &SimDisk, i: usize) -> NewDisk<SimDisk> {
    NewDisk {
        dev: Arc::new(disk.clone()),
        path: PathBuf::from(format!("/sim/{i}")),
        identity: DiskIdentity::File { device: 0, inode: i as u64 },
        name: format!("disk{i}"),
        role: Role::Any,
        accept: Accept::Any,
        failure_domain: FailureDomain::named(&format!("domain{i}")),
        failure_domain_named: false,
    }
}

fn options() -> CreateOptions {
    CreateOptions { extent_size: MIB, members: None, force: false, now: 1_790_000_000 }
}

fn uuids(seed: u64) -> impl FnMut() -> Uuid {
    let mut rng = Rng::new(seed);
    move || Uuid::from_u64_pair(rng.next_u64(), rng.next_u64())
}

fn disks(count: usize) -> Vec<SimDisk> {
    let trace = SimTrace::new();
    (0..count).map(|_| trace.add_disk(64 * MIB, 512)).collect()
}

fn news(disks: &[SimDisk]) -> Vec<NewDisk<SimDisk>> {
    disks.iter().enumerate().map(|(i, disk)| new(disk, i)).collect()
}

fn create(news: Vec<NewDisk<SimDisk>>, options: &CreateOptions) -> Result<OpenPool<SimDisk>, CreateError> {
    let mut pool = create_pool(news, options, &Host::default(), &mut uuids(1))?;
    pool.write_in_order();
    Ok(pool)
}

fn found(disks: &[SimDisk]) -> Vec<Found<SimDisk>> {
    let find = |(i, disk): (usize, &SimDisk)| {
        let new = new(disk, i);
        let read = copies::read(disk).ok()?;
        let failure_domain = new.failure_domain;
        Some(Found { dev: new.dev, path: new.path, identity: new.identity, failure_domain, read })
    };
    disks.iter().enumerate().filter_map(find).collect()
}

fn reopen(disks: &[SimDisk]) -> Result<OpenPool<SimDisk>, AssembleError> {
    reopen_with(disks, &OpenOptions::default())
}

fn reopen_with(disks: &[SimDisk], options: &OpenOptions) -> Result<OpenPool<SimDisk>, AssembleError> {
    let mut pool = assemble(found(disks), Vec::new(), options)?;
    pool.write_in_order();
    Ok(pool)
}

fn stale() -> OpenOptions {
    OpenOptions { accept_stale: true, ..OpenOptions::default() }
}

fn names(pool: &OpenPool<SimDisk>) -> Vec<&str> {
    pool.disks.iter().map(|disk| disk.name.as_str()).collect()
}

#[test]
fn a_new_pool_opens_with_its_disks_in_any_order() {
    let mut disks = disks(4);
    let made = create(news(&disks), &options()).unwrap();
    assert_eq!(made.membership.members.len(), 3);
    assert_eq!(made.warnings(), []);
    disks.reverse();
    let pool = reopen(&disks).unwrap();
    assert_eq!((pool.uuid, pool.extent_size), (made.uuid, MIB));
    assert_eq!(names(&pool), ["disk0", "disk1", "disk2", "disk3"]);
    assert!(pool.missing.is_empty() && pool.rejected.is_empty() && !pool.stale_accepted);
    for (disk, made) in pool.disks.iter().zip(&made.disks) {
        assert_eq!((&disk.label, &disk.notices), (&made.label, &Vec::new()));
    }
    let regions: Vec<bool> = pool.disks.iter().map(|disk| disk.metadata_region().is_some()).collect();
    assert_eq!(regions, [true, true, true, false]);
    assert_eq!(pool.disks[0].metadata_region(), Some(MIB..17 * MIB));
    assert_eq!((pool.disks[0].data_len(), pool.disks[3].data_len()), (46 * MIB, 62 * MIB));
}

#[test]
fn roles_and_chosen_members_are_kept() {
    let disks = disks(4);
    let mut list = news(&disks);
    list[0].role = Role::DataOnly;
    list[3].role = Role::MetadataOnly;
    let pool = create(list, &options()).unwrap();
    let members: Vec<u8> = pool.membership.members.iter().map(|m| m.id.0).collect();
    assert_eq!(members, [1, 2, 3]);
    assert_eq!((pool.disks[3].label.layout.slots, pool.disks[0].metadata_region()), (0, None));

    let members = Some(vec![2, 2]);
    let pool = create(news(&super::tests::disks(3)), &CreateOptions { members, ..options() }).unwrap();
    assert_eq!(pool.store_members().map(|disk| disk.id.0).collect::<Vec<_>>(), [2]);
    assert_eq!(pool.warnings(), [Warning::OneMember]);
}

#[test]
fn shared_domains_and_two_members_are_warned_of() {
    let disks = disks(2);
    let mut list = news(&disks);
    list[1].failure_domain = list[0].failure_domain.clone();
    let pool = create(list, &options()).unwrap();
    let warnings = pool.warnings();
    assert!(matches!(&warnings[..], [Warning::SharedDomain(_), Warning::MembersShareDomain(_), Warning::TwoMembers]));
    assert!(warnings[0].to_string().contains("disk0, disk1") && warnings[0].to_string().contains("domain0"));
}

/// What `spoil` does to three good disks is refused with an error that `expect` knows, and nothing is written.
fn refused(spoil: impl Fn(&[SimDisk], &mut Vec<NewDisk<SimDisk>>), expect: impl Fn(&CreateError) -> bool) {
    let disks = disks(3);
    let mut list = news(&disks);
    spoil(&disks, &mut list);
    let before: Vec<u64> = disks.iter().map(|disk| disk.op_counts().writes).collect();
    let error = create(list, &options()).unwrap_err();
    assert!(expect(&error), "{error}");
    let after: Vec<u64> = disks.iter().map(|disk| disk.op_counts().writes).collect();
    assert_eq!(before, after, "{error}");
}

#[test]
fn whatever_is_wrong_is_refused_by_name_and_nothing_is_written() {
    refused(|_, list| list.clear(), |e| matches!(e, CreateError::NoDisks));
    refused(
        |disks, _| disks[2].poke(0, b"XFSB"),
        |e| {
            matches!(e, CreateError::Foreign { path, findings } if path == Path::new("/sim/2")
            && findings[0].what == Foreign::Xfs)
                && e.to_string().contains("an XFS filesystem")
                && e.to_string().contains("--force")
        },
    );
    refused(
        |disks, _| drop(create(news(&disks[1..2]), &options()).unwrap()),
        |e| matches!(e, CreateError::InPool { name, .. } if name == "disk0"),
    );
    refused(
        |disks, _| {
            create(news(&disks[1..2]), &options()).unwrap();
            disks[1].poke(LABEL_A_OFFSET + 99, &[9]);
            disks[1].poke(64 * MIB - 99, &[9]);
        },
        |e| matches!(e, CreateError::Label { .. }),
    );
    refused(
        |_, list| list[1].identity = list[0].identity,
        |e| {
            matches!(e, CreateError::SameDisk { overlap: Overlap::Same, .. })
                && e.to_string().contains("/sim/0 and /sim/1")
        },
    );
    refused(|_, list| list[1].name = "disk0".into(), |e| matches!(e, CreateError::SameName { .. }));
    refused(|_, list| list[1].name = "a/b".into(), |e| matches!(e, CreateError::Name { .. }));
    refused(
        |_, list| {
            list[1].failure_domain = FailureDomain::named("a+b");
            list[1].failure_domain_named = true;
        },
        |e| matches!(e, CreateError::FailureDomain { .. }),
    );
    refused(
        |_, list| list[2].dev = Arc::new(SimDisk::new(64 * MIB, 4096)),
        |e| matches!(e, CreateError::MixedBlockSizes { first_size: 512, second_size: 4096, .. }),
    );
    refused(
        |_, list| list[2].dev = Arc::new(SimDisk::new(16 * MIB, 512)),
        |e| matches!(e, CreateError::TooSmall { source: TooSmall { size, .. }, .. } if *size == 16 * MIB),
    );
    refused(
        |_, list| list.iter_mut().for_each(|d| d.role = Role::DataOnly),
        |e| matches!(e, CreateError::NoStoreMember),
    );
    refused(|_, list| list.iter_mut().for_each(|d| d.role = Role::MetadataOnly), |e| matches!(e, CreateError::NoData));
    refused(
        |disks, list| {
            list.extend((3..70).map(|i| new(&disks[0], i)));
        },
        |e| matches!(e, CreateError::TooManyDisks { count: 70 }),
    );
    let bad = CreateOptions { extent_size: 3 * MIB, ..options() };
    assert!(matches!(create(news(&disks(1)), &bad), Err(CreateError::ExtentSize { .. })));
    let mut list = news(&disks(2));
    list[1].role = Role::MetadataOnly;
    let useless = CreateOptions { members: Some(vec![0]), ..options() };
    assert!(matches!(create(list, &useless), Err(CreateError::Useless { .. })));
}

#[test]
fn force_overwrites_and_leaves_no_trace_of_what_was_there() {
    let disks = disks(2);
    disks[0].poke(0, b"XFSB");
    disks[0].poke(64 * MIB - 512, b"EFI PART");
    disks[0].poke(MIB, b"an old database");
    create(news(&disks[1..]), &options()).unwrap();
    let pool = create(news(&disks), &CreateOptions { force: true, ..options() }).unwrap();
    for disk in &disks {
        let findings = crate::disk::signature::probe(disk).unwrap();
        assert!(findings.iter().all(|f| f.what == Foreign::Unknown), "{findings:?}");
        let mut head = [1; 4096];
        disk.read_at(MIB, &mut head).unwrap();
        assert_eq!(head, [0; 4096]);
    }
    assert_eq!(reopen(&disks).unwrap().uuid, pool.uuid);
}

#[test]
fn a_failed_create_takes_its_labels_back() {
    let disks = disks(3);
    disks[2].inject(Fault::next(OpKind::Write, EIO));
    let error = create(news(&disks), &options()).unwrap_err();
    assert!(matches!(&error, CreateError::WriteLabel { path, .. } if path == Path::new("/sim/2")), "{error}");
    assert!(found(&disks).is_empty());
}

#[test]
fn a_missing_disk_is_named_and_a_majority_opens() {
    let disks = disks(4);
    let made = create(news(&disks), &options()).unwrap();
    let pool = reopen(&disks[1..]).unwrap();
    let expect = Missing { id: DiskId(0), uuid: made.disks[0].uuid, name: "disk0".into(), store_member: true };
    assert_eq!(pool.missing, [expect]);
    // A data-only disk that is missing is no matter of majorities.
    assert!(!reopen(&disks[..3]).unwrap().missing[0].store_member);

    let error = reopen(&disks[2..]).unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, AssembleError::NoMajority { .. }));
    for part in
        ["only 1 of the 3", "2 are needed", "'disk0'", "'disk1'", &made.disks[1].uuid.to_string(), "--accept-stale"]
    {
        assert!(text.contains(part), "no {part} in: {text}");
    }
    let pool = reopen_with(&disks[2..], &stale()).unwrap();
    assert!(pool.stale_accepted && pool.missing.len() == 2);
    assert!(matches!(reopen(&[]), Err(AssembleError::Membership(MembershipError::NoDisk))));
}

#[test]
fn disks_of_two_pools_and_copies_of_one_disk_are_refused() {
    let (one, two) = (disks(1), disks(1));
    let made = create(news(&one), &options()).unwrap();
    create_pool(news(&two), &options(), &Host::default(), &mut uuids(2)).unwrap();
    let both = [one[0].clone(), two[0].clone()];
    let error = reopen(&both).unwrap_err();
    assert!(matches!(&error, AssembleError::SeveralPools(pools) if pools.len() == 2), "{error}");
    assert!(error.to_string().contains("/sim/0") && error.to_string().contains(&made.uuid.to_string()));
    let pool = reopen_with(&both, &OpenOptions { pool: Some(made.uuid), ..OpenOptions::default() }).unwrap();
    assert!(pool.disks.len() == 1 && matches!(pool.rejected[0].reason, Rejection::OtherPool { .. }));

    let copy = SimDisk::new(64 * MIB, 512);
    let mut bytes = vec![0; 64 << 20];
    one[0].read_at(0, &mut bytes).unwrap();
    copy.poke(0, &bytes);
    let error = reopen(&[one[0].clone(), copy]).unwrap_err();
    assert!(matches!(error, AssembleError::Copies { .. }) && error.to_string().contains("disk0"), "{error}");
}

#[test]
fn damaged_label_copies_are_mended_and_told_unless_read_only() {
    let disks = disks(1);
    create(news(&disks), &options()).unwrap();
    disks[0].poke(LABEL_A_OFFSET + 50, &[0xee]);
    let writes = disks[0].op_counts().writes;
    let look = OpenOptions { read_only: true, ..OpenOptions::default() };
    let mut pool = reopen_with(&disks, &look).unwrap();
    assert!(matches!(pool.disks[0].notices[..], [Notice::LabelDamaged { copy: CopyId::A, .. }]));
    assert!(matches!(pool.set_accept(DiskId(0), Accept::None), Err(ChangeError::ReadOnly)));
    assert!(matches!(pool.write_membership(&[DiskId(0)]), Err(ChangeError::ReadOnly)));
    assert_eq!(disks[0].op_counts().writes, writes);
    let pool = reopen(&disks).unwrap();
    let [notice @ Notice::LabelMended { copy: CopyId::A, .. }] = &pool.disks[0].notices[..] else { panic!() };
    assert!(notice.to_string().contains("repaired"));
    assert_eq!(reopen(&disks).unwrap().disks[0].notices, []);
}

#[test]
fn a_disk_with_unknown_features_opens_for_reading_only() {
    let disks = disks(1);
    create(news(&disks), &options()).unwrap();
    let mut label = copies::read(&disks[0]).unwrap().label;
    label.ro_compat = 4;
    for (copy, at) in [(CopyId::A, LABEL_A_OFFSET), (CopyId::B, 64 * MIB - 4096)] {
        disks[0].poke(at, &crate::disk::label::encode(&label, copy));
    }
    assert!(matches!(reopen(&disks), Err(AssembleError::ReadOnlyFeatures { flags: 4, .. })));
    reopen_with(&disks, &OpenOptions { read_only: true, ..OpenOptions::default() }).unwrap();
}

#[test]
fn only_our_own_disks_are_wiped() {
    let disks = disks(2);
    create(news(&disks[..1]), &options()).unwrap();
    let path = Path::new("/sim/0");
    disks[0].poke(MIB, b"SPBSTORE");
    let label = wipe(&disks[0], path, false).unwrap().unwrap();
    assert_eq!(label.name, "disk0");
    assert_eq!(crate::disk::signature::probe(&disks[0]).unwrap(), []);
    let mut head = [1; 8];
    disks[0].read_at(MIB, &mut head).unwrap();
    assert_eq!(head, [0; 8]);

    disks[1].poke(0, b"XFSB");
    assert!(matches!(wipe(&disks[1], path, true), Err(WipeError::NotOurs { .. })));
    create(news(&disks[..1]), &options()).unwrap();
    for at in [LABEL_A_OFFSET, 64 * MIB - 4096] {
        disks[0].poke(at + 20, &[1]);
    }
    assert!(matches!(wipe(&disks[0], path, false), Err(WipeError::Label { .. })));
    assert_eq!(wipe(&disks[0], path, true).unwrap(), None);
    create(news(&disks[..1]), &options()).unwrap();
}

#[test]
fn members_are_told_apart_by_uuid() {
    let disks = disks(1);
    let made = create(news(&disks), &options()).unwrap();
    let expect = Member { id: DiskId(0), uuid: made.disks[0].uuid };
    assert_eq!(reopen(&disks).unwrap().membership.members, [expect]);
}
