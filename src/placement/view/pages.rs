//! What is known of a page of extents (the unit of rows in the store) as to its replicas: one byte.
//!
//! A page in which extents with several replicas are written to has a *write intent*, durable before the first of these writes
//! (ordering rule 7): after a power cut the replicas may differ in what was not flushed. When the pool is opened then, the page is
//! *in doubt*: reads come from one replica until the others have been made equal to it.

use std::sync::atomic::Ordering;

use super::VhdMap;
use crate::base::limits::EXTENTS_PER_PAGE;
use crate::base::units::ExtentIndex;

#[allow(clippy::cast_possible_truncation, reason = "a small constant")]
const PAGE_EXTENTS: u32 = EXTENTS_PER_PAGE as u32;

/// There is a durable write intent.
const INTENT: u8 = 1;
/// The page has been written to since the owner last asked.
const WRITTEN: u8 = 1 << 1;
/// Replicas may differ.
const DOUBT: u8 = 1 << 2;

impl VhdMap {
    /// A reactor is about to write to several replicas of an extent: whether it may, or has to ask the owner for a write intent
    /// first. One load, unless it is the first write for a while.
    #[inline]
    #[must_use]
    pub fn may_write_replicas(&self, extent: ExtentIndex) -> bool {
        let word = self.segments.page_of(extent);
        let now = word.load(Ordering::Acquire);
        if now & INTENT == 0 {
            return false;
        }
        if now & WRITTEN == 0 {
            word.fetch_or(WRITTEN, Ordering::AcqRel);
        }
        true
    }

    /// Whether replicas of the extent may differ, so that all reads must come from the first one that can be read.
    #[inline]
    #[must_use]
    pub fn is_in_doubt(&self, extent: ExtentIndex) -> bool {
        self.segments.page_of(extent).load(Ordering::Acquire) & DOUBT != 0
    }

    /// The same of a page.
    #[must_use]
    pub fn page_is_in_doubt(&self, page: u32) -> bool {
        self.page(page) & DOUBT != 0
    }

    /// Whether a page has a write intent, as far as reactors know.
    #[must_use]
    pub fn has_intent(&self, page: u32) -> bool {
        self.page(page) & INTENT != 0
    }

    /// Owner only: a page has a durable write intent.
    pub fn set_intent(&self, page: u32) {
        self.change_page(page, |word| word | INTENT | WRITTEN);
    }

    /// Owner only: reactors must ask before they write to several replicas in the page.
    pub fn clear_intent(&self, page: u32) {
        self.change_page(page, |word| word & !INTENT);
    }

    /// Owner only: whether the page has been written to since the last call.
    pub fn take_written(&self, page: u32) -> bool {
        self.change_page(page, |word| word & !WRITTEN) & WRITTEN != 0
    }

    /// Owner only: the page has a durable write intent, from before the pool was opened or since, and its replicas may differ.
    pub fn set_in_doubt(&self, page: u32) {
        self.change_page(page, |word| word | INTENT | DOUBT);
    }

    /// Owner only: the replicas in the page are equal.
    pub fn clear_doubt(&self, page: u32) {
        self.change_page(page, |word| word & !DOUBT);
    }

    /// The pages with a write intent.
    pub fn pages_with_intent(&self) -> impl Iterator<Item = u32> + '_ {
        let words = self.segments.iter().flat_map(|segment| segment.pages.iter());
        (0..).zip(words).filter(|(_, word)| word.load(Ordering::Acquire) & INTENT != 0).map(|(page, _)| page)
    }

    /// Rows beyond the end are gone, with what they said.
    pub(super) fn forget_pages_beyond(&self, extents: u32) {
        for page in extents.div_ceil(PAGE_EXTENTS).. {
            let Some(word) = self.segments.page(page) else { return };
            word.store(0, Ordering::Release);
        }
    }

    fn page(&self, page: u32) -> u8 {
        self.segments.page(page).map_or(0, |word| word.load(Ordering::Acquire))
    }

    /// What the page was before. One that the VHD does not have any more stays as it is.
    fn change_page(&self, page: u32, change: impl Fn(u8) -> u8) -> u8 {
        let Some(word) = self.segments.page(page) else { return 0 };
        let changed = word.fetch_update(Ordering::AcqRel, Ordering::Acquire, |now| Some(change(now)));
        changed.expect("the change is always made")
    }
}
