//! The bucket against exact fractions.

use std::sync::atomic::AtomicBool;

use super::*;
use crate::base::rng::Rng;

const SECOND: u64 = NANOS;
const HOUR: u64 = 3600 * SECOND;

fn rate(per_sec: u64, burst: u64) -> Rate {
    Rate { per_sec, burst }
}

/// As a bucket is specified, in billionths of a token.
struct Model {
    rate: Rate,
    level: i128,
    at: Nanos,
}

impl Model {
    fn new(rate: Rate) -> Model {
        Model { rate, level: Model::scaled(rate.burst), at: Nanos(0) }
    }

    fn scaled(count: u64) -> i128 {
        i128::from(count) * i128::from(NANOS)
    }

    fn pass(&mut self, now: Nanos) {
        let given = i128::from(self.rate.per_sec) * i128::from(now.0 - self.at.0);
        self.level = (self.level + given).min(Model::scaled(self.rate.burst));
        self.at = now;
    }
}

#[test]
fn it_does_what_exact_fractions_do() {
    for seed in 0..40 {
        let mut rng = Rng::new(seed);
        let counts_requests = rng.below(2) == 0;
        let most = if counts_requests { 23 } else { 36 };
        let mut up_to_bits = |bits: u64| {
            let bits = 1 + rng.below(bits);
            1 + rng.below(1 << bits)
        };
        let rate = rate(up_to_bits(most), up_to_bits(20));
        let bucket = if counts_requests { Bucket::requests(rate) } else { Bucket::bytes(rate) };
        // What a token is worth: being that early or late is how fine the bucket is.
        let grain = i128::from(NANOS / bucket.unit);
        let least = if counts_requests { Model::scaled(1) } else { grain };
        let (mut model, mut now) = (Model::new(rate), Nanos(0));
        for _ in 0..2000 {
            now.0 += match rng.below(8) {
                0 => 0,
                1 => rng.below(10 * HOUR),
                _ => rng.below(2 * NANOS / rate.per_sec + 1000),
            };
            model.pass(now);
            match bucket.may_start(now) {
                Ok(()) => {
                    assert!(model.level > least - grain * 2, "{rate:?} at {now:?}: starts with {}", model.level);
                    let count = if counts_requests { 1 } else { rng.below(1 << 20) };
                    bucket.charge(count, now);
                    model.level -= Model::scaled(count);
                }
                Err(until) => {
                    assert!(model.level < least + grain * 2, "{rate:?} at {now:?}: waits with {}", model.level);
                    assert!(
                        until > now && bucket.may_start(until).is_ok() && bucket.may_start(Nanos(until.0 - 1)).is_err()
                    );
                    if rng.below(2) == 0 {
                        now = until;
                    }
                }
            }
            now.0 = now.0.max(model.at.0);
        }
    }
}

/// Starts whenever it may, asking at the time it is told plus `late`, until `end`. How much was started, and when the last one.
fn drain(bucket: &Bucket, each: u64, late: u64, end: u64) -> (u64, Nanos) {
    let (mut now, mut total, mut last) = (Nanos(0), 0, Nanos(0));
    while now.0 <= end {
        match bucket.may_start(now) {
            Ok(()) => {
                bucket.charge(each, now);
                (total, last) = (total + each, now);
            }
            Err(until) => now = Nanos(until.0 + late),
        }
    }
    (total, last)
}

#[test]
fn rates_are_exact_over_hours() {
    // As many as given: the first ones are the burst.
    for (per_sec, hours) in [(1, 100), (7, 20), (50, 3), (2000, 1)] {
        let (total, _) = drain(&Bucket::requests(rate(per_sec, 1)), 1, 0, hours * HOUR);
        assert_eq!(total, per_sec * hours * 3600 + 1, "{per_sec} a second");
    }
    for per_sec in [500_000, 10_000_000] {
        let (total, _) = drain(&Bucket::requests(rate(per_sec, 1)), 1, 0, SECOND / 5);
        assert_eq!(total, per_sec / 5 + 1, "{per_sec} a second");
    }
    let per_sec = 10_000_000_000;
    let each = 128 << 10;
    let (total, _) = drain(&Bucket::bytes(rate(per_sec, each)), each, 0, 3 * SECOND);
    let expected = 3 * per_sec + each;
    assert!(total.abs_diff(expected) <= each, "{total} of {expected} bytes");
    // Long after it began to run, too.
    let bucket = Bucket::bytes(rate(per_sec, each));
    let begun = Nanos(1000 * HOUR + 12_345);
    bucket.charge(3 * per_sec + each, begun);
    assert_eq!(bucket.may_start(begun), Err(Nanos(begun.0 + 3 * SECOND + 1)));
}

#[test]
fn what_is_larger_than_the_burst_is_paid_for_exactly() {
    let each = 32 << 20;
    let (total, last) = drain(&Bucket::bytes(rate(1 << 20, 1)), each, 0, HOUR);
    assert_eq!(total, each * (last.0 / SECOND / 32 + 1), "one request every 32 seconds");
    assert!(total.abs_diff(3600 << 20) <= each);
}

#[test]
fn coming_late_loses_no_rate() {
    let tenth = |per_sec: u64| rate(per_sec, per_sec / 10);
    for (per_sec, late) in [(50, SECOND / 20), (2000, SECOND / 20), (500_000, SECOND / 1000)] {
        let (total, _) = drain(&Bucket::requests(tenth(per_sec)), 1, late, 20 * SECOND);
        let expected = per_sec * 20;
        assert!(total >= expected && total <= expected + per_sec / 5, "{total} of {expected}");
    }
}

#[test]
fn no_window_has_more_than_the_rate_and_one_burst() {
    let mut rng = Rng::new(1);
    for _ in 0..50 {
        let rate = rate(1 + rng.below(5000), 1 + rng.below(50));
        let bucket = Bucket::requests(rate);
        let (mut now, mut starts) = (Nanos(rng.below(HOUR)), Vec::new());
        for _ in 0..600 {
            if bucket.may_start(now).is_ok() {
                bucket.charge(1, now);
                starts.push(now.0);
            }
            now.0 += rng.below(2 * NANOS / rate.per_sec) / if rng.below(2) == 0 { 10 } else { 1 };
        }
        for (i, first) in starts.iter().enumerate() {
            for (count, last) in (1_u128..).zip(&starts[i..]) {
                let most = wide(rate.burst, NANOS) + wide(rate.per_sec, last - first);
                // One token more for where the clock's own steps begin.
                assert!(
                    count * u128::from(NANOS) <= most + u128::from(NANOS / REQUEST) + 1,
                    "{count} in {} ns",
                    last - first
                );
            }
        }
    }
}

#[test]
fn a_clock_that_stands_or_jumps_is_harmless() {
    let bucket = Bucket::requests(rate(100, 10));
    let burst = |bucket: &Bucket, now| {
        (0..100).take_while(|_| bucket.may_start(now).map(|()| bucket.charge(1, now)).is_ok()).count()
    };
    assert_eq!(burst(&bucket, Nanos(0)), 10);
    assert_eq!(burst(&bucket, Nanos(0)), 0, "no time has passed");
    assert_eq!(burst(&bucket, Nanos(10_000 * HOUR)), 10, "never more than the burst");
    assert_eq!(burst(&bucket, Nanos(10_000 * HOUR + SECOND / 20)), 5);
    assert!(bucket.may_start(Nanos(u64::MAX)).is_ok());
}

#[test]
fn another_rate_gives_nothing_away_and_keeps_nobody_waiting() {
    let now = Nanos(HOUR);
    let full = Bucket::requests(rate(1000, 100));
    full.charge(50, now);
    let half = full.carried(rate(10, 20), now);
    let level = |bucket: &Bucket| {
        (0..1000).take_while(|_| bucket.may_start(now).map(|()| bucket.charge(1, now)).is_ok()).count()
    };
    assert_eq!(level(&half), 10, "half of the burst is left");
    let empty = half.carried(rate(1_000_000, 100_000), now);
    assert_eq!(level(&empty), 0);
    assert!(empty.may_start(now).unwrap_err().0 - now.0 <= 2000, "nothing of the old rate's time");
    let slower = empty.carried(rate(10, 1), now);
    assert!(slower.may_start(now).unwrap_err().0 - now.0 <= SECOND / 10 + 1);
    // A debt of ten seconds is one of ten seconds at most, and of less where more is given.
    let owing = Bucket::bytes(rate(1 << 20, 1 << 10));
    owing.charge((1 << 10) + (10 << 20), now);
    for (per_sec, secs) in [(1 << 10, 10), (1 << 20, 10), (10 << 20, 1)] {
        let after = owing.carried(rate(per_sec, 1 << 10), now);
        let waits = after.may_start(now).unwrap_err().0 - now.0;
        assert!(waits.abs_diff(secs * SECOND) <= SECOND / 100, "{per_sec}: {waits}");
    }
}

#[test]
fn threads_together_take_no_more_than_one() {
    const THREADS: u64 = 4;
    let bucket = Bucket::requests(rate(1_000_000, 1000));
    let clock = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let taken: u64 = std::thread::scope(|scope| {
        let work = || {
            let mut taken = 0;
            while !stop.load(Ordering::Relaxed) {
                let now = Nanos(clock.fetch_add(100, Ordering::Relaxed));
                if now.0 >= SECOND / 5 {
                    stop.store(true, Ordering::Relaxed);
                } else if bucket.may_start(now).is_ok() {
                    bucket.charge(1, now);
                    taken += 1;
                }
            }
            taken
        };
        let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    let most = 200_000 + 1000 + THREADS;
    assert!(taken <= most, "{taken} of {most}");
    assert!(taken > 100_000, "{taken}: time is spent in asking, not in waiting");
}
