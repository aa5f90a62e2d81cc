//! From labelled disks to a pool.

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::{Missing, Notice, OpenDisk, OpenOptions, OpenPool, Rejected, Rejection};
use crate::disk::BlockDev;
use crate::disk::identity::{DiskIdentity, FailureDomain};
use crate::disk::label::Label;
use crate::disk::label::copies::{self, LabelRead};
use crate::disk::membership::{Decision, Member, MembershipError, Shortfall, Witness, decide, majority};

/// A disk with a label.
#[derive(Debug)]
pub struct Found<D> {
    /// The disk, open for what the pool is opened for.
    pub dev: Arc<D>,
    /// Where it was found.
    pub path: PathBuf,
    /// What makes it this disk.
    pub identity: DiskIdentity,
    /// What physically fails together with it.
    pub failure_domain: FailureDomain,
    /// Its label.
    pub read: LabelRead,
}

/// Why labelled disks do not make a pool that can be opened.
#[derive(Debug, thiserror::Error)]
pub enum AssembleError {
    /// The disks are of several pools.
    #[error("the disks belong to different pools: {}; give only the disks of one", pools(.0))]
    SeveralPools(Vec<(Uuid, Vec<PathBuf>)>),
    /// Two disks say they are the same one.
    #[error(
        "{} and {} are copies of one disk ('{name}', UUID {uuid}): remove the copy; writing to both would ruin the pool",
        first.display(), second.display()
    )]
    Copies {
        /// One of them.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// The name both carry.
        name: String,
        /// The UUID both carry.
        uuid: Uuid,
    },
    /// The labels disagree about something that all disks of a pool have in common.
    #[error("{} and {} disagree about the {what} of their pool: one of them was changed by something else", first.display(), second.display())]
    Disagree {
        /// One disk.
        first: PathBuf,
        /// Another.
        second: PathBuf,
        /// What about.
        what: &'static str,
    },
    /// Too few store members.
    #[error("{}", no_majority(shortfalls, missing))]
    NoMajority {
        /// Majorities that are not here.
        shortfalls: Vec<Shortfall>,
        /// The disks that are missing.
        missing: Vec<Missing>,
    },
    /// There is no membership.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// A disk has features that this program may not write.
    #[error("{} uses features that this program cannot write (ro-compat flags {flags:#x}): use a newer spanblk, or open it read-only", path.display())]
    ReadOnlyFeatures {
        /// The disk.
        path: PathBuf,
        /// The unknown flags.
        flags: u32,
    },
}

fn pools(pools: &[(Uuid, Vec<PathBuf>)]) -> String {
    let one = |(pool, paths): &(Uuid, Vec<PathBuf>)| {
        let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
        format!("{pool} ({})", paths.join(", "))
    };
    pools.iter().map(one).collect::<Vec<_>>().join("; ")
}

fn no_majority(shortfalls: &[Shortfall], missing: &[Missing]) -> String {
    let first = shortfalls.first().map_or((0, 0), |s| (s.present, s.members.len()));
    let missing: Vec<String> = missing.iter().map(ToString::to_string).collect();
    format!(
        "only {} of the {} disks that carry the placement table are here and {} are needed, because the missing ones may hold \
         newer state; missing: {}; attach them, or, if they are lost for good, open with --accept-stale (changes that only \
         they know are lost)",
        first.0,
        first.1,
        majority(first.1),
        if missing.is_empty() { "none that is known by name".to_owned() } else { missing.join(", ") }
    )
}

/// Puts a pool together from disks that carry labels, in any order; mends damaged label copies unless read-only.
///
/// # Errors
/// See [`AssembleError`].
pub fn assemble<D: BlockDev>(
    found: Vec<Found<D>>,
    mut rejected: Vec<Rejected>,
    options: &OpenOptions,
) -> Result<OpenPool<D>, AssembleError> {
    let mut found = of_one_pool(found, &mut rejected, options)?;
    found.sort_by_key(|disk| disk.read.label.id);
    check_consistent(&found, options)?;
    let decision = {
        let witness = |disk: &Found<D>| Member { id: disk.read.label.id, uuid: disk.read.label.uuid };
        let witnesses: Vec<Witness<'_>> =
            found.iter().map(|disk| Witness { disk: witness(disk), membership: &disk.read.label.membership }).collect();
        decide(&witnesses)?
    };
    let missing = missing(&found, &decision);
    let stale_accepted = !decision.shortfalls.is_empty();
    if stale_accepted && !options.accept_stale {
        return Err(AssembleError::NoMajority { shortfalls: decision.shortfalls, missing });
    }
    let mut disks = Vec::with_capacity(found.len());
    for disk in found {
        let label = &disk.read.label;
        if decision.roster.iter().any(|entry| entry.id == label.id && entry.uuid == label.uuid) {
            disks.push(open_disk(disk, decision.settled.epoch, options.read_only));
        } else {
            let reason = Rejection::NotInPool { path: disk.path.clone(), name: disk.read.label.name };
            rejected.push(Rejected { path: disk.path, reason });
        }
    }
    let first = disks.first().ok_or(MembershipError::NoDisk)?;
    Ok(OpenPool {
        uuid: first.label.pool,
        extent_size: first.label.extent_size,
        disks,
        missing,
        rejected,
        membership: decision.settled,
        branch: decision.branch,
        next_branch: decision.next_branch,
        read_only: options.read_only,
        stale_accepted,
        epoch_highest: decision.epoch_highest,
        in_order: false,
        roster: decision.roster,
    })
}

/// Keeps the disks of the pool that was asked for, or of the only one there is.
fn of_one_pool<D>(
    found: Vec<Found<D>>,
    rejected: &mut Vec<Rejected>,
    options: &OpenOptions,
) -> Result<Vec<Found<D>>, AssembleError> {
    let mut pools: Vec<(Uuid, Vec<PathBuf>)> = Vec::new();
    for disk in &found {
        let pool = disk.read.label.pool;
        match pools.iter_mut().find(|(known, _)| *known == pool) {
            Some((_, paths)) => paths.push(disk.path.clone()),
            None => pools.push((pool, vec![disk.path.clone()])),
        }
    }
    let Some(wanted) = options.pool else {
        return if pools.len() > 1 { Err(AssembleError::SeveralPools(pools)) } else { Ok(found) };
    };
    let (ours, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|disk| disk.read.label.pool == wanted);
    rejected.extend(others.into_iter().map(|disk| {
        let Label { name, pool, .. } = disk.read.label;
        Rejected { path: disk.path.clone(), reason: Rejection::OtherPool { path: disk.path, name, pool } }
    }));
    Ok(ours)
}

/// `found` is sorted by id.
fn check_consistent<D>(found: &[Found<D>], options: &OpenOptions) -> Result<(), AssembleError> {
    for (i, second) in found.iter().enumerate() {
        let label = &second.read.label;
        if !options.read_only && label.unknown_ro_compat() != 0 {
            let flags = label.unknown_ro_compat();
            return Err(AssembleError::ReadOnlyFeatures { path: second.path.clone(), flags });
        }
        for first in &found[..i] {
            let paths = || (first.path.clone(), second.path.clone());
            if first.read.label.uuid == label.uuid {
                let (first, second) = paths();
                return Err(AssembleError::Copies { first, second, name: label.name.clone(), uuid: label.uuid });
            }
            let differs = if first.read.label.extent_size != label.extent_size {
                Some("extent size")
            } else if first.read.label.block_size != label.block_size {
                Some("logical block size")
            } else {
                None
            };
            if let Some(what) = differs {
                let (first, second) = paths();
                return Err(AssembleError::Disagree { first, second, what });
            }
        }
    }
    Ok(())
}

fn missing<D>(found: &[Found<D>], decision: &Decision) -> Vec<Missing> {
    let is_here = |uuid: Uuid| found.iter().any(|disk| disk.read.label.uuid == uuid);
    let missing = decision.roster.iter().filter(|entry| !is_here(entry.uuid)).map(|entry| Missing {
        id: entry.id,
        uuid: entry.uuid,
        name: if entry.name_is_cut { format!("{}...", entry.name) } else { entry.name.clone() },
        store_member: decision.settled.members.iter().any(|member| member.uuid == entry.uuid),
    });
    missing.collect()
}

fn open_disk<D: BlockDev>(mut disk: Found<D>, epoch: u64, read_only: bool) -> OpenDisk<D> {
    let mut notices = Vec::new();
    let mut label_failed = false;
    if let Some(problem) = &disk.read.damage {
        let (copy, problem) = (disk.read.from.other(), problem.to_string());
        // A disk that cannot take its label is still good for reading; the notice says so.
        label_failed = !read_only && copies::mend(&*disk.dev, &mut disk.read).is_err();
        let mended = !read_only && !label_failed;
        notices.push(if mended {
            Notice::LabelMended { copy, problem }
        } else {
            Notice::LabelDamaged { copy, problem }
        });
    }
    let label = disk.read.label;
    if label.membership.epoch < epoch {
        notices.push(Notice::OutOfDate { epoch: label.membership.epoch, current: epoch });
    }
    if disk.dev.size() > label.disk_size {
        notices.push(Notice::Grown { unused: disk.dev.size() - label.disk_size });
    }
    OpenDisk {
        id: label.id,
        uuid: label.uuid,
        name: label.name.clone(),
        path: disk.path,
        dev: disk.dev,
        identity: disk.identity,
        failure_domain: if label.failure_domain_named {
            FailureDomain::named(&label.failure_domain)
        } else {
            disk.failure_domain
        },
        label,
        notices,
        label_failed,
    }
}
