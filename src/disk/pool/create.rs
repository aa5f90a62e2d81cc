//! Making a pool: everything is checked before anything is written.

use std::io;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::{CreateError, NewDisk, OpenDisk, OpenPool, check_domain, choose, domain_for_label};
use crate::base::ids::{DiskId, check_name};
use crate::base::limits::{DISKS_MAX, STORE_MEMBERS_MAX};
use crate::base::units::Geometry;
use crate::disk::BlockDev;
use crate::disk::geometry::{DiskLayout, METADATA_OFFSET, Role, divide, metadata_len};
use crate::disk::identity::{DiskIdentity, Host};
use crate::disk::label::Label;
use crate::disk::label::copies::{self, ReadError};
use crate::disk::membership::{Branch, Member, Membership, RosterEntry, Settled};
use crate::disk::signature::{PROBE_LEN, probe};

/// Start of a metadata region that is zeroed, so that no older database is taken for ours.
const REGION_HEAD_LEN: u64 = 64 << 10;

/// How to make a pool.
#[derive(Clone, Debug)]
pub struct CreateOptions {
    /// Bytes of an extent.
    pub extent_size: u64,
    /// Which disks (indices) carry the placement table; by default up to three are chosen.
    pub members: Option<Vec<usize>>,
    /// Overwrite whatever is on the disks.
    pub force: bool,
    /// Seconds since the Unix epoch.
    pub now: u64,
}

/// Makes a pool of disks that are open for writing and locked: checks everything, then labels them all.
///
/// The metadata regions are left without a database; the store makes one on each of [`OpenPool::store_members`].
///
/// # Errors
/// See [`CreateError`].
pub fn create_pool<D: BlockDev>(
    disks: Vec<NewDisk<D>>,
    options: &CreateOptions,
    host: &Host,
    make_uuid: &mut impl FnMut() -> Uuid,
) -> Result<OpenPool<D>, CreateError> {
    let plan = plan(&disks, options, host)?;
    let pool = make_uuid();
    let roster: Vec<RosterEntry> = (0u8..)
        .zip(&disks)
        .map(|(id, disk)| RosterEntry {
            id: DiskId(id),
            uuid: make_uuid(),
            name: disk.name.clone(),
            name_is_cut: false,
        })
        .collect();
    let members: Vec<Member> =
        plan.members.iter().map(|&i| Member { id: roster[i].id, uuid: roster[i].uuid }).collect();
    let settled = Settled { epoch: 1, members: members.clone() };
    let branch = Branch::FIRST;
    let membership = Membership { epoch: 1, members, proposed_after: None, branch, roster: roster.clone() };
    let mut open: Vec<OpenDisk<D>> = Vec::new();
    for ((disk, entry), layout) in disks.into_iter().zip(&roster).zip(&plan.layouts) {
        let label = new_label(&disk, entry, *layout, pool, options.extent_size, options.now, membership.clone());
        match format_disk(&disk, label, options.force) {
            Ok(label) => open.push(opened(disk, label)),
            Err(error) => {
                // What is half done must not look like a pool. The first error is the one to tell.
                let _ = copies::wipe(&*disk.dev);
                open.iter().for_each(|disk| drop(copies::wipe(&*disk.dev)));
                return Err(error);
            }
        }
    }
    Ok(OpenPool {
        uuid: pool,
        extent_size: options.extent_size,
        disks: open,
        missing: Vec::new(),
        rejected: Vec::new(),
        membership: settled,
        branch: branch.id,
        next_branch: Some(branch),
        read_only: false,
        stale_accepted: false,
        epoch_highest: 1,
        in_order: false,
        roster,
    })
}

struct Plan {
    layouts: Vec<DiskLayout>,
    members: Vec<usize>,
}

fn plan<D: BlockDev>(disks: &[NewDisk<D>], options: &CreateOptions, host: &Host) -> Result<Plan, CreateError> {
    let geometry = Geometry::new(options.extent_size).ok_or(CreateError::ExtentSize { size: options.extent_size })?;
    if disks.is_empty() {
        return Err(CreateError::NoDisks);
    }
    if disks.len() > DISKS_MAX {
        return Err(CreateError::TooManyDisks { count: disks.len() });
    }
    for (i, disk) in disks.iter().enumerate() {
        check_alone(disk)?;
        for other in &disks[..i] {
            check_pair(&other.path, other.identity, other.dev.block_size(), disk, host)?;
            if other.name == disk.name {
                let (first, second) = (other.path.clone(), disk.path.clone());
                return Err(CreateError::SameName { first, second, name: disk.name.clone() });
            }
        }
    }
    for disk in disks {
        check_content(disk, options.force)?;
    }
    let metadata_only = disks.iter().filter(|disk| disk.role == Role::MetadataOnly).count();
    let mut members = match &options.members {
        Some(given) => given.clone(),
        None => choose::store_members(&disks.iter().map(|disk| (disk.role, &disk.failure_domain)).collect::<Vec<_>>()),
    };
    members.sort_unstable();
    members.dedup();
    if members.is_empty() {
        return Err(CreateError::NoStoreMember);
    }
    if members.len() > STORE_MEMBERS_MAX || metadata_only > STORE_MEMBERS_MAX {
        return Err(CreateError::TooManyMembers { count: members.len().max(metadata_only) });
    }
    if metadata_only == disks.len() {
        return Err(CreateError::NoData);
    }
    let useless = |i: &usize| disks[*i].role == Role::MetadataOnly && !members.contains(i);
    if let Some(i) = (0..disks.len()).find(useless) {
        return Err(CreateError::Useless { path: disks[i].path.clone() });
    }
    let has_data = |disk: &&NewDisk<D>| disk.role != Role::MetadataOnly;
    let capacity = disks.iter().filter(has_data).map(|disk| disk.dev.size()).fold(0, u64::saturating_add);
    let region = metadata_len(capacity, geometry);
    let layouts = disks.iter().enumerate().map(|(i, disk)| {
        let len = if members.contains(&i) { region } else { 0 };
        divide(disk.dev.size(), len, disk.role != Role::MetadataOnly, geometry)
            .map_err(|source| CreateError::TooSmall { path: disk.path.clone(), source })
    });
    Ok(Plan { layouts: layouts.collect::<Result<_, _>>()?, members })
}

/// What can be wrong with one disk, whatever is on it.
pub(super) fn check_alone<D: BlockDev>(disk: &NewDisk<D>) -> Result<(), CreateError> {
    check_name(&disk.name).map_err(|source| CreateError::Name { path: disk.path.clone(), source })?;
    check_domain(&disk.failure_domain, disk.failure_domain_named)
        .map_err(|source| CreateError::FailureDomain { path: disk.path.clone(), source })
}

/// What can be wrong between a disk and one that was accepted before it.
pub(super) fn check_pair<D: BlockDev>(
    first: &Path,
    identity: DiskIdentity,
    first_size: u32,
    second: &NewDisk<D>,
    host: &Host,
) -> Result<(), CreateError> {
    let paths = || (first.to_owned(), second.path.clone());
    if let Some(overlap) = host.overlap(identity, second.identity) {
        let (first, second) = paths();
        return Err(CreateError::SameDisk { first, second, overlap });
    }
    let second_size = second.dev.block_size();
    if first_size != second_size {
        let (first, second) = paths();
        return Err(CreateError::MixedBlockSizes { first, first_size, second, second_size });
    }
    Ok(())
}

/// Whether the disk may be overwritten.
pub(super) fn check_content<D: BlockDev>(disk: &NewDisk<D>, force: bool) -> Result<(), CreateError> {
    if force {
        return Ok(());
    }
    let path = || disk.path.clone();
    match copies::read(&*disk.dev) {
        Ok(read) => return Err(CreateError::InPool { path: path(), name: read.label.name, pool: read.label.pool }),
        Err(ReadError::Absent) => {}
        Err(source) => return Err(CreateError::Label { path: path(), source }),
    }
    let findings = probe(&*disk.dev).map_err(|source| CreateError::Read { path: path(), source })?;
    if findings.is_empty() { Ok(()) } else { Err(CreateError::Foreign { path: path(), findings }) }
}

pub(super) fn new_label<D: BlockDev>(
    disk: &NewDisk<D>,
    entry: &RosterEntry,
    layout: DiskLayout,
    pool: Uuid,
    extent_size: u64,
    now: u64,
    membership: Membership,
) -> Label {
    Label {
        compat: 0,
        ro_compat: 0,
        sequence: 0,
        pool,
        uuid: entry.uuid,
        id: entry.id,
        name: entry.name.clone(),
        extent_size,
        block_size: disk.dev.block_size(),
        disk_size: disk.dev.size(),
        layout,
        accept: disk.accept,
        failure_domain: domain_for_label(&disk.failure_domain),
        failure_domain_named: disk.failure_domain_named,
        created: now,
        membership,
    }
}

/// Clears what could be mistaken for something else, and writes the label.
pub(super) fn format_disk<D: BlockDev>(disk: &NewDisk<D>, mut label: Label, force: bool) -> Result<Label, CreateError> {
    let clear = || -> io::Result<()> {
        if force {
            // Labels first: of a pool that is given up nothing should be found half overwritten.
            copies::wipe(&*disk.dev)?;
            let len = disk.dev.size().min(PROBE_LEN);
            clear_range(&*disk.dev, 0, len)?;
            clear_range(&*disk.dev, disk.dev.size() - len, len)?;
        }
        clear_region_head(&*disk.dev, label.layout.metadata_len)?;
        disk.dev.sync()
    };
    clear().map_err(|source| CreateError::Write { path: disk.path.clone(), source })?;
    match copies::write(&*disk.dev, &mut label) {
        Ok(()) => Ok(label),
        Err(source) => Err(CreateError::WriteLabel { path: disk.path.clone(), source }),
    }
}

/// Makes sure that no database is found in a metadata region of this length.
pub(super) fn clear_region_head<D: BlockDev + ?Sized>(dev: &D, region: u64) -> io::Result<()> {
    clear_range(dev, METADATA_OFFSET, REGION_HEAD_LEN.min(region))
}

/// Zeroes a range, unless it is zero: a sparse file stays sparse.
fn clear_range<D: BlockDev + ?Sized>(dev: &D, offset: u64, len: u64) -> io::Result<()> {
    let mut bytes = vec![0; usize::try_from(len).expect("a MiB fits in memory")];
    dev.read_at(offset, &mut bytes)?;
    if bytes.iter().all(|&b| b == 0) {
        return Ok(());
    }
    bytes.fill(0);
    dev.write_at(offset, &bytes)
}

pub(super) fn opened<D: BlockDev>(disk: NewDisk<D>, label: Label) -> OpenDisk<D> {
    OpenDisk {
        id: label.id,
        uuid: label.uuid,
        name: disk.name,
        path: disk.path,
        dev: Arc::clone(&disk.dev),
        identity: disk.identity,
        label,
        failure_domain: disk.failure_domain,
        notices: Vec::new(),
        label_failed: false,
    }
}
