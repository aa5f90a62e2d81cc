//! What sharing out host disks costs an operation: the look whether its disk is, and on one that is, its turn, its beginning and its end.

use std::hint::black_box;

use spanblk::qos::Share;
use spanblk::qos::shares::{Account, Shares, Work};

use super::Bench;

const OPERATIONS: u64 = 4096;

/// The thread that submits, and one on which somebody may wait.
const OWN: usize = 0;
const OTHER: usize = 1;

fn measure_shares(bench: &Bench, name: &str, shares: &Shares) {
    let (account, work) = (Account::default(), Work::of(4096));
    bench.run([name], |stopwatch| {
        stopwatch.start();
        for _ in 0..OPERATIONS {
            if black_box(shares).is_on() {
                let turn = shares.take_turn(&account, Share::default(), work);
                assert!(black_box(shares.begin(OWN, turn, work)));
                shares.end(work);
                black_box(shares.call_first(OWN));
            }
        }
        [(stopwatch.lap(), OPERATIONS as usize)]
    });
}

pub fn measure(bench: &Bench) {
    let shares = Shares::new(64);
    measure_shares(bench, "shares: a disk that is not shared out", &shares);
    shares.switch(true);
    measure_shares(bench, "shares: one that is", &shares);
    // Later than all turns that are taken here.
    let last = Account::default();
    let turn = shares.take_turn(&last, Share::BACKGROUND, Work(1 << 50));
    let late = shares.take_turn(&last, Share::BACKGROUND, Work(0));
    assert!(late > turn);
    shares.publish(OTHER, None, Some(late));
    measure_shares(bench, "shares: one that is, while somebody waits elsewhere", &shares);
}
