//! All placed extents of a view, one after the other: what a walk by [`VhdMap::lookup`] does, at a fraction of its cost.

use std::sync::atomic::{Ordering, fence};

use super::segments::Segment;
use super::{Version, VhdMap, unpack_bits, unpack_replica};
use crate::base::limits::COPIES_MAX;
use crate::base::units::BlockMask;
use crate::placement::Replica;

/// An extent that has a place, as it was at one instant.
#[derive(Clone, Copy, Debug)]
pub struct PlacedExtent {
    words: [u64; COPIES_MAX],
    /// Its blocks that have been written.
    pub present: BlockMask,
}

impl PlacedExtent {
    /// Its replicas, and the copies that a move is making.
    pub fn replicas(&self) -> impl Iterator<Item = Replica> + '_ {
        self.words.iter().map_while(|word| unpack_replica(*word))
    }
}

impl VhdMap {
    /// Calls `each` with every extent that has a place, in order.
    pub fn for_each_placed(&self, mut each: impl FnMut(&PlacedExtent)) {
        for segment in self.segments.iter() {
            for (at, word) in segment.words(0).iter().enumerate() {
                if word.load(Ordering::Relaxed) != 0
                    && let Some(extent) = read(segment, at)
                {
                    each(&extent);
                }
            }
        }
    }
}

/// `None` if the extent has lost its place meanwhile. In the order that [`VhdMap::lookup`] keeps, too.
fn read(segment: &Segment, at: usize) -> Option<PlacedExtent> {
    let version_now = || Version(segment.versions[at].load(Ordering::Acquire));
    loop {
        let version = version_now();
        if !version.is_changing() {
            let mut words = [0; COPIES_MAX];
            for (word, copies) in words.iter_mut().zip(&segment.replicas) {
                let Some(copies) = copies.get() else { break };
                *word = copies[at].load(Ordering::Acquire);
                if *word == 0 {
                    break;
                }
            }
            let (present, _) = unpack_bits(segment.bits[at].load(Ordering::Acquire));
            fence(Ordering::Acquire);
            if version_now() == version {
                return (words[0] != 0).then_some(PlacedExtent { words, present });
            }
        }
        // The owner is between two stores.
        std::thread::yield_now();
    }
}
