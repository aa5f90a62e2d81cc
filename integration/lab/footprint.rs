//! What a process holds, and the CPU time on its account.

use std::fs;

use anyhow::{Context, Result};

/// Names of the kernel's own threads for io_uring, which are threads of the process whose work they do.
const KERNEL_THREADS: &str = "iou-";

/// Names of reactors.
const REACTORS: &str = "spanblk-r";

/// What a process holds.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    /// Bytes of resident memory that is its own.
    pub memory: u64,
    /// Threads, without those of the kernel.
    pub threads: usize,
    /// How many of them are reactors.
    pub reactors: usize,
    /// Open file descriptors.
    pub descriptors: usize,
}

impl Footprint {
    /// # Errors
    /// There is no such process, or it is somebody else's.
    pub fn of(process: u32) -> Result<Footprint> {
        let status = fs::read_to_string(format!("/proc/{process}/status"))?;
        let kib = |what: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(what)).with_context(|| what.to_owned())?;
            Ok(line.trim().trim_end_matches(" kB").parse()?)
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(format!("/proc/{process}/task"))? {
            // One that has ended meanwhile has no name.
            names.extend(fs::read_to_string(entry?.path().join("comm")));
        }
        Ok(Footprint {
            // The third kind, RssShmem, is guest memory, which is there with or without the daemon, and what the daemon keeps for
            // the next one, which `Pool::kept` counts.
            memory: (kib("RssAnon:")? + kib("RssFile:")?) << 10,
            // How many the kernel keeps, and for how long, depends on what disks have made wait.
            threads: names.iter().filter(|name| !name.starts_with(KERNEL_THREADS)).count(),
            reactors: names.iter().filter(|name| name.starts_with(REACTORS)).count(),
            descriptors: fs::read_dir(format!("/proc/{process}/fd"))?.count(),
        })
    }
}

/// Ticks (of 10 ms) on the CPU, in user and in kernel mode, of all threads since the process began.
///
/// # Errors
/// There is no such process.
pub fn ticks(process: u32) -> Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The second field is a name, which may contain anything.
    let (_, fields) = stat.rsplit_once(") ").context("the name of a process")?;
    let mut times = fields.split(' ').skip(11).map(str::parse);
    let (user, system): (u64, u64) = (times.next().context("utime")??, times.next().context("stime")??);
    Ok(user + system)
}
