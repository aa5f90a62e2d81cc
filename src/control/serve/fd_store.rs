//! Frontends that stay connected while the daemon is restarted: the service manager keeps them meanwhile, in its descriptor store.
//!
//! A daemon that stops holds its VHDs (`vhost_user::hold`), ends as always, and when nothing can go wrong any more leaves each VHD that has
//! frontends with the manager: as a message that lies in a socket, which is one descriptor. A store keeps neither the order of descriptors nor
//! those that are the same (and guest memory is the same for many regions and VHDs); in a message all are there, or none.
//!
//! Whoever reads the message takes it out. So what has been gone on with, and is out of date, cannot be gone on with once more, whatever the
//! store still has; and a daemon that fails to start leaves it to the next one, because it reads when all else has worked.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::env;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustix::net::sockopt::set_socket_send_buffer_size;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::files;
use super::manager::Manager;
use crate::base::limits::{FRAME_MESSAGE_MAX, PASSED_FDS_MAX};
use crate::control::error_chain;
use crate::control::frames::{receive, send};
use crate::vhost_user::{HeldError, HeldState, HeldVhd, SocketPaths, VhostUserServer};

/// Raised with every change of what is left that the names of its fields do not show.
const VERSION: u32 = 1;

/// What names in the store begin with; the VHD's UUID follows.
const PREFIX: &str = "spanblk-vhd-";

/// The message; the descriptors of the VHD are with it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Left {
    version: u32,
    pool: Uuid,
    vhd: HeldState,
}

/// Why frontends that were left cannot be gone on with.
#[derive(Debug, thiserror::Error)]
enum LeftError {
    #[error("this daemon has not left it")]
    Unknown,
    #[error("there is no such descriptor")]
    Closed,
    #[error("another daemon has gone on with it")]
    Empty,
    #[error("it cannot be read (was it left by another version?): {0}")]
    Unreadable(#[source] io::Error),
    #[error("it was left by another version, and is of format {0} instead of {VERSION}")]
    Version(u32),
    #[error("it is of pool {0}, which is not served here")]
    OtherPool(Uuid),
    #[error("it is of VHD {0}")]
    OtherVhd(Uuid),
    #[error("it is of VHD {0}, which there is not")]
    NoVhd(Uuid),
    #[error("VHD {0} is here already")]
    Twice(Uuid),
    #[error("its socket is {}, and is to be {}", held.display(), wanted.display())]
    Elsewhere { held: PathBuf, wanted: PathBuf },
    #[error(transparent)]
    Held(#[from] HeldError),
}

fn name_of(vhd: Uuid) -> String {
    format!("{PREFIX}{vhd}")
}

fn vhd_of(name: &str) -> Option<Uuid> {
    name.strip_prefix(PREFIX)?.parse().ok()
}

/// All of a VHD in one descriptor.
fn pack(pool: Uuid, held: HeldVhd) -> io::Result<OwnedFd> {
    let (carrier, writer) = UnixStream::pair()?;
    // All of it has to have room there, since nobody reads.
    writer.set_nonblocking(true)?;
    set_socket_send_buffer_size(&writer, FRAME_MESSAGE_MAX)?;
    let (vhd, fds) = held.into_parts();
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    send(&writer, &Left { version: VERSION, pool, vhd }, &fds)?;
    Ok(carrier.into())
}

fn unpack(name: &str, carrier: Option<OwnedFd>, pool: Uuid) -> Result<HeldVhd, LeftError> {
    let named = vhd_of(name).ok_or(LeftError::Unknown)?;
    let carrier = UnixStream::from(carrier.ok_or(LeftError::Closed)?);
    // What is not there now never comes.
    carrier.set_nonblocking(true).map_err(LeftError::Unreadable)?;
    let (left, fds) = receive::<Left>(&carrier).map_err(LeftError::Unreadable)?.ok_or(LeftError::Empty)?;
    match left {
        Left { version, .. } if version != VERSION => Err(LeftError::Version(version)),
        Left { pool: other, .. } if other != pool => Err(LeftError::OtherPool(other)),
        Left { vhd, .. } => {
            let held = HeldVhd::from_parts(vhd, fds)?;
            if held.vhd() == named { Ok(held) } else { Err(LeftError::OtherVhd(held.vhd())) }
        }
    }
}

/// Frontends that wait for a daemon which may come. Dropped, it disconnects them.
pub struct Waiting {
    vhds: Vec<HeldVhd>,
    paths: Arc<dyn SocketPaths>,
}

impl Waiting {
    /// Holds all VHDs, and disconnects whom the manager cannot keep. `None`: it has no store, or not all can be held, and nothing has happened.
    pub fn hold(
        server: &VhostUserServer,
        manager: &Manager,
        paths: &Arc<dyn SocketPaths>,
        at_most: Duration,
    ) -> Option<Waiting> {
        let max = manager.store_max();
        if max == 0 {
            return None;
        }
        let held = match server.hold(at_most) {
            Ok(held) => held,
            Err(error) => {
                log::warn!("frontends are disconnected, and do not wait for the next daemon: {}", error_chain(&error));
                return None;
            }
        };
        // A socket that nobody has connected to would only let others wait.
        let (connected, idle): (Vec<_>, Vec<_>) = held.into_iter().partition(|held| held.frontends() > 0);
        let mut waiting = Waiting { vhds: idle, paths: Arc::clone(paths) };
        waiting.disconnect();
        if connected.len() <= max {
            waiting.vhds = connected;
            return Some(waiting);
        }
        log::warn!(
            "frontends are disconnected, and do not wait for the next daemon: {} VHDs have some, and the service manager keeps {max} \
             descriptors (FileDescriptorStoreMax= in the unit), one for each",
            connected.len()
        );
        waiting.vhds = connected;
        waiting.disconnect();
        Some(waiting)
    }

    /// Leaves all with the manager. Nothing may be done to the pool any more. Whom it cannot be given is disconnected.
    pub fn leave(mut self, manager: &Manager, pool: Uuid) {
        let mut left = 0;
        while let Some(held) = self.vhds.pop() {
            let name = name_of(held.vhd());
            let (path, identity) = held.socket();
            let path = path.to_owned();
            let carrier = pack(pool, held);
            let is_packed = carrier.is_ok();
            let kept = carrier.and_then(|carrier| manager.keep(&name, carrier.as_fd()));
            let Err(error) = kept else {
                left += 1;
                continue;
            };
            self.paths.remove(&path, identity);
            log::warn!("{name} cannot be left with the service manager, and is disconnected: {error}");
            if is_packed {
                // It would not take the others, either, and every attempt may take its time.
                break;
            }
        }
        if left > 0 {
            log::info!("frontends of {left} VHDs stay connected: the service manager keeps them for the next daemon");
        }
    }

    fn disconnect(&mut self) {
        for held in self.vhds.drain(..) {
            // First: nobody is to find a socket that nobody listens on.
            let (path, identity) = held.socket();
            self.paths.remove(path, identity);
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.disconnect();
    }
}

/// A descriptor that the manager has passed on: its name, and itself, if it is open.
pub type Passed = (String, Option<OwnedFd>);

/// Takes what the manager has passed on to this process. To be called once, before anything is opened.
#[must_use]
pub fn take_passed() -> Vec<Passed> {
    let variable = |name| env::var(name).ok();
    let [pid, count, names] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"].map(variable);
    let names = passed_names(std::process::id(), pid.as_deref(), count.as_deref(), names.as_deref());
    let fds = files::take_passed(names.len());
    names.into_iter().zip(fds).collect()
}

/// The names of what was passed on to process `own`, empty ones for those without.
fn passed_names(own: u32, pid: Option<&str>, count: Option<&str>, names: Option<&str>) -> Vec<String> {
    if pid.and_then(|pid| pid.parse().ok()) != Some(own) {
        return Vec::new();
    }
    let count = count.and_then(|count| count.parse().ok()).unwrap_or(0);
    let mut names = names.unwrap_or_default().split(':');
    // What is told to the manager has the name in a line.
    let name = |name: &str| name.chars().filter(char::is_ascii_graphic).collect();
    (0..PASSED_FDS_MAX.min(count)).map(|_| name(names.next().unwrap_or_default())).collect()
}

/// What the manager has kept.
#[derive(Default)]
pub struct Stored {
    manager: Manager,
    passed: Vec<Passed>,
}

impl Stored {
    /// What it has passed on.
    #[must_use]
    pub fn new(manager: &Manager, passed: Vec<Passed>) -> Stored {
        Stored { manager: manager.clone(), passed }
    }

    /// Adds to `held` what is complete, and of the VHDs of that pool whose `sockets` are where they were; disconnects all others. Nothing is
    /// in the store afterwards.
    pub fn take(self, pool: Uuid, sockets: &HashMap<Uuid, PathBuf>, held: &mut HashMap<Uuid, HeldVhd>) {
        for (name, carrier) in self.passed {
            let taken = unpack(&name, carrier, pool).and_then(|vhd| add(vhd, sockets, held));
            if let Err(error) = taken {
                log::warn!("what the service manager has kept for this daemon ('{name}') is closed: {error}");
            }
            if !name.is_empty() {
                self.manager.forget(&name);
            }
        }
    }
}

fn add(vhd: HeldVhd, sockets: &HashMap<Uuid, PathBuf>, held: &mut HashMap<Uuid, HeldVhd>) -> Result<(), LeftError> {
    let id = vhd.vhd();
    let wanted = sockets.get(&id).ok_or(LeftError::NoVhd(id))?;
    let (path, _) = vhd.socket();
    if path != wanted {
        return Err(LeftError::Elsewhere { held: path.to_owned(), wanted: wanted.clone() });
    }
    match held.entry(id) {
        Entry::Occupied(_) => Err(LeftError::Twice(id)),
        Entry::Vacant(place) => {
            place.insert(vhd);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests;
