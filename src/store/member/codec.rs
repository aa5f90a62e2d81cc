//! Encoding of the rows of `meta`, `vhds`, `jobs` and `vms`.

use super::MemberError;
use crate::store::page::Stamp;

/// Which commit a member has. 32 bytes, little-endian: version (4), epoch (8), commit (8), lineage (8), CRC-32C (4).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemberState {
    /// The last commit; commit 0 is the raising of the epoch.
    pub stamp: Stamp,
    /// A random number drawn at each opening of the store: members of one epoch with different lineages were opened apart.
    pub lineage: u64,
}

impl MemberState {
    /// Version of the tables.
    pub const VERSION: u32 = 1;

    const LEN: usize = 32;

    pub(super) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(MemberState::LEN);
        bytes.extend_from_slice(&MemberState::VERSION.to_le_bytes());
        for word in [self.stamp.epoch, self.stamp.commit, self.lineage] {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        seal(bytes)
    }

    pub(super) fn decode(sealed: &[u8]) -> Result<MemberState, MemberError> {
        let bytes = unseal(sealed).ok_or(MemberError::Damaged("state"))?;
        let Some((version, words)) = bytes.split_first_chunk() else { return Err(MemberError::Damaged("state")) };
        let found = u32::from_le_bytes(*version);
        if found != MemberState::VERSION {
            return Err(MemberError::Version { found });
        }
        if sealed.len() != MemberState::LEN {
            return Err(MemberError::Damaged("state"));
        }
        let word = |at: usize| u64::from_le_bytes(words[at..at + 8].try_into().expect("8 bytes"));
        Ok(MemberState { stamp: Stamp { epoch: word(0), commit: word(8) }, lineage: word(16) })
    }
}

/// Appends the checksum.
pub(super) fn seal(mut bytes: Vec<u8>) -> Vec<u8> {
    let crc = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&crc.to_le_bytes());
    bytes
}

/// What was sealed; `None` if it changed since.
pub(super) fn unseal(sealed: &[u8]) -> Option<&[u8]> {
    let (bytes, crc) = sealed.split_last_chunk::<4>()?;
    (crc32c::crc32c(bytes) == u32::from_le_bytes(*crc)).then_some(bytes)
}
