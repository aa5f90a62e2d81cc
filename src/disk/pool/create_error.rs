//! What can be wrong with disks that are to become a pool, or to join one.

use std::io;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use crate::base::ids::NameError;
use crate::base::limits::{DISKS_MAX, EXTENT_SIZE_MAX, EXTENT_SIZE_MIN, STORE_MEMBERS_MAX};
use crate::disk::geometry::TooSmall;
use crate::disk::identity::Overlap;
use crate::disk::label::copies::{ReadError, WriteError};
use crate::disk::signature::Finding;

/// Why a pool cannot be made, or a disk not be added. Unless it says that writing failed, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// No disk was given.
    #[error("no disk was given: name at least one block device or file")]
    NoDisks,
    /// Too many disks.
    #[error("{count} disks are too many: a pool has at most {DISKS_MAX}")]
    TooManyDisks {
        /// How many were given.
        count: usize,
    },
    /// An extent size that is not supported.
    #[error("the extent size {size} is not a power of two from {EXTENT_SIZE_MIN} to {EXTENT_SIZE_MAX} bytes")]
    ExtentSize {
        /// What was given, in bytes.
        size: u64,
    },
    /// A name is not valid.
    #[error("{}: {source}", path.display())]
    Name {
        /// The disk.
        path: PathBuf,
        /// The rule that is broken.
        source: NameError,
    },
    /// A failure domain is not valid.
    #[error("{}: as failure domain, {source}", path.display())]
    FailureDomain {
        /// The disk.
        path: PathBuf,
        /// The rule that is broken.
        source: NameError,
    },
    /// Two disks have one name.
    #[error("{} and {} would both be named '{name}': give one of them another name", first.display(), second.display())]
    SameName {
        /// One disk.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// The name.
        name: String,
    },
    /// Two paths lead to the same bytes.
    #[error("{}: give each disk once, and no disk together with a part of it", overlap_text(first, second, *overlap))]
    SameDisk {
        /// One path.
        first: PathBuf,
        /// The other.
        second: PathBuf,
        /// How they belong together.
        overlap: Overlap,
    },
    /// Different logical block sizes.
    #[error(
        "{} has logical blocks of {first_size} bytes and {} of {second_size}: all disks of a pool need the same (`nvme format` \
         or `hdparm` change it on some)",
        first.display(), second.display()
    )]
    MixedBlockSizes {
        /// One disk.
        first: PathBuf,
        /// Its block size in bytes.
        first_size: u32,
        /// The other disk.
        second: PathBuf,
        /// Its block size in bytes.
        second_size: u32,
    },
    /// Somebody else's data is on the disk.
    #[error("{} holds {}: use --force to overwrite it, or choose another disk", path.display(), list(findings))]
    Foreign {
        /// The disk.
        path: PathBuf,
        /// What is on it.
        findings: Vec<Finding>,
    },
    /// The disk belongs to a pool.
    #[error("{} is disk '{name}' of pool {pool}: wipe it, or use --force, if that pool is given up", path.display())]
    InPool {
        /// The disk.
        path: PathBuf,
        /// Its name there.
        name: String,
        /// That pool.
        pool: Uuid,
    },
    /// The disk has a label that cannot be read.
    #[error("{}: {source}", path.display())]
    Label {
        /// The disk.
        path: PathBuf,
        /// What is wrong with it.
        source: ReadError,
    },
    /// The disk is too small.
    #[error("{} is too small: {source}", path.display())]
    TooSmall {
        /// The disk.
        path: PathBuf,
        /// The numbers.
        source: TooSmall,
    },
    /// No disk may carry the placement table.
    #[error("no disk may carry the placement table: all are data-only; leave at least one, better three, for it")]
    NoStoreMember,
    /// More disks than can carry the placement table.
    #[error("{count} disks were chosen for the placement table only: at most {STORE_MEMBERS_MAX} carry it")]
    TooManyMembers {
        /// How many.
        count: usize,
    },
    /// A disk that would be for nothing.
    #[error("{} is metadata-only, but not among the disks chosen for the placement table: add it there or give it data", path.display())]
    Useless {
        /// The disk.
        path: PathBuf,
    },
    /// No disk has room for data.
    #[error("no disk is left for data: all are metadata-only")]
    NoData,
    /// The disk cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The disk.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The disk cannot be written.
    #[error("cannot write {}: {source}; the labels written so far have been wiped again", path.display())]
    Write {
        /// The disk.
        path: PathBuf,
        /// What it said.
        source: io::Error,
    },
    /// The label cannot be written.
    #[error("{}: {source}; the labels written so far have been wiped again", path.display())]
    WriteLabel {
        /// The disk.
        path: PathBuf,
        /// What it said.
        source: WriteError,
    },
}

fn list(findings: &[Finding]) -> String {
    findings.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ")
}

fn overlap_text(first: &Path, second: &Path, overlap: Overlap) -> String {
    let (first, second) = (first.display(), second.display());
    match overlap {
        Overlap::Same => format!("{first} and {second} are the same disk"),
        Overlap::FirstOnSecond => format!("{first} lies on {second}"),
        Overlap::SecondOnFirst => format!("{second} lies on {first}"),
    }
}
