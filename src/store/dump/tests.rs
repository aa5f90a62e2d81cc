#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

use std::sync::Arc;

use super::*;
use crate::base::ids::JobId;
use crate::base::rng::Rng;
use crate::base::units::ExtentIndex;
use crate::disk::sim::SimDisk;
use crate::store::member::tests::samples;
use crate::store::open::{self, MemberPlace};
use crate::store::page::Stamp;
use crate::store::region::{REGION_LEN_MIN, RegionPlace};

const POOL: uuid::Uuid = uuid::Uuid::from_u128(7);

fn store(count: u8) -> Vec<(DiskId, Member<SimDisk>)> {
    let place = |i: u8| MemberPlace {
        id: DiskId(i),
        name: format!("d{i}"),
        disk: Arc::new(SimDisk::new(REGION_LEN_MIN, 512)),
        place: RegionPlace { offset: 0, len: REGION_LEN_MIN },
    };
    open::create((0..count).map(place).collect(), &samples::pool(POOL), 1).unwrap().into_members()
}

fn filled() -> Vec<(DiskId, Member<SimDisk>)> {
    let mut members = store(1);
    let mut rng = Rng::new(4);
    let mut edits = Vec::new();
    for extent in 0..400 {
        if rng.chance(2, 3) {
            continue;
        }
        let (key, place) = PageKey::of(VhdId(2), ExtentIndex(extent));
        let mut replicas = ReplicaSet::ABSENT;
        let states = [ReplicaState::InSync, ReplicaState::Syncing, ReplicaState::Stale];
        for disk in 0..rng.below(4) {
            let slot = SlotIndex(rng.next_u64() as u32);
            replicas.push(Replica { disk: DiskId(disk as u8), slot, state: states[rng.index(3)] });
        }
        let absent = replicas.is_absent();
        edits.push(ExtentEdit {
            key,
            place,
            freed: absent.then_some(Generation(8)),
            cleared: Vec::new(),
            generation: Generation(8),
            replicas: (!absent).then_some(replicas),
            present: if absent { BlockMask::NONE } else { BlockMask(rng.next_u64() as u32) },
        });
    }
    let steps = vec![
        Step::Edit(StoreEdit::PutVhd(samples::vhd(1))),
        Step::Edit(StoreEdit::PutVhd(samples::vhd(2))),
        Step::Extents(edits),
    ];
    members[0].1.apply(&Batch { stamp: Stamp { epoch: 1, commit: 2 }, steps }).unwrap();
    members
}

fn filled_with_jobs() -> Vec<(DiskId, Member<SimDisk>)> {
    let mut members = filled();
    let jobs = [2, 5, 9].map(|id| Step::Edit(StoreEdit::PutJob(samples::job(id))));
    let mut pool = samples::pool(POOL);
    pool.next_job_id = JobId(10);
    let steps = jobs.into_iter().chain([Step::Edit(StoreEdit::PutPool(pool))]).collect();
    members[0].1.apply(&Batch { stamp: Stamp { epoch: 1, commit: 3 }, steps }).unwrap();
    members
}

#[test]
fn what_is_dumped_is_restored() {
    let text = dump(&filled()[0].1).unwrap();
    let mut members = store(3);
    assert_eq!(restore_into(text.as_bytes(), &mut members).unwrap(), samples::pool(POOL));
    for (_, member) in &members {
        assert_eq!(dump(member).unwrap(), text);
    }
    let empty = dump(&store(1)[0].1).unwrap();
    assert_eq!(empty.lines().count(), 2);
    restore_into(empty.as_bytes(), &mut store(1)).unwrap();
}

#[test]
fn a_dump_that_is_cut_or_changed_is_refused_with_its_line() {
    let text = dump(&filled()[0].1).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let restored = |text: &str| restore_into(text.as_bytes(), &mut store(1)).unwrap_err();
    for kept in 0..lines.len() {
        let error = restored(&lines[..kept].join("\n"));
        assert!(matches!(error, RestoreError::CutOff), "{kept} lines: {error}");
    }
    assert!(matches!(restored(&text[..text.len() - 4]), RestoreError::Line { .. }));
    let without = |gone: usize| -> String {
        lines.iter().enumerate().filter(|(i, _)| *i != gone).map(|(_, line)| format!("{line}\n")).collect()
    };
    assert!(matches!(restored(&without(1)), RestoreError::CutOff));
    assert!(matches!(restored(&without(0)), RestoreError::Line { line: 1, .. }));
    assert!(matches!(restored(&format!("{text}{{}}\n")), RestoreError::Nonsense { .. }));
    assert!(matches!(restored(&text.replace("_dump\":1", "_dump\":9")), RestoreError::Version { found: 9 }));
    assert!(matches!(restored(&text.replace("\"queues\"", "\"cues\"")), RestoreError::Line { line: 2, .. }));
    let page = |extents: &str| format!("{}\n{{\"page\":[1,0],\"extents\":[{extents}]}}\n", lines[0]);
    for bad in [
        "[64,2,0,[]]",
        "[0,3,0,[]]",
        "[0,2,1,[]]",
        "[0,2,1,[[64,0,\"in-sync\"]]]",
        "[0,2,1,[[1,0,\"in-sync\"],[1,1,\"stale\"]]]",
        "[0,2,1,[[0,0,\"in-sync\"],[1,0,\"in-sync\"],[2,0,\"in-sync\"],[3,0,\"in-sync\"]]]",
    ] {
        assert!(matches!(restored(&page(bad)), RestoreError::Nonsense { line: 2, .. }), "{bad}");
    }
    assert!(matches!(restored(&page("[0,2,1,[[0,0,\"good\"]]]")), RestoreError::Line { line: 2, .. }));
}

#[test]
fn jobs_are_dumped_and_restored() {
    let text = dump(&filled_with_jobs()[0].1).unwrap();
    assert!(text.contains("{\"job\":{\"version\":1,\"id\":5,") && text.contains("{\"end\":{\"vhds\":2,\"jobs\":3,"));
    let mut members = store(2);
    assert_eq!(restore_into(text.as_bytes(), &mut members).unwrap().next_job_id, JobId(10));
    for (_, member) in &members {
        assert_eq!(member.jobs().unwrap(), [2, 5, 9].map(samples::job));
        assert_eq!(dump(member).unwrap(), text);
    }
    let restored = |text: &str| restore_into(text.as_bytes(), &mut store(1)).unwrap_err();
    let without: String = text.lines().filter(|line| !line.contains("\"id\":5,")).map(|l| format!("{l}\n")).collect();
    assert!(matches!(restored(&without), RestoreError::CutOff));
    let newer = text.replace("{\"job\":{\"version\":1", "{\"job\":{\"version\":2");
    assert!(matches!(restored(&newer), RestoreError::Record(RecordError::Version { what: "job", found: 2 })));
    let ended = text.replace("\"running\"", "\"done\"");
    assert!(matches!(restored(&ended), RestoreError::Record(RecordError::Impossible { .. })));
    let unknown = text.replace("\"urgent\"", "\"eager\"");
    assert!(matches!(restored(&unknown), RestoreError::Line { line: 4, .. }));
}

#[test]
fn a_dump_from_before_there_were_jobs_is_restored_and_written_as_ever() {
    let golden = include_str!("../../../tests/golden/dump-v1.jsonl");
    let mut members = store(1);
    assert_eq!(restore_into(golden.as_bytes(), &mut members).unwrap(), samples::pool(POOL));
    assert_eq!(members[0].1.jobs().unwrap(), []);
    assert!(dump(&members[0].1).unwrap() == golden, "what is dumped without jobs has changed");
}
