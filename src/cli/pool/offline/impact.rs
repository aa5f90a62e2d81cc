//! What the loss of disks means, from the labels and the placement store of the disks that are left.

use std::collections::HashMap;
use std::path::PathBuf;

use super::{LOOK, each_extent, find_disk, look, open_disks};
use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::cli::output::Failure;
use crate::control::convert::Gone;
use crate::control::convert::impact::{Measured, Scene, Votes, impact_info};
use crate::control::wire::{ErrorKind, ImpactInfo};
use crate::disk::file::FileDisk;
use crate::disk::pool::OpenPool;
use crate::placement::impact::VhdLoss;
use crate::store::mirror::majority;

/// What to do instead while a daemon has the disks.
const ASK_DAEMON: &str = "while a daemon serves the pool, leave out --offline and the disks: the daemon answers";

/// What the loss of `disk` means; without one, what that of the missing disks has meant.
pub fn impact(disk: Option<&str>, disks: &[PathBuf]) -> Result<ImpactInfo, Failure> {
    let pool = open_disks(disks, &LOOK, ASK_DAEMON)?;
    let store = look(&pool).map_err(|failure| name_members(&pool, failure))?;
    let record = &store.pool;
    let is_here = |id: DiskId, uuid| pool.disk(id).is_some_and(|disk| disk.uuid == uuid);
    let missing: DiskSet =
        record.disks.iter().filter(|disk| !is_here(disk.id, disk.uuid)).map(|disk| disk.id).collect();
    let asked = match disk {
        Some(name) => std::iter::once(find_disk(record, name)?).collect(),
        None if missing.is_empty() => {
            return Err(Failure::new(ErrorKind::Invalid, "no disk of the pool is missing")
                .hint("name the disk whose loss is to be looked at"));
        }
        None => missing,
    };
    let members: DiskSet = store.members().map(|(place, _)| place.id).collect();
    let votes = Votes { members, needed: majority(pool.membership.members.len()) };
    let gone = Gone { missing, failed: DiskSet::default() };
    let scene = Scene { pool: record, disks: asked, gone, votes };
    let loss = scene.loss();
    let mut sums: HashMap<VhdId, VhdLoss> = HashMap::new();
    each_extent(&store, |found| {
        let fate = loss.fate(found.replicas.iter(), found.present);
        // A row of an extent that was discarded has a generation and no place.
        if !found.replicas.is_absent() {
            sums.entry(found.vhd).or_default().add(fate, found.present);
        }
    })?;
    let measured = store.vhds.iter().map(|record| {
        let loss = sums.get(&record.id).copied().unwrap_or_default();
        Measured { record, attached: false, loss }
    });
    let mut impact = impact_info(&scene, measured);
    let stale = members.len() < votes.needed;
    impact.caveat = stale.then(|| stale_text(members.len(), pool.membership.members.len()));
    Ok(impact)
}

fn stale_text(here: usize, total: usize) -> String {
    format!(
        "this may be stale: {here} of the {total} disks that carry the placement table can be read, which is no majority; what was \
         committed on the others only is not known here"
    )
}

/// Says which disks have what cannot be found.
fn name_members(pool: &OpenPool<FileDisk>, failure: Failure) -> Failure {
    let members = pool.missing.iter().filter(|disk| disk.store_member).map(|disk| format!("'{}'", disk.name));
    let members: Vec<String> = members.collect();
    if members.is_empty() {
        return failure;
    }
    failure
        .hint(format!("the placement table is also on {}, missing here: give one of those disks", members.join(", ")))
}
