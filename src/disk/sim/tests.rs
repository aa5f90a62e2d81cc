use std::collections::HashSet;

use std::io;

use super::*;
use crate::base::rng::Rng;
use crate::disk::BlockDev;

const KIB: u64 = 1024;

fn disk() -> SimDisk {
    SimDisk::new(1024 * KIB, 512)
}

fn byte(disk: &SimDisk, offset: u64) -> u8 {
    let mut one = [0];
    disk.read_at(offset, &mut one).unwrap();
    one[0]
}

/// Contents of the sector at `offset` that some seed shows after a cut at `cut`.
fn outcomes(trace: &SimTrace, cut: usize, offset: u64) -> HashSet<u8> {
    (0..64).map(|seed| byte(&trace.crash_images(cut, seed)[0], offset)).collect()
}

#[test]
fn what_is_written_is_read_back_at_any_offset_and_length() {
    for block in [512, 4096] {
        let disk = SimDisk::new(64 * KIB, block);
        let mut model = vec![0u8; 64 << 10];
        let mut rng = Rng::new(5);
        for _ in 0..500 {
            let offset = rng.index(64 << 10);
            let mut bytes = vec![0; rng.index((64 << 10) - offset).min(9000)];
            rng.fill(&mut bytes);
            disk.write_at(offset as u64, &bytes).unwrap();
            model[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        let mut all = vec![0; 64 << 10];
        disk.read_at(0, &mut all).unwrap();
        assert!(all == model);
    }
}

#[test]
fn unsynced_write_is_old_or_new_and_synced_write_is_new() {
    let disk = disk();
    disk.write_at(0, &[1; 512]).unwrap();
    disk.sync().unwrap();
    let before = disk.trace().len();
    disk.write_at(0, &[2; 512]).unwrap();
    let written = disk.trace().len();
    disk.sync().unwrap();
    let trace = disk.trace();
    assert_eq!(outcomes(trace, before, 0), HashSet::from([1]));
    assert_eq!(outcomes(trace, written, 0), HashSet::from([1, 2]));
    assert_eq!(outcomes(trace, trace.len(), 0), HashSet::from([2]));
    assert_eq!(outcomes(trace, 0, 0), HashSet::from([0]));
}

#[test]
fn every_version_since_the_last_sync_may_survive_but_none_from_before() {
    let disk = disk();
    for value in 1..=2 {
        disk.write_at(0, &[value; 512]).unwrap();
    }
    disk.sync().unwrap();
    for value in 3..=5 {
        disk.write_at(0, &[value; 512]).unwrap();
    }
    assert_eq!(outcomes(disk.trace(), disk.trace().len(), 0), HashSet::from([2, 3, 4, 5]));
}

#[test]
fn a_torn_write_really_occurs() {
    let disk = disk();
    disk.write_at(0, &[7; 4096]).unwrap();
    let trace = disk.trace();
    let torn = |cut: usize| {
        (0..64).any(|seed| {
            let image = &trace.crash_images(cut, seed)[0];
            let news = (0..8).filter(|sector| byte(image, sector * 512) == 7).count();
            news > 0 && news < 8
        })
    };
    assert!(!torn(0));
    assert!(torn(1), "torn while in flight");
    assert!(torn(2), "torn when completed and not synced");
}

#[test]
fn a_sync_covers_only_writes_that_ended_before_it_began() {
    let disk = disk();
    let early = disk.begin_write(0, &[1; 512]).unwrap();
    let late = disk.begin_write(512, &[1; 512]).unwrap();
    disk.end_write(early).unwrap();
    let sync = disk.begin_sync();
    disk.end_write(late).unwrap();
    disk.end_sync(sync).unwrap();
    let trace = disk.trace();
    assert_eq!(outcomes(trace, trace.len(), 0), HashSet::from([1]));
    assert_eq!(outcomes(trace, trace.len(), 512), HashSet::from([0, 1]));
}

#[test]
fn a_write_in_flight_is_not_visible_and_survives_a_sync_as_a_candidate() {
    let disk = disk();
    let slow = disk.begin_write(0, &[1; 512]).unwrap();
    assert_eq!(byte(&disk, 0), 0);
    disk.write_at(0, &[2; 512]).unwrap();
    disk.sync().unwrap();
    let synced = disk.trace().len();
    disk.end_write(slow).unwrap();
    assert_eq!(byte(&disk, 0), 1);
    assert_eq!(outcomes(disk.trace(), synced, 0), HashSet::from([1, 2]));
}

#[test]
fn a_failed_sync_is_not_made_good_by_a_later_one() {
    let disk = disk();
    disk.write_at(0, &[1; 512]).unwrap();
    disk.inject(Fault::next(OpKind::Sync, FaultKind::Error(libc::EIO)));
    assert_eq!(disk.sync().unwrap_err().raw_os_error(), Some(libc::EIO));
    disk.sync().unwrap();
    assert_eq!(outcomes(disk.trace(), disk.trace().len(), 0), HashSet::from([0, 1]));
    disk.write_at(0, &[2; 512]).unwrap();
    disk.sync().unwrap();
    assert_eq!(outcomes(disk.trace(), disk.trace().len(), 0), HashSet::from([2]));
}

#[test]
fn a_lying_sync_says_yes_and_a_true_one_makes_it_good() {
    let disk = disk();
    disk.write_at(0, &[1; 512]).unwrap();
    disk.inject(Fault::next(OpKind::Sync, FaultKind::Lie));
    disk.sync().unwrap();
    assert_eq!(outcomes(disk.trace(), disk.trace().len(), 0), HashSet::from([0, 1]));
    disk.sync().unwrap();
    assert_eq!(outcomes(disk.trace(), disk.trace().len(), 0), HashSet::from([1]));
}

#[test]
fn faults_hit_the_nth_operation_once_or_always() {
    let disk = disk();
    let eio = FaultKind::Error(libc::EIO);
    disk.inject(Fault { on: OpKind::Write, after: 1, repeat: false, kind: eio });
    disk.write_at(0, &[1; 1024]).unwrap();
    assert!(disk.write_at(0, &[2; 1024]).is_err());
    assert_eq!((byte(&disk, 0), byte(&disk, 512)), (2, 1), "half of a failed write is written");
    disk.write_at(0, &[3; 1024]).unwrap();
    disk.inject(Fault::always(OpKind::Read, eio));
    let mut into = [0; 512];
    assert!(disk.read_at(0, &mut into).is_err() && disk.read_at(0, &mut into).is_err());
    disk.clear_faults();
    disk.read_at(0, &mut into).unwrap();
    assert_eq!(disk.op_counts().writes, 3);
}

#[test]
fn a_short_read_is_short_for_engines_and_whole_for_block_devices() {
    let disk = disk();
    disk.write_at(0, &[9; 4096]).unwrap();
    disk.inject(Fault::always(OpKind::Read, FaultKind::Short));
    let mut into = [0; 4096];
    assert_eq!(disk.read(0, &mut into).unwrap(), 2048);
    disk.clear_faults();
    disk.inject(Fault::next(OpKind::Read, FaultKind::Short));
    disk.read_at(0, &mut into).unwrap();
    assert_eq!(into, [9; 4096]);
}

#[test]
fn misaligned_and_out_of_range_operations_are_refused() {
    let disk = SimDisk::new(64 * KIB, 4096);
    let einval = |e: io::Error| assert_eq!(e.raw_os_error(), Some(libc::EINVAL));
    einval(disk.begin_write(512, &[0; 4096]).unwrap_err());
    einval(disk.read(0, &mut [0; 512]).unwrap_err());
    for result in [
        disk.write_at(63 * KIB, &[0; 2048]),
        disk.read_at(u64::MAX, &mut [0]),
        disk.punch(64 * KIB, 1),
        disk.begin_write(64 * KIB, &[0; 4096]).map(|_| ()),
    ] {
        assert_eq!(result.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}

#[test]
fn punched_data_is_undefined_now_and_old_or_undefined_after_a_crash() {
    let disk = disk();
    disk.write_at(0, &[1; 2048]).unwrap();
    disk.sync().unwrap();
    disk.punch(512, 1024).unwrap();
    assert_eq!([0, 512, 1024, 1536].map(|at| byte(&disk, at)), [1, PUNCHED, PUNCHED, 1]);
    assert_eq!(outcomes(disk.trace(), disk.trace().len(), 512), HashSet::from([1, PUNCHED]));
    disk.sync().unwrap();
    assert_eq!(outcomes(disk.trace(), disk.trace().len(), 512), HashSet::from([PUNCHED]));
}

#[test]
fn disks_of_one_trace_share_one_order_and_replay_equals_live() {
    let trace = SimTrace::new();
    let disks = [trace.add_disk(256 * KIB, 512), trace.add_disk(256 * KIB, 4096)];
    let mut rng = Rng::new(11);
    let mut live = Vec::new();
    for _ in 0..200 {
        let disk = &disks[rng.index(2)];
        match rng.below(8) {
            0 => disk.sync().unwrap(),
            1 => disk.punch(rng.below(32) * 4096, 8192).unwrap(),
            _ => disk.write_at(rng.below(200) * 1024, &[rng.next_u64().to_le_bytes()[0]; 3000]).unwrap(),
        }
        live.push((trace.len(), all_bytes(&trace.crash_now(99))));
    }
    let mut replay = trace.replay();
    for (cut, bytes) in live {
        replay.advance_to(cut);
        assert!(all_bytes(&replay.crash_images(99)) == bytes, "cut {cut}");
        assert!(all_bytes(&trace.crash_images(cut, 99)) == bytes, "cut {cut}");
    }
}

fn all_bytes(disks: &[SimDisk]) -> Vec<Vec<u8>> {
    let read = |disk: &SimDisk| {
        let mut bytes = vec![0; usize::try_from(disk.size()).unwrap()];
        disk.read_at(0, &mut bytes).unwrap();
        bytes
    };
    disks.iter().map(read).collect()
}

#[test]
fn restart_moves_cut_zero_and_poke_is_durable() {
    let disk = disk();
    disk.poke(100, b"hello");
    disk.write_at(512, &[1; 512]).unwrap();
    disk.trace().restart();
    assert!(disk.trace().is_empty());
    let image = &disk.trace().crash_images(0, SEED_OLDEST)[0];
    assert_eq!((byte(image, 100), byte(image, 512)), (b'h', 0));
    assert_eq!(byte(&disk.trace().crash_images(0, SEED_NEWEST)[0], 512), 1);
    assert_eq!(disk.trace().replay().undecided_sectors(), 1);
}

#[test]
fn a_paused_disk_hangs_until_resumed() {
    let disk = disk();
    disk.set_paused(true);
    let other = disk.clone();
    let (tell, told) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        other.write_at(0, &[1; 512]).unwrap();
        tell.send(()).unwrap();
    });
    assert!(told.recv_timeout(std::time::Duration::from_millis(50)).is_err());
    disk.set_paused(false);
    told.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
    thread.join().unwrap();
}
