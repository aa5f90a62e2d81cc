//! The two guests, which ask at the same time.

use std::time::Duration;

use anyhow::{Context, Result};

use super::{Bench, LEN};
use crate::peers_parts::frontend::{ARGUMENT, Order};
use crate::peers_parts::places::Places;
use lab::daemon::Pool;
use lab::helper::Helper;
use lab::tally::Outcome;
use lab::tools::Fill;

/// How long a busy guest has been at it when others begin to be measured.
const LEAD: Duration = Duration::from_millis(1500);

/// Reads at random places of a VHD, so many at once, for as long as a measurement takes.
#[must_use]
pub fn reader(bench: &Bench, pool: &Pool, vhd: &str, size: u64, depth: u16) -> Order {
    Order {
        socket: pool.socket(vhd),
        queues: 1,
        depth,
        write: false,
        len: LEN,
        size,
        warm_up: Duration::ZERO,
        time: bench.time,
        poll: false,
        fill: Fill::Random,
        seed: u64::from(depth),
        places: Places::Random,
        flush: false,
        inflight: false,
    }
}

/// Writes to a block each that was never written, with a FLUSH after it, one at a time.
#[must_use]
pub fn first_writer(bench: &Bench, pool: &Pool, vhd: &str, size: u64) -> Order {
    /// The unit of "has this been written": 1/32 of an extent of 1 MiB.
    const BLOCK: u64 = 32 << 10;
    let places = Places::Each { stride: BLOCK, shuffled: true, count_max: usize::MAX };
    Order { write: true, flush: true, places, ..reader(bench, pool, vhd, size, 1) }
}

/// Lets the first ask while the others do, who have begun before it and end after it; what each of them got, in this order.
///
/// # Errors
/// What the backend refuses.
pub fn beside(bench: &Bench, first: &Order, others: &[Order]) -> Result<Vec<Outcome>> {
    // The longest pause between the last one's end and the first one's.
    const TAIL: Duration = Duration::from_millis(300);
    let lead = if others.is_empty() { Duration::ZERO } else { LEAD };
    let longer = |other: &Order| Order { time: lead + bench.time + TAIL, ..other.clone() };
    let orders: Vec<Order> = [first.clone()].into_iter().chain(others.iter().map(longer)).collect();
    run(&orders, lead)
}

/// Lets all ask at the same time, for as long; what each of them got.
///
/// # Errors
/// What the backend refuses.
pub fn together(orders: &[Order]) -> Result<Vec<Outcome>> {
    run(orders, Duration::ZERO)
}

/// The first begins so much later than the others.
fn run(orders: &[Order], lead: Duration) -> Result<Vec<Outcome>> {
    let helpers: Result<Vec<Helper>> = orders.iter().map(|order| Helper::start(ARGUMENT, order)).collect();
    let mut helpers = helpers?;
    let outcomes = std::thread::scope(|scope| {
        let threads: Vec<_> = helpers
            .iter_mut()
            .enumerate()
            .map(|(index, helper)| {
                scope.spawn(move || {
                    if index == 0 {
                        std::thread::sleep(lead);
                    }
                    helper.go::<Outcome>()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("a thread that does not panic")).collect::<Result<_>>()
    });
    let outcomes: Vec<Outcome> = outcomes.context("a guest")?;
    helpers.into_iter().try_for_each(Helper::finish)?;
    Ok(outcomes)
}
