use std::collections::BTreeMap;

use super::*;
use crate::base::rng::Rng;

const SECOND: u64 = 1_000_000_000;
const T0: u64 = 1_800_000_000;

/// A guest whose counters grow evenly.
fn reading(secs: u64, per_sec: u64) -> Reading {
    let requests = secs * per_sec;
    let mut latency = [0; crate::metrics::LATENCY_BUCKETS];
    latency[8] = requests;
    Reading {
        at: Nanos(secs * SECOND),
        reads: requests / 4 * 3,
        writes: requests / 4,
        read_bytes: requests / 4 * 3 * 4096,
        write_bytes: requests / 4 * 4096,
        latency_ns: requests * 200_000,
        latency,
        disk: latency,
        sequential: requests / 2,
        queues: 1,
        working_set: 7,
        used_bytes: 3 << 20,
        ..Reading::default()
    }
}

/// As it is recorded for so many seconds from `from` on, counted from [`T0`].
fn recorded(history: &mut History, from: u64, secs: u64, per_sec: u64) {
    // The last hour as it really is; before that, only what shows in coarser samples.
    let hour = secs.saturating_sub(3600) / 300 * 300;
    for at in (0..hour).step_by(300).chain((hour..=secs).step_by(10)) {
        history.record(&reading(from + at, per_sec), T0 + from + at);
    }
}

fn near(value: f64, wanted: f64) {
    assert!((value - wanted).abs() <= wanted.abs() / 200.0 + 1e-6, "{value} is not {wanted}");
}

#[test]
fn what_an_even_load_comes_to_is_the_same_in_each_resolution() {
    let mut history = History::default();
    recorded(&mut history, 0, 9 * 86_400, 1000);
    let now = T0 + 9 * 86_400;
    for (since, resolution) in [(600, 10), (86_400, 300), (9 * 86_400, 3600)] {
        let summary = history.window(now - since, now);
        assert_eq!(summary.resolution_secs, resolution);
        near(summary.covered_secs, since as f64);
        near(summary.reads_per_sec, 750.0);
        near(summary.writes_per_sec, 250.0);
        near(summary.read_bytes_per_sec, 750.0 * 4096.0);
        near(summary.requests_per_sec_peak, 1000.0);
        near(summary.bytes_per_sec_peak, 4_096_000.0);
        near(summary.read_share, 0.75);
        near(summary.queue_depth, 0.2);
        near(summary.sequential_share, 0.5);
        near(summary.latency_us_p50, 192.0);
        assert!(summary.latency_us_p99 > 250.0 && summary.latency_us_p99 <= 256.0);
        assert_eq!((summary.admission_us_p99, summary.working_set_extents), (0.0, 7.0));
        near(summary.used_bytes, 3_145_728.0);
    }
}

#[test]
fn all_that_a_busy_year_takes_is_bounded() {
    let seed = 3;
    let mut rng = Rng::new(seed);
    let mut history = History::default();
    let mut sum = reading(0, 0);
    for at in (0..400 * 86_400).step_by(300) {
        let load = rng.below(20_000);
        sum.at = Nanos(at * SECOND);
        sum.reads += load;
        sum.writes += load / (1 + rng.below(4));
        sum.read_bytes += load * 4096 * (1 + rng.below(8));
        sum.write_bytes += load * 8192;
        sum.latency_ns += load * rng.below(1_000_000);
        sum.latency[rng.index(20)] += load;
        sum.disk[rng.index(20)] += load;
        sum.sequential += rng.below(load + 1);
        (sum.working_set, sum.used_bytes) = (rng.below(1000), rng.below(1 << 40));
        history.record(&sum, T0 + at);
    }
    assert!(history.bytes() > 100 << 10 && history.bytes() < 512 << 10, "seed {seed}: {} bytes", history.bytes());
    let mut idle = History::default();
    recorded(&mut idle, 0, 30 * 86_400, 0);
    assert!(idle.bytes() < 16 << 10, "{} bytes", idle.bytes());
}

#[test]
fn a_daemon_that_was_off_leaves_a_gap_and_no_rate() {
    let mut history = History::default();
    recorded(&mut history, 0, 600, 100);
    // It starts again: counters and the monotonic clock begin anew, an hour later.
    history.last = None;
    for at in (0..=600).step_by(10) {
        history.record(&reading(at, 100), T0 + 4200 + at);
    }
    let summary = history.window(T0, T0 + 4800);
    near(summary.covered_secs, 1200.0);
    near(summary.reads_per_sec + summary.writes_per_sec, 100.0);
    near(summary.requests_per_sec_peak, 100.0);
    // Without a new beginning, too: less than before is nothing, and never very much.
    history.record(&Reading { at: Nanos(601 * SECOND), ..Reading::default() }, T0 + 4810);
    assert!(history.window(T0, T0 + 4820).requests_per_sec_peak < 101.0);
}

#[test]
fn a_clock_that_jumps_makes_no_absurd_rate() {
    let mut history = History::default();
    recorded(&mut history, 0, 3600, 100);
    let steps = |from: u64, to: u64| (from..=to).step_by(10);
    // A year forward and back within a minute.
    steps(3610, 3660).for_each(|at| history.record(&reading(at, 100), T0 + 365 * 86_400 + at));
    let before = history.window(T0, T0 + 3600);
    near(before.covered_secs, 3600.0);
    steps(3670, 7200).for_each(|at| history.record(&reading(at, 100), T0 + at));
    assert_eq!(history.samples(Tier::Seconds, T0 + 3700, T0 + 7200).count(), 0, "it is not believed yet");
    steps(7210, 9000).for_each(|at| history.record(&reading(at, 100), T0 + at));
    let after = history.window(T0 + 8000, T0 + 9000);
    near(after.covered_secs, 1000.0);
    near(after.requests_per_sec_peak, 100.0);
    assert_eq!(history.samples(Tier::Hours, T0 + 86_400, u64::MAX / 2).count(), 0, "what lay in the future is gone");
    // A little back, and forward again: nothing is counted twice.
    steps(9010, 9100).for_each(|at| history.record(&reading(at, 100), T0 + at - 30));
    steps(9110, 9200).for_each(|at| history.record(&reading(at, 100), T0 + at));
    assert!(history.window(T0 + 9000, T0 + 9200).requests_per_sec_peak < 101.0);
}

#[test]
fn what_was_stored_is_gone_on_with() {
    let mut history = History::default();
    let mut stored: BTreeMap<(Tier, u32), Vec<u8>> = BTreeMap::new();
    let store = |history: &mut History, stored: &mut BTreeMap<(Tier, u32), Vec<u8>>| {
        let rows = history.take_unsaved(1 << 20);
        let count = rows.len();
        for row in rows {
            stored.insert((row.tier, row.block), row.bytes);
            stored.retain(|(tier, block), _| *tier != row.tier || (row.kept.0..=row.kept.1).contains(block));
        }
        count
    };
    for day in 0..3 {
        let from = day * 86_400;
        for at in (0..86_400).step_by(10) {
            history.record(&reading(from + at, 1000), T0 + from + at);
            if at % 300 == 0 {
                assert!(store(&mut history, &mut stored) <= 6);
            }
        }
        store(&mut history, &mut stored);
        assert_eq!(store(&mut history, &mut stored), 0, "nothing has changed since");
        let mut again = History::default();
        for ((tier, block), bytes) in &stored {
            again.restore(*tier, *block, bytes).unwrap();
        }
        let now = T0 + (day + 1) * 86_400;
        for since in [3000, 40_000, 900_000] {
            assert_eq!(again.window(now - since, now), history.window(now - since, now));
        }
        // In the middle of an hour: what the process before knew of it goes in.
        history = again;
    }
    let summary = history.window(T0, T0 + 3 * 86_400);
    near(summary.covered_secs, 3.0 * 86_400.0 - 2.0 * 10.0);
    near(summary.reads_per_sec, 750.0);
    assert!(stored.len() <= 7 + 15 + 54, "{} rows", stored.len());
}

#[test]
fn what_is_stored_fits_the_room_there_is() {
    let mut history = History::default();
    recorded(&mut history, 0, 60 * 86_400, 1000);
    let mut stored: BTreeMap<(Tier, u32), usize> = BTreeMap::new();
    let mut counts = Vec::new();
    for room in [1 << 20, 4000, 1000, 500] {
        for row in history.clone().take_unsaved(room) {
            stored.insert((row.tier, row.block), row.bytes.len());
            stored.retain(|(tier, block), _| *tier != row.tier || (row.kept.0..=row.kept.1).contains(block));
        }
        let bytes: usize = stored.values().sum();
        assert!(bytes <= room, "{bytes} bytes of {room}");
        counts.push(stored.len());
    }
    assert!(counts.is_sorted_by(|a, b| a >= b) && counts[3] < counts[0] && counts[3] > 0, "{counts:?}");
    assert!(history.take_unsaved(8).is_empty());
}

/// A slow model: every sample in a map by its slot.
#[test]
fn a_series_is_what_a_slow_model_is() {
    for seed in 0..30 {
        let mut rng = Rng::new(seed);
        let tier = Tier::ALL[rng.index(3)];
        let (mut series, mut model) = (Series::default(), BTreeMap::new());
        let mut slot = 1_000_000;
        for step in 0..2000 {
            match rng.below(100) {
                0 => slot += u32::try_from(rng.below(3000)).unwrap(),
                1 if slot > 999_000 => {
                    slot -= u32::try_from(rng.below(400)).unwrap();
                    series.forget_from(slot);
                    model.split_off(&slot);
                }
                _ => slot += 1,
            }
            let mut sample = Sample::default();
            for code in &mut sample.codes {
                *code = u16::try_from(rng.below(3) * rng.below(27_000)).unwrap() / 2;
            }
            if rng.chance(1, 2) {
                sample = Sample::default();
            }
            series.put(slot, sample, tier);
            model.insert(slot, sample);
            // Complete blocks, counted, are what stays.
            let blocks: Vec<u32> = model.keys().map(|slot| slot / tier.block_len()).collect();
            let mut numbers: Vec<u32> = blocks.clone();
            numbers.dedup();
            let first = numbers[numbers.len().saturating_sub(tier.blocks() + 1)];
            model.retain(|slot, _| slot / tier.block_len() >= first);
            if step % 97 == 0 {
                let all: Vec<(u32, Sample)> = series.samples(0..u32::MAX).collect();
                let wanted: Vec<(u32, Sample)> = model.iter().map(|(slot, sample)| (*slot, *sample)).collect();
                assert_eq!(all, wanted, "seed {seed}, step {step}");
                let from = slot - u32::try_from(rng.below(500)).unwrap();
                let some: Vec<u32> = series.samples(from..slot).map(|(slot, _)| slot).collect();
                assert_eq!(some, model.range(from..slot).map(|(slot, _)| *slot).collect::<Vec<_>>());
                assert_eq!(series.last(), Some(slot));
            }
        }
    }
}

#[test]
fn what_is_stored_is_checked() {
    let samples: Vec<Option<Sample>> = (0..60_u64)
        .map(|at| (at % 7 != 3).then(|| Sample::default().with(Field::Reads, at / 5 * 1000).with(Field::Used, at)))
        .collect();
    let bytes = block::encode(Tier::Seconds, 5, &samples);
    // The last one is not known, and left out.
    assert_eq!(block::decode(Tier::Seconds, 5, &bytes).unwrap(), samples[..59]);
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1 << (at % 8);
        assert_eq!(block::decode(Tier::Seconds, 5, &damaged), Err(BlockError::Damaged));
    }
    assert_eq!(block::decode(Tier::Seconds, 6, &bytes), Err(BlockError::Misplaced));
    assert_eq!(block::decode(Tier::Hours, 5, &bytes), Err(BlockError::Misplaced));
    assert_eq!(block::decode(Tier::Seconds, 5, &[]), Err(BlockError::Damaged));
    let mut history = History::default();
    history.restore(Tier::Seconds, 5, &bytes).unwrap();
    assert_eq!(history.restore(Tier::Seconds, 5, &bytes), Err(BlockError::Misplaced), "not twice");
    assert!(history.restore(Tier::Seconds, 6, &bytes[..9]).is_err());
}

/// Bytes that may be anything: an error that says what it is, or what comes out the same again.
#[test]
fn hostile_bytes_are_refused_or_read() {
    let seed = 17;
    let mut rng = Rng::new(seed);
    let mut accepted = 0;
    for round in 0..20_000 {
        let mut bytes = vec![0; rng.index(40)];
        rng.fill(&mut bytes);
        bytes.splice(0..0, [1, 0, 5, 0, 0, 0]);
        if rng.chance(1, 2) {
            // Small numbers are more often what they should be.
            bytes[6..].iter_mut().for_each(|byte| *byte &= 0x3f);
        }
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        if fuzz(&bytes) {
            accepted += 1;
        }
        assert!(!fuzz(&bytes[..rng.index(bytes.len())]), "seed {seed}, round {round}");
    }
    assert!(accepted > 100, "{accepted} were accepted");
}
