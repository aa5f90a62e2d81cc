//! The owner: decides where extents go and how VHDs begin and end. Typed commands and messages in, effects out.
//!
//! * [`command`]: commands, their answers and errors. [`outbox`]: what the owner makes happen.
//!
//! No thread, no clock, no disk: time is an argument, effects go to an [`outbox::OwnerOutbox`]. The simulation runs the
//! very code that runs in production.
//!
//! Uses `base`, `placement`, `shared`, `store::{change, edit}` and `reactor::messages`.

pub mod command;
pub mod error;
pub mod outbox;
