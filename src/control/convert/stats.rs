//! Histories, for people.

use crate::control::wire::StatsSample;
use crate::metrics::history::Summary;

/// What a summary says. `extent_size`: bytes of an extent.
#[must_use]
#[allow(clippy::cast_precision_loss, reason = "an extent is no longer than 16 MiB")]
pub fn stats_sample(summary: &Summary, extent_size: u64) -> StatsSample {
    StatsSample {
        begins_secs: summary.from,
        ends_secs: summary.to,
        covered_secs: rounded(summary.covered_secs),
        reads_per_sec: rounded(summary.reads_per_sec),
        writes_per_sec: rounded(summary.writes_per_sec),
        read_bytes_per_sec: rounded(summary.read_bytes_per_sec),
        write_bytes_per_sec: rounded(summary.write_bytes_per_sec),
        requests_per_sec_peak: rounded(summary.requests_per_sec_peak),
        bytes_per_sec_peak: rounded(summary.bytes_per_sec_peak),
        read_share: rounded(summary.read_share),
        queue_depth: rounded(summary.queue_depth),
        latency_us_p50: rounded(summary.latency_us_p50),
        latency_us_p99: rounded(summary.latency_us_p99),
        latency_us_p99_peak: rounded(summary.latency_us_p99_peak),
        admission_us_p99: rounded(summary.admission_us_p99),
        disk_us_p99: rounded(summary.disk_us_p99),
        sequential_share: rounded(summary.sequential_share),
        throttled_share: rounded(summary.throttled_share),
        working_set_bytes: rounded(summary.working_set_extents * extent_size as f64),
        used_bytes: rounded(summary.used_bytes),
        background_bytes_per_sec: rounded(summary.background_bytes_per_sec),
    }
}

/// To thousandths: what is behind them is chance.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}
