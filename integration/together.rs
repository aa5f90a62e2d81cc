//! Everything together, for a long time: an emulated guest in which fio verifies, and loads that check every answer on VHDs with replicas,
//! while control operations of all kinds follow one another, daemons take over from daemons, and daemons are killed.
//!
//! What each daemon holds (memory, descriptors, threads) is looked at after every step, and must neither grow while it lives nor from
//! one to the next.
//!
//! `LAB_SOAK_SECS` sets for how long (45), `LAB_SEED` the seed: it repeats a run's choices, not its timing. With
//! `LAB_VERBOSE` each step is told.

mod together_parts;

use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use lab::fio_guest::{self, Place};
use lab::machine::Machine;
use lab::report::Report;
use lab::tools::number_from_env;
use together_parts::lives::{Lives, OLD};
use together_parts::world::World;

fn main() -> ExitCode {
    let mut report = Report::new("together");
    let secs = number_from_env("LAB_SOAK_SECS", 45);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let seed = number_from_env("LAB_SEED", now);
    report.note(&format!("LAB_SEED={seed} LAB_SOAK_SECS={secs}"));
    let Some(place) = Place::prepare(&mut report) else { return report.finish() };
    let started = report.check("a pool of four disks, a guest on two VHDs, a load on each of two others", || {
        let world = World::start(&place.dir, seed)?;
        let drives = fio_guest::drives(&world.pool);
        let (machine, _) = Machine::boot(&place.dir, &place.image, place.accel, &drives)?;
        Ok((world, machine))
    });
    let Some((mut world, mut machine)) = started else { return report.finish() };
    let name = format!("everything together for {secs} s");
    let told = report.check(&name, || soak(&mut world, &mut machine, Duration::from_secs(secs)));
    world.lives.table().iter().for_each(|line| report.note(line));
    report.note(&format!("steps: {}", world.counts.told()));
    if let Some(line) = told {
        report.note(&line);
        judge(&world.lives, &mut report);
    }
    fio_guest::finish(&mut world.pool, machine, report)
}

/// All of it, from the first request to the last; what came of it.
fn soak(world: &mut World, machine: &mut Machine, time: Duration) -> Result<String> {
    fio_guest::begin(machine)?;
    let rounds = world.run(time).and_then(|()| fio_guest::end(machine, &world.pool));
    let rounds = rounds.with_context(|| {
        let said = fio_guest::said(machine);
        format!("{}; fio in the guest: {said}\n{}", world.told(), world.pool.log_tail())
    })?;
    let requests = world.end()?;
    Ok(format!(
        "SIGKILLs {}, takeovers {}, rounds of fio {rounds:?}, {requests} requests of loads, errors 0, mismatches 0",
        world.counts.of("SIGKILL"),
        world.counts.of("takeover")
    ))
}

fn judge(lives: &Lives, report: &mut Report) {
    report.check("every daemon's descriptors and threads come back to what they were", || lives.ensure_tidy());
    let name = format!("the memory of daemons older than {} s is flat", OLD.as_secs());
    if let Some(count) = report.check(&name, || lives.ensure_flat()) {
        report.note(&format!("{count} such daemons"));
    }
    if let Some(0) = report.check("the last daemons hold no more than the first", || lives.ensure_even()) {
        report.note("no two that began the same way lived long enough");
    }
}
