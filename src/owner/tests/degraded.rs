//! Replicas that miss something, and how they come back (ordering rule 7).

use std::time::Duration;

use super::replicas::{fill, replicated, world};
use super::*;
use crate::engine::IoError;
use crate::mover::messages::CopyTask;
use crate::placement::job::{JobKind, JobState};
use crate::placement::{Replica, ReplicaState};
use crate::reactor::messages::MissedBy;
use crate::store::edit::{EditFailed, MovedExtent};

const R: ReactorId = ReactorId(0);
const E: ExtentIndex = ExtentIndex(0);
const EIO: IoError = IoError::Os(libc::EIO);

/// A VHD of 8 extents with two replicas each, on three disks, and everything in it written.
pub(super) fn degrading() -> (World, VhdInfo) {
    written(replicated(8, 2))
}

/// A VHD of 8 extents on three disks, and everything in it written.
pub(super) fn written(create: CreateVhd) -> (World, VhdInfo) {
    let mut world = world(&[(20, "a"), (20, "b"), (20, "c")]);
    let vhd = world.create(create);
    fill(&mut world, &vhd, 8);
    for extent in (0..8).map(ExtentIndex) {
        let map = &vhd.state.map;
        map.claim_absent(extent, BlockMask::ALL, map.lookup(extent).version).unwrap();
        map.release(extent, BlockMask::ALL, BlockMask::ALL);
    }
    world.commit_changes();
    (world, vhd)
}

pub(super) fn replicas(vhd: &VhdInfo, extent: ExtentIndex) -> Vec<Replica> {
    vhd.state.map.lookup(extent).replicas.iter().collect()
}

/// The extents with a replica on the disk, in that state.
pub(super) fn on(vhd: &VhdInfo, disk: DiskId, state: ReplicaState) -> Vec<ExtentIndex> {
    let is_it = |extent: &ExtentIndex| replicas(vhd, *extent).iter().any(|r| r.disk == disk && r.state == state);
    (0..vhd.state.map.extents()).map(ExtentIndex).filter(is_it).collect()
}

impl World {
    pub(super) fn tell(&mut self, request: OwnerRequest) {
        self.owner.handle_reactor(request, self.now, &mut self.mail);
    }

    pub(super) fn miss(&mut self, vhd: &VhdInfo, disk: DiskId, by: MissedBy) {
        self.tell(OwnerRequest::CopyMissed { reactor: R, vhd: vhd.record.id, disk, by });
    }

    /// What reactors were told about copies that missed something.
    pub(super) fn dropped(&mut self) -> Vec<bool> {
        let mut answers = Vec::new();
        self.mail.reactors.retain(|(_, message)| match message {
            ReactorMessage::CopyDropped { ok, .. } => {
                answers.push(*ok);
                false
            }
            _ => true,
        });
        answers
    }

    pub(super) fn intend(&mut self, vhd: &VhdInfo, extent: ExtentIndex) {
        self.tell(OwnerRequest::Intend { reactor: R, ticket: 77, vhd: vhd.record.id, extent });
    }

    pub(super) fn edit_done(&mut self, result: Result<(), EditFailed>) {
        let (edit, _) = self.mail.edits.remove(0);
        self.owner.handle_store(StoreReport::EditDone { edit, result }, &mut self.mail);
    }

    /// What the mover was asked to copy, taken.
    pub(super) fn copies(&mut self) -> Vec<CopyTask> {
        let mut found = Vec::new();
        self.mail.mover.retain(|message| match message {
            MoverMessage::Copy(copy) => {
                found.push(copy.clone());
                false
            }
            _ => true,
        });
        found
    }

    pub(super) fn fail(&mut self, disk: DiskId) {
        self.owner.space.disk(disk).state.fail();
        self.tell(OwnerRequest::DiskError { disk, error: EIO, sync: true });
    }

    pub(super) fn jobs(&mut self) -> Vec<(JobKind, JobState)> {
        let Reply::Jobs(jobs) = self.ask(Command::ListJobs).unwrap() else { panic!("jobs") };
        jobs.into_iter().map(|job| (job.record.kind, job.record.state)).collect()
    }
}

pub(super) fn write(extent: ExtentIndex) -> MissedBy {
    MissedBy::Write { piece: 3, extent }
}

fn moves(rows: &[StoreEdit]) -> Vec<MovedExtent> {
    let moves = |row: &StoreEdit| if let StoreEdit::Move { moves, .. } = row { moves.clone() } else { Vec::new() };
    rows.iter().flat_map(moves).collect()
}

#[test]
fn a_replica_that_missed_a_write_is_stale_in_the_table_before_the_write_is_acknowledged() {
    let (mut world, vhd) = degrading();
    let [kept, bad] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    world.miss(&vhd, bad.disk, write(E));
    assert!(world.dropped().is_empty());
    assert_eq!(replicas(&vhd, E)[1].state, ReplicaState::InSync, "and until then other writes go there, too");
    // Another write that missed it meanwhile waits for the same edit; one of another extent for the next.
    world.miss(&vhd, bad.disk, write(E));
    let other = on(&vhd, bad.disk, ReplicaState::InSync).into_iter().find(|extent| *extent != E).unwrap();
    world.miss(&vhd, bad.disk, write(other));
    assert_eq!(world.mail.edits.len(), 1);
    let stale = Replica { state: ReplicaState::Stale, ..bad };
    let [moved] = moves(&world.mail.edits[0].1)[..] else { panic!("one row") };
    assert_eq!((moved.extent, moved.replicas.iter().collect::<Vec<_>>()), (E, vec![kept, stale]));
    world.edit_done(Ok(()));
    assert_eq!(world.dropped(), [true, true]);
    assert_eq!(replicas(&vhd, E), [kept, stale]);
    world.edit_done(Ok(()));
    assert_eq!(world.dropped(), [true]);
    let degraded = |event: &&Event| matches!(event, Event::VhdDegraded { .. });
    assert_eq!(world.mail.events.iter().filter(degraded).count(), 1, "told once");
    // The last one in sync stays, whatever it missed.
    world.miss(&vhd, kept.disk, write(E));
    assert_eq!(world.dropped(), [false]);
    assert!(world.mail.edits.is_empty());
    world.check();
}

#[test]
fn a_write_that_missed_something_fails_if_the_table_cannot_say_so() {
    let (mut world, vhd) = degrading();
    let bad = replicas(&vhd, E)[1];
    world.miss(&vhd, bad.disk, write(E));
    world.edit_done(Err(EditFailed));
    assert_eq!(world.dropped(), [false]);
    world.miss(&vhd, bad.disk, write(E));
    assert_eq!((world.dropped(), replicas(&vhd, E)[1]), (vec![false], bad), "nor later");
}

/// Two writes, each of which another replica missed: nothing has both.
#[test]
fn not_all_replicas_go_stale_at_the_same_time() {
    let (mut world, vhd) = degrading();
    let [first, second] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    world.miss(&vhd, second.disk, write(E));
    world.miss(&vhd, first.disk, write(E));
    assert_eq!(world.dropped(), [false], "the other one is on its way out");
    world.edit_done(Ok(()));
    assert_eq!(world.dropped(), [true]);
}

#[test]
fn a_deleted_vhd_leaves_no_rows_behind() {
    let (mut world, vhd) = degrading();
    let bad = replicas(&vhd, E)[1];
    world.command(Command::DeleteVhd { vhd: "r".to_owned(), force: false });
    let rows = world.mail.edits.len();
    world.miss(&vhd, bad.disk, write(E));
    world.intend(&vhd, E);
    assert_eq!((world.dropped(), world.allocated(77)), (vec![false], Some(Err(AllocateError::Deleted))));
    assert_eq!(world.mail.edits.len(), rows);
}

#[test]
fn a_deletion_answers_what_waits_for_a_stale_replica() {
    let (mut world, vhd) = degrading();
    let bad = replicas(&vhd, E)[1];
    world.miss(&vhd, bad.disk, write(E));
    let other = on(&vhd, bad.disk, ReplicaState::InSync).into_iter().find(|extent| *extent != E).unwrap();
    world.miss(&vhd, bad.disk, write(other));
    world.run(Command::DeleteVhd { vhd: "r".to_owned(), force: false }).unwrap();
    assert_eq!(world.dropped().len(), 2);
    world.settle();
    world.check();
}

#[test]
fn a_flush_does_without_a_failed_disk_once_what_may_lack_something_there_is_stale() {
    let (mut world, vhd) = degrading();
    let disk = DiskId(1);
    let here = on(&vhd, disk, ReplicaState::InSync);
    vhd.state.note_written(world.owner.space.disk(disk).state.sync_needed());
    world.intend(&vhd, E);
    world.edit_done(Ok(()));
    assert_eq!(world.allocated(77), Some(Ok(())));
    let by = MissedBy::Flush { ticket: 5, disk };
    world.owner.space.disk(disk).state.fail();
    world.miss(&vhd, disk, by);
    assert!(world.dropped().is_empty());
    world.edit_done(Ok(()));
    assert_eq!(world.dropped(), [true]);
    assert_eq!(on(&vhd, disk, ReplicaState::Stale), here, "all of them are in a page that was written to");
    let [(_, excused)] = world.mail.excused[..] else { panic!("what is pending must not wait for that disk") };
    assert_eq!((excused.disk, vhd.state.sync_wanted_on(disk)), (disk, SyncNumber(0)));
}

#[test]
fn a_flush_fails_if_what_the_failed_disk_had_is_nowhere_else() {
    let (mut world, vhd) = degrading();
    let [kept, bad] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    world.miss(&vhd, bad.disk, write(E));
    world.edit_done(Ok(()));
    world.dropped();
    vhd.state.note_written(world.owner.space.disk(kept.disk).state.sync_needed());
    world.owner.space.disk(kept.disk).state.fail();
    world.miss(&vhd, kept.disk, MissedBy::Flush { ticket: 5, disk: kept.disk });
    assert_eq!(world.dropped(), [false]);
}

#[test]
fn what_was_not_written_to_stays_in_sync_on_a_failed_disk() {
    let mut world = world(&[(300, "a"), (300, "b")]);
    let vhd = world.create(replicated(128, 2));
    fill(&mut world, &vhd, 128);
    world.intend(&vhd, ExtentIndex(70));
    world.edit_done(Ok(()));
    world.fail(DiskId(1));
    world.commit_edits();
    assert_eq!(on(&vhd, DiskId(1), ReplicaState::Stale), (64..128).map(ExtentIndex).collect::<Vec<_>>());
    let told = |(_, message): &&(ReactorId, ReactorMessage)| matches!(message, ReactorMessage::DiskFailed { .. });
    assert_eq!(world.mail.reactors.iter().filter(told).count(), 1, "each reactor, once");
}

#[test]
fn an_intent_is_made_once_and_taken_back_when_all_is_quiet_and_synced() {
    let (mut world, vhd) = degrading();
    world.intend(&vhd, E);
    world.intend(&vhd, ExtentIndex(7));
    assert_eq!((world.allocated(77), world.mail.edits.len()), (None, 1));
    assert!(!vhd.state.map.may_write_replicas(E), "not before it is durable");
    world.edit_done(Ok(()));
    assert_eq!((world.allocated(77), world.allocated(77)), (Some(Ok(())), Some(Ok(()))));
    assert!(vhd.state.map.may_write_replicas(E) && world.mail.edits.is_empty());
    let clear = |world: &World| {
        let rows = world.mail.edits.iter().flat_map(|(_, rows)| rows);
        rows.filter(|row| matches!(row, StoreEdit::Intend { intend: false, .. })).count()
    };
    // Written to since.
    world.advance(10_000);
    assert!(vhd.state.map.has_intent(0));
    // Not any more, but not synced either.
    vhd.state.note_written(world.owner.space.disk(DiskId(0)).state.sync_needed());
    world.advance(10_000);
    assert!(!vhd.state.map.has_intent(0), "reactors have to ask from now on");
    world.settle();
    assert!(vhd.state.map.has_intent(0), "it stays after all");
    let synced = world.owner.space.disk(DiskId(0)).state.begin_sync();
    world.owner.space.disk(DiskId(0)).state.sync_succeeded(synced);
    world.advance(10_000);
    world.advance(10_000);
    let fences = world.fences(0);
    assert!(!vhd.state.map.has_intent(0) && fences.len() == 3);
    // A write comes in between: it gets the intent back at once.
    world.intend(&vhd, E);
    assert_eq!((world.allocated(77), world.mail.edits.len()), (Some(Ok(())), 0));
    fences.into_iter().for_each(|(fence, _)| world.reach(0, fence));
    assert_eq!(clear(&world), 0);
    world.advance(10_000);
    world.advance(10_000);
    for (fence, _) in world.fences(0) {
        world.reach(0, fence);
    }
    assert_eq!(clear(&world), 1);
    world.commit_edits();
    world.intend(&vhd, E);
    assert_eq!((world.allocated(77), world.mail.edits.len()), (None, 1), "the table has it no more");
}

#[test]
fn what_cannot_be_read_is_written_anew() {
    let (mut world, vhd) = degrading();
    let [good, bad] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    for _ in 0..2 {
        world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: E, disk: bad.disk });
    }
    let copies = world.copies();
    let [copy] = &copies[..] else { panic!("one copy, not {}", copies.len()) };
    assert_eq!((copy.source, copy.target, copy.extent), (good, bad, E));
    let report = MoverReport::Failed { id: copy.id, disk: bad.disk, error: EIO };
    world.owner.handle_mover(report, world.now, &mut world.mail);
    world.commit_edits();
    assert_eq!(replicas(&vhd, E)[1].state, ReplicaState::Stale, "it does not take it");
}

/// Both replicas are bad in different places.
#[test]
fn a_bad_source_is_repaired_from_the_target() {
    let (mut world, vhd) = degrading();
    let [good, bad] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: E, disk: bad.disk });
    let id = world.copies()[0].id;
    let report = MoverReport::Failed { id, disk: good.disk, error: EIO };
    world.owner.handle_mover(report, world.now, &mut world.mail);
    let copies = world.copies();
    assert_eq!((copies.len(), copies[0].source, copies[0].target), (1, bad, good));
    let report = MoverReport::Failed { id: copies[0].id, disk: bad.disk, error: EIO };
    world.owner.handle_mover(report, world.now, &mut world.mail);
    assert!(world.copies().is_empty(), "not for ever");
    assert!(replicas(&vhd, E).iter().all(|replica| replica.state == ReplicaState::InSync));
}

/// What the daemon finds when it was killed while replicas were written to.
pub(super) fn reopened(dead: Option<DiskId>) -> (World, VhdInfo) {
    reopened_after(degrading(), dead)
}

pub(super) fn reopened_after((before, vhd): (World, VhdInfo), dead: Option<DiskId>) -> (World, VhdInfo) {
    let pool = before.owner.pool.clone();
    let state = Arc::new(vhd_state(&vhd.record, before.owner.geometry, 1, None));
    for extent in (0..8).map(ExtentIndex) {
        let seen = vhd.state.map.lookup(extent);
        state.map.restore(extent, seen.replicas, seen.present, seen.generation);
    }
    state.map.set_in_doubt(0);
    let disks: Vec<Arc<DiskState>> = pool.disks.iter().map(disk_state).collect();
    disks.iter().filter(|disk| Some(disk.id) == dead).for_each(|disk| disk.fail());
    let mut owner = Owner::new(pool, disks, vec![(vhd.record.clone(), Arc::clone(&state))], 1)
        .unwrap()
        .with_patience(Some(Duration::from_secs(5)), Some(Duration::from_secs(100)));
    let mut mail = Mail::default();
    owner.start(&mut mail);
    let world = World { owner, mail, now: Nanos(0), next_command: 0 };
    (world, VhdInfo { state, ..vhd })
}

#[test]
fn replicas_in_doubt_are_made_equal_to_the_one_that_is_read() {
    let (mut world, vhd) = reopened(None);
    let mut equal = 0;
    while vhd.state.map.is_in_doubt(E) {
        let copies = world.copies();
        assert!(!copies.is_empty() && copies.len() <= 8);
        for copy in copies {
            assert_eq!(copy.source, replicas(&vhd, copy.extent)[0], "the one that guests read");
            assert_eq!(copy.target, replicas(&vhd, copy.extent)[1]);
            equal += 1;
            world.owner.handle_mover(MoverReport::Copied { id: copy.id }, world.now, &mut world.mail);
        }
    }
    assert_eq!(equal, 8);
    assert!(vhd.state.map.has_intent(0), "until it is synced");
}

#[test]
fn replicas_in_doubt_on_a_missing_disk_are_stale() {
    let dead = DiskId(2);
    let (mut world, vhd) = reopened(Some(dead));
    let here = on(&vhd, dead, ReplicaState::InSync);
    assert!(!here.is_empty());
    world.commit_edits();
    assert_eq!(on(&vhd, dead, ReplicaState::Stale), here);
    for copy in world.copies() {
        assert!(copy.target.disk != dead && copy.source.disk != dead);
    }
}

#[test]
fn a_disk_that_missed_something_and_works_is_filled_where_it_is() {
    let (mut world, vhd) = degrading();
    let [kept, bad] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    world.miss(&vhd, bad.disk, write(E));
    world.edit_done(Ok(()));
    world.advance(1000);
    world.commit_edits();
    assert_eq!(world.jobs(), [(JobKind::Resync { disk: bad.disk }, JobState::Running)]);
    let syncing = Replica { state: ReplicaState::Syncing, ..bad };
    assert_eq!(replicas(&vhd, E), [kept, syncing], "the same slot");
    world.move_all();
    assert_eq!(replicas(&vhd, E), [kept, bad]);
    assert_eq!(world.jobs()[0].1, JobState::Done);
    world.check();
    let moved = world.owner.jobs.iter().next().unwrap().planned_bytes;
    assert_eq!(moved, EXTENT, "only what it missed");
}

#[test]
fn what_cannot_be_filled_stays_stale_and_is_tried_again() {
    let (mut world, vhd) = degrading();
    let bad = replicas(&vhd, E)[1];
    world.miss(&vhd, bad.disk, write(E));
    world.edit_done(Ok(()));
    world.advance(1000);
    world.commit_edits();
    for (fence, _) in world.fences(0) {
        world.reach(0, fence);
    }
    let copies = world.copies();
    // Not an error of one place.
    let report = MoverReport::Failed { id: copies[0].id, disk: bad.disk, error: IoError::Os(libc::ENOSPC) };
    world.owner.handle_mover(report, world.now, &mut world.mail);
    world.commit_edits();
    assert_eq!((world.jobs()[0].1, replicas(&vhd, E)[1].state), (JobState::Stopped, ReplicaState::Stale));
    world.check();
    world.advance(30_000);
    assert_eq!(world.jobs()[0].1, JobState::Stopped);
    world.advance(31_000);
    world.commit_edits();
    world.move_all();
    assert_eq!((world.jobs()[0].1, replicas(&vhd, E)[1]), (JobState::Done, bad));
}

/// Other replicas of the VHD on that disk are whole and synced: of the one that is being filled nothing is needed.
#[test]
fn a_flush_does_without_a_copy_that_is_filled_in_its_place_on_a_disk_that_hangs() {
    let (mut world, vhd) = degrading();
    let bad = replicas(&vhd, E)[1];
    let disk = Arc::clone(&world.owner.space.disk(bad.disk).state);
    world.miss(&vhd, bad.disk, write(E));
    world.edit_done(Ok(()));
    world.dropped();
    let sync = disk.begin_sync();
    disk.sync_succeeded(sync);
    world.advance(1000);
    world.commit_edits();
    assert_eq!(world.jobs(), [(JobKind::Resync { disk: bad.disk }, JobState::Running)]);
    vhd.state.note_copied(E, disk.sync_needed());
    let flush = MissedBy::Flush { ticket: 5, disk: bad.disk };
    world.miss(&vhd, bad.disk, flush);
    assert_eq!(world.dropped(), [true]);
    assert_eq!((replicas(&vhd, E)[1].state, world.jobs()[0].1), (ReplicaState::Stale, JobState::Stopped));
    assert_eq!((world.mail.excused.len(), vhd.state.sync_wanted_on(bad.disk)), (1, SyncNumber(0)));
    // What a replica has is not.
    vhd.state.note_written(disk.sync_needed());
    world.miss(&vhd, bad.disk, flush);
    assert_eq!((world.dropped(), world.mail.excused.len()), (vec![false], 1));
}

#[test]
fn what_a_failed_disk_had_is_made_anew_on_others_at_once() {
    let (mut world, vhd) = degrading();
    let dead = DiskId(0);
    let before = on(&vhd, dead, ReplicaState::InSync).len();
    world.fail(dead);
    world.commit_edits();
    world.advance(1000);
    world.commit_edits();
    assert_eq!(world.jobs(), [(JobKind::Rebuild { disk: dead }, JobState::Running)]);
    world.move_all();
    assert_eq!(world.jobs()[0].1, JobState::Done);
    let all = (0..8).flat_map(|extent| replicas(&vhd, ExtentIndex(extent)));
    assert!(all.clone().all(|r| r.disk != dead && r.state == ReplicaState::InSync) && all.count() == 16);
    assert_eq!(world.owner.jobs.iter().next().unwrap().planned_bytes, before as u64 * EXTENT);
    world.advance(61_000);
    world.commit_edits();
    assert_eq!(world.jobs().len(), 1, "nothing is left to do");
    world.check();
}

#[test]
fn a_missing_disk_is_waited_for() {
    let (mut world, _) = reopened(Some(DiskId(2)));
    world.commit_edits();
    world.advance(99_000);
    world.commit_edits();
    assert_eq!(world.jobs(), []);
    world.advance(1_000);
    world.commit_edits();
    assert_eq!(world.jobs(), [(JobKind::Rebuild { disk: DiskId(2) }, JobState::Running)]);
    world.move_all();
    assert_eq!(world.jobs()[0].1, JobState::Done);
    world.check();
}

/// A replica that is one too many is one that cannot be read, whatever the planner would have chosen among those that can.
#[test]
fn fewer_replicas_do_without_a_disk_that_has_failed() {
    for failed in (0..3).map(DiskId) {
        let (mut world, vhd) = degrading();
        world.owner.space.disk(failed).state.fail();
        world.set_replicas(1).unwrap();
        world.move_all();
        for extent in (0..8).map(ExtentIndex) {
            let left = replicas(&vhd, extent);
            assert!(left.len() == 1 && left[0].disk != failed, "{failed:?}: {left:?}");
        }
        assert_eq!(world.jobs()[0].1, JobState::Done);
        world.check();
    }
}

/// No job drops the only replica that can be read.
#[test]
fn fewer_replicas_keep_one_that_can_be_read() {
    let (mut world, vhd) = degrading();
    let bad = replicas(&vhd, E)[1];
    world.miss(&vhd, bad.disk, write(E));
    world.edit_done(Ok(()));
    world.owner.space.disk(bad.disk).state.fail();
    world.set_replicas(1).unwrap();
    world.move_all();
    for extent in (0..8).map(ExtentIndex) {
        let left = replicas(&vhd, extent);
        assert!(left.iter().any(|r| r.state == ReplicaState::InSync && r.disk != bad.disk), "{left:?}");
    }
    world.check();
}
