use super::super::record::{Accept, DiskRecord, Layout, RECORD_VERSION, WhenFull};
use super::super::{Replica, ReplicaState};
use super::*;

fn pool() -> PoolRecord {
    let disk = |id: u8, domain: &str| DiskRecord {
        id: DiskId(id),
        uuid: uuid::Uuid::from_u128(u128::from(id) + 1),
        name: format!("d{id}"),
        slots: 100,
        data_offset: 1 << 20,
        accept: Accept::Any,
        failure_domain: domain.to_owned(),
    };
    let mut pool = PoolRecord::new(uuid::Uuid::from_u128(7), 1 << 20, vec![disk(0, "a"), disk(1, "b"), disk(2, "b")]);
    pool.next_vhd_id = VhdId(10);
    pool
}

fn vhd(id: u32, name: &str) -> VhdRecord {
    VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(id),
        name: name.to_owned(),
        uuid: uuid::Uuid::from_u128(id.into()),
        size: 10 << 20,
        layout: Layout::Isolated { disk: DiskId(0), chosen: false },
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: None,
        socket_owner: None,
        socket_mode: 0o600,
        when_full: WhenFull::Error,
        expand: None,
        limits: crate::placement::limits::IoLimits::default(),
        sharing: crate::placement::sharing::Sharing::default(),
        capacity: crate::placement::capacity::Capacity::default(),
        created: 0,
        writeback: true,
    }
}

fn single(vhd: u32, extent: u32, disk: u8, slot: u32) -> TableExtent {
    let replicas = ReplicaSet::single(DiskId(disk), SlotIndex(slot));
    TableExtent { vhd: VhdId(vhd), extent: ExtentIndex(extent), replicas, present: BlockMask::ALL }
}

fn check(vhds: &[VhdRecord], extents: &[TableExtent]) -> Vec<String> {
    let pool = pool();
    let report = Checker::check(&pool, vhds, || extents.iter().copied());
    assert_eq!(report.is_consistent(), report.violations.is_empty());
    report.violations.iter().map(Violation::to_string).collect()
}

#[test]
fn a_good_table_is_consistent() {
    let pool = pool();
    let mut mirrored = single(2, 0, 0, 2);
    mirrored.replicas.push(Replica { disk: DiskId(1), slot: SlotIndex(2), state: ReplicaState::Syncing });
    let extents = [single(1, 0, 0, 0), single(1, 9, 0, 1), mirrored];
    let report = Checker::check(&pool, &[vhd(1, "a"), vhd(2, "b")], || extents.iter().copied());
    assert!(report.is_consistent(), "{:?}", report.violations);
    assert_eq!((report.vhds, report.extents, report.replicas), (2, 3, 4));
    assert_eq!(report.used, BTreeMap::from([(DiskId(0), 3), (DiskId(1), 1)]));
}

#[test]
fn all_owners_of_a_shared_slot_are_named() {
    let extents = [single(1, 3, 0, 5), single(2, 4, 0, 5), single(1, 6, 0, 7), single(2, 7, 0, 5)];
    let found = check(&[vhd(1, "a"), vhd(2, "b")], &extents);
    assert_eq!(
        found,
        ["slot 5 of disk 'd0' has 3 owners: extent 3 of VHD 'a', extent 4 of VHD 'b', extent 7 of VHD 'b'"]
    );
}

#[test]
fn places_out_of_range_are_named() {
    let extents = [single(1, 10, 0, 0), single(1, 1, 7, 0), single(1, 2, 1, 100), single(8, 3, 1, 1)];
    let found = check(&[vhd(1, "a")], &extents);
    assert_eq!(
        found,
        [
            "extent 10 of VHD 'a' lies beyond the end: the VHD has 10 extents",
            "extent 1 of VHD 'a' is on disk #7, which the pool does not have",
            "extent 2 of VHD 'a' is in slot 100 of disk 'd1', which has 100 slots",
            "extent 3 belongs to VHD #8, which does not exist",
        ]
    );
}

#[test]
fn replicas_that_fail_together_are_named() {
    let mut extent = single(1, 0, 1, 0);
    extent.replicas.push(Replica { disk: DiskId(2), slot: SlotIndex(0), state: ReplicaState::InSync });
    let found = check(&[vhd(1, "a")], &[extent]);
    assert_eq!(found, ["extent 0 of VHD 'a' has replicas on disks 'd1' and 'd2', which share the failure domain 'b'"]);
    let mut moving = single(1, 0, 1, 0);
    moving.replicas.push(Replica { disk: DiskId(2), slot: SlotIndex(0), state: ReplicaState::Syncing });
    assert_eq!(check(&[vhd(1, "a")], &[moving]), [""; 0], "a copy that a move is making");
}

#[test]
fn data_without_a_readable_replica_is_named() {
    let mut absent = single(1, 0, 1, 0);
    absent.replicas = ReplicaSet::ABSENT;
    let mut stale = single(1, 1, 1, 0);
    stale.replicas = ReplicaSet::ABSENT;
    stale.replicas.push(Replica { disk: DiskId(2), slot: SlotIndex(0), state: ReplicaState::Stale });
    let found = check(&[vhd(1, "a")], &[absent, stale]);
    assert_eq!(
        found,
        [
            "extent 0 of VHD 'a' has written blocks but no readable replica",
            "extent 1 of VHD 'a' has written blocks but no readable replica"
        ]
    );
}

#[test]
fn records_that_cannot_be_together_are_named() {
    let mut twin = vhd(1, "b");
    twin.layout = Layout::Isolated { disk: DiskId(9), chosen: true };
    let found = check(&[vhd(1, "a"), twin, vhd(11, "a")], &[]);
    assert_eq!(
        found,
        [
            "VHDs 'a' and 'b' have the same UUID",
            "VHDs 'a' and 'b' have the same identifier",
            "the layout of VHD 'b' names disk #9, which the pool does not have",
            "VHDs 'a' and 'a' have the same name",
            "VHD 'a' has identifier 11, but the pool's next identifier is 10",
        ]
    );
}

#[test]
fn vhds_belong_to_vms_that_there_are() {
    let mut pool = pool();
    let vhds = [VhdRecord { vm: Some("web".to_owned()), ..vhd(1, "a") }, vhd(2, "b")];
    let found = |pool: &PoolRecord, vms: &[VmRecord]| {
        let report = Checker::new(pool, &vhds).with_vms(vms).finish();
        report.violations.iter().map(Violation::to_string).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    // No program that knows records of VMs has served it.
    assert_eq!(found(&pool, &[]), none);
    let web = VmRecord::next(&mut pool, "web", 0);
    let idle = VmRecord::next(&mut pool, "idle", 0);
    assert_eq!(found(&pool, &[web.clone(), idle.clone()]), none);
    assert_eq!(found(&pool, std::slice::from_ref(&idle)), ["VHD 'a' belongs to VM 'web', which has no record"]);
    let ahead = VmRecord { id: VmId(3), ..idle.clone() };
    assert_eq!(
        found(&pool, &[web.clone(), ahead]),
        ["VM 'idle' has identifier 3, but the pool's next identifier is 3"]
    );
    // Records are being made of VMs that were only names: the pool counts them once all are there.
    let uncounted = PoolRecord { next_vm_id: VmId(1), ..pool.clone() };
    assert_eq!(found(&uncounted, std::slice::from_ref(&idle)), none);
    for (twin, field) in [
        (VmRecord { name: "web".to_owned(), ..idle.clone() }, "VMs 'web' and 'web' have the same name"),
        (VmRecord { uuid: web.uuid, ..idle.clone() }, "VMs 'web' and 'idle' have the same UUID"),
        (VmRecord { id: web.id, ..idle.clone() }, "VMs 'web' and 'idle' have the same identifier"),
    ] {
        assert_eq!(found(&pool, &[web.clone(), twin]), [field]);
    }
}
