//! VHDs whose extents have replicas: where those go, and jobs that change how many there are.

use std::collections::BTreeSet;

use super::super::command::{JobRequest, SetDisk, StartJob};
use super::*;
use crate::base::ids::JobId;
use crate::base::rng::Rng;
use crate::engine::IoError;
use crate::mover::messages::{CopyTask, Speed};
use crate::placement::ReplicaState;
use crate::placement::job::JobState;

/// A pool with disks of these slots, each of which is in one of these failure domains.
pub(super) fn world(disks: &[(u32, &str)]) -> World {
    let record = |(id, (slots, domain)): (u8, &(u32, &str))| DiskRecord {
        failure_domain: (*domain).to_owned(),
        ..disk_record(id, *slots)
    };
    let records = (0..).zip(disks).map(record).collect();
    World::with(PoolRecord::new(uuid::Uuid::from_u128(1), EXTENT, records), Vec::new(), 1)
}

pub(super) fn replicated(extents: u64, replicas: u8) -> CreateVhd {
    CreateVhd { replicas, ..create("r", extents, SPANNED) }
}

impl World {
    /// Does all that the mover is asked for, until nothing is asked any more.
    pub(super) fn move_all(&mut self) {
        self.move_all_but(|_| None);
    }

    /// As [`World::move_all`], but for copies that cannot be filled.
    pub(super) fn move_all_but(&mut self, fails: impl Fn(&CopyTask) -> Option<(DiskId, IoError)>) {
        for _ in 0..1000 {
            self.settle();
            let messages = std::mem::take(&mut self.mail.mover);
            if messages.is_empty() {
                return;
            }
            for message in messages {
                let report = match message {
                    MoverMessage::Copy(copy) => match fails(&copy) {
                        Some((disk, error)) => MoverReport::Failed { id: copy.id, disk, error },
                        None => MoverReport::Copied { id: copy.id },
                    },
                    MoverMessage::Sync { wave, disk } => MoverReport::Synced { wave, disk, result: Ok(()) },
                    MoverMessage::Fence { fence, .. } => MoverReport::FenceReached { fence },
                    _ => continue,
                };
                self.owner.handle_mover(report, self.now, &mut self.mail);
            }
        }
        panic!("the mover is asked for something again and again");
    }

    /// Does what everybody has been asked for by now, once.
    pub(super) fn carry_on(&mut self) {
        for (edit, _) in std::mem::take(&mut self.mail.edits) {
            self.owner.handle_store(StoreReport::EditDone { edit, result: Ok(()) }, &mut self.mail);
        }
        for (fence, _) in self.fences(0) {
            self.reach(0, fence);
        }
        for message in std::mem::take(&mut self.mail.mover) {
            let report = match message {
                MoverMessage::Copy(copy) => MoverReport::Copied { id: copy.id },
                MoverMessage::Sync { wave, disk } => MoverReport::Synced { wave, disk, result: Ok(()) },
                MoverMessage::Fence { fence, .. } => MoverReport::FenceReached { fence },
                _ => continue,
            };
            self.owner.handle_mover(report, self.now, &mut self.mail);
        }
    }

    pub(super) fn set_replicas(&mut self, replicas: u8) -> Result<Reply, CommandError> {
        let request = JobRequest::Replicas { vhd: "r".to_owned(), replicas };
        self.run(Command::StartJob(Box::new(StartJob { request, dry_run: false, speed: Speed::default(), created: 1 })))
    }

    fn job_state(&mut self, reply: Reply) -> JobState {
        let Reply::Job { job, .. } = reply else { panic!("{reply:?}") };
        let id: JobId = job.record.id;
        let Reply::Job { job, .. } = self.ask(Command::ShowJob(id)).unwrap() else { panic!("a job") };
        job.record.state
    }

    /// Every placed extent has so many readable replicas, no two in one failure domain, and all disks have their share.
    fn assert_replicas(&self, vhd: &VhdInfo, replicas: usize) {
        let map = &vhd.state.map;
        for extent in map.placed_from(ExtentIndex(0)) {
            let seen = map.lookup(extent).replicas;
            assert!(seen.iter().all(|replica| replica.state == ReplicaState::InSync), "{extent:?}: {seen:?}");
            let domains: BTreeSet<&str> =
                seen.iter().map(|r| self.owner.space.disk(r.disk).failure_domain.as_str()).collect();
            assert_eq!((seen.len(), domains.len()), (replicas, replicas), "{extent:?}: {seen:?}");
        }
        self.check();
    }
}

pub(super) fn fill(world: &mut World, vhd: &VhdInfo, extents: u32) {
    for extent in 0..extents {
        assert_eq!(world.allocate(vhd, extent), Some(Ok(())), "extent {extent}");
    }
}

#[test]
fn new_extents_get_their_replicas_apart() {
    let mut world = world(&[(20, "a"), (20, "a"), (20, "b"), (20, "c")]);
    let vhd = world.create(replicated(30, 2));
    fill(&mut world, &vhd, 30);
    world.assert_replicas(&vhd, 2);
    let first: BTreeSet<DiskId> = (0..30).map(|extent| World::place_of(&vhd, extent).unwrap().0).collect();
    assert!(first.len() >= 3, "reads go to all disks, not to {first:?}");
}

#[test]
fn a_mirror_is_read_on_both_sides() {
    let mut world = world(&[(20, "a"), (20, "b")]);
    let vhd = world.create(replicated(20, 2));
    fill(&mut world, &vhd, 20);
    let on_first = (0..20).filter(|extent| World::place_of(&vhd, *extent).unwrap().0 == DiskId(0)).count();
    assert!((6..=14).contains(&on_first), "{on_first} of 20 are read on the first disk");
    assert_eq!((world.free_slots(0), world.free_slots(1)), (0, 0));
}

#[test]
fn more_replicas_than_failure_domains_are_refused() {
    let mut world = world(&[(20, "a"), (20, "a"), (20, "b")]);
    let three = Command::CreateVhd(Box::new(replicated(4, 3)));
    assert!(matches!(world.refuse(three), CommandError::TooFewDomains { domains: 2, replicas: 3, .. }));
    for replicas in [0, 4] {
        let wrong = Command::CreateVhd(Box::new(replicated(4, replicas)));
        assert_eq!(world.refuse(wrong), CommandError::InvalidReplicas { replicas });
    }
    let isolated = CreateVhd { replicas: 2, ..create("i", 4, ISOLATED) };
    let refused = world.refuse(Command::CreateVhd(Box::new(isolated)));
    assert!(matches!(refused, CommandError::TooFewDomains { domains: 1, replicas: 2, .. }));
    world.create(replicated(4, 2));
    assert!(matches!(world.set_replicas(3), Err(CommandError::TooFewDomains { domains: 2, replicas: 3, .. })));
    let unspan = JobRequest::Unspan { vhd: "r".to_owned(), disk: None, width: None };
    let start = StartJob { request: unspan, dry_run: false, speed: Speed::default(), created: 1 };
    let refused = world.refuse(Command::StartJob(Box::new(start)));
    assert!(matches!(refused, CommandError::TooFewDomains { domains: 1, replicas: 2, .. }));
}

#[test]
fn jobs_add_and_drop_replicas() {
    let mut world = world(&[(40, "a"), (40, "b"), (40, "c")]);
    let vhd = world.create(replicated(30, 1));
    fill(&mut world, &vhd, 30);
    for replicas in [2, 3, 1, 3, 2, 1] {
        let reply = world.set_replicas(replicas).unwrap();
        world.move_all();
        assert_eq!(world.job_state(reply), JobState::Done);
        world.assert_replicas(&vhd, usize::from(replicas));
        let share = 30 * u32::from(replicas) / 3;
        assert_eq!([0, 1, 2].map(|disk| world.free_slots(disk)), [40 - share; 3], "{replicas} replicas");
    }
    assert!(matches!(world.set_replicas(1), Ok(Reply::Plan(_))), "it is like that already");
}

#[test]
fn replicas_are_moved_when_all_of_an_extents_disks_change() {
    let mut world = world(&[(40, "a"), (40, "b"), (40, "c"), (40, "d")]);
    let on = |disks: &[&str]| Some(disks.iter().map(|&disk| disk.to_owned()).collect::<Vec<_>>());
    let layout = LayoutRequest::Spanned { disks: on(&["d0", "d1"]), width: None };
    let vhd = world.create(CreateVhd { layout, ..replicated(30, 2) });
    fill(&mut world, &vhd, 30);
    let request = JobRequest::Span { vhd: "r".to_owned(), disks: on(&["d2", "d3"]), width: None };
    let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
    let reply = world.run(Command::StartJob(Box::new(start))).unwrap();
    world.move_all();
    assert_eq!(world.job_state(reply), JobState::Done);
    world.assert_replicas(&vhd, 2);
    assert_eq!([0, 1, 2, 3].map(|disk| world.free_slots(disk)), [40, 40, 10, 10]);
}

#[test]
fn a_thick_vhd_gets_room_for_all_replicas_or_none() {
    for (slots, extents) in [([10, 10, 10], 15), ([30, 6, 6], 12), ([12, 12, 12], 18)] {
        let mut world = world(&[(slots[0], "a"), (slots[1], "b"), (slots[2], "c")]);
        let vhd = world.create(CreateVhd { thick: true, ..replicated(extents, 2) });
        world.assert_replicas(&vhd, 2);
        assert_eq!(vhd.state.map.placed_from(ExtentIndex(0)).count() as u64, extents, "{slots:?}");
    }
    // Two of three replicas cannot be on the large disk.
    let mut world = world(&[(30, "a"), (6, "b"), (6, "c")]);
    let thick = CreateVhd { thick: true, ..replicated(13, 2) };
    assert!(matches!(world.refuse(Command::CreateVhd(Box::new(thick))), CommandError::NoRoom { .. }));
    assert_eq!(world.free_slots(0), 30);
}

#[test]
fn with_a_failed_disk_new_extents_get_what_can_be_kept_apart() {
    let mut world = world(&[(20, "a"), (20, "b")]);
    let vhd = world.create(replicated(10, 2));
    world.owner.space.disk(DiskId(1)).state.fail();
    fill(&mut world, &vhd, 4);
    world.assert_replicas(&vhd, 1);
}

#[test]
fn a_vhd_that_grows_keeps_its_replicas_apart() {
    let mut world = world(&[(4, "a"), (4, "b"), (20, "b"), (20, "c")]);
    let layout = LayoutRequest::Spanned { disks: Some(vec!["d0".to_owned(), "d1".to_owned()]), width: None };
    let vhd = world.create(CreateVhd { layout, ..replicated(12, 2) });
    fill(&mut world, &vhd, 12);
    world.assert_replicas(&vhd, 2);
}

#[test]
fn a_cancelled_job_takes_replicas_back() {
    let mut world = world(&[(40, "a"), (40, "b"), (40, "c")]);
    let vhd = world.create(replicated(30, 2));
    fill(&mut world, &vhd, 30);
    let Reply::Job { job, .. } = world.set_replicas(u8::try_from(REPLICAS_MAX).unwrap()).unwrap() else {
        panic!("a job")
    };
    let reply = world.run(Command::CancelJob { job: job.record.id, revert: true, now: 2 }).unwrap();
    world.move_all();
    assert_eq!(world.job_state(reply), JobState::Done);
    world.assert_replicas(&vhd, 2);
}

#[test]
fn a_failed_disk_is_evacuated_from_the_other_replicas() {
    let mut world = world(&[(40, "a"), (40, "b"), (40, "c")]);
    let vhd = world.create(replicated(20, 2));
    fill(&mut world, &vhd, 20);
    world.owner.space.disk(DiskId(1)).state.fail();
    let request = JobRequest::Evacuate { disk: "d1".to_owned(), accept_loss: false };
    let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
    let reply = world.run(Command::StartJob(Box::new(start))).unwrap();
    world.move_all();
    assert_eq!(world.job_state(reply), JobState::Done);
    world.assert_replicas(&vhd, 2);
    assert_eq!([0, 2].map(|disk| world.free_slots(disk)), [20, 20]);
}

fn set_domain(disk: &str, domain: &str) -> Command {
    let failure_domain = Some(domain.to_owned());
    Command::SetDisk(Box::new(SetDisk { disk: disk.to_owned(), accept: None, failure_domain }))
}

#[test]
fn a_failure_domain_that_would_bring_replicas_together_is_refused() {
    let mut world = world(&[(20, "a"), (20, "b"), (20, "c"), (20, "d")]);
    let vhd = world.create(replicated(12, 2));
    fill(&mut world, &vhd, 12);
    let error = world.refuse(set_domain("d1", "a"));
    assert!(matches!(&error, CommandError::ReplicasTogether { other, .. } if other == "d0"), "{error}");
    world.run(set_domain("d1", "e")).unwrap();
    world.assert_replicas(&vhd, 2);
    // An isolated one does not mind; one that could not have its replicas any more does.
    let mut world = self::world(&[(20, "a"), (20, "b")]);
    world.create(create("i", 4, ISOLATED));
    world.run(set_domain("d1", "a")).unwrap();
    world.run(set_domain("d1", "b")).unwrap();
    world.create(replicated(4, 2));
    assert!(matches!(world.refuse(set_domain("d1", "a")), CommandError::TooFewDomains { domains: 1, .. }));
}

/// What is reserved for a thick VHD is enough for it, whatever the disks are like; and nothing is refused that there is room for.
#[test]
fn reservations_can_be_kept() {
    let mut rng = Rng::new(1);
    let (mut kept, mut refused) = (0, 0);
    for case in 0..400 {
        let count = 1 + rng.index(6);
        let disks: Vec<(u32, &str)> = (0..count)
            .map(|_| (1 + u32::try_from(rng.below(20)).unwrap(), ["a", "b", "c", "d"][rng.index(4)]))
            .collect();
        let domains: BTreeSet<&str> = disks.iter().map(|(_, domain)| *domain).collect();
        let replicas = 1 + rng.index(REPLICAS_MAX.min(domains.len()));
        let extents = 1 + rng.below(20);
        let in_domain = |of: &&str| -> u64 { disks.iter().filter(|(_, d)| d == of).map(|(n, _)| u64::from(*n)).sum() };
        let room: u64 = domains.iter().map(in_domain).map(|slots| slots.min(extents)).sum();
        let mut world = world(&disks);
        let thick = CreateVhd { thick: true, ..replicated(extents, u8::try_from(replicas).unwrap()) };
        let what = format!("case {case}: {extents} extents, {replicas} replicas on {disks:?}");
        if room < extents * replicas as u64 {
            assert!(matches!(world.refuse(Command::CreateVhd(Box::new(thick))), CommandError::NoRoom { .. }), "{what}");
            refused += 1;
            continue;
        }
        let vhd = world.create(thick);
        assert_eq!(vhd.state.map.placed_from(ExtentIndex(0)).count() as u64, extents, "{what}");
        world.assert_replicas(&vhd, replicas);
        kept += 1;
    }
    assert!(kept > 100 && refused > 20, "{kept} kept, {refused} refused");
}

#[test]
fn a_job_may_begin_when_its_room_is_on_its_way_back() {
    let mut world = world(&[(8, "a"), (8, "b")]);
    let on = |disk: &str| LayoutRequest::Isolated { disk: Some(disk.to_owned()) };
    let vhd = world.create(create("moves", 8, on("d0")));
    fill(&mut world, &vhd, 6);
    let other = world.create(create("other", 8, on("d1")));
    fill(&mut world, &other, 8);
    let migrate = || {
        let request = JobRequest::Migrate { vhd: "moves".to_owned(), disk: Some("d1".to_owned()) };
        Command::StartJob(Box::new(StartJob { request, dry_run: false, speed: Speed::default(), created: 1 }))
    };
    assert!(matches!(world.refuse(migrate()), CommandError::NoRoomFor { .. }));
    (0..6).for_each(|extent| world.discard(&other, extent));
    let reply = world.run(migrate()).unwrap();
    world.move_all();
    assert_eq!(world.job_state(reply), JobState::Done);
    assert_eq!(vhd.state.map.lookup(ExtentIndex(0)).replicas.iter().next().unwrap().disk, DiskId(1));
}

/// What a plan says of an extent is about the content that it had then: an extent that guests have dropped and written again has
/// its replicas already, and where it gets them must not come from two plans.
#[test]
fn what_was_written_anew_is_not_moved_by_an_old_plan() {
    for (before, after) in [(2, 3), (3, 2), (1, 3)] {
        let mut world = world(&[(400, "a"), (400, "b"), (400, "c"), (400, "d")]);
        let vhd = world.create(replicated(200, before));
        fill(&mut world, &vhd, 200);
        let filler = world.create(create("filler", 400, LayoutRequest::Isolated { disk: Some("d3".to_owned()) }));
        let reply = world.set_replicas(after).unwrap();
        // Those that are not on their way yet; and they are written anew while one of the disks is full.
        (100..200).for_each(|extent| world.discard(&vhd, extent));
        let taken = world.free_slots(3);
        fill(&mut world, &filler, taken);
        (100..200).for_each(|extent| assert_eq!(world.allocate(&vhd, extent), Some(Ok(()))));
        (0..taken).for_each(|extent| world.discard(&filler, extent));
        world.move_all();
        assert_eq!(world.job_state(reply), JobState::Done);
        world.assert_replicas(&vhd, usize::from(after));
    }
}

/// A replica that is read may have made the others equal to it after a power cut, which is in their caches at first.
#[test]
fn a_replica_goes_once_those_that_stay_are_synced() {
    let mut world = world(&[(40, "a"), (40, "b"), (40, "c")]);
    let vhd = world.create(replicated(6, 3));
    fill(&mut world, &vhd, 6);
    world.settle();
    let reply = world.set_replicas(2).unwrap();
    world.settle();
    world.assert_replicas(&vhd, 3);
    let sync = |message: &MoverMessage| match message {
        MoverMessage::Sync { wave, disk } => Some((*wave, *disk)),
        _ => None,
    };
    let asked: Vec<_> = world.mail.mover.iter().filter_map(sync).collect();
    assert_eq!(asked.len(), 3, "two of each extent stay, on all disks: {asked:?}");
    // Nobody knows what one of them holds: nothing goes that others may lack.
    let (wave, disk) = asked[0];
    world.mail.mover.retain(|message| sync(message) != Some((wave, disk)));
    let failed = MoverReport::Synced { wave, disk, result: Err(IoError::Os(libc::EIO)) };
    world.owner.handle_mover(failed, world.now, &mut world.mail);
    for extent in 0..6 {
        let replicas = vhd.state.map.lookup(ExtentIndex(extent)).replicas;
        assert_eq!(replicas.len(), 3, "{replicas:?}");
    }
    world.move_all();
    for extent in 0..6 {
        let replicas = vhd.state.map.lookup(ExtentIndex(extent)).replicas;
        let works = replicas.iter().filter(|r| r.disk != disk && r.state == ReplicaState::InSync).count();
        assert!(works >= 1, "{replicas:?}");
    }
    assert_ne!(world.job_state(reply), JobState::Running);
    world.check();
}

/// The replica that stays cannot be read while the other one is about to go: that one has what it is repaired from.
#[test]
fn a_replica_stays_until_the_one_beside_it_has_been_repaired() {
    let mut world = world(&[(40, "a"), (40, "b")]);
    let vhd = world.create(replicated(1, 2));
    fill(&mut world, &vhd, 1);
    let (map, extent) = (&vhd.state.map, ExtentIndex(0));
    map.claim_absent(extent, BlockMask::ALL, map.lookup(extent).version).unwrap();
    map.release(extent, BlockMask::ALL, BlockMask::ALL);
    world.settle();
    let reply = world.set_replicas(1).unwrap();
    world.settle();
    let synced =
        |message: &MoverMessage| if let MoverMessage::Sync { disk, .. } = message { Some(*disk) } else { None };
    let stays = world.mail.mover.iter().find_map(synced).expect("the one that stays is synced");
    let before = map.lookup(extent).replicas;
    world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent, disk: stays });
    let copied =
        |message: &MoverMessage| if let MoverMessage::Copy(copy) = message { Some(copy.target.disk) } else { None };
    assert_eq!(world.mail.mover.iter().filter_map(copied).collect::<Vec<_>>(), [stays], "it is repaired at once");
    // The sync that was asked for is answered first.
    let (syncs, others) = std::mem::take(&mut world.mail.mover).into_iter().partition(|m| synced(m).is_some());
    world.mail.mover = syncs;
    world.carry_on();
    assert_eq!(map.lookup(extent).replicas, before);
    world.mail.mover.extend::<Vec<MoverMessage>>(others);
    world.move_all();
    assert_eq!(world.job_state(reply), JobState::Done);
    world.assert_replicas(&vhd, 1);
}

/// A disk that never answers a sync keeps neither the job nor FLUSHes waiting once it has failed; until then, what it may lack stays.
#[test]
fn a_sync_that_is_never_answered_keeps_nobody_waiting_once_its_disk_has_failed() {
    let mut world = world(&[(40, "a"), (40, "b"), (40, "c"), (40, "d")]);
    let vhd = world.create(replicated(6, 3));
    fill(&mut world, &vhd, 6);
    world.settle();
    let reply = world.set_replicas(2).unwrap();
    world.settle();
    let hung = DiskId(1);
    let is_hung = |message: &MoverMessage| matches!(message, MoverMessage::Sync { disk, .. } if *disk == hung);
    assert!(world.mail.mover.iter().any(is_hung));
    world.mail.mover.retain(|message| !is_hung(message));
    world.owner.handle_mover(MoverReport::Stuck { disk: hung }, world.now, &mut world.mail);
    world.move_all();
    assert!(world.owner.waves.is_moving(vhd.record.id), "it may answer yet");
    world.owner.space.disk(hung).state.fail();
    let fault = crate::owner::moves::wave::Fault { disk: hung, error: IoError::Os(libc::ETIMEDOUT) };
    world.owner.disk_failed(fault, &mut world.mail);
    world.move_all();
    assert!(!world.owner.waves.is_moving(vhd.record.id));
    assert_ne!(world.job_state(reply), JobState::Running);
    for extent in 0..6 {
        let replicas = vhd.state.map.lookup(ExtentIndex(extent)).replicas;
        let works = replicas.iter().filter(|r| r.disk != hung && r.state == ReplicaState::InSync).count();
        assert!(works >= 1, "{replicas:?}");
    }
    world.check();
}

/// A job that waits for another one finds that it has nothing to do any more, and ends: whoever waits for it goes on.
#[test]
fn a_job_that_ends_without_a_move_keeps_nobody_waiting() {
    let mut world = world(&[(40, "a"), (40, "b"), (40, "c"), (40, "d")]);
    let layout = LayoutRequest::Spanned { disks: Some(vec!["d0".to_owned(), "d1".to_owned()]), width: None };
    let first = world.create(CreateVhd { layout, ..replicated(4, 1) });
    let on = |name, disk: &str| create(name, 4, LayoutRequest::Isolated { disk: Some(disk.to_owned()) });
    let (second, third) = (world.create(on("second", "d1")), world.create(on("third", "d2")));
    [&first, &second, &third].into_iter().for_each(|vhd| fill(&mut world, vhd, 4));
    // Nothing becomes free by this one, so that nobody is told to look again when it ends.
    let mut replies = vec![world.set_replicas(2).unwrap()];
    for (vhd, disk) in [("second", "d2"), ("third", "d3")] {
        let request = JobRequest::Migrate { vhd: vhd.to_owned(), disk: Some(disk.to_owned()) };
        let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
        replies.push(world.run(Command::StartJob(Box::new(start))).unwrap());
    }
    (0..4).for_each(|extent| world.discard(&second, extent));
    world.settle();
    assert_eq!(World::place_of(&third, 0).map(|place| place.0), Some(DiskId(2)), "it waits for the second job");
    world.move_all();
    for reply in replies {
        assert_eq!(world.job_state(reply), JobState::Done);
    }
    assert_eq!(World::place_of(&third, 0).map(|place| place.0), Some(DiskId(3)));
    world.check();
}
