//! vhost-user: one socket per VHD, one frontend served at a time, from negotiation to running vrings.
//!
//! * [`server`]: the runtime, and the VHDs it serves. `listener`: the socket of one VHD. `turn`: which of its frontends is served.
//!   `connection`: messages of one frontend, from the first to the last. `channel`: what we say to it. `peek`: whether a message is there as a whole.
//! * `device`: what one frontend has negotiated. `handler`: its messages, mapped to the device. `vring`: one virtqueue's
//!   settings. `memory`: guest memory. `inflight`, `dirty_log`: what else a frontend shares; `mapping`: mapped.
//! * [`hold`]: how all VHDs are held, for another server to go on with their frontends; [`held`]: what that one gets. `said`: what the protocol
//!   library has to know of it.
//! * [`hub`]: the reactors, and which of them serves which ring. `balance`: which ring should move to another. `socket`: paths, owners and permissions. `sys`: system
//!   calls that the standard library lacks.
//!
//! Invariants: a frontend's mistakes and malice end its own connection, and nothing else. No thread waits for a frontend to
//! finish a message or to read an answer. Rings are drained before the memory they point into is unmapped. Rings of one
//! frontend of a VHD run at a time.
//!
//! Uses `base`, `virtio`, `placement::record`, `shared`, `reactor::messages` and `reactor::handle`.

mod balance;
mod channel;
mod connection;
mod device;
mod dirty_log;
mod error;
mod handler;
pub mod held;
pub mod hold;
pub mod hub;
mod inflight;
mod listener;
mod mapping;
mod memory;
mod peek;
mod said;
pub mod server;
mod socket;
mod sys;
mod turn;
mod vring;

pub use error::{ServerError, SocketError};
pub use held::{HeldError, HeldState, HeldVhd};
pub use hold::{HoldError, HoldFault, NotHeld};
pub use hub::Reactors;
pub use server::{Frontend, ReactorStatus, Removal, ServerEvents, VhdEndpoint, VhdStatus, VhostUserServer};
pub use socket::{OwnRights, SocketIdentity, SocketPaths, SocketSettings};
