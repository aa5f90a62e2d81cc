//! A disk takes the place of another one, dead or alive.

use super::super::command::{JobRequest, JoiningDisk, PlanInfo, RemovalStep, Replacement, SetJob, StartJob};
use super::*;
use crate::base::ids::JobId;
use crate::mover::messages::Speed;
use crate::placement::job::{JobKind, JobState};
use crate::placement::record::{Accept, Layout};

fn by(name: &str) -> Replacement {
    Replacement::Disk { name: name.to_owned() }
}

fn joining(slots: u32, accept: Accept) -> Replacement {
    let (name, failure_domain) = ("new".to_owned(), "x".to_owned());
    Replacement::Joining(JoiningDisk { name, slots, accept, failure_domain })
}

fn start(request: JobRequest, dry_run: bool) -> Command {
    Command::StartJob(Box::new(StartJob { request, dry_run, speed: Speed::default(), created: 1 }))
}

fn replace(by: Replacement, accept_loss: bool) -> JobRequest {
    JobRequest::Replace { disk: "d0".to_owned(), by, accept_loss, keep: false }
}

fn spanned(disks: &[&str]) -> LayoutRequest {
    let disks = disks.iter().map(|disk| (*disk).to_owned()).collect();
    LayoutRequest::Spanned { disks: Some(disks), width: None }
}

impl World {
    fn plan(&mut self, request: JobRequest) -> PlanInfo {
        match self.run(start(request, true)).unwrap() {
            Reply::Plan(plan) => *plan,
            other => panic!("{other:?}"),
        }
    }

    fn begin(&mut self, request: JobRequest) -> JobId {
        match self.run(start(request, false)).unwrap() {
            Reply::Job { job, .. } => job.record.id,
            other => panic!("{other:?}"),
        }
    }

    fn state(&mut self, id: JobId) -> JobState {
        self.owner.job_info(id).record.state
    }

    /// As if a guest had written `blocks` of an extent.
    fn write(&mut self, vhd: &VhdInfo, extent: u32, blocks: BlockMask) {
        assert_eq!(self.allocate(vhd, extent), Some(Ok(())));
        let seen = vhd.state.map.lookup(ExtentIndex(extent));
        vhd.state.map.claim_absent(ExtentIndex(extent), blocks, seen.version).unwrap();
        vhd.state.map.release(ExtentIndex(extent), blocks, blocks);
    }
}

#[test]
fn everything_goes_to_the_new_disk_and_nothing_else_moves() {
    let mut world = World::new(&[20, 20, 20], 1);
    let alone = world.create(create("a", 8, LayoutRequest::Isolated { disk: Some("d0".to_owned()) }));
    let wide = world.create(create("s", 12, spanned(&["d0", "d1"])));
    (0..8).for_each(|extent| world.write(&alone, extent, BlockMask::ALL));
    (0..12).for_each(|extent| world.write(&wide, extent, BlockMask::ALL));
    let plan = world.plan(replace(by("d2"), false));
    assert_eq!(plan.vhds.iter().map(|vhd| vhd.extents).sum::<u64>(), 8 + 6, "{plan:?}");
    let job = world.begin(replace(by("d2"), false));
    world.move_all();
    assert_eq!(world.state(job), JobState::Done);
    let layout = |world: &World, vhd: &VhdInfo| world.owner.vhds.get(vhd.record.id).unwrap().record.layout.clone();
    assert_eq!(layout(&world, &alone), Layout::Isolated { disk: DiskId(2), chosen: true });
    let both = vec![DiskId(1), DiskId(2)];
    assert_eq!(layout(&world, &wide), Layout::Spanned { disks: both, width: None, chosen: true });
    assert_eq!((world.free_slots(0), world.free_slots(1), world.free_slots(2)), (20, 14, 6));
    assert_eq!(world.owner.space.disk(DiskId(0)).accept, Accept::None);
    world.run(Command::RemoveDisk { disk: "d0".to_owned(), step: RemovalStep::Take }).unwrap();
    world.check();
}

#[test]
fn a_disk_that_is_not_there_yet_is_planned_for_like_one_that_is() {
    let mut world = World::new(&[20, 20, 20], 1);
    let wide = world.create(create("s", 12, spanned(&["d0", "d1"])));
    (0..12).for_each(|extent| world.write(&wide, extent, BlockMask::ALL));
    let there = world.plan(replace(by("d2"), false));
    let mut new = world.plan(replace(joining(20, Accept::Any), false));
    assert_eq!(new.vhds[0].disks.last().unwrap().disk, "new");
    new.vhds[0].disks.last_mut().unwrap().disk = "d2".to_owned();
    assert_eq!((&new.vhds[0].disks, new.vhds[0].bytes), (&there.vhds[0].disks, there.vhds[0].bytes));
    // It is only a question, whoever asks.
    assert!(matches!(world.run(start(replace(joining(20, Accept::Any), false), false)), Ok(Reply::Plan(_))));
    assert!(world.owner.jobs.iter().next().is_none());
}

#[test]
fn what_cannot_take_its_place_is_refused_before_anything_changes() {
    let mut world = World::new(&[20, 4, 20], 1);
    let vhd = world.create(create("a", 8, LayoutRequest::Isolated { disk: Some("d0".to_owned()) }));
    (0..8).for_each(|extent| world.write(&vhd, extent, BlockMask::ALL));
    let mut refused = |request: JobRequest| world.refuse(start(request, false));
    assert!(matches!(refused(replace(by("d0"), false)), CommandError::ReplacedByItself { .. }));
    assert!(matches!(refused(replace(by("dx"), false)), CommandError::NotFound { .. }));
    let small = refused(replace(by("d1"), false));
    assert!(matches!(small, CommandError::NoRoomFor { needed, room, .. } if needed > room), "{small}");
    assert!(matches!(refused(replace(joining(4, Accept::Any), false)), CommandError::NoRoomFor { .. }));
    assert!(matches!(refused(replace(joining(20, Accept::Spanned), false)), CommandError::DiskRefuses { .. }));
    world.owner.space.disk(DiskId(2)).state.fail();
    let failed = world.refuse(start(replace(by("d2"), false), false));
    assert!(matches!(failed, CommandError::DiskFailed { .. }), "{failed}");
    assert_eq!(world.owner.space.disk(DiskId(0)).accept, Accept::Any);
    world.check();
}

#[test]
fn what_a_dead_disk_had_is_named_and_given_up_only_when_that_is_accepted() {
    for thick in [false, true] {
        let mut world = World::new(&[20, 20, 20], 1);
        let vhd = world.create(CreateVhd { thick, ..create("a", 8, spanned(&["d0", "d1"])) });
        (0..6).for_each(|extent| world.write(&vhd, extent, BlockMask::span(0, 3)));
        world.settle();
        let on_dead = |extent: &u32| World::place_of(&vhd, *extent).unwrap().0 == DiskId(0);
        let dead: Vec<u32> = (0..6).filter(on_dead).collect();
        assert_eq!(dead.len(), 3);
        world.owner.space.disk(DiskId(0)).state.fail();

        let block = EXTENT / 32;
        let plan = world.plan(replace(by("d2"), false));
        let lost = &plan.vhds[0].lost;
        let expected: Vec<_> =
            dead.iter().map(|e| u64::from(*e) * EXTENT).map(|start| start..start + 4 * block).collect();
        assert_eq!((lost.bytes, &lost.ranges), (3 * 4 * block, &expected));
        let refused = world.refuse(start(replace(by("d2"), false), false));
        let CommandError::LosesData { lost: named, .. } = &refused else { panic!("{refused}") };
        assert_eq!(named[..], [("a".to_owned(), 3 * 4 * block)]);
        assert!(refused.to_string().contains("--accept-loss"), "{refused}");

        let job = world.begin(replace(by("d2"), true));
        world.move_all();
        assert_eq!(world.state(job), JobState::Done, "{:?}", world.owner.job_info(job).record.reason);
        let told = world.mail.events.iter().find_map(|event| match event {
            Event::DataLost { lost, .. } => Some(lost.clone()),
            _ => None,
        });
        assert_eq!(told.unwrap().ranges, expected);
        for extent in 0..6 {
            let seen = vhd.state.map.lookup(ExtentIndex(extent));
            let is_lost = dead.contains(&extent);
            assert_eq!(seen.present, if is_lost { BlockMask::NONE } else { BlockMask::span(0, 3) }, "{extent}");
            assert!(seen.claimed.is_empty() && seen.replicas.on(DiskId(0)).is_none());
            assert_eq!(seen.replicas.is_absent(), is_lost && !thick);
        }
        world.run(Command::RemoveDisk { disk: "d0".to_owned(), step: RemovalStep::Take }).unwrap();
        world.check();
    }
}

/// A request of a guest has claimed a block of it: nothing is taken away under it.
#[test]
fn a_lost_extent_with_a_request_on_it_is_given_up_when_the_job_comes_by_again() {
    let mut world = World::new(&[20, 20], 1);
    let vhd = world.create(create("a", 4, LayoutRequest::Isolated { disk: Some("d0".to_owned()) }));
    (0..2).for_each(|extent| world.write(&vhd, extent, BlockMask::span(0, 3)));
    let (busy, block) = (ExtentIndex(1), BlockMask::span(7, 7));
    let seen = vhd.state.map.lookup(busy);
    vhd.state.map.claim_absent(busy, block, seen.version).unwrap();
    world.owner.space.disk(DiskId(0)).state.fail();
    let job = world.begin(replace(by("d1"), true));
    world.move_all();
    assert_eq!(world.state(job), JobState::Stopped);
    assert!(vhd.state.map.lookup(ExtentIndex(0)).replicas.is_absent());
    assert!(vhd.state.map.lookup(busy).replicas.on(DiskId(0)).is_some());
    vhd.state.map.release(busy, block, BlockMask::NONE);
    let resume = SetJob { job, paused: Some(false), max_rate: None, urgent: None };
    world.run(Command::SetJob(resume)).unwrap();
    world.move_all();
    assert_eq!(world.state(job), JobState::Done);
    assert!(vhd.state.map.lookup(busy).replicas.is_absent());
    world.check();
}

#[test]
fn replicas_elsewhere_take_the_place_of_those_that_died() {
    let mut world = World::new(&[20, 20, 20], 1);
    let wide = CreateVhd { replicas: 2, ..create("r", 8, spanned(&["d0", "d1"])) };
    let vhd = world.create(wide);
    (0..8).for_each(|extent| world.write(&vhd, extent, BlockMask::ALL));
    world.owner.space.disk(DiskId(0)).state.fail();
    let job = world.begin(replace(by("d2"), false));
    world.move_all();
    assert_eq!(world.state(job), JobState::Done, "{:?}", world.owner.job_info(job).record.reason);
    for extent in 0..8 {
        let seen = vhd.state.map.lookup(ExtentIndex(extent));
        assert_eq!((seen.present, seen.replicas.len()), (BlockMask::ALL, 2));
        assert!(seen.replicas.on(DiskId(1)).is_some() && seen.replicas.on(DiskId(2)).is_some());
    }
    assert!(!world.mail.events.iter().any(|event| matches!(event, Event::DataLost { .. })));
    world.check();
}

/// The copy takes the last slot, cannot be filled, and gives the slot back: that is not the room that the job waits for.
#[test]
fn an_extent_that_cannot_be_read_is_not_tried_for_ever() {
    let mut world = World::new(&[4, 1], 1);
    let vhd = world.create(create("a", 1, LayoutRequest::Isolated { disk: Some("d0".to_owned()) }));
    world.write(&vhd, 0, BlockMask::ALL);
    let job = world.begin(JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss: false });
    world.owner.space.disk(DiskId(0)).state.fail();
    world.move_all();
    assert_eq!(world.state(job), JobState::Stopped);
    assert!(world.owner.job_info(job).record.reason.unwrap().contains("1 extents could not be read"));
    world.check();
}

/// No fence is waited for on a disk that has failed: it may answer a first write long after the extent was looked at.
#[test]
fn an_extent_is_not_moved_as_empty_while_its_first_write_is_on_its_way() {
    for answers in [true, false] {
        let mut world = World::new(&[20, 20], 1);
        let vhd = world.create(create("a", 4, LayoutRequest::Isolated { disk: Some("d0".to_owned()) }));
        (0..2).for_each(|extent| assert_eq!(world.allocate(&vhd, extent), Some(Ok(()))));
        let (map, busy, block) = (&vhd.state.map, ExtentIndex(1), BlockMask::span(7, 7));
        map.claim_absent(busy, block, map.lookup(busy).version).unwrap();
        world.owner.space.disk(DiskId(0)).state.fail();
        let job = world.begin(JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss: false });
        world.move_all();
        assert_eq!(world.state(job), JobState::Stopped);
        let disks = |extent| map.lookup(extent).replicas.iter().map(|replica| replica.disk).collect::<Vec<_>>();
        assert_eq!((disks(ExtentIndex(0)), disks(busy)), (vec![DiskId(1)], vec![DiskId(0)]));
        map.release(busy, block, if answers { block } else { BlockMask::NONE });
        let resume = SetJob { job, paused: Some(false), max_rate: None, urgent: None };
        world.run(Command::SetJob(resume)).unwrap();
        world.move_all();
        let (state, disk) = if answers { (JobState::Stopped, 0) } else { (JobState::Done, 1) };
        assert_eq!((world.state(job), disks(busy)), (state, vec![DiskId(disk)]), "the write is where the extent is");
        world.check();
    }
}

/// Whoever accepted a loss was told of what the disk had that was dead by then, and of nothing else.
#[test]
fn what_fails_after_the_order_is_not_given_up() {
    // Two replicas: the disk that goes has failed, the one with the other replica fails while the job runs.
    let mut world = World::new(&[20, 20, 20], 1);
    let vhd = world.create(CreateVhd { replicas: 2, ..create("r", 4, spanned(&["d0", "d1"])) });
    (0..4).for_each(|extent| world.write(&vhd, extent, BlockMask::ALL));
    world.owner.space.disk(DiskId(0)).state.fail();
    let job = world.begin(replace(by("d2"), true));
    world.owner.space.disk(DiskId(1)).state.fail();
    world.move_all();
    assert_eq!(world.state(job), JobState::Stopped);
    assert!((0..4).all(|extent| vhd.state.map.lookup(ExtentIndex(extent)).present == BlockMask::ALL));
    world.check();

    // A disk that works when it is ordered, and dies.
    let mut world = World::new(&[20, 20], 1);
    let vhd = world.create(create("a", 4, LayoutRequest::Isolated { disk: Some("d0".to_owned()) }));
    (0..4).for_each(|extent| world.write(&vhd, extent, BlockMask::ALL));
    let job = world.begin(replace(by("d1"), true));
    world.owner.space.disk(DiskId(0)).state.fail();
    world.move_all();
    assert_eq!(world.state(job), JobState::Stopped);
    assert!((0..4).all(|extent| vhd.state.map.lookup(ExtentIndex(extent)).present == BlockMask::ALL));
    assert!(!world.mail.events.iter().any(|event| matches!(event, Event::DataLost { .. })));
    world.check();

    // Ordered again, with the dead disk named: what it had goes, although the layout is the new one already.
    world.run(Command::CancelJob { job, revert: false, now: 2 }).unwrap();
    world.settle();
    let evacuate = |accept_loss| JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss };
    let stops = world.begin(evacuate(false));
    world.move_all();
    assert_eq!(world.state(stops), JobState::Stopped);
    world.run(Command::CancelJob { job: stops, revert: false, now: 3 }).unwrap();
    world.settle();
    let job = world.begin(evacuate(true));
    world.move_all();
    assert_eq!(world.state(job), JobState::Done);
    assert!((0..4).all(|extent| vhd.state.map.lookup(ExtentIndex(extent)).replicas.is_absent()));
    world.check();
}

/// Its loss was accepted while it was away; it is back after a restart, and fails again.
#[test]
fn a_disk_that_came_back_loses_nothing_by_an_old_order() {
    let mut world = World::new(&[20, 20], 1);
    let vhd = world.create(create("a", 4, LayoutRequest::Isolated { disk: Some("d0".to_owned()) }));
    (0..4).for_each(|extent| world.write(&vhd, extent, BlockMask::ALL));
    let job = world.begin(JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss: false });
    let pause = |paused| SetJob { job, paused: Some(paused), max_rate: None, urgent: None };
    world.run(Command::SetJob(pause(true))).unwrap();
    let stored = world.owner.jobs.get_mut(job).unwrap();
    let (disk, other) = (DiskId(0), DiskId(1));
    stored.record.kind = JobKind::Evacuate { disk, gives_up: vec![disk, other] };
    world.owner.start(&mut world.mail);
    assert!(world.owner.jobs.get(job).unwrap().record.kind.gives_up().is_empty());
    let saved = |(_, rows): &(EditId, Vec<StoreEdit>)| {
        rows.iter().any(|row| matches!(row, StoreEdit::PutJob(record) if record.kind.gives_up().is_empty()))
    };
    assert!(world.mail.edits.iter().any(saved));
    world.owner.space.disk(disk).state.fail();
    world.run(Command::SetJob(pause(false))).unwrap();
    world.move_all();
    assert_eq!(world.state(job), JobState::Stopped);
    assert!((0..4).all(|extent| vhd.state.map.lookup(ExtentIndex(extent)).present == BlockMask::ALL));
}
