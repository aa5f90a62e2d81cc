//! Which slots of one host disk are free.
//!
//! A bitmap with summaries: bit `i` of a level is set if word `i` of the level below is full, so that the next free slot
//! is found in a few steps on a disk of any size and fill. A slot is free, used, or in limbo: given back, but not to be
//! used again yet (ordering rule 2).

use crate::base::units::SlotIndex;

/// What a slot is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SlotState {
    /// May be given out.
    Free,
    /// Holds an extent.
    Used,
    /// Was given back; may still be read, or hold a stranger's bytes.
    Limbo,
}

/// The slots of one host disk.
#[derive(Clone, Debug)]
pub struct SlotAllocator {
    slots: u32,
    /// Level 0: one bit per slot, set unless free. Level n + 1: one bit per word of level n, set if that word is full.
    /// Bits beyond the end are set.
    taken: Vec<Vec<u64>>,
    limbo: Vec<u64>,
    free: u32,
    limbo_count: u32,
}

impl SlotAllocator {
    /// All of `slots` slots free.
    #[must_use]
    pub fn new(slots: u32) -> SlotAllocator {
        let mut taken = Vec::new();
        let mut bits = slots as usize;
        loop {
            let words = bits.div_ceil(64);
            let mut level = vec![0_u64; words];
            if let (Some(last), tail @ 1..) = (level.last_mut(), bits % 64) {
                *last = u64::MAX << tail;
            }
            taken.push(level);
            if words <= 1 {
                break;
            }
            bits = words;
        }
        let limbo = vec![0; (slots as usize).div_ceil(64)];
        SlotAllocator { slots, taken, limbo, free: slots, limbo_count: 0 }
    }

    /// Number of slots.
    #[must_use]
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// Slots that can be given out.
    #[must_use]
    pub fn free(&self) -> u32 {
        self.free
    }

    /// Slots given back that cannot be given out yet.
    #[must_use]
    pub fn limbo(&self) -> u32 {
        self.limbo_count
    }

    /// Slots that hold an extent.
    #[must_use]
    pub fn used(&self) -> u32 {
        self.slots - self.free - self.limbo_count
    }

    /// What a slot is.
    ///
    /// # Panics
    /// If the disk has no such slot.
    #[must_use]
    pub fn state(&self, slot: SlotIndex) -> SlotState {
        assert!(slot.0 < self.slots, "slot {} of {}", slot.0, self.slots);
        let (word, bit) = place(slot.0);
        match (self.taken[0][word] & bit != 0, self.limbo[word] & bit != 0) {
            (false, false) => SlotState::Free,
            (true, false) => SlotState::Used,
            (true, true) => SlotState::Limbo,
            (false, true) => unreachable!("a slot in limbo is taken"),
        }
    }

    /// Uses exactly this slot; false if it is not free or does not exist.
    #[must_use]
    pub fn take(&mut self, slot: SlotIndex) -> bool {
        if slot.0 >= self.slots || self.state(slot) != SlotState::Free {
            return false;
        }
        self.free -= 1;
        let mut index = slot.0 as usize;
        for level in &mut self.taken {
            level[index / 64] |= 1 << (index % 64);
            if level[index / 64] != u64::MAX {
                break;
            }
            index /= 64;
        }
        true
    }

    /// Uses the first free slot from `hint` on, going round at the end; `None` if the disk is full.
    #[must_use]
    pub fn take_near(&mut self, hint: SlotIndex) -> Option<SlotIndex> {
        let found = self.next_free(hint).or_else(|| self.next_free(SlotIndex(0)))?;
        let taken = self.take(found);
        assert!(taken, "the next free slot is free");
        Some(found)
    }

    /// The first free slot from `from` on.
    #[must_use]
    pub fn next_free(&self, from: SlotIndex) -> Option<SlotIndex> {
        let mut index = from.0 as usize;
        for (height, level) in self.taken.iter().enumerate() {
            let room = !level.get(index / 64)? & u64::MAX << (index % 64);
            if room != 0 {
                let mut found = index / 64 * 64 + room.trailing_zeros() as usize;
                for below in self.taken[..height].iter().rev() {
                    found = found * 64 + (!below[found]).trailing_zeros() as usize;
                }
                return u32::try_from(found).ok().map(SlotIndex);
            }
            index = index / 64 + 1;
        }
        None
    }

    /// The first slot from `from` on that is not free; the number of slots if there is none.
    #[must_use]
    pub fn next_taken(&self, from: SlotIndex) -> SlotIndex {
        let mut index = from.0 as usize;
        while let Some(word) = self.taken[0].get(index / 64) {
            let taken = word & u64::MAX << (index % 64);
            if taken != 0 {
                let found = index / 64 * 64 + taken.trailing_zeros() as usize;
                return SlotIndex(u32::try_from(found).map_or(self.slots, |found| found.min(self.slots)));
            }
            index = (index / 64 + 1) * 64;
        }
        SlotIndex(self.slots)
    }

    /// A used slot is given back: from now on it holds nothing, but cannot be used.
    ///
    /// # Panics
    /// If it is not used.
    pub fn give_back(&mut self, slot: SlotIndex) {
        assert_eq!(self.state(slot), SlotState::Used, "gave back slot {} that was not used", slot.0);
        let (word, bit) = place(slot.0);
        self.limbo[word] |= bit;
        self.limbo_count += 1;
    }

    /// A slot in limbo may be used again.
    ///
    /// # Panics
    /// If it is not in limbo.
    pub fn release(&mut self, slot: SlotIndex) {
        assert_eq!(self.state(slot), SlotState::Limbo, "released slot {} that was not in limbo", slot.0);
        let (word, bit) = place(slot.0);
        self.limbo[word] &= !bit;
        self.limbo_count -= 1;
        self.free += 1;
        let mut index = slot.0 as usize;
        for level in &mut self.taken {
            let was_full = level[index / 64] == u64::MAX;
            level[index / 64] &= !(1 << (index % 64));
            if !was_full {
                break;
            }
            index /= 64;
        }
    }

    /// Proves that counts and summaries agree with the bitmap.
    ///
    /// # Errors
    /// What does not agree.
    pub fn check(&self) -> Result<(), String> {
        let ones = |words: &[u64]| words.iter().map(|word| u64::from(word.count_ones())).sum::<u64>();
        let padding = self.taken[0].len() as u64 * 64 - u64::from(self.slots);
        let taken = ones(&self.taken[0]) - padding;
        if u64::from(self.slots - self.free) != taken {
            return Err(format!("{} slots are taken, but {} of {} counted as free", taken, self.free, self.slots));
        }
        if ones(&self.limbo) != u64::from(self.limbo_count) {
            return Err(format!("{} slots are in limbo, but {} counted", ones(&self.limbo), self.limbo_count));
        }
        if let Some(word) = self.limbo.iter().zip(&self.taken[0]).position(|(limbo, taken)| limbo & !taken != 0) {
            return Err(format!("a slot in limbo is free, near slot {}", word * 64));
        }
        for (height, pair) in self.taken.windows(2).enumerate() {
            let full = |i: usize| pair[0].get(i).is_none_or(|word| *word == u64::MAX);
            let wrong = (0..pair[1].len() * 64).find(|i| (pair[1][i / 64] >> (i % 64) & 1 == 1) != full(*i));
            if let Some(i) = wrong {
                return Err(format!("summary {} is wrong about word {i}", height + 1));
            }
        }
        Ok(())
    }
}

fn place(slot: u32) -> (usize, u64) {
    (slot as usize / 64, 1 << (slot % 64))
}
