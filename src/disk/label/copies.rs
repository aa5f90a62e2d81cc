//! The two copies of a label on a disk: reading, mending, writing, wiping.
//!
//! A copy is written and synced before the other is touched, and the copy that is older or damaged is written first: at any
//! point of a crash one valid copy is there, with the old or the new content.
//!
//! What is read need not be durable: after a failed sync the disk may show a copy that a power cut takes back. So the valid
//! copies are first written again as they are, and synced; that cannot tear a durable copy, because nothing in it changes.

use std::io;

use super::codec::MAGIC;
use super::{CopyId, LEN, Label, LabelError, decode, encode};
use crate::disk::BlockDev;
use crate::disk::geometry::{LABEL_A_OFFSET, LABEL_LEN, label_b_offset};

/// Why a disk gives no label.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The disk carries no label.
    #[error("it carries no label of spanblk: it belongs to no pool")]
    Absent,
    /// Neither copy can be used.
    #[error(
        "both copies of its label are damaged (A: {a}; B: {b}): the disk cannot be opened; if its data is given up, \
         `spanblk disk wipe --yes` wipes it"
    )]
    BothDamaged {
        /// What is wrong with copy A.
        a: CopyProblem,
        /// What is wrong with copy B.
        b: CopyProblem,
    },
    /// One copy is there, and where the other was is something of somebody else.
    #[error(
        "copy {copy} of its label has been written over by something else (the other one is of disk '{name}' of pool {pool}): it is \
         not used; if it is still the pool's, put the label back from copy {} (4096 bytes at byte {from} to byte {to}), which destroys \
         what is there now; if all of it is given up, `spanblk disk wipe --yes` wipes both", copy.other()
    )]
    Overwritten {
        /// The copy that is gone.
        copy: CopyId,
        /// Name of the disk, by the other copy.
        name: String,
        /// Its pool.
        pool: uuid::Uuid,
        /// Byte offset of the copy that is there.
        from: u64,
        /// Byte offset of the other.
        to: u64,
    },
    /// The copies are of different disks.
    #[error(
        "the two copies of its label contradict each other (pools {a} and {b}): it was written over by something else; if its \
         data is given up, `spanblk disk wipe --yes` wipes it"
    )]
    Contradiction {
        /// Pool of copy A.
        a: uuid::Uuid,
        /// Pool of copy B.
        b: uuid::Uuid,
    },
    /// The disk is shorter than it was.
    #[error(
        "it has {actual} bytes, but its label says {expected}: it was cut off, or it is another disk; restore its size"
    )]
    Shrunk {
        /// Size in the label, in bytes.
        expected: u64,
        /// Size found, in bytes.
        actual: u64,
    },
    /// Its blocks are larger than they were.
    #[error("it has logical blocks of {actual} bytes, but was added with {expected}: attach it the way it was before")]
    BlockSize {
        /// Block size in the label, in bytes.
        expected: u32,
        /// Block size found, in bytes.
        actual: u32,
    },
    /// A label of another version, or with unknown features.
    #[error(transparent)]
    Format(LabelError),
}

/// What is wrong with one copy.
#[derive(Debug, thiserror::Error)]
pub enum CopyProblem {
    /// Its content.
    #[error(transparent)]
    Content(LabelError),
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Io(#[source] io::Error),
    /// There is something else.
    #[error("has been written over by something else")]
    Foreign,
    /// It is valid and older than the other.
    #[error("is older than the other copy (an update was interrupted)")]
    Stale,
}

impl CopyProblem {
    /// Whether nothing says that there has been a label.
    fn is_no_label(&self) -> bool {
        matches!(self, CopyProblem::Foreign | CopyProblem::Content(LabelError::Absent))
    }
}

/// A label cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The disk said no.
    #[error("cannot write label copy {copy}: {source}")]
    Io {
        /// Which copy.
        copy: CopyId,
        /// What the disk said.
        source: io::Error,
    },
    /// The label has features that this program may not write.
    #[error("the disk uses features that this program cannot write (ro-compat flags {flags:#x}): use a newer spanblk")]
    ReadOnlyFeatures {
        /// The unknown flags.
        flags: u32,
    },
}

/// A label as found on a disk.
#[derive(Debug)]
pub struct LabelRead {
    /// The newer valid copy.
    pub label: Label,
    /// Which one that is.
    pub from: CopyId,
    /// What is wrong with the other, if anything: [`mend`] repairs it.
    pub damage: Option<CopyProblem>,
}

/// Bytes of the smallest sector: a label can be torn only between two of them.
const FIRST_SECTOR: usize = 512;

fn offset_of(copy: CopyId, disk_size: u64) -> u64 {
    match copy {
        CopyId::A => LABEL_A_OFFSET,
        CopyId::B => label_b_offset(disk_size),
    }
}

fn read_copy<D: BlockDev + ?Sized>(disk: &D, copy: CopyId, disk_size: u64) -> Result<Label, CopyProblem> {
    let mut bytes = [0; LEN];
    disk.read_at(offset_of(copy, disk_size), &mut bytes).map_err(CopyProblem::Io)?;
    match decode(&bytes) {
        Ok((label, found)) if found == copy => Ok(label),
        Ok(_) => Err(CopyProblem::Content(LabelError::Invalid { field: "copy number" })),
        Err(LabelError::Absent) if is_foreign(&bytes) => Err(CopyProblem::Foreign),
        Err(error) => Err(CopyProblem::Content(error)),
    }
}

/// Whether bytes without our mark are somebody else's. Zeros are nobody's, and a label in which only the mark is wrong is damaged.
fn is_foreign(bytes: &[u8; LEN]) -> bool {
    let mut marked = *bytes;
    marked[..MAGIC.len()].copy_from_slice(&MAGIC);
    let is_label = !matches!(decode(&marked), Err(LabelError::Corrupt));
    !is_label && bytes[..FIRST_SECTOR].iter().any(|byte| *byte != 0)
}

fn has_room<D: BlockDev + ?Sized>(disk: &D) -> bool {
    disk.size() >= LABEL_A_OFFSET + 2 * LABEL_LEN
}

/// Reads a disk's label. Changes nothing.
///
/// # Errors
/// See [`ReadError`].
pub fn read<D: BlockDev + ?Sized>(disk: &D) -> Result<LabelRead, ReadError> {
    if !has_room(disk) {
        return Err(ReadError::Absent);
    }
    let a = read_copy(disk, CopyId::A, disk.size());
    // A disk that has grown has copy B where its end was.
    let size_then = a.as_ref().map_or(disk.size(), |label| label.disk_size);
    if size_then > disk.size() {
        return Err(ReadError::Shrunk { expected: size_then, actual: disk.size() });
    }
    let b = read_copy(disk, CopyId::B, size_then);
    let read = choose(a, b)?;
    let label = &read.label;
    if label.disk_size > disk.size() {
        return Err(ReadError::Shrunk { expected: label.disk_size, actual: disk.size() });
    }
    if disk.block_size() > label.block_size {
        return Err(ReadError::BlockSize { expected: label.block_size, actual: disk.block_size() });
    }
    Ok(read)
}

fn choose(a: Result<Label, CopyProblem>, b: Result<Label, CopyProblem>) -> Result<LabelRead, ReadError> {
    // One copy of a later format: an upgrade was interrupted, and what the other says may be overtaken.
    for copy in [&a, &b] {
        if let Err(CopyProblem::Content(e @ (LabelError::NewerVersion { .. } | LabelError::UnknownFeatures { .. }))) =
            copy
        {
            return Err(ReadError::Format(e.clone()));
        }
    }
    match (a, b) {
        (Ok(a), Ok(b)) if a == b => Ok(LabelRead { label: a, from: CopyId::A, damage: None }),
        (Ok(a), Ok(b)) if a.pool != b.pool || a.uuid != b.uuid || a.sequence == b.sequence => {
            Err(ReadError::Contradiction { a: a.pool, b: b.pool })
        }
        (Ok(a), Ok(b)) => {
            let (label, from) = if a.sequence > b.sequence { (a, CopyId::A) } else { (b, CopyId::B) };
            Ok(LabelRead { label, from, damage: Some(CopyProblem::Stale) })
        }
        (Ok(label), Err(CopyProblem::Foreign)) => Err(overwritten(&label, CopyId::B)),
        (Err(CopyProblem::Foreign), Ok(label)) => Err(overwritten(&label, CopyId::A)),
        (Ok(label), Err(problem)) => Ok(LabelRead { label, from: CopyId::A, damage: Some(problem) }),
        (Err(problem), Ok(label)) => Ok(LabelRead { label, from: CopyId::B, damage: Some(problem) }),
        (Err(a), Err(b)) if a.is_no_label() && b.is_no_label() => Err(ReadError::Absent),
        (Err(CopyProblem::Content(e @ LabelError::OlderVersion { .. })), Err(_))
        | (Err(_), Err(CopyProblem::Content(e @ LabelError::OlderVersion { .. }))) => Err(ReadError::Format(e)),
        (Err(a), Err(b)) => Err(ReadError::BothDamaged { a, b }),
    }
}

fn overwritten(label: &Label, copy: CopyId) -> ReadError {
    let place = |copy| offset_of(copy, label.disk_size);
    let (name, from, to) = (label.name.clone(), place(copy.other()), place(copy));
    ReadError::Overwritten { copy, name, pool: label.pool, from, to }
}

fn write_copy<D: BlockDev + ?Sized>(disk: &D, label: &Label, copy: CopyId) -> Result<(), WriteError> {
    let bytes = encode(label, copy);
    let written = disk.write_at(offset_of(copy, label.disk_size), &bytes).and_then(|()| disk.sync());
    written.map_err(|source| WriteError::Io { copy, source })
}

/// Makes sure that the copies of this disk's label that can be read are durable. Returns their sequence numbers.
fn refresh<D: BlockDev + ?Sized>(disk: &D, label: &Label) -> Result<(Option<u64>, Option<u64>), WriteError> {
    let of_this_disk = |copy| read_copy(disk, copy, label.disk_size).ok().filter(|found| found.uuid == label.uuid);
    let (a, b) = (of_this_disk(CopyId::A), of_this_disk(CopyId::B));
    for (found, copy) in [(&a, CopyId::A), (&b, CopyId::B)] {
        if let Some(found) = found {
            write_copy(disk, found, copy)?;
        }
    }
    Ok((a.map(|label| label.sequence), b.map(|label| label.sequence)))
}

fn check_writable(label: &Label) -> Result<(), WriteError> {
    match label.unknown_ro_compat() {
        0 => Ok(()),
        flags => Err(WriteError::ReadOnlyFeatures { flags }),
    }
}

/// Repairs the damaged copy from the other. Returns which one was repaired.
///
/// # Errors
/// See [`WriteError`].
pub fn mend<D: BlockDev + ?Sized>(disk: &D, read: &mut LabelRead) -> Result<Option<CopyId>, WriteError> {
    if read.damage.is_none() {
        return Ok(None);
    }
    check_writable(&read.label)?;
    let damaged = read.from.other();
    refresh(disk, &read.label)?;
    write_copy(disk, &read.label, damaged)?;
    read.damage = None;
    Ok(Some(damaged))
}

/// Writes both copies of a label with a higher sequence number (also when it fails, so that no two contents share one).
///
/// # Errors
/// See [`WriteError`]; then the disk has the label as before or as it should be.
pub fn write<D: BlockDev + ?Sized>(disk: &D, label: &mut Label) -> Result<(), WriteError> {
    check_writable(label)?;
    let (a, b) = refresh(disk, label)?;
    label.sequence = label.sequence.max(a.unwrap_or(0)).max(b.unwrap_or(0)) + 1;
    let first = if b < a { CopyId::B } else { CopyId::A };
    write_copy(disk, label, first)?;
    write_copy(disk, label, first.other())
}

/// Zeroes both copies.
///
/// # Errors
/// What the disk said.
pub fn wipe<D: BlockDev + ?Sized>(disk: &D) -> io::Result<()> {
    if !has_room(disk) {
        return Ok(());
    }
    // Where copy B is on a disk that has grown, only a readable copy A tells.
    let mut places = vec![LABEL_A_OFFSET, label_b_offset(disk.size())];
    if let Ok(label) = read_copy(disk, CopyId::A, disk.size())
        && label.disk_size <= disk.size()
    {
        places.push(label_b_offset(label.disk_size));
    }
    for place in places.into_iter().rev() {
        disk.write_at(place, &[0; LEN])?;
        disk.sync()?;
    }
    Ok(())
}
