//! Live migration of a guest from one QEMU to another on this host, again and again, under fio that verifies: both are connected to the
//! same VHDs, and the second goes on where the first stops.
//!
//! The daemon runs all the time, on disks slow enough that requests are in flight when the first QEMU stops its virtqueues. Now and then
//! a QEMU that waits for the guest gives up before it gets it. An emulated guest stands still while its memory is copied (see
//! `Machine::migrate_to`); that the dirty log is true while a guest runs is shown by `tests/migration.rs`.
//!
//! `LAB_MIGRATIONS` sets the number of migrations (3).

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use lab::fio_guest::{self, Place, VHDS};
use lab::machine::{Accel, Machine, Moved};
use lab::model::Random;
use lab::report::Report;
use lab::slow_host::SlowHost;
use lab::throttle::Limit;
use lab::tools::{number_from_env, wait_for};

const MIB: u64 = 1 << 20;

/// What each host disk can do, so that requests are in flight at any time.
const SLOW: Limit = Limit { bytes: 64 * MIB, requests: 1500 };

/// One of so many QEMUs that wait gives up.
const GIVES_UP: u64 = 3;

fn main() -> ExitCode {
    let mut report = Report::new("migrate");
    let count = number_from_env("LAB_MIGRATIONS", 3);
    report.note(&format!("LAB_MIGRATIONS={count}"));
    let Some(place) = SlowHost::prepare(&mut report) else { return report.finish() };
    let started = report.check("a guest with two disks", || World::start(&place));
    let Some((mut world, machine)) = started else { return report.finish() };
    if place.accel == Accel::Tcg {
        report.note("the guest stands still while its memory is copied: nothing here depends on the dirty log (tests/migration.rs does)");
    }
    let name = format!("{count} migrations under fio");
    let Some((machine, lines)) = report.check(&name, || world.migrate_again_and_again(machine, count)) else {
        return report.finish();
    };
    lines.iter().for_each(|line| report.note(line));
    world.host.finish(machine, report)
}

struct World<'a> {
    place: &'a Place,
    host: SlowHost,
    random: Random,
}

impl<'a> World<'a> {
    fn start(place: &'a Place) -> Result<(World<'a>, Machine)> {
        let host = SlowHost::start(&place.dir, SLOW)?;
        host.hold_back()?;
        let (machine, _) = Machine::boot(&place.dir, &place.image, place.accel, &host.drives())?;
        Ok((World { place, host, random: Random::new(1) }, machine))
    }

    /// A QEMU that waits for the guest of another one.
    fn waiting(&self) -> Result<Machine> {
        Machine::waiting(&self.place.dir, &self.place.image, self.place.accel, &self.host.drives())
    }

    fn migrate_again_and_again(&mut self, mut machine: Machine, count: u64) -> Result<(Machine, Vec<String>)> {
        fio_guest::begin(&mut machine)?;
        let (mut lines, mut all) = (Vec::new(), Vec::new());
        for migration in 1..=count {
            thread::sleep(Duration::from_millis(500 + self.random.below(1500)));
            if migration % GIVES_UP == 0 {
                self.waiting()?.quit()?;
                self.is_served(&machine).context("after one that waited has given up")?;
            }
            let mut target = self.waiting()?;
            let moved = machine.migrate_to(&mut target, self.place.accel).with_context(|| self.host.pool.log_tail())?;
            machine = target;
            self.is_served(&machine)
                .with_context(|| format!("migration {migration}: {moved:?}\n{}", self.host.pool.log_tail()))?;
            if count <= 20 {
                lines.push(format!(
                    "migration {migration}: guest down {} ms, {} ms in all",
                    moved.down.as_millis(),
                    moved.total.as_millis()
                ));
            }
            all.push(moved);
        }
        let rounds = self.host.end_fio(&mut machine)?;
        let longest = |time: fn(&Moved) -> Duration| all.iter().map(time).max().unwrap_or_default().as_millis();
        lines.push(format!(
            "migrations {count}, guest errors 0, mismatches 0, rounds of fio {rounds:?}; longest: guest down {} ms, {} ms in all",
            longest(|moved| moved.down),
            longest(|moved| moved.total)
        ));
        Ok((machine, lines))
    }

    /// Whether it is this guest whose disks work: fio goes on, and the daemon names its QEMU.
    fn is_served(&self, machine: &Machine) -> Result<()> {
        for (name, ..) in VHDS {
            wait_for("the VHD to be attached to the guest's QEMU", Duration::from_secs(20), || {
                let shown = self.host.pool.json(&["vhd", "show", name]).ok()?;
                (shown["attached"]["pid"].as_u64() == Some(machine.id().into())).then_some(())
            })
            .with_context(|| format!("VHD {name}, QEMU {}", machine.id()))?;
        }
        Ok(())
    }
}
