//! The broker: a second process that keeps the rights which the daemon gives up, and does little with them.
//!
//! A daemon that serves guests opens no file by name. Whatever goes by name is done here: opening and creating disks, making
//! the sockets of VHDs and giving them to their owners, the files of views in shared memory, looking up users. The daemon asks over a pair of sockets and is given
//! descriptors.
//!
//! * `wire`: what is asked and answered. `client`: the daemon's side. `server`: the broker's side.
//! * [`policy`]: what is done for a daemon that an attacker controls: disks in a few directories, sockets in one, the views of one serving at a time.
//!
//! The broker is forked before the daemon has threads, reads nothing but those requests, and ends when the daemon does. Three
//! sockets, each with its thread: a disk that hangs while it is opened does not hold up the sockets of VHDs, a slow name service
//! not the disks, and neither of them the owner, who waits for files of views.

mod client;
pub mod policy;
mod process;
mod server;
mod wire;

use std::sync::Arc;

pub use client::Client;
pub use process::{BrokerError, start};

use crate::control::view_files::ViewFiles;
use crate::disk::paths::DiskPaths;
use crate::vhost_user::SocketPaths;

/// With whose rights names are used.
#[derive(Clone)]
pub struct Rights {
    /// To open disks.
    pub disks: Arc<dyn DiskPaths>,
    /// To make sockets.
    pub sockets: Arc<dyn SocketPaths>,
    /// To make files of views.
    pub views: Arc<dyn ViewFiles>,
}

impl Rights {
    /// With those of this process.
    #[must_use]
    pub fn own() -> Rights {
        Rights {
            disks: Arc::new(crate::disk::paths::OwnRights),
            sockets: Arc::new(crate::vhost_user::OwnRights::default()),
            views: Arc::new(crate::control::view_files::OwnRights::new(None)),
        }
    }
}
