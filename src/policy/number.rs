//! From fractions to whole numbers, in one place.

/// The nearest whole number; 0 for what is negative or none, the largest one for what is too large.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the cast saturates, as it should here")]
pub(super) fn whole(value: f64) -> u64 {
    value.round() as u64
}
