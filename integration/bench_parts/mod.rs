//! The measurements of `bench.rs`.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::lab::daemon::Pool;
use crate::lab::fio::{self, Measured};
use crate::lab::frontend::{Frontend, Options};
use crate::lab::model::Random;
use crate::lab::ring::{Op, Shape};
use crate::lab::tools::{RunDir, filled_file, number_from_env};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The measured disk and the VHD on it. The VHD lies in the first half; fio uses the end of the same file.
const DISK_SIZE: u64 = 3 * GIB;
const VHD_SIZE: u64 = GIB;

/// The same requests through spanblk and by fio, in turns, on one host disk that was filled before.
///
/// # Errors
/// What spanblk or fio say.
pub fn against_fio(dir: &RunDir) -> Result<()> {
    let secs = number_from_env("LAB_BENCH_SECS", 3);
    let rounds = usize::try_from(number_from_env("LAB_BENCH_ROUNDS", 3))?;
    let (files, sockets) = subdirs(dir, "fio")?;
    let disk = files.join("disk.img");
    filled_file(&disk, DISK_SIZE)?;
    let mut pool = Pool::create(&sockets, vec![disk.clone()], &["--force"])?;
    pool.serve_all()?;
    pool.create_vhd("bench", VHD_SIZE, &["--layout", "isolated", "--thick", "--block-size", "512", "--queues", "1"])?;
    let mut frontend =
        Frontend::connect(&pool.socket("bench"), &Options::cloud_hypervisor(1, Shape { size: 256, buffer_len: MIB }))?;
    fill_vhd(&mut frontend)?;

    println!("   request          depth    fio IOPS  spanblk IOPS  ratio  fio us  spanblk us");
    for write in [false, true] {
        for depth in [1, 32] {
            let (mut theirs, mut ours) = (Vec::new(), Vec::new());
            for _ in 0..rounds {
                theirs.push(fio::measure(&disk, write, depth, DISK_SIZE - VHD_SIZE - 2 * MIB, VHD_SIZE, secs)?);
                ours.push(measure(&mut frontend, write, u16::try_from(depth)?, Duration::from_secs(secs))?);
            }
            let (theirs, ours) = (median(theirs), median(ours));
            println!(
                "   4 KiB rand{:<7}{depth:>5}{:>12.0}{:>14.0}{:>7.2}{:>8.1}{:>12.1}",
                if write { "write" } else { "read" },
                theirs.iops,
                ours.iops,
                ours.iops / theirs.iops,
                theirs.latency_us,
                ours.latency_us,
            );
        }
    }
    drop(frontend);
    pool.stop()?;
    pool.check()?;
    fs::remove_file(&disk).context("removing the measured disk")
}

/// Resident memory of the daemon with 1 and with 64 VHDs, served and then attached.
///
/// # Errors
/// What spanblk says.
pub fn memory(dir: &RunDir) -> Result<()> {
    let (files, sockets) = subdirs(dir, "memory")?;
    let mut pool = Pool::create_files(&sockets, &files, 4, 4 * GIB)?;
    pool.serve_all()?;
    let mut attached = Vec::new();
    let connect = |pool: &Pool, index: usize| {
        let shape = Shape { size: 128, buffer_len: 4096 };
        Frontend::connect(&pool.socket(&format!("vhd{index}")), &Options::cloud_hypervisor(1, shape))
    };
    for (count, first) in [(1, 0), (64, 1)] {
        for index in first..count {
            let layout = if index % 2 == 0 { "isolated" } else { "spanned" };
            pool.create_vhd(&format!("vhd{index}"), 10 * GIB, &["--layout", layout, "--queues", "1"])?;
        }
        let served = resident_kib(pool.id()?)?;
        for index in first..count {
            let mut frontend = connect(&pool, index)?;
            frontend.ring().write(0, &[1; 4096])?;
            attached.push(frontend);
        }
        let used = resident_kib(pool.id()?)?;
        println!("   {count:>2} VHDs of 10 GiB: {served} KiB resident, {used} KiB with all of them attached");
    }
    drop(attached);
    pool.stop()
}

/// The time from the start of the daemon to its readiness when 1 TiB is placed.
///
/// # Errors
/// What spanblk says.
pub fn open_large(dir: &RunDir) -> Result<()> {
    let (files, sockets) = subdirs(dir, "large")?;
    let mut pool = Pool::create_files(&sockets, &files, 4, 320 * GIB)?;
    pool.serve_all()?;
    pool.create_vhd("isolated", 256 * GIB, &["--layout", "isolated", "--thick"])?;
    pool.create_vhd("spanned", 768 * GIB, &["--layout", "spanned", "--thick"])?;
    pool.stop()?;
    let clean = pool.serve_all()?;
    let resident = resident_kib(pool.id()?)?;
    pool.kill();
    let killed = pool.serve_all()?;
    pool.stop()?;
    println!(
        "   ready {:.0} ms after a clean end, {:.0} ms after SIGKILL; {resident} KiB resident",
        clean.as_secs_f64() * 1e3,
        killed.as_secs_f64() * 1e3
    );
    Ok(())
}

fn subdirs(dir: &RunDir, name: &str) -> Result<(std::path::PathBuf, std::path::PathBuf)> {
    let (files, sockets) = (dir.disks().join(name), dir.sockets().join(name));
    fs::create_dir(&files)?;
    fs::create_dir(&sockets)?;
    Ok((files, sockets))
}

/// Keeps `depth` random 4 KiB requests in flight for a while.
fn measure(frontend: &mut Frontend, write: bool, depth: u16, time: Duration) -> Result<Measured> {
    let pages = VHD_SIZE / 4096;
    let op = if write { Op::Out } else { Op::In };
    let ring = frontend.ring();
    ensure!(depth <= ring.shape.slots(), "the ring holds {} requests", ring.shape.slots());
    let mut random = Random::new(u64::from(depth) + u64::from(write));
    let mut submitted = vec![Instant::now(); usize::from(depth)];
    let (mut done, mut waited) = (0_u64, Duration::ZERO);
    let started = Instant::now();
    for slot in 0..depth {
        ring.push(slot, op, random.below(pages) * 8, 4096)?;
    }
    let mut in_flight = depth;
    let mut ended = started;
    while in_flight > 0 {
        ring.kick()?;
        ensure!(ring.wait(Duration::from_secs(30))?, "nothing completes");
        while let Some((slot, status)) = ring.completed()? {
            ensure!(status == 0, "status {status}");
            let now = Instant::now();
            let begun = &mut submitted[usize::from(slot)];
            waited += now - *begun;
            done += 1;
            ended = now;
            if now - started < time {
                *begun = now;
                ring.push(slot, op, random.below(pages) * 8, 4096)?;
            } else {
                in_flight -= 1;
            }
        }
    }
    #[allow(clippy::cast_precision_loss, reason = "far fewer requests than a double counts exactly")]
    let done = done as f64;
    Ok(Measured { iops: done / (ended - started).as_secs_f64(), latency_us: waited.as_secs_f64() * 1e6 / done })
}

fn median(mut all: Vec<Measured>) -> Measured {
    all.sort_by(|a, b| a.iops.total_cmp(&b.iops));
    all[all.len() / 2]
}

/// Writes the whole VHD once, so that every block is present.
fn fill_vhd(frontend: &mut Frontend) -> Result<()> {
    let mut random = Random::new(2);
    let mut chunk = vec![0; usize::try_from(MIB)?];
    for at in (0..VHD_SIZE).step_by(usize::try_from(MIB)?) {
        chunk.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&random.next().to_le_bytes()));
        frontend.ring().write(at / 512, &chunk)?;
    }
    frontend.ring().flush()
}

fn resident_kib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS in /proc")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
