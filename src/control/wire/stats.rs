//! What VHDs, VMs and disks did.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What was done in a time. Means are over what is known of it, shares are 0 to 1, and what nothing is known of is 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatsSample {
    /// When it begins, in seconds since the Unix epoch.
    pub begins_secs: u64,
    /// When it ends.
    pub ends_secs: u64,
    /// Seconds of it that are known: less if the daemon was off.
    pub covered_secs: f64,
    /// Reads a second.
    pub reads_per_sec: f64,
    /// Writes a second.
    pub writes_per_sec: f64,
    /// Bytes read a second.
    pub read_bytes_per_sec: f64,
    /// Bytes written a second.
    pub write_bytes_per_sec: f64,
    /// Reads and writes a second in the busiest 10 seconds. Of a VM: no more than that.
    pub requests_per_sec_peak: f64,
    /// Bytes a second in the busiest 10 seconds. Of a VM: no more than that.
    pub bytes_per_sec_peak: f64,
    /// Of the reads and writes, those that were reads.
    pub read_share: f64,
    /// Reads and writes in progress, or held back in their virtqueue.
    pub queue_depth: f64,
    /// Microseconds in which half of the reads and writes were done, once they were taken off their virtqueue.
    pub latency_us_p50: f64,
    /// Microseconds in which 99 of 100 were.
    pub latency_us_p99: f64,
    /// The same where it was longest.
    pub latency_us_p99_peak: f64,
    /// Microseconds that 99 of 100 waited before they came to a host disk, also in their virtqueue.
    pub admission_us_p99: f64,
    /// Microseconds that 99 of 100 were at the host disk.
    pub disk_us_p99: f64,
    /// Of the reads and writes, those that began where another one had ended.
    pub sequential_share: f64,
    /// Of the time, that in which a limit held something back.
    pub throttled_share: f64,
    /// Bytes of the extents that were touched in five minutes, where that was most. Of VHDs and VMs.
    pub working_set_bytes: f64,
    /// Bytes of room taken at the end.
    pub used_bytes: f64,
    /// Bytes a second of the daemon's own work: moves, repairs, scrubs, placement store. Of disks.
    pub background_bytes_per_sec: f64,
}

/// An extent that is used much.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct HotExtent {
    /// Its index.
    pub extent: u32,
    /// Requests to it, those of earlier times counting half as much for each 5 h 20 min.
    pub heat: u32,
}

/// What a VHD, a VM or a disk did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatsInfo {
    /// Its name.
    pub name: String,
    /// Seconds of the samples that it was made from.
    pub resolution_secs: u64,
    /// All of it together.
    pub summary: StatsSample,
    /// Its parts, if they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub samples: Vec<StatsSample>,
    /// The hottest extents of a VHD, the hottest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hottest: Vec<HotExtent>,
}

/// What all VHDs did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct StatsList {
    /// The VHDs, the busiest first.
    pub vhds: Vec<StatsInfo>,
}
