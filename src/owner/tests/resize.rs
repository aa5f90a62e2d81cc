//! Growing and shrinking.

use super::*;
use crate::base::limits::GROWTHS_MAX;
use crate::base::units::Generation;
use crate::mover::messages::Speed;
use crate::owner::command::{ErrorKind, JobRequest, ResizeVhd, StartJob};

fn resize(vhd: &str, size: u64, force: bool) -> Command {
    Command::ResizeVhd(ResizeVhd { vhd: vhd.to_owned(), size, force })
}

fn show(world: &mut World, name: &str) -> VhdInfo {
    match world.ask(Command::ShowVhd { vhd: name.to_owned() }).unwrap() {
        Reply::Vhd { vhd, .. } => *vhd,
        other => panic!("{other:?}"),
    }
}

fn resized(world: &mut World, size: u64, force: bool) -> Outcome {
    match world.run(resize("a", size, force)).unwrap() {
        Reply::Vhd { outcome, vhd } => {
            assert_eq!((vhd.record.size, vhd.state.size()), (size, size));
            outcome
        }
        other => panic!("{other:?}"),
    }
}

/// As a guest that has written these blocks of a placed extent.
fn write(vhd: &VhdInfo, extent: u32, blocks: u32) {
    let (map, extent, blocks) = (&vhd.state.map, ExtentIndex(extent), BlockMask(blocks));
    map.claim_absent(extent, blocks, map.lookup(extent).version).unwrap();
    map.release(extent, blocks, blocks);
}

#[test]
fn a_thin_vhd_grows_once_its_record_is_durable_and_the_same_again_changes_nothing() {
    let mut world = World::new(&[20], 1);
    let vhd = world.create(create("a", 4, ISOLATED));
    world.owner.handle_attached(vhd.record.id, Some(7), &mut world.mail);
    world.mail.events.clear();
    let id = world.command(resize("a", 8 * EXTENT - 512, false));
    assert_eq!((vhd.state.size(), vhd.state.map.extents()), (4 * EXTENT, 4), "not before it is durable");
    let [StoreEdit::PutVhd(record)] = &world.mail.edits[0].1[..] else { panic!("{:?}", world.mail.edits) };
    assert_eq!(record.size, 8 * EXTENT - 512);
    world.commit_edits();
    assert!(matches!(&world.mail.replies[&id], Ok(Reply::Vhd { outcome: Outcome::Changed, .. })));
    assert_eq!((vhd.state.size(), vhd.state.map.extents()), (8 * EXTENT - 512, 8));
    assert_eq!(world.mail.changed, ["a"]);
    let event = Event::VhdResized { vhd: "a".to_owned(), old_bytes: 4 * EXTENT, new_bytes: 8 * EXTENT - 512 };
    assert_eq!(world.mail.events, [event]);
    assert_eq!(world.allocate(&vhd, 7), Some(Ok(())));
    assert_eq!(resized(&mut world, 8 * EXTENT - 512, false), Outcome::Unchanged);
    assert!(world.mail.edits.is_empty());
    world.check();
}

#[test]
fn sizes_have_the_rules_of_new_vhds() {
    let mut world = World::new(&[20], 1);
    world.create(create("a", 4, ISOLATED));
    for (size, code) in [(0, "invalid_size"), (5 * EXTENT + 1, "invalid_size"), (1 << 60, "size_too_large")] {
        let error = world.refuse(resize("a", size, true));
        assert_eq!((error.code(), error.kind()), (code, ErrorKind::Invalid));
    }
    assert_eq!(world.refuse(resize("b", EXTENT, true)).kind(), ErrorKind::NotFound);
}

#[test]
fn a_record_that_cannot_be_written_changes_nothing() {
    let mut world = World::new(&[20], 1);
    let vhd = world.create(CreateVhd { thick: true, ..create("a", 4, ISOLATED) });
    for (size, force) in [(8 * EXTENT, false), (2 * EXTENT, true)] {
        let id = world.command(resize("a", size, force));
        let (edit, _) = world.mail.edits.pop().unwrap();
        let failed = StoreReport::EditDone { edit, result: Err(crate::store::edit::EditFailed) };
        world.owner.handle_store(failed, &mut world.mail);
        assert_eq!(world.mail.replies.remove(&id).unwrap().unwrap_err().code(), "store_failed");
        assert_eq!((vhd.state.size(), world.free_slots(0)), (4 * EXTENT, 16));
        assert!(vhd.state.door.enter(), "the door is open");
        vhd.state.door.leave();
    }
    world.check();
}

#[test]
fn a_thick_vhd_has_its_room_before_its_guest_sees_it() {
    let mut world = World::new(&[12, 12], 1);
    let vhd = world.create(CreateVhd { thick: true, ..create("a", 10, SPANNED) });
    let error = world.refuse(resize("a", 25 * EXTENT, false));
    let refused =
        CommandError::NoRoomToGrow { vhd: "a".to_owned(), by: 15 * EXTENT, needed: 15 * EXTENT, free: 14 * EXTENT };
    assert_eq!((&error, error.kind()), (&refused, ErrorKind::NoRoom));

    let id = world.command(resize("a", 20 * EXTENT, false));
    let (edit, _) = world.mail.edits.pop().unwrap();
    world.owner.handle_store(StoreReport::EditDone { edit, result: Ok(()) }, &mut world.mail);
    assert_eq!((vhd.state.size(), vhd.state.map.extents()), (10 * EXTENT, 20), "room first");
    assert!(show(&mut world, "a").ready, "it is served meanwhile");
    let again = world.command(resize("a", 20 * EXTENT, false));
    let other = world.command(resize("a", 22 * EXTENT, false));
    assert_eq!(world.mail.replies[&other].as_ref().unwrap_err().code(), "being_filled");
    assert!(
        matches!(&world.mail.edits[0].1[..], [StoreEdit::Place { first: ExtentIndex(10), replicas, .. }] if replicas.len() == 10)
    );
    world.commit_edits();
    assert!(matches!(&world.mail.replies[&id], Ok(Reply::Vhd { outcome: Outcome::Changed, .. })));
    assert!(matches!(&world.mail.replies[&again], Ok(Reply::Vhd { outcome: Outcome::Unchanged, .. })));
    assert_eq!((vhd.state.size(), show(&mut world, "a").allocated), (20 * EXTENT, 20 * EXTENT));
    assert_eq!(world.free_slots(0) + world.free_slots(1), 4);
    assert!(!world.mail.events.iter().skip(1).any(|event| matches!(event, Event::VhdCreated { .. })));
    world.check();
}

#[test]
fn shrinking_says_what_would_be_lost_and_loses_just_that() {
    let mut world = World::new(&[20], 1);
    let vhd = world.create(create("a", 10, ISOLATED));
    let block = EXTENT / 32;
    for extent in [0, 3, 4, 9] {
        world.allocate(&vhd, extent).unwrap().unwrap();
        write(&vhd, extent, 0xffff_0001);
    }
    let size = 3 * EXTENT + 17 * block;
    let error = world.refuse(resize("a", size, false));
    let written = (15 + 2 * 17) * block;
    assert_eq!(error, CommandError::ShrinkLoses { vhd: "a".to_owned(), size, written });
    assert!(error.to_string().contains(&written.to_string()) && error.kind() == ErrorKind::Conflict);
    assert_eq!(world.refuse(resize("a", size + 512, true)).code(), "shrink_misaligned");

    let places = || [0, 3].map(|extent| World::place_of(&vhd, extent));
    let kept = places();
    let id = world.command(resize("a", size, true));
    let shrink = StoreEdit::Shrink { vhd: vhd.record.id, extents: 4, last: BlockMask(0x0001_ffff) };
    assert!(
        matches!(&world.mail.edits[0].1[..], [StoreEdit::PutVhd(record), other] if record.size == size && *other == shrink)
    );
    assert!(!vhd.state.door.enter(), "nobody comes in meanwhile");
    assert_eq!(world.free_slots(0), 16);
    world.commit_edits();
    assert!(world.mail.replies.remove(&id).unwrap().is_ok());
    assert!(vhd.state.door.enter());
    vhd.state.door.leave();
    assert_eq!((vhd.state.size(), vhd.state.map.extents(), vhd.state.map.present_blocks()), (size, 4, 17 + 2));
    assert_eq!(world.free_slots(0), 16, "slots go through fences and punches");
    world.settle();
    assert_eq!((world.free_slots(0), show(&mut world, "a").allocated), (18, 2 * EXTENT));
    assert_eq!(places(), kept);
    world.check();

    assert_eq!(resized(&mut world, 10 * EXTENT, false), Outcome::Changed);
    for extent in [3, 4, 9] {
        let found = vhd.state.map.lookup(ExtentIndex(extent));
        assert!(found.present.and(BlockMask(0xfffe_0000)).is_empty(), "what was beyond the end reads as zeros");
        assert!(extent == 3 || found.replicas.is_absent() && found.generation == Generation(4));
    }
    assert_eq!(world.allocate(&vhd, 9), Some(Ok(())));
    world.check();
}

#[test]
fn nothing_shrinks_while_somebody_uses_it() {
    let mut world = World::new(&[20, 20], 1);
    let vhd = world.create(create("a", 10, ISOLATED));
    world.owner.handle_attached(vhd.record.id, Some(7), &mut world.mail);
    assert!(matches!(world.refuse(resize("a", EXTENT, true)), CommandError::Attached { pid: 7, .. }));
    world.owner.handle_attached(vhd.record.id, None, &mut world.mail);
    assert!(vhd.state.door.enter(), "a frontend that the owner has not heard of yet");
    assert!(matches!(world.refuse(resize("a", EXTENT, true)), CommandError::Attached { pid: 0, .. }));
    vhd.state.door.leave();

    world.allocate(&vhd, 1).unwrap().unwrap();
    let request = JobRequest::Migrate { vhd: "a".to_owned(), disk: None };
    let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
    world.run(Command::StartJob(Box::new(start))).unwrap();
    assert!(matches!(world.refuse(resize("a", EXTENT, true)), CommandError::JobExists { job: 1, .. }));
    assert_eq!(resized(&mut world, 12 * EXTENT, false), Outcome::Changed);
    let cancel = Command::CancelJob { job: crate::base::ids::JobId(1), revert: false, now: 2 };
    world.run(cancel).unwrap();
    world.settle();
    let error = world.run(resize("a", EXTENT, true));
    assert!(error.is_ok(), "{error:?}");
    world.settle();
    assert_eq!((world.free_slots(0), world.free_slots(1)), (20, 20));
    world.check();
}

#[test]
fn a_write_that_comes_too_late_finds_no_extent() {
    let mut world = World::new(&[1], 1);
    let vhd = world.create(create("a", 10, ISOLATED));
    world.allocate(&vhd, 0).unwrap().unwrap();
    assert_eq!(world.allocate(&vhd, 9), None, "it waits for room");
    assert_eq!(resized(&mut world, 5 * EXTENT, true), Outcome::Changed);
    assert_eq!(world.allocated(1009), Some(Err(AllocateError::Deleted)));
    assert_eq!(world.allocate(&vhd, 9), Some(Err(AllocateError::Deleted)));
}

#[test]
fn a_vhd_that_grew_too_often_wants_a_restart() {
    let mut world = World::new(&[20], 1);
    let vhd = world.create(create("a", 1, ISOLATED));
    for _ in 0..GROWTHS_MAX {
        let size = (u64::from(vhd.state.map.room()) + 1) * EXTENT;
        assert_eq!(resized(&mut world, size, false), Outcome::Changed);
    }
    let error = world.refuse(resize("a", (u64::from(vhd.state.map.room()) + 1) * EXTENT, false));
    assert_eq!((error.code(), error.kind()), ("grown_too_often", ErrorKind::Conflict));
    assert!(error.to_string().contains("restart"));
    world.check();
}
