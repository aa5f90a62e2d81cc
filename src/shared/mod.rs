//! State that reactors, the owner and the committer share without a lock: per host disk and per VHD. Besides, which guest
//! memory has been taken away from us, what frontends keep of requests in flight and of pages that were written, whose rings
//! ran last, how busy reactors and rings are, whether anybody wants to hear of it, and what VHDs are limited to.
//!
//! Everything here is atomics or fixed after creation (`process` asks the kernel). Uses `base`, `metrics`, `qos` and `placement`.

pub mod dirty_log;
pub mod disk;
pub mod door;
pub mod failure;
pub mod guest_memory;
pub mod inflight;
pub mod last_active;
pub mod limits;
pub mod load;
pub mod process;
pub mod rest;
pub mod vhd;

pub use disk::DiskState;
pub use failure::Failure;
pub use load::Load;
pub use rest::Rest;
pub use vhd::{VhdSettings, VhdState};
