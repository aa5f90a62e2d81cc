//! What is asked of the daemon, in random order.

use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::world::{DISKS, LOADS, SECTORS, World};
use lab::daemon::{Pool, spanblk};
use lab::fio_guest;
use lab::load::connect;
use lab::tools::{Process, command, wait_for};

const MIB: u64 = 1 << 20;

/// Longest that a command may take that waits for a job, with these loads on a small machine.
const COMMAND_LIMIT: Duration = Duration::from_secs(180);

/// Sectors that a VHD under load grows to at most.
const SECTORS_MAX: u64 = 2 * SECTORS;

/// Bytes that a VHD of the emulated guest grows to at most: it is there for the whole run, and never smaller again.
const SIZE_MAX: u64 = 160 * MIB;

/// A VHD that is there for one step only.
const BRIEF: &str = "brief";

/// Any of them, from its beginning to its end, unless it begins a job and leaves it.
///
/// # Errors
/// Anything but the two outcomes: it was done, or the state of the pool forbids it.
pub fn any(world: &mut World) -> Result<()> {
    match world.random.below(16) {
        0..3 => layout(world),
        3 => begin_layout(world),
        4 | 5 => replicas(world),
        6 | 7 => resize(world),
        8 | 9 => brief(world),
        10 => scrub(world),
        11 => evacuate(world),
        12 => look(world),
        13 => follow(world),
        _ => reattach(world),
    }
}

/// Moves a VHD, and waits for the end.
fn layout(world: &mut World) -> Result<()> {
    let (kind, mut args) = choose_layout(world);
    args.push("--wait".to_owned());
    did(world, kind, &args)
}

/// Begins to move a VHD.
///
/// # Errors
/// Anything but the two outcomes: it was begun, or the state of the pool forbids it.
pub fn begin_layout(world: &mut World) -> Result<()> {
    let (_, args) = choose_layout(world);
    did(world, "begun", &args)
}

fn choose_layout(world: &mut World) -> (&'static str, Vec<String>) {
    let random = &mut world.random;
    let spanned = [LOADS[0].0, LOADS[1].0, "span"];
    let (disk, spanned, width) = (*random.of(&DISKS), *random.of(&spanned), (2 + random.below(3)).to_string());
    let (kind, args) = match random.below(6) {
        0 => ("migrate", vec!["vhd", "migrate", "iso"]),
        1 => ("migrate", vec!["vhd", "migrate", "iso", "--disk", disk]),
        2 => ("span", vec!["vhd", "span", spanned]),
        3 => ("span", vec!["vhd", "span", spanned, "--width", &width]),
        4 => ("unspan", vec!["vhd", "unspan", "span", "--disk", disk]),
        _ => ("unspan", vec!["vhd", "unspan", spanned, "--width", &width]),
    };
    let mut args: Vec<String> = args.into_iter().map(str::to_owned).collect();
    if random.below(2) == 0 {
        args.extend(["--priority", "urgent"].map(str::to_owned));
    }
    (kind, args)
}

fn replicas(world: &mut World) -> Result<()> {
    let count = (1 + world.random.below(3)).to_string();
    let (name, ..) = *world.random.of(&LOADS);
    did(world, "replicas", &["vhd", "set", name, "--replicas", &count, "--priority", "urgent", "--wait"])
}

/// A VHD grows while its guest works.
fn resize(world: &mut World) -> Result<()> {
    let which = usize::try_from(world.random.below(4))?;
    if let Some(which) = which.checked_sub(world.guests.len()) {
        let size = (world.sizes[which] + MIB).min(SIZE_MAX);
        let (name, ..) = fio_guest::VHDS[which];
        did(world, "resize", &["vhd", "resize", name, "--size", &size.to_string()])?;
        world.sizes[which] = size;
        return Ok(());
    }
    let guest = &world.guests[which];
    let sectors = (guest.sectors + guest.block * (1 + world.random.below(1024))).min(SECTORS_MAX);
    let args = ["vhd", "resize", guest.name, "--size", &(sectors * 512).to_string()];
    world.doing("resize", &args.join(" "));
    if attempt(&world.pool, &args)? {
        world.guests[which].sectors = sectors;
        world.guests[which].wait_grown()?;
    }
    Ok(())
}

/// A VHD is created, written, read, and deleted.
fn brief(world: &mut World) -> Result<()> {
    let all: [&[&str]; 4] = [
        &["--layout", "isolated"],
        &["--layout", "isolated", "--thick", "--checksums"],
        &["--layout", "spanned", "--replicas", "2"],
        &["--layout", "spanned", "--checksums"],
    ];
    let options = *world.random.of(&all);
    world.doing("brief", &options.join(" "));
    let pool = &world.pool;
    pool.create_vhd(BRIEF, 16 * MIB, options)?;
    let mut frontend = connect(&pool.socket(BRIEF))?;
    for place in 0..16 {
        let data = vec![u8::try_from(place)? + 1; 64 << 10];
        frontend.ring().write(place * 2048, &data)?;
        ensure!(frontend.ring().read(place * 2048, 64 << 10)? == data, "{BRIEF} holds something else");
    }
    frontend.ring().flush()?;
    drop(frontend);
    // A VHD is not deleted under a guest.
    let mut said = false;
    wait_for("end of a VHD whose guest has gone", COMMAND_LIMIT, || match attempt(pool, &["vhd", "delete", BRIEF]) {
        Ok(false) => {
            said = true;
            None
        }
        done => Some(done),
    })??;
    world.counts.count(if said { "brief, attached still" } else { "brief, detached" });
    Ok(())
}

fn scrub(world: &mut World) -> Result<()> {
    let (name, ..) = *world.random.of(&LOADS);
    did(world, "scrub", &["vhd", "scrub", name, "--priority", "urgent", "--wait"])
}

/// A disk becomes empty, is used again, and gets its part.
fn evacuate(world: &mut World) -> Result<()> {
    let disk = *world.random.of(&DISKS);
    did(world, "evacuate", &["disk", "evacuate", disk, "--priority", "urgent", "--wait"])?;
    did(world, "accept", &["disk", "set", disk, "--accept", "any"])?;
    did(world, "rebalance", &["pool", "rebalance", "--priority", "urgent", "--wait"])
}

/// What changes nothing.
fn look(world: &mut World) -> Result<()> {
    let disk = *world.random.of(&DISKS);
    did(world, "impact", &["disk", "impact", disk])?;
    did(world, "map", &["vhd", "map", "span"])?;
    world.doing("metrics", "");
    let metrics = world.pool.metrics()?;
    ensure!(metrics.lines().any(|line| line.starts_with("spanblk_vhd_copy_waits_total{")), "{metrics}");
    world.doing("check", "");
    world.pool.check()
}

/// Somebody follows the events while something else is done, and goes.
fn follow(world: &mut World) -> Result<()> {
    let mut command = command(spanblk());
    command.arg("--control").arg(world.pool.control()).args(["--json", "events", "--follow"]);
    let mut follower = Process::start("spanblk events", command.stdout(Stdio::null()).stderr(Stdio::null()))?;
    // Time to connect, also where one step takes less.
    thread::sleep(Duration::from_millis(200));
    match world.random.below(4) {
        0 => brief(world),
        1 => reattach(world),
        2 => layout(world),
        _ => resize(world),
    }?;
    ensure!(follower.exited().is_none(), "nobody follows the events any more");
    follower.kill();
    world.doing("follow", "");
    Ok(())
}

/// A guest goes and comes back; what its VHD has grown by is sometimes taken away meanwhile.
fn reattach(world: &mut World) -> Result<()> {
    let which = usize::try_from(world.random.below(world.guests.len() as u64))?;
    let shrinks = world.random.below(2) == 0;
    let name = world.guests[which].name;
    world.doing("reattach", name);
    world.guests[which].detach()?;
    world.guests[which].wait_detached(&world.pool)?;
    if shrinks && world.guests[which].sectors > SECTORS {
        let args = ["vhd", "resize", name, "--size", &(SECTORS * 512).to_string(), "--force"];
        world.doing("shrink", &args.join(" "));
        if attempt(&world.pool, &args)? {
            world.guests[which].resized_detached(SECTORS)?;
        }
    }
    world.guests[which].attach(&world.pool)
}

/// A command, counted as what it is or as refused.
fn did(world: &mut World, kind: &'static str, args: &[impl AsRef<str>]) -> Result<()> {
    let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
    world.doing(kind, &args.join(" "));
    if !attempt(&world.pool, &args)? {
        world.counts.count("refused");
    }
    Ok(())
}

/// A command, which may wait for a job. Whether it was done: otherwise the state of the pool forbids it.
fn attempt(pool: &Pool, args: &[&str]) -> Result<bool> {
    let mut command = Command::new(spanblk());
    command.arg("--control").arg(pool.control()).args(args);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let ended = wait_for(&args.join(" "), COMMAND_LIMIT, || child.try_wait().transpose());
    let status = match ended {
        Ok(status) => status?,
        Err(error) => {
            child.kill()?;
            child.wait()?;
            return Err(error.context(pool.cli(&["job", "list"]).unwrap_or_default()));
        }
    };
    let mut said = String::new();
    child.stderr.take().context("what it says")?.read_to_string(&mut said)?;
    match status.code() {
        Some(0) => Ok(true),
        Some(3 | 4) => Ok(false),
        // A disk took too long for a job, as one under all this may: it goes on.
        Some(1) if said.contains("Connection timed out") || said.contains("does not take what is written") => {
            let job = said.split("spanblk job resume ").nth(1).and_then(|rest| rest.split('\'').next());
            let job = job.with_context(|| format!("{args:?}: {said}"))?;
            pool.cli(&["job", "resume", job])?;
            Ok(true)
        }
        // What goes on in the background is in the way, for a moment.
        Some(1) if said.contains("try again in a moment") => Ok(false),
        _ => bail!("{args:?}: {status}\n{said}"),
    }
}
