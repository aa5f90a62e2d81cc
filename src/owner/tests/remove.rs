//! Disks that leave the pool.

use super::super::command::{AddDisk, JobRequest, StartJob};
use super::*;
use crate::mover::messages::Speed;
use crate::reactor::messages::MissedBy;
use crate::shared::disk::{SyncNumber, SyncPoint};

fn remove(disk: &str, check: bool) -> Command {
    Command::RemoveDisk { disk: disk.to_owned(), check }
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
    let refused = world.refuse(remove("d1", true));
    let CommandError::DiskNotEmpty { extents: 0, vhds, .. } = refused else { panic!("{refused}") };
    assert_eq!(vhds, ["a"]);
    world.allocate(&vhd, 0);
    let refused = world.refuse(remove("d1", false));
    assert!(matches!(refused, CommandError::DiskNotEmpty { extents: 1, bytes: EXTENT, .. }), "{refused}");
    assert!(refused.to_string().contains("disk evacuate d1"), "{refused}");
    assert!(matches!(world.refuse(remove("dx", false)), CommandError::NotFound { .. }));

    // Slots that are on their way back.
    world.run(Command::DeleteVhd { vhd: "a".to_owned(), force: false }).unwrap();
    assert!(matches!(world.refuse(remove("d1", true)), CommandError::DiskBusy { .. }));
    world.settle();
    world.run(remove("d1", true)).unwrap();

    // A job that has not ended, although the disk is empty.
    let job = match world.run(start(JobRequest::Evacuate { disk: "d1".to_owned() })).unwrap() {
        Reply::Job { job, .. } => job.record.id,
        Reply::Plan(_) => panic!("the role of the disk changes"),
        other => panic!("{other:?}"),
    };
    if !world.owner.job_info(job).record.is_ended() {
        assert!(matches!(world.refuse(remove("d1", true)), CommandError::DiskOfJob { .. }));
    }
    world.settle();
    world.run(remove("d1", false)).unwrap();
}

#[test]
fn a_job_that_stopped_keeps_its_disk() {
    let mut world = World::new(&[8, 8], 1);
    let vhd = world.create(create("a", 4, on("d0")));
    world.allocate(&vhd, 0);
    let Reply::Job { job, .. } = world.run(start(JobRequest::Evacuate { disk: "d0".to_owned() })).unwrap() else {
        panic!("there is something to move")
    };
    world.owner.stop_job(job.record.id, "for the test", &mut world.mail);
    world.settle();
    let refused = world.refuse(remove("d0", false));
    assert!(matches!(refused, CommandError::DiskOfJob { kind: "evacuate", state: "stopped", .. }), "{refused}");
}

#[test]
fn the_last_disk_stays() {
    let mut world = World::new(&[8], 1);
    assert!(matches!(world.refuse(remove("d0", false)), CommandError::LastDisk { .. }));
}

#[test]
fn a_disk_that_leaves_is_let_go_of_once_nothing_is_in_flight() {
    let mut world = World::new(&[8, 8], 2);
    let vhd = world.create(create("a", 4, on("d0")));
    world.allocate(&vhd, 0);
    let gone = DiskId(1);
    vhd.state.note_written(SyncPoint { disk: gone, number: SyncNumber(3) });
    let reply = world.run(remove("d1", false)).unwrap();
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
    world.run(remove("d1", false)).unwrap();
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
    assert!(matches!(world.refuse(remove("d1", false)), CommandError::NotFound { .. }));
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
