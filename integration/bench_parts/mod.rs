//! The measurements of `bench.rs`.

use std::fs;

use anyhow::Result;

use lab::daemon::Pool;
use lab::frontend::{Frontend, Options};
use lab::ring::Shape;
use lab::tools::{RunDir, memory_of};

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

fn subdirs(dir: &RunDir, name: &str) -> Result<(std::path::PathBuf, std::path::PathBuf)> {
    let (files, sockets) = (dir.disks().join(name), dir.sockets().join(name));
    fs::create_dir(&files)?;
    fs::create_dir(&sockets)?;
    Ok((files, sockets))
}

fn resident_kib(process: u32) -> Result<u64> {
    Ok(memory_of(process, "VmRSS")? >> 10)
}
