//! virtio-blk as the specification has it: hostile bytes in, valid requests out (virtio 1.3, section 5.2).
//!
//! Pure: touches guest memory through `vm-memory`, nothing else. Uses `base` only.

pub mod config;
pub mod device;
pub mod features;
#[doc(hidden)]
pub mod fuzz;
pub mod parse;
pub mod request;
