//! Where on a disk each VHD's extents would ideally go: consecutive slots, in the order of the extents.
//!
//! A home is a wish, not a reservation: it keeps VHDs that grow at the same time out of each other's way as long as there
//! is room, and binds nobody when there is not. Homes are not stored; after a restart they are guessed from the extents.

use std::collections::HashMap;

use super::allocator::SlotAllocator;
use crate::base::ids::VhdId;
use crate::base::units::SlotIndex;

/// A part of a home: positions `position..position + len` of the VHD on this disk belong into slots `start..start + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    vhd: VhdId,
    position: u32,
    start: u32,
    len: u32,
}

/// The homes on one disk.
#[derive(Clone, Debug, Default)]
pub struct Homes {
    /// By start.
    segments: Vec<Segment>,
    /// Which VHDs have segments, and the last position that they cover.
    covered: HashMap<VhdId, u32>,
}

impl Homes {
    /// The slot where position `position` (of `len`) of the VHD should go. `None` if no run of slots is left for it.
    ///
    /// The first call for a VHD looks for a run of free slots that is nobody's home and long enough for all of it, or else
    /// takes the longest; more runs are taken as positions beyond are asked for.
    pub fn slot(&mut self, slots: &SlotAllocator, vhd: VhdId, position: u32, len: u32) -> Option<SlotIndex> {
        assert!(position < len, "position {position} of {len}");
        loop {
            let covered = self.covered.get(&vhd).copied().unwrap_or(0);
            if position < covered {
                let of_vhd = |s: &&Segment| s.vhd == vhd && (s.position..s.position + s.len).contains(&position);
                let segment = self.segments.iter().find(of_vhd)?;
                return Some(SlotIndex(segment.start + (position - segment.position)));
            }
            let (start, found) = self.find_run(slots, len - covered)?;
            self.insert(Segment { vhd, position: covered, start, len: found });
        }
    }

    /// After a restart: the VHD has position `position` (of `len`) in `slot`. Only the first call for each VHD counts.
    pub fn adopt(&mut self, slots: u32, vhd: VhdId, position: u32, len: u32, slot: SlotIndex) {
        if self.covered.contains_key(&vhd) || slot.0 < position || position >= len {
            return;
        }
        let start = slot.0 - position;
        self.insert(Segment { vhd, position: 0, start, len: len.min(slots - start) });
    }

    /// Forgets a VHD.
    pub fn remove(&mut self, vhd: VhdId) {
        if self.covered.remove(&vhd).is_some() {
            self.segments.retain(|segment| segment.vhd != vhd);
        }
    }

    fn insert(&mut self, segment: Segment) {
        assert!(segment.len > 0);
        self.covered.insert(segment.vhd, segment.position + segment.len);
        let at = self.segments.partition_point(|other| other.start <= segment.start);
        self.segments.insert(at, segment);
    }

    /// The first run of free slots outside all homes that has `len` slots, cut to that length; else the longest.
    fn find_run(&self, slots: &SlotAllocator, len: u32) -> Option<(u32, u32)> {
        let mut longest = None;
        let mut gap_start = 0;
        let ends = self.segments.iter().map(|s| (s.start, s.start + s.len)).chain([(slots.slots(), slots.slots())]);
        for (gap_end, next_gap) in ends {
            let mut at = gap_start;
            while let Some(SlotIndex(start)) = slots.next_free(SlotIndex(at)).filter(|free| free.0 < gap_end) {
                let end = slots.next_taken(SlotIndex(start)).0.min(gap_end);
                if end - start >= len {
                    return Some((start, len));
                }
                if longest.is_none_or(|(_, best)| end - start > best) {
                    longest = Some((start, end - start));
                }
                at = end;
            }
            gap_start = gap_start.max(next_gap);
        }
        longest
    }
}
