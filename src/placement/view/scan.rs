//! All placed extents of a view, one after the other, for sums: what a walk by [`VhdMap::lookup`] does, at a fraction of its cost.

use std::sync::atomic::{AtomicU64, Ordering};

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
            // Out of the loop what is the same for all: it runs for tens of millions of extents.
            let copies = [1, 2, 3].map(|copy| segment.replicas[copy].get().map_or(&[][..], |words| &words[..]));
            let firsts = segment.words(0);
            for part in segment.touched_parts() {
                let there = segment.copies(part.start);
                let copies = [1, 2, 3].map(|copy| if there & 1 << copy == 0 { &[][..] } else { copies[copy - 1] });
                // Slices of one length, so that the loop checks no bounds.
                for (at, (word, bits)) in part.clone().zip(firsts[part.clone()].iter().zip(&segment.bits[part])) {
                    let first = word.load(Ordering::Acquire);
                    if first != 0 {
                        let words = words_of(first, copies, at);
                        let (present, _) = unpack_bits(bits.load(Ordering::Acquire));
                        each(&PlacedExtent { words, present });
                    }
                }
            }
        }
    }
}

/// The words of an extent: those behind the first empty one are of no copy.
#[inline]
fn words_of(first: u64, copies: [&[AtomicU64]; COPIES_MAX - 1], at: usize) -> [u64; COPIES_MAX] {
    let mut words = [0; COPIES_MAX];
    words[0] = first;
    for (copy, more) in copies.iter().enumerate() {
        let Some(word) = more.get(at).map(|word| word.load(Ordering::Acquire)).filter(|word| *word != 0) else { break };
        words[copy + 1] = word;
    }
    words
}
