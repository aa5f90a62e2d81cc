//! Checks on a disk without a file system.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::session::{Session, Vhd};
use lab::agent::Agent;
use lab::fio::Verify;
use lab::tools::number_from_env;

const MIB: u64 = 1 << 20;

/// What the guest's kernel found out about the disk is what was configured.
pub fn identify(session: &Session, agent: &mut Agent, vhd: &Vhd) -> Result<()> {
    let answer = agent.run(&format!(
        "cd /sys/block/{}
         cat size queue/logical_block_size ro queue/write_cache queue/discard_max_bytes queue/write_zeroes_max_bytes
         ls mq | wc -l
         cat serial",
        vhd.device
    ))?;
    let found: Vec<&str> = answer.lines().map(str::trim).collect();
    ensure!(found.len() >= 7, "the guest shows only: {answer}");
    let sectors = (vhd.size / 512).to_string();
    let (block_size, queues) = (vhd.block_size.to_string(), vhd.queues.to_string());
    ensure!(found[0] == sectors, "size: {} sectors, not {sectors}", found[0]);
    ensure!(found[1] == block_size, "block size: {}, not {block_size}", found[1]);
    ensure!(found[2] == "0", "the disk is read-only");
    // QEMU's own daemon starts in the other mode.
    ensure!(found[3] == "write back" || !vhd.ours, "cache mode: {}", found[3]);
    for (limit, name) in [(found[4], "discard"), (found[5], "write zeroes")] {
        ensure!(limit.parse::<u64>()? >= MIB, "{name} limit: {limit}, less than an extent");
    }
    ensure!(found[6] == queues, "queues: {}, not {queues}", found[6]);
    if let Some(serial) = session.serial(vhd)? {
        let seen = found.get(7).copied().unwrap_or_default();
        ensure!(seen == serial, "serial: '{seen}', not '{serial}'");
    }
    Ok(())
}

/// The guest sees the new size of a disk that grows, and can use all of it.
pub fn resize(session: &Session, agent: &mut Agent, vhd: &Vhd) -> Result<()> {
    let Vhd { device, size, .. } = *vhd;
    let grown = size + 64 * MIB;
    let before = agent.run(&format!("cat /sys/block/{device}/size"))?;
    ensure!(before.trim() == (size / 512).to_string(), "{before} sectors before, not {}", size / 512);
    if !session.resize(vhd, grown)? {
        return Ok(());
    }
    // The message is sent before the command is answered; the driver's work queue may still be at it.
    agent.run(&format!(
        "set -e
         for i in $(seq 1 100); do [ $(cat /sys/block/{device}/size) = {sectors} ] && break; usleep 10000; done
         [ $(cat /sys/block/{device}/size) = {sectors} ] || {{ echo still $(cat /sys/block/{device}/size); exit 1; }}
         dd if=/dev/urandom of=/tmp/grown bs=1M count=12 2>/dev/null
         dd if=/tmp/grown of=/dev/{device} bs=1M seek={old} oflag=direct conv=fsync 2>/dev/null
         dd if=/tmp/grown of=/dev/{device} bs=1M seek={last} oflag=direct conv=fsync 2>/dev/null
         echo 3 >/proc/sys/vm/drop_caches
         sum=$(md5sum </tmp/grown)
         for at in {old} {last}; do
             read=$(dd if=/dev/{device} bs=1M skip=$at count=12 2>/dev/null | md5sum)
             [ \"$read\" = \"$sum\" ] || {{ echo at $at: $read, not $sum; exit 1; }}
         done
         rm /tmp/grown",
        sectors = grown / 512,
        old = size / MIB,
        last = grown / MIB - 12,
    ))?;
    Ok(())
}

/// Random requests from one block to 1 MiB at any block, on all disks at the same time, verified by CRC-32C.
pub fn verify_all(agent: &mut Agent, vhds: &[Vhd]) -> Result<()> {
    let verify_mib = number_from_env("LAB_VERIFY_MIB", 128);
    let mut script = String::new();
    for vhd in vhds {
        let block = u64::from(vhd.block_size);
        let job = Verify {
            target: &format!("/dev/{}", vhd.device),
            // Not aligned to anything but the disk's own blocks.
            offset: 7 * block,
            size: verify_mib * MIB - 12 * 4096,
            block,
            largest: MIB,
            seed: 4242 + vhd.size,
        };
        script += &format!("({} >/tmp/fio.{1} 2>&1; echo $? >/tmp/code.{1}) &\n", job.line(), vhd.device);
    }
    script += "wait\n";
    for vhd in vhds {
        script +=
            &format!("[ \"$(cat /tmp/code.{0})\" = 0 ] || {{ echo {0}; cat /tmp/fio.{0}; exit 1; }}\n", vhd.device);
    }
    agent.run_within(&script, Duration::from_secs(60 + 3 * verify_mib)).map(drop)
}

/// A discarded range reads as zeros; what is beside it stays.
pub fn discard(agent: &mut Agent, vhd: &Vhd) -> Result<()> {
    hole(agent, vhd, &format!("/sbin/blkdiscard -o {} -l {} /dev/{}", 2 * MIB, 3 * MIB, vhd.device), 2 * MIB, 3 * MIB)
}

/// A zeroed range that begins and ends at odd blocks reads as zeros, to the byte.
pub fn write_zeroes(agent: &mut Agent, vhd: &Vhd) -> Result<()> {
    let block = u64::from(vhd.block_size);
    let (offset, len) = (MIB + 3 * block, 4 * MIB + 5 * block);
    hole(agent, vhd, &format!("/sbin/blkdiscard -z -o {offset} -l {len} /dev/{}", vhd.device), offset, len)
}

/// Fills 8 MiB, lets `command` make a hole, and compares everything with what must be there.
fn hole(agent: &mut Agent, vhd: &Vhd, command: &str, offset: u64, len: u64) -> Result<()> {
    let (device, block) = (vhd.device, vhd.block_size);
    let (skip, count) = (offset / u64::from(block), len / u64::from(block));
    agent.run(&format!(
        "set -e
         dd if=/dev/urandom of=/tmp/expected bs=1M count=8 2>/dev/null
         dd if=/tmp/expected of=/dev/{device} bs=1M oflag=direct 2>/dev/null
         dd if=/dev/zero of=/tmp/expected bs={block} seek={skip} count={count} conv=notrunc 2>/dev/null
         {command}
         dd if=/dev/{device} of=/tmp/found bs=1M count=8 iflag=direct 2>/dev/null
         cmp /tmp/expected /tmp/found
         rm /tmp/expected /tmp/found"
    ))?;
    Ok(())
}

/// The guest may make the disk write through and write back again; it works in both modes.
pub fn cache_mode(agent: &mut Agent, vhd: &Vhd) -> Result<()> {
    let device = vhd.device;
    agent.run(&format!(
        "set -e
         for mode in 'write through' 'write back'; do
             echo \"$mode\" >/sys/block/{device}/cache_type
             [ \"$(cat /sys/block/{device}/cache_type)\" = \"$mode\" ]
             dd if=/dev/urandom of=/tmp/data bs=64k count=8 2>/dev/null
             dd if=/tmp/data of=/dev/{device} bs=64k oflag=direct 2>/dev/null
             dd if=/dev/{device} of=/tmp/found bs=64k count=8 iflag=direct 2>/dev/null
             cmp /tmp/data /tmp/found
         done
         rm /tmp/data /tmp/found"
    ))?;
    Ok(())
}

/// Lines that every later check can compute again, 4 MiB of them, flushed to the disk.
pub fn write_pattern(agent: &mut Agent, device: &str) -> Result<()> {
    agent
        .run(&format!("{PATTERN} | dd of=/dev/{device} bs=1M iflag=fullblock oflag=direct conv=fsync 2>/dev/null"))
        .map(drop)
}

/// What [`write_pattern`] wrote is there.
pub fn pattern_is_there(agent: &mut Agent, device: &str) -> Result<()> {
    agent
        .run(&format!(
            "{PATTERN} >/tmp/expected
             dd if=/dev/{device} of=/tmp/found bs=1M count=4 iflag=direct 2>/dev/null
             cmp /tmp/expected /tmp/found || exit 1
             rm /tmp/expected /tmp/found"
        ))
        .map(drop)
}

/// Prints exactly 4 MiB.
const PATTERN: &str = "seq 1 700000 | head -c 4194304";
