//! Where the requests of a measurement go.

use serde::{Deserialize, Serialize};

use super::frontend::Order;
use lab::model::Random;

/// Where requests go.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub enum Places {
    /// Anywhere, again and again.
    Random,
    /// Places so many bytes apart, each of them once, from the first to the last or shuffled, and so many of them at most. The
    /// measurement ends early when there are no more. Every queue goes to all of them.
    Each { stride: u64, shuffled: bool, count_max: usize },
}

/// The places of one run on one queue, one after the other.
pub enum Course {
    Random { places: u64, len: u64 },
    Each(std::vec::IntoIter<u64>),
}

impl Course {
    #[must_use]
    pub fn new(order: &Order, random: &mut Random) -> Course {
        match order.places {
            Places::Random => Course::Random { places: order.size / order.len, len: order.len },
            Places::Each { stride, shuffled, count_max } => {
                let mut all: Vec<u64> = (0..order.size / stride).map(|index| index * stride).collect();
                if shuffled {
                    shuffle(&mut all, random);
                }
                all.truncate(count_max);
                Course::Each(all.into_iter())
            }
        }
    }

    /// Where the next request goes.
    pub fn next(&mut self, random: &mut Random) -> Option<u64> {
        match self {
            Course::Random { places, len } => Some(random.below(*places) * *len),
            Course::Each(rest) => rest.next(),
        }
    }
}

/// Puts `all` into an order that is as likely as any other one.
fn shuffle(all: &mut [u64], random: &mut Random) {
    for (last, count) in (1..all.len()).zip(2_u64..) {
        let other = usize::try_from(random.below(count)).expect("an index");
        all.swap(last, other);
    }
}
