//! A victim that asks for one thing at a time, and an aggressor on the same disk that always has 64 requests in flight.

use anyhow::Result;
use serde_json::json;

use super::guests::{beside, first_writer, reader};
use super::{Bench, MIB, Shares, job, median, serve};
use crate::peers_parts::frontend::{self, Order};
use lab::daemon::Pool;
use lab::tally::Outcome;
use lab::tools::Fill;

const VICTIM: &str = "victim";
const AGGRESSOR: &str = "aggressor";

/// Bytes of each of them.
const SIZE: u64 = 64 * MIB;

/// What the aggressor has in flight: several times what its disks serve at once.
const DEPTH: u16 = 64;

/// Goal: an isolated victim's latencies, as a multiple of those when it is alone.
const ISOLATED: f64 = 1.1;

/// What is asked for the victim: what a disk takes for a request, and as much again.
const TARGET: (&str, f64) = ("5ms", 5000.0);

/// Goal: what both get with shares, as a part of what they get without; and what the shared disk gets done. These are two things: half of
/// what the aggressor asks for is on a second disk, and as it has always as much in flight it gets no more there than on the first one.
/// What the victim gets more is lost twice then, and the sum falls though no disk could do more for those who ask.
const TOTAL: f64 = 0.95;

/// What a scene has to show.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Alone,
    /// Both on one disk, which nobody shares out.
    Unshared,
    /// Both on one disk, which is shared out.
    Shared,
    /// The same, with a latency target for the victim.
    Target,
    /// The victim is alone on its disk.
    Isolated,
}

/// How the two are placed, and what is done to get there from the one before.
struct Scene {
    name: &'static str,
    kind: Kind,
    /// A setting of the victim, if it takes one.
    set: Option<&'static [&'static str]>,
    /// A job, if it takes one.
    job: Option<&'static [&'static str]>,
}

const SCENES: [Scene; 7] = [
    Scene { name: "alone", kind: Kind::Alone, set: None, job: None },
    Scene { name: "beside the aggressor, no shares", kind: Kind::Unshared, set: None, job: None },
    Scene { name: "equal shares", kind: Kind::Shared, set: None, job: None },
    Scene { name: "weight 1000 : 100", kind: Kind::Shared, set: Some(&["--weight", "1000"]), job: None },
    Scene { name: "latency target 5 ms", kind: Kind::Target, set: Some(&["--latency-target", TARGET.0]), job: None },
    Scene {
        name: "aggressor isolated (unspan)",
        kind: Kind::Isolated,
        set: Some(&["--weight", "none", "--latency-target", "none"]),
        job: Some(&["vhd", "unspan", AGGRESSOR, "--disk", "d1"]),
    },
    Scene {
        name: "victim isolated (migrate)",
        kind: Kind::Isolated,
        set: None,
        job: Some(&["vhd", "migrate", VICTIM, "--disk", "d2"]),
    },
];

/// What was found in a scene.
struct Row {
    name: &'static str,
    kind: Kind,
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
        .map(|scene| Row { name: scene.name, kind: scene.kind, victim: Vec::new(), aggressor: Vec::new() })
        .collect();
    println!("   victim: isolated on d0, depth 1; aggressor: spanned over d0 and d1, random 4k reads, depth {DEPTH}");
    for _ in 0..bench.rounds {
        let mut pool = bench.pool(Shares::Off)?;
        pool.create_vhd(AGGRESSOR, SIZE, &["--layout", "spanned", "--disks", "d0,d1", "--thick", "--queues", "2"])?;
        frontend::fill(&pool.socket(AGGRESSOR), SIZE, Fill::Random)?;
        renew(&pool, filled)?;
        for (scene, row) in SCENES.iter().zip(&mut rows) {
            if scene.name == "equal shares" {
                pool.stop()?;
                serve(&mut pool, Shares::On)?;
            }
            if !filled && scene.kind != Kind::Alone {
                renew(&pool, filled)?;
            }
            if let Some(setting) = scene.set {
                pool.cli(&[&["vhd", "set", VICTIM], setting].concat())?;
            }
            if let Some(args) = scene.job {
                let (took, moved) = job(&pool, args)?;
                println!("   {}: {} MiB moved in {:.1} s", scene.name, moved / MIB, took.as_secs_f64());
            }
            let aggressor = Order { queues: 2, ..reader(bench, &pool, AGGRESSOR, SIZE, DEPTH / 2) };
            let aggressor = (scene.kind != Kind::Alone).then_some(aggressor);
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
        // The daemon may not have noticed yet that its last guest has gone.
        pool.cli(&["vhd", "delete", VICTIM, "--force"])?;
    }
    pool.create_vhd(VICTIM, SIZE, &["--layout", "isolated", "--disks", "d0", "--queues", "1"])?;
    if filled { frontend::fill(&pool.socket(VICTIM), SIZE, Fill::Random) } else { Ok(()) }
}

fn print(bench: &mut Bench, part: &str, rows: &[Row]) {
    println!(
        "   {:<34}{:>8}{:>9}{:>9}{:>9}{:>8}{:>12}",
        "victim's", "IOPS", "p50 us", "p99 us", "p99.9", "ratio", "aggressor's"
    );
    let of = |outcomes: &[Outcome], figure: fn(&Outcome) -> f64| median(outcomes.iter().map(figure).collect());
    let alone = (of(&rows[0].victim, |o| o.p50_us), of(&rows[0].victim, |o| o.p99_us));
    let total = |row: &Row| of(&row.victim, |o| o.iops) + of(&row.aggressor, |o| o.iops);
    let on_shared = |row: &Row| of(&row.victim, |o| o.iops) + of(&row.aggressor, |o| o.iops) / 2.0;
    let without =
        |figure: &dyn Fn(&Row) -> f64| rows.iter().find(|row| row.kind == Kind::Unshared).map_or(f64::NAN, figure);
    let (unshared, on_unshared) = (without(&total), without(&on_shared));
    let mut goals = Vec::new();
    for row in rows {
        let figures: [fn(&Outcome) -> f64; 4] = [|o| o.iops, |o| o.p50_us, |o| o.p99_us, |o| o.p999_us];
        let [iops, p50, p99, p999] = figures.map(|figure| of(&row.victim, figure));
        let aggressor = if row.aggressor.is_empty() { 0.0 } else { of(&row.aggressor, |o| o.iops) };
        let name = row.name;
        println!("   {name:<34}{iops:>8.0}{p50:>9.0}{p99:>9.0}{p999:>9.0}{:>8.2}{aggressor:>12.0}", p99 / alone.1);
        let figures =
            json!({ "iops": iops, "p50_us": p50, "p99_us": p99, "p99.9_us": p999, "aggressor_iops": aggressor });
        bench.note(part, json!({ "scene": name, "victim": figures }));
        match row.kind {
            Kind::Alone | Kind::Unshared => {}
            Kind::Shared => {
                let kept = total(row) / unshared;
                goals.push((
                    format!("{name}: both get at least {TOTAL} of what they get without"),
                    kept,
                    kept >= TOTAL,
                ));
                let kept = on_shared(row) / on_unshared;
                goals.push((format!("{name}: the shared disk does at least {TOTAL} of it"), kept, kept >= TOTAL));
            }
            Kind::Target => {
                let met = p99 <= TARGET.1;
                goals.push((format!("{name}: p99 as a multiple of the target, at most 1"), p99 / TARGET.1, met));
            }
            Kind::Isolated => {
                let (half, most) = (p50 / alone.0, p99 / alone.1);
                goals.push((format!("{name}: p50 at most {ISOLATED} x alone"), half, half <= ISOLATED));
                goals.push((format!("{name}: p99 at most {ISOLATED} x alone"), most, most <= ISOLATED));
            }
        }
    }
    goals.into_iter().for_each(|(goal, reached, met)| bench.goal(part, &goal, reached, met));
}
