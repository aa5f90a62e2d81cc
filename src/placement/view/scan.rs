//! All placed extents of a view, one after the other, for sums: what a walk by [`VhdMap::lookup`] does, at a fraction of its cost.

use std::sync::atomic::Ordering;

use super::segments::Segment;
use super::{VhdMap, unpack_bits, unpack_replica};
use crate::base::limits::COPIES_MAX;
use crate::base::units::BlockMask;
use crate::placement::Replica;

/// An extent that has a place.
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
    /// Calls `each` with every extent that has a place, in order. One that changes at this very moment may be seen half way between
    /// before and after: enough for sums, and for nothing else.
    pub fn for_each_placed(&self, mut each: impl FnMut(&PlacedExtent)) {
        for segment in self.segments.iter() {
            for (at, word) in segment.words(0).iter().enumerate() {
                let first = word.load(Ordering::Acquire);
                if first != 0 {
                    each(&read(segment, at, first));
                }
            }
        }
    }
}

fn read(segment: &Segment, at: usize, first: u64) -> PlacedExtent {
    let mut words = [0; COPIES_MAX];
    words[0] = first;
    for (word, copies) in words.iter_mut().zip(&segment.replicas).skip(1) {
        let Some(copies) = copies.get() else { break };
        *word = copies[at].load(Ordering::Acquire);
        if *word == 0 {
            break;
        }
    }
    let (present, _) = unpack_bits(segment.bits[at].load(Ordering::Acquire));
    PlacedExtent { words, present }
}
