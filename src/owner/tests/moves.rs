//! Moves step by step, and every way in which each step can end.

use super::super::command::{JobRequest, SetJob, StartJob};
use super::*;
use crate::base::ids::JobId;
use crate::engine::IoError;
use crate::mover::messages::{CopyTask, MoveId, Speed, WaveId};
use crate::placement::job::JobState;
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::reactor::messages::MissedBy;
use crate::store::edit::{EditFailed, MovedExtent};

pub(super) const A: DiskId = DiskId(0);
pub(super) const B: DiskId = DiskId(1);
pub(super) const R: ReactorId = ReactorId(0);
const EIO: IoError = IoError::Os(libc::EIO);
/// Not an error of one place.
const FULL: IoError = IoError::Os(libc::ENOSPC);

/// How far a move is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Until {
    Draining,
    Copying,
    Sealing,
    Syncing,
    Committing,
}

pub(super) const STAGES: [Until; 5] =
    [Until::Draining, Until::Copying, Until::Sealing, Until::Syncing, Until::Committing];

/// A count by step.
fn only_at(step: Until, count: u64) -> [u64; 5] {
    STAGES.map(|other| if other == step { count } else { 0 })
}

/// A VHD with `extents` written extents on disk A, which a job moves to disk B.
pub(super) struct Moving {
    pub world: World,
    pub vhd: VhdInfo,
    pub job: JobId,
    edit: Option<EditId>,
}

impl Moving {
    fn new(extents: u32) -> Moving {
        let mut world = World::new(&[16, 16], 1);
        let on_a = LayoutRequest::Isolated { disk: Some("d0".to_owned()) };
        let vhd = world.create(create("vm", 8, on_a));
        for extent in 0..extents {
            assert_eq!(world.allocate(&vhd, extent), Some(Ok(())));
            write_all(&vhd, extent);
        }
        let mut moving = Moving { world, vhd, job: JobId(0), edit: None };
        moving.migrate("d1");
        moving
    }

    fn migrate(&mut self, disk: &str) {
        let request = JobRequest::Migrate { vhd: "vm".to_owned(), disk: Some(disk.to_owned()) };
        let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
        match self.world.run(Command::StartJob(Box::new(start))).unwrap() {
            Reply::Job { job, .. } => self.job = job.record.id,
            other => panic!("{other:?}"),
        }
    }

    /// The order to settle the VHD where it shall be by now.
    pub fn settle_order(&self) -> Command {
        let request = JobRequest::Settle { vhd: "vm".to_owned() };
        Command::StartJob(Box::new(StartJob { request, dry_run: false, speed: Speed::default(), created: 2 }))
    }

    pub fn at(extents: u32, until: Until) -> Moving {
        let mut moving = Moving::new(extents);
        moving.go_on(until);
        moving
    }

    /// Lets the moves go on from the beginning until they are at a step.
    fn go_on(&mut self, until: Until) {
        if until > Until::Draining {
            self.reach_fences();
        }
        if until > Until::Copying {
            for id in self.copies().into_iter().map(|copy| copy.id) {
                self.report(MoverReport::Copied { id });
            }
        }
        if until > Until::Sealing {
            self.reach_fences();
        }
        if until > Until::Syncing {
            for (wave, disk) in self.syncs() {
                self.report(MoverReport::Synced { wave, disk, result: Ok(()) });
            }
            self.edit = Some(self.move_edit().0);
        }
    }

    fn report(&mut self, report: MoverReport) {
        self.world.owner.handle_mover(report, self.world.now, &mut self.world.mail);
    }

    fn reach_fences(&mut self) {
        for (fence, _) in self.world.fences(0) {
            self.world.reach(0, fence);
        }
    }

    /// The copies that the mover has been asked for, taken.
    fn copies(&mut self) -> Vec<CopyTask> {
        let mut found = Vec::new();
        self.world.mail.mover.retain(|message| match message {
            MoverMessage::Copy(copy) => {
                found.push(copy.clone());
                false
            }
            _ => true,
        });
        found
    }

    fn syncs(&mut self) -> Vec<(WaveId, DiskId)> {
        let mut found = Vec::new();
        self.world.mail.mover.retain(|message| match message {
            MoverMessage::Sync { wave, disk } => {
                found.push((*wave, *disk));
                false
            }
            _ => true,
        });
        found
    }

    /// The rows of moves that the committer has been asked for.
    fn move_edit(&self) -> (EditId, Vec<MovedExtent>) {
        let moves = |row: &StoreEdit| match row {
            StoreEdit::Move { moves, .. } => Some(moves.clone()),
            _ => None,
        };
        let mut edits = self.world.mail.edits.iter();
        edits.find_map(|(edit, rows)| Some((*edit, rows.iter().find_map(moves)?))).expect("moves are being committed")
    }

    pub fn commit(&mut self, result: Result<(), EditFailed>) {
        let edit = self.edit.take().expect("moves are being committed");
        self.world.mail.edits.retain(|(other, _)| *other != edit);
        self.world.owner.handle_store(StoreReport::EditDone { edit, result }, &mut self.world.mail);
    }

    /// Answers all that was asked, in order, until nothing is under way: moves that go on are carried out.
    pub fn settle(&mut self) {
        for _ in 0..100 {
            self.world.settle();
            let copies = self.copies();
            let syncs = self.syncs();
            for id in copies.iter().map(|copy| copy.id) {
                self.report(MoverReport::Copied { id });
            }
            for (wave, disk) in &syncs {
                self.report(MoverReport::Synced { wave: *wave, disk: *disk, result: Ok(()) });
            }
            let is_fence = |(_, message): &(ReactorId, ReactorMessage)| matches!(message, ReactorMessage::Fence { .. });
            let fenced = self.world.mail.reactors.iter().any(is_fence);
            if copies.is_empty() && syncs.is_empty() && !fenced {
                return;
            }
        }
        panic!("it goes on for ever");
    }

    pub fn replicas(&self, extent: u32) -> Vec<Replica> {
        self.vhd.state.map.lookup(ExtentIndex(extent)).replicas.iter().collect()
    }

    pub fn state(&self) -> (JobState, Option<String>) {
        let record = &self.world.owner.jobs.get(self.job).unwrap().record;
        (record.state, record.reason.clone())
    }

    pub fn missed(&mut self, by: MissedBy) {
        let request = OwnerRequest::CopyMissed { reactor: R, vhd: self.vhd.record.id, disk: B, by };
        self.world.owner.handle_reactor(request, self.world.now, &mut self.world.mail);
    }

    /// What a reactor was told about a copy that missed something.
    pub fn answered(&mut self) -> Option<bool> {
        let mut answer = None;
        self.world.mail.reactors.retain(|(_, message)| match message {
            ReactorMessage::CopyDropped { ok, .. } => {
                assert!(answer.replace(*ok).is_none(), "answered once");
                false
            }
            _ => true,
        });
        answer
    }

    /// Every slot is where the maps say, once, or free; and nothing is under way.
    pub fn check_slots(&self) {
        let owner = &self.world.owner;
        let mut used = [0; 2];
        for vhd in owner.vhds.iter() {
            let mut counts = [0; 2];
            for extent in vhd.state.map.placed_from(ExtentIndex(0)) {
                let lookup = vhd.state.map.lookup(extent);
                assert!(!lookup.replicas.is_moving() && lookup.claimed.is_empty(), "{lookup:?}");
                lookup.replicas.iter().for_each(|replica| counts[replica.disk.index()] += 1);
            }
            assert_eq!(counts[..], vhd.counts[..2]);
            (0..2).for_each(|disk| used[disk] += counts[disk]);
        }
        for disk in [A, B] {
            let slots = owner.space.disk(disk).slots();
            assert_eq!((slots.used(), slots.limbo()), (used[disk.index()], 0), "{disk:?}");
            assert_eq!(slots.free() + used[disk.index()], 16);
        }
        assert!(owner.waves.iter().next().is_none() && owner.waves.missed.is_empty());
    }
}

/// All blocks of an extent have been written.
fn write_all(vhd: &VhdInfo, extent: u32) {
    let (map, extent) = (&vhd.state.map, ExtentIndex(extent));
    map.claim_absent(extent, BlockMask::ALL, map.lookup(extent).version).unwrap();
    map.release(extent, BlockMask::ALL, BlockMask::ALL);
}

pub(super) fn disks(replicas: &[Replica]) -> Vec<(DiskId, ReplicaState)> {
    replicas.iter().map(|replica| (replica.disk, replica.state)).collect()
}

pub(super) const ON_A: [(DiskId, ReplicaState); 1] = [(A, ReplicaState::InSync)];
pub(super) const ON_B: [(DiskId, ReplicaState); 1] = [(B, ReplicaState::InSync)];

#[test]
fn a_move_goes_through_its_steps() {
    let mut moving = Moving::new(2);
    assert_eq!(disks(&moving.replicas(0)), [(A, ReplicaState::InSync), (B, ReplicaState::Syncing)]);
    assert!(moving.copies().is_empty(), "not before writes that saw the old view are done");
    moving.go_on(Until::Copying);
    let copies = moving.copies();
    assert_eq!(copies.len(), 2);
    moving.report(MoverReport::Copied { id: copies[0].id });
    assert_eq!(disks(&moving.replicas(0))[1].1, ReplicaState::Syncing, "the wave goes on as one");
    moving.report(MoverReport::Copied { id: copies[1].id });
    assert_eq!(disks(&moving.replicas(0)), [(A, ReplicaState::InSync), (B, ReplicaState::Sealing)]);
    assert!(moving.syncs().is_empty(), "not before writes that FLUSH would not sync there are done");
    moving.reach_fences();
    let syncs = moving.syncs();
    assert_eq!(syncs.len(), 1);
    assert!(moving.world.mail.edits.iter().all(|(_, rows)| !matches!(rows[..], [StoreEdit::Move { .. }])));
    moving.report(MoverReport::Synced { wave: syncs[0].0, disk: B, result: Ok(()) });
    let (edit, moves) = moving.move_edit();
    let after = |extent| ReplicaSet::single(B, moving.replicas(extent)[1].slot);
    let expected = [0, 1].map(|extent| MovedExtent {
        extent: ExtentIndex(extent),
        generation: moving.vhd.state.map.lookup(ExtentIndex(extent)).generation,
        from: Some(A),
        replicas: after(extent),
    });
    assert_eq!(moves, expected);
    assert_eq!(moving.replicas(0)[0].disk, A, "not before it is durable");
    moving.edit = Some(edit);
    moving.commit(Ok(()));
    assert_eq!(disks(&moving.replicas(0)), ON_B);
    assert!(moving.world.mail.punches.is_empty(), "readers of the old place come first");
    moving.settle();
    moving.check_slots();
    assert_eq!(moving.state().0, JobState::Done);
}

#[test]
fn moves_are_counted_by_the_step_they_are_at() {
    for stage in STAGES {
        let mut moving = Moving::at(3, stage);
        let Ok(Reply::Pool(pool)) = moving.world.ask(Command::ShowPool) else { panic!("no answer") };
        assert_eq!((pool.moves, pool.moves_ended_early), (only_at(stage, 3), [0; 5]));
        moving.settle();
        let Ok(Reply::Pool(pool)) = moving.world.ask(Command::ShowPool) else { panic!("no answer") };
        assert_eq!((pool.moves, pool.moves_ended_early), ([0; 5], [0; 5]));
    }
}

#[test]
fn discarded_content_is_not_moved() {
    for stage in STAGES {
        let mut moving = Moving::at(2, stage);
        moving.world.discard(&moving.vhd, 0);
        let freed = moving.world.mail.changes.iter().find_map(|change| match change.kind {
            ChangeKind::Freed { freed } => Some(freed),
            _ => None,
        });
        assert_eq!(freed.unwrap().iter().count(), 2, "both places, once each ({stage:?})");
        moving.settle();
        assert_eq!((moving.replicas(0).len(), disks(&moving.replicas(1))), (0, ON_B.to_vec()), "{stage:?}");
        moving.check_slots();
        assert_eq!(moving.state().0, JobState::Done);
        assert_eq!(moving.world.owner.moves_ended_early(), only_at(stage, 1));
    }
}

#[test]
fn a_wave_of_which_all_is_discarded_ends() {
    for stage in STAGES {
        let mut moving = Moving::at(1, stage);
        moving.world.discard(&moving.vhd, 0);
        moving.settle();
        moving.check_slots();
        assert_eq!(moving.state().0, JobState::Done, "{stage:?}");
    }
}

#[test]
fn what_is_placed_again_after_a_discard_is_not_what_was_moved() {
    for stage in STAGES {
        let mut moving = Moving::at(1, stage);
        moving.world.discard(&moving.vhd, 0);
        assert_eq!(moving.world.allocate(&moving.vhd, 0), Some(Ok(())));
        write_all(&moving.vhd, 0);
        let placed = moving.replicas(0);
        moving.settle();
        assert_eq!(moving.replicas(0), placed, "{stage:?}");
        moving.check_slots();
    }
}

#[test]
fn a_deleted_vhd_takes_its_moves_along() {
    for stage in STAGES {
        let mut moving = Moving::at(3, stage);
        let id = moving.world.command(Command::DeleteVhd { vhd: "vm".to_owned(), force: true });
        // What was asked of the mover is answered late.
        moving.settle();
        assert!(matches!(moving.world.mail.replies.remove(&id), Some(Ok(Reply::Deleted { .. }))), "{stage:?}");
        moving.report(MoverReport::Copied { id: MoveId(1) });
        moving.report(MoverReport::Synced { wave: WaveId(1), disk: B, result: Ok(()) });
        moving.settle();
        moving.check_slots();
        assert_eq!(moving.state().0, JobState::Done);
        // The deletion is committed after the moves that are being committed.
        let ended = if stage == Until::Committing { [0; 5] } else { only_at(stage, 3) };
        assert_eq!(moving.world.owner.moves_ended_early(), ended);
    }
}

/// A power cut in between would bring back a VHD that is not where it should be, with no job that is about it.
#[test]
fn a_job_does_without_a_vhd_not_before_its_deletion() {
    for stage in STAGES {
        let mut moving = Moving::at(3, stage);
        moving.world.command(Command::DeleteVhd { vhd: "vm".to_owned(), force: true });
        let mut rows = moving.world.mail.edits.iter().flat_map(|(_, rows)| rows);
        let is_end = |row: &&StoreEdit| matches!(row, StoreEdit::DeleteVhd(_) | StoreEdit::PutJob(_));
        assert!(matches!(rows.find(is_end), Some(StoreEdit::DeleteVhd(_))), "{stage:?}");
        assert!(matches!(rows.find(is_end), Some(StoreEdit::PutJob(job)) if job.vhds.is_empty()), "{stage:?}");
    }
}

#[test]
fn a_cancelled_job_leaves_each_extent_where_it_is() {
    for stage in STAGES {
        let mut moving = Moving::at(3, stage);
        moving.world.command(Command::CancelJob { job: moving.job, revert: false, now: 9 });
        assert_eq!(moving.state().0, JobState::Cancelled);
        moving.settle();
        let expected = if stage == Until::Committing { ON_B } else { ON_A };
        assert_eq!(disks(&moving.replicas(1)), expected, "{stage:?}");
        moving.check_slots();
    }
}

#[test]
fn a_paused_job_finishes_what_it_has_begun_and_goes_on_when_resumed() {
    for stage in STAGES {
        let mut moving = Moving::at(3, stage);
        let paused =
            |paused| Command::SetJob(SetJob { job: JobId(1), paused: Some(paused), max_rate: None, urgent: None });
        assert_eq!(moving.job, JobId(1));
        moving.world.command(paused(true));
        moving.settle();
        moving.check_slots();
        assert_eq!(disks(&moving.replicas(2)), ON_B);
        moving.world.command(paused(false));
        moving.settle();
        moving.check_slots();
        assert_eq!(moving.state().0, JobState::Done, "{stage:?}");
    }
}

#[test]
fn a_restart_goes_on_from_where_extents_are() {
    for stage in STAGES {
        let mut moving = Moving::at(3, stage);
        let durably = if stage == Until::Committing { B } else { A };
        let Moving { world, vhd, .. } = &mut moving;
        let record = world.owner.vhds.get(vhd.record.id).unwrap().record.clone();
        let jobs = world.owner.jobs.iter().map(|job| job.record.clone()).collect();
        let state = Arc::new(vhd_state(&record, world.owner.geometry, 1, None));
        for extent in (0..3).map(ExtentIndex) {
            let seen = vhd.state.map.lookup(extent);
            let replica = seen.replicas.on(durably).unwrap();
            state.map.restore(extent, ReplicaSet::single(durably, replica.slot), seen.present, seen.generation);
        }
        let pool = world.owner.pool.clone();
        let disks: Vec<_> = pool.disks.iter().map(disk_state).collect();
        let mut owner = Owner::new(pool, disks, vec![(record, Arc::clone(&state))], 1).unwrap().with_jobs(jobs);
        vhd.state = state;
        world.mail = Mail::default();
        owner.start(&mut world.mail);
        world.owner = owner;
        moving.settle();
        moving.check_slots();
        assert_eq!(moving.state().0, JobState::Done, "{stage:?}");
        assert_eq!(moving.replicas(2)[0].disk, B);
    }
}

#[test]
fn a_target_that_fails_costs_the_job_and_nothing_else() {
    for stage in [Until::Copying, Until::Syncing] {
        for hangs in [false, true] {
            let mut moving = Moving::at(3, stage);
            let copies = moving.copies();
            let syncs = moving.syncs();
            moving.report(match (hangs, stage) {
                (true, _) => MoverReport::Stuck { disk: B },
                (_, Until::Copying) => MoverReport::Failed { id: copies[0].id, disk: B, error: FULL },
                _ => MoverReport::Synced { wave: syncs[0].0, disk: B, result: Err(EIO) },
            });
            let (state, reason) = moving.state();
            assert!(state == JobState::Stopped && reason.unwrap().contains("d1"));
            assert_eq!(disks(&moving.replicas(1)), ON_A, "{stage:?}");
            // It comes back.
            copies.into_iter().for_each(|copy| moving.report(MoverReport::Copied { id: copy.id }));
            syncs
                .into_iter()
                .for_each(|(wave, disk)| moving.report(MoverReport::Synced { wave, disk, result: Ok(()) }));
            moving.settle();
            moving.check_slots();
        }
    }
}

/// It may be the very reason for the move that the disk is failing.
#[test]
fn a_job_that_met_unreadable_extents_can_be_resumed() {
    let mut moving = Moving::at(3, Until::Copying);
    let mut tries = 0;
    // Extent 1 cannot be read, however often.
    for _ in 0..20 {
        for copy in moving.copies() {
            let unreadable = copy.extent == ExtentIndex(1);
            tries += u32::from(unreadable);
            let failed = MoverReport::Failed { id: copy.id, disk: A, error: EIO };
            moving.report(if unreadable { failed } else { MoverReport::Copied { id: copy.id } });
        }
        for (wave, disk) in moving.syncs() {
            moving.report(MoverReport::Synced { wave, disk, result: Ok(()) });
        }
        moving.world.settle();
    }
    let (state, reason) = moving.state();
    assert_eq!(state, JobState::Stopped);
    assert!(reason.unwrap().starts_with("1 extents"), "each is counted once, however often it is tried");
    assert!((1..=4).contains(&tries), "{tries}");
    assert_eq!((disks(&moving.replicas(1)), disks(&moving.replicas(2))), (ON_A.to_vec(), ON_B.to_vec()));
    moving.check_slots();
    // It can be read again.
    let resume = SetJob { job: moving.job, paused: Some(false), max_rate: None, urgent: None };
    moving.world.command(Command::SetJob(resume));
    moving.settle();
    assert_eq!(disks(&moving.replicas(1)), ON_B);
    assert_eq!(moving.state(), (JobState::Done, None));
    moving.check_slots();
}

#[test]
fn a_thick_vhd_gets_all_its_room_before_it_is_moved() {
    let mut world = World::new(&[50_000, 50_000], 1);
    let on_a = LayoutRequest::Isolated { disk: Some("d0".to_owned()) };
    let thick = CreateVhd { thick: true, ..create("vm", 40_000, on_a) };
    let created = world.command(Command::CreateVhd(Box::new(thick)));
    let (edit, _) = world.mail.edits.remove(0);
    world.owner.handle_store(StoreReport::EditDone { edit, result: Ok(()) }, &mut world.mail);
    // Its first part is being written.
    let request = JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss: false };
    let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
    world.command(Command::StartJob(Box::new(start)));
    let (edit, rows) = world.mail.edits.pop().unwrap();
    assert!(rows.iter().any(|row| matches!(row, StoreEdit::PutJob(_))));
    world.owner.handle_store(StoreReport::EditDone { edit, result: Ok(()) }, &mut world.mail);
    assert!(world.owner.waves.iter().next().is_none(), "not before it has its room");
    world.commit_edits();
    let Some(Ok(Reply::Vhd { vhd, .. })) = world.mail.replies.remove(&created) else { panic!("it is created") };
    assert_eq!(vhd.slots.into_iter().collect::<Vec<_>>(), [(A, 40_000)]);
    assert!(!world.mail.events.iter().any(|event| matches!(event, Event::ThickIncomplete { .. })));
    assert!(world.owner.waves.iter().next().is_some(), "now it is moved");
}
