//! What a limit holds back stays in the guest's ring.

use super::region::{region, revive};
use super::*;
use crate::qos::{Admission, Buckets, LimitKind, Rate, Rates};
use guest::FLUSH;

const MILLI: u64 = 1_000_000;

fn limit(vhd: &VhdState, rates: Rates) {
    vhd.limits.set(Admission::new(Buckets::new(rates).map(Arc::new), None).map(Arc::new));
}

fn iops(per_sec: u64, burst: u64) -> Rates {
    Rates { iops: Some(Rate { per_sec, burst }), bytes: None }
}

fn pop_at(bench: &mut Bench, millis: u64) -> Popped {
    let token = |head| Token(u64::from(head));
    bench.ring.pop(&mut bench.pipeline, REACTOR, token, Nanos(millis * MILLI)).unwrap()
}

/// Until when the ring is held back, in milliseconds, and whether something was popped before.
fn held(popped: Popped) -> (u64, bool) {
    let Popped::Held { hold, after_turn } = popped else { panic!("{popped:?}") };
    (hold.until.0 / MILLI, after_turn)
}

#[test]
fn so_many_start_and_the_rest_needs_no_kick() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(8, event_idx, 65_533);
        limit(&bench.ring.vhd, iops(10, 3));
        (0..7).for_each(|slot| bench.guest.submit(slot, READ, 0, 512, 0));
        assert!(bench.guest.needs_kick());
        assert_eq!(held(pop_at(&mut bench, 0)), (100, true));
        assert_eq!((bench.ring.in_flight(), bench.ring.next_available()), (3, 0));
        bench.guest.submit(7, READ, 0, 512, 0);
        assert!(!bench.guest.needs_kick(), "somebody will look");
        assert_eq!(held(pop_at(&mut bench, 99)), (100, false));
        assert_eq!(held(pop_at(&mut bench, 100)), (200, true));
        assert_eq!(held(pop_at(&mut bench, 350)), (400, true));
        assert_eq!(bench.ring.in_flight(), 6, "what became possible meanwhile");
        limit(&bench.ring.vhd, iops(10_000, 100));
        assert_eq!(pop_at(&mut bench, 351), Popped::All);
        assert_eq!(bench.ring.in_flight(), 8);
        limit(&bench.ring.vhd, Rates::default());
        bench.finish_all();
        assert_eq!(bench.guest.completed_count(), 8);
    }
}

#[test]
fn what_costs_nothing_keeps_its_order_and_an_empty_ring_waits_for_its_guest() {
    let mut bench = Bench::new(8, true, 0);
    limit(&bench.ring.vhd, iops(10, 1));
    bench.guest.submit(0, FLUSH, 0, 0, 0);
    bench.guest.submit(1, READ, 0, 512, 0);
    bench.guest.submit(2, FLUSH, 0, 0, 0);
    assert_eq!(held(pop_at(&mut bench, 0)), (100, true));
    assert_eq!(bench.ring.next_available(), 2, "nothing overtakes");
    assert_eq!(pop_at(&mut bench, 100), Popped::All);
    assert_eq!(bench.ring.next_available(), 3);
    bench.guest.submit(3, READ, 0, 512, 0);
    assert_eq!(pop_at(&mut bench, 100), Popped::All, "nothing more is there to be held back");
    assert!(!bench.ring.arm().unwrap());
    bench.guest.submit(4, READ, 0, 512, 0);
    assert!(bench.guest.needs_kick());
    assert!(bench.ring.arm().unwrap(), "it has been announced");
    assert_eq!(held(pop_at(&mut bench, 100)), (200, false), "which is no fault");
}

#[test]
fn bytes_are_paid_for_once_they_are_known() {
    let mut bench = Bench::new(8, true, 0);
    limit(&bench.ring.vhd, Rates { iops: None, bytes: Some(Rate { per_sec: 1 << 20, burst: 4096 }) });
    (0..3).for_each(|slot| bench.guest.submit(slot, READ, 0, 64 << 10, 0));
    let popped = pop_at(&mut bench, 0);
    assert_eq!(bench.ring.in_flight(), 1);
    let Popped::Held { hold, .. } = popped else { panic!("{popped:?}") };
    assert_eq!(hold.by, LimitKind::VhdBytes);
    let debt = (64 << 10) - 4096 + 1;
    assert_eq!(hold.until.0, (debt * 1_000_000_000_u64).div_ceil(1 << 20));
}

#[test]
fn what_somebody_else_popped_is_charged_and_not_held_back() {
    let mut bench = Bench::new(8, true, 0);
    let kept = region(bench.guest.size);
    let mut config = config(&bench.guest, true);
    config.inflight = Some(kept.clone());
    bench.ring = Ring::open(&config).unwrap();
    (0..4).for_each(|slot| bench.guest.submit(slot, READ, 0, 512, 0));
    assert_eq!(bench.pop().unwrap(), Popped::All);
    let (ring, pipeline) = revive(&bench.guest, &bench.disk, &kept).unwrap();
    (bench.ring, bench.pipeline) = (ring, pipeline);
    limit(&bench.ring.vhd, iops(10, 1));
    bench.guest.submit(4, READ, 0, 512, 0);
    assert_eq!(pop_at(&mut bench, 0), Popped::More);
    assert_eq!((bench.ring.in_flight(), bench.ring.is_replaying()), (4, false));
    assert_eq!(held(pop_at(&mut bench, 0)), (400, false));
    assert_eq!(pop_at(&mut bench, 400), Popped::All);
    bench.finish_all();
    assert_eq!(bench.guest.completed_count(), 5);
}

#[test]
fn how_long_requests_were_held_back_is_part_of_their_admission() {
    let mut bench = Bench::new(8, true, 65_534);
    limit(&bench.ring.vhd, iops(10, 1));
    (0..4).for_each(|slot| bench.guest.submit(slot, READ, 0, 512, 0));
    let popped = [0, 100, 200, 300].map(|at| pop_at(&mut bench, at));
    assert_eq!(popped[3], Popped::All);
    let vhd = Arc::clone(&bench.ring.vhd);
    bench.finish_all();
    let reads = vhd.metrics.of(REACTOR).transfers(crate::metrics::IoKind::Read).unwrap();
    let admission = reads.stage(crate::metrics::Stage::Admission).ns_sum.load(Ordering::Relaxed);
    assert_eq!(admission / MILLI, 100 + 200 + 300);
}
