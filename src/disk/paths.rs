//! Opening disks by path: with the rights of this process, or through another one that has them.

use std::fmt::Debug;
use std::os::fd::OwnedFd;
use std::path::Path;

use super::file::{Access, FileDisk, OpenError};
use super::identity::DiskIdentity;

/// Opens disks by path. The descriptors are for [`FileDisk::from_fd`].
pub trait DiskPaths: Debug + Send + Sync {
    /// Opens a disk that is there.
    ///
    /// # Errors
    /// See [`OpenError`].
    fn open(&self, path: &Path, access: Access) -> Result<OwnedFd, OpenError>;

    /// Which disk is there, also if it is in use.
    ///
    /// # Errors
    /// See [`OpenError`].
    fn identity(&self, path: &Path) -> Result<DiskIdentity, OpenError>;

    /// Creates a file of `size` bytes, and opens it for writing.
    ///
    /// # Errors
    /// See [`OpenError`]; a file that is there is left alone.
    fn create(&self, path: &Path, size: u64) -> Result<OwnedFd, OpenError>;

    /// Removes a file that was created here, and is of no use. That it cannot be removed is only logged.
    fn discard(&self, path: &Path);
}

/// With the rights of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnRights;

impl DiskPaths for OwnRights {
    fn open(&self, path: &Path, access: Access) -> Result<OwnedFd, OpenError> {
        FileDisk::descriptor(path, access)
    }

    fn identity(&self, path: &Path) -> Result<DiskIdentity, OpenError> {
        FileDisk::identity_at(path)
    }

    fn create(&self, path: &Path, size: u64) -> Result<OwnedFd, OpenError> {
        FileDisk::create_descriptor(path, size)
    }

    fn discard(&self, path: &Path) {
        if let Err(error) = std::fs::remove_file(path) {
            log::warn!("{} was created for nothing, and cannot be removed: {error}", path.display());
        }
    }
}
