//! Redundancy that comes back by itself: jobs that fill stale replicas on disks that work, and make anew elsewhere what failed
//! disks had.
//!
//! A disk that fails is given up at once. One that is missing may only be late: it is given up after a delay. VHDs that another job
//! is about wait for its end.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, DiskSet, JobId};
use crate::base::limits::{RESTORE_LOOK_MILLIS, RESTORE_RETRY_SECS};
use crate::base::units::ExtentIndex;
use crate::owner::Owner;
use crate::owner::command::{Command, CommandId, Restoration, SetJob};
use crate::owner::outbox::OwnerOutbox;
use crate::owner::vhds::Vhd;
use crate::placement::ReplicaState;
use crate::placement::job::{JobKind, JobState};

/// When what was looked at last.
#[derive(Debug, Default)]
pub(in crate::owner) struct Restore {
    /// How long a missing disk is waited for; `None`: for ever.
    pub delay: Option<Duration>,
    /// Something has changed since the last look.
    pub changed: bool,
    looked: Nanos,
    /// When what was tried may be tried again.
    retry: BTreeMap<(DiskId, Restoration), Nanos>,
    /// A look that must come even if nothing changes.
    later: Option<Nanos>,
}

impl Restore {
    /// When [`Owner::restore_redundancy`] has something to do.
    pub fn due(&self) -> Option<Nanos> {
        let next = self.changed.then(|| self.looked.after(Duration::from_millis(RESTORE_LOOK_MILLIS)));
        next.into_iter().chain(self.later).min()
    }

    fn look_again(&mut self, at: Nanos) {
        self.later = Some(self.later.map_or(at, |other| other.min(at)));
    }
}

/// What of a VHD is not as it should be.
#[derive(Clone, Copy, Default)]
struct Survey {
    /// Disks on which replicas are stale.
    stale: DiskSet,
    /// Disks on which replicas are that another one can be made from.
    replicated: DiskSet,
}

impl Owner {
    /// Begins the jobs that are due. One disk at a time: what follows is planned from where the first has got.
    pub(in crate::owner) fn restore_redundancy(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        if self.restore.due().is_none_or(|due| due > now) {
            return;
        }
        (self.restore.looked, self.restore.changed, self.restore.later) = (now, false, None);
        self.retry_stopped(now, out);
        let free = |vhd: &&Vhd| self.jobs.about(vhd.record.id).is_none() && !vhd.frozen;
        let surveys: Vec<Survey> = self.vhds.iter().filter(free).map(survey).collect();
        let stale = surveys.iter().fold(0, |all, survey| all | survey.stale.0);
        let replicated = surveys.iter().fold(0, |all, survey| all | survey.replicated.0);
        let mut wanted = Vec::new();
        for disk in self.space.iter() {
            let id = disk.state.id;
            if !disk.state.is_failed() {
                if DiskSet(stale).contains(id) {
                    wanted.push((id, Restoration::Resync, now));
                }
            } else if DiskSet(replicated | stale).contains(id) {
                let due = if disk.missing { self.restore.delay.map(|delay| Nanos(0).after(delay)) } else { Some(now) };
                wanted.extend(due.map(|due| (id, Restoration::Rebuild, due)));
            }
        }
        for (disk, what, due) in wanted {
            let due = self.restore.retry.get(&(disk, what)).copied().unwrap_or_default().max(due);
            if due > now {
                self.restore.look_again(due);
                continue;
            }
            self.restore.retry.insert((disk, what), now.after(Duration::from_secs(RESTORE_RETRY_SECS)));
            self.handle_command(CommandId::NOBODY, Command::Restore { disk, what }, out);
        }
    }

    /// Jobs of this kind that an error has stopped go on after a while.
    fn retry_stopped(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        let stopped = self.jobs.iter().filter(|job| job.record.state == JobState::Stopped);
        let stopped: Vec<(JobId, (DiskId, Restoration))> =
            stopped.filter_map(|job| Some((job.record.id, restoration(&job.record.kind)?))).collect();
        for (job, what) in stopped {
            let due = *self.restore.retry.entry(what).or_insert(now);
            if due > now {
                self.restore.look_again(due);
                continue;
            }
            self.restore.retry.insert(what, now.after(Duration::from_secs(RESTORE_RETRY_SECS)));
            let resume = SetJob { job, paused: Some(false), max_rate: None, urgent: None };
            self.handle_command(CommandId::NOBODY, Command::SetJob(resume), out);
        }
    }

    /// A job has ended. One that has brought back all that it was for says nothing against the next.
    pub(in crate::owner) fn restoring_ended(&mut self, job: JobId) {
        let done = self.jobs.get(job).filter(|job| job.record.state == JobState::Done && !job.leaves_some());
        if let Some(what) = done.and_then(|job| restoration(&job.record.kind)) {
            self.restore.retry.remove(&what);
        }
        self.look_at_redundancy(None);
    }

    /// A disk works again, or has failed only now: what was tried before says nothing.
    pub(in crate::owner) fn look_at_redundancy(&mut self, disk: Option<DiskId>) {
        if let Some(disk) = disk {
            self.restore.retry.retain(|(of, _), _| *of != disk);
        }
        self.restore.changed |= self.vhds.iter().any(|vhd| vhd.record.replicas > 1);
    }
}

/// What a job brings back, and where.
fn restoration(kind: &JobKind) -> Option<(DiskId, Restoration)> {
    match kind {
        JobKind::Rebuild { disk } => Some((*disk, Restoration::Rebuild)),
        JobKind::Resync { disk } => Some((*disk, Restoration::Resync)),
        _ => None,
    }
}

/// Reads the whole map of a VHD that has replicas.
fn survey(vhd: &Vhd) -> Survey {
    let mut found = Survey::default();
    if vhd.record.replicas < 2 {
        return found;
    }
    let map = &vhd.state.map;
    for extent in map.placed_from(ExtentIndex(0)) {
        let replicas = map.lookup(extent).replicas.settled();
        let in_sync: DiskSet =
            replicas.iter().filter(|r| r.state == ReplicaState::InSync).map(|replica| replica.disk).collect();
        found.stale.0 |= replicas.iter().map(|r| r.disk).filter(|disk| !in_sync.contains(*disk)).collect::<DiskSet>().0;
        if in_sync.len() > 1 {
            found.replicated.0 |= in_sync.0;
        }
    }
    found
}
