//! `spanblk events`.

use clap::Args;

use crate::control::wire::Severity;

const EVENTS_HELP: &str = "\
Examples:
  spanblk events                              the last 10000 events
  spanblk events --follow --json              one JSON object a line, as they happen
  spanblk events --vm web --severity warning  what was wrong with that VM and its VHDs";

/// Which events to print.
#[derive(Debug, Args)]
#[command(after_help = EVENTS_HELP)]
pub struct EventsArgs {
    /// Go on printing events as they happen
    #[arg(long, short)]
    pub follow: bool,
    /// Only events after this sequence number
    #[arg(long, value_name = "SEQ")]
    pub after: Option<u64>,
    /// Only events about the VHD of this name, which may be gone
    #[arg(long, value_name = "NAME", conflicts_with_all = ["vm", "disk"])]
    pub vhd: Option<String>,
    /// Only events about this VM and the VHDs that it has now
    #[arg(long, value_name = "VM", conflicts_with = "disk")]
    pub vm: Option<String>,
    /// Only events about the disk of this name
    #[arg(long, value_name = "NAME")]
    pub disk: Option<String>,
    /// Only events that are at least as bad
    #[arg(long, value_enum)]
    pub severity: Option<Severity>,
}
