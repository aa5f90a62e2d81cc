//! Jobs of a daemon: beginning one, waiting for its end.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use super::daemon::Pool;

/// Longest time for a job.
const LIMIT: Duration = Duration::from_secs(300);

/// Begins a job; its number.
///
/// # Errors
/// What spanblk says, or that there is nothing to do.
pub fn begin(pool: &Pool, args: &[&str]) -> Result<u64> {
    let answer = pool.json(args)?;
    answer["job"]["id"].as_u64().with_context(|| format!("{args:?} began no job: {answer}"))
}

/// Waits until a job is done; how many bytes it moved.
///
/// # Errors
/// It ends otherwise, or does not.
pub fn finish(pool: &Pool, id: u64) -> Result<u64> {
    let started = Instant::now();
    loop {
        let info = pool.json(&["job", "show", &id.to_string()])?;
        match info["state"].as_str() {
            Some("done") => return info["moved_bytes"].as_u64().context("a job tells how much it moved"),
            Some("running") => {}
            state => bail!("job {id} is {state:?}: {info}"),
        }
        ensure!(started.elapsed() < LIMIT, "job {id} does not end: {info}");
        sleep(Duration::from_millis(20));
    }
}
