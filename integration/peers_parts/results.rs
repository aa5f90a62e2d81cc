//! The goals of a run, and the files that it leaves.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::rows::Row;
use super::{Bench, plot};
use crate::lab::daemon::SPANBLK;
use crate::lab::tools::{results_dir, run};

/// Prints the goals, and whether they are met.
pub fn print_goals(rows: &[Row]) {
    println!("   workload                  disk  goal           reached");
    for row in rows {
        for reached in row.goals() {
            println!(
                "   {:<26}{:<6}{:<15}{:>7.2}  {}",
                row.workload.name,
                row.kind.name(),
                format!("{} {} {}", reached.what, if reached.at_least { ">=" } else { "<=" }, reached.bound),
                reached.value,
                if reached.met() { "ok" } else { "MISSED" },
            );
        }
    }
}

/// Writes all results, and draws them.
///
/// # Errors
/// As of the file system, or a peer does not tell its version.
pub fn save(bench: &Bench) -> Result<()> {
    let dir = results_dir()?;
    let results = json!({
        "machine": bench.machine,
        "versions": {
            "spanblk": version(SPANBLK)?,
            "qemu-storage-daemon": version("qemu-storage-daemon")?,
            "fio": version("fio")?,
        },
        "secs": bench.time.as_secs_f64(),
        "rounds": bench.rounds,
        "poll": bench.poll,
        "disks": bench.disks,
        "rows": bench.rows.iter().map(Row::json).collect::<Vec<Value>>(),
    });
    let subtitle = format!(
        "{}; {} x {} s each, medians{}",
        bench.machine,
        bench.rounds,
        bench.time.as_secs(),
        if bench.poll { "; the frontend polls" } else { "" }
    );
    let files =
        [("peers.json", serde_json::to_string_pretty(&results)?), ("peers.svg", plot::svg(&bench.rows, &subtitle))];
    for (name, text) in files {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        println!("   {}", path.display());
    }
    Ok(())
}

/// The first line of what a program says of its version.
///
/// # Errors
/// It cannot be run.
pub fn version(program: &str) -> Result<String> {
    let text = run(Command::new(program).arg("--version"))?;
    Ok(text.lines().next().unwrap_or("?").to_owned())
}
