//! The arrays of a view: a first segment, made with the VHD, and those that growth has added since.
//!
//! Reactors hold on to what they look at by reference, and look without a lock: so nothing ever moves, and a VHD that has grown
//! has more than one segment until the daemon starts again. A segment is added with room to spare (untouched zero pages cost
//! nothing), so that their number is no limit in practice.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::keep::{Keeping, offsets};
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

/// Extents of a part of a segment: a page of words.
const PART: usize = 512;

fn untouched(extents: u32) -> Box<[AtomicBool]> {
    (0..(extents as usize).div_ceil(PART)).map(|_| AtomicBool::new(false)).collect()
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
    /// Parts in which an extent was ever placed: the others need not be looked at to know what is there, which would take memory
    /// where the arrays are kept.
    touched: Box<[AtomicBool]>,
    /// Where they are, if they outlive the process.
    file: Option<Arc<KeptFile>>,
}

impl Segment {
    fn new(start: u32, len: u32, keeping: Option<&Keeping>) -> Segment {
        if let Some(file) = keeping.and_then(|keeping| keeping.make(start, len)) {
            return Segment::within(&file, start, len);
        }
        let replicas = [const { OnceLock::new() }; COPIES_MAX];
        let (bits, versions) = (Words::zeroed(len), Words::zeroed(len));
        let (touched, pages) = (untouched(len), pages(len));
        let segment = Segment { start, len, replicas, bits, versions, pages, touched, file: None };
        segment.words(0);
        segment
    }

    /// A segment in a file that is as long as it must be.
    pub fn within(file: &Arc<KeptFile>, start: u32, len: u32) -> Segment {
        let ([versions, bits, ..], _) = offsets(len);
        let (bits, versions) = (Words::within(file, bits, len), Words::within(file, versions, len));
        let replicas = [const { OnceLock::new() }; COPIES_MAX];
        let (touched, file) = (untouched(len), Some(Arc::clone(file)));
        let pages = pages(len);
        let segment = Segment { start, len, replicas, bits, versions, pages, touched, file };
        segment.words(0);
        segment
    }

    /// The words of one copy of each extent.
    pub fn words(&self, copy: usize) -> &[AtomicU64] {
        self.replicas[copy].get_or_init(|| match &self.file {
            Some(file) => Words::within(file, offsets(self.len).0[2 + copy], self.len),
            None => Words::zeroed(self.len),
        })
    }

    /// An extent is about to be placed.
    pub fn touch(&self, at: usize) {
        self.touched[at / PART].store(true, Ordering::Release);
    }

    /// Parts of the arrays in which an extent may be, or has been.
    pub fn touched_parts(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let touched = self.touched.iter().enumerate().filter(|(_, touched)| touched.load(Ordering::Acquire));
        touched.map(|(part, _)| part * PART..((part + 1) * PART).min(self.len as usize))
    }

    /// Places in the arrays, from `skip` on, at which an extent may be, or has been.
    pub fn touched_from(&self, skip: usize) -> impl Iterator<Item = usize> + '_ {
        let parts = (skip / PART..).zip(self.touched.iter().skip(skip / PART));
        let touched = parts.filter(|(_, touched)| touched.load(Ordering::Acquire));
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
    pub fn new(extents: u32, keeping: Option<&Keeping>) -> Segments {
        Segments {
            // Whole pages, so that the next segment begins with one; what is beyond the end costs nothing.
            first: Segment::new(0, extents.div_ceil(PAGE).saturating_mul(PAGE), keeping),
            starts: [const { AtomicU32::new(u32::MAX) }; GROWTHS_MAX],
            more: [const { OnceLock::new() }; GROWTHS_MAX],
        }
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
        let set = self.more[index].set(Box::new(Segment::new(start, len, keeping)));
        assert!(set.is_ok(), "two owners grow one VHD");
        self.starts[index].store(start, Ordering::Release);
        Ok(())
    }
}
