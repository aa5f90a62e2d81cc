//! Disks that do not answer.

use super::degraded::reopened;
use super::*;

const R: ReactorId = ReactorId(0);

#[test]
fn a_disk_on_which_nothing_completes_has_failed() {
    let (mut world, _) = reopened(None);
    let disk = Arc::clone(&world.owner.space.disk(DiskId(1)).state);
    let progress = disk.progress_of(R);
    progress.begun();
    progress.begun();
    world.advance(1000);
    world.advance(4000);
    progress.completed();
    world.advance(1000);
    world.advance(4000);
    assert!(!disk.is_failed(), "it is slow");
    world.advance(1000);
    assert!(!disk.is_failed(), "the reactor may be held up by something else");
    let asked = |(_, message): &&(ReactorId, ReactorMessage)| matches!(message, ReactorMessage::Turn);
    assert_eq!(world.mail.reactors.iter().filter(asked).count(), 1);
    world.advance(1000);
    assert_eq!(world.mail.reactors.iter().filter(asked).count(), 1, "asked once");
    world.tell(OwnerRequest::Turned { reactor: R });
    world.advance(1000);
    assert!(disk.is_failed());
    let failed = |event: &Event| matches!(event, Event::DiskFailed { .. });
    assert!(world.mail.events.iter().any(failed));
    let idle = &world.owner.space.disk(DiskId(0)).state;
    assert!(!idle.is_failed(), "nothing was asked of it");
}

/// Nothing of guests is in flight there: what they write waits for the mover's claim, maybe.
#[test]
fn a_disk_that_does_not_answer_the_mover_has_failed() {
    let (mut world, _) = reopened(None);
    let disk = Arc::clone(&world.owner.space.disk(DiskId(1)).state);
    disk.copying.begun();
    disk.copying.begun();
    world.advance(1000);
    world.advance(4000);
    disk.copying.completed();
    world.advance(1000);
    world.advance(4000);
    let asked = |world: &World| world.mail.mover.iter().filter(|m| matches!(m, MoverMessage::Turn)).count();
    assert_eq!(asked(&world), 0, "it is slow");
    world.advance(1000);
    world.advance(1000);
    assert!(!disk.is_failed() && asked(&world) == 1, "the mover may be held up by something else");
    world.owner.handle_mover(MoverReport::Turned, world.now, &mut world.mail);
    world.advance(1000);
    assert!(disk.is_failed());
    assert!((0..3).map(DiskId).all(|id| id == disk.id || !world.owner.space.disk(id).state.is_failed()));
}

/// A sync takes as long as the filesystem beneath likes.
#[test]
fn a_disk_that_answers_reactors_does_not_hang_because_of_the_mover() {
    let (mut world, _) = reopened(None);
    let disk = Arc::clone(&world.owner.space.disk(DiskId(1)).state);
    disk.copying.begun();
    for _ in 0..20 {
        disk.progress_of(R).begun();
        disk.progress_of(R).completed();
        world.advance(1000);
        world.owner.handle_mover(MoverReport::Turned, world.now, &mut world.mail);
    }
    assert!(!disk.is_failed());
}
