use std::sync::Arc;

use super::*;
use crate::base::ids::VhdId;
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use crate::control::wire::DiskHealth;
use crate::owner::vhd_state;
use crate::placement::record::{Accept, DiskRecord, RECORD_VERSION, WhenFull};
use crate::placement::{Replica, ReplicaSet, ReplicaState};

const MIB: u64 = 1 << 20;

fn set(disks: &[u8]) -> DiskSet {
    disks.iter().map(|&disk| DiskId(disk)).collect()
}

fn pool(disks: u8) -> PoolRecord {
    let disk = |id: u8| DiskRecord {
        id: DiskId(id),
        uuid: uuid::Uuid::from_u128(u128::from(id) + 1),
        name: format!("d{id}"),
        slots: 1 << 24,
        data_offset: MIB,
        accept: Accept::Any,
        failure_domain: format!("f{id}"),
    };
    PoolRecord::new(uuid::Uuid::from_u128(7), MIB, (0..disks).map(disk).collect())
}

/// A VHD; each of its extents is on the disks that `on` says, written if `written` says so.
fn vhd(id: u32, vm: Option<&str>, layout: Layout, on: &[&[u8]], written: impl Fn(usize) -> bool) -> command::VhdInfo {
    let record = VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(id),
        name: format!("v{id:04}"),
        uuid: uuid::Uuid::from_u128(id.into()),
        size: on.len() as u64 * MIB,
        layout,
        replicas: on.iter().map(|disks| disks.len()).max().unwrap_or(1).try_into().unwrap(),
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: vm.map(str::to_owned),
        socket_owner: None,
        socket_mode: 0o600,
        when_full: WhenFull::Error,
        expand: None,
        limits: crate::placement::limits::IoLimits::default(),
        sharing: crate::placement::sharing::Sharing::default(),
        capacity: crate::placement::capacity::Capacity::default(),
        created: 0,
        writeback: true,
    };
    let geometry = Geometry::new(MIB).unwrap();
    let state = Arc::new(vhd_state(&record, geometry, 1, None));
    let mut slots: BTreeMap<DiskId, u32> = BTreeMap::new();
    for (extent, disks) in on.iter().enumerate() {
        let mut replicas = ReplicaSet::ABSENT;
        for &disk in *disks {
            *slots.entry(DiskId(disk)).or_default() += 1;
            let slot = SlotIndex(u32::try_from(extent).unwrap());
            replicas.push(Replica { disk: DiskId(disk), slot, state: ReplicaState::InSync });
        }
        let present = if written(extent) { BlockMask(0xff) } else { BlockMask::NONE };
        state.map.restore(ExtentIndex(u32::try_from(extent).unwrap()), replicas, present, Generation(0));
    }
    command::VhdInfo {
        record,
        state,
        attached: None,
        ready: true,
        slots,
        allocated: 0,
        sharing: Default::default(),
        capacity: command::CapacityUse::default(),
        growth: Default::default(),
    }
}

fn isolated(disk: u8) -> Layout {
    Layout::Isolated { disk: DiskId(disk), chosen: true }
}

fn spanned(disks: &[u8]) -> Layout {
    Layout::Spanned { disks: disks.iter().map(|&disk| DiskId(disk)).collect(), width: None, chosen: true }
}

fn scene<'a>(pool: &'a PoolRecord, disks: &[u8], missing: &[u8]) -> Scene<'a> {
    let gone = Gone { missing: set(missing), failed: DiskSet::default() };
    let votes = Votes { members: DiskSet(set(&[0, 1, 2]).0 & !set(missing).0), needed: 2 };
    Scene { pool, disks: set(disks), gone, votes }
}

fn three_vms() -> Vec<command::VhdInfo> {
    vec![
        vhd(1, Some("web"), isolated(0), &[&[0], &[0], &[0]], |extent| extent < 2),
        vhd(2, Some("web"), isolated(1), &[&[1]], |_| true),
        vhd(3, Some("db"), spanned(&[0, 1, 2]), &[&[0, 1], &[1, 2], &[2, 0]], |_| true),
        vhd(4, None, spanned(&[2, 3]), &[&[2], &[3]], |_| true),
        vhd(5, None, isolated(0), &[], |_| true),
    ]
}

#[test]
fn vhds_vms_extents_and_bytes_are_summed_by_what_becomes_of_them() {
    let (pool, vhds) = (pool(4), three_vms());
    let impact = of_vhds(&scene(&pool, &[0], &[]), &vhds);
    let ImpactTotals { lost, degraded, untouched, lost_before } = impact.totals;
    assert_eq!((lost.vhds, lost.vms, lost.extents.extents), (1, 1, 2));
    assert_eq!((lost.extents.bytes, lost.extents.written_bytes), (2 * MIB, Some(2 * 8 * MIB / 32)));
    assert_eq!((degraded.vhds, degraded.vms, degraded.extents.extents), (2, 1, 2), "v0005 can grow nowhere");
    assert_eq!((untouched.vhds, untouched.vms, untouched.extents.extents), (2, 0, 4));
    assert_eq!(lost_before.extents, 0);
    let vms: Vec<(Option<&str>, Fate)> = impact.vms.iter().map(|vm| (vm.vm.as_deref(), vm.fate)).collect();
    assert_eq!(vms, [(Some("web"), Fate::Lost), (Some("db"), Fate::Degraded), (None, Fate::Degraded)]);
    let web: Vec<(&str, Fate)> = impact.vms[0].vhds.iter().map(|vhd| (vhd.name.as_str(), vhd.fate)).collect();
    assert_eq!(web, [("v0001", Fate::Lost), ("v0002", Fate::Untouched)], "the worst first");
    assert_eq!((impact.vms[0].vhds[0].empty_extents, impact.vms[0].vhds[0].no_room), (1, true));
    let empty = impact.vms[2].vhds.iter().find(|vhd| vhd.name == "v0005").unwrap();
    assert!(empty.no_room && empty.fate == Fate::Degraded);
}

#[test]
fn disks_that_are_gone_turn_degraded_into_lost() {
    let (pool, vhds) = (pool(4), three_vms());
    let impact = of_vhds(&scene(&pool, &[0], &[1, 3]), &vhds);
    let db = &impact.vms.iter().find(|vm| vm.vm.as_deref() == Some("db")).unwrap().vhds[0];
    assert_eq!((db.lost.extents, db.degraded.extents, db.untouched.extents), (1, 1, 1));
    assert_eq!(impact.totals.lost_before.extents, 2, "v0002 and half of v0004");
    let missing = |disk: &str| GoneDisk { disk: disk.to_owned(), health: DiskHealth::Missing };
    assert_eq!(impact.gone, [missing("d1"), missing("d3")]);
    // What is missing now, looked at by itself.
    let impact = of_vhds(&scene(&pool, &[1, 3], &[1, 3]), &vhds);
    assert_eq!((impact.totals.lost.extents.extents, impact.totals.lost_before.extents), (2, 0));
    assert_eq!((impact.totals.lost.vhds, impact.totals.degraded.vhds), (2, 1));
}

#[test]
fn the_placement_table_needs_a_majority_of_its_members() {
    let pool = pool(4);
    let store = |disks: &[u8], missing: &[u8]| of_vhds(&scene(&pool, disks, missing), &[]).store;
    let left = |store: StoreImpact| (store.members, store.left, store.keeps_majority);
    assert_eq!(left(store(&[0], &[])), (3, 2, true));
    assert_eq!(left(store(&[3], &[])), (3, 3, true));
    assert_eq!(left(store(&[0], &[1])), (2, 1, false));
    assert_eq!(left(store(&[3], &[1])), (2, 2, true));
}

#[test]
fn events_name_the_worst_and_count_the_rest() {
    let pool = pool(4);
    let vhds: Vec<_> =
        (0..200).map(|i| vhd(i, None, isolated(u8::try_from(i % 2).unwrap()), &[&[(i % 2) as u8]], |_| true)).collect();
    let impact = brief(of_vhds(&scene(&pool, &[0], &[]), &vhds));
    assert_eq!((impact.vms[0].vhds.len(), impact.vhds_left_out), (IMPACT_EVENT_VHDS_MAX, 100 - 64));
    assert!(impact.vms[0].vhds.iter().all(|vhd| vhd.fate == Fate::Lost));
    assert_eq!((impact.totals.lost.vhds, impact.totals.untouched.vhds), (100, 100), "totals are of all");
}

/// What several threads find is what one finds, VHD by VHD.
#[test]
fn several_threads_share_the_vhds() {
    let places: Vec<&[u8]> = (0..300).map(|extent| if extent % 3 == 0 { &[0][..] } else { &[1, 2] }).collect();
    let of = |id: u32| vhd(id, Some("vm"), spanned(&[0, 1, 2]), &places[id as usize * 30..], |_| true);
    let vhds: Vec<_> = (0..9).map(of).chain([vhd(9, None, isolated(3), &[&[3]], |_| true)]).collect();
    let loss = Loss { disks: set(&[0]), gone: set(&[2]) };
    assert_eq!(threads_for(&vhds, &loss), 1, "there is little to read");
    let one_by_one: Vec<VhdLoss> = vhds.iter().map(|vhd| measure(vhd, &loss)).collect();
    for threads in 1..12 {
        assert_eq!(measure_all(&vhds, &loss, threads), one_by_one, "{threads} threads");
    }
    assert_eq!((one_by_one[0].lost.extents, one_by_one[8].untouched.extents), (100, 40));
}
