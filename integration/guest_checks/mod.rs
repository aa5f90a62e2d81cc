//! Checks of disks from inside a guest, in the order in which `guest.rs` goes through them.
#![allow(dead_code)]

mod layouts;
mod raw;
mod session;

use std::time::Duration;

use anyhow::{Result, ensure};

use lab::agent::Agent;
use lab::machine::Machine;
use lab::report::Report;
pub use session::Session;

/// Runs all checks of `guest.rs`.
pub fn run(report: &mut Report, mut session: Session) {
    let Some((mut machine, boot)) = report.check("guest boots with three disks", || session.boot()) else { return };
    report.note(&format!("{:.1}s from start to the first command", boot.as_secs_f64()));

    let sums = basics(report, &session, &mut machine.agent);
    let last = session.vhds.len() - 1;
    report.check("resize reaches the guest", || raw::resize(&session, &mut machine.agent, &session.vhds[last]));
    for (name, body) in [
        ("fio verifies through all layout changes", layouts::changes_under_fio as LayoutCheck),
        ("a disk grows onto another under its guest, and comes back", layouts::growth),
    ] {
        for line in report.check(name, || body(&session, &mut machine)).unwrap_or_default() {
            report.note(&line);
        }
    }
    report.check("hot-unplug and hot-plug", || hotplug(&session, &mut machine));
    report.check("guest reset while writing", || reset_while_writing(&mut machine, &sums));
    report.check("the kernel has no complaints", || {
        let complaints = machine.complaints();
        ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
        Ok(())
    });
    report.check("guest powers off", || machine.power_off());
    report.check("placement is consistent", || session.consistent());

    if report.check("cold start with the disks in another order", || session.cold_start()).is_none() {
        return;
    }
    report.check("all data is there after the cold start", || {
        let (mut machine, _) = session.boot()?;
        remounted(&mut machine.agent, "vda", "ext4", &sums.ext4)?;
        remounted(&mut machine.agent, "vdb", "xfs", &sums.xfs)?;
        raw::pattern_is_there(&mut machine.agent, "vdc")?;
        machine.power_off()
    });
    report.check("backend ends cleanly", || session.stop());
}

type LayoutCheck = fn(&Session, &mut Machine) -> Result<Vec<String>>;

/// What needs nothing but a running guest and its disks; the sums of the files that are then on them.
pub fn basics(report: &mut Report, session: &Session, agent: &mut Agent) -> Sums {
    for vhd in &session.vhds {
        let name = vhd.name;
        report.check(&format!("{name}: identify ({})", vhd.layout), || raw::identify(session, agent, vhd));
    }
    report.check("fio crc32c verify on all disks at once", || raw::verify_all(agent, &session.vhds));
    for vhd in &session.vhds {
        let name = vhd.name;
        report.check(&format!("{name}: discard reads zeros, neighbours stay"), || raw::discard(agent, vhd));
        report.check(&format!("{name}: write zeroes is exact"), || raw::write_zeroes(agent, vhd));
        report.check(&format!("{name}: cache mode write through and back"), || raw::cache_mode(agent, vhd));
    }
    report.check("discard gives the room back", || session.discarded_room(agent));

    let mut sums = Sums::default();
    report.check("ext4 on the isolated disk survives remount", || {
        sums.ext4 = make_filesystem(agent, "vda", "ext4")?;
        remounted(agent, "vda", "ext4", &sums.ext4)
    });
    report.check("xfs on the spanned disk survives remount", || {
        sums.xfs = make_filesystem(agent, "vdb", "xfs")?;
        remounted(agent, "vdb", "xfs", &sums.xfs)
    });
    sums
}

/// What `md5sum` said of the files that were written.
#[derive(Debug, Default)]
pub struct Sums {
    ext4: String,
    xfs: String,
}

/// Makes a file system and fills it with files of odd sizes; their sums.
fn make_filesystem(agent: &mut Agent, device: &str, kind: &str) -> Result<String> {
    let force = if kind == "xfs" { "-f" } else { "-F" };
    agent.run(&format!(
        "set -e
         /sbin/mkfs.{kind} -q {force} /dev/{device}
         mkdir -p /mnt/{device}
         mount -t {kind} /dev/{device} /mnt/{device}
         cd /mnt/{device}
         mkdir small
         for i in 1 2 3 4 5 6; do dd if=/dev/urandom of=large$i bs=$((1048576 + i * 777)) count=4 2>/dev/null; done
         for i in $(seq 1 60); do dd if=/dev/urandom of=small/$i bs=$((i * 97)) count=1 2>/dev/null; done
         rm small/7 large3
         sync
         find . -type f -name '[0-9l]*' | sort | xargs md5sum"
    ))
}

/// Unmounts, checks the file system, mounts it afresh and compares every file with its sum.
fn remounted(agent: &mut Agent, device: &str, kind: &str, sums: &str) -> Result<()> {
    ensure!(!sums.is_empty(), "no files were written before");
    // A read-only check of a journal that was not replayed finds faults that are none: mount once before.
    let checker = if kind == "xfs" { "/sbin/xfs_repair -n" } else { "/sbin/e2fsck -fn" };
    agent.run(&format!(
        "set -e
         cd /
         mkdir -p /mnt/{device}
         umount /mnt/{device} 2>/dev/null || true
         mount -t {kind} /dev/{device} /mnt/{device}
         umount /mnt/{device}
         {checker} /dev/{device} >/tmp/fsck 2>&1 || {{ cat /tmp/fsck; exit 1; }}
         echo 3 >/proc/sys/vm/drop_caches
         mount -t {kind} /dev/{device} /mnt/{device}
         cd /mnt/{device}
         cat >/tmp/sums <<'SUMS'\n{sums}\nSUMS
         md5sum -c /tmp/sums >/tmp/compared 2>&1 || {{ grep -v OK /tmp/compared; exit 1; }}"
    ))?;
    Ok(())
}

/// A fourth disk comes, goes, comes back in another slot with its data, and goes with writes under way; the others stay.
fn hotplug(session: &Session, machine: &mut Machine) -> Result<()> {
    raw::write_pattern(&mut machine.agent, "vdc")?;
    let extra = session.extra_drive();
    machine.plug(&extra, 1)?;
    machine.agent.run(&wait_for_device("vdd", true))?;
    raw::write_pattern(&mut machine.agent, "vdd")?;
    machine.unplug(&extra.id)?;
    machine.agent.run(&wait_for_device("vdd", false))?;
    machine.plug(&extra, 2)?;
    machine.agent.run(&wait_for_device("vdd", true))?;
    raw::pattern_is_there(&mut machine.agent, "vdd")?;
    // The guest's writer gets errors when the disk goes, and ends. It has a node of its own: under the name in /dev it would make
    // a file when the disk is gone, and write to that.
    machine.agent.run(
        "set -e
         mknod /tmp/writer b $(tr : ' ' </sys/block/vdd/dev)
         (while dd if=/dev/zero of=/tmp/writer bs=64k count=16 seek=64 oflag=direct 2>/dev/null; do :; done; rm /tmp/writer) &
         sleep 1
         [ -b /tmp/writer ]",
    )?;
    machine.unplug(&extra.id)?;
    machine.agent.run(&wait_for_device("vdd", false))?;
    machine.plug(&extra, 3)?;
    machine.agent.run(&wait_for_device("vdd", true))?;
    raw::pattern_is_there(&mut machine.agent, "vdd")?;
    machine.unplug(&extra.id)?;
    raw::pattern_is_there(&mut machine.agent, "vdc")
}

fn wait_for_device(device: &str, there: bool) -> String {
    let (test, word) = if there { ("-b", "did not appear") } else { ("! -b", "did not go") };
    format!(
        "for i in $(seq 1 1200); do [ {test} /dev/{device} ] && exit 0; usleep 50000; done; echo {device} {word}; exit 1"
    )
}

/// Resets the guest under load; what was synced before is there, and the disks work.
fn reset_while_writing(machine: &mut Machine, sums: &Sums) -> Result<()> {
    machine.agent.run(
        "set -e
         grep -q /mnt/vda /proc/mounts
         cd /mnt/vda
         echo synced before the reset >marker
         sync
         for device in vda vdb; do
             (i=0; while :; do i=$((i + 1)); dd if=/dev/urandom of=/mnt/$device/load$((i % 4)) bs=256k count=8 conv=fsync 2>/dev/null; done) &
         done
         (while :; do dd if=/dev/urandom of=/dev/vdc bs=512k count=16 seek=64 oflag=direct 2>/dev/null; done) &
         sleep 3",
    )?;
    machine.reset()?;
    remounted(&mut machine.agent, "vda", "ext4", &sums.ext4)?;
    remounted(&mut machine.agent, "vdb", "xfs", &sums.xfs)?;
    let marker = machine.agent.run_within("cat /mnt/vda/marker", Duration::from_secs(30))?;
    ensure!(marker == "synced before the reset", "the marker file holds '{marker}'");
    raw::pattern_is_there(&mut machine.agent, "vdc")?;
    raw::write_pattern(&mut machine.agent, "vdc")
}
