//! One row of table `checksums`: those of the blocks of 64 consecutive extents of one VHD.
//!
//! All numbers are little-endian. A row:
//!
//! | offset | bytes | what |
//! |---|---|---|
//! | 0 | 1 | version, 1 |
//! | 1 | 8 | mask of the extents that follow |
//! | 9 | 128 each | a word for each of the 32 blocks of an extent: CRC-32C of what is on the disks, 0 if nobody knows |
//! | last 4 | 4 | CRC-32C of everything before |
//!
//! A row is right as long as the page has no write intent: the commit that takes the intent back writes it.

use super::page::PAGE_EXTENTS;
use crate::base::units::BLOCKS_PER_EXTENT;

const ROW_VERSION: u8 = 1;
const HEAD_LEN: usize = 9;
const CRC_LEN: usize = 4;
const WORDS: usize = BLOCKS_PER_EXTENT as usize;
const EXTENT_LEN: usize = WORDS * 4;

const _: () = assert!(PAGE_EXTENTS == 64, "one bit for each");

/// Checksums of the blocks of a page. A word of 0 is one that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PageChecksums(Box<[[u32; WORDS]; PAGE_EXTENTS]>);

impl Default for PageChecksums {
    fn default() -> PageChecksums {
        PageChecksums(Box::new([[0; WORDS]; PAGE_EXTENTS]))
    }
}

/// Why bytes are not a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChecksumsError {
    /// The checksum of the row does not match, or it is not as long as it says.
    #[error("the row of checksums is damaged: the disk changed it")]
    Damaged,
    /// Written by another version.
    #[error("the row of checksums has format version {0}, this program knows version {ROW_VERSION}")]
    Version(u8),
}

impl PageChecksums {
    /// The words of the extent at a place.
    #[must_use]
    pub fn extent(&self, place: usize) -> &[u32; WORDS] {
        &self.0[place]
    }

    /// The words of the extent at a place, to be changed.
    pub fn extent_mut(&mut self, place: usize) -> &mut [u32; WORDS] {
        &mut self.0[place]
    }

    /// Whether no checksum is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.iter().all(is_unknown)
    }

    /// The bytes of the row.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let known = (0..PAGE_EXTENTS).filter(|place| !is_unknown(&self.0[*place]));
        let mask = known.clone().fold(0_u64, |mask, place| mask | 1 << place);
        let mut bytes = Vec::with_capacity(HEAD_LEN + known.clone().count() * EXTENT_LEN + CRC_LEN);
        bytes.push(ROW_VERSION);
        bytes.extend_from_slice(&mask.to_le_bytes());
        known.for_each(|place| bytes.extend(self.0[place].iter().flat_map(|word| word.to_le_bytes())));
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a row.
    ///
    /// # Errors
    /// If the bytes are not what [`PageChecksums::encode`] writes.
    pub fn decode(row: &[u8]) -> Result<PageChecksums, ChecksumsError> {
        let (body, crc) = row.split_last_chunk::<CRC_LEN>().ok_or(ChecksumsError::Damaged)?;
        if crc32c::crc32c(body).to_le_bytes() != *crc {
            return Err(ChecksumsError::Damaged);
        }
        let (head, words) = body.split_first_chunk::<HEAD_LEN>().ok_or(ChecksumsError::Damaged)?;
        if head[0] != ROW_VERSION {
            return Err(ChecksumsError::Version(head[0]));
        }
        let mask = u64::from_le_bytes(head[1..].try_into().expect("8 bytes"));
        let (extents, []) = words.as_chunks::<EXTENT_LEN>() else { return Err(ChecksumsError::Damaged) };
        let places = (0..PAGE_EXTENTS).filter(|place| mask >> place & 1 == 1);
        if extents.len() != places.clone().count() {
            return Err(ChecksumsError::Damaged);
        }
        let mut checksums = PageChecksums::default();
        for (place, bytes) in places.zip(extents) {
            let words = bytes.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
            checksums.0[place].iter_mut().zip(words).for_each(|(word, read)| *word = read);
        }
        Ok(checksums)
    }
}

fn is_unknown(words: &[u32; WORDS]) -> bool {
    words.iter().all(|word| *word == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    fn some(rng: &mut Rng, extents: usize) -> PageChecksums {
        let mut checksums = PageChecksums::default();
        for _ in 0..extents {
            let place = rng.index(PAGE_EXTENTS);
            checksums.extent_mut(place)[rng.index(WORDS)] = 7;
        }
        checksums
    }

    #[test]
    fn rows_are_read_as_they_were_written() {
        let mut rng = Rng::new(4);
        for extents in [0, 1, 5, 200] {
            let checksums = some(&mut rng, extents);
            assert_eq!(PageChecksums::decode(&checksums.encode()), Ok(checksums.clone()));
            assert_eq!(checksums.is_empty(), extents == 0);
        }
    }

    #[test]
    fn a_row_that_changed_is_damaged() {
        let mut rng = Rng::new(5);
        let row = some(&mut rng, 9).encode();
        for at in 0..row.len() {
            let mut changed = row.clone();
            changed[at] ^= 1 << rng.index(8);
            assert_eq!(PageChecksums::decode(&changed), Err(ChecksumsError::Damaged));
            assert_eq!(PageChecksums::decode(&row[..at]), Err(ChecksumsError::Damaged));
        }
    }

    #[test]
    fn rows_that_nobody_writes_are_refused() {
        let seal = |mut bytes: Vec<u8>| {
            let crc = crc32c::crc32c(&bytes);
            bytes.extend_from_slice(&crc.to_le_bytes());
            PageChecksums::decode(&bytes)
        };
        assert_eq!(seal([&[2][..], &[0; 8]].concat()), Err(ChecksumsError::Version(2)));
        assert_eq!(
            seal([&[1, 3][..], &[0; 7], &[1; 128]].concat()),
            Err(ChecksumsError::Damaged),
            "two, and one follows"
        );
        assert_eq!(seal([&[1, 1][..], &[0; 7], &[1; 127]].concat()), Err(ChecksumsError::Damaged));
        assert_eq!(seal(vec![1]), Err(ChecksumsError::Damaged));
    }
}
