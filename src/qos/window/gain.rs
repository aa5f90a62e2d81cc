//! What a wider window brings: as much as can be said of it after some rounds of trials, and no more.
//!
//! A trial is short, and what gets done in it is a matter of chance, too: on a disk whose requests meet one of four lanes, a tenth more or
//! less. So rounds at one and the same width are gathered until their mean is further from what would change nothing than its own error,
//! which their spread tells. A disk that answers evenly is understood after a few of them, one that does not after many.

/// Gains are in thousandths of throughput for a thousandth of window. More or less than this is noise. As much on both sides, or noise would
/// seem to be a gain.
const MOST: i64 = 600;

/// The spread that is expected, as if it had been seen in so many rounds: a few that happen to agree prove nothing.
const SPREAD: i64 = 120;
const SPREAD_ROUNDS: i64 = 2;

/// After so many rounds each older one counts half: what is asked of a disk changes.
const FORGETS: i64 = 24;

/// Rounds of trials at one width.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Gain {
    rounds: i64,
    sum: i64,
    squares: i64,
}

impl Gain {
    /// One more round.
    pub fn add(&mut self, gain: i64) {
        if self.rounds == FORGETS {
            (self.rounds, self.sum, self.squares) = (self.rounds / 2, self.sum / 2, self.squares / 2);
        }
        let gain = gain.clamp(-MOST, MOST);
        self.rounds += 1;
        self.sum += gain;
        self.squares += gain * gain;
    }

    /// The mean, 0 before the first round.
    pub fn mean(&self) -> i64 {
        self.sum / self.rounds.max(1)
    }

    /// Whether it is more than this.
    pub fn is_above(&self, least: i64) -> bool {
        self.rounds > 0 && self.mean() - self.error() > least
    }

    /// Whether it is less than this.
    pub fn is_below(&self, most: i64) -> bool {
        self.rounds > 0 && self.mean() + self.error() < most
    }

    /// The mean's usual error.
    fn error(&self) -> i64 {
        let spread = self.squares - self.sum * self.sum / self.rounds.max(1);
        let expected = SPREAD * SPREAD * SPREAD_ROUNDS;
        let variance = (spread.max(0) + expected) / (self.rounds - 1 + SPREAD_ROUNDS).max(1);
        (variance / self.rounds.max(1)).isqrt()
    }
}
