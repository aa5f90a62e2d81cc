//! vhost-user: one socket per VHD, one connection at a time, from negotiation to running vrings.
//!
//! * [`server`]: the runtime, and the VHDs it serves. `listener`: the socket of one VHD, and whose turn it is.
//!   `connection`: messages of one frontend, from the first to the last. `channel`: what we say to it. `peek`: whether a message is there as a whole.
//! * `device`: what one frontend has negotiated. `handler`: its messages, mapped to the device. `vring`: one virtqueue's
//!   settings. `memory`: guest memory.
//! * [`hub`]: the reactors, and which of them serves which ring. `balance`: which ring should move to another. `socket`: paths, owners and permissions. `sys`: system
//!   calls that the standard library lacks.
//!
//! Invariants: a frontend's mistakes and malice end its own connection, and nothing else. No thread waits for a frontend to
//! finish a message or to read an answer. Rings are drained before the memory they point into is unmapped. A VHD has one
//! frontend at a time.
//!
//! Uses `base`, `virtio`, `placement::record`, `shared`, `reactor::messages` and `reactor::handle`.

mod balance;
mod channel;
mod connection;
mod device;
mod error;
mod handler;
pub mod hub;
mod inflight;
mod listener;
mod memory;
mod peek;
pub mod server;
mod socket;
mod sys;
mod vring;

pub use error::{ServerError, SocketError};
pub use hub::Reactors;
pub use server::{Frontend, ReactorStatus, Removal, ServerEvents, VhdEndpoint, VhdStatus, VhostUserServer};
pub use socket::{OwnRights, SocketIdentity, SocketPaths, SocketSettings};
