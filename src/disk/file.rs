//! A real host disk: a block device or a regular file, opened for direct I/O and locked.
//!
//! The lock (`flock`, and for writing to block devices also `O_EXCL`) belongs to the open file description that all I/O goes through,
//! also the engine's: it lasts until the last request of a killed process has left the kernel.

mod error;
#[cfg(test)]
pub(crate) mod tests;
mod transfer;

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::sleep;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::identity::{DiskIdentity, Host};
use super::sys;
use crate::base::aligned::{AlignedBuf, DIRECT_IO_ALIGNMENT};
use crate::base::clock;
use crate::metrics::Work;
use crate::qos::Awaited;
use crate::shared::Failure;

pub use error::OpenError;

/// How often and how far apart a lock is tried: udev holds a lock on a block device while it looks at it.
const LOCK_TRIES: u32 = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(50);

/// Between two looks at who has a disk open.
const CLOSE_PAUSE: Duration = Duration::from_millis(5);

/// What a disk is opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Access {
    /// A look at it: read-only, without lock, also while somebody else uses it.
    Probe,
    /// Reading with a shared lock: nobody writes meanwhile.
    Read,
    /// Reading and writing with an exclusive lock.
    Write,
}

/// A block device or regular file that is open.
#[derive(Debug)]
pub struct FileDisk {
    fd: Arc<OwnedFd>,
    path: PathBuf,
    size: u64,
    block_size: u32,
    memory_alignment: u32,
    is_device: bool,
    access: Access,
    identity: DiskIdentity,
    /// Held over the read-modify-write of partial blocks.
    edges: Mutex<()>,
    /// A sync has failed, here or on a reactor; see [`FileDisk::failed`].
    failed: Arc<Failure>,
    /// Calls of the kernel under way, and [`RETIRED`].
    uses: AtomicU32,
    work: Arc<Work>,
    awaited: Arc<Awaited>,
}

/// Nothing may be begun any more.
const RETIRED: u32 = 1 << 31;

/// A call of the kernel under way.
struct InUse<'a>(&'a AtomicU32);

impl Drop for InUse<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FileDisk {
    /// Opens and (unless probing) locks a disk.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open(path: &Path, access: Access) -> Result<FileDisk, OpenError> {
        FileDisk::from_fd(path, FileDisk::descriptor(path, access)?, access)
    }

    /// Opens a disk, without a lock yet: for [`FileDisk::from_fd`], here or in another process.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn descriptor(path: &Path, access: Access) -> Result<OwnedFd, OpenError> {
        // Exclusive would keep out other readers, too; they have the shared lock.
        open_disk(path, access, access == Access::Write).map(|(fd, _)| fd)
    }

    /// As [`FileDisk::descriptor`], for somebody who is not believed: a block device that is in use is not even read.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn unused_descriptor(path: &Path, access: Access) -> Result<OwnedFd, OpenError> {
        let (fd, seen) = open_disk(path, access, true)?;
        let inspect = |source| OpenError::Inspect { path: path.to_owned(), what: "the type".into(), source };
        let opened = DiskIdentity::from_statx(&sys::statx(fd.as_fd()).map_err(inspect)?);
        // A device that has taken the place of a file since it was looked at would be open without being ours alone.
        if opened == seen {
            Ok(fd)
        } else {
            Err(OpenError::Open { path: path.to_owned(), source: io::Error::from_raw_os_error(libc::EAGAIN) })
        }
    }

    /// Which disk a path leads to. Nothing is opened, so that it may be in use.
    ///
    /// # Errors
    /// There is none.
    pub fn identity_at(path: &Path) -> Result<DiskIdentity, OpenError> {
        let metadata = std::fs::metadata(path).map_err(|source| OpenError::Open { path: path.to_owned(), source })?;
        DiskIdentity::from_metadata(&metadata).ok_or_else(|| OpenError::WrongKind { path: path.to_owned() })
    }

    /// Creates a sparse file of `size` bytes and opens it for writing.
    ///
    /// # Errors
    /// See [`OpenError`]; a file that is there is left alone.
    pub fn create(path: &Path, size: u64) -> Result<FileDisk, OpenError> {
        let fd = FileDisk::create_descriptor(path, size)?;
        FileDisk::from_fd(path, fd, Access::Write).inspect_err(|_| drop(std::fs::remove_file(path)))
    }

    /// Creates a sparse file of `size` bytes and opens it for writing, without a lock yet.
    ///
    /// # Errors
    /// See [`OpenError`]; a file that is there is left alone.
    pub fn create_descriptor(path: &Path, size: u64) -> Result<OwnedFd, OpenError> {
        let failed = |source: io::Error| OpenError::Create { path: path.to_owned(), size, source };
        let file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|source| {
                match source.kind() {
                    ErrorKind::AlreadyExists => OpenError::Exists { path: path.to_owned() },
                    _ => failed(source),
                }
            })?;
        let opened = file
            .set_len(size)
            .and_then(|()| file.sync_all())
            .and_then(|()| sync_directory_of(path))
            .map_err(failed)
            .and_then(|()| FileDisk::descriptor(path, Access::Write));
        if opened.is_err() {
            // Ours and empty; that it could not be removed would only hide the first error.
            let _ = std::fs::remove_file(path);
        }
        opened
    }

    /// Takes over an open descriptor (from [`FileDisk::open`], or passed by another process), and locks it unless probing.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn from_fd(path: &Path, fd: OwnedFd, access: Access) -> Result<FileDisk, OpenError> {
        let inspect =
            |what: &'static str| move |source| OpenError::Inspect { path: path.to_owned(), what: what.into(), source };
        let stat = sys::statx(fd.as_fd()).map_err(inspect("the type"))?;
        let is_device = u32::from(stat.stx_mode) & libc::S_IFMT == libc::S_IFBLK;
        if !is_device && u32::from(stat.stx_mode) & libc::S_IFMT != libc::S_IFREG {
            return Err(OpenError::WrongKind { path: path.to_owned() });
        }
        let identity = DiskIdentity::from_statx(&stat);
        if access != Access::Probe {
            lock(path, fd.as_fd(), access == Access::Write, &stat)?;
        }
        let size = if is_device { sys::device_size(fd.as_fd()).map_err(inspect("the size"))? } else { stat.stx_size };
        let alignment = if is_device {
            device_alignment(fd.as_fd(), &stat).map_err(inspect("the block size"))?
        } else {
            file_alignment(fd.as_fd(), &stat, size).ok_or_else(|| OpenError::NoDirectIo { path: path.to_owned() })?
        };
        if !matches!(alignment.block, 512 | 4096) {
            return Err(OpenError::BlockSize { path: path.to_owned(), block_size: alignment.block });
        }
        Ok(FileDisk {
            fd: Arc::new(fd),
            path: path.to_owned(),
            size: size / u64::from(alignment.block) * u64::from(alignment.block),
            block_size: alignment.block,
            // A device may say less than it needs: zram (6.18) takes memory that is aligned to 512 bytes, and writes whole blocks
            // past the end of it. Every device bears memory that is aligned to its blocks.
            memory_alignment: alignment.memory.max(alignment.block),
            is_device,
            access,
            identity,
            edges: Mutex::new(()),
            failed: Arc::default(),
            uses: AtomicU32::new(0),
            work: Arc::default(),
            awaited: Arc::default(),
        })
    }

    /// The descriptor that carries the lock: all I/O has to go through it or a duplicate of it.
    #[must_use]
    pub fn fd(&self) -> &Arc<OwnedFd> {
        &self.fd
    }

    /// Counts what is read and written here: the placement store and labels, since what guests and jobs do goes past it.
    #[must_use]
    pub fn work(&self) -> &Arc<Work> {
        &self.work
    }

    /// What is read, written and synced here, while that lasts: guests leave it room.
    #[must_use]
    pub fn awaited(&self) -> &Arc<Awaited> {
        &self.awaited
    }

    /// Set once a sync of the disk has failed; every later sync fails, too.
    ///
    /// The kernel tells of lost writes once per open file description, to whoever syncs next: be it for a label, for the
    /// placement store or for a guest. So all who sync share this flag; told any later, one of the others would sync again,
    /// succeed, and believe it.
    #[must_use]
    pub fn failed(&self) -> &Arc<Failure> {
        &self.failed
    }

    /// Takes the kernel's answer to a sync.
    fn synced(&self, result: io::Result<()>) -> io::Result<()> {
        if result.is_err() {
            self.failed.fail();
        }
        result?;
        // Asked afterwards: another sync may have been told of the failure while this one was under way.
        if self.failed.is_failed() {
            return Err(io::Error::other("an earlier sync of the disk has failed: what was written may be lost"));
        }
        Ok(())
    }

    /// A call begins.
    fn begin(&self) -> io::Result<InUse<'_>> {
        let before = self.uses.fetch_add(1, Ordering::SeqCst);
        let in_use = InUse(&self.uses);
        if before & RETIRED == 0 { Ok(in_use) } else { Err(io::Error::other("the disk is another daemon's by now")) }
    }

    /// Whether a call of ours is with the kernel now. What goes through [`FileDisk::fd`] is not counted.
    #[must_use]
    pub fn is_in_use(&self) -> bool {
        self.uses.load(Ordering::SeqCst) & !RETIRED > 0
    }

    /// Nothing comes to the disk from here any more, once this returns: every call fails from now on, whoever makes it, and those under way
    /// are waited for. False if that takes longer than `at_most`.
    #[must_use]
    pub fn retire(&self, at_most: Duration) -> bool {
        self.uses.fetch_or(RETIRED, Ordering::SeqCst);
        let deadline = clock::now().after(at_most);
        while self.is_in_use() {
            if clock::now() >= deadline {
                return false;
            }
            sleep(CLOSE_PAUSE);
        }
        true
    }

    /// The path it was opened by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What makes it this disk and no other.
    #[must_use]
    pub fn identity(&self) -> &DiskIdentity {
        &self.identity
    }

    /// Alignment that direct I/O asks of memory addresses, in bytes.
    #[must_use]
    pub fn memory_alignment(&self) -> u32 {
        self.memory_alignment
    }

    /// Counts the devices that the kernel has found since it started: one that was away for a moment has another number when it is
    /// back, even under the same name. For a file that of the device beneath. 0 where the kernel does not tell.
    #[must_use]
    pub fn sequence(&self) -> u64 {
        if self.is_device {
            return sys::device_sequence(self.fd.as_fd()).unwrap_or(0);
        }
        Host::default().sequence_beneath(self.identity)
    }

    /// Whether it is a block device (else a regular file).
    #[must_use]
    pub fn is_device(&self) -> bool {
        self.is_device
    }

    /// Waits until nobody else has the disk open, and closes it. False if that takes longer than `at_most`.
    #[must_use]
    pub fn close(self: Arc<Self>, at_most: Duration) -> bool {
        let deadline = clock::now().after(at_most);
        while Arc::strong_count(&self) > 1 || Arc::strong_count(&self.fd) > 1 {
            if clock::now() >= deadline {
                return false;
            }
            sleep(CLOSE_PAUSE);
        }
        true
    }

    /// What it was opened for.
    #[must_use]
    pub fn access(&self) -> Access {
        self.access
    }
}

/// Opens a disk. `alone`: a block device only if nobody else uses it, and nobody else may while it is open. With what was there just before.
fn open_disk(path: &Path, access: Access, alone: bool) -> Result<(OwnedFd, DiskIdentity), OpenError> {
    let seen = FileDisk::identity_at(path)?;
    let exclusive = if alone && matches!(seen, DiskIdentity::Device { .. }) { libc::O_EXCL } else { 0 };
    let writing = if access == Access::Write { libc::O_RDWR } else { libc::O_RDONLY };
    // O_NONBLOCK: never wait for a pipe that took the path's place; disks do not care.
    let flags = writing | exclusive | libc::O_DIRECT | libc::O_NONBLOCK;
    sys::open(path, flags).map(|fd| (fd, seen)).map_err(|source| match source.raw_os_error() {
        Some(libc::EINVAL) => OpenError::NoDirectIo { path: path.to_owned() },
        Some(libc::EBUSY) => OpenError::Busy { path: path.to_owned() },
        _ => OpenError::Open { path: path.to_owned(), source },
    })
}

struct Alignment {
    block: u32,
    memory: u32,
}

fn device_alignment(fd: BorrowedFd<'_>, stat: &libc::statx) -> io::Result<Alignment> {
    let block = sys::logical_block_size(fd)?;
    let told = stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_mem_align > 0;
    Ok(Alignment { block, memory: if told { stat.stx_dio_mem_align } else { block } })
}

/// `None` if the file cannot do direct I/O.
fn file_alignment(fd: BorrowedFd<'_>, stat: &libc::statx, size: u64) -> Option<Alignment> {
    if stat.stx_mask & libc::STATX_DIOALIGN != 0 {
        let block = stat.stx_dio_offset_align.max(512);
        return (stat.stx_dio_offset_align > 0).then_some(Alignment { block, memory: stat.stx_dio_mem_align.max(1) });
    }
    // A kernel or filesystem that does not tell: try.
    let mut buffer = AlignedBuf::zeroed(DIRECT_IO_ALIGNMENT);
    let small = size < 1024 || sys::pread(fd, &mut buffer[..512], 512).is_ok();
    let block = if small { 512 } else { 4096 };
    sys::pread(fd, &mut buffer, 0).is_ok().then_some(Alignment { block, memory: 4096 })
}

fn lock(path: &Path, fd: BorrowedFd<'_>, exclusive: bool, stat: &libc::statx) -> Result<(), OpenError> {
    for attempt in 1.. {
        match sys::try_lock(fd, exclusive) {
            Ok(()) => break,
            Err(e) if e.kind() == ErrorKind::WouldBlock && attempt < LOCK_TRIES => sleep(LOCK_PAUSE),
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                return Err(OpenError::Locked { path: path.to_owned(), pid: lock_holder(stat) });
            }
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(source) => return Err(OpenError::Inspect { path: path.to_owned(), what: "the lock".into(), source }),
        }
    }
    Ok(())
}

/// The process that holds the `flock`, as far as the kernel's list says.
fn lock_holder(stat: &libc::statx) -> Option<u32> {
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let inode = format!("{:02x}:{:02x}:{}", stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let ours = words.contains(&"FLOCK") && words.get(5) == Some(&inode.as_str());
        if ours { words.get(4)?.parse().ok() } else { None }
    })
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    std::fs::File::open(parent)?.sync_all()
}
