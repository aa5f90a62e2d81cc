use proptest::prelude::*;
use uuid::Uuid;

use super::copies::{self, CopyProblem, ReadError, WriteError};
use super::*;
use crate::base::limits::{DISKS_MAX, NAME_LEN_MAX};
use crate::base::rng::Rng;
use crate::disk::BlockDev;
use crate::disk::geometry::{LABEL_A_OFFSET, label_b_offset};
use crate::disk::membership::{Branch, Member, RosterEntry, Settled};
use crate::disk::sim::{Fault, FaultKind, OpKind, SEED_NEWEST, SEED_OLDEST, SimDisk};

const MIB: u64 = 1 << 20;
const DISK_SIZE: u64 = 64 * MIB;

/// Released format, never to change.
const GOLDEN: &[u8; LEN] = include_bytes!("../../../tests/golden/label-v1.bin");
const GOLDEN_BRANCH: &[u8; LEN] = include_bytes!("../../../tests/golden/label-branch-v1.bin");

fn entry(id: u8, name: &str) -> RosterEntry {
    RosterEntry {
        id: DiskId(id),
        uuid: Uuid::from_u128(0x100 + u128::from(id)),
        name: name.to_owned(),
        name_is_cut: false,
    }
}

fn member(id: u8) -> Member {
    Member { id: DiskId(id), uuid: entry(id, "x").uuid }
}

fn sample() -> Label {
    Label {
        compat: 0x8000_0001,
        ro_compat: 0,
        sequence: 7,
        pool: Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef),
        uuid: entry(1, "x").uuid,
        id: DiskId(1),
        name: "nvme-Maker_SSD_S1".to_owned(),
        extent_size: MIB,
        block_size: 4096,
        disk_size: DISK_SIZE,
        layout: DiskLayout { metadata_len: 16 * MIB, data_offset: 17 * MIB, slots: 46 },
        accept: Accept::Isolated,
        failure_domain: "shelf-3".to_owned(),
        failure_domain_named: true,
        created: 1_790_000_000,
        membership: Membership {
            epoch: 5,
            members: vec![member(0), member(1), member(2)],
            proposed_after: Some(Settled { epoch: 3, members: vec![member(1), member(0)] }),
            branch: Branch::FIRST,
            roster: vec![entry(0, "disk0"), entry(1, "nvme-Maker_SSD_S1"), entry(2, "disk2")],
        },
    }
}

fn branched() -> Label {
    let mut label = sample();
    label.membership.branch = Branch { id: 0x0102_0304_0506_0708, parent: 0x1112_1314_1516_1718, since: 2 };
    label
}

#[test]
fn the_golden_labels_decode_for_ever() {
    for (label, golden) in [(sample(), GOLDEN), (branched(), GOLDEN_BRANCH)] {
        assert_eq!(decode(golden), Ok((label.clone(), CopyId::B)));
        assert_eq!(&encode(&label, CopyId::B), golden);
    }
}

#[test]
fn fields_are_where_the_specification_says() {
    let bytes = encode(&sample(), CopyId::B);
    assert_eq!(&bytes[..8], b"spanblk\0");
    assert_eq!(bytes[12..16], 1u32.to_le_bytes());
    assert_eq!(bytes[16..20], 0x8000_0001u32.to_le_bytes());
    assert_eq!(bytes[28..32], [1, 1, 1, 1]);
    assert_eq!(bytes[32..40], 7u64.to_le_bytes());
    assert_eq!(&bytes[40..56], sample().pool.as_bytes());
    assert_eq!(bytes[72..80], MIB.to_le_bytes());
    assert_eq!(bytes[80..88], DISK_SIZE.to_le_bytes());
    assert_eq!(bytes[88..96], MIB.to_le_bytes());
    assert_eq!(bytes[96..104], (16 * MIB).to_le_bytes());
    assert_eq!(bytes[104..112], (17 * MIB).to_le_bytes());
    assert_eq!(bytes[112..116], 46u32.to_le_bytes());
    assert_eq!(bytes[116..120], 4096u32.to_le_bytes());
    assert_eq!(&bytes[136..141], b"nvme-");
    assert_eq!(&bytes[200..207], b"shelf-3");
    assert_eq!(bytes[328..336], 5u64.to_le_bytes());
    assert_eq!(bytes[336..339], [3, 2, 3]);
    assert_eq!(&bytes[348..364], member(0).uuid.as_bytes());
    assert_eq!(bytes[404], 1);
    assert_eq!(bytes[464..472], 3u64.to_le_bytes());
    assert_eq!(&bytes[512..528], member(0).uuid.as_bytes());
    assert_eq!((&bytes[24..28], &bytes[472..512]), (&[0; 4][..], &[0; 40][..]), "as before there were branches");

    let bytes = encode(&branched(), CopyId::B);
    assert_eq!(bytes[24..28], 1u32.to_le_bytes());
    assert_eq!(bytes[472..480], 0x0102_0304_0506_0708u64.to_le_bytes());
    assert_eq!(bytes[480..488], 0x1112_1314_1516_1718u64.to_le_bytes());
    assert_eq!(bytes[488..496], 2u64.to_le_bytes());
    assert_eq!(bytes[496..512], [0; 16]);
}

#[test]
fn every_flipped_byte_is_detected() {
    for at in 0..LEN {
        for flip in [0x01, 0xff] {
            let mut bytes = *GOLDEN;
            bytes[at] ^= flip;
            let expect = if at < 8 { LabelError::Absent } else { LabelError::Corrupt };
            assert_eq!(decode(&bytes), Err(expect), "byte {at}");
        }
    }
}

/// A label with some bytes changed and the checksum made right again.
fn forged(changes: &[(usize, &[u8])]) -> Result<(Label, CopyId), LabelError> {
    let mut bytes = *GOLDEN;
    for (at, change) in changes {
        bytes[*at..at + change.len()].copy_from_slice(change);
    }
    reseal(&mut bytes);
    decode(&bytes)
}

fn reseal(bytes: &mut [u8; LEN]) {
    bytes[8..12].fill(0);
    let checksum = crc32c::crc32c(bytes);
    bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
}

#[test]
fn other_versions_and_unknown_features_have_their_own_errors() {
    assert_eq!(forged(&[(12, &[2])]), Err(LabelError::NewerVersion { found: 2 }));
    assert_eq!(forged(&[(12, &[0])]), Err(LabelError::OlderVersion { found: 0 }));
    assert_eq!(forged(&[(24, &[4])]), Err(LabelError::UnknownFeatures { flags: 4 }));
    let (label, _) = forged(&[(20, &[8])]).unwrap();
    assert_eq!(label.unknown_ro_compat(), 8);
    assert_eq!(sample().unknown_ro_compat(), 0, "unknown compat flags do not matter");
}

#[test]
fn nonsense_with_a_right_checksum_is_refused() {
    let cases: &[(&str, usize, &[u8])] = &[
        ("copy number", 28, &[2]),
        ("accept role", 29, &[4]),
        ("reserved flags", 30, &[3]),
        ("disk id", 31, &[64]),
        ("nil pool", 40, &[0; 16]),
        ("extent size", 72, &[1]),
        ("disk size", 80, &[0; 8]),
        ("metadata offset", 88, &[1]),
        ("metadata length", 96, &[0xff; 8]),
        ("data offset", 104, &[0xff; 8]),
        ("slots", 112, &[0xff; 4]),
        ("block size", 116, &[1]),
        ("name length", 128, &[200]),
        ("name", 136, b"/"),
        ("name padding", 199, &[1]),
        ("reserved", 130, &[1]),
        ("no epoch", 328, &[0; 8]),
        ("no members", 336, &[0]),
        ("many members", 336, &[4]),
        ("previous members without epoch", 464, &[0; 8]),
        ("previous epoch later", 464, &[9]),
        ("roster count", 338, &[4]),
        ("roster length", 340, &[0xff, 0xff]),
        ("double member", 344 + 20, &GOLDEN[344..364]),
        ("roster without this disk", 31, &[9]),
        ("tail", 4095, &[1]),
    ];
    for (what, at, change) in cases {
        let result = forged(&[(*at, change)]);
        assert!(matches!(result, Err(LabelError::Invalid { .. })), "{what}: {result:?}");
    }
}

#[test]
fn a_branch_is_flagged_and_fits_the_epochs_or_is_refused() {
    let forge = |flag: u8, id: u8, parent: u8, since: u8| {
        forged(&[(24, &[flag]), (472, &[id]), (480, &[parent]), (488, &[since])])
            .map(|(label, _)| label.membership.branch)
    };
    assert_eq!(forge(0, 0, 0, 0), Ok(Branch::FIRST));
    // The membership is of epoch 5 and follows epoch 3.
    for (parent, since) in [(0, 1), (0, 3), (8, 2)] {
        assert_eq!(forge(1, 9, parent, since), Ok(Branch { id: 9, parent: parent.into(), since: since.into() }));
    }
    let wrong = [
        ("no flag", (0, 9, 0, 3)),
        ("no flag, no branch, a parent", (0, 0, 8, 0)),
        ("no flag, no branch, an epoch", (0, 0, 0, 3)),
        ("no branch", (1, 0, 0, 0)),
        ("no branch, a parent", (1, 0, 8, 3)),
        ("its own parent", (1, 9, 9, 3)),
        ("nothing shared", (1, 9, 0, 0)),
        ("later than what it follows", (1, 9, 0, 4)),
        ("later than the membership", (1, 9, 0, 5)),
    ];
    for (what, (flag, id, parent, since)) in wrong {
        assert_eq!(forge(flag, id, parent, since), Err(LabelError::Invalid { field: "branch" }), "{what}");
    }
    // What is settled comes after what is shared.
    let settled =
        |since: u8| forged(&[(24, &[1]), (472, &[9]), (488, &[since]), (337, &[0]), (404, &[0; 60]), (464, &[0; 8])]);
    assert!(settled(4).is_ok());
    assert_eq!(settled(5), Err(LabelError::Invalid { field: "branch" }));
    assert_eq!(forged(&[(496, &[1])]), Err(LabelError::Invalid { field: "reserved bytes are not zero" }));
}

#[test]
fn a_full_roster_of_long_names_fits_with_cut_names() {
    let mut label = sample();
    let long = |id: usize| format!("{id:02}{}", "x".repeat(NAME_LEN_MAX - 2));
    label.membership.roster = (0..DISKS_MAX).map(|id| entry(u8::try_from(id).unwrap(), &long(id))).collect();
    let (read, _) = decode(&encode(&label, CopyId::A)).unwrap();
    for (id, entry) in read.membership.roster.iter().enumerate() {
        assert!(entry.name_is_cut && entry.name.len() == 37 && long(id).starts_with(&entry.name));
    }
    // Written again, they stay cut and marked.
    let (again, _) = decode(&encode(&read, CopyId::A)).unwrap();
    assert_eq!(again, read);
}

prop_compose! {
    fn any_label()(
        seed: u64,
        name in "[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}",
        domain in "[a-z+0-9]{0,128}",
        slots in 1u32..46,
        disks in 1u8..=20,
        accept in prop::sample::select(vec![Accept::Any, Accept::Isolated, Accept::Spanned, Accept::None]),
        metadata: bool,
        settled: bool,
        branched: bool,
    ) -> Label {
        let mut rng = Rng::new(seed);
        let mut label = sample();
        label.sequence = rng.next_u64();
        label.compat = u32::try_from(rng.below(1 << 32)).unwrap();
        label.created = rng.next_u64();
        label.name = name;
        label.failure_domain = domain;
        label.accept = accept;
        label.layout.slots = slots;
        if !metadata {
            label.layout.metadata_len = 0;
        }
        label.membership.epoch = 10 + rng.below(u64::MAX - 10);
        if settled {
            label.membership.proposed_after = None;
        }
        if branched {
            label.membership.branch =
                Branch { id: rng.next_u64().max(1), parent: rng.below(2) * rng.next_u64(), since: 1 + rng.below(3) };
        }
        label.membership.roster = (0..disks.max(2)).map(|id| entry(id, &format!("disk{id}"))).collect();
        label
    }
}

proptest! {
    #[test]
    fn decode_undoes_encode(label in any_label(), b: bool) {
        let copy = if b { CopyId::B } else { CopyId::A };
        prop_assert_eq!(decode(&encode(&label, copy)), Ok((label, copy)));
    }

    #[test]
    fn random_bytes_never_panic(seed: u64, changes in 0usize..40) {
        let mut rng = Rng::new(seed);
        let mut bytes = *GOLDEN;
        for _ in 0..changes {
            bytes[12 + rng.index(LEN - 12)] = rng.next_u64().to_le_bytes()[0];
        }
        reseal(&mut bytes);
        let _ = decode(&bytes);
        rng.fill(&mut bytes[8..]);
        let _ = decode(&bytes);
    }
}

fn labelled() -> (SimDisk, Label) {
    let disk = SimDisk::new(DISK_SIZE, 512);
    let mut label = sample();
    copies::write(&disk, &mut label).unwrap();
    (disk, label)
}

fn spoil(disk: &SimDisk, copy: CopyId) {
    let at = if copy == CopyId::A { LABEL_A_OFFSET } else { label_b_offset(DISK_SIZE) };
    disk.poke(at + 100, &[0x55]);
}

#[test]
fn a_damaged_copy_is_mended_from_the_other() {
    for damaged in [CopyId::A, CopyId::B] {
        let (disk, label) = labelled();
        spoil(&disk, damaged);
        let mut read = copies::read(&disk).unwrap();
        assert_eq!((&read.label, read.from), (&label, damaged.other()));
        assert!(matches!(read.damage, Some(CopyProblem::Content(LabelError::Corrupt))));
        assert_eq!(copies::mend(&disk, &mut read).unwrap(), Some(damaged));
        let mut read = copies::read(&disk).unwrap();
        assert!(read.damage.is_none() && read.label == label);
        assert_eq!(copies::mend(&disk, &mut read).unwrap(), None);
    }
}

#[test]
fn a_copy_that_cannot_be_read_is_no_obstacle() {
    let (disk, label) = labelled();
    disk.inject(Fault::next(OpKind::Read, FaultKind::Error(libc::EIO)));
    let read = copies::read(&disk).unwrap();
    assert_eq!(read.label, label);
    assert!(matches!(read.damage, Some(CopyProblem::Io(_))));
}

#[test]
fn two_damaged_copies_no_label_and_contradicting_copies_differ() {
    let (disk, _) = labelled();
    spoil(&disk, CopyId::A);
    spoil(&disk, CopyId::B);
    let error = copies::read(&disk).unwrap_err();
    assert!(matches!(error, ReadError::BothDamaged { .. }) && error.to_string().contains("disk wipe --yes"), "{error}");
    assert!(matches!(copies::read(&SimDisk::new(DISK_SIZE, 512)), Err(ReadError::Absent)));
    assert!(matches!(copies::read(&SimDisk::new(8192, 512)), Err(ReadError::Absent)));

    let (disk, mut label) = labelled();
    label.pool = Uuid::from_u128(99);
    disk.poke(LABEL_A_OFFSET, &encode(&label, CopyId::A));
    assert!(matches!(copies::read(&disk), Err(ReadError::Contradiction { .. })));
}

/// What other software has been given a disk for may leave one copy alone: LVM and LUKS2 write where copy A is and not at the end.
#[test]
fn a_copy_that_somebody_has_written_over_is_not_mended() {
    let signatures: [&[u8]; 3] = [b"LVM2 x[5A%r0N*>", b"{\"keyslots\":{\"0\":{\"type\":\"luks2\"", &[0xe5; 4096]];
    for copy in [CopyId::A, CopyId::B] {
        for foreign in signatures {
            let (disk, label) = labelled();
            let at = if copy == CopyId::A { LABEL_A_OFFSET } else { label_b_offset(DISK_SIZE) };
            disk.poke(at, &[0; 4096]);
            disk.poke(at, foreign);
            let error = copies::read(&disk).unwrap_err();
            assert!(matches!(error, ReadError::Overwritten { copy: over, .. } if over == copy), "{error}");
            assert!(
                error.to_string().contains(&label.name) && error.to_string().contains("disk wipe --yes"),
                "{error}"
            );
            copies::wipe(&disk).unwrap();
            assert!(matches!(copies::read(&disk), Err(ReadError::Absent)));
        }
        // Zeros are nobody's, and neither is a label of which only the mark is damaged.
        for damage in [&[0; 4096][..], &[0x55]] {
            let (disk, label) = labelled();
            disk.poke(if copy == CopyId::A { LABEL_A_OFFSET } else { label_b_offset(DISK_SIZE) }, damage);
            let mut read = copies::read(&disk).unwrap();
            assert_eq!(copies::mend(&disk, &mut read).unwrap(), Some(copy));
            assert_eq!(copies::read(&disk).unwrap().label, label);
        }
    }
    // Nothing that was ever ours.
    let disk = SimDisk::new(DISK_SIZE, 512);
    disk.poke(LABEL_A_OFFSET, &[0xe5; 4096]);
    assert!(matches!(copies::read(&disk), Err(ReadError::Absent)));
}

#[test]
fn copies_in_each_others_places_are_not_taken() {
    let (disk, label) = labelled();
    disk.poke(LABEL_A_OFFSET, &encode(&label, CopyId::B));
    let read = copies::read(&disk).unwrap();
    assert!(read.from == CopyId::B && read.damage.is_some());
}

#[test]
fn a_newer_copy_beside_a_known_one_is_not_overlooked() {
    let (disk, label) = labelled();
    let mut newer = encode(&label, CopyId::A);
    newer[12] = 2;
    reseal(&mut newer);
    disk.poke(LABEL_A_OFFSET, &newer);
    assert!(matches!(copies::read(&disk), Err(ReadError::Format(LabelError::NewerVersion { found: 2 }))));
}

#[test]
fn a_disk_that_changed_its_size_is_found_or_refused() {
    let (disk, label) = labelled();
    let image = |size: u64| {
        let other = SimDisk::new(size, 512);
        let mut bytes = vec![0; usize::try_from(size.min(DISK_SIZE)).unwrap()];
        disk.read_at(0, &mut bytes).unwrap();
        other.poke(0, &bytes);
        other
    };
    let read = copies::read(&image(DISK_SIZE + MIB)).unwrap();
    assert!(read.label == label && read.damage.is_none());
    assert!(matches!(copies::read(&image(DISK_SIZE - 512)), Err(ReadError::Shrunk { .. })));
    // Of a grown disk all copies are wiped.
    let grown = image(DISK_SIZE + MIB);
    copies::wipe(&grown).unwrap();
    let mut bytes = vec![0; usize::try_from(grown.size()).unwrap()];
    grown.read_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&b| b == 0));
}

#[test]
fn larger_blocks_than_before_are_refused() {
    let mut label = sample();
    label.block_size = 512;
    let disk = SimDisk::new(DISK_SIZE, 4096);
    copies::write(&disk, &mut label).unwrap();
    assert!(matches!(copies::read(&disk), Err(ReadError::BlockSize { expected: 512, actual: 4096 })));
}

#[test]
fn unknown_ro_compat_is_read_and_never_written() {
    let disk = SimDisk::new(DISK_SIZE, 512);
    let mut label = sample();
    label.ro_compat = 2;
    disk.poke(LABEL_A_OFFSET, &encode(&label, CopyId::A));
    let mut read = copies::read(&disk).unwrap();
    assert!(matches!(copies::mend(&disk, &mut read), Err(WriteError::ReadOnlyFeatures { flags: 2 })));
    assert!(matches!(copies::write(&disk, &mut read.label), Err(WriteError::ReadOnlyFeatures { flags: 2 })));
    assert_eq!(disk.op_counts().writes, 0);
}

/// A change in several sectors, so that it can tear.
fn set(label: &mut Label, accept: Accept) {
    label.accept = accept;
    label.membership.roster.push(entry(u8::try_from(label.membership.roster.len()).unwrap(), "another"));
    label.membership.roster.rotate_left(1);
}

/// Runs `work` on a disk with label `old`, and checks that after every cut the disk has a label that `legal` accepts.
fn crash_at_every_cut(prepare: impl Fn(&SimDisk), work: impl Fn(&SimDisk, &mut Label), legal: impl Fn(&Label) -> bool) {
    let (disk, mut label) = labelled();
    prepare(&disk);
    disk.trace().restart();
    work(&disk, &mut label);
    let mut replay = disk.trace().replay();
    let mut mended = 0;
    for cut in 0..=replay.len() {
        replay.advance_to(cut);
        for seed in [SEED_OLDEST, SEED_NEWEST].into_iter().chain(100..124) {
            let image = &replay.crash_images(seed)[0];
            let mut read = copies::read(image).unwrap_or_else(|e| panic!("cut {cut} seed {seed}: {e}"));
            assert!(legal(&read.label), "cut {cut} seed {seed}: {:?}", read.label);
            if copies::mend(image, &mut read).unwrap().is_some() {
                mended += 1;
            }
            assert!(copies::read(image).unwrap().damage.is_none());
        }
    }
    assert!(mended > 0, "no cut left anything to mend: the test tests nothing");
}

#[test]
fn a_crash_during_an_update_leaves_the_old_or_the_new_label() {
    let is_either = |label: &Label| matches!(label.accept, Accept::Isolated | Accept::None);
    let update = |disk: &SimDisk, label: &mut Label| {
        set(label, Accept::None);
        copies::write(disk, label).unwrap();
    };
    crash_at_every_cut(|_| {}, update, is_either);
    // Also when one copy was damaged and not mended before.
    crash_at_every_cut(|disk| spoil(disk, CopyId::A), update, is_either);
    crash_at_every_cut(|disk| spoil(disk, CopyId::B), update, is_either);
}

#[test]
fn a_crash_after_a_failed_update_leaves_a_label() {
    for failing in 0..8 {
        let update = |disk: &SimDisk, label: &mut Label| {
            let on = if failing % 2 == 0 { OpKind::Write } else { OpKind::Sync };
            disk.inject(Fault { on, after: failing / 2, repeat: false, kind: FaultKind::Error(libc::EIO) });
            set(label, Accept::Spanned);
            assert!(matches!(copies::write(disk, label), Err(WriteError::Io { .. })));
            set(label, Accept::None);
            copies::write(disk, label).unwrap();
        };
        crash_at_every_cut(|_| {}, update, |label| label.accept != Accept::Any);
    }
}

#[test]
fn an_acknowledged_update_is_never_lost() {
    let (disk, mut label) = labelled();
    label.accept = Accept::None;
    copies::write(&disk, &mut label).unwrap();
    for seed in 0..50 {
        let read = copies::read(&disk.trace().crash_now(seed)[0]).unwrap();
        assert!(read.label == label && read.damage.is_none());
    }
}

/// The order matters: the crash test above finds out when both copies are written before one is synced.
#[test]
fn without_the_sync_between_the_copies_a_crash_loses_the_label() {
    let (disk, mut label) = labelled();
    // The first two make what is there durable; the third one stands between the copies.
    disk.inject(Fault { on: OpKind::Sync, after: 2, repeat: false, kind: FaultKind::Lie });
    set(&mut label, Accept::None);
    disk.trace().restart();
    copies::write(&disk, &mut label).unwrap();
    let trace = disk.trace();
    let lost = |cut: usize| (0..60).any(|seed| copies::read(&trace.crash_images(cut, seed)[0]).is_err());
    assert!((0..=trace.len()).any(lost));
}
