//! What is measured, and what spanblk should reach.

use lab::fio;
use lab::tools::Fill;

/// What kind of disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Ram,
    Ssd,
}

impl Kind {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Kind::Ram => "RAM",
            Kind::Ssd => "SSD",
        }
    }

    /// What such a disk is filled with, and what is written to it.
    #[must_use]
    pub fn fill(self) -> Fill {
        match self {
            Kind::Ram => Fill::Word,
            Kind::Ssd => Fill::Random,
        }
    }
}

/// Requests at random places.
#[derive(Debug)]
pub struct Workload {
    pub name: &'static str,
    pub write: bool,
    /// Bytes of a request.
    pub len: u64,
    /// Requests in flight, on each queue.
    pub depth: u16,
    pub queues: u16,
    pub disks: &'static [Kind],
    /// Goals in memory and on the machine's disk.
    pub ram: Goals,
    pub ssd: Goals,
}

/// What spanblk should reach, as a multiple of what `qemu-storage-daemon` does.
#[derive(Clone, Copy, Debug)]
pub struct Goals {
    /// At least so many requests per second.
    pub iops: Option<f64>,
    /// At most so much CPU time for a request.
    pub cpu: Option<f64>,
    /// At most so long a 99th percentile.
    pub p99: Option<f64>,
    /// What raw fio did on the machine that the goals come from: IOPS, and CPU time for a request. What a daemon can reach depends
    /// on what the peer loses by waiting, which is a machine's matter; how close it comes to raw fio is its own.
    pub fio: (Option<f64>, Option<f64>),
}

const NONE: Goals = Goals { iops: None, cpu: None, p99: None, fio: (None, None) };

const fn ram(iops: f64, cpu: Option<f64>, fio: (f64, Option<f64>)) -> Goals {
    Goals { iops: Some(iops), cpu, p99: Some(1.0), fio: (Some(fio.0), fio.1) }
}

const fn ssd(iops: f64, cpu: f64, fio: (f64, f64)) -> Goals {
    Goals { iops: Some(iops), cpu: Some(cpu), p99: Some(1.0), fio: (Some(fio.0), Some(fio.1)) }
}

const BOTH: &[Kind] = &[Kind::Ram, Kind::Ssd];

pub const WORKLOADS: &[Workload] = &[
    Workload {
        name: "4k randread depth 1",
        write: false,
        len: 4 << 10,
        depth: 1,
        queues: 1,
        disks: BOTH,
        ram: ram(1.8, None, (8.10, None)),
        ssd: ssd(1.24, 1.0, (1.63, 0.47)),
    },
    Workload {
        name: "4k randread depth 32",
        write: false,
        len: 4 << 10,
        depth: 32,
        queues: 1,
        disks: BOTH,
        ram: ram(3.0, Some(0.33), (4.00, Some(0.27))),
        ssd: ssd(1.05, 0.65, (1.24, 0.56)),
    },
    Workload {
        name: "4k randwrite depth 32",
        write: true,
        len: 4 << 10,
        depth: 32,
        queues: 1,
        disks: BOTH,
        ram: ram(2.8, Some(0.33), (3.36, None)),
        ssd: ssd(1.0, 0.65, (1.04, 0.60)),
    },
    Workload {
        name: "128k randread depth 8",
        write: false,
        len: 128 << 10,
        depth: 8,
        queues: 1,
        disks: BOTH,
        ram: ram(1.3, None, (2.25, None)),
        ssd: ssd(1.0, 0.75, (1.04, 0.67)),
    },
    Workload {
        name: "4k randread depth 32 x 2",
        write: false,
        len: 4 << 10,
        depth: 32,
        queues: 2,
        disks: &[Kind::Ram],
        ram: ram(2.7, Some(0.33), (6.12, None)),
        ssd: NONE,
    },
];

impl Workload {
    #[must_use]
    pub fn goals(&self, kind: Kind) -> Goals {
        match kind {
            Kind::Ram => self.ram,
            Kind::Ssd => self.ssd,
        }
    }

    /// The same for fio.
    #[must_use]
    pub fn fio(&self, kind: Kind) -> fio::Load {
        fio::Load { write: self.write, len: self.len, depth: self.depth, jobs: self.queues, fill: kind.fill() }
    }
}
