//! fio command lines, inside a guest and on the host.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::tools::{Fill, command, run};

/// A job that writes random ranges, then reads them all back and compares CRC-32C sums.
#[derive(Clone, Copy, Debug)]
pub struct Verify<'a> {
    /// Block device or file.
    pub target: &'a str,
    /// First byte of the tested range.
    pub offset: u64,
    /// Bytes of the tested range.
    pub size: u64,
    /// Smallest request; all offsets and lengths are multiples of it.
    pub block: u64,
    /// Largest request.
    pub largest: u64,
    /// Seed of the random numbers.
    pub seed: u64,
}

impl Verify<'_> {
    /// The command line, for a guest's shell.
    #[must_use]
    pub fn line(&self) -> String {
        let Verify { target, offset, size, block, largest, seed } = self;
        format!(
            "/sbin/fio --name=verify --thread --filename={target} --direct=1 --ioengine=io_uring --iodepth=16 \
             --rw=randwrite --offset={offset} --size={size} --bsrange={block}-{largest} --blockalign={block} \
             --verify=crc32c --do_verify=1 --verify_fatal=1 --randseed={seed} --allrandrepeat=0 --minimal --group_reporting"
        )
    }
}

/// Requests at random places.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Writes, or reads.
    pub write: bool,
    /// Bytes of a request.
    pub len: u64,
    /// Requests in flight, of each job.
    pub depth: u16,
    /// Threads.
    pub jobs: u16,
    /// What is written.
    pub fill: Fill,
}

/// What a timed fio run reached, all jobs together.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Requests per second.
    pub iops: f64,
    /// Half of the requests took at most so many microseconds from submission to completion.
    pub p50_us: f64,
    /// 99 of 100 did.
    pub p99_us: f64,
    /// 999 of 1000 did.
    pub p999_us: f64,
    /// CPU time for a request, in microseconds, fio's own included.
    pub cpu_us: f64,
}

/// Random requests on the first `size` bytes of a file, with io_uring past the page cache.
///
/// # Errors
/// What fio says.
pub fn measure(file: &Path, load: Load, size: u64, time: Duration) -> Result<Measured> {
    let mut fio = command("fio");
    if load.fill == Fill::Word {
        fio.arg(format!("--buffer_pattern={:#x}", Fill::WORD[0]));
    }
    let output = run(fio
        .args(["--name=m", "--thread", "--direct=1", "--ioengine=io_uring", "--time_based", "--norandommap"])
        .args(["--output-format=json", "--randrepeat=0", "--overwrite=1", "--group_reporting"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--rw={}", if load.write { "randwrite" } else { "randread" }))
        .arg(format!("--bs={}", load.len))
        .arg(format!("--iodepth={}", load.depth))
        .arg(format!("--numjobs={}", load.jobs))
        .arg(format!("--size={size}"))
        .arg(format!("--runtime={}ms", time.as_millis())))?;
    let report: Value = serde_json::from_str(output.trim_start_matches(|c| c != '{')).context("fio's JSON")?;
    let job = &report["jobs"][0];
    let side = &job[if load.write { "write" } else { "read" }];
    let number = |value: &Value| value.as_f64().context("fio's JSON lacks a number");
    let percentile = |name: &str| Ok::<_, anyhow::Error>(number(&side["clat_ns"]["percentile"][name])? / 1000.0);
    // Of the time of all jobs together, which is in milliseconds.
    let cpu_percent = number(&job["usr_cpu"])? + number(&job["sys_cpu"])?;
    Ok(Measured {
        iops: number(&side["iops"])?,
        cpu_us: cpu_percent / 100.0 * number(&job["job_runtime"])? * 1000.0 / number(&side["total_ios"])?,
        p50_us: percentile("50.000000")?,
        p99_us: percentile("99.000000")?,
        p999_us: percentile("99.900000")?,
    })
}

/// fio that discards, writes and verifies in a guest without end, so that there are always first writes that nobody has flushed.
pub mod endless {
    use std::time::Duration;

    use anyhow::{Result, bail};

    use super::Verify;
    use crate::agent::Agent;

    const MIB: u64 = 1 << 20;

    /// Starts it; it runs until told to stop, or something is wrong.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn begin(agent: &mut Agent, device: &str) -> Result<()> {
        let target = format!("/dev/{device}");
        let verify = Verify { target: &target, offset: 0, size: 12 * MIB, block: 4096, largest: 64 << 10, seed: 1 };
        let line = verify.line().replace("--randseed=1", "--randseed=$n");
        agent.run(&format!(
            "(n=1
              while [ ! -e /tmp/stop ]; do
                  /sbin/blkdiscard /dev/{device} || {{ echo blkdiscard >/tmp/failed.{device}; break; }}
                  {line} >/tmp/fio.{device} 2>&1 || {{ echo fio >/tmp/failed.{device}; break; }}
                  n=$((n + 1))
                  echo $n >/tmp/rounds.{device}
              done
              touch /tmp/ended.{device}) >/dev/null 2>&1 &
             sleep 1"
        ))?;
        Ok(())
    }

    /// Waits for the end of the round; how many there were.
    ///
    /// # Errors
    /// What fio or the guest's kernel has found wrong since the beginning.
    pub fn end(agent: &mut Agent, device: &str) -> Result<u64> {
        agent.run("touch /tmp/stop")?;
        let outcome = agent.run_within(
            &format!(
                "for i in $(seq 1 2400); do [ -e /tmp/ended.{device} ] && break; usleep 50000; done
                 [ -e /tmp/ended.{device} ] || {{ echo never ended; exit 1; }}
                 [ -e /tmp/failed.{device} ] && {{ cat /tmp/failed.{device} /tmp/fio.{device}; exit 1; }}
                 cat /tmp/rounds.{device}"
            ),
            Duration::from_secs(150),
        )?;
        match outcome.trim().parse::<u64>() {
            Ok(rounds) if rounds > 1 => Ok(rounds - 1),
            _ => bail!("fio on {device} says '{outcome}'"),
        }
    }
}
