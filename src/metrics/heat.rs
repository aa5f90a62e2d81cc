//! How hot an extent is: one word each, 4 bytes.
//!
//! A word has 20 bits that count requests, halved every [`HALF_LIFE`] windows, and 12 bits that say in which window it was touched
//! last. The halving is made good when a word is looked at, so that what nobody touches costs nothing. Windows are numbered modulo 4096:
//! [`swept`] takes back words that are so old that they have come to nothing, and has to look at every word once in nine days.
//!
//! Reactors touch a word by a load and a store: two of them at the same moment can count one request less. That is as good for what
//! heat is for, and costs no more than a look.

mod rows;

pub use rows::{HeatError, ROW_EXTENTS, decode, encode, is_cold};

/// Seconds of a window. Working sets are told of one.
pub const WINDOW_SECS: u64 = 300;

/// Windows in which heat halves: 5 h 20 min.
pub const HALF_LIFE: u32 = 64;

const WINDOW_BITS: u32 = 12;
const WINDOWS: u32 = 1 << WINDOW_BITS;
const COUNT_MAX: u32 = (1 << (u32::BITS - WINDOW_BITS)) - 1;

/// Halvings after which nothing is left.
const GONE: u32 = u32::BITS - WINDOW_BITS;

/// A window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window(u32);

impl Window {
    /// The one at a time of the monotonic clock, in nanoseconds.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "modulo 4096")]
    pub fn at(now_ns: u64) -> Window {
        Window((now_ns / (WINDOW_SECS * 1_000_000_000)) as u32 % WINDOWS)
    }

    /// The one before.
    #[must_use]
    pub fn before(self) -> Window {
        Window(self.0.wrapping_sub(1) % WINDOWS)
    }

    /// Halvings between an earlier window and this one.
    fn halvings_since(self, then: u32) -> u32 {
        (self.0 / HALF_LIFE).wrapping_sub(then / HALF_LIFE) % (WINDOWS / HALF_LIFE)
    }
}

/// The word once it has been touched, and whether that was the first time in the window.
#[inline]
#[must_use]
pub fn touched(word: u32, window: Window) -> (u32, bool) {
    let (count, then) = (word >> WINDOW_BITS, word % WINDOWS);
    if then == window.0 && count > 0 {
        return ((count + 1).min(COUNT_MAX) << WINDOW_BITS | then, false);
    }
    (((count >> window.halvings_since(then).min(GONE)) + 1).min(COUNT_MAX) << WINDOW_BITS | window.0, true)
}

/// How hot the extent is: requests, those of earlier half-lives counting for less. At most about a million.
#[must_use]
pub fn heat(word: u32, window: Window) -> u32 {
    (word >> WINDOW_BITS) >> window.halvings_since(word % WINDOWS).min(GONE)
}

/// A word of that heat, which has not been touched in this window.
#[must_use]
pub fn word_of(heat: u32, window: Window) -> u32 {
    let before = window.before();
    // The window before may be of the half-life before.
    let count = heat.min(COUNT_MAX >> 1) << window.halvings_since(before.0);
    count << WINDOW_BITS | before.0
}

/// 0 in place of a word whose extent is not hot any more.
#[must_use]
pub fn swept(word: u32, window: Window) -> u32 {
    if heat(word, window) == 0 { 0 } else { word }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn heat_halves_with_time_and_counts_up_to_its_end() {
        let mut word = 0;
        for _ in 0..1000 {
            word = touched(word, Window(0)).0;
        }
        assert_eq!(heat(word, Window(0)), 1000);
        assert_eq!(heat(word, Window(HALF_LIFE - 1)), 1000);
        assert_eq!(heat(word, Window(HALF_LIFE)), 500);
        assert_eq!(heat(word, Window(10 * HALF_LIFE)), 0);
        assert_eq!(swept(word, Window(10 * HALF_LIFE)), 0);
        assert_eq!(swept(word, Window(9 * HALF_LIFE)), word);
        for _ in 0..2 * COUNT_MAX {
            word = touched(word, Window(3)).0;
        }
        assert_eq!(heat(word, Window(3)), COUNT_MAX);
    }

    #[test]
    fn the_first_touch_in_a_window_is_told() {
        let (word, first) = touched(0, Window(0));
        assert!(first && !touched(word, Window(0)).1 && touched(word, Window(1)).1);
        let kept = word_of(7, Window(5));
        assert_eq!(heat(kept, Window(5)), 7);
        assert_eq!(heat(word_of(7, Window(0)), Window(0)), 7);
        assert!(touched(kept, Window(5)).1, "what was before a restart is no touch");
        assert_eq!(Window::at(WINDOW_SECS * 1_000_000_000 * 4097), Window(1));
        assert_eq!(Window(0).before(), Window(4095));
    }

    /// A slow model with a time that does not wrap: words that are swept often enough say the same.
    #[test]
    fn words_say_what_a_slow_model_says() {
        let seed = 11;
        let mut rng = Rng::new(seed);
        let (mut word, mut model, mut then, mut now) = (0, 0_u64, 0_u64, 0_u64);
        for step in 0..20_000 {
            now += rng.below(2) * rng.below(2000);
            let window = Window(u32::try_from(now % u64::from(WINDOWS)).unwrap());
            word = swept(word, window);
            let halvings = now / u64::from(HALF_LIFE) - then / u64::from(HALF_LIFE);
            let left = model.checked_shr(u32::try_from(halvings).unwrap()).unwrap_or(0);
            assert_eq!(u64::from(heat(word, window)), left, "seed {seed}, step {step}");
            if rng.chance(3, 4) {
                (model, then) = (left + 1, now);
                word = touched(word, window).0;
            }
        }
    }
}
