//! Commands about VMs, and what VHDs make of them.

use std::collections::BTreeMap;

use super::*;
use crate::base::limits::{LABEL_VALUE_LEN_MAX, LABELS_MAX};
use crate::owner::OpenError;
use crate::owner::command::{CreateVm, SetVhd, SetVm, VmInfo};
use crate::owner::error::ErrorKind;
use crate::placement::vm::{LabelError, VmRecord, adopt};
use crate::store::edit::EditFailed;

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn new_vm(name: &str, pairs: &[(&str, &str)]) -> CreateVm {
    CreateVm { name: name.to_owned(), created: 5, labels: labels(pairs), ..CreateVm::default() }
}

fn in_vm(name: &str, vm: &str) -> CreateVhd {
    CreateVhd { vm: Some(vm.to_owned()), ..create(name, 4, ISOLATED) }
}

fn set_vhd(vhd: &str, vm: Option<&str>) -> Command {
    let vm = Some(vm.map(str::to_owned));
    Command::SetVhd(Box::new(SetVhd { vhd: vhd.to_owned(), vm, ..SetVhd::default() }))
}

fn rename(vm: &str, to: &str) -> Command {
    Command::SetVm(SetVm { vm: vm.to_owned(), name: Some(to.to_owned()), ..SetVm::default() })
}

fn set_labels(vm: &str, pairs: &[(&str, Option<&str>)]) -> Command {
    let labels = pairs.iter().map(|(key, value)| ((*key).to_owned(), value.map(str::to_owned))).collect();
    Command::SetVm(SetVm { vm: vm.to_owned(), labels, ..SetVm::default() })
}

fn vm_of(reply: Reply) -> (Outcome, VmInfo) {
    match reply {
        Reply::Vm { outcome, vm } => (outcome, *vm),
        other => panic!("{other:?}"),
    }
}

fn show(world: &mut World, vm: &str) -> VmInfo {
    vm_of(world.ask(Command::ShowVm { vm: vm.to_owned() }).unwrap()).1
}

fn delete(vm: &str) -> Command {
    Command::DeleteVm { vm: vm.to_owned() }
}

/// Names of all VMs, each with those of its VHDs.
fn all(world: &mut World) -> Vec<(String, Vec<String>)> {
    let Ok(Reply::Vms(vms)) = world.ask(Command::ListVms) else { panic!("a list of VMs") };
    let names = |vm: VmInfo| (vm.record.name, vm.vhds.into_iter().map(|vhd| vhd.record.name).collect());
    vms.into_iter().map(names).collect()
}

fn known(expected: &[(&str, &[&str])]) -> Vec<(String, Vec<String>)> {
    expected.iter().map(|(vm, vhds)| ((*vm).to_owned(), vhds.iter().map(|vhd| (*vhd).to_owned()).collect())).collect()
}

fn created(vm: &str) -> Event {
    Event::VmCreated { vm: vm.to_owned() }
}

#[test]
fn a_vm_exists_once_its_record_is_durable() {
    let mut world = World::new(&[10], 1);
    let id = world.command(Command::CreateVm(new_vm("web", &[("env", "prod")])));
    assert!(world.mail.replies.is_empty());
    assert_eq!(world.ask(Command::ShowVm { vm: "web".to_owned() }).unwrap_err().kind(), ErrorKind::NotFound);
    let [(_, rows)] = &world.mail.edits[..] else { panic!() };
    let [StoreEdit::PutPool(pool), StoreEdit::PutVm(record)] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((pool.next_vm_id.0, record.id.0, record.created), (2, 1, 5));
    world.commit_edits();
    assert!(matches!(&world.mail.replies[&id], Ok(Reply::Vm { outcome: Outcome::Created, .. })));
    assert_eq!(world.mail.events, [created("web")]);
    let vm = show(&mut world, "web");
    assert_eq!((vm.record.labels.clone(), vm.vhds.len()), (labels(&[("env", "prod")]), 0));
    assert_eq!(show(&mut world, &vm.record.uuid.to_string()).record, vm.record);
    world.check();
}

#[test]
fn a_record_that_cannot_be_written_leaves_nothing() {
    let mut world = World::new(&[10], 1);
    for command in [Command::CreateVm(new_vm("web", &[])), Command::CreateVhd(Box::new(in_vm("a", "web")))] {
        let id = world.command(command);
        let (edit, _) = world.mail.edits.pop().unwrap();
        world.owner.handle_store(StoreReport::EditDone { edit, result: Err(EditFailed) }, &mut world.mail);
        assert!(matches!(&world.mail.replies[&id], Err(CommandError::Store(EditFailed))));
    }
    assert_eq!((all(&mut world), world.owner.pool.next_vm_id.0), (known(&[]), 1));
    assert_eq!(world.mail.events, []);
}

#[test]
fn creating_again_changes_nothing_or_names_what_differs() {
    let mut world = World::new(&[10], 1);
    let create = CreateVm { owner: Some("ops".to_owned()), ..new_vm("web", &[("env", "prod")]) };
    world.run(Command::CreateVm(create.clone())).unwrap();
    let again = world.run(Command::CreateVm(CreateVm { created: 9, ..create.clone() })).unwrap();
    assert_eq!(vm_of(again).0, Outcome::Unchanged);
    let field = |world: &mut World, create| match world.refuse(Command::CreateVm(create)) {
        CommandError::VmConflict { field, existing, asked, .. } => (field, existing, asked),
        other => panic!("{other:?}"),
    };
    let other = CreateVm { labels: labels(&[]), ..create.clone() };
    assert_eq!(field(&mut world, other), ("labels", "env=prod".to_owned(), "none".to_owned()));
    let other = CreateVm { owner: None, ..create };
    assert_eq!(field(&mut world, other), ("owner", "'ops'".to_owned(), "none".to_owned()));
    assert_eq!(world.mail.events, [created("web")]);
    assert_eq!(world.owner.pool.next_vm_id.0, 2, "refused and repeated requests take no identifier");
}

#[test]
fn what_breaks_the_rules_is_refused() {
    let mut world = World::new(&[10], 1);
    let refuse = |world: &mut World, command| {
        let error = world.refuse(command);
        assert_eq!(error.kind(), ErrorKind::Invalid);
        error
    };
    let long = "x".repeat(LABEL_VALUE_LEN_MAX + 1);
    world.run(Command::CreateVm(new_vm("ok", &[]))).unwrap();
    for name in ["", "a b", "-a", &"x".repeat(65)] {
        assert_eq!(refuse(&mut world, Command::CreateVm(new_vm(name, &[]))).code(), "invalid_name");
        assert_eq!(refuse(&mut world, rename("ok", name)).code(), "invalid_name");
        assert_eq!(refuse(&mut world, Command::CreateVhd(Box::new(in_vm("a", name)))).code(), "invalid_name");
    }
    for (key, value) in [("", "x"), ("a b", "x"), ("env", ""), ("env", "a\tb"), ("env", &long[..])] {
        let error = refuse(&mut world, Command::CreateVm(new_vm("web", &[(key, value)])));
        assert_eq!(error.code(), "invalid_labels");
        assert_eq!(refuse(&mut world, set_labels("ok", &[(key, Some(value))])).code(), "invalid_labels");
    }
    assert_eq!(refuse(&mut world, set_labels("ok", &[("a b", None)])).code(), "invalid_labels");
    let owner = Some(Some(long));
    let set = SetVm { vm: "ok".to_owned(), owner, ..SetVm::default() };
    let error = refuse(&mut world, Command::SetVm(set));
    assert_eq!(error, CommandError::InvalidLabels(LabelError::Owner { len: LABEL_VALUE_LEN_MAX + 1 }));
    let keys: Vec<String> = (0..=LABELS_MAX).map(|i| format!("k{i}")).collect();
    let many: Vec<(&str, Option<&str>)> = keys.iter().map(|key| (&key[..], Some("x"))).collect();
    world.run(set_labels("ok", &many[..LABELS_MAX])).unwrap();
    let error = refuse(&mut world, set_labels("ok", &many[LABELS_MAX..]));
    assert_eq!(error, CommandError::InvalidLabels(LabelError::TooMany { count: LABELS_MAX + 1 }));
    assert_eq!(all(&mut world), known(&[("ok", &[])]));
}

#[test]
fn a_vhd_makes_the_vm_that_it_names_in_the_same_commit() {
    let mut world = World::new(&[20], 1);
    world.command(Command::CreateVhd(Box::new(in_vm("a", "web"))));
    let [(_, rows)] = &world.mail.edits[..] else { panic!() };
    let [StoreEdit::PutPool(pool), StoreEdit::PutVm(vm), StoreEdit::PutVhd(vhd)] = &rows[..] else {
        panic!("{rows:?}")
    };
    assert_eq!((pool.next_vm_id.0, pool.next_vhd_id), (2, VhdId(2)));
    assert_eq!((&vm.name[..], vhd.vm.as_deref()), ("web", Some("web")));
    world.commit_edits();
    assert_eq!(world.mail.events, [created("web"), Event::VhdCreated { vhd: "a".to_owned() }]);
    // From then on it is there.
    world.create(in_vm("b", "web"));
    world.create(create("c", 4, ISOLATED));
    assert_eq!(all(&mut world), known(&[("web", &["a", "b"])]));
    world.owner.set_wall_secs(77);
    world.command(set_vhd("c", Some("db")));
    let [(_, rows)] = &world.mail.edits[..] else { panic!() };
    let [StoreEdit::PutPool(_), StoreEdit::PutVm(vm), StoreEdit::PutVhd(_)] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((vm.id.0, vm.created), (2, 77));
    world.commit_edits();
    assert!(world.mail.events.ends_with(&[created("db"), Event::VhdChanged { vhd: "c".to_owned() }]));
    world.run(set_vhd("a", Some("db"))).unwrap();
    assert_eq!(all(&mut world), known(&[("db", &["a", "c"]), ("web", &["b"])]));
    // One that loses its last VHD stays: it may have labels.
    world.run(set_vhd("b", None)).unwrap();
    assert_eq!(all(&mut world), known(&[("db", &["a", "c"]), ("web", &[])]));
    world.check();
}

#[test]
fn a_refused_vhd_makes_no_vm() {
    let mut world = World::new(&[10], 1);
    world.refuse(Command::CreateVhd(Box::new(CreateVhd { thick: true, size: 99 * EXTENT, ..in_vm("a", "web") })));
    world.create(create("a", 4, ISOLATED));
    let set = SetVhd {
        vhd: "a".to_owned(),
        vm: Some(Some("web".to_owned())),
        socket_mode: Some(0o7000),
        ..SetVhd::default()
    };
    world.refuse(Command::SetVhd(Box::new(set)));
    world.owner.handle_store(StoreReport::Fill { used: 9, size: 10, low: true }, &mut world.mail);
    assert_eq!(world.refuse(set_vhd("a", Some("web"))).kind(), ErrorKind::NoRoom);
    assert_eq!(world.refuse(Command::CreateVm(new_vm("web", &[]))).kind(), ErrorKind::NoRoom);
    assert_eq!((all(&mut world), world.owner.pool.next_vm_id.0), (known(&[]), 1));
}

#[test]
fn a_vm_that_is_renamed_takes_its_vhds_along_in_one_commit() {
    let mut world = World::new(&[30], 1);
    for (vhd, vm) in [("a", "web"), ("b", "web"), ("c", "db")] {
        world.create(in_vm(vhd, vm));
    }
    assert_eq!(world.refuse(rename("web", "db")).code(), "name_taken");
    assert_eq!(vm_of(world.run(rename("web", "web")).unwrap()).0, Outcome::Unchanged);
    world.mail.events.clear();
    let id = world.command(rename("web", "shop"));
    let [(_, rows)] = &world.mail.edits[..] else { panic!() };
    let [StoreEdit::PutVm(vm), StoreEdit::PutVhd(a), StoreEdit::PutVhd(b)] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!(&vm.name, "shop");
    assert!([a, b].iter().all(|vhd| vhd.vm.as_deref() == Some("shop")));
    assert_eq!(all(&mut world), known(&[("db", &["c"]), ("web", &["a", "b"])]), "not before it is durable");
    // What comes meanwhile finds the new name.
    let late = world.command(set_vhd("c", Some("shop")));
    world.commit_edits();
    assert!(world.mail.replies[&id].is_ok() && world.mail.replies[&late].is_ok());
    assert_eq!(all(&mut world), known(&[("db", &[]), ("shop", &["a", "b", "c"])]));
    let (from, to) = ("web".to_owned(), "shop".to_owned());
    assert_eq!(world.mail.events, [Event::VmRenamed { from, to }, Event::VhdChanged { vhd: "c".to_owned() }]);
    assert_eq!(world.ask(Command::ShowVm { vm: "web".to_owned() }).unwrap_err().kind(), ErrorKind::NotFound);
    world.run(Command::CreateVm(new_vm("web", &[]))).unwrap();
    world.check();
}

#[test]
fn labels_and_owner_change_and_go() {
    let mut world = World::new(&[10], 1);
    world.run(Command::CreateVm(new_vm("web", &[("env", "prod"), ("tier", "a")]))).unwrap();
    world.mail.events.clear();
    world.run(set_labels("web", &[("env", Some("test")), ("tier", None), ("none", None)])).unwrap();
    assert_eq!(show(&mut world, "web").record.labels, labels(&[("env", "test")]));
    let again = world.run(set_labels("web", &[("env", Some("test")), ("tier", None)])).unwrap();
    assert_eq!(vm_of(again).0, Outcome::Unchanged);
    let set = |owner: Option<&str>| {
        let owner = Some(owner.map(str::to_owned));
        Command::SetVm(SetVm { vm: "web".to_owned(), owner, ..SetVm::default() })
    };
    assert_eq!(vm_of(world.run(set(Some("ops"))).unwrap()).1.record.owner.as_deref(), Some("ops"));
    assert_eq!(vm_of(world.run(set(None)).unwrap()).1.record.owner, None);
    let changed = || Event::VmChanged { vm: "web".to_owned() };
    assert_eq!(world.mail.events, [changed(), changed(), changed()]);
    let error = world.refuse(set_labels("none", &[("a", None)]));
    assert_eq!(error, CommandError::NotFound { what: "VM", name: "none".to_owned() });
}

#[test]
fn only_a_vm_without_vhds_is_deleted() {
    let mut world = World::new(&[10], 1);
    world.create(in_vm("a", "web"));
    let error = world.refuse(delete("web"));
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(error, CommandError::VmNotEmpty { vm: "web".to_owned(), vhds: vec!["a".to_owned()] });
    assert!(error.to_string().contains("spanblk vhd set NAME --vm ''"), "{error}");
    // The VHD is gone first, whenever it was asked for.
    let vhd = world.command(Command::DeleteVhd { vhd: "a".to_owned(), force: false });
    let vm = world.command(delete("web"));
    world.commit_edits();
    assert!(world.mail.replies[&vhd].is_ok());
    assert!(matches!(&world.mail.replies[&vm], Ok(Reply::VmDeleted { name }) if name == "web"));
    assert_eq!(all(&mut world), known(&[]));
    assert_eq!(world.refuse(delete("web")).kind(), ErrorKind::NotFound);
    assert_eq!(*world.mail.events.last().unwrap(), Event::VmDeleted { vm: "web".to_owned() });
    world.create(in_vm("b", "web"));
    assert_eq!(show(&mut world, "web").record.id.0, 2, "identifiers are not given twice");
    world.check();
}

#[test]
fn vms_are_there_again_when_the_pool_is_opened() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(in_vm("a", "web"));
    world.run(Command::CreateVm(new_vm("idle", &[("env", "test")]))).unwrap();
    let (pool, vms) = (world.owner.pool.clone(), world.owner.vm_records());
    let open = |pool: &PoolRecord, vms: &[VmRecord]| {
        let disks = pool.disks.iter().map(disk_state).collect();
        let vhds = vec![(vhd.record.clone(), Arc::clone(&vhd.state))];
        Owner::new(pool.clone(), disks, vhds, 1).unwrap().with_vms(vms.to_vec())
    };
    let mut again = World { owner: open(&pool, &vms).unwrap(), mail: Mail::default(), now: Nanos(0), next_command: 0 };
    assert_eq!(all(&mut again), known(&[("idle", &[]), ("web", &["a"])]));
    again.check();
    let twin = VmRecord { id: crate::base::ids::VmId(9), ..vms[0].clone() };
    let twins = [vms[0].clone(), twin];
    assert!(matches!(open(&pool, &twins), Err(OpenError::TwinVms { .. })));
    assert!(matches!(open(&pool, &[vms[0].clone(), vms[0].clone()]), Err(OpenError::TwinVms { .. })));
    // A pool from before: the name is all there was.
    let mut old = PoolRecord { next_vm_id: crate::base::ids::VmId(1), ..pool.clone() };
    assert!(open(&old, &[]).unwrap().check().is_consistent());
    let adopted = adopt(&mut old, std::slice::from_ref(&vhd.record), &[], 3);
    assert_eq!(open(&old, &adopted).unwrap().vm_records()[0].name, "web");
    // One that has had VMs, and lacks this one.
    let report = open(&pool, &vms[1..]).unwrap().check();
    assert_eq!(report.violations.len(), 1, "{:?}", report.violations);
}
