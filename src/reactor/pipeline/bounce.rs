//! Bounce buffers, for what direct I/O does not take as it is: guest buffers that are not aligned to the host disk, and
//! guest blocks smaller than the disk's.

use crate::base::aligned::AlignedBuf;
use crate::base::limits::{BOUNCE_BUFFERS, BOUNCE_LEN};

/// One buffer of [`BOUNCE_LEN`] bytes.
pub(super) type BounceBuffer = AlignedBuf;

/// A fixed number of buffers; their memory is not touched before it is needed.
pub(super) struct BouncePool {
    free: Vec<BounceBuffer>,
}

impl BouncePool {
    pub fn new() -> BouncePool {
        BouncePool { free: (0..BOUNCE_BUFFERS).map(|_| AlignedBuf::zeroed(BOUNCE_LEN)).collect() }
    }

    pub fn has_free(&self) -> bool {
        !self.free.is_empty()
    }

    pub fn take(&mut self) -> Option<BounceBuffer> {
        self.free.pop()
    }

    pub fn give_back(&mut self, buffer: BounceBuffer) {
        assert!(self.free.len() < BOUNCE_BUFFERS);
        self.free.push(buffer);
    }
}
