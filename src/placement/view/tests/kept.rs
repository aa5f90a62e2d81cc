//! Views that are kept for the next daemon.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use super::*;
use crate::base::kept::KeptFile;

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
