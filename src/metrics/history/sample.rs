//! The numbers of one interval. Each is stored in 15 bits with ten binary digits that count: within 0.1 % of what it was.

/// Which number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Field {
    /// Thousandths of a read a second, on average.
    Reads,
    /// Thousandths of a write a second, on average.
    Writes,
    /// Bytes read a second, on average.
    ReadBytes,
    /// Bytes written a second, on average.
    WriteBytes,
    /// Thousandths of a read or write a second, in the busiest part of the interval.
    PeakRequests,
    /// Bytes a second, in the busiest part of the interval.
    PeakBytes,
    /// Thousandths of a request in progress, on average.
    Depth,
    /// Microseconds in which half of the reads and writes were done.
    MedianLatency,
    /// Microseconds in which 99 of 100 were.
    P99Latency,
    /// Microseconds that 99 of 100 waited before they came to a host disk, also in the virtqueue.
    P99Admission,
    /// Microseconds that 99 of 100 were at the host disk.
    P99Disk,
    /// Thousandths of the reads and writes that began where another one had ended.
    Sequential,
    /// Thousandths of the time in which a limit held something back.
    Throttled,
    /// Extents that were read or written in the last five minutes that were over.
    WorkingSet,
    /// KiB of room taken.
    Used,
    /// Bytes a second of the daemon's own work.
    Background,
    /// Thousandths of the interval that were seen.
    Covered,
}

/// How many there are.
pub const FIELDS: usize = Field::Covered as usize + 1;

/// Binary digits that count.
const DIGITS: u32 = 10;
const HALF: u64 = 1 << (DIGITS - 1);

/// The largest code.
#[allow(clippy::cast_possible_truncation, reason = "27647")]
pub(super) const CODE_MAX: u16 = ((u64::BITS - DIGITS) as u64 * HALF + 2 * HALF - 1) as u16;

/// The numbers of one interval, as they are stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sample {
    pub(super) codes: [u16; FIELDS],
}

impl Sample {
    /// One of the numbers.
    #[must_use]
    pub fn get(&self, field: Field) -> u64 {
        decode(self.codes[field as usize])
    }

    pub(super) fn set(&mut self, field: Field, value: u64) {
        self.codes[field as usize] = encode(value);
    }

    pub(super) fn with(mut self, field: Field, value: u64) -> Sample {
        self.set(field, value);
        self
    }
}

/// The nearest number that there is a code for. Codes have the order of numbers.
#[allow(clippy::cast_possible_truncation, reason = "at most CODE_MAX")]
fn encode(value: u64) -> u16 {
    if value < 2 * HALF {
        return value as u16;
    }
    let shift = u64::BITS - value.leading_zeros() - DIGITS;
    let rounded = (value >> shift) + (value >> (shift - 1) & 1);
    // Rounded up to one digit more, it is the first number of the next shift: the sum says so by itself.
    ((u64::from(shift) * HALF + rounded) as u16).min(CODE_MAX)
}

fn decode(code: u16) -> u64 {
    let code = u64::from(code.min(CODE_MAX));
    if code < 2 * HALF { code } else { (code % HALF + HALF) << (code / HALF - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;

    #[test]
    fn numbers_are_kept_within_a_thousandth_and_in_order() {
        let mut rng = Rng::new(1);
        assert_eq!((decode(encode(0)), decode(encode(1023)), decode(encode(1024))), (0, 1023, 1024));
        assert_eq!(encode(u64::MAX), CODE_MAX);
        for _ in 0..100_000 {
            let value = rng.next_u64() >> rng.below(64);
            let code = encode(value);
            let off = u128::from(decode(code).abs_diff(value));
            assert!(off * 1000 <= u128::from(value), "{value}: {}", decode(code));
            assert!(encode(value.saturating_add(1)) >= code);
        }
        for code in 0..=CODE_MAX {
            assert_eq!(encode(decode(code)), code, "every code is of a number of its own");
        }
    }
}
