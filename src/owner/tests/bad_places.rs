//! Places that cannot be written: what should be there goes elsewhere, and nothing else waits for it.

use super::super::command::{JobRequest, StartJob};
use super::degraded::{on, replicas, write};
use super::replicas::{fill, replicated, world};
use super::*;
use crate::base::limits::BAD_PLACES_MAX;
use crate::engine::IoError;
use crate::mover::messages::Speed;
use crate::placement::Replica;
use crate::placement::ReplicaState::{InSync, Stale};
use crate::placement::job::{JobKind, JobState};

const E: ExtentIndex = ExtentIndex(0);
const EIO: IoError = IoError::Os(libc::EIO);
const D1: DiskId = DiskId(1);

/// A written VHD with two replicas of each extent, on two disks of so many slots each. Those on disk 1 are stale.
fn stale(extents: u32, slots: u32) -> (World, VhdInfo) {
    let mut world = world(&[(slots, "a"), (slots, "b")]);
    let vhd = world.create(replicated(extents.into(), 2));
    fill(&mut world, &vhd, extents);
    for extent in (0..extents).map(ExtentIndex) {
        let map = &vhd.state.map;
        map.claim_absent(extent, BlockMask::ALL, map.lookup(extent).version).unwrap();
        map.release(extent, BlockMask::ALL, BlockMask::ALL);
        world.miss(&vhd, D1, write(extent));
    }
    world.commit_changes();
    world.commit_edits();
    assert_eq!(on(&vhd, D1, Stale).len(), extents as usize);
    world.mail.events.clear();
    (world, vhd)
}

fn there(vhd: &VhdInfo, extent: ExtentIndex) -> Replica {
    vhd.state.map.lookup(extent).replicas.on(D1).unwrap()
}

impl World {
    /// Lets a second go by, and does what the mover is asked for; disk 1 does not take what is written to these slots.
    fn move_with_bad(&mut self, is_bad: impl Fn(SlotIndex) -> bool) {
        self.advance(1000);
        self.move_all_but(|copy| (copy.target.disk == D1 && is_bad(copy.target.slot)).then_some((D1, EIO)));
    }

    /// Until the extent is being filled in another slot than the bad one it has.
    fn refill_elsewhere(&mut self, vhd: &VhdInfo, bad: SlotIndex) -> SlotIndex {
        let report = |world: &mut World, report| world.owner.handle_mover(report, world.now, &mut world.mail);
        self.advance(1000);
        self.settle();
        for copy in self.copies() {
            let failed = MoverReport::Failed { id: copy.id, disk: D1, error: EIO };
            report(self, if copy.target.slot == bad { failed } else { MoverReport::Copied { id: copy.id } });
        }
        for _ in 0..8 {
            if there(vhd, E).slot != bad {
                break;
            }
            self.settle();
            for message in std::mem::take(&mut self.mail.mover) {
                match message {
                    MoverMessage::Sync { wave, disk } => {
                        report(self, MoverReport::Synced { wave, disk, result: Ok(()) });
                    }
                    MoverMessage::Fence { fence, .. } => report(self, MoverReport::FenceReached { fence }),
                    other => self.mail.mover.push(other),
                }
            }
        }
        let slot = there(vhd, E).slot;
        assert!(slot != bad && there(vhd, E).state.is_moving());
        self.check();
        slot
    }

    fn bad_places(&self) -> usize {
        self.mail.events.iter().filter(|event| matches!(event, Event::BadPlace { .. })).count()
    }

    fn all_free_but(&mut self, used: u32) {
        // A fence may have to be passed before the one that slots wait for.
        self.settle();
        self.settle();
        self.check();
        let slots = self.owner.space.disk(D1).slots();
        assert_eq!((slots.used(), slots.limbo()), (used, 0));
    }
}

#[test]
fn a_bad_place_is_left_for_another_slot_and_nothing_else_waits_for_it() {
    let (mut world, vhd) = stale(100, 130);
    let bad = there(&vhd, ExtentIndex(40));
    world.move_with_bad(|slot| slot == bad.slot);
    assert_eq!(on(&vhd, D1, InSync).len(), 100);
    assert!(there(&vhd, ExtentIndex(40)).slot != bad.slot);
    assert_eq!((world.jobs(), world.bad_places()), (vec![(JobKind::Resync { disk: D1 }, JobState::Done)], 1));
    world.all_free_but(100);
    // Nothing new comes there as long as there is room elsewhere.
    let more = world.create(CreateVhd { replicas: 2, ..create("more", 30, SPANNED) });
    fill(&mut world, &more, 29);
    assert!((0..29).all(|extent| there(&more, ExtentIndex(extent)).slot != bad.slot));
    assert_eq!(world.allocate(&more, 29), Some(Ok(())));
    assert_eq!(there(&more, ExtentIndex(29)).slot, bad.slot, "rather than none");
    world.check();
}

#[test]
fn without_another_slot_the_bad_place_alone_stays_stale() {
    let (mut world, vhd) = stale(100, 100);
    let bad = there(&vhd, ExtentIndex(40));
    for life in 1..4 {
        world.move_with_bad(|slot| slot == bad.slot);
        assert_eq!(on(&vhd, D1, Stale), [ExtentIndex(40)], "try {life}");
        assert_eq!(there(&vhd, ExtentIndex(40)), Replica { state: Stale, ..bad });
        let jobs: Vec<_> = world.owner.jobs.iter().map(|job| &job.record).collect();
        assert!(jobs.len() == life && jobs.iter().all(|job| job.state == JobState::Done), "other jobs can begin");
        assert!(jobs[0].reason.as_ref().unwrap().starts_with("1 extents could not be written"));
        world.all_free_but(100);
        world.advance(61_000);
    }
    assert_eq!(world.bad_places(), 1);
    // There is room: at once.
    world.move_with_bad(|slot| slot == bad.slot);
    world.discard(&vhd, 7);
    world.settle();
    world.move_with_bad(|slot| slot == bad.slot);
    assert_eq!(on(&vhd, D1, Stale), []);
    world.all_free_but(99);
}

#[test]
fn a_disk_that_takes_nothing_stops_the_job_soon() {
    let (mut world, vhd) = stale(200, 500);
    world.move_with_bad(|_| true);
    assert_eq!(on(&vhd, D1, Stale).len(), 200);
    assert_eq!((world.jobs()[0].1, world.bad_places()), (JobState::Stopped, BAD_PLACES_MAX));
    let errors = world.owner.space.disk(D1).errors;
    assert!(errors <= 3 * BAD_PLACES_MAX as u64, "{errors} tries");
    world.watch();
    let suspect = |event: &Event| matches!(event, Event::DiskSuspect { disk, .. } if disk == "d1");
    assert!(world.mail.events.iter().any(suspect));
    world.all_free_but(200);
    // It does after all: what is known of places does no harm.
    world.advance(61_000);
    world.move_with_bad(|_| false);
    assert_eq!(on(&vhd, D1, InSync).len(), 200);
    world.all_free_but(200);
}

impl World {
    fn watch(&mut self) {
        self.owner.watch_disks(self.now, &mut self.mail);
    }
}

#[test]
fn a_copy_that_cannot_be_written_is_made_in_another_slot() {
    let mut world = world(&[(60, "a"), (60, "b")]);
    let vhd = world.create(create("v", 40, LayoutRequest::Isolated { disk: Some("d0".to_owned()) }));
    fill(&mut world, &vhd, 40);
    world.commit_changes();
    let request = JobRequest::Migrate { vhd: "v".to_owned(), disk: Some("d1".to_owned()) };
    let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
    world.run(Command::StartJob(Box::new(start))).unwrap();
    let bad = there(&vhd, ExtentIndex(3)).slot;
    world.move_with_bad(|slot| slot == bad);
    assert!((0..40).all(|extent| replicas(&vhd, ExtentIndex(extent)).iter().all(|r| r.disk == D1 && r.slot != bad)));
    assert_eq!((world.jobs()[0].1, world.bad_places()), (JobState::Done, 1));
    world.all_free_but(40);
}

#[test]
fn a_guests_write_to_a_bad_place_does_not_stop_the_others() {
    for (error, goes_on) in [(EIO, true), (IoError::Os(libc::ETIMEDOUT), false), (IoError::Os(libc::ENOSPC), false)] {
        let (mut world, vhd) = stale(40, 60);
        world.advance(1000);
        world.settle();
        let bad = there(&vhd, E);
        assert!(bad.state.is_moving());
        world.dropped();
        world.tell(OwnerRequest::DiskError { disk: D1, error, sync: false });
        world.miss(&vhd, D1, write(E));
        assert_eq!(world.dropped(), [true], "the other replica has it");
        if goes_on {
            world.move_with_bad(|slot| slot == bad.slot);
            assert_eq!((on(&vhd, D1, InSync).len(), world.jobs()[0].1), (40, JobState::Done));
            assert!(there(&vhd, E).slot != bad.slot);
        } else {
            assert_eq!((on(&vhd, D1, Stale).len(), world.jobs()[0].1), (40, JobState::Stopped));
        }
        world.all_free_but(40);
    }
}

#[test]
fn a_replica_that_cannot_be_repaired_goes_to_another_slot() {
    let (mut world, vhd) = stale(4, 20);
    world.move_with_bad(|_| false);
    let bad = there(&vhd, E).slot;
    world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: E, disk: D1 });
    let copy = world.copies().remove(0);
    let report = MoverReport::Failed { id: copy.id, disk: D1, error: EIO };
    world.owner.handle_mover(report, world.now, &mut world.mail);
    world.commit_edits();
    assert_eq!((there(&vhd, E).state, world.bad_places()), (Stale, 1));
    world.move_with_bad(|slot| slot == bad);
    assert!(there(&vhd, E).state == InSync && there(&vhd, E).slot != bad);
    assert_eq!(world.owner.space.disk(D1).errors, 1, "it was not tried again");
}

/// What ends while a replica is about to leave its slot for another one gives back both, once the table has neither.
#[test]
fn slots_that_are_left_are_used_again_only_when_the_table_does_not_have_them() {
    for end in ["discard", "delete", "cancel"] {
        let (mut world, vhd) = stale(1, 20);
        let bad = there(&vhd, E);
        let other = world.refill_elsewhere(&vhd, bad.slot);
        match end {
            "discard" => {
                world.discard(&vhd, 0);
                world.check();
                let freed = |change: &Change| match change.kind {
                    ChangeKind::Freed { freed } => freed.on(D1).map(|replica| replica.slot),
                    _ => None,
                };
                let freed: Vec<SlotIndex> = world.mail.changes.iter().filter_map(freed).collect();
                assert_eq!(freed, [other, bad.slot], "with the row that has it, not before");
                assert!(world.mail.punches.is_empty());
                world.commit_changes();
                world.all_free_but(0);
            }
            "delete" => {
                world.run(Command::DeleteVhd { vhd: "r".to_owned(), force: false }).unwrap();
                world.all_free_but(0);
            }
            _ => {
                let job = world.owner.jobs.iter().next().unwrap().record.id;
                world.run(Command::CancelJob { job, revert: false, now: 1 }).unwrap();
                assert_eq!(there(&vhd, E), Replica { state: Stale, ..bad }, "as the table has it");
                world.all_free_but(1);
            }
        }
    }
}
