//! Creating, changing and showing jobs.

use super::super::Owner;
use super::super::command::{
    CommandError, DiskShare, JobInfo, JobRequest, JoiningDisk, Outcome, PlanInfo, PlannedVhd, Replacement, Reply,
    SetJob, StartJob,
};
use super::super::commands::{Action, Step};
use super::super::outbox::OwnerOutbox;
use super::super::space::DiskSpace;
use super::Job;
use super::goal::{Outlook, Wanted};
use crate::base::ids::{DiskId, JobId, VhdId};
use crate::base::units::ExtentIndex;
use crate::mover::messages::MoverMessage;
use crate::placement::job::{JobKind, JobRecord, JobState};
use crate::placement::record::{Accept, PoolRecord, RECORD_VERSION, VhdRecord};
use crate::plan::{Plan, PlanError};
use crate::store::edit::StoreEdit;

/// A job whose rows are being written.
#[derive(Debug)]
pub(in crate::owner) struct JobStart {
    pub(super) pool: PoolRecord,
    pub(super) vhds: Vec<VhdRecord>,
    pub(super) record: JobRecord,
}

impl Owner {
    pub(in crate::owner) fn begin_start_job(&mut self, start: &StartJob) -> Result<Step, CommandError> {
        let (kind, wanted) = self.wanted(&start.request)?;
        if let JobKind::Scrub { .. } = kind {
            return self.begin_scrub(start, kind, wanted);
        }
        for Wanted { vhd, .. } in &wanted {
            if let Some(job) = self.jobs.about(*vhd) {
                let vhd = self.vhds.get(*vhd).expect("a VHD that was just looked up").record.name.clone();
                return Err(CommandError::JobExists { vhd, job: job.record.id.0, kind: job.record.kind.word() });
            }
        }
        let joining = match &start.request {
            JobRequest::Replace { by: Replacement::Joining(disk), .. } => kind.replacement().map(|id| (id, disk)),
            _ => None,
        };
        let lost = self.lost_of(&kind, &wanted);
        // What is held for the VHDs that are moved is room for them.
        wanted.iter().for_each(|wanted| self.lend_holds_of(wanted.vhd));
        self.make_room_for(&wanted);
        let plans = self.plans(&kind, &wanted, &lost, joining);
        self.refresh_holds();
        let plans = plans?;
        let plan = |owner: &Owner| Step::Done(Reply::Plan(Box::new(owner.plan_info(&wanted, &plans, &lost, joining))));
        if start.dry_run {
            return Ok(plan(self));
        }
        self.check_loss(&kind, &wanted, &lost)?;
        if joining.is_some() {
            return Ok(plan(self));
        }
        let is_same = |(wanted, plan): (&Wanted, &Plan)| {
            let now = self.vhds.get(wanted.vhd).map(|vhd| (&vhd.record.layout, vhd.record.replicas));
            plan.is_empty() && now == Some((&wanted.layout, wanted.replicas))
        };
        let nothing_to_do = wanted.iter().zip(&plans).all(is_same);
        let is_lost = lost.iter().any(|extents| !extents.is_empty());
        let has_only_moves = match kind {
            JobKind::Evacuate { disk, .. } => self.space.disk(disk).accept == Accept::None,
            // At its end the disk goes.
            JobKind::Replace { .. } => false,
            _ => true,
        };
        if nothing_to_do && !is_lost && has_only_moves {
            return Ok(plan(self));
        }
        let makes_good = matches!(kind, JobKind::Rebuild { .. } | JobKind::Resync { .. });
        let start = self.job_start(start, kind, wanted);
        if !makes_good {
            self.hold_for_job(&start.vhds, &plans)?;
        }
        let mut rows = vec![StoreEdit::PutPool(start.pool.clone()), StoreEdit::PutJob(start.record.clone())];
        rows.extend(start.vhds.iter().cloned().map(StoreEdit::PutVhd));
        Ok(Step::Commit { rows, action: Action::StartJob(Box::new(start)) })
    }

    /// What is held for others goes where it is not in the way of the VHDs that are moved, if it can.
    fn make_room_for(&mut self, wanted: &[Wanted]) {
        let placed = |vhd: VhdId| self.vhds.get(vhd).map_or(0, |vhd| vhd.placed);
        let wanted: Vec<_> = wanted.iter().map(|w| (w.vhd, w.layout.disks(), placed(w.vhd), w.replicas)).collect();
        self.make_room(&wanted);
    }

    pub(super) fn job_start(&self, start: &StartJob, kind: JobKind, wanted: Vec<Wanted>) -> JobStart {
        let mut pool = self.pool.clone();
        let id = pool.next_job_id;
        pool.next_job_id = JobId(id.0.checked_add(1).expect("4 billion jobs in one pool"));
        if let Some(disk) = kind.empties()
            && let Some(record) = pool.disks.iter_mut().find(|record| record.id == disk)
        {
            record.accept = Accept::None;
        }
        let record = JobRecord {
            version: RECORD_VERSION,
            id,
            kind,
            vhds: wanted.iter().map(|wanted| wanted.vhd).collect(),
            state: JobState::Running,
            max_rate: start.speed.max_rate,
            urgent: start.speed.urgent,
            created: start.created,
            ended: None,
            bytes_moved: 0,
            reason: None,
        };
        let changed = wanted.into_iter().filter_map(|Wanted { vhd, layout, replicas }| {
            let before = &self.vhds.get(vhd)?.record;
            let after = VhdRecord { layout, replicas, ..before.clone() };
            (after != *before).then_some(after)
        });
        let vhds = changed.collect();
        JobStart { pool, vhds, record }
    }

    fn plans(
        &self,
        kind: &JobKind,
        wanted: &[Wanted],
        lost: &[Vec<ExtentIndex>],
        joining: Option<(DiskId, &JoiningDisk)>,
    ) -> Result<Vec<Plan>, CommandError> {
        // Room that is on its way back counts: the job waits for it.
        let outlook = Outlook { free: DiskSpace::free_soon, joining };
        let plan = |(wanted, lost): (&Wanted, &Vec<ExtentIndex>)| {
            let vhd = self.vhds.get(wanted.vhd).expect("a VHD that was just looked up");
            // A thick VHD keeps the room of what it has lost.
            let dropped = if vhd.record.thick { &[][..] } else { lost };
            self.plan_of(kind, vhd, (&wanted.layout, wanted.replicas), dropped, &outlook)
                .map_err(|error| self.plan_error(&vhd.record.name, &error))
        };
        let plans = wanted.iter().zip(lost).map(plan).collect::<Result<Vec<_>, _>>()?;
        self.check_room(&plans, joining)?;
        Ok(plans)
    }

    /// Whether the disks have room for all plans together: each fits by itself.
    fn check_room(&self, plans: &[Plan], joining: Option<(DiskId, &JoiningDisk)>) -> Result<(), CommandError> {
        let mut comes = [0_u64; crate::base::limits::DISKS_MAX];
        for relocation in plans.iter().flat_map(|plan| &plan.relocations) {
            if let Some(to) = relocation.to {
                comes[to.index()] += 1;
            }
        }
        let pool = self.space.iter().map(|disk| (disk.state.id, disk.free_soon(), disk.state.name.as_str()));
        let joins = joining.map(|(id, disk)| (id, disk.slots, disk.name.as_str()));
        for (id, free, name) in pool.chain(joins) {
            let (needed, free) = (comes[id.index()], u64::from(free));
            if needed > free {
                let size = self.geometry.extent_size();
                let disk = name.to_owned();
                return Err(CommandError::NoRoomOn { disk, needed: needed * size, free: free * size });
            }
        }
        Ok(())
    }

    pub(super) fn plan_error(&self, vhd: &str, error: &PlanError) -> CommandError {
        let size = self.geometry.extent_size();
        match *error {
            PlanError::NotEnoughRoom { needed, room, .. } => {
                CommandError::NoRoomFor { vhd: vhd.to_owned(), needed: needed * size, room: room * size }
            }
            PlanError::TooFewDomains { domains, replicas } => {
                CommandError::TooFewDomains { vhd: vhd.to_owned(), domains, replicas }
            }
            PlanError::NoDisks => CommandError::NoDisks,
        }
    }

    fn plan_info(
        &self,
        wanted: &[Wanted],
        plans: &[Plan],
        lost: &[Vec<ExtentIndex>],
        joining: Option<(DiskId, &JoiningDisk)>,
    ) -> PlanInfo {
        let size = self.geometry.extent_size();
        let name = |id: DiskId| match joining {
            Some((joins, disk)) if joins == id => disk.name.clone(),
            _ => self.pool.disk_name(id),
        };
        let planned = |((wanted, plan), lost): ((&Wanted, &Plan), &Vec<ExtentIndex>)| {
            let vhd = self.vhds.get(wanted.vhd).expect("a VHD that was just looked up");
            let share = |(before, after): (&(DiskId, u64), &(DiskId, u64))| DiskShare {
                disk: name(before.0),
                before: before.1,
                after: after.1,
            };
            PlannedVhd {
                vhd: vhd.record.name.clone(),
                layout: wanted.layout.clone(),
                extents: plan.copies,
                bytes: plan.copies * size,
                disks: plan.before.iter().zip(&plan.after).map(share).collect(),
                lost: self.lost_data(vhd, lost),
            }
        };
        PlanInfo { vhds: wanted.iter().zip(plans).zip(lost).map(planned).collect() }
    }

    pub(in crate::owner) fn apply_start_job(&mut self, start: JobStart, out: &mut impl OwnerOutbox) -> Reply {
        let JobStart { pool, vhds, record } = start;
        self.pool = pool;
        for record in &self.pool.disks {
            self.space.disk_mut(record.id).accept = record.accept;
        }
        for record in vhds {
            let id = record.id;
            self.vhds.replace_record(record, &self.space);
            out.vhd_changed(&self.vhds.get(id).expect("just changed").record);
        }
        let id = record.id;
        let waits_before = self.copy_waits(&record);
        let mut job = Job::new(record);
        job.waits_before = waits_before;
        self.jobs.insert(job);
        self.tell_job(id, out);
        self.refresh_holds();
        self.retry_waiters(out);
        self.run_jobs(out);
        Reply::Job { outcome: Outcome::Created, job: Box::new(self.job_info(id)) }
    }

    pub(in crate::owner) fn begin_set_job(
        &mut self,
        set: &SetJob,
        out: &mut impl OwnerOutbox,
    ) -> Result<Step, CommandError> {
        let job = self.jobs.get(set.job).ok_or(CommandError::NoJob { job: set.job.0 })?;
        let state = job.record.state;
        if job.record.is_ended() {
            return Err(CommandError::JobEnded { job: set.job.0, state: state.word() });
        }
        let target = match set.paused {
            Some(true) if state == JobState::Running => JobState::Paused,
            Some(false) => JobState::Running,
            _ => state,
        };
        let (max_rate, urgent) = (set.max_rate.unwrap_or(job.record.max_rate), set.urgent.unwrap_or(job.record.urgent));
        let same = target == state && max_rate == job.record.max_rate && urgent == job.record.urgent;
        if same {
            return Ok(Step::Done(self.job_reply(set.job, Outcome::Unchanged)));
        }
        let job = self.jobs.get_mut(set.job).expect("looked up above");
        (job.record.max_rate, job.record.urgent) = (max_rate, urgent);
        let speed = job.speed();
        if job.announced {
            out.to_mover(MoverMessage::SetSpeed { job: set.job, speed });
        }
        if target == JobState::Running && target != state {
            // What could not be read may be readable by now, and what guests placed meanwhile may be anywhere.
            if !job.is_scrub() || state == JobState::Stopped {
                job.next = 0;
                job.scrub.restart();
            }
            job.unreadable.clear();
            job.unwritable.clear();
            job.left.clear();
        }
        if target != state {
            self.end_job(set.job, target, None, out);
            self.run_jobs(out);
        } else {
            self.save_job(set.job, out);
        }
        Ok(Step::Done(self.job_reply(set.job, Outcome::Changed)))
    }

    /// Ends a job: what has been moved stays where it is.
    pub(in crate::owner) fn begin_cancel_job(
        &mut self,
        id: JobId,
        revert: bool,
        created: u64,
        out: &mut impl OwnerOutbox,
    ) -> Result<Step, CommandError> {
        let job = self.jobs.get(id).ok_or(CommandError::NoJob { job: id.0 })?;
        if job.record.state == JobState::Done {
            return Err(CommandError::JobEnded { job: id.0, state: job.record.state.word() });
        }
        let vhd = job.record.vhds.first().and_then(|vhd| self.vhds.get(*vhd)).map(|vhd| &vhd.record);
        let before = vhd.and_then(|vhd| {
            let (layout, replicas) = match &job.record.kind {
                JobKind::Span { from } | JobKind::Unspan { from } | JobKind::Migrate { from } => (from, vhd.replicas),
                JobKind::Replicas { from } => (&vhd.layout, *from),
                _ => return None,
            };
            Some(Wanted { vhd: vhd.id, layout: layout.clone(), replicas })
        });
        if revert && before.is_none() {
            return Err(CommandError::NoRevert { job: id.0, kind: job.record.kind.word() });
        }
        if revert && job.record.is_ended() {
            return Err(CommandError::JobEnded { job: id.0, state: job.record.state.word() });
        }
        let outcome = if job.record.is_ended() { Outcome::Unchanged } else { Outcome::Changed };
        if outcome == Outcome::Changed {
            self.end_job(id, JobState::Cancelled, None, out);
            self.give_up_job(id, out);
            self.run_jobs(out);
        }
        match before.filter(|_| revert) {
            Some(before) => {
                let start = StartJob::by_itself(created);
                let start = self.job_start(&start, JobKind::Settle, vec![before]);
                let mut rows = vec![StoreEdit::PutPool(start.pool.clone()), StoreEdit::PutJob(start.record.clone())];
                rows.extend(start.vhds.iter().cloned().map(StoreEdit::PutVhd));
                Ok(Step::Commit { rows, action: Action::StartJob(Box::new(start)) })
            }
            None => Ok(Step::Done(self.job_reply(id, outcome))),
        }
    }

    fn job_reply(&self, id: JobId, outcome: Outcome) -> Reply {
        Reply::Job { outcome, job: Box::new(self.job_info(id)) }
    }

    /// Jobs, in the order in which they were created.
    pub(in crate::owner) fn job_infos(&self) -> Vec<JobInfo> {
        self.jobs.iter().map(|job| self.job_info(job.record.id)).collect()
    }

    /// How far a job is.
    ///
    /// # Panics
    /// If there is no such job.
    pub(in crate::owner) fn job_info(&self, id: JobId) -> JobInfo {
        let job = self.jobs.get(id).expect("a job that was just looked up");
        let name = |vhd: &crate::base::ids::VhdId| self.vhds.get(*vhd).map(|vhd| vhd.record.name.clone());
        let disk_name = |id: Option<DiskId>| id.and_then(|id| self.space.get(id)).map(|disk| disk.state.name.clone());
        let bytes_left = job.planned_bytes.saturating_sub(job.record.bytes_moved);
        JobInfo {
            bytes_left: if job.record.is_ended() { 0 } else { bytes_left },
            vhds: job.record.vhds.iter().filter_map(name).collect(),
            vhds_done: job.next,
            disk: disk_name(job.record.kind.empties()),
            replacement: disk_name(job.record.kind.replacement()),
            rate: job.rate,
            waits: self.copy_waits(&job.record).saturating_sub(job.waits_before),
            waiting: job.is_running() && self.waves.of_job(id) == 0 && !job.scrub.is_busy(),
            unreadable: job.unreadable.len() as u64,
            record: job.record.clone(),
        }
    }

    /// Requests of the job's VHDs that have waited for the copier.
    fn copy_waits(&self, record: &JobRecord) -> u64 {
        let waits = |vhd: &crate::base::ids::VhdId| {
            let metrics = self.vhds.get(*vhd)?.state.metrics.iter();
            Some(metrics.map(|m| m.copy_waits.load(std::sync::atomic::Ordering::Relaxed)).sum::<u64>())
        };
        record.vhds.iter().filter_map(waits).sum()
    }
}
