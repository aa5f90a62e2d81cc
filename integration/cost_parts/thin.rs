//! Writes to places of a thin VHD that were never written: each claims its block, pads it with zeros, and has the placement table
//! changed; the first in an extent is given a slot. Beside them the same places written again, and both with a FLUSH after each
//! write, which waits for a sync and, after a first write, for a commit.
//!
//! Each load has a new pool on new disks without holes: whatever else there is to be allocated is not measured. As for layouts, data is
//! such that disks in memory need not keep it.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::{Bench, Figures, LEN, MIB};
use crate::peers_parts::frontend::{self, Order};
use crate::peers_parts::places::Places;
use crate::peers_parts::workloads::Kind;
use lab::cost::Threads;
use lab::daemon::Pool;
use lab::tools::{Fill, RunDir, prefilled};

const PART: &str = "thin";

const VHD: &str = "thin";

/// Bytes of the VHD, which is on the first disk.
const SIZE: u64 = 256 * MIB;

/// Disks: as many as carry the placement table.
const DISKS: usize = 3;

/// Bytes of a disk without the VHD: labels, placement table.
const OVERHEAD: u64 = 32 * MIB;

/// Bytes of all disks.
pub const ROOM: u64 = SIZE + DISKS as u64 * OVERHEAD;

/// The unit of "has this been written": 1/32 of an extent of 1 MiB.
const BLOCK: u64 = 32 << 10;

/// Longest measurement: those without FLUSHes mostly end before, when every place was written.
const TIME: Duration = Duration::from_secs(1);

/// Each load takes a pool of its own, and so is measured less often than others.
const ROUNDS_SHARE: usize = 3;

/// Syncs that are timed by themselves.
const SYNCS: u32 = 200;

/// Writes to thin VHDs.
struct Load {
    name: &'static str,
    stride: u64,
    shuffled: bool,
    depth: u16,
    flush: bool,
}

const LOADS: [Load; 5] = [
    // One write in eight claims a block, the others wait for it.
    Load { name: "sequential, depth 32", stride: LEN, shuffled: false, depth: 32, flush: false },
    Load { name: "a block each, in order, depth 32", stride: BLOCK, shuffled: false, depth: 32, flush: false },
    Load { name: "a block each, random, depth 32", stride: BLOCK, shuffled: true, depth: 32, flush: false },
    Load { name: "a block each + FLUSH, depth 1", stride: BLOCK, shuffled: true, depth: 1, flush: true },
    Load { name: "a block each + FLUSH, depth 32", stride: BLOCK, shuffled: true, depth: 32, flush: true },
];

/// One measurement, with what it did to the pool.
struct Sample {
    figures: Figures,
    requests: u64,
    counts: Counts,
}

/// Placed extents and commits.
#[derive(Clone, Copy)]
struct Counts {
    extents: u64,
    commits: u64,
}

/// Measures all loads.
///
/// # Errors
/// What spanblk says.
pub fn measure(bench: &mut Bench, dir: &RunDir) -> Result<()> {
    println!(
        "   4k writes to an isolated VHD of {} MiB; {DISKS} disks, all with the placement table, without holes;",
        SIZE / MIB
    );
    println!("   with FLUSH, one request is a write and the FLUSH after it");
    let fastest = bench.fastest();
    on(bench, dir, fastest, |_| true)?;
    if fastest != Kind::Ssd {
        on(bench, dir, Kind::Ssd, |load| load.flush)?;
    }
    Ok(())
}

/// Measures the loads that are wanted on disks of one kind.
fn on(bench: &mut Bench, dir: &RunDir, kind: Kind, wanted: impl Fn(&Load) -> bool) -> Result<()> {
    let (files, sockets) = bench.dirs(dir, kind, &format!("thin-{}", kind.name()))?;
    let sync = sync_time(&files)?;
    println!("   {}: writing 4k into a file and syncing it takes {:.0} us", kind.name(), sync.as_secs_f64() * 1e6);
    bench.note(PART, json!({ "disk": kind.name(), "write_and_sync_us": sync.as_secs_f64() * 1e6 }));
    println!(
        "   {:<36}{:<7}{:<7}{:>8}{:>8}{:>8}{:>8}{:>9}{:>9}{:>9}",
        "load", "disk", "", "IOPS", "us/IO", "p50", "p99", "requests", "extents", "commits"
    );
    for (index, load) in LOADS.iter().enumerate().filter(|(_, load)| wanted(load)) {
        let (mut first, mut again) = (Vec::new(), Vec::new());
        for round in 0..bench.rounds.div_ceil(ROUNDS_SHARE) {
            let name = format!("{index}-{round}");
            let (files, sockets) = (files.join(&name), sockets.join(&name));
            fs::create_dir(&files)?;
            fs::create_dir(&sockets)?;
            let pair = twice(load, &files, &sockets).with_context(|| load.name)?;
            first.push(pair.0);
            again.push(pair.1);
            // The next pool needs the room.
            fs::remove_dir_all(files)?;
        }
        for (name, samples) in [("first", first), ("again", again)] {
            let figures = Figures::medians(&samples.iter().map(|sample| sample.figures).collect::<Vec<_>>());
            let Figures { iops, cpu_us, p50_us, p99_us } = figures;
            // Of one round: they are hardly different.
            let Sample { requests, counts: Counts { extents, commits }, .. } = samples[0];
            println!(
                "   {:<36}{:<7}{name:<7}{iops:>8.0}{cpu_us:>8.2}{p50_us:>8.0}{p99_us:>8.0}{requests:>9}{extents:>9}{commits:>9}",
                load.name,
                kind.name()
            );
            let what = json!({
                "load": load.name,
                "disk": kind.name(),
                "writes": name,
                "figures": figures.json(),
                "requests": requests,
                "extents": extents,
                "commits": commits,
            });
            bench.note(PART, what);
        }
    }
    Ok(())
}

/// Writes to a new VHD, and then to the same places again.
fn twice(load: &Load, files: &Path, sockets: &Path) -> Result<(Sample, Sample)> {
    let size = |index| if index == 0 { SIZE + OVERHEAD } else { OVERHEAD };
    let disks: Vec<_> = (0..DISKS).map(|index| files.join(format!("d{index}.img"))).collect();
    disks.iter().enumerate().try_for_each(|(index, disk)| prefilled(disk, size(index), Fill::Word))?;
    let mut pool = Pool::create(sockets, disks, &["--force", "--name", "d0", "--name", "d1", "--name", "d2"])?;
    pool.serve_all()?;
    pool.create_vhd(VHD, SIZE, &["--layout", "isolated", "--disks", "d0"])?;
    let first = sample(&pool, load, usize::MAX)?;
    let again = sample(&pool, load, usize::try_from(first.requests)?)?;
    pool.stop()?;
    pool.check()?;
    Ok((first, again))
}

/// Writes to the first places of a load, the same whenever it is called.
fn sample(pool: &Pool, load: &Load, count_max: usize) -> Result<Sample> {
    let order = Order {
        socket: pool.socket(VHD),
        queues: 1,
        depth: load.depth,
        write: true,
        len: LEN,
        size: SIZE,
        // Places are new once.
        warm_up: Duration::ZERO,
        time: TIME,
        poll: false,
        seed: 1000,
        places: Places::Each { stride: load.stride, shuffled: load.shuffled, count_max },
        fill: Fill::Word,
        flush: load.flush,
        inflight: false,
    };
    let process = pool.id()?;
    let mut before = None;
    let (outcome, _, (cost, counts)) = frontend::run(&order, || match before.take() {
        None => {
            let counts = Counts::of(pool)?;
            let threads = Threads::of(process)?;
            before = Some((threads.clone(), counts));
            Ok((threads.since(&threads), counts))
        }
        // The other way round, so that asking does not count.
        Some((threads, counts)) => {
            let cost = Threads::of(process)?.since(&threads);
            Ok((cost, Counts::of(pool)?.since(counts)))
        }
    })?;
    Ok(Sample { figures: Figures::of(&outcome, cost), requests: outcome.requests, counts })
}

impl Counts {
    fn of(pool: &Pool) -> Result<Counts> {
        let info = pool.json(&["pool", "show"])?;
        let number = |value: &Value| value.as_u64().with_context(|| format!("what a pool tells of itself: {info}"));
        let extents = number(&info["space"]["allocated_bytes"])? / number(&info["extent_bytes"])?;
        Ok(Counts { extents, commits: number(&info["store"]["commit"])? })
    }

    fn since(self, before: Counts) -> Counts {
        Counts { extents: self.extents - before.extents, commits: self.commits - before.commits }
    }
}

/// The usual time for writing a little into a file without holes and syncing it: what any FLUSH waits for.
fn sync_time(dir: &Path) -> Result<Duration> {
    let path = dir.join("sync");
    prefilled(&path, MIB, Fill::Random)?;
    let mut file = File::options().write(true).open(&path)?;
    let mut times = Vec::new();
    for _ in 0..SYNCS {
        let started = Instant::now();
        file.seek(SeekFrom::Start(0))?;
        file.write_all(&vec![1; usize::try_from(LEN)?])?;
        file.sync_data()?;
        times.push(started.elapsed());
    }
    times.sort();
    fs::remove_file(path)?;
    Ok(times[times.len() / 2])
}
