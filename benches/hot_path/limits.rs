//! What limits of rates cost a request: the look whether there are any, asking each bucket, taking from it.

use std::hint::black_box;
use std::sync::Arc;

use spanblk::base::clock::Nanos;
use spanblk::qos::{Admission, Buckets, Cost, Rate, Rates};
use spanblk::shared::limits::{Known, VhdLimits};

use super::Bench;

const REQUESTS: u64 = 4096;

/// So much that nothing is ever held back.
const RATE: Rate = Rate { per_sec: 10_000_000, burst: 1_000_000_000 };
const BYTES: Rate = Rate { per_sec: 64 << 30, burst: 1 << 50 };

fn buckets(bytes: Option<Rate>) -> Option<Arc<Buckets>> {
    Buckets::new(Rates { iops: Some(RATE), bytes }).map(Arc::new)
}

fn measure_limits(bench: &Bench, name: &str, admission: Option<Admission>) {
    let (limits, mut known) = (VhdLimits::default(), Known::default());
    limits.set(admission.map(Arc::new));
    let mut now = Nanos(0);
    bench.run([name], |stopwatch| {
        stopwatch.start();
        for _ in 0..REQUESTS {
            black_box(&limits).refresh(&mut known);
            if let Some(admission) = &known.admission {
                assert!(black_box(admission.may_start(now)).is_ok());
                admission.charge(Cost { ios: 1, bytes: 4096 }, now);
            }
            now.0 += 1000;
        }
        [(stopwatch.lap(), REQUESTS as usize)]
    });
}

pub fn measure(bench: &Bench) {
    measure_limits(bench, "limits: none", None);
    measure_limits(bench, "limits: requests of the VHD", Admission::new(buckets(None), None));
    let all = Admission::new(buckets(Some(BYTES)), buckets(Some(BYTES)));
    measure_limits(bench, "limits: requests and bytes, of the VHD and of its VM", all);
}
