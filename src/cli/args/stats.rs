//! `spanblk vhd stats`, `vm stats`, `disk stats`.

use clap::Args;

use super::values::{parse_resolution, parse_since};

/// Of what time.
#[derive(Clone, Copy, Debug, Args)]
pub struct StatsTimeArgs {
    /// Of the last minutes, hours or days: up to a year
    #[arg(long, value_name = "10m|1h|7d", default_value = "1h", value_parser = parse_since)]
    pub since: u64,
    /// Length of a sample; without it the finest that reaches back so far
    #[arg(long, value_name = "10s|5m|1h", value_parser = parse_resolution)]
    pub resolution: Option<u64>,
    /// Each sample by itself
    #[arg(long)]
    pub samples: bool,
}

const VHD_HELP: &str = "\
Examples:
  spanblk vhd stats                          all VHDs, the busiest first
  spanblk vhd stats web-root --since 24h     one of them, since yesterday
  spanblk vhd stats web-root --samples       each ten seconds of the last hour
  spanblk vhd stats web-root --json | jq .summary.latency_us_p99

What is known survives a restart of the daemon: 10 seconds each for an hour, 5 minutes for a week, an hour for a year.";

/// What VHDs did.
#[derive(Debug, Args)]
#[command(after_help = VHD_HELP)]
pub struct VhdStatsArgs {
    /// Name or UUID; without it all VHDs, the busiest first
    #[arg(value_name = "VHD")]
    pub vhd: Option<String>,
    /// Of what time.
    #[command(flatten)]
    pub time: StatsTimeArgs,
}

/// What a VM or a disk did.
#[derive(Debug, Args)]
pub struct StatsArgs {
    /// Name or UUID
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Of what time.
    #[command(flatten)]
    pub time: StatsTimeArgs,
}
