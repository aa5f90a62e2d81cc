//! What VHDs get of host disks that several of them want.

use clap::{Args, ValueEnum};

use crate::control::wire::{Sharing, SharingPriority, SharingUpdate};

/// A weight, or none of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given<T> {
    /// None of its own.
    None,
    /// This one.
    This(T),
}

/// A priority, or none of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrioritySetting {
    /// Counts ten times as much as normal
    High,
    /// What VHDs have that say nothing
    Normal,
    /// Counts a tenth of normal, as jobs do
    Low,
    /// None of its own
    None,
}

/// What is asked of disks that others want, too.
#[derive(Clone, Copy, Debug, Default, Args)]
pub struct SharingArgs {
    /// Share of a host disk against others of the same priority that want it at the same time, 1 to 10000 [default: its VM's, else 100]
    #[arg(long, value_name = "N|none", value_parser = parse_weight)]
    pub weight: Option<Given<u32>>,
    /// Whether it goes before others that want the same host disk [default: its VM's, else normal]
    #[arg(long, value_enum)]
    pub io_priority: Option<PrioritySetting>,
    /// What 99 of 100 requests should take at most, such as 2ms: others get less of the host disk if need be [default: its VM's, else none]
    #[arg(long, value_name = "TIME|none", value_parser = parse_target)]
    pub latency_target: Option<Given<u64>>,
}

fn parse_weight(text: &str) -> Result<Given<u32>, String> {
    let wrong = |_| format!("'{text}' is no weight: write a number from 1 to 10000, or 'none'");
    if text == "none" { Ok(Given::None) } else { text.parse().map(Given::This).map_err(wrong) }
}

/// Microseconds.
fn parse_target(text: &str) -> Result<Given<u64>, String> {
    if text == "none" {
        return Ok(Given::None);
    }
    let units = [("us", 1), ("ms", 1000), ("s", 1_000_000)];
    let micros = units.iter().find_map(|(unit, micros)| {
        let number: u64 = text.strip_suffix(unit)?.trim_end().parse().ok()?;
        number.checked_mul(*micros)
    });
    micros.map(Given::This).ok_or_else(|| format!("'{text}' is no time: write one such as 500us or 2ms, or 'none'"))
}

impl<T> Given<T> {
    fn own(self) -> Option<T> {
        match self {
            Given::None => None,
            Given::This(value) => Some(value),
        }
    }
}

impl PrioritySetting {
    fn own(self) -> Option<SharingPriority> {
        match self {
            PrioritySetting::High => Some(SharingPriority::High),
            PrioritySetting::Normal => Some(SharingPriority::Normal),
            PrioritySetting::Low => Some(SharingPriority::Low),
            PrioritySetting::None => None,
        }
    }
}

impl SharingArgs {
    /// What a new VHD or VM asks.
    #[must_use]
    pub fn sharing(self) -> Sharing {
        let SharingUpdate { weight, priority, latency_target_us } = self.update();
        Sharing {
            weight: weight.flatten(),
            priority: priority.flatten(),
            latency_target_us: latency_target_us.flatten(),
        }
    }

    /// What changes.
    #[must_use]
    pub fn update(self) -> SharingUpdate {
        SharingUpdate {
            weight: self.weight.map(Given::own),
            priority: self.io_priority.map(PrioritySetting::own),
            latency_target_us: self.latency_target.map(Given::own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_times_with_a_unit() {
        assert_eq!(parse_target("2ms"), Ok(Given::This(2000)));
        assert_eq!(parse_target("750us"), Ok(Given::This(750)));
        assert_eq!(parse_target("1s"), Ok(Given::This(1_000_000)));
        assert_eq!(parse_target("none"), Ok(Given::None));
        assert!(["", "2", "ms", "2.5ms", "-1ms", "2m"].iter().all(|wrong| parse_target(wrong).is_err()));
    }

    #[test]
    fn none_takes_away_and_nothing_leaves() {
        assert_eq!(SharingArgs::default().update(), SharingUpdate::default());
        let args = SharingArgs { weight: Some(parse_weight("none").unwrap()), ..SharingArgs::default() };
        assert_eq!(args.update().weight, Some(None));
        assert!(args.sharing().is_none());
        assert_eq!(parse_weight("300"), Ok(Given::This(300)));
        assert!(parse_weight("much").is_err());
    }
}
