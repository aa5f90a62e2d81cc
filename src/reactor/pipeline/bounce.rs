//! Bounce buffers, for what direct I/O does not take as it is: guest buffers that are not aligned to the host disk, and
//! guest blocks smaller than the disk's.

use crate::base::aligned::AlignedBuf;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::{BOUNCE_BUFFERS, BOUNCE_LEN, DISKS_MAX};

/// One buffer of [`BOUNCE_LEN`] bytes.
pub(super) type BounceBuffer = AlignedBuf;

/// A fixed number of buffers; their memory is not touched before it is needed.
///
/// A disk gets one more only while it holds fewer than are free. So disks that hang always leave some to the others.
pub(super) struct BouncePool {
    free: Vec<BounceBuffer>,
    held: [usize; DISKS_MAX],
}

impl BouncePool {
    pub fn new() -> BouncePool {
        let free = (0..BOUNCE_BUFFERS).map(|_| AlignedBuf::zeroed(BOUNCE_LEN)).collect();
        BouncePool { free, held: [0; DISKS_MAX] }
    }

    /// Whether a transfer of this disk may take a buffer.
    pub fn has_room(&self, disk: DiskId) -> bool {
        self.held[disk.index()] < self.free.len()
    }

    /// Whether no buffer is free at all.
    pub fn is_empty(&self) -> bool {
        self.free.is_empty()
    }

    /// Takes a buffer for a transfer of these disks, each of which has room.
    pub fn take(&mut self, disks: DiskSet) -> BounceBuffer {
        disks.iter().for_each(|disk| self.held[disk.index()] += 1);
        self.free.pop().expect("room in the pool was checked")
    }

    /// Gives back what was taken for these disks.
    pub fn give_back(&mut self, buffer: BounceBuffer, disks: DiskSet) {
        disks.iter().for_each(|disk| self.held[disk.index()] -= 1);
        assert!(self.free.len() < BOUNCE_BUFFERS);
        self.free.push(buffer);
    }
}
