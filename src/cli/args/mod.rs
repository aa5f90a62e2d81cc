//! What can be typed: the command line, its help and its examples.

mod disk;
mod events;
mod job;
mod limits;
mod policy;
mod pool;
mod serve;
mod sharing;
mod simulate;
mod stats;
mod values;
mod vhd;
mod vm;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;

pub use disk::{
    DiskAddArgs, DiskCommand, DiskFailArgs, DiskImpactArgs, DiskReplaceArgs, DiskSetArgs, DiskWipeArgs, NewDiskArgs,
};
pub use events::EventsArgs;
pub use job::{
    EvacuateArgs, JobCommand, JobOptions, MigrateArgs, Priority, Rate, ScrubArgs, SettleArgs, SpanArgs, UnspanArgs,
};
pub use limits::{Limit, LimitArgs};
pub use policy::{AdviseArgs, PolicyCommand, PolicySetArgs};
pub use pool::{PoolCommand, PoolCreateArgs, PoolDestroyArgs};
pub use serve::ServeArgs;
pub use sharing::SharingArgs;
pub use simulate::SimulateArgs;
pub use stats::{StatsArgs, StatsTimeArgs, VhdStatsArgs};
pub use values::{SizeOrNone, parse_log_level, parse_size_arg, parse_size_or_none, parse_when_full};
pub use vhd::{AttachTarget, ExpandSetting, ExportArgs, ImportArgs, VhdCommand, VhdCreateArgs, VhdSetArgs};
pub use vm::{VmCommand, VmCreateArgs, VmSetArgs};

/// Where the control socket is unless told otherwise.
pub const CONTROL_DEFAULT: &str = "/run/spanblk/control/api.sock";

const TOP_HELP: &str = "\
First steps:
  spanblk pool create --size 10GiB /srv/a.img /srv/b.img      make a pool of two sparse files
  spanblk serve /srv/a.img /srv/b.img &                       serve it
  spanblk vhd create vm1 --size 5GiB --layout spanned         make a guest disk on both
  spanblk vhd show vm1 --attach qemu                          print the QEMU flags for it
  spanblk vhd unspan vm1 --wait                               all of it on one disk, while the guest works

Exit codes:
  0  done, or it was so already      3  no such disk, VHD or file
  1  failed                          4  refused: the state of the pool forbids it
  2  not a valid command             5  the daemon cannot be reached";

/// Serves guest disks (VHDs) over vhost-user-blk from a pool of host disks.
///
/// On the same host disks at the same time, some VHDs are isolated (all on one disk) and some are spanned (striped over
/// several).
#[derive(Debug, Parser)]
#[command(name = "spanblk", version, after_help = TOP_HELP, propagate_version = true, max_term_width = 110)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Control socket of the daemon [default: /run/spanblk/control/api.sock]
    #[arg(long, global = true, env = "SPANBLK_CONTROL", value_name = "PATH", help_heading = "Global options")]
    pub control: Option<PathBuf>,
    /// Print JSON instead of tables and sentences.
    #[arg(long, global = true, help_heading = "Global options")]
    pub json: bool,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create, look at, destroy the pool of this host
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Host disks of the pool
    #[command(subcommand)]
    Disk(DiskCommand),
    /// Guest disks
    #[command(subcommand)]
    Vhd(VhdCommand),
    /// Groups of guest disks
    #[command(subcommand)]
    Vm(VmCommand),
    /// Long operations that move extents
    #[command(subcommand)]
    Job(JobCommand),
    /// The placement table as text
    #[command(subcommand)]
    Metadata(MetadataCommand),
    /// Prove that the placement table is consistent: through the daemon, or on DISKs that nobody serves
    #[command(after_help = CHECK_HELP)]
    Check {
        /// All disks of the pool; without any, the daemon checks the pool that it serves
        #[arg(value_name = "DISK")]
        disks: Vec<PathBuf>,
    },
    /// What is wanted of the policy that moves VHDs by itself
    #[command(subcommand)]
    Policy(PolicyCommand),
    /// What the policy proposes, and what came of its proposals
    Advise(AdviseArgs),
    /// Carry a proposal of the policy out
    Apply {
        /// Its number, as 'spanblk advise' shows it
        #[arg(value_name = "N")]
        proposal: u32,
    },
    /// Have a proposal of the policy not made again, unless what was observed changes by a fifth
    Dismiss {
        /// Its number, as 'spanblk advise' shows it
        #[arg(value_name = "N")]
        proposal: u32,
    },
    /// Why a VHD lies where it lies
    Why {
        /// Name or UUID
        #[arg(value_name = "VHD")]
        vhd: String,
    },
    /// What happened lately
    Events(EventsArgs),
    /// Counters and histograms, as Prometheus reads them
    Metrics,
    /// Run the daemon
    Serve(ServeArgs),
    /// Compare ways to place guest disks on many hosts, in virtual time; needs no daemon
    Simulate(SimulateArgs),
    /// Print a completion script for a shell
    #[command(after_help = COMPLETIONS_HELP)]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// The directory; created if absent
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

const CHECK_HELP: &str = "\
Examples:
  spanblk check                       ask the daemon
  spanblk check /dev/disk/by-id/*     look at the disks of a pool that is not served

Every slot must have one owner or be free, every replica lie on a disk that exists, every VHD belong to no VM or to one
that exists. Exit code 1 if something is wrong.";

const COMPLETIONS_HELP: &str = "\
Examples:
  spanblk completions bash > /etc/bash_completion.d/spanblk
  spanblk completions fish > ~/.config/fish/completions/spanblk.fish";

/// What to do with the placement table.
#[derive(Debug, Subcommand)]
pub enum MetadataCommand {
    /// Print the placement table as text, one JSON object a line
    #[command(after_help = DUMP_HELP)]
    Dump {
        /// All disks of a pool that is not served; without any, the daemon dumps the pool that it serves
        #[arg(value_name = "DISK")]
        disks: Vec<PathBuf>,
        /// Write to a file instead of standard output
        #[arg(long, short, value_name = "FILE")]
        output: Option<PathBuf>,
    },
    /// Replace the placement table by a dump
    #[command(after_help = RESTORE_HELP)]
    Restore {
        /// The dump
        #[arg(value_name = "FILE")]
        file: PathBuf,
        /// All disks of the pool, which nobody may be serving
        #[arg(value_name = "DISK", required = true)]
        disks: Vec<PathBuf>,
        /// Replace a table that is readable, and restore although a disk that carries it is missing
        #[arg(long)]
        force: bool,
    },
}

const DUMP_HELP: &str = "\
Examples:
  spanblk metadata dump -o /root/pool.dump     keep one on another machine";

const RESTORE_HELP: &str = "\
Data written after the dump was made may be attributed to the wrong extents: restore only the newest dump, and only if
the table cannot be read any more. All disks that carry the table must be there: one that is missing keeps the old table.
If it is lost for good, --force restores without it, and it does not carry the table any more. A restore that is cut off
leaves a pool that does not open until a restore has succeeded. Replicas are made equal once the pool is served.

Example:
  spanblk metadata restore /root/pool.dump /srv/a.img /srv/b.img";
