//! Disks of a layout that take nothing, and extents that do not get where they should be: what a job does about them, and how it ends.

use super::super::command::{JobRequest, SetJob, StartJob};
use super::degraded::on;
use super::replicas::{replicated, world};
use super::*;
use crate::base::ids::JobId;
use crate::base::rng::Rng;
use crate::base::units::Generation;
use crate::mover::messages::Speed;
use crate::placement::ReplicaState::InSync;
use crate::placement::job::JobState;
use crate::placement::{Replica, ReplicaSet};

const FAILED: DiskId = DiskId(2);

/// A VHD on four disks, each extent of which has its replicas on these two.
fn placed(places: &[[u8; 2]]) -> (World, VhdInfo) {
    let mut world = world(&[(200, "a"), (200, "b"), (200, "c"), (200, "d")]);
    let mut vhd = world.create(replicated(places.len() as u64, 2));
    let record = world.owner.vhds.get(vhd.record.id).unwrap().record.clone();
    let state = Arc::new(vhd_state(&record, world.owner.geometry, 1, None));
    for (extent, disks) in (0..).zip(places) {
        // An extent has the same slot on both: there are enough.
        let replica = |disk: u8| Replica { disk: DiskId(disk), slot: SlotIndex(extent), state: InSync };
        let mut replicas = ReplicaSet::single(DiskId(disks[0]), SlotIndex(extent));
        replicas.push(replica(disks[1]));
        state.map.restore(ExtentIndex(extent), replicas, BlockMask::ALL, Generation(0));
    }
    vhd.state = Arc::clone(&state);
    (World::with(world.owner.pool.clone(), vec![(record, state)], 1), vhd)
}

/// Neighbours mostly have the same disks: on some of them there are too many of one window.
fn clumps(rng: &mut Rng) -> Vec<[u8; 2]> {
    let mut places = Vec::new();
    let mut pair = [0, 1];
    for _ in 0..96 {
        if rng.chance(1, 12) {
            let first = u8::try_from(rng.below(4)).unwrap();
            pair = [first, (first + 1 + u8::try_from(rng.below(3)).unwrap()) % 4];
        }
        places.push(pair);
    }
    places
}

impl World {
    /// Everything on disk 0 is to go elsewhere.
    fn evacuate(&mut self) -> Result<JobId, CommandError> {
        let request = JobRequest::Evacuate { disk: "d0".to_owned(), accept_loss: false };
        let start = StartJob { request, dry_run: false, speed: Speed::default(), created: 1 };
        let Reply::Job { job, .. } = self.run(Command::StartJob(Box::new(start)))? else { panic!("a job") };
        Ok(job.record.id)
    }

    fn ended(&self, job: JobId) -> (JobState, Option<String>) {
        let record = &self.owner.jobs.get(job).unwrap().record;
        (record.state, record.reason.clone())
    }
}

#[test]
fn an_evacuation_brings_nothing_to_a_disk_that_has_failed() {
    let mut kept = 0;
    for seed in 0..40 {
        let (mut world, vhd) = placed(&clumps(&mut Rng::new(seed)));
        world.owner.space.disk(FAILED).state.fail();
        let before = on(&vhd, FAILED, InSync);
        let job = world.evacuate().unwrap();
        let plan = world.owner.plan_for(job, vhd.record.id).ok().expect("there is room on the others");
        let onto: Vec<_> = plan.relocations.iter().filter(|step| step.to == Some(FAILED)).collect();
        assert!(onto.is_empty(), "seed {seed}: {onto:?}");
        world.move_all();
        let left = on(&vhd, DiskId(0), InSync);
        assert_eq!((left, world.ended(job)), (vec![], (JobState::Done, None)), "seed {seed}");
        let after = on(&vhd, FAILED, InSync);
        assert!(after.iter().all(|extent| before.contains(extent)), "seed {seed}");
        kept += after.len();
        world.check();
    }
    assert!(kept > 0, "what is there may stay");
}

/// What is being repaired is not moved meanwhile: that is no reason to leave it behind.
#[test]
fn an_evacuation_waits_for_repairs_before_it_says_what_it_leaves() {
    let (stays, repaired) = (ExtentIndex(3), ExtentIndex(5));
    let (mut world, vhd) = placed(&[[0, 1]; 8]);
    world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: repaired, disk: DiskId(1) });
    let repair = world.copies().remove(0);
    let job = world.evacuate().unwrap();
    for _ in 0..60 {
        world.owner.give_up_all(|_, _, moved| moved.extent == stays, &mut world.mail);
        world.carry_on();
    }
    assert_eq!(on(&vhd, DiskId(0), InSync), [stays, repaired]);
    assert_eq!(world.ended(job), (JobState::Running, None));
    world.owner.handle_mover(MoverReport::Copied { id: repair.id }, world.now, &mut world.mail);
    world.move_all();
    assert_eq!((on(&vhd, DiskId(0), InSync), world.ended(job)), (vec![], (JobState::Done, None)));
    world.check();
}

/// Moves of one extent are given up again and again; all of it can be read and written.
#[test]
fn an_evacuation_that_leaves_something_behind_is_not_done() {
    let stays = ExtentIndex(3);
    let (mut world, vhd) = placed(&[[0, 1]; 8]);
    let job = world.evacuate().unwrap();
    for _ in 0..60 {
        world.owner.give_up_all(|_, _, moved| moved.extent == stays, &mut world.mail);
        world.carry_on();
    }
    assert_eq!(on(&vhd, DiskId(0), InSync), [stays]);
    let (state, reason) = world.ended(job);
    assert_eq!(state, JobState::Stopped, "{reason:?}");
    let reason = reason.unwrap();
    assert!(reason.starts_with("1 extents are still where they should not be"), "{reason}");
    let resume = SetJob { job, paused: Some(false), max_rate: None, urgent: None };
    world.run(Command::SetJob(resume)).unwrap();
    world.move_all();
    assert_eq!((on(&vhd, DiskId(0), InSync), world.ended(job)), (vec![], (JobState::Done, None)));
    world.check();
}
