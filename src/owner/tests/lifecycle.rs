//! Commands.

use super::*;
use crate::owner::command::{AddDisk, SetDisk, SetVhd};
use crate::owner::error::ErrorKind;
use crate::placement::record::{Layout, SocketOwner};
use crate::store::edit::EditFailed;

fn show(world: &mut World, name: &str) -> VhdInfo {
    match world.ask(Command::ShowVhd { vhd: name.to_owned() }).unwrap() {
        Reply::Vhd { vhd, .. } => *vhd,
        other => panic!("{other:?}"),
    }
}

fn pool(world: &mut World) -> super::super::command::PoolInfo {
    match world.ask(Command::ShowPool).unwrap() {
        Reply::Pool(pool) => *pool,
        other => panic!("{other:?}"),
    }
}

fn create_error(world: &mut World, create: CreateVhd) -> CommandError {
    world.refuse(Command::CreateVhd(Box::new(create)))
}

fn spanned(disks: Option<&[&str]>, width: Option<u32>) -> LayoutRequest {
    let disks = disks.map(|disks| disks.iter().map(|disk| (*disk).to_owned()).collect());
    LayoutRequest::Spanned { disks, width }
}

fn isolated(disk: &str) -> LayoutRequest {
    LayoutRequest::Isolated { disk: Some(disk.to_owned()) }
}

#[test]
fn a_vhd_exists_once_its_record_is_durable() {
    let mut world = World::new(&[10], 1);
    let id = world.command(Command::CreateVhd(Box::new(create("a", 4, ISOLATED))));
    assert!(world.mail.replies.is_empty() && world.mail.opened.is_empty());
    assert_eq!(world.ask(Command::ShowVhd { vhd: "a".to_owned() }).unwrap_err().kind(), ErrorKind::NotFound);
    let [(edit, rows)] = &world.mail.edits[..] else { panic!() };
    let [StoreEdit::PutPool(pool), StoreEdit::PutVhd(record)] = &rows[..] else { panic!("{rows:?}") };
    assert_eq!((pool.next_vhd_id, record.id, &record.name[..]), (VhdId(2), VhdId(1), "a"));
    assert_eq!(*edit, EditId(1));
    world.commit_edits();
    assert!(matches!(&world.mail.replies[&id], Ok(Reply::Vhd { outcome: Outcome::Created, .. })));
    assert_eq!(world.mail.opened.len(), 1);
    assert_eq!(world.mail.events, [Event::VhdCreated { vhd: "a".to_owned() }]);
    let info = show(&mut world, "a");
    assert!(info.ready && info.attached.is_none() && info.allocated == 0);
}

#[test]
fn a_record_that_cannot_be_written_leaves_nothing() {
    let mut world = World::new(&[10], 1);
    let id = world.command(Command::CreateVhd(Box::new(CreateVhd { thick: true, ..create("a", 4, ISOLATED) })));
    assert_eq!(world.free_slots(0), 6, "reserved");
    let (edit, _) = world.mail.edits.pop().unwrap();
    world.owner.handle_store(StoreReport::EditDone { edit, result: Err(EditFailed) }, &mut world.mail);
    assert!(matches!(&world.mail.replies[&id], Err(CommandError::Store(EditFailed))));
    assert_eq!(world.free_slots(0), 10);
    assert_eq!(world.owner.pool.next_vhd_id, VhdId(1));
    assert!(world.mail.opened.is_empty());
    assert!(show_all(&mut world).is_empty());
}

fn show_all(world: &mut World) -> Vec<String> {
    match world.ask(Command::ListVhds).unwrap() {
        Reply::Vhds(vhds) => vhds.into_iter().map(|vhd| vhd.record.name).collect(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn commands_follow_one_another() {
    let mut world = World::new(&[10], 1);
    let first = world.command(Command::CreateVhd(Box::new(create("a", 4, ISOLATED))));
    let again = world.command(Command::CreateVhd(Box::new(create("a", 4, ISOLATED))));
    let rename = world.command(Command::RenameVhd { vhd: "a".to_owned(), to: "b".to_owned() });
    let uuid = uuid::Uuid::from_u128(8);
    let other = world.command(Command::CreateVhd(Box::new(CreateVhd { uuid, ..create("a", 8, ISOLATED) })));
    let twin = world.command(Command::CreateVhd(Box::new(CreateVhd { uuid, ..create("c", 8, ISOLATED) })));
    assert_eq!(world.mail.edits.len(), 1);
    world.commit_edits();
    let outcome = |id: CommandId| match &world.mail.replies[&id] {
        Ok(Reply::Vhd { outcome, vhd }) => (*outcome, vhd.record.name.clone()),
        other => panic!("{other:?}"),
    };
    assert_eq!(outcome(first), (Outcome::Created, "a".to_owned()));
    assert_eq!(outcome(again), (Outcome::Unchanged, "a".to_owned()));
    assert_eq!(outcome(rename), (Outcome::Changed, "b".to_owned()));
    assert_eq!(outcome(other), (Outcome::Created, "a".to_owned()));
    assert!(matches!(&world.mail.replies[&twin], Err(CommandError::NameTaken { .. })), "UUIDs are unique, too");
    assert_eq!(show_all(&mut world), ["a", "b"]);
}

#[test]
fn too_many_commands_are_refused() {
    let mut world = World::new(&[10], 1);
    for i in 0..=crate::base::limits::COMMANDS_WAITING_MAX {
        world.command(Command::CreateVhd(Box::new(create(&format!("v{i}"), 1, ISOLATED))));
    }
    let last = world.command(Command::CreateVhd(Box::new(create("last", 1, ISOLATED))));
    assert_eq!(world.mail.replies[&last].as_ref().unwrap_err(), &CommandError::Busy);
}

#[test]
fn creating_again_names_the_field_that_differs() {
    let mut world = World::new(&[100, 100, 100], 1);
    let owner = Some(SocketOwner { user: "u".to_owned(), group: "g".to_owned() });
    let base = create("a", 4, spanned(None, Some(2)));
    world.create(base.clone());
    let same = world.run(Command::CreateVhd(Box::new(CreateVhd { created: 9, ..base.clone() }))).unwrap();
    assert!(matches!(same, Reply::Vhd { outcome: Outcome::Unchanged, .. }));
    let mut field = |change: &dyn Fn(&mut CreateVhd)| {
        let mut other = base.clone();
        change(&mut other);
        match create_error(&mut world, other) {
            CommandError::Conflict { field, existing, asked, vhd } => {
                assert_eq!(vhd, "a");
                assert_ne!(existing, asked);
                field
            }
            other => panic!("{other}"),
        }
    };
    assert_eq!(field(&|c| c.size += 512), "size");
    assert_eq!(field(&|c| c.layout = ISOLATED), "layout");
    assert_eq!(field(&|c| c.layout = spanned(Some(&["d0", "d2"]), None)), "set of disks");
    assert_eq!(field(&|c| c.layout = spanned(None, Some(3))), "width");
    assert_eq!(field(&|c| c.layout = SPANNED), "width");
    assert_eq!(field(&|c| c.thick = true), "thickness");
    assert_eq!(field(&|c| c.read_only = true), "access");
    assert_eq!(field(&|c| c.block_size = 4096), "block size");
    assert_eq!(field(&|c| c.queues = 2), "number of queues");
    assert_eq!(field(&|c| c.vm = Some("vm".to_owned())), "VM");
    assert_eq!(field(&|c| c.socket_owner.clone_from(&owner)), "socket owner");
    assert_eq!(field(&|c| c.socket_mode = 0o600), "socket mode");
    assert_eq!(field(&|c| c.when_full = WhenFull::Error), "when-full setting");
    let named = CreateVhd { layout: spanned(Some(&["d1", "d0"]), None), ..base.clone() };
    assert!(world.run(Command::CreateVhd(Box::new(named))).is_ok(), "the very disks that it has");
    world.create(create("b", 4, isolated("d1")));
    assert!(world.run(Command::CreateVhd(Box::new(create("b", 4, isolated("d1"))))).is_ok());
    let error = create_error(&mut world, create("b", 4, isolated("d2")));
    assert_eq!(
        error.to_string(),
        "VHD 'b' exists with another set of disks: it is d1, not d2; choose another name, or ask for the same set of disks"
    );
    let again = world.run(Command::CreateVhd(Box::new(create("b", 4, ISOLATED)))).unwrap();
    assert!(matches!(again, Reply::Vhd { outcome: Outcome::Unchanged, .. }), "whatever disk it has by now");
    world.create(create("c", 4, spanned(Some(&["d0", "d1"]), None)));
    let error = create_error(&mut world, create("c", 4, SPANNED));
    assert_eq!(error.kind(), ErrorKind::Conflict, "it is not on all disks: {error}");
}

#[test]
fn bad_requests_are_refused() {
    let mut world = World::new(&[10, 10], 1);
    let good = create("a", 4, ISOLATED);
    let mut refuse = |change: &dyn Fn(&mut CreateVhd)| {
        let mut bad = good.clone();
        change(&mut bad);
        let error = create_error(&mut world, bad);
        (error.code(), error.kind())
    };
    let invalid = |code| (code, ErrorKind::Invalid);
    let conflict = |code| (code, ErrorKind::Conflict);
    assert_eq!(refuse(&|c| c.name = "-x".to_owned()), invalid("invalid_name"));
    assert_eq!(refuse(&|c| c.vm = Some("/".to_owned())), invalid("invalid_name"));
    assert_eq!(refuse(&|c| c.size = 0), invalid("invalid_size"));
    assert_eq!(refuse(&|c| c.size = 1000), invalid("invalid_size"));
    assert_eq!(refuse(&|c| c.size = (1 << 50) + 512), invalid("size_too_large"));
    assert_eq!(refuse(&|c| c.block_size = 2048), invalid("invalid_block_size"));
    assert_eq!(refuse(&|c| c.queues = 0), invalid("invalid_queues"));
    assert_eq!(refuse(&|c| c.queues = 65), invalid("invalid_queues"));
    assert_eq!(refuse(&|c| c.socket_mode = 0o1777), invalid("invalid_socket_mode"));
    assert_eq!(refuse(&|c| c.layout = isolated("d9")), ("not_found", ErrorKind::NotFound));
    assert_eq!(refuse(&|c| c.layout = spanned(Some(&["d0", "d0"]), None)), invalid("disk_twice"));
    assert_eq!(refuse(&|c| c.layout = spanned(Some(&[]), None)), invalid("no_disks"));
    assert_eq!(refuse(&|c| c.layout = spanned(None, Some(0))), invalid("invalid_width"));
    assert_eq!(refuse(&|c| c.layout = spanned(Some(&["d0"]), Some(2))), invalid("width_disagrees"));
    assert_eq!(refuse(&|c| c.layout = spanned(None, Some(3))), conflict("width_too_large"));
    assert!(show_all(&mut world).is_empty());
}

#[test]
fn new_vhds_go_where_there_is_room_that_is_not_promised() {
    let mut world = World::new(&[100, 100, 90], 1);
    let disk_of = |vhd: &VhdInfo| vhd.record.layout.disks().iter().collect::<Vec<_>>();
    let made = |world: &mut World, name: &str| {
        let vhd = world.create(create(name, 50, ISOLATED));
        disk_of(&vhd)
    };
    assert_eq!(made(&mut world, "a"), [DiskId(0)]);
    assert_eq!(made(&mut world, "b"), [DiskId(1)]);
    assert_eq!(made(&mut world, "c"), [DiskId(2)]);
    assert_eq!(made(&mut world, "d"), [DiskId(0)]);
    let wide = world.create(create("e", 30, spanned(None, Some(2))));
    assert_eq!(disk_of(&wide), [DiskId(1), DiskId(2)]);
    let info = pool(&mut world);
    assert_eq!(info.space.provisioned, 230 * EXTENT);
    let provisioned: Vec<u64> = info.disks.iter().map(|disk| disk.space.provisioned / EXTENT).collect();
    assert_eq!(provisioned, [100, 66, 65]);
}

#[test]
fn roles_are_respected() {
    let mut world = World::new(&[10, 10, 10], 1);
    let role = |world: &mut World, disk: &str, accept| {
        let set = SetDisk { disk: disk.to_owned(), accept: Some(accept), failure_domain: None };
        world.run(Command::SetDisk(Box::new(set))).unwrap()
    };
    assert!(matches!(role(&mut world, "d0", Accept::Isolated), Reply::Disk { outcome: Outcome::Changed, .. }));
    assert!(matches!(role(&mut world, "d0", Accept::Isolated), Reply::Disk { outcome: Outcome::Unchanged, .. }));
    role(&mut world, "d1", Accept::Spanned);
    role(&mut world, "d2", Accept::None);
    let alone = world.create(create("a", 4, ISOLATED));
    assert_eq!(alone.record.layout, Layout::Isolated { disk: DiskId(0), chosen: false });
    let wide = world.create(create("b", 4, SPANNED));
    assert_eq!(wide.record.layout, Layout::Spanned { disks: vec![DiskId(1)], width: None, chosen: false });
    let refused = create_error(&mut world, create("c", 4, isolated("d1")));
    assert_eq!(
        refused,
        CommandError::DiskRefuses { disk: "d1".to_owned(), layout: "isolated", accept: Accept::Spanned }
    );
    assert_eq!(
        create_error(&mut world, create("c", 4, spanned(None, Some(2)))),
        CommandError::WidthTooLarge { width: 2, accepting: 1, disks: 3 }
    );
    role(&mut world, "d0", Accept::None);
    assert_eq!(
        create_error(&mut world, create("c", 4, ISOLATED)),
        CommandError::NoDiskAccepts { layout: "isolated", disks: 3 }
    );
    assert_eq!(world.allocate(&alone, 0), Some(Ok(())), "what is there stays and grows");
}

#[test]
fn a_thick_vhd_gets_all_its_room_before_it_is_served() {
    let mut world = World::new(&[30_000, 15_000], 1);
    let id = world.command(Command::CreateVhd(Box::new(CreateVhd { thick: true, ..create("a", 40_000, SPANNED) })));
    let (edit, _) = world.mail.edits.pop().unwrap();
    world.owner.handle_store(StoreReport::EditDone { edit, result: Ok(()) }, &mut world.mail);
    assert!(!show(&mut world, "a").ready);
    let again = world.command(Command::CreateVhd(Box::new(CreateVhd { thick: true, ..create("a", 40_000, SPANNED) })));
    let thin = world.command(Command::CreateVhd(Box::new(create("b", 10_000, SPANNED))));
    let mut parts = Vec::new();
    while !world.mail.edits.is_empty() {
        for (edit, rows) in std::mem::take(&mut world.mail.edits) {
            if let [StoreEdit::Place { first, replicas, generation: crate::base::units::Generation(2), .. }] = &rows[..]
            {
                parts.push((first.0, replicas.len()));
                for (i, placed) in (first.0..).zip(replicas) {
                    assert_eq!(world.mail.opened[0].map.lookup(ExtentIndex(i)).replicas, *placed);
                }
            }
            assert!(!world.mail.replies.contains_key(&id));
            world.owner.handle_store(StoreReport::EditDone { edit, result: Ok(()) }, &mut world.mail);
        }
    }
    assert_eq!(parts, [(0, 16_384), (16_384, 16_384), (32_768, 7232)]);
    assert!(matches!(&world.mail.replies[&id], Ok(Reply::Vhd { outcome: Outcome::Created, vhd }) if vhd.ready));
    assert!(matches!(&world.mail.replies[&again], Ok(Reply::Vhd { outcome: Outcome::Unchanged, .. })));
    assert!(world.mail.replies[&thin].is_ok());
    let info = show(&mut world, "a");
    assert_eq!(info.allocated, 40_000 * EXTENT);
    assert_eq!((world.free_slots(0), world.free_slots(1)), (3333, 1667), "in proportion");
    world.check();
}

#[test]
fn a_thick_vhd_that_does_not_fit_is_refused_with_numbers() {
    let mut world = World::new(&[10], 1);
    let error = create_error(&mut world, CreateVhd { thick: true, ..create("a", 11, ISOLATED) });
    assert_eq!(error, CommandError::NoRoom { needed: 11 * EXTENT, free: 10 * EXTENT });
    assert_eq!(error.kind(), ErrorKind::NoRoom);
    world.create(CreateVhd { thick: true, ..create("a", 10, ISOLATED) });
    let vhd = world.create(create("b", 1, ISOLATED));
    assert_eq!(world.allocate(&vhd, 0), None);
}

#[test]
fn a_thick_vhd_cut_short_is_completed_at_start() {
    let mut world = World::new(&[10, 10], 1);
    let vhd = world.create(CreateVhd { thick: true, ..create("a", 12, SPANNED) });
    let state = Arc::new(vhd_state(&vhd.record, world.owner.geometry, 1, None));
    for extent in [0, 1, 5] {
        let found = vhd.state.map.lookup(ExtentIndex(extent));
        state.map.restore(ExtentIndex(extent), found.replicas, found.present, found.generation);
    }
    let mut world = World::with(world.owner.pool.clone(), vec![(vhd.record.clone(), Arc::clone(&state))], 1);
    world.commit_edits();
    assert_eq!(state.map.placed_from(ExtentIndex(0)).count(), 12);
    assert_eq!(world.mail.events, []);
    world.check();
    let info = pool(&mut world);
    assert_eq!((info.space.allocated, info.space.free, info.space.reserved), (12 * EXTENT, 8 * EXTENT, 0));
}

#[test]
fn deleting_gives_all_slots_back_after_fences_and_punches() {
    let mut world = World::new(&[10, 10], 2);
    let vhd = world.create(create("a", 8, SPANNED));
    for extent in 0..8 {
        world.allocate(&vhd, extent);
    }
    world.discard(&vhd, 0);
    let id = world.command(Command::DeleteVhd { vhd: "a".to_owned(), force: false });
    assert!(!vhd.state.is_deleted());
    assert_eq!(world.mail.edits[0].1, [StoreEdit::DeleteVhd(vhd.record.id)]);
    world.commit_edits();
    assert!(matches!(&world.mail.replies[&id], Ok(Reply::Deleted { name, .. }) if name == "a"));
    assert!(vhd.state.is_deleted());
    assert_eq!(world.mail.closed, [vhd.record.id]);
    assert_eq!(world.free_slots(0) + world.free_slots(1), 12, "in limbo");
    assert_eq!(world.allocate(&vhd, 1), Some(Err(AllocateError::Deleted)));
    world.check();
    world.settle();
    assert_eq!((world.free_slots(0), world.free_slots(1)), (10, 10));
    world.check();
    assert_eq!(world.refuse(Command::DeleteVhd { vhd: "a".to_owned(), force: true }).kind(), ErrorKind::NotFound);
    assert_ne!(world.create(create("a", 8, SPANNED)).record.id, vhd.record.id, "identifiers are never reused");
}

#[test]
fn deleting_answers_those_who_wait_for_room() {
    let mut world = World::new(&[2], 1);
    let a = world.create(create("a", 8, ISOLATED));
    let b = world.create(create("b", 8, ISOLATED));
    assert_eq!(world.allocate(&a, 0), Some(Ok(())));
    assert_eq!(world.allocate(&a, 1), Some(Ok(())));
    assert_eq!(world.allocate(&a, 2), None);
    assert_eq!(world.allocate(&b, 3), None);
    world.run(Command::DeleteVhd { vhd: "a".to_owned(), force: false }).unwrap();
    assert_eq!(world.allocated(1002), Some(Err(AllocateError::Deleted)));
    world.settle();
    assert_eq!(world.allocated(1003), Some(Ok(())), "its room goes to the next");
}

#[test]
fn deleting_a_thick_vhd_while_it_is_made_stops_that() {
    let mut world = World::new(&[40_000], 1);
    let create = Command::CreateVhd(Box::new(CreateVhd { thick: true, ..create("a", 40_000, ISOLATED) }));
    let made = world.command(create);
    let (edit, _) = world.mail.edits.pop().unwrap();
    world.owner.handle_store(StoreReport::EditDone { edit, result: Ok(()) }, &mut world.mail);
    let deleted = world.command(Command::DeleteVhd { vhd: "a".to_owned(), force: false });
    assert!(matches!(&world.mail.replies[&made], Err(CommandError::Deleted { .. })));
    assert_eq!(world.mail.edits.len(), 2, "a part and the deletion, and no part after it");
    world.commit_edits();
    assert!(world.mail.replies[&deleted].is_ok());
    world.settle();
    assert_eq!(world.free_slots(0), 40_000);
    world.check();
}

#[test]
fn an_attached_vhd_is_not_deleted_without_force() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(create("a", 4, ISOLATED));
    world.owner.handle_attached(vhd.record.id, Some(77), &mut world.mail);
    assert_eq!(show(&mut world, "a").attached, Some(77));
    let error = world.refuse(Command::DeleteVhd { vhd: "a".to_owned(), force: false });
    assert_eq!(error.to_string(), "VHD 'a' is attached to process 77: detach it first, or delete it with --force");
    let queues = SetVhd { vhd: "a".to_owned(), queues: Some(4), ..SetVhd::default() };
    assert_eq!(world.refuse(Command::SetVhd(Box::new(queues.clone()))).kind(), ErrorKind::Conflict);
    world.owner.handle_attached(vhd.record.id, None, &mut world.mail);
    world.run(Command::SetVhd(Box::new(queues))).unwrap();
    world.owner.handle_attached(vhd.record.id, Some(78), &mut world.mail);
    world.run(Command::DeleteVhd { vhd: "a".to_owned(), force: true }).unwrap();
    let attached: Vec<_> = world.mail.events.iter().filter(|e| matches!(e, Event::VhdAttached { .. })).collect();
    assert_eq!(attached.len(), 2);
}

#[test]
fn renaming_keeps_names_unique() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(create("a", 4, ISOLATED));
    world.create(create("b", 4, ISOLATED));
    let rename = |from: &str, to: &str| Command::RenameVhd { vhd: from.to_owned(), to: to.to_owned() };
    assert_eq!(world.refuse(rename("a", "b")), CommandError::NameTaken { what: "VHD", name: "b".to_owned() });
    assert_eq!(world.refuse(rename("a", "b b")).kind(), ErrorKind::Invalid);
    assert_eq!(world.refuse(rename("c", "d")).kind(), ErrorKind::NotFound);
    assert!(matches!(world.run(rename("a", "a")), Ok(Reply::Vhd { outcome: Outcome::Unchanged, .. })));
    let uuid = vhd.record.uuid.to_string();
    assert!(matches!(world.run(rename(&uuid, "c")), Ok(Reply::Vhd { outcome: Outcome::Changed, .. })));
    assert_eq!(world.mail.changed, ["c"]);
    assert_eq!(show_all(&mut world), ["b", "c"]);
    assert_eq!(show(&mut world, &uuid).record.name, "c");
    assert!(matches!(world.mail.events[..], [.., Event::VhdRenamed { .. }]));
}

#[test]
fn settings_change_once_durable() {
    let mut world = World::new(&[10], 1);
    world.create(create("a", 4, ISOLATED));
    let set = SetVhd {
        vhd: "a".to_owned(),
        vm: Some(Some("web".to_owned())),
        socket_mode: Some(0o600),
        when_full: Some(WhenFull::Error),
        ..SetVhd::default()
    };
    let id = world.command(Command::SetVhd(Box::new(set.clone())));
    assert_eq!(show(&mut world, "a").record.vm, None);
    world.commit_edits();
    assert!(world.mail.replies.contains_key(&id));
    let record = show(&mut world, "a").record;
    assert_eq!((record.vm.as_deref(), record.socket_mode, record.when_full), (Some("web"), 0o600, WhenFull::Error));
    assert!(matches!(world.run(Command::SetVhd(Box::new(set))), Ok(Reply::Vhd { outcome: Outcome::Unchanged, .. })));
    let none = SetVhd { vhd: "a".to_owned(), vm: Some(None), ..SetVhd::default() };
    world.run(Command::SetVhd(Box::new(none))).unwrap();
    assert_eq!(show(&mut world, "a").record.vm, None);
    let bad = SetVhd { vhd: "a".to_owned(), socket_mode: Some(0o7000), ..SetVhd::default() };
    assert_eq!(world.refuse(Command::SetVhd(Box::new(bad))).kind(), ErrorKind::Invalid);
}

#[test]
fn a_new_disk_is_used_once_every_reactor_knows_it() {
    let mut world = World::new(&[10], 2);
    let record = disk_record(1, 20);
    let add =
        || Command::AddDisk(Box::new(AddDisk { record: disk_record(1, 20), state: disk_state(&disk_record(1, 20)) }));
    let id = world.command(add());
    world.commit_edits();
    assert_eq!(world.mail.added, [DiskId(1)]);
    assert!(!world.mail.replies.contains_key(&id));
    assert_eq!(world.free_slots(1), 0, "not open yet");
    let fences = world.fences(0);
    assert_eq!(fences.len(), 1);
    world.reach(0, fences[0].0);
    let waiting = world.command(Command::CreateVhd(Box::new(create("a", 15, ISOLATED))));
    world.reach(1, fences[0].0);
    assert!(matches!(&world.mail.replies[&id], Ok(Reply::Disk { outcome: Outcome::Created, .. })));
    world.commit_edits();
    assert!(world.mail.replies[&waiting].is_ok());
    assert_eq!(show(&mut world, "a").record.layout.disks().iter().next(), Some(record.id));
    assert!(matches!(world.run(add()), Ok(Reply::Disk { outcome: Outcome::Unchanged, .. })));
    assert_eq!(pool(&mut world).space.capacity, 30 * EXTENT);
    world.check();
}

#[test]
fn a_disk_that_does_not_fit_the_pool_is_refused() {
    let mut world = World::new(&[10], 1);
    let mut refuse = |change: &dyn Fn(&mut DiskRecord), block_size| {
        let mut record = disk_record(1, 20);
        change(&mut record);
        let name = record.name.clone();
        let state = Arc::new(DiskState::new(record.id, name, record.data_offset, record.slots, block_size, 4));
        world.refuse(Command::AddDisk(Box::new(AddDisk { record, state }))).code()
    };
    assert_eq!(refuse(&|d| d.name = "d0".to_owned(), 512), "name_taken");
    assert_eq!(refuse(&|d| d.name = "a b".to_owned(), 512), "invalid_name");
    assert_eq!(refuse(&|d| d.id = DiskId(2), 512), "disk_id_taken");
    assert_eq!(refuse(&|_| {}, 4096), "block_sizes_mixed");
}

#[test]
fn shared_failure_domains_are_shown() {
    let mut world = World::new(&[10, 10], 1);
    let set = |domain: &str| {
        let failure_domain = Some(domain.to_owned());
        Command::SetDisk(Box::new(SetDisk { disk: "d1".to_owned(), accept: None, failure_domain }))
    };
    for bad in ["", " ", "shelf 1", "shelf/1"] {
        assert_eq!(world.refuse(set(bad)).code(), "invalid_name", "{bad:?}");
    }
    world.run(set("domain0")).unwrap();
    let info = pool(&mut world);
    assert_eq!(info.disks[0].shares_domain_with, ["d1"]);
    assert_eq!(info.disks[1].shares_domain_with, ["d0"]);
    assert_eq!(
        world.refuse(Command::SetDisk(Box::new(SetDisk { disk: "d7".to_owned(), ..SetDisk::default() }))).code(),
        "not_found"
    );
}

#[test]
fn the_pool_adds_up() {
    let mut world = World::new(&[10, 10], 1);
    let vhd = world.create(create("a", 30, SPANNED));
    for extent in 0..7 {
        world.allocate(&vhd, extent);
    }
    world.discard(&vhd, 3);
    let info = pool(&mut world);
    let space = info.space;
    assert_eq!(space.capacity, space.allocated + space.reserved + space.reclaiming + space.free);
    assert_eq!((space.allocated, space.reclaiming, space.provisioned), (6 * EXTENT, EXTENT, 30 * EXTENT));
    assert_eq!((info.vhds, info.disks.len(), info.waiting), (1, 2, 0));
    assert_eq!(info.disks[0].vhds, ["a"]);
    assert_eq!(info.disks.iter().map(|disk| disk.space.provisioned).sum::<u64>(), 30 * EXTENT);
    let slots: u32 = show(&mut world, "a").slots.values().sum();
    assert_eq!(slots, 6);
}
