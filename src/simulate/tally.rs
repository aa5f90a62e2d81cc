//! What is counted, minute by minute, and what comes of it.

use std::collections::BTreeMap;

use super::host::Host;
use super::synthetic::DAY_SECS;
use super::whole;
use crate::base::ids::VhdId;

/// Of 100 minutes of a VHD that fits so many may be slower than its target.
const SLOW_PART: f64 = 0.01;

/// Seconds between two looks at what disks VMs depend on.
const DEPENDS_SECS: f64 = 3600.0;

/// Buckets of multiples of the target: each is a twentieth of a doubling wider than the one before.
const BUCKETS: usize = 600;
const PER_DOUBLING: f64 = 20.0;

/// Counters of one strategy, on one host or on many.
#[derive(Clone, Debug)]
pub(super) struct Tally {
    busy: (f64, f64),
    imbalance: (f64, f64),
    /// Minutes of VHDs by the 99th percentile of their latencies, in multiples of their targets.
    p99: Vec<u64>,
    touched: (f64, f64),
    vms: (f64, f64),
    /// Bytes moved, by day, and the capacity.
    moved: Vec<u64>,
    moved_before: u64,
    capacity: f64,
    vhds: BTreeMap<VhdId, Minutes>,
    refused: u64,
    /// VHDs that fit, and all; of hosts that are done.
    fit: (u64, u64),
}

#[derive(Clone, Copy, Debug, Default)]
struct Minutes {
    all: u64,
    slow: u64,
    without_room: u64,
}

impl Default for Tally {
    fn default() -> Tally {
        Tally {
            busy: (0.0, 0.0),
            imbalance: (0.0, 0.0),
            p99: vec![0; BUCKETS],
            touched: (0.0, 0.0),
            vms: (0.0, 0.0),
            moved: Vec::new(),
            moved_before: 0,
            capacity: 0.0,
            vhds: BTreeMap::new(),
            refused: 0,
            fit: (0, 0),
        }
    }
}

fn add(mean: &mut (f64, f64), value: f64) {
    mean.0 += value;
    mean.1 += 1.0;
}

fn merge(mean: &mut (f64, f64), other: (f64, f64)) {
    mean.0 += other.0;
    mean.1 += other.1;
}

fn mean(mean: (f64, f64)) -> f64 {
    if mean.1 > 0.0 { mean.0 / mean.1 } else { 0.0 }
}

impl Tally {
    /// A VHD came; whether it could be placed.
    pub fn arrival(&mut self, placed: bool) {
        self.refused += u64::from(!placed);
    }

    /// A minute has passed.
    pub fn step(&mut self, host: &Host, secs: f64, measured: bool) {
        let day = usize::try_from(whole((secs / DAY_SECS).floor())).unwrap_or(0);
        if self.moved.len() <= day {
            self.moved.resize(day + 1, 0);
        }
        self.moved[day] += host.moved - self.moved_before;
        self.moved_before = host.moved;
        if self.capacity == 0.0 {
            let slots: f64 = host.disks.iter().map(|disk| f64::from(disk.slots)).sum();
            self.capacity = slots * host.extent_size as f64;
        }
        if !measured {
            return;
        }
        let busy: Vec<f64> = host.disks.iter().map(|disk| disk.wait.busy()).collect();
        let average = busy.iter().sum::<f64>() / busy.len() as f64;
        let deviation = busy.iter().map(|busy| (busy - average).powi(2)).sum::<f64>() / busy.len() as f64;
        add(&mut self.busy, average);
        add(&mut self.imbalance, deviation.sqrt());
        for (id, vhd) in &host.vhds {
            let target = vhd.arrival.target_secs;
            let minutes = self.vhds.entry(*id).or_default();
            minutes.all += 1;
            minutes.slow += u64::from(vhd.mean_secs > target);
            minutes.without_room += u64::from(vhd.missing > 0);
            let bucket = ((vhd.p99_secs / target).max(1e-3) / 1e-3).log2() * PER_DOUBLING;
            let bucket = usize::try_from(whole(bucket)).unwrap_or(0);
            self.p99[bucket.min(BUCKETS - 1)] += 1;
        }
        if whole(secs).is_multiple_of(whole(DEPENDS_SECS)) {
            let depends = host.depends();
            add(&mut self.vms, depends.len() as f64);
            for disk in 0..host.disks.len() {
                add(&mut self.touched, depends.values().filter(|mask| *mask >> disk & 1 == 1).count() as f64);
            }
        }
    }

    /// The host is done: its VHDs are counted.
    pub fn finish(&mut self) {
        let fits =
            |minutes: &&Minutes| minutes.without_room == 0 && minutes.slow as f64 <= SLOW_PART * minutes.all as f64;
        self.fit.0 += self.vhds.values().filter(fits).count() as u64;
        self.fit.1 += self.vhds.len() as u64 + self.refused;
        self.vhds.clear();
        self.refused = 0;
    }

    /// Adds what was counted on another host that is done.
    pub fn merge(&mut self, other: &Tally) {
        merge(&mut self.busy, other.busy);
        merge(&mut self.imbalance, other.imbalance);
        merge(&mut self.touched, other.touched);
        merge(&mut self.vms, other.vms);
        self.p99.iter_mut().zip(&other.p99).for_each(|(sum, count)| *sum += count);
        self.moved.resize(self.moved.len().max(other.moved.len()), 0);
        self.moved.iter_mut().zip(&other.moved).for_each(|(sum, bytes)| *sum += bytes);
        self.capacity += other.capacity;
        self.fit.0 += other.fit.0;
        self.fit.1 += other.fit.1;
    }

    /// What came of it.
    pub fn figures(&self) -> Figures {
        let most = self.moved.iter().copied().max().unwrap_or(0) as f64;
        Figures {
            busy: mean(self.busy),
            imbalance: mean(self.imbalance),
            p99: self.percentile(0.99),
            p99_median: self.percentile(0.5),
            fit: self.fit.0 as f64 / self.fit.1.max(1) as f64,
            touched: mean(self.touched),
            moved: if self.capacity > 0.0 { most / self.capacity } else { 0.0 },
        }
    }

    fn percentile(&self, part: f64) -> f64 {
        let all: u64 = self.p99.iter().sum();
        let mut left = whole(all as f64 * part);
        for (bucket, count) in self.p99.iter().enumerate() {
            if *count >= left {
                return 1e-3 * 2f64.powf(bucket as f64 / PER_DOUBLING);
            }
            left -= count;
        }
        0.0
    }
}

/// The columns of the table.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct Figures {
    /// Part of their time that disks are busy.
    pub busy: f64,
    /// Standard deviation of that among the disks of a host, on average over time and hosts.
    pub imbalance: f64,
    /// The proxy of the 99th percentile of a VHD's latencies, in multiples of its target: 99 of 100 minutes of VHDs are better.
    pub p99: f64,
    /// The same, of which half of the minutes are better.
    pub p99_median: f64,
    /// Part of the VHDs that had room for all they wrote, and were served within their target in 99 of 100 minutes.
    pub fit: f64,
    /// VMs that lack something when a disk fails.
    pub touched: f64,
    /// Bytes moved on the day with most, as part of the capacity.
    pub moved: f64,
}
