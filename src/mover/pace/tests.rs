use super::*;
use crate::base::ids::{DiskId, ReactorId};
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
            self.pace.observe([&self.disk].into_iter(), self.now);
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
    world.run(300, 1 << 30, None);
    let moved = world.run(1000, 1 << 30, None);
    assert!(moved > 900 << 20, "{moved}");
}

#[test]
fn an_urgent_job_does_not_care() {
    let mut world = World::new(Speed { max_rate: None, urgent: true });
    let latency = |rate: u64| 200_000 + rate;
    let moved = world.run(1000, 1 << 30, Some(&latency));
    assert!(moved > 900 << 20, "{moved}");
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
