//! What replicas have missed, while something else happens to them: moves, shrinks, more errors.

use super::super::command::{JobRequest, ResizeVhd, StartJob};
use super::degraded::{degrading, on, reopened, replicas, write};
use super::replicas::{fill, replicated, world};
use super::*;
use crate::base::limits::{WAVE_EXTENTS, WAVES_MAX};
use crate::engine::IoError;
use crate::mover::messages::Speed;
use crate::owner::moves::wave::{Stage, Wave};
use crate::placement::ReplicaState;
use crate::reactor::messages::MissedBy;
use crate::store::edit::EditFailed;

const R: ReactorId = ReactorId(0);
const E: ExtentIndex = ExtentIndex(0);
const EIO: IoError = IoError::Os(libc::EIO);

fn start(world: &mut World, request: JobRequest) {
    let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
    world.run(Command::StartJob(Box::new(start))).unwrap();
}

fn discard_part(world: &World, vhd: &VhdInfo, extent: ExtentIndex) {
    // As if it had been dropped and placed anew: another generation.
    let map = &vhd.state.map;
    let seen = map.lookup(extent);
    map.claim_and_clear(extent, BlockMask::ALL, seen.version).unwrap();
    map.drop_extent(extent);
    map.release(extent, BlockMask::ALL, BlockMask::NONE);
    assert!(world.owner.vhds.get(vhd.record.id).is_some());
}

#[test]
fn a_replica_is_not_mended_while_its_extent_is_moved_nor_moved_while_it_is_mended() {
    let (mut world, vhd) = degrading();
    let bad = replicas(&vhd, E)[1].disk;
    world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: E, disk: bad });
    let copy = world.copies().remove(0);
    start(&mut world, JobRequest::Evacuate { disk: format!("d{}", bad.0), accept_loss: false });
    assert!(!vhd.state.map.lookup(E).replicas.is_moving(), "it is being mended");
    let others = on(&vhd, bad, ReplicaState::InSync).into_iter().filter(|extent| *extent != E);
    for other in others {
        assert!(vhd.state.map.lookup(other).replicas.is_moving());
        world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: other, disk: bad });
    }
    assert!(world.copies().is_empty(), "they are being moved");
    let report = MoverReport::Failed { id: copy.id, disk: bad, error: EIO };
    world.owner.handle_mover(report, world.now, &mut world.mail);
    world.move_all();
    world.advance(1000);
    world.move_all();
    let left = on(&vhd, bad, ReplicaState::InSync);
    assert!(left.is_empty(), "all of it has left in the end, not {left:?}: {:?}", world.jobs());
    world.check();
}

#[test]
fn an_intent_is_not_taken_back_under_a_move() {
    let (mut world, vhd) = degrading();
    world.intend(&vhd, E);
    world.edit_done(Ok(()));
    world.advance(10_000);
    start(&mut world, JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss: false });
    world.advance(10_000);
    assert!(vhd.state.map.has_intent(0), "what is written to a copy that becomes a replica does not ask");
    world.move_all();
    assert!(vhd.state.map.has_intent(0));
}

#[test]
fn what_a_shrink_cuts_off_has_no_intent_when_it_grows_again() {
    let mut world = super::replicas::world(&[(600, "a"), (600, "b")]);
    let vhd = world.create(super::replicas::replicated(192, 2));
    super::replicas::fill(&mut world, &vhd, 192);
    for extent in [0, 64, 130].map(ExtentIndex) {
        world.intend(&vhd, extent);
        world.edit_done(Ok(()));
    }
    for extents in [64, 192] {
        let size = extents * EXTENT;
        let resize = ResizeVhd { vhd: "r".to_owned(), size, force: true };
        world.run(Command::ResizeVhd(resize)).unwrap();
        world.settle();
    }
    assert_eq!([0, 1, 2].map(|page| vhd.state.map.has_intent(page)), [true, false, false]);
    world.allocate(&vhd, 130);
    world.intend(&vhd, ExtentIndex(130));
    assert_eq!(world.mail.edits.len(), 1, "the row is made anew");
}

/// Doubt is over when every replica of the page is equal, whatever else is mended meanwhile.
#[test]
fn doubt_ends_with_the_last_replica() {
    let (mut world, vhd) = reopened(None);
    let read = replicas(&vhd, ExtentIndex(7))[0].disk;
    world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: ExtentIndex(7), disk: read });
    let mut left = 8;
    while left > 0 {
        for copy in world.copies() {
            assert!(vhd.state.map.is_in_doubt(E), "{left} replicas are left");
            assert_eq!(copy.source, replicas(&vhd, copy.extent)[0], "never the one that is read");
            left -= 1;
            world.owner.handle_mover(MoverReport::Copied { id: copy.id }, world.now, &mut world.mail);
        }
    }
    assert!(!vhd.state.map.is_in_doubt(E));
}

#[test]
fn what_guests_read_and_cannot_be_read_as_a_whole_stays_in_doubt() {
    let (mut world, vhd) = reopened(None);
    let copies = world.copies();
    let report = |copy: &crate::mover::messages::CopyTask, bad: bool| {
        let error = MoverReport::Failed { id: copy.id, disk: copy.source.disk, error: EIO };
        if bad { error } else { MoverReport::Copied { id: copy.id } }
    };
    for (number, copy) in copies.iter().enumerate() {
        world.owner.handle_mover(report(copy, number == 0), world.now, &mut world.mail);
    }
    assert!(world.copies().is_empty(), "nothing is copied over what guests read");
    assert!(vhd.state.map.is_in_doubt(E));
    let settle = JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss: false };
    start(&mut world, settle);
    world.move_all();
    assert!(on(&vhd, DiskId(0), ReplicaState::InSync).is_empty(), "jobs go on");
}

/// What a FLUSH waits for may be dropped meanwhile.
#[test]
fn a_flush_is_answered_when_what_it_waits_for_is_gone() {
    let (mut world, vhd) = degrading();
    let disk = DiskId(1);
    vhd.state.note_written(world.owner.space.disk(disk).state.sync_needed());
    world.intend(&vhd, E);
    world.edit_done(Ok(()));
    let here = on(&vhd, disk, ReplicaState::InSync);
    world.miss(&vhd, disk, write(here[0]));
    world.owner.space.disk(disk).state.fail();
    world.miss(&vhd, disk, MissedBy::Flush { ticket: 5, disk });
    here[1..].iter().for_each(|extent| discard_part(&world, &vhd, *extent));
    world.edit_done(Ok(()));
    assert_eq!(world.dropped(), [true, true]);
}

/// 240 extents with two replicas on three disks. A job moves those on the first to a fourth disk, and is `steps` steps further.
fn evacuating(steps: u32) -> (World, VhdInfo) {
    evacuating_written(steps, 4)
}

/// As [`evacuating`], and only the first `pages` of four have been written to.
fn evacuating_written(steps: u32, pages: u32) -> (World, VhdInfo) {
    const EXTENTS: u32 = 240;
    let mut world = world(&[(300, "a"), (300, "b"), (300, "c"), (300, "d")]);
    let disks = ["d0", "d1", "d2"].map(str::to_owned).to_vec();
    let layout = LayoutRequest::Spanned { disks: Some(disks), width: None };
    let vhd = world.create(CreateVhd { layout, ..replicated(EXTENTS.into(), 2) });
    fill(&mut world, &vhd, EXTENTS);
    world.commit_changes();
    (0..EXTENTS).step_by(64).take(pages as usize).for_each(|extent| world.intend(&vhd, ExtentIndex(extent)));
    world.commit_edits();
    start(&mut world, JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss: false });
    assert!(
        on(&vhd, DiskId(0), ReplicaState::InSync).len() > WAVES_MAX * WAVE_EXTENTS,
        "more than go at the same time"
    );
    (0..steps).for_each(|_| world.carry_on());
    (world, vhd)
}

/// A job begins with more extents whenever some are done or given up.
#[test]
fn a_flush_does_not_wait_until_a_job_has_nothing_left_to_move() {
    let bad = DiskId(2);
    for steps in 0..8 {
        let (mut world, vhd) = evacuating(steps);
        vhd.state.note_written(world.owner.space.disk(bad).state.sync_needed());
        world.owner.space.disk(bad).state.fail();
        (0..2).for_each(|ticket| world.miss(&vhd, bad, MissedBy::Flush { ticket, disk: bad }));
        let mut rounds = 0;
        while !world.owner.stale.concerns(vhd.record.id) {
            let ends = |stage: &Stage| matches!(stage, Stage::Committing { .. });
            let begun = world.owner.waves.iter().any(|(_, wave)| !ends(&wave.stage) && !wave.moves.is_empty());
            assert!(!begun && rounds < 4, "after {steps} steps: round {rounds}");
            world.carry_on();
            rounds += 1;
        }
        let left = on(&vhd, DiskId(0), ReplicaState::InSync).len();
        assert!(left > 0);
        world.commit_edits();
        assert_eq!(world.dropped(), [true, true], "after {steps} steps");
        assert!(on(&vhd, bad, ReplicaState::InSync).is_empty());
        assert!(world.owner.waves.iter().next().is_some(), "the job goes on");
        world.tell(OwnerRequest::DiskError { disk: bad, error: EIO, sync: true });
        world.move_all();
        assert!(on(&vhd, DiskId(0), ReplicaState::InSync).is_empty(), "{:?}", world.jobs());
        world.check();
    }
}

/// Fences and syncs of moves that were given up may be those of a disk that hangs, which has nothing to do with the FLUSH.
#[test]
fn a_flush_waits_for_nothing_that_moves_have_asked_for() {
    let (bad, mut waited) = (DiskId(2), 0);
    for steps in 0..8 {
        let (mut world, vhd) = evacuating(steps);
        let commits = world.owner.waves.iter().any(|(_, wave)| matches!(wave.stage, Stage::Committing { .. }));
        waited += u32::from(commits);
        vhd.state.note_written(world.owner.space.disk(bad).state.sync_needed());
        world.owner.space.disk(bad).state.fail();
        world.miss(&vhd, bad, MissedBy::Flush { ticket: 5, disk: bad });
        assert_eq!(world.owner.stale.concerns(vhd.record.id), !commits, "after {steps} steps");
        let late = (std::mem::take(&mut world.mail.mover), world.fences(0));
        world.commit_edits();
        assert_eq!(world.dropped(), [true], "after {steps} steps");
        // They come in the end.
        world.mail.mover.splice(0..0, late.0);
        late.1.into_iter().for_each(|(fence, _)| world.reach(0, fence));
        world.move_all();
        assert!(on(&vhd, DiskId(0), ReplicaState::InSync).is_empty(), "{:?}", world.jobs());
        world.check();
    }
    assert!((1..8).contains(&waited), "{waited}");
}

/// The FLUSH may need nothing any more once nothing moves: nothing else tells the job to go on.
#[test]
fn a_job_goes_on_when_a_flush_that_held_it_up_is_answered() {
    let bad = DiskId(2);
    for steps in 0..4 {
        // What was written on the disk has been discarded, and other things are there.
        let (mut world, vhd) = evacuating_written(steps, 3);
        let gone = on(&vhd, bad, ReplicaState::InSync).into_iter().filter(|extent| extent.0 < 3 * 64);
        gone.for_each(|extent| world.discard(&vhd, extent.0));
        let commits = |wave: &Wave| matches!(wave.stage, Stage::Committing { .. });
        vhd.state.note_written(world.owner.space.disk(bad).state.sync_needed());
        world.owner.space.disk(bad).state.fail();
        world.miss(&vhd, bad, MissedBy::Flush { ticket: 5, disk: bad });
        let mut answers = world.dropped();
        while answers.is_empty() {
            assert!(world.owner.waves.iter().all(|(_, wave)| commits(wave)), "after {steps} steps");
            world.edit_done(Ok(()));
            answers = world.dropped();
        }
        assert_eq!(answers, [true], "after {steps} steps");
        // At once: nothing has happened since.
        let begun = world.owner.waves.iter().filter(|(_, wave)| !commits(wave) && !wave.moves.is_empty()).count();
        assert!(begun > 0, "after {steps} steps: {:?}", world.jobs());
        world.move_all();
        assert!(on(&vhd, DiskId(0), ReplicaState::InSync).is_empty(), "{:?}", world.jobs());
    }
}

/// The disk that cannot be written fails with that: its moves end, and the job begins with others at once.
#[test]
fn no_extent_begins_to_move_while_its_replica_becomes_stale() {
    for steps in 0..4 {
        let (mut world, vhd) = evacuating(steps);
        let bad = DiskId(1);
        let waits = |extent: &ExtentIndex| {
            on(&vhd, DiskId(0), ReplicaState::InSync).contains(extent)
                && world.owner.waves.of_extent(vhd.record.id, *extent).is_none()
        };
        let next: Vec<_> = on(&vhd, bad, ReplicaState::InSync).into_iter().filter(waits).take(8).collect();
        next.iter()
            .for_each(|extent| world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: *extent, disk: bad }));
        let copies: Vec<_> = world.mail.mover.iter().filter_map(repair_of(&next)).collect();
        assert_eq!(copies.len(), 8, "after {steps} steps");
        world.owner.space.disk(bad).state.fail();
        for id in copies {
            let report = MoverReport::Failed { id, disk: bad, error: EIO };
            world.owner.handle_mover(report, world.now, &mut world.mail);
            for extent in next.iter().filter(|extent| world.owner.stale.concerns_extent(vhd.record.id, **extent)) {
                let moves = world.owner.waves.of_extent(vhd.record.id, *extent);
                assert!(moves.is_none(), "after {steps} steps: {extent:?} moves");
            }
        }
        world.move_all();
        assert!(
            next.iter()
                .all(|extent| replicas(&vhd, *extent).iter().all(|r| r.disk != bad || r.state == ReplicaState::Stale))
        );
        world.check();
    }
}

/// The copy that makes a replica of one of the extents equal.
fn repair_of(extents: &[ExtentIndex]) -> impl Fn(&MoverMessage) -> Option<crate::mover::messages::MoveId> {
    move |message| match message {
        MoverMessage::Copy(copy) if copy.target.state == ReplicaState::InSync && extents.contains(&copy.extent) => {
            Some(copy.id)
        }
        _ => None,
    }
}

#[test]
fn an_intent_that_could_not_be_made_does_not_keep_the_owner_awake() {
    let (mut world, vhd) = degrading();
    world.intend(&vhd, E);
    world.edit_done(Err(EditFailed));
    assert_eq!(world.allocated(77), Some(Err(AllocateError::Store)));
    world.advance(60_000);
    assert!(world.owner.next_deadline().is_none_or(|due| due > world.now));
}

#[test]
fn a_disk_that_fails_keeps_intents_from_being_taken_back() {
    let (mut world, vhd) = degrading();
    world.intend(&vhd, E);
    world.edit_done(Ok(()));
    world.advance(10_000);
    world.advance(10_000);
    let fences = world.fences(0);
    assert!(!fences.is_empty() && !vhd.state.map.has_intent(0), "it is about to be");
    world.owner.space.disk(DiskId(2)).state.fail();
    world.tell(OwnerRequest::DiskError { disk: DiskId(2), error: EIO, sync: true });
    assert!(vhd.state.map.has_intent(0));
    fences.into_iter().for_each(|(fence, _)| world.reach(R.0, fence));
    assert!(vhd.state.map.has_intent(0), "its fences mean nothing any more");
}
