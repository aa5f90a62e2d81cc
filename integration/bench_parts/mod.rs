//! The measurements of `bench.rs`.

use std::fs;

use anyhow::{Context, Result};

use crate::lab::daemon::Pool;
use crate::lab::frontend::{Frontend, Options};
use crate::lab::ring::Shape;
use crate::lab::tools::RunDir;

const GIB: u64 = 1 << 30;

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

fn resident_kib(process: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("VmRSS in /proc")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}
