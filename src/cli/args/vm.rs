//! `spanblk vm`.

use clap::{Args, Subcommand};

use super::{LimitArgs, SharingArgs, SizeOrNone, StatsArgs, parse_size_or_none};

/// What to do with VMs.
#[derive(Debug, Subcommand)]
pub enum VmCommand {
    /// Create a VM; the same again changes nothing
    Create(VmCreateArgs),
    /// All VMs
    #[command(after_help = LIST_HELP)]
    List,
    /// One VM: its VHDs, and what they come to
    #[command(after_help = SHOW_HELP)]
    Show {
        /// Name or UUID
        #[arg(value_name = "VM")]
        vm: String,
    },
    /// What its VHDs did lately, together
    Stats(StatsArgs),
    /// Change its name, labels, owner, limits, shares of disks, quota or reservation
    Set(VmSetArgs),
    /// Delete a VM that has no VHDs
    #[command(after_help = DELETE_HELP)]
    Delete {
        /// Name or UUID
        #[arg(value_name = "VM")]
        vm: String,
    },
}

const LIST_HELP: &str = "\
Examples:
  spanblk vm list
  spanblk vm list --json | jq -r '.vms[] | select(.labels.env == \"prod\").name'";

const SHOW_HELP: &str = "\
Examples:
  spanblk vm show web
  spanblk vm show web --json | jq .allocated_bytes";

const DELETE_HELP: &str = "\
Examples:
  spanblk vm delete web                 refused while it has VHDs
  spanblk vhd set web-data --vm ''      takes a VHD out of its VM; the VHD stays
  spanblk vhd delete web-root           deletes a VHD and its data";

const CREATE_HELP: &str = "\
Examples:
  spanblk vm create web
  spanblk vm create web --label env=prod --label tier=front --owner ops@example.org
  spanblk vhd create web-root --size 20GiB --layout isolated --vm web

A VHD belongs to a VM by '--vm'. Naming a VM that does not exist makes it, without labels and owner.

--quota and --reservation are for its VHDs together, and raw: with two replicas, each extent takes two. Both are rounded up to whole
extents. What is reserved is kept free on the disks of its VHDs as a whole, not on each of them; what a VHD has reserved for itself
is part of it, and of the quota: other VHDs of the VM cannot take that. A VM without VHDs has no disks, and nothing is kept free for it.";

/// Creates a VM.
#[derive(Debug, Args)]
#[command(after_help = CREATE_HELP)]
pub struct VmCreateArgs {
    /// Unique name
    #[arg(value_name = "NAME")]
    pub name: String,
    /// A label to find it by; may be given several times
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Whose it is, for people
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub owner: Option<String>,
    /// What its VHDs together are limited to.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What each of its VHDs gets of disks that says nothing itself.
    #[command(flatten)]
    pub sharing: SharingArgs,
    /// The most room on host disks that its VHDs may take together, all replicas counted [default: none]
    #[arg(long, value_name = "SIZE|none", value_parser = parse_size_or_none)]
    pub quota: Option<SizeOrNone>,
    /// Room on host disks that its VHDs together can always take, whatever others take, all replicas counted [default: none]
    #[arg(long, value_name = "SIZE|none", value_parser = parse_size_or_none)]
    pub reservation: Option<SizeOrNone>,
}

const SET_HELP: &str = "\
Examples:
  spanblk vm set web --label env=test --label tier=      one label gets another value, one goes
  spanblk vm set web --name shop                         its VHDs belong to 'shop' then
  spanblk vm set web --iops-limit 2000                   all its VHDs together, at once
  spanblk vm set web --weight 300                        each of its VHDs that says nothing itself: see 'spanblk vhd set --help'
  spanblk vm set web --owner none
  spanblk vm set web --quota 500GiB --reservation 100GiB

--quota and --reservation are for its VHDs together, and raw: with two replicas, each extent takes two. Both are rounded up to whole
extents. What is reserved is kept free on the disks of its VHDs as a whole, not on each of them; what a VHD has reserved for itself
is part of it, and of the quota: other VHDs of the VM cannot take that. A VM without VHDs has no disks, and nothing is kept free for it.

--weight, --io-priority and --latency-target are no joint share, unlike the weight of a control group: each VHD has them for itself. A VM
that asks for the same disk with two VHDs gets twice as much as with one. To hold a VM to one share, give each of its VHDs a part.";

/// Changes a VM.
#[derive(Debug, Args)]
#[command(after_help = SET_HELP)]
pub struct VmSetArgs {
    /// Name or UUID
    #[arg(value_name = "VM")]
    pub vm: String,
    /// Another name; its VHDs go with it, at once
    #[arg(long, value_name = "NEW-NAME")]
    pub name: Option<String>,
    /// A label to add or change; without a value behind '=', one to remove; may be given several times
    #[arg(long = "label", value_name = "KEY=[VALUE]", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Whose it is, for people; 'none' for nobody's
    #[arg(long, value_name = "TEXT|none", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub owner: Option<String>,
    /// What its VHDs together are limited to.
    #[command(flatten)]
    pub limits: LimitArgs,
    /// What each of its VHDs gets of disks that says nothing itself.
    #[command(flatten)]
    pub sharing: SharingArgs,
    /// The most room on host disks that its VHDs may take together, all replicas counted
    #[arg(long, value_name = "SIZE|none", value_parser = parse_size_or_none)]
    pub quota: Option<SizeOrNone>,
    /// Room on host disks that its VHDs together can always take, whatever others take, all replicas counted
    #[arg(long, value_name = "SIZE|none", value_parser = parse_size_or_none)]
    pub reservation: Option<SizeOrNone>,
}

/// Only the shape: what keys and values may be is for the daemon to say.
fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("a label is KEY=VALUE, such as env=prod".to_owned()),
    }
}
