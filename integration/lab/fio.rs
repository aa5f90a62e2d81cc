//! fio command lines, inside a guest and on the host.

use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

use super::tools::{command, run};

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

/// What one timed fio job reached.
#[derive(Clone, Copy, Debug)]
pub struct Measured {
    /// Requests per second.
    pub iops: f64,
    /// Mean latency from submission to completion, in microseconds.
    pub latency_us: f64,
}

/// Random 4 KiB requests on the host, with io_uring past the page cache.
///
/// # Errors
/// What fio says.
pub fn measure(file: &Path, write: bool, depth: u32, offset: u64, size: u64, secs: u64) -> Result<Measured> {
    let output = run(command("fio")
        .args(["--name=m", "--thread", "--direct=1", "--ioengine=io_uring", "--bs=4k", "--time_based", "--norandommap"])
        .args(["--output-format=json", "--randrepeat=0", "--overwrite=1"])
        .arg(format!("--filename={}", file.display()))
        .arg(format!("--rw={}", if write { "randwrite" } else { "randread" }))
        .arg(format!("--iodepth={depth}"))
        .arg(format!("--offset={offset}"))
        .arg(format!("--size={size}"))
        .arg(format!("--runtime={secs}")))?;
    let report: Value = serde_json::from_str(output.trim_start_matches(|c| c != '{')).context("fio's JSON")?;
    let side = &report["jobs"][0][if write { "write" } else { "read" }];
    let number = |v: &Value| v.as_f64().context("fio's JSON lacks a number");
    Ok(Measured { iops: number(&side["iops"])?, latency_us: number(&side["clat_ns"]["mean"])? / 1000.0 })
}
