//! Checksums of blocks: what the table has of them, and what the owner knows about it.
//!
//! Those of a page are written with the commit that takes its write intent back. So a page without an intent has those that are
//! right, and those of a page with one are computed anew when the pool is opened (`repair`).

use crate::base::ids::VhdId;
use crate::base::units::BLOCKS_PER_EXTENT;
use crate::owner::Owner;
use crate::placement::view::{Checksum, VhdMap};
use crate::store::checksums::PageChecksums;
use crate::store::edit::StoreEdit;
use crate::store::page::PageKey;

use super::extents_of;

/// Bytes that a row of checksums takes, pages of the database are that large.
pub(super) const CHECKSUM_ROW_ROOM: u64 = 16 << 10;

impl Owner {
    /// Whether blocks of the VHD have checksums.
    pub(in crate::owner) fn is_checked(&self, vhd: VhdId) -> bool {
        self.vhds.get(vhd).is_some_and(|vhd| vhd.state.map.has_checksums())
    }

    /// Whether the intent of a page may be taken back as far as its checksums are concerned. They must not take the room that is needed
    /// for placing extents: without them in the table, the page is read once more when the pool is opened.
    pub(super) fn may_keep_checksums(&self, page: PageKey) -> bool {
        !self.is_checked(page.vhd) || self.room_for_checksums() >= CHECKSUM_ROW_ROOM
    }

    /// Bytes of the metadata region that they may still take.
    pub(super) fn room_for_checksums(&self) -> u64 {
        (self.metadata.size / 2).saturating_sub(self.metadata.used)
    }

    /// Whether nobody is writing to a page. After fences on all disks that work: a write that waits for another one has its claims
    /// until it has noted checksums.
    pub(super) fn is_unclaimed(&self, page: PageKey) -> bool {
        let Some(vhd) = self.vhds.get(page.vhd) else { return true };
        let map = &vhd.state.map;
        !map.has_checksums() || extents_of(page, map.extents()).all(|extent| map.lookup(extent).claimed.is_empty())
    }

    /// The row for the checksums of a page, if it has any.
    pub(super) fn checksum_row(&self, page: PageKey) -> Option<StoreEdit> {
        let map = &self.vhds.get(page.vhd)?.state.map;
        let checksums = || StoreEdit::Checksums { vhd: page.vhd, page: page.page, checksums: of_page(map, page) };
        map.has_checksums().then(checksums)
    }
}

fn of_page(map: &VhdMap, page: PageKey) -> PageChecksums {
    let mut checksums = PageChecksums::default();
    for (place, extent) in extents_of(page, map.extents()).enumerate() {
        let present = map.lookup(extent).present;
        for block in (0..BLOCKS_PER_EXTENT).filter(|block| present.has(*block)) {
            checksums.extent_mut(place)[block as usize] = map.checksum(extent, block).map_or(0, Checksum::word);
        }
    }
    checksums
}
