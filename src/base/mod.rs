//! What every other module may use and nothing else: units, identifiers, limits, the clock.
//!
//! Nothing here opens a file, or touches a ring or a thread.

pub mod aligned;
pub mod bits;
pub mod clock;
pub mod errno;
pub mod heap;
pub mod ids;
pub mod kept;
pub mod limits;
pub mod log_gate;
pub mod prefetch;
pub mod rng;
pub mod size;
pub mod units;
