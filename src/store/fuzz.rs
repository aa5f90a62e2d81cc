//! The body of the fuzz target of everything that is read from disks: labels, headers of metadata regions, rows and records. Bytes may
//! be anything; what is accepted must come out the same when it is written and read again.
//!
//! Checksums keep a fuzzer out, so that the second half of its inputs have theirs put right first.

use std::sync::Arc;

use uuid::Uuid;

use super::page::PageRow;
use super::region::{REGION_LEN_MIN, RegionBackend, RegionPlace};
use crate::base::rng::Rng;
use crate::disk::BlockDev;
use crate::disk::geometry::{LABEL_A_OFFSET, label_b_offset};
use crate::disk::label::copies;
use crate::disk::sim::SimDisk;
use crate::metrics::history;
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, VhdRecord};
use crate::placement::vm::VmRecord;

const DISK_LEN: u64 = 64 << 20;
const REGION: RegionPlace = RegionPlace { offset: 1 << 20, len: REGION_LEN_MIN };
const LABEL_CRC_AT: usize = 8;
const HEADER_CRC_AT: usize = 12;
const SLOT_LEN: usize = 4096;
/// The kind of blocks of samples.
const SAMPLES: u8 = 0x7f;
/// A sequence number that can be raised twice.
const LAST_BUT_ONE: u64 = u64::MAX - 3;

/// Reads `data` as one of the formats: the first byte says which. Returns whether it was accepted.
///
/// # Panics
/// If something is accepted that does not come out the same again.
pub fn run(data: &[u8]) -> bool {
    let Some((&kind, bytes)) = data.split_first() else { return false };
    let repair = kind & 0x80 != 0;
    // A byte of its own, so that committed inputs mean what they meant.
    if kind & 0x7f == SAMPLES {
        return samples(bytes, repair);
    }
    match kind % 7 {
        0 => label(bytes, repair),
        1 => region(bytes, repair),
        2 => page(bytes, repair),
        3 => PoolRecord::decode(bytes).is_ok_and(|read| again(&read, &PoolRecord::decode(&read.encode()))),
        4 => VhdRecord::decode(bytes).is_ok_and(|read| again(&read, &VhdRecord::decode(&read.encode()))),
        5 => JobRecord::decode(bytes).is_ok_and(|read| again(&read, &JobRecord::decode(&read.encode()))),
        _ => VmRecord::decode(bytes).is_ok_and(|read| again(&read, &VmRecord::decode(&read.encode()))),
    }
}

fn again<T: PartialEq + std::fmt::Debug, E: std::fmt::Debug>(first: &T, second: &Result<T, E>) -> bool {
    assert_eq!(second.as_ref().ok(), Some(first), "{second:?}");
    true
}

/// A block of a fixed length, its checksum (over the block with zeros in its place) put right if asked.
fn block(bytes: &[u8], crc_at: usize, repair: bool) -> Vec<u8> {
    let mut block = bytes.to_vec();
    block.resize(SLOT_LEN, 0);
    if repair {
        block[crc_at..crc_at + 4].fill(0);
        let crc = crc32c::crc32c(&block);
        block[crc_at..crc_at + 4].copy_from_slice(&crc.to_le_bytes());
    }
    block
}

fn samples(bytes: &[u8], repair: bool) -> bool {
    let mut block = bytes.to_vec();
    if repair {
        block.extend_from_slice(&crc32c::crc32c(bytes).to_le_bytes());
    }
    history::fuzz(&block)
}

fn label(bytes: &[u8], repair: bool) -> bool {
    let disk = SimDisk::new(DISK_LEN, 512);
    // Which of the two it says it is, is in it.
    for at in [LABEL_A_OFFSET, label_b_offset(DISK_LEN)] {
        disk.poke(at, &block(bytes, LABEL_CRC_AT, repair));
    }
    let Ok(read) = copies::read(&disk) else { return false };
    let mut label = read.label.clone();
    if label.unknown_ro_compat() != 0 {
        copies::write(&disk, &mut label).expect_err("of a newer program, only to be read");
        return true;
    }
    if label.sequence > LAST_BUT_ONE {
        return true;
    }
    copies::write(&disk, &mut label).expect("what was read can be written");
    again(&label, &copies::read(&disk).map(|read| read.label))
}

fn region(bytes: &[u8], repair: bool) -> bool {
    let disk = Arc::new(SimDisk::new(DISK_LEN, 512));
    let (first, second) = bytes.split_at(bytes.len() / 2);
    for (at, slot) in [first, second].into_iter().enumerate() {
        disk.poke(REGION.offset + (at * SLOT_LEN) as u64, &block(slot, HEADER_CRC_AT, repair));
    }
    // One more, and it is the last, which is refused.
    let near_the_end = |slot: &[u8]| {
        slot.get(16..24).is_some_and(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")) > LAST_BUT_ONE)
    };
    if [first, second].into_iter().any(near_the_end) && repair {
        return RegionBackend::open(disk, REGION, Uuid::nil()).is_ok();
    }
    let pool = Uuid::from_slice(first.get(40..56).unwrap_or(&[0; 16])).expect("16 bytes");
    let Ok(region) = RegionBackend::open(Arc::clone(&disk), REGION, pool) else { return false };
    let len = region.length();
    assert!(len <= region.capacity() && REGION.offset + len <= disk.size());
    region.set_length(len / 2).expect("a shorter length");
    drop(region);
    let reopened = RegionBackend::open(disk, REGION, pool).map(|region| region.length()).map_err(|e| e.to_string());
    again(&(len / 2), &reopened)
}

fn page(bytes: &[u8], repair: bool) -> bool {
    let mut bytes = bytes.to_vec();
    if repair {
        bytes.extend_from_slice(&crc32c::crc32c(&bytes).to_le_bytes());
    }
    let Ok(row) = PageRow::decode(&bytes) else { return false };
    let mut out = Vec::new();
    row.encode(&mut out);
    assert_eq!(out, bytes, "there is one way to write a row");
    true
}

/// Changes a few bytes of a valid input, so that seeded runs reach what lies behind the first check.
pub fn mutate(valid: &[u8], seed: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed);
    let mut bytes = valid.to_vec();
    for _ in 0..rng.below(6) {
        if bytes.len() < 2 {
            break;
        }
        let at = 1 + rng.index(bytes.len() - 1);
        match rng.below(4) {
            0 => bytes[at] ^= 1 << rng.below(8),
            1 => rng.fill(&mut bytes[at..][..1]),
            2 => bytes.truncate(at),
            _ => bytes[at] = bytes[at].wrapping_add(1),
        }
    }
    bytes
}
