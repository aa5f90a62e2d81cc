//! The device's side of a split virtqueue: the used ring, published once per batch.

use std::num::Wrapping;
use std::sync::atomic::{Ordering, fence};

use virtio_bindings::virtio_ring::VRING_AVAIL_F_NO_INTERRUPT;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::reactor::messages::RingAddresses;

/// Byte offset of the index in the available and in the used ring.
pub(super) const INDEX: u64 = 2;
/// Byte offset of the first entry in both.
pub(super) const ENTRIES: u64 = 4;
/// Bytes of an entry of the available ring.
pub(super) const AVAILABLE_ENTRY: u64 = 2;
/// Bytes of an entry of the used ring.
pub(super) const USED_ENTRY: u64 = 8;
/// Bytes of a ring besides its entries: flags, index, event index.
pub(super) const RING_EXTRA: u64 = 6;

/// The used ring. Addresses were checked against guest memory and cannot overflow.
pub(super) struct UsedRing {
    used: GuestAddress,
    available: GuestAddress,
    size: u16,
    event_idx: bool,
    /// Where the next entry goes.
    next: Wrapping<u16>,
    /// The index the guest sees.
    published: Wrapping<u16>,
}

impl UsedRing {
    /// Goes on where the used ring in guest memory is.
    pub fn open(
        memory: &GuestMemoryMmap,
        addresses: RingAddresses,
        size: u16,
        event_idx: bool,
    ) -> Result<UsedRing, GuestMemoryError> {
        let used = GuestAddress(addresses.used);
        let index: u16 = memory.load(GuestAddress(addresses.used + INDEX), Ordering::Acquire)?;
        let next = Wrapping(u16::from_le(index));
        let available = GuestAddress(addresses.available);
        Ok(UsedRing { used, available, size, event_idx, next, published: next })
    }

    /// The index the guest sees.
    pub fn published(&self) -> u16 {
        self.published.0
    }

    /// Adds an entry that the guest does not see yet. Returns its place in the ring.
    pub fn put(&mut self, memory: &GuestMemoryMmap, head: u16, len: u32) -> Result<u16, GuestMemoryError> {
        #[cfg(test)]
        if crate::shared::inflight::fuse::is_blown() {
            return Ok(0);
        }
        let place = self.next.0 % self.size;
        let offset = ENTRIES + u64::from(place) * USED_ENTRY;
        let entry = [u32::from(head).to_le(), len.to_le()];
        memory.write_obj(entry, GuestAddress(self.used.0 + offset))?;
        self.next += 1;
        Ok(place)
    }

    /// Asks the guest not to kick for what it makes available after `index`, if it may say so by indices: a place that it has
    /// passed is not passed again.
    pub fn forget_kicks(&self, memory: &GuestMemoryMmap, index: u16) -> Result<(), GuestMemoryError> {
        if !self.event_idx {
            return Ok(());
        }
        let offset = ENTRIES + u64::from(self.size) * USED_ENTRY;
        memory.store(index.wrapping_sub(1).to_le(), GuestAddress(self.used.0 + offset), Ordering::Relaxed)
    }

    /// Whether there are entries that the guest does not see yet.
    pub fn has_unpublished(&self) -> bool {
        self.next != self.published
    }

    /// Shows the guest all entries. Returns whether it wants to be interrupted for them.
    pub fn publish(&mut self, memory: &GuestMemoryMmap) -> Result<bool, GuestMemoryError> {
        let before = self.published;
        if before == self.next {
            return Ok(false);
        }
        #[cfg(test)]
        if crate::shared::inflight::fuse::is_blown() {
            return Ok(false);
        }
        memory.store(self.next.0.to_le(), GuestAddress(self.used.0 + INDEX), Ordering::Release)?;
        self.published = self.next;
        // The driver writes its wish, then looks at the index; we write the index, then look at its wish.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let offset = ENTRIES + u64::from(self.size) * AVAILABLE_ENTRY;
            let event: u16 = memory.load(GuestAddress(self.available.0 + offset), Ordering::Relaxed)?;
            let passed = self.next - Wrapping(u16::from_le(event)) - Wrapping(1);
            return Ok(passed < self.next - before);
        }
        let flags: u16 = memory.load(self.available, Ordering::Relaxed)?;
        Ok(u32::from(u16::from_le(flags)) & VRING_AVAIL_F_NO_INTERRUPT == 0)
    }
}
