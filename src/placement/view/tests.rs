use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::{Arc, mpsc};

use super::*;
use crate::base::kept::KeptFile;

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

/// Threads that write, read and discard against one owner that places and drops, each place in a slot never used before.
/// Slots say which extent wrote them, so that a lookup that mixes two moments is found out: old present bits with a new
/// slot show an empty block, and two claims on one block are counted.
mod stress {
    use super::*;

    /// Extents to begin with, and when it has grown as far as it does.
    const FIRST: u32 = 64;
    const EXTENTS: u32 = FIRST + 2 * 1024 + 1;
    /// Those that are used: the first two, and the first and last of each segment.
    const USED: [u32; 7] = [0, 1, 2, 1025, 1026, 2049, 2050];
    const SLOTS: u32 = if cfg!(miri) { 60 } else { 20_000 };
    const WORKERS: u64 = 3;

    struct World {
        map: VhdMap,
        /// What each block of each slot holds: 1 + the extent, 0 if it was never written.
        content: Vec<[AtomicU32; 32]>,
        /// Claims held per block.
        held: Vec<[AtomicU32; 32]>,
        stop: AtomicBool,
    }

    enum Ask {
        Place(ExtentIndex, mpsc::Sender<()>),
        Drop(ExtentIndex, mpsc::Sender<()>),
    }

    impl World {
        fn hold(&self, extent: ExtentIndex, blocks: BlockMask, by: u32) {
            for block in (0..32).filter(|block| blocks.has(*block)) {
                let held = &self.held[extent.0 as usize][block as usize];
                let before = if by == 1 { held.swap(1, Ordering::SeqCst) } else { 1 - held.swap(0, Ordering::SeqCst) };
                assert_eq!(before, 0, "two claims on one block");
            }
        }

        fn block(&self, slot: SlotIndex, block: u32) -> &AtomicU32 {
            &self.content[slot.0 as usize][block as usize]
        }

        fn read(&self, extent: ExtentIndex) {
            let seen = self.map.lookup(extent);
            let Some(replica) = seen.replicas.iter().next() else {
                assert!(seen.present.is_empty(), "present without a place");
                return;
            };
            assert!(seen.present.and(seen.claimed).is_empty(), "a present block is never claimed");
            for block in (0..32).filter(|block| seen.present.has(*block)) {
                assert_eq!(self.block(replica.slot, block).load(Ordering::Relaxed), extent.0 + 1, "a stranger's bytes");
            }
        }

        fn write(&self, extent: ExtentIndex, blocks: BlockMask, owner: &mpsc::Sender<Ask>) {
            let seen = self.map.lookup(extent);
            let Some(replica) = seen.replicas.iter().next() else {
                let (answer, answered) = mpsc::channel();
                if owner.send(Ask::Place(extent, answer)).is_ok() {
                    let _ = answered.recv();
                }
                return;
            };
            let blocks = blocks.without(seen.present);
            if blocks.is_empty() || self.map.claim_absent(extent, blocks, seen.version).is_err() {
                return;
            }
            self.hold(extent, blocks, 1);
            for block in (0..32).filter(|block| blocks.has(*block)) {
                self.block(replica.slot, block).store(extent.0 + 1, Ordering::Relaxed);
            }
            self.hold(extent, blocks, 0);
            self.map.release(extent, blocks, blocks);
        }

        fn discard(&self, extent: ExtentIndex, owner: &mpsc::Sender<Ask>) {
            let seen = self.map.lookup(extent);
            let absent = seen.replicas.is_absent();
            if absent || self.map.claim_and_clear(extent, BlockMask::ALL, seen.version).is_err() {
                return;
            }
            self.hold(extent, BlockMask::ALL, 1);
            let (answer, answered) = mpsc::channel();
            if owner.send(Ask::Drop(extent, answer)).is_ok() {
                let _ = answered.recv();
            }
            self.hold(extent, BlockMask::ALL, 0);
            self.map.release(extent, BlockMask::ALL, BlockMask::NONE);
        }

        fn work(&self, seed: u64, owner: &mpsc::Sender<Ask>) {
            let mut rng = crate::base::rng::Rng::new(seed);
            while !self.stop.load(Ordering::Relaxed) {
                // Mostly the first two, so that threads meet.
                let extents = self.map.extents();
                let choice = USED[if rng.next_u64().is_multiple_of(4) { rng.index(USED.len()) } else { rng.index(2) }];
                let extent = ExtentIndex(if choice < extents { choice } else { 0 });
                #[allow(clippy::cast_possible_truncation, reason = "random bits")]
                let blocks = BlockMask((rng.next_u64() & rng.next_u64()) as u32);
                match rng.next_u64() % 16 {
                    0 => self.discard(extent, owner),
                    1..=7 => self.write(extent, blocks, owner),
                    _ => self.read(extent),
                }
            }
        }

        fn own(&self, asks: &mpsc::Receiver<Ask>) {
            let mut next = 0;
            while next < SLOTS {
                // Three segments more, one after the other.
                let wanted = FIRST + next * (EXTENTS - FIRST) / (SLOTS - SLOTS / 8);
                if wanted > self.map.extents() && wanted <= EXTENTS {
                    self.map.reserve(wanted).unwrap();
                    self.map.grow(wanted);
                }
                match asks.recv().expect("workers run until they are stopped") {
                    Ask::Place(extent, answer) => {
                        if self.map.lookup(extent).replicas.is_absent() {
                            self.map.place(extent, ReplicaSet::single(DiskId(0), SlotIndex(next)));
                            next += 1;
                        }
                        let _ = answer.send(());
                    }
                    Ask::Drop(extent, answer) => {
                        self.map.drop_extent(extent);
                        let _ = answer.send(());
                    }
                }
            }
            self.stop.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn no_lookup_ever_mixes_two_moments() {
        let world = World {
            map: VhdMap::new(FIRST),
            content: (0..SLOTS).map(|_| [const { AtomicU32::new(0) }; 32]).collect(),
            held: (0..EXTENTS).map(|_| [const { AtomicU32::new(0) }; 32]).collect(),
            stop: AtomicBool::new(false),
        };
        let (asks, owner) = mpsc::channel();
        std::thread::scope(|scope| {
            let world = &world;
            for seed in 1..=WORKERS {
                let asks = asks.clone();
                scope.spawn(move || world.work(seed, &asks));
            }
            drop(asks);
            scope.spawn(move || world.own(&owner));
        });
        assert_eq!(world.map.segments.iter().count(), 4, "it has grown three times");
        for extent in (0..world.map.extents()).map(ExtentIndex) {
            world.read(extent);
            assert!(world.map.lookup(extent).claimed.is_empty());
        }
    }
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

/// Keeps all in one file in memory; may have no memory left.
struct OneFile {
    file: std::fs::File,
    full: bool,
    told: AtomicU32,
}

impl OneFile {
    fn new(full: bool) -> Arc<OneFile> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        let file = rustix::fs::memfd_create("spanblk-test-view", flags).unwrap().into();
        Arc::new(OneFile { file, full, told: AtomicU32::new(0) })
    }

    fn bytes(&self) -> u64 {
        std::os::unix::fs::MetadataExt::blocks(&self.file.metadata().unwrap()) * 512
    }
}

impl Keep for OneFile {
    fn make(&self, _vhd: uuid::Uuid, _start: u32, extents: u32) -> Option<Arc<KeptFile>> {
        self.file.set_len(kept_len(extents) as u64).unwrap();
        let kept = KeptFile::map(self.file.try_clone().unwrap(), kept_len(extents)).unwrap();
        if self.full {
            // No memory can be had, and each access is a SIGBUS: as with a file system that is full.
            self.file.set_len(0).unwrap();
            rustix::fs::fcntl_add_seals(&self.file, rustix::fs::SealFlags::GROW).unwrap();
        }
        Some(kept)
    }

    fn is_full(&self, _vhd: uuid::Uuid, _error: &std::io::Error) {
        self.told.fetch_add(1, Ordering::Relaxed);
    }

    fn forget(&self, _vhd: uuid::Uuid) {}
}

fn kept_by(file: &Arc<OneFile>, extents: u32) -> VhdMap {
    VhdMap::kept(extents, false, uuid::Uuid::nil(), &(Arc::clone(file) as Arc<dyn Keep>))
}

#[test]
fn kept_arrays_take_memory_where_something_is_placed_only() {
    const TEBIBYTE: u32 = 1 << 20;
    let file = OneFile::new(false);
    let map = kept_by(&file, TEBIBYTE);
    for extent in (0..TEBIBYTE).map(ExtentIndex) {
        assert!(map.lookup(extent).replicas.is_absent());
    }
    assert_eq!((map.present_blocks(), map.placed_from(ExtentIndex(0)).count()), (0, 0));
    map.for_each_placed(|_| panic!("nothing is"));
    let read = || {
        let segment = KeptSegment::open(file.file.try_clone().unwrap(), 0, TEBIBYTE).unwrap().unwrap();
        let mut extents = Vec::new();
        segment.read(|extent, kept| extents.push((extent.0, kept.replicas.len()))).unwrap();
        extents
    };
    assert_eq!((read().len(), file.bytes()), (0, 0), "looked at, and nothing more");
    let (one, mut two) = (ReplicaSet::single(DiskId(0), SlotIndex(1)), ReplicaSet::single(DiskId(0), SlotIndex(2)));
    two.push(Replica { disk: DiskId(1), slot: SlotIndex(2), state: ReplicaState::InSync });
    map.place(ExtentIndex(5), one);
    assert_eq!(file.bytes(), 20 << 10, "a GiB with one replica");
    map.place(ExtentIndex(1030), two);
    assert_eq!(file.bytes(), 48 << 10, "and one with two");
    assert_eq!((read(), file.bytes()), (vec![(5, 1), (1030, 2)], 48 << 10));
    (0..TEBIBYTE).map(ExtentIndex).for_each(|extent| map.place(extent, one));
    assert_eq!(file.bytes(), (20 << 20) + (8 << 10), "all of it");
    assert_eq!(file.told.load(Ordering::Relaxed), 0);
}

#[test]
fn without_memory_to_keep_them_arrays_are_used_all_the_same() {
    let file = OneFile::new(true);
    let map = kept_by(&file, 3000);
    assert!(map.lookup(ExtentIndex(2999)).replicas.is_absent());
    assert_eq!(
        map.claim_any(ExtentIndex(2999), BlockMask(1), map.lookup(ExtentIndex(2999)).version),
        Err(ClaimError::Changed)
    );
    let (one, mut two) = (ReplicaSet::single(DiskId(0), SlotIndex(1)), ReplicaSet::single(DiskId(0), SlotIndex(1)));
    two.push(Replica { disk: DiskId(1), slot: SlotIndex(2), state: ReplicaState::Syncing });
    for extent in [ExtentIndex(5), ExtentIndex(2999)] {
        map.place(extent, one);
        map.claim_absent(extent, BlockMask(0b11), map.lookup(extent).version).unwrap();
        map.release(extent, BlockMask(0b11), BlockMask(0b11));
        map.set_replicas(extent, two);
        let seen = map.lookup(extent);
        assert_eq!((seen.replicas, seen.present), (two, BlockMask(0b11)));
    }
    assert_eq!((map.present_blocks(), file.told.load(Ordering::Relaxed)), (4, 4), "for each part, and each copy");
    assert_eq!(map.placed_from(ExtentIndex(0)).collect::<Vec<_>>(), [ExtentIndex(5), ExtentIndex(2999)]);
    map.shrink(2048, BlockMask::ALL);
    assert_eq!((map.present_blocks(), file.bytes()), (2, 0));
}
