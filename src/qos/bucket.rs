//! A bucket of tokens that is filled at a rate and never holds more than its burst.
//!
//! What it keeps is no fill level but two counts that only grow: how many tokens the clock has given since it began to run, which follows
//! from the time alone, and how many have been taken. Both are whole numbers, so that nothing is ever rounded twice: after hours the rate is
//! as exact as after a second. A bucket that was idle has fewer taken than given; what it could not have kept is skipped at the next charge.
//!
//! A token is a byte, or a part of a request (see [`Bucket::requests`]): coarse ones would make slow rates start in jerks.
//!
//! Rate and burst of a bucket are fixed. Another rate is another bucket, made from the one before ([`Bucket::carried`]), so that nobody ever
//! sees one number of the old and one of the new.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::base::clock::Nanos;

/// Nanoseconds of a second.
const NANOS: u64 = 1_000_000_000;

/// Tokens that one request takes where requests are counted. At one request a second, a token is a quarter of a millisecond.
const REQUEST: u64 = 4096;

/// What a bucket gives out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// In every second.
    pub per_sec: u64,
    /// At once, after it has been idle.
    pub burst: u64,
}

/// Shared by whoever takes from it.
#[derive(Debug)]
pub struct Bucket {
    /// Tokens of what is counted.
    unit: u64,
    /// Tokens in a second.
    per_sec: u64,
    /// The most that it holds.
    burst: u64,
    /// What must be there for something to start.
    least: u64,
    /// Tokens taken, and skipped, since the clock began.
    taken: AtomicU64,
    /// Those that it holds back now.
    waiting: AtomicU32,
}

impl Bucket {
    /// Counts requests. One starts only when all of its tokens are there.
    #[must_use]
    pub fn requests(rate: Rate) -> Bucket {
        Bucket::new(rate, REQUEST, REQUEST)
    }

    /// Counts bytes. How many something takes is known only once it has started: that may leave the bucket in debt, and nothing starts before
    /// the debt is paid.
    #[must_use]
    pub fn bytes(rate: Rate) -> Bucket {
        Bucket::new(rate, 1, 1)
    }

    /// A full bucket.
    fn new(rate: Rate, unit: u64, least: u64) -> Bucket {
        assert!(rate.per_sec > 0 && rate.burst > 0, "limits are checked before");
        let (per_sec, burst) = (rate.per_sec.saturating_mul(unit), rate.burst.saturating_mul(unit));
        Bucket { unit, per_sec, burst, least, taken: AtomicU64::new(0), waiting: AtomicU32::new(0) }
    }

    /// A bucket of the same kind with another rate. The same share of its burst is left, so that changing a rate gives nothing away. A debt
    /// beyond the burst stays, but never takes longer to pay than before.
    #[must_use]
    pub fn carried(&self, rate: Rate, now: Nanos) -> Bucket {
        let after = Bucket::new(rate, self.unit, self.least);
        let debt = self.taken.load(Ordering::Relaxed).saturating_sub(self.given(now));
        let within = debt.min(self.burst);
        let beyond = debt - within;
        let share = wide(within, after.burst).div_ceil(self.burst.into());
        let beyond = wide(beyond, after.per_sec).div_ceil(self.per_sec.into()).min(beyond.into());
        let debt = u64::try_from(share + beyond).unwrap_or(u64::MAX);
        after.taken.store(after.given(now).saturating_add(debt), Ordering::Relaxed);
        after
    }

    /// What it gives out.
    #[must_use]
    pub fn rate(&self) -> Rate {
        Rate { per_sec: self.per_sec / self.unit, burst: self.burst / self.unit }
    }

    /// Tokens that the clock has given until `now`. It would take eight years at the highest rate to get to the end.
    fn given(&self, now: Nanos) -> u64 {
        let (secs, nanos) = (now.0 / NANOS, now.0 % NANOS);
        let (whole, rest) = (self.per_sec / NANOS, self.per_sec % NANOS);
        // As per_sec * now / NANOS in one, without what that would need 128 bits for.
        self.per_sec.saturating_mul(secs).saturating_add(whole * nanos + rest * nanos / NANOS)
    }

    /// The first moment at which so many have been given.
    fn reaches(&self, tokens: u64) -> Nanos {
        let at = wide(tokens, NANOS).div_ceil(self.per_sec.into());
        Nanos(u64::try_from(at).unwrap_or(u64::MAX))
    }

    /// Whether something may start now.
    ///
    /// # Errors
    /// When to ask again, if nobody takes anything before.
    pub fn may_start(&self, now: Nanos) -> Result<(), Nanos> {
        let needed = self.needed(self.least);
        if self.given(now) >= needed { Ok(()) } else { Err(self.reaches(needed)) }
    }

    /// What must have been given for so many tokens to be there.
    fn needed(&self, tokens: u64) -> u64 {
        self.taken.load(Ordering::Relaxed).saturating_add(tokens).saturating_sub(self.burst)
    }

    /// When to ask again after having had a turn, which took `count`: the others that wait have theirs first. If they do not
    /// come, no more has been kept waiting than the burst makes good.
    #[must_use]
    pub fn behind_others(&self, count: u64) -> Nanos {
        let others = u64::from(self.waiting.load(Ordering::Relaxed)).saturating_mul(count.saturating_mul(self.unit));
        self.reaches(self.needed(self.least.saturating_add(others).min(self.burst)))
    }

    /// Takes for something that has started.
    pub fn charge(&self, count: u64, now: Nanos) {
        let (given, tokens) = (self.given(now), count.saturating_mul(self.unit));
        let after = |taken: u64| Some(taken.max(given).saturating_add(tokens));
        // Tokens are all there is: nothing else is read because of what is found here.
        let _ = self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, after);
    }

    /// One more, or one less, is held back.
    pub(super) fn count_waiting(&self, one_more: bool) {
        if one_more {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        } else {
            self.waiting.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn wide(a: u64, b: u64) -> u128 {
    u128::from(a) * u128::from(b)
}

#[cfg(test)]
mod tests;
