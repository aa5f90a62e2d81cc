//! Disks to simulate.

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
    stalls: None,
    millis: 40_000,
};

/// A machine that has something else to do now and then.
pub const NOISY: Model = Model {
    name: "noisy",
    channels: 4,
    service_ns: 4_000_000,
    jitter: 40,
    by_chance: false,
    serial_ns: 0,
    byte_ps: 0,
    stalls: Some((60_000_000, 15_000_000)),
    millis: 40_000,
};
