//! A victim that reads one block at a time, and an aggressor spanned over the victim's disk that always has 64 reads in flight.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Contents, Lab, MIB, check_budget, events, goal, guest, jobs, placement, serve, until, words};
use crate::peers_parts::frontend::{ARGUMENT, Order};
use crate::peers_parts::places::Places;
use lab::daemon::Pool;
use lab::helper::Helper;
use lab::report::Report;
use lab::tally::Outcome;
use lab::tools::Fill;

const VICTIM: &str = "victim";
const AGGRESSOR: &str = "aggressor";

/// Extents of each of them.
const EXTENTS: u64 = 64;

/// Requests that the aggressor has in flight, on both of its queues together.
const DEPTH: u16 = 64;

/// Length of one look at the victim, of one when it is alone, and of one piece of the aggressor's work.
const LOOK: Duration = Duration::from_secs(2);
const ALONE: Duration = Duration::from_secs(4);
const PIECE: Duration = Duration::from_secs(5);

/// One of so many looks is printed, besides those after which somebody is elsewhere.
const EACH: usize = 6;

/// Times its latency alone from which on the victim is still hurt: relief begins after the last such look.
const RELIEF_SHOWS: f64 = 2.0;

/// Goal: latencies as a multiple of those alone.
const RELIEVED: f64 = 1.1;

/// The longest time until the two are parted: a window of observation, two looks of the policy, a job, and as much again for a machine that
/// does something else.
const PARTED_LIMIT: Duration = Duration::from_secs(180);

/// The same until the policy has measured what came of it.
const MEASURED_LIMIT: Duration = Duration::from_secs(120);

/// What is wanted: a short window of observation, a fast answer to what came of it, and moves of everything in this small pool. A request
/// takes 2 ms of the disk.
const WANTED: [&str; 5] = ["mode=auto", "hold=30s", "outcome=30s", "moved-a-day=50%", "latency=8ms"];

/// How the victim was served at some time after the aggressor's start.
struct Seen {
    at: Duration,
    outcome: Outcome,
    disks: String,
}

pub fn run(report: &mut Report, lab: &Lab) {
    let Some(mut pool) = report.check("a pool, a victim on d0, an aggressor on d0 and d1", || lab.slow_pool()) else {
        return;
    };
    let mut contents = [Contents::new(1, EXTENTS), Contents::new(2, EXTENTS)];
    if report.check("both filled", || prepare(&mut pool, &mut contents)).is_none() {
        return;
    }
    let Some(alone) = report.check("the victim alone", || victim(&pool, ALONE)) else { return };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let aggressor = scope.spawn(|| aggress(&pool, &stop));
        let started = Instant::now();
        let mut seen = Vec::new();
        let parted =
            report.check("the policy finds the aggressor and parts the two", || part(&pool, started, &mut seen));
        report.check("the event says who hurts whom, and where", || is_told(&pool));
        if parted.is_some() {
            report.check("what was promised is measured, and has come", || is_measured(&pool, started, &mut seen));
        }
        report.check("the victim is served as if alone", || show(&pool, alone, &seen));
        stop.store(true, Ordering::Relaxed);
        let ended = aggressor.join().expect("a thread that does not panic");
        report.check("no guest saw an error", || ended);
    });
    report.check("moves within the budget", || {
        let (moved, budget) = check_budget(&pool)?;
        println!("   {} MiB moved, of {} MiB that may be moved in a day", moved / MIB, budget / MIB);
        Ok(())
    });
    report.check("all data is there, the table is consistent", || {
        for (vhd, contents) in [VICTIM, AGGRESSOR].iter().zip(&contents) {
            contents.check(&mut guest(&pool, vhd)?)?;
        }
        pool.check()?;
        pool.stop()?;
        pool.check()
    });
}

fn prepare(pool: &mut Pool, contents: &mut [Contents; 2]) -> Result<()> {
    serve(pool)?;
    let size = EXTENTS * MIB;
    pool.create_vhd(VICTIM, size, &["--layout", "isolated", "--disks", "d0", "--queues", "1"])?;
    pool.create_vhd(AGGRESSOR, size, &["--layout", "spanned", "--disks", "d0,d1", "--queues", "2"])?;
    for (vhd, contents) in [VICTIM, AGGRESSOR].iter().zip(contents) {
        contents.fill(&mut guest(pool, vhd)?)?;
    }
    pool.cli(&[&["policy", "set"], &WANTED[..]].concat()).map(drop)
}

/// Reads at random places.
fn reader(pool: &Pool, vhd: &str, queues: u16, depth: u16, time: Duration) -> Order {
    Order {
        socket: pool.socket(vhd),
        queues,
        depth: depth / queues,
        write: false,
        len: 4 << 10,
        size: EXTENTS * MIB,
        warm_up: Duration::ZERO,
        time,
        poll: false,
        fill: Fill::Random,
        seed: u64::from(depth),
        places: Places::Random,
        flush: false,
        inflight: false,
    }
}

fn once(order: &Order) -> Result<Outcome> {
    let mut helper = Helper::start(ARGUMENT, order)?;
    let outcome = helper.go()?;
    helper.finish()?;
    Ok(outcome)
}

fn victim(pool: &Pool, time: Duration) -> Result<Outcome> {
    once(&reader(pool, VICTIM, 1, 1, time)).context("the victim")
}

/// Asks for more than the disks can do, until it is told to stop.
fn aggress(pool: &Pool, stop: &AtomicBool) -> Result<()> {
    while !stop.load(Ordering::Relaxed) {
        once(&reader(pool, AGGRESSOR, 2, DEPTH, PIECE)).context("the aggressor")?;
    }
    Ok(())
}

/// Looks at the victim until the two have no disk in common.
fn part(pool: &Pool, started: Instant, seen: &mut Vec<Seen>) -> Result<()> {
    loop {
        seen.push(look(pool, started)?);
        if are_apart(pool)? {
            println!("   parted {:.0} s after the aggressor's start", started.elapsed().as_secs_f64());
            return Ok(());
        }
        ensure!(
            started.elapsed() < PARTED_LIMIT,
            "not parted within {} s: {}\n{}",
            PARTED_LIMIT.as_secs(),
            where_both_are(pool)?,
            pool.cli(&["advise"])?
        );
    }
}

fn look(pool: &Pool, started: Instant) -> Result<Seen> {
    let (at, outcome) = (started.elapsed(), victim(pool, LOOK)?);
    Ok(Seen { at, outcome, disks: where_both_are(pool)? })
}

fn where_both_are(pool: &Pool) -> Result<String> {
    let (victim, aggressor) = (placement(pool, VICTIM)?, placement(pool, AGGRESSOR)?);
    Ok(format!("victim {}; aggressor {}", words(&victim), words(&aggressor)))
}

fn are_apart(pool: &Pool) -> Result<bool> {
    let (victim, aggressor) = (placement(pool, VICTIM)?, placement(pool, AGGRESSOR)?);
    let is_shared = victim.iter().any(|(disk, _)| aggressor.iter().any(|(other, _)| other == disk));
    Ok(!is_shared && jobs(pool)?.1 == 0)
}

fn is_told(pool: &Pool) -> Result<()> {
    let told = events(pool, "noisy_neighbour")?;
    let first = told.first().context("no noisy_neighbour event")?;
    println!("   event: {first}");
    let names = ["vhd", "aggressor", "disk"].map(|name| first[name].as_str().unwrap_or_default().to_owned());
    ensure!(names == [VICTIM, AGGRESSOR, "d0"], "the event says {first}");
    Ok(())
}

/// The first proposal that was carried out has brought what was promised, while both ask for as much as before.
fn is_measured(pool: &Pool, started: Instant, seen: &mut Vec<Seen>) -> Result<()> {
    let outcomes = || -> Result<Vec<String>> {
        let advice = pool.json(&["advise"])?;
        let outcomes = advice["outcomes"].as_array().context("outcomes in advise")?;
        Ok(outcomes.iter().filter_map(|outcome| Some(outcome["text"].as_str()?.to_owned())).collect())
    };
    let is_measured = || {
        seen.push(look(pool, started)?);
        Ok(outcomes()?.last().is_some_and(|first| first.contains("measured: ")))
    };
    until(pool, "an outcome", MEASURED_LIMIT, is_measured)?;
    let outcomes = outcomes()?;
    outcomes.iter().for_each(|outcome| println!("   outcome: {outcome}"));
    let told = events(pool, "proposal_measured")?;
    ensure!(!told.is_empty(), "no event of what was measured");
    ensure!(outcomes.last().is_some_and(|first| first.contains("(kept)")), "the promise was not kept: {outcomes:?}");
    Ok(())
}

/// What the victim felt, from the aggressor's start on.
fn show(pool: &Pool, alone: Outcome, seen: &[Seen]) -> Result<()> {
    ensure!(are_apart(pool)?, "parted, and together again: {}", where_both_are(pool)?);
    println!("   {:>6}{:>8}{:>9}{:>9}{:>8}{:>8}  extents", "s", "IOPS", "p50 us", "p99 us", "p50 x", "p99 x");
    let times = |outcome: &Outcome| (outcome.p50_us / alone.p50_us, outcome.p99_us / alone.p99_us);
    let row = |at: &str, outcome: &Outcome, disks: &str| {
        let (half, most) = times(outcome);
        let Outcome { iops, p50_us, p99_us, .. } = outcome;
        println!("   {at:>6}{iops:>8.0}{p50_us:>9.0}{p99_us:>9.0}{half:>8.2}{most:>8.2}  {disks}");
    };
    row("alone", &alone, "");
    let is_told = |index: usize| index.is_multiple_of(EACH) || seen[index].disks != seen[index - 1].disks;
    let told = (0..seen.len()).filter(|index| is_told(*index) || index + 1 == seen.len());
    told.for_each(|index| {
        row(&format!("{:.0}", seen[index].at.as_secs_f64()), &seen[index].outcome, &seen[index].disks)
    });
    let (half, most) = times(&seen[seen.len() - 1].outcome);
    goal(&format!("at the end: p50 at most {RELIEVED} x alone"), half, half <= RELIEVED);
    goal(&format!("at the end: p99 at most {RELIEVED} x alone"), most, most <= RELIEVED);
    let hurt = &seen[0].outcome;
    for (name, figure) in [("p50", (|times| times.0) as fn((f64, f64)) -> f64), ("p99", |times| times.1)] {
        // From the first look on that is at the victim when it is served as it should: one before may have been lucky.
        let late = seen.iter().rposition(|seen| figure(times(&seen.outcome)) > RELIEF_SHOWS);
        let relieved = seen[late.map_or(0, |late| late + 1)..].iter().find(|s| figure(times(&s.outcome)) <= RELIEVED);
        let after = relieved.map_or("not seen".to_owned(), |seen| format!("{:.0} s", seen.at.as_secs_f64()));
        let worst = figure(times(hurt));
        println!("   time to relief, {name} (at first {worst:.1} x alone) back within {RELIEVED} x: {after}");
    }
    ensure!(half < 2.0, "half of the victim's requests still take {half:.1} times as long as alone");
    Ok(())
}
