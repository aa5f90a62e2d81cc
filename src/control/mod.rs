//! What the outside sees of the daemon: HTTP API, events, metrics, start-up.
//!
//! * [`wire`]: the types of the API. * `http`: routes; a handler parses, asks the owner and waits for its answer.
//! * `events`: the last things that happened. * `owner_thread`, `disk_worker`: threads around pure parts. [`broker`]: the
//!   process that keeps the rights which the daemon gives up. [`view_files`]: files in shared memory. * `serve`: start
//!   and stop.
//!
//! Invariants: handlers never touch state; nothing here runs on a reactor.
//!
//! Uses everything but `cli`.

pub mod broker;
pub mod convert;
pub mod disk_worker;
pub mod events;
mod failures;
mod frames;
pub mod http;
mod mover;
pub mod owner_link;
pub mod owner_thread;
pub mod policy;
mod reactors;
pub mod serve;
mod service;
pub mod stats;
pub mod view_files;
pub mod wire;

/// An error with its causes, on one line.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Some messages carry their cause already.
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
