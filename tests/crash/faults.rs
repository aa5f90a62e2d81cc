//! Disks that give errors for a while, to guests and to the mover alike, and what guests may then be told.
//!
//! A sync that fails is the end of a disk until the pool is opened again, so there is one in a run at most, on a disk without a
//! store.

use std::sync::Arc;

use spanblk::base::ids::{DiskId, DiskSet};
use spanblk::base::rng::Rng;
use spanblk::base::units::ExtentIndex;
use spanblk::disk::sim::{Fault, FaultKind, OpCounts, OpKind, SimDisk};
use spanblk::owner::Owner;
use spanblk::placement::ReplicaState;
use spanblk::placement::job::{JobRecord, JobState};
use spanblk::shared::{DiskState, VhdState};

use super::world::{Besides, Scenario, World};

/// Errors of disks, present and past.
pub struct Trouble {
    rng: Rng,
    /// What fails on which disk now.
    now: Option<(DiskId, OpKind)>,
    strikes: Vec<Strike>,
    states: Vec<Arc<DiskState>>,
    /// Of the mover: reads, writes and syncs that failed.
    pub of_mover: [usize; 3],
}

impl std::fmt::Debug for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let failed: DiskSet = self.failed().map(|disk| disk.id).collect();
        write!(f, "now {:?}, before {:?}, {failed:?} failed", self.now, self.strikes)
    }
}

/// An operation that failed.
#[derive(Debug)]
struct Strike {
    disk: DiskId,
    kind: OpKind,
    at: usize,
}

impl Trouble {
    pub fn new(scenario: Scenario, states: &[Arc<DiskState>]) -> Trouble {
        let rng = Rng::new(scenario.seed ^ 0x7472_6f75);
        Trouble { rng, now: None, strikes: Vec::new(), states: states.to_vec(), of_mover: [0; 3] }
    }

    /// Whether such an operation has failed on one of the disks since `since`, or the disk has failed altogether.
    pub fn struck(&self, disks: DiskSet, kind: OpKind, since: usize) -> bool {
        let is_it = |strike: &Strike| disks.contains(strike.disk) && strike.kind == kind && strike.at >= since;
        self.strikes.iter().any(is_it) || self.failed().any(|disk| disks.contains(disk.id))
    }

    /// Whether a disk has failed before what the VHD has on it was synced.
    pub fn keeps_from_flushing(&self, vhd: &VhdState, owner: &Owner) -> bool {
        let unsynced = |disk: &&DiskState| !disk.is_synced(vhd.sync_needed_on(disk.id));
        let owes = self.failed().any(|disk| unsynced(&disk));
        let failed: DiskSet = self.failed().map(|disk| disk.id).collect();
        // What other replicas have need not be synced there, if they stay.
        let is_sole = |extent| {
            let replicas = vhd.map.lookup(extent).replicas;
            let stays = |disk| !owner.is_going_stale(vhd.id(), extent, disk);
            let in_sync: DiskSet =
                replicas.iter().filter(|r| r.state == ReplicaState::InSync).map(|r| r.disk).collect();
            let staying: DiskSet = in_sync.iter().filter(|disk| stays(*disk)).collect();
            assert!(in_sync.is_empty() || !staying.is_empty(), "all replicas of {extent:?} are going stale");
            staying.iter().all(|disk| failed.contains(disk))
        };
        owes && vhd.map.placed_from(ExtentIndex(0)).any(is_sole)
    }

    pub fn has_failed_disk(&self) -> bool {
        self.failed().next().is_some()
    }

    fn failed(&self) -> impl Iterator<Item = &DiskState> {
        self.states.iter().map(Arc::as_ref).filter(|disk| disk.is_failed())
    }
}

fn count(counts: OpCounts, kind: OpKind) -> u64 {
    match kind {
        OpKind::Read => counts.reads,
        OpKind::Write => counts.writes,
        OpKind::Sync => counts.syncs,
        OpKind::Punch => counts.punches,
    }
}

impl World {
    /// Lets a disk begin to give errors, or end. `step`: how far the run is.
    pub fn trouble_comes_and_goes(&mut self, step: usize) {
        let trouble = &mut self.trouble;
        if trouble.now.is_some() {
            if trouble.rng.chance(1, 25) {
                trouble.now = None;
                self.resume_stopped();
            }
            return;
        }
        if !trouble.rng.chance(1, 8) {
            return;
        }
        let disk = trouble.rng.below(u64::from(self.scenario.disks));
        let disk = DiskId(u8::try_from(disk).expect("few disks"));
        let late = step > self.scenario.steps / 3 && disk.index() >= self.scenario.members;
        let kind = match trouble.rng.below(4) {
            0 if late && !trouble.has_failed_disk() => OpKind::Sync,
            0 | 1 => OpKind::Read,
            _ => OpKind::Write,
        };
        trouble.now = Some((disk, kind));
    }

    /// Lets an engine do something while its disks are as they are now.
    pub fn in_trouble(&mut self, is_mover: bool, step: impl FnOnce(&mut World) -> bool) -> bool {
        let Some((id, kind)) = self.trouble.now else { return step(self) };
        let spared = if self.scenario.replicated { 1 } else { 3 };
        if !is_mover && self.trouble.rng.chance(spared, 4) {
            // What guests ask for would stop all jobs before the mover meets an error.
            return step(self);
        }
        let disk: SimDisk = self.disks[id.index()].clone();
        let before = count(disk.op_counts(), kind);
        disk.inject(Fault::always(kind, FaultKind::Error(libc::EIO)));
        let moved = step(self);
        disk.clear_faults();
        if count(disk.op_counts(), kind) > before {
            let at = self.tick();
            self.trouble.strikes.push(Strike { disk: id, kind, at });
            self.trouble.of_mover[kind as usize] += usize::from(is_mover);
            if kind == OpKind::Sync {
                self.trouble.now = None;
            }
        }
        moved
    }

    fn resume_stopped(&mut self) {
        for job in self.list_jobs().into_iter().filter(|job| job.state == JobState::Stopped) {
            self.resume(job.id);
        }
    }

    /// The disks give no errors any more, and somebody resumes what has stopped: all of it comes to its end, unless a disk has
    /// failed.
    pub fn end_trouble(&mut self) -> Result<(), String> {
        if self.scenario.besides != Besides::Faults {
            return Ok(());
        }
        self.trouble.now = None;
        self.rest()?;
        let jobs: Vec<JobRecord> = self.list_jobs().into_iter().filter(|job| !job.is_ended()).collect();
        if let Some(job) = jobs.iter().find(|job| job.state == JobState::Running) {
            return Err(format!("nothing goes on, and a job neither ends nor stops: {job:?}"));
        }
        self.resume_all()?;
        if self.trouble.has_failed_disk() { Ok(()) } else { self.check_jobs_are_done(&jobs) }
    }
}
