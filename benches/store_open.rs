//! How long it takes to open a placement store and to load the table, and what a commit costs.
//!
//! `cargo bench --bench store_open [-- TIB...]` prints a table; 1 and 10 TiB of placed extents (1 MiB each) by default. The
//! store is on files in the temporary directory (set `TMPDIR`), read and written with O_DIRECT. Closing a store writes nothing,
//! so every opening here is one after SIGKILL.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a benchmark")]

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use spanblk::base::ids::{DiskId, VhdId};
use spanblk::base::rng::Rng;
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use spanblk::disk::file::FileDisk;
use spanblk::placement::ReplicaSet;
use spanblk::placement::record::PoolRecord;
use spanblk::placement::view::VhdMap;
use spanblk::store::batch::{Batch, ExtentEdit, Step};
use spanblk::store::member::{Member, Tuning};
use spanblk::store::open::{self, MemberPlace, OpenOptions, OpenStore};
use spanblk::store::page::{PAGE_EXTENTS, PageKey, Stamp};
use spanblk::store::region::RegionPlace;

const POOL: uuid::Uuid = uuid::Uuid::from_u128(1);
const VHD: VhdId = VhdId(1);
const PLACE: RegionPlace = RegionPlace { offset: 0, len: 1 << 30 };
const ROWS_PER_COMMIT: u32 = 512;

fn edit(extent: u32, present: u32) -> ExtentEdit {
    let (key, place) = PageKey::of(VHD, ExtentIndex(extent));
    ExtentEdit {
        key,
        place,
        freed: None,
        cleared: Vec::new(),
        generation: Generation(2),
        replicas: Some(ReplicaSet::single(DiskId((extent % 4) as u8), SlotIndex(extent / 4))),
        present: BlockMask(present),
    }
}

fn commit(member: &mut Member<FileDisk>, edits: Vec<ExtentEdit>) -> Duration {
    let stamp = member.state().stamp;
    let stamp = Stamp { commit: stamp.commit + 1, ..stamp };
    let batch = Batch { stamp, steps: vec![Step::Extents(edits)] };
    let start = Instant::now();
    member.apply(&batch).unwrap();
    start.elapsed()
}

fn scattered(rng: &mut Rng, extents: u32, count: usize, present: u32) -> Vec<ExtentEdit> {
    let mut chosen: Vec<u32> = (0..count).map(|_| rng.below(u64::from(extents)) as u32).collect();
    chosen.sort_unstable();
    chosen.dedup();
    chosen.into_iter().map(|extent| edit(extent, present)).collect()
}

/// Rows in order, then some of them changed here and there, as a pool that has been used for a while.
fn fill(member: &mut Member<FileDisk>, extents: u32) {
    let step = ROWS_PER_COMMIT * PAGE_EXTENTS as u32;
    for first in (0..extents).step_by(step as usize) {
        commit(member, (first..(first + step).min(extents)).map(|extent| edit(extent, 0xffff)).collect());
    }
    let mut rng = Rng::new(1);
    for _ in 0..extents / 40_000 {
        commit(member, scattered(&mut rng, extents, 256, u32::MAX));
    }
}

fn places(disks: &[Arc<FileDisk>]) -> Vec<MemberPlace<FileDisk>> {
    let place = |(i, disk): (u8, &Arc<FileDisk>)| MemberPlace {
        id: DiskId(i),
        name: format!("d{i}"),
        disk: Arc::clone(disk),
        place: PLACE,
    };
    (0..).zip(disks).map(place).collect()
}

fn load(store: &OpenStore<FileDisk>, extents: u32) -> (u64, VhdMap) {
    let map = VhdMap::new(extents);
    let mut placed = 0;
    let restore = |key: PageKey, place, extent: &spanblk::store::page::ExtentRow| {
        let index = key.extent(place).unwrap();
        map.restore(index, extent.replicas, extent.present, extent.generation);
        placed += u64::from(!extent.replicas.is_absent());
    };
    store.load(restore).unwrap();
    (placed, map)
}

fn measure(dir: &Path, tib: u32, quick_repair: bool) {
    let tuning = Tuning { quick_repair, ..Tuning::default() };
    let disks: Vec<Arc<FileDisk>> = (0..3)
        .map(|i| Arc::new(FileDisk::create(&dir.join(format!("{tib}-{quick_repair}-{i}")), PLACE.len).unwrap()))
        .collect();
    drop(open::create(places(&disks), &PoolRecord::new(POOL, 1 << 20, Vec::new()), 1).unwrap());
    let extents = tib << 20;
    let mut first = Member::open(Arc::clone(&disks[0]), PLACE, POOL, tuning).unwrap();
    fill(&mut first, extents);
    first.loaded().unwrap();
    let used = first.fill().used >> 20;
    let mut rng = Rng::new(2);
    let mut times: Vec<Duration> =
        (0..50).map(|i| commit(&mut first, scattered(&mut rng, extents, 16, i + 1))).collect();
    times.sort();
    drop(first);

    let timed_open = |which: usize| {
        let start = Instant::now();
        let options = OpenOptions { pool: POOL, total: which, accept_stale: false, tuning };
        let mut store = open::open(places(&disks[..which]), &options).unwrap();
        store.raise(0, 2).unwrap();
        let opened = start.elapsed();
        let (placed, _map) = load(&store, extents);
        assert_eq!(placed, u64::from(extents));
        (opened, start.elapsed(), store.mended.len())
    };
    let (open_one, load_one, _) = timed_open(1);
    // The other two are empty, and then equal.
    let (rebuild, _, mended) = timed_open(3);
    assert_eq!(mended, 2);
    let (open_three, load_three, _) = timed_open(3);
    // The third missed one commit: all of its rows are compared.
    let mut pair: Vec<Member<FileDisk>> =
        disks[..2].iter().map(|disk| Member::open(Arc::clone(disk), PLACE, POOL, tuning).unwrap()).collect();
    for member in &mut pair {
        commit(member, vec![edit(5, 1)]);
    }
    drop(pair);
    let (open_behind, load_behind, mended) = timed_open(3);
    assert_eq!(mended, 1);
    println!(
        "| {tib} TiB | {} | {used} MiB | {:.1?} | {open_one:.1?} + {:.1?} | {open_three:.1?} + {:.1?} | {open_behind:.1?} + {:.1?} | {rebuild:.1?} |",
        if quick_repair { "yes" } else { "no" },
        times[times.len() / 2],
        load_one - open_one,
        load_three - open_three,
        load_behind - open_behind,
    );
}

fn main() {
    let sizes: Vec<u32> = std::env::args().filter_map(|arg| arg.parse().ok()).collect();
    let sizes = if sizes.is_empty() { vec![1, 10] } else { sizes };
    let dir = tempfile::tempdir().unwrap();
    println!(
        "| placed | quick repair | table | commit of 16 rows (median) | 1 member: open + load | 3 members | 3, one behind | 2 of 3 rebuilt |"
    );
    println!("|---|---|---|---|---|---|---|---|");
    for tib in sizes {
        for quick_repair in [true, false] {
            measure(dir.path(), tib, quick_repair);
        }
    }
}
