//! Sizes as people write them: binary units, both ways.

/// Units, smallest first: suffix and shift.
const UNITS: [(&str, u32); 5] = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40), ("PiB", 50)];

/// Why a size could not be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// No digits where the number should be.
    #[error("'{0}' is not a size: write a whole number of bytes, or one with KiB, MiB, GiB or TiB, such as 20GiB")]
    NotANumber(String),
    /// The suffix is not a unit.
    #[error(
        "'{unit}' is not a unit (in '{text}'): use KiB, MiB, GiB, TiB or PiB (powers of 1024), or no unit for bytes"
    )]
    BadUnit {
        /// What was given.
        text: String,
        /// Its suffix.
        unit: String,
    },
    /// Does not fit 64 bits.
    #[error("'{0}' is too large")]
    TooLarge(String),
}

/// Reads `4096`, `512MiB`, `20GiB`; `K`, `M`, `G`, `T`, `P` are short for the binary units. Case does not matter.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_size(text: &str) -> Result<u64, SizeError> {
    let trimmed = text.trim();
    let digits_end = trimmed.find(|c: char| !c.is_ascii_digit()).unwrap_or(trimmed.len());
    let (digits, unit) = trimmed.split_at(digits_end);
    if digits.is_empty() {
        return Err(SizeError::NotANumber(text.to_owned()));
    }
    let number: u64 = digits.parse().map_err(|_| SizeError::TooLarge(text.to_owned()))?;
    let unit = unit.trim();
    if unit.is_empty() || unit.eq_ignore_ascii_case("B") {
        return Ok(number);
    }
    let known = |(name, _): &&(&str, u32)| unit.eq_ignore_ascii_case(name) || unit.eq_ignore_ascii_case(&name[..1]);
    let Some((_, shift)) = UNITS.iter().find(known) else {
        return Err(SizeError::BadUnit { text: text.to_owned(), unit: unit.to_owned() });
    };
    number.checked_mul(1 << shift).ok_or_else(|| SizeError::TooLarge(text.to_owned()))
}

/// `20GiB`, `1.5GiB`, `512B`: exact when the number is whole, else rounded down to one decimal.
#[must_use]
pub fn human_size(bytes: u64) -> String {
    match UNITS.iter().rev().find(|(_, shift)| bytes >> shift > 0) {
        None => format!("{bytes}B"),
        Some((unit, shift)) => {
            let whole = bytes >> shift;
            let tenths = (u128::from(bytes & ((1 << shift) - 1)) * 10) >> shift;
            if tenths == 0 { format!("{whole}{unit}") } else { format!("{whole}.{tenths}{unit}") }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_binary_units() {
        for (text, bytes) in [
            ("4096", 4096),
            ("4096B", 4096),
            ("512MiB", 512 << 20),
            ("20GiB", 20 << 30),
            ("20 gib", 20 << 30),
            ("1T", 1 << 40),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_with_the_reason() {
        assert!(matches!(parse_size(""), Err(SizeError::NotANumber(_))));
        assert!(matches!(parse_size("GiB"), Err(SizeError::NotANumber(_))));
        assert!(matches!(parse_size("-1"), Err(SizeError::NotANumber(_))));
        assert!(matches!(parse_size("1.5GiB"), Err(SizeError::BadUnit { .. })));
        assert!(matches!(parse_size("20GB"), Err(SizeError::BadUnit { .. })));
        assert!(matches!(parse_size("99999999999999999999"), Err(SizeError::TooLarge(_))));
        assert!(matches!(parse_size("20000PiB"), Err(SizeError::TooLarge(_))));
    }

    #[test]
    fn sizes_are_written_in_the_largest_unit_that_fits() {
        for (bytes, text) in [
            (0, "0B"),
            (512, "512B"),
            (1024, "1KiB"),
            (1536, "1.5KiB"),
            (20 << 30, "20GiB"),
            ((1 << 30) - 1, "1023.9MiB"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
        assert_eq!(human_size(u64::MAX), "16383.9PiB");
    }
}
