//! What the policy is told: the owner's answers and the histories, put together.

use super::kind::kind_of;
use crate::base::ids::{DiskSet, VhdId, VmId};
use crate::base::limits::{DISKS_MAX, POLICY_BUDGET_SECS};
use crate::base::units::ExtentIndex;
use crate::control::convert::OpenDisks;
use crate::control::stats::StatsBook;
use crate::metrics::history::Summary;
use crate::owner::command::{DiskInfo, JobInfo, PoolInfo, VhdInfo, VmInfo};
use crate::placement::ReplicaState;
use crate::placement::job::{JobKind, JobState};
use crate::policy::observe::{Disk, Flow, Health, Latency, Moment, Pool, Vhd};
use crate::policy::rules::{Mode, Rules};
use crate::store::history::Subject;

/// What it calls usual: the last day.
const USUAL_SECS: u64 = 24 * 3600;

/// Part of the time that a VHD may be held back by its limits, and still be said to be served as fast as its disks are.
const THROTTLED: f64 = 0.05;

const NANOS_PER_MICRO: f64 = 1000.0;
const NANOS_PER_SEC: f64 = 1e9;

/// The owner's answers of one moment.
pub struct Answers {
    /// The pool.
    pub pool: PoolInfo,
    /// The VHDs.
    pub vhds: Vec<VhdInfo>,
    /// The VMs.
    pub vms: Vec<VmInfo>,
    /// The jobs that are remembered.
    pub jobs: Vec<JobInfo>,
    /// Where disks are.
    pub open: OpenDisks,
}

impl Answers {
    /// The pool as the policy sees it, as far as it matters for these rules. Reads the maps of VHDs that are to survive the loss of
    /// disks: not for the owner's thread.
    #[must_use]
    pub fn observe(&self, stats: &StatsBook, rules: &Rules, wall_secs: u64) -> Pool {
        let seen = Seen { answers: self, stats, rules, now: wall_secs, failed: self.failed(), domains: self.domains() };
        let open = || self.moves().filter(|job| !job.record.is_ended());
        Pool {
            at: Moment { unix_secs: wall_secs, minute_of_day: minute_of_day(wall_secs) },
            extent_size: self.pool.record.extent_size,
            disks: self.pool.disks.iter().map(|disk| seen.disk(disk)).collect(),
            vhds: self.vhds.iter().filter(|vhd| vhd.ready).map(|vhd| seen.vhd(vhd)).collect(),
            jobs: open().flat_map(|job| job.record.vhds.iter().copied()).collect(),
            in_flight: open().filter(|job| job.record.state == JobState::Running).count(),
            moved_bytes: self.moved_bytes(wall_secs),
        }
    }

    /// Jobs that move something. A scrub only reads: neither it keeps anybody from being moved, nor it uses up what may be moved.
    fn moves(&self) -> impl Iterator<Item = &JobInfo> {
        self.jobs.iter().filter(|job| !matches!(job.record.kind, JobKind::Scrub { .. }))
    }

    /// The number of the failure domain of each disk; that of another disk for those that are not there.
    fn domains(&self) -> [u8; DISKS_MAX] {
        let mut domains = [0; DISKS_MAX];
        let mut names: Vec<&str> = Vec::new();
        for disk in &self.pool.record.disks {
            let known = names.iter().position(|known| *known == disk.failure_domain);
            domains[disk.id.index()] = u8::try_from(known.unwrap_or(names.len())).expect("at most 64 disks");
            if known.is_none() {
                names.push(&disk.failure_domain);
            }
        }
        domains
    }

    /// Disks that have failed or are missing.
    fn failed(&self) -> DiskSet {
        let is_failed = |disk: &&DiskInfo| disk.state.is_failed() || !self.open.contains_key(&disk.record.id);
        self.pool.disks.iter().filter(is_failed).map(|disk| disk.record.id).collect()
    }

    /// Bytes that jobs moved which are running, ended in the last 24 hours, or stand and were created in them. A clock that was set back makes them count for longer.
    fn moved_bytes(&self, wall_secs: u64) -> u64 {
        let oldest = wall_secs.saturating_sub(POLICY_BUDGET_SECS);
        let counts = |job: &&JobInfo| match (job.record.state, job.record.ended) {
            (JobState::Running, _) => true,
            // One may stand for ever, and would take the budget of all days.
            (_, ended) => ended.unwrap_or(job.record.created) >= oldest,
        };
        self.moves().filter(counts).fold(0, |sum, job| sum.saturating_add(job.record.bytes_moved))
    }

    /// What was seen, with disks and VHDs as they are placed now. A disk that has come since is left out until the next look; what is
    /// not known of a VHD that has is nothing.
    #[must_use]
    pub fn placed_now(&self, seen: &Pool) -> Pool {
        let (failed, extent) = (self.failed(), self.pool.record.extent_size);
        let disk = |disk: &DiskInfo| {
            let known = seen.disks.iter().find(|known| known.id == disk.record.id)?;
            let (slots, accept) = (disk.record.slots, disk.record.accept);
            Some(Disk { slots, free: free(disk, extent), health: health(disk, failed), accept, ..known.clone() })
        };
        let vhd = |vhd: &VhdInfo| {
            let known = seen.vhds.iter().find(|known| known.id == vhd.record.id).cloned();
            let now = self.placed(vhd);
            let Some(known) = known else { return now };
            let Vhd { vm, size, layout, replicas, placed, extents, .. } = now;
            Vhd { vm, size, layout, replicas, placed, extents, ..known }
        };
        Pool {
            disks: self.pool.disks.iter().filter_map(disk).collect(),
            vhds: self.vhds.iter().map(vhd).collect(),
            ..seen.clone()
        }
    }

    /// A VHD with its place, and nothing of what it does.
    fn placed(&self, vhd: &VhdInfo) -> Vhd {
        let record = &vhd.record;
        Vhd {
            id: record.id,
            name: record.name.clone(),
            vm: record.vm.as_deref().and_then(|vm| self.vm(vm)),
            size: record.size,
            layout: record.layout.clone(),
            replicas: record.replicas,
            survives: None,
            placed: placed(vhd),
            extents: vhd.slots.iter().map(|(disk, count)| (*disk, *count)).collect(),
            quota_left: self.quota_left(vhd),
            limits: record.limits,
            flow: Flow::default(),
            usual: Flow::default(),
            read_share: 0.0,
            latency: Latency::default(),
            usual_latency: Latency::default(),
            working_set: 0,
            growth: 0.0,
        }
    }

    /// Slots that quotas leave a VHD. Of that of its VM, what other VHDs have reserved for themselves is theirs.
    fn quota_left(&self, vhd: &VhdInfo) -> Option<u64> {
        let spoken_for = |vhd: &VhdInfo| vhd.capacity.charged.max(vhd.record.capacity.reservation.unwrap_or(0));
        let own = vhd.record.capacity.quota.map(|quota| quota.saturating_sub(vhd.capacity.charged));
        let vm = self.vms.iter().find(|vm| Some(&vm.record.name) == vhd.record.vm.as_ref());
        let of_vm = vm.and_then(|vm| {
            let (quota, all) = (vm.record.capacity.quota?, vm.vhds.iter().map(spoken_for).sum::<u64>());
            let unreserved = quota.saturating_sub(all) + spoken_for(vhd) - vhd.capacity.charged;
            Some(unreserved.min(quota.saturating_sub(vm.capacity.charged)))
        });
        let least = own.into_iter().chain(of_vm).min();
        least.map(|bytes| bytes / self.pool.record.extent_size)
    }

    /// The VM of a name.
    pub fn vm(&self, name: &str) -> Option<VmId> {
        self.vms.iter().find(|vm| vm.record.name == name).map(|vm| vm.record.id)
    }
}

/// Minutes since midnight, UTC: a confined daemon cannot look up another time zone.
#[allow(clippy::cast_possible_truncation, reason = "less than 1440")]
fn minute_of_day(wall_secs: u64) -> u16 {
    (wall_secs / 60 % (24 * 60)) as u16
}

struct Seen<'a> {
    answers: &'a Answers,
    stats: &'a StatsBook,
    rules: &'a Rules,
    now: u64,
    failed: DiskSet,
    domains: [u8; DISKS_MAX],
}

impl Seen<'_> {
    fn window(&self, subject: Subject, secs: u64) -> Option<Summary> {
        let summary = self.stats.window(subject, self.now.saturating_sub(secs), self.now)?;
        (summary.covered_secs > 0.0).then_some(summary)
    }

    fn disk(&self, disk: &DiskInfo) -> Disk {
        let record = &disk.record;
        let now = self.window(Subject::Disk(record.id), self.rules.window_secs());
        let path = self.answers.open.get(&record.id).map(|open| open.path.as_str());
        let extent = self.answers.pool.record.extent_size;
        Disk {
            id: record.id,
            name: record.name.clone(),
            domain: u32::from(self.domains[record.id.index()]),
            slots: record.slots,
            free: free(disk, extent),
            health: health(disk, self.failed),
            accept: record.accept,
            kind: kind_of(path),
            busy: now.as_ref().map_or(0.0, busy),
            queue_depth: now.as_ref().map_or(0.0, |now| now.queue_depth),
            latency: now.as_ref().map(latency).unwrap_or_default(),
            guests: now.as_ref().map(flow).unwrap_or_default(),
            background: Flow { iops: 0.0, bytes: now.as_ref().map_or(0.0, |now| now.background_bytes_per_sec) },
        }
    }

    fn vhd(&self, vhd: &VhdInfo) -> Vhd {
        let record = &vhd.record;
        let now = self.window(Subject::Vhd(record.id), self.rules.window_secs());
        let from = self.now.saturating_sub(USUAL_SECS);
        let (usual, usual_latency) = usual(&self.stats.samples(Subject::Vhd(record.id), None, from, self.now));
        let extent = self.answers.pool.record.extent_size;
        let seen = Vhd {
            flow: now.as_ref().map(flow).unwrap_or_default(),
            usual,
            read_share: now.as_ref().map_or(0.0, |now| now.read_share),
            latency: now.as_ref().filter(|now| !is_held_back(now)).map(latency).unwrap_or_default(),
            usual_latency,
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a number of extents")]
            working_set: now.as_ref().map_or(0, |now| now.working_set_extents as u64 * extent),
            growth: self.growth(record.id, vhd.allocated),
            ..self.answers.placed(vhd)
        };
        // Its map has as many entries as it has extents, which is not worth it for nobody.
        let wanted = self.rules.of(&seen);
        let is_asked = wanted.survives > 0 && wanted.mode != Mode::Off;
        Vhd { survives: is_asked.then(|| self.survives(vhd)), ..seen }
    }

    /// Failure domains that it can lose: of each extent, the domains with a replica that can be read, but one.
    fn survives(&self, vhd: &VhdInfo) -> u8 {
        if vhd.record.replicas < 2 {
            return 0;
        }
        let map = &vhd.state.map;
        let of_extent = |extent: ExtentIndex| {
            let replicas = map.lookup(extent).replicas;
            let good = replicas
                .iter()
                .filter(|replica| replica.state == ReplicaState::InSync && !self.failed.contains(replica.disk));
            let domains = good.fold(0_u64, |domains, replica| domains | 1 << self.domains[replica.disk.index()]);
            domains.count_ones().saturating_sub(1)
        };
        let least = map.placed_from(ExtentIndex(0)).map(of_extent).min();
        let least = least.unwrap_or(u32::from(vhd.record.replicas) - 1);
        u8::try_from(least).unwrap_or(u8::MAX)
    }

    /// Bytes a day.
    #[allow(clippy::cast_precision_loss, reason = "far fewer bytes than a double counts exactly")]
    fn growth(&self, vhd: VhdId, allocated: u64) -> f64 {
        /// A shorter time says nothing of a day.
        const TELLING_SECS: f64 = 3600.0;
        let subject = Subject::Vhd(vhd);
        let oldest = self.stats.samples(subject, None, self.now.saturating_sub(USUAL_SECS), self.now);
        let Some(oldest) = oldest.into_iter().find(|sample| sample.covered_secs > 0.0) else { return 0.0 };
        let passed = self.now.saturating_sub(oldest.from) as f64;
        if passed < TELLING_SECS {
            return 0.0;
        }
        (allocated as f64 - oldest.used_bytes) * USUAL_SECS as f64 / passed
    }
}

/// Slots that can be given out.
fn free(disk: &DiskInfo, extent: u64) -> u32 {
    u32::try_from(disk.space.free / extent).unwrap_or(u32::MAX)
}

fn health(disk: &DiskInfo, failed: DiskSet) -> Health {
    match (failed.contains(disk.record.id), &disk.suspicion) {
        (true, _) => Health::Failed,
        (false, Some(_)) => Health::Suspect,
        (false, None) => Health::Works,
    }
}

/// What is usual: of each number half of the last day was more, half less. An hour of something else does not count, as it would in
/// a mean; and of the latency, only when there was something to be served, and no limit held it back.
fn usual(samples: &[Summary]) -> (Flow, Latency) {
    let known = || samples.iter().filter(|sample| sample.covered_secs > 0.0);
    let served = || known().filter(|sample| flow(sample).iops > 0.0 && !is_held_back(sample));
    let of_flow = |number: fn(Flow) -> f64| median(known().map(|sample| number(flow(sample))).collect());
    let of_latency = |number: fn(Latency) -> u64| {
        #[allow(clippy::cast_precision_loss, reason = "nanoseconds of hours are exact")]
        let all = served().map(|sample| number(latency(sample)) as f64).collect();
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was one before")]
        let middle = median(all) as u64;
        middle
    };
    let flow = Flow { iops: of_flow(|flow| flow.iops), bytes: of_flow(|flow| flow.bytes) };
    (flow, Latency { mean_ns: of_latency(|latency| latency.mean_ns), p99_ns: of_latency(|latency| latency.p99_ns) })
}

/// Whether limits of its own held the VHD back, so that its latency says what it was made to wait, and nothing of its disks: the time in
/// the virtqueue is part of it.
fn is_held_back(summary: &Summary) -> bool {
    summary.throttled_share > THROTTLED
}

/// Extents that have a place.
fn placed(vhd: &VhdInfo) -> u32 {
    let count = match vhd.record.replicas {
        // Copies that are being made count, too; those are few.
        0 | 1 => vhd.slots.values().map(|slots| u64::from(*slots)).sum(),
        _ => vhd.state.map.placed_from(ExtentIndex(0)).count() as u64,
    };
    u32::try_from(count).unwrap_or(u32::MAX).min(vhd.state.map.extents())
}

/// Part of the time that a disk has something to do, by what it has in flight: as of a queue with random arrivals. How many requests a
/// disk serves at once nobody tells; one that has always one request in flight counts as half busy.
fn busy(summary: &Summary) -> f64 {
    summary.queue_depth / (1.0 + summary.queue_depth)
}

/// The number in the middle; 0 if there is none.
fn median(mut all: Vec<f64>) -> f64 {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or_default()
}

fn flow(summary: &Summary) -> Flow {
    Flow {
        iops: summary.reads_per_sec + summary.writes_per_sec,
        bytes: summary.read_bytes_per_sec + summary.write_bytes_per_sec,
    }
}

/// The mean is by what was in flight and how much was done (Little's law), as the histories have no means of latencies.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates")]
fn latency(summary: &Summary) -> Latency {
    let iops = flow(summary).iops;
    let mean = if iops > 0.0 { summary.queue_depth / iops * NANOS_PER_SEC } else { 0.0 };
    Latency { mean_ns: mean as u64, p99_ns: (summary.latency_us_p99 * NANOS_PER_MICRO) as u64 }
}

#[cfg(test)]
pub(super) mod tests;
