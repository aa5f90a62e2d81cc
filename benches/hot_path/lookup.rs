//! From an extent to its place: the placement view.

use std::hint::black_box;

use spanblk::base::ids::DiskId;
use spanblk::base::rng::Rng;
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use spanblk::placement::view::VhdMap;
use spanblk::placement::{Replica, ReplicaSet, ReplicaState};

use super::Bench;

/// 4 GiB of the usual extents: its view fits the first caches.
const SMALL: u32 = 4096;
/// 10 TiB of them: its view fits none.
const LARGE: u32 = 10_000_000;
const LOOKUPS: usize = 4096;

/// A VHD whose extents have all been written, each with `replicas` copies, on `disks` disks in turn.
fn view(extents: u32, disks: u32, replicas: u32) -> VhdMap {
    let map = VhdMap::new(extents);
    restore(&map, 0..extents, disks, replicas);
    map
}

fn restore(map: &VhdMap, extents: std::ops::Range<u32>, disks: u32, replicas: u32) {
    for extent in extents {
        let mut set = ReplicaSet::ABSENT;
        for copy in 0..replicas {
            let disk = DiskId(((extent + copy) % disks) as u8);
            set.push(Replica { disk, slot: SlotIndex(extent / disks), state: ReplicaState::InSync });
        }
        map.restore(ExtentIndex(extent), set, BlockMask::ALL, Generation(0));
    }
}

/// Looks up extents in random order, each only when the one before has been found, as a request waits for its place.
fn measure_view(bench: &Bench, name: &str, map: &VhdMap) {
    let mut rng = Rng::new(1);
    let order: Vec<u32> = (0..1 << 20).map(|_| rng.below(u64::from(map.extents())) as u32).collect();
    let mut at = 0;
    bench.run([name], |stopwatch| {
        stopwatch.start();
        for _ in 0..LOOKUPS {
            let seen = black_box(map.lookup(ExtentIndex(order[at])));
            // 0, which nobody can know before the lookup is done.
            at = (at + 1 + seen.generation.0 as usize) % order.len();
        }
        [(stopwatch.lap(), LOOKUPS)]
    });
}

/// What a write to an extent with several copies does besides.
fn measure_claim(bench: &Bench, map: &VhdMap) {
    let mut rng = Rng::new(2);
    let order: Vec<u32> = (0..LOOKUPS).map(|_| rng.below(u64::from(map.extents())) as u32).collect();
    let blocks = BlockMask(1 << 7);
    bench.run(["lookup: two copies, with a claim of a block and its release"], |stopwatch| {
        stopwatch.start();
        for &extent in &order {
            let extent = ExtentIndex(extent);
            let seen = black_box(map.lookup(extent));
            black_box(map.claim_any(extent, blocks, seen.version).unwrap());
            map.release(extent, blocks, BlockMask::NONE);
        }
        [(stopwatch.lap(), order.len())]
    });
}

pub fn measure(bench: &Bench) {
    measure_view(bench, "lookup: isolated, 4096 extents", &view(SMALL, 1, 1));
    measure_view(bench, "lookup: spanned over 8 disks, 4096 extents", &view(SMALL, 8, 1));
    let mirrored = view(SMALL, 8, 2);
    measure_view(bench, "lookup: spanned over 8 disks with two copies, 4096 extents", &mirrored);
    measure_claim(bench, &mirrored);
    let grown = view(1, 8, 1);
    grown.reserve(SMALL).unwrap();
    grown.grow(SMALL);
    restore(&grown, 1..SMALL, 8, 1);
    measure_view(bench, "lookup: the same with one copy, in a VHD that has grown", &grown);
    measure_view(bench, "lookup: spanned over 8 disks, 10 million extents at random", &view(LARGE, 8, 1));
}
