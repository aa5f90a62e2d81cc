//! The members of the store as one: a commit counts when a majority has it.
//!
//! Production gives each member a thread ([`threads`]), so that a disk that hangs delays nobody as long as the others are a
//! majority. The simulation calls members directly ([`Direct`]).

mod quorum;
pub mod threads;

use std::sync::Arc;

use crate::base::ids::DiskId;
use crate::disk::BlockDev;

use super::batch::Batch;
use super::fill::Fill;
use super::member::{Member, MemberError};
use super::page::Stamp;
pub use quorum::majority;

/// Why a member takes part no more, until the store is opened again.
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// It failed.
    #[error(transparent)]
    Failed(#[from] MemberError),
    /// It did not answer.
    #[error("it has not answered for {secs} seconds")]
    Hung {
        /// How long.
        secs: u64,
    },
    /// It is too far behind, and does not catch up.
    #[error("it is {commits} commits behind and does not catch up")]
    Behind {
        /// How far.
        commits: usize,
    },
    /// Its thread has ended.
    #[error("its thread has ended")]
    Ended,
}

/// A member that was given up.
#[derive(Debug)]
pub struct Dropped {
    /// Its disk.
    pub disk: DiskId,
    /// Why.
    pub why: Lost,
    /// A sync of its disk failed: see [`super::region::Fuse::sync_failed`].
    pub sync_failed: bool,
}

/// How a commit went.
#[derive(Debug, Default)]
pub struct Applied {
    /// A majority has it.
    pub committed: bool,
    /// Members given up on the way.
    pub dropped: Vec<Dropped>,
}

/// A member, for people.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberStatus {
    /// Its disk.
    pub disk: DiskId,
    /// Bytes of its region.
    pub region_len: u64,
    /// How full it is.
    pub fill: Fill,
    /// Its last commit.
    pub stamp: Stamp,
    /// Why it takes part no more.
    pub lost: Option<String>,
}

/// What the committer needs of the members.
pub trait Members {
    /// Makes a batch durable on a majority. Once that has failed the caller must not try again.
    fn apply(&mut self, batch: &Arc<Batch>) -> Applied;

    /// Every member, given up or not.
    fn status(&self) -> Vec<MemberStatus>;

    /// How many members must have a commit for it to count.
    fn needed(&self) -> usize;

    /// Writes a metadata dump of the table as one member has it now, see [`super::dump`].
    ///
    /// # Errors
    /// What the member said.
    fn dump(&mut self) -> Result<String, super::dump::DumpError>;
}

/// The fullest member that takes part.
#[must_use]
pub fn fullest(members: &[MemberStatus]) -> Fill {
    let parts = members.iter().filter(|member| member.lost.is_none());
    parts.fold(Fill::default(), |fullest, member| fullest.or_fuller(member.fill))
}

/// Members that are called one after the other.
#[derive(Debug)]
pub struct Direct<D: BlockDev + ?Sized + 'static> {
    members: Vec<(DiskId, Result<Member<D>, MemberStatus>)>,
    majority: usize,
}

impl<D: BlockDev + ?Sized + 'static> Direct<D> {
    /// `total` members belong to the store, `members` of them are here.
    #[must_use]
    pub fn new(members: Vec<(DiskId, Member<D>)>, total: usize) -> Direct<D> {
        let members = members.into_iter().map(|(disk, member)| (disk, Ok(member))).collect();
        Direct { members, majority: majority(total) }
    }

    /// The members that take part.
    pub fn members(&self) -> impl Iterator<Item = &Member<D>> {
        self.members.iter().filter_map(|(_, member)| member.as_ref().ok())
    }
}

fn status_of<D: BlockDev + ?Sized + 'static>(disk: DiskId, member: &Member<D>) -> MemberStatus {
    MemberStatus { disk, region_len: member.region_len(), fill: member.fill(), stamp: member.state().stamp, lost: None }
}

impl<D: BlockDev + ?Sized + 'static> Members for Direct<D> {
    fn apply(&mut self, batch: &Arc<Batch>) -> Applied {
        let mut dropped = Vec::new();
        let mut have = 0;
        for (disk, slot) in &mut self.members {
            let Ok(member) = slot else { continue };
            match member.apply(batch) {
                Ok(()) => have += 1,
                Err(error) => {
                    let sync_failed = member.fuse().sync_failed();
                    let status = MemberStatus { lost: Some(error.to_string()), ..status_of(*disk, member) };
                    *slot = Err(status);
                    dropped.push(Dropped { disk: *disk, why: Lost::Failed(error), sync_failed });
                }
            }
        }
        Applied { committed: have >= self.majority, dropped }
    }

    fn status(&self) -> Vec<MemberStatus> {
        let status = |(disk, member): &(DiskId, Result<Member<D>, MemberStatus>)| match member {
            Ok(member) => status_of(*disk, member),
            Err(status) => status.clone(),
        };
        self.members.iter().map(status).collect()
    }

    fn needed(&self) -> usize {
        self.majority
    }

    fn dump(&mut self) -> Result<String, super::dump::DumpError> {
        let member = self.members().next().ok_or(super::dump::DumpError::NoMember)?;
        super::dump::dump(member)
    }
}
