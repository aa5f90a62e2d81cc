//! The header slots of a metadata region; specified in the introduction of the module above.

use uuid::Uuid;

use super::{RegionError, SLOT_LEN, VERSION};

const MAGIC: [u8; 8] = *b"SPBSTORE";
pub(super) const CRC_AT: usize = 12;

/// What a header slot says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) sequence: u64,
    pub(super) len: u64,
    pub(super) region_len: u64,
    pub(super) pool: Uuid,
}

impl Header {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut slot = vec![0; SLOT_LEN];
        slot[..8].copy_from_slice(&MAGIC);
        slot[8..12].copy_from_slice(&VERSION.to_le_bytes());
        slot[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        slot[24..32].copy_from_slice(&self.len.to_le_bytes());
        slot[32..40].copy_from_slice(&self.region_len.to_le_bytes());
        slot[40..56].copy_from_slice(self.pool.as_bytes());
        let crc = crc32c::crc32c(&slot);
        slot[CRC_AT..CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        slot
    }

    pub(super) fn decode(slot: &[u8]) -> Result<Header, RegionError> {
        if slot[..8] != MAGIC {
            return Err(RegionError::NotFormatted);
        }
        let mut blank = slot.to_vec();
        blank[CRC_AT..CRC_AT + 4].fill(0);
        if crc32c::crc32c(&blank).to_le_bytes() != slot[CRC_AT..CRC_AT + 4] {
            return Err(RegionError::Damaged);
        }
        let word = |at: usize| u64::from_le_bytes(slot[at..at + 8].try_into().expect("8 bytes"));
        let found = u32::from_le_bytes(slot[8..12].try_into().expect("4 bytes"));
        if found != VERSION {
            return Err(RegionError::Version { found });
        }
        // Nothing could follow it. No region ever gets there.
        if word(16) == u64::MAX {
            return Err(RegionError::Damaged);
        }
        let pool = Uuid::from_slice(&slot[40..56]).expect("16 bytes");
        Ok(Header { sequence: word(16), len: word(24), region_len: word(32), pool })
    }

    /// The header that counts, and whether the other slot is unreadable (a torn write: normal after a power cut).
    pub(super) fn newest(slots: [Result<Header, RegionError>; 2]) -> Result<Header, RegionError> {
        match slots {
            [Ok(a), Ok(b)] => Ok(if a.sequence > b.sequence { a } else { b }),
            [Ok(one), Err(_)] | [Err(_), Ok(one)] => Ok(one),
            [Err(RegionError::NotFormatted), Err(other)] | [Err(other), Err(_)] => Err(other),
        }
    }
}
