//! Hosts and guests that do not exist: sizes and rates of a few much greater than of most, days and nights, bursts, growth, VMs that come
//! and go, and now and then a VHD that asks for all it can get. All of it follows from the seed and the time alone, so that every
//! strategy meets the same.

use std::f64::consts::TAU;

use super::host::{Arrival, Demand, DiskSpec, part};
use super::service::Service;
use super::spec::{HostKind, Spec};
use crate::base::ids::{VhdId, VmId};
use crate::base::rng::Rng;
use crate::policy::observe::DiskKind;

pub(super) const DAY_SECS: f64 = 86_400.0;

/// Exponent of the Pareto distributions of sizes and of rates, and how many times the least the most can be.
const UNEVEN: f64 = 1.1;
const MOST: f64 = 200.0;

/// By which part the load of a day swings, and which part of all VMs is busy at night.
const SWING: f64 = 0.5;
const AT_NIGHT: u64 = 30;

/// In how many of 100 hours a VHD has a burst, and how much that is.
const BURSTS: u64 = 4;
const BURST: f64 = 3.0;

/// How many times what the fastest disk can do an aggressor asks for, and requests that it has in flight.
const AGGRESSOR: f64 = 2.0;
const AGGRESSOR_DEPTH: f64 = 256.0;
pub(super) const DEPTH: f64 = 32.0;

/// Of 100 VHDs so many grow very quickly, and so many give back what they have.
const FILLERS: u64 = 3;
const SHRINKERS: u64 = 3;
const FILLER_GROWTH: f64 = 0.25;

/// A guest disk.
#[derive(Clone, Debug)]
pub(super) struct Guest {
    pub arrival: Arrival,
    /// When it comes and goes, in seconds.
    pub comes: f64,
    pub goes: f64,
    used: f64,
    /// Extents a day.
    growth: f64,
    iops: f64,
    io_bytes: f64,
    read_share: f64,
    /// When it does most, in seconds of the day.
    peak: f64,
    /// When it asks for all it can get, and for how much.
    wild: Option<(f64, f64, f64)>,
    seed: u64,
}

impl Guest {
    /// Extents that are written at a time.
    pub fn used(&self, secs: f64) -> u32 {
        let since = secs - self.comes;
        // One that comes while others are there is filled within half an hour.
        let filled = if self.comes > 0.0 { (since / 1800.0).min(1.0) } else { 1.0 };
        let most = f64::from(self.arrival.extents);
        let used = self.used * filled + self.growth * since / DAY_SECS;
        u32::try_from(super::whole(used.clamp(1.0, most))).unwrap_or(1)
    }

    /// What it does at a time.
    pub fn demand(&self, secs: f64) -> Demand {
        let wave = 1.0 + SWING * ((secs - self.peak) / DAY_SECS * TAU).cos();
        let burst = if self.has_burst(secs) { BURST } else { 1.0 };
        let usual = self.iops * wave * burst;
        if let Some((from, to, iops)) = self.wild
            && (from..to).contains(&secs)
        {
            let bytes = iops * 4096.0;
            return Demand {
                iops: usual + iops,
                bytes: usual * self.io_bytes + bytes,
                read_share: 0.5,
                depth: AGGRESSOR_DEPTH,
            };
        }
        Demand { iops: usual, bytes: usual * self.io_bytes, read_share: self.read_share, depth: DEPTH }
    }

    fn has_burst(&self, secs: f64) -> bool {
        let hour = (secs / 3600.0).floor();
        let mut rng = Rng::new(self.seed ^ hour.to_bits());
        let begins = rng.chance(BURSTS, 100);
        let from = part(&mut rng) * 1800.0;
        let length = 600.0 + part(&mut rng) * 1200.0;
        begins && (from..from + length).contains(&(secs - hour * 3600.0))
    }
}

/// A host with its guests.
#[derive(Clone, Debug)]
pub(super) struct Synthetic {
    pub disks: Vec<DiskSpec>,
    pub guests: Vec<Guest>,
}

fn uneven(rng: &mut Rng) -> f64 {
    part(rng).max(1e-9).powf(-1.0 / UNEVEN).min(MOST)
}

impl Synthetic {
    /// Host number `index` of a seed.
    pub fn new(spec: &Spec, seed: u64, index: u32) -> Synthetic {
        let mut rng = Rng::new(seed.wrapping_mul(0x1_0000_0001).wrapping_add(u64::from(index)));
        let disks = disks(spec, index, &mut rng);
        let mut maker = Maker { spec, disks: &disks, rng, guests: Vec::new(), vm: 1, weights: (0.0, 0.0) };
        maker.fill();
        maker.go_wild();
        let guests = maker.guests;
        Synthetic { disks, guests }
    }
}

/// The kind of a host: in turn, so that every part of the fleet has its share of each.
fn kind_of(spec: &Spec, index: u32) -> HostKind {
    let all: u32 = spec.fleet.iter().map(|(_, parts)| parts).sum();
    // Multiples of the golden ratio fill the parts evenly, however many hosts there are.
    let spread = ((u64::from(index).wrapping_mul(0x9e37_79b9) & 0xffff_ffff) * u64::from(all)) >> 32;
    let mut left = u32::try_from(spread).unwrap_or(0);
    for (kind, parts) in &spec.fleet {
        if left < *parts {
            return *kind;
        }
        left -= parts;
    }
    spec.fleet[0].0
}

pub(super) fn disks(spec: &Spec, index: u32, rng: &mut Rng) -> Vec<DiskSpec> {
    let kind = kind_of(spec, index);
    let disk = |at: u32| {
        let (kind, bytes) = match kind {
            HostKind::Nvme => (DiskKind::Nvme, 2u64 << 40),
            HostKind::Ssd => (DiskKind::Ssd, 2 << 40),
            HostKind::Hdd => (DiskKind::Hdd, 4 << 40),
            HostKind::Mixed if at < spec.disks.div_ceil(4) => (DiskKind::Nvme, 4 << 40),
            HostKind::Mixed => (DiskKind::Ssd, 2 << 40),
        };
        let slots = u32::try_from(bytes / spec.extent).unwrap_or(u32::MAX);
        DiskSpec { kind, slots, speed: 0.9 + 0.2 * part(rng) }
    };
    (0..spec.disks).map(disk).collect()
}

/// What a request may take on average: about what the slowest of the disks gives when it is busy for three quarters of the time.
pub(super) fn target(disks: &[DiskSpec]) -> f64 {
    let target = |disk: &DiskSpec| match disk.kind {
        DiskKind::Hdd => 0.030,
        DiskKind::Ssd => 0.001_5,
        DiskKind::Nvme => 0.000_75,
    };
    disks.iter().map(target).fold(0.0, f64::max)
}

struct Maker<'a> {
    spec: &'a Spec,
    disks: &'a [DiskSpec],
    rng: Rng,
    guests: Vec<Guest>,
    vm: u32,
    /// Sums of the sizes and of the rates of those that are there from the beginning, before they are scaled.
    weights: (f64, f64),
}

impl Maker<'_> {
    /// The guests from the beginning, then those that come in the place of others.
    fn fill(&mut self) {
        while self.guests.len() < self.spec.vhds as usize {
            self.add_vm(0.0);
        }
        let end = f64::from(self.spec.days) * DAY_SECS;
        let vms = self.vm;
        for vm in 1..vms {
            if part(&mut self.rng) >= self.spec.churn * f64::from(self.spec.days) {
                continue;
            }
            let goes = part(&mut self.rng) * end;
            self.guests.iter_mut().filter(|guest| guest.arrival.vm == VmId(vm)).for_each(|guest| guest.goes = goes);
            let comes = part(&mut self.rng) * end;
            self.add_vm(comes);
        }
        self.scale();
    }

    fn add_vm(&mut self, comes: f64) {
        let vhds = match self.rng.below(10) {
            0..5 => 1,
            5..8 => 2,
            8 => 3,
            _ => 4,
        };
        let night = self.rng.chance(AT_NIGHT, 100);
        let peak = (if night { 2.0 } else { 14.0 } + 4.0 * (part(&mut self.rng) - 0.5)) * 3600.0;
        let vm = VmId(self.vm);
        self.vm += 1;
        for _ in 0..vhds {
            let vhd = VhdId(u32::try_from(self.guests.len()).unwrap_or(u32::MAX) + 1);
            let (used, iops) = (uneven(&mut self.rng), uneven(&mut self.rng));
            if comes == 0.0 {
                self.weights.0 += used;
                self.weights.1 += iops;
            }
            let arrival = Arrival { vhd, vm, extents: 0, replicas: 1, target_secs: target(self.disks) };
            let io_bytes = 4096.0 * 2f64.powf(4.0 * part(&mut self.rng));
            let read_share = 0.3 + 0.6 * part(&mut self.rng);
            let seed = self.rng.next_u64();
            let (goes, growth, wild) = (f64::INFINITY, 0.0, None);
            self.guests.push(Guest {
                arrival,
                comes,
                goes,
                used,
                growth,
                iops,
                io_bytes,
                read_share,
                peak,
                wild,
                seed,
            });
        }
    }

    /// Sizes and rates so that all together are what the specification says.
    fn scale(&mut self) {
        let slots: f64 = self.disks.iter().map(|disk| f64::from(disk.slots)).sum();
        for guest in &mut self.guests {
            guest.used = (guest.used / self.weights.0 * self.spec.fill * slots).max(2.0);
            let written = 0.4 + 0.5 * part(&mut self.rng);
            let extents = (guest.used / written).max(4.0);
            guest.arrival.extents = u32::try_from(super::whole(extents)).unwrap_or(u32::MAX);
            guest.growth = match self.rng.below(100) {
                odd if odd < FILLERS => FILLER_GROWTH * guest.used,
                odd if odd < FILLERS + SHRINKERS => -FILLER_GROWTH * guest.used,
                _ => 2.0 * part(&mut self.rng) * self.spec.growth * guest.used,
            };
            let most = |disk: &DiskSpec| Service::of(disk.kind, disk.speed).most(guest.io_bytes);
            let all: f64 = self.disks.iter().map(most).sum();
            let fastest = self.disks.iter().map(most).fold(0.0, f64::max);
            guest.iops = (guest.iops / self.weights.1 * self.spec.load * all).min(fastest);
        }
    }

    /// Some of them ask for all that they can get, for some hours.
    fn go_wild(&mut self) {
        let days = f64::from(self.spec.days);
        let mut left = self.spec.aggressors * days;
        let fastest = self.disks.iter().map(|disk| Service::of(disk.kind, disk.speed).most(4096.0)).fold(0.0, f64::max);
        while part(&mut self.rng) < left {
            left -= 1.0;
            let index = self.rng.index(self.guests.len());
            let from = part(&mut self.rng) * days * DAY_SECS;
            let length = (2.0 + 4.0 * part(&mut self.rng)) * 3600.0;
            self.guests[index].wild = Some((from, from + length, AGGRESSOR * fastest));
        }
    }
}
