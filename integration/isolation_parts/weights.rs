//! Two guests on one disk, each with more in flight than the disk serves at once: what each gets, against what was asked.

use anyhow::Result;
use serde_json::json;

use super::guests::{reader, together};
use super::{Bench, MIB, Shares, median};
use crate::peers_parts::frontend;
use lab::tools::Fill;

const PART: &str = "weights";

const NAMES: [&str; 2] = ["light", "heavy"];

/// Bytes of each of them.
const SIZE: u64 = 64 * MIB;

/// Requests in flight of each.
const DEPTH: u16 = 32;

/// Weights of the second one; the first has 100.
const WEIGHTS: [u32; 3] = [100, 200, 400];

/// Goals: the ratio as a multiple of the one that was asked, and what both get as a part of what they get without shares.
const EXACT: f64 = 0.05;
const TOTAL: f64 = 0.95;

/// # Errors
/// What spanblk says.
pub fn measure(bench: &mut Bench) -> Result<()> {
    println!("   both isolated on d0, random 4k reads, depth {DEPTH} each");
    let unshared = median(ratios(bench, Shares::Off, &[100])?.into_iter().map(|(_, total)| total).collect());
    println!("   {:<24}{:>10}{:>10}{:>10}", "weights", "ratio", "of asked", "IOPS");
    println!("   {:<24}{:>10}{:>10}{unshared:>10.0}", "no shares", "", "");
    let all = ratios(bench, Shares::On, &WEIGHTS)?;
    let mut goals = Vec::new();
    for (index, weight) in WEIGHTS.into_iter().enumerate() {
        let of = |figure: fn(&(f64, f64)) -> f64| {
            median(all.iter().skip(index).step_by(WEIGHTS.len()).map(figure).collect())
        };
        let (ratio, total) = (of(|found| found.0), of(|found| found.1));
        let exact = ratio / (f64::from(weight) / 100.0);
        let name = format!("100 : {weight}");
        println!("   {name:<24}{ratio:>10.2}{exact:>10.3}{total:>10.0}");
        bench.note(PART, json!({ "weights": name, "ratio": ratio, "iops": total }));
        goals.push((format!("{name}: within {EXACT} of what was asked"), exact, (exact - 1.0).abs() <= EXACT));
        let kept = total / unshared;
        goals.push((format!("{name}: both get at least {TOTAL} of what they get without"), kept, kept >= TOTAL));
    }
    goals.into_iter().for_each(|(goal, reached, met)| bench.goal(PART, &goal, reached, met));
    Ok(())
}

/// By round and weight: what the second one gets as a multiple of the first one's, and what both get.
fn ratios(bench: &mut Bench, shares: Shares, weights: &[u32]) -> Result<Vec<(f64, f64)>> {
    let pool = bench.pool(shares)?;
    for name in NAMES {
        pool.create_vhd(name, SIZE, &["--layout", "isolated", "--disks", "d0", "--thick", "--queues", "1"])?;
        frontend::fill(&pool.socket(name), SIZE, Fill::Random)?;
    }
    let mut found = Vec::new();
    for _ in 0..bench.rounds {
        for weight in weights {
            pool.cli(&["vhd", "set", NAMES[1], "--weight", &weight.to_string()])?;
            let guests = NAMES.map(|name| reader(bench, &pool, name, SIZE, DEPTH));
            let outcomes = together(&guests)?;
            found.push((outcomes[1].iops / outcomes[0].iops, outcomes[0].iops + outcomes[1].iops));
        }
    }
    bench.end(pool)?;
    Ok(found)
}
