//! What a VHD or a host disk did in the last hour, week and year: samples of equal length in three resolutions, each with a fixed number
//! of them. Pure: time is an argument, and nothing is read or written here.
//!
//! * `sample`: the numbers of one interval, 15 bits each. `interval`: from counters to them. `block`: how samples are stored.
//! * `series`: the samples of one resolution. `window`: what they come to between two points in time.
//!
//! **Bytes.** A sample takes at most 54 bytes, about 25 while what a guest does changes a lot, and next to nothing while it is idle, since
//! samples that are equal are counted. The year of a subject that does something else in each sample comes to 280 KB, and of one that is
//! idle to a few. What is complete is kept as it is stored.
//!
//! **Clocks.** Rates come from the monotonic clock, and so are right whatever becomes of the other one; which sample it is, the wall clock
//! says. While the daemon is off there are no samples, which is not the same as samples of zeros: [`Summary::covered_secs`] says how much of
//! a window is known. A wall clock that is set forward leaves a gap. One that is set back is not believed for an hour, in which nothing is
//! recorded unless it comes forward again; then what lies in the future is forgotten.

mod block;
mod interval;
mod sample;
mod series;
#[cfg(test)]
mod tests;
mod window;

use std::ops::Range;

use crate::base::clock::Nanos;
pub use block::BlockError;
pub use interval::Reading;
use interval::{Interval, Sum};
pub use sample::{FIELDS, Field, Sample};
use series::Series;
pub use series::{Row, Tier};
pub use window::Summary;

/// How long a wall clock that has been set back is not believed, in nanoseconds.
const BACK_NS: u64 = 3600 * 1_000_000_000;

/// A shorter interval says little, and is left for the next reading to end. In nanoseconds.
const SHORTEST_NS: u64 = 1_000_000_000;

/// All samples of one subject.
#[derive(Clone, Debug, Default)]
pub struct History {
    last: Option<Reading>,
    /// By [`Tier`].
    series: [Series; Tier::ALL.len()],
    /// What has been seen of the sample of each resolution that is not complete.
    sums: [Sum; Tier::ALL.len()],
    /// Since when the wall clock has been behind what is recorded.
    behind: Option<Nanos>,
}

impl History {
    /// Takes what the counters say now: with the reading before, that is an interval. The first one after a start only begins.
    pub fn record(&mut self, reading: &Reading, wall_secs: u64) {
        let before = match &self.last {
            Some(before) if reading.at.since(before.at) < SHORTEST_NS => return,
            before => before.as_ref(),
        };
        let interval = before.map(|before| Interval::between(before, reading));
        self.last = Some(reading.clone());
        let Some(interval) = interval else { return };
        if self.believes(reading.at, wall_secs) {
            for tier in Tier::ALL {
                self.add(tier, &interval, wall_secs);
            }
        }
    }

    /// The reading that was taken last, by this process.
    #[must_use]
    pub fn last(&self) -> Option<&Reading> {
        self.last.as_ref()
    }

    /// Whether the wall clock has not been set back.
    fn believes(&mut self, now: Nanos, wall_secs: u64) -> bool {
        let is_behind = |tier: Tier| {
            let series = &self.series[tier as usize];
            series.last().is_some_and(|last| last > tier.slot_ending(wall_secs))
        };
        if !Tier::ALL.into_iter().any(is_behind) {
            self.behind = None;
            return true;
        }
        if now.since(*self.behind.get_or_insert(now)) < BACK_NS {
            return false;
        }
        self.behind = None;
        for tier in Tier::ALL {
            self.sums[tier as usize] = Sum::default();
            self.series[tier as usize].forget_from(tier.slot_ending(wall_secs));
        }
        true
    }

    fn add(&mut self, tier: Tier, interval: &Interval, wall_secs: u64) {
        let (series, sum) = (&mut self.series[tier as usize], &mut self.sums[tier as usize]);
        let slot = tier.slot_ending(wall_secs);
        if sum.slot != Some(slot) {
            // What an earlier process has left of it goes in.
            *sum = Sum::begin(slot, series.take_at(slot));
        }
        sum.add(interval);
        series.put(slot, sum.sample(tier.secs()), tier);
    }

    /// The samples between two points in time, in seconds since the Unix epoch, each with when it begins; none for what is not known.
    pub fn samples(&self, tier: Tier, from: u64, to: u64) -> impl Iterator<Item = (u64, Sample)> + '_ {
        let slots = slots(tier, from, to);
        self.series[tier as usize].samples(slots).map(move |(slot, sample)| (u64::from(slot) * tier.secs(), sample))
    }

    /// What happened between two points in time, in seconds since the Unix epoch, in the finest resolution that reaches back so far; a
    /// sample counts if it ends after `from` and begins before `to`.
    #[must_use]
    pub fn window(&self, from: u64, to: u64) -> Summary {
        self.window_in(self.tier_since(from), from, to)
    }

    /// As [`History::window`], in one resolution.
    #[must_use]
    pub fn window_in(&self, tier: Tier, from: u64, to: u64) -> Summary {
        let mut summary = Summary::new(from, to, tier);
        self.samples(tier, from, to).for_each(|(_, sample)| summary.add(&sample));
        summary
    }

    /// The finest resolution that has all that is known since then, in seconds since the Unix epoch.
    #[must_use]
    pub fn tier_since(&self, from: u64) -> Tier {
        let starts = |tier: Tier| self.series[tier as usize].first().map(|slot| u64::from(slot) * tier.secs());
        // The coarser ones know of no more.
        let earliest = Tier::ALL.into_iter().filter_map(starts).min().unwrap_or(0).max(from);
        let reaches = |tier: &Tier| starts(*tier).is_some_and(|start| start < earliest + tier.secs());
        Tier::ALL.into_iter().find(reaches).unwrap_or(Tier::Hours)
    }

    /// What has changed since the last call, to be stored; at most `room` bytes are to be stored of all together, those of each resolution
    /// in its part of that.
    pub fn take_unsaved(&mut self, room: usize) -> Vec<Row> {
        let rows = |tier: Tier| self.series[tier as usize].take_unsaved(tier, room / 8 * tier.eighths());
        Tier::ALL.into_iter().flat_map(rows).collect()
    }

    /// Takes a block that was stored. In the order in which they were recorded, before anything is recorded.
    ///
    /// # Errors
    /// It is none, or not of that place. The history is what it was.
    pub fn restore(&mut self, tier: Tier, block: u32, bytes: &[u8]) -> Result<(), BlockError> {
        self.series[tier as usize].restore(tier, block, bytes)
    }

    /// Bytes that it takes in memory, apart from a fixed part.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.series.iter().map(Series::bytes).sum()
    }
}

/// The samples of which a part lies between two points in time.
fn slots(tier: Tier, from: u64, to: u64) -> Range<u32> {
    let slot = |slot: u64| u32::try_from(slot).unwrap_or(u32::MAX);
    slot(from / tier.secs())..slot(to.div_ceil(tier.secs()))
}

/// The body of the fuzz target of stored samples: whether `bytes` are a block.
///
/// # Panics
/// If they are accepted and do not come out the same again.
#[must_use]
pub fn fuzz(bytes: &[u8]) -> bool {
    let Some([_, tier, block @ ..]) = bytes.first_chunk::<6>() else { return false };
    let Some(tier) = Tier::ALL.get(usize::from(*tier)).copied() else { return false };
    let block = u32::from_le_bytes(*block);
    let Ok(samples) = block::decode(tier, block, bytes) else { return false };
    let again = block::decode(tier, block, &block::encode(tier, block, &samples)).expect("what was encoded");
    // What is not known at the end is left out.
    let known = samples.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    assert_eq!(again, samples[..known]);
    true
}
