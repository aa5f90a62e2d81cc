//! Jobs that go on after a power cut: the pool is opened again with its jobs, and they come to their end by themselves.

use std::collections::BTreeMap;

use spanblk::base::ids::{DiskId, JobId};
use spanblk::base::rng::Rng;
use spanblk::base::units::ExtentIndex;
use spanblk::disk::sim::SimDisk;
use spanblk::owner::command::{Command, Reply, SetJob};
use spanblk::placement::ReplicaState;
use spanblk::placement::job::{JobKind, JobRecord, JobState};
use spanblk::placement::record::VhdRecord;
use spanblk::shared::VhdState;

use super::store::Recovered;
use super::verify::{open, read_extent};
use super::world::{Scenario, World};

/// What every extent of every VHD reads as, of those that do not read as zeros.
type Contents = BTreeMap<(u32, ExtentIndex), Vec<u8>>;

/// What came of jobs after a power cut.
#[derive(Clone, Copy, Debug, Default)]
pub struct Resumed {
    /// Pools opened with jobs that had not ended.
    pub pools: usize,
    /// Of these jobs, those that ran, and those that had been paused or stopped.
    pub ran: usize,
    pub stood: usize,
    /// Extents that were moved after the power cut.
    pub moved: usize,
    /// Replicas found equal to the one that is read.
    pub compared: u64,
}

/// Opens the pool on `images` and lets its jobs go on. Whatever they do, what guests find stays what it is, also if the power
/// fails once more.
pub fn go_on(scenario: Scenario, images: Vec<SimDisk>, seed: u64, sum: &mut Resumed) -> Result<(), String> {
    let found = open(scenario, &images)?;
    let unended: Vec<JobRecord> = found.jobs().iter().filter(|job| !job.is_ended()).cloned().collect();
    let in_doubt = |state: &VhdState| state.map.pages_with_intent().next().is_some();
    let doubt = found.vhds.iter().any(|(_, state)| in_doubt(state));
    if unended.is_empty() && !doubt {
        return Ok(());
    }
    let before = contents(&found, &images)?;
    let mut world = World::opened(Scenario { seed, ..scenario }, images, found)?;
    let doubt_only = unended.is_empty();
    let (ran, stood): (Vec<_>, Vec<_>) = unended.into_iter().partition(|job| job.state == JobState::Running);
    world.rest()?;
    sum.compared += world.compare_replicas()?;
    world.check_jobs_are_done(&ran)?;
    world.resume_all()?;
    world.check_jobs_are_done(&stood)?;
    sum.pools += usize::from(!doubt_only);
    sum.ran += ran.len();
    sum.stood += stood.len();
    sum.moved += world.moves_done;
    // At the end, with nothing lost, and somewhere in between.
    let mut rng = Rng::new(seed);
    let len = world.trace.len();
    for cut in [len, rng.index(len + 1)] {
        let images = world.trace.crash_images(cut, rng.next_u64());
        let after = open(scenario, &images).and_then(|found| contents(&found, &images));
        let after = after.map_err(|error| format!("resumed and cut at {cut} of {len}: {error}"))?;
        if let Some(key) = before.keys().chain(after.keys()).find(|key| before.get(key) != after.get(key)) {
            return Err(format!(
                "resumed and cut at {cut} of {len}: extent {} of VHD {} is not what it was",
                key.1.0, key.0
            ));
        }
    }
    Ok(())
}

fn contents(found: &Recovered, images: &[SimDisk]) -> Result<Contents, String> {
    let mut contents = Contents::new();
    for (record, state) in &found.vhds {
        for extent in state.map.placed_from(ExtentIndex(0)) {
            let seen = state.map.lookup(extent);
            let first = seen.replicas.iter().find(|replica| replica.state == ReplicaState::InSync);
            let first = first.expect("a placed extent has a replica in sync");
            let content = read_extent(images, first, seen.present)?;
            if content.iter().any(|&byte| byte != 0) {
                contents.insert((record.id.0, extent), content);
            }
        }
    }
    Ok(contents)
}

impl World {
    /// A daemon that has found this on the disks.
    pub fn opened(scenario: Scenario, disks: Vec<SimDisk>, found: Recovered) -> Result<World, String> {
        let (pool, jobs, vms) = (found.pool().clone(), found.jobs().to_vec(), found.vms().to_vec());
        let vhds = found.vhds.clone();
        let store = found.serve()?;
        World::serve(scenario, disks, &pool, store, vhds, jobs, vms).map_err(|error| error.to_string())
    }

    /// Asks what is answered at once.
    pub fn ask_owner(&mut self, command: Command) -> Reply {
        let id = self.command(command);
        match self.post.queues.borrow_mut().replies.pop_back() {
            Some((answered, Ok(reply))) if answered == id => reply,
            other => panic!("questions are answered at once, and not with {other:?}"),
        }
    }

    /// As the owner has them.
    pub fn list_jobs(&mut self) -> Vec<JobRecord> {
        let Reply::Jobs(jobs) = self.ask_owner(Command::ListJobs) else { panic!("a list of jobs") };
        jobs.into_iter().map(|job| job.record).collect()
    }

    /// Somebody resumes all jobs that were paused or have stopped, and lets them come to their end.
    pub fn resume_all(&mut self) -> Result<(), String> {
        for job in self.list_jobs().into_iter().filter(|job| !job.is_ended()) {
            self.resume(job.id);
        }
        self.rest()
    }

    pub fn resume(&mut self, job: JobId) {
        self.command(Command::SetJob(SetJob { job, paused: Some(false), max_rate: None, urgent: None }));
    }

    /// These jobs have done what they were for: every extent is where its VHD wants it.
    pub fn check_jobs_are_done(&mut self, of: &[JobRecord]) -> Result<(), String> {
        let jobs = self.list_jobs();
        for job in of {
            let Some(now) = jobs.iter().find(|now| now.id == job.id) else { return Err(format!("{job:?} is gone")) };
            if now.state != JobState::Done {
                return Err(format!("it was to be done: {now:?}, which had been {}", job.state.word()));
            }
            let Reply::Vhds(vhds) = self.ask_owner(Command::ListVhds) else { panic!("a list of VHDs") };
            for vhd in vhds.iter().filter(|vhd| job.vhds.contains(&vhd.record.id)) {
                match job.kind {
                    JobKind::Resync { disk } | JobKind::Rebuild { disk } => check_is_filled(&vhd.state, disk, job)?,
                    _ => check_is_home(&vhd.record, &vhd.state, job)?,
                }
            }
        }
        Ok(())
    }
}

/// Nothing on the disk lacks anything any more.
fn check_is_filled(state: &VhdState, disk: DiskId, job: &JobRecord) -> Result<(), String> {
    for extent in state.map.placed_from(ExtentIndex(0)) {
        let replica = state.map.lookup(extent).replicas.on(disk);
        if replica.is_some_and(|replica| replica.state != ReplicaState::InSync) {
            return Err(format!("{job:?} is done, and extent {} there is {replica:?}", extent.0));
        }
    }
    Ok(())
}

fn check_is_home(record: &VhdRecord, state: &VhdState, job: &JobRecord) -> Result<(), String> {
    let disks = record.layout.disks();
    for extent in state.map.placed_from(ExtentIndex(0)) {
        let replicas = state.map.lookup(extent).replicas;
        let count = replicas.iter().count();
        let is_home = count == usize::from(record.replicas) && replicas.iter().all(|r| disks.contains(r.disk));
        if !is_home || replicas.is_moving() {
            return Err(format!("{job:?} is done, and extent {} of {record:?} is at {replicas:?}", extent.0));
        }
    }
    Ok(())
}
