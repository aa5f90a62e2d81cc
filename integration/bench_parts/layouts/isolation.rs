//! What an isolated VHD feels of its neighbours on other disks.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;

use super::guest::{self, Latency};
use super::jobs::LIMIT;
use super::{Bench, FIO_OFFSET, FIO_SIZE, MIB, begin, cancel, create, finish, median, mib, per_second};
use lab::daemon::Pool;
use lab::tools::Process;

/// The VHD that is measured, and the one that is spanned meanwhile.
const ALONE: (&str, u64) = ("alone", 256 * MIB);
const NEIGHBOUR: (&str, u64) = ("neighbour", 640 * MIB);

/// Runs of each kind, in turns.
const RUNS: usize = 5;

/// Longest measurement: then the neighbour has been spanned.
const TIME_MAX: Duration = Duration::from_secs(10);

/// How fast the neighbour is spanned: more than half of what its disk can do, and not all of it. A disk at its limit does what it
/// can in bursts here, for which this machine's few processors are too few.
const RATE: u64 = 24 * MIB;

/// How long fio may go on when its time is up.
const FIO_LIMIT: Duration = Duration::from_secs(20);

/// Goal: latency beside neighbours that are being spanned, as a multiple of that without.
const GOAL: f64 = 1.1;

/// What happens on the other disks meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Beside {
    Nothing,
    /// The neighbour is spanned.
    Job,
    /// fio reads and writes there as much as the job does, past spanblk: what the lab itself is like.
    Fio,
}

/// # Errors
/// What spanblk or fio say.
pub fn measure(bench: &mut Bench) -> Result<()> {
    let pool = bench.pool(4)?;
    create(&pool, ALONE.0, "d0", ALONE.1)?;
    create(&pool, NEIGHBOUR.0, "d1", NEIGHBOUR.1)?;
    bench.limit(LIMIT)?;
    println!("   the neighbour is spanned from d1 over d1, d2 and d3; the VHD that is measured is on d0");
    println!("          alone          beside a job     p50   p99     job   beside fio");
    println!("   run   p50   p99 us    p50   p99 us   ratio ratio   MiB/s    p50   p99 us");
    let (mut medians, mut tails) = (Vec::new(), Vec::new());
    let mut part = f64::MAX;
    for number in 1..=RUNS {
        let [(alone, _), (job, rate), (fio, _)] =
            [once(bench, &pool, Beside::Nothing)?, once(bench, &pool, Beside::Job)?, once(bench, &pool, Beside::Fio)?];
        let (p50, p99) = (job.p50 / alone.p50, job.p99 / alone.p99);
        println!(
            "   {number:>3}{:>6.0}{:>6.0}{:>10.0}{:>6.0}{p50:>11.2}{p99:>6.2}{:>8.1}{:>7.0}{:>6.0}",
            alone.p50,
            alone.p99,
            job.p50,
            job.p99,
            mib(rate),
            fio.p50,
            fio.p99
        );
        let [alone, job, fio] = [alone, job, fio].map(|l| json!({ "p50": l.p50, "p99": l.p99, "p99.9": l.p999 }));
        let figures = json!({ "alone": alone, "beside_job": job, "beside_fio": fio, "job": mib(rate) });
        bench.note("latency of an isolated VHD in us, job of its neighbour in MiB/s", figures);
        medians.push(p50);
        tails.push(p99);
        part = part.min(rate / per_second(LIMIT.bytes, Duration::from_secs(1)));
    }
    let (p50, p99) = (median(medians), median(tails));
    bench.goal("p50 beside neighbours at most 1.1 x alone (median of the runs)", p50, p50 <= GOAL);
    bench.goal("p99 beside neighbours at most 1.1 x alone (median of the runs)", p99, p99 <= GOAL);
    bench.goal("while they have at least 0.5 of what a disk can do", part, part >= 0.5);
    bench.end(pool)
}

/// One measurement, and the bytes per second of the job. Nothing else is started meanwhile: that would be felt, too.
fn once(bench: &Bench, pool: &Pool, beside: Beside) -> Result<(Latency, f64)> {
    let mut frontend = guest::connect(&pool.socket(ALONE.0))?;
    bench.disks().hold_back(pool.id()?)?;
    let time = (bench.time * 2).min(TIME_MAX);
    let rate = RATE.to_string();
    let span = ["vhd", "span", NEIGHBOUR.0, "--disks", "d1,d2,d3", "--max-rate", &rate];
    let job = (beside == Beside::Job).then(|| begin(pool, &span)).transpose()?;
    let mut fio = (beside == Beside::Fio).then(|| fio(bench, time)).transpose()?;
    let started = Instant::now();
    let latency = guest::steady_for(&mut frontend, ALONE.1, time)?;
    let time = started.elapsed();
    bench.disks().let_go(pool.id()?)?;
    if let Some(fio) = &mut fio {
        fio.wait_success(FIO_LIMIT)?;
    }
    let Some(job) = job else { return Ok((latency, 0.0)) };
    let rate = per_second(cancel(pool, job)?, time);
    finish(pool, begin(pool, &["vhd", "unspan", NEIGHBOUR.0, "--disk", "d1", "--priority", "urgent"])?)?;
    Ok((latency, rate))
}

/// The same load without spanblk, on parts of the disks that it does not use.
fn fio(bench: &Bench, time: Duration) -> Result<Process> {
    let mut command = bench.disks().command("fio");
    command
        .args(["--thread", "--direct=1", "--ioengine=io_uring", "--time_based", "--bs=256k", "--iodepth=8"])
        .arg(format!("--offset={FIO_OFFSET}"))
        .arg(format!("--size={FIO_SIZE}"))
        .arg(format!("--runtime={}", time.as_secs()));
    for (disk, kind, rate) in [(1, "read", RATE), (2, "write", RATE / 2), (3, "write", RATE / 2)] {
        let device = bench.disks().devices[disk].display();
        command.args([format!("--name=d{disk}"), format!("--filename={device}")]);
        command.args([format!("--rw={kind}"), format!("--rate={rate}")]);
    }
    Process::start("fio", command.stdout(Stdio::null()))
}
