//! Newtypes for units and indices, and the checked conversions between them.

use super::limits;

/// Bytes of a virtio sector.
pub const SECTOR_SIZE: u64 = 512;

/// Blocks (units of the present bitmap) in an extent.
pub const BLOCKS_PER_EXTENT: u32 = 32;

/// Index of an extent within a VHD.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtentIndex(pub u32);

/// Index of a slot (room for one extent) on a host disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotIndex(pub u32);

/// Generation of an extent: raised whenever its content is dropped as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Generation(pub u32);

impl Generation {
    /// Whether an extent can have it: generations are even, and stop being raised at [`limits::GENERATION_MAX`].
    #[must_use]
    pub fn is_legal(self) -> bool {
        self.0.is_multiple_of(2) && self.0 <= limits::GENERATION_MAX + 2
    }
}

/// A set of the 32 blocks of one extent, bit `i` for block `i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct BlockMask(pub u32);

impl BlockMask {
    /// No block.
    pub const NONE: BlockMask = BlockMask(0);
    /// All blocks.
    pub const ALL: BlockMask = BlockMask(u32::MAX);

    /// The blocks `first..=last`.
    #[must_use]
    pub fn span(first: u32, last: u32) -> BlockMask {
        assert!(first <= last && last < BLOCKS_PER_EXTENT);
        BlockMask((u32::MAX >> (31 - (last - first))) << first)
    }

    /// Blocks in `self` and not in `other`.
    #[must_use]
    pub fn without(self, other: BlockMask) -> BlockMask {
        BlockMask(self.0 & !other.0)
    }

    /// Blocks in both.
    #[must_use]
    pub fn and(self, other: BlockMask) -> BlockMask {
        BlockMask(self.0 & other.0)
    }

    /// Blocks in either.
    #[must_use]
    pub fn or(self, other: BlockMask) -> BlockMask {
        BlockMask(self.0 | other.0)
    }

    /// Whether block `block` is in the set.
    #[must_use]
    pub fn has(self, block: u32) -> bool {
        assert!(block < BLOCKS_PER_EXTENT);
        self.0 >> block & 1 == 1
    }

    /// Whether no block is in the set.
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Number of blocks in the set.
    #[must_use]
    pub fn len(self) -> u32 {
        self.0.count_ones()
    }
}

/// Extent and block sizes of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    extent_shift: u32,
}

impl Geometry {
    /// The geometry for `extent_size` bytes; `None` unless a power of two within the limits.
    #[must_use]
    pub fn new(extent_size: u64) -> Option<Geometry> {
        let legal =
            extent_size.is_power_of_two() && (limits::EXTENT_SIZE_MIN..=limits::EXTENT_SIZE_MAX).contains(&extent_size);
        legal.then(|| Geometry { extent_shift: extent_size.trailing_zeros() })
    }

    /// Bytes of an extent.
    #[must_use]
    pub fn extent_size(self) -> u64 {
        1 << self.extent_shift
    }

    /// Bytes of a block.
    #[must_use]
    pub fn block_size(self) -> u64 {
        self.extent_size() / u64::from(BLOCKS_PER_EXTENT)
    }

    /// Extents needed for `len` bytes; `None` above the limit.
    #[must_use]
    pub fn extents_for(self, len: u64) -> Option<u32> {
        u32::try_from(len.div_ceil(self.extent_size())).ok()
    }

    /// The extent that holds byte `offset` of a VHD, and the offset within it.
    ///
    /// # Panics
    /// If `offset` is beyond any legal VHD (a bug: offsets are checked against the capacity).
    #[must_use]
    pub fn locate(self, offset: u64) -> (ExtentIndex, u64) {
        let index = u32::try_from(offset >> self.extent_shift).expect("offset within a legal VHD");
        (ExtentIndex(index), offset & (self.extent_size() - 1))
    }

    /// The blocks touched by `len > 0` bytes at `offset` within an extent.
    #[must_use]
    pub fn blocks(self, offset: u64, len: u64) -> BlockMask {
        assert!(len > 0 && offset + len <= self.extent_size());
        let first = offset / self.block_size();
        let last = (offset + len - 1) / self.block_size();
        BlockMask::span(narrow(first), narrow(last))
    }

    /// The blocks covered whole by `len` bytes at `offset` within an extent.
    #[must_use]
    pub fn blocks_covered(self, offset: u64, len: u64) -> BlockMask {
        assert!(offset + len <= self.extent_size());
        let first = offset.div_ceil(self.block_size());
        let end = (offset + len) / self.block_size();
        if first >= end { BlockMask::NONE } else { BlockMask::span(narrow(first), narrow(end - 1)) }
    }
}

fn narrow(block: u64) -> u32 {
    u32::try_from(block).expect("at most 32 blocks in an extent")
}
