//! A `redb` storage backend on a byte range of a host disk.
//!
//! `redb` needs to know how long its file is; a region of a block device has no length of its own. So the region starts
//! with two header slots of 4 KiB that say it, and the database follows behind them:
//!
//! ```text
//! 0        4 KiB    8 KiB                          8 KiB + length            end of the region
//! | slot 0 | slot 1 | database, `length` bytes     | unused                  |
//! ```
//!
//! A header slot, little-endian; header number `sequence` is in slot `sequence % 2`, the valid one with the higher number
//! counts:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 8 | magic `SPBSTORE` |
//! | 8 | 4 | version, 1 |
//! | 12 | 4 | CRC-32C of the slot with these four bytes zero |
//! | 16 | 8 | sequence |
//! | 24 | 8 | length of the database in bytes |
//! | 32 | 8 | length of the whole region in bytes |
//! | 40 | 16 | UUID of the pool |
//! | 56 | 4040 | zeros |
//!
//! A new length is in a synced header before the database may use it, and space that the database gets (again) is zeroed
//! and synced before that. A torn header leaves the older slot, whose length is then also the right one: a database that
//! had not been told yet that it grew does not use the new space, and one that shrank does not mind more space than it
//! asked for (it adopts what it finds).

mod ahead;
mod fuse;
mod header;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::disk::BlockDev;
use ahead::ReadAhead;
pub use fuse::Fuse;
use header::Header;

/// Bytes of one header slot.
const SLOT_LEN: usize = 4096;

/// Bytes before the database: both header slots.
const HEADER_LEN: u64 = 2 * SLOT_LEN as u64;

/// Granularity of the length of a database (the page size of `redb`).
const PAGE_LEN: u64 = 4096;

/// Smallest region, in bytes.
pub const REGION_LEN_MIN: u64 = 8 << 20;

const VERSION: u32 = 1;

/// Space is zeroed in pieces of this many bytes.
const ZEROES_LEN: usize = 1 << 20;

/// A byte range of a host disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionPlace {
    /// First byte.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// Why a metadata region cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// The range is too small or not a multiple of 4 KiB.
    #[error(
        "a metadata region of {} bytes at offset {} is not possible: it takes at least {REGION_LEN_MIN} bytes, \
         in multiples of 4096, within the disk",
        .0.len, .0.offset
    )]
    BadPlace(RegionPlace),
    /// Neither header slot is one of ours.
    #[error("the metadata region has no header: it was never formatted, or it was overwritten")]
    NotFormatted,
    /// Header slots of ours, all damaged.
    #[error("both header slots of the metadata region are damaged")]
    Damaged,
    /// Written by another version.
    #[error(
        "the metadata region has format version {found}, this program knows {VERSION}: use a newer version of spanblk"
    )]
    Version {
        /// The version in the header.
        found: u32,
    },
    /// The region belongs to another pool.
    #[error("the metadata region belongs to pool {found}, not to {expected}")]
    OtherPool {
        /// The pool it should belong to.
        expected: Uuid,
        /// The pool it belongs to.
        found: Uuid,
    },
    /// The label and the header disagree.
    #[error("the metadata region was formatted with {found} bytes, the label of the disk says {expected}")]
    OtherLength {
        /// Length by the label.
        expected: u64,
        /// Length by the header.
        found: u64,
    },
    /// The disk failed.
    #[error("cannot {what} the metadata region")]
    Io {
        /// "read", "write" or "sync".
        what: &'static str,
        /// What the disk said.
        source: io::Error,
    },
    /// The database does not fit.
    #[error("the metadata region is full: the database needs {asked} bytes, it has room for {capacity}")]
    Full {
        /// Bytes the database asked for.
        asked: u64,
        /// Bytes it can have.
        capacity: u64,
    },
    /// The store was closed, or this member was dropped from it.
    #[error("the metadata region is closed")]
    Closed,
}

fn io_error(what: &'static str) -> impl FnOnce(io::Error) -> RegionError {
    move |source| RegionError::Io { what, source }
}

#[derive(Debug)]
struct Inner<D: ?Sized> {
    place: RegionPlace,
    pool: Uuid,
    /// Length of the database; what the newest header says.
    len: AtomicU64,
    /// The newest header's number. Locked while the length changes.
    sequence: Mutex<u64>,
    /// A length was refused since somebody asked.
    refused: AtomicBool,
    closed: AtomicBool,
    fuse: Arc<Fuse>,
    ahead: Mutex<Option<ReadAhead>>,
    disk: Arc<D>,
}

/// A metadata region as `redb` sees it. Clones are the same region.
#[derive(Debug)]
pub struct RegionBackend<D: ?Sized> {
    inner: Arc<Inner<D>>,
}

impl<D: ?Sized> Clone for RegionBackend<D> {
    fn clone(&self) -> RegionBackend<D> {
        RegionBackend { inner: Arc::clone(&self.inner) }
    }
}

impl<D: BlockDev + ?Sized + 'static> RegionBackend<D> {
    /// Makes an empty region. Whatever was there is lost.
    ///
    /// # Errors
    /// [`RegionError::BadPlace`], or the disk's error.
    pub fn format(disk: Arc<D>, place: RegionPlace, pool: Uuid) -> Result<RegionBackend<D>, RegionError> {
        RegionBackend::format_with(disk, place, pool, Arc::default())
    }

    /// As [`RegionBackend::format`], with a fuse that somebody has already.
    ///
    /// # Errors
    /// As there, and [`RegionError::Closed`] once the fuse is cut.
    pub fn format_with(
        disk: Arc<D>,
        place: RegionPlace,
        pool: Uuid,
        fuse: Arc<Fuse>,
    ) -> Result<RegionBackend<D>, RegionError> {
        check_place(&*disk, place)?;
        let header = Header { sequence: 0, len: 0, region_len: place.len, pool };
        let region = RegionBackend::new(disk, place, header, fuse);
        // Twice: both slots are then ours, and neither holds the length of an earlier life.
        region.put_header(0)?;
        region.put_header(0)?;
        Ok(region)
    }

    /// Opens a formatted region.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn open(disk: Arc<D>, place: RegionPlace, pool: Uuid) -> Result<RegionBackend<D>, RegionError> {
        RegionBackend::open_with(disk, place, pool, Arc::default())
    }

    fn open_with(
        disk: Arc<D>,
        place: RegionPlace,
        pool: Uuid,
        fuse: Arc<Fuse>,
    ) -> Result<RegionBackend<D>, RegionError> {
        check_place(&*disk, place)?;
        let mut slots = vec![0; 2 * SLOT_LEN];
        disk.read_at(place.offset, &mut slots).map_err(io_error("read"))?;
        let header = Header::newest([Header::decode(&slots[..SLOT_LEN]), Header::decode(&slots[SLOT_LEN..])])?;
        if header.pool != pool {
            return Err(RegionError::OtherPool { expected: pool, found: header.pool });
        }
        if header.region_len != place.len {
            return Err(RegionError::OtherLength { expected: place.len, found: header.region_len });
        }
        if header.len > capacity_of(place) {
            return Err(RegionError::Damaged);
        }
        Ok(RegionBackend::new(disk, place, header, fuse))
    }

    fn new(disk: Arc<D>, place: RegionPlace, header: Header, fuse: Arc<Fuse>) -> RegionBackend<D> {
        let inner = Inner {
            place,
            pool: header.pool,
            len: AtomicU64::new(header.len),
            sequence: Mutex::new(header.sequence),
            refused: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            fuse,
            ahead: Mutex::new(None),
            disk,
        };
        RegionBackend { inner: Arc::new(inner) }
    }

    /// Where it is.
    #[must_use]
    pub fn place(&self) -> RegionPlace {
        self.inner.place
    }

    /// For outsiders, see [`Fuse`].
    #[must_use]
    pub fn fuse(&self) -> Arc<Fuse> {
        Arc::clone(&self.inner.fuse)
    }

    /// Takes the region away from whoever has it, and opens it anew with the same fuse.
    ///
    /// # Errors
    /// As [`RegionBackend::open`].
    pub fn replace(&self) -> Result<RegionBackend<D>, RegionError> {
        self.close();
        let Inner { disk, place, pool, fuse, .. } = &*self.inner;
        RegionBackend::open_with(Arc::clone(disk), *place, *pool, Arc::clone(fuse))
    }

    /// Bytes the database can have.
    #[must_use]
    pub fn capacity(&self) -> u64 {
        capacity_of(self.inner.place)
    }

    /// Bytes the database has.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.inner.len.load(Ordering::Acquire)
    }

    /// Whether a length beyond the region was refused since the last call.
    #[must_use]
    pub fn take_refused(&self) -> bool {
        self.inner.refused.swap(false, Ordering::AcqRel)
    }

    /// Everything fails from here on: a database that is closed need not tidy up (it recovers as after a power cut, which
    /// is cheap).
    pub fn close(&self) {
        self.inner.closed.store(true, Ordering::SeqCst);
    }

    /// Reads in large pieces, and keeps some, while a database is opened and loaded.
    pub fn set_read_ahead(&self, on: bool) {
        *lock(&self.inner.ahead) = on.then(ReadAhead::default);
    }

    /// Changes the length of the database: see the file's introduction.
    ///
    /// # Errors
    /// [`RegionError::Full`], and nothing has changed; or the disk's error.
    pub fn set_length(&self, len: u64) -> Result<(), RegionError> {
        self.check_open()?;
        let capacity = self.capacity();
        if len > capacity {
            self.inner.refused.store(true, Ordering::Release);
            return Err(RegionError::Full { asked: len, capacity });
        }
        let old = self.length();
        if len > old {
            self.zero(old, len)?;
            self.sync().map_err(io_error("sync"))?;
        }
        if let Some(ahead) = &mut *lock(&self.inner.ahead) {
            ahead.clear();
        }
        self.put_header(len)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.disk.sync().inspect_err(|_| self.inner.fuse.note_failed_sync())
    }

    fn put_header(&self, len: u64) -> Result<(), RegionError> {
        let mut sequence = lock(&self.inner.sequence);
        self.check_open()?;
        let place = self.inner.place;
        let header = Header { sequence: *sequence + 1, len, region_len: place.len, pool: self.inner.pool };
        let slot = place.offset + (header.sequence % 2) * SLOT_LEN as u64;
        self.inner.disk.write_at(slot, &header.encode()).map_err(io_error("write"))?;
        self.sync().map_err(io_error("sync"))?;
        *sequence = header.sequence;
        self.inner.len.store(len, Ordering::Release);
        Ok(())
    }

    fn zero(&self, from: u64, to: u64) -> Result<(), RegionError> {
        static ZEROES: [u8; ZEROES_LEN] = [0; ZEROES_LEN];
        let mut at = from;
        while at < to {
            // It may take long, and nobody may write to a region that was taken away.
            self.check_open()?;
            let len = (to - at).min(ZEROES_LEN as u64);
            let zeroes = &ZEROES[..usize::try_from(len).expect("at most 1 MiB")];
            self.inner.disk.write_at(self.at(at), zeroes).map_err(io_error("write"))?;
            at += len;
        }
        Ok(())
    }

    /// Byte offset on the disk of byte `offset` of the database.
    fn at(&self, offset: u64) -> u64 {
        self.inner.place.offset + HEADER_LEN + offset
    }

    fn check_open(&self) -> Result<(), RegionError> {
        let closed = self.inner.closed.load(Ordering::SeqCst) || self.inner.fuse.is_cut();
        if closed { Err(RegionError::Closed) } else { Ok(()) }
    }

    fn check_range(&self, offset: u64, len: usize) -> io::Result<()> {
        self.check_open().map_err(io::Error::other)?;
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.length() => Ok(()),
            _ => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "beyond the end of the database")),
        }
    }
}

fn check_place<D: BlockDev + ?Sized>(disk: &D, place: RegionPlace) -> Result<(), RegionError> {
    let RegionPlace { offset, len } = place;
    let aligned = offset.is_multiple_of(PAGE_LEN) && len.is_multiple_of(PAGE_LEN);
    let inside = offset.checked_add(len).is_some_and(|end| end <= disk.size());
    if aligned && inside && len >= REGION_LEN_MIN { Ok(()) } else { Err(RegionError::BadPlace(place)) }
}

/// Bytes that a database in a region can have.
#[must_use]
pub fn capacity_of(place: RegionPlace) -> u64 {
    place.len - HEADER_LEN
}

/// The data behind these locks is valid at every step, so that a panic elsewhere does not make it worse.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<D: BlockDev + ?Sized + 'static> redb::StorageBackend for RegionBackend<D> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length())
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.check_range(offset, out.len())?;
        if let Some(ahead) = &mut *lock(&self.inner.ahead) {
            let fill = |at: u64, into: &mut [u8]| self.inner.disk.read_at(self.at(at), into);
            return ahead.read(offset, out, self.length(), fill);
        }
        self.inner.disk.read_at(self.at(offset), out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.set_length(len).map_err(io::Error::other)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.check_open().map_err(io::Error::other)?;
        self.sync()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check_range(offset, data.len())?;
        let mut ahead = lock(&self.inner.ahead);
        match &mut *ahead {
            // Under the lock, so that nobody reads the old bytes into a piece meanwhile.
            Some(ahead) => {
                ahead.forget(offset, data.len());
                self.inner.disk.write_at(self.at(offset), data)
            }
            None => {
                drop(ahead);
                self.inner.disk.write_at(self.at(offset), data)
            }
        }
    }
}
