//! Who may have how much: limits of rates, for VHDs and VMs.
//!
//! Pure: time is an argument, and nobody waits here. A [`Bucket`] says whether something may start now, or when to ask again; an
//! [`Admission`] asks all buckets that one VHD is limited by. Whoever asks leaves what may not start where it is: in the guest's ring.
//!
//! Several reactors share a bucket without a lock. Uses `base` only.

pub mod admission;
pub mod bucket;

pub use admission::{Admission, Buckets, Cost, Hold, LimitKind, Rates, Waiting};
pub use bucket::{Bucket, Rate};
