//! A guest's virtio-blk driver, small and raw: a split virtqueue in anonymous memory, driven by hand. Well-behaved unless
//! told otherwise.
//!
//! The ring has `slots` fixed requests of four descriptors each (header, two pieces of data, status), so that nothing needs
//! to be allocated while it runs.

#![allow(dead_code, clippy::unwrap_used, reason = "a test helper, of which each test uses a part")]

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Request types.
pub const READ: u32 = 0;
/// See [`READ`].
pub const WRITE: u32 = 1;
/// See [`READ`].
pub const FLUSH: u32 = 4;
/// See [`READ`].
pub const GET_ID: u32 = 8;
/// See [`READ`].
pub const DISCARD: u32 = 11;

/// Descriptor flags.
pub const NEXT: u16 = 1;
/// See [`NEXT`].
pub const DEVICE_WRITES: u16 = 2;

/// Descriptors of one request.
pub const PER_SLOT: u16 = 4;

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x1_0000;
const USED: u64 = 0x2_0000;
const HEADERS: u64 = 0x3_0000;
const DATA: u64 = 0x10_0000;

/// The driver.
pub struct Guest {
    /// Its memory.
    pub memory: Arc<GuestMemoryMmap>,
    /// Descriptors of the ring.
    pub size: u16,
    data_len: usize,
    event_idx: bool,
    next_available: Wrapping<u16>,
    kicked: Wrapping<u16>,
    next_used: Wrapping<u16>,
}

impl Guest {
    /// A driver of `slots` (a power of two) requests of up to `data_len` bytes each.
    pub fn new(slots: u16, data_len: usize, event_idx: bool) -> Guest {
        assert!(slots.is_power_of_two() && usize::from(slots) <= 256 && data_len.is_multiple_of(4096));
        let len = usize::try_from(DATA).unwrap() + usize::from(slots) * data_len;
        let memory = Arc::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap());
        let zero = Wrapping(0);
        let size = slots * PER_SLOT;
        Guest { memory, size, data_len, event_idx, next_available: zero, kicked: zero, next_used: zero }
    }

    /// Guest addresses of descriptor table, available ring and used ring.
    pub fn addresses(&self) -> (u64, u64, u64) {
        (DESCRIPTORS, AVAILABLE, USED)
    }

    /// Goes on at these indices, as a driver whose device was stopped and started.
    pub fn resume_at(&mut self, index: u16) {
        (self.next_available, self.kicked, self.next_used) = (Wrapping(index), Wrapping(index), Wrapping(index));
        self.memory.write_obj(index.to_le(), GuestAddress(AVAILABLE + 2)).unwrap();
        self.memory.write_obj(index.to_le(), GuestAddress(USED + 2)).unwrap();
    }

    /// Whether it uses event indices.
    pub fn uses_event_idx(&self) -> bool {
        self.event_idx
    }

    /// The index of the available ring.
    pub fn made_available(&self) -> u16 {
        self.next_available.0
    }

    fn data_address(&self, slot: u16) -> u64 {
        DATA + u64::from(slot) * self.data_len as u64
    }

    /// Fills the data buffer of a slot.
    pub fn put_data(&self, slot: u16, bytes: &[u8]) {
        assert!(bytes.len() <= self.data_len);
        self.memory.write_slice(bytes, GuestAddress(self.data_address(slot))).unwrap();
    }

    /// The data buffer of a slot.
    pub fn data(&self, slot: u16, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read_slice(&mut bytes, GuestAddress(self.data_address(slot))).unwrap();
        bytes
    }

    /// Writes one descriptor.
    pub fn set_descriptor(&self, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = DESCRIPTORS + u64::from(index) * 16;
        self.memory.write_obj(address.to_le(), GuestAddress(at)).unwrap();
        self.memory.write_obj(len.to_le(), GuestAddress(at + 8)).unwrap();
        self.memory.write_obj(flags.to_le(), GuestAddress(at + 12)).unwrap();
        self.memory.write_obj(next.to_le(), GuestAddress(at + 14)).unwrap();
    }

    /// Makes a request available: `len` bytes of data in two pieces, the first of `cut` bytes (either may be 0).
    pub fn submit(&mut self, slot: u16, kind: u32, sector: u64, len: usize, cut: usize) {
        assert!(cut <= len && len <= self.data_len);
        let head = slot * PER_SLOT;
        let header = HEADERS + u64::from(slot) * 32;
        let status = header + 16;
        self.memory.write_obj(kind.to_le(), GuestAddress(header)).unwrap();
        self.memory.write_obj(0u32, GuestAddress(header + 4)).unwrap();
        self.memory.write_obj(sector.to_le(), GuestAddress(header + 8)).unwrap();
        self.memory.write_obj(0xffu8, GuestAddress(status)).unwrap();
        let data_flags = if matches!(kind, READ | GET_ID) { DEVICE_WRITES } else { 0 };
        let data = self.data_address(slot);
        let mut pieces = vec![(header, 16, 0)];
        for (at, piece_len) in [(data, cut), (data + cut as u64, len - cut)] {
            if piece_len > 0 {
                pieces.push((at, u32::try_from(piece_len).unwrap(), data_flags));
            }
        }
        pieces.push((status, 1, DEVICE_WRITES));
        let last = u16::try_from(pieces.len() - 1).unwrap();
        for (i, (at, piece_len, flags)) in (0u16..).zip(pieces) {
            let (link, next) = if i == last { (0, 0) } else { (NEXT, head + i + 1) };
            self.set_descriptor(head + i, at, piece_len, flags | link, next);
        }
        self.push_available(head);
    }

    /// Makes the chain that begins at `head` available.
    pub fn push_available(&mut self, head: u16) {
        let at = AVAILABLE + 4 + u64::from(self.next_available.0 % self.size) * 2;
        self.memory.write_obj(head.to_le(), GuestAddress(at)).unwrap();
        self.set_available_index(self.next_available.0.wrapping_add(1));
    }

    /// Sets the index of the available ring.
    pub fn set_available_index(&mut self, index: u16) {
        self.next_available = Wrapping(index);
        self.memory.store(index.to_le(), GuestAddress(AVAILABLE + 2), Ordering::Release).unwrap();
    }

    /// Whether the device wants a kick for what was made available since the last call.
    pub fn needs_kick(&mut self) -> bool {
        fence(Ordering::SeqCst);
        let (old, new) = (self.kicked, self.next_available);
        self.kicked = new;
        if old == new {
            return false;
        }
        if self.event_idx {
            let at = USED + 4 + u64::from(self.size) * 8;
            let event = Wrapping(u16::from_le(self.memory.load(GuestAddress(at), Ordering::Relaxed).unwrap()));
            return new - event - Wrapping(1) < new - old;
        }
        let flags: u16 = self.memory.load(GuestAddress(USED), Ordering::Relaxed).unwrap();
        u16::from_le(flags) & 1 == 0
    }

    /// Asks for an interrupt at the next completion. False if there is one to take already.
    pub fn arm_interrupt(&mut self) -> bool {
        if self.event_idx {
            let at = AVAILABLE + 4 + u64::from(self.size) * 2;
            self.memory.store(self.next_used.0.to_le(), GuestAddress(at), Ordering::Relaxed).unwrap();
        }
        fence(Ordering::SeqCst);
        self.used_index() == self.next_used
    }

    /// Sets the flag that asks for no interrupts at all.
    pub fn suppress_interrupts(&self, suppress: bool) {
        self.memory.write_obj(u16::from(suppress).to_le(), GuestAddress(AVAILABLE)).unwrap();
    }

    fn used_index(&self) -> Wrapping<u16> {
        Wrapping(u16::from_le(self.memory.load(GuestAddress(USED + 2), Ordering::Acquire).unwrap()))
    }

    /// Completions that were not taken yet.
    pub fn completed_count(&self) -> u16 {
        (self.used_index() - self.next_used).0
    }

    /// Takes one used entry: head and length.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        if self.used_index() == self.next_used {
            return None;
        }
        let at = USED + 4 + u64::from(self.next_used.0 % self.size) * 8;
        let entry: [u32; 2] = self.memory.read_obj(GuestAddress(at)).unwrap();
        self.next_used += 1;
        Some((u16::try_from(u32::from_le(entry[0])).unwrap(), u32::from_le(entry[1])))
    }

    /// Takes one completion: slot and status byte.
    pub fn take(&mut self) -> Option<(u16, u8)> {
        let (head, _) = self.take_used()?;
        assert!(head.is_multiple_of(PER_SLOT), "a head that was never made available");
        Some((head / PER_SLOT, self.status(head / PER_SLOT)))
    }

    /// The status byte of a slot; 0xff while the request is under way.
    pub fn status(&self, slot: u16) -> u8 {
        self.memory.read_obj(GuestAddress(HEADERS + u64::from(slot) * 32 + 16)).unwrap()
    }
}
