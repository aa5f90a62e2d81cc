//! Chains that were in flight when somebody else served the ring: started again before any other is popped.
//!
//! The available ring has forgotten them. So we make one of our own, in a page of ours behind guest memory, and let the library
//! walk that: chains are read by the same code, whoever names them.

use std::sync::Arc;

use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

use super::Chain;
use super::fault::{RingFault, available_fault};
use super::used::{AVAILABLE_ENTRY, RING_EXTRA};
use crate::base::limits::QUEUE_SIZE_MAX;
use crate::reactor::messages::RingAddresses;

/// Bytes of our page, which begins at a multiple of them.
const PAGE_LEN: usize = 4096;
const PAGE: u64 = PAGE_LEN as u64;
const _: () = assert!(QUEUE_SIZE_MAX as u64 * AVAILABLE_ENTRY + RING_EXTRA <= PAGE);

/// Chains to start again.
pub(super) struct Replay {
    /// Guest memory and our page.
    memory: Arc<GuestMemoryMmap>,
    queue: Queue,
    heads: Vec<u16>,
    /// How many of them have been started.
    started: usize,
}

impl Replay {
    /// Starts these chains again, in this order; `None` if there are none.
    pub fn new(
        guest: &GuestMemoryMmap,
        addresses: RingAddresses,
        size: u16,
        heads: Vec<u16>,
    ) -> Result<Option<Replay>, RingFault> {
        assert!(heads.len() <= usize::from(size));
        if heads.is_empty() {
            return Ok(None);
        }
        let page = guest
            .last_addr()
            .0
            .checked_add(1)
            .and_then(|end| end.checked_next_multiple_of(PAGE))
            .ok_or(RingFault::NoRoomBehindMemory)?;
        let ours = MmapRegion::new(PAGE_LEN).map_err(|_| RingFault::NoRoomBehindMemory)?;
        let ours = GuestRegionMmap::new(ours, GuestAddress(page)).ok_or(RingFault::NoRoomBehindMemory)?;
        let memory = guest.insert_region(Arc::new(ours)).map_err(|_| RingFault::NoRoomBehindMemory)?;
        for (place, head) in (0..).zip(&heads) {
            memory.write_obj(head.to_le(), GuestAddress(page + 4 + place * AVAILABLE_ENTRY))?;
        }
        let count = u16::try_from(heads.len()).expect("no more than the ring has entries");
        memory.write_obj(count.to_le(), GuestAddress(page + 2))?;
        let mut queue = Queue::new(size)?;
        queue.try_set_desc_table_address(GuestAddress(addresses.descriptors))?;
        queue.try_set_avail_ring_address(GuestAddress(page))?;
        queue.set_ready(true);
        Ok(Some(Replay { memory: Arc::new(memory), queue, heads, started: 0 }))
    }

    /// The same chains, in another map of guest memory.
    pub fn moved_to(
        self,
        guest: &GuestMemoryMmap,
        addresses: RingAddresses,
        size: u16,
    ) -> Result<Option<Replay>, RingFault> {
        let left = self.heads.get(self.started..).unwrap_or_default().to_vec();
        Replay::new(guest, addresses, size, left)
    }

    /// The memory that chains are read from; not that of their buffers, which must be the guest's.
    pub fn memory(&self) -> Arc<GuestMemoryMmap> {
        Arc::clone(&self.memory)
    }

    /// The next chain. Not to be asked when it is done.
    pub fn next<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Result<Chain<'m>, RingFault> {
        let chain = self.queue.iter(memory).map_err(available_fault)?.next();
        self.started += 1;
        Ok(chain.expect("a page of ours has the chains that were put there"))
    }

    /// Whether all chains have been started.
    pub fn is_done(&self) -> bool {
        self.started == self.heads.len()
    }
}
