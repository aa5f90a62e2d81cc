//! The samples of one resolution: blocks that are complete, as they are stored, and the one that is not.

use std::collections::VecDeque;
use std::ops::Range;

use super::block::{self, BlockError, Samples};
use super::sample::Sample;

/// A resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// 10 s, for an hour.
    Seconds,
    /// 5 min, for a week.
    Minutes,
    /// 1 h, for a year.
    Hours,
}

impl Tier {
    /// From the finest on.
    pub const ALL: [Tier; 3] = [Tier::Seconds, Tier::Minutes, Tier::Hours];

    /// Seconds of a sample.
    #[must_use]
    pub const fn secs(self) -> u64 {
        match self {
            Tier::Seconds => 10,
            Tier::Minutes => 300,
            Tier::Hours => 3600,
        }
    }

    /// Samples of a block: ten minutes, half a day, a week.
    #[must_use]
    pub const fn block_len(self) -> u32 {
        match self {
            Tier::Seconds => 60,
            Tier::Minutes => 144,
            Tier::Hours => 168,
        }
    }

    /// Complete blocks that are kept: an hour, a week, a year.
    #[must_use]
    pub const fn blocks(self) -> usize {
        match self {
            Tier::Seconds => 6,
            Tier::Minutes => 14,
            Tier::Hours => 53,
        }
    }

    /// Of the room for all samples of a subject, so many eighths are for those of this resolution.
    pub(super) const fn eighths(self) -> usize {
        match self {
            Tier::Seconds => 1,
            Tier::Minutes => 3,
            Tier::Hours => 4,
        }
    }

    /// The sample that ends at, or has its end before, a point in time given in seconds since the Unix epoch: readings are taken at
    /// the ends of the shortest samples, or a little later.
    pub(super) fn slot_ending(self, wall_secs: u64) -> u32 {
        let finest = Tier::Seconds.secs();
        let begun = (wall_secs / finest).saturating_sub(1) * finest;
        u32::try_from(begun / self.secs()).unwrap_or(u32::MAX)
    }
}

/// A block to be stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its resolution.
    pub tier: Tier,
    /// Its number: the time of its first sample, in lengths of blocks since the Unix epoch.
    pub block: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The first and the last block of this resolution that are to stay.
    pub kept: (u32, u32),
}

/// Samples of one resolution.
#[derive(Clone, Debug, Default)]
pub(super) struct Series {
    /// Complete blocks, by number, and whether they have been stored.
    closed: VecDeque<(u32, Box<[u8]>, bool)>,
    /// The block that is not complete.
    open: Option<Open>,
}

#[derive(Clone, Debug)]
struct Open {
    tier: Tier,
    block: u32,
    samples: Samples,
    saved: bool,
}

impl Open {
    fn first_slot(&self) -> u32 {
        self.block.saturating_mul(self.tier.block_len())
    }
}

impl Series {
    /// The last sample.
    pub fn last(&self) -> Option<u32> {
        let open = self.open.as_ref()?;
        let place = open.samples.iter().rposition(Option::is_some)?;
        Some(open.first_slot() + place_number(place))
    }

    /// The first sample, or one not long before.
    pub fn first(&self) -> Option<u32> {
        let open = self.open.as_ref()?;
        match self.closed.front() {
            Some((block, ..)) => Some(block.saturating_mul(open.tier.block_len())),
            None => Some(open.first_slot() + place_number(open.samples.iter().position(Option::is_some)?)),
        }
    }

    /// The sample of a slot, if it is the last one.
    pub fn take_at(&self, slot: u32) -> Option<Sample> {
        let open = self.open.as_ref().filter(|_| self.last() == Some(slot))?;
        open.samples.last().copied().flatten()
    }

    /// Puts a sample in its place, which is the last one or comes after it.
    pub fn put(&mut self, slot: u32, sample: Sample, tier: Tier) {
        let (block, place) = (slot / tier.block_len(), (slot % tier.block_len()) as usize);
        if self.open.as_ref().is_none_or(|open| open.block != block) {
            self.close();
            self.open = Some(Open { tier, block, samples: Samples::new(), saved: true });
        }
        let open = self.open.as_mut().expect("just made");
        open.samples.resize(open.samples.len().max(place + 1), None);
        open.saved &= open.samples[place] == Some(sample);
        open.samples[place] = Some(sample);
    }

    fn close(&mut self) {
        let Some(Open { tier, block, samples, saved }) = self.open.take() else { return };
        self.closed.push_back((block, block::encode(tier, block, &samples).into_boxed_slice(), saved));
        while self.closed.len() > tier.blocks() {
            self.closed.pop_front();
        }
    }

    /// Forgets the samples from a slot on.
    pub fn forget_from(&mut self, slot: u32) {
        let Some(tier) = self.open.as_ref().map(|open| open.tier) else { return };
        let block = slot / tier.block_len();
        if self.open.as_ref().is_some_and(|open| open.block > block) {
            self.open = None;
            self.closed.retain(|(number, ..)| *number <= block);
            // The last one is open again.
            if let Some((number, bytes, saved)) = self.closed.pop_back() {
                let samples = block::decode(tier, number, &bytes).expect("what was encoded");
                self.open = Some(Open { tier, block: number, samples, saved });
            }
        }
        if let Some(open) = self.open.as_mut().filter(|open| open.block == block) {
            open.samples.truncate((slot % tier.block_len()) as usize);
            open.saved = false;
        }
    }

    /// The samples of a range of slots that are known, in order.
    pub fn samples(&self, slots: Range<u32>) -> impl Iterator<Item = (u32, Sample)> + '_ {
        let tier = self.open.as_ref().map_or(Tier::Seconds, |open| open.tier);
        let len = tier.block_len();
        let (first, last) = (slots.start / len, slots.end.div_ceil(len));
        let of_block = move |block: u32, samples: Samples| {
            let start = block.saturating_mul(len);
            let known = samples.into_iter().enumerate();
            known.filter_map(move |(place, sample)| Some((start + place_number(place), sample?)))
        };
        let closed = self.closed.iter().filter(move |(block, ..)| (first..last).contains(block));
        let closed =
            closed.map(move |(block, bytes, _)| (*block, block::decode(tier, *block, bytes).unwrap_or_default()));
        let open = self.open.iter().map(|open| (open.block, open.samples.clone()));
        closed
            .chain(open)
            .flat_map(move |(block, samples)| of_block(block, samples))
            .filter(move |(slot, _)| slots.contains(slot))
    }

    /// The blocks that have changed since they were stored, as far as `room` bytes are enough for them and all later ones.
    pub fn take_unsaved(&mut self, tier: Tier, room: usize) -> Vec<Row> {
        let Some(open) = &mut self.open else { return Vec::new() };
        let newest = block::encode(tier, open.block, &open.samples);
        let Some(mut left) = room.checked_sub(newest.len()) else { return Vec::new() };
        let fits = |(_, bytes, _): &&(u32, Box<[u8]>, bool)| {
            let rest = left.checked_sub(bytes.len());
            left = rest.unwrap_or(0);
            rest.is_some()
        };
        let skipped = self.closed.len() - self.closed.iter().rev().take_while(fits).count();
        let kept = (self.closed.get(skipped).map_or(open.block, |(block, ..)| *block), open.block);
        let mut rows = Vec::new();
        for (block, bytes, saved) in self.closed.iter_mut().skip(skipped) {
            if !std::mem::replace(saved, true) {
                rows.push(Row { tier, block: *block, bytes: bytes.to_vec(), kept });
            }
        }
        if !std::mem::replace(&mut open.saved, true) {
            rows.push(Row { tier, block: open.block, bytes: newest, kept });
        }
        rows
    }

    /// Takes a block that was stored, later than all that are there.
    pub fn restore(&mut self, tier: Tier, block: u32, bytes: &[u8]) -> Result<(), BlockError> {
        let samples = block::decode(tier, block, bytes)?;
        if self.open.as_ref().is_some_and(|open| open.block >= block) {
            return Err(BlockError::Misplaced);
        }
        self.close();
        self.open = Some(Open { tier, block, samples, saved: true });
        Ok(())
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        let open = self.open.as_ref().map_or(0, |open| open.samples.len() * size_of::<Option<Sample>>());
        open + self.closed.iter().map(|(_, bytes, _)| bytes.len()).sum::<usize>()
    }
}

fn place_number(place: usize) -> u32 {
    u32::try_from(place).expect("a block has few samples")
}
