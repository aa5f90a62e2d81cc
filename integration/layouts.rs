//! Layout changes of all kinds while every VHD is under a load that checks each answer; with cancels, pauses, and SIGKILL of the
//! daemon in between.
//!
//! `LAB_CHANGES` sets the number of changes (60), `LAB_SEED` repeats a run's choices (not its timing).

mod lab;

use std::collections::BTreeMap;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use lab::daemon::{Pool, SPANBLK};
use lab::load::{Load, Terms, connect};
use lab::model::Random;
use lab::report::Report;
use lab::tools::{RunDir, number_from_env};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// 256 extents.
const SIZE: u64 = 64 * MIB;

const DISKS: u64 = 4;

/// A VHD under load: name, options of `vhd create`, sectors of a block, whether the guest makes it writethrough.
const VHDS: [(&str, &[&str], u64, bool); 3] = [
    ("iso", &["--layout", "isolated", "--block-size", "512"], 1, false),
    ("span", &["--layout", "spanned", "--block-size", "4096"], 8, false),
    ("through", &["--layout", "spanned", "--width", "2"], 1, true),
];

/// Longest a job may take, with this load on a small machine.
const JOB_LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    let mut report = Report::new("layouts");
    let changes = number_from_env("LAB_CHANGES", 60);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let seed = number_from_env("LAB_SEED", now);
    report.note(&format!("LAB_SEED={seed} LAB_CHANGES={changes}"));
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let name = format!("{changes} layout changes under a load that checks every answer");
    if let Some(told) = report.check(&name, || run(&dir, changes, seed)) {
        told.iter().for_each(|line| report.note(line));
    }
    report.finish()
}

/// What was done, by kind.
#[derive(Default)]
struct Tally(BTreeMap<String, u64>);

impl Tally {
    fn count(&mut self, what: &str) {
        *self.0.entry(what.to_owned()).or_default() += 1;
    }

    fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

fn run(dir: &RunDir, changes: u64, seed: u64) -> Result<Vec<String>> {
    let mut random = Random::new(seed);
    let disks = (0..DISKS).map(|i| dir.disks().join(format!("disk{i}.img"))).collect();
    let mut pool = Pool::create(dir.sockets(), disks, &["--size", "288MiB", "--extent-size", "256KiB"])?;
    pool.serve_all()?;
    for (name, options, ..) in VHDS {
        pool.create_vhd(name, SIZE, options)?;
    }
    let mut loads: Vec<Load> = VHDS
        .iter()
        .zip(1..)
        .map(|((_, _, block, writethrough), disk)| {
            let terms = Terms { block: *block, discard: 64, writethrough: *writethrough };
            Load::new(disk, SIZE / 512, terms, random.next())
        })
        .collect();
    let mut tally = Tally::default();
    // A daemon counts from its start on.
    let (mut waits, mut of_this_daemon) = (0, 0);
    while tally.of("changes") < changes {
        let until = (tally.of("changes") + 8).min(changes);
        let killed = random.below(3) > 0;
        round(&mut pool, &mut loads, &mut random, &mut tally, until, killed)
            .with_context(|| format!("after {} changes; {}", tally.of("changes"), pool.log_tail()))?;
        of_this_daemon = tally.0.remove("waits of this daemon").unwrap_or(of_this_daemon);
        if killed {
            waits += std::mem::take(&mut of_this_daemon);
            tally.count("SIGKILL");
            pool.serve_all()?;
        }
    }
    for ((name, ..), load) in VHDS.iter().zip(&mut loads) {
        load.verify(&mut connect(&pool.socket(name))?).with_context(|| format!("at the end, {name}"))?;
    }
    waits += of_this_daemon;
    pool.check()?;
    pool.stop()?;
    pool.check()?;
    ensure!(waits > 0, "no guest request ever met a block being copied: nothing was proved");
    let kinds = tally.0.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ");
    let (requests, flushes) =
        (loads.iter().map(|l| l.completed).sum::<u64>(), loads.iter().map(|l| l.flushes).sum::<u64>());
    Ok(vec![
        kinds,
        format!("{requests} requests, {flushes} flushes; {waits} requests met a block that was being copied"),
    ])
}

/// Changes under load, until there have been `until` of them; then the end of the daemon or of the load.
fn round(
    pool: &mut Pool,
    loads: &mut [Load],
    random: &mut Random,
    tally: &mut Tally,
    until: u64,
    killed: bool,
) -> Result<()> {
    let mut frontends = Vec::new();
    for ((name, _, _, writethrough), load) in VHDS.iter().zip(loads.iter_mut()) {
        let mut frontend = connect(&pool.socket(name))?;
        load.verify(&mut frontend).with_context(|| format!("{name} after a start"))?;
        frontend.set_writeback(!writethrough)?;
        frontends.push(frontend);
    }
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads: Vec<_> = loads
            .iter_mut()
            .zip(&mut frontends)
            .map(|(load, frontend)| {
                scope.spawn(|| {
                    let outcome = load.run(frontend, &stop);
                    // Nobody is to wait for changes that nobody checks.
                    stop.store(outcome.is_err() || stop.load(Ordering::Relaxed), Ordering::Relaxed);
                    outcome
                })
            })
            .collect();
        let mut changed = Ok(());
        while changed.is_ok() && tally.of("changes") < until && !stop.load(Ordering::Relaxed) {
            changed = change(pool, random, tally);
        }
        if changed.is_ok() {
            changed = note_waits(pool, tally);
        }
        if killed && changed.is_ok() {
            changed = begin(pool, random, tally).map(drop);
            thread::sleep(Duration::from_millis(random.below(150)));
            pool.kill();
        }
        stop.store(true, Ordering::Relaxed);
        let loads: Result<()> =
            threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow!("a load panicked"))?);
        loads.and(changed)
    })
}

/// One change from its beginning to its end, whatever that is.
fn change(pool: &Pool, random: &mut Random, tally: &mut Tally) -> Result<()> {
    let Some((kind, job)) = begin(pool, random, tally)? else { return Ok(()) };
    let id = job.to_string();
    match random.below(8) {
        0 => {
            ask(pool, &["job", "cancel", &id])?;
            tally.count("cancelled");
        }
        1 if matches!(kind, "span" | "unspan" | "migrate") => {
            let revert = ask(pool, &["job", "cancel", &id, "--revert"])?;
            if let Some(back) = revert.as_ref().and_then(|result| result["job"]["id"].as_u64()) {
                wait(pool, back)?;
                tally.count("reverted");
            }
        }
        2 => {
            ask(pool, &["job", "pause", &id])?;
            thread::sleep(Duration::from_millis(random.below(100)));
            ask(pool, &["job", "resume", &id])?;
            tally.count("paused");
        }
        _ => {}
    }
    wait(pool, job)?;
    tally.count(kind);
    tally.count("changes");
    pool.check().context("the table after a change")
}

/// Begins a change at random. `None` if it was refused, or there was nothing to do.
fn begin(pool: &Pool, random: &mut Random, tally: &mut Tally) -> Result<Option<(&'static str, u64)>> {
    let vhd = VHDS[usize::try_from(random.below(VHDS.len() as u64))?].0;
    let disk = format!("disk{}", random.below(DISKS));
    let width = (2 + random.below(3)).to_string();
    let (kind, mut args): (_, Vec<&str>) = match random.below(12) {
        0..3 => ("span", vec!["vhd", "span", vhd]),
        3 => ("span", vec!["vhd", "span", vhd, "--width", &width]),
        4..7 => ("unspan", vec!["vhd", "unspan", vhd, "--disk", &disk]),
        7 => ("unspan", vec!["vhd", "unspan", vhd, "--width", "2"]),
        8 | 9 => ("migrate", vec!["vhd", "migrate", vhd]),
        10 => ("rebalance", vec!["pool", "rebalance"]),
        _ => ("evacuate", vec!["disk", "evacuate", &disk]),
    };
    match random.below(4) {
        0 => args.extend(["--max-rate", "64MiB"]),
        1 => args.extend(["--priority", "urgent"]),
        _ => {}
    }
    let result = ask(pool, &args)?;
    if kind == "evacuate" {
        // Its role is put right at once; what is on it goes away all the same.
        ask(pool, &["disk", "set", &disk, "--accept", "any"])?;
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

/// Waits until a job has ended.
fn wait(pool: &Pool, job: u64) -> Result<()> {
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

/// Asks the daemon; `None` if the state of the pool forbids it.
fn ask(pool: &Pool, args: &[&str]) -> Result<Option<Value>> {
    let output = Command::new(SPANBLK).arg("--control").arg(pool.control()).arg("--json").args(args).output()?;
    match output.status.code() {
        Some(0) => Ok(Some(serde_json::from_slice(&output.stdout)?)),
        Some(4) => Ok(None),
        _ => bail!("{args:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// Adds up how often guests met a block being copied.
fn note_waits(pool: &Pool, tally: &mut Tally) -> Result<()> {
    let metrics = pool.cli(&["metrics"])?;
    let lines = metrics.lines().filter(|line| line.starts_with("spanblk_vhd_copy_waits_total"));
    let sum: u64 = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum();
    *tally.0.entry("waits of this daemon".to_owned()).or_default() = sum;
    Ok(())
}
