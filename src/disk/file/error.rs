//! Why a host disk cannot be opened, and what to do about it.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::base::errno;

/// Why a host disk cannot be opened.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum OpenError {
    /// `open(2)` failed.
    #[error("cannot open {}: {source}{}", path.display(), advice(source))]
    Open {
        /// The path as given.
        path: PathBuf,
        /// What the kernel said.
        #[serde(with = "errno")]
        source: io::Error,
    },
    /// Another part of the system has the block device.
    #[error("{} is in use: it is mounted, or a part of LVM, RAID or another daemon's pool; release it there first", path.display())]
    Busy {
        /// The path as given.
        path: PathBuf,
    },
    /// Somebody holds the lock.
    #[error("{} is locked by {}: only one daemon or command can use a disk at a time", path.display(), holder(*pid))]
    Locked {
        /// The path as given.
        path: PathBuf,
        /// Who, if it could be found out.
        pid: Option<u32>,
    },
    /// The filesystem refuses O_DIRECT.
    #[error(
        "the filesystem of {} refuses direct I/O (O_DIRECT): put the file on ext4, xfs, btrfs or a newer kernel's tmpfs, \
         or use a block device",
        path.display()
    )]
    NoDirectIo {
        /// The path as given.
        path: PathBuf,
    },
    /// Among the devices, and not one that holds data.
    #[error("{} is among the devices of the host and is no block device: put disks that are files into another directory", path.display())]
    NotADevice {
        /// The path, links followed.
        path: PathBuf,
    },
    /// Neither block device nor regular file.
    #[error("{} is neither a block device nor a regular file", path.display())]
    WrongKind {
        /// The path as given.
        path: PathBuf,
    },
    /// A logical block size that pools do not support.
    #[error("{} has logical blocks of {block_size} bytes: only 512 and 4096 are supported", path.display())]
    BlockSize {
        /// The path as given.
        path: PathBuf,
        /// Its block size in bytes.
        block_size: u32,
    },
    /// A question about the open disk failed.
    #[error("cannot find out {what} of {}: {source}", path.display())]
    Inspect {
        /// The path as given.
        path: PathBuf,
        /// What was asked.
        what: Cow<'static, str>,
        /// What the kernel said.
        #[serde(with = "errno")]
        source: io::Error,
    },
    /// Not where the daemon may open disks.
    #[error(
        "{} is not in a directory where this daemon may open disks ({}): restart it with --disk-dir for that directory",
        path.display(),
        listed(directories)
    )]
    Outside {
        /// The path, links followed.
        path: PathBuf,
        /// Where it may.
        directories: Vec<PathBuf>,
    },
    /// A file to be created is already there.
    #[error("{} already exists: leave out --size to use it as it is, or choose another path", path.display())]
    Exists {
        /// The path as given.
        path: PathBuf,
    },
    /// A file could not be created.
    #[error("cannot create {} with {size} bytes: {source}{}", path.display(), advice(source))]
    Create {
        /// The path as given.
        path: PathBuf,
        /// Size asked for, in bytes.
        size: u64,
        /// What the kernel said.
        #[serde(with = "errno")]
        source: io::Error,
    },
}

fn listed(directories: &[PathBuf]) -> String {
    directories.iter().map(|directory| directory.display().to_string()).collect::<Vec<_>>().join(", ")
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::PermissionDenied => " (run as root, or give this user access to it)",
        ErrorKind::NotFound => {
            " (check the path; a device may have another name after a reboot: /dev/disk/by-id has lasting ones)"
        }
        ErrorKind::ReadOnlyFilesystem => " (it is read-only: only read-only commands can use it)",
        _ => "",
    }
}

fn holder(pid: Option<u32>) -> String {
    match pid {
        Some(pid) if pid == std::process::id() => "this process".to_owned(),
        Some(pid) => format!("process {pid}"),
        None => "another process".to_owned(),
    }
}
