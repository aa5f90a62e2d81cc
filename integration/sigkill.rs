//! SIGKILL under load, start again, verify: everything that has completed is there, and nothing that was never written. In every
//! second round what the daemon keeps in shared memory is removed, too: then everything that was flushed is there.
//!
//! `LAB_ROUNDS` sets the number of rounds (50), `LAB_SEED` repeats a run's requests, `LAB_BACKEND=qemu-storage-daemon` runs the
//! same against QEMU's own daemon.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, ensure};
use lab::daemon::Pool;
use lab::frontend::Frontend;
use lab::load::{Load, Terms, connect};
use lab::model::{Model, Random};
use lab::reference::ReferenceDisk;
use lab::report::Report;
use lab::tools::{RunDir, number_from_env};

const MIB: u64 = 1 << 20;

/// A disk under load: name, options of `vhd create`, sectors of a block, whether the guest makes it writethrough.
const DISKS: [(&str, &[&str], u64, bool); 3] = [
    ("iso", &["--layout", "isolated", "--block-size", "512"], 1, false),
    ("span", &["--layout", "spanned", "--block-size", "4096"], 8, false),
    ("through", &["--layout", "spanned", "--disks", "disk0,disk1", "--block-size", "512"], 1, true),
];

const SIZE: u64 = 48 * MIB;

enum Backend {
    Spanblk(Pool),
    Reference(Vec<ReferenceDisk>),
}

fn main() -> ExitCode {
    let mut report = Report::new("sigkill");
    let rounds = number_from_env("LAB_ROUNDS", 50);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let seed = number_from_env("LAB_SEED", now);
    report.note(&format!("LAB_SEED={seed} LAB_ROUNDS={rounds}"));
    report.check("the model notices what must not happen", model_notices);
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    if let Some(backend) = report.check("pool and disks", || start(&dir)) {
        let name = format!("{rounds} rounds of load, SIGKILL, restart and verification");
        if let Some(summary) = report.check(&name, || all_rounds(&dir, backend, rounds, seed)) {
            report.note(&summary);
        }
    }
    report.finish()
}

/// A model that accepts everything would prove nothing.
fn model_notices() -> Result<()> {
    let fresh = || {
        let mut model = Model::new(1, 64);
        let (first, old) = model.write(8, 8);
        model.completed(first);
        let cover = model.flush();
        model.flushed(&cover);
        let (_, new) = model.write(8, 8);
        (model, old, new)
    };
    let (mut model, old, new) = fresh();
    model.check_after_crash(8, &old).context("the flushed content")?;
    let (mut model, ..) = fresh();
    model.check_after_crash(8, &new).context("the newer content")?;
    let mixed = [&old[..2048], &new[2048..]].concat();
    fresh().0.check_after_crash(8, &mixed).context("a mixture by sectors")?;

    let foreign = Model::new(2, 64).write(8, 8).1;
    let torn = [&old[..700], &new[700..]].concat();
    let never_written = { fresh().0.write(8, 8).1 };
    for (bad, what) in [
        (vec![0; 4096], "the loss of flushed data"),
        (foreign, "another disk's data"),
        (torn, "a torn sector"),
        (never_written, "a write that was never submitted"),
    ] {
        ensure!(fresh().0.check_after_crash(8, &bad).is_err(), "{what} passes");
    }
    // A durable write stands when an older change is flushed after it.
    let mut model = Model::new(1, 64);
    let zero = model.zero(8, 8);
    model.completed(zero);
    let cover = model.flush();
    let (write, data) = model.write(8, 8);
    model.completed_durably(write);
    model.flushed(&cover);
    ensure!(model.check_after_crash(8, &[0; 4096]).is_err(), "the loss of a durable write passes");
    model.check_after_crash(8, &data).context("a durable write")?;
    ensure!(fresh().0.check_after_crash(16, &old).is_err(), "data in the wrong place passes");
    Ok(())
}

fn start(dir: &RunDir) -> Result<Backend> {
    if std::env::var("LAB_BACKEND").as_deref() == Ok("qemu-storage-daemon") {
        return Ok(Backend::Reference(Vec::new()));
    }
    let mut pool = Pool::create_files(dir.sockets(), dir.disks(), 4, 256 * MIB)?;
    pool.serve_all()?;
    for (name, options, _, _) in DISKS {
        pool.create_vhd(name, SIZE, options)?;
    }
    pool.kill();
    Ok(Backend::Spanblk(pool))
}

fn all_rounds(dir: &RunDir, mut backend: Backend, rounds: u64, seed: u64) -> Result<String> {
    let mut random = Random::new(seed);
    let mut loads: Vec<Load> = DISKS
        .iter()
        .zip(1..)
        .map(|((_, _, block, writethrough), disk)| {
            let terms = Terms { block: *block, discard: 64, writethrough: *writethrough, outlives: false };
            Load::new(disk, SIZE / 512, terms, random.next_u64())
        })
        .collect();
    let mut slowest = Duration::ZERO;
    for round in 1..=rounds {
        let took = start_again(dir, &mut backend, &mut random)?;
        slowest = slowest.max(took);
        let mut frontends = Vec::new();
        let outlives = matches!(backend, Backend::Spanblk(_)) && round % 2 == 0;
        for ((name, _, _, writethrough), load) in DISKS.iter().zip(&mut loads) {
            load.set_outlives(outlives);
            let mut frontend =
                connect(&socket(dir, &backend, name)).with_context(|| format!("round {round}, {name}"))?;
            load.verify(&mut frontend).with_context(|| format!("round {round}, {name}"))?;
            frontend.set_writeback(!writethrough)?;
            frontends.push(frontend);
        }
        let pause = Duration::from_millis(20 + random.below(400));
        one_round(&mut backend, &mut loads, &mut frontends, pause, outlives)
            .with_context(|| format!("round {round}"))?;
    }
    start_again(dir, &mut backend, &mut random)?;
    for ((name, ..), load) in DISKS.iter().zip(&mut loads) {
        load.verify(&mut connect(&socket(dir, &backend, name))?).with_context(|| format!("at the end, {name}"))?;
    }
    if let Backend::Spanblk(pool) = &mut backend {
        pool.check()?;
        pool.stop()?;
        pool.check()?;
    }
    let (requests, flushes) =
        (loads.iter().map(|l| l.completed).sum::<u64>(), loads.iter().map(|l| l.flushes).sum::<u64>());
    ensure!(flushes >= rounds, "only {flushes} flushes completed in {rounds} rounds: nothing was proved");
    Ok(format!(
        "{requests} requests and {flushes} flushes; slowest start after SIGKILL {:.0} ms",
        slowest.as_secs_f64() * 1e3
    ))
}

/// Load on all disks, and SIGKILL after `pause`; as a power cut unless what completes `outlives` that.
fn one_round(
    backend: &mut Backend,
    loads: &mut [Load],
    frontends: &mut [Frontend],
    pause: Duration,
    outlives: bool,
) -> Result<()> {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let threads: Vec<_> =
            loads.iter_mut().zip(frontends).map(|(load, frontend)| scope.spawn(|| load.run(frontend, &stop))).collect();
        thread::sleep(pause);
        match backend {
            Backend::Spanblk(pool) if outlives => pool.kill(),
            Backend::Spanblk(pool) => pool.kill_and_forget()?,
            Backend::Reference(disks) => disks.iter_mut().for_each(ReferenceDisk::kill),
        }
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().try_for_each(|t| t.join().map_err(|_| anyhow!("a load panicked"))?)
    })
}

/// Starts the backend, for spanblk with its disks in random order; how long it took.
fn start_again(dir: &RunDir, backend: &mut Backend, random: &mut Random) -> Result<Duration> {
    match backend {
        Backend::Spanblk(pool) => {
            let mut order: Vec<usize> = (0..pool.disks.len()).collect();
            for i in (1..order.len()).rev() {
                order.swap(i, usize::try_from(random.below(i as u64 + 1))?);
            }
            pool.serve(&order, &[])
        }
        Backend::Reference(disks) => {
            let started = Instant::now();
            disks.clear();
            for (name, _, block, _) in DISKS {
                let file = dir.disks().join(format!("{name}.img"));
                let socket = dir.sockets().join(format!("{name}.sock"));
                disks.push(ReferenceDisk::serve(&file, &socket, SIZE, u32::try_from(block * 512)?, 1)?);
            }
            Ok(started.elapsed())
        }
    }
}

fn socket(dir: &RunDir, backend: &Backend, name: &str) -> std::path::PathBuf {
    match backend {
        Backend::Spanblk(pool) => pool.socket(name),
        Backend::Reference(_) => dir.sockets().join(format!("{name}.sock")),
    }
}
