//! One daemon takes over from another under a living guest, again and again, with requests in flight on slow disks. QEMU would not connect
//! again: were a connection lost, the guest would have lost its disks.
//!
//! In the guest fio discards, writes and verifies without end. A pause is the longest time, from the start of the new process until it
//! serves and a second more, in which a disk with requests in flight gave none back.
//!
//! `LAB_TAKEOVERS` sets the number of takeovers (5).

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::fio_guest::{self, Place, VHDS};
use lab::inflight::{Region, regions_of};
use lab::machine::{Drive, Machine};
use lab::model::Random;
use lab::report::Report;
use lab::slow_host::SlowHost;
use lab::throttle::Limit;
use lab::tools::{number_from_env, wait_for};

const MIB: u64 = 1 << 20;

/// What each host disk can do, so that requests pile up; more than for SIGKILLs, because all of them end before a takeover.
const SLOW: Limit = Limit { bytes: 96 * MIB, requests: 1200 };

/// Requests that must be in flight when a takeover begins.
const IN_FLIGHT: usize = 8;

/// The goal for the median pause, in milliseconds.
const STALL_GOAL_MS: u128 = 200;

/// How long it is looked after the new daemon serves.
const LOOK_AFTER: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let mut report = Report::new("takeover");
    let takeovers = number_from_env("LAB_TAKEOVERS", 5);
    report.note(&format!("LAB_TAKEOVERS={takeovers}"));
    let Some(place) = SlowHost::prepare(&mut report) else { return report.finish() };
    let started = report.check("a guest with two disks", || World::start(&place));
    let Some((mut world, mut machine)) = started else { return report.finish() };
    let name = format!("{takeovers} takeovers under fio");
    if let Some(lines) = report.check(&name, || world.take_over_again_and_again(&mut machine, takeovers)) {
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
        let drives: Vec<Drive> = host.drives().into_iter().map(Drive::that_stays_away).collect();
        let (machine, _) = Machine::boot(&place.dir, &place.image, place.accel, &drives)?;
        host.hold_back()?;
        Ok((World { host, random: Random::new(1) }, machine))
    }

    fn take_over_again_and_again(&mut self, machine: &mut Machine, takeovers: u64) -> Result<Vec<String>> {
        fio_guest::begin(machine)?;
        let regions = regions_of(machine.id())?;
        ensure!(regions.len() == VHDS.len(), "QEMU keeps {} in-flight regions", regions.len());
        let mut lines = Vec::new();
        let mut pauses = Vec::new();
        for takeover in 1..=takeovers {
            thread::sleep(Duration::from_millis(500 + self.random.below(1500)));
            let outcome = self.take_over_once(&regions).with_context(|| {
                let said = fio_guest::said(machine);
                format!("takeover {takeover}; fio in the guest: {said}")
            });
            let (in_flight, pause) = outcome?;
            pauses.push(pause.as_millis());
            if takeovers <= 20 {
                lines.push(format!("takeover {takeover}: {in_flight} in flight, {} ms", pause.as_millis()));
            }
        }
        let rounds = self.host.end_fio(machine)?;
        pauses.sort_unstable();
        let (median, longest) = (pauses[pauses.len() / 2], pauses[pauses.len() - 1]);
        let met = if longest < STALL_GOAL_MS { "met" } else { "MISSED" };
        lines.push(format!(
            "takeovers {takeovers}, guest errors 0, mismatches 0, rounds of fio {rounds:?}; without a completion for {median} ms in the \
             median and {longest} ms at most (goal {STALL_GOAL_MS} ms: {met})"
        ));
        Ok(lines)
    }

    /// Has another daemon take over: how many requests were in flight when that began, and the longest pause.
    fn take_over_once(&mut self, regions: &[Region]) -> Result<(usize, Duration)> {
        let count = || -> Result<usize> { regions.iter().map(Region::in_flight).sum() };
        wait_for("requests in flight", Duration::from_secs(60), || {
            count().is_ok_and(|count| count >= IN_FLIGHT).then_some(())
        })?;
        let in_flight = count()?;
        let done = AtomicBool::new(false);
        let host = &mut self.host;
        let pause = thread::scope(|scope| {
            let watches: Vec<_> = regions.iter().map(|region| scope.spawn(|| longest_pause(region, &done))).collect();
            let outcome = host.pool.take_over().and_then(|_| host.hold_back());
            if outcome.is_ok() {
                thread::sleep(LOOK_AFTER);
            }
            done.store(true, Ordering::Relaxed);
            let pauses = watches.into_iter().map(|watch| watch.join().expect("a watch does not panic"));
            let pauses = pauses.collect::<Result<Vec<Duration>>>()?;
            outcome.map(|()| pauses.into_iter().max().unwrap_or_default())
        })?;
        Ok((in_flight, pause))
    }
}

/// The longest time in which a disk with requests in flight gave none back.
fn longest_pause(region: &Region, done: &AtomicBool) -> Result<Duration> {
    let (mut longest, mut since, mut used) = (Duration::ZERO, Instant::now(), region.used()?);
    while !done.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(1));
        let now = region.used()?;
        if now != used || region.in_flight()? == 0 {
            (since, used) = (Instant::now(), now);
        }
        longest = longest.max(since.elapsed());
    }
    Ok(longest)
}
