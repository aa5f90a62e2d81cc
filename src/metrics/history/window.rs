//! What samples come to: plain numbers for whoever decides something by them.

use super::sample::{Field, Sample};
use super::series::Tier;

/// What a subject did between two points in time.
///
/// Means are over the time that is known ([`Summary::covered_secs`]), shares are 0 to 1, latencies are those of reads and writes from
/// being taken off the virtqueue to being done. What nothing is known of is 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Summary {
    /// From when on was asked, in seconds since the Unix epoch.
    pub from: u64,
    /// Until when.
    pub to: u64,
    /// Seconds of a sample that it was made from.
    pub resolution_secs: u64,
    /// Seconds in that time that are known; less than there are if the daemon was off, or was not there yet.
    pub covered_secs: f64,
    /// Reads a second.
    pub reads_per_sec: f64,
    /// Writes a second.
    pub writes_per_sec: f64,
    /// Bytes read a second.
    pub read_bytes_per_sec: f64,
    /// Bytes written a second.
    pub write_bytes_per_sec: f64,
    /// Reads and writes a second in the busiest 10 seconds.
    pub requests_per_sec_peak: f64,
    /// Bytes a second in the busiest 10 seconds.
    pub bytes_per_sec_peak: f64,
    /// Of all reads and writes, those that were reads.
    pub read_share: f64,
    /// Reads and writes in progress.
    pub queue_depth: f64,
    /// Microseconds in which half of the reads and writes were done: that of each sample, weighted by its requests.
    pub latency_us_p50: f64,
    /// Microseconds in which 99 of 100 were done: that of each sample, weighted by its requests.
    pub latency_us_p99: f64,
    /// The same of the sample in which it was longest.
    pub latency_us_p99_peak: f64,
    /// Microseconds that 99 of 100 waited before they came to a host disk: for limits, while they were in their virtqueue, then for room.
    pub admission_us_p99: f64,
    /// Microseconds that 99 of 100 were at the host disk.
    pub disk_us_p99: f64,
    /// Of all reads and writes, those that began where another one had ended.
    pub sequential_share: f64,
    /// Of the time, that in which a limit held something back.
    pub throttled_share: f64,
    /// Extents touched in five minutes, where that was most.
    pub working_set_extents: f64,
    /// Bytes of room taken at the end.
    pub used_bytes: f64,
    /// Bytes a second of the daemon's own work.
    pub background_bytes_per_sec: f64,
    weight: f64,
    requests: f64,
}

impl Summary {
    /// Of a time of which nothing is known.
    #[must_use]
    pub fn new(from: u64, to: u64, tier: Tier) -> Summary {
        Summary {
            from,
            to,
            resolution_secs: tier.secs(),
            covered_secs: 0.0,
            reads_per_sec: 0.0,
            writes_per_sec: 0.0,
            read_bytes_per_sec: 0.0,
            write_bytes_per_sec: 0.0,
            requests_per_sec_peak: 0.0,
            bytes_per_sec_peak: 0.0,
            read_share: 0.0,
            queue_depth: 0.0,
            latency_us_p50: 0.0,
            latency_us_p99: 0.0,
            latency_us_p99_peak: 0.0,
            admission_us_p99: 0.0,
            disk_us_p99: 0.0,
            sequential_share: 0.0,
            throttled_share: 0.0,
            working_set_extents: 0.0,
            used_bytes: 0.0,
            background_bytes_per_sec: 0.0,
            weight: 0.0,
            requests: 0.0,
        }
    }

    /// What one sample says, by itself.
    #[must_use]
    pub fn of_sample(begins: u64, tier: Tier, sample: &Sample) -> Summary {
        let mut summary = Summary::new(begins, begins + tier.secs(), tier);
        summary.add(sample);
        summary
    }

    /// The sample is the next one in time.
    #[allow(clippy::cast_precision_loss, reason = "ten binary digits of each number count")]
    pub(super) fn add(&mut self, sample: &Sample) {
        let value = |field| sample.get(field) as f64;
        let weight = value(Field::Covered) / 1000.0;
        let rate = (value(Field::Reads) + value(Field::Writes)) / 1000.0;
        let requests = weight * rate;
        self.covered_secs += weight * self.resolution_secs as f64;
        for (mean, now) in [
            (&mut self.reads_per_sec, value(Field::Reads) / 1000.0),
            (&mut self.writes_per_sec, value(Field::Writes) / 1000.0),
            (&mut self.read_bytes_per_sec, value(Field::ReadBytes)),
            (&mut self.write_bytes_per_sec, value(Field::WriteBytes)),
            (&mut self.queue_depth, value(Field::Depth) / 1000.0),
            (&mut self.throttled_share, value(Field::Throttled) / 1000.0),
            (&mut self.background_bytes_per_sec, value(Field::Background)),
        ] {
            *mean = weighted(*mean, self.weight, now, weight);
        }
        for (mean, now) in [
            (&mut self.latency_us_p50, value(Field::MedianLatency)),
            (&mut self.latency_us_p99, value(Field::P99Latency)),
            (&mut self.admission_us_p99, value(Field::P99Admission)),
            (&mut self.disk_us_p99, value(Field::P99Disk)),
            (&mut self.sequential_share, value(Field::Sequential) / 1000.0),
            (&mut self.read_share, value(Field::Reads) / 1000.0 / rate.max(f64::MIN_POSITIVE)),
        ] {
            *mean = weighted(*mean, self.requests, now, requests);
        }
        for (most, now) in [
            (&mut self.requests_per_sec_peak, value(Field::PeakRequests) / 1000.0),
            (&mut self.bytes_per_sec_peak, value(Field::PeakBytes)),
            (&mut self.latency_us_p99_peak, value(Field::P99Latency)),
            (&mut self.working_set_extents, value(Field::WorkingSet)),
        ] {
            *most = most.max(now);
        }
        self.used_bytes = value(Field::Used) * 1024.0;
        self.weight += weight;
        self.requests += requests;
    }

    /// The same time of another subject: what both do together. Peaks are added, as if they had been at the same time: it was that much at
    /// most.
    pub fn join(&mut self, other: &Summary) {
        let (mine, its) = (self.reads_per_sec + self.writes_per_sec, other.reads_per_sec + other.writes_per_sec);
        for (mean, its_mean) in [
            (&mut self.latency_us_p50, other.latency_us_p50),
            (&mut self.latency_us_p99, other.latency_us_p99),
            (&mut self.admission_us_p99, other.admission_us_p99),
            (&mut self.disk_us_p99, other.disk_us_p99),
            (&mut self.sequential_share, other.sequential_share),
            (&mut self.read_share, other.read_share),
        ] {
            *mean = weighted(*mean, mine, its_mean, its);
        }
        for (sum, more) in [
            (&mut self.reads_per_sec, other.reads_per_sec),
            (&mut self.writes_per_sec, other.writes_per_sec),
            (&mut self.read_bytes_per_sec, other.read_bytes_per_sec),
            (&mut self.write_bytes_per_sec, other.write_bytes_per_sec),
            (&mut self.requests_per_sec_peak, other.requests_per_sec_peak),
            (&mut self.bytes_per_sec_peak, other.bytes_per_sec_peak),
            (&mut self.queue_depth, other.queue_depth),
            (&mut self.working_set_extents, other.working_set_extents),
            (&mut self.used_bytes, other.used_bytes),
            (&mut self.background_bytes_per_sec, other.background_bytes_per_sec),
        ] {
            *sum += more;
        }
        for (most, its_most) in [
            (&mut self.covered_secs, other.covered_secs),
            (&mut self.latency_us_p99_peak, other.latency_us_p99_peak),
            (&mut self.throttled_share, other.throttled_share),
        ] {
            *most = most.max(its_most);
        }
    }
}

fn weighted(mean: f64, weight: f64, now: f64, its_weight: f64) -> f64 {
    let total = weight + its_weight;
    if total > 0.0 { (mean * weight + now * its_weight) / total } else { mean }
}
