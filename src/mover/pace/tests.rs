use std::cell::Cell;

use super::*;
use crate::base::ids::ReactorId;
use crate::metrics::IoKind;

const SECOND: u64 = 1_000_000_000;

/// A disk with a guest on it, and a job, for so many intervals. The guest's latency is what `latency` makes of the job's rate
/// in bytes per second. Returns the bytes moved in each interval.
struct World {
    disk: DiskState,
    pace: Pace,
    now: Nanos,
}

impl World {
    fn new(speed: Speed) -> World {
        let disk = DiskState::new(DiskId(0), "d".to_owned(), 0, 8, 512, 512);
        World { disk, pace: Pace::new(speed, Nanos(0)), now: Nanos(0) }
    }

    /// Bytes moved in `millis`, by a disk that gives the job at most `bandwidth` bytes per second.
    fn run(&mut self, millis: u64, bandwidth: u64, guest: Option<&dyn Fn(u64) -> u64>) -> u64 {
        let mut moved = 0;
        let mut lately = 0;
        for step in 0..millis {
            self.now = self.now.after(Duration::from_millis(1));
            if self.pace.must_observe(self.now) {
                self.pace.observe([&self.disk].into_iter(), self.now);
            }
            let chunk = 64 << 10;
            while lately + chunk <= bandwidth / 1000 * (step % 10 + 1) && self.pace.due(self.now).is_none() {
                self.pace.take(chunk, self.now);
                moved += chunk;
                lately += chunk;
            }
            if let Some(latency) = guest {
                let latency_ns = latency(lately * 1000 / (step % 10 + 1));
                self.disk.metrics.of(ReactorId(0)).record(IoKind::Read, 4096, latency_ns, true);
            }
            if step % 10 == 9 {
                lately = 0;
            }
        }
        moved
    }
}

#[test]
fn its_own_limit_holds() {
    let mut world = World::new(Speed { max_rate: Some(10 << 20), urgent: true });
    let moved = world.run(4000, 1 << 30, None);
    assert!(moved.abs_diff(40 << 20) < 2 << 20, "{moved}");
}

#[test]
fn without_guests_it_takes_what_the_disk_gives() {
    let mut world = World::new(Speed::default());
    world.run(200, 1 << 30, None);
    let moved = world.run(1000, 1 << 30, None);
    assert!(moved > 900 << 20, "{moved}");
}

#[test]
fn it_gives_way_to_a_guest_and_still_moves() {
    let mut world = World::new(Speed::default());
    world.run(1000, 1 << 30, None);
    // A guest whose latency doubles at 200 MiB/s.
    let latency = |rate: u64| 200_000 + rate / 1000;
    world.run(5000, 1 << 30, Some(&latency));
    let moved = world.run(4000, 1 << 30, Some(&latency)) / 4;
    let floor = (1 << 30) / 100 * FLOOR_PERCENT;
    assert!(moved >= floor / 10 * 9, "it stays above the floor: {moved} of {floor}");
    assert!(moved < 400 << 20, "and well below what the disk gives: {moved}");
}

#[test]
fn it_speeds_up_when_the_guest_leaves() {
    let mut world = World::new(Speed::default());
    let latency = |rate: u64| 200_000 + rate / 100;
    world.run(5000, 1 << 30, Some(&latency));
    world.run(700, 1 << 30, None);
    let moved = world.run(1000, 1 << 30, None);
    assert!(moved > 900 << 20, "{moved}");
}

#[test]
fn it_keeps_away_from_where_a_disk_can_do_no_more() {
    let mut world = World::new(Speed::default());
    // A guest that feels nothing below 200 MiB/s, and waits long above that.
    let (asked, waited) = (Cell::new(0), Cell::new(0));
    let latency = |rate: u64| {
        asked.set(asked.get() + 1);
        waited.set(waited.get() + u64::from(rate > 200 << 20));
        if rate > 200 << 20 { 50_000_000 } else { 200_000 }
    };
    world.run(3000, 1 << 30, Some(&latency));
    asked.set(0);
    waited.set(0);
    let moved = world.run(60_000, 1 << 30, Some(&latency)) / 60;
    assert!(moved > 90 << 20, "{moved}");
    assert!(waited.get() * 100 <= asked.get(), "{} of {} requests waited", waited.get(), asked.get());
}

#[test]
fn one_slow_request_is_no_reason_to_go_slower() {
    let mut world = World::new(Speed::default());
    let count = Cell::new(0_u64);
    let latency = |_: u64| {
        count.set(count.get() + 1);
        if count.get().is_multiple_of(100) { 15_000_000 } else { 200_000 }
    };
    world.run(3000, 1 << 30, Some(&latency));
    let moved = world.run(1000, 1 << 30, Some(&latency));
    assert!(moved > 700 << 20, "{moved}");
}

#[test]
fn a_guest_that_begins_to_flush_does_not_suffer() {
    let mut world = World::new(Speed::default());
    world.run(3000, 1 << 30, Some(&|_| 200_000));
    for _ in 0..200 {
        world.disk.metrics.of(ReactorId(0)).record(IoKind::Flush, 0, 5_000_000, true);
        world.run(5, 1 << 30, Some(&|_| 200_000));
    }
    let moved = world.run(1000, 1 << 30, Some(&|_| 200_000));
    assert!(moved > 700 << 20, "{moved}");
}

#[test]
fn slow_flushes_do_not_hide_slow_reads() {
    let flushes = |world: &World| {
        (0..20).for_each(|_| world.disk.metrics.of(ReactorId(0)).record(IoKind::Flush, 0, 20_000_000, true));
    };
    let mut world = World::new(Speed::default());
    for late in [false, true] {
        for _ in 0..50 {
            flushes(&world);
            world.run(100, 1 << 30, Some(&|_| if late { 600_000 } else { 200_000 }));
        }
        let rate = world.pace.rate.unwrap();
        assert_eq!(rate < 200 << 20, late, "{rate}");
    }
}

#[test]
fn guests_of_every_disk_count_by_themselves() {
    let disk = |id| DiskState::new(DiskId(id), "d".to_owned(), 0, 8, 512, 512);
    let disks = [disk(0), disk(1)];
    let mut pace = Pace::new(Speed::default(), Nanos(0));
    let rates = (1..100_u64).map(|step| {
        // Those of the second disk are few and suffer; those of the first are many and do not.
        let late = if step < 30 { 200_000 } else { 20_000_000 };
        (0..100).for_each(|_| disks[0].metrics.of(ReactorId(0)).record(IoKind::Read, 4096, 200_000, true));
        (0..5).for_each(|_| disks[1].metrics.of(ReactorId(0)).record(IoKind::Read, 4096, late, true));
        pace.take(1 << 30, Nanos(step * SECOND / 10));
        pace.observe(disks.iter(), Nanos(step * SECOND / 10));
        pace.rate.unwrap()
    });
    let rates: Vec<u64> = rates.collect();
    assert!(rates[32] < rates[28] / 2, "{rates:?}");
}

#[test]
fn while_guests_are_busy_few_chunks_are_in_flight() {
    let mut world = World::new(Speed::default());
    world.run(1000, 1 << 30, None);
    assert_eq!(world.pace.depth(), COPY_CHUNKS_MAX / 2);
    world.run(1000, 1 << 30, Some(&|_| 200_000));
    assert_eq!(world.pace.depth(), COPY_CHUNKS_BUSY);
}

#[test]
fn an_urgent_job_does_not_care_and_leaves_guests_a_share() {
    let mut world = World::new(Speed { max_rate: None, urgent: true });
    let latency = |rate: u64| 200_000 + rate;
    let moved = world.run(1000, 1 << 30, Some(&latency));
    assert!(moved > 900 << 20, "{moved}");
    assert_eq!(world.pace.depth(), COPY_CHUNKS_URGENT);
}

#[test]
fn due_times_are_exact() {
    let mut pace = Pace::new(Speed { max_rate: Some(1000), urgent: true }, Nanos(0));
    assert_eq!(pace.due(Nanos(0)), None);
    pace.take(500, Nanos(0));
    let due = pace.due(Nanos(0)).unwrap();
    assert!(due.0.abs_diff(SECOND / 2) < 1000, "{due:?}");
    assert_eq!(pace.due(due), None);
}
