//! Disks to simulate.

use std::collections::VecDeque;

use crate::base::rng::Rng;

/// A disk: some operations at a time, each taking `service_ns` more or less, then one after the other for `serial_ns`.
#[derive(Clone)]
pub struct Model {
    pub name: &'static str,
    pub channels: usize,
    pub service_ns: u64,
    /// More or less by so much, in percent.
    pub jitter: u64,
    /// Each operation has its channel by chance, and waits for it even if others are free.
    pub by_chance: bool,
    pub serial_ns: u64,
    /// The same for each byte, in picoseconds.
    pub byte_ps: u64,
    /// So many operations are handed to the channels at a time; what is more waits before them, in order. `usize::MAX`: all.
    pub inside: usize,
    /// About so often the disk does nothing for so long, in nanoseconds.
    pub stalls: Option<(u64, u64)>,
    /// Simulated milliseconds: half of it until things have settled.
    pub millis: u64,
}

pub const THROTTLED: Model = Model {
    name: "throttled",
    channels: 64,
    service_ns: 100_000,
    jitter: 20,
    by_chance: false,
    serial_ns: 50_000,
    byte_ps: 0,
    inside: usize::MAX,
    stalls: None,
    millis: 8_000,
};
pub const SATA: Model = Model {
    name: "sata",
    channels: 32,
    service_ns: 330_000,
    jitter: 60,
    by_chance: false,
    serial_ns: 0,
    byte_ps: 0,
    inside: usize::MAX,
    stalls: None,
    millis: 4_000,
};
pub const NVME: Model = Model {
    name: "nvme",
    channels: 48,
    service_ns: 80_000,
    jitter: 50,
    by_chance: false,
    serial_ns: 1_700,
    byte_ps: 0,
    inside: usize::MAX,
    stalls: None,
    millis: 1_000,
};
pub const HDD: Model = Model {
    name: "hdd",
    channels: 1,
    service_ns: 6_000_000,
    jitter: 70,
    by_chance: false,
    serial_ns: 0,
    byte_ps: 0,
    inside: usize::MAX,
    stalls: None,
    millis: 200_000,
};

/// Four at a time, but each request meets one of them by chance, and waits for it even if others are free: as flash does, and as the disks
/// of the benchmark of isolation do. Every request more in flight brings something, and makes others late.
pub const LANES: Model = Model {
    name: "lanes",
    channels: 4,
    service_ns: 2_200_000,
    jitter: 8,
    by_chance: true,
    serial_ns: 0,
    byte_ps: 0,
    inside: usize::MAX,
    stalls: None,
    millis: 40_000,
};

/// The same, with a queue before the lanes in which most of it waits: what comes on top of twelve brings nothing.
pub const LANES_BEHIND: Model = Model { name: "queue", service_ns: 2_050_000, inside: 12, ..LANES };

/// A machine that has something else to do now and then.
pub const NOISY: Model = Model {
    name: "noisy",
    channels: 4,
    service_ns: 4_000_000,
    jitter: 40,
    by_chance: false,
    serial_ns: 0,
    byte_ps: 0,
    inside: usize::MAX,
    stalls: Some((60_000_000, 15_000_000)),
    millis: 40_000,
};

/// A disk of a model, with what is in it.
pub struct Disk<T> {
    model: Model,
    rng: Rng,
    busy_until: Vec<u64>,
    serial_until: u64,
    next_stall: u64,
    inside: usize,
    /// Bytes of those that wait before the channels, and whose they are.
    before: VecDeque<(u64, T)>,
}

impl<T> Disk<T> {
    pub fn new(model: &Model, seed: u64) -> Disk<T> {
        Disk {
            model: model.clone(),
            rng: Rng::new(seed),
            busy_until: vec![0; model.channels],
            serial_until: 0,
            next_stall: 0,
            inside: 0,
            before: VecDeque::new(),
        }
    }

    /// An operation of so many bytes reaches the disk.
    pub fn submit(&mut self, bytes: u64, whose: T) {
        self.before.push_back((bytes, whose));
    }

    /// One that was inside has completed.
    pub fn complete(&mut self) {
        self.inside -= 1;
    }

    /// The next operation that goes inside, and when it completes.
    pub fn take(&mut self, now: u64) -> Option<(T, u64)> {
        if self.inside == self.model.inside {
            return None;
        }
        let (bytes, whose) = self.before.pop_front()?;
        self.inside += 1;
        Some((whose, self.serve(bytes, now)))
    }

    fn serve(&mut self, bytes: u64, now: u64) -> u64 {
        if let Some((every, time)) = self.model.stalls
            && now >= self.next_stall
        {
            self.next_stall = now + self.rng.below(2 * every);
            self.busy_until.iter_mut().for_each(|channel| *channel = now.max(*channel) + time);
        }
        let jitter = self.model.service_ns * self.model.jitter / 100;
        let service = self.model.service_ns - jitter + self.rng.below(2 * jitter + 1);
        let channel = if self.model.by_chance {
            let index = self.rng.index(self.busy_until.len());
            &mut self.busy_until[index]
        } else {
            self.busy_until.iter_mut().min().expect("a disk has channels")
        };
        *channel = now.max(*channel) + service;
        let serial = self.model.serial_ns + self.model.byte_ps * bytes / 1000;
        if serial == 0 {
            return *channel;
        }
        self.serial_until = self.serial_until.max(*channel) + serial;
        self.serial_until
    }
}
