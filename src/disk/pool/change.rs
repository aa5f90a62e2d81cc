//! Changing an open pool: membership, roles, disks that come and go.

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::create::{check_alone, check_content, check_pair, format_disk, new_label, opened};
use super::labels::{failed_before, write_labels};
use super::wipe::{WipeError, wipe_label};
use super::{CreateError, FailedWrite, NewDisk, OpenDisk, OpenPool, Warning};
use crate::base::ids::{DiskId, NameError, check_name};
use crate::base::limits::{DISKS_MAX, STORE_MEMBERS_MAX};
use crate::base::units::Geometry;
use crate::disk::BlockDev;
use crate::disk::geometry::{Role, divide, metadata_len};
use crate::disk::identity::{FailureDomain, Host};
use crate::disk::label::{Accept, Label, copies};
use crate::disk::membership::{Branch, Member, Membership, RosterEntry, Settled, majority};

/// Why an open pool's labels cannot be changed.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The pool is open for reading only.
    #[error("the pool is open read-only: open it for writing first")]
    ReadOnly,
    /// There is no such disk here.
    #[error("no disk with id {} is open", .0.0)]
    UnknownDisk(DiskId),
    /// Store members that cannot be.
    #[error("the placement table needs 1 to {STORE_MEMBERS_MAX} different disks with a metadata region")]
    BadMembers,
    /// Too few labels could be written.
    #[error(
        "the new membership could not be written to a majority of the disks that carry the placement table{}; the pool must \
         not be served",
        failures(.0)
    )]
    NoMajority(Vec<FailedWrite>),
    /// Too few labels can be written.
    #[error(
        "the labels of a majority of the disks that carry the placement table, and that are to carry it, have to be written{}; \
         nothing was changed",
        failures(.0)
    )]
    LabelsFailed(Vec<FailedWrite>),
    /// The label of a disk could not be written.
    #[error(transparent)]
    Label(#[from] FailedWrite),
    /// A failure domain's name is not valid.
    #[error("as failure domain, {0}")]
    FailureDomain(#[source] NameError),
    /// The new disk is not fit for the pool.
    #[error(transparent)]
    Add(#[from] CreateError),
    /// Its place or name in the pool is taken.
    #[error("the pool has a disk with the name '{name}' or the id {} already: choose another name", id.0)]
    Taken {
        /// The id.
        id: DiskId,
        /// The name.
        name: String,
    },
    /// The disk carries the placement store.
    #[error("disk '{name}' carries the placement table: move that to another disk first")]
    IsMember {
        /// The disk.
        name: String,
    },
}

fn failures(failed: &[FailedWrite]) -> String {
    failed.iter().map(|one| format!("; {one}")).collect()
}

/// A membership that has been written to enough labels.
#[derive(Debug)]
pub struct MembershipWritten {
    /// Its epoch.
    pub epoch: u64,
    /// Disks that do not have it.
    pub failed: Vec<FailedWrite>,
}

/// How to add a disk.
#[derive(Clone, Debug)]
pub struct AddOptions {
    /// Its place in the pool: one that no disk of the pool has, nor had since the pool was opened.
    pub id: DiskId,
    /// Its UUID.
    pub uuid: Uuid,
    /// The disk that it is to replace, whose metadata region it can take over.
    pub replaces: Option<DiskId>,
    /// Overwrite whatever is on it.
    pub force: bool,
    /// Seconds since the Unix epoch.
    pub now: u64,
}

/// A disk that has left its pool.
#[derive(Debug)]
pub struct RemovedDisk<D> {
    /// The disk itself.
    pub dev: Arc<D>,
    /// Where it is.
    pub path: PathBuf,
    /// Whether it did what was asked of it while it belonged to the pool.
    pub works: bool,
    region: u64,
}

impl<D: BlockDev> RemovedDisk<D> {
    /// Wipes its label and the start of its metadata region. If that fails, it is none of the pool's all the same. May take as
    /// long as the disk likes.
    ///
    /// # Errors
    /// The disk's.
    pub fn wipe(&self) -> Result<(), WipeError> {
        wipe_label(&*self.dev, self.region).map_err(|source| WipeError::Io { path: self.path.clone(), source })
    }
}

impl<D: BlockDev + 'static> OpenPool<D> {
    /// Writes labels one after the other, in the order of the disks, by the calling thread: for simulations that must be
    /// repeatable. A disk that hangs then hangs the caller.
    pub fn write_in_order(&mut self) {
        self.in_order = true;
    }

    /// The id after the highest that a disk in the labels has.
    #[must_use]
    pub fn next_id(&self) -> Option<DiskId> {
        let id = self.roster.iter().map(|entry| entry.id.index() + 1).max().unwrap_or(0);
        if id < DISKS_MAX { u8::try_from(id).ok().map(DiskId) } else { None }
    }

    /// Makes `members` the store members, under a new epoch, in two rounds over the labels of all disks. Call before the
    /// pool is served, and for every change of the members; all of them must hold the newest state of the store.
    ///
    /// # Errors
    /// [`ChangeError::NoMajority`]: the membership is as it was, or as it should be; nobody may serve the pool.
    pub fn write_membership(&mut self, members: &[DiskId]) -> Result<MembershipWritten, ChangeError> {
        let members = self.members_of(members)?;
        self.check_writable()?;
        let epoch = self.epoch_highest + 1;
        self.epoch_highest = epoch;
        let before = self.membership.clone();
        let settled = Settled { epoch, members: members.clone() };
        let branch = self.branch_after(&before);
        let roster = self.roster.clone();
        let mut membership = Membership { epoch, members, proposed_after: Some(before.clone()), branch, roster };
        let failed = self.write_each(|label| label.membership = membership.clone());
        let old_agree = self.stale_accepted || self.is_majority(&before.members, &failed);
        if !old_agree || !self.is_majority(&settled.members, &failed) {
            return Err(ChangeError::NoMajority(failed));
        }
        membership.proposed_after = None;
        let failed = self.write_each(|label| label.membership = membership.clone());
        if !self.is_majority(&settled.members, &failed) {
            return Err(ChangeError::NoMajority(failed));
        }
        self.membership = settled;
        self.branch = branch.id;
        self.next_branch = Some(branch);
        self.stale_accepted = false;
        Ok(MembershipWritten { epoch, failed })
    }

    /// The branch of the membership that follows. What the missing disks know of may have been accepted as lost: they may go on
    /// without these ones, so that from here on there may be two histories.
    fn branch_after(&self, before: &Settled) -> Branch {
        match self.next_branch {
            Some(branch) if !self.stale_accepted => branch,
            // Of a random UUID at least the bits that give its version are not zero.
            _ => Branch { id: Uuid::new_v4().as_u64_pair().0, parent: self.branch, since: before.epoch },
        }
    }

    /// Whether [`OpenPool::write_membership`] can succeed, as far as is known: labels that could not be written are not tried
    /// again.
    ///
    /// # Errors
    /// Why not; nothing was written.
    pub fn check_membership(&self, members: &[DiskId]) -> Result<(), ChangeError> {
        self.check_writable()?;
        let members = self.members_of(members)?;
        let failed: Vec<FailedWrite> = self.disks.iter().filter(|disk| disk.label_failed).map(failed_before).collect();
        let old = self.stale_accepted || self.is_majority(&self.membership.members, &failed);
        if old && self.is_majority(&members, &failed) { Ok(()) } else { Err(ChangeError::LabelsFailed(failed)) }
    }

    /// Changes which VHDs a disk takes.
    ///
    /// # Errors
    /// See [`ChangeError`]; the label is as it was or as it should be.
    pub fn set_accept(&mut self, disk: DiskId, accept: Accept) -> Result<(), ChangeError> {
        self.change_one(disk, |label| label.accept = accept)
    }

    /// Names a disk's failure domain.
    ///
    /// # Errors
    /// See [`ChangeError`]; the label is as it was or as it should be.
    pub fn set_failure_domain(&mut self, disk: DiskId, domain: &str) -> Result<(), ChangeError> {
        check_name(domain).map_err(ChangeError::FailureDomain)?;
        self.change_one(disk, |label| {
            label.failure_domain = domain.to_owned();
            label.failure_domain_named = true;
        })?;
        let named = FailureDomain::named(domain);
        self.disks.iter_mut().filter(|open| open.id == disk).for_each(|open| open.failure_domain = named.clone());
        Ok(())
    }

    /// The label that [`OpenPool::add_disk`] would write.
    ///
    /// # Errors
    /// See [`ChangeError`]: the disk cannot be added.
    pub fn label_of(&self, disk: &NewDisk<D>, options: &AddOptions, host: &Host) -> Result<Label, ChangeError> {
        self.check_writable()?;
        self.check_new(disk, options, host)?;
        Ok(self.label_for(disk, options)?)
    }

    /// Labels a disk and makes it known to all others. It gets a metadata region if fewer than three disks have one, but
    /// does not become a store member by itself.
    ///
    /// # Errors
    /// See [`ChangeError`]; the disk is wiped again if it was labelled and could not be made known.
    pub fn add_disk(
        &mut self,
        disk: NewDisk<D>,
        options: &AddOptions,
        host: &Host,
    ) -> Result<Vec<Warning>, ChangeError> {
        let members: Vec<DiskId> = self.membership.members.iter().map(|member| member.id).collect();
        let mut label = self.label_of(&disk, options, host)?;
        if self.next_branch.is_none() {
            // The new label has to say of which branch the pool is.
            self.write_membership(&members)?;
            label = self.label_of(&disk, options, host)?;
        }
        let label = match format_disk(&disk, label, options.force) {
            Ok(label) => label,
            Err(error) => {
                // The error is the one to tell.
                let _ = copies::wipe(&*disk.dev);
                return Err(error.into());
            }
        };
        self.roster = label.membership.roster.clone();
        self.disks.push(opened(disk, label));
        if let Err(error) = self.write_membership(&members) {
            self.forget(options.id);
            return Err(error);
        }
        Ok(self.region_warnings())
    }

    /// Takes a disk (here or missing) out of the pool: all other labels say so then. Nothing may be stored on it, and the placement
    /// store must not know it any more. Returns it, if it is here: its own label is to be wiped.
    ///
    /// # Errors
    /// See [`ChangeError`]. If the other labels could not be written, its own is untouched, and the next opening of the pool
    /// leaves it out (see [`OpenPool::leave_out_unknown`]).
    pub fn remove_disk(&mut self, id: DiskId) -> Result<Option<RemovedDisk<D>>, ChangeError> {
        self.check_writable()?;
        let entry = self.roster.iter().find(|entry| entry.id == id).ok_or(ChangeError::UnknownDisk(id))?.clone();
        if self.is_member(id) {
            return Err(ChangeError::IsMember { name: entry.name });
        }
        let disk = self.take_out(id);
        let members: Vec<DiskId> = self.membership.members.iter().map(|member| member.id).collect();
        self.write_membership(&members)?;
        Ok(disk.map(|disk| RemovedDisk {
            works: !disk.label_failed(),
            region: disk.label.layout.metadata_len,
            dev: disk.dev,
            path: disk.path,
        }))
    }

    /// Leaves out the disks that the placement store does not know: adding or removing them was interrupted, and their ids will
    /// be given to others. Their labels stay as they are; the next membership makes strangers of them. Returns their names.
    pub fn leave_out_unknown(&mut self, is_known: impl Fn(Uuid) -> bool) -> Vec<String> {
        let members: Vec<Uuid> = self.membership.members.iter().map(|member| member.uuid).collect();
        let stays = |uuid: Uuid| is_known(uuid) || members.contains(&uuid);
        let left_out = self.roster.iter().filter(|entry| !stays(entry.uuid)).map(|entry| entry.name.clone()).collect();
        self.roster.retain(|entry| stays(entry.uuid));
        self.missing.retain(|missing| stays(missing.uuid));
        self.disks.retain(|disk| stays(disk.uuid));
        left_out
    }

    /// Drops a disk from memory, and its label if it is here: the roster on the others makes it a stranger in any case.
    fn forget(&mut self, id: DiskId) {
        if let Some(disk) = self.take_out(id) {
            // Best effort: without it the disk is told to be none of the pool's, at the next opening.
            let _ = copies::wipe(&*disk.dev);
        }
    }

    /// Drops a disk from memory.
    fn take_out(&mut self, id: DiskId) -> Option<OpenDisk<D>> {
        self.roster.retain(|entry| entry.id != id);
        self.missing.retain(|missing| missing.id != id);
        let place = self.disks.iter().position(|disk| disk.id == id)?;
        Some(self.disks.remove(place))
    }

    fn check_writable(&self) -> Result<(), ChangeError> {
        if self.read_only { Err(ChangeError::ReadOnly) } else { Ok(()) }
    }

    fn members_of(&self, ids: &[DiskId]) -> Result<Vec<Member>, ChangeError> {
        let mut members: Vec<Member> = Vec::with_capacity(ids.len());
        for &id in ids {
            let known = self.roster.iter().find(|entry| entry.id == id).ok_or(ChangeError::UnknownDisk(id))?;
            let has_region = self.disk(id).is_none_or(|disk| disk.metadata_region().is_some());
            if !has_region || members.iter().any(|member| member.id == id) {
                return Err(ChangeError::BadMembers);
            }
            members.push(Member { id, uuid: known.uuid });
        }
        if (1..=STORE_MEMBERS_MAX).contains(&members.len()) { Ok(members) } else { Err(ChangeError::BadMembers) }
    }

    fn is_majority(&self, members: &[Member], failed: &[FailedWrite]) -> bool {
        let has = |member: &&Member| {
            self.disks.iter().any(|disk| disk.uuid == member.uuid) && failed.iter().all(|f| f.disk != member.id)
        };
        members.iter().filter(has).count() >= majority(members.len())
    }

    fn change_one(&mut self, id: DiskId, change: impl Fn(&mut Label)) -> Result<(), ChangeError> {
        self.check_writable()?;
        let in_order = self.in_order;
        let disk = self.disks.iter_mut().find(|disk| disk.id == id).ok_or(ChangeError::UnknownDisk(id))?;
        write_labels(std::slice::from_mut(disk), in_order, change).pop().map_or(Ok(()), |failed| Err(failed.into()))
    }

    fn write_each(&mut self, change: impl Fn(&mut Label)) -> Vec<FailedWrite> {
        write_labels(&mut self.disks, self.in_order, change)
    }

    fn check_new(&self, disk: &NewDisk<D>, options: &AddOptions, host: &Host) -> Result<(), ChangeError> {
        check_alone(disk)?;
        for open in &self.disks {
            // The block size that the pool was made with, whatever the disk says today.
            check_pair(&open.path, open.identity, open.label.block_size, disk, host)?;
        }
        let (id, name) = (options.id, &disk.name);
        if self.roster.len() >= DISKS_MAX {
            return Err(CreateError::TooManyDisks { count: self.roster.len() + 1 }.into());
        }
        if self.roster.iter().any(|entry| entry.id == id || entry.name == *name) {
            return Err(ChangeError::Taken { id, name: name.clone() });
        }
        Ok(check_content(disk, options.force)?)
    }

    fn label_for(&self, disk: &NewDisk<D>, options: &AddOptions) -> Result<Label, CreateError> {
        let geometry = Geometry::new(self.extent_size).ok_or(CreateError::ExtentSize { size: self.extent_size })?;
        let stays = |open: &&OpenDisk<D>| Some(open.id) != options.replaces;
        let regions = self.disks.iter().filter(stays).filter(|open| open.metadata_region().is_some()).count();
        let with_region = match disk.role {
            Role::Any => regions < STORE_MEMBERS_MAX,
            Role::MetadataOnly => true,
            Role::DataOnly => false,
        };
        let with_data = disk.role != Role::MetadataOnly;
        let new_data = if with_data { disk.dev.size() } else { 0 };
        let region = if with_region { metadata_len(self.capacity().saturating_add(new_data), geometry) } else { 0 };
        let layout = divide(disk.dev.size(), region, with_data, geometry)
            .map_err(|source| CreateError::TooSmall { path: disk.path.clone(), source })?;
        let entry = RosterEntry { id: options.id, uuid: options.uuid, name: disk.name.clone(), name_is_cut: false };
        let mut roster = self.roster.clone();
        roster.push(entry.clone());
        let Settled { epoch, members } = self.membership.clone();
        let branch = self.next_branch.unwrap_or_default();
        let membership = Membership { epoch, members, proposed_after: None, branch, roster };
        Ok(new_label(disk, &entry, layout, self.uuid, self.extent_size, options.now, membership))
    }

    fn capacity(&self) -> u64 {
        self.disks.iter().map(OpenDisk::data_len).fold(0, u64::saturating_add)
    }

    fn region_warnings(&self) -> Vec<Warning> {
        let Some(geometry) = Geometry::new(self.extent_size) else { return Vec::new() };
        let wanted = metadata_len(self.capacity(), geometry);
        let small = self.store_members().filter(|disk| disk.label.layout.metadata_len < wanted);
        let mut warnings = self.warnings();
        warnings.extend(small.map(|disk| Warning::RegionSmall {
            disk: disk.name.clone(),
            region: disk.label.layout.metadata_len,
            wanted,
        }));
        warnings
    }
}
