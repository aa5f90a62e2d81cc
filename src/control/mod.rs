//! What the outside sees of the daemon: HTTP API, events, metrics, start-up.
//!
//! * [`wire`]: the types of the API. * `http`: routes; a handler parses, asks the owner and waits for its answer.
//! * `events`: the last things that happened. * `owner_thread`, `disk_worker`: threads around pure parts. * `serve`: start
//!   and stop.
//!
//! Invariants: handlers never touch state; nothing here runs on a reactor.
//!
//! Uses everything but `cli`.

pub mod convert;
pub mod disk_worker;
pub mod events;
pub mod http;
pub mod owner_link;
pub mod serve;
pub mod wire;
