//! Threads that write, read and discard against one owner that places and drops, each place in a slot never used before.
//! Slots say which extent wrote them, so that a lookup that mixes two moments is found out: old present bits with a new
//! slot show an empty block, and two claims on one block are counted.

use std::sync::atomic::{AtomicBool, AtomicU32};
use std::sync::mpsc;

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
