//! A victim that asks for one thing at a time, and an aggressor on the same disk that always has 64 requests in flight.

use anyhow::Result;
use serde_json::json;

use super::guests::{beside, first_writer, reader};
use super::{Bench, MIB, job, median};
use crate::lab::daemon::Pool;
use crate::lab::tally::Outcome;
use crate::lab::tools::Fill;
use crate::peers_parts::frontend::{self, Order};

const VICTIM: &str = "victim";
const AGGRESSOR: &str = "aggressor";

/// Bytes of each of them.
const SIZE: u64 = 64 * MIB;

/// What the aggressor has in flight: several times what its disks serve at once.
const DEPTH: u16 = 64;

/// Goal: an isolated victim's latencies, as a multiple of those when it is alone.
const ISOLATED: f64 = 1.1;

/// How the two are placed, and what is done to get there from the one before.
struct Scene {
    name: &'static str,
    /// Whether the aggressor asks at all.
    busy: bool,
    /// A job, if it takes one.
    job: Option<&'static [&'static str]>,
    /// Whether the victim is alone on its disk.
    isolated: bool,
}

const SCENES: [Scene; 4] = [
    Scene { name: "alone", busy: false, job: None, isolated: false },
    Scene { name: "beside the aggressor", busy: true, job: None, isolated: false },
    Scene {
        name: "aggressor isolated (unspan)",
        busy: true,
        job: Some(&["vhd", "unspan", AGGRESSOR, "--disk", "d1"]),
        isolated: true,
    },
    Scene {
        name: "victim isolated (migrate)",
        busy: true,
        job: Some(&["vhd", "migrate", VICTIM, "--disk", "d2"]),
        isolated: true,
    },
];

/// What was found in a scene.
struct Row {
    name: &'static str,
    isolated: bool,
    victim: Vec<Outcome>,
    aggressor: Vec<Outcome>,
}

/// # Errors
/// What spanblk says.
pub fn reads(bench: &mut Bench) -> Result<()> {
    let order = |bench: &Bench, pool: &Pool| reader(bench, pool, VICTIM, SIZE, 1);
    measure(bench, "reads", true, order)
}

/// # Errors
/// What spanblk says.
pub fn first_writes(bench: &mut Bench) -> Result<()> {
    let order = |bench: &Bench, pool: &Pool| first_writer(bench, pool, VICTIM, SIZE);
    measure(bench, "first writes", false, order)
}

fn measure(bench: &mut Bench, part: &str, filled: bool, order: impl Fn(&Bench, &Pool) -> Order) -> Result<()> {
    let mut rows: Vec<Row> = SCENES
        .iter()
        .map(|scene| Row { name: scene.name, isolated: scene.isolated, victim: Vec::new(), aggressor: Vec::new() })
        .collect();
    println!("   victim: isolated on d0, depth 1; aggressor: spanned over d0 and d1, random 4k reads, depth {DEPTH}");
    for _ in 0..bench.rounds {
        let pool = bench.pool()?;
        pool.create_vhd(AGGRESSOR, SIZE, &["--layout", "spanned", "--disks", "d0,d1", "--thick", "--queues", "2"])?;
        frontend::fill(&pool.socket(AGGRESSOR), SIZE, Fill::Random)?;
        for (scene, row) in SCENES.iter().zip(&mut rows) {
            if row.victim.is_empty() || !filled || scene.name == "alone" {
                renew(&pool, filled)?;
            }
            if let Some(args) = scene.job {
                let (took, moved) = job(&pool, args)?;
                println!("   {}: {} MiB moved in {:.1} s", scene.name, moved / MIB, took.as_secs_f64());
            }
            let aggressor = Order { queues: 2, ..reader(bench, &pool, AGGRESSOR, SIZE, DEPTH / 2) };
            let aggressor = scene.busy.then_some(aggressor);
            let outcomes = beside(bench, &order(bench, &pool), aggressor.as_slice())?;
            row.victim.push(outcomes[0]);
            row.aggressor.extend(outcomes.get(1));
        }
        bench.end(pool)?;
    }
    print(bench, part, &rows);
    Ok(())
}

/// A new victim on d0.
fn renew(pool: &Pool, filled: bool) -> Result<()> {
    let listed = pool.json(&["vhd", "list"])?;
    if listed["vhds"].as_array().is_some_and(|vhds| vhds.iter().any(|vhd| vhd["name"] == VICTIM)) {
        pool.cli(&["vhd", "delete", VICTIM])?;
    }
    pool.create_vhd(VICTIM, SIZE, &["--layout", "isolated", "--disks", "d0", "--queues", "1"])?;
    if filled { frontend::fill(&pool.socket(VICTIM), SIZE, Fill::Random) } else { Ok(()) }
}

fn print(bench: &mut Bench, part: &str, rows: &[Row]) {
    println!(
        "   {:<32}{:>8}{:>9}{:>9}{:>9}{:>8}{:>12}",
        "victim's", "IOPS", "p50 us", "p99 us", "p99.9", "ratio", "aggressor's"
    );
    let of = |outcomes: &[Outcome], figure: fn(&Outcome) -> f64| median(outcomes.iter().map(figure).collect());
    let alone = (of(&rows[0].victim, |o| o.p50_us), of(&rows[0].victim, |o| o.p99_us));
    for row in rows {
        let figures: [fn(&Outcome) -> f64; 4] = [|o| o.iops, |o| o.p50_us, |o| o.p99_us, |o| o.p999_us];
        let [iops, p50, p99, p999] = figures.map(|figure| of(&row.victim, figure));
        let aggressor = if row.aggressor.is_empty() { 0.0 } else { of(&row.aggressor, |o| o.iops) };
        println!(
            "   {:<32}{iops:>8.0}{p50:>9.0}{p99:>9.0}{p999:>9.0}{:>8.2}{aggressor:>12.0}",
            row.name,
            p99 / alone.1
        );
        let figures =
            json!({ "iops": iops, "p50_us": p50, "p99_us": p99, "p99.9_us": p999, "aggressor_iops": aggressor });
        bench.note(part, json!({ "scene": row.name, "victim": figures }));
        if row.isolated {
            let goal = format!("{}: p50 at most {ISOLATED} x alone", row.name);
            bench.goal(part, &goal, p50 / alone.0, p50 <= alone.0 * ISOLATED);
            let goal = format!("{}: p99 at most {ISOLATED} x alone", row.name);
            bench.goal(part, &goal, p99 / alone.1, p99 <= alone.1 * ISOLATED);
        }
    }
}
