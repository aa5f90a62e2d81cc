//! Jobs: how fast they are, and what guests feel of them.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde_json::json;

use super::guest::{self, Latency, STEADY_RATE};
use super::{Bench, MIB, begin, cancel, create, finish, median, mib, per_second};
use lab::daemon::Pool;
use lab::throttle::Limit;

/// The VHD that is moved.
const VHD: &str = "moved";
const SIZE: u64 = 640 * MIB;

/// What each disk can do.
pub const LIMIT: Limit = Limit { bytes: 40 * MIB, requests: 2000 };

/// How much of it is moved where only the time counts.
const SHORT_SIZE: u64 = 384 * MIB;

/// A guest is measured so many times as long as other things: it takes a while until 1 % of its requests are many.
const GUEST_TIMES: u32 = 4;

/// Longest measurement: no job is done before that.
const GUEST_TIME_MAX: Duration = Duration::from_secs(14);

/// Goals: bandwidth without guests, as a part of what the disks can do; and with guests, as a part of that without.
const IDLE_GOAL: f64 = 0.8;
const FLOOR_GOAL: f64 = 0.1;

/// Goal: the guest's p99 during a job, as a multiple of that without.
const P99_GOAL: f64 = 1.5;

/// How fast jobs are while no guest does anything.
///
/// # Errors
/// What spanblk says.
pub fn bandwidth(bench: &mut Bench) -> Result<()> {
    /// Name, command, bytes moved, and how many disks that can be written to (or read from) at the same time bound it.
    const CHANGES: [(&str, &[&str], u64, u64); 4] = [
        ("1 -> 2", &["vhd", "span", VHD, "--width", "2"], SHORT_SIZE / 2, 1),
        ("2 -> 4", &["vhd", "span", VHD], SHORT_SIZE / 2, 2),
        ("4 -> 1", &["vhd", "unspan", VHD, "--disk", "d0"], SHORT_SIZE / 4 * 3, 1),
        ("migrate", &["vhd", "migrate", VHD, "--disk", "d1"], SHORT_SIZE, 1),
    ];
    bench.limit(LIMIT)?;
    println!("   change        MiB/s   disks could  ratio");
    let mut all = vec![Vec::new(); CHANGES.len()];
    for _ in 0..bench.rounds {
        let pool = bench.pool(4)?;
        create(&pool, VHD, "d0", SHORT_SIZE)?;
        bench.disks().hold_back(pool.id()?)?;
        for (index, (_, args, ..)) in CHANGES.iter().enumerate() {
            let started = Instant::now();
            let moved = finish(&pool, begin(&pool, args)?)?;
            all[index].push(per_second(moved, started.elapsed()));
        }
        bench.end(pool)?;
    }
    let mut worst = f64::MAX;
    for ((what, _, bytes, disks), rates) in CHANGES.iter().zip(all) {
        let (reached, could) = (mib(median(rates)), mib(per_second(LIMIT.bytes * disks, Duration::from_secs(1))));
        worst = worst.min(reached / could);
        println!("   {what:<10}{reached:>9.1}{could:>14.1}{:>7.2}", reached / could);
        let figures = json!({ "change": what, "bytes": bytes, "job": reached, "disks": could });
        bench.note("job bandwidth without guests, MiB/s", figures);
    }
    bench.goal("a job without guests has at least 0.8 of what the disks can do", worst, worst >= IDLE_GOAL);
    Ok(())
}

/// What a guest is measured beside.
const BESIDE: [(&str, Option<&[&str]>); 4] = [
    ("no job", None),
    ("job, default", Some(&[])),
    ("job, --max-rate 32MiB", Some(&["--max-rate", "32MiB"])),
    ("job, urgent", Some(&["--priority", "urgent"])),
];

/// What a steady guest feels of a job that moves its VHD.
///
/// # Errors
/// What spanblk says.
pub fn guests(bench: &mut Bench) -> Result<()> {
    let pool = bench.pool(2)?;
    create(&pool, VHD, "d0", SIZE)?;
    bench.limit(LIMIT)?;
    println!("   {STEADY_RATE} requests/s of 4 KiB, half of them writes, on the VHD that is migrated");
    println!("   beside                   p50 us   p99 us  p99.9 us  job MiB/s");
    let mut found = vec![Vec::new(); BESIDE.len()];
    for _ in 0..bench.rounds {
        for (index, (_, options)) in BESIDE.iter().enumerate() {
            found[index].push(beside(bench, &pool, *options)?);
        }
    }
    let of = |index: usize, value: fn(&(Latency, f64)) -> f64| median(found[index].iter().map(value).collect());
    for (index, (what, _)) in BESIDE.iter().enumerate() {
        let values = [of(index, |f| f.0.p50), of(index, |f| f.0.p99), of(index, |f| f.0.p999), of(index, |f| f.1)];
        let [p50, p99, p999, rate] = values;
        println!("   {what:<24}{p50:>7.0}{p99:>9.0}{p999:>10.0}{:>11.1}", mib(rate));
        let figures = json!({ "beside": what, "p50": p50, "p99": p99, "p99.9": p999, "job": mib(rate) });
        bench.note("guest latency in us beside a job in MiB/s", figures);
    }
    let worse = of(1, |f| f.0.p99) / of(0, |f| f.0.p99);
    bench.goal("p99 beside a default job at most 1.5 x that without", worse, worse <= P99_GOAL);
    let part = of(1, |f| f.1) / per_second(LIMIT.bytes, Duration::from_secs(1));
    bench.goal("which moves at least 0.1 of what its disks can do", part, part >= FLOOR_GOAL);
    bench.end(pool)
}

/// One measurement of the guest from the beginning of a job, and of the job's bytes per second.
fn beside(bench: &Bench, pool: &Pool, options: Option<&[&str]>) -> Result<(Latency, f64)> {
    let time = (bench.time * GUEST_TIMES).min(GUEST_TIME_MAX);
    let mut frontend = guest::connect(&pool.socket(VHD))?;
    bench.disks().hold_back(pool.id()?)?;
    let Some(options) = options else {
        return Ok((guest::steady_for(&mut frontend, SIZE, time)?, 0.0));
    };
    let mut args = vec!["vhd", "migrate", VHD, "--disk", "d1"];
    args.extend(options);
    let (latency, job) = thread::scope(|scope| -> Result<_> {
        let guest = scope.spawn(|| guest::steady_for(&mut frontend, SIZE, time));
        let job = begin(pool, &args);
        let latency = guest.join().map_err(|_| anyhow!("the guest panicked"))??;
        Ok((latency, job?))
    })?;
    let rate = per_second(cancel(pool, job)?, time);
    drop(frontend);
    go_back(bench, pool)?;
    Ok((latency, rate))
}

/// Brings the VHD back to where it was, as fast as can be.
fn go_back(bench: &Bench, pool: &Pool) -> Result<()> {
    bench.disks().let_go(pool.id()?)?;
    let back = pool.json(&["vhd", "migrate", VHD, "--disk", "d0", "--priority", "urgent"])?;
    if let Some(id) = back["job"]["id"].as_u64() {
        finish(pool, id)?;
    }
    Ok(())
}
