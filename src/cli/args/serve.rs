//! `spanblk serve`.

use std::path::PathBuf;

use clap::Args;

use super::parse_log_level;
use crate::control::serve::config::{Delay, FairShares};
use crate::sandbox::{Mode, NoMode};

const SERVE_HELP: &str = "\
Examples:
  spanblk serve /srv/a.img /srv/b.img
  spanblk serve --config /etc/spanblk.toml
  spanblk serve --takeover --config /etc/spanblk.toml     # another version, without a restart
  spanblk serve --reactors 4 --pin --metrics-listen 127.0.0.1:9464 '/dev/disk/by-id/nvme-*'

DISKs are paths or globs, in any order: disks of the pool are found by their labels. Options win over the configuration
file, whose keys are: disks (list), pool, control, socket_dir, reactors, pin, poll_max_us, hang_timeout, rebuild_delay,
fair_shares, metrics_listen, user, sandbox, disk_dirs (list), log_level.
The first SIGTERM or SIGINT finishes what guests have asked for, syncs and stops; the second stops at once. Under systemd with
FileDescriptorStoreMax= in the unit, frontends stay connected if the unit is restarted.";

/// Runs the daemon.
#[derive(Clone, Debug, Default, Args)]
#[command(after_help = SERVE_HELP)]
pub struct ServeArgs {
    /// Disks of the pool: paths or globs
    #[arg(value_name = "DISK")]
    pub disks: Vec<String>,
    /// Facts of this host, as TOML
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Serve this pool, if the paths lead to disks of several [default: the only one]
    #[arg(long, value_name = "UUID")]
    pub pool: Option<uuid::Uuid>,
    /// Where each VHD's vhost-user socket goes [default: /run/spanblk/vhost]
    #[arg(long, value_name = "DIR")]
    pub socket_dir: Option<PathBuf>,
    /// Threads that serve guests [default: one per core, at most 8]
    #[arg(long, value_name = "N")]
    pub reactors: Option<u16>,
    /// Serve /metrics on this TCP address, too
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_listen: Option<std::net::SocketAddr>,
    /// Pin each reactor to a core
    #[arg(long)]
    pub pin: bool,
    /// Longest time in microseconds that a reactor looks for requests before it sleeps, if that pays (half of it while it has
    /// little to do); 0: never [default: 50]
    #[arg(long, value_name = "US")]
    pub poll_max_us: Option<u32>,
    /// A disk on which nothing completes for so many seconds has failed; 0: never [default: 30]
    #[arg(long, value_name = "SECS")]
    pub hang_timeout: Option<u32>,
    /// Seconds after which the replicas of a missing disk are made anew on others (those of a failed one are at once); 'never':
    /// wait for it [default: 3600]
    #[arg(long, value_name = "SECS")]
    pub rebuild_delay: Option<Delay>,
    /// auto: a host disk that several VHDs want at the same time, or VHDs and jobs, is shared out among them by their weights; off: as they
    /// ask [default: auto]
    #[arg(long, value_name = "auto|off", value_enum, hide_possible_values = true)]
    pub fair_shares: Option<FairShares>,
    /// Open a pool without a majority of its placement store: commits that only missing disks have are lost
    #[arg(long)]
    pub accept_stale: bool,
    /// Serve with the rights of this user (and group), once everything is open that needs more. VHDs' sockets can still belong to
    /// others: a small process with the rights to open disks and to give sockets away stays behind
    #[arg(long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// on: the daemon can open no file, run no program and connect to nobody once it serves, and ends at a system call that it should
    /// not need; log: such calls go to the kernel's audit log and are carried out; off [default: on]
    #[arg(long, value_name = "MODE", value_parser = parse_sandbox)]
    pub sandbox: Option<Mode>,
    /// Disks may be opened here later ('disk add', 'disk replace'), besides where the given ones are; repeatable. In /dev only block
    /// devices that nothing else uses
    #[arg(long = "disk-dir", value_name = "DIR")]
    pub disk_dirs: Vec<PathBuf>,
    /// Take over from the daemon that serves, which has the same control socket: guests go on after a pause of a fraction of a second, also
    /// those whose VMM would not connect again. If this one does not come to serve, the other one goes on
    #[arg(long, conflicts_with = "accept_stale")]
    pub takeover: bool,
    /// off, error, warn, info, debug or trace [default: info]
    #[arg(long, value_name = "LEVEL", env = "SPANBLK_LOG", value_parser = parse_log_level)]
    pub log_level: Option<log::LevelFilter>,
}

fn parse_sandbox(text: &str) -> Result<Mode, NoMode> {
    text.parse()
}
