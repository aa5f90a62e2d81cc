#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod checksums;
mod damage;
mod doubt;
mod history;
mod notes;
mod restored;
mod vms;

use super::*;
use crate::base::ids::{JobId, VhdId};
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use crate::disk::sim::{Fault, FaultKind, OpKind, SimDisk};
use crate::placement::ReplicaSet;
use crate::store::batch::ExtentEdit;
use crate::store::member::tests::{drop_jobs_table, samples};
use crate::store::mirror::{Direct, Members};
use crate::store::overlay::Overlay;
use crate::store::page::PageKey;
use crate::store::region::REGION_LEN_MIN;

const POOL: Uuid = Uuid::from_u128(7);
const PLACE: RegionPlace = RegionPlace { offset: 1 << 20, len: REGION_LEN_MIN };

fn disks(count: usize) -> Vec<SimDisk> {
    (0..count).map(|_| SimDisk::new(PLACE.offset + PLACE.len, 512)).collect()
}

fn places<D: BlockDev + 'static>(disks: impl IntoIterator<Item = (usize, D)>) -> Vec<MemberPlace<D>> {
    let place = |(i, disk): (usize, D)| MemberPlace {
        id: DiskId(i as u8),
        name: format!("d{i}"),
        disk: Arc::new(disk),
        place: PLACE,
    };
    disks.into_iter().map(place).collect()
}

fn some(disks: &[SimDisk], which: &[usize]) -> Vec<MemberPlace<SimDisk>> {
    places(which.iter().map(|&i| (i, disks[i].clone())))
}

fn options(total: usize, accept_stale: bool) -> OpenOptions {
    OpenOptions { pool: POOL, total, accept_stale, tuning: Tuning::default() }
}

fn made(count: usize) -> Vec<SimDisk> {
    let disks = disks(count);
    let all: Vec<usize> = (0..count).collect();
    let store = create(some(&disks, &all), &samples::pool(POOL), 1).unwrap();
    assert_eq!((store.state().stamp, store.members().count()), (Stamp { epoch: 1, commit: 1 }, count));
    disks
}

/// Opens with some disks, raises the epoch, makes a commit per VHD, closes. `lineage` tells openings apart.
fn serve(
    disks: &[SimDisk],
    which: &[usize],
    accept_stale: bool,
    lineage: u64,
    vhds: &[u32],
) -> Result<OpenStoreSummary, OpenError> {
    let mut store = open(some(disks, which), &options(disks.len(), accept_stale))?;
    let found = store.vhds.iter().map(|vhd| vhd.id.0).collect();
    let mended = std::mem::take(&mut store.mended);
    let failed = store.failed.iter().map(|failed| failed.disk.clone()).collect();
    let mut stamp = store.raise(0, lineage)?.stamp;
    let mut members = Direct::new(store.into_members(), if accept_stale { 1 } else { disks.len() });
    for vhd in vhds {
        stamp.commit += 1;
        let steps = vec![Step::Edit(StoreEdit::PutVhd(samples::vhd(*vhd))), Step::Extents(vec![extent(*vhd, 3, 5)])];
        assert!(members.apply(&Arc::new(Batch { stamp, steps })).committed);
    }
    Ok(OpenStoreSummary { found, mended, failed, stamp })
}

#[derive(Debug)]
struct OpenStoreSummary {
    found: Vec<u32>,
    mended: Vec<Mended>,
    failed: Vec<String>,
    stamp: Stamp,
}

fn extent(vhd: u32, extent: u32, slot: u32) -> ExtentEdit {
    let (key, place) = PageKey::of(VhdId(vhd), ExtentIndex(extent));
    ExtentEdit {
        key,
        place,
        freed: None,
        cleared: Vec::new(),
        generation: Generation(2),
        replicas: Some(ReplicaSet::single(DiskId(0), SlotIndex(slot))),
        present: BlockMask(1),
    }
}

#[test]
fn a_store_is_found_again_and_every_opening_raises_the_epoch() {
    for count in 1..=3 {
        let disks = made(count);
        let all: Vec<usize> = (0..count).collect();
        for round in 1..5u32 {
            let opened = serve(&disks, &all, false, u64::from(round), &[round]).unwrap();
            assert_eq!(opened.found, (1..round).collect::<Vec<_>>());
            assert_eq!(opened.stamp, Stamp { epoch: u64::from(round) + 1, commit: 1 });
            assert!(opened.mended.is_empty() && opened.failed.is_empty());
        }
    }
}

#[test]
fn any_disk_of_three_may_be_lost_and_is_brought_up_when_it_returns() {
    for lost in 0..3 {
        let disks = made(3);
        let others: Vec<usize> = (0..3).filter(|&i| i != lost).collect();
        serve(&disks, &[0, 1, 2], false, 1, &[1]).unwrap();
        assert_eq!(serve(&disks, &others, false, 2, &[2, 3]).unwrap().found, [1]);
        // The one that was away never wins.
        let back = serve(&disks, &[0, 1, 2], false, 3, &[]).unwrap();
        assert_eq!(back.found, [1, 2, 3]);
        let [Mended { disk, rebuilt: false, copied }] = &back.mended[..] else { panic!("{back:?}") };
        assert_eq!((disk.clone(), copied.put), (format!("d{lost}"), 2));
        for other in others {
            assert_eq!(serve(&disks, &[lost, other], false, 4, &[]).unwrap().found, [1, 2, 3]);
        }
    }
}

#[test]
fn without_a_majority_it_opens_only_when_told_to() {
    for (count, few) in [(2, vec![1]), (3, vec![2])] {
        let disks = made(count);
        serve(&disks, &(0..count).collect::<Vec<_>>(), false, 1, &[1]).unwrap();
        let error = serve(&disks, &few, false, 2, &[]).unwrap_err();
        assert!(matches!(error, OpenError::NoMajority { usable: 1, .. }));
        assert!(error.to_string().contains("--accept-stale"), "{error}");
        assert_eq!(serve(&disks, &few, true, 2, &[2]).unwrap().found, [1]);
    }
}

#[test]
fn two_histories_of_one_epoch_are_refused() {
    let disks = made(3);
    serve(&disks, &[0], true, 1, &[1]).unwrap();
    serve(&disks, &[1], true, 2, &[2]).unwrap();
    let error = serve(&disks, &[0, 1, 2], false, 3, &[]).unwrap_err();
    assert!(matches!(error, OpenError::Forked { epoch: 2, .. }), "{error}");
    assert_eq!(serve(&disks, &[0, 2], false, 3, &[]).unwrap().found, [1]);
}

#[test]
fn an_epoch_that_no_majority_took_up_does_not_win_over_one_that_was_served() {
    let disks = made(3);
    serve(&disks, &[0, 1, 2], false, 1, &[1]).unwrap();
    // Raised on one member only, several commits ahead of the others before it.
    let mut alone = open(some(&disks, &[0]), &options(3, true)).unwrap();
    alone.raise(0, 77).unwrap();
    drop(alone);
    let served = serve(&disks, &[1, 2], false, 2, &[2]).unwrap();
    assert_eq!(served.stamp.epoch, 3);
    assert_eq!(serve(&disks, &[0, 1], false, 3, &[]).unwrap().found, [1, 2]);
}

#[test]
fn a_destroyed_region_is_made_anew_when_the_others_are_enough() {
    for count in 1..=3 {
        let disks = made(count);
        let all: Vec<usize> = (0..count).collect();
        serve(&disks, &all, false, 1, &[1, 2]).unwrap();
        disks[0].poke(PLACE.offset, &[0; 8192]);
        let opened = serve(&disks, &all, false, 2, &[]);
        if count < 3 {
            let error = opened.unwrap_err();
            assert!(matches!(&error, OpenError::NoMajority { failed, .. } if failed.len() == 1), "{error}");
            assert!(error.to_string().contains("'d0': the metadata region has no header"), "{error}");
            continue;
        }
        let opened = opened.unwrap();
        assert_eq!(opened.found, [1, 2]);
        assert!(matches!(&opened.mended[..], [Mended { disk, rebuilt: true, .. }] if disk == "d0"), "{opened:?}");
        assert_eq!(serve(&disks, &[0, 1], false, 3, &[]).unwrap().found, [1, 2]);
    }
}

#[test]
fn a_disk_that_cannot_be_read_is_left_alone() {
    let disks = made(3);
    serve(&disks, &[0, 1, 2], false, 1, &[1]).unwrap();
    disks[1].inject(Fault::always(OpKind::Read, FaultKind::Error(libc::EIO)));
    let opened = serve(&disks, &[0, 1, 2], false, 2, &[2]).unwrap();
    assert_eq!((opened.failed, opened.mended.len()), (vec!["d1".to_owned()], 0));
    disks[1].clear_faults();
    assert_eq!(serve(&disks, &[1, 2], false, 3, &[]).unwrap().found, [1, 2]);
}

#[test]
fn a_damaged_row_is_read_from_another_member() {
    let slot = 0x00c0_ffee;
    for count in [1, 2] {
        let disks = made(count);
        let all: Vec<usize> = (0..count).collect();
        let mut store = open(some(&disks, &all), &options(count, false)).unwrap();
        let stamp = Stamp { commit: 1, ..store.raise(0, 1).unwrap().stamp };
        let mut members = Direct::new(store.into_members(), count);
        let steps = vec![Step::Extents(vec![extent(1, 3, slot)])];
        assert!(members.apply(&Arc::new(Batch { stamp, steps })).committed);
        drop(members);
        let mut all_bytes = vec![0; PLACE.len as usize];
        disks[0].read_at(PLACE.offset, &mut all_bytes).unwrap();
        for (at, _) in all_bytes.windows(4).enumerate().filter(|(_, w)| *w == slot.to_le_bytes()) {
            disks[0].poke(PLACE.offset + at as u64, &[0]);
        }
        let store = open(some(&disks, &all), &options(count, false)).unwrap();
        let mut seen = Vec::new();
        let loaded = store.load(|key, place, extent| seen.push((key.extent(place), extent.replicas)));
        if count == 1 {
            assert!(matches!(loaded.unwrap_err(), OpenError::Damaged(_)));
        } else {
            loaded.unwrap();
            assert_eq!(seen, [(Some(ExtentIndex(3)), ReplicaSet::single(DiskId(0), SlotIndex(slot)))]);
        }
    }
}

/// Opens all disks, makes one commit, closes. Returns the jobs that were found.
fn edit_jobs(disks: &[SimDisk], which: &[usize], rows: Vec<StoreEdit>) -> (Vec<JobRecord>, Vec<Mended>) {
    let mut store = open(some(disks, which), &options(disks.len(), false)).unwrap();
    let found = (store.jobs.clone(), store.mended.clone());
    let stamp = Stamp { commit: 1, ..store.raise(0, 1).unwrap().stamp };
    let mut members = Direct::new(store.into_members(), disks.len());
    let steps = rows.into_iter().map(Step::Edit).collect();
    assert!(members.apply(&Arc::new(Batch { stamp, steps })).committed);
    found
}

#[test]
fn jobs_are_found_again_and_brought_to_the_disk_that_was_away() {
    let disks = made(3);
    let put = |id: u32| StoreEdit::PutJob(samples::job(id));
    assert_eq!(edit_jobs(&disks, &[0, 1, 2], vec![put(2), put(1)]).0, []);
    assert_eq!(edit_jobs(&disks, &[0, 1], vec![put(3), StoreEdit::DeleteJob(JobId(2))]).0, [1, 2].map(samples::job));
    let (jobs, mended) = edit_jobs(&disks, &[0, 1, 2], Vec::new());
    assert_eq!((jobs, mended.len()), ([1, 3].map(samples::job).to_vec(), 1));
    assert_eq!(edit_jobs(&disks, &[1, 2], Vec::new()).0, [1, 3].map(samples::job));
    // A region that is made anew has them, too.
    disks[0].poke(PLACE.offset, &[0; 8192]);
    assert!(edit_jobs(&disks, &[0, 1, 2], Vec::new()).1[0].rebuilt);
    assert_eq!(edit_jobs(&disks, &[0, 1], Vec::new()).0, [1, 3].map(samples::job));
}

#[test]
fn a_pool_from_before_there_were_jobs_has_none_on_any_member() {
    for old in [vec![0, 1, 2], vec![0], vec![2]] {
        let disks = made(3);
        for (place, member) in open(some(&disks, &[0, 1, 2]), &options(3, false)).unwrap().members() {
            if old.contains(&place.id.index()) {
                drop_jobs_table(member);
            }
        }
        // A table that is missing is no difference: nothing is mended.
        assert_eq!(edit_jobs(&disks, &[0, 1, 2], Vec::new()), (Vec::new(), Vec::new()));
        // Served without the one, then brought up: it does not matter which of them has a table.
        assert_eq!(edit_jobs(&disks, &[0, 1], Vec::new()).0, []);
        assert_eq!(edit_jobs(&disks, &[0, 1, 2], vec![StoreEdit::PutJob(samples::job(1))]).0, []);
        for which in [[0, 1], [1, 2], [0, 2]] {
            assert_eq!(edit_jobs(&disks, &which, Vec::new()).0, [samples::job(1)]);
        }
    }
}

#[test]
fn a_damaged_job_is_reported_as_a_damaged_vhd_is() {
    for (needle, what) in [("bytes_moved", "job record"), ("queues", "VHD record"), ("labels", "VM record")] {
        let disks = made(1);
        let rows = vec![
            StoreEdit::PutJob(samples::job(1)),
            StoreEdit::PutVhd(samples::vhd(1)),
            StoreEdit::PutVm(samples::vm(1)),
        ];
        edit_jobs(&disks, &[0], rows);
        let mut all_bytes = vec![0; PLACE.len as usize];
        disks[0].read_at(PLACE.offset, &mut all_bytes).unwrap();
        let needle = needle.as_bytes();
        for (at, _) in all_bytes.windows(needle.len()).enumerate().filter(|(_, w)| *w == needle) {
            disks[0].poke(PLACE.offset + at as u64, b"#");
        }
        let error = open(some(&disks, &[0]), &options(1, false)).unwrap_err();
        let OpenError::Read { disk, source: MemberError::Damaged(found) } = error else { panic!("{error}") };
        assert_eq!((&disk[..], found), ("d0", what));
    }
}

/// Opened so that hardly anything is kept in memory: reading goes to the disks.
fn opened_cold(disks: &[SimDisk]) -> OpenStore<SimDisk> {
    let options = OpenOptions { tuning: Tuning { cache_bytes: 64 << 10, ..Tuning::default() }, ..options(3, false) };
    let mut store = open(some(disks, &[0, 1, 2]), &options).unwrap();
    store.members.iter_mut().for_each(|(_, member)| member.loaded().unwrap());
    store
}

/// A bad sector on one metadata disk, wherever it is met, does not keep a pool of three from being opened.
#[test]
fn a_member_that_fails_while_it_is_loaded_is_replaced_by_another() {
    let disks = made(3);
    let mut store = open(some(&disks, &[0, 1, 2]), &options(3, false)).unwrap();
    let stamp = Stamp { commit: 1, ..store.raise(0, 1).unwrap().stamp };
    let extents: Vec<u32> = (0..40_000).collect();
    let steps = vec![Step::Extents(extents.iter().map(|&i| extent(1, i, i)).collect())];
    assert!(Direct::new(store.into_members(), 3).apply(&Arc::new(Batch { stamp, steps })).committed);
    let store = opened_cold(&disks);
    let before = disks[0].op_counts().reads;
    store.load(|_, _, _| ()).unwrap();
    let reads = disks[0].op_counts().reads - before;
    assert!(reads > 16);
    drop(store);
    for after in (0..reads).step_by(7) {
        let store = opened_cold(&disks);
        disks[0].inject(Fault { on: OpKind::Read, after, repeat: true, kind: FaultKind::Error(libc::EIO) });
        let mut loaded = Vec::new();
        store.load(|key, place, _| loaded.extend(key.extent(place).map(|extent| extent.0))).unwrap();
        assert!(loaded == extents, "after {after} reads: {} extents", loaded.len());
        drop(store);
        disks[0].clear_faults();
    }
    let store = opened_cold(&disks);
    disks.iter().for_each(|disk| disk.inject(Fault::always(OpKind::Read, FaultKind::Error(libc::EIO))));
    assert!(matches!(store.load(|_, _, _| ()).unwrap_err(), OpenError::Read { .. }));
}

#[test]
fn records_are_read_from_an_equal_member() {
    let disks = made(3);
    let vhds: Vec<u32> = (1..500).collect();
    serve(&disks, &[0, 1, 2], false, 1, &vhds).unwrap();
    let mut members = opened_cold(&disks).members;
    let mut failed = Vec::new();
    let first = members[0].0.id;
    disks[usize::from(first.0)].inject(Fault::always(OpKind::Read, FaultKind::Error(libc::EIO)));
    let Records { vhds: found, .. } = read_records(&mut members, &mut failed, 3).unwrap();
    assert_eq!(found.iter().map(|vhd| vhd.id.0).collect::<Vec<_>>(), vhds);
    assert_eq!((members.len(), failed.len(), failed[0].0.id), (2, 1, first));
}

#[test]
fn looking_through_an_overlay_changes_no_disk() {
    let disks = made(3);
    serve(&disks, &[0, 1], false, 1, &[1]).unwrap();
    let before: Vec<_> = disks.iter().map(SimDisk::op_counts).map(|counts| (counts.writes, counts.syncs)).collect();
    let overlays = disks.iter().map(|disk| Overlay::new(Arc::new(disk.clone())));
    let mut store = open(places(overlays.enumerate()), &options(3, false)).unwrap();
    store.raise(0, 9).unwrap();
    assert_eq!((store.vhds.len(), store.mended.len()), (1, 1));
    let after: Vec<_> = disks.iter().map(SimDisk::op_counts).map(|counts| (counts.writes, counts.syncs)).collect();
    assert_eq!(before, after);
}

#[test]
fn another_pool_is_refused() {
    let disks = made(1);
    let other = OpenOptions { pool: Uuid::from_u128(8), ..options(1, false) };
    let error = open(some(&disks, &[0]), &other).unwrap_err();
    assert!(error.to_string().contains("belongs to pool"), "{error}");
}
