//! The two copies of a label on a disk: which one counts, what mends the other, and what a crash leaves.

use super::*;
use crate::disk::BlockDev;
use crate::disk::geometry::{LABEL_A_OFFSET, label_b_offset};
use crate::disk::label::copies::{self, CopyProblem, ReadError, WriteError};
use crate::disk::sim::{Fault, FaultKind, OpKind, SEED_NEWEST, SEED_OLDEST, SimDisk};

fn labelled() -> (SimDisk, Label) {
    let disk = SimDisk::new(DISK_SIZE, 512);
    let mut label = sample();
    copies::write(&disk, &mut label).unwrap();
    (disk, label)
}

fn spoil(disk: &SimDisk, copy: CopyId) {
    let at = if copy == CopyId::A { LABEL_A_OFFSET } else { label_b_offset(DISK_SIZE) };
    disk.poke(at + 100, &[0x55]);
}

#[test]
fn a_damaged_copy_is_mended_from_the_other() {
    for damaged in [CopyId::A, CopyId::B] {
        let (disk, label) = labelled();
        spoil(&disk, damaged);
        let mut read = copies::read(&disk).unwrap();
        assert_eq!((&read.label, read.from), (&label, damaged.other()));
        assert!(matches!(read.damage, Some(CopyProblem::Content(LabelError::Corrupt))));
        assert_eq!(copies::mend(&disk, &mut read).unwrap(), Some(damaged));
        let mut read = copies::read(&disk).unwrap();
        assert!(read.damage.is_none() && read.label == label);
        assert_eq!(copies::mend(&disk, &mut read).unwrap(), None);
    }
}

#[test]
fn a_copy_that_cannot_be_read_is_no_obstacle() {
    let (disk, label) = labelled();
    disk.inject(Fault::next(OpKind::Read, FaultKind::Error(libc::EIO)));
    let read = copies::read(&disk).unwrap();
    assert_eq!(read.label, label);
    assert!(matches!(read.damage, Some(CopyProblem::Io(_))));
}

#[test]
fn two_damaged_copies_no_label_and_contradicting_copies_differ() {
    let (disk, _) = labelled();
    spoil(&disk, CopyId::A);
    spoil(&disk, CopyId::B);
    let error = copies::read(&disk).unwrap_err();
    assert!(matches!(error, ReadError::BothDamaged { .. }) && error.to_string().contains("disk wipe --yes"), "{error}");
    assert!(matches!(copies::read(&SimDisk::new(DISK_SIZE, 512)), Err(ReadError::Absent)));
    assert!(matches!(copies::read(&SimDisk::new(8192, 512)), Err(ReadError::Absent)));

    let (disk, mut label) = labelled();
    label.pool = Uuid::from_u128(99);
    disk.poke(LABEL_A_OFFSET, &encode(&label, CopyId::A));
    assert!(matches!(copies::read(&disk), Err(ReadError::Contradiction { .. })));
}

/// What other software has been given a disk for may leave one copy alone: LVM and LUKS2 write where copy A is and not at the end.
#[test]
fn a_copy_that_somebody_has_written_over_is_not_mended() {
    let signatures: [&[u8]; 3] = [b"LVM2 x[5A%r0N*>", b"{\"keyslots\":{\"0\":{\"type\":\"luks2\"", &[0xe5; 4096]];
    for copy in [CopyId::A, CopyId::B] {
        for foreign in signatures {
            let (disk, label) = labelled();
            let at = if copy == CopyId::A { LABEL_A_OFFSET } else { label_b_offset(DISK_SIZE) };
            disk.poke(at, &[0; 4096]);
            disk.poke(at, foreign);
            let error = copies::read(&disk).unwrap_err();
            assert!(matches!(error, ReadError::Overwritten { copy: over, .. } if over == copy), "{error}");
            assert!(
                error.to_string().contains(&label.name) && error.to_string().contains("disk wipe --yes"),
                "{error}"
            );
            copies::wipe(&disk).unwrap();
            assert!(matches!(copies::read(&disk), Err(ReadError::Absent)));
        }
        // Zeros are nobody's, and neither is a label of which only the mark is damaged.
        for damage in [&[0; 4096][..], &[0x55]] {
            let (disk, label) = labelled();
            disk.poke(if copy == CopyId::A { LABEL_A_OFFSET } else { label_b_offset(DISK_SIZE) }, damage);
            let mut read = copies::read(&disk).unwrap();
            assert_eq!(copies::mend(&disk, &mut read).unwrap(), Some(copy));
            assert_eq!(copies::read(&disk).unwrap().label, label);
        }
    }
    // Nothing that was ever ours.
    let disk = SimDisk::new(DISK_SIZE, 512);
    disk.poke(LABEL_A_OFFSET, &[0xe5; 4096]);
    assert!(matches!(copies::read(&disk), Err(ReadError::Absent)));
}

#[test]
fn copies_in_each_others_places_are_not_taken() {
    let (disk, label) = labelled();
    disk.poke(LABEL_A_OFFSET, &encode(&label, CopyId::B));
    let read = copies::read(&disk).unwrap();
    assert!(read.from == CopyId::B && read.damage.is_some());
}

#[test]
fn a_newer_copy_beside_a_known_one_is_not_overlooked() {
    let (disk, label) = labelled();
    let mut newer = encode(&label, CopyId::A);
    newer[12] = 2;
    reseal(&mut newer);
    disk.poke(LABEL_A_OFFSET, &newer);
    assert!(matches!(copies::read(&disk), Err(ReadError::Format(LabelError::NewerVersion { found: 2 }))));
}

#[test]
fn a_disk_that_changed_its_size_is_found_or_refused() {
    let (disk, label) = labelled();
    let image = |size: u64| {
        let other = SimDisk::new(size, 512);
        let mut bytes = vec![0; usize::try_from(size.min(DISK_SIZE)).unwrap()];
        disk.read_at(0, &mut bytes).unwrap();
        other.poke(0, &bytes);
        other
    };
    let read = copies::read(&image(DISK_SIZE + MIB)).unwrap();
    assert!(read.label == label && read.damage.is_none());
    assert!(matches!(copies::read(&image(DISK_SIZE - 512)), Err(ReadError::Shrunk { .. })));
    // Of a grown disk all copies are wiped.
    let grown = image(DISK_SIZE + MIB);
    copies::wipe(&grown).unwrap();
    let mut bytes = vec![0; usize::try_from(grown.size()).unwrap()];
    grown.read_at(0, &mut bytes).unwrap();
    assert!(bytes.iter().all(|&b| b == 0));
}

#[test]
fn larger_blocks_than_before_are_refused() {
    let mut label = sample();
    label.block_size = 512;
    let disk = SimDisk::new(DISK_SIZE, 4096);
    copies::write(&disk, &mut label).unwrap();
    assert!(matches!(copies::read(&disk), Err(ReadError::BlockSize { expected: 512, actual: 4096 })));
}

#[test]
fn unknown_ro_compat_is_read_and_never_written() {
    let disk = SimDisk::new(DISK_SIZE, 512);
    let mut label = sample();
    label.ro_compat = 2;
    disk.poke(LABEL_A_OFFSET, &encode(&label, CopyId::A));
    let mut read = copies::read(&disk).unwrap();
    assert!(matches!(copies::mend(&disk, &mut read), Err(WriteError::ReadOnlyFeatures { flags: 2 })));
    assert!(matches!(copies::write(&disk, &mut read.label), Err(WriteError::ReadOnlyFeatures { flags: 2 })));
    assert_eq!(disk.op_counts().writes, 0);
}

/// A change in several sectors, so that it can tear.
fn set(label: &mut Label, accept: Accept) {
    label.accept = accept;
    label.membership.roster.push(entry(u8::try_from(label.membership.roster.len()).unwrap(), "another"));
    label.membership.roster.rotate_left(1);
}

/// Runs `work` on a disk with label `old`, and checks that after every cut the disk has a label that `legal` accepts.
fn crash_at_every_cut(prepare: impl Fn(&SimDisk), work: impl Fn(&SimDisk, &mut Label), legal: impl Fn(&Label) -> bool) {
    let (disk, mut label) = labelled();
    prepare(&disk);
    disk.trace().restart();
    work(&disk, &mut label);
    let mut replay = disk.trace().replay();
    let mut mended = 0;
    for cut in 0..=replay.len() {
        replay.advance_to(cut);
        for seed in [SEED_OLDEST, SEED_NEWEST].into_iter().chain(100..124) {
            let image = &replay.crash_images(seed)[0];
            let mut read = copies::read(image).unwrap_or_else(|e| panic!("cut {cut} seed {seed}: {e}"));
            assert!(legal(&read.label), "cut {cut} seed {seed}: {:?}", read.label);
            if copies::mend(image, &mut read).unwrap().is_some() {
                mended += 1;
            }
            assert!(copies::read(image).unwrap().damage.is_none());
        }
    }
    assert!(mended > 0, "no cut left anything to mend: the test tests nothing");
}

#[test]
fn a_crash_during_an_update_leaves_the_old_or_the_new_label() {
    let is_either = |label: &Label| matches!(label.accept, Accept::Isolated | Accept::None);
    let update = |disk: &SimDisk, label: &mut Label| {
        set(label, Accept::None);
        copies::write(disk, label).unwrap();
    };
    crash_at_every_cut(|_| {}, update, is_either);
    // Also when one copy was damaged and not mended before.
    crash_at_every_cut(|disk| spoil(disk, CopyId::A), update, is_either);
    crash_at_every_cut(|disk| spoil(disk, CopyId::B), update, is_either);
}

#[test]
fn a_crash_after_a_failed_update_leaves_a_label() {
    for failing in 0..8 {
        let update = |disk: &SimDisk, label: &mut Label| {
            let on = if failing % 2 == 0 { OpKind::Write } else { OpKind::Sync };
            disk.inject(Fault { on, after: failing / 2, repeat: false, kind: FaultKind::Error(libc::EIO) });
            set(label, Accept::Spanned);
            assert!(matches!(copies::write(disk, label), Err(WriteError::Io { .. })));
            set(label, Accept::None);
            copies::write(disk, label).unwrap();
        };
        crash_at_every_cut(|_| {}, update, |label| label.accept != Accept::Any);
    }
}

#[test]
fn an_acknowledged_update_is_never_lost() {
    let (disk, mut label) = labelled();
    label.accept = Accept::None;
    copies::write(&disk, &mut label).unwrap();
    for seed in 0..50 {
        let read = copies::read(&disk.trace().crash_now(seed)[0]).unwrap();
        assert!(read.label == label && read.damage.is_none());
    }
}

/// The order matters: the crash test above finds out when both copies are written before one is synced.
#[test]
fn without_the_sync_between_the_copies_a_crash_loses_the_label() {
    let (disk, mut label) = labelled();
    // The first two make what is there durable; the third one stands between the copies.
    disk.inject(Fault { on: OpKind::Sync, after: 2, repeat: false, kind: FaultKind::Lie });
    set(&mut label, Accept::None);
    disk.trace().restart();
    copies::write(&disk, &mut label).unwrap();
    let trace = disk.trace();
    let lost = |cut: usize| (0..60).any(|seed| copies::read(&trace.crash_images(cut, seed)[0]).is_err());
    assert!((0..=trace.len()).any(lost));
}
