//! Jobs of all kinds, at random.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};

use super::{VHDS, disks};
use lab::counts::Counts;
use lab::daemon::Pool;
use lab::model::Random;

/// Longest a job may take, with this load on a small machine.
const JOB_LIMIT: Duration = Duration::from_secs(120);

/// Begins a change at random. `None` if it was refused, or there was nothing to do.
///
/// # Errors
/// What spanblk says, if it is not that the state of the pool forbids it.
pub fn begin(pool: &Pool, random: &mut Random, tally: &mut Counts) -> Result<Option<(&'static str, u64)>> {
    disks::tend(pool, random, tally)?;
    let (kind, mut args) = choose(pool, random)?;
    match random.below(4) {
        0 => args.extend(["--max-rate", "64MiB"].map(str::to_owned)),
        1 => args.extend(["--priority", "urgent"].map(str::to_owned)),
        _ => {}
    }
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = pool.ask(&args)?;
    if kind == "evacuate" && random.below(2) == 0 {
        // Its role is put right at once; what is on it goes away all the same.
        pool.ask(&["disk", "set", args[2], "--accept", "any"])?;
    }
    let Some(result) = result else {
        tally.count("refused");
        return Ok(None);
    };
    match result["job"]["id"].as_u64() {
        Some(job) => Ok(Some((kind, job))),
        None => {
            tally.count("nothing to do");
            Ok(None)
        }
    }
}

/// A kind of change and its command.
fn choose(pool: &Pool, random: &mut Random) -> Result<(&'static str, Vec<String>)> {
    let vhd = random.of(&VHDS);
    let name = vhd.name;
    let members = disks::members(pool)?;
    let disk = random.of(&members).as_str();
    let width = (2 + random.below(3)).to_string();
    let (kind, args): (_, Vec<&str>) = match random.below(17) {
        0..3 => ("span", vec!["vhd", "span", name]),
        3 => ("span", vec!["vhd", "span", name, "--width", &width]),
        4..7 => ("unspan", vec!["vhd", "unspan", name, "--disk", disk]),
        7 => ("unspan", vec!["vhd", "unspan", name, "--width", "2"]),
        8 | 9 => ("migrate", vec!["vhd", "migrate", name]),
        10 => ("rebalance", vec!["pool", "rebalance"]),
        11 | 12 => ("evacuate", vec!["disk", "evacuate", disk]),
        13 | 14 => return Ok(("replace", disks::replacement(pool, random)?)),
        _ => {
            let replicated: Vec<_> = VHDS.iter().filter(|vhd| vhd.replicated).collect();
            let replicas = (1 + random.below(3)).to_string();
            let args = ["vhd", "set", random.of(&replicated).name, "--replicas", &replicas];
            return Ok(("replicas", args.map(str::to_owned).to_vec()));
        }
    };
    Ok((kind, args.into_iter().map(str::to_owned).collect()))
}

/// Waits until a job has ended.
///
/// # Errors
/// It stops, or takes too long.
pub fn wait(pool: &Pool, job: u64) -> Result<()> {
    let started = Instant::now();
    loop {
        let info = pool.json(&["job", "show", &job.to_string()])?;
        match info["state"].as_str() {
            Some("done" | "cancelled") => return Ok(()),
            Some("running") => {}
            state => bail!("job {job} is {state:?}: {info}"),
        }
        ensure!(started.elapsed() < JOB_LIMIT, "job {job} does not end: {info}");
        thread::sleep(Duration::from_millis(10));
    }
}
