#![allow(clippy::cast_possible_truncation, reason = "small random numbers")]

use redb::StorageBackend;

use super::header::CRC_AT;
use super::*;
use crate::base::rng::Rng;
use crate::disk::sim::{Fault, FaultKind, OpKind, SEED_NEWEST, SEED_OLDEST, SimDisk};

const POOL: Uuid = Uuid::from_u128(7);
const PLACE: RegionPlace = RegionPlace { offset: 64 << 10, len: REGION_LEN_MIN };
const CAPACITY: u64 = REGION_LEN_MIN - HEADER_LEN;

fn disk() -> SimDisk {
    SimDisk::new(PLACE.offset + PLACE.len + (64 << 10), 4096)
}

fn formatted(disk: &SimDisk) -> RegionBackend<SimDisk> {
    RegionBackend::format(Arc::new(disk.clone()), PLACE, POOL).unwrap()
}

fn opened(disk: &SimDisk) -> Result<RegionBackend<SimDisk>, RegionError> {
    RegionBackend::open(Arc::new(disk.clone()), PLACE, POOL)
}

#[test]
fn a_new_region_is_empty_and_lengths_survive() {
    let disk = disk();
    let region = formatted(&disk);
    assert_eq!((region.length(), region.capacity()), (0, CAPACITY));
    for len in [8192, 1 << 20, 4096, 0, CAPACITY] {
        region.set_length(len).unwrap();
        assert_eq!(opened(&disk).unwrap().length(), len);
    }
}

#[test]
fn a_length_beyond_the_region_is_refused_and_changes_nothing() {
    let disk = disk();
    let region = formatted(&disk);
    region.set_length(8192).unwrap();
    let error = region.set_length(CAPACITY + 1).unwrap_err();
    assert!(matches!(error, RegionError::Full { asked, capacity } if asked == CAPACITY + 1 && capacity == CAPACITY));
    assert!(region.take_refused() && !region.take_refused());
    assert_eq!((region.length(), opened(&disk).unwrap().length()), (8192, 8192));
}

#[test]
fn what_is_beyond_the_length_cannot_be_read_or_written() {
    let region = formatted(&disk());
    region.set_length(8192).unwrap();
    region.write(8000, &[1; 192]).unwrap();
    let mut one = [0];
    for result in [
        region.write(8000, &[1; 193]),
        region.read(8192, &mut one),
        region.read(u64::MAX, &mut one),
        region.write(u64::MAX, &[1]),
    ] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn space_that_is_had_again_is_zero_and_durably_so() {
    let disk = disk();
    let region = formatted(&disk);
    region.set_length(1 << 20).unwrap();
    region.write(0, &vec![9; 1 << 20]).unwrap();
    region.set_length(4096).unwrap();
    region.set_length(1 << 20).unwrap();
    let crashed = &disk.trace().crash_now(SEED_OLDEST)[0];
    for region in [region, opened(crashed).unwrap()] {
        let mut bytes = vec![1; (1 << 20) - 4096];
        region.read(4096, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&b| b == 0));
    }
}

#[test]
fn every_torn_header_leaves_the_old_length_or_the_new_one() {
    let disk = disk();
    let region = formatted(&disk);
    let (old, new) = (1 << 20, 2 << 20);
    region.set_length(old).unwrap();
    disk.trace().restart();
    region.set_length(new).unwrap();
    let mut seen = [0; 2];
    let mut replay = disk.trace().replay();
    for cut in 0..=replay.len() {
        replay.advance_to(cut);
        for seed in 0..16 {
            let len = opened(&replay.crash_images(seed)[0]).unwrap().length();
            assert!(len == old || len == new, "cut {cut} seed {seed}: {len}");
            seen[usize::from(len == new)] += 1;
        }
    }
    assert!(seen[0] > 0 && seen[1] > 0);
    assert_eq!(opened(&disk.trace().crash_now(SEED_OLDEST)[0]).unwrap().length(), new, "not synced");
}

/// Exhaustive where the simulated disk samples: every subset of the sectors of the header that is being written.
#[test]
fn every_subset_of_sectors_of_a_header_leaves_a_valid_one() {
    let disk = disk();
    let region = formatted(&disk);
    for len in [4096, 1 << 20, 8192] {
        region.set_length(len).unwrap();
        let old = region.length();
        let new = Header { sequence: *lock(&region.inner.sequence) + 1, len: 12288, region_len: PLACE.len, pool: POOL }
            .encode();
        let slot = PLACE.offset + ((*lock(&region.inner.sequence) + 1) % 2) * SLOT_LEN as u64;
        let mut before = vec![0; SLOT_LEN];
        disk.read_at(slot, &mut before).unwrap();
        for subset in 0u32..256 {
            let mut torn = before.clone();
            for sector in (0..8).filter(|sector| subset >> sector & 1 == 1) {
                torn[sector * 512..(sector + 1) * 512].copy_from_slice(&new[sector * 512..(sector + 1) * 512]);
            }
            disk.poke(slot, &torn);
            let found = opened(&disk).unwrap().length();
            // The header is in the first sector; the others are zeros before and after.
            assert_eq!(found, if subset & 1 == 1 { 12288 } else { old }, "subset {subset:08b}");
        }
        // And sectors that became unreadable garbage.
        for sector in 0..8 {
            let mut torn = new.clone();
            torn[sector * 512..(sector + 1) * 512].fill(0xa5);
            disk.poke(slot, &torn);
            assert_eq!(opened(&disk).unwrap().length(), old);
        }
        disk.poke(slot, &before);
    }
}

#[test]
fn wrong_regions_are_refused_by_name() {
    let disk = disk();
    assert!(matches!(opened(&disk).unwrap_err(), RegionError::NotFormatted));
    formatted(&disk);
    let open = |place, pool| RegionBackend::open(Arc::new(disk.clone()), place, pool).unwrap_err();
    assert!(matches!(open(PLACE, Uuid::from_u128(8)), RegionError::OtherPool { found: POOL, .. }));
    let longer = RegionPlace { len: PLACE.len + 4096, ..PLACE };
    assert!(matches!(open(longer, POOL), RegionError::OtherLength { found: REGION_LEN_MIN, .. }));
    for bad in [
        RegionPlace { len: REGION_LEN_MIN - 4096, ..PLACE },
        RegionPlace { len: PLACE.len + 1, ..PLACE },
        RegionPlace { offset: 512, ..PLACE },
        RegionPlace { offset: 128 << 10, ..PLACE },
        RegionPlace { offset: u64::MAX - 4095, ..PLACE },
    ] {
        let bad = if bad.offset == 128 << 10 { RegionPlace { len: PLACE.len + (1 << 20), ..bad } } else { bad };
        assert!(matches!(open(bad, POOL), RegionError::BadPlace(_)), "{bad:?}");
    }
    // One damaged slot is normal, two are not, and a newer version says so.
    disk.poke(PLACE.offset + 20, &[0xff]);
    opened(&disk).unwrap();
    disk.poke(PLACE.offset + SLOT_LEN as u64 + 20, &[0xff]);
    assert!(matches!(opened(&disk).unwrap_err(), RegionError::Damaged));
    let mut newer = Header { sequence: 9, len: 0, region_len: PLACE.len, pool: POOL }.encode();
    newer[8] = 2;
    newer[CRC_AT..CRC_AT + 4].fill(0);
    let crc = crc32c::crc32c(&newer);
    newer[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
    disk.poke(PLACE.offset, &newer);
    disk.poke(PLACE.offset + SLOT_LEN as u64, &newer);
    assert!(matches!(opened(&disk).unwrap_err(), RegionError::Version { found: 2 }));
}

#[test]
fn a_failed_write_or_sync_of_a_header_keeps_the_old_length() {
    for on in [OpKind::Write, OpKind::Sync] {
        let disk = disk();
        let region = formatted(&disk);
        region.set_length(8192).unwrap();
        disk.inject(Fault::next(on, FaultKind::Error(libc::EIO)));
        assert!(matches!(region.set_length(4096).unwrap_err(), RegionError::Io { .. }));
        assert_eq!(region.length(), 8192);
    }
}

#[test]
fn a_closed_region_writes_nothing_more() {
    let disk = disk();
    let region = formatted(&disk);
    region.set_length(8192).unwrap();
    let before = disk.op_counts();
    region.close();
    assert!(region.write(0, &[1]).is_err() && region.sync_data().is_err() && region.set_len(4096).is_err());
    assert!(region.read(0, &mut [0]).is_err());
    assert_eq!(disk.op_counts(), before);
    assert_eq!(region.replace().unwrap().length(), 8192);
}

#[test]
fn any_history_equals_a_vector_of_bytes() {
    for seed in 0..30 {
        let disk = disk();
        let mut region = formatted(&disk);
        let mut model: Vec<u8> = Vec::new();
        let mut rng = Rng::new(seed);
        for step in 0..80 {
            match rng.below(10) {
                0 | 1 => {
                    let len = rng.below(40) * 4096;
                    region.set_len(len).unwrap();
                    model.resize(len as usize, 0);
                }
                2..=5 if !model.is_empty() => {
                    let at = rng.index(model.len());
                    let mut bytes = vec![0; rng.index((model.len() - at).min(20_000) + 1)];
                    rng.fill(&mut bytes);
                    region.write(at as u64, &bytes).unwrap();
                    model[at..at + bytes.len()].copy_from_slice(&bytes);
                }
                6 => region.set_read_ahead(rng.chance(1, 2)),
                7 => {
                    region.sync_data().unwrap();
                    let images = disk.trace().crash_now(SEED_OLDEST);
                    check(&opened(&images[0]).unwrap(), &model, seed, step);
                }
                8 => region = region.replace().unwrap(),
                _ => check(&region, &model, seed, step),
            }
        }
        check(&opened(&disk.trace().crash_now(SEED_NEWEST)[0]).unwrap(), &model, seed, 0);
    }
}

fn check(region: &RegionBackend<SimDisk>, model: &[u8], seed: u64, step: u64) {
    assert_eq!(region.len().unwrap(), model.len() as u64, "seed {seed} step {step}");
    let mut bytes = vec![1; model.len()];
    region.read(0, &mut bytes).unwrap();
    assert!(bytes == model, "seed {seed} step {step}");
}

/// Growing takes long, and the region may be given to another store meanwhile.
#[test]
fn a_region_that_was_taken_away_is_not_written_to_any_more() {
    let disk = SimDisk::new(64 << 20, 512);
    let place = RegionPlace { offset: 0, len: 64 << 20 };
    let region = RegionBackend::format(Arc::new(disk.clone()), place, POOL).unwrap();
    let fuse = region.fuse();
    let before = disk.op_counts().writes;
    disk.set_paused(true);
    let growing = std::thread::spawn(move || region.set_length(32 << 20));
    std::thread::sleep(std::time::Duration::from_millis(100));
    fuse.cut();
    disk.set_paused(false);
    let result = growing.join().unwrap();
    assert!(matches!(result, Err(RegionError::Closed)), "{result:?}");
    assert!(disk.op_counts().writes - before <= 1, "only what was in flight");
}
