//! Moving extents: an administrator who changes layouts, and the mover's part of the world.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use spanblk::base::clock::Nanos;
use spanblk::base::ids::JobId;
use spanblk::base::units::ExtentIndex;
use spanblk::disk::sim::SimDisk;
use spanblk::engine::sim::SimEngine;
use spanblk::mover::copier::Copier;
use spanblk::mover::messages::Speed;
use spanblk::owner::command::Reply;
use spanblk::owner::command::{Command, CommandId, JobRequest, LayoutRequest, SetJob, StartJob};
use spanblk::placement::{Replica, ReplicaState};
use spanblk::qos::shares::Work;
use spanblk::shared::{DiskState, VhdState};
use spanblk::store::edit::{StoreEdit, StoreReport};

use super::post::{Post, ToCommitter};
use super::verify::{checksums, read_extent};
use super::world::World;

impl World {
    /// An administrator who cannot decide where a VHD should be.
    pub fn move_something(&mut self) {
        let id = CommandId(self.next);
        self.next += 1;
        let disk = format!("d{}", self.rng.below(u64::from(self.scenario.disks)));
        let vhd = match self.guests.len() {
            0 => return,
            count => self.guests[self.rng.index(count)].state.id().0,
        };
        let vhd = self.told[&vhd].record.name.clone();
        let request = match self.rng.below(if self.scenario.replicated { 12 } else { 8 }) {
            0 | 1 => JobRequest::Span { vhd, disks: None, width: None },
            2..5 => JobRequest::Unspan { vhd, disk: Some(disk), width: None },
            5 => JobRequest::Migrate { vhd, disk: Some(disk) },
            6 => JobRequest::Unspan { vhd, disk: None, width: Some(2) },
            _ if self.scenario.replicated && self.rng.chance(2, 3) => {
                JobRequest::Replicas { vhd, replicas: 1 + u8::try_from(self.rng.below(3)).expect("below 3") }
            }
            _ => JobRequest::Rebalance,
        };
        let job = JobId(u32::try_from(self.rng.below(self.jobs + 1)).expect("few jobs"));
        let command = match if self.jobs == 0 { 7 } else { self.rng.below(12) } {
            0 => Command::CancelJob { job, revert: self.rng.chance(1, 2), now: 0 },
            1 => Command::SetJob(SetJob { job, paused: Some(true), max_rate: None, urgent: None }),
            2 | 3 => Command::SetJob(SetJob { job, paused: Some(false), max_rate: None, urgent: None }),
            _ => Command::StartJob(Box::new(StartJob { request, dry_run: false, speed: Speed::default(), created: 0 })),
        };
        let mut post = self.post.clone();
        self.owner.handle_command(id, command, &mut post);
    }

    /// Requests that met a chunk being copied, or let the copier go first.
    pub fn copy_waits(&self) -> u64 {
        let queues = self.post.queues.borrow();
        let of = |vhd: &Arc<VhdState>| -> u64 {
            vhd.metrics.iter().map(|m| m.copy_waits.load(std::sync::atomic::Ordering::Relaxed)).sum()
        };
        queues.opened.iter().map(of).sum()
    }

    /// Replicas of a VHD that is about to be created.
    pub fn replicas_for(&self, layout: &LayoutRequest, id: CommandId) -> u8 {
        match layout {
            LayoutRequest::Spanned { .. } if self.scenario.replicated => 1 + u8::try_from(id.0 % 3).expect("below 3"),
            _ => 1,
        }
    }

    /// Whether all replicas of every extent that may be read hold the same, now that nothing is in flight. (Those on a disk that has failed are
    /// not read, and compared with others before they are, once it is back: there is an intent.) Returns how many were compared.
    pub fn compare_replicas(&self) -> Result<u64, String> {
        let mut compared = 0;
        for vhd in &self.post.queues.borrow().opened {
            for extent in vhd.map.placed_from(ExtentIndex(0)) {
                let seen = vhd.map.lookup(extent);
                let mut in_sync = seen.replicas.iter().filter(|replica| replica.state == ReplicaState::InSync);
                assert!(in_sync.next().is_some(), "a placed extent has a replica in sync: {seen:?}");
                let works = |replica: &Replica| !self.states[replica.disk.index()].is_failed();
                let read = |replica| read_extent(&self.disks, replica, seen.present);
                let in_sync = seen.replicas.iter().filter(|replica| replica.state == ReplicaState::InSync);
                let mut contents = in_sync.filter(works).map(read);
                let Some(first) = contents.next().transpose()? else { continue };
                for other in contents {
                    compared += 1;
                    if other? != first {
                        return Err(format!(
                            "VHD {}: replicas of extent {} differ: {seen:?}, intent {}",
                            vhd.id().0,
                            extent.0,
                            vhd.map.has_intent(0)
                        ));
                    }
                }
            }
        }
        Ok(compared)
    }

    /// Whether what is in sync has the checksums that it should have, now that nothing is in flight. Returns how many were compared.
    pub fn compare_checksums(&self) -> Result<u64, String> {
        let mut compared = 0;
        for vhd in &self.post.queues.borrow().opened {
            for extent in vhd.map.placed_from(ExtentIndex(0)).filter(|extent| !vhd.map.is_in_doubt(*extent)) {
                let seen = vhd.map.lookup(extent);
                for replica in seen.replicas.iter().filter(|replica| replica.state == ReplicaState::InSync) {
                    let content = read_extent(&self.disks, replica, seen.present)?;
                    compared += checksums(&vhd.map, extent, &content)
                        .map_err(|error| format!("VHD {}: {error}", vhd.id().0))?;
                }
            }
        }
        Ok(compared)
    }

    /// Blocks that reactors and the mover found not to be what was written.
    pub fn checksum_errors(&self) -> u64 {
        let errors = |vhd: &Arc<VhdState>| vhd.checksum_errors.load(Ordering::Relaxed);
        self.post.queues.borrow().opened.iter().map(errors).sum()
    }

    /// Replicas that were made stale, and made equal again where they are.
    pub fn replica_counts(&mut self) -> (u64, u64) {
        let Reply::Pool(pool) = self.ask_owner(Command::ShowPool) else { panic!("the pool") };
        (pool.made_stale, pool.repaired)
    }

    /// See [`Owner::moves_ended_early`].
    pub fn ended_early(&self) -> [u64; 5] {
        self.owner.moves_ended_early()
    }

    pub fn step_mover_message(&mut self) -> bool {
        let message = self.post.queues.borrow_mut().mover.pop_front();
        let Some(message) = message else { return false };
        self.mover.handle(message, self.now);
        true
    }

    pub fn step_copies(&mut self) -> bool {
        let moved = self.in_trouble(true, |world| world.mover.engine.step(&mut world.rng));
        self.mover.poll(self.now) || moved
    }

    pub fn step_mover_report(&mut self) -> bool {
        let report = self.post.queues.borrow_mut().mover_reports.pop_front();
        let Some(report) = report else { return false };
        let mut post = self.post.clone();
        self.owner.handle_mover(report, self.now, &mut post);
        true
    }

    /// Nothing else can happen: the copier may be waiting for its pace.
    /// Time in which nothing else happens.
    pub fn let_owner_wait(&mut self, millis: u64) {
        self.now = Nanos(self.now.0 + millis * 1_000_000);
        let mut post = self.post.clone();
        self.owner.tick(self.now, &mut post);
    }

    pub fn let_time_pass(&mut self) -> bool {
        let Some(due) = self.mover.next_deadline() else { return false };
        self.now = self.now.max(due);
        self.mover.poll(self.now)
    }

    pub fn switch_early(&mut self, message: &ToCommitter) {
        let ToCommitter::Edit(edit, rows) = message else { return };
        if rows.iter().any(|row| matches!(row, StoreEdit::Move { .. })) {
            let mut post = self.post.clone();
            self.owner.handle_store(StoreReport::EditDone { edit: *edit, result: Ok(()) }, &mut post);
        }
    }
}

/// A mover on these disks.
pub fn mover(disks: &[SimDisk], states: &[Arc<DiskState>], post: &Post) -> Copier<SimEngine, Post> {
    let mut engine = SimEngine::new(64);
    for (state, disk) in states.iter().zip(disks) {
        engine.add_disk(state.id, disk.clone(), 512);
    }
    let mut mover = Copier::new(engine, post.clone());
    states.iter().for_each(|state| mover.add_disk(Arc::clone(state)));
    mover
}

/// Every other run shares its disks out, so that requests and jobs wait for their turn: with a window of an operation or two.
pub fn share_out(states: &[Arc<DiskState>], seed: u64) {
    if !seed.is_multiple_of(2) {
        return;
    }
    for (state, operations) in states.iter().zip((1..3).cycle()) {
        state.shares.switch(true);
        state.shares.set_window(Work::of_all(operations, operations * 4096));
    }
}
