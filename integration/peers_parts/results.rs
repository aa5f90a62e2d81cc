//! The goals of a run, and the files that it leaves.

use anyhow::Result;
use serde_json::{Value, json};

use super::rows::Row;
use super::{Bench, plot};
use lab::daemon::spanblk;
use lab::outputs::{self, version};

/// Prints the goals, and whether they are met.
pub fn print_goals(rows: &[Row]) {
    println!(
        "   multiples of qemu-storage-daemon's; beside them multiples of raw fio's: what is reached, and what the goal was of"
    );
    println!("   fio's on the machine that it comes from");
    println!("   workload                  disk  goal           reached           of fio's  the goal was");
    for row in rows {
        for reached in row.goals() {
            let of_fio = reached.of_fio.map_or(String::new(), |(here, there)| format!("{here:>10.2}{there:>14.2}"));
            println!(
                "   {:<26}{:<6}{:<15}{:>7.2}  {:<6}{of_fio}",
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
    let results = json!({
        "machine": bench.machine,
        "versions": {
            "spanblk": version(spanblk())?,
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
    outputs::save("peers.json", &serde_json::to_string_pretty(&results)?)?;
    outputs::save("peers.svg", &plot::svg(&bench.rows, &subtitle))
}
