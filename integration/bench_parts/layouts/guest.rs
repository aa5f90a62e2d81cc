//! Guests: one that asks as much as it can, and one that asks steadily for a little.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use lab::frontend::{Frontend, Options};
use lab::model::Random;
use lab::ring::{Op, Shape};

/// Longest wait for a completion.
const LIMIT: Duration = Duration::from_secs(30);

/// What a guest asks as often as it can.
#[derive(Clone, Copy, Debug)]
pub struct Pattern {
    /// Reads or writes.
    pub write: bool,
    /// One request behind the other, or anywhere.
    pub sequential: bool,
    /// Bytes of a request.
    pub len: u64,
    /// Requests in flight, for each disk.
    pub depth: u16,
}

/// The largest ring, with room for the longest requests that are measured.
///
/// # Errors
/// What the backend refuses.
pub fn connect(socket: &std::path::Path) -> Result<Frontend> {
    Frontend::connect(socket, &Options::cloud_hypervisor(1, Shape { size: 1024, buffer_len: 256 << 10 }))
}

/// Bytes per second that a guest gets from a VHD of `size` bytes with so many requests in flight.
///
/// # Errors
/// A request fails, or hangs.
pub fn throughput(frontend: &mut Frontend, pattern: Pattern, in_flight: u16, size: u64, time: Duration) -> Result<f64> {
    let ring = frontend.ring();
    ensure!(in_flight <= ring.shape.slots(), "the ring holds {} requests", ring.shape.slots());
    let op = if pattern.write { Op::Out } else { Op::In };
    let places = size / pattern.len;
    let mut random = Random::new(pattern.len);
    let mut next = 0;
    let mut place = || {
        next += 1;
        (if pattern.sequential { next % places } else { random.below(places) }) * (pattern.len / 512)
    };
    for slot in 0..in_flight {
        ring.push(slot, op, place(), pattern.len)?;
    }
    let (started, mut left, mut done) = (Instant::now(), in_flight, 0_u64);
    while left > 0 {
        ring.kick()?;
        ensure!(ring.wait(LIMIT)?, "nothing completes");
        while let Some((slot, status)) = ring.completed()? {
            ensure!(status == 0, "status {status}");
            if started.elapsed() < time {
                done += 1;
                ring.push(slot, op, place(), pattern.len)?;
            } else {
                left -= 1;
            }
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "far fewer bytes than a double counts exactly")]
    let bytes = (done * pattern.len) as f64;
    Ok(bytes / time.as_secs_f64())
}

/// Writes a whole VHD once, so that every block is present.
///
/// # Errors
/// A request fails, or hangs.
pub fn fill(frontend: &mut Frontend, size: u64) -> Result<()> {
    let ring = frontend.ring();
    let len = ring.shape.buffer_len;
    let (slots, places) = (ring.shape.slots().min(32), size / len);
    let mut random = Random::new(size);
    let mut data = vec![0; usize::try_from(len)?];
    for slot in 0..slots {
        data.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&random.next_u64().to_le_bytes()));
        ring.fill(slot, &data)?;
    }
    let (mut next, mut left) = (0, 0);
    for slot in 0..slots {
        ring.push(slot, Op::Out, next * (len / 512), len)?;
        (next, left) = (next + 1, left + 1);
    }
    while left > 0 {
        ring.kick()?;
        ensure!(ring.wait(LIMIT)?, "nothing completes");
        while let Some((slot, status)) = ring.completed()? {
            ensure!(status == 0, "status {status}");
            left -= 1;
            if next < places {
                ring.push(slot, Op::Out, next * (len / 512), len)?;
                (next, left) = (next + 1, left + 1);
            }
        }
    }
    ring.flush()
}

/// Requests per second of the steady guest: half of them reads, half of them writes, of 4 KiB each.
pub const STEADY_RATE: u64 = 400;

/// How many of them may be in flight.
const STEADY_DEPTH: u16 = 4;

/// How long the requests of a guest took, in microseconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct Latency {
    /// Half of them at most this.
    pub p50: f64,
    /// 99 % of them.
    pub p99: f64,
    /// 99.9 % of them.
    pub p999: f64,
}

impl Latency {
    fn of(mut all: Vec<Duration>) -> Latency {
        all.sort_unstable();
        let at = |per_mille: usize| all.get(all.len() * per_mille / 1000).map_or(0.0, |d| d.as_secs_f64() * 1e6);
        Latency { p50: at(500), p99: at(990), p999: at(999) }
    }
}

/// A guest that asks at a steady rate for some time, whatever the answers take: what is late counts from when it was due.
///
/// # Errors
/// A request fails, or hangs.
pub fn steady_for(frontend: &mut Frontend, size: u64, time: Duration) -> Result<Latency> {
    const LEN: u64 = 4096;
    let ring = frontend.ring();
    let period = Duration::from_secs(1) * u32::from(STEADY_DEPTH) / u32::try_from(STEADY_RATE)?;
    let mut random = Random::new(7);
    let started = Instant::now();
    let mut due: Vec<Instant> =
        (0..STEADY_DEPTH).map(|slot| started + period * u32::from(slot) / u32::from(STEADY_DEPTH)).collect();
    let mut asked: Vec<Option<Instant>> = vec![None; due.len()];
    // A slot that became free after its time was late through no fault of its own.
    let mut freed = vec![started; due.len()];
    let mut all = Vec::new();
    loop {
        let now = Instant::now();
        let is_over = now - started >= time;
        for slot in 0..STEADY_DEPTH {
            let index = usize::from(slot);
            if asked[index].is_some() || due[index] > now || is_over {
                continue;
            }
            asked[index] = Some(if freed[index] > due[index] { due[index] } else { now });
            // Not in step with anything else.
            due[index] += period / 2 + period * u32::try_from(random.below(1000))? / 1000;
            let op = if random.below(2) == 0 { Op::In } else { Op::Out };
            ring.push(slot, op, random.below(size / LEN) * (LEN / 512), LEN)?;
        }
        ring.kick()?;
        if is_over && asked.iter().all(Option::is_none) {
            return Ok(Latency::of(all));
        }
        let idle = (0..due.len()).filter(|&i| asked[i].is_none() && !is_over).map(|i| due[i]).min();
        let wait = idle.map_or(LIMIT, |due| due.saturating_duration_since(now).max(Duration::from_millis(1)));
        let woken = ring.wait(wait)?;
        ensure!(woken || idle.is_some(), "nothing completes");
        while let Some((slot, status)) = ring.completed()? {
            ensure!(status == 0, "status {status}");
            let now = Instant::now();
            all.push(now - asked[usize::from(slot)].take().expect("it was asked"));
            freed[usize::from(slot)] = now;
        }
    }
}
