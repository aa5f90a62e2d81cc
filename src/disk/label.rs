//! The label: what a host disk says about itself and its pool.
//!
//! 4096 bytes, little endian, in two copies: copy A at byte 4096, copy B in the last whole 4 KiB of the disk. The copy with
//! the higher sequence number wins and mends the other (see [`copies`]).
//!
//! | offset | bytes | field |
//! |---:|---:|---|
//! | 0 | 8 | magic `spanblk` and a zero |
//! | 8 | 4 | CRC-32C of all 4096 bytes with this field zero |
//! | 12 | 4 | format version: 1 |
//! | 16 | 4 | compat flags: unknown ones are kept and do not matter |
//! | 20 | 4 | ro-compat flags: with an unknown one the disk may be read, not written |
//! | 24 | 4 | incompat flags: with an unknown one the disk is not opened |
//! | 28 | 1 | copy number: 0 for A, 1 for B |
//! | 29 | 1 | accept role: 0 any, 1 isolated, 2 spanned, 3 none |
//! | 30 | 1 | flags: bit 0, the user named the failure domain |
//! | 31 | 1 | disk id |
//! | 32 | 8 | sequence number of this disk's label, raised by each update |
//! | 40 | 16 | pool UUID |
//! | 56 | 16 | disk UUID |
//! | 72 | 8 | extent size in bytes |
//! | 80 | 8 | disk size in bytes |
//! | 88 | 8 | metadata region: offset in bytes, 0 if none |
//! | 96 | 8 | metadata region: length in bytes, 0 if none |
//! | 104 | 8 | offset of slot 0 in bytes |
//! | 112 | 4 | number of slots |
//! | 116 | 4 | logical block size in bytes: 512 or 4096 |
//! | 120 | 8 | created, seconds since the Unix epoch |
//! | 128 | 1 | length of the name |
//! | 129 | 1 | length of the failure domain |
//! | 130 | 6 | zero |
//! | 136 | 64 | name, zero-padded |
//! | 200 | 128 | failure domain, zero-padded |
//! | 328 | 8 | membership: epoch |
//! | 336 | 1 | membership: number of store members, 0 to 3 |
//! | 337 | 1 | membership: number of previous store members, 0 if settled (see [`super::membership`]) |
//! | 338 | 1 | membership: disks in the pool, 1 to 64 |
//! | 339 | 1 | zero |
//! | 340 | 2 | bytes of the roster |
//! | 342 | 2 | zero |
//! | 344 | 3 x 20 | store members: disk id, 3 zeros, disk UUID |
//! | 404 | 3 x 20 | previous store members, the same |
//! | 464 | 8 | membership: epoch of the previous store members, 0 if settled |
//! | 472 | 8 | membership: branch, 0 for the first one (see [`super::membership`]) |
//! | 480 | 8 | membership: the branch that this one left |
//! | 488 | 8 | membership: the last epoch of that branch which is part of this one's history, 0 on the first branch |
//! | 496 | 16 | zero |
//! | 512 | 3584 | roster: per disk UUID (16), disk id (1), bit 0 "name is cut" (1), length (1), name; then zeros |
//!
//! Incompat flag 1: the branch is not the first one. A program that knows no branches would take disks of different histories
//! for disks that are out of date.
//!
//! Magic, checksum and version keep their places in every later format. The roster lets a missing disk be named. 64 disks
//! with names of 64 bytes do not fit: then the longest names are cut, to at least 37 bytes; the whole name is in that
//! disk's own label.

mod codec;
pub mod copies;
#[cfg(test)]
mod tests;

use std::fmt;

use uuid::Uuid;

use super::geometry::DiskLayout;
use super::membership::Membership;
use crate::base::ids::DiskId;
pub use codec::{decode, encode};

/// The format version this program writes.
pub const VERSION: u32 = 1;

/// The oldest format version this program reads.
pub const VERSION_OLDEST: u32 = 1;

/// Longest failure domain in a label, in bytes.
pub const FAILURE_DOMAIN_LEN_MAX: usize = 128;

/// Bytes of an encoded label.
pub const LEN: usize = 4096;

/// Which copy of the label.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyId {
    /// At byte 4096.
    A,
    /// In the last whole 4 KiB.
    B,
}

impl CopyId {
    /// The other one.
    #[must_use]
    pub fn other(self) -> CopyId {
        match self {
            CopyId::A => CopyId::B,
            CopyId::B => CopyId::A,
        }
    }
}

impl fmt::Display for CopyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CopyId::A => "A (at the start)",
            CopyId::B => "B (at the end)",
        })
    }
}

/// Which VHDs may be given room on a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Accept {
    /// All.
    #[default]
    Any,
    /// Isolated ones only.
    Isolated,
    /// Spanned ones only.
    Spanned,
    /// None: what is there stays.
    None,
}

impl fmt::Display for Accept {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Accept::Any => "any",
            Accept::Isolated => "isolated",
            Accept::Spanned => "spanned",
            Accept::None => "none",
        })
    }
}

/// What a label says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Flags of features that a program need not know.
    pub compat: u32,
    /// Flags of features that a program must know to write.
    pub ro_compat: u32,
    /// Raised by each update of this disk's label.
    pub sequence: u64,
    /// The pool.
    pub pool: Uuid,
    /// The disk.
    pub uuid: Uuid,
    /// Its place in the pool.
    pub id: DiskId,
    /// Its name.
    pub name: String,
    /// Extent size of the pool, in bytes.
    pub extent_size: u64,
    /// Logical block size when it was added, in bytes: 512 or 4096.
    pub block_size: u32,
    /// Size when it was added, in bytes.
    pub disk_size: u64,
    /// Metadata region and slots.
    pub layout: DiskLayout,
    /// Which VHDs it takes.
    pub accept: Accept,
    /// What fails together with it, as text of [`super::identity::FailureDomain`].
    pub failure_domain: String,
    /// Whether the user gave the failure domain; else it is found out anew at each opening.
    pub failure_domain_named: bool,
    /// When it was added, in seconds since the Unix epoch.
    pub created: u64,
    /// Who carries the placement store, and which disks the pool has.
    pub membership: Membership,
}

/// Why 4096 bytes are not a label that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LabelError {
    /// There is no label.
    #[error("it carries no label of spanblk")]
    Absent,
    /// The checksum is wrong.
    #[error("the label is corrupt (checksum)")]
    Corrupt,
    /// The format is newer than this program.
    #[error(
        "the label has format version {found}, this program knows {VERSION_OLDEST} to {VERSION}: use a newer spanblk"
    )]
    NewerVersion {
        /// Its version.
        found: u32,
    },
    /// The format is older than this program reads.
    #[error(
        "the label has format version {found}, this program knows {VERSION_OLDEST} to {VERSION}: run `spanblk pool upgrade` \
         of a version that knows both"
    )]
    OlderVersion {
        /// Its version.
        found: u32,
    },
    /// It uses features that this program does not know.
    #[error("the label uses features that this program does not know (incompat flags {flags:#x}): use a newer spanblk")]
    UnknownFeatures {
        /// The unknown flags.
        flags: u32,
    },
    /// The checksum is right and the content makes no sense: a bug of whoever wrote it.
    #[error("the label is not valid: {field}")]
    Invalid {
        /// What is wrong.
        field: &'static str,
    },
}

impl Label {
    /// Ro-compat flags that this program does not know; if any, the disk must not be written.
    #[must_use]
    pub fn unknown_ro_compat(&self) -> u32 {
        self.ro_compat & !RO_COMPAT_KNOWN
    }
}

/// No such feature flag has been needed yet.
const RO_COMPAT_KNOWN: u32 = 0;
/// The label is of another branch than the first one.
const INCOMPAT_BRANCH: u32 = 1;
const INCOMPAT_KNOWN: u32 = INCOMPAT_BRANCH;
