//! Which disks carry the placement store, while it is being served.
//!
//! A disk takes part with a metadata region of its own. Before it counts it is filled, in the labels of all disks it counts only
//! after the store has made one commit that a majority of the new members has: see `store::mirror::threads::change`.

use std::sync::Arc;

use super::error_kinds::change_error;
use super::host::DaemonHost;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::STORE_MEMBERS_MAX;
use crate::control::error_chain;
use crate::control::wire::{ErrorInfo, ErrorKind};
use crate::disk::file::FileDisk;
use crate::disk::pool::{ChangeError, OpenDisk, OpenPool, Warning};
use crate::store::mirror::threads::change::{ChangeError as StoreError, Joiner};
use crate::store::region::RegionPlace;

type Pool = OpenPool<FileDisk>;

fn members(pool: &Pool) -> Vec<DiskId> {
    pool.membership.members.iter().map(|member| member.id).collect()
}

/// Disks that could carry the store and do not; first those that fail together with none of `others`.
fn spare(pool: &Pool, others: &[DiskId]) -> Vec<DiskId> {
    let now = members(pool);
    let works = |disk: &&OpenDisk<FileDisk>| !disk.label_failed() && !disk.dev.failed().is_failed();
    let could = |disk: &&OpenDisk<FileDisk>| disk.metadata_region().is_some() && !now.contains(&disk.id);
    let shares = |disk: &OpenDisk<FileDisk>| {
        others.iter().any(|other| pool.disk(*other).is_some_and(|other| other.failure_domain == disk.failure_domain))
    };
    let mut spare: Vec<&OpenDisk<FileDisk>> = pool.disks.iter().filter(could).filter(works).collect();
    spare.sort_by_key(|disk| (shares(disk), disk.id));
    spare.into_iter().map(|disk| disk.id).collect()
}

/// What a person should know of the members.
fn warnings(pool: &Pool) -> Vec<String> {
    let of_members = |warning: &Warning| match warning {
        Warning::TwoMembers | Warning::OneMember | Warning::MembersShareDomain(_) | Warning::RegionSmall { .. } => true,
        Warning::SharedDomain(_) => false,
    };
    pool.warnings().iter().filter(|warning| of_members(warning)).map(ToString::to_string).collect()
}

fn store_error(error: &StoreError) -> ErrorInfo {
    ErrorInfo::new(ErrorKind::Failed, error_chain(error))
}

impl DaemonHost {
    /// Lets the store do without a disk that is about to leave the pool. `successor`, or a disk with a metadata region that is
    /// not in use, takes its place. Returns what a person should know.
    ///
    /// # Errors
    /// No disk would carry the store, or the others could not be brought to it. Then it is as it was.
    pub(super) fn leave_store_of(
        &self,
        pool: &mut Pool,
        disk: DiskId,
        successor: Option<DiskId>,
    ) -> Result<Vec<String>, ErrorInfo> {
        let now = members(pool);
        if !now.contains(&disk) {
            return Ok(Vec::new());
        }
        let mut next: Vec<DiskId> = now.into_iter().filter(|member| *member != disk).collect();
        let mut told = Vec::new();
        let candidate = successor.or_else(|| spare(pool, &next).first().copied());
        match candidate.map(|candidate| (candidate, self.join(pool, candidate))) {
            Some((candidate, Ok(()))) => next.push(candidate),
            // Nobody knows yet which members the labels have: without a restart there is no next step.
            Some((_, Err(error @ (StoreError::Unfinished | StoreError::Closed)))) => return Err(store_error(&error)),
            Some((_, Err(error))) if next.is_empty() => return Err(store_error(&error)),
            Some((candidate, Err(error))) => {
                let name = pool.disk(candidate).map_or_else(String::new, |disk| disk.name.clone());
                told.push(format!("disk '{name}' cannot carry the placement table: {}", error_chain(&error)));
            }
            None if next.is_empty() => {
                let name = pool.disk(disk).map_or_else(String::new, |disk| disk.name.clone());
                let message = format!("disk '{name}' is the only one that carries the placement table");
                let hint = "'spanblk disk replace' lets another disk take its place; so does removing it after 'spanblk disk add'";
                return Err(ErrorInfo::new(ErrorKind::Conflict, message)
                    .with_code("last_metadata_disk")
                    .with_hint(hint));
            }
            None => {}
        }
        self.change_members(pool, &next)?;
        told.extend(warnings(pool));
        Ok(told)
    }

    /// Lets three disks carry the store, if there are three that can. (Two instead of one would be a choice: they lose nothing
    /// when one of them fails, but do not open without it.) Returns what a person should know.
    pub(super) fn fill_store_of(&self, pool: &mut Pool) -> Vec<String> {
        let mut next = members(pool);
        let missing = STORE_MEMBERS_MAX.saturating_sub(next.len());
        let spare = spare(pool, &next);
        if missing == 0 || spare.len() < missing {
            return Vec::new();
        }
        let join = |disk: &DiskId| self.join(pool, *disk).map_err(|error| store_error(&error));
        let joined = spare.iter().take(missing).try_for_each(join);
        next.extend(&spare[..missing]);
        if let Err(error) = joined.and_then(|()| self.change_members(pool, &next)) {
            return vec![format!("the placement table stays where it is: {}", error.message)];
        }
        log::info!("three disks carry the placement table now");
        Vec::new()
    }

    /// Brings a new member to what the others have.
    fn join(&self, pool: &Pool, id: DiskId) -> Result<(), StoreError> {
        let disk = pool.disk(id).ok_or(StoreError::NoSource)?;
        let region = disk.metadata_region().ok_or(StoreError::NoSource)?;
        let place = RegionPlace { offset: region.start, len: region.end - region.start };
        self.store.join(|filled| Joiner::new(id, Arc::clone(&disk.dev), place, pool.uuid, filled))
    }

    fn change_members(&self, pool: &mut Pool, next: &[DiskId]) -> Result<(), ErrorInfo> {
        let set: DiskSet = next.iter().copied().collect();
        // Before anything is proposed: what the labels cannot take leaves the store between two memberships.
        if let Err(error) = pool.check_membership(next) {
            self.store.dismiss();
            return Err(change_error(&error));
        }
        self.store.propose(set).map_err(|error| store_error(&error))?;
        match pool.write_membership(next) {
            Ok(written) => {
                self.store.settle();
                written.failed.iter().for_each(|failed| log::warn!("{failed}"));
                Ok(())
            }
            // Nobody knows which of the two a restart will find: until then both have to agree to every commit.
            Err(error @ ChangeError::NoMajority(_)) => {
                log::error!("{error}; restart the daemon");
                Err(change_error(&error))
            }
            Err(error) => {
                self.store.withdraw();
                Err(change_error(&error))
            }
        }
    }
}
