//! The arrays of a view: a first segment, made with the VHD, and those that growth has added since.
//!
//! Reactors hold on to what they look at by reference, and look without a lock: so nothing ever moves, and a VHD that has grown
//! has more than one segment until the daemon starts again. A segment is added with room to spare (untouched zero pages cost
//! nothing), so that their number is no limit in practice.

use std::ops::Range;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::checksums;
use super::keep::{Keeping, array_of, offsets};
use crate::base::kept::{KeptFile, Words};
use crate::base::limits::{COPIES_MAX, EXTENTS_PER_PAGE, GROWTHS_MAX};
use crate::base::units::ExtentIndex;

/// Extents that a further segment has at least: its arrays are then small, but not smaller than the bookkeeping.
const SEGMENT_MIN: u32 = 1024;

/// A further segment has at least this part of what was there before.
const SEGMENT_SHARE: u32 = 4;

/// Extents of a page. Segments begin with one.
#[allow(clippy::cast_possible_truncation, reason = "a small constant")]
const PAGE: u32 = EXTENTS_PER_PAGE as u32;

/// No further segment can be added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooManySegments;

/// Extents of a part of a segment: whole pages of each array.
pub(super) const PART: usize = 1024;

/// Of a part: an extent in it was placed once. The lower bits say which copies there is memory for, that of the first also for the
/// versions and the bits.
const TOUCHED: u8 = 1 << 7;
const ALL_COPIES: u8 = (1 << COPIES_MAX) - 1;

const _: () = assert!(COPIES_MAX < 8 && PART.is_multiple_of(crate::base::kept::PAGE / size_of::<AtomicU32>()));

fn parts(extents: u32, memory: u8) -> Box<[AtomicU8]> {
    (0..(extents as usize).div_ceil(PART)).map(|_| AtomicU8::new(memory)).collect()
}

fn pages(extents: u32) -> Box<[AtomicU8]> {
    bytemuck::zeroed_slice_box(extents.div_ceil(PAGE) as usize)
}

/// Consecutive extents.
pub(super) struct Segment {
    pub start: u32,
    len: u32,
    /// One array for each copy of an extent, made when the first extent has so many.
    pub replicas: [OnceLock<Words<AtomicU64>>; COPIES_MAX],
    pub bits: Words<AtomicU64>,
    pub versions: Words<AtomicU32>,
    /// One word for each page of extents: see [`super::pages`]. The table has what must outlive the process.
    pub pages: Box<[AtomicU8]>,
    /// Checksums of blocks, if the VHD has them: see [`super::checksums`].
    pub checksums: Option<Box<[AtomicU32]>>,
    /// How hot extents are: see [`super::heat`].
    pub heat: Box<[AtomicU32]>,
    /// Which parts an extent was ever placed in, and what of them has memory. The rest is zeros and must not be looked at where the
    /// arrays are kept: that would take memory, or end the process if there is none.
    parts: Box<[AtomicU8]>,
    /// Where they are, if they outlive the process.
    kept: Option<(Arc<KeptFile>, Keeping)>,
}

impl Segment {
    fn new(start: u32, len: u32, checked: bool, keeping: Option<&Keeping>) -> Segment {
        let kept = keeping.and_then(|keeping| Some((keeping.make(start, len)?, keeping.clone())));
        let (bits, versions) = match &kept {
            Some((file, _)) => {
                let ([versions, bits, ..], _) = offsets(len);
                (Words::within(file, bits, len), Words::within(file, versions, len))
            }
            None => (Words::zeroed(len), Words::zeroed(len)),
        };
        let replicas = [const { OnceLock::new() }; COPIES_MAX];
        let parts = parts(len, if kept.is_some() { 0 } else { ALL_COPIES });
        // Untouched zero pages cost nothing.
        let checksums = checked.then(|| bytemuck::zeroed_slice_box(len as usize * checksums::WORDS));
        let (pages, heat) = (pages(len), bytemuck::zeroed_slice_box(len as usize));
        let segment = Segment { start, len, replicas, bits, versions, pages, checksums, heat, parts, kept };
        segment.words(0);
        segment
    }

    /// The words of one copy of each extent.
    pub fn words(&self, copy: usize) -> &[AtomicU64] {
        self.replicas[copy].get_or_init(|| match &self.kept {
            Some((file, _)) => Words::within(file, offsets(self.len).0[2 + copy], self.len),
            None => Words::zeroed(self.len),
        })
    }

    /// Owner only: an extent is about to be placed in so many copies. Takes memory for it where the arrays are kept.
    pub fn touch(&self, at: usize, copies: usize) {
        let part = &self.parts[at / PART];
        // The owner alone changes it.
        let before = part.load(Ordering::Relaxed);
        let wanted = (1 << copies.max(1)) - 1;
        if wanted & !before != 0 {
            self.take_memory(at / PART, wanted & !before);
        }
        let now = before | TOUCHED | wanted;
        if now != before {
            part.store(now, Ordering::Release);
        }
    }

    /// Memory for some copies of a part, with the first one also for versions and bits. If shared memory has no room for all of them,
    /// none of them is kept: half of what an extent has would be taken for all of it.
    fn take_memory(&self, part: usize, copies: u8) {
        let Some((file, keeping)) = &self.kept else { return };
        let extents = part * PART..((part + 1) * PART).min(self.len as usize);
        let arrays = (0..COPIES_MAX).filter(|copy| copies & 1 << copy != 0);
        let arrays = arrays.flat_map(|copy| if copy == 0 { 0..3 } else { 2 + copy..3 + copy });
        let ranges: Vec<Range<usize>> = arrays.map(|array| array_of(self.len, array, &extents)).collect();
        if let Err(error) = ranges.iter().try_for_each(|range| file.reserve(range.clone())) {
            keeping.is_full(&error);
            for range in ranges {
                file.give_up(range).expect("there are addresses for zeros in the place of zeros");
            }
        }
    }

    /// Whether an extent can be looked at; if not it was never placed.
    #[inline]
    pub fn has_memory(&self, at: usize) -> bool {
        self.copies(at) & 1 != 0
    }

    /// Bit by bit, which copies of an extent can be looked at; those that cannot are not there.
    #[inline]
    pub fn copies(&self, at: usize) -> u8 {
        self.parts[at / PART].load(Ordering::Acquire)
    }

    /// Parts of the arrays in which an extent may be, or has been.
    pub fn touched_parts(&self) -> impl Iterator<Item = Range<usize>> + '_ {
        let touched = self.parts.iter().enumerate().filter(|(_, part)| part.load(Ordering::Acquire) & TOUCHED != 0);
        touched.map(|(part, _)| part * PART..((part + 1) * PART).min(self.len as usize))
    }

    /// Places in the arrays, from `skip` on, at which an extent may be, or has been.
    pub fn touched_from(&self, skip: usize) -> impl Iterator<Item = usize> + '_ {
        let parts = (skip / PART..).zip(self.parts.iter().skip(skip / PART));
        let touched = parts.filter(|(_, part)| part.load(Ordering::Acquire) & TOUCHED != 0);
        touched.flat_map(move |(part, _)| (part * PART).max(skip)..((part + 1) * PART).min(self.len as usize))
    }

    /// The extents from `from` on that have a slot.
    fn placed_from(&self, from: u32) -> impl Iterator<Item = ExtentIndex> + '_ {
        let words = self.words(0);
        let skip = (from.saturating_sub(self.start) as usize).min(words.len());
        let placed = self.touched_from(skip).filter(|at| words[*at].load(Ordering::Acquire) != 0);
        placed.map(|at| ExtentIndex(self.start + u32::try_from(at).expect("extents are counted in u32")))
    }
}

/// All segments of a view.
pub(super) struct Segments {
    first: Segment,
    /// Where the further ones start; [`u32::MAX`] for those that are not there. Apart from them, so that a search touches little.
    starts: [AtomicU32; GROWTHS_MAX],
    more: [OnceLock<Box<Segment>>; GROWTHS_MAX],
}

impl Segments {
    pub fn new(extents: u32, checked: bool, keeping: Option<&Keeping>) -> Segments {
        Segments {
            // Whole pages, so that the next segment begins with one; what is beyond the end costs nothing.
            first: Segment::new(0, extents.div_ceil(PAGE).saturating_mul(PAGE), checked, keeping),
            starts: [const { AtomicU32::new(u32::MAX) }; GROWTHS_MAX],
            more: [const { OnceLock::new() }; GROWTHS_MAX],
        }
    }

    /// Whether blocks have checksums.
    pub fn are_checked(&self) -> bool {
        self.first.checksums.is_some()
    }

    /// The segment of an extent, and its place there. One compare for whoever has not grown.
    #[inline]
    pub fn of(&self, extent: ExtentIndex) -> (&Segment, usize) {
        if extent.0 < self.first.len { (&self.first, extent.0 as usize) } else { self.of_grown(extent) }
    }

    #[inline(never)]
    fn of_grown(&self, extent: ExtentIndex) -> (&Segment, usize) {
        let before = self.starts.iter().take_while(|start| start.load(Ordering::Acquire) <= extent.0).count();
        let segment = before.checked_sub(1).and_then(|index| self.more[index].get());
        let segment = segment.expect("an extent that the VHD does not have");
        (segment, (extent.0 - segment.start) as usize)
    }

    /// The word of a page, and the extents that it is about.
    pub fn page(&self, page: u32) -> Option<&AtomicU8> {
        let first = ExtentIndex(page.checked_mul(PAGE)?);
        if first.0 >= self.capacity() {
            return None;
        }
        let (segment, at) = self.of(first);
        segment.pages.get(at / PAGE as usize)
    }

    /// The word of the page that an extent is in.
    #[inline]
    pub fn page_of(&self, extent: ExtentIndex) -> &AtomicU8 {
        let (segment, at) = self.of(extent);
        &segment.pages[at / PAGE as usize]
    }

    /// In order.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        std::iter::once(&self.first)
            .chain(self.more.iter().map_while(|segment| segment.get().map(|segment| &**segment)))
    }

    /// Extents that there is room for.
    pub fn capacity(&self) -> u32 {
        self.iter().last().map_or(0, |last| last.start + last.len)
    }

    /// The extents from `from` on that have a slot, in order.
    pub fn placed_from(&self, from: ExtentIndex) -> impl Iterator<Item = ExtentIndex> + '_ {
        let here = move |segment: &&Segment| segment.start + segment.len > from.0;
        self.iter().filter(here).flat_map(move |segment| segment.placed_from(from.0))
    }

    /// Owner only: makes room for `extents`.
    ///
    /// # Errors
    /// There are too many segments already.
    pub fn reserve(&self, extents: u32, keeping: Option<&Keeping>) -> Result<(), TooManySegments> {
        let start = self.capacity();
        if extents <= start {
            return Ok(());
        }
        let index = self.more.iter().position(|segment| segment.get().is_none()).ok_or(TooManySegments)?;
        let spare = (start / SEGMENT_SHARE).max(SEGMENT_MIN);
        // `u32::MAX` is no extent: it marks segments that are not there.
        let len = (extents - start).max(spare).div_ceil(PAGE).saturating_mul(PAGE).min(u32::MAX - start);
        let set = self.more[index].set(Box::new(Segment::new(start, len, self.are_checked(), keeping)));
        assert!(set.is_ok(), "two owners grow one VHD");
        self.starts[index].store(start, Ordering::Release);
        Ok(())
    }
}
