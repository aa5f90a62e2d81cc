//! What a process has cost: CPU time, context switches and system calls, over all its threads. The kernel's own workers for its
//! io_uring are threads of it, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// Nanoseconds on a CPU and context switches of each thread since it began.
#[derive(Clone, Debug)]
pub struct Threads(BTreeMap<String, (u64, u64)>);

/// What a process has cost for a while.
#[derive(Clone, Copy, Debug)]
pub struct Cost {
    /// Microseconds on a CPU.
    pub cpu_us: f64,
    /// Context switches.
    pub switches: f64,
}

impl Threads {
    /// # Errors
    /// There is no such process.
    pub fn of(process: u32) -> Result<Threads> {
        let mut threads = BTreeMap::new();
        for entry in fs::read_dir(format!("/proc/{process}/task"))? {
            let entry = entry?;
            // A thread that ends meanwhile is left out: those that serve requests stay as long as there are any.
            if let Ok(figures) = figures(&entry.path()) {
                threads.insert(entry.file_name().to_string_lossy().into_owned(), figures);
            }
        }
        Ok(Threads(threads))
    }

    /// What has been added since `before`.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "a double counts days of nanoseconds exactly")]
    pub fn since(&self, before: &Threads) -> Cost {
        let mut cost = Cost { cpu_us: 0.0, switches: 0.0 };
        for (thread, (cpu, switches)) in &self.0 {
            let (cpu_before, switches_before) = before.0.get(thread).copied().unwrap_or_default();
            cost.cpu_us += cpu.saturating_sub(cpu_before) as f64 / 1000.0;
            cost.switches += switches.saturating_sub(switches_before) as f64;
        }
        cost
    }
}

fn figures(task: &Path) -> Result<(u64, u64)> {
    let schedstat = fs::read_to_string(task.join("schedstat"))?;
    let cpu = schedstat.split_whitespace().next().context("time on a CPU")?.parse()?;
    let status = fs::read_to_string(task.join("status"))?;
    let switches =
        status.lines().filter_map(|line| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok()).sum();
    Ok((cpu, switches))
}
