//! `spanblk simulate`.

use std::path::PathBuf;

use clap::Args;

const SIMULATE_HELP: &str = "\
Settings of SPEC, as key=value, separated by commas, spaces or lines; @FILE reads them from a file:
  hosts=20          hosts, each a pool of its own
  fleet=nvme:40+ssd:30+mixed:15+hdd:15    kinds of hosts and their parts
  disks=8           disks of a host
  vhds=40           VHDs of a host at the beginning, in VMs of one to four
  days=6 warmup=3   virtual days, and how many of them are not measured
  extent=1GiB       unit of placement: larger than in a pool, to be quicker
  fill=50%          what is written at the beginning, of the capacity
  growth=1%         growth in a day, on average; a few VHDs grow much faster, a few shrink
  load=30%          what is asked for, on average over a day, of what the disks can do
  churn=5%          VMs that go in a day, and others come
  aggressors=0.5    times a day that some VHD of a host asks for all it can get
  skew=0.7          how unevenly the extents of a VHD are asked for (exponent of a Pareto distribution)
  move-rate=100MiB  what one move copies in a second at most; it also leaves disks three quarters of their time
  step=5m look=5m   time in which nothing changes; time between two looks of the policy
  moved-a-day=1%    what the policy may move in a day, of the capacity
  fair-shares=yes   each VHD gets its share of a busy disk, as the daemon has it; no: who asks for more gets more

Lines of a trace: seconds,host,vm,vhd,size,used,iops,bytes_per_sec,read_share (the first line is this header). A line says what a
VHD is and does from then on; size and used are bytes; size 0: it is gone. Lines are in the order of time. Of SPEC only what
is not about guests counts then.

The table:
  busy        part of the time that disks are busy
  imbalance   standard deviation of that among the disks of a host, in percentage points
  p99 proxy   99th percentile of a VHD's latencies by a model of queues, as a multiple of its target (30 ms on hosts with
              HDDs, 1.5 ms with SSDs, 0.75 ms with NVMe disks alone); 99 of 100 VHDs' minutes are better
  fit         VHDs that always had room and were served within their target in 99 of 100 minutes
  touched     VMs that lack something when a disk fails, on average over disks
  moved       bytes moved on the day with most, of the capacity
Disks are modelled, so that the numbers compare ways to place VHDs; they foretell no device.

Examples:
  spanblk simulate                                       a small fleet, in some seconds
  spanblk simulate --synthetic hosts=200,days=8 --seeds 5 --svg plot.svg
  spanblk simulate --synthetic 'fleet=hdd:1 load=20%'    what becomes of rotating disks
  spanblk simulate --trace week.csv --synthetic fleet=ssd:1,disks=12,warmup=1";

/// Simulates days of many hosts in virtual time.
#[derive(Debug, Args)]
#[command(after_help = SIMULATE_HELP)]
pub struct SimulateArgs {
    /// Hosts and guests, as key=value, or @FILE [default: as below]
    #[arg(long, value_name = "SPEC")]
    pub synthetic: Option<String>,
    /// What guests did, from a file, instead of made-up ones
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
    /// Number of seeds: means and standard deviations are over them
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u64).range(1..=1000))]
    pub seeds: u64,
    /// Only this seed
    #[arg(long, value_name = "SEED", conflicts_with = "seeds")]
    pub seed: Option<u64>,
    /// Write the table as a picture
    #[arg(long, value_name = "FILE")]
    pub svg: Option<PathBuf>,
}
