//! `spanblk policy`, `advise`, `apply`, `dismiss` and `why`.

use clap::{Args, Subcommand};

const SET_HELP: &str = "\
Settings of the pool, and of single VMs and VHDs with --vm and --vhd:
  mode=off|advise|auto    how far the policy may go [default: advise]; in auto, a VHD whose disk is full grows onto
                          others at once, unless `vhd set` or `pool set` say --expand never, and new VHDs
                          of which nobody names disks or a width, or says spanned, come where it says (of the
                          pool, or of their VM)
  latency=15ms            what a request may take on average
  iops=N                  requests a second that are to be served if asked for
  survives=0|1|2          disks (failure domains) whose loss is to be survived
Settings of the pool only:
  space=80%               how full a disk may be
  difference=5%           how far below a limit something must be to be over
  imbalance=5%            how differently busy disks may be
  hold=10m                how long something must be so before anything is proposed; rates and latencies are
                          those of as long (30 seconds to 5 minutes), and looks three times as
                          frequent (every 10 to 30 seconds)
  comfort-hold=1h         the same for what only makes things nicer
  rest=6h                 how long a VHD stays where it is once it has been moved
  outcome=30m             how long after a change its effect is measured
  moved-a-day=1%          what may be moved in 24 hours, of the capacity
  moves=2                 moves in flight
  quiet=22:00-06:00       when nothing is started that can wait (UTC)

An empty value ('latency=') takes a setting back.

Examples:
  spanblk policy set mode=auto moved-a-day=2%
  spanblk policy set --vm web latency=2ms
  spanblk policy set --vhd db survives=1 mode=auto";

const ADVISE_HELP: &str = "\
Examples:
  spanblk advise                          proposals: what, why, what it brings and takes
  spanblk advise --json | jq '.proposals[] | select(.rule == \"neighbour\")'
  spanblk apply 3                         carry proposal 3 out
  spanblk dismiss 4                       do not propose it again unless things change
  spanblk policy set mode=auto            let it carry out what it proposes";

/// What is wanted of the policy.
#[derive(Debug, Subcommand)]
pub enum PolicyCommand {
    /// What is wanted of the pool, of VMs and of VHDs
    Show,
    /// Change what is wanted; refused with the numbers if it can never be
    Set(PolicySetArgs),
}

/// Changes what is wanted.
#[derive(Debug, Args)]
#[command(after_help = SET_HELP)]
pub struct PolicySetArgs {
    /// What is wanted
    #[arg(required = true, value_name = "SETTING=VALUE", value_parser = parse_setting)]
    pub settings: Vec<(String, String)>,
    /// For the VHDs of this VM
    #[arg(long, value_name = "VM", conflicts_with = "vhd")]
    pub vm: Option<String>,
    /// For this VHD
    #[arg(long, value_name = "VHD")]
    pub vhd: Option<String>,
}

/// Shows what is proposed.
#[derive(Debug, Args)]
#[command(after_help = ADVISE_HELP)]
pub struct AdviseArgs {}

fn parse_setting(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("a setting is written as NAME=VALUE, such as mode=auto")?;
    Ok((name.to_owned(), value.to_owned()))
}
