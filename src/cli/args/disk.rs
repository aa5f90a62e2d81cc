//! `spanblk disk`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{EvacuateArgs, JobOptions, StatsArgs, parse_size_arg};
use crate::control::wire::Accept;

/// What to do with host disks.
#[derive(Debug, Subcommand)]
pub enum DiskCommand {
    /// Format a disk and add it to the pool that the daemon serves
    Add(DiskAddArgs),
    /// All disks of the pool
    List,
    /// One disk
    Show {
        /// Name or UUID
        #[arg(value_name = "DISK")]
        disk: String,
    },
    /// What guests did there lately, and the daemon for itself
    Stats(StatsArgs),
    /// Wipe the label of a disk that nobody serves
    Wipe(DiskWipeArgs),
    /// Change what a disk takes
    Set(DiskSetArgs),
    /// Move everything away from a disk, while guests work
    Evacuate(EvacuateArgs),
    /// Let another disk take the place of one, while guests work
    Replace(DiskReplaceArgs),
    /// Make the replicas anew that a failed disk had, on other disks
    #[command(after_help = REBUILD_HELP)]
    Rebuild(DiskJobArgs),
    /// Fill the replicas on a disk that missed something, where they are
    #[command(after_help = RESYNC_HELP)]
    Resync(DiskJobArgs),
    /// Tell which VHDs and VMs lose data, or replicas, if a disk is lost
    Impact(DiskImpactArgs),
    /// Mark a disk as failed: nothing more is submitted to it
    Fail(DiskFailArgs),
    /// Take an empty disk out of the pool
    #[command(after_help = REMOVE_HELP)]
    Remove {
        /// Name or UUID
        #[arg(value_name = "DISK")]
        disk: String,
    },
}

const ADD_HELP: &str = "\
Examples:
  spanblk disk add /dev/disk/by-id/nvme-D
  spanblk disk add --size 10GiB --name spare /srv/d.img

Add the path to the daemon's configuration, too: at the next start it looks for its disks there.";

/// Adds a disk.
#[derive(Debug, Args)]
#[command(after_help = ADD_HELP)]
pub struct DiskAddArgs {
    /// Block device or regular file
    #[arg(value_name = "DISK")]
    pub disk: PathBuf,
    /// How it is formatted.
    #[command(flatten)]
    pub new: NewDiskArgs,
    /// What new extents it takes
    #[arg(long, value_enum, default_value_t = Accept::Any)]
    pub accept: Accept,
}

/// How a disk is formatted that is added to the pool.
#[derive(Debug, Args)]
pub struct NewDiskArgs {
    /// Unique name of the disk that is added [default: from the by-id link or the file name]
    #[arg(long)]
    pub name: Option<String>,
    /// Create its file if it does not exist, sparse, with this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg)]
    pub size: Option<u64>,
    /// What it can fail together with [default: parent device]
    #[arg(long, value_name = "DOMAIN")]
    pub failure_domain: Option<String>,
    /// Overwrite a filesystem, partition table or label that is found on it
    #[arg(long)]
    pub force: bool,
}

impl NewDiskArgs {
    /// Whether none is given.
    #[must_use]
    pub fn is_default(&self) -> bool {
        self.name.is_none() && self.size.is_none() && self.failure_domain.is_none() && !self.force
    }
}

const REPLACE_HELP: &str = "\
Examples:
  spanblk disk replace sdb /dev/disk/by-id/nvme-D --wait      a new disk, which is added to the pool for it
  spanblk disk replace sdb spare1 --wait                      one that is in the pool already
  spanblk disk replace sdb /dev/disk/by-id/nvme-D --dry-run   what would be moved, and what is lost if sdb is dead

Guests go on working. When everything is on the new disk, the old one leaves the pool and its label is wiped (unless --keep).
Of a disk that is dead, what has a replica elsewhere is copied from there. What is nowhere else is named; with --accept-loss
it is given up and reads as zeros: restore it from a backup then. Put the new path in the daemon's configuration.";

/// Lets a disk take the place of another one.
#[derive(Debug, Args)]
#[command(after_help = REPLACE_HELP)]
pub struct DiskReplaceArgs {
    /// The disk that goes: name or UUID
    #[arg(value_name = "OLD")]
    pub old: String,
    /// The disk that comes: a path (with a '/'), which is formatted and added, or the name of a disk of the pool
    #[arg(value_name = "NEW")]
    pub new: String,
    /// How it is formatted, if it is added.
    #[command(flatten)]
    pub format: NewDiskArgs,
    /// What new extents it takes [default: as the disk that goes]
    #[arg(long, value_enum)]
    pub accept: Option<Accept>,
    /// Give up what only failed disks have; it reads as zeros then
    #[arg(long)]
    pub accept_loss: bool,
    /// Leave the old disk in the pool, empty
    #[arg(long)]
    pub keep: bool,
    /// How.
    #[command(flatten)]
    pub options: JobOptions,
}

const REBUILD_HELP: &str = "\
Examples:
  spanblk disk rebuild sdb --dry-run     what would be copied, and where
  spanblk disk rebuild sdb --wait

The daemon begins this by itself: at once when a disk fails, and when one has been missing for as long as `serve
--rebuild-delay` says. VHDs with one replica have nothing that theirs could be made from: see `spanblk disk replace`.";

const RESYNC_HELP: &str = "\
Example:
  spanblk disk resync sdb --wait

The daemon begins this by itself when a disk works again. Only extents that were written to meanwhile are copied.";

/// A job about the replicas on a disk.
#[derive(Debug, Args)]
pub struct DiskJobArgs {
    /// Name or UUID
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// How.
    #[command(flatten)]
    pub options: JobOptions,
}

const IMPACT_HELP: &str = "\
Examples:
  spanblk disk impact sdb                                        before it is pulled, or after it has failed
  spanblk disk impact sdb --offline /dev/sdb /dev/sdc            without a daemon, as if sdb were lost
  spanblk disk impact --offline '/dev/disk/by-id/nvme-*'         what the disks have taken that are missing now

Lost: no other disk that works has an in-sync replica. Degraded: another one has. Disks that are failed or missing count as
gone. Sizes count whole extents, what guests have written in them is told apart. With --offline everything is opened read-only;
a disk that is missing is named. Without a majority of the disks that carry the placement table the answer may be stale, and
says so.";

/// What the loss of a disk means.
#[derive(Debug, Args)]
#[command(after_help = IMPACT_HELP)]
pub struct DiskImpactArgs {
    /// Name or UUID [default with --offline: all disks that are missing]
    #[arg(value_name = "DISK", required_unless_present = "offline")]
    pub disk: Option<String>,
    /// Read the table from these disks, which nobody serves: block devices, regular files, or patterns
    #[arg(long, value_name = "IMAGE", num_args = 1..)]
    pub offline: Vec<PathBuf>,
}

const FAIL_HELP: &str = "\
Examples:
  spanblk disk fail sdb --dry-run     what it would mean
  spanblk disk fail sdb               shows what it means, and asks

For a disk that hangs or lies. Requests that need it fail from then on; what has a replica elsewhere is read from there. What is
on it stays: after a restart of the daemon it is used again, if it is still there. 'spanblk disk replace' gives it a successor.";

/// Marks a disk as failed.
#[derive(Debug, Args)]
#[command(after_help = FAIL_HELP)]
pub struct DiskFailArgs {
    /// Name or UUID
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// Do not ask, even if data can be read nowhere else
    #[arg(long)]
    pub yes: bool,
    /// Even if the placement table loses its majority, so that no flush of any guest succeeds
    #[arg(long)]
    pub force: bool,
    /// Only say what it would mean
    #[arg(long)]
    pub dry_run: bool,
}

const REMOVE_HELP: &str = "\
Examples:
  spanblk disk evacuate sdb --wait && spanblk disk remove sdb
  spanblk disk list                          what is on which disk

Guests go on working. The disk's label is wiped, and its path may be used for something else at once; take it out of the
daemon's configuration, too. If it carries the placement table, a disk with a metadata region that is not in use takes its
place; without one, fewer disks carry the table from then on, and that is said.";

const WIPE_HELP: &str = "\
Example:
  spanblk disk wipe --yes /dev/disk/by-id/nvme-D";

/// Wipes a label.
#[derive(Debug, Args)]
#[command(after_help = WIPE_HELP)]
pub struct DiskWipeArgs {
    /// Block device or regular file
    #[arg(value_name = "DISK")]
    pub disk: PathBuf,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}

const SET_HELP: &str = "\
Examples:
  spanblk disk set fast0 --accept isolated     one disk for isolated VHDs only
  spanblk disk set old1 --accept none          nothing new; what is there stays";

/// Changes a disk.
#[derive(Debug, Args)]
#[command(after_help = SET_HELP)]
pub struct DiskSetArgs {
    /// Name or UUID
    #[arg(value_name = "DISK")]
    pub disk: String,
    /// What new extents it takes
    #[arg(long, value_enum)]
    pub accept: Option<Accept>,
    /// What it can fail together with
    #[arg(long, value_name = "DOMAIN")]
    pub failure_domain: Option<String>,
}
