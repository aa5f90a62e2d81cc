//! Disks that are pulled, give errors, stall, are given up, and are silently wrong, in random order, under loads that check every answer:
//! VHDs with replicas notice nothing but a pause, and VHDs with one replica only if it is theirs.
//!
//! After each fault the disk comes back, the replicas on it catch up, and all of it is checked.
//!
//! `LAB_FAULTS` sets the number of faults (8), `LAB_SEED` the seed, `LAB_KIND` the only kind of fault (0 to 4; 5: all).

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use lab::daemon::Pool;
use lab::guest::Guest;
use lab::load::{Terms, connect};
use lab::model::Random;
use lab::nbd::FaultyDisk;
use lab::report::Report;
use lab::tools::{RunDir, number_from_env, sparse_file, wait_for};

const MIB: u64 = 1 << 20;

/// Disks that faults happen to. The placement table is on others.
const DISKS: usize = 4;

const DISK_SIZE: u64 = 512 * MIB;

/// Size of each VHD, in sectors.
const SECTORS: u64 = 48 * MIB / 512;

/// Seconds after which a disk that does not answer has failed.
const HANG_TIMEOUT: u64 = 2;

/// The VHDs: name, options, and the disk that one with one replica is on.
const VHDS: [(&str, &[&str], Option<usize>); 4] = [
    ("two", &["--layout", "spanned", "--replicas", "2", "--checksums"], None),
    ("three", &["--layout", "spanned", "--replicas", "3", "--checksums", "--block-size", "4096"], None),
    ("first", &["--layout", "isolated", "--disks", "f0"], Some(0)),
    ("last", &["--layout", "isolated", "--disks", "f3"], Some(3)),
];

/// What happens to a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// Nothing that is asked of it succeeds any more, and it comes back.
    Pulled,
    /// Reads and writes give errors, for a while.
    Failing,
    /// It does not answer, until it does again.
    Stalled,
    /// Somebody marks it as failed.
    GivenUp,
    /// Bytes on it change by themselves.
    Corrupted,
}

const FAULTS: [Fault; 5] = [Fault::Pulled, Fault::Failing, Fault::Stalled, Fault::GivenUp, Fault::Corrupted];

/// Sectors that a disk changes by itself, at most.
const DAMAGE: usize = 200;

fn main() -> ExitCode {
    let mut report = Report::new("faults");
    let faults = number_from_env("LAB_FAULTS", 8);
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let seed = number_from_env("LAB_SEED", now);
    report.note(&format!("LAB_SEED={seed} LAB_FAULTS={faults}"));
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let Some(mut world) = report.check("a pool on disks that fail", || World::new(&dir, seed)) else {
        return report.finish();
    };
    let name = format!("{faults} faults under loads that check every answer");
    if let Some(told) = report.check(&name, || world.run(faults)) {
        told.iter().for_each(|line| report.note(line));
    }
    report.finish()
}

struct World {
    disks: Vec<FaultyDisk>,
    pool: Pool,
    guests: Vec<Guest>,
    random: Random,
    /// By kind: how often, and the longest pause of a VHD with replicas.
    told: [(u64, Duration); FAULTS.len()],
    restarts: u64,
    /// Sectors that disks have changed by themselves, and replicas of blocks that were seen to be wrong for it.
    damage: [u64; 2],
}

impl World {
    fn new(dir: &RunDir, seed: u64) -> Result<World> {
        let mut disks = Vec::new();
        for index in 0..DISKS {
            disks.push(FaultyDisk::new(dir.disks(), &format!("f{index}"), DISK_SIZE)?);
        }
        let metadata: Vec<PathBuf> = (0..3).map(|index| dir.disks().join(format!("m{index}.img"))).collect();
        metadata.iter().try_for_each(|path| sparse_file(path, 64 * MIB))?;
        let carriers = metadata.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",");
        let all: Vec<PathBuf> = metadata.into_iter().chain(disks.iter().map(|disk| disk.path().to_owned())).collect();
        let domains: Vec<String> =
            (0..).zip(&all).map(|(number, path)| format!("--failure-domain={}=d{number}", path.display())).collect();
        let options: Vec<&str> =
            ["--metadata-only", &carriers].into_iter().chain(domains.iter().map(String::as_str)).collect();
        let mut pool = Pool::create(dir.sockets(), all, &options)?;
        serve(&mut pool)?;
        let mut random = Random::new(seed);
        let mut guests = Vec::new();
        for ((name, options, _), disk) in VHDS.iter().zip(1..) {
            pool.create_vhd(name, SECTORS * 512, options)?;
            let terms = Terms { block: 8, discard: 64, writethrough: disk == 2, outlives: true };
            guests.push(Guest::new(name, disk, SECTORS, terms, random.next_u64()));
        }
        let told = [(0, Duration::ZERO); FAULTS.len()];
        Ok(World { disks, pool, guests, random, told, restarts: 0, damage: [0; 2] })
    }

    fn run(&mut self, faults: u64) -> Result<Vec<String>> {
        self.attach_all()?;
        for number in 0..faults {
            // Each kind now and then, whatever the seed.
            let only = number_from_env("LAB_KIND", 5);
            let kind = match (only, number) {
                (0..5, _) => only,
                (_, 0..5) => number,
                _ => self.random.below(5),
            };
            let kind = usize::try_from(kind)?;
            let disk = usize::try_from(self.random.below(u64::try_from(DISKS)?))?;
            let fault = FAULTS[kind];
            let pause = self
                .strike(fault, disk)
                .with_context(|| format!("fault {number}: disk f{disk} {fault:?}; {}", self.pool.log_tail()))?;
            let told = &mut self.told[kind];
            *told = (told.0 + 1, told.1.max(pause));
        }
        self.detach_all()?;
        self.pool.check()?;
        let mut lines: Vec<String> = FAULTS
            .iter()
            .zip(self.told)
            .map(|(fault, (count, pause))| {
                format!("{fault:?}: {count} times, longest pause of a VHD with replicas {} ms", pause.as_millis())
            })
            .collect();
        let completed: u64 = self.guests.iter().filter_map(|guest| Some(guest.load().ok()?.completed)).sum();
        let [damaged, found] = self.damage;
        ensure!(damaged < DAMAGE as u64 || found > 0, "{damaged} sectors were damaged, and nobody has noticed");
        lines.push(format!("{damaged} sectors damaged by disks; blocks that reads or scrubs found wrong: {found}"));
        lines.push(format!("{} restarts, {completed} requests of guests, 0 errors, 0 mismatches", self.restarts));
        Ok(lines)
    }

    fn attach_all(&mut self) -> Result<()> {
        let pool = &self.pool;
        self.guests.iter_mut().try_for_each(|guest| guest.attach(pool))
    }

    fn detach_all(&mut self) -> Result<()> {
        self.guests.iter_mut().try_for_each(Guest::detach)
    }

    /// One fault, and all that it takes until everything is as before. The longest pause of a VHD with replicas.
    fn strike(&mut self, fault: Fault, disk: usize) -> Result<Duration> {
        if fault == Fault::Corrupted {
            return self.corrupt(disk);
        }
        let alone = VHDS.iter().position(|(_, _, on)| *on == Some(disk));
        if let Some(alone) = alone {
            // What was never written cannot be lost.
            wait_for("a VHD without redundancy to be written", Duration::from_secs(60), || {
                let vhd = self.pool.json(&["vhd", "show", VHDS[alone].0]).ok()?;
                (vhd["written_bytes"].as_u64()? > 4 * MIB).then_some(())
            })?;
            self.guests[alone].detach()?;
            self.guests[alone].wait_detached(&self.pool)?;
            // What its disk has not synced when it is pulled is lost.
            connect(&self.pool.socket(VHDS[alone].0))?.ring().flush()?;
        }
        let name = format!("f{disk}");
        match fault {
            Fault::Pulled => self.disks[disk].pull(),
            Fault::Failing => self.disks[disk].set_failing(true)?,
            Fault::Stalled => self.disks[disk].set_stalled(true)?,
            Fault::GivenUp => drop(self.pool.cli(&["disk", "fail", &name, "--yes"])?),
            Fault::Corrupted => unreachable!("nothing comes back from it"),
        }
        let pause = self.watch(Duration::from_secs(if fault == Fault::Stalled { HANG_TIMEOUT + 4 } else { 3 }))?;
        if let Some(alone) = alone.filter(|_| fault != Fault::Stalled) {
            let mut frontend = connect(&self.pool.socket(VHDS[alone].0))?;
            // What was never written is zeros, with or without a disk.
            let mut firsts = (0..SECTORS).step_by(64);
            ensure!(firsts.any(|first| frontend.ring().read(first, 64 * 512).is_err()), "its only replica can be read");
        }
        if fault == Fault::Pulled {
            // What was asked of it has said that it is gone.
            let failed = || (self.health(&name).ok()? == "failed").then_some(());
            wait_for("a disk that is gone to have failed", Duration::from_secs(30), failed)?;
        }
        match fault {
            Fault::Pulled => self.disks[disk].put_back()?,
            Fault::Failing => self.disks[disk].set_failing(false)?,
            Fault::Stalled => self.disks[disk].set_stalled(false)?,
            Fault::GivenUp | Fault::Corrupted => {}
        }
        // A disk that has failed is used again by the next daemon.
        if self.health(&name)? == "failed" {
            self.restart(fault)?;
        } else if let Some(alone) = alone {
            let pool = &self.pool;
            self.guests[alone].attach(pool)?;
        }
        self.wait_whole()?;
        Ok(pause)
    }

    /// The disk changes some of what it holds of VHDs with replicas, which all of them read and write on. Then what they have not come by
    /// is looked for, and afterwards nothing is wrong any more.
    fn corrupt(&mut self, disk: usize) -> Result<Duration> {
        let owners: Vec<u64> = (1..).zip(VHDS).filter(|(_, (_, _, on))| on.is_none()).map(|(owner, _)| owner).collect();
        let before = self.checksum_errors()?;
        let damaged = self.disks[disk].damage(&owners, DAMAGE, &mut self.random)?;
        let pause = self.watch(Duration::from_secs(1))?;
        let mut found = 0;
        for round in 0..2 {
            for (name, ..) in VHDS.iter().filter(|(_, _, on)| on.is_none()) {
                let scrubbed =
                    self.pool.json(&["vhd", "scrub", name, "--priority", "urgent", "--wait"])?["job"]["scrubbed"]
                        .clone();
                let count = |what: &str| scrubbed[what].as_u64().with_context(|| format!("no {what} in {scrubbed}"));
                let (wrong, right) = (count("damaged_replicas")?, count("repaired_replicas")?);
                ensure!(wrong == right, "{wrong} replicas of {name} were damaged, {right} repaired");
                ensure!(round == 0 || wrong == 0, "{wrong} replicas of {name} are still damaged");
                found += wrong;
            }
        }
        self.damage[0] += u64::try_from(damaged)?;
        self.damage[1] += found + self.checksum_errors()? - before;
        self.wait_whole()?;
        Ok(pause)
    }

    /// Reads of guests that found something wrong, of all VHDs together.
    fn checksum_errors(&self) -> Result<u64> {
        let metrics = self.pool.cli(&["metrics"])?;
        let errors = metrics.lines().filter(|line| line.starts_with("spanblk_vhd_checksum_errors_total{"));
        errors.map(|line| Ok(line.rsplit(' ').next().context("a value")?.parse::<u64>()?)).sum()
    }

    /// Watches the loads of VHDs with replicas: none may end, and the longest that one does nothing is told.
    fn watch(&self, time: Duration) -> Result<Duration> {
        let until = Instant::now() + time;
        let running: Vec<&Guest> =
            self.guests.iter().zip(VHDS).filter(|(_, (_, _, on))| on.is_none()).map(|(guest, _)| guest).collect();
        let mut seen: Vec<(Option<u64>, Instant)> = vec![(None, Instant::now()); running.len()];
        let mut longest = Duration::ZERO;
        while Instant::now() < until || seen.iter().any(|(_, since)| since.elapsed() > Duration::from_millis(500)) {
            for (guest, seen) in running.iter().zip(&mut seen) {
                ensure!(!guest.has_ended(), "the load on {} has ended", guest.name);
                longest = longest.max(seen.1.elapsed());
                if guest.progress() != seen.0 {
                    *seen = (guest.progress(), Instant::now());
                }
                ensure!(seen.1.elapsed() < Duration::from_secs(30), "{} waits for ever", guest.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(longest)
    }

    fn health(&self, disk: &str) -> Result<String> {
        let health = self.pool.json(&["disk", "show", disk])?["health"].as_str().map(str::to_owned);
        health.context("the health of a disk")
    }

    /// The next daemon finds all disks. Mostly this one is killed; but a disk that was pulled comes back as another device, as far as
    /// anybody can tell, and then only what is in the table counts.
    fn restart(&mut self, fault: Fault) -> Result<()> {
        if fault == Fault::Pulled {
            self.detach_all()?;
            self.pool.stop()?;
        } else {
            self.pool.kill();
            self.detach_all()?;
        }
        serve(&mut self.pool)?;
        self.restarts += 1;
        self.attach_all()
    }

    /// Waits until every replica is in sync, and every VHD where it was.
    fn wait_whole(&self) -> Result<()> {
        let jobs = self.pool.json(&["job", "list"])?;
        for job in jobs["jobs"].as_array().into_iter().flatten().filter(|job| job["state"] == "stopped") {
            self.pool.cli(&["job", "resume", &job["id"].to_string()])?;
        }
        let whole = || self.pool.is_whole().ok()?.then_some(());
        wait_for("replicas in sync", Duration::from_secs(90), whole).with_context(|| {
            let jobs = self.pool.cli(&["job", "list"]).unwrap_or_default();
            format!("{}\n{jobs}", self.pool.cli(&["vhd", "list"]).unwrap_or_default())
        })?;
        // What was rebuilt elsewhere comes back to where it may be.
        self.pool.cli(&["pool", "rebalance", "--wait"])?;
        self.pool.check()
    }
}

fn serve(pool: &mut Pool) -> Result<()> {
    let order: Vec<usize> = (0..pool.disks.len()).collect();
    pool.serve(&order, &["--sandbox", "off", "--hang-timeout", &HANG_TIMEOUT.to_string()]).map(drop)
}
