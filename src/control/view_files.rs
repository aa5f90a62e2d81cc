//! The files of placement views that outlive the daemon, by name: with the rights of this process, or through the broker.
//!
//! A serving of a pool has a directory of its own in shared memory, and a file in it for each part of a view. Shared memory is a place
//! where everybody may make files: a directory of somebody else is not used, and no link is followed.
//!
//! Here: what the files are, and what is done to them. `own_rights`: by this process; `control::broker` has it done by another one.

mod own_rights;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::base::errno;
use crate::base::kept::PAGE;

pub use own_rights::OwnRights;

/// Shared memory.
pub const PLACE: &str = "/dev/shm";

/// One serving of a pool, from an epoch to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Serving {
    /// The pool.
    pub pool: Uuid,
    /// What the store was given when the serving began.
    pub lineage: u64,
}

/// A part of the view of a VHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Part {
    /// The VHD.
    pub vhd: Uuid,
    /// Its first extent.
    pub start: u32,
    /// How many extents.
    pub extents: u32,
}

impl Part {
    /// The name of its file.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}.{}", self.vhd, self.start, self.extents)
    }

    /// The part whose file has that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Part> {
        let (vhd, rest) = name.split_once('.')?;
        let (start, extents) = rest.split_once('.')?;
        Some(Part { vhd: vhd.parse().ok()?, start: start.parse().ok()?, extents: extents.parse().ok()? })
    }
}

/// The file of what the serving itself says. It is named like a part of a VHD that there cannot be.
pub const MARK: Part = Part { vhd: Uuid::nil(), start: 0, extents: 1 };

/// The word of [`MARK`] that says how the serving has ended, in every format: other versions and other users look there.
pub const ENDED: usize = PAGE / size_of::<u64>() - 1;

/// There: the daemon has stopped, and all that guests had written is in the table. Of what it has left, only who had rings and which disks
/// have failed says anything that the next one does not know.
pub const STOPPED: u64 = 1;

/// There: as [`STOPPED`], and the next one can do without that, too.
pub const STOPPED_FOR_ALL: u64 = 2;

/// Why files of a view cannot be used.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum ViewFileError {
    /// The system refuses.
    #[error("cannot {what} {}: {source}", path.display())]
    System {
        /// What was tried.
        what: String,
        /// With what.
        path: PathBuf,
        /// What the kernel said.
        #[serde(with = "errno")]
        source: io::Error,
    },
    /// It may say what somebody else wants.
    #[error(
        "{} is of user {owner}, whom this daemon does not trust. If a daemon of that user was killed, it has what guests have written and not \
         flushed: start the daemon as that user, stop it, and then go on as another one. If not, remove it", path.display()
    )]
    OfAnother {
        /// The directory.
        path: PathBuf,
        /// The user's number.
        owner: u32,
    },
    /// It may say what somebody else wants.
    #[error("{} is not a directory of one user alone: remove it; what guests have not flushed is lost then", path.display())]
    NotAlone {
        /// The directory, or what is in its place.
        path: PathBuf,
    },
    /// What it says has another meaning.
    #[error(
        "{} was left by another version of spanblk. It has what guests have written and not flushed: start that version, stop it, and then \
         go on with this one. Or remove it, and lose that", path.display()
    )]
    OtherFormat {
        /// The directory.
        path: PathBuf,
    },
    /// It cannot be used, and need not be.
    #[error("{} is of another user or another version of spanblk, whose daemon stopped with all that guests had written durable", path.display())]
    NotNeeded {
        /// The directory.
        path: PathBuf,
    },
    /// Its daemon serves.
    #[error("{} belongs to a daemon that still runs", .0.display())]
    InUse(PathBuf),
    /// There is not enough shared memory.
    #[error("{PLACE} has no room for {len} bytes more")]
    NoRoom {
        /// What was asked for.
        len: u64,
    },
    /// Without it, views of before a restart of the host would be taken for true.
    #[error("the system does not say which boot this is")]
    NoBoot,
    /// Not a thing that this daemon has to do.
    #[error("the daemon's broker process refuses what another serving of a pool has to do")]
    Refused,
    /// The broker.
    #[error(transparent)]
    Broker(
        #[from]
        #[serde(with = "errno")]
        io::Error,
    ),
}

/// Files of views by name.
pub trait ViewFiles: Send + Sync {
    /// Makes the directory of a serving, which is in use as long as the descriptor is open.
    ///
    /// # Errors
    /// See [`ViewFileError`].
    fn begin(&self, serving: Serving) -> Result<OwnedFd, ViewFileError>;

    /// Makes a file of zeros, as long as the part needs.
    ///
    /// # Errors
    /// See [`ViewFileError`].
    fn make(&self, serving: Serving, part: Part) -> Result<OwnedFd, ViewFileError>;

    /// Removes the files of a VHD.
    ///
    /// # Errors
    /// See [`ViewFileError`].
    fn forget(&self, serving: Serving, vhd: Uuid) -> Result<(), ViewFileError>;

    /// Removes the directory of a serving.
    ///
    /// # Errors
    /// See [`ViewFileError`].
    fn end(&self, serving: Serving) -> Result<(), ViewFileError>;

    /// Opens the directory of a serving that has ended, and says where it is; `None` if there is none.
    ///
    /// # Errors
    /// See [`ViewFileError`].
    fn find(&self, ended: Serving) -> Result<Option<(OwnedFd, PathBuf)>, ViewFileError>;

    /// Opens a file of a serving that has ended.
    ///
    /// # Errors
    /// See [`ViewFileError`].
    fn open_ended(&self, ended: Serving, part: Part) -> Result<OwnedFd, ViewFileError>;

    /// Removes the directories of all other servings of the pool that have ended (a copy of the pool may be served, too).
    ///
    /// # Errors
    /// See [`ViewFileError`].
    fn remove_others(&self, serving: Serving) -> Result<(), ViewFileError>;
}
