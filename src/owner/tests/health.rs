//! Disks that give errors, and disks that are given up by order.

use super::*;
use crate::base::limits::{HEALTH_LOOK_SECS, HEALTH_WINDOW_SECS, SUSPECT_ERRORS};

const ON_BOTH: LayoutRequest = LayoutRequest::Spanned { disks: None, width: None };

fn fail(disk: &str) -> Command {
    Command::FailDisk { disk: disk.to_owned() }
}

fn at(secs: u64) -> Nanos {
    Nanos(secs * 1_000_000_000)
}

fn suspicion(world: &World) -> Option<String> {
    world.owner.overview().0.disks[0].suspicion.clone()
}

#[test]
fn a_disk_with_errors_is_suspect_for_a_while_and_used_all_the_same() {
    let mut world = World::new(&[10, 10], 1);
    let vhd = world.create(create("a", 20, ON_BOTH));
    world.now = at(5);
    for _ in 0..SUSPECT_ERRORS + 2 {
        let error = OwnerRequest::DiskError { disk: DiskId(0), error: IoError::Os(5), sync: false };
        world.owner.handle_reactor(error, world.now, &mut world.mail);
    }
    let told = |world: &World, wanted: fn(&Event) -> bool| world.mail.events.iter().filter(|e| wanted(e)).count();
    let suspect = |e: &Event| matches!(e, Event::DiskSuspect { disk, .. } if disk == "d0");
    let healthy = |e: &Event| matches!(e, Event::DiskHealthy { disk } if disk == "d0");
    assert_eq!((told(&world, suspect), told(&world, healthy)), (1, 0));
    assert_eq!(suspicion(&world).unwrap(), format!("{} errors in the last 10 minutes", SUSPECT_ERRORS + 2));
    (0..20).for_each(|extent| assert_eq!(world.allocate(&vhd, extent), Some(Ok(())), "it is used as before"));

    for look in 1..2 * HEALTH_WINDOW_SECS / HEALTH_LOOK_SECS {
        world.owner.watch_disks(at(look * HEALTH_LOOK_SECS), &mut world.mail);
    }
    assert_eq!((told(&world, suspect), told(&world, healthy), suspicion(&world)), (1, 1, None));
}

#[test]
fn a_disk_that_was_given_up_is_failed_at_once_and_told_once() {
    let mut world = World::new(&[10, 10], 1);
    let vhd = world.create(create("a", 20, ON_BOTH));
    let Ok(Reply::Disk { outcome: Outcome::Changed, disk }) = world.ask(fail("d0")) else { panic!("not failed") };
    assert!(disk.state.is_failed() && disk.space.free == 0);
    assert!(matches!(world.mail.events.last(), Some(Event::DiskFailed { disk, .. }) if disk == "d0"));
    assert!(matches!(world.ask(fail("d0")), Ok(Reply::Disk { outcome: Outcome::Unchanged, .. })));
    // What the disk still says is no second failure, and does not make it suspect.
    for _ in 0..SUSPECT_ERRORS {
        let error = OwnerRequest::DiskError { disk: DiskId(0), error: IoError::Os(5), sync: true };
        world.owner.handle_reactor(error, world.now, &mut world.mail);
    }
    assert_eq!(world.mail.events.iter().filter(|e| matches!(e, Event::DiskFailed { .. })).count(), 1);
    assert_eq!(suspicion(&world), None);
    for extent in 0..10 {
        assert_eq!(world.allocate(&vhd, extent), Some(Ok(())));
        assert_eq!(World::place_of(&vhd, extent).unwrap().0, DiskId(1));
    }
    assert!(matches!(world.ask(fail("nowhere")), Err(CommandError::NotFound { what: "disk", .. })));
}

#[test]
fn a_disk_that_is_gone_has_failed_at_once() {
    for gone in [libc::ENODEV, libc::ENXIO, libc::ENOTCONN] {
        let mut world = World::new(&[10, 10], 1);
        let error = OwnerRequest::DiskError { disk: DiskId(0), error: IoError::Os(gone), sync: false };
        world.owner.handle_reactor(error, world.now, &mut world.mail);
        assert!(matches!(&world.mail.events[..], [.., Event::DiskFailed { disk, .. }] if disk == "d0"));
        assert!(world.owner.space.disk(DiskId(0)).state.is_failed());
    }
}
