//! How much changes of layout move, against the least that any plan could.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde_json::json;

use super::{Bench, DISKS, MIB, begin, create, finish, mib};
use lab::daemon::Pool;

const VHD: &str = "moved";

/// A multiple of every number of disks that it is spanned over.
const EXTENTS: u64 = 240;

/// Goal: what is moved, as a multiple of the least possible.
const GOAL: f64 = 1.05;

/// A change of layout: name, command, and the disks on which the VHD then is.
type Change = (&'static str, &'static [&'static str], &'static [&'static str]);

const CHANGES: [Change; 6] = [
    ("1 -> 2", &["vhd", "span", VHD, "--disks", "d0,d1"], &["d0", "d1"]),
    ("2 -> 3", &["vhd", "span", VHD, "--disks", "d0,d1,d2"], &["d0", "d1", "d2"]),
    ("3 -> 4", &["vhd", "span", VHD], &["d0", "d1", "d2", "d3"]),
    ("4 -> 1", &["vhd", "unspan", VHD, "--disk", "d0"], &["d0"]),
    ("migrate", &["vhd", "migrate", VHD, "--disk", "d1"], &["d1"]),
    ("1 -> 4", &["vhd", "span", VHD], &["d0", "d1", "d2", "d3"]),
];

/// # Errors
/// What spanblk says.
pub fn measure(bench: &mut Bench) -> Result<()> {
    let pool = bench.pool(DISKS - 1)?;
    create(&pool, VHD, "d0", EXTENTS * MIB)?;
    println!("   change              least    moved   written  ratio   (MiB)");
    let mut worst = 0_f64;
    for change in CHANGES {
        worst = worst.max(measure_one(bench, &pool, change)?);
    }
    let evacuate = ("evacuate", &["disk", "evacuate", "d1"][..], &["d0", "d2", "d3"][..]);
    worst = worst.max(measure_one(bench, &pool, evacuate)?);
    pool.cli(&["disk", "set", "d1", "--accept", "any"])?;
    finish(&pool, begin(&pool, &["vhd", "span", VHD])?)?;
    let device = bench.disks().devices[DISKS - 1].display().to_string();
    pool.cli(&["disk", "add", &device, "--name", "d4", "--force"])?;
    let rebalance = ("rebalance, 4 -> 5", &["pool", "rebalance"][..], &["d0", "d1", "d2", "d3", "d4"][..]);
    worst = worst.max(measure_one(bench, &pool, rebalance)?);
    bench.goal("a change writes at most 1.05 x the least possible", worst, worst <= GOAL);
    let mut pool = pool;
    pool.stop()
}

/// Makes one change; the bytes that were written for it, as a multiple of the least possible.
fn measure_one(bench: &mut Bench, pool: &Pool, (what, args, disks): Change) -> Result<f64> {
    let least = least(pool, disks)? * MIB;
    let before = written(bench)?;
    let moved = finish(pool, begin(pool, args)?)?;
    let written = written(bench)? - before;
    let [least, moved, written] = [least, moved, written].map(mib_of);
    println!("   {what:<18}{least:>7.1}{moved:>9.1}{written:>10.1}{:>7.2}", written / least);
    bench.note("bytes of a change, MiB", json!({ "change": what, "least": least, "moved": moved, "written": written }));
    Ok(written / least)
}

/// The fewest extents that must move for the VHD to be evenly on these disks.
fn least(pool: &Pool, disks: &[&str]) -> Result<u64> {
    let map = pool.json(&["vhd", "map", VHD])?;
    let mut before: BTreeMap<String, u64> = BTreeMap::new();
    for run in map["runs"].as_array().context("a map has runs")? {
        let disk = run["disk"].as_str().context("a run has a disk")?;
        *before.entry(disk.to_owned()).or_default() += run["count"].as_u64().context("a run has a count")?;
    }
    let share = EXTENTS / disks.len() as u64;
    // Equal disks get equally many: what one has more than that must go.
    let kept = disks.iter().map(|disk| before.get(*disk).copied().unwrap_or(0).min(share));
    Ok(EXTENTS - kept.sum::<u64>())
}

/// Bytes written to all disks: for copies, and for the placement table.
fn written(bench: &Bench) -> Result<u64> {
    (0..DISKS).map(|index| bench.disks().written(index)).sum()
}

#[allow(clippy::cast_precision_loss, reason = "far fewer bytes than a double counts exactly")]
fn mib_of(bytes: u64) -> f64 {
    mib(bytes as f64)
}
