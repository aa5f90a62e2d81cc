//! Who may have how much: limits of rates, for VHDs and VMs, and shares of the host disks that they have in common.
//!
//! Pure but for atomics: time is an argument, and nobody waits here. A [`Bucket`] says whether something may start now, or when to ask
//! again; an [`Admission`] asks all buckets that one VHD is limited by. Whoever asks leaves what may not start where it is: in the guest's ring.
//! [`shares`] says whose turn it is on one disk, by [`Share`], and how much may be in flight; [`window`] finds out how much a disk needs in
//! flight, so that its own queue does not undo that.
//!
//! Several threads share a bucket, and a disk, without a lock. Uses `base` only.

pub mod admission;
pub mod awaited;
pub mod bucket;
pub mod share;
pub mod shares;
pub mod window;

pub use admission::{Admission, Buckets, Cost, Hold, LimitKind, Rates, Waiting};
pub use awaited::Awaited;
pub use bucket::{Bucket, Rate};
pub use share::{CurrentShare, Priority, Share, Weight};

#[cfg(test)]
mod sim;
