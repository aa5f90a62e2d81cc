//! What counting a request costs: what it did and how long that took, its stages, sizes and sequence, the heat of its extent.

use std::hint::black_box;

use spanblk::base::ids::ReactorId;
use spanblk::base::rng::Rng;
use spanblk::base::units::ExtentIndex;
use spanblk::metrics::heat::Window;
use spanblk::metrics::{IoKind, IoMetricsSet, Stage};
use spanblk::placement::view::VhdMap;

use super::Bench;

const REQUESTS: u64 = 4096;
const LEN: u64 = 4096;

fn measure_heat(bench: &Bench, name: &str, extents: u32, expected: bool) {
    let map = VhdMap::new(extents);
    let mut rng = Rng::new(1);
    let order: Vec<ExtentIndex> = (0..1 << 20).map(|_| ExtentIndex(rng.below(u64::from(extents)) as u32)).collect();
    let (mut at, mut now) = (0, 1);
    bench.run([name], |stopwatch| {
        stopwatch.start();
        for _ in 0..REQUESTS {
            if expected {
                map.expect_touch(order[(at + 8) % order.len()]);
            }
            black_box(map.heat_up(order[at], Window::at(black_box(now))));
            (at, now) = ((at + 1) % order.len(), now + 1000);
        }
        [(stopwatch.lap(), REQUESTS as usize)]
    });
}

/// Does it for some requests, each of which has a number.
fn measure_each(bench: &Bench, name: &str, work: impl Fn(u64)) {
    bench.run([name], |stopwatch| {
        stopwatch.start();
        (0..REQUESTS).for_each(|request| work(black_box(request)));
        [(stopwatch.lap(), REQUESTS as usize)]
    });
}

pub fn measure(bench: &Bench) {
    let sets = [IoMetricsSet::new(1), IoMetricsSet::new(1)];
    let [vhd, disk] = [0, 1].map(|at: usize| sets[at].of(ReactorId(0)));
    let [of_vhd, of_disk] = [vhd, disk].map(|metrics| metrics.transfers(IoKind::Read).unwrap());
    measure_each(bench, "metrics: requests, bytes and latency, of VHD and disk", |request| {
        [vhd, disk].iter().for_each(|metrics| metrics.record(IoKind::Read, LEN, 80_000 + request, true));
    });
    measure_each(bench, "metrics: sizes and sequence, of VHD and disk", |request| {
        [of_vhd, of_disk].iter().for_each(|transfers| transfers.begun(request * 7919 % 1000 * LEN, LEN));
    });
    measure_each(bench, "metrics: stages", |request| {
        of_vhd.staged(Stage::Admission, 0, 1);
        of_vhd.staged(Stage::Disk, 80_000 + request, 1);
    });
    measure_heat(bench, "metrics: heat, 4096 extents", 4096, false);
    measure_heat(bench, "metrics: heat, 10 million extents at random", 10_000_000, false);
    measure_heat(bench, "metrics: heat, the same, expected", 10_000_000, true);
}
