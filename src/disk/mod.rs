//! Host disks: opening, identifying, locking, labels, regions, and the simulated disk.
//!
//! * [`mod@file`]: a real disk, opened for direct I/O and locked; [`paths`]: with whose rights; [`sim`]: one that loses power on demand.
//! * [`identity`]: which disk is it, and what fails with it; [`signature`]: whose data is on it.
//! * [`geometry`]: how a disk is divided; [`label`]: what it says about itself; [`membership`]: who carries the placement
//!   store, and whether enough of them are here.
//! * [`pool`]: creating, finding, opening and changing the whole.
//!
//! Uses `base` only. Unsafe code is in `sys`, behind safe functions.

pub mod file;
pub mod geometry;
pub mod identity;
pub mod label;
pub mod membership;
pub mod paths;
pub mod pool;
pub mod signature;
pub mod sim;
mod sys;

use std::fmt::Debug;
use std::io;

/// A host disk as the control plane uses it: blocking, any offset and length (an implementation aligns by itself).
///
/// Never used on a reactor thread, which goes through `engine::Engine` instead.
pub trait BlockDev: Debug + Send + Sync {
    /// Size in bytes.
    fn size(&self) -> u64;

    /// Logical block size in bytes (512 or 4096).
    fn block_size(&self) -> u32;

    /// Fills `into` from byte `offset`.
    ///
    /// # Errors
    /// What the kernel said; `UnexpectedEof` beyond the end.
    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// Writes `from` at byte `offset`. Durable after [`BlockDev::sync`] only.
    ///
    /// # Errors
    /// What the kernel said; `UnexpectedEof` beyond the end.
    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()>;

    /// Makes every completed write durable.
    ///
    /// # Errors
    /// What the kernel said. The caller must treat the disk as failed and not try again.
    fn sync(&self) -> io::Result<()>;

    /// Gives the backing of a range back to whatever is below (hole punch, discard). The content is undefined afterwards.
    ///
    /// # Errors
    /// `Unsupported` if the disk cannot; else what the kernel said.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
}
