//! Values that are read from text.

use crate::base::limits::WHEN_FULL_WAIT_SECS_DEFAULT;
use crate::control::wire::WhenFull;
use crate::control::wire::size::{SizeError, parse_size};

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
