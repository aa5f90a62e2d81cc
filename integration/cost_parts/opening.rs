//! Opening pools with many placed extents, after a clean end and after SIGKILL: how long it takes, and what memory the placement
//! table is. The disks are sparse files, and thick VHDs have placed every extent: the table does not look at what is written.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{Bench, MIB};
use crate::peers_parts::workloads::Kind;
use lab::daemon::Pool;
use lab::tools::{RunDir, memory_of};

const PART: &str = "opening";

const GIB: u64 = 1 << 30;

const DISKS: u64 = 4;

/// Goals: until the daemon serves, with 10 TiB (and so with less); memory of a replica of an extent.
const SECS_MAX: f64 = 2.0;
const BYTES_MAX: f64 = 24.0;

/// Until memory that the opening took for a while has been given back.
const SETTLE: Duration = Duration::from_millis(500);

/// One opening.
struct Opening {
    secs: f64,
    /// Bytes of memory: the most there were, and what stays.
    peak: u64,
    settled: u64,
}

/// Opens pools of all sizes that were asked for.
///
/// # Errors
/// What spanblk says.
pub fn measure(bench: &mut Bench, dir: &RunDir) -> Result<()> {
    println!(
        "   {DISKS} sparse files as disks; half of the extents in an isolated VHD for each disk, half in a spanned one; all thick"
    );
    println!(
        "   {:>5}{:>10}{:>9}{:>10}{:>10}{:>10}{:>10}{:>10}{:>12}{:>10}",
        "TiB",
        "replicas",
        "place s",
        "table MiB",
        "clean s",
        "killed s",
        "peak MiB",
        "RSS MiB",
        "empty MiB",
        "B/replica"
    );
    for tib in bench.tib.clone() {
        of_size(bench, dir, tib)?;
    }
    Ok(())
}

fn of_size(bench: &mut Bench, dir: &RunDir, tib: u64) -> Result<()> {
    let (files, sockets) = bench.dirs(dir, Kind::Ssd, &format!("{PART}-{tib}"))?;
    let total = tib << 40;
    // Room for the placement table, and for homes of VHDs that do not end at the same place.
    let mut pool =
        Pool::create_files(&sockets, &files, usize::try_from(DISKS)?, total / DISKS + total / DISKS / 64 + 16 * GIB)?;
    pool.serve_all()?;
    pool.stop()?;
    let empty = open(&mut pool)?;
    let started = std::time::Instant::now();
    for disk in 0..DISKS {
        let disks = format!("disk{disk}");
        pool.create_vhd(
            &format!("isolated{disk}"),
            total / 2 / DISKS,
            &["--layout", "isolated", "--disks", &disks, "--thick"],
        )?;
    }
    pool.create_vhd("spanned", total / 2, &["--layout", "spanned", "--thick"])?;
    let placed = started.elapsed().as_secs_f64();
    let info = pool.json(&["pool", "show"])?;
    let number =
        |path: &str| info.pointer(path).and_then(serde_json::Value::as_u64).context("what a pool tells of itself");
    let replicas = number("/space/allocated_bytes")? / number("/extent_bytes")?;
    ensure!(replicas == total / number("/extent_bytes")?, "{replicas} extents are placed");
    let table = number("/store/used_bytes")?;
    pool.stop()?;
    let clean = open(&mut pool)?;
    pool.kill();
    let killed = open(&mut pool)?;
    pool.stop()?;
    std::fs::remove_dir_all(files)?;

    let (peak, settled) = (clean.peak.max(killed.peak), clean.settled.max(killed.settled));
    let bytes = settled.saturating_sub(empty.settled) as f64 / replicas as f64;
    println!(
        "   {tib:>5}{replicas:>10}{placed:>9.1}{:>10}{:>10.2}{:>10.2}{:>10}{:>10}{:>12}{bytes:>10.1}",
        table / MIB,
        clean.secs,
        killed.secs,
        peak / MIB,
        settled / MIB,
        empty.settled / MIB
    );
    bench.note(
        PART,
        json!({
            "tib": tib,
            "replicas": replicas,
            "placing_secs": placed,
            "table_bytes": table,
            "clean_secs": clean.secs,
            "killed_secs": killed.secs,
            "peak_bytes": peak,
            "settled_bytes": settled,
            "empty_settled_bytes": empty.settled,
            "bytes_per_replica": bytes,
        }),
    );
    bench.goal(PART, &format!("{tib} TiB: bytes per replica"), BYTES_MAX, bytes);
    bench.goal(PART, &format!("{tib} TiB: seconds until it serves"), SECS_MAX, clean.secs.max(killed.secs));
    Ok(())
}

/// Starts the daemon and waits until it serves.
fn open(pool: &mut Pool) -> Result<Opening> {
    let secs = pool.serve_all()?.as_secs_f64();
    std::thread::sleep(SETTLE);
    let process = pool.id()?;
    Ok(Opening { secs, peak: memory_of(process, "VmHWM")?, settled: memory_of(process, "VmRSS")? })
}
