//! `spanblk job`, and the options of every command that makes one.

use clap::{Args, Subcommand, ValueEnum};

use super::parse_size_arg;

/// What to do with jobs.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Jobs that have not ended, and the last ones that have
    List,
    /// One job: how far it is, how fast, and what it costs guests
    #[command(after_help = SHOW_HELP)]
    Show {
        /// Its number
        #[arg(value_name = "JOB")]
        job: u32,
    },
    /// Begin nothing more until it is resumed; what is on its way is brought to its end
    Pause {
        /// Its number
        #[arg(value_name = "JOB")]
        job: u32,
    },
    /// Go on with a job that was paused, or that has stopped
    Resume {
        /// Its number
        #[arg(value_name = "JOB")]
        job: u32,
    },
    /// Change how fast a job goes
    #[command(after_help = SET_HELP)]
    Set {
        /// Its number
        #[arg(value_name = "JOB")]
        job: u32,
        /// Bytes per second at most; none: as fast as guests bear
        #[arg(long, value_name = "SIZE|none", value_parser = parse_rate)]
        max_rate: Option<Rate>,
        /// Whether it gives way to guests
        #[arg(long, value_enum)]
        priority: Option<Priority>,
    },
    /// End a job: what it has moved stays where it is
    #[command(after_help = CANCEL_HELP)]
    Cancel {
        /// Its number
        #[arg(value_name = "JOB")]
        job: u32,
        /// Move everything back, with a job of its own
        #[arg(long)]
        revert: bool,
        /// Wait until everything is back
        #[arg(long, requires = "revert")]
        wait: bool,
    },
    /// Wait for a job to end
    #[command(after_help = WAIT_HELP)]
    Wait {
        /// Its number
        #[arg(value_name = "JOB")]
        job: u32,
    },
}

const SHOW_HELP: &str = "\
Examples:
  spanblk job show 3
  spanblk job show 3 --json | jq .left_bytes";

const WAIT_HELP: &str = "\
Exits with 0 when all is moved, with 1 when the job was paused or cancelled or has stopped.

Example:
  spanblk vhd span db; spanblk job wait 1";

const SET_HELP: &str = "\
Examples:
  spanblk job set 3 --max-rate 50MiB         at most 50 MiB per second
  spanblk job set 3 --max-rate none          as fast as guests bear
  spanblk job set 3 --priority urgent        as fast as the disks can, leaving guests little";

const CANCEL_HELP: &str = "\
Examples:
  spanblk job cancel 3                       each extent is where it was, or where it was going
  spanblk job cancel 3 --revert --wait       and then back to where it was";

/// Options of every command that makes a job.
#[derive(Clone, Debug, Args)]
pub struct JobOptions {
    /// Only print what would be moved
    #[arg(long, conflicts_with = "wait")]
    pub dry_run: bool,
    /// Bytes per second at most [default: as fast as guests bear]
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg)]
    pub max_rate: Option<u64>,
    /// urgent: as fast as the disks can, leaving guests little; for a disk that is dying
    #[arg(long, value_enum, default_value = "normal")]
    pub priority: Priority,
    /// Wait for the end, with a progress bar
    #[arg(long)]
    pub wait: bool,
}

impl JobOptions {
    /// Whether none is given.
    #[must_use]
    pub fn is_default(&self) -> bool {
        !self.dry_run && self.max_rate.is_none() && self.priority == Priority::Normal && !self.wait
    }
}

/// Whether a job gives way to guests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Priority {
    /// It slows down when guests get slower
    Normal,
    /// It does not
    Urgent,
}

/// A limit, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

fn parse_rate(text: &str) -> Result<Rate, String> {
    if text == "none" {
        Ok(Rate(None))
    } else {
        parse_size_arg(text).map(|rate| Rate(Some(rate))).map_err(|error| error.to_string())
    }
}

const SPAN_HELP: &str = "\
Examples:
  spanblk vhd span db --wait                 over all disks that accept spanned VHDs
  spanblk vhd span db --width 3              over three: those it is on, and the roomiest others
  spanblk vhd span db --disks a,b,c          over just these
  spanblk vhd span db --dry-run              what would be moved

The guest goes on working. Moving 2 disks' extents to 3 copies a third of them.";

/// Spans a VHD.
#[derive(Debug, Args)]
#[command(after_help = SPAN_HELP)]
pub struct SpanArgs {
    /// Name or UUID
    #[arg(value_name = "VHD")]
    pub vhd: String,
    /// All the disks it shall be on, by name or UUID [default: chosen]
    #[arg(long, value_name = "DISK,...", value_delimiter = ',')]
    pub disks: Vec<String>,
    /// Over this many disks [default: all]
    #[arg(long, value_name = "N", conflicts_with = "disks")]
    pub width: Option<u8>,
    /// How.
    #[command(flatten)]
    pub options: JobOptions,
}

const UNSPAN_HELP: &str = "\
Examples:
  spanblk vhd unspan db --wait               isolated on the one of its disks that holds most of it
  spanblk vhd unspan db --disk fast0         isolated on that disk
  spanblk vhd unspan db --width 2            on two of its disks";

/// Unspans a VHD.
#[derive(Debug, Args)]
#[command(after_help = UNSPAN_HELP)]
pub struct UnspanArgs {
    /// Name or UUID
    #[arg(value_name = "VHD")]
    pub vhd: String,
    /// The one disk it shall be on [default: the one of its disks that holds most of it]
    #[arg(long, value_name = "DISK")]
    pub disk: Option<String>,
    /// On this many of its disks [default: 1]
    #[arg(long, value_name = "N", conflicts_with = "disk")]
    pub width: Option<u8>,
    /// How.
    #[command(flatten)]
    pub options: JobOptions,
}

const MIGRATE_HELP: &str = "\
Examples:
  spanblk vhd migrate vm1 --disk fast0 --wait     to that disk
  spanblk vhd migrate vm1 --max-rate 100MiB       to the roomiest other one, with 100 MiB/s at most

Of a spanned VHD, 'spanblk vhd unspan vm1 --disk fast0' puts all on one disk.";

/// Moves an isolated VHD.
#[derive(Debug, Args)]
#[command(after_help = MIGRATE_HELP)]
pub struct MigrateArgs {
    /// Name or UUID
    #[arg(value_name = "VHD")]
    pub vhd: String,
    /// The disk it shall be on [default: the roomiest other one]
    #[arg(long, value_name = "DISK")]
    pub disk: Option<String>,
    /// How.
    #[command(flatten)]
    pub options: JobOptions,
}

const SETTLE_HELP: &str = "\
Examples:
  spanblk vhd settle db --wait               after room was made on its disks, or a job was cancelled
  spanblk vhd settle db --dry-run            what would be moved

'spanblk vhd show db' tells where its extents are, and where its layout wants them.";

/// Moves a VHD to where its layout wants it.
#[derive(Debug, Args)]
#[command(after_help = SETTLE_HELP)]
pub struct SettleArgs {
    /// Name or UUID
    #[arg(value_name = "VHD")]
    pub vhd: String,
    /// How.
    #[command(flatten)]
    pub options: JobOptions,
}

const SCRUB_HELP: &str = "\
Examples:
  spanblk vhd scrub db --wait                read all of it, and say what was found
  spanblk vhd scrub db --max-rate 50MiB      slowly, in the background: 'spanblk job list' shows how far it is

Of a VHD that was created with --checksums every block is compared with its checksum; of any other, only what a disk cannot read
is found. What is damaged is written anew from a good replica. Where there is none the job says so at its end; with --wait the
command fails then.";

/// Reads a VHD.
#[derive(Debug, Args)]
#[command(after_help = SCRUB_HELP)]
pub struct ScrubArgs {
    /// Name or UUID
    #[arg(value_name = "VHD")]
    pub vhd: String,
    /// Wait for the end, with a progress bar
    #[arg(long)]
    pub wait: bool,
    /// Bytes per second at most [default: as fast as guests bear]
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg)]
    pub max_rate: Option<u64>,
    /// urgent: as fast as the disks can, leaving guests little
    #[arg(long, value_enum, default_value = "normal")]
    pub priority: Priority,
}

const EVACUATE_HELP: &str = "\
Examples:
  spanblk disk evacuate sdb --wait                      before it is taken out
  spanblk disk evacuate sdb --priority urgent --wait    before it dies

The disk accepts nothing from then on: `spanblk disk set sdb --accept any` takes that back.";

/// Moves everything away from a disk.
#[derive(Debug, Args)]
#[command(after_help = EVACUATE_HELP)]
pub struct EvacuateArgs {
    /// Name or UUID
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// Give up what only failed disks have; it reads as zeros then
    #[arg(long)]
    pub accept_loss: bool,
    /// How.
    #[command(flatten)]
    pub options: JobOptions,
}
