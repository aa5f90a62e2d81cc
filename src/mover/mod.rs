//! The mover: fills the copies that moves make, chunk by chunk.
//!
//! * [`messages`]: what the owner asks of it, and what it reports.
//! * [`copier`]: the state machine; no thread, no clock. Generic over the engine and the outbox, so that the crash simulation
//!   runs the very code that moves guests' data.
//! * [`pace`]: how fast; pure.
//! * [`thread`]: the loop around it.
//!
//! It knows nothing of plans, jobs or the store: the owner decides what moves, publishes the copy, has the old view drained,
//! and only then asks for it to be filled. Invariants: a chunk is copied under a claim on its blocks, so that no write comes
//! between reading and writing it; whatever it has in flight on a disk is behind the fences of that disk.
//!
//! Uses `base`, `metrics`, `placement`, `shared`, `engine`, and the messages and inboxes of `reactor`.

pub mod copier;
pub mod messages;
pub mod pace;
pub mod thread;
