//! Live migration of a guest from one QEMU to another on this host, again and again, under fio that verifies: both are connected to the
//! same VHDs, and the second goes on where the first stops.
//!
//! The daemon runs all the time, on disks slow enough that requests are in flight when the first QEMU stops its virtqueues. Now and then
//! a QEMU that waits for the guest gives up before it gets it. An emulated guest stands still while its memory is copied (see
//! `Machine::migrate_to`); that the dirty log is true while a guest runs is shown by `tests/migration.rs`.
//!
//! `LAB_MIGRATIONS` sets the number of migrations (3).

mod lab;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::daemon::Pool;
use lab::fio::endless;
use lab::image::Image;
use lab::machine::{Accel, Drive, Machine, Moved, probe_kvm};
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

/// What each host disk can do, so that requests are in flight at any time.
const SLOW: Limit = Limit { bytes: 64 * MIB, requests: 1500 };

/// One of so many QEMUs that wait gives up.
const GIVES_UP: u64 = 3;

fn main() -> ExitCode {
    let mut report = Report::new("migrate");
    let count = number_from_env("LAB_MIGRATIONS", 3);
    report.note(&format!("LAB_MIGRATIONS={count}"));
    if let Some(reason) = SlowDisks::unavailable() {
        report.skip("slow disks", reason);
        return report.finish();
    }
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let Some(image) = report.check("guest image", Image::build) else { return report.finish() };
    let accel = probe_kvm(&dir, &image).unwrap_or_else(|reason| {
        report.skip(
            "guest on KVM",
            &format!("{reason}; the guest is emulated, and stands still while its memory is copied"),
        );
        Accel::Tcg
    });
    let started = report.check("a guest with two disks", || World::start(&dir, &image, accel));
    let Some((mut world, machine)) = started else { return report.finish() };
    if accel == Accel::Tcg {
        report.note("the guest stands still while its memory is copied: nothing here depends on the dirty log (tests/migration.rs does)");
    }
    let name = format!("{count} migrations under fio");
    let Some((machine, lines)) = report.check(&name, || world.migrate_again_and_again(machine, count)) else {
        return report.finish();
    };
    lines.iter().for_each(|line| report.note(line));
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

struct World<'a> {
    dir: &'a RunDir,
    image: &'a Image,
    accel: Accel,
    pool: Pool,
    random: Random,
    /// Until the daemon has ended.
    _slow: SlowDisks,
}

impl<'a> World<'a> {
    fn start(dir: &'a RunDir, image: &'a Image, accel: Accel) -> Result<(World<'a>, Machine)> {
        let slow = SlowDisks::on_files(dir.disks(), 2, 256 * MIB)?;
        slow.limit(SLOW)?;
        let mut pool = Pool::create(dir.sockets(), slow.devices.clone(), &["--force"])?;
        pool.serve_all()?;
        for (name, _, _, options) in VHDS {
            pool.create_vhd(name, SIZE, options)?;
        }
        slow.hold_back(pool.id()?)?;
        let world = World { dir, image, accel, pool, random: Random::new(1), _slow: slow };
        let (machine, _) = Machine::boot(dir, image, accel, &world.drives())?;
        Ok((world, machine))
    }

    fn drives(&self) -> Vec<Drive> {
        VHDS.iter().map(|(name, _, queues, _)| Drive::new(name, &self.pool.socket(name), *queues)).collect()
    }

    /// A QEMU that waits for the guest of another one.
    fn waiting(&self) -> Result<Machine> {
        Machine::waiting(self.dir, self.image, self.accel, &self.drives())
    }

    fn migrate_again_and_again(&mut self, mut machine: Machine, count: u64) -> Result<(Machine, Vec<String>)> {
        for (_, device, ..) in VHDS {
            endless::begin(&mut machine.agent, device)?;
        }
        let (mut lines, mut all) = (Vec::new(), Vec::new());
        for migration in 1..=count {
            thread::sleep(Duration::from_millis(500 + self.random.below(1500)));
            if migration % GIVES_UP == 0 {
                self.waiting()?.quit()?;
                self.is_served(&machine).context("after one that waited has given up")?;
            }
            let mut target = self.waiting()?;
            let moved = machine.migrate_to(&mut target, self.accel).with_context(|| self.pool.log_tail())?;
            machine = target;
            self.is_served(&machine)
                .with_context(|| format!("migration {migration}: {moved:?}\n{}", self.pool.log_tail()))?;
            if count <= 20 {
                lines.push(format!(
                    "migration {migration}: guest down {} ms, {} ms in all",
                    moved.down.as_millis(),
                    moved.total.as_millis()
                ));
            }
            all.push(moved);
        }
        let mut rounds = Vec::new();
        for (_, device, ..) in VHDS {
            rounds.push(endless::end(&mut machine.agent, device).with_context(|| self.pool.log_tail())?);
        }
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
                let shown = self.pool.json(&["vhd", "show", name]).ok()?;
                (shown["attached"]["pid"].as_u64() == Some(machine.id().into())).then_some(())
            })
            .with_context(|| format!("VHD {name}, QEMU {}", machine.id()))?;
        }
        Ok(())
    }
}
