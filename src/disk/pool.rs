//! A pool as a set of labelled disks: creating one, finding and opening one, changing its labels.
//!
//! Everything works on any [`super::BlockDev`], so that simulated disks go through the same code; only [`find`] is about real
//! paths. What a person should hear is returned as data ([`Warning`], [`Notice`], [`Rejected`]), never printed here.

mod assemble;
mod change;
mod choose;
mod create;
mod create_error;
#[cfg(test)]
mod file_tests;
mod find;
mod labels;
#[cfg(test)]
mod tests;
mod wipe;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;

use super::file::{FileDisk, OpenError};
use super::geometry::{METADATA_OFFSET, Role};
use super::identity::{DiskIdentity, FailureDomain, Host, Sharing};
use super::label::copies::ReadError;
use super::label::{Accept, CopyId, Label};
use super::membership::{Branch, Settled};
use crate::base::ids::{DiskId, check_name};
pub use assemble::{AssembleError, Found, assemble};
pub use change::{AddOptions, ChangeError, MembershipWritten, RemovedDisk};
pub use create::{CreateOptions, create_pool};
pub use create_error::CreateError;
pub use find::{FindError, OpenOptions, OpenedDisk, open_pool, reopen_pool};
pub use labels::{FailedWrite, LabelFailure};
pub use wipe::{WipeError, wipe, wipeable};

/// A disk that is to be labelled.
#[derive(Debug)]
pub struct NewDisk<D> {
    /// The disk, open for writing and locked.
    pub dev: Arc<D>,
    /// Its path, for messages.
    pub path: PathBuf,
    /// What makes it this disk.
    pub identity: DiskIdentity,
    /// Its name.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// Which VHDs it takes.
    pub accept: Accept,
    /// What fails together with it.
    pub failure_domain: FailureDomain,
    /// Whether the user named the failure domain.
    pub failure_domain_named: bool,
}

/// What the user may say about a disk that is to be labelled.
#[derive(Clone, Debug, Default)]
pub struct DiskSettings {
    /// Its name; by default made from its lasting link or its file name.
    pub name: Option<String>,
    /// What it is for.
    pub role: Role,
    /// Which VHDs it takes.
    pub accept: Accept,
    /// What fails together with it; by default its physical device.
    pub failure_domain: Option<String>,
}

impl NewDisk<FileDisk> {
    /// A real disk with what the user said of it; a name that was not given is none of `taken`.
    #[must_use]
    pub fn from_file(disk: FileDisk, settings: DiskSettings, taken: &[String], host: &Host) -> NewDisk<FileDisk> {
        let identity = *disk.identity();
        let path = disk.path().to_owned();
        let failure_domain_named = settings.failure_domain.is_some();
        NewDisk {
            dev: Arc::new(disk),
            name: settings.name.unwrap_or_else(|| host.default_name(&path, identity, taken)),
            path,
            identity,
            role: settings.role,
            accept: settings.accept,
            failure_domain: match settings.failure_domain {
                Some(name) => FailureDomain::named(&name),
                None => host.failure_domain(identity),
            },
            failure_domain_named,
        }
    }
}

/// A disk of an open pool.
#[derive(Debug)]
pub struct OpenDisk<D> {
    /// Its place in the pool.
    pub id: DiskId,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Where it was found.
    pub path: PathBuf,
    /// The disk itself.
    pub dev: Arc<D>,
    /// What makes it this disk.
    pub identity: DiskIdentity,
    /// Its label, as last written or read.
    pub label: Label,
    /// What fails together with it: as named, or found out at opening.
    pub failure_domain: FailureDomain,
    /// What a person should hear of it.
    pub notices: Vec<Notice>,
    /// A label write failed or hangs: none is tried again before the pool is opened anew.
    label_failed: bool,
}

impl<D> OpenDisk<D> {
    /// The byte range of its metadata region; `None` on a data-only disk.
    #[must_use]
    pub fn metadata_region(&self) -> Option<Range<u64>> {
        let len = self.label.layout.metadata_len;
        (len > 0).then_some(METADATA_OFFSET..METADATA_OFFSET + len)
    }

    /// Whether a write of its label failed or hangs: none is tried again before the pool is opened anew.
    #[must_use]
    pub fn label_failed(&self) -> bool {
        self.label_failed
    }

    /// Bytes of its slots.
    #[must_use]
    pub fn data_len(&self) -> u64 {
        u64::from(self.label.layout.slots) * self.label.extent_size
    }
}

/// A disk of the pool that was not found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Missing {
    /// Its place in the pool.
    pub id: DiskId,
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name, or the start of it.
    pub name: String,
    /// Whether it carries the placement store.
    pub store_member: bool,
}

impl fmt::Display for Missing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = if self.store_member { ", carries the placement store" } else { "" };
        write!(f, "'{}' (UUID {}{role})", self.name, self.uuid)
    }
}

/// A path that was given and is not one of the pool's disks.
#[derive(Debug)]
pub struct Rejected {
    /// The path.
    pub path: PathBuf,
    /// Why.
    pub reason: Rejection,
}

/// Why a path is not one of the pool's disks.
#[derive(Debug, thiserror::Error)]
pub enum Rejection {
    /// It cannot be opened.
    #[error(transparent)]
    Open(OpenError),
    /// It has no label that can be used.
    #[error("{}: {source}", path.display())]
    Label {
        /// The path.
        path: PathBuf,
        /// What is wrong.
        source: ReadError,
    },
    /// It does not answer.
    #[error("{} does not answer: opening it or reading its label took too long", path.display())]
    Hangs {
        /// The path.
        path: PathBuf,
    },
    /// It belongs to another pool than the one asked for.
    #[error("{} is disk '{name}' of another pool, {pool}", path.display())]
    OtherPool {
        /// The path.
        path: PathBuf,
        /// Its name there.
        name: String,
        /// The other pool.
        pool: Uuid,
    },
    /// The pool does not count it among its disks.
    #[error(
        "{} was disk '{name}' of this pool, but is none of its disks any more (it was removed, or adding it was interrupted): \
         wipe it to use it again",
        path.display()
    )]
    NotInPool {
        /// The path.
        path: PathBuf,
        /// Its name in its label.
        name: String,
    },
    /// A pattern matched nothing.
    #[error("nothing matches the pattern {}", path.display())]
    NoMatch {
        /// The pattern.
        path: PathBuf,
    },
}

impl fmt::Display for Rejected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reason.fmt(f)
    }
}

/// What was noticed of a disk at opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// One label copy was damaged and has been repaired from the other.
    LabelMended {
        /// The damaged copy.
        copy: CopyId,
        /// What was wrong with it.
        problem: String,
    },
    /// One label copy is damaged and was not repaired: the pool is open read-only, or writing failed.
    LabelDamaged {
        /// The damaged copy.
        copy: CopyId,
        /// What is wrong with it.
        problem: String,
    },
    /// The disk missed changes of the membership.
    OutOfDate {
        /// The epoch in its label.
        epoch: u64,
        /// The epoch of the pool.
        current: u64,
    },
    /// The disk is larger than when it was added.
    Grown {
        /// Bytes that are not used.
        unused: u64,
    },
}

impl fmt::Display for Notice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Notice::LabelMended { copy, problem } => {
                write!(f, "label copy {copy} was damaged ({problem}) and has been repaired from the other copy")
            }
            Notice::LabelDamaged { copy, problem } => {
                write!(f, "label copy {copy} is damaged ({problem}) and has not been repaired")
            }
            Notice::OutOfDate { epoch, current } => {
                write!(f, "the disk was away: its label is of epoch {epoch}, the pool's is {current}")
            }
            Notice::Grown { unused } => {
                write!(f, "the disk is {unused} bytes larger than when it was added; they are not used")
            }
        }
    }
}

/// What a person should know of a pool's disks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Warning {
    /// Disks fail together.
    SharedDomain(Sharing),
    /// Store members fail together.
    MembersShareDomain(Sharing),
    /// Two store members.
    TwoMembers,
    /// One store member, though there are more disks.
    OneMember,
    /// The metadata region of a store member may become full before the data.
    RegionSmall {
        /// The disk.
        disk: String,
        /// Bytes it has.
        region: u64,
        /// Bytes for the pool's capacity.
        wanted: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::SharedDomain(Sharing { domain, disks }) => {
                write!(f, "the disks {} share the failure domain {domain}: one failure takes them all", disks.join(", "))
            }
            Warning::MembersShareDomain(Sharing { domain, disks }) => write!(
                f,
                "the placement table is on {}, which share the failure domain {domain}: one failure can take the whole pool",
                disks.join(", ")
            ),
            Warning::TwoMembers => f.write_str(
                "two disks carry the placement table: no single failure loses it, but with either one missing the pool does \
                 not open by itself; a third disk gives both",
            ),
            Warning::OneMember => f.write_str(
                "one disk carries the placement table: if it fails, the data on the other disks cannot be found any more",
            ),
            Warning::RegionSmall { disk, region, wanted } => write!(
                f,
                "the metadata region of disk {disk} has {region} bytes, {wanted} are wanted for the pool's capacity: the pool may \
                 refuse new data before it is full"
            ),
        }
    }
}

/// A pool whose disks are open.
#[derive(Debug)]
pub struct OpenPool<D> {
    /// Its UUID.
    pub uuid: Uuid,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// Its disks that are here, by id.
    pub disks: Vec<OpenDisk<D>>,
    /// Its disks that are not.
    pub missing: Vec<Missing>,
    /// Paths that were given and are none of its disks.
    pub rejected: Vec<Rejected>,
    /// The last membership: who carries the placement store.
    pub membership: Settled,
    /// Whether writing is out of the question.
    pub read_only: bool,
    /// Whether it was opened without the majority that proves that nothing newer exists.
    pub stale_accepted: bool,
    /// The branch of the last membership.
    branch: u64,
    /// The branch of the next one, unless a new one has to begin.
    next_branch: Option<Branch>,
    epoch_highest: u64,
    /// Labels are written one after the other, not all at once.
    in_order: bool,
    /// Disks of the pool that are not here, too, stay in the roster of new labels.
    roster: Vec<super::membership::RosterEntry>,
}

impl<D> OpenPool<D> {
    /// The disk with this id.
    #[must_use]
    pub fn disk(&self, id: DiskId) -> Option<&OpenDisk<D>> {
        self.disks.iter().find(|disk| disk.id == id)
    }

    /// The disks that carry the placement store and are here.
    pub fn store_members(&self) -> impl Iterator<Item = &OpenDisk<D>> {
        self.disks.iter().filter(|disk| self.is_member(disk.id))
    }

    /// What a person should know of its disks.
    #[must_use]
    pub fn warnings(&self) -> Vec<Warning> {
        fn domains<'a, D: 'a>(disks: impl Iterator<Item = &'a OpenDisk<D>>) -> Vec<(&'a str, &'a FailureDomain)> {
            disks.map(|disk| (disk.name.as_str(), &disk.failure_domain)).collect()
        }
        let (all, members) = (domains(self.disks.iter()), domains(self.store_members()));
        choose::warnings(&all, &members, self.membership.members.len(), self.roster.len())
    }

    fn is_member(&self, id: DiskId) -> bool {
        self.membership.members.iter().any(|member| member.id == id)
    }
}

/// A failure domain named by a user has the form of a name.
fn check_domain(domain: &FailureDomain, named: bool) -> Result<(), crate::base::ids::NameError> {
    if named { check_name(&domain.to_string()) } else { Ok(()) }
}

/// The text of a failure domain for a label: cut to what has room there (it is only for people then).
fn domain_for_label(domain: &FailureDomain) -> String {
    let mut text = domain.to_string();
    while text.len() > super::label::FAILURE_DOMAIN_LEN_MAX {
        text.pop();
    }
    text
}
