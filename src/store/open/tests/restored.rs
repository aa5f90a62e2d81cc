//! Stores that are made of a dump.

use super::doubt::{intents, on_disks};
use super::restore::{Restored, restore};
use super::*;
use crate::disk::sim::SimTrace;
use crate::store::dump::{RestoreError, dump};

const PAGES: u32 = 1100;

/// A dump that takes several commits.
fn text() -> String {
    let disks = made(1);
    let mut store = open(some(&disks, &[0]), &options(1, false)).unwrap();
    let stamp = Stamp { commit: 1, ..store.raise(0, 1).unwrap().stamp };
    let mut edits: Vec<ExtentEdit> =
        (0..PAGES).map(|page| on_disks(1, page * 64, if page < 300 { 2 } else { 1 })).collect();
    edits.push(on_disks(2, 7, 1));
    let steps = vec![
        Step::Edit(StoreEdit::PutVhd(samples::vhd(1))),
        Step::Edit(StoreEdit::PutVhd(samples::vhd(2))),
        Step::Extents(edits),
        // A dump may have intents of its own.
        Step::Edit(StoreEdit::Intend { vhd: VhdId(2), pages: vec![0], intend: true }),
    ];
    let mut members = store.into_members();
    members[0].1.apply(&Batch { stamp, steps }).unwrap();
    dump(&members[0].1).unwrap()
}

fn put_back(disks: &[SimDisk], which: &[usize], text: &str) -> Result<Restored<SimDisk>, RestoreError> {
    restore(some(disks, which), text)
}

/// All of the dump is there, and nothing that could be wrong by now is believed.
fn assert_restored(store: &OpenStore<SimDisk>) {
    let mut extents = 0;
    store.load(|_, _, _| extents += 1).unwrap();
    assert_eq!((extents, store.vhds.len()), (PAGES + 1, 2));
    assert_eq!(intents(store), (0..300).map(|page| (1, page)).chain([(2, 0)]).collect::<Vec<_>>());
}

#[test]
fn a_restored_store_has_the_dump_and_its_replicas_are_in_doubt() {
    let (text, disks) = (text(), disks(3));
    let store = put_back(&disks, &[0, 1, 2], &text).unwrap().finish(58, 4).unwrap();
    assert_eq!(store.state(), MemberState { stamp: Stamp { epoch: 58, commit: 0 }, lineage: 4 });
    assert_restored(&store);
    drop(store);
    assert_restored(&open(some(&disks, &[1, 2]), &options(3, false)).unwrap());
}

/// The power goes at any time, from when the last old table is gone.
#[test]
fn a_restore_that_is_cut_off_does_not_open() {
    let text = text();
    let trace = SimTrace::new();
    let disks: Vec<SimDisk> = (0..2).map(|_| trace.add_disk(PLACE.offset + PLACE.len, 512)).collect();
    let restored = put_back(&disks, &[0, 1], &text).unwrap();
    let complete = trace.len();
    drop(restored.finish(58, 4).unwrap());
    let mut replay = trace.replay();
    let (mut unfinished, mut whole) = (0, 0);
    let step = (complete / 60).max(1);
    for cut in (0..complete).step_by(step).chain(complete..=trace.len()) {
        replay.advance_to(cut);
        let found = replay.crash_images(cut as u64);
        match open(some(&found, &[0, 1]), &options(2, false)) {
            Ok(store) => {
                assert!(cut > complete, "it is opened at {cut} of {complete}");
                assert_restored(&store);
                whole += 1;
            }
            Err(error) => {
                assert!(matches!(error, OpenError::NoMajority { .. }), "{error}");
                unfinished += usize::from(error.to_string().contains("until 'spanblk metadata restore' has succeeded"));
            }
        }
    }
    assert!(unfinished > 20 && whole > 0, "{unfinished} {whole}");
}

#[test]
fn a_disk_that_fails_fails_the_restore_and_nothing_opens() {
    let text = text();
    let good = disks(3);
    let before = good[1].op_counts().syncs;
    drop(put_back(&good, &[0, 1, 2], &text).unwrap());
    let syncs = good[1].op_counts().syncs - before;
    assert!(syncs > 10);
    for after in (0..syncs).step_by(3) {
        let disks = made(3);
        disks[1].inject(Fault { on: OpKind::Sync, after, repeat: true, kind: FaultKind::Error(libc::EIO) });
        put_back(&disks, &[0, 1, 2], &text).unwrap_err();
        disks[1].clear_faults();
        let error = open(some(&disks, &[0, 1, 2]), &options(3, false)).unwrap_err();
        assert!(matches!(error, OpenError::NoMajority { .. }), "{error}");
        // It can be done again.
        assert_restored(&put_back(&disks, &[0, 1, 2], &text).unwrap().finish(0, 4).unwrap());
    }
}

#[test]
fn a_member_that_was_away_does_not_win_over_a_restored_table() {
    let (text, disks) = (text(), made(3));
    for round in 1..9 {
        serve(&disks, &[0, 1, 2], false, u64::from(round), &[round, 20 + round]).unwrap();
    }
    // Labels that nobody can read would say less: what was readable counts, too.
    for label in [1, 57] {
        let store = put_back(&disks, &[0, 1], &text).unwrap().finish(label, 4).unwrap();
        assert!(store.state().stamp.epoch >= 10.max(label));
        drop(store);
        for which in [&[0, 2][..], &[1, 2], &[0, 1, 2]] {
            let images: Vec<SimDisk> = disks.iter().map(copy_of).collect();
            assert_restored(&open(some(&images, which), &options(3, false)).unwrap());
        }
    }
}

/// The same bytes on another disk.
fn copy_of(disk: &SimDisk) -> SimDisk {
    let mut bytes = vec![0; PLACE.len as usize];
    disk.read_at(PLACE.offset, &mut bytes).unwrap();
    let copy = SimDisk::new(PLACE.offset + PLACE.len, 512);
    copy.poke(PLACE.offset, &bytes);
    copy
}
