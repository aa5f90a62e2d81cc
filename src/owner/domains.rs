//! Failure domains: replicas of an extent are never on disks that fail together.

use std::collections::BTreeSet;

use super::Owner;
use super::command::CommandError;
use crate::base::ids::DiskId;
use crate::base::limits::REPLICAS_MAX;
use crate::base::units::ExtentIndex;
use crate::placement::record::Layout;

impl Owner {
    /// Whether so many replicas can be kept apart on the disks of the layout.
    pub(super) fn check_replicas(&self, vhd: &str, replicas: u8, layout: &Layout) -> Result<(), CommandError> {
        if !(1..=REPLICAS_MAX).contains(&usize::from(replicas)) {
            return Err(CommandError::InvalidReplicas { replicas });
        }
        enough(vhd, replicas, layout, |disk| self.space.disk(disk).failure_domain.as_str())
    }

    /// Whether the disk can be in this failure domain: replicas that are apart must stay so. Reads the maps of VHDs that have
    /// replicas.
    pub(super) fn check_domain(&self, disk: DiskId, domain: &str) -> Result<(), CommandError> {
        let after = |other: DiskId| if other == disk { domain } else { self.space.disk(other).failure_domain.as_str() };
        for vhd in self.vhds.iter() {
            let (record, map) = (&vhd.record, &vhd.state.map);
            if record.layout.disks().contains(disk) {
                enough(&record.name, record.replicas, &record.layout, after)?;
            }
            let extents = u64::from(map.extents()) - vhd.absent();
            if vhd.slots_used() == extents {
                continue;
            }
            let twin = map.placed_from(ExtentIndex(0)).find_map(|extent| {
                let replicas = map.lookup(extent).replicas;
                replicas.on(disk)?;
                replicas.iter().map(|replica| replica.disk).find(|other| *other != disk && after(*other) == domain)
            });
            if let Some(other) = twin {
                return Err(CommandError::ReplicasTogether {
                    disk: self.pool.disk_name(disk),
                    domain: domain.to_owned(),
                    vhd: record.name.clone(),
                    other: self.pool.disk_name(other),
                });
            }
        }
        Ok(())
    }
}

/// Whether the disks of a layout are of as many domains as there are replicas.
fn enough<'a>(
    vhd: &str,
    replicas: u8,
    layout: &Layout,
    domain: impl Fn(DiskId) -> &'a str,
) -> Result<(), CommandError> {
    let domains = layout.disks().iter().map(domain).collect::<BTreeSet<_>>().len();
    let (vhd, replicas) = (vhd.to_owned(), usize::from(replicas));
    if domains < replicas { Err(CommandError::TooFewDomains { vhd, domains, replicas }) } else { Ok(()) }
}
