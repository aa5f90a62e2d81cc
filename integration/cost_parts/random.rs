//! Random requests to VHDs without holes, and rows of a table of what they cost beside each other.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Bench, Figures, LEN, PartName};
use crate::peers_parts::frontend::{self, Order};
use crate::peers_parts::places::Places;
use lab::cost::Threads;
use lab::daemon::Pool;
use lab::tools::Fill;

/// What is asked of a VHD.
#[derive(Clone, Copy)]
pub struct Load {
    pub name: &'static str,
    pub depth: u16,
    pub write: bool,
}

/// Measures a load on a VHD of `size` bytes once. `inflight`: what is in flight is tracked.
///
/// # Errors
/// What spanblk says.
pub fn sample(
    bench: &Bench,
    pool: &Pool,
    (vhd, size): (&str, u64),
    load: Load,
    inflight: bool,
    round: usize,
) -> Result<Figures> {
    let order = order(bench, pool, (vhd, size), load, inflight, round);
    let process = pool.id()?;
    let (outcome, before, after) = frontend::run(&order, || Threads::of(process))?;
    Ok(Figures::of(&outcome, after.since(&before)))
}

/// What a frontend is to do for that.
#[must_use]
pub fn order(bench: &Bench, pool: &Pool, (vhd, size): (&str, u64), load: Load, inflight: bool, round: usize) -> Order {
    Order {
        socket: pool.socket(vhd),
        queues: 1,
        depth: load.depth,
        write: load.write,
        len: LEN,
        size,
        warm_up: bench.time / 5,
        time: bench.time,
        poll: false,
        seed: 1000 + round as u64,
        places: Places::Random,
        fill: Fill::Word,
        flush: false,
        inflight,
    }
}

/// Prints what is above the rows; `what` is measured.
pub fn heading(what: &str) {
    println!(
        "   {:<24}{what:<16}{:>9}{:>8}{:>8}{:>8} |  IOPS   CPU   p50   p99",
        "load", "IOPS", "us/IO", "p50", "p99"
    );
}

/// Prints and keeps the medians of one of those that are measured, and its ratios to `base`, which it returns.
pub fn row(bench: &mut Bench, part: PartName, load: Load, name: &str, own: &[Figures], base: &[Figures]) -> Figures {
    let (ratios, medians) = (Figures::ratios(own, base), Figures::medians(own));
    let Figures { iops, cpu_us, p50_us, p99_us } = medians;
    println!(
        "   {:<24}{name:<16}{iops:>9.0}{cpu_us:>8.2}{p50_us:>8.0}{p99_us:>8.0} |{:>6.2}{:>6.2}{:>6.2}{:>6.2}",
        load.name, ratios.iops, ratios.cpu_us, ratios.p50_us, ratios.p99_us
    );
    let rounds: Vec<Value> = own.iter().map(Figures::json).collect();
    bench.note(
        part.name,
        json!({
            "load": load.name,
            part.what: name,
            "median": medians.json(),
            "ratio": ratios.json(),
            "rounds": rounds,
        }),
    );
    ratios
}
