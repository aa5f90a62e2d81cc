//! System calls of a process, counted by `perf` where it can.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use lab::tools::{Process, command, run, wait_for};

const EVENT: &str = "raw_syscalls:sys_enter";

/// It does not say when it has begun to count. This is several times what it takes.
const BEGINNING: Duration = Duration::from_millis(500);

/// Longest time for it to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why they cannot be counted here.
#[must_use]
pub fn unavailable() -> Option<String> {
    let trial = Command::new("perf").args(["stat", "-x,", "-e", EVENT, "true"]).stdin(Stdio::null()).output();
    match trial {
        Err(_) => Some("perf is not installed".to_owned()),
        Ok(output) if output.status.success() && count(&String::from_utf8_lossy(&output.stderr)).is_some() => None,
        Ok(_) => Some(format!("perf cannot count {EVENT} here")),
    }
}

/// Counts from now on.
#[derive(Debug)]
pub struct Counter {
    perf: Process,
    output: PathBuf,
}

impl Counter {
    /// Counts the calls of all threads of a process.
    ///
    /// # Errors
    /// `perf` is missing.
    pub fn start(process: u32, dir: &Path) -> Result<Counter> {
        let output = dir.join("perf.txt");
        let mut perf = command("perf");
        perf.args(["stat", "-x,", "-e", EVENT, "-p", &process.to_string(), "-o"]).arg(&output);
        let perf = Process::start("perf", perf.stdout(Stdio::null()))?;
        std::thread::sleep(BEGINNING);
        Ok(Counter { perf, output })
    }

    /// How many there have been.
    ///
    /// # Errors
    /// `perf` does not say.
    pub fn stop(mut self) -> Result<f64> {
        run(Command::new("kill").arg("-INT").arg(self.perf.id().to_string()))?;
        wait_for("the end of perf", PATIENCE, || self.perf.exited())?;
        let text = fs::read_to_string(&self.output)?;
        count(&text).with_context(|| format!("perf counted nothing: {text}"))
    }
}

/// The number in what `perf stat -x,` prints.
fn count(text: &str) -> Option<f64> {
    text.lines().find(|line| line.contains(EVENT))?.split(',').next()?.parse().ok()
}
