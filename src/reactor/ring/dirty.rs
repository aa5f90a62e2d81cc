//! Which guest memory a ring has written to, noted in the dirty log of its device while a live migration goes on.
//!
//! The kernel writes what guests read, past every bitmap of ours or of a library: so data is noted when a request is done. Each page
//! is noted after it was written, and everything about a chain before the used index that shows it to the guest.

use vm_memory::{GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::used::{ENTRIES, INDEX, USED_ENTRY};
use super::{Ring, RingFault};
use crate::reactor::messages::RingLog;
use crate::virtio::parse::{ID_LEN, StatusByte};
use crate::virtio::request::{Request, RequestKind};

/// A region of guest memory: where it is in our memory, its length, and its guest physical address.
#[derive(Clone, Copy)]
struct Region {
    host: usize,
    len: u64,
    guest: u64,
}

/// Where a ring notes what it writes.
pub(super) struct Dirty {
    to: RingLog,
    /// By where they are in our memory.
    regions: Vec<Region>,
}

impl Dirty {
    pub fn new(to: RingLog, memory: &GuestMemoryMmap) -> Dirty {
        let mut dirty = Dirty { to, regions: Vec::new() };
        dirty.set_memory(memory);
        dirty
    }

    /// Guest memory is there from now on.
    pub fn set_memory(&mut self, memory: &GuestMemoryMmap) {
        let region = |region: &GuestRegionMmap| Region {
            host: region.as_ptr().addr(),
            len: region.len(),
            guest: region.start_addr().0,
        };
        self.regions = memory.iter().map(region).collect();
        self.regions.sort_unstable_by_key(|region| region.host);
    }

    /// The first address of the log, by which `guest_memory` knows it.
    pub fn region_start(&self) -> usize {
        self.to.log.start()
    }

    /// The guest physical address of what is there in our memory.
    fn guest_address(&self, host: usize) -> Option<u64> {
        let after = self.regions.partition_point(|region| region.host <= host);
        let region = self.regions.get(after.checked_sub(1)?)?;
        let offset = (host - region.host) as u64;
        (offset < region.len).then(|| region.guest + offset)
    }

    /// False if the log has no bit for it.
    fn note(&self, address: Option<u64>, len: u64) -> bool {
        address.is_some_and(|address| self.to.log.mark(address, len))
    }
}

impl Ring {
    /// What is written from now on is noted there, or nowhere.
    pub fn set_log(&mut self, log: Option<RingLog>) {
        self.dirty = log.map(|log| Dirty::new(log, &self.memory));
        self.losses = None;
    }

    /// Notes the data that a request has put into the guest's buffers. Before [`Ring::complete`]. If it failed, nobody knows which
    /// part of them.
    pub fn note_data(&mut self, request: &Request) {
        if self.dirty.is_none() {
            return;
        }
        let mut left = match request.kind {
            RequestKind::Read { len, .. } => len,
            RequestKind::GetId => ID_LEN,
            RequestKind::Write { .. } | RequestKind::Flush | RequestKind::Discard | RequestKind::WriteZeroes => return,
        };
        for segment in request.segments() {
            let len = u64::from(segment.len).min(left);
            self.note_host(segment.ptr, len);
            left -= len;
        }
    }

    /// Notes a status byte.
    pub(super) fn note_status(&mut self, status: StatusByte) {
        if self.dirty.is_some() {
            self.note_host(status.as_ptr(), 1);
        }
    }

    /// Notes an entry of the used ring that was put at this place.
    pub(super) fn note_entry(&mut self, place: u16) {
        self.note_used(ENTRIES + u64::from(place) * USED_ENTRY, USED_ENTRY);
    }

    /// Notes the used index.
    pub(super) fn note_index(&mut self) {
        self.note_used(INDEX, 2);
    }

    /// Notes that the guest was asked to kick, or not to.
    pub(super) fn note_wish(&mut self) {
        let event = ENTRIES + u64::from(self.size) * USED_ENTRY;
        self.note_used(if self.event_idx { event } else { 0 }, 2);
    }

    fn note_used(&mut self, offset: u64, len: u64) {
        if let Some(dirty) = &self.dirty
            && let Some(used) = dirty.to.used
        {
            self.is_unlogged |= !dirty.note(used.checked_add(offset), len);
        }
    }

    /// Notes bytes of guest memory by where they are in ours. Maps only grow while a ring runs, so the one of now has them.
    #[cold]
    fn note_host(&mut self, ptr: *const u8, len: u64) {
        if let Some(dirty) = &self.dirty {
            self.is_unlogged |= !dirty.note(dirty.guest_address(ptr.addr()), len);
        }
    }

    /// Whether something was written that the log has no bit for: what arrives at the other side would not be what the guest has here.
    pub fn is_unlogged(&self) -> bool {
        self.is_unlogged
    }

    /// A fault if something could not be noted.
    pub(super) fn unless_unnoted(&self) -> Result<(), RingFault> {
        if self.is_unlogged { Err(RingFault::LogTooShort) } else { Ok(()) }
    }
}
