//! Jobs.

use std::ops::Range;

use super::vhd::layout_of;
use crate::base::ids::JobId;
use crate::control::wire::{
    ByteRange, JobCreate, JobInfo, JobState, JobUpdate, JobWish, PlanInfo, PlannedDisk, PlannedVhd, Scrubbed,
};
use crate::mover::messages::Speed;
use crate::owner::command::{self, JobRequest, LostData, SetJob, StartJob};
use crate::placement::job;

/// The command for a new job.
#[must_use]
pub fn start_job(request: JobCreate, created: u64) -> StartJob {
    let speed = Speed { max_rate: request.max_rate_bytes, urgent: request.urgent };
    StartJob { request: job_request(request.wish), dry_run: request.dry_run, speed, created }
}

fn job_request(wish: JobWish) -> JobRequest {
    match wish {
        JobWish::Span { vhd, disks, width } => JobRequest::Span { vhd, disks, width: width.map(u32::from) },
        JobWish::Unspan { vhd, disk, width } => JobRequest::Unspan { vhd, disk, width: width.map(u32::from) },
        JobWish::Migrate { vhd, disk } => JobRequest::Migrate { vhd, disk },
        JobWish::Settle { vhd } => JobRequest::Settle { vhd },
        JobWish::Replicas { vhd, replicas } => JobRequest::Replicas { vhd, replicas },
        JobWish::Evacuate { disk, accept_loss } => JobRequest::Evacuate { disk, accept_loss },
        JobWish::Rebalance {} => JobRequest::Rebalance,
        JobWish::Rebuild { disk } => JobRequest::Rebuild { disk },
        JobWish::Resync { disk } => JobRequest::Resync { disk },
        JobWish::Scrub { vhd } => JobRequest::Scrub { vhd },
    }
}

/// The command for new settings of a job.
#[must_use]
pub fn set_job(job: JobId, update: &JobUpdate) -> SetJob {
    SetJob { job, paused: update.paused, max_rate: update.max_rate_bytes, urgent: update.urgent }
}

/// A job as the API shows it.
#[must_use]
pub fn job_info(job: command::JobInfo) -> JobInfo {
    let record = job.record;
    let left = job.bytes_left;
    let scrubbed = match &record.kind {
        job::JobKind::Scrub { damaged, repaired } => {
            Some(Scrubbed { damaged_replicas: *damaged, repaired_replicas: *repaired })
        }
        _ => None,
    };
    JobInfo {
        id: record.id.0,
        kind: record.kind.word().to_owned(),
        state: match record.state {
            job::JobState::Running => JobState::Running,
            job::JobState::Paused => JobState::Paused,
            job::JobState::Stopped => JobState::Stopped,
            job::JobState::Done => JobState::Done,
            job::JobState::Cancelled => JobState::Cancelled,
        },
        waiting: job.waiting,
        vhds: job.vhds,
        vhds_done: job.vhds_done as u64,
        disk: job.disk,
        replacement: job.replacement,
        moved_bytes: record.bytes_moved,
        left_bytes: left,
        rate_bytes: job.rate,
        eta_secs: (record.state == job::JobState::Running && job.rate > 0).then(|| left.div_ceil(job.rate)),
        waits: job.waits,
        unreadable_extents: job.unreadable,
        scrubbed,
        max_rate_bytes: record.max_rate,
        urgent: record.urgent,
        created_secs: record.created,
        ended_secs: record.ended,
        reason: record.reason,
    }
}

/// A plan as the API shows it.
#[must_use]
pub fn plan_info(plan: command::PlanInfo) -> PlanInfo {
    let total_bytes = plan.vhds.iter().map(|vhd| vhd.bytes).sum();
    let lost_bytes = plan.vhds.iter().map(|vhd| vhd.lost.bytes).sum();
    let disk = |share: command::DiskShare| PlannedDisk { disk: share.disk, before: share.before, after: share.after };
    let vhd = |planned: command::PlannedVhd| PlannedVhd {
        vhd: planned.vhd,
        layout: layout_of(&planned.layout),
        extents: planned.extents,
        bytes: planned.bytes,
        disks: planned.disks.into_iter().map(disk).collect(),
        lost_bytes: planned.lost.bytes,
        lost_ranges: ranges(&planned.lost),
    };
    PlanInfo { vhds: plan.vhds.into_iter().map(vhd).collect(), total_bytes, lost_bytes }
}

/// Where lost data was, as the API shows it.
#[must_use]
pub fn ranges(lost: &LostData) -> Vec<ByteRange> {
    let range = |range: &Range<u64>| ByteRange { offset_bytes: range.start, length_bytes: range.end - range.start };
    lost.ranges.iter().map(range).collect()
}
