use proptest::prelude::*;

use super::*;

fn replica(disk: u8, slot: u32, state: ReplicaState) -> Replica {
    Replica { disk: DiskId(disk), slot: SlotIndex(slot), state }
}

fn extent(generation: u32, present: u32, replicas: &[Replica]) -> ExtentRow {
    let mut set = ReplicaSet::ABSENT;
    replicas.iter().for_each(|replica| set.push(*replica));
    ExtentRow { generation: Generation(generation), present: BlockMask(present), replicas: set }
}

fn bytes_of(row: &PageRow) -> Vec<u8> {
    let mut bytes = Vec::new();
    row.encode(&mut bytes);
    bytes
}

/// Every form of every field at least once.
fn golden_row() -> PageRow {
    use ReplicaState::{InSync, Stale, Syncing};
    let mut row = PageRow { stamp: Stamp { epoch: 0x0102_0304_0506_0708, commit: 9 }, ..PageRow::default() };
    row.extents[0] = extent(2, u32::MAX, &[replica(0, 0, InSync)]);
    row.extents[1] = extent(0xfe, 0, &[replica(63, u32::MAX, InSync), replica(0, 1, Syncing)]);
    row.extents[2] = extent(0x100, 0x8000_0001, &[replica(1, 2, InSync), replica(2, 3, Stale), replica(3, 4, Syncing)]);
    row.extents[3] = extent(0x0001_0000, 0, &[]);
    row.extents[63] = extent(0xffff_fffe, 1, &[replica(5, 0x0a0b_0c0d, Stale)]);
    row
}

#[test]
fn golden_row_is_read_and_written_as_ever() {
    let golden = include_bytes!("../../../tests/golden/page-v1.bin");
    assert!(bytes_of(&golden_row()) == golden, "the encoding has changed: raise its version");
    assert_eq!(PageRow::decode(golden).unwrap(), golden_row());
}

#[test]
fn an_empty_row_and_a_full_one_have_the_expected_lengths() {
    assert_eq!(bytes_of(&PageRow::default()).len(), ROW_HEAD_LEN + PAGE_EXTENTS + CRC_LEN);
    let mut row = PageRow::default();
    row.extents.fill(extent(2, u32::MAX, &[replica(1, 1000, ReplicaState::InSync)]));
    assert_eq!(bytes_of(&row).len(), 21 + 64 * 7);
    let three = [1, 2, 3].map(|disk| replica(disk, 1000, ReplicaState::InSync));
    row.extents.fill(extent(u32::MAX - 1, 1, &three));
    assert_eq!(bytes_of(&row).len(), ROW_LEN_MAX);
}

#[test]
fn every_damaged_byte_and_every_cut_is_noticed() {
    let good = bytes_of(&golden_row());
    for at in 0..good.len() {
        assert!(PageRow::decode(&good[..at]).is_err(), "cut at {at}");
        for bit in 0..8 {
            let mut bad = good.clone();
            bad[at] ^= 1 << bit;
            assert!(PageRow::decode(&bad).is_err(), "bit {bit} of byte {at}");
        }
    }
    assert_eq!(PageRow::decode(&[]), Err(PageError::Short));
}

/// A row with a right checksum whose first extent is `head` followed by zeros for the others.
fn crafted(first: &[u8]) -> Result<PageRow, PageError> {
    let mut bytes = vec![ROW_VERSION];
    bytes.extend_from_slice(&[0; 16]);
    bytes.extend_from_slice(first);
    bytes.extend_from_slice(&[0; 63]);
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    PageRow::decode(&bytes)
}

#[test]
fn each_malformed_extent_has_its_own_error() {
    let what = |first: &[u8]| match crafted(first).unwrap_err() {
        PageError::Extent { place: 0, what } => what,
        other => panic!("{other}"),
    };
    let one = [0x41, 0, 0, 0, 0];
    let with = |head: &[u8], replicas: usize| -> Vec<u8> {
        let mut bytes = head.to_vec();
        (0..replicas).for_each(|_| bytes.extend_from_slice(&one));
        bytes
    };
    assert!(crafted(&with(&[0x11, 2], 1)).is_ok());
    assert_eq!(what(&[0x80]), "reserved bits are set");
    assert_eq!(what(&[0x10, 0]), "the generation is not in its shortest form");
    assert_eq!(what(&[0x20, 2, 0]), "the generation is not in its shortest form");
    assert_eq!(what(&[0x30, 2, 1, 0, 0]), "the generation is not in its shortest form");
    assert_eq!(what(&[0x10, 3]), "the generation is odd");
    assert_eq!(what(&with(&[0x09, 0, 0, 0, 0], 1)), "the present mask is not in its shortest form");
    assert_eq!(what(&with(&[0x09, 255, 255, 255, 255], 1)), "the present mask is not in its shortest form");
    assert_eq!(what(&with(&[0x0d], 1)), "unknown form of present blocks");
    assert_eq!(what(&with(&[0x02], 2)), "two replicas on one disk");
    assert_eq!(what(&[0x04]), "blocks are present and there is no replica");
    assert_eq!(what(&[0x01, 0x01, 0, 0, 0, 0]), "unknown replica state");
    assert_eq!(crafted(&[0, 0]), Err(PageError::Long(1)));
}

#[test]
fn another_version_is_named() {
    let mut bytes = bytes_of(&PageRow::default());
    bytes[0] = 2;
    assert_eq!(PageRow::decode(&bytes), Err(PageError::Version(2)));
}

#[test]
fn keys_of_extents_and_back() {
    let (key, place) = PageKey::of(VhdId(3), ExtentIndex(64 * 5 + 7));
    assert_eq!((key, place), (PageKey { vhd: VhdId(3), page: 5 }, 7));
    assert_eq!(key.extent(place), Some(ExtentIndex(327)));
    let last = PageKey { vhd: VhdId(3), page: u32::MAX / 64 };
    assert_eq!(last.extent(63), Some(ExtentIndex(u32::MAX)));
    assert_eq!(PageKey { vhd: VhdId(3), page: u32::MAX }.extent(0), None);
}

fn any_replicas() -> impl Strategy<Value = ReplicaSet> {
    let state = prop_oneof![Just(ReplicaState::InSync), Just(ReplicaState::Syncing), Just(ReplicaState::Stale)];
    proptest::collection::vec((0u8..64, any::<u32>(), state), 0..=3).prop_map(|list| {
        let mut set = ReplicaSet::ABSENT;
        for (disk, slot, state) in list {
            if set.on(DiskId(disk)).is_none() {
                set.push(replica(disk, slot, state));
            }
        }
        set
    })
}

fn any_extent() -> impl Strategy<Value = ExtentRow> {
    let generation = prop_oneof![Just(0u32), 0u32..0x200, any::<u32>()];
    let present = prop_oneof![Just(0u32), Just(u32::MAX), any::<u32>()];
    (generation, present, any_replicas()).prop_map(|(generation, present, replicas)| ExtentRow {
        generation: Generation(generation & !1),
        present: if replicas.is_absent() { BlockMask::NONE } else { BlockMask(present) },
        replicas,
    })
}

proptest! {
    #[test]
    fn what_is_encoded_is_decoded(
        stamp in any::<(u64, u64)>(),
        intent in any::<bool>(),
        extents in proptest::collection::vec(any_extent(), PAGE_EXTENTS),
    ) {
        let stamp = Stamp { epoch: stamp.0, commit: stamp.1 };
        let row = PageRow { stamp, intent, extents: extents.try_into().unwrap() };
        let bytes = bytes_of(&row);
        prop_assert!(bytes.len() <= ROW_LEN_MAX);
        prop_assert_eq!(PageRow::decode(&bytes), Ok(row));
        prop_assert_eq!(stamp_of(&bytes), Ok(stamp));
        prop_assert_eq!(intends(&bytes), intent);
    }

    /// Whatever decodes is what would have been encoded: one row, one sequence of bytes.
    #[test]
    fn random_bytes_with_a_right_checksum_are_an_error_or_canonical(mut body in proptest::collection::vec(any::<u8>(), 63..300)) {
        body[0] = ROW_VERSION | body[0] & INTENT;
        // Mostly zeros, so that some of them are legal.
        for byte in &mut body[17..] {
            *byte &= if *byte & 3 == 0 { 0x1f } else { 0 };
        }
        let crc = crc32c::crc32c(&body);
        body.extend_from_slice(&crc.to_le_bytes());
        if let Ok(row) = PageRow::decode(&body) {
            prop_assert_eq!(bytes_of(&row), body);
        }
    }

    #[test]
    fn random_bytes_never_panic(body in proptest::collection::vec(any::<u8>(), 0..2000)) {
        prop_assert!(PageRow::decode(&body).is_err());
    }
}
