//! Values that are read from text.

use crate::base::limits::{STATS_WINDOW_SECS_MAX, WHEN_FULL_WAIT_SECS_DEFAULT};
use crate::control::wire::WhenFull;
use crate::control::wire::size::{SizeError, parse_size};
use crate::metrics::history::Tier;

/// A size for clap.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_size_arg(text: &str) -> Result<u64, SizeError> {
    parse_size(text)
}

/// A size, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SizeOrNone(pub Option<u64>);

/// A size or `none` for clap.
///
/// # Errors
/// What is wrong with the text.
pub fn parse_size_or_none(text: &str) -> Result<SizeOrNone, SizeError> {
    if text == "none" { Ok(SizeOrNone(None)) } else { parse_size(text).map(|size| SizeOrNone(Some(size))) }
}

/// A log level.
///
/// # Errors
/// What would be right.
pub fn parse_log_level(text: &str) -> Result<log::LevelFilter, String> {
    text.parse().map_err(|_| "use off, error, warn, info, debug or trace".to_owned())
}

/// `queue`, `queue:60s`, `queue:5m`, `error`.
///
/// # Errors
/// What is wrong with the text, and what would be right.
pub fn parse_when_full(text: &str) -> Result<WhenFull, String> {
    match text.split_once(':') {
        None if text == "queue" => Ok(WhenFull::Queue { wait_secs: WHEN_FULL_WAIT_SECS_DEFAULT }),
        None if text == "error" => Ok(WhenFull::Error {}),
        Some(("queue", time)) => Ok(WhenFull::Queue { wait_secs: parse_secs(time)? }),
        _ => {
            Err(format!("'{text}' is neither 'queue', 'queue:60s' (wait up to 60 seconds) nor 'error' (fail at once)"))
        }
    }
}

/// `10m`, `1h`, `7d`: of the last so many minutes, hours or days, in seconds.
///
/// # Errors
/// What is wrong with the text, and what would be right.
pub fn parse_since(text: &str) -> Result<u64, String> {
    let units = [('s', 1), ('m', 60), ('h', 3600), ('d', 86_400)];
    let found = units.into_iter().find_map(|(unit, secs)| Some((text.strip_suffix(unit)?, secs)));
    let secs = found.and_then(|(digits, secs)| digits.parse::<u64>().ok()?.checked_mul(secs));
    let possible = Tier::Seconds.secs()..=STATS_WINDOW_SECS_MAX;
    secs.filter(|secs| possible.contains(secs)).ok_or_else(|| {
        format!("'{text}' is no time that samples are kept for: write 10s to 365d, such as 10m, 1h or 7d")
    })
}

/// `10s`, `5m`, `1h`: the length of a sample, in seconds.
///
/// # Errors
/// What would be right.
pub fn parse_resolution(text: &str) -> Result<u64, String> {
    let lengths = [("10s", Tier::Seconds), ("5m", Tier::Minutes), ("1h", Tier::Hours)];
    let found = lengths.into_iter().find(|(length, _)| *length == text);
    found
        .map(|(_, tier)| tier.secs())
        .ok_or_else(|| format!("there are no samples of '{text}': use 10s (of the last hour), 5m (week) or 1h (year)"))
}

fn parse_secs(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.strip_suffix('m') {
        Some(minutes) => (minutes, 60),
        None => (text.strip_suffix('s').unwrap_or(text), 1),
    };
    let number: Option<u64> = digits.parse().ok();
    number
        .and_then(|n| n.checked_mul(factor))
        .ok_or_else(|| format!("'{text}' is not a time: write seconds or minutes, such as 60s or 2m"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_sizes_or_none() {
        assert_eq!(parse_size_or_none("none"), Ok(SizeOrNone(None)));
        assert_eq!(parse_size_or_none("2MiB"), Ok(SizeOrNone(Some(2 << 20))));
        assert!(parse_size_or_none("some").is_err());
    }

    #[test]
    fn times_of_samples_are_read() {
        assert_eq!(
            ["10s", "10m", "1h", "7d", "365d"].map(parse_since).map(Result::unwrap),
            [10, 600, 3600, 604_800, 31_536_000]
        );
        for wrong in ["", "h", "1", "1w", "9s", "400d", "-1h", "99999999999999999999d"] {
            assert!(parse_since(wrong).is_err(), "{wrong}");
        }
        assert_eq!(["10s", "5m", "1h"].map(parse_resolution).map(Result::unwrap), [10, 300, 3600]);
        assert!(parse_resolution("1m").unwrap_err().contains("5m (week)"));
    }

    #[test]
    fn when_full_is_read() {
        assert_eq!(parse_when_full("queue"), Ok(WhenFull::default()));
        assert_eq!(parse_when_full("queue:5s"), Ok(WhenFull::Queue { wait_secs: 5 }));
        assert_eq!(parse_when_full("queue:2m"), Ok(WhenFull::Queue { wait_secs: 120 }));
        assert_eq!(parse_when_full("error"), Ok(WhenFull::Error {}));
        for wrong in ["", "wait", "queue:", "queue:x", "error:5s", "queue:99999999999999999999m"] {
            assert!(parse_when_full(wrong).is_err(), "{wrong}");
        }
    }
}
