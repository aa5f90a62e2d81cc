//! Checksums of the blocks of a VHD that wants them: one word for each block, 0 where none is known.
//!
//! Whoever writes a block holds a claim on it, and stores its checksum before the claim is released. So whoever reads a block under a
//! claim finds the checksum of what is on the disks. A reader without a claim may meet a writer: if what it has read does not match, it
//! reads once more, under a claim.
//!
//! They are not kept when the process is killed: the table has those of pages without a write intent, and what was written to
//! under an intent is read once more when the pool is opened, as replicas in doubt are.

use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU32, Ordering};

use super::VhdMap;
use crate::base::units::{BLOCKS_PER_EXTENT, BlockMask, ExtentIndex};

/// Words of an extent.
pub(super) const WORDS: usize = BLOCKS_PER_EXTENT as usize;

/// The checksum of a block: CRC-32C, in which 0 stands for none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum(NonZeroU32);

impl Checksum {
    /// That of the bytes of a block.
    #[must_use]
    pub fn of(block: &[u8]) -> Checksum {
        // Two values share one word: one in 4 billion wrong blocks more goes unnoticed.
        Checksum(NonZeroU32::new(crc32c::crc32c(block)).unwrap_or(NonZeroU32::MAX))
    }

    fn from_word(word: u32) -> Option<Checksum> {
        NonZeroU32::new(word).map(Checksum)
    }

    /// The word for a table.
    #[must_use]
    pub fn word(self) -> u32 {
        self.0.get()
    }
}

impl VhdMap {
    /// Whether blocks have checksums.
    #[must_use]
    pub fn has_checksums(&self) -> bool {
        self.segments.are_checked()
    }

    /// The checksum of a block, if there is one.
    #[must_use]
    pub fn checksum(&self, extent: ExtentIndex, block: u32) -> Option<Checksum> {
        Checksum::from_word(self.checksum_word(extent, block)?.load(Ordering::Acquire))
    }

    /// Under a claim on the block: what is on the disks has this checksum from now on, or one that nobody knows.
    pub fn set_checksum(&self, extent: ExtentIndex, block: u32, checksum: Option<Checksum>) {
        if let Some(word) = self.checksum_word(extent, block) {
            word.store(checksum.map_or(0, Checksum::word), Ordering::Release);
        }
    }

    /// When the pool is opened: what the table has of an extent. A word of 0 says nothing.
    pub fn restore_checksums(&self, extent: ExtentIndex, words: &[u32; WORDS]) {
        let known = (0..).zip(words).filter(|(_, word)| **word != 0);
        known.for_each(|(block, word)| self.set_checksum(extent, block, Checksum::from_word(*word)));
    }

    /// Under a claim on the blocks, or where nobody else looks: nobody knows their checksums.
    pub fn forget_checksums(&self, extent: ExtentIndex, blocks: BlockMask) {
        (0..BLOCKS_PER_EXTENT)
            .filter(|block| blocks.has(*block))
            .for_each(|block| self.set_checksum(extent, block, None));
    }

    fn checksum_word(&self, extent: ExtentIndex, block: u32) -> Option<&AtomicU32> {
        let (segment, at) = self.segments.of(extent);
        segment.checksums.as_ref()?.get(at * WORDS + block as usize)
    }
}
