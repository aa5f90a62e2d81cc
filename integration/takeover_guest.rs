//! One daemon takes over from another under a living guest, again and again, with requests in flight on slow disks. QEMU would not connect
//! again: were a connection lost, the guest would have lost its disks.
//!
//! In the guest fio discards, writes and verifies without end. A pause is the longest time, from the start of the new process until it
//! serves and a second more, in which a disk with requests in flight gave none back.
//!
//! `LAB_TAKEOVERS` sets the number of takeovers (5).

mod lab;

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::daemon::Pool;
use lab::fio::endless;
use lab::image::Image;
use lab::inflight::{Region, regions_of};
use lab::machine::{Accel, Drive, Machine, probe_kvm};
use lab::model::Random;
use lab::report::Report;
use lab::throttle::{Limit, SlowDisks};
use lab::tools::{RunDir, number_from_env, wait_for};

const MIB: u64 = 1 << 20;

/// The disks of the guest: name, device, queues, options of `vhd create`.
const VHDS: [(&str, &str, u16, &[&str]); 2] = [
    ("iso", "vda", 1, &["--layout", "isolated", "--queues", "1"]),
    ("span", "vdb", 2, &["--layout", "spanned", "--queues", "2"]),
];

const SIZE: u64 = 96 * MIB;

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
    if let Some(reason) = SlowDisks::unavailable() {
        report.skip("slow disks", reason);
        return report.finish();
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let Some(image) = report.check("guest image", Image::build) else { return report.finish() };
    let accel = probe_kvm(&dir, &image).unwrap_or_else(|reason| {
        report.skip("guest on KVM", &format!("{reason}; the guest is emulated"));
        Accel::Tcg
    });
    let Some((mut world, mut machine)) = report.check("a guest with two disks", || World::start(&dir, &image, accel))
    else {
        return report.finish();
    };
    let name = format!("{takeovers} takeovers under fio");
    if let Some(lines) = report.check(&name, || world.take_over_again_and_again(&mut machine, takeovers)) {
        lines.iter().for_each(|line| report.note(line));
    }
    report.check("the kernel has no complaints", || {
        let complaints = machine.complaints();
        ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
        Ok(())
    });
    report.check("guest powers off", || machine.power_off());
    report.check("placement is consistent", || {
        world.pool.check()?;
        world.pool.stop()?;
        world.pool.check()
    });
    report.finish()
}

struct World {
    slow: SlowDisks,
    pool: Pool,
    random: Random,
}

impl World {
    fn start(dir: &RunDir, image: &Image, accel: Accel) -> Result<(World, Machine)> {
        let slow = SlowDisks::on_files(dir.disks(), 2, 256 * MIB)?;
        slow.limit(SLOW)?;
        let mut pool = Pool::create(dir.sockets(), slow.devices.clone(), &["--force"])?;
        pool.serve_all()?;
        for (name, _, _, options) in VHDS {
            pool.create_vhd(name, SIZE, options)?;
        }
        let drive = |(name, _, queues, _): &(&str, &str, u16, _)| {
            Drive::new(name, &pool.socket(name), *queues).that_stays_away()
        };
        let drives: Vec<Drive> = VHDS.iter().map(drive).collect();
        let (machine, _) = Machine::boot(dir, image, accel, &drives)?;
        slow.hold_back(pool.id()?)?;
        Ok((World { slow, pool, random: Random::new(1) }, machine))
    }

    fn take_over_again_and_again(&mut self, machine: &mut Machine, takeovers: u64) -> Result<Vec<String>> {
        for (_, device, ..) in VHDS {
            endless::begin(&mut machine.agent, device)?;
        }
        let regions = regions_of(machine.id())?;
        ensure!(regions.len() == VHDS.len(), "QEMU keeps {} in-flight regions", regions.len());
        let mut lines = Vec::new();
        let mut pauses = Vec::new();
        for takeover in 1..=takeovers {
            thread::sleep(Duration::from_millis(500 + self.random.below(1500)));
            let outcome = self.take_over_once(&regions).with_context(|| {
                let said = machine.agent.run("cat /tmp/failed.* /tmp/fio.* 2>/dev/null; true").unwrap_or_default();
                format!("takeover {takeover}; fio in the guest: {said}")
            });
            let (in_flight, pause) = outcome?;
            pauses.push(pause.as_millis());
            if takeovers <= 20 {
                lines.push(format!("takeover {takeover}: {in_flight} in flight, {} ms", pause.as_millis()));
            }
        }
        let mut rounds = Vec::new();
        for (_, device, ..) in VHDS {
            rounds.push(endless::end(&mut machine.agent, device)?);
        }
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
        let pool = &mut self.pool;
        let slow = &self.slow;
        let pause = thread::scope(|scope| {
            let watches: Vec<_> = regions.iter().map(|region| scope.spawn(|| longest_pause(region, &done))).collect();
            let outcome = pool.take_over().and_then(|_| slow.hold_back(pool.id()?));
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
