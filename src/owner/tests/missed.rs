//! Writes and FLUSHes that a copy missed: what the owner answers, and when.

use super::moves::{A, B, Moving, ON_A, R, STAGES, Until, disks};
use super::*;
use crate::owner::moves::wave::Missed;
use crate::placement::ReplicaState;
use crate::placement::job::JobState;
use crate::reactor::messages::MissedBy;
use crate::store::edit::EditFailed;

#[test]
fn a_guests_write_that_a_copy_missed_is_good_without_it() {
    for stage in STAGES {
        for by in [MissedBy::Write { piece: 3, extent: ExtentIndex(1) }, MissedBy::Flush { ticket: 4, disk: B }] {
            let mut moving = Moving::at(3, stage);
            // It was written to while it was sealing, and has not been synced since.
            moving.vhd.state.note_copied(ExtentIndex(1), moving.world.owner.space.disk(B).state.sync_needed());
            moving.missed(by);
            if stage == Until::Committing {
                assert_eq!(moving.answered(), None, "not before it is known what the table has");
                moving.commit(Ok(()));
                assert_eq!(moving.answered(), Some(false), "the extent is there by now");
            } else {
                assert_eq!(moving.answered(), Some(true), "{stage:?}");
                assert_eq!(disks(&moving.replicas(1)), ON_A);
                assert_eq!(moving.state().0, JobState::Stopped);
            }
            let is_flush = matches!(by, MissedBy::Flush { .. });
            let excused = is_flush && stage != Until::Committing;
            assert_eq!(moving.world.mail.excused.len(), usize::from(excused), "{stage:?}");
            moving.settle();
            moving.check_slots();
        }
    }
}

/// What guests wrote to a copy while it was sealing is nowhere else once it has taken its place: its disk cannot be done without.
#[test]
fn a_flush_fails_without_the_disk_on_which_a_copy_has_arrived() {
    for is_late in [false, true] {
        let mut moving = Moving::at(3, Until::Committing);
        let disk = Arc::clone(&moving.world.owner.space.disk(B).state);
        let write = |moving: &Moving| moving.vhd.state.note_copied(ExtentIndex(1), disk.sync_needed());
        if !is_late {
            write(&moving);
        }
        moving.commit(Ok(()));
        // The write began while the copy was sealing.
        if is_late {
            write(&moving);
        }
        disk.fail();
        moving.missed(MissedBy::Flush { ticket: 4, disk: B });
        assert_eq!(moving.answered(), Some(false), "is_late {is_late}");
    }
}

/// Of copies that have been given up nothing is needed, whatever else the VHD has there that is synced.
#[test]
fn a_flush_does_without_a_failed_disk_that_only_copies_were_written_to() {
    let mut moving = Moving::at(1, Until::Committing);
    moving.commit(Ok(()));
    moving.settle();
    let disk = Arc::clone(&moving.world.owner.space.disk(B).state);
    let synced = disk.begin_sync();
    disk.sync_succeeded(synced);
    assert_eq!(moving.world.allocate(&moving.vhd.clone(), 1), Some(Ok(())));
    // It is on the disk, and no copy in sync: a move was given up that had got so far.
    moving.vhd.state.note_copied(ExtentIndex(7), disk.sync_needed());
    disk.fail();
    moving.missed(MissedBy::Flush { ticket: 4, disk: B });
    assert_eq!(moving.answered(), Some(true));
}

/// A disk that works may answer a write to a replica while a FLUSH that could do without it is looked at.
#[test]
fn a_flush_fails_if_something_was_needed_of_the_disk_meanwhile() {
    let mut moving = Moving::at(1, Until::Committing);
    moving.commit(Ok(()));
    moving.settle();
    let disk = Arc::clone(&moving.world.owner.space.disk(B).state);
    let sync = || disk.sync_succeeded(disk.begin_sync());
    let (vhd, by) = (Arc::clone(&moving.vhd.state), MissedBy::Flush { ticket: 4, disk: B });
    let missed = Missed { reactor: R, vhd: vhd.id(), disk: B, by };
    sync();
    for (is_late, is_good) in [(true, false), (false, true)] {
        let World { owner, mail, .. } = &mut moving.world;
        assert_eq!(owner.judge(&missed, mail), Some(true));
        if is_late {
            vhd.note_written(disk.sync_needed());
        }
        owner.answer(&missed, true, mail);
        assert_eq!((mail.excused.len(), disk.is_synced(vhd.sync_wanted_on(B))), (usize::from(is_good), is_good));
        assert_eq!(moving.answered(), Some(is_good), "is_late {is_late}");
        sync();
    }
}

/// A write that a reactor notes while the owner excuses what was before it has a later number.
#[test]
fn what_a_later_sync_is_needed_for_is_not_excused() {
    let moving = Moving::at(1, Until::Copying);
    let (vhd, disk) = (&moving.vhd.state, &moving.world.owner.space.disk(B).state);
    let excused = disk.begin_sync();
    let later = disk.sync_needed();
    assert!(later.number > excused);
    vhd.note_copied(ExtentIndex(7), later);
    vhd.excuse_copies(B, excused);
    assert_eq!((vhd.sync_wanted_on(B), vhd.sync_needed_on(B)), (later.number, SyncNumber(0)));
    vhd.excuse_copies(B, later.number);
    assert_eq!(vhd.sync_wanted_on(B), SyncNumber(0));
    vhd.note_written(later);
    vhd.excuse_copies(B, later.number);
    vhd.excuse_replicas(B, excused);
    assert_eq!(vhd.sync_needed_on(B), later.number);
    vhd.excuse_replicas(B, later.number);
    assert_eq!(vhd.sync_needed_on(B), SyncNumber(0));
}

#[test]
fn a_write_does_not_wait_for_moves_of_other_extents() {
    let mut moving = Moving::at(3, Until::Committing);
    moving.missed(MissedBy::Write { piece: 3, extent: ExtentIndex(7) });
    assert_eq!(moving.answered(), Some(true));
    moving.missed(MissedBy::Write { piece: 3, extent: ExtentIndex(1) });
    assert_eq!(moving.answered(), None);
}

/// The job plans anew when the last move of a wave has been given up, before anybody has heard what became of the copy.
#[test]
fn a_copy_that_is_begun_anew_is_not_the_one_that_missed_a_write() {
    for stage in [Until::Draining, Until::Copying] {
        let mut moving = Moving::at(1, stage);
        moving.missed(MissedBy::Write { piece: 3, extent: ExtentIndex(0) });
        assert_eq!(moving.answered(), Some(true), "{stage:?}");
        assert_eq!((disks(&moving.replicas(0)), moving.state().0), (ON_A.to_vec(), JobState::Stopped));
        moving.settle();
        moving.check_slots();
    }
}

#[test]
fn a_flush_does_without_a_disk_that_the_vhd_has_left() {
    let mut moving = Moving::at(1, Until::Committing);
    let (vhd, left) = (Arc::clone(&moving.vhd.state), Arc::clone(&moving.world.owner.space.disk(A).state));
    // A write completes in both places before the switch, and one that saw both after it.
    vhd.note_written(left.sync_needed());
    moving.commit(Ok(()));
    let _ = left.begin_sync();
    let last = left.sync_needed();
    vhd.note_written(last);
    assert_eq!(vhd.sync_needed_on(A), last.number);
    moving.settle();
    let (needed, wanted) = (vhd.sync_needed_on(A).0, vhd.sync_wanted_on(A));
    assert_eq!((needed, wanted), (0, last.number), "it is synced as long as that is possible");
    assert!(vhd.disks_to_sync().contains(A));
    left.fail();
    let by = MissedBy::Flush { ticket: 4, disk: A };
    let request = OwnerRequest::CopyMissed { reactor: R, vhd: vhd.id(), disk: A, by };
    moving.world.owner.handle_reactor(request, moving.world.now, &mut moving.world.mail);
    assert_eq!(moving.answered(), Some(true));
    let [(_, excused)] = moving.world.mail.excused[..] else { panic!("the committer waits for the disk, too") };
    assert!(excused.disk == A && excused.number >= last.number);
    assert!(!vhd.disks_to_sync().contains(A));
}

#[test]
fn a_flush_depends_on_a_disk_on_which_something_is_left() {
    let mut moving = Moving::at(2, Until::Copying);
    let (vhd, left) = (Arc::clone(&moving.vhd.state), Arc::clone(&moving.world.owner.space.disk(A).state));
    vhd.note_written(left.sync_needed());
    moving.world.command(Command::CancelJob { job: moving.job, revert: false, now: 9 });
    moving.settle();
    assert_eq!(vhd.sync_needed_on(A), left.sync_needed().number);
}

/// Nobody knows where the extent is: what comes later leaves it alone, and does not wait for it.
#[test]
fn a_later_job_ends_without_what_is_undecided() {
    let mut moving = Moving::at(1, Until::Committing);
    moving.commit(Err(EditFailed));
    moving.world.command(Command::CancelJob { job: moving.job, revert: false, now: 9 });
    moving.settle();
    let order = moving.settle_order();
    moving.world.run(order).unwrap();
    moving.settle();
    let Reply::Jobs(jobs) = moving.world.ask(Command::ListJobs).unwrap() else { panic!("jobs") };
    assert_eq!(jobs.iter().map(|job| job.record.state).collect::<Vec<_>>(), [JobState::Cancelled, JobState::Stopped]);
    assert_eq!(moving.replicas(0).len(), 2, "both places are kept");
}

#[test]
fn nobody_waits_for_a_store_that_has_failed() {
    for by in [MissedBy::Write { piece: 3, extent: ExtentIndex(1) }, MissedBy::Flush { ticket: 4, disk: B }] {
        let mut moving = Moving::at(3, Until::Committing);
        moving.missed(by);
        assert_eq!(moving.answered(), None);
        moving.commit(Err(EditFailed));
        // The table may have the copy that lacks the write.
        assert_eq!(moving.answered(), Some(false));
        assert_eq!(disks(&moving.replicas(1)), [(A, ReplicaState::InSync), (B, ReplicaState::Sealing)]);
        moving.missed(by);
        assert_eq!(moving.answered(), Some(false), "nor later");
        let other = MissedBy::Write { piece: 3, extent: ExtentIndex(7) };
        moving.missed(other);
        assert_eq!(moving.answered(), Some(true), "another extent");
        assert_eq!(moving.state().0, JobState::Stopped);
        moving.world.command(Command::CancelJob { job: moving.job, revert: false, now: 9 });
        assert_eq!(moving.replicas(1).len(), 2, "cannot be taken back");
    }
}
