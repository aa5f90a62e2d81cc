//! From a proposal to an order for the owner. Pure.

use crate::base::ids::{DiskId, VhdId};
use crate::mover::messages::Speed;
use crate::owner::command::{JobRequest, StartJob};
use crate::policy::observe::Pool;
use crate::policy::proposal::Action;

/// The order; `None` if the VHD or a disk is gone.
#[must_use]
pub fn order(action: &Action, pool: &Pool, wall_secs: u64) -> Option<StartJob> {
    let vhd = |id: VhdId| Some(pool.vhds.iter().find(|vhd| vhd.id == id)?.name.clone());
    let disk = |id: DiskId| Some(pool.disks.iter().find(|disk| disk.id == id)?.name.clone());
    let request = match action {
        Action::Span { vhd: id, disks } => {
            let disks = disks.iter().map(|id| disk(*id)).collect::<Option<Vec<String>>>()?;
            JobRequest::Span { vhd: vhd(*id)?, disks: Some(disks), width: None }
        }
        Action::Unspan { vhd: id, disk: to } => {
            JobRequest::Unspan { vhd: vhd(*id)?, disk: Some(disk(*to)?), width: None }
        }
        Action::Migrate { vhd: id, disk: to } => JobRequest::Migrate { vhd: vhd(*id)?, disk: Some(disk(*to)?) },
        Action::Replicas { vhd: id, replicas } => JobRequest::Replicas { vhd: vhd(*id)?, replicas: *replicas },
        Action::Settle { vhd: id } => JobRequest::Settle { vhd: vhd(*id)? },
    };
    Some(StartJob { request, dry_run: false, speed: Speed::default(), created: wall_secs })
}
