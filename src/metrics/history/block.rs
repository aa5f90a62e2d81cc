//! How consecutive samples are stored: what has changed since the one before.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | version, 1 |
//! | 1 | resolution: seconds of a sample as 0, 1 or 2 |
//! | 4 | number of the block, little-endian |
//! | ... | entries |
//! | 4 | CRC-32C of everything before, little-endian |
//!
//! An entry begins with a number `n`; numbers are LEB128. Its two lowest bits say what it is, `m` is the rest of it:
//!
//! | bits | what |
//! |---|---|
//! | 0 | a sample: `m` is the mask of the codes that differ from the sample before (at first: zeros), and the differences follow, zigzag |
//! | 1 | the sample before, `m` times more |
//! | 2 | `m` samples are not known |
//!
//! What is not known at the end is left out.

use super::sample::{CODE_MAX, FIELDS, Sample};
use super::series::Tier;

const VERSION: u8 = 1;
const HEAD_LEN: usize = 6;
const CRC_LEN: usize = 4;

const CHANGED: u64 = 0;
const AGAIN: u64 = 1;
const UNKNOWN: u64 = 2;
const KIND_BITS: u32 = 2;

/// Why bytes are no block of samples.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// The checksum does not match, or entries are not what they should be.
    #[error("the samples are damaged: the disk changed them")]
    Damaged,
    /// Written by another version.
    #[error("the samples have format version {0}, this program knows version {VERSION}")]
    Version(u8),
    /// They belong elsewhere.
    #[error("the samples are of another time than their key says")]
    Misplaced,
}

/// The samples of a block, by their place in it.
pub(super) type Samples = Vec<Option<Sample>>;

/// The bytes of a block.
pub(super) fn encode(tier: Tier, block: u32, samples: &[Option<Sample>]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEAD_LEN + samples.len() * 20 + CRC_LEN);
    bytes.extend([VERSION, tier as u8]);
    bytes.extend_from_slice(&block.to_le_bytes());
    let known = samples.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    let mut before = Sample::default();
    for run in samples[..known].chunk_by(|a, b| a == b) {
        let Some(sample) = &run[0] else {
            put(&mut bytes, (run.len() as u64) << KIND_BITS | UNKNOWN);
            continue;
        };
        let mut again = run.len() as u64;
        if *sample != before {
            put_changes(&mut bytes, &before, sample);
            before = *sample;
            again -= 1;
        }
        if again > 0 {
            put(&mut bytes, again << KIND_BITS | AGAIN);
        }
    }
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// Reads a block.
pub(super) fn decode(tier: Tier, block: u32, bytes: &[u8]) -> Result<Samples, BlockError> {
    let (body, crc) = bytes.split_last_chunk::<CRC_LEN>().ok_or(BlockError::Damaged)?;
    if crc32c::crc32c(body).to_le_bytes() != *crc {
        return Err(BlockError::Damaged);
    }
    let (head, mut rest) = body.split_first_chunk::<HEAD_LEN>().ok_or(BlockError::Damaged)?;
    if head[0] != VERSION {
        return Err(BlockError::Version(head[0]));
    }
    if head[1] != tier as u8 || head[2..] != block.to_le_bytes() {
        return Err(BlockError::Misplaced);
    }
    let (mut samples, mut before) = (Samples::new(), Sample::default());
    while !rest.is_empty() {
        let entry = take(&mut rest).ok_or(BlockError::Damaged)?;
        let (kind, m) = (entry & ((1 << KIND_BITS) - 1), entry >> KIND_BITS);
        let (sample, count) = match kind {
            CHANGED => {
                before = take_changes(&mut rest, &before, m).ok_or(BlockError::Damaged)?;
                (Some(before), 1)
            }
            AGAIN => (Some(before), m),
            UNKNOWN => (None, m),
            _ => return Err(BlockError::Damaged),
        };
        let left = tier.block_len() as usize - samples.len();
        let count =
            usize::try_from(count).ok().filter(|count| (1..=left).contains(count)).ok_or(BlockError::Damaged)?;
        samples.extend(std::iter::repeat_n(sample, count));
    }
    Ok(samples)
}

fn put_changes(bytes: &mut Vec<u8>, before: &Sample, sample: &Sample) {
    let pairs = || before.codes.iter().zip(&sample.codes);
    let mask = pairs().enumerate().fold(0, |mask, (at, (old, new))| mask | u64::from(old != new) << at);
    put(bytes, mask << KIND_BITS | CHANGED);
    for (old, new) in pairs().filter(|(old, new)| old != new) {
        let (difference, is_less) = (new.abs_diff(*old), new < old);
        put(bytes, u64::from(difference) << 1 | u64::from(is_less));
    }
}

fn take_changes(rest: &mut &[u8], before: &Sample, mask: u64) -> Option<Sample> {
    if mask >> FIELDS != 0 {
        return None;
    }
    let mut sample = *before;
    for (at, code) in sample.codes.iter_mut().enumerate() {
        if mask >> at & 1 == 1 {
            let change = take(rest)?;
            let difference = u16::try_from(change >> 1).ok()?;
            let changed = if change & 1 == 1 { code.checked_sub(difference) } else { code.checked_add(difference) };
            *code = changed.filter(|code| *code <= CODE_MAX)?;
        }
    }
    Some(sample)
}

#[allow(clippy::cast_possible_truncation, reason = "seven bits at a time")]
fn put(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(rest: &mut &[u8]) -> Option<u64> {
    let mut number = 0;
    for shift in (0..u64::BITS).step_by(7) {
        let (&byte, more) = rest.split_first()?;
        *rest = more;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return None;
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}
