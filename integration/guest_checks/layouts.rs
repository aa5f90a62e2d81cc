//! A guest's disk goes from disk to disk, gets replicas and grows, while the guest works on it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::session::Session;
use super::wait_for_device;
use lab::daemon::Pool;
use lab::fio::Verify;
use lab::machine::{Drive, Machine};

const MIB: u64 = 1 << 20;

/// Size of the disk that is moved about, before it grows.
const ROAM: u64 = 96 * MIB;

/// Layout changes in the order in which they are made. Those that leave everything where it is would be mistakes here.
const CHANGES: &[&[&str]] = &[
    &["vhd", "span", "roam"],
    &["vhd", "unspan", "roam", "--width", "2"],
    &["vhd", "span", "roam", "--width", "3"],
    &["vhd", "unspan", "roam"],
    &["vhd", "migrate", "roam"],
    &["vhd", "migrate", "roam", "--disk", "disk3", "--priority", "urgent"],
    &["vhd", "span", "roam", "--disks", "disk0,disk1"],
    &["vhd", "set", "roam", "--replicas", "2"],
    &["vhd", "span", "roam"],
    &["vhd", "set", "roam", "--replicas", "3"],
    &["vhd", "set", "roam", "--replicas", "1"],
    &["cancelled", "vhd", "unspan", "roam", "--disk", "disk2"],
    &["vhd", "settle", "roam"],
    &["reverted", "vhd", "span", "roam"],
    &["resized"],
    &["paused", "vhd", "span", "roam"],
    &["disk", "evacuate", "disk3"],
    &["readmitted", "pool", "rebalance"],
    &["vhd", "unspan", "roam", "--disk", "disk3"],
    &["vhd", "migrate", "roam", "--disk", "disk1"],
    &["vhd", "span", "roam", "--width", "2"],
    &["vhd", "span", "roam"],
];

/// Makes all [`CHANGES`] while fio writes and verifies in the guest. Lines of a table of what they did.
///
/// # Errors
/// A change fails or moves nothing, or fio finds a byte that it did not write.
pub fn changes_under_fio(session: &Session, machine: &mut Machine) -> Result<Vec<String>> {
    let Some(pool) = session.pool() else { return Ok(vec!["the reference has no layouts".to_owned()]) };
    for disk in ["disk0", "disk1", "disk2", "disk3"] {
        pool.cli(&["disk", "set", disk, "--failure-domain", disk])?;
    }
    pool.create_vhd("roam", ROAM, &["--layout", "isolated", "--disks", "disk0", "--queues", "2"])?;
    let drive = Drive::new("roam", &pool.socket("roam"), 2);
    machine.plug(&drive, 1)?;
    machine.agent.run(&wait_for_device("vdd", true))?;
    let passes = Verify { target: "/dev/vdd", offset: 0, size: ROAM, block: 4096, largest: 256 << 10, seed: 1 };
    // All of it is there before anything is moved.
    machine
        .agent
        .run("dd if=/dev/urandom of=/dev/vdd bs=1M oflag=direct 2>/dev/null; rm -f /tmp/stop /tmp/passes /tmp/ended /tmp/failed")?;
    machine.agent.run(&format!(
        "(n=0
          while [ ! -e /tmp/stop ]; do
              n=$((n + 1))
              {} >/tmp/fio 2>&1 || {{ echo pass $n >/tmp/failed; break; }}
              echo $n >/tmp/passes
          done
          touch /tmp/ended) &",
        passes.line().replace("--randseed=1", "--randseed=$n"),
    ))?;
    let mut lines = vec![format!("{:>2}  {:<44} {:>9} {:>7} {:>6}", "", "change", "moved", "seconds", "waits")];
    for (number, change) in (1..).zip(CHANGES) {
        let started = Instant::now();
        let job = make(pool, change).with_context(|| format!("change {number}: {}", change.join(" ")))?;
        let moved = job["moved_bytes"].as_u64().unwrap_or(0);
        // Nothing is copied to have fewer replicas.
        let copies = change[0] != "resized" && !change.ends_with(&["--replicas", "1"]);
        ensure!(!copies || moved > 0, "change {number}, {}, moved nothing: {job}", change.join(" "));
        lines.push(format!(
            "{number:>2}  {:<44} {:>5} MiB {:>7.1} {:>6}",
            change.join(" "),
            moved / MIB,
            started.elapsed().as_secs_f64(),
            job["waits"].as_u64().unwrap_or(0),
        ));
        let failed = machine.agent.run("cat /tmp/failed 2>/dev/null || true")?;
        if !failed.is_empty() {
            bail!("fio failed by change {number}, {}: {}", change.join(" "), machine.agent.run("cat /tmp/fio")?);
        }
    }
    let passes = machine.agent.run_within(
        "touch /tmp/stop
         for i in $(seq 1 1200); do [ -e /tmp/ended ] && break; usleep 100000; done
         [ -e /tmp/ended ] && [ ! -e /tmp/failed ] || { cat /tmp/fio; exit 1; }
         cat /tmp/passes",
        Duration::from_secs(150),
    )?;
    lines.push(format!("{passes} passes of fio, each of which writes {} MiB and verifies them", ROAM / MIB));
    ensure!(passes.trim().parse::<u64>()? >= 2, "fio made only {passes} passes: it shows little");
    machine.unplug(&drive.id)?;
    machine.agent.run(&wait_for_device("vdd", false))?;
    pool.check()?;
    pool.cli(&["vhd", "delete", "roam", "--force"])?;
    Ok(lines)
}

/// Makes one change and waits for its end: the job that was made.
fn make(pool: &Pool, change: &[&str]) -> Result<Value> {
    let id = |result: &Value| result["job"]["id"].as_u64().context("a job").map(|id| id.to_string());
    // Slow enough that something is left when the next command comes, which goes to the job first.
    let begin = |change: &[&str]| -> Result<String> {
        let id = id(&pool.json(&[change, &["--max-rate", "16MiB"]].concat())?)?;
        let deadline = Instant::now() + Duration::from_secs(30);
        while pool.json(&["job", "show", &id])?["moved_bytes"].as_u64().unwrap_or(0) == 0 {
            ensure!(Instant::now() < deadline, "job {id} moves nothing");
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(id)
    };
    let show = |id: &str| pool.json(&["job", "show", id]);
    match change[0] {
        "cancelled" => {
            let id = begin(&change[1..])?;
            pool.cli(&["job", "cancel", &id])?;
            show(&id)
        }
        "reverted" => {
            let id = begin(&change[1..])?;
            pool.cli(&["job", "cancel", &id, "--revert", "--wait"])?;
            show(&id)
        }
        "paused" => {
            let id = begin(&change[1..])?;
            pool.cli(&["job", "pause", &id])?;
            pool.cli(&["job", "resume", &id])?;
            pool.cli(&["job", "set", &id, "--max-rate", "none"])?;
            pool.cli(&["job", "wait", &id])?;
            show(&id)
        }
        "resized" => pool.json(&["vhd", "resize", "roam", "--size", &(ROAM + 32 * MIB).to_string()]),
        "readmitted" => {
            pool.cli(&["disk", "set", "disk3", "--accept", "any"])?;
            Ok(pool.json(&[&change[1..], &["--wait"]].concat())?["job"].clone())
        }
        _ => Ok(pool.json(&[change, &["--wait"]].concat())?["job"].clone()),
    }
}

/// A disk that shares disk1 with a spanned one and an isolated one fills it, grows onto another under its guest without an error,
/// and is brought together again by one command; one that may not grow waits until there is room.
///
/// # Errors
/// Any of that is not so.
pub fn growth(session: &Session, machine: &mut Machine) -> Result<Vec<String>> {
    const LEFT: u64 = 24;
    let Some(pool) = session.pool() else { return Ok(vec!["the reference does not grow".to_owned()]) };
    pool.create_vhd(
        "grow",
        256 * MIB,
        &["--layout", "isolated", "--disks", "disk1", "--queues", "1", "--expand", "auto"],
    )?;
    let options = ["--layout", "isolated", "--disks", "disk1", "--queues", "1", "--expand", "never"];
    pool.create_vhd("stay", 256 * MIB, &options)?;
    let free = pool.json(&["disk", "show", "disk1"])?["free_bytes"].as_u64().context("free_bytes of disk1")? / MIB;
    ensure!(free > LEFT, "disk1 has only {free} MiB free");
    let filler = [&options[..6], &["--thick"]].concat();
    pool.create_vhd("filler", (free - LEFT) * MIB, &filler)?;

    let grow = Drive::new("grow", &pool.socket("grow"), 1);
    machine.plug(&grow, 2)?;
    machine.agent.run(&wait_for_device("vdd", true))?;
    let sum = machine.agent.run(
        "set -e
         dd if=/dev/urandom of=/tmp/image bs=1M count=64 2>/dev/null
         dd if=/tmp/image of=/dev/vdd bs=1M oflag=direct conv=fsync 2>/dev/null
         md5sum </tmp/image; rm /tmp/image",
    )?;
    let shown = pool.json(&["vhd", "show", "grow"])?;
    let places = places(&shown)?;
    ensure!(places.len() == 2 && shown["layout"] == "isolated", "a VHD that fills its disk lies on {places:?}");
    ensure!(places.contains(&("disk1".to_owned(), LEFT)), "{LEFT} MiB were free on disk1: {places:?}");
    let log = std::fs::read_to_string(pool.log_path())?;
    ensure!(
        log.contains("grow") && log.contains("vhd_expanded"),
        "no word of the growth in the log\n{}",
        pool.log_tail()
    );
    let other = places.iter().find(|place| place.0 != "disk1").context("another disk")?;
    let mut lines = vec![format!("disk1 full: {LEFT} MiB of 64 fit there, the other {} went to {}", other.1, other.0)];

    // The other one waits; room comes; its write goes on.
    let stay = Drive::new("stay", &pool.socket("stay"), 1);
    machine.plug(&stay, 3)?;
    machine.agent.run(&wait_for_device("vde", true))?;
    machine.agent.run(
        "rm -f /tmp/written
         (dd if=/dev/urandom of=/dev/vde bs=1M count=16 oflag=direct conv=fsync 2>/tmp/said && touch /tmp/written) &
         sleep 2
         [ ! -e /tmp/written ] || { echo written to a full disk; exit 1; }",
    )?;
    pool.cli(&["vhd", "delete", "filler"])?;
    machine
        .agent
        .run("for i in $(seq 1 300); do [ -e /tmp/written ] && exit 0; usleep 100000; done; cat /tmp/said; exit 1")?;
    lines.push("--expand never: a write to the full disk waited, and went on when there was room".to_owned());

    let settled = pool.json(&["vhd", "settle", "grow", "--wait"])?;
    let shown = pool.json(&["vhd", "show", "grow"])?;
    ensure!(self::places(&shown)? == [("disk1".to_owned(), 64)], "after settle: {}", shown["placement"]);
    let found = machine
        .agent
        .run("echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/vdd bs=1M count=64 iflag=direct 2>/dev/null | md5sum")?;
    ensure!(found == sum, "the guest reads {found}, and wrote {sum}");
    lines.push(format!(
        "vhd settle: {} MiB came back to disk1, the guest reads what it wrote",
        settled["job"]["moved_bytes"].as_u64().unwrap_or(0) / MIB
    ));
    for drive in [&grow, &stay] {
        machine.unplug(&drive.id)?;
    }
    machine.agent.run(&wait_for_device("vdd", false))?;
    pool.check()?;
    for vhd in ["grow", "stay"] {
        pool.cli(&["vhd", "delete", vhd, "--force"])?;
    }
    Ok(lines)
}

/// Disks and MiB of a VHD.
fn places(shown: &Value) -> Result<Vec<(String, u64)>> {
    let place = |place: &Value| Some((place["disk"].as_str()?.to_owned(), place["extents"].as_u64()?));
    shown["placement"].as_array().context("placement")?.iter().map(|p| place(p).context("a place")).collect()
}
