use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::*;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, JobId, ReactorId};
use crate::base::units::{BlockMask, Generation, SlotIndex};
use crate::control::convert::OpenDisk;
use crate::control::stats::tests::{T0, disk, vhd};
use crate::metrics::IoKind;
use crate::owner::command::{CapacityUse, Space, VmInfo};
use crate::placement::capacity::Capacity;
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, RECORD_VERSION};
use crate::placement::vm::VmRecord;
use crate::placement::{Replica, ReplicaSet};
use crate::policy::rules::Scope;

pub fn pool_of(disks: Vec<DiskInfo>) -> PoolInfo {
    let records = disks.iter().map(|disk| disk.record.clone()).collect();
    PoolInfo {
        record: PoolRecord::new(uuid::Uuid::from_u128(1), 1 << 20, records),
        space: Space::default(),
        disks,
        next_disk: None,
        vhds: 0,
        waiting: 0,
        metadata_used: 0,
        metadata_size: 0,
        metadata_low: false,
        moves: [0; 5],
        moves_ended_early: [0; 5],
        made_stale: 0,
        repaired: 0,
        not_repaired: 0,
    }
}

pub fn answers(disks: Vec<DiskInfo>, vhds: Vec<VhdInfo>, jobs: Vec<JobInfo>) -> Answers {
    let open = |disk: &DiskInfo| {
        let (name, path) = (disk.record.name.clone(), "/none".to_owned());
        (disk.record.id, OpenDisk { name, path, metadata_bytes: 0 })
    };
    Answers { open: disks.iter().map(open).collect(), pool: pool_of(disks), vhds, vms: Vec::new(), jobs }
}

fn job(id: u32, kind: JobKind, state: JobState, bytes_moved: u64) -> JobInfo {
    let record = JobRecord {
        version: RECORD_VERSION,
        id: JobId(id),
        kind,
        vhds: vec![VhdId(id)],
        state,
        max_rate: None,
        urgent: false,
        created: T0,
        ended: state.is_ended().then_some(T0),
        bytes_moved,
        reason: None,
    };
    JobInfo {
        record,
        vhds: Vec::new(),
        vhds_done: 0,
        disk: None,
        replacement: None,
        bytes_left: 0,
        rate: 0,
        waits: 0,
        waiting: false,
        unreadable: 0,
    }
}

#[test]
fn a_scrub_is_no_move_and_a_job_that_stands_is_none_in_flight() {
    let scrub = JobKind::Scrub { damaged: 0, repaired: 0 };
    let jobs = vec![
        job(1, scrub.clone(), JobState::Running, 1 << 40),
        job(2, JobKind::Settle, JobState::Paused, 2),
        job(3, JobKind::Settle, JobState::Stopped, 30),
        job(4, JobKind::Settle, JobState::Running, 400),
        job(5, JobKind::Rebalance, JobState::Done, 5000),
        job(6, scrub, JobState::Done, 1 << 40),
    ];
    let answers = answers(Vec::new(), Vec::new(), jobs);
    let pool = answers.observe(&StatsBook::default(), &Rules::default(), T0);
    assert_eq!(pool.jobs, [VhdId(2), VhdId(3), VhdId(4)]);
    assert_eq!((pool.in_flight, pool.moved_bytes), (1, 5432));
    let later = answers.observe(&StatsBook::default(), &Rules::default(), T0 + POLICY_BUDGET_SECS + 1);
    assert_eq!((later.in_flight, later.moved_bytes), (1, 400), "what stands does not take the budget of all days");
}

#[test]
fn who_is_held_back_by_its_own_limit_is_not_said_to_be_slow() {
    let answers = answers(vec![disk(0)], vec![vhd(1, 100), vhd(2, 100)], Vec::new());
    let book = StatsBook::default();
    for tick in 0..=60 {
        book.record(&answers.vhds, &answers.pool.disks, Nanos(tick * 10_000_000_000), T0 + tick * 10);
        for vhd in &answers.vhds {
            let metrics = vhd.state.metrics.of(ReactorId(0));
            (0..100).for_each(|_| metrics.record(IoKind::Read, 4096, 20_000_000, true));
            if vhd.record.id == VhdId(1) {
                metrics.throttled_ns.fetch_add(1_000_000_000, Ordering::Relaxed);
            }
        }
    }
    let pool = answers.observe(&book, &Rules::default(), T0 + 600);
    let [held_back, slow] = &pool.vhds[..] else { panic!("{pool:?}") };
    assert!(held_back.flow.iops > 9.0 && slow.flow.iops > 9.0, "{pool:?}");
    assert_eq!([held_back.latency, held_back.usual_latency], [Latency::default(); 2]);
    assert!(slow.latency.mean_ns > 10_000_000 && slow.usual_latency.mean_ns > 10_000_000, "{slow:?}");
}

#[test]
fn maps_are_read_for_those_who_are_to_survive_something() {
    let mut disks = vec![disk(0), disk(1), disk(2)];
    disks[1].record.failure_domain = "d0".to_owned();
    let mut replicated = vhd(1, 8);
    replicated.record.replicas = 2;
    let place = |extent: u32, on: [u8; 2]| {
        let mut replicas = ReplicaSet::ABSENT;
        for disk in on {
            replicas.push(Replica { disk: DiskId(disk), slot: SlotIndex(extent), state: ReplicaState::InSync });
        }
        replicated.state.map.restore(ExtentIndex(extent), replicas, BlockMask(1), Generation(2));
    };
    place(0, [0, 2]);
    let answers = answers(disks, vec![replicated.clone()], Vec::new());
    let mut rules = Rules::default();
    let survives = |rules: &Rules| answers.observe(&StatsBook::default(), rules, T0).vhds[0].survives;
    assert_eq!(survives(&rules), None);
    rules.set(Scope::Vhd(VhdId(1)), "survives", "1").unwrap();
    assert_eq!(survives(&rules), Some(1));
    place(1, [0, 1]);
    assert_eq!(survives(&rules), Some(0), "these fail together");
    rules.set(Scope::Vhd(VhdId(1)), "mode", "off").unwrap();
    assert_eq!(survives(&rules), None);
    let domains: BTreeMap<DiskId, u32> =
        answers.observe(&StatsBook::default(), &rules, T0).disks.iter().map(|disk| (disk.id, disk.domain)).collect();
    assert!(domains[&DiskId(0)] == domains[&DiskId(1)] && domains[&DiskId(0)] != domains[&DiskId(2)]);
}

#[test]
fn now_is_as_long_as_something_must_be_so() {
    let answers = answers(vec![disk(0)], vec![vhd(1, 100)], Vec::new());
    let book = StatsBook::default();
    // Ten minutes in which all is well, and one in which each request takes 40 ms.
    for tick in 0..=66 {
        book.record(&answers.vhds, &answers.pool.disks, Nanos(tick * 10_000_000_000), T0 + tick * 10);
        let (count, nanos) = if tick < 60 { (4000, 1_000_000) } else { (200, 40_000_000) };
        let metrics = answers.vhds[0].state.metrics.of(ReactorId(0));
        (0..count).for_each(|_| metrics.record(IoKind::Read, 4096, nanos, true));
    }
    let mean = |hold_secs: u64| {
        let rules = Rules { hold_secs, ..Rules::default() };
        answers.observe(&book, &rules, T0 + 660).vhds[0].latency.mean_ns / 1_000_000
    };
    assert!(mean(0) >= 39 && mean(30) >= 39 && mean(60) >= 38, "{} {} {}", mean(0), mean(30), mean(60));
    assert!(mean(300) < 5, "{} ms", mean(300));
    assert_eq!(mean(300), mean(3600), "not more than five minutes");
}

/// What the daemon does with a wall clock that jumps: it hands it to the policy as it is, which has a time of its own.
#[test]
fn a_wall_clock_that_jumps_starts_nothing() {
    let mut disks = vec![disk(0), disk(1), disk(2)];
    disks.iter_mut().for_each(|disk| disk.space.free = 90 << 20);
    let mut alone = vhd(1, 8);
    alone.slots = BTreeMap::from([(DiskId(0), 1)]);
    let answers = answers(disks, vec![alone], Vec::new());
    let place = ReplicaSet::single(DiskId(0), SlotIndex(1));
    answers.vhds[0].state.map.restore(ExtentIndex(0), place, BlockMask(1), Generation(2));
    let mut rules = Rules { moved_a_day: 0.5, ..Rules::default() };
    rules.set(Scope::Vhd(VhdId(1)), "survives", "1").unwrap();
    rules.set(Scope::Pool, "mode", "auto").unwrap();
    let desk = crate::control::policy::Desk::new(rules.into(), Vec::new(), Arc::default(), Arc::default(), None);
    let year = 365 * 24 * 3600;
    for wall_secs in [T0, T0 + 10 * year, T0, 0, u64::MAX / 2, T0 + 30] {
        assert_eq!(
            desk.look(&answers, desk.happened(), wall_secs),
            [],
            "at {wall_secs}: nobody knows for how long it has been so"
        );
    }
    // From the first look on that nothing jumped before. (Nobody carries the order out here, so that it would come again.)
    let first = (0..30).find(|look| !desk.look(&answers, desk.happened(), T0 + 60 + 30 * look).is_empty());
    assert!(matches!(first, Some(18..=21)), "ten minutes are enough, and needed: {first:?}");
}

#[test]
fn quotas_leave_what_neither_the_vhd_nor_others_of_its_vm_have() {
    let capacity = |quota: Option<u64>, reservation: Option<u64>| Capacity {
        quota: quota.map(|slots| slots << 20),
        reservation: reservation.map(|slots| slots << 20),
    };
    let of_vm = |id: u32, charged: u64, own: Capacity| {
        let mut vhd = vhd(id, 100);
        (vhd.record.vm, vhd.record.capacity, vhd.capacity.charged) = (Some("web".to_owned()), own, charged << 20);
        vhd
    };
    let left = |quota: Option<u64>, vhds: Vec<VhdInfo>| {
        let charged = vhds.iter().map(|vhd| vhd.capacity.charged).sum();
        let record = VmRecord {
            version: RECORD_VERSION,
            id: VmId(1),
            uuid: uuid::Uuid::from_u128(1),
            name: "web".to_owned(),
            labels: BTreeMap::new(),
            owner: None,
            limits: Default::default(),
            sharing: Default::default(),
            capacity: capacity(quota, None),
            created: 0,
        };
        let vm = VmInfo { record, vhds: vhds.clone(), capacity: CapacityUse { charged, ..CapacityUse::default() } };
        let answers = Answers { vms: vec![vm], ..answers(vec![disk(0)], vhds, Vec::new()) };
        answers
            .observe(&StatsBook::default(), &Rules::default(), T0)
            .vhds
            .iter()
            .map(|vhd| vhd.quota_left)
            .collect::<Vec<_>>()
    };
    let none = capacity(None, None);
    assert_eq!(left(None, vec![of_vm(1, 5, none), of_vm(2, 5, capacity(Some(8), None))]), [None, Some(3)]);
    assert_eq!(left(Some(20), vec![of_vm(1, 5, none), of_vm(2, 5, capacity(Some(8), None))]), [Some(10), Some(3)]);
    assert_eq!(left(Some(20), vec![of_vm(1, 5, none), of_vm(2, 5, capacity(None, Some(12)))]), [Some(3), Some(10)]);
    assert_eq!(left(Some(8), vec![of_vm(1, 5, none), of_vm(2, 5, none)]), [Some(0); 2], "beyond it already");
}
