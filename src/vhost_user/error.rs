//! What can go wrong: with a frontend's messages, with sockets, with the server.

use std::borrow::Cow;
use std::io;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use vm_memory::mmap::MmapRegionError;

use super::held::HeldError;
use crate::base::errno;
use crate::base::ids::VhdId;
use crate::base::limits::{DIRTY_LOG_MAX, GUEST_MEMORY_MAX, MEM_SLOTS_MAX, QUEUE_SIZE_MAX};
use crate::shared::guest_memory::WatchError;

/// A message that asks for something impossible. It ends the connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum DeviceError {
    #[error("features {0:#x} are acknowledged but were not offered")]
    Features(u64),
    #[error("protocol features {0:#x} are acknowledged but were not offered")]
    ProtocolFeatures(u64),
    #[error("queue {index} does not exist: there are {queues}")]
    NoSuchQueue { index: u32, queues: usize },
    #[error("a queue of {0} entries: it must be a power of two, at most {QUEUE_SIZE_MAX}")]
    QueueSize(u32),
    #[error("queue {index} begins at index {base}, which is not a split ring's")]
    QueueBase { index: usize, base: u32 },
    #[error("{what} of queue {index}, at user address {address:#x}, is not in guest memory")]
    RingAddress { index: usize, what: &'static str, address: u64 },
    #[error("{what} is not supported")]
    Unsupported { what: &'static str },
    #[error("guest memory: {0}")]
    Memory(#[from] MemoryError),
    #[error("the in-flight region: {0}")]
    Inflight(#[from] InflightError),
    #[error("the dirty log: {0}")]
    Log(#[from] LogError),
    #[error(
        "process {0} is connected, or expected to connect again, and a frontend that comes second must be able to take part in a live migration, which this one \
         is not: it does not use the protocol feature LOG_SHMFD"
    )]
    InUse(u32),
    #[error("a file descriptor cannot be duplicated: {0}")]
    Duplicate(#[source] io::Error),
    #[error("the conversation cannot be taken over: {0} (is the limit of open files too low?)")]
    Conversation(#[source] io::Error),
}

/// Whether the host lacks something.
fn is_scarce(error: &io::Error) -> bool {
    use rustix::io::Errno;
    Errno::from_io_error(error)
        .is_some_and(|errno| [Errno::NOMEM, Errno::MFILE, Errno::NFILE, Errno::AGAIN].contains(&errno))
}

impl DeviceError {
    /// Whether a device that there was cannot be again because its frontend has taken memory away that it had given, or sealed it. All
    /// else lies with us: what is scarce here, or what this version makes of it.
    pub(super) fn is_frontends_doing(&self) -> bool {
        use DeviceError::{Inflight, Log, Memory};
        let refused = |error: &MmapRegionError| !matches!(error, MmapRegionError::Mmap(error) if is_scarce(error));
        match self {
            Memory(MemoryError::Map { source, .. }) => refused(source),
            Memory(error) => matches!(error, MemoryError::BeyondFile { .. }),
            Inflight(InflightError::Mapping(error)) | Log(LogError::Mapping(error)) => match error {
                MappingError::Map(source) => refused(source),
                error => matches!(error, MappingError::BeyondFile { .. }),
            },
            _ => false,
        }
    }
}

/// Guest memory that cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub(super) enum MemoryError {
    #[error("more than {MEM_SLOTS_MAX} regions")]
    TooManyRegions,
    #[error("more than {GUEST_MEMORY_MAX} bytes")]
    TooLarge,
    #[error("the region at {0:#x} is empty or wraps around the end of an address space")]
    BadRegion(u64),
    #[error("the region at {0:#x} overlaps another")]
    Overlap(u64),
    #[error("there is no region at {0:#x} of that length and user address")]
    NoSuchRegion(u64),
    #[error("the region at {guest:#x} ends at byte {end} of its file, which has {file}")]
    BeyondFile { guest: u64, end: u64, file: u64 },
    #[error("the file of the region at {0:#x} is not a regular one")]
    NotAFile(u64),
    #[error(
        "the file of the region at {0:#x} is on FUSE or a network file system, where every access could hang: use memfd, \
         /dev/shm or hugetlbfs"
    )]
    Remote(u64),
    #[error(
        "the region at {guest:#x} has {len} bytes, and its file has huge pages of {page}: give the guest memory in whole pages of that size"
    )]
    PartOfPage { guest: u64, len: u64, page: usize },
    #[error("the file of the region at {guest:#x} cannot be examined: {source}")]
    Stat { guest: u64, source: io::Error },
    #[error("the region at {guest:#x} cannot be watched: {source}")]
    Watch { guest: u64, source: WatchError },
    #[error("the region at {guest:#x} cannot be mapped: {source}")]
    Map { guest: u64, source: MmapRegionError },
}

/// An in-flight region that cannot be made or used.
#[derive(Debug, thiserror::Error)]
pub(super) enum InflightError {
    #[error("it is for {asked} queues, and the device has {queues}")]
    Queues { asked: u16, queues: u16 },
    #[error("it is for queues of {0} entries: 1 to {QUEUE_SIZE_MAX} are possible")]
    QueueSize(u16),
    #[error("it has {size} bytes and needs {needed}")]
    TooShort { size: u64, needed: u64 },
    #[error("it has none for queue {0}")]
    NoSuchQueue(usize),
    #[error("it cannot be made: {0}")]
    Create(#[source] io::Error),
    #[error(transparent)]
    Mapping(#[from] MappingError),
}

/// A dirty log that cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum LogError {
    #[error("it has {0} bytes: 1 to {DIRTY_LOG_MAX} are possible")]
    Size(u64),
    #[error(
        "it had no bit for a page that queue {0} has written, so that a copy of guest memory lacks that: give a longer one before LOG_ALL, \
         and migrate again"
    )]
    TooShort(u32),
    #[error(transparent)]
    Mapping(#[from] MappingError),
}

/// Shared memory that cannot be mapped.
#[derive(Debug, thiserror::Error)]
pub(super) enum MappingError {
    #[error("it begins at byte {offset} of its file and needs {needed}, and the file has {file}")]
    BeyondFile { offset: u64, needed: u64, file: u64 },
    #[error("its file is not one in memory: use a memfd, or a file in /dev/shm")]
    NotMemory,
    #[error("its file cannot be examined: {0}")]
    Stat(#[source] io::Error),
    #[error("it cannot be watched: {0}")]
    Watch(#[source] WatchError),
    #[error("it cannot be mapped: {0}")]
    Map(#[source] MmapRegionError),
}

/// A vhost-user socket that cannot be made.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
pub enum SocketError {
    /// The path does not fit a socket address.
    #[error(
        "the socket path {} is {len} bytes long, and the system allows {max}: choose a shorter --socket-dir or VHD name",
        path.display()
    )]
    TooLong {
        /// The path.
        path: PathBuf,
        /// Its length in bytes.
        len: usize,
        /// The longest possible.
        max: usize,
    },
    /// Another process listens there.
    #[error(
        "another process listens on {}: stop it (is another spanblk serving this directory?) or choose another --socket-dir",
        .0.display()
    )]
    Taken(PathBuf),
    /// Something else is in the way.
    #[error("{} exists and is not a socket: remove it or choose another --socket-dir", .0.display())]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("cannot {what} {}: {source}", path.display())]
    System {
        /// What we tried.
        what: Cow<'static, str>,
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        #[serde(with = "errno")]
        source: io::Error,
    },
    /// The owner does not exist.
    #[error("there is no {kind} '{name}' on this host: create it, or set another --socket-owner")]
    NoSuchOwner {
        /// User or group.
        kind: Cow<'static, str>,
        /// Its name.
        name: String,
    },
    /// The owner cannot be looked up.
    #[error("cannot look up the {kind} '{name}': {source}")]
    OwnerLookup {
        /// User or group.
        kind: Cow<'static, str>,
        /// Its name.
        name: String,
        /// What the system said.
        #[serde(with = "errno")]
        source: io::Error,
    },
    /// The owner cannot be set.
    #[error("cannot give {} to {owner}: {source} (only root, or CAP_CHOWN, may give sockets away)", path.display())]
    Chown {
        /// The path.
        path: PathBuf,
        /// User and group.
        owner: String,
        /// What the kernel said.
        #[serde(with = "errno")]
        source: io::Error,
    },
}

/// A request to the server that cannot be carried out.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The runtime could not be started.
    #[error("cannot start the vhost-user threads: {0}")]
    Runtime(#[source] io::Error),
    /// The directory for sockets could not be made.
    #[error("cannot create the socket directory {}: {source}", path.display())]
    Directory {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The VHD is served already.
    #[error("VHD {} is served already", .0.0)]
    AlreadyServed(VhdId),
    /// The VHD is not served.
    #[error("VHD {} is not served", .0.0)]
    NotServed(VhdId),
    /// All VHDs have been held.
    #[error("another server goes on with all VHDs: ask that one")]
    HandedOver,
    /// What was held cannot be served.
    #[error(transparent)]
    Held(#[from] HeldError),
    /// Its socket could not be made or changed.
    #[error(transparent)]
    Socket(#[from] SocketError),
}
