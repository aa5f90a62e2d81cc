//! Limits of rates, of VHDs and VMs.

use clap::Args;

use super::parse_size_arg;
use crate::cli::output::Failure;
use crate::control::wire::{ErrorKind, IoLimits, IoLimitsUpdate, RateLimit};

/// A limit that is given, or taken away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// No limit.
    None,
    /// So many a second.
    PerSec(u64),
}

/// What may be asked of it in a second.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct LimitArgs {
    /// Requests a second: reads, writes, discards
    #[arg(long, value_name = "N|none", value_parser = parse_count)]
    pub iops_limit: Option<Limit>,
    /// Requests at once after a pause [default: what the limit brings in 100 ms, at least 2]
    #[arg(long, value_name = "N", requires = "iops_limit")]
    pub iops_burst: Option<u64>,
    /// Bytes a second, read and written
    #[arg(long, value_name = "SIZE|none", value_parser = parse_bytes)]
    pub bps_limit: Option<Limit>,
    /// Bytes at once after a pause [default: what the limit brings in 100 ms]
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg, requires = "bps_limit")]
    pub bps_burst: Option<u64>,
}

fn parse_count(text: &str) -> Result<Limit, String> {
    let wrong = |_| format!("'{text}' is no limit: write a number of requests a second, such as 500, or 'none'");
    if text == "none" { Ok(Limit::None) } else { text.parse().map(Limit::PerSec).map_err(wrong) }
}

fn parse_bytes(text: &str) -> Result<Limit, String> {
    let wrong = |error| format!("{error}; write bytes a second, such as 100MiB, or 'none'");
    if text == "none" { Ok(Limit::None) } else { parse_size_arg(text).map(Limit::PerSec).map_err(wrong) }
}

impl LimitArgs {
    /// What a new VHD or VM is limited to.
    ///
    /// # Errors
    /// There is a burst of what has no limit.
    pub fn limits(self) -> Result<IoLimits, Failure> {
        let IoLimitsUpdate { iops, bytes } = self.update()?;
        Ok(IoLimits { iops: iops.flatten(), bytes: bytes.flatten() })
    }

    /// What changes.
    ///
    /// # Errors
    /// There is a burst of what has no limit.
    pub fn update(self) -> Result<IoLimitsUpdate, Failure> {
        Ok(IoLimitsUpdate {
            iops: limit(self.iops_limit, self.iops_burst, "iops")?,
            bytes: limit(self.bps_limit, self.bps_burst, "bps")?,
        })
    }
}

fn limit(limit: Option<Limit>, burst: Option<u64>, what: &str) -> Result<Option<Option<RateLimit>>, Failure> {
    match (limit, burst) {
        (Some(Limit::PerSec(per_sec)), burst) => Ok(Some(Some(RateLimit { per_sec, burst }))),
        (_, Some(_)) => {
            let message = format!("--{what}-burst is a burst of a limit, and there is none");
            Err(Failure::new(ErrorKind::Invalid, message)
                .hint(format!("give --{what}-limit, or leave --{what}-burst out")))
        }
        (Some(Limit::None), None) => Ok(Some(None)),
        (None, None) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_needs_a_limit() {
        let args = |iops_limit, iops_burst| LimitArgs { iops_limit, iops_burst, ..LimitArgs::default() };
        assert!(args(Some(Limit::None), Some(1)).update().is_err() && args(None, Some(1)).limits().is_err());
        let limit = RateLimit { per_sec: 9, burst: Some(1) };
        assert_eq!(args(Some(Limit::PerSec(9)), Some(1)).limits().unwrap().iops, Some(limit));
        assert_eq!(args(Some(Limit::None), None).update().unwrap().iops, Some(None));
        assert!(args(None, None).update().unwrap().is_none());
    }

    #[test]
    fn limits_are_numbers_sizes_or_none() {
        assert_eq!(parse_count("500"), Ok(Limit::PerSec(500)));
        assert_eq!(parse_bytes("100MiB"), Ok(Limit::PerSec(100 << 20)));
        assert_eq!([parse_count("none"), parse_bytes("none")], [Ok(Limit::None), Ok(Limit::None)]);
        assert!(["", "-1", "5k"].iter().all(|wrong| parse_count(wrong).is_err()) && parse_bytes("fast").is_err());
    }
}
