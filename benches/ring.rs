//! What the path from ring to disk costs: random I/O through a ring against the same engine used plainly, on one prefilled
//! file, in one run.
//!
//! `cargo bench --bench ring -- [DIRECTORY] [--only read|write]`: the file (1 GiB) is made in DIRECTORY and removed afterwards. For each case:
//! operations per second, and processor time per operation of the thread that submits (reactor, or plain loop) and of all
//! threads (the guest's driver included).

#![allow(clippy::unwrap_used, reason = "a benchmark")]

#[path = "../tests/common/guest.rs"]
mod guest;
#[path = "../tests/common/host.rs"]
mod host;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest::{Guest, READ, WRITE};
use host::{Connection, EXTENT, Host};
use spanblk::base::aligned::AlignedBuf;
use spanblk::base::ids::DiskId;
use spanblk::base::rng::Rng;
use spanblk::disk::BlockDev;
use spanblk::disk::file::FileDisk;
use spanblk::engine::uring::{UringEngine, Wait};
use spanblk::engine::{Buffer, Engine, Op, OpTag};

const EXTENTS: u32 = 1024;
const BLOCK: usize = 4096;
const TIME: Duration = Duration::from_secs(1);
/// Both ways take turns this many times and the best turn of each counts, so that other load on the machine counts less.
const TURNS: usize = 5;

/// Processor time so far of the threads of this process whose name begins with `prefix`.
fn cpu_of(prefix: &str) -> Duration {
    let mut ticks = 0;
    for task in std::fs::read_dir("/proc/self/task").unwrap().flatten() {
        let Ok(stat) = std::fs::read_to_string(task.path().join("stat")) else { continue };
        let (name, rest) = stat.split_once(") ").unwrap();
        if name.split_once('(').unwrap().1.starts_with(prefix) {
            // utime and stime, fields 14 and 15.
            ticks += rest.split(' ').skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum::<u64>();
        }
    }
    Duration::from_millis(ticks * 10)
}

struct Outcome {
    operations: u64,
    elapsed: Duration,
    submitter: Duration,
    all: Duration,
}

fn rate(outcome: &Outcome) -> f64 {
    outcome.operations as f64 / outcome.elapsed.as_secs_f64()
}

fn best(outcomes: Vec<Outcome>) -> Outcome {
    outcomes.into_iter().max_by(|a, b| rate(a).total_cmp(&rate(b))).unwrap()
}

fn measure(submitter: &str, mut turn: impl FnMut(Instant) -> u64) -> Outcome {
    let (before, before_all) = (cpu_of(submitter), cpu_of(""));
    let start = Instant::now();
    let operations = turn(start + TIME);
    let elapsed = start.elapsed();
    Outcome { operations, elapsed, submitter: cpu_of(submitter) - before, all: cpu_of("") - before_all }
}

fn offset(rng: &mut Rng) -> u64 {
    rng.below(u64::from(EXTENTS) * EXTENT / BLOCK as u64) * BLOCK as u64
}

/// The engine in a plain loop, without ring, request or placement.
fn plain(file: &FileDisk, write: bool, depth: usize) -> Outcome {
    let mut engine = UringEngine::new().unwrap();
    engine.add_disk(DiskId(0), Arc::clone(file.fd())).unwrap();
    let memory = AlignedBuf::zeroed(depth * BLOCK);
    let mut rng = Rng::new(1);
    let mut submit = |engine: &mut UringEngine, slot: usize| {
        let buffers = [Buffer { ptr: memory.as_ptr().wrapping_add(slot * BLOCK), len: BLOCK }];
        let (disk, offset) = (DiskId(0), EXTENT + offset(&mut rng));
        let op = if write {
            Op::Write { disk, offset, buffers: &buffers }
        } else {
            Op::Read { disk, offset, buffers: &buffers }
        };
        // SAFETY: the memory lives until every completion has been taken (the engine waits for them when dropped).
        unsafe { engine.submit(op, OpTag(slot as u64)) }.unwrap();
    };
    (0..depth).for_each(|slot| submit(&mut engine, slot));
    let outcome = measure("ring", |end| {
        let mut operations = 0;
        while Instant::now() < end {
            engine.wait(Wait::Forever);
            while let Some(completion) = engine.take_completion() {
                completion.result.unwrap();
                operations += 1;
                submit(&mut engine, usize::try_from(completion.tag.0).unwrap());
            }
        }
        operations
    });
    drop(engine);
    outcome
}

/// The same through a ring, a reactor and the pipeline; the guest sleeps until it is interrupted.
fn through_ring(connection: &mut Connection, write: bool, depth: u16) -> Outcome {
    let kind = if write { WRITE } else { READ };
    let mut rng = Rng::new(1);
    let mut submit = |connection: &mut Connection, slot| {
        connection.guest.submit(slot, kind, offset(&mut rng) / 512, BLOCK, 0);
    };
    (0..depth).for_each(|slot| submit(connection, slot));
    connection.kick();
    let outcome = measure("spanblk-r", |end| {
        let mut operations = 0;
        while Instant::now() < end {
            connection.wait();
            while let Some((slot, status)) = connection.guest.take() {
                assert_eq!(status, 0);
                operations += 1;
                submit(connection, slot);
            }
            connection.kick();
        }
        operations
    });
    (0..depth).for_each(|_| assert_eq!(connection.take().1, 0));
    outcome
}

fn prefill(directory: &Path) -> (PathBuf, FileDisk) {
    let path = directory.join(format!("spanblk-bench-{}", std::process::id()));
    let file = FileDisk::create(&path, EXTENT * u64::from(EXTENTS + 1)).unwrap();
    let mut chunk = AlignedBuf::zeroed(4 << 20);
    Rng::new(9).fill(&mut chunk);
    for at in (0..file.size()).step_by(chunk.len()) {
        let len = usize::try_from((file.size() - at).min(chunk.len() as u64)).unwrap();
        file.write_at(at, &chunk[..len]).unwrap();
    }
    file.sync().unwrap();
    (path, file)
}

fn main() {
    let directory = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let directory = directory.map_or_else(std::env::temp_dir, PathBuf::from);
    let (path, file) = prefill(&directory);
    let plain_file = FileDisk::from_fd(&path, file.fd().try_clone().unwrap(), file.access()).unwrap();
    let mut host = Host::on(vec![file], EXTENTS, 1);
    let vhd = host.prefilled_vhd(1, EXTENTS, 0);
    let mut connection = host.connect(Guest::new(64, BLOCK, true), &vhd, 0);
    println!("4 KiB random      depth      plain io_uring            through a ring            ratio");
    let only = std::env::args().skip_while(|argument| argument != "--only").nth(1);
    let cases = [("read", false), ("write", true)];
    for (name, write) in cases.into_iter().filter(|(name, _)| only.as_deref().is_none_or(|only| only == *name)) {
        for depth in [1u16, 8, 32] {
            let turn = |_| (plain(&plain_file, write, usize::from(depth)), through_ring(&mut connection, write, depth));
            let (plain, ring): (Vec<Outcome>, Vec<Outcome>) = (0..TURNS).map(turn).unzip();
            let (plain, ring) = (best(plain), best(ring));
            let micros = |time: Duration, outcome: &Outcome| time.as_secs_f64() * 1e6 / outcome.operations as f64;
            println!(
                "{name:<18}{depth:>5} {:>9.0}/s {:>5.1} us CPU  {:>9.0}/s {:>5.1} us CPU ({:>4.1} all)   {:.2}",
                rate(&plain),
                micros(plain.submitter, &plain),
                rate(&ring),
                micros(ring.submitter, &ring),
                micros(ring.all, &ring),
                rate(&ring) / rate(&plain),
            );
        }
    }
    connection.stop();
    host.shut_down();
    std::fs::remove_file(path).unwrap();
}
