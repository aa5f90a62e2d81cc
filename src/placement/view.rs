//! The lock-free view of one VHD's placement, read by reactors on every request.
//!
//! Per extent: up to four replica words and a version (written by the owner only), and one word of present and claim bits
//! (changed by reactors and the mover with compare-and-swap). The arrays are zeroed memory, so that untouched parts of
//! a large thin VHD cost none; where they outlive the process (`keep`), parts that have none are not looked at.
//!
//! Reading order matters: replicas first, bits second, then both are confirmed by reading the version again. The other
//! way round, old present bits could be combined with a new slot that holds a stranger's bytes.

mod checksums;
mod heat;
mod keep;
mod pages;
mod scan;
mod segments;

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

pub use checksums::Checksum;
use keep::Keeping;
pub use keep::{Keep, Kept, KeptSegment, kept_len};
pub use scan::PlacedExtent;
pub use segments::TooManySegments;
use segments::{Segment, Segments};

use super::{Replica, ReplicaSet, ReplicaState};
use crate::base::ids::DiskId;
use crate::base::limits::GENERATION_MAX;
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};

const STATE_IN_SYNC: u64 = 1;
const STATE_SYNCING: u64 = 2;
const STATE_STALE: u64 = 3;
const STATE_SEALING: u64 = 4;

/// What one lookup saw, all of it at one instant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lookup {
    /// Where the extent is.
    pub replicas: ReplicaSet,
    /// Blocks that have been written; the others read as zeros.
    pub present: BlockMask,
    /// Blocks claimed by a first write or a discard in progress.
    pub claimed: BlockMask,
    /// Raised whenever the extent is placed or dropped, but not when it is moved: it names the content.
    pub generation: Generation,
    /// Changes whenever the generation or the replicas do.
    pub version: Version,
}

impl Lookup {
    const NEVER_PLACED: Lookup = Lookup {
        replicas: ReplicaSet::ABSENT,
        present: BlockMask::NONE,
        claimed: BlockMask::NONE,
        generation: Generation(0),
        version: Version(0),
    };
}

/// A moment in the life of one extent's placement: equal versions, equal replicas.
///
/// The word has the generation in bits 4.. (halved: generations are even), in bits 1..4 a counter of moves within the
/// generation, and bit 0 is set while the owner changes the replica words. Three bits are enough for the counter: a
/// reactor that held on to a version over two changes would have to have passed the fence between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(u32);

const CHANGING: u32 = 1;
const MOVE: u32 = 1 << 1;
const MOVES: u32 = 7 << 1;
const GENERATION_SHIFT: u32 = 4;

const _: () = assert!(GENERATION_MAX / 2 + 2 < 1 << (u32::BITS - GENERATION_SHIFT));

impl Version {
    /// That of an extent that has not been moved since its generation began.
    ///
    /// # Panics
    /// If the generation is not legal.
    #[must_use]
    pub fn of(generation: Generation) -> Version {
        assert!(generation.is_legal());
        Version((generation.0 / 2) << GENERATION_SHIFT)
    }

    fn generation(self) -> Generation {
        Generation((self.0 >> GENERATION_SHIFT) * 2)
    }

    fn is_changing(self) -> bool {
        self.0 & CHANGING != 0
    }

    fn next_generation(self) -> Version {
        Version(((self.0 >> GENERATION_SHIFT) + 1) << GENERATION_SHIFT)
    }

    fn next_move(self) -> Version {
        Version(self.0 & !MOVES | self.0.wrapping_add(MOVE) & MOVES)
    }
}

/// Why blocks could not be claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClaimError {
    /// Another request holds one of them: wait for its release.
    Busy,
    /// The extent changed since the lookup: look up again. The claim may have been held for a moment, so that others may
    /// have begun to wait for its release: wake them.
    Changed,
}

/// The placement of one VHD.
pub struct VhdMap {
    /// Extents of the VHD; there may be room for more.
    extents: AtomicU32,
    segments: Segments,
    /// How they outlive the process, if they do.
    keeping: Option<Keeping>,
}

impl VhdMap {
    /// A map of `extents` absent extents.
    #[must_use]
    pub fn new(extents: u32) -> VhdMap {
        VhdMap { extents: AtomicU32::new(extents), segments: Segments::new(extents, false, None), keeping: None }
    }

    /// As [`VhdMap::new`], of a VHD whose blocks have checksums.
    #[must_use]
    pub fn checked(extents: u32) -> VhdMap {
        VhdMap { extents: AtomicU32::new(extents), segments: Segments::new(extents, true, None), keeping: None }
    }

    /// Number of extents.
    #[must_use]
    pub fn extents(&self) -> u32 {
        self.extents.load(Ordering::Acquire)
    }

    /// Extents that there is room for.
    #[must_use]
    pub fn room(&self) -> u32 {
        self.segments.capacity()
    }

    /// Owner only: makes room for `extents`, so that [`VhdMap::grow`] cannot fail.
    ///
    /// # Errors
    /// The VHD has grown too often since it was opened.
    pub fn reserve(&self, extents: u32) -> Result<(), TooManySegments> {
        self.segments.reserve(extents, self.keeping.as_ref())
    }

    /// Owner only: adds absent extents. Whoever looks at them must have learned of them after this returned.
    ///
    /// # Panics
    /// If there are more extents already, or no room was made.
    pub fn grow(&self, extents: u32) {
        assert!(extents >= self.extents() && extents <= self.segments.capacity(), "room is made before a VHD grows");
        self.extents.store(extents, Ordering::Release);
    }

    /// Owner only, while nobody else looks at the VHD: takes away all extents from `extents` on, and of the last one that stays
    /// all blocks but `last`. They are absent if the VHD grows again.
    ///
    /// # Panics
    /// If somebody has claimed one of them.
    pub fn shrink(&self, extents: u32, last: BlockMask) {
        assert!(extents > 0 && extents <= self.extents());
        for extent in self.placed_from(ExtentIndex(extents)) {
            let (_, claimed) = unpack_bits(self.bits(extent).swap(0, Ordering::AcqRel));
            assert!(claimed.is_empty(), "a VHD shrinks while nobody uses it");
            self.change(extent, Version::next_generation, || self.store_replicas(extent, ReplicaSet::ABSENT));
        }
        if self.has_memory(ExtentIndex(extents - 1)) {
            let word = self.bits(ExtentIndex(extents - 1));
            let (present, claimed) = unpack_bits(word.load(Ordering::Acquire));
            assert!(claimed.is_empty(), "a VHD shrinks while nobody uses it");
            word.store(pack_bits(present.and(last), BlockMask::NONE), Ordering::Release);
        }
        self.forget_pages_beyond(extents);
        self.extents.store(extents, Ordering::Release);
    }

    /// Placement and bits of an extent.
    #[must_use]
    pub fn lookup(&self, extent: ExtentIndex) -> Lookup {
        let (segment, at) = self.segments.of(extent);
        if !segment.has_memory(at) {
            return Lookup::NEVER_PLACED;
        }
        let version_now = || Version(segment.versions[at].load(Ordering::Acquire));
        loop {
            let version = version_now();
            if !version.is_changing() {
                let replicas = replicas_at(segment, at);
                let (present, claimed) = unpack_bits(segment.bits[at].load(Ordering::Acquire));
                fence(Ordering::Acquire);
                if version_now() == version {
                    return Lookup { replicas, present, claimed, generation: version.generation(), version };
                }
            }
            // The owner is between two stores: rare (an extent is placed, moved or dropped) and a few instructions long.
            std::thread::yield_now();
        }
    }

    /// Claims `blocks`, none of which may be present or claimed, for a first write.
    ///
    /// # Errors
    /// [`ClaimError::Busy`] if one is claimed, [`ClaimError::Changed`] if one has become present or the version has changed.
    pub fn claim_absent(&self, extent: ExtentIndex, blocks: BlockMask, seen: Version) -> Result<(), ClaimError> {
        self.claim(extent, blocks, seen, |present| present.and(blocks).is_empty(), |present| present)
    }

    /// Claims `blocks`, present or not, and clears their present bits: they read as zeros from here on. Returns those
    /// that were present.
    ///
    /// # Errors
    /// As [`VhdMap::claim_absent`], which present blocks do not trouble here.
    pub fn claim_and_clear(
        &self,
        extent: ExtentIndex,
        blocks: BlockMask,
        seen: Version,
    ) -> Result<BlockMask, ClaimError> {
        let mut cleared = BlockMask::NONE;
        self.claim(
            extent,
            blocks,
            seen,
            |present| {
                cleared = present.and(blocks);
                true
            },
            |present| present.without(blocks),
        )?;
        Ok(cleared)
    }

    /// Claims all blocks and clears them, if no other than `blocks` are present.
    ///
    /// # Errors
    /// As [`VhdMap::claim_and_clear`]; also [`ClaimError::Changed`] if other blocks are present.
    pub fn claim_whole(&self, extent: ExtentIndex, blocks: BlockMask, seen: Version) -> Result<(), ClaimError> {
        self.claim(extent, BlockMask::ALL, seen, |present| present.without(blocks).is_empty(), |_| BlockMask::NONE)
    }

    /// Claims `blocks`, present or not, and leaves their present bits. Returns those that are present.
    ///
    /// # Errors
    /// As [`VhdMap::claim_and_clear`].
    pub fn claim_any(&self, extent: ExtentIndex, blocks: BlockMask, seen: Version) -> Result<BlockMask, ClaimError> {
        let mut found = BlockMask::NONE;
        self.claim(
            extent,
            blocks,
            seen,
            |present| {
                found = present.and(blocks);
                true
            },
            |present| present,
        )?;
        Ok(found)
    }

    fn claim(
        &self,
        extent: ExtentIndex,
        blocks: BlockMask,
        seen: Version,
        mut allowed: impl FnMut(BlockMask) -> bool,
        new_present: impl Fn(BlockMask) -> BlockMask,
    ) -> Result<(), ClaimError> {
        assert!(!blocks.is_empty());
        if !self.has_memory(extent) {
            return Err(ClaimError::Changed);
        }
        let word = self.bits(extent);
        let mut current = word.load(Ordering::Acquire);
        loop {
            let (present, claimed) = unpack_bits(current);
            if !claimed.and(blocks).is_empty() {
                return Err(ClaimError::Busy);
            }
            if self.version(extent) != seen || !allowed(present) {
                return Err(ClaimError::Changed);
            }
            let next = pack_bits(new_present(present), claimed.or(blocks));
            match word.compare_exchange_weak(current, next, Ordering::AcqRel, Ordering::Acquire) {
                // The owner drops an extent only while all its blocks are claimed, so a claim that was won under the
                // version that was seen holds; one that lost the race (the extent was dropped, placed and written
                // again to the very same bits since they were read) is given back, with the bits that it took away.
                Ok(_) if self.version(extent) == seen => return Ok(()),
                Ok(_) => {
                    self.release(extent, blocks, present.and(blocks));
                    return Err(ClaimError::Changed);
                }
                Err(now) => current = now,
            }
        }
    }

    /// Gives back the claim on `claimed` and marks `written` (a part of it) present.
    pub fn release(&self, extent: ExtentIndex, claimed: BlockMask, written: BlockMask) {
        assert!(written.without(claimed).is_empty(), "present bits are set by the request that claimed them");
        let word = self.bits(extent);
        let mut current = word.load(Ordering::Acquire);
        loop {
            let (present, held) = unpack_bits(current);
            assert!(claimed.without(held).is_empty(), "released a claim that was not held");
            let next = pack_bits(present.or(written), held.without(claimed));
            match word.compare_exchange_weak(current, next, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return,
                Err(now) => current = now,
            }
        }
    }

    /// Blocks that have been written, in the whole VHD: a sum over all extents, so not for the I/O path.
    #[must_use]
    pub fn present_blocks(&self) -> u64 {
        let touched =
            |segment: &Segment| segment.touched_from(0).map(|at| count_present(&segment.bits[at])).sum::<u64>();
        self.segments.iter().map(touched).sum()
    }

    /// The extents from `from` on that have a slot, in order. Exact for the owner, a snapshot for anybody else.
    pub fn placed_from(&self, from: ExtentIndex) -> impl Iterator<Item = ExtentIndex> + '_ {
        self.segments.placed_from(from)
    }

    /// Blocks that have been written in the extents from `from` on.
    #[must_use]
    pub fn present_blocks_from(&self, from: ExtentIndex) -> u64 {
        self.placed_from(from).map(|extent| count_present(self.bits(extent))).sum()
    }

    /// Owner only: places an extent. Present bits are as they were (none, for an absent extent).
    pub fn place(&self, extent: ExtentIndex, replicas: ReplicaSet) {
        self.touch(extent, replicas);
        self.change(extent, Version::next_generation, || self.store_replicas(extent, replicas));
    }

    /// Owner only: a move adds a copy to a placed extent, takes one away, or changes the state of one. Claims that are held
    /// stay valid; nobody can claim under an older lookup.
    pub fn set_replicas(&self, extent: ExtentIndex, replicas: ReplicaSet) {
        assert!(!replicas.settled().is_absent(), "an extent keeps a copy while it is moved");
        self.touch(extent, replicas);
        self.change(extent, Version::next_move, || self.store_replicas(extent, replicas));
    }

    /// Owner only: drops an extent. All its blocks must be claimed by the discard that asked for it, and cleared.
    pub fn drop_extent(&self, extent: ExtentIndex) {
        let (present, claimed) = unpack_bits(self.bits(extent).load(Ordering::Acquire));
        assert!(
            present.is_empty() && claimed == BlockMask::ALL,
            "an extent is dropped under a claim on all its blocks"
        );
        self.change(extent, Version::next_generation, || self.store_replicas(extent, ReplicaSet::ABSENT));
    }

    /// Owner only, before any reactor sees the map: sets an extent as the store has it.
    pub fn restore(&self, extent: ExtentIndex, replicas: ReplicaSet, present: BlockMask, generation: Generation) {
        let version = Version::of(generation);
        self.touch(extent, replicas);
        self.store_replicas(extent, replicas);
        self.bits(extent).store(pack_bits(present, BlockMask::NONE), Ordering::Release);
        self.version_word(extent).store(version.0, Ordering::Release);
    }

    /// The version says so while the replica words change: a reader that sees that, or that it moved, reads again.
    fn change(&self, extent: ExtentIndex, next: fn(Version) -> Version, store: impl FnOnce()) {
        let word = self.version_word(extent);
        let before = Version(word.fetch_or(CHANGING, Ordering::AcqRel));
        assert!(!before.is_changing(), "two owners change one extent");
        fence(Ordering::Release);
        store();
        word.store(next(before).0, Ordering::Release);
    }

    fn version(&self, extent: ExtentIndex) -> Version {
        Version(self.version_word(extent).load(Ordering::Acquire))
    }

    fn version_word(&self, extent: ExtentIndex) -> &AtomicU32 {
        let (segment, at) = self.segments.of(extent);
        &segment.versions[at]
    }

    fn bits(&self, extent: ExtentIndex) -> &AtomicU64 {
        let (segment, at) = self.segments.of(extent);
        &segment.bits[at]
    }

    /// Before anything of the extent is looked at or changed.
    fn touch(&self, extent: ExtentIndex, replicas: ReplicaSet) {
        let (segment, at) = self.segments.of(extent);
        segment.touch(at, replicas.len());
    }

    fn has_memory(&self, extent: ExtentIndex) -> bool {
        let (segment, at) = self.segments.of(extent);
        segment.has_memory(at)
    }

    fn store_replicas(&self, extent: ExtentIndex, replicas: ReplicaSet) {
        let (segment, at) = self.segments.of(extent);
        let copies = segment.copies(at);
        let mut wanted = replicas.iter();
        for (copy, words) in segment.replicas.iter().enumerate() {
            match wanted.next() {
                Some(replica) => segment.words(copy)[at].store(pack_replica(replica), Ordering::Release),
                None => {
                    if let Some(words) = words.get().filter(|_| copies & 1 << copy != 0) {
                        words[at].store(0, Ordering::Release);
                    }
                }
            }
        }
    }
}

fn replicas_at(segment: &Segment, at: usize) -> ReplicaSet {
    let mut set = ReplicaSet::ABSENT;
    let copies = segment.copies(at);
    for (copy, words) in segment.replicas.iter().enumerate() {
        let Some(words) = words.get().filter(|_| copies & 1 << copy != 0) else { break };
        if !push_replica(&mut set, words[at].load(Ordering::Acquire)) {
            break;
        }
    }
    set
}

/// Adds the replica of a word; false if there is none, and none behind it.
fn push_replica(set: &mut ReplicaSet, word: u64) -> bool {
    match unpack_replica(word) {
        Some(replica) if set.on(replica.disk).is_none() => set.push(replica),
        // Empty, or two words of different moments; the version tells the reader to look again.
        _ => return false,
    }
    true
}

fn count_present(bits: &AtomicU64) -> u64 {
    u64::from(unpack_bits(bits.load(Ordering::Relaxed)).0.len())
}

fn pack_bits(present: BlockMask, claimed: BlockMask) -> u64 {
    u64::from(present.0) | u64::from(claimed.0) << 32
}

#[allow(clippy::cast_possible_truncation, reason = "the halves of a word")]
fn unpack_bits(word: u64) -> (BlockMask, BlockMask) {
    (BlockMask(word as u32), BlockMask((word >> 32) as u32))
}

/// A replica as one word: state in bits 56..64, disk in 48..56, slot in 0..32; 0 is no replica.
#[must_use]
pub fn pack_replica(replica: Replica) -> u64 {
    let state = match replica.state {
        ReplicaState::InSync => STATE_IN_SYNC,
        ReplicaState::Syncing => STATE_SYNCING,
        ReplicaState::Sealing => STATE_SEALING,
        ReplicaState::Stale => STATE_STALE,
    };
    state << 56 | u64::from(replica.disk.0) << 48 | u64::from(replica.slot.0)
}

/// The inverse of [`pack_replica`]; `None` for 0 and for anything that is not a replica.
#[must_use]
#[allow(clippy::cast_possible_truncation, reason = "the fields of a word")]
pub fn unpack_replica(word: u64) -> Option<Replica> {
    let state = match word >> 56 {
        STATE_IN_SYNC => ReplicaState::InSync,
        STATE_SYNCING => ReplicaState::Syncing,
        STATE_STALE => ReplicaState::Stale,
        STATE_SEALING => ReplicaState::Sealing,
        _ => return None,
    };
    let disk = DiskId((word >> 48) as u8);
    let legal = disk.0 < 64 && word >> 32 & 0xffff == 0;
    legal.then_some(Replica { disk, slot: SlotIndex(word as u32), state })
}

#[cfg(test)]
mod tests;
