//! The pool, its disks, and consistency checks.

use std::collections::HashMap;

use crate::base::ids::DiskId;
use crate::control::wire::{
    Accept, CheckReport, DiskHealth, DiskInfo, DiskUpdate, DomainWarning, PoolInfo, SpaceInfo, StoreInfo,
};
use crate::disk::identity::{FailureDomain, sharing};
use crate::owner::command::{self, SetDisk};
use crate::placement::check;

/// Bytes of a metadata region and path of each open disk: what the owner does not know.
pub type OpenDisks = HashMap<DiskId, OpenDisk>;

/// An open disk, as far as the owner does not know it.
#[derive(Clone, Debug, Default)]
pub struct OpenDisk {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: String,
    /// Size of its metadata region, in bytes.
    pub metadata_bytes: u64,
}

/// A disk as the API shows it.
#[must_use]
pub fn disk_info(disk: command::DiskInfo, open: &OpenDisks) -> DiskInfo {
    let record = disk.record;
    let here = open.get(&record.id);
    let health = match here {
        None => DiskHealth::Missing,
        Some(_) if disk.state.is_failed() => DiskHealth::Failed,
        Some(_) if disk.suspicion.is_some() => DiskHealth::Suspect,
        Some(_) => DiskHealth::Healthy,
    };
    DiskInfo {
        id: record.id.0,
        name: record.name,
        uuid: record.uuid,
        path: here.map(|disk| disk.path.clone()),
        health,
        accept: Accept::from(record.accept),
        failure_domain: record.failure_domain,
        block_bytes: disk.state.block_size,
        metadata_bytes: here.map_or(0, |disk| disk.metadata_bytes),
        total_bytes: disk.space.capacity,
        allocated_bytes: disk.space.allocated,
        free_bytes: disk.space.free,
        suspicion: disk.suspicion,
        errors: disk.errors,
        io: super::disk_io(&disk.state.metrics),
        vhds: disk.vhds,
    }
}

/// The pool as the API shows it. `written_bytes` is the sum over its VHDs.
#[must_use]
pub fn pool_info(pool: command::PoolInfo, open: &OpenDisks, store: StoreInfo, written_bytes: u64) -> PoolInfo {
    let space = space_info(&pool.space, written_bytes);
    let store =
        StoreInfo { used_bytes: pool.metadata_used, region_bytes: pool.metadata_size, low: pool.metadata_low, ..store };
    let disks: Vec<DiskInfo> = pool.disks.into_iter().map(|disk| disk_info(disk, open)).collect();
    let shared_failure_domains = shared_domains(&disks);
    let mut info = PoolInfo {
        uuid: pool.record.uuid,
        extent_bytes: pool.record.extent_size,
        block_bytes: pool.record.extent_size / u64::from(crate::base::units::BLOCKS_PER_EXTENT),
        disks,
        space,
        store,
        vhds: pool.vhds,
        requests_waiting: pool.waiting,
        expand: pool.record.expand.map(Into::into),
        shared_failure_domains,
        warnings: Vec::new(),
    };
    info.warnings = warnings(&info);
    info
}

#[allow(clippy::cast_precision_loss, reason = "ratios for people")]
fn space_info(space: &command::Space, written_bytes: u64) -> SpaceInfo {
    let share = |part: u64| if space.capacity == 0 { 0.0 } else { part as f64 / space.capacity as f64 };
    SpaceInfo {
        total_bytes: space.capacity,
        allocated_bytes: space.allocated,
        reserved_bytes: space.reserved,
        free_bytes: space.free,
        freeing_bytes: space.reclaiming,
        provisioned_bytes: space.provisioned,
        written_bytes,
        overcommit_ratio: rounded(share(space.provisioned), 100.0),
        used_percent: rounded(share(space.allocated) * 100.0, 10.0),
    }
}

fn rounded(value: f64, parts: f64) -> f64 {
    (value * parts).round() / parts
}

fn shared_domains(disks: &[DiskInfo]) -> Vec<DomainWarning> {
    let domains: Vec<FailureDomain> = disks.iter().map(|disk| FailureDomain::parse(&disk.failure_domain)).collect();
    let named: Vec<_> = disks.iter().map(|disk| disk.name.as_str()).zip(&domains).collect();
    let shared = sharing(&named).into_iter();
    shared.map(|group| DomainWarning { failure_domain: group.domain, disks: group.disks }).collect()
}

fn warnings(pool: &PoolInfo) -> Vec<String> {
    let mut warnings = Vec::new();
    for disk in &pool.disks {
        match disk.health {
            DiskHealth::Healthy => {}
            DiskHealth::Suspect => {
                let why = disk.suspicion.as_deref().unwrap_or("errors");
                warnings.push(format!(
                    "disk '{}' is suspect: {why}; see 'spanblk disk impact {0}', and replace it before it fails",
                    disk.name
                ));
            }
            DiskHealth::Failed => warnings.push(format!(
                "disk '{}' has failed; it is not used until the daemon is restarted with a disk that works",
                disk.name
            )),
            DiskHealth::Missing => {
                warnings.push(format!("disk '{}' is missing; it carries: {}", disk.name, disk.vhds.join(", ")));
            }
        }
    }
    if pool.store.failed {
        warnings.push(
            "the placement store has no majority of working members: no flush succeeds until the daemon is restarted"
                .to_owned(),
        );
    }
    for member in &pool.store.members {
        if let Some(problem) = &member.problem {
            warnings.push(format!("the placement store goes on without its copy on disk '{}': {problem}", member.disk));
        }
    }
    for shared in &pool.shared_failure_domains {
        let disks = shared.disks.join(", ");
        warnings.push(format!(
            "disks {disks} share the failure domain '{}': one fault can take all of them",
            shared.failure_domain
        ));
    }
    if let Some(mark) = [95.0, 90.0, 80.0].iter().find(|mark| pool.space.used_percent >= **mark) {
        warnings.push(format!("the pool is more than {mark} % full"));
    }
    if pool.requests_waiting > 0 {
        warnings.push(format!("{} guest requests wait for room: add a disk or delete VHDs", pool.requests_waiting));
    }
    if pool.store.low {
        warnings.push("the metadata region is nearly full: no extent can be placed; delete VHDs".to_owned());
    }
    warnings
}

/// The command for a change of a disk.
#[must_use]
pub fn set_disk(disk: String, update: DiskUpdate) -> SetDisk {
    SetDisk { disk, accept: update.accept.map(Into::into), failure_domain: update.failure_domain }
}

/// A report as the API shows it.
#[must_use]
pub fn check_report(report: &check::CheckReport) -> CheckReport {
    CheckReport {
        consistent: report.is_consistent(),
        vhds: report.vhds,
        extents: report.extents,
        slots_used: report.used.values().sum(),
        findings: report.violations.iter().map(ToString::to_string).collect(),
    }
}
