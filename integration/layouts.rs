//! Layout changes of all kinds while every VHD is under a load that checks each answer; with resizes, cancels, pauses, disks that
//! come and go, and SIGKILL of the daemon in between.
//!
//! `LAB_CHANGES` sets the number of changes (60), `LAB_SEED` repeats a run's choices (not its timing).

mod layout_parts;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lab::counts::Counts;
use lab::daemon::Pool;
use lab::guest::Guest;
use lab::load::{Load, Terms};
use lab::model::Random;
use lab::report::Report;
use lab::tools::{RunDir, number_from_env};
use layout_parts::counters::Counters;
use layout_parts::jobs::{begin, wait};
use layout_parts::resize::{self, SMALLEST, Way};
use layout_parts::{VHDS, Vhd, disks};

/// Jobs that are cancelled one after the other.
const CANCELS: u64 = 10;

/// Changes after which each step of a move must have been met by something that ends the move.
const MANY: u64 = 500;

/// What must have been done after so many changes.
const KINDS: [&str; 12] = [
    "span",
    "unspan",
    "migrate",
    "rebalance",
    "evacuate",
    "replicas",
    "replace",
    "removed",
    "added",
    "cancelled",
    "reverted",
    "paused",
];

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

fn run(dir: &RunDir, changes: u64, seed: u64) -> Result<Vec<String>> {
    let mut random = Random::new(seed);
    let mut pool = disks::create(dir.sockets(), dir.disks())?;
    pool.serve_all()?;
    let mut guests = Vec::new();
    for (vhd, disk) in VHDS.iter().zip(1..) {
        pool.create_vhd(vhd.name, SMALLEST * 512, vhd.options)?;
        let Vhd { block, writethrough, .. } = *vhd;
        let terms = Terms { block, discard: 64, writethrough, outlives: true };
        guests.push(Guest::new(vhd.name, disk, SMALLEST, terms, random.next_u64()));
    }
    let (mut tally, mut counters) = (Counts::default(), Counters::default());
    while tally.of("changes") < changes {
        let until = (tally.of("changes") + 8).min(changes);
        let told = format!("{} changes", tally.of("changes"));
        let mut round = Round { guests: &mut guests, random: &mut random, tally: &mut tally, counters: &mut counters };
        round.run(&mut pool, until).with_context(|| format!("after {told}; {}", pool.log_tail()))?;
    }
    for guest in &mut guests {
        guest.attach(&pool).and_then(|()| guest.detach()).context("at the end")?;
    }
    counters.add_last(&pool)?;
    pool.check()?;
    let members = disks::members(&pool)?;
    pool.stop()?;
    pool.disks.retain(|path| path.file_stem().is_some_and(|name| members.iter().any(|member| *name == **member)));
    pool.check()?;
    summary(&guests, &tally, &counters)
}

/// What was done; an error if that proves nothing.
fn summary(guests: &[Guest], tally: &Counts, counters: &Counters) -> Result<Vec<String>> {
    let sum = |of: fn(&Load) -> u64| guests.iter().map(|guest| Ok(of(guest.load()?))).sum::<Result<u64>>();
    let (requests, flushes, beyond) = (sum(|l| l.completed)?, sum(|l| l.flushes)?, sum(|l| l.beyond)?);
    let mut lines = vec![
        tally.told(),
        format!("{requests} requests, {beyond} of them on what VHDs have grown by, {flushes} flushes"),
        format!("{} requests met a block that was being copied", counters.waits),
    ];
    let doubts = guests.iter().fold([0; 2], |sum, guest| [sum[0] + guest.doubts[0], sum[1] + guest.doubts[1]]);
    lines.push(format!("resizes cut short by a SIGKILL: {} were not made, {} were", doubts[0], doubts[1]));
    lines.extend(counters.told());
    ensure!(counters.waits > 0, "no guest request ever met a block being copied: nothing was proved; {lines:?}");
    let (never, changes) = (counters.never_ended_early(), tally.of("changes"));
    ensure!(never.is_empty() || changes < MANY, "no move ended early while {}; {lines:?}", never.join(", "));
    let missing: Vec<&str> = KINDS.into_iter().filter(|kind| tally.of(kind) == 0).collect();
    ensure!(missing.is_empty() || changes < MANY, "not done even once: {}; {lines:?}", missing.join(", "));
    ensure!(tally.of("grown") > 0 && tally.of("shrunk") > 0 && beyond > 0, "too few resizes; {lines:?}");
    Ok(lines)
}

/// Some changes under load, from a start of the load to its end or that of the daemon.
struct Round<'a> {
    guests: &'a mut [Guest],
    random: &'a mut Random,
    tally: &'a mut Counts,
    counters: &'a mut Counters,
}

impl Round<'_> {
    /// Makes changes until there have been `until` of them.
    fn run(&mut self, pool: &mut Pool, until: u64) -> Result<()> {
        let killed = self.random.below(3) > 0;
        let changed = self.changes(pool, until, killed);
        // What a load has found is the cause of what came of it.
        let loads: Vec<Result<()>> = self.guests.iter_mut().map(Guest::detach).collect();
        loads.into_iter().collect::<Result<()>>().and(changed)?;
        if killed {
            self.tally.count("SIGKILL");
            pool.serve_all()?;
        }
        Ok(())
    }

    fn changes(&mut self, pool: &mut Pool, until: u64, killed: bool) -> Result<()> {
        self.guests.iter_mut().try_for_each(|guest| guest.attach(pool))?;
        while self.tally.of("changes") < until {
            // Nobody is to wait for changes that nobody checks.
            ensure!(!self.guests.iter().any(Guest::has_ended), "a load has ended by itself");
            self.change(pool)?;
        }
        if killed {
            begin(pool, self.random, self.tally)?;
            thread::sleep(Duration::from_millis(self.random.below(150)));
            let mut resize = None;
            if self.random.below(2) == 0 {
                resize = resize::begin(pool, self.guests, self.random, self.tally)?;
            }
            self.counters.kill(pool)?;
            resize.map_or(Ok(()), |mut command| command.wait().map(drop))?;
        }
        Ok(())
    }

    /// One change from its beginning to its end, whatever that is.
    fn change(&mut self, pool: &Pool) -> Result<()> {
        let number = self.tally.of("changes");
        if number % 4 == 3 {
            let way = if number % 8 == 3 { Way::Grow } else { Way::Shrink };
            resize::resize(pool, self.guests, self.random, self.tally, way)?;
        } else {
            let Some((kind, job)) = begin(pool, self.random, self.tally)? else { return Ok(()) };
            match number % 8 {
                1 => self.cancel_often(pool, job)?,
                _ => self.meddle(pool, kind, job)?,
            }
            wait(pool, job)?;
            self.tally.count(kind);
        }
        self.tally.count("changes");
        pool.check().context("the table after a change")
    }

    /// Cancels the job at random, and others like that after it: steps of a move that take a moment only are to be met, too.
    fn cancel_often(&mut self, pool: &Pool, first: u64) -> Result<()> {
        let mut begun = Some(first);
        for _ in 0..CANCELS {
            if let Some(job) = begun {
                thread::sleep(Duration::from_millis(self.random.below(60)));
                pool.ask(&["job", "cancel", &job.to_string()])?;
                wait(pool, job)?;
                self.tally.count("cancelled");
            }
            begun = begin(pool, self.random, self.tally)?.map(|(_, job)| job);
        }
        begun.map_or(Ok(()), |job| wait(pool, job))
    }

    /// What else happens while a job runs.
    fn meddle(&mut self, pool: &Pool, kind: &str, job: u64) -> Result<()> {
        let id = job.to_string();
        match self.random.below(9) {
            0 => {
                pool.ask(&["job", "cancel", &id])?;
                self.tally.count("cancelled");
            }
            1 if matches!(kind, "span" | "unspan" | "migrate") => {
                let revert = pool.ask(&["job", "cancel", &id, "--revert"])?;
                if let Some(back) = revert.as_ref().and_then(|result| result["job"]["id"].as_u64()) {
                    wait(pool, back)?;
                    self.tally.count("reverted");
                }
            }
            2 => {
                pool.ask(&["job", "pause", &id])?;
                thread::sleep(Duration::from_millis(self.random.below(100)));
                pool.ask(&["job", "resume", &id])?;
                self.tally.count("paused");
            }
            3 | 4 => {
                thread::sleep(Duration::from_millis(self.random.below(100)));
                let way = if self.random.below(2) == 0 { Way::Grow } else { Way::Shrink };
                resize::resize(pool, self.guests, self.random, self.tally, way)?;
                self.tally.count("resize beside a job");
            }
            _ => {}
        }
        Ok(())
    }
}
