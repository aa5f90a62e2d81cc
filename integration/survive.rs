//! SIGKILL of the daemon under a living guest, again and again, with requests in flight on slow disks: the guest notices nothing but
//! a pause.
//!
//! In the guest fio discards, writes and verifies without end, so that there are always first writes that nobody has flushed. What is in
//! flight at a SIGKILL is counted in the in-flight regions that QEMU keeps, and so is the first completion afterwards.
//!
//! `LAB_KILLS` sets the number of SIGKILLs (6).

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::fio_guest::{self, Place, VHDS};
use lab::inflight::{Region, regions_of};
use lab::machine::Machine;
use lab::model::Random;
use lab::report::Report;
use lab::slow_host::SlowHost;
use lab::throttle::Limit;
use lab::tools::{number_from_env, wait_for};

const MIB: u64 = 1 << 20;

/// What each host disk can do, so that requests pile up.
const SLOW: Limit = Limit { bytes: 24 * MIB, requests: 300 };

/// Requests that must be in flight at a SIGKILL.
const IN_FLIGHT: usize = 16;

/// The goal for the time from SIGKILL to the first completion, in milliseconds.
const STALL_GOAL_MS: u128 = 2000;

fn main() -> ExitCode {
    let mut report = Report::new("survive");
    let kills = number_from_env("LAB_KILLS", 6);
    report.note(&format!("LAB_KILLS={kills}"));
    let Some(place) = SlowHost::prepare(&mut report) else { return report.finish() };
    let started = report.check("a guest with two disks", || World::start(&place));
    let Some((mut world, mut machine)) = started else { return report.finish() };
    let name = format!("{kills} SIGKILLs under fio");
    if let Some(lines) = report.check(&name, || world.kill_again_and_again(&mut machine, kills)) {
        lines.iter().for_each(|line| report.note(line));
    }
    world.host.finish(machine, report)
}

struct World {
    host: SlowHost,
    random: Random,
}

impl World {
    fn start(place: &Place) -> Result<(World, Machine)> {
        let host = SlowHost::start(&place.dir, SLOW)?;
        let (machine, _) = Machine::boot(&place.dir, &place.image, place.accel, &host.drives())?;
        host.hold_back()?;
        Ok((World { host, random: Random::new(1) }, machine))
    }

    fn kill_again_and_again(&mut self, machine: &mut Machine, kills: u64) -> Result<Vec<String>> {
        fio_guest::begin(machine)?;
        let regions = regions_of(machine.id())?;
        ensure!(regions.len() == VHDS.len(), "QEMU keeps {} in-flight regions", regions.len());
        let mut lines = Vec::new();
        let mut longest = Duration::ZERO;
        for kill in 1..=kills {
            thread::sleep(Duration::from_millis(500 + self.random.below(2500)));
            let outcome = self.kill_once(&regions).with_context(|| {
                let said = fio_guest::said(machine);
                format!("SIGKILL {kill}; fio in the guest: {said}")
            });
            let (in_flight, stall) = outcome?;
            longest = longest.max(stall);
            if kills <= 20 {
                lines.push(format!("SIGKILL {kill}: {in_flight} in flight, {} ms", stall.as_millis()));
            }
        }
        let rounds = self.host.end_fio(machine)?;
        let met = if longest.as_millis() < STALL_GOAL_MS { "met" } else { "MISSED" };
        lines.push(format!(
            "kills {kills}, guest errors 0, mismatches 0, rounds of fio {rounds:?}; longest stall {} ms from SIGKILL to the first \
             completion (goal {STALL_GOAL_MS} ms: {met})",
            longest.as_millis()
        ));
        Ok(lines)
    }

    /// Kills the daemon with enough in flight, and starts it again: how many requests that were, and how long it took until each disk
    /// that had some gave one back.
    fn kill_once(&mut self, regions: &[Region]) -> Result<(usize, Duration)> {
        let count = || -> Result<usize> { regions.iter().map(Region::in_flight).sum() };
        wait_for("requests in flight", Duration::from_secs(60), || {
            count().is_ok_and(|count| count >= IN_FLIGHT).then_some(())
        })?;
        let begun = Instant::now();
        self.host.pool.kill();
        let in_flight = count()?;
        let waiting: Vec<(&Region, Vec<[u8; 2]>)> = regions
            .iter()
            .filter(|region| region.in_flight().is_ok_and(|count| count > 0))
            .map(|region| Ok((region, region.used()?)))
            .collect::<Result<_>>()?;
        self.host.pool.serve_all()?;
        self.host.hold_back()?;
        for (region, before) in &waiting {
            while region.used()? == *before {
                ensure!(
                    begun.elapsed() < Duration::from_secs(60),
                    "no request is given back\n{}",
                    self.host.pool.log_tail()
                );
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok((in_flight, begun.elapsed()))
    }
}
