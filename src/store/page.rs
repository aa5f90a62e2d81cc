//! One row of table `pages`: 64 consecutive extents of one VHD.
//!
//! All numbers are little-endian. A row:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | bits 0..7 version, 1; bit 7 write intent: replicas of its extents may differ in what was not flushed |
//! | 1 | 8 | epoch of the commit that wrote the row |
//! | 9 | 8 | number of that commit within its epoch |
//! | 17 | 64 x 1 to 24 | the extents, in order |
//! | last 4 | 4 | CRC-32C of everything before (`redb` has checksums, but looks at them only when it repairs) |
//!
//! An extent:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | head: bits 0..2 number of replicas; bits 2..4 present blocks: 0 none, 1 all, 2 a mask follows; bits 4..6 generation: 0 is 0, 1 one byte follows, 2 two bytes, 3 four bytes; bits 6..8 zero |
//! | 0, 1, 2 or 4 | generation |
//! | 0 or 4 | mask of present blocks |
//! | 5 per replica | bits 0..6 disk, bits 6..8 state (1 in sync, 2 syncing, 3 stale); 4 bytes slot |
//!
//! Every extent has exactly one encoding (the shortest), so that equal rows are equal bytes. An absent extent of generation
//! 0 is one zero byte. Generations are even: an odd one exists only in memory, while an extent changes.

#[cfg(test)]
mod tests;

use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::{DISKS_MAX, EXTENTS_PER_PAGE, REPLICAS_MAX};
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use crate::placement::{Replica, ReplicaSet, ReplicaState};

/// Extents in a page, for arrays.
#[allow(clippy::cast_possible_truncation, reason = "a small constant")]
pub const PAGE_EXTENTS: usize = EXTENTS_PER_PAGE as usize;

#[allow(clippy::cast_possible_truncation, reason = "a small constant")]
const PER_PAGE: u32 = EXTENTS_PER_PAGE as u32;

/// Longest row, in bytes.
pub const ROW_LEN_MAX: usize = ROW_HEAD_LEN + PAGE_EXTENTS * EXTENT_LEN_MAX + CRC_LEN;

const ROW_VERSION: u8 = 1;
const INTENT: u8 = 1 << 7;
const ROW_HEAD_LEN: usize = 17;
const CRC_LEN: usize = 4;
const EXTENT_LEN_MAX: usize = 1 + 4 + 4 + REPLICAS_MAX * REPLICA_LEN;
const REPLICA_LEN: usize = 5;

const PRESENT_NONE: u8 = 0;
const PRESENT_ALL: u8 = 1;
const PRESENT_MASK: u8 = 2;

const _: () = assert!(DISKS_MAX <= 1 << 6);
const _: () = assert!(REPLICAS_MAX <= 3);

/// Which commit: epochs count openings of the store, commits count within an epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp {
    /// Raised at each opening.
    pub epoch: u64,
    /// From 0 (the raising of the epoch) on.
    pub commit: u64,
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "epoch {} commit {}", self.epoch, self.commit)
    }
}

/// A page of a VHD: the key of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// The VHD.
    pub vhd: VhdId,
    /// Index of the page in the VHD.
    pub page: u32,
}

impl PageKey {
    /// The page that an extent is in, and its place there.
    #[must_use]
    pub fn of(vhd: VhdId, extent: ExtentIndex) -> (PageKey, usize) {
        (PageKey { vhd, page: extent.0 / PER_PAGE }, (extent.0 % PER_PAGE) as usize)
    }

    /// The extent at a place in the page; `None` past the largest VHD.
    #[must_use]
    pub fn extent(self, place: usize) -> Option<ExtentIndex> {
        let first = self.page.checked_mul(PER_PAGE)?;
        first.checked_add(u32::try_from(place).ok()?).map(ExtentIndex)
    }
}

/// What the durable table says about one extent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtentRow {
    /// Generation.
    pub generation: Generation,
    /// Blocks that were written; none if the extent is absent.
    pub present: BlockMask,
    /// Where it is.
    pub replicas: ReplicaSet,
}

/// A row of table `pages`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageRow {
    /// Who wrote it.
    pub stamp: Stamp,
    /// Extents with several replicas may be written to: after a power cut these may differ in what was not flushed.
    pub intent: bool,
    /// The extents.
    pub extents: [ExtentRow; PAGE_EXTENTS],
}

impl Default for PageRow {
    fn default() -> PageRow {
        PageRow { stamp: Stamp::default(), intent: false, extents: [ExtentRow::default(); PAGE_EXTENTS] }
    }
}

/// Why bytes are not a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// They end too early.
    #[error("the row is cut short")]
    Short,
    /// They go on after the last extent.
    #[error("the row is {0} bytes too long")]
    Long(usize),
    /// The checksum does not match.
    #[error("the checksum of the row does not match: the disk changed it")]
    Checksum,
    /// Written by another version.
    #[error("the row has format version {0}, this program knows version {ROW_VERSION}")]
    Version(u8),
    /// An extent is encoded in a way that no version writes.
    #[error("extent {place} of the row is malformed: {what}")]
    Extent {
        /// Its place in the row.
        place: usize,
        /// What is wrong.
        what: &'static str,
    },
}

impl PageRow {
    /// Replaces `out` by the bytes of the row.
    ///
    /// # Panics
    /// If an extent cannot exist: absent with present blocks, or of an odd generation.
    pub fn encode(&self, out: &mut Vec<u8>) {
        out.clear();
        out.push(ROW_VERSION | if self.intent { INTENT } else { 0 });
        out.extend_from_slice(&self.stamp.epoch.to_le_bytes());
        out.extend_from_slice(&self.stamp.commit.to_le_bytes());
        for extent in &self.extents {
            encode_extent(extent, out);
        }
        let crc = crc32c::crc32c(out);
        out.extend_from_slice(&crc.to_le_bytes());
        debug_assert!(out.len() <= ROW_LEN_MAX);
    }

    /// Reads a row.
    ///
    /// # Errors
    /// If the bytes are not what [`PageRow::encode`] writes.
    pub fn decode(bytes: &[u8]) -> Result<PageRow, PageError> {
        let mut row = PageRow::default();
        row.stamp = visit(bytes, |place, extent| row.extents[place] = extent)?;
        row.intent = intends(bytes);
        Ok(row)
    }
}

/// Reads a row extent by extent, without storing it; absent extents of generation 0 are not mentioned.
///
/// # Errors
/// As [`PageRow::decode`]; extents before the malformed one have been visited. A wrong checksum is found before any visit.
pub fn visit(bytes: &[u8], mut each: impl FnMut(usize, ExtentRow)) -> Result<Stamp, PageError> {
    let stamp = stamp_of(bytes)?;
    let (body, crc) = bytes.split_at(bytes.len() - CRC_LEN);
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return Err(PageError::Checksum);
    }
    let mut rest = &body[ROW_HEAD_LEN..];
    for place in 0..PAGE_EXTENTS {
        let extent = decode_extent(&mut rest).map_err(|problem| problem.at(place))?;
        if extent != ExtentRow::default() {
            each(place, extent);
        }
    }
    if rest.is_empty() { Ok(stamp) } else { Err(PageError::Long(rest.len())) }
}

/// The stamp of a row, without looking at the rest.
///
/// # Errors
/// If the bytes are too short for a row, or of another version.
pub fn stamp_of(bytes: &[u8]) -> Result<Stamp, PageError> {
    if bytes.len() < ROW_HEAD_LEN + PAGE_EXTENTS + CRC_LEN {
        return Err(PageError::Short);
    }
    if bytes[0] & !INTENT != ROW_VERSION {
        return Err(PageError::Version(bytes[0] & !INTENT));
    }
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
    Ok(Stamp { epoch: word(1), commit: word(9) })
}

/// Whether a row that was found valid has the write intent.
#[must_use]
pub fn intends(bytes: &[u8]) -> bool {
    bytes.first().is_some_and(|first| first & INTENT != 0)
}

fn encode_extent(extent: &ExtentRow, out: &mut Vec<u8>) {
    let ExtentRow { generation, present, replicas } = *extent;
    assert!(generation.0 & 1 == 0, "an extent is committed between two changes, not during one");
    assert!(present.is_empty() || !replicas.is_absent(), "a block is present in an extent that has no place");
    let present_form = match present {
        BlockMask::NONE => PRESENT_NONE,
        BlockMask::ALL => PRESENT_ALL,
        _ => PRESENT_MASK,
    };
    let generation_bytes = generation.0.to_le_bytes();
    let (generation_form, generation_len) = match generation.0 {
        0 => (0, 0),
        1..=0xff => (1, 1),
        0x100..=0xffff => (2, 2),
        _ => (3, 4),
    };
    assert!(replicas.len() <= REPLICAS_MAX, "a row has room for {REPLICAS_MAX} replicas");
    let count = u8::try_from(replicas.len()).expect("just checked");
    out.push(count | present_form << 2 | generation_form << 4);
    out.extend_from_slice(&generation_bytes[..generation_len]);
    if present_form == PRESENT_MASK {
        out.extend_from_slice(&present.0.to_le_bytes());
    }
    for replica in replicas.iter() {
        out.push(replica.disk.0 | state_code(replica.state) << 6);
        out.extend_from_slice(&replica.slot.0.to_le_bytes());
    }
}

fn state_code(state: ReplicaState) -> u8 {
    match state {
        ReplicaState::InSync => 1,
        ReplicaState::Syncing => 2,
        ReplicaState::Stale => 3,
        ReplicaState::Sealing => unreachable!("only in memory"),
    }
}

enum ExtentProblem {
    Short,
    Malformed(&'static str),
}

impl ExtentProblem {
    fn at(self, place: usize) -> PageError {
        match self {
            ExtentProblem::Short => PageError::Short,
            ExtentProblem::Malformed(what) => PageError::Extent { place, what },
        }
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Result<&'a [u8], ExtentProblem> {
    let (taken, left) = rest.split_at_checked(len).ok_or(ExtentProblem::Short)?;
    *rest = left;
    Ok(taken)
}

/// A number of 0 to 4 bytes.
fn take_number(rest: &mut &[u8], len: usize) -> Result<u32, ExtentProblem> {
    let mut bytes = [0; 4];
    bytes[..len].copy_from_slice(take(rest, len)?);
    Ok(u32::from_le_bytes(bytes))
}

fn decode_extent(rest: &mut &[u8]) -> Result<ExtentRow, ExtentProblem> {
    let malformed = |what| Err(ExtentProblem::Malformed(what));
    let head = take(rest, 1)?[0];
    if head == 0 {
        return Ok(ExtentRow::default());
    }
    if head >> 6 != 0 {
        return malformed("reserved bits are set");
    }
    let generation = match head >> 4 {
        0 => 0,
        1 => take_number(rest, 1)?,
        2 => take_number(rest, 2)?,
        _ => take_number(rest, 4)?,
    };
    let shortest = match generation {
        0 => 0,
        1..=0xff => 1,
        0x100..=0xffff => 2,
        _ => 3,
    };
    if head >> 4 != shortest {
        return malformed("the generation is not in its shortest form");
    }
    if generation & 1 != 0 {
        return malformed("the generation is odd");
    }
    let present = match head >> 2 & 3 {
        PRESENT_NONE => BlockMask::NONE,
        PRESENT_ALL => BlockMask::ALL,
        PRESENT_MASK => match BlockMask(take_number(rest, 4)?) {
            BlockMask::NONE | BlockMask::ALL => return malformed("the present mask is not in its shortest form"),
            mask => mask,
        },
        _ => return malformed("unknown form of present blocks"),
    };
    let mut replicas = ReplicaSet::ABSENT;
    for _ in 0..head & 3 {
        let replica = decode_replica(take(rest, REPLICA_LEN)?)?;
        if replicas.on(replica.disk).is_some() {
            return malformed("two replicas on one disk");
        }
        replicas.push(replica);
    }
    if replicas.is_absent() && !present.is_empty() {
        return malformed("blocks are present and there is no replica");
    }
    Ok(ExtentRow { generation: Generation(generation), present, replicas })
}

fn decode_replica(bytes: &[u8]) -> Result<Replica, ExtentProblem> {
    let state = match bytes[0] >> 6 {
        1 => ReplicaState::InSync,
        2 => ReplicaState::Syncing,
        3 => ReplicaState::Stale,
        _ => return Err(ExtentProblem::Malformed("unknown replica state")),
    };
    let slot = SlotIndex(u32::from_le_bytes(bytes[1..REPLICA_LEN].try_into().expect("4 bytes")));
    Ok(Replica { disk: DiskId(bytes[0] & 0x3f), slot, state })
}
