//! What a label says: its bytes, and what is refused.

mod on_disk;

use proptest::prelude::*;
use uuid::Uuid;

use super::*;
use crate::base::limits::{DISKS_MAX, NAME_LEN_MAX};
use crate::base::rng::Rng;
use crate::disk::membership::{Branch, Member, RosterEntry, Settled};

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
