//! A live takeover: another process goes on with everything that a daemon has, and guests notice a short pause (ordering rule 11).
//!
//! The new one has done all that it can do alone when it asks for the rest over the control socket (an HTTP upgrade, then messages with
//! descriptors). The old one ends everything as in a stop, but keeps its frontends connected, and passes on listening sockets, frontends, and disks, whose
//! descriptors carry the lock. The new one opens the pool with them, and says that it is ready; then the old one says that it has gone, and does
//! nothing any more. From there on, not earlier, the new one hears guests.
//!
//! Should the new one end before it is ready, the old one opens the pool again, in the same way, and goes on: nothing that a guest has is
//! in the process alone. It waits for that as long as it takes, because two processes must not write to the same disks: the end of their
//! connection is the end of the other process. A new one that gets stuck ends itself.
//!
//! * [`giving`]: the old process. [`taking`]: the new one. Here: what they say to each other.

pub mod giving;
pub mod taking;

use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::control::view_files::PLACE;
use crate::vhost_user::SocketIdentity;

/// Raised with every change of what is said, and of what a daemon writes to disks or shared memory and one before could not read: it may have to go
/// on with that. Another number is refused, and nothing has happened then.
const VERSION: u32 = 2;

/// What the new process asks for.
#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    version: u32,
    /// Version of the program, for people.
    program: String,
    /// The pool, if it wants a certain one.
    pool: Option<Uuid>,
    /// Where sockets of VHDs are to be.
    socket_dir: PathBuf,
    /// It has a service manager to report to.
    managed: bool,
    /// How many files it may have open.
    files: u64,
    /// Which shared memory it sees: device and inode of the directory.
    shared_memory: Option<(u64, u64)>,
}

/// The shared memory in which views are kept.
fn shared_memory() -> Option<(u64, u64)> {
    std::fs::metadata(PLACE).ok().map(|meta| (meta.dev(), meta.ino()))
}

/// What the old process answers, and says later.
#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// It goes on as before.
    Refused(String),
    /// It serves nobody any more. With the control socket, the one for metrics if there is one, and the disks; then comes a `HeldState` for each
    /// VHD, with its descriptors.
    Held(Handover),
    /// It does nothing any more.
    Gone,
}

/// What is passed on, but for VHDs.
#[derive(Debug, Serialize, Deserialize)]
struct Handover {
    /// Which file the control socket is.
    control: SocketIdentity,
    metrics: Option<SocketAddr>,
    /// By which paths the disks were opened, and whether they worked.
    disks: Vec<(PathBuf, bool)>,
    /// How often the service manager wants to hear that the daemon is alive, in microseconds.
    watchdog_us: Option<u64>,
    vhds: usize,
}

/// What the new process says then.
#[derive(Debug, Serialize, Deserialize)]
enum Report {
    /// Once the old one has gone, it serves.
    Ready,
}

/// Why a new process does not take over.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// Nobody to take over from.
    #[error("no daemon answers at {}: start without --takeover, or name the control socket of the daemon with --control", .0.display())]
    NoDaemon(PathBuf),
    /// The socket is there, and cannot be used.
    #[error("cannot connect to {}", path.display())]
    Connect {
        /// The control socket.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// It speaks HTTP, but not this.
    #[error("the daemon at {} cannot be taken over: {answer}; stop it and start this one", path.display())]
    Unable {
        /// The control socket.
        path: PathBuf,
        /// What it said.
        answer: String,
    },
    /// It goes on as before.
    #[error("the daemon before this one goes on: {0}")]
    Refused(String),
    /// What came is no message, or none came.
    #[error("the daemon before this one does not do its part ({what}); if it lives, it goes on")]
    Lost {
        /// What did not work.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// It would be served without something that the daemon before had.
    #[error("{what} cannot be gone on with: {reason}; the daemon before this one goes on")]
    Lacking {
        /// A disk or VHD.
        what: String,
        /// Why.
        reason: String,
    },
    /// The time was up at the moment when all was ready.
    #[error("not ready in time; the daemon before this one goes on")]
    Late,
    /// Something came that was not to come.
    #[error("the daemon before this one said what it should not ({0}); if it lives, it goes on")]
    Confused(String),
}
