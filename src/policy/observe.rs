//! What the policy is told: one moment of a pool, and rates over the window before it. Plain data, in any order.

use crate::base::ids::{DiskId, VhdId, VmId};
use crate::placement::limits::IoLimits;
use crate::placement::record::{Accept, Layout};

/// When something was observed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Seconds since the Unix epoch; may jump.
    pub unix_secs: u64,
    /// Minutes since midnight where the host is: quiet hours go by it.
    pub minute_of_day: u16,
}

/// A pool at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Pool {
    /// When.
    pub at: Moment,
    /// Bytes of an extent.
    pub extent_size: u64,
    /// The disks.
    pub disks: Vec<Disk>,
    /// The VHDs.
    pub vhds: Vec<Vhd>,
    /// VHDs that jobs move which have not ended, whoever ordered them: nobody else may move them, also while a job is paused or stopped.
    pub jobs: Vec<VhdId>,
    /// How many such jobs are running.
    pub in_flight: usize,
    /// Bytes that jobs have moved in the last 24 hours, whoever ordered them.
    pub moved_bytes: u64,
}

/// What kind of device a disk is: what it can do as long as nothing has been measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskKind {
    /// A rotating disk.
    Hdd,
    /// Flash behind SATA or SAS.
    Ssd,
    /// Flash behind NVMe.
    Nvme,
}

impl DiskKind {
    /// Requests of 4 KiB a second that such a disk can usually serve at most.
    #[must_use]
    pub fn usual_iops(self) -> f64 {
        match self {
            DiskKind::Hdd => 150.0,
            DiskKind::Ssd => 60_000.0,
            DiskKind::Nvme => 400_000.0,
        }
    }

    /// Nanoseconds that a request usually takes when the disk has nothing else to do.
    #[must_use]
    pub fn usual_latency_ns(self) -> u64 {
        match self {
            DiskKind::Hdd => 8_000_000,
            DiskKind::Ssd => 150_000,
            DiskKind::Nvme => 80_000,
        }
    }

    /// Bytes that may usually be written a day over its life, as a multiple of its capacity; `None`: writing does not wear it out.
    #[must_use]
    pub fn writes_a_day(self) -> Option<f64> {
        match self {
            DiskKind::Hdd => None,
            DiskKind::Ssd | DiskKind::Nvme => Some(1.0),
        }
    }

    /// The word for people.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            DiskKind::Hdd => "HDD",
            DiskKind::Ssd => "SSD",
            DiskKind::Nvme => "NVMe",
        }
    }
}

/// Whether a disk works.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// It does.
    Works,
    /// It gave errors, or was very slow, several times lately.
    Suspect,
    /// It has failed, or is missing.
    Failed,
}

/// How long requests took, from popped to completed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Latency {
    /// On average, in nanoseconds; 0 if there was none.
    pub mean_ns: u64,
    /// 99 of 100 took at most this, in nanoseconds.
    pub p99_ns: u64,
}

/// A rate of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Flow {
    /// Reads and writes a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes: f64,
}

/// A host disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Disk {
    /// Which.
    pub id: DiskId,
    /// Its name.
    pub name: String,
    /// Its failure domain: disks that fail together have the same number.
    pub domain: u32,
    /// Slots for extents.
    pub slots: u32,
    /// Slots that can be given out.
    pub free: u32,
    /// Whether it works.
    pub health: Health,
    /// Its role.
    pub accept: Accept,
    /// What it is.
    pub kind: DiskKind,
    /// Part of the time that it was busy, 0 to 1.
    pub busy: f64,
    /// Requests in flight, on average.
    pub queue_depth: f64,
    /// How long it took for a request.
    pub latency: Latency,
    /// What guests asked of it.
    pub guests: Flow,
    /// What jobs asked of it.
    pub background: Flow,
}

/// A guest disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Vhd {
    /// Which.
    pub id: VhdId,
    /// Its name.
    pub name: String,
    /// The VM that it belongs to.
    pub vm: Option<VmId>,
    /// Bytes that its guest sees.
    pub size: u64,
    /// Where it should be.
    pub layout: Layout,
    /// Replicas that each extent should have.
    pub replicas: u8,
    /// Failure domains that it can lose and still have all its data, as it is placed now; `None`: nobody has looked, as nobody asks.
    pub survives: Option<u8>,
    /// Extents that have a place.
    pub placed: u32,
    /// How many replicas are on which disk; disks without any are left out.
    pub extents: Vec<(DiskId, u32)>,
    /// Slots that its quota and that of its VM still leave it; `None`: there is none.
    pub quota_left: Option<u64>,
    /// What it is limited to.
    pub limits: IoLimits,
    /// What its guest does now.
    pub flow: Flow,
    /// What its guest usually does: the median of the hours of the last day, or of those that are known, so that what happens for a
    /// few hours is not usual.
    pub usual: Flow,
    /// Part of its requests that are reads, 0 to 1.
    pub read_share: f64,
    /// How long its requests take now.
    pub latency: Latency,
    /// How long they usually took; 0 if that is not known.
    pub usual_latency: Latency,
    /// Bytes that its guest came back to in the last hour.
    pub working_set: u64,
    /// Bytes by which it grows in a day; negative if it gives back more than it takes.
    pub growth: f64,
}
