//! What a guest gets from a VHD over one to four disks, against what fio gets from the same disks together.

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use super::guest::{self, Pattern};
use super::{Bench, FIO_OFFSET, FIO_SIZE, MIB, median, mib};
use lab::daemon::Pool;
use lab::throttle::Limit;
use lab::tools::run;

/// Bytes of a VHD, for each of its disks.
const SHARE: u64 = 128 * MIB;

/// With the few requests in flight that a ring has room for, a disk at its limit must not hold up the others for long.
const LIMIT: Limit = Limit { bytes: 64 * MIB, requests: 400 };

const PATTERNS: [(&str, Pattern); 4] = [
    ("256 KiB read", Pattern { write: false, sequential: true, len: 256 << 10, depth: 32 }),
    ("256 KiB write", Pattern { write: true, sequential: true, len: 256 << 10, depth: 32 }),
    ("4 KiB randread", Pattern { write: false, sequential: false, len: 4 << 10, depth: 64 }),
    ("4 KiB randwrite", Pattern { write: true, sequential: false, len: 4 << 10, depth: 64 }),
];

/// Goal: what the VHD gives, as a part of what its disks give together.
const GOAL: f64 = 0.95;

/// # Errors
/// What spanblk or fio say.
pub fn measure(bench: &mut Bench) -> Result<()> {
    let pool = bench.pool(4)?;
    for width in 1..=4_u16 {
        let (name, size) = (name(width), SHARE * u64::from(width));
        let text = width.to_string();
        let layout: &[&str] = if width == 1 { &["isolated"] } else { &["spanned", "--width", &text] };
        let mut options = vec!["--thick", "--queues", "1", "--layout"];
        options.extend(layout);
        pool.create_vhd(&name, size, &options)?;
        guest::fill(&mut guest::connect(&pool.socket(&name))?, size)?;
    }
    bench.limit(LIMIT)?;
    bench.disks().hold_back(pool.id()?)?;
    println!("   disks  requests         sum of disks      VHD  ratio   (MiB/s)");
    let mut worst = f64::MAX;
    for width in 1..=4_u16 {
        let members = disks_of(&pool, &name(width))?;
        ensure!(members.len() == usize::from(width), "{} is on {members:?}", name(width));
        let mut frontend = guest::connect(&pool.socket(&name(width)))?;
        for (what, pattern) in PATTERNS {
            let (mut theirs, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..bench.rounds {
                theirs.push(fio(bench, &members, pattern)?);
                let size = SHARE * u64::from(width);
                let in_flight = (pattern.depth * width).min(frontend.ring().shape.slots());
                ours.push(guest::throughput(&mut frontend, pattern, in_flight, size, bench.time)?);
            }
            let (theirs, ours) = (mib(median(theirs)), mib(median(ours)));
            worst = worst.min(ours / theirs);
            println!("   {width:>5}  {what:<16}{theirs:>13.1}{ours:>9.1}{:>7.2}", ours / theirs);
            let figures = json!({ "disks": width, "requests": what, "sum": theirs, "vhd": ours });
            bench.note("spanned throughput, MiB/s", figures);
        }
    }
    bench.goal("a VHD gives at least 0.95 of the sum of its disks", worst, worst >= GOAL);
    bench.end(pool)
}

fn name(width: u16) -> String {
    format!("over{width}")
}

/// Indexes of the disks that a VHD is on, once it is sure that fio writes behind all of it.
fn disks_of(pool: &Pool, vhd: &str) -> Result<Vec<usize>> {
    /// More than the metadata region of a small disk.
    const BEFORE_SLOTS: u64 = 64 * MIB;
    let map = pool.json(&["vhd", "map", vhd])?;
    for run in map["runs"].as_array().context("a map has runs")? {
        let number = |key: &str| run[key].as_u64().with_context(|| format!("no {key} in {run}"));
        let end = BEFORE_SLOTS + (number("slot")? + number("count")?) * MIB;
        ensure!(end <= FIO_OFFSET, "{vhd} reaches into what fio writes: {run}");
    }
    let disks = map["disks"].as_array().context("a map has disks")?.iter();
    disks.map(|disk| Ok(disk.as_str().and_then(|name| name.strip_prefix('d')).context("a disk")?.parse()?)).collect()
}

/// Bytes per second that fio gets from these disks together.
fn fio(bench: &Bench, disks: &[usize], pattern: Pattern) -> Result<f64> {
    let kind = match (pattern.sequential, pattern.write) {
        (true, false) => "read",
        (true, true) => "write",
        (false, false) => "randread",
        (false, true) => "randwrite",
    };
    let mut command = bench.disks().command("fio");
    command
        .args(["--thread", "--direct=1", "--ioengine=io_uring", "--time_based", "--norandommap", "--group_reporting"])
        .args(["--output-format=json", "--randrepeat=0"])
        .arg(format!("--rw={kind}"))
        .arg(format!("--bs={}", pattern.len))
        .arg(format!("--iodepth={}", pattern.depth))
        .arg(format!("--offset={FIO_OFFSET}"))
        .arg(format!("--size={FIO_SIZE}"))
        .arg(format!("--runtime={}", bench.time.as_secs()));
    for &disk in disks {
        command.arg(format!("--name=d{disk}")).arg(format!("--filename={}", bench.disks().devices[disk].display()));
    }
    let output = run(&mut command)?;
    let report: Value = serde_json::from_str(output.trim_start_matches(|c| c != '{')).context("fio's JSON")?;
    let side = &report["jobs"][0][if pattern.write { "write" } else { "read" }];
    side["bw_bytes"].as_f64().context("fio's JSON lacks a number")
}
