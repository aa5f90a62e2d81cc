//! How long disks take: a model of queues, not of disks.
//!
//! A disk serves `servers` requests at the same time, each for a while of its own plus its bytes at the rate of the disk. So many requests
//! a second make it busy for a part of its time (`busy`). The wait for a free server is that of Allen and Cunneen for queues
//! whose arrivals come in bursts: `(Ca^2 + Cs^2) / 2` times that of a queue with Poisson arrivals and exponential service, for which Sakasegawa's
//! approximation is taken. Waits that are not zero are taken to be exponential, which is right the busier the disk is; from that comes the
//! time that 99 of 100 requests keep to. It is a proxy: it compares ways to place VHDs on the same disks under the same load, and
//! foretells no device. What it leaves out: caches, garbage collection, reordering, and that reads and writes differ.
//!
//! Guests have only so many requests in flight. So a disk that is asked for more than it can do does not fall behind for ever: its wait is at
//! most what all the requests in flight that there can be take, and each guest gets a part of what it asked for.

use crate::policy::observe::DiskKind;

/// Squared coefficient of variation of the times between requests: burstier than Poisson, as real ones are.
const BURSTS: f64 = 2.0;

/// Busier than this counts as this much: beyond, the approximation says nothing, and the requests in flight do.
const BUSY_MOST: f64 = 0.995;

/// What a kind of disk can do.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Service {
    /// Requests that it works on at the same time.
    servers: f64,
    /// Seconds that one takes that is alone, without its bytes.
    secs: f64,
    /// Requests without bytes that it can serve in a second.
    iops: f64,
    /// Bytes that it can transfer in a second.
    bytes_per_sec: f64,
    /// Squared coefficient of variation of the time that one takes.
    spread: f64,
}

/// What is asked of a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Load {
    /// Requests a second.
    pub iops: f64,
    /// Bytes a second.
    pub bytes: f64,
}

/// How a disk does, or how it serves one of those who ask.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Wait {
    /// What it is asked for, as part of what it can do, or does for the one who asks; may be more than 1.
    pub asked: f64,
    /// Seconds from the beginning to the end of a request, on average.
    pub mean_secs: f64,
    /// 99 of 100 take at most this, in seconds.
    pub p99_secs: f64,
}

impl Wait {
    /// Part of the time that the disk is busy.
    pub fn busy(&self) -> f64 {
        self.asked.min(1.0)
    }

    /// Part of what it is asked for that it does.
    pub fn served(&self) -> f64 {
        if self.asked > 1.0 { 1.0 / self.asked } else { 1.0 }
    }
}

impl Service {
    /// Usual figures of a kind, times `speed` (disks of a kind are not alike).
    pub fn of(kind: DiskKind, speed: f64) -> Service {
        let (servers, secs, iops, bytes_per_sec, spread) = match kind {
            DiskKind::Hdd => (1.0, 0.006, 1.0 / 0.006, 180e6, 0.5),
            DiskKind::Ssd => (8.0, 0.000_12, 65_000.0, 530e6, 1.0),
            DiskKind::Nvme => (32.0, 0.000_08, 400_000.0, 3000e6, 1.0),
        };
        Service { servers, secs: secs / speed, iops: iops * speed, bytes_per_sec: bytes_per_sec * speed, spread }
    }

    /// Part of its time that a disk takes for so many requests and bytes a second.
    pub fn asked(&self, iops: f64, bytes: f64) -> f64 {
        iops / self.iops + bytes / self.bytes_per_sec
    }

    /// Requests of so many bytes that it can serve in a second.
    pub fn most(&self, bytes: f64) -> f64 {
        1.0 / self.asked(1.0, bytes)
    }

    /// Seconds from one request that is done to the next, if there are always more.
    pub fn service_secs(&self, load: Load) -> f64 {
        if load.iops > 0.0 { self.asked(load.iops, load.bytes) / load.iops } else { self.secs / self.servers }
    }

    /// How long requests of a load take where a part `asked` of the disk's time is asked for and so many requests can be in flight.
    pub fn wait(&self, load: Load, asked: f64, in_flight: f64) -> Wait {
        let alone = self.secs + if load.iops > 0.0 { load.bytes / load.iops / self.bytes_per_sec } else { 0.0 };
        let service = self.service_secs(load);
        let busy = asked.min(BUSY_MOST);
        let exponent = (2.0 * (self.servers + 1.0)).sqrt() - 1.0;
        let waits = busy.powf(exponent);
        let queue = service * waits / (1.0 - busy) * (BURSTS + self.spread) / 2.0;
        let most = in_flight * service;
        let mean = queue.min(most);
        // Of those that wait, the time is exponential.
        let tail = if waits > 0.01 { mean / waits * (100.0 * waits).ln() } else { 0.0 };
        Wait { asked, mean_secs: alone + mean, p99_secs: alone * (1.0 + self.spread) + tail.min(most) }
    }
}

/// What 99 of 100 requests keep to of which parts go to several disks: of each the part, and what 99 of 100 keep to there. Times are
/// taken to be exponential, so that a few of 100 that go to a disk much slower than the others count for less than they would.
pub(super) fn p99_of_parts(parts: &[(f64, f64)]) -> f64 {
    let longest = parts.iter().map(|(_, p99)| *p99).fold(0.0, f64::max);
    let shortest = parts.iter().map(|(_, p99)| *p99).fold(longest, f64::min);
    let later_than = |secs: f64| -> f64 { parts.iter().map(|(part, p99)| part * 0.01_f64.powf(secs / p99)).sum() };
    let (mut from, mut to) = (shortest, longest);
    // To a thousandth, which is less than a bucket of the table.
    while to - from > 0.001 * to {
        let middle = 0.5 * (from + to);
        if later_than(middle) > 0.01 { from = middle } else { to = middle }
    }
    to
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn busy_disks_take_longer_and_no_longer_than_what_is_in_flight() {
        for kind in [DiskKind::Hdd, DiskKind::Ssd, DiskKind::Nvme] {
            let disk = Service::of(kind, 1.0);
            let most = disk.most(4096.0);
            let at = |part: f64| {
                let iops = most * part;
                disk.wait(Load { iops, bytes: iops * 4096.0 }, part, 64.0)
            };
            assert!((at(1.0).asked - 1.0).abs() < 1e-9);
            let steps: Vec<Wait> = (1..20).map(|step| at(f64::from(step) * 0.1)).collect();
            for pair in steps.windows(2) {
                assert!(
                    pair[0].mean_secs <= pair[1].mean_secs + 1e-9 && pair[0].p99_secs <= pair[1].p99_secs + 1e-9,
                    "{pair:?}"
                );
            }
            let idle = disk.secs + 4096.0 / disk.bytes_per_sec;
            assert!(steps[0].mean_secs < 1.2 * idle, "{kind:?}: {:?}", steps[0]);
            let full = steps.last().unwrap();
            assert!(full.mean_secs <= idle + 64.0 / most + 1e-9, "{kind:?}: {full:?}");
            assert!((full.served() - 1.0 / full.asked).abs() < 1e-9 && full.busy() == 1.0);
        }
    }

    #[test]
    fn requests_to_several_disks_keep_to_what_those_to_each_do_or_to_something_between() {
        let eight = [(0.125, 0.03); 8];
        assert!((p99_of_parts(&eight) - 0.03).abs() < 1e-4, "eight that are alike are as one");
        assert_eq!(p99_of_parts(&[(1.0, 0.02)]), 0.02);
        assert_eq!(p99_of_parts(&[]), 0.0);
        // Where nothing is late but on a disk that gets 1 of 10, 1 of 10 there may be.
        let one_is_slow = p99_of_parts(&[(0.9, 0.001), (0.1, 0.1)]);
        assert!((one_is_slow - 0.05).abs() < 1e-3, "{one_is_slow}");
        let rarely = p99_of_parts(&[(0.995, 0.001), (0.005, 0.1)]);
        assert!(rarely < 0.002, "{rarely}");
    }

    #[test]
    fn one_server_with_poisson_arrivals_is_the_queue_of_the_textbooks() {
        // M/M/1 at half load: the wait is as long as the service. Bursts of 2 and a spread of 0.5 make it 1.25 times that.
        let disk = Service::of(DiskKind::Hdd, 1.0);
        let iops = 0.5 / 0.006;
        let wait = disk.wait(Load { iops, bytes: 0.0 }, 0.5, 1e9);
        assert!((wait.mean_secs - 0.006 * 2.25).abs() < 1e-6, "{wait:?}");
    }
}
