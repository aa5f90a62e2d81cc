//! Jobs: long operations that move extents, until every VHD they are about is where its record wants it.
//!
//! * `commands`: creating, pausing, cancelling. `goal`: from a wish to a layout. `planning`: from a layout to a plan.
//! * `restore`: replicas that failed disks had, or that missed something.
//! * `replace`: a disk takes the place of another, and what is lost with one that has failed.
//! * `scrub`: reading what is there, which moves nothing.
//! * `run`: carrying plans out, a few waves at a time. `end`: how they end.
//!
//! A job's plan is not stored: what is stored is where each VHD shall be, and the plan from where it is to there is made again
//! after a restart. The record of the VHD has its new layout from the beginning of the job, so that extents placed meanwhile are
//! where they belong at once.

pub(super) mod commands;
mod end;
pub(super) mod goal;
mod planning;
mod replace;
mod restore;
mod run;
mod scrub;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::base::clock::Nanos;
use crate::base::ids::{DiskSet, JobId, VhdId};
use crate::base::units::ExtentIndex;
use crate::mover::messages::Speed;
use crate::owner::moves::wave::Planned;
use crate::placement::job::{JobKind, JobRecord, JobState};

use scrub::Scrub;

/// Ended jobs that are remembered.
const ENDED_MAX: usize = 32;

/// A job, and how far it is.
#[derive(Debug)]
pub(super) struct Job {
    pub record: JobRecord,
    /// Index of the VHD being worked on.
    pub next: usize,
    /// What is left of the plan for that VHD.
    pub todo: VecDeque<Planned>,
    /// Plans made for that VHD, and moves begun since the last one.
    passes: u32,
    begun: usize,
    /// Steps of that plan that were void: their extents had been written anew.
    outdated: usize,
    /// Disks that the plan takes from and gives to.
    pub disks: DiskSet,
    /// Bytes that the plans so far were about.
    pub planned_bytes: u64,
    /// Bytes per second lately.
    pub rate: u64,
    measured: Nanos,
    since: u64,
    /// Extents that could not be read when they were last tried.
    pub unreadable: BTreeSet<(VhdId, ExtentIndex)>,
    /// Extents that could not be written where they should be when they were last tried.
    pub unwritable: BTreeSet<(VhdId, ExtentIndex)>,
    /// Extents by VHD that plans have not brought where they must be.
    left: BTreeMap<VhdId, usize>,
    /// Waits of guests for the copier, before the job began.
    waits_before: u64,
    /// It waits for room that is being given back.
    waiting: bool,
    announced: bool,
    /// How far it is, if it is a scrub.
    pub scrub: Scrub,
}

impl Job {
    pub fn new(record: JobRecord) -> Job {
        Job {
            record,
            next: 0,
            todo: VecDeque::new(),
            passes: 0,
            begun: 0,
            outdated: 0,
            disks: DiskSet::default(),
            planned_bytes: 0,
            rate: 0,
            measured: Nanos(0),
            since: 0,
            unreadable: BTreeSet::new(),
            unwritable: BTreeSet::new(),
            left: BTreeMap::new(),
            waits_before: 0,
            waiting: false,
            announced: false,
            scrub: Scrub::default(),
        }
    }

    pub fn speed(&self) -> Speed {
        Speed { max_rate: self.record.max_rate, urgent: self.record.urgent }
    }

    pub fn is_scrub(&self) -> bool {
        matches!(self.record.kind, JobKind::Scrub { .. })
    }

    /// Whether extents stay where they are because something could not be read or written.
    pub fn leaves_some(&self) -> bool {
        !self.unreadable.is_empty() || !self.unwritable.is_empty()
    }

    pub fn is_running(&self) -> bool {
        self.record.state == JobState::Running
    }
}

/// All jobs, ended ones included.
#[derive(Debug, Default)]
pub(super) struct Jobs(BTreeMap<JobId, Job>);

impl Jobs {
    pub fn new(records: Vec<JobRecord>) -> Jobs {
        Jobs(records.into_iter().map(|record| (record.id, Job::new(record))).collect())
    }

    pub fn get(&self, id: JobId) -> Option<&Job> {
        self.0.get(&id)
    }

    pub fn get_mut(&mut self, id: JobId) -> Option<&mut Job> {
        self.0.get_mut(&id)
    }

    pub fn insert(&mut self, job: Job) {
        self.0.insert(job.record.id, job);
    }

    /// In the order in which they were created.
    pub fn iter(&self) -> impl Iterator<Item = &Job> {
        self.0.values()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Job> {
        self.0.values_mut()
    }

    /// All that have not ended and are about the VHD.
    fn unended(&self, vhd: VhdId) -> impl Iterator<Item = &Job> {
        self.0.values().filter(move |job| !job.record.is_ended() && job.record.vhds.contains(&vhd))
    }

    /// The one among them that moves it.
    pub fn about(&self, vhd: VhdId) -> Option<&Job> {
        self.unended(vhd).find(|job| !job.is_scrub())
    }

    /// All VHDs that jobs move, or are to.
    pub fn moved(&self) -> BTreeSet<VhdId> {
        let unended = self.0.values().filter(|job| !job.record.is_ended() && !job.is_scrub());
        unended.flat_map(|job| &job.record.vhds).copied().collect()
    }

    /// The one among them that reads it.
    pub fn scrub_of(&self, vhd: VhdId) -> Option<&Job> {
        self.unended(vhd).find(|job| job.is_scrub())
    }

    /// Whether something of the VHD is being read by a scrub, one that has ended perhaps.
    pub fn is_being_read(&self, vhd: VhdId) -> bool {
        self.0.values().any(|job| job.scrub.is_reading(vhd))
    }

    /// Forgets the oldest ended jobs beyond those that are remembered.
    pub fn forget_oldest(&mut self) -> Vec<JobId> {
        let ended: Vec<JobId> = self.0.values().filter(|job| job.record.is_ended()).map(|job| job.record.id).collect();
        let old = ended[..ended.len().saturating_sub(ENDED_MAX)].to_vec();
        old.iter().for_each(|id| drop(self.0.remove(id)));
        old
    }
}
