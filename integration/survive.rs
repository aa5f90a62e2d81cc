//! SIGKILL of the daemon under a living guest, again and again, with requests in flight on slow disks: the guest notices nothing but
//! a pause.
//!
//! In the guest fio discards, writes and verifies without end, so that there are always first writes that nobody has flushed. What is in
//! flight at a SIGKILL is counted in the in-flight regions that QEMU keeps, and so is the first completion afterwards.
//!
//! `LAB_KILLS` sets the number of SIGKILLs (6).

mod lab;

use std::process::ExitCode;
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
    let name = format!("{kills} SIGKILLs under fio");
    if let Some(lines) = report.check(&name, || world.kill_again_and_again(&mut machine, kills)) {
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
        let drives: Vec<Drive> =
            VHDS.iter().map(|(name, _, queues, _)| Drive::new(name, &pool.socket(name), *queues)).collect();
        let (machine, _) = Machine::boot(dir, image, accel, &drives)?;
        slow.hold_back(pool.id()?)?;
        Ok((World { slow, pool, random: Random::new(1) }, machine))
    }

    fn kill_again_and_again(&mut self, machine: &mut Machine, kills: u64) -> Result<Vec<String>> {
        for (_, device, ..) in VHDS {
            endless::begin(&mut machine.agent, device)?;
        }
        let regions = regions_of(machine.id())?;
        ensure!(regions.len() == VHDS.len(), "QEMU keeps {} in-flight regions", regions.len());
        let mut lines = Vec::new();
        let mut longest = Duration::ZERO;
        for kill in 1..=kills {
            thread::sleep(Duration::from_millis(500 + self.random.below(2500)));
            let outcome = self.kill_once(&regions).with_context(|| {
                let said = machine.agent.run("cat /tmp/failed.* /tmp/fio.* 2>/dev/null; true").unwrap_or_default();
                format!("SIGKILL {kill}; fio in the guest: {said}")
            });
            let (in_flight, stall) = outcome?;
            longest = longest.max(stall);
            if kills <= 20 {
                lines.push(format!("SIGKILL {kill}: {in_flight} in flight, {} ms", stall.as_millis()));
            }
        }
        let mut rounds = Vec::new();
        for (_, device, ..) in VHDS {
            rounds.push(endless::end(&mut machine.agent, device)?);
        }
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
        self.pool.kill();
        let in_flight = count()?;
        let waiting: Vec<(&Region, Vec<[u8; 2]>)> = regions
            .iter()
            .filter(|region| region.in_flight().is_ok_and(|count| count > 0))
            .map(|region| Ok((region, region.used()?)))
            .collect::<Result<_>>()?;
        self.pool.serve_all()?;
        self.slow.hold_back(self.pool.id()?)?;
        for (region, before) in &waiting {
            while region.used()? == *before {
                ensure!(
                    begun.elapsed() < Duration::from_secs(60),
                    "no request is given back\n{}",
                    self.pool.log_tail()
                );
                thread::sleep(Duration::from_millis(2));
            }
        }
        Ok((in_flight, begun.elapsed()))
    }
}
