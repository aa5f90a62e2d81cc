//! What single threads see of a view.

mod kept;
mod stress;

use super::*;

const E: ExtentIndex = ExtentIndex(3);

fn placed(slot: u32) -> VhdMap {
    let map = VhdMap::new(8);
    map.place(E, ReplicaSet::single(DiskId(1), SlotIndex(slot)));
    map
}

fn version(map: &VhdMap) -> Version {
    map.lookup(E).version
}

#[test]
fn replica_words_keep_their_meaning() {
    for state in [ReplicaState::InSync, ReplicaState::Syncing, ReplicaState::Sealing, ReplicaState::Stale] {
        for (disk, slot) in [(0, 0), (63, u32::MAX), (7, 12_345)] {
            let replica = Replica { disk: DiskId(disk), slot: SlotIndex(slot), state };
            assert_eq!(unpack_replica(pack_replica(replica)), Some(replica));
        }
    }
    assert_eq!(
        pack_replica(Replica { disk: DiskId(2), slot: SlotIndex(5), state: ReplicaState::InSync }),
        1 << 56 | 2 << 48 | 5
    );
    for bad in [0, 5 << 56, 1 << 56 | 64 << 48, 1 << 56 | 1 << 32] {
        assert_eq!(unpack_replica(bad), None);
    }
}

#[test]
fn an_absent_extent_has_nothing() {
    let map = VhdMap::new(8);
    let found = map.lookup(E);
    assert!(found.replicas.is_absent() && found.present.is_empty() && found.claimed.is_empty());
    assert_eq!(found.generation, Generation(0));
    assert_eq!(map.placed_from(ExtentIndex(0)).count(), 0);
}

#[test]
fn a_first_write_claims_then_publishes() {
    let map = placed(9);
    let blocks = BlockMask::span(2, 4);
    map.claim_absent(E, blocks, version(&map)).unwrap();
    assert_eq!(map.lookup(E).claimed, blocks);
    assert!(map.lookup(E).present.is_empty());
    map.release(E, blocks, blocks);
    assert_eq!(map.lookup(E).present, blocks);
    assert!(map.lookup(E).claimed.is_empty());
    assert_eq!(map.present_blocks(), 3);
}

#[test]
fn a_failed_write_releases_without_publishing() {
    let map = placed(9);
    map.claim_absent(E, BlockMask::ALL, version(&map)).unwrap();
    map.release(E, BlockMask::ALL, BlockMask::NONE);
    assert!(map.lookup(E).present.is_empty() && map.lookup(E).claimed.is_empty());
}

#[test]
fn overlapping_claims_are_refused() {
    let map = placed(9);
    let seen = version(&map);
    map.claim_absent(E, BlockMask(0b0110), seen).unwrap();
    assert_eq!(map.claim_absent(E, BlockMask(0b1100), seen), Err(ClaimError::Busy));
    assert_eq!(map.claim_and_clear(E, BlockMask::ALL, seen), Err(ClaimError::Busy));
    map.claim_absent(E, BlockMask(0b1001), seen).unwrap();
    map.release(E, BlockMask(0b0110), BlockMask(0b0010));
    assert_eq!(map.claim_absent(E, BlockMask(0b0010), seen), Err(ClaimError::Changed), "it is present now");
    map.claim_absent(E, BlockMask(0b0100), seen).unwrap();
}

#[test]
fn a_claim_under_an_old_version_is_refused() {
    let map = placed(9);
    let old = version(&map);
    map.place(E, ReplicaSet::single(DiskId(2), SlotIndex(1)));
    assert_eq!(map.claim_absent(E, BlockMask(1), old), Err(ClaimError::Changed));
    assert_eq!(map.claim_and_clear(E, BlockMask(1), old), Err(ClaimError::Changed));
    assert!(map.lookup(E).claimed.is_empty());
}

#[test]
fn a_discard_clears_then_the_owner_drops() {
    let map = placed(9);
    let seen = version(&map);
    map.claim_absent(E, BlockMask(0xff), seen).unwrap();
    map.release(E, BlockMask(0xff), BlockMask(0xff));
    assert_eq!(map.claim_and_clear(E, BlockMask::ALL, seen), Ok(BlockMask(0xff)));
    map.drop_extent(E);
    assert!(map.lookup(E).replicas.is_absent());
    assert_eq!(map.lookup(E).claimed, BlockMask::ALL, "the claim stays with the discard");
    assert!(version(&map) != seen && map.lookup(E).generation > seen.generation());
    map.release(E, BlockMask::ALL, BlockMask::NONE);
    assert_eq!(map.present_blocks(), 0);
}

#[test]
#[should_panic(expected = "under a claim on all its blocks")]
fn an_extent_is_not_dropped_without_its_claim() {
    placed(9).drop_extent(E);
}

#[test]
#[should_panic(expected = "not held")]
fn a_claim_is_released_once() {
    placed(9).release(E, BlockMask(1), BlockMask::NONE);
}

#[test]
#[should_panic(expected = "claimed them")]
fn only_claimed_blocks_become_present() {
    let map = placed(9);
    map.claim_absent(E, BlockMask(1), version(&map)).unwrap();
    map.release(E, BlockMask(1), BlockMask(2));
}

#[test]
fn restore_sets_everything() {
    let map = VhdMap::new(8);
    let mut replicas = ReplicaSet::single(DiskId(0), SlotIndex(4));
    replicas.push(Replica { disk: DiskId(5), slot: SlotIndex(6), state: ReplicaState::Stale });
    map.restore(E, replicas, BlockMask(0xf0), Generation(12));
    let found = map.lookup(E);
    assert_eq!((found.replicas, found.present, found.generation), (replicas, BlockMask(0xf0), Generation(12)));
    assert_eq!(map.placed_from(ExtentIndex(0)).collect::<Vec<_>>(), [E]);
    assert_eq!(map.placed_from(ExtentIndex(4)).count(), 0);
    assert_eq!(map.placed_from(ExtentIndex(99)).count(), 0);
}

#[test]
fn fewer_replicas_leave_no_trace() {
    let map = VhdMap::new(8);
    let mut replicas = ReplicaSet::single(DiskId(0), SlotIndex(4));
    replicas.push(Replica { disk: DiskId(5), slot: SlotIndex(6), state: ReplicaState::InSync });
    map.place(E, replicas);
    map.place(E, ReplicaSet::single(DiskId(5), SlotIndex(6)));
    assert_eq!(map.lookup(E).replicas, ReplicaSet::single(DiskId(5), SlotIndex(6)));
}

#[test]
fn a_move_changes_the_version_and_not_the_generation() {
    let map = placed(9);
    let before = map.lookup(E);
    map.claim_absent(E, BlockMask(1), before.version).unwrap();
    let mut both = before.replicas;
    both.push(Replica { disk: DiskId(2), slot: SlotIndex(7), state: ReplicaState::Syncing });
    map.set_replicas(E, both);
    let moving = map.lookup(E);
    assert_eq!((moving.replicas, moving.generation, moving.claimed), (both, before.generation, BlockMask(1)));
    assert!(moving.replicas.is_moving() && moving.replicas.settled() == before.replicas);
    assert_eq!(map.claim_any(E, BlockMask(2), before.version), Err(ClaimError::Changed));
    map.release(E, BlockMask(1), BlockMask(1));
    assert_eq!(map.claim_any(E, BlockMask(3), moving.version), Ok(BlockMask(1)));
    map.release(E, BlockMask(3), BlockMask::NONE);
    map.set_replicas(E, ReplicaSet::single(DiskId(2), SlotIndex(7)));
    assert_eq!(map.lookup(E).present, BlockMask(1));
    let mut versions = std::collections::HashSet::new();
    for _ in 0..7 {
        versions.insert(map.lookup(E).version.0);
        map.set_replicas(E, map.lookup(E).replicas);
    }
    assert_eq!(
        (versions.len(), map.lookup(E).generation),
        (7, before.generation),
        "the counter of moves stays in its bits"
    );
}

#[test]
#[should_panic(expected = "keeps a copy")]
fn a_move_does_not_take_the_last_copy() {
    placed(9).set_replicas(E, ReplicaSet::ABSENT);
}

#[test]
fn growth_adds_absent_extents_and_moves_nothing() {
    let map = VhdMap::new(64);
    let replicas = ReplicaSet::single(DiskId(1), SlotIndex(9));
    map.place(E, replicas);
    let word: *const AtomicU64 = map.bits(E);
    for (round, extents) in (1_u32..).zip([65, 1089, 1090, 5000]) {
        map.reserve(extents).unwrap();
        map.grow(extents);
        let last = ExtentIndex(extents - 1);
        assert!(map.lookup(last).replicas.is_absent());
        map.place(last, ReplicaSet::single(DiskId(2), SlotIndex(round)));
        map.claim_absent(last, BlockMask(1), map.lookup(last).version).unwrap();
        map.release(last, BlockMask(1), BlockMask(1));
        assert_eq!((map.extents(), map.present_blocks()), (extents, u64::from(round)));
    }
    assert_eq!(map.lookup(E).replicas, replicas);
    assert!(std::ptr::eq(word, map.bits(E)));
    let placed = |from| map.placed_from(ExtentIndex(from)).map(|extent| extent.0).collect::<Vec<_>>();
    assert_eq!(placed(0), [E.0, 64, 1088, 1089, 4999]);
    assert_eq!((placed(1088), placed(1089), placed(5000)), (vec![1088, 1089, 4999], vec![1089, 4999], vec![]));
    assert_eq!(map.present_blocks_from(ExtentIndex(1089)), 2);
    assert_eq!(map.segments.iter().count(), 4, "there is room to spare");
}

#[test]
fn an_extent_that_was_cut_off_comes_back_absent_and_of_another_generation() {
    let map = VhdMap::new(8);
    for extent in [0, 3, 7].map(ExtentIndex) {
        map.place(extent, ReplicaSet::single(DiskId(0), SlotIndex(extent.0)));
        map.claim_absent(extent, BlockMask(0xff), map.lookup(extent).version).unwrap();
        map.release(extent, BlockMask(0xff), BlockMask(0xff));
    }
    map.shrink(4, BlockMask(0x0f));
    assert_eq!((map.extents(), map.present_blocks(), map.placed_from(ExtentIndex(0)).count()), (4, 12, 2));
    map.reserve(8).unwrap();
    map.grow(8);
    let found = map.lookup(ExtentIndex(7));
    assert!(found.replicas.is_absent() && found.present.is_empty() && found.generation == Generation(4));
    assert_eq!(map.lookup(ExtentIndex(3)).present, BlockMask(0x0f));
}

#[test]
#[should_panic(expected = "while nobody uses it")]
fn nothing_is_cut_off_under_a_claim() {
    let map = VhdMap::new(8);
    map.place(E, ReplicaSet::single(DiskId(0), SlotIndex(1)));
    map.claim_absent(E, BlockMask(1), map.lookup(E).version).unwrap();
    map.shrink(1, BlockMask::ALL);
}

#[test]
fn a_whole_extent_is_claimed_only_if_nothing_else_is_in_it() {
    let map = placed(9);
    let seen = map.lookup(E);
    map.claim_absent(E, BlockMask(0x11), seen.version).unwrap();
    assert_eq!(map.claim_whole(E, BlockMask(0x0f), seen.version), Err(ClaimError::Busy));
    map.release(E, BlockMask(0x11), BlockMask(0x11));
    assert_eq!(map.claim_whole(E, BlockMask(0x0f), seen.version), Err(ClaimError::Changed));
    assert_eq!(map.lookup(E).present, BlockMask(0x11), "nothing was cleared");
    map.claim_whole(E, BlockMask(0x1f), seen.version).unwrap();
    let found = map.lookup(E);
    assert!(found.present.is_empty() && found.claimed == BlockMask::ALL);
}

#[test]
fn a_scan_sees_what_lookups_see() {
    let map = VhdMap::new(3000);
    let mut rng = crate::base::rng::Rng::new(11);
    let grow = |map: &VhdMap| {
        map.reserve(5000).unwrap();
        map.grow(5000);
    };
    for step in 0..4000 {
        if step == 2000 {
            grow(&map);
        }
        let extent = ExtentIndex(u32::try_from(rng.below(map.extents().into())).unwrap());
        let mut replicas = ReplicaSet::ABSENT;
        for disk in 0..rng.below(5) {
            let state = if disk == 3 { ReplicaState::Syncing } else { ReplicaState::InSync };
            replicas.push(Replica { disk: DiskId(u8::try_from(disk).unwrap()), slot: SlotIndex(step), state });
        }
        let present = if replicas.is_absent() { BlockMask::NONE } else { BlockMask(u32::MAX >> rng.below(32)) };
        map.restore(extent, replicas, present, Generation(0));
    }
    let mut seen = Vec::new();
    map.for_each_placed(|extent| seen.push((extent.replicas().collect::<Vec<_>>(), extent.present)));
    let lookups = map.placed_from(ExtentIndex(0)).map(|extent| map.lookup(extent));
    let wanted: Vec<_> = lookups.map(|found| (found.replicas.iter().collect::<Vec<_>>(), found.present)).collect();
    assert!(wanted.len() > 1000 && seen == wanted);
}
