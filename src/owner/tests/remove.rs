//! Disks that leave the pool.

use super::super::command::RemovalStep::{self, Hold, Release, Take};
use super::super::command::{AddDisk, JobRequest, SetJob, StartJob};
use super::*;
use crate::mover::messages::Speed;
use crate::reactor::messages::MissedBy;
use crate::shared::disk::{SyncNumber, SyncPoint};

fn remove(disk: &str, step: RemovalStep) -> Command {
    Command::RemoveDisk { disk: disk.to_owned(), step }
}

fn on(disk: &str) -> LayoutRequest {
    LayoutRequest::Isolated { disk: Some(disk.to_owned()) }
}

fn start(request: JobRequest) -> Command {
    Command::StartJob(Box::new(StartJob { request, dry_run: false, speed: Speed::default(), created: 1 }))
}

#[test]
fn a_disk_that_is_in_use_stays() {
    let mut world = World::new(&[8, 8, 8], 1);
    let vhd = world.create(create("a", 4, on("d1")));
    let refused = world.refuse(remove("d1", Hold));
    let CommandError::DiskNotEmpty { extents: 0, vhds, .. } = refused else { panic!("{refused}") };
    assert_eq!(vhds, ["a"]);
    world.allocate(&vhd, 0);
    let refused = world.refuse(remove("d1", Take));
    assert!(matches!(refused, CommandError::DiskNotEmpty { extents: 1, bytes: EXTENT, .. }), "{refused}");
    assert!(refused.to_string().contains("disk evacuate d1"), "{refused}");
    assert!(matches!(world.refuse(remove("dx", Take)), CommandError::NotFound { .. }));

    // Slots that are on their way back.
    world.run(Command::DeleteVhd { vhd: "a".to_owned(), force: false }).unwrap();
    assert!(matches!(world.refuse(remove("d1", Hold)), CommandError::DiskBusy { .. }));
    world.settle();
    world.run(remove("d1", Hold)).unwrap();

    // A job that has not ended, although the disk is empty.
    let job = match world.run(start(JobRequest::Evacuate { disk: "d1".to_owned(), accept_loss: false })).unwrap() {
        Reply::Job { job, .. } => job.record.id,
        Reply::Plan(_) => panic!("the role of the disk changes"),
        other => panic!("{other:?}"),
    };
    if !world.owner.job_info(job).record.is_ended() {
        assert!(matches!(world.refuse(remove("d1", Hold)), CommandError::DiskOfJob { .. }));
    }
    world.settle();
    world.run(remove("d1", Take)).unwrap();
}

#[test]
fn a_job_that_stopped_keeps_its_disk() {
    let mut world = World::new(&[8, 8], 1);
    let vhd = world.create(create("a", 4, on("d0")));
    world.allocate(&vhd, 0);
    let Reply::Job { job, .. } =
        world.run(start(JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss: false })).unwrap()
    else {
        panic!("there is something to move")
    };
    world.owner.stop_job(job.record.id, "for the test", &mut world.mail);
    world.settle();
    let refused = world.refuse(remove("d0", Take));
    assert!(matches!(refused, CommandError::DiskOfJob { kind: "evacuate", state: "stopped", .. }), "{refused}");
}

#[test]
fn the_last_disk_stays() {
    let mut world = World::new(&[8], 1);
    assert!(matches!(world.refuse(remove("d0", Take)), CommandError::LastDisk { .. }));
}

#[test]
fn a_disk_that_leaves_is_let_go_of_once_nothing_is_in_flight() {
    let mut world = World::new(&[8, 8], 2);
    let vhd = world.create(create("a", 4, on("d0")));
    world.allocate(&vhd, 0);
    let gone = DiskId(1);
    vhd.state.note_written(SyncPoint { disk: gone, number: SyncNumber(3) });
    let reply = world.run(remove("d1", Take)).unwrap();
    assert!(matches!(&reply, Reply::DiskRemoved { id, name } if *id == gone && name == "d1"), "{reply:?}");
    assert!(world.mail.events.contains(&Event::DiskRemoved { disk: "d1".to_owned() }));
    let pool = &world.owner.pool;
    assert!(pool.disk(gone).is_none() && world.mail.removed.is_empty(), "a request may be in flight there");
    world.settle();
    assert_eq!(world.mail.removed, [gone]);
    let told =
        |(_, m): &&(ReactorId, ReactorMessage)| matches!(m, ReactorMessage::RemoveDisk { disk } if *disk == gone);
    assert_eq!(world.mail.reactors.iter().filter(told).count(), 2);
    assert!(world.mail.mover.iter().any(|m| matches!(m, MoverMessage::RemoveDisk { disk } if *disk == gone)));
    // Neither FLUSH nor commits wait for it.
    assert_eq!(vhd.state.sync_wanted_on(gone), SyncNumber(0));
    assert_eq!(world.mail.excused, [(vhd.record.id, SyncPoint { disk: gone, number: SyncNumber(u64::MAX) })]);
    let Reply::Pool(info) = world.ask(Command::ShowPool).unwrap() else { panic!() };
    assert_eq!((info.disks.len(), info.space.capacity), (1, 8 * EXTENT));
    world.check();
}

#[test]
fn what_comes_late_of_a_disk_that_has_left_does_no_harm_and_its_number_is_not_given_away() {
    let mut world = World::new(&[8, 8], 1);
    let vhd = world.create(create("a", 4, on("d0")));
    world.run(remove("d1", Take)).unwrap();
    world.settle();
    let gone = DiskId(1);
    let (reactor, error) = (ReactorId(0), IoError::Os(libc::EIO));
    for late in [
        OwnerRequest::DiskError { disk: gone, error, sync: true },
        OwnerRequest::CopyMissed {
            reactor,
            vhd: vhd.record.id,
            disk: gone,
            by: MissedBy::Flush { ticket: 1, disk: gone },
        },
    ] {
        world.owner.handle_reactor(late, world.now, &mut world.mail);
    }
    let dropped = StoreReport::MemberDropped { disk: gone, sync_failed: true };
    world.owner.handle_store(dropped, &mut world.mail);
    assert!(matches!(world.refuse(remove("d1", Take)), CommandError::NotFound { .. }));
    let add = |id: u8| {
        let record = DiskRecord { name: "new".to_owned(), uuid: uuid::Uuid::from_u128(9), ..disk_record(id, 8) };
        let state = disk_state(&record);
        Command::AddDisk(Box::new(AddDisk { record, state }))
    };
    assert!(matches!(world.refuse(add(1)), CommandError::DiskIdTaken { .. }));
    let id = world.command(add(2));
    world.settle();
    assert!(world.mail.replies.remove(&id).unwrap().is_ok());
    world.check();
}

/// A guest goes on writing while the pool record without the disk is being written.
#[test]
fn nothing_is_placed_on_a_disk_that_is_about_to_leave() {
    let mut world = World::new(&[4, 8], 1);
    let on_d0 = LayoutRequest::Spanned { disks: Some(vec!["d0".to_owned()]), width: None };
    let vhd = world.create(CreateVhd { when_full: WhenFull::Error, ..create("s", 8, on_d0) });
    for extent in 0..4 {
        assert_eq!(world.allocate(&vhd, extent), Some(Ok(())));
    }
    world.run(remove("d1", Hold)).unwrap();
    assert!(matches!(world.allocate(&vhd, 4), Some(Err(AllocateError::NoSpace))), "it would have grown there");
    let named = Command::CreateVhd(Box::new(create("t", 1, on("d1"))));
    assert!(matches!(world.refuse(named), CommandError::DiskRefuses { .. }));
    world.run(remove("d1", Release)).unwrap();
    assert_eq!(world.allocate(&vhd, 4), Some(Ok(())));
    world.discard(&vhd, 4);
    world.settle();

    let id = world.command(remove("d1", Take));
    assert!(matches!(world.allocate(&vhd, 5), Some(Err(AllocateError::NoSpace))));
    world.commit_edits();
    assert!(matches!(world.mail.replies.remove(&id), Some(Ok(Reply::DiskRemoved { .. }))));
    world.settle();
    world.check();
}

#[test]
fn a_job_that_can_be_taken_back_keeps_the_disks_of_before() {
    let mut world = World::new(&[8, 8, 8], 1);
    let vhd = world.create(create("a", 4, on("d0")));
    world.allocate(&vhd, 0);
    let migrate = JobRequest::Migrate { vhd: "a".to_owned(), disk: Some("d1".to_owned()) };
    let Reply::Job { job, .. } = world.run(start(migrate)).unwrap() else { panic!("something is to be moved") };
    let id = job.record.id;
    world.run(Command::SetJob(SetJob { job: id, paused: Some(true), max_rate: None, urgent: None })).unwrap();
    world.discard(&vhd, 0);
    world.settle();
    let refused = world.refuse(remove("d0", Hold));
    assert!(matches!(refused, CommandError::DiskOfJob { kind: "migrate", state: "paused", .. }), "{refused}");
    world.run(Command::CancelJob { job: id, revert: false, now: 2 }).unwrap();
    world.settle();
    world.run(remove("d0", Take)).unwrap();
}

#[test]
fn a_layout_that_names_no_disk_of_the_pool_is_said_at_the_opening() {
    let mut world = World::new(&[8, 8], 1);
    let vhd = world.create(create("a", 4, on("d1")));
    let pool = PoolRecord::new(world.owner.pool.uuid, EXTENT, vec![disk_record(0, 8)]);
    let disks = pool.disks.iter().map(disk_state).collect();
    let vhds = vec![(vhd.record.clone(), Arc::clone(&vhd.state))];
    let error = Owner::new(pool, disks, vhds, 1).err().expect("it cannot be served");
    assert!(matches!(error, OpenError::LayoutDisk { disk: 1, .. }), "{error}");
}
