#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

pub(in crate::store) mod samples;

use std::collections::BTreeMap;

use super::write::placed;
use super::*;
use crate::base::ids::{DiskId, JobId, VhdId};
use crate::base::rng::Rng;
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use crate::disk::sim::{Fault, FaultKind, OpKind, SEED_OLDEST, SimDisk};
use crate::placement::ReplicaSet;
use crate::placement::job::JobState;
use crate::store::batch::{ExtentEdit, Step};
use crate::store::edit::StoreEdit;
use crate::store::page::{ExtentRow, Stamp};
use crate::store::region::REGION_LEN_MIN;

const POOL: Uuid = Uuid::from_u128(7);
const PLACE: RegionPlace = RegionPlace { offset: 1 << 20, len: REGION_LEN_MIN };

fn disk() -> SimDisk {
    SimDisk::new(PLACE.offset + PLACE.len, 512)
}

fn create(disk: &SimDisk) -> Member<SimDisk> {
    let mut member = Member::create(Arc::new(disk.clone()), PLACE, POOL, Tuning::default()).unwrap();
    member.raise(MemberState { stamp: Stamp { epoch: 1, commit: 0 }, lineage: 9 }).unwrap();
    member
}

fn open(disk: &SimDisk) -> Result<Member<SimDisk>, MemberError> {
    Member::open(Arc::new(disk.clone()), PLACE, POOL, Tuning::default())
}

fn edit(vhd: u32, extent: u32, generation: u32, slot: Option<u32>) -> ExtentEdit {
    let (key, place) = PageKey::of(VhdId(vhd), ExtentIndex(extent));
    ExtentEdit {
        freed: slot.is_none().then_some(Generation(generation)),
        replicas: slot.map(|slot| ReplicaSet::single(DiskId(0), SlotIndex(slot))),
        present: BlockMask(if slot.is_some() { 0xff } else { 0 }),
        ..placed(key, place, Generation(generation), ReplicaSet::ABSENT)
    }
}

fn batch(commit: u64, mut edits: Vec<ExtentEdit>) -> Batch {
    edits.sort_by_key(|edit| (edit.key, edit.place));
    Batch { stamp: Stamp { epoch: 1, commit }, steps: vec![Step::Extents(edits)] }
}

fn table(member: &Member<SimDisk>) -> BTreeMap<(u32, u32), ExtentRow> {
    let mut table = BTreeMap::new();
    let show = |key: PageKey, place, extent: &ExtentRow| {
        table.insert((key.vhd.0, key.extent(place).unwrap().0), *extent);
    };
    member.for_each_extent(show).unwrap();
    table
}

#[test]
fn what_is_applied_is_there_after_a_power_cut_with_its_stamp() {
    let disk = disk();
    let mut member = create(&disk);
    let mut model = BTreeMap::new();
    let mut rng = Rng::new(3);
    for commit in 1..40 {
        let mut edits = BTreeMap::new();
        for _ in 0..rng.below(30) {
            let (vhd, extent) = (rng.below(3) as u32, rng.below(500) as u32);
            let slot = rng.chance(4, 5).then(|| rng.below(1000) as u32);
            edits.insert((vhd, extent), edit(vhd, extent, commit as u32 * 2, slot));
        }
        for (key, edit) in &edits {
            let row: &mut ExtentRow = model.entry(*key).or_default();
            edit.apply(row);
        }
        member.apply(&batch(commit, edits.into_values().collect())).unwrap();
        if commit % 10 == 0 {
            let crashed = &disk.trace().crash_now(SEED_OLDEST)[0];
            let reopened = open(crashed).unwrap();
            assert_eq!(reopened.state(), MemberState { stamp: Stamp { epoch: 1, commit }, lineage: 9 });
            assert_eq!(table(&reopened), model);
        }
    }
}

#[test]
fn a_row_carries_the_stamp_of_the_commit_that_changed_it() {
    let mut member = create(&disk());
    member.apply(&batch(1, vec![edit(1, 0, 2, Some(5)), edit(1, 64, 2, Some(6))])).unwrap();
    member.apply(&batch(2, vec![edit(1, 64, 4, None)])).unwrap();
    // Changes nothing: too late.
    member.apply(&batch(3, vec![edit(1, 64, 2, Some(9))])).unwrap();
    let mut stamps = Vec::new();
    member
        .for_each_row(|key, bytes| {
            stamps.push((key.page, crate::store::page::stamp_of(bytes).unwrap().commit));
            Ok(())
        })
        .unwrap();
    assert_eq!(stamps, [(0, 1), (1, 2)]);
    assert_eq!(member.state().stamp.commit, 3);
}

/// One that is behind applies many batches at once: no row may tell that.
#[test]
fn batches_applied_together_leave_the_same_rows_and_stamps_as_one_after_the_other() {
    for seed in 0..20 {
        let mut rng = Rng::new(seed);
        let [mut one_by_one, mut together] = [disk(), disk()].each_ref().map(create);
        let mut waiting = Vec::new();
        for commit in 1..30 {
            let mut edits = BTreeMap::new();
            for _ in 0..rng.below(20) {
                let (vhd, extent) = (rng.below(3) as u32, rng.below(300) as u32);
                let slot = rng.chance(4, 5).then(|| rng.below(1000) as u32);
                // Some come too late, and are void.
                let generation = (commit as u32).saturating_sub(rng.below(3) as u32).max(1) * 2;
                edits.insert((vhd, extent), edit(vhd, extent, generation, slot));
            }
            let mut batch = batch(commit, edits.into_values().collect());
            batch.steps.push(Step::Edit(match rng.below(4) {
                0 => StoreEdit::DeleteVhd(VhdId(rng.below(3) as u32)),
                1 => StoreEdit::PutVhd(samples::vhd(rng.below(3) as u32)),
                2 => StoreEdit::PutJob(samples::job(rng.below(3) as u32)),
                _ => StoreEdit::DeleteJob(JobId(rng.below(3) as u32)),
            }));
            one_by_one.apply(&batch).unwrap();
            waiting.push(batch);
            if rng.chance(1, 6) {
                together.apply_all(&std::mem::take(&mut waiting)).unwrap();
                assert_eq!(rows(&one_by_one), rows(&together), "seed {seed}, commit {commit}");
                assert_eq!(one_by_one.state(), together.state(), "seed {seed}");
                assert_eq!(one_by_one.vhds().unwrap(), together.vhds().unwrap(), "seed {seed}");
                assert_eq!(one_by_one.jobs().unwrap(), together.jobs().unwrap(), "seed {seed}");
            }
        }
    }
}

#[test]
fn records_come_back_and_a_deleted_vhd_leaves_nothing() {
    let disk = disk();
    let mut member = create(&disk);
    assert!(matches!(member.pool().unwrap_err(), MemberError::Missing(_)));
    let (pool, first, second) = (samples::pool(POOL), samples::vhd(1), samples::vhd(2));
    let place = StoreEdit::Place {
        vhd: VhdId(2),
        first: ExtentIndex(60),
        generation: Generation(2),
        replicas: (0..10).map(|slot| ReplicaSet::single(DiskId(1), SlotIndex(slot))).collect(),
    };
    let edits =
        [StoreEdit::PutPool(pool.clone()), StoreEdit::PutVhd(first.clone()), StoreEdit::PutVhd(second.clone()), place];
    let mut steps: Vec<Step> = edits.into_iter().map(Step::Edit).collect();
    steps.push(Step::Extents(vec![edit(1, 7, 2, Some(3))]));
    member.apply(&Batch { stamp: Stamp { epoch: 1, commit: 1 }, steps }).unwrap();
    drop(member);
    let mut member = open(&disk).unwrap();
    assert_eq!(member.pool().unwrap(), pool);
    assert_eq!(member.vhds().unwrap(), [first.clone(), second]);
    let placed: Vec<u32> = table(&member).into_keys().filter(|key| key.0 == 2).map(|key| key.1).collect();
    assert_eq!(placed, (60..70).collect::<Vec<u32>>());
    let steps = vec![Step::Edit(StoreEdit::DeleteVhd(VhdId(2)))];
    member.apply(&Batch { stamp: Stamp { epoch: 1, commit: 2 }, steps }).unwrap();
    assert_eq!(member.vhds().unwrap(), [first]);
    assert_eq!(table(&member).into_keys().collect::<Vec<_>>(), [(1, 7)]);
}

#[test]
fn nothing_is_left_beyond_the_new_end() {
    let disk = disk();
    let mut member = create(&disk);
    let extents = [3, 60, 63, 64, 70, 200].map(|extent| edit(1, extent, 2, Some(extent)));
    member
        .apply(&Batch { stamp: Stamp { epoch: 1, commit: 1 }, steps: vec![Step::Extents(extents.to_vec())] })
        .unwrap();
    let before = table(&member);
    let present = before[&(1, 60)].present;
    let shrink = |extents, last| StoreEdit::Shrink { vhd: VhdId(1), extents, last };
    member.apply(&edits(2, vec![shrink(64, BlockMask::ALL)])).unwrap();
    assert_eq!(table(&member).into_keys().map(|key| key.1).collect::<Vec<_>>(), [3, 60, 63]);
    member.apply(&edits(3, vec![shrink(61, BlockMask::ALL.without(present))])).unwrap();
    drop(member);
    let member = open(&disk).unwrap();
    let left = table(&member);
    assert_eq!(left.keys().map(|key| key.1).collect::<Vec<_>>(), [3, 60]);
    assert_eq!(left[&(1, 3)], before[&(1, 3)]);
    let cut = left[&(1, 60)];
    assert!(cut.present.is_empty() && cut.replicas == before[&(1, 60)].replicas, "its slot stays");
}

fn edits(commit: u64, edits: Vec<StoreEdit>) -> Batch {
    Batch { stamp: Stamp { epoch: 1, commit }, steps: edits.into_iter().map(Step::Edit).collect() }
}

/// As a member that was made before there were jobs.
pub(in crate::store) fn drop_jobs_table(member: &Member<SimDisk>) {
    let dropped = member.transact(|txn| txn.delete_table(JOBS).map_err(db_error)).unwrap();
    assert!(dropped && table_if_any(&member.db.begin_read().unwrap(), JOBS).unwrap().is_none());
}

#[test]
fn jobs_are_put_replaced_and_deleted() {
    let disk = disk();
    let mut member = create(&disk);
    assert_eq!(member.jobs().unwrap(), []);
    let put = |job: &JobRecord| StoreEdit::PutJob(job.clone());
    let jobs = [3, 1, 2].map(samples::job);
    member.apply(&edits(1, jobs.iter().map(put).collect())).unwrap();
    drop(member);
    let mut member = open(&disk).unwrap();
    assert_eq!(member.jobs().unwrap(), [1, 2, 3].map(samples::job));
    let paused = JobRecord { state: JobState::Paused, bytes_moved: 99, ..samples::job(2) };
    let rows = vec![put(&paused), StoreEdit::DeleteJob(JobId(1)), StoreEdit::DeleteJob(JobId(7))];
    member.apply(&edits(2, rows)).unwrap();
    // Jobs and VHDs have numbers of their own, and a job outlives its VHD.
    member.apply(&edits(3, vec![StoreEdit::DeleteVhd(VhdId(3))])).unwrap();
    drop(member);
    assert_eq!(open(&disk).unwrap().jobs().unwrap(), [paused, samples::job(3)]);
}

#[test]
fn a_member_from_before_there_were_jobs_has_none() {
    let (old, new) = (disk(), disk());
    let mut member = create(&old);
    drop_jobs_table(&member);
    assert_eq!(member.jobs().unwrap(), []);
    // As the source of another, and as the one that is brought up.
    let mut other = create(&new);
    other.apply(&edits(1, vec![StoreEdit::PutJob(samples::job(1))])).unwrap();
    other.copy_from(&member.snapshot().unwrap()).unwrap();
    assert_eq!(other.jobs().unwrap(), []);
    other.apply(&edits(1, vec![StoreEdit::PutJob(samples::job(2))])).unwrap();
    member.copy_from(&other.snapshot().unwrap()).unwrap();
    assert_eq!(member.jobs().unwrap(), [samples::job(2)]);
    for edit in [StoreEdit::DeleteJob(JobId(1)), StoreEdit::PutJob(samples::job(1))] {
        let disk = disk();
        let mut member = create(&disk);
        drop_jobs_table(&member);
        let put = matches!(edit, StoreEdit::PutJob(_));
        member.apply(&edits(1, vec![edit])).unwrap();
        drop(member);
        assert_eq!(open(&disk).unwrap().jobs().unwrap().len(), usize::from(put));
    }
}

#[test]
fn an_edit_of_a_job_counts_rows_by_its_list_of_vhds() {
    let with = |vhds: u32| StoreEdit::PutJob(JobRecord { vhds: (0..vhds).map(VhdId).collect(), ..samples::job(1) });
    assert_eq!([0, 1, 1000].map(|vhds| with(vhds).rows()), [1, 1, 16]);
    assert_eq!(StoreEdit::DeleteJob(JobId(1)).rows(), 1);
}

#[test]
fn a_full_region_is_used_to_the_end_and_then_refuses() {
    let disk = disk();
    let mut member = create(&disk);
    let mut low_at = None;
    let mut commit = 0;
    let refused = loop {
        commit += 1;
        let first = commit as u32 * 2000;
        let before = member.fill();
        if before.is_low() && low_at.is_none() {
            low_at = Some(commit);
        }
        let edits = (first..first + 2000).map(|extent| edit(1, extent * 3, 2, Some(extent))).collect();
        if let Err(error) = member.apply(&batch(commit, edits)) {
            break error;
        }
        assert!(commit < 100_000);
    };
    assert!(matches!(refused, MemberError::Database(_)));
    // The database has grown past the half of the region, which is where doubling stops.
    assert_eq!(member.region.length(), member.region.capacity());
    let low_at = low_at.expect("the low-water mark comes before the end");
    assert!(commit - low_at > commit / 20, "low at {low_at}, full at {commit}");
    drop(member);
    let reopened = open(&disk).unwrap();
    assert_eq!(reopened.state().stamp.commit, commit - 1);
    assert_eq!(table(&reopened).len(), 2000 * (commit as usize - 1));
}

#[test]
fn any_other_member_is_brought_up_to_the_same_bytes() {
    for seed in 0..12 {
        let mut rng = Rng::new(seed);
        let disks = [disk(), disk()];
        let mut members = disks.each_ref().map(create);
        for commit in 1..12 {
            let apart = seed % 3 > 0 && commit > 6;
            let common: Vec<ExtentEdit> =
                (0..rng.below(20)).map(|i| edit(1, i as u32 * 70, commit as u32 * 2, Some(1))).collect();
            for (i, member) in members.iter_mut().enumerate() {
                let mut edits = common.clone();
                if apart {
                    edits.extend(
                        (0..=rng.below(9)).map(|j| edit(2 + i as u32, j as u32 * 70, commit as u32 * 2, Some(2))),
                    );
                }
                member.apply(&batch(commit, edits)).unwrap();
            }
        }
        let [right, stale] = &mut members;
        stale.apply(&edits(12, vec![StoreEdit::PutJob(samples::job(1)), StoreEdit::PutJob(samples::job(2))])).unwrap();
        let paused = JobRecord { state: JobState::Paused, ..samples::job(2) };
        let last =
            [StoreEdit::PutPool(samples::pool(POOL)), StoreEdit::PutVhd(samples::vhd(1)), StoreEdit::PutJob(paused)];
        right.apply(&edits(12, last.to_vec())).unwrap();
        let copied = stale.copy_from(&right.snapshot().unwrap()).unwrap();
        assert_eq!(copied == Copied::default(), seed % 3 == 0, "seed {seed}: {copied:?}");
        assert_eq!(rows(right), rows(stale), "seed {seed}");
        drop(members);
        let [right, stale] = disks.each_ref().map(|disk| open(disk).unwrap());
        assert_eq!((right.state(), rows(&right)), (stale.state(), rows(&stale)));
        assert_eq!((right.pool().unwrap(), right.vhds().unwrap()), (stale.pool().unwrap(), stale.vhds().unwrap()));
        assert_eq!((right.jobs().unwrap().len(), right.jobs().unwrap()), (1, stale.jobs().unwrap()));
    }
}

fn rows(member: &Member<SimDisk>) -> Vec<(PageKey, Vec<u8>)> {
    let mut rows = Vec::new();
    member
        .for_each_row(|key, bytes| {
            rows.push((key, bytes.to_vec()));
            Ok(())
        })
        .unwrap();
    rows
}

#[test]
fn closing_writes_nothing() {
    let disk = disk();
    let mut member = create(&disk);
    member.apply(&batch(1, vec![edit(1, 0, 2, Some(5))])).unwrap();
    let before = disk.op_counts();
    drop(member);
    assert_eq!(disk.op_counts(), before);
}

#[test]
fn a_failing_disk_fails_the_commit_and_the_member_stays_at_the_one_before() {
    for on in [OpKind::Write, OpKind::Sync] {
        let disk = disk();
        let mut member = create(&disk);
        member.apply(&batch(1, vec![edit(1, 0, 2, Some(5))])).unwrap();
        disk.inject(Fault::always(on, FaultKind::Error(libc::EIO)));
        member.apply(&batch(2, vec![edit(1, 1, 2, Some(6))])).unwrap_err();
        member.apply(&batch(3, vec![edit(1, 2, 2, Some(7))])).unwrap_err();
        assert_eq!(member.fuse().sync_failed(), on == OpKind::Sync);
        disk.clear_faults();
        member.apply(&batch(4, vec![edit(1, 3, 2, Some(8))])).unwrap_err();
        drop(member);
        let reopened = open(&disk).unwrap();
        assert_eq!((reopened.state().stamp.commit, table(&reopened).len()), (1, 1));
    }
}

#[test]
fn damage_is_named() {
    let disk = disk();
    let mut member = create(&disk);
    let steps = vec![
        Step::Edit(StoreEdit::PutPool(samples::pool(POOL))),
        Step::Edit(StoreEdit::PutVhd(samples::vhd(1))),
        Step::Edit(StoreEdit::PutJob(samples::job(1))),
        Step::Extents(vec![edit(3, 130, 2, Some(0x00c0_ffee))]),
    ];
    member.apply(&Batch { stamp: Stamp { epoch: 1, commit: 1 }, steps }).unwrap();
    drop(member);
    // Find the row and the record on the disk, and change a bit of each.
    let mut all = vec![0; PLACE.len as usize];
    disk.read_at(PLACE.offset, &mut all).unwrap();
    let slot = 0x00c0_ffee_u32.to_le_bytes();
    let damage = |needle: &[u8]| {
        let places: Vec<usize> =
            all.windows(needle.len()).enumerate().filter(|(_, w)| w == &needle).map(|(at, _)| at).collect();
        assert!(!places.is_empty());
        for at in places {
            disk.poke(PLACE.offset + at as u64, &[all[at] ^ 1]);
        }
    };
    damage(&slot);
    damage(b"extent_size");
    damage(b"queues");
    damage(b"bytes_moved");
    let member = open(&disk).unwrap();
    let key = PageKey { vhd: VhdId(3), page: 2 };
    let error = member.for_each_extent(|_, _, _| panic!("a damaged row is not shown")).unwrap_err();
    assert!(matches!(error, MemberError::Page { key: found, source: PageError::Checksum } if found == key), "{error}");
    assert!(matches!(member.pool().unwrap_err(), MemberError::Damaged("pool record")));
    assert!(matches!(member.vhds().unwrap_err(), MemberError::Damaged("VHD record")));
    assert!(matches!(member.jobs().unwrap_err(), MemberError::Damaged("job record")));
    assert!(matches!(open(&SimDisk::new(PLACE.offset + PLACE.len, 512)).unwrap_err(), MemberError::Region(_)));
}

#[test]
fn a_job_that_cannot_be_understood_is_refused_like_a_vhd() {
    let put = |key: u32, record: Vec<u8>| {
        let member = create(&disk());
        let sealed = codec::seal(record);
        let insert = |txn: &WriteTransaction| {
            let mut jobs: RecordTable<'_> = txn.open_table(JOBS).map_err(db_error)?;
            jobs.insert(key, sealed.as_slice()).map_err(db_error)?;
            Ok(())
        };
        member.transact(insert).unwrap();
        member.jobs()
    };
    assert_eq!(put(1, samples::job(1).encode()).unwrap(), [samples::job(1)]);
    assert!(matches!(put(2, samples::job(1).encode()).unwrap_err(), MemberError::Damaged("job record")));
    let newer = JobRecord { version: 2, ..samples::job(1) };
    let error = put(1, newer.encode()).unwrap_err();
    assert!(matches!(error, MemberError::Record(RecordError::Version { what: "job", found: 2 })), "{error}");
    let error = put(1, b"{\"version\":1}".to_vec()).unwrap_err();
    assert!(matches!(error, MemberError::Record(RecordError::Syntax { what: "job", .. })), "{error}");
}

#[test]
fn state_is_sealed_and_versioned() {
    let state = MemberState { stamp: Stamp { epoch: 5, commit: 6 }, lineage: 7 };
    let bytes = state.encode();
    assert_eq!(MemberState::decode(&bytes).unwrap(), state);
    for at in 0..bytes.len() {
        let mut bad = bytes.clone();
        bad[at] ^= 0x10;
        assert!(matches!(MemberState::decode(&bad), Err(MemberError::Damaged("state"))));
        assert!(MemberState::decode(&bytes[..at]).is_err());
    }
    let mut newer = bytes[..28].to_vec();
    newer[0] = 2;
    assert!(matches!(MemberState::decode(&codec::seal(newer)), Err(MemberError::Version { found: 2 })));
}
