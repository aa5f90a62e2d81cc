//! Disks of the pool that come and go: one that takes the place of another, one that leaves, one that is added.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;

use lab::counts::Counts;
use lab::daemon::Pool;
use lab::model::Random;

/// Bytes of a disk: all VHDs, with all their replicas but those of one another, would fit on one.
const SIZE: u64 = 768 << 20;

/// Disks of the pool at first, and at most.
const MOST: usize = 4;

/// Disks of the pool at least: three replicas need three failure domains.
const LEAST: usize = 3;

/// A pool of four disks, and a fifth that may take the place of one of them.
///
/// # Errors
/// What spanblk says.
pub fn create(sockets: &Path, files: &Path) -> Result<Pool> {
    let paths: Vec<PathBuf> = (0..=MOST).map(|i| files.join(format!("disk{i}.img"))).collect();
    for path in &paths {
        File::create(path)?.set_len(SIZE)?;
    }
    let domains: Vec<String> = paths.iter().map(|path| format!("{}={}", path.display(), name(path))).collect();
    let mut options = vec!["--extent-size", "256KiB"];
    options.extend(domains[..MOST].iter().flat_map(|domain| ["--failure-domain", domain]));
    let mut pool = Pool::create(sockets, paths[..MOST].to_vec(), &options)?;
    pool.disks = paths;
    Ok(pool)
}

/// Names of the disks that are in the pool.
///
/// # Errors
/// The daemon does not answer.
pub fn members(pool: &Pool) -> Result<Vec<String>> {
    Ok(list(pool)?.iter().filter_map(|disk| Some(disk["name"].as_str()?.to_owned())).collect())
}

/// The command by which another disk takes the place of one: one from outside, or one of the pool.
///
/// # Errors
/// The daemon does not answer.
pub fn replacement(pool: &Pool, random: &mut Random) -> Result<Vec<String>> {
    let mut members = members(pool)?;
    let outside = spare(pool, &members);
    let old = members.swap_remove(usize::try_from(random.below(members.len() as u64))?);
    let mut args = vec!["disk".to_owned(), "replace".to_owned(), old];
    match outside.filter(|_| members.len() < LEAST || random.below(2) == 0) {
        Some(path) => {
            args.push(path.display().to_string());
            args.extend(["--failure-domain".to_owned(), name(path)]);
        }
        None => args.push(random.of(&members).clone()),
    }
    Ok(args)
}

/// While no job runs: a disk that was emptied leaves the pool, or is used again; and if one is missing, another is added.
///
/// # Errors
/// What spanblk says, if it is not that the state of the pool forbids it.
pub fn tend(pool: &Pool, random: &mut Random, tally: &mut Counts) -> Result<()> {
    let jobs = pool.json(&["job", "list"])?;
    let mut jobs = jobs["jobs"].as_array().context("no jobs")?.iter();
    if jobs.any(|job| !matches!(job["state"].as_str(), Some("done" | "cancelled"))) {
        return Ok(());
    }
    let disks = list(pool)?;
    for disk in disks.iter().filter(|disk| disk["accept"] == "none") {
        let disk = disk["name"].as_str().context("a disk without a name")?;
        if disks.len() > LEAST && pool.ask(&["disk", "remove", disk])?.is_some() {
            tally.count("removed");
        } else {
            pool.ask(&["disk", "set", disk, "--accept", "any"])?;
        }
    }
    let members = members(pool)?;
    if members.len() < LEAST || (members.len() < MOST && random.below(2) == 0) {
        let path = spare(pool, &members).context("all disks are in the pool")?;
        let (domain, path) = (name(path), path.to_str().context("a path")?);
        let added = pool.ask(&["disk", "add", path, "--failure-domain", &domain])?;
        tally.count(if added.is_some() { "added" } else { "refused to add" });
    }
    Ok(())
}

fn list(pool: &Pool) -> Result<Vec<Value>> {
    Ok(pool.json(&["disk", "list"])?["disks"].as_array().context("no disks")?.clone())
}

/// A disk that is not in the pool.
fn spare<'a>(pool: &'a Pool, members: &[String]) -> Option<&'a PathBuf> {
    pool.disks.iter().find(|path| !members.contains(&name(path)))
}

/// The name that spanblk gives a disk, by its path.
fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}
