//! Jobs on disks that are shared out.

use super::*;
use crate::qos::shares::{Account, Turn, Work};
use crate::qos::{Priority, Share, Weight};
use crate::shared::disk::MOVER_THREAD;

/// What a guest has in flight.
const GUESTS: Work = Work::of(1 << 20);

impl World {
    fn disk(&self, disk: DiskId) -> &DiskState {
        self.copier.disks[disk.index()].as_ref().unwrap()
    }

    /// Shares the disk out; a guest has taken all that may be in flight.
    fn share(&self, disk: DiskId) {
        let shares = &self.disk(disk).shares;
        shares.switch(true);
        shares.set_window(GUESTS);
        let high = Share::new(Weight::MAX, Priority::High);
        assert!(shares.begin(0, shares.take_turn(&Account::default(), high, GUESTS), GUESTS));
    }

    fn waits_on(&self, disk: DiskId) -> bool {
        self.disk(disk).shares.waiting().any(|thread| thread == MOVER_THREAD)
    }
}

#[test]
fn a_job_that_has_had_its_share_waits_and_claims_nothing() {
    for busy in [A, B] {
        let mut world = World::new(u32::MAX);
        world.share(busy);
        world.begin();
        world.run();
        assert_eq!(world.reports(), []);
        assert!(world.copied()[0] == 1 && world.copied()[31] == 0, "it has begun, since it had had nothing");
        assert!(world.vhd.map.lookup(E).claimed.is_empty() && world.waits_on(busy));
        assert!(world.copier.in_flight() == 0 && world.copier.must_look(), "who would call it may have gone");
        world.disk(busy).shares.end(GUESTS);
        world.run();
        assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
        assert!(!world.waits_on(busy) && world.copier.is_idle() && !world.copier.must_look());
        assert_eq!(world.disk(busy).shares.in_flight(), Work(0));
    }
}

#[test]
fn it_goes_on_before_others_whose_turn_is_later() {
    let mut world = World::new(u32::MAX);
    world.share(A);
    world.begin();
    world.run();
    let shares = &world.disk(A).shares;
    shares.publish(0, None, Some(Turn(1 << 60)));
    shares.end(GUESTS);
    assert!(!shares.begin(0, Turn(1 << 60), GUESTS));
    world.run();
    assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
}

#[test]
fn an_urgent_job_takes_no_room_from_those_who_wait() {
    let mut world = World::new(u32::MAX);
    [A, B].iter().for_each(|disk| world.share(*disk));
    world.copier.handle(MoverMessage::SetSpeed { job: JobId(1), speed: Speed { max_rate: None, urgent: true } }, NOW);
    // Guests wait at once on both disks.
    [A, B].iter().for_each(|disk| world.disk(*disk).shares.publish(0, None, Some(Turn(1))));
    world.begin();
    for millis in 0..1000 {
        world.copier.poll(NOW.after(std::time::Duration::from_millis(millis)));
        let chunk = Work::of(COPY_CHUNK_LEN);
        // Its first chunk comes before them.
        [A, B].iter().for_each(|disk| assert!(world.disk(*disk).shares.in_flight().0 <= GUESTS.0 + chunk.0));
        while world.copier.engine.step(&mut world.rng) {}
    }
    assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
    for disk in [A, B] {
        let shares = &world.disk(disk).shares;
        assert_eq!(shares.in_flight(), GUESTS);
        assert!(!shares.begin(0, Turn(1), GUESTS), "its time has not come");
    }
}

#[test]
fn an_urgent_job_waits_for_nobody_but_counts() {
    let mut world = World::new(u32::MAX);
    world.share(A);
    world.copier.handle(MoverMessage::SetSpeed { job: JobId(1), speed: Speed { max_rate: None, urgent: true } }, NOW);
    world.begin();
    world.copier.poll(NOW);
    assert!(world.disk(A).shares.in_flight() > GUESTS);
    // Its pace is another matter.
    for millis in 1..1000 {
        world.copier.poll(NOW.after(std::time::Duration::from_millis(millis)));
        while world.copier.engine.step(&mut world.rng) {}
    }
    assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
    assert_eq!(world.disk(A).shares.in_flight(), GUESTS);
}

#[test]
fn a_turn_that_nobody_wants_any_more_keeps_nobody_waiting() {
    let mut world = World::new(u32::MAX);
    world.share(A);
    world.begin();
    world.run();
    assert!(world.waits_on(A));
    world.vhd.map.set_replicas(E, ReplicaSet::single(A, SlotIndex(2)));
    world.run();
    assert_eq!(world.reports(), [MoverReport::Gone { id: MoveId(1) }]);
    assert!(!world.waits_on(A));
}

#[test]
fn the_target_counts_while_it_is_written() {
    let mut world = World::new(1);
    [A, B].iter().for_each(|disk| world.disk(*disk).shares.switch(true));
    let in_flight = |world: &World| [A, B].map(|disk| world.disk(disk).shares.in_flight() > Work(0));
    world.begin();
    world.copier.poll(NOW);
    assert_eq!(in_flight(&world), [true, false]);
    while in_flight(&world) == [true, false] {
        world.copier.engine.step(&mut world.rng);
        world.copier.poll(NOW);
    }
    assert_eq!(in_flight(&world), [false, true]);
    world.run();
    assert_eq!(in_flight(&world), [false, false]);
    assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
}

#[test]
fn a_claim_that_somebody_else_holds_costs_nothing() {
    let mut world = World::new(1);
    world.disk(A).shares.switch(true);
    let version = world.vhd.map.lookup(E).version;
    world.vhd.map.claim_any(E, BlockMask(1), version).unwrap();
    world.begin();
    for _ in 0..10 {
        world.copier.poll(NOW);
    }
    assert_eq!(world.disk(A).shares.in_flight(), Work(0));
    world.vhd.map.release(E, BlockMask(1), BlockMask::NONE);
    world.run();
    assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
}
