//! Goals, and the files that a run leaves.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::json;

use super::Bench;
use crate::lab::tools::target_dir;

/// Prints the goals and writes all results.
///
/// # Errors
/// As of the file system.
pub fn publish(bench: &Bench) -> Result<()> {
    for row in &bench.rows {
        for (goal, reached, met) in row.goals() {
            let verdict = if met { "ok" } else { "MISSED" };
            println!("   {:<26}{:<5}{goal:<16}{reached:>6.2}  {verdict}", row.workload.name, row.kind.name());
        }
    }
    let dir = out_dir();
    fs::create_dir_all(&dir)?;
    let path = dir.join("peers.json");
    let rows: Vec<_> = bench.rows.iter().map(super::rows::Row::json).collect();
    let all = json!({
        "machine": bench.machine(),
        "secs": bench.time.as_secs_f64(),
        "rounds": bench.rounds,
        "poll": bench.poll,
        "disks": bench.disks,
        "rows": rows,
    });
    fs::write(&path, serde_json::to_string_pretty(&all)?).with_context(|| format!("writing {}", path.display()))?;
    println!("   {}", path.display());
    Ok(())
}

fn out_dir() -> PathBuf {
    std::env::var_os("LAB_BENCH_OUT").map_or_else(|| target_dir().with_file_name("bench"), PathBuf::from)
}
