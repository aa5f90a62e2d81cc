//! What can be wrong with a ring itself.

use vm_memory::GuestMemoryError;

use super::inflight::InflightFault;
use crate::base::limits::QUEUE_SIZE_MAX;

/// How a guest (or its VMM) broke a ring.
#[derive(Debug, thiserror::Error)]
pub(in crate::reactor) enum RingFault {
    #[error("a size of {0}: it must be a power of two, at most {QUEUE_SIZE_MAX}")]
    Size(u16),
    #[error("the {what} at guest address {address:#x} is misaligned or outside guest memory")]
    Address { what: &'static str, address: u64 },
    #[error("the available index moved further than the ring is long, or more is available than exists")]
    AvailableIndex,
    #[error("descriptor {0} is available, which is outside the table")]
    HeadOutOfRange(u16),
    #[error("descriptor {0} is available, which is still in use")]
    HeadInUse(u16),
    #[error("the frontend took guest memory away: the file behind it has been truncated")]
    MemoryLost,
    #[error("the dirty log has no bit for a page that was written: the frontend must give a longer one before it logs")]
    LogTooShort,
    #[error("guest memory is not accessible: {0}")]
    Memory(#[from] GuestMemoryError),
    #[error("virtqueue: {0}")]
    Queue(#[from] virtio_queue::Error),
    #[error("the {0} descriptor is not an eventfd")]
    NotAnEventfd(&'static str),
    #[error("the kick eventfd cannot be watched")]
    KickLost,
    #[error(
        "the in-flight region cannot be used: {0}; the frontend must give another, which a reset of its device does"
    )]
    Inflight(#[from] InflightFault),
    #[error("there is no room for a page behind guest memory")]
    NoRoomBehindMemory,
}

/// What the library says of the available ring.
pub(super) fn available_fault(error: virtio_queue::Error) -> RingFault {
    if matches!(error, virtio_queue::Error::InvalidAvailRingIndex) {
        return RingFault::AvailableIndex;
    }
    RingFault::Queue(error)
}
