//! `spanblk pool`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{ExpandSetting, JobOptions, parse_size_arg};
use crate::base::limits::EXTENT_SIZE_DEFAULT;

/// What to do with the pool.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Format disks into a new pool
    Create(PoolCreateArgs),
    /// Disks, space, placement store and warnings of the pool that the daemon serves
    Show,
    /// Move extents of spanned VHDs so that they are in proportion over all disks, after a disk was added
    #[command(after_help = REBALANCE_HELP)]
    Rebalance(JobOptions),
    /// Change settings of the pool
    Set {
        /// Whether VHDs that do not say grow onto other disks when theirs are full; pool: spanned ones do, and isolated ones that the policy may change (mode auto)
        #[arg(long, value_enum)]
        expand: ExpandSetting,
    },
    /// Wipe the labels of a pool that nobody serves: all VHDs on it are lost
    Destroy(PoolDestroyArgs),
    /// Bring the on-disk format of a pool that nobody serves up to this version of spanblk
    Upgrade {
        /// All disks of the pool
        #[arg(value_name = "DISK", required = true)]
        disks: Vec<PathBuf>,
    },
}

const REBALANCE_HELP: &str = "\
Examples:
  spanblk pool rebalance --dry-run           what would be moved
  spanblk pool rebalance --wait              after a disk was added, or accepts VHDs again

Isolated VHDs stay where they are, and those whose disks or width were chosen on their disks.";

// As the help text of --extent-size has it.
const _: () = assert!(EXTENT_SIZE_DEFAULT == 1 << 20);

const CREATE_HELP: &str = "\
Examples:
  spanblk pool create /dev/disk/by-id/nvme-A /dev/disk/by-id/nvme-B /dev/disk/by-id/nvme-C
  spanblk pool create --size 10GiB /srv/a.img /srv/b.img            sparse files, created if absent
  spanblk pool create --name fast0 --name fast1 /dev/sdb /dev/sdc   names in the order of the disks
  spanblk pool create --name /dev/sdb=fast0 /dev/sdb /dev/sdc       a name for one of them
  spanblk pool create --metadata /dev/sdb,/dev/sdc,/dev/sdd /dev/sd[b-h]

Up to three disks carry the placement table, each on a failure domain of its own where possible. With three, any one may
fail; with two, losing one stops the next start until 'serve --accept-stale'; with one, losing it loses the pool.
A disk with a filesystem, partition table or label on it is refused without --force.";

/// Formats disks into a new pool.
#[derive(Debug, Args)]
#[command(after_help = CREATE_HELP)]
pub struct PoolCreateArgs {
    /// Block devices or regular files
    #[arg(value_name = "DISK", required = true)]
    pub disks: Vec<PathBuf>,
    /// Unit of placement: a power of two from 256KiB to 16MiB
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = parse_size_arg)]
    pub extent_size: u64,
    /// Create files that do not exist, sparse, with this size
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg)]
    pub size: Option<u64>,
    /// Name of a disk: PATH=NAME, or names in the order of the disks [default: from the by-id link or the file name]
    #[arg(long = "name", value_name = "[PATH=]NAME")]
    pub names: Vec<String>,
    /// What a disk can fail together with: PATH=DOMAIN, or domains in the order of the disks [default: parent device]
    #[arg(long = "failure-domain", value_name = "[PATH=]DOMAIN")]
    pub failure_domains: Vec<String>,
    /// The disks that carry the placement table, one to three [default: chosen]
    #[arg(long, value_name = "DISK,...", value_delimiter = ',')]
    pub metadata: Vec<PathBuf>,
    /// Disks that carry the placement table and nothing else
    #[arg(long, value_name = "DISK,...", value_delimiter = ',', conflicts_with = "metadata")]
    pub metadata_only: Vec<PathBuf>,
    /// Disks that never carry the placement table
    #[arg(long, value_name = "DISK,...", value_delimiter = ',')]
    pub data_only: Vec<PathBuf>,
    /// Overwrite filesystems, partition tables and labels that are found on the disks
    #[arg(long)]
    pub force: bool,
}

const DESTROY_HELP: &str = "\
Example:
  spanblk pool destroy --yes /srv/a.img /srv/b.img

Refused while a daemon serves the pool. The data stays on the disks until it is overwritten; 'disk wipe' is for single disks.";

/// Wipes the labels of a pool.
#[derive(Debug, Args)]
#[command(after_help = DESTROY_HELP)]
pub struct PoolDestroyArgs {
    /// All disks of the pool
    #[arg(value_name = "DISK", required = true)]
    pub disks: Vec<PathBuf>,
    /// Do not ask
    #[arg(long)]
    pub yes: bool,
}
