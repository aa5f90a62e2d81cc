//! Serving virtqueues: one thread and one engine per reactor, for the rings of all VHDs.
//!
//! * [`messages`]: what reactors, the owner, the committer and vhost-user connections say to each other.
//! * [`pipeline`]: guest requests in, engine operations out, completions back. No thread, no clock, no ring: generic over
//!   the engine, so that the crash simulation runs the very code that serves guests.
//! * `ring`: one virtqueue. [`thread`]: the loop around it all, and the rings of a reactor.
//! * [`inbox`], [`handle`]: the queue of messages to a reactor, and what others hold of it.
//!
//! Invariants: a popped chain is completed exactly once; a request slot is reserved before a chain is popped; no lock, no
//! allocation and no copy of guest data in steady state. (Messages to others, for which queues have room in lots, are the exception:
//! of claims that another reactor waits for, and of what changes the table.)
//!
//! Uses `base`, `metrics`, `virtio`, `placement`, `shared`, `store::change` and `engine`.

pub mod handle;
pub mod inbox;
pub mod messages;
pub mod pipeline;
mod ring;
pub mod thread;
