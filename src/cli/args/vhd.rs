//! `spanblk vhd`.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::{
    JobOptions, LimitArgs, MigrateArgs, ScrubArgs, SettleArgs, SharingArgs, SizeOrNone, SpanArgs, UnspanArgs,
    VhdStatsArgs, parse_size_arg, parse_size_or_none, parse_when_full,
};
use crate::control::wire::{Expand, Layout, WhenFull};

/// What to do with guest disks.
#[derive(Debug, Subcommand)]
pub enum VhdCommand {
    /// Create a VHD; the same again changes nothing
    Create(VhdCreateArgs),
    /// All VHDs
    List {
        /// Only those of this VM
        #[arg(long, value_name = "NAME")]
        vm: Option<String>,
    },
    /// One VHD, or what to paste to attach it
    #[command(after_help = SHOW_HELP)]
    Show {
        /// Name or UUID
        #[arg(value_name = "VHD")]
        vhd: String,
        /// Print the flags or XML that attach it
        #[arg(long, value_enum, value_name = "VMM")]
        attach: Option<AttachTarget>,
    },
    /// Which disk each extent is on
    Map {
        /// Name or UUID
        #[arg(value_name = "VHD")]
        vhd: String,
    },
    /// What it did lately, or all of them, the busiest first
    Stats(VhdStatsArgs),
    /// Move it onto more disks, while its guest works
    Span(SpanArgs),
    /// Move it onto fewer disks, or one, while its guest works
    Unspan(UnspanArgs),
    /// Move an isolated VHD to another disk, while its guest works
    Migrate(MigrateArgs),
    /// Move it to where its layout wants it, after it has grown onto other disks
    Settle(SettleArgs),
    /// Read all of it on all its disks, and repair what they have changed or cannot read
    Scrub(ScrubArgs),
    /// Change settings
    Set(VhdSetArgs),
    /// Give a VHD another size; its guest sees a larger one at once
    Resize(VhdResizeArgs),
    /// Give a VHD another name; its socket moves with it
    Rename {
        /// Name or UUID
        #[arg(value_name = "VHD")]
        vhd: String,
        /// The new name
        #[arg(value_name = "NEW-NAME")]
        new_name: String,
    },
    /// Delete a VHD and its data
    #[command(after_help = DELETE_HELP)]
    Delete {
        /// Name or UUID
        #[arg(value_name = "VHD")]
        vhd: String,
        /// Even while a guest is attached
        #[arg(long)]
        force: bool,
    },
    /// Copy a raw or qcow2 image into a new or existing VHD
    Import(ImportArgs),
    /// Copy a VHD that is not attached into a raw or qcow2 image
    Export(ExportArgs),
}

const SHOW_HELP: &str = "\
Examples:
  spanblk vhd show vm1
  spanblk vhd show vm1 --attach qemu
  spanblk --json vhd show vm1";

const DELETE_HELP: &str = "\
Examples:
  spanblk vhd delete vm1
  spanblk vhd delete vm1 --force      the guest's requests fail from then on";

/// What attaches a VHD.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum AttachTarget {
    /// Flags for qemu-system-*
    Qemu,
    /// Flags for cloud-hypervisor
    CloudHypervisor,
    /// XML for the domain
    Libvirt,
}

const CREATE_HELP: &str = "\
Examples:
  spanblk vhd create vm1 --size 20GiB                                   where the policy (in mode auto) or free space says
  spanblk vhd create vm1 --size 20GiB --layout isolated                 all on one disk, chosen in the same way
  spanblk vhd create vm1 --size 20GiB --layout isolated --disks fast0   all on that disk
  spanblk vhd create db  --size 2TiB  --layout spanned                  over all disks
  spanblk vhd create db  --size 2TiB  --layout spanned --width 3        over three disks, chosen
  spanblk vhd create db  --size 2TiB  --layout spanned --replicas 2     each extent on two of them
  spanblk vhd create vm1 --size 20GiB --layout isolated --socket-owner libvirt-qemu:kvm
  spanblk vhd create log --size 1TiB  --layout isolated --quota 100GiB --reservation 20GiB

VHDs are thin unless --thick: room is taken as the guest writes.

--checksums cannot be changed later. It costs: each read reads whole blocks (32 KiB if extents are 1 MiB), a write of less than a
block reads the block first, and each TiB takes 128 MiB of memory.

--quota and --reservation are raw: with two replicas, each extent takes two. Both are rounded up to whole extents. A write beyond the
quota finds no room, as if the disks were full. What is reserved is kept free on the disks of its layout, and others cannot take it; it
is part of the quota of its VM, and no more than the VHD can place (its size, times its replicas).";

/// Creates a VHD.
#[derive(Debug, Args)]
#[command(after_help = CREATE_HELP)]
pub struct VhdCreateArgs {
    /// Unique name: letters, digits, '-', '_', '.'
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Size the guest sees
    #[arg(long, value_parser = parse_size_arg)]
    pub size: u64,
    /// All on one disk, or over several [default: as the policy says in mode auto, else isolated, or spanned if it has replicas or no disk has room for all of it]
    #[arg(long, value_enum)]
    pub layout: Option<Layout>,
    /// Host disks it may use, by name or UUID [default: chosen]
    #[arg(long, value_name = "DISK,...", value_delimiter = ',')]
    pub disks: Vec<String>,
    /// Spanned over this many host disks [default: all]
    #[arg(long, value_name = "N", conflicts_with = "disks")]
    pub width: Option<u8>,
    /// Replicas of each extent, 1 to 3, no two on disks that fail together [default: 1]
    #[arg(long, value_name = "N")]
    pub replicas: Option<u8>,
    /// Take all room now
    #[arg(long)]
    pub thick: bool,
    /// Keep checksums of blocks, and compare each read with them: notices what a host disk silently gets wrong
    #[arg(long)]
    pub checksums: bool,
    /// Refuse guest writes
    #[arg(long)]
    pub read_only: bool,
    /// Logical block size: 512 or 4096 [default: 512]
    #[arg(long, value_name = "SIZE", value_parser = parse_size_arg)]
    pub block_size: Option<u64>,
    /// Virtqueues, the most a guest can use [default: 4]
    #[arg(long, value_name = "N")]
    pub queues: Option<u16>,
    /// The VM it belongs to; made if there is none of that name
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,
    /// Owner of its socket
    #[arg(long, value_name = "USER:GROUP")]
    pub socket_owner: Option<String>,
    /// Mode of its socket, in octal [default: 0660]
    #[arg(long, value_name = "MODE")]
    pub socket_mode: Option<String>,
    /// A write that finds the pool full waits, by default 60 seconds (queue, queue:60s), or fails at once (error)
    #[arg(long, value_name = "queue[:TIME]|error", value_parser = parse_when_full)]
    pub when_full: Option<WhenFull>,
    /// Grow onto the roomiest other disk when its own are full [default: as `pool set --expand` says; else spanned VHDs do, and those the policy may change]
    #[arg(long, value_enum)]
    pub expand: Option<Expand>,
    /// What it is limited to.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What it gets of disks.
    #[command(flatten)]
    pub sharing: SharingArgs,
    /// The most room on host disks that it may take, all replicas counted [default: none]
    #[arg(long, value_name = "SIZE|none", value_parser = parse_size_or_none)]
    pub quota: Option<SizeOrNone>,
    /// Room on host disks that it can always take, whatever others take, all replicas counted [default: none]
    #[arg(long, value_name = "SIZE|none", value_parser = parse_size_or_none)]
    pub reservation: Option<SizeOrNone>,
}

/// Whether a VHD grows by itself, or as the pool says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExpandSetting {
    /// Stay on the disks of its layout
    Never,
    /// Grow onto the roomiest other disk when they are full
    Auto,
    /// What the pool says; if that says nothing, spanned VHDs grow, and isolated ones that the policy may change (mode auto)
    Pool,
}

impl ExpandSetting {
    /// As the API has it.
    #[must_use]
    pub fn expand(self) -> Option<Expand> {
        match self {
            ExpandSetting::Never => Some(Expand::Never),
            ExpandSetting::Auto => Some(Expand::Auto),
            ExpandSetting::Pool => None,
        }
    }
}

const SET_HELP: &str = "\
Examples:
  spanblk vhd set vm1 --when-full error
  spanblk vhd set vm1 --iops-limit 500 --bps-limit 100MiB               at once, also while its guest works
  spanblk vhd set vm1 --iops-limit none
  spanblk vhd set vm1 --weight 300                                      of a busy disk three times as much as others
  spanblk vhd set db --io-priority high --latency-target 2ms
  spanblk vhd set vm1 --expand auto                                     when its disk is full, on to another one
  spanblk vhd set vm1 --socket-owner libvirt-qemu:kvm --socket-mode 0600
  spanblk vhd set vm1 --vm ''                                           not part of a VM any more
  spanblk vhd set db --replicas 2 --wait                                each extent on two disks, while its guest works
  spanblk vhd set log --quota 200GiB                                    writes that wait for its quota go on
  spanblk vhd set log --quota none --reservation none

--replicas makes a job that copies; the options from --dry-run on are for that.

--quota and --reservation are raw: with two replicas, each extent takes two. Both are rounded up to whole extents. A write beyond the
quota finds no room, as if the disks were full; what is more already stays. What is reserved is kept free on the disks of its layout,
and others cannot take it; it is part of the quota of its VM, and no more than the VHD can place (its size, times its replicas).

Weight, priority and target count while several VHDs, or VHDs and jobs, want the same host disk: each gets as much of it as its weight is
of all weights, and what one does not use goes to the others. A priority multiplies the weight: high by 10, low by 1/10, as jobs have it. Who
says nothing, or 'none', has what the VM says, each VHD for itself; else weight 100, normal, no target. A target is met by giving
others less; one that the disk misses even then is given up for a while, since what it takes when nobody else wants it is the least. One
that less for others helps, but not enough, is helped as far as that goes. Late
requests are counted in spanblk_vhd_latency_target_missed_total.

--replicas makes a job that copies; the options from --dry-run on are for that.";

/// Changes a VHD.
#[derive(Debug, Args)]
#[command(after_help = SET_HELP)]
pub struct VhdSetArgs {
    /// Name or UUID
    #[arg(value_name = "VHD")]
    pub vhd: String,
    /// The VM it belongs to, made if there is none of that name; '' for none
    #[arg(long, value_name = "NAME")]
    pub vm: Option<String>,
    /// Owner of its socket; '' for the daemon's user
    #[arg(long, value_name = "USER:GROUP")]
    pub socket_owner: Option<String>,
    /// Mode of its socket, in octal
    #[arg(long, value_name = "MODE")]
    pub socket_mode: Option<String>,
    /// What a write does that finds the pool full
    #[arg(long, value_name = "queue[:TIME]|error", value_parser = parse_when_full)]
    pub when_full: Option<WhenFull>,
    /// Virtqueues, from the next attachment on; not while attached
    #[arg(long, value_name = "N")]
    pub queues: Option<u16>,
    /// Whether it grows onto other disks when its own are full
    #[arg(long, value_enum)]
    pub expand: Option<ExpandSetting>,
    /// The most room on host disks that it may take, all replicas counted
    #[arg(long, value_name = "SIZE|none", value_parser = parse_size_or_none)]
    pub quota: Option<SizeOrNone>,
    /// Room on host disks that it can always take, whatever others take, all replicas counted
    #[arg(long, value_name = "SIZE|none", value_parser = parse_size_or_none)]
    pub reservation: Option<SizeOrNone>,
    /// Replicas of each extent, 1 to 3, no two on disks that fail together; alone
    #[arg(long, value_name = "N", conflicts_with_all = [
        "vm", "socket_owner", "socket_mode", "when_full", "queues", "expand", "quota", "reservation", "LimitArgs", "SharingArgs",
    ])]
    pub replicas: Option<u8>,
    /// What it is limited to.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What it gets of disks.
    #[command(flatten)]
    pub sharing: SharingArgs,
    /// How.
    #[command(flatten)]
    pub options: JobOptions,
}

const RESIZE_HELP: &str = "\
Examples:
  spanblk vhd resize vm1 --size 40GiB            grows it, also while a guest is attached
  spanblk vhd resize vm1 --size 10GiB            refused if that is less, and says what would be lost
  spanblk vhd resize vm1 --size 10GiB --force    shrinks it all the same; not while a guest is attached

What is in the VHD is not resized: grow partitions and file systems afterwards, and shrink them before.";

/// Resizes a VHD.
#[derive(Debug, Args)]
#[command(after_help = RESIZE_HELP)]
pub struct VhdResizeArgs {
    /// Name or UUID
    #[arg(value_name = "VHD")]
    pub vhd: String,
    /// The new size
    #[arg(long, value_parser = parse_size_arg)]
    pub size: u64,
    /// Make it smaller; what is written beyond its new end is lost
    #[arg(long)]
    pub force: bool,
}

const IMPORT_HELP: &str = "\
Examples:
  spanblk vhd import debian.qcow2 vm1                                  isolated, as large as the image
  spanblk vhd import debian.qcow2 vm1 --size 40GiB --layout spanned
  spanblk vhd import backup.raw vm1 --existing                         into a VHD that exists

Images other than raw are converted by qemu-img first, into a sparse temporary file. Zeros are not written.";

/// Imports an image.
#[derive(Debug, Args)]
#[command(after_help = IMPORT_HELP)]
pub struct ImportArgs {
    /// The image
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The VHD
    #[arg(value_name = "NAME")]
    pub name: String,
    /// Format of the image [default: what qemu-img finds]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<String>,
    /// Size of the new VHD [default: that of the image]
    #[arg(long, value_parser = parse_size_arg, conflicts_with = "existing")]
    pub size: Option<u64>,
    /// Layout of the new VHD
    #[arg(long, value_enum, default_value_t = Layout::Isolated, conflicts_with = "existing")]
    pub layout: Layout,
    /// Host disks of the new VHD, by name or UUID
    #[arg(long, value_name = "DISK,...", value_delimiter = ',', conflicts_with = "existing")]
    pub disks: Vec<String>,
    /// Write into a VHD that exists; what it held is lost
    #[arg(long)]
    pub existing: bool,
    /// Read everything back and compare
    #[arg(long)]
    pub verify: bool,
    /// Where the temporary file goes [default: TMPDIR, or beside the image]
    #[arg(long, value_name = "DIR")]
    pub temp_dir: Option<PathBuf>,
}

const EXPORT_HELP: &str = "\
Examples:
  spanblk vhd export vm1 vm1.raw
  spanblk vhd export vm1 vm1.qcow2 --format qcow2

The file must not exist unless --overwrite. What the guest never wrote becomes a hole.";

/// Exports an image.
#[derive(Debug, Args)]
#[command(after_help = EXPORT_HELP)]
pub struct ExportArgs {
    /// Name or UUID of the VHD
    #[arg(value_name = "NAME")]
    pub name: String,
    /// The image
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// raw, qcow2 or whatever qemu-img knows
    #[arg(long, value_name = "FORMAT", default_value = "raw")]
    pub format: String,
    /// Replace a file that exists
    #[arg(long)]
    pub overwrite: bool,
    /// Read everything back and compare
    #[arg(long)]
    pub verify: bool,
}
