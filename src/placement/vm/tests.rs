use super::*;
use crate::base::ids::VhdId;
use crate::placement::record::{Layout, WhenFull};

fn pool() -> PoolRecord {
    PoolRecord::new(Uuid::from_u128(7), 1 << 20, Vec::new())
}

fn vhd(id: u32, vm: Option<&str>) -> VhdRecord {
    VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(id),
        name: format!("vhd{id}"),
        uuid: Uuid::from_u128(u128::from(id)),
        size: 1 << 30,
        layout: Layout::Isolated { disk: crate::base::ids::DiskId(0), chosen: false },
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: vm.map(str::to_owned),
        socket_owner: None,
        socket_mode: 0o660,
        when_full: WhenFull::Error,
        expand: None,
        limits: crate::placement::limits::IoLimits::default(),
        sharing: crate::placement::sharing::Sharing::default(),
        capacity: Capacity::default(),
        created: 0,
        writeback: true,
    }
}

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn vm() -> VmRecord {
    let plain = VmRecord::next(&mut pool(), "web", 1_700_000_000);
    let labels = labels(&[("env", "prod"), ("example.org/team", "Zürich 3")]);
    VmRecord { labels, owner: Some("ops@example.org".to_owned()), ..plain }
}

#[test]
fn records_survive_encoding_and_their_form_does_not_drift() {
    let full = r#"{"version":1,"id":1,"uuid":"9e3779b9-7f4a-4c15-b39c-c0605cedc832","name":"web","labels":{"env":"prod","example.org/team":"Zürich 3"},"owner":"ops@example.org","created":1700000000}"#;
    assert_eq!(String::from_utf8(vm().encode()).unwrap(), full);
    assert_eq!(VmRecord::decode(full.as_bytes()).unwrap(), vm());
    let plain = VmRecord { labels: BTreeMap::new(), owner: None, ..vm() };
    let text =
        r#"{"version":1,"id":1,"uuid":"9e3779b9-7f4a-4c15-b39c-c0605cedc832","name":"web","created":1700000000}"#;
    assert_eq!(String::from_utf8(plain.encode()).unwrap(), text);
    assert_eq!(VmRecord::decode(text.as_bytes()).unwrap(), plain);
}

#[test]
fn quotas_and_reservations_are_written_down_where_they_are_set() {
    let limited = |quota, reservation| VmRecord { capacity: Capacity { quota, reservation }, ..vm() };
    let both = limited(Some(2), Some(1));
    assert!(String::from_utf8(both.encode()).unwrap().contains("\"capacity\":{\"quota\":2,\"reservation\":1}"));
    assert_eq!(VmRecord::decode(&both.encode()).unwrap(), both);
    assert!(matches!(VmRecord::decode(&limited(Some(1), Some(2)).encode()), Err(RecordError::Impossible { .. })));
}

#[test]
fn a_pool_without_vms_is_stored_as_before_there_were_records_of_them() {
    let mut pool = pool();
    let old = String::from_utf8(pool.encode()).unwrap();
    assert!(!old.contains("next_vm_id"));
    assert_eq!(PoolRecord::decode(old.as_bytes()).unwrap(), pool);
    let first = VmRecord::next(&mut pool, "a", 0);
    assert_eq!((first.id, pool.next_vm_id), (VmId(1), VmId(2)));
    let later = String::from_utf8(pool.encode()).unwrap();
    assert_eq!(later, old.replace(",\"disks\"", ",\"next_vm_id\":2,\"disks\""));
    assert_eq!(PoolRecord::decode(later.as_bytes()).unwrap(), pool);
}

#[test]
fn unknown_fields_and_versions_are_refused() {
    let text = String::from_utf8(vm().encode()).unwrap();
    let extra = text.replace("\"created\"", "\"quota\":1,\"created\"");
    assert!(matches!(VmRecord::decode(extra.as_bytes()), Err(RecordError::Syntax { what: "VM", .. })));
    let newer = extra.replace("\"version\":1", "\"version\":2");
    assert!(matches!(VmRecord::decode(newer.as_bytes()), Err(RecordError::Version { what: "VM", found: 2 })));
    for missing in ["\"name\":\"web\",", "\"id\":1,", ",\"created\":1700000000"] {
        let without = text.replace(missing, "");
        assert!(without != text && VmRecord::decode(without.as_bytes()).is_err(), "{missing}");
    }
    assert!(VmRecord::decode(b"").is_err());
}

#[test]
fn impossible_values_are_refused() {
    let refused = |edit: &dyn Fn(&mut VmRecord)| {
        let mut record = vm();
        edit(&mut record);
        VmRecord::decode(&record.encode()).unwrap_err()
    };
    assert!(matches!(refused(&|r| r.name = "a b".to_owned()), RecordError::Name { what: "VM", .. }));
    let long = "x".repeat(LABEL_VALUE_LEN_MAX + 1);
    for bad in ["", "a\nb", &long] {
        let error = refused(&|r| r.owner = Some(bad.to_owned()));
        assert!(matches!(error, RecordError::Impossible { field: "owner", .. }), "{bad:?}");
        let error = refused(&|r| r.labels = labels(&[("env", bad)]));
        assert!(matches!(error, RecordError::Impossible { field: "set of labels", .. }), "{bad:?}");
    }
    let long = "x".repeat(LABEL_KEY_LEN_MAX + 1);
    for bad in ["", "/a", "a=b", "ä", "a b", &long] {
        let error = refused(&|r| r.labels = labels(&[(bad, "x")]));
        assert!(matches!(error, RecordError::Impossible { field: "set of labels", .. }), "{bad:?}");
    }
    let many = |count: usize| (0..count).map(|i| (format!("k{i}"), "x".to_owned())).collect();
    assert!(matches!(refused(&|r| r.labels = many(LABELS_MAX + 1)), RecordError::Impossible { .. }));
    let most = VmRecord { labels: many(LABELS_MAX), owner: Some("x".repeat(LABEL_VALUE_LEN_MAX)), ..vm() };
    assert_eq!(VmRecord::decode(&most.encode()).unwrap(), most);
}

#[test]
fn no_two_vms_have_one_uuid() {
    let (mut one, mut other) = (pool(), PoolRecord { uuid: Uuid::from_u128(8 << 64), ..pool() });
    let mut seen = BTreeSet::new();
    for _ in 0..1000 {
        for pool in [&mut one, &mut other] {
            let uuid = VmRecord::next(pool, "x", 0).uuid;
            assert_eq!(uuid.get_version_num(), 4);
            assert!(seen.insert(uuid));
        }
    }
}

#[test]
fn vms_that_are_only_names_are_adopted_once() {
    let mut pool = pool();
    let mut vhds = vec![vhd(1, Some("web")), vhd(2, None), vhd(3, Some("db")), vhd(4, Some("web"))];
    let vms = adopt(&mut pool, &vhds, &[], 5);
    let found: Vec<(u32, &str, u64)> = vms.iter().map(|vm| (vm.id.0, vm.name.as_str(), vm.created)).collect();
    assert_eq!((found, pool.next_vm_id), (vec![(1, "db", 5), (2, "web", 5)], VmId(3)));
    let before = pool.clone();
    assert_eq!(adopt(&mut pool, &vhds, &vms, 6), []);
    assert_eq!(pool, before);
    vhds.push(vhd(5, Some("mail")));
    // It was interrupted when records were there, but not that of the pool: no identifier is given twice.
    for mut pool in [pool.clone(), PoolRecord { next_vm_id: VmId(1), ..pool }] {
        let mut vms = vms.clone();
        vms.extend(adopt(&mut pool, &vhds, &vms, 6));
        assert_eq!((vms[2].name.as_str(), vms[2].id, pool.next_vm_id), ("mail", VmId(3), VmId(4)));
    }
}
