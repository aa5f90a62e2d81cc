//! Identifiers that are cheap to copy and cannot be mixed up.

use super::bits::ones;
use super::limits::{DISKS_MAX, NAME_LEN_MAX};

/// A host disk within its pool: its place in the pool's disk table, as long as it belongs to the pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct DiskId(pub u8);

impl DiskId {
    /// The index for arrays of [`DISKS_MAX`] entries.
    #[must_use]
    pub fn index(self) -> usize {
        let index = usize::from(self.0);
        assert!(index < DISKS_MAX);
        index
    }
}

/// A set of host disks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DiskSet(pub u64);

impl DiskSet {
    /// Adds a disk.
    pub fn insert(&mut self, disk: DiskId) {
        self.0 |= 1 << disk.index();
    }

    /// Removes a disk.
    pub fn remove(&mut self, disk: DiskId) {
        self.0 &= !(1 << disk.index());
    }

    /// Whether the disk is in the set.
    #[must_use]
    pub fn contains(self, disk: DiskId) -> bool {
        self.0 >> disk.index() & 1 == 1
    }

    /// Whether the set is empty.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of disks.
    #[must_use]
    pub fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// The disks, in ascending order.
    pub fn iter(self) -> impl Iterator<Item = DiskId> {
        ones(self.0).map(|i| DiskId(u8::try_from(i).expect("fewer than 256 disks")))
    }
}

impl FromIterator<DiskId> for DiskSet {
    fn from_iter<I: IntoIterator<Item = DiskId>>(iter: I) -> DiskSet {
        let mut set = DiskSet::default();
        iter.into_iter().for_each(|disk| set.insert(disk));
        set
    }
}

/// A VHD within its pool; never reused while the pool lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct VhdId(pub u32);

/// A job within its pool; never reused while the pool lives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct JobId(pub u32);

/// A VM within its pool; never reused while the pool lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct VmId(pub u32);

/// A reactor thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReactorId(pub u16);

/// Why a name is not valid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no character.
    #[error("the name is empty: give 1 to {NAME_LEN_MAX} letters, digits, '-', '_' or '.'")]
    Empty,
    /// The name is too long.
    #[error("the name '{name}' is {len} bytes long: at most {NAME_LEN_MAX} are allowed")]
    TooLong {
        /// The name.
        name: String,
        /// Its length in bytes.
        len: usize,
    },
    /// A character is not allowed at its place.
    #[error("the name '{name}' has {found:?}: use letters, digits, '-', '_' or '.', and start with a letter or digit")]
    BadCharacter {
        /// The name.
        name: String,
        /// The offending character.
        found: char,
    },
}

/// Checks the name of a disk, VHD or VM: 1 to 64 of `[A-Za-z0-9._-]`, starting with a letter or digit.
///
/// # Errors
/// The first rule that the name breaks.
pub fn check_name(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > NAME_LEN_MAX {
        return Err(NameError::TooLong { name: name.to_owned(), len: name.len() });
    }
    let legal = |(i, c): (usize, char)| c.is_ascii_alphanumeric() || (i > 0 && matches!(c, '-' | '_' | '.'));
    match name.char_indices().find(|&pair| !legal(pair)) {
        Some((_, found)) => Err(NameError::BadCharacter { name: name.to_owned(), found }),
        None => Ok(()),
    }
}
