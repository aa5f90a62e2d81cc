//! The in-flight region: memory of a frontend that says which chains of its virtqueues were popped and not given back. It outlives
//! us, so that whoever serves the device after a crash gives every one of them back once.
//!
//! The layout for split virtqueues is that of the vhost-user specification, "Inflight I/O tracking". What is in the region is
//! hostile: here nothing but its bounds is relied on, `reactor::ring` checks what it means.

pub mod fuse;

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU16, AtomicU64, Ordering};

use vm_memory::{AtomicInteger, FileOffset, MmapRegion, VolatileMemory};

use super::guest_memory::Watch;

/// Byte offsets in the part of a queue; before them are features, of which there are none.
const VERSION: usize = 8;
const DESCRIPTORS: usize = 10;
const LAST_BATCH_HEAD: usize = 12;
const USED_INDEX: usize = 14;
const ENTRIES: usize = 16;

/// Byte offsets in the entry of a descriptor, and its length.
const MARK: usize = 0;
const NEXT: usize = 6;
const COUNTER: usize = 8;
const ENTRY: usize = 16;

/// The part of each queue begins at a multiple of so many bytes. Not in the specification; what other backends do, too.
const ALIGNMENT: usize = 64;

/// The only version there is; 0 is that of a region that nobody has used.
pub const VERSION_1: u16 = 1;

/// Bytes of the part of a queue.
fn queue_len(queue_size: u16) -> usize {
    (ENTRIES + usize::from(queue_size) * ENTRY).next_multiple_of(ALIGNMENT)
}

/// Bytes that `queues` queues of up to `queue_size` entries take.
#[must_use]
pub fn region_len(queues: u16, queue_size: u16) -> usize {
    usize::from(queues) * queue_len(queue_size)
}

/// A mapped in-flight region.
#[derive(Debug)]
pub struct InflightRegion {
    /// Before the mapping: what is unmapped is not watched any more.
    _watch: Watch,
    mapping: MmapRegion,
    queues: u16,
    queue_size: u16,
}

impl InflightRegion {
    /// A region for `queues` queues of up to `queue_size` entries, which the mapping must have room for.
    ///
    /// # Panics
    /// If it has not.
    #[must_use]
    pub fn new(mapping: MmapRegion, watch: Watch, queues: u16, queue_size: u16) -> InflightRegion {
        assert!(
            mapping.size() >= region_len(queues, queue_size),
            "the length was checked before the region was mapped"
        );
        InflightRegion { _watch: watch, mapping, queues, queue_size }
    }

    /// The file that it is mapped from, and where it begins there; `None` if it is of no file.
    #[must_use]
    pub fn file(&self) -> Option<&FileOffset> {
        self.mapping.file_offset()
    }

    /// Queues that it has parts for, and entries that each of them has room for.
    #[must_use]
    pub fn shape(&self) -> (u16, u16) {
        (self.queues, self.queue_size)
    }

    /// The part of one queue; `None` if the region has none for it.
    #[must_use]
    pub fn queue(self: &Arc<InflightRegion>, index: u16) -> Option<InflightQueue> {
        let start = usize::from(index) * queue_len(self.queue_size);
        (index < self.queues).then(|| InflightQueue { region: Arc::clone(self), start })
    }
}

/// The part of one queue in an in-flight region. Every store is one that a crash may follow, so their order matters: none moves
/// before an earlier one.
#[derive(Clone, Debug)]
pub struct InflightQueue {
    region: Arc<InflightRegion>,
    start: usize,
}

impl InflightQueue {
    /// Entries that there is room for.
    #[must_use]
    pub fn capacity(&self) -> u16 {
        self.region.queue_size
    }

    /// The first address of the region, by which `guest_memory` knows it.
    #[must_use]
    pub fn region_start(&self) -> usize {
        self.region.mapping.as_ptr().addr()
    }

    /// The version: 0 while nobody has used this part.
    #[must_use]
    pub fn version(&self) -> u16 {
        self.load::<AtomicU16>(VERSION)
    }

    /// Sets the version.
    pub fn set_version(&self, version: u16) {
        self.store::<AtomicU16>(VERSION, version);
    }

    /// Entries of the queue when it was used last.
    #[must_use]
    pub fn descriptors(&self) -> u16 {
        self.load::<AtomicU16>(DESCRIPTORS)
    }

    /// Sets the number of entries.
    pub fn set_descriptors(&self, descriptors: u16) {
        self.store::<AtomicU16>(DESCRIPTORS, descriptors);
    }

    /// The chain that was given back last.
    #[must_use]
    pub fn last_batch_head(&self) -> u16 {
        self.load::<AtomicU16>(LAST_BATCH_HEAD)
    }

    /// Sets the chain that is given back.
    pub fn set_last_batch_head(&self, head: u16) {
        self.store::<AtomicU16>(LAST_BATCH_HEAD, head);
    }

    /// The used index up to which marks have been cleared.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.load::<AtomicU16>(USED_INDEX)
    }

    /// Sets the used index up to which marks have been cleared.
    pub fn set_used_index(&self, index: u16) {
        self.store::<AtomicU16>(USED_INDEX, index);
    }

    /// The mark of a chain: 1 if it is in flight, 0 if not.
    #[must_use]
    pub fn mark(&self, head: u16) -> u8 {
        self.load::<AtomicU8>(self.entry(head) + MARK)
    }

    /// Marks a chain, or clears its mark.
    pub fn set_mark(&self, head: u16, mark: bool) {
        self.store::<AtomicU8>(self.entry(head) + MARK, u8::from(mark));
    }

    /// The chain that was given back before this one.
    #[must_use]
    pub fn next(&self, head: u16) -> u16 {
        self.load::<AtomicU16>(self.entry(head) + NEXT)
    }

    /// Sets the chain that was given back before this one.
    pub fn set_next(&self, head: u16, next: u16) {
        self.store::<AtomicU16>(self.entry(head) + NEXT, next);
    }

    /// When a chain was popped: more than those before it.
    #[must_use]
    pub fn counter(&self, head: u16) -> u64 {
        self.load::<AtomicU64>(self.entry(head) + COUNTER)
    }

    /// Sets when a chain was popped.
    pub fn set_counter(&self, head: u16, counter: u64) {
        self.store::<AtomicU64>(self.entry(head) + COUNTER, counter);
    }

    /// The queue has stopped, and the frontend is told where: if nothing is in flight, where it starts again is what the frontend
    /// says then. (The guest may have reset its rings meanwhile.)
    pub fn forget(&self) {
        if (0..self.capacity()).all(|head| self.mark(head) == 0) {
            self.set_version(0);
        }
    }

    fn entry(&self, head: u16) -> usize {
        assert!(
            head < self.capacity(),
            "heads are checked against the size of the ring, and that against the capacity"
        );
        ENTRIES + usize::from(head) * ENTRY
    }

    fn load<A: AtomicInteger>(&self, offset: usize) -> A::V {
        self.word::<A>(offset).load(Ordering::Acquire)
    }

    fn store<A: AtomicInteger>(&self, offset: usize, value: A::V) {
        #[cfg(test)]
        if fuse::is_blown() {
            return;
        }
        self.word::<A>(offset).store(value, Ordering::Release);
    }

    fn word<A: AtomicInteger>(&self, offset: usize) -> &A {
        self.region.mapping.get_atomic_ref(self.start + offset).expect("within the part of a queue, and aligned")
    }
}
