//! Direct I/O to host disks: operations in, completions out. Knows neither virtio nor placement.
//!
//! Production runs on io_uring (`uring`); tests and the simulator run the same callers on [`sim`]. An engine hides short
//! transfers: it resubmits the rest, and completes an operation only when all of it is done or it failed.
//!
//! [`fences`] tell when what was in flight has completed.
//!
//! Uses `base` and `disk`.

pub mod fences;
pub mod sim;
pub mod uring;

use crate::base::ids::DiskId;

/// Memory of a guest or of ours that the kernel reads or writes. Says nothing of lifetime: see [`Engine::submit`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Buffer {
    /// First byte.
    pub ptr: *mut u8,
    /// Length in bytes.
    pub len: usize,
}

// SAFETY: a `Buffer` is an address, as `libc::iovec` is; whoever submits it vouches for the memory behind it.
unsafe impl Send for Buffer {}

/// The caller's name for an operation, given back with its completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct OpTag(pub u64);

/// What to do.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// Read `buffers` from `offset`.
    Read {
        /// Host disk.
        disk: DiskId,
        /// Byte offset on the disk.
        offset: u64,
        /// Where to put the bytes; copied by the engine, at most `IOVECS_MAX`.
        buffers: &'a [Buffer],
    },
    /// Write `buffers` to `offset`.
    Write {
        /// Host disk.
        disk: DiskId,
        /// Byte offset on the disk.
        offset: u64,
        /// The bytes; the list is copied by the engine, at most `IOVECS_MAX`.
        buffers: &'a [Buffer],
    },
    /// Make everything durable that completed before this was submitted (`fdatasync`).
    Sync {
        /// Host disk.
        disk: DiskId,
    },
}

/// Why an operation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoError {
    /// The kernel said so.
    #[error("{}", std::io::Error::from_raw_os_error(*.0))]
    Os(i32),
    /// The disk ended before the transfer did.
    #[error("the disk is shorter than its label says")]
    UnexpectedEnd,
    /// A block is not what was written there.
    #[error("what the disk has there is not what was written: its checksum does not match")]
    Checksum,
}

impl IoError {
    /// Whether the disk is gone for good, as far as its descriptor goes: pulled, or taken from the bus. Should it come back, it is another
    /// device.
    #[must_use]
    pub fn is_gone(self) -> bool {
        // What block devices that were removed, NVMe namespaces, FUSE files and network devices without their server say.
        matches!(self, IoError::Os(libc::ENODEV | libc::ENXIO | libc::ENOTCONN | libc::ESHUTDOWN | libc::ENOMEDIUM))
    }
}

/// A finished operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    /// As submitted.
    pub tag: OpTag,
    /// Done whole, or failed.
    pub result: Result<(), IoError>,
}

/// The engine has no free slot: wait for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no free engine slot")]
pub struct EngineFull;

/// A queue of asynchronous disk operations.
pub trait Engine {
    /// Operations that can be submitted before [`EngineFull`].
    fn available(&self) -> usize;

    /// Queues an operation. It may reach the kernel later, with others.
    ///
    /// # Errors
    /// [`EngineFull`], and nothing was queued.
    ///
    /// # Safety
    /// The memory behind every buffer stays mapped, and for reads is not used for anything else, until the completion of
    /// this operation has been taken.
    unsafe fn submit(&mut self, op: Op<'_>, tag: OpTag) -> Result<(), EngineFull>;

    /// Takes one completion, if there is one. Does not wait and need not enter the kernel.
    fn take_completion(&mut self) -> Option<Completion>;
}
