use super::*;

fn disk(id: u8, name: &str) -> DiskRecord {
    DiskRecord {
        id: DiskId(id),
        uuid: uuid::Uuid::from_u128(u128::from(id) + 1),
        name: name.to_owned(),
        slots: 1000,
        data_offset: 1 << 20,
        accept: Accept::Any,
        failure_domain: "nvme0".to_owned(),
    }
}

fn pool() -> PoolRecord {
    PoolRecord::new(uuid::Uuid::from_u128(7), 1 << 20, vec![disk(0, "d1"), disk(3, "d2")])
}

fn vhd() -> VhdRecord {
    VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(4),
        name: "web".to_owned(),
        uuid: uuid::Uuid::from_u128(9),
        size: 20 << 30,
        layout: Layout::Spanned { disks: vec![DiskId(0), DiskId(3)], width: Some(2), chosen: false },
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: Some("vm1".to_owned()),
        socket_owner: Some(SocketOwner { user: "libvirt-qemu".to_owned(), group: "kvm".to_owned() }),
        socket_mode: 0o660,
        when_full: WhenFull::Queue { secs: 60 },
        expand: None,
        limits: crate::placement::limits::IoLimits::default(),
        sharing: crate::placement::sharing::Sharing::default(),
        capacity: Capacity::default(),
        created: 1_700_000_000,
        writeback: true,
    }
}

#[test]
fn records_survive_encoding() {
    assert_eq!(PoolRecord::decode(&pool().encode()).unwrap(), pool());
    assert_eq!(VhdRecord::decode(&vhd().encode()).unwrap(), vhd());
    let mut other = vhd();
    other.layout = Layout::Isolated { disk: DiskId(5), chosen: true };
    other.when_full = WhenFull::Error;
    other.vm = None;
    other.socket_owner = None;
    assert_eq!(VhdRecord::decode(&other.encode()).unwrap(), other);
}

#[test]
fn the_stored_form_does_not_drift() {
    let expected = r#"{"version":1,"id":4,"name":"web","uuid":"00000000-0000-0000-0000-000000000009","size":21474836480,"layout":{"spanned":{"disks":[0,3],"width":2,"chosen":false}},"thick":false,"read_only":false,"block_size":512,"queues":1,"vm":"vm1","socket_owner":{"user":"libvirt-qemu","group":"kvm"},"socket_mode":432,"when_full":{"queue":{"secs":60}},"created":1700000000}"#;
    assert_eq!(String::from_utf8(vhd().encode()).unwrap(), expected);
    let expected = r#"{"version":1,"uuid":"00000000-0000-0000-0000-000000000007","extent_size":1048576,"next_vhd_id":1,"disks":[{"id":0,"uuid":"00000000-0000-0000-0000-000000000001","name":"d1","slots":1000,"data_offset":1048576,"accept":"any","failure_domain":"nvme0"},{"id":3,"uuid":"00000000-0000-0000-0000-000000000004","name":"d2","slots":1000,"data_offset":1048576,"accept":"any","failure_domain":"nvme0"}]}"#;
    assert_eq!(String::from_utf8(pool().encode()).unwrap(), expected);
}

#[test]
fn a_pool_without_jobs_is_stored_as_before_there_were_any() {
    let old = String::from_utf8(pool().encode()).unwrap();
    assert!(!old.contains("next_job_id"));
    assert_eq!(PoolRecord::decode(old.as_bytes()).unwrap().next_job_id, JobId(1));
    let later = PoolRecord { next_job_id: JobId(5), ..pool() };
    let text = String::from_utf8(later.encode()).unwrap();
    assert_eq!(text, old.replace(",\"disks\"", ",\"next_job_id\":5,\"disks\""));
    assert_eq!(PoolRecord::decode(text.as_bytes()).unwrap(), later);
}

#[test]
fn only_writethrough_is_written_down() {
    let text = String::from_utf8(vhd().encode()).unwrap();
    assert!(!text.contains("writeback"));
    let other = VhdRecord { writeback: false, ..vhd() };
    assert!(String::from_utf8(other.encode()).unwrap().contains("\"writeback\":false"));
    assert_eq!(VhdRecord::decode(&other.encode()).unwrap(), other);
}

#[test]
fn only_quotas_and_reservations_that_are_set_are_written_down() {
    let text = String::from_utf8(vhd().encode()).unwrap();
    assert!(!text.contains("capacity"));
    let limited = |quota, reservation| VhdRecord { capacity: Capacity { quota, reservation }, ..vhd() };
    let other = limited(Some(8 << 20), None);
    assert!(String::from_utf8(other.encode()).unwrap().contains("\"capacity\":{\"quota\":8388608}"));
    assert_eq!(VhdRecord::decode(&other.encode()).unwrap(), other);
    for impossible in [limited(Some(0), None), limited(None, Some(0)), limited(Some(1), Some(2))] {
        assert!(matches!(VhdRecord::decode(&impossible.encode()), Err(RecordError::Impossible { .. })));
    }
}

#[test]
fn unknown_fields_and_versions_are_refused() {
    let text = String::from_utf8(vhd().encode()).unwrap();
    let extra = text.replace("\"thick\"", "\"tier\":1,\"thick\"");
    assert!(matches!(VhdRecord::decode(extra.as_bytes()), Err(RecordError::Syntax { what: "VHD", .. })));
    let nested = text.replace("\"width\"", "\"depth\":1,\"width\"");
    assert!(matches!(VhdRecord::decode(nested.as_bytes()), Err(RecordError::Syntax { .. })));
    let newer = extra.replace("\"version\":1", "\"version\":2");
    assert!(matches!(VhdRecord::decode(newer.as_bytes()), Err(RecordError::Version { found: 2, .. })));
    assert!(matches!(PoolRecord::decode(b"{}"), Err(RecordError::Syntax { what: "pool", .. })));
    assert!(matches!(PoolRecord::decode(b""), Err(RecordError::Syntax { .. })));
}

#[test]
fn impossible_values_are_refused() {
    let refused = |edit: &dyn Fn(&mut VhdRecord)| {
        let mut record = vhd();
        edit(&mut record);
        VhdRecord::decode(&record.encode()).unwrap_err()
    };
    assert!(matches!(refused(&|r| r.block_size = 1024), RecordError::Impossible { field: "block size", .. }));
    assert!(matches!(refused(&|r| r.size = 513), RecordError::Impossible { field: "size", .. }));
    assert!(matches!(refused(&|r| r.size = 0), RecordError::Impossible { field: "size", .. }));
    assert!(matches!(refused(&|r| r.size = VHD_SIZE_MAX + 512), RecordError::Impossible { field: "size", .. }));
    assert!(matches!(refused(&|r| r.queues = 0), RecordError::Impossible { field: "number of queues", .. }));
    assert!(matches!(refused(&|r| r.socket_mode = 0o4755), RecordError::Impossible { field: "socket mode", .. }));
    assert!(matches!(refused(&|r| r.name = "../x".to_owned()), RecordError::Name { what: "VHD", .. }));
    assert!(matches!(refused(&|r| r.vm = Some(String::new())), RecordError::Name { what: "VM", .. }));
    for disks in [vec![], vec![DiskId(1), DiskId(1)], vec![DiskId(2), DiskId(1)], vec![DiskId(64)]] {
        let error = refused(&|r| r.layout = Layout::Spanned { disks: disks.clone(), width: None, chosen: true });
        assert!(matches!(error, RecordError::Impossible { field: "set of disks", .. }));
    }
}

#[test]
fn impossible_pools_are_refused() {
    let refused = |edit: &dyn Fn(&mut PoolRecord)| {
        let mut record = pool();
        edit(&mut record);
        PoolRecord::decode(&record.encode()).unwrap_err()
    };
    assert!(matches!(refused(&|r| r.extent_size = 3 << 20), RecordError::Impossible { field: "extent size", .. }));
    assert!(matches!(refused(&|r| r.disks[1].id = DiskId(0)), RecordError::Impossible { field: "identifier", .. }));
    assert!(matches!(refused(&|r| r.disks[1].id = DiskId(64)), RecordError::Impossible { .. }));
    assert!(matches!(refused(&|r| r.disks[1].name = "d1".to_owned()), RecordError::Impossible { field: "twin", .. }));
}

#[test]
fn disks_are_found_by_name_and_uuid() {
    let pool = pool();
    assert_eq!(pool.find_disk("d2").unwrap().id, DiskId(3));
    assert_eq!(pool.find_disk("00000000-0000-0000-0000-000000000001").unwrap().id, DiskId(0));
    assert!(pool.find_disk("d3").is_none());
    assert_eq!(pool.disk_name(DiskId(3)), "d2");
    assert_eq!(pool.disk_name(DiskId(9)), "#9");
}

#[test]
fn limits_are_in_records_of_vhds_that_have_some_and_checked() {
    use crate::placement::limits::{IoLimits, RateLimit};
    let text = |vhd: &VhdRecord| String::from_utf8(vhd.encode()).unwrap();
    assert!(!text(&vhd()).contains("limits"), "older programs read it");
    let iops = |per_sec| IoLimits { iops: Some(RateLimit { per_sec, burst: None }), bytes: None };
    let limited = VhdRecord { limits: iops(500), ..vhd() };
    assert!(text(&limited).contains(r#""limits":{"iops":{"per_sec":500}}"#), "{}", text(&limited));
    assert_eq!(VhdRecord::decode(&limited.encode()).unwrap(), limited);
    let nothing = VhdRecord { limits: iops(0), ..vhd() };
    assert!(matches!(VhdRecord::decode(&nothing.encode()), Err(RecordError::Impossible { field: "limit", .. })));
}
