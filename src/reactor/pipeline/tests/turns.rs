//! Whose turn it is on a disk that VHDs share: by weight, over reactors, and without anybody waiting for what is not there.

use std::collections::HashMap;
use std::sync::Arc;

use super::world::{Guest, Options, World, vhd_state};
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, ReactorId};
use crate::base::rng::Rng;
use crate::base::units::{ExtentIndex, SlotIndex};
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::qos::shares::{Account, Work};
use crate::qos::{Priority, Share, Weight};
use crate::reactor::messages::ReactorMessage;
use crate::reactor::pipeline::{PipelineMessage, Token};
use crate::shared::VhdState;
use crate::virtio::request::{RequestKind, Status};

const LEN: u64 = 4096;

fn replica(disk: u8, slot: u32) -> Replica {
    Replica { disk: DiskId(disk), slot: SlotIndex(slot), state: ReplicaState::InSync }
}

/// A VHD whose only extent is placed and present there.
fn placed(options: &Options, replicas: &[Replica]) -> Arc<VhdState> {
    let vhd = Arc::new(vhd_state(options));
    let mut set = ReplicaSet::ABSENT;
    replicas.iter().for_each(|replica| set.push(*replica));
    vhd.map.place(ExtentIndex(0), set);
    let seen = vhd.map.lookup(ExtentIndex(0));
    let all = crate::base::units::BlockMask::ALL;
    vhd.map.claim_absent(ExtentIndex(0), all, seen.version).unwrap();
    vhd.map.release(ExtentIndex(0), all, all);
    vhd
}

fn share(weight: u32) -> Share {
    Share::new(Weight::new(weight).unwrap(), Priority::Normal)
}

fn options(reactors: u16) -> Options {
    Options { reactors, disks: 2, extents: 1, engine_slots: 512, ..Options::default() }
}

struct Guests {
    world: World,
    memory: Guest,
    started: HashMap<Token, usize>,
    vhds: Vec<Arc<VhdState>>,
}

impl Guests {
    fn new(reactors: u16, vhds: Vec<Arc<VhdState>>, window: u64) -> Guests {
        let world = World::new(&options(reactors));
        world.share(Work(Work::of(LEN).0 * window));
        Guests { world, memory: Guest::filled(4096, 0), started: HashMap::new(), vhds }
    }

    fn read(&mut self, vhd: usize, reactor: usize) -> Token {
        let of = Arc::clone(&self.vhds[vhd]);
        let token = self.world.start_of(&of, reactor, RequestKind::Read { offset: 0, len: LEN }, &self.memory);
        self.started.insert(token, vhd);
        token
    }

    /// Finishes one operation of each reactor again and again, with those who wait always the same number, and counts what each VHD got.
    fn serve(&mut self, rounds: usize, of_reactor: impl Fn(usize) -> usize) -> Vec<usize> {
        let mut served = vec![0; self.vhds.len()];
        for _ in 0..rounds {
            for reactor in 0..self.world.pipelines.len() {
                if !self.world.pipelines[reactor].engine.pending.is_empty() {
                    self.world.finish_op(reactor, 0, Ok(()));
                }
                while self.world.deliver() {}
            }
            let done: Vec<Token> = self.started.keys().copied().collect();
            for token in done {
                if self.world.status(token).is_some() {
                    let vhd = self.started.remove(&token).unwrap();
                    served[vhd] += 1;
                    self.read(vhd, of_reactor(vhd));
                }
            }
        }
        served
    }

    /// Finishes the first operation on a disk.
    fn finish_on(&mut self, disk: u8) {
        let mut pending = self.world.pipelines[0].engine.pending.iter();
        let first = pending.position(|operation| operation.disk == DiskId(disk)).unwrap();
        self.world.finish_op(0, first, Ok(()));
    }

    fn pending_on(&self, disk: u8) -> usize {
        self.world.pipelines[0].engine.pending.iter().filter(|operation| operation.disk == DiskId(disk)).count()
    }

    fn pending(&self) -> usize {
        self.world.pipelines.iter().map(|pipeline| pipeline.engine.pending.len()).sum()
    }
}

#[test]
fn a_disk_serves_by_weight() {
    for reactors in [1, 2] {
        let vhds = [1, 3, 6].map(|weight| {
            let vhd = placed(&options(reactors), &[replica(0, weight)]);
            vhd.share.set(share(weight), None);
            vhd
        });
        let mut guests = Guests::new(reactors, vhds.into(), 4);
        let of_reactor = |vhd: usize| vhd % usize::from(reactors);
        for vhd in 0..3 {
            (0..20).for_each(|_| _ = guests.read(vhd, of_reactor(vhd)));
        }
        assert!(guests.pending() <= 4 + 3, "{}", guests.pending());
        let served = guests.serve(2000, of_reactor);
        let total: usize = served.iter().sum();
        for (vhd, tenths) in [1, 3, 6].into_iter().enumerate() {
            assert!(served[vhd].abs_diff(total * tenths / 10) * 20 <= total, "{served:?} on {reactors} reactors");
        }
    }
}

#[test]
fn who_waits_on_a_sleeping_reactor_is_woken() {
    let vhds = [0, 1].map(|slot| placed(&options(2), &[replica(0, slot)]));
    let mut guests = Guests::new(2, vhds.into(), 1);
    // The first reactor has all that is in flight, and the second one somebody who has had his share.
    guests.read(1, 1);
    guests.world.finish_op(1, 0, Ok(()));
    guests.read(0, 0);
    let waits = guests.read(1, 1);
    guests.world.pipelines.iter_mut().for_each(|pipeline| _ = pipeline.poll(Nanos(0)));
    assert_eq!(guests.world.status(waits), None);
    guests.world.finish_op(0, 0, Ok(()));
    let called = guests
        .world
        .mail
        .borrow()
        .reactors
        .front()
        .is_some_and(|(to, what)| *to == ReactorId(1) && matches!(what, ReactorMessage::Room));
    assert!(called);
    guests.world.settle(&mut Rng::new(1));
    assert_eq!(guests.world.status(waits), Some(Status::Ok));
}

#[test]
fn a_write_to_two_disks_waits_for_one_and_counts_on_both() {
    let vhds = vec![placed(&options(1), &[replica(0, 0), replica(1, 0)]), placed(&options(1), &[replica(0, 1)])];
    vhds.iter().for_each(|vhd| vhd.map.set_intent(0));
    let mut guests = Guests::new(1, vhds, 1);
    guests.read(1, 0);
    let first = guests.read(1, 0);
    assert_eq!(guests.pending(), 1);
    let of = Arc::clone(&guests.vhds[0]);
    let write = |guests: &mut Guests, offset| {
        guests.world.start_of(&of, 0, RequestKind::Write { offset, len: LEN }, &guests.memory)
    };
    let block = super::world::BLOCK;
    let begins = write(&mut guests, 0);
    let waits = write(&mut guests, block);
    assert_eq!(guests.pending(), 3, "it had nothing of the first disk yet");
    assert_eq!(guests.world.disks[1].shares.in_flight(), Work::of(LEN));
    guests.world.settle(&mut Rng::new(1));
    for token in [first, begins, waits] {
        assert_eq!(guests.world.status(token), Some(Status::Ok));
    }
    assert!(guests.world.disks.iter().all(|disk| disk.shares.in_flight() == Work(0)));
}

#[test]
fn a_write_to_several_disks_waits_where_its_vhd_has_had_most() {
    const DEPTH: u64 = 16;
    let block = super::world::BLOCK;
    let vhds = vec![placed(&options(1), &[replica(0, 0), replica(1, 0)]), placed(&options(1), &[replica(1, 1)])];
    vhds.iter().for_each(|vhd| vhd.map.set_intent(0));
    let mut guests = Guests::new(1, vhds, 1);
    // Much more may be in flight on the first disk than anybody has, and on the second one an operation.
    guests.world.disks[0].shares.set_window(Work(Work::of(LEN).0 * 64));
    let of = Arc::clone(&guests.vhds[0]);
    let write = |guests: &mut Guests, block_of: u64| {
        let kind = RequestKind::Write { offset: block_of * block, len: LEN };
        guests.world.start_of(&of, 0, kind, &guests.memory)
    };
    let mut writes: Vec<Token> = (0..DEPTH).map(|block_of| write(&mut guests, block_of)).collect();
    (0..DEPTH).for_each(|_| _ = guests.read(1, 0));
    let (mut of_mirrored, mut of_isolated) = (0, 0);
    for _ in 0..1000 {
        for disk in [DiskId(0), DiskId(1)] {
            let mut pending = guests.world.pipelines[0].engine.pending.iter();
            if let Some(first) = pending.position(|operation| operation.disk == disk) {
                guests.world.finish_op(0, first, Ok(()));
            }
        }
        for block_of in 0..DEPTH {
            let at = usize::try_from(block_of).unwrap();
            if guests.world.status(writes[at]).is_some() {
                of_mirrored += 1;
                writes[at] = write(&mut guests, block_of);
            }
        }
        let done: Vec<Token> = guests.started.keys().copied().collect();
        for token in done {
            if guests.world.status(token).is_some() {
                guests.started.remove(&token);
                of_isolated += 1;
                guests.read(1, 0);
            }
        }
    }
    let total = of_mirrored + of_isolated;
    assert!(
        total > 900 && of_mirrored * 20 <= total * 11 && of_mirrored * 20 >= total * 8,
        "{of_mirrored} {of_isolated}"
    );
}

#[test]
fn what_a_first_write_is_padded_with_is_paid_and_counted() {
    let mut guests = Guests::new(1, Vec::new(), 1);
    let vhd = Arc::clone(&guests.world.vhd);
    vhd.map.place(ExtentIndex(0), ReplicaSet::single(DiskId(0), SlotIndex(0)));
    let kind = RequestKind::Write { offset: 0, len: LEN };
    let token = guests.world.start_of(&vhd, 0, kind, &guests.memory);
    let (shares, block) = (&guests.world.disks[0].shares, Work::of(super::world::BLOCK));
    assert_eq!(shares.in_flight(), block);
    let used = Account::default();
    shares.take_turn(&used, Share::default(), block);
    assert_eq!(vhd.account(DiskId(0)).so_far(), used.so_far());
    guests.world.finish_op(0, 0, Ok(()));
    assert_eq!(guests.world.status(token), Some(Status::Ok));
    assert_eq!(guests.world.disks[0].shares.in_flight(), Work(0));
}

#[test]
fn nobody_waits_for_his_turn_on_a_disk_that_has_failed() {
    let vhds = vec![placed(&options(1), &[replica(0, 0)])];
    let mut guests = Guests::new(1, vhds, 1);
    let tokens: Vec<Token> = (0..5).map(|_| guests.read(0, 0)).collect();
    guests.world.disks[0].fail();
    guests.world.tell(ReactorId(0), PipelineMessage::DiskFailed { disk: DiskId(0) });
    for token in &tokens[1..] {
        assert_eq!(guests.world.status(*token), Some(Status::IoError));
    }
    guests.world.settle(&mut Rng::new(1));
    assert_eq!(guests.world.disks[0].shares.in_flight(), Work(0));
    let used = Account::default();
    guests.world.disks[0].shares.take_turn(&used, Share::default(), Work::of(LEN));
    let account = guests.vhds[0].account(DiskId(0));
    assert_eq!(account.so_far(), used.so_far(), "turns that were not used were given back");
}

#[test]
fn a_disk_that_is_not_shared_out_any_more_keeps_nobody_waiting() {
    let vhds = vec![placed(&options(1), &[replica(0, 0)])];
    let mut guests = Guests::new(1, vhds, 1);
    (0..5).for_each(|_| _ = guests.read(0, 0));
    assert_eq!(guests.pending(), 1);
    guests.world.disks[0].shares.switch(false);
    guests.world.pipelines[0].poll(Nanos(0));
    assert_eq!(guests.pending(), 5);
    guests.world.settle(&mut Rng::new(1));
    assert_eq!(guests.world.disks[0].shares.in_flight(), Work(0));
}

#[test]
fn what_waits_for_its_turn_ends_with_its_vhd() {
    let vhds = [0, 1].map(|slot| placed(&options(1), &[replica(0, slot)]));
    let mut guests = Guests::new(1, vhds.into(), 1);
    guests.read(0, 0);
    let of_deleted: Vec<Token> = (0..4).map(|_| guests.read(0, 0)).collect();
    let others: Vec<Token> = (0..4).map(|_| guests.read(1, 0)).collect();
    guests.vhds[0].mark_deleted();
    guests.world.settle(&mut Rng::new(1));
    for token in of_deleted {
        assert_eq!(guests.world.status(token), Some(Status::IoError));
    }
    for token in others {
        assert_eq!(guests.world.status(token), Some(Status::Ok));
    }
    assert_eq!(guests.world.disks[0].shares.in_flight(), Work(0));
}

#[test]
fn a_fence_waits_for_nobody_who_waits_for_a_turn() {
    let mut guests = Guests::new(1, vec![placed(&options(1), &[replica(0, 0)])], 1);
    guests.read(0, 0);
    let waits = guests.read(0, 0);
    guests.world.tell(ReactorId(0), PipelineMessage::Fence { fence: 1, disk: DiskId(0) });
    assert!(guests.world.fences_reached().is_empty());
    guests.world.finish_op(0, 0, Ok(()));
    assert_eq!(guests.world.fences_reached(), [1]);
    guests.world.settle(&mut Rng::new(1));
    assert_eq!(guests.world.status(waits), Some(Status::Ok));
}

#[test]
fn a_disk_that_hangs_keeps_nobody_from_another_one() {
    let vhds = [0, 1].map(|disk| placed(&options(1), &[replica(disk, 0)]));
    let mut guests = Guests::new(1, vhds.into(), 1);
    guests.world.hung.insert(DiskId(0));
    let hang: Vec<Token> = (0..4).map(|_| guests.read(0, 0)).collect();
    let works: Vec<Token> = (0..4).map(|_| guests.read(1, 0)).collect();
    guests.world.settle(&mut Rng::new(1));
    for token in works {
        assert_eq!(guests.world.status(token), Some(Status::Ok));
    }
    assert_eq!(guests.world.disks[1].shares.in_flight(), Work(0));
    guests.world.disks[0].fail();
    guests.world.tell(ReactorId(0), PipelineMessage::DiskFailed { disk: DiskId(0) });
    for token in &hang[1..] {
        assert_eq!(guests.world.status(*token), Some(Status::IoError));
    }
}

#[test]
fn what_waits_and_what_is_late_is_counted() {
    let vhd = placed(&options(1), &[replica(0, 0)]);
    vhd.share.set(Share::default(), Some(1_500));
    let mut guests = Guests::new(1, vec![vhd], 1);
    let tokens = [guests.read(0, 0), guests.read(0, 0)];
    for micros in 1..=2 {
        let pipeline = &mut guests.world.pipelines[0];
        pipeline.engine.finish(0, Ok(()));
        pipeline.poll(Nanos(micros * 1000));
    }
    tokens.iter().for_each(|token| assert_eq!(guests.world.status(*token), Some(Status::Ok)));
    let metrics = guests.vhds[0].metrics.of(ReactorId(0));
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!((load(&metrics.turn_waits), load(&metrics.turn_waits_ns), load(&metrics.late)), (1, 1000, 1));
    assert_eq!(guests.vhds[0].account(DiskId(0)).take_targeted(), (2, 1));
}

#[test]
fn what_is_in_flight_becomes_less_while_a_sync_is_awaited() {
    let (mut guests, vhd) = unwritten();
    guests.world.disks[0].shares.set_window(Work(Work::of(LEN).0 * 4));
    guests.world.disks[0].shares.set_awaited_window(Work::of(LEN));
    let kind = RequestKind::Write { offset: 0, len: LEN };
    let written = guests.world.start_of(&vhd, 0, kind, &guests.memory);
    guests.world.finish_op(0, 0, Ok(()));
    assert_eq!(guests.world.status(written), Some(Status::Ok));
    let flush = guests.world.flush(0);
    assert_eq!(guests.pending(), 1);
    (0..6).for_each(|_| _ = guests.read(0, 0));
    assert_eq!(guests.pending(), 2, "the sync, and one beside it");
    guests.world.finish_op(0, 0, Ok(()));
    guests.world.finish_op(0, 0, Ok(()));
    assert_eq!(guests.pending(), 4, "as many as ever");
    guests.world.settle(&mut Rng::new(1));
    assert_eq!(guests.world.status(flush), Some(Status::Ok));
    assert!(!guests.world.disks[0].shares.awaited().is_under_way());
}

#[test]
fn a_read_stays_with_the_copy_on_which_its_turn_has_come() {
    let mirrored = placed(&options(1), &[replica(0, 0), replica(1, 0)]);
    let [first, second] = [0, 1].map(|disk| placed(&options(1), &[replica(disk, 1)]));
    let mut guests = Guests::new(1, vec![mirrored, first, second], 8);
    guests.world.disks[1].shares.set_window(Work(Work::of(LEN).0 * 2));
    (0..3).for_each(|_| _ = guests.read(1, 0));
    guests.read(0, 0);
    guests.read(2, 0);
    let waits = guests.read(0, 0);
    assert_eq!((guests.pending_on(0), guests.pending_on(1)), (3, 2));
    (0..3).for_each(|_| guests.finish_on(0));
    assert_eq!((guests.pending_on(0), guests.pending_on(1)), (0, 2), "it waits");
    guests.finish_on(1);
    assert_eq!((guests.pending_on(0), guests.pending_on(1)), (0, 2));
    guests.world.settle(&mut Rng::new(1));
    assert_eq!(guests.world.status(waits), Some(Status::Ok));
    assert!(guests.world.disks.iter().all(|disk| disk.shares.in_flight() == Work(0)));
}

/// Where little may be in flight little is: that is no reason for more to wait there.
#[test]
fn reads_do_not_all_go_to_the_copy_where_the_least_may_be_in_flight() {
    let mirrored = placed(&options(1), &[replica(0, 0), replica(1, 0)]);
    let mut guests = Guests::new(1, vec![mirrored], 16);
    guests.world.disks[0].shares.set_window(Work::of(LEN));
    (0..8).for_each(|_| _ = guests.read(0, 0));
    assert_eq!((guests.pending_on(0), guests.pending_on(1)), (1, 4));
}

/// Two VHDs on one disk; nothing has been written to the first one yet.
fn unwritten() -> (Guests, Arc<VhdState>) {
    let guests = Guests::new(1, vec![placed(&options(1), &[replica(0, 1)])], 8);
    let vhd = Arc::clone(&guests.world.vhd);
    vhd.map.place(ExtentIndex(0), ReplicaSet::single(DiskId(0), SlotIndex(0)));
    (guests, vhd)
}

#[test]
fn a_disk_is_not_to_blame_for_waits_elsewhere() {
    let (mut guests, vhd) = unwritten();
    vhd.share.set(Share::default(), Some(5_000));
    let kind = RequestKind::Write { offset: 0, len: LEN };
    // The second one waits until the block has been written.
    let tokens = [0, 1].map(|_| guests.world.start_of(&vhd, 0, kind, &guests.memory));
    assert_eq!(guests.pending(), 1);
    for micros in [10, 11] {
        let pipeline = &mut guests.world.pipelines[0];
        pipeline.engine.finish(0, Ok(()));
        pipeline.poll(Nanos(micros * 1000));
    }
    tokens.iter().for_each(|token| assert_eq!(guests.world.status(*token), Some(Status::Ok)));
    assert_eq!(vhd.account(DiskId(0)).take_targeted(), (2, 1));
}

#[test]
fn who_comes_back_from_elsewhere_finds_the_window_as_others_do() {
    let (mut guests, vhd) = unwritten();
    let kind = RequestKind::Write { offset: 0, len: LEN };
    let tokens: Vec<Token> = (0..5).map(|_| guests.world.start_of(&vhd, 0, kind, &guests.memory)).collect();
    assert_eq!(guests.pending(), 1, "the others wait for the block");
    // Another one has had more since than all of them would have.
    for _ in 0..100 {
        let token = guests.read(0, 0);
        guests.world.finish_op(0, 1, Ok(()));
        assert_eq!(guests.world.status(token), Some(Status::Ok));
    }
    guests.world.disks[0].shares.set_window(Work(Work::of(LEN).0 * 2));
    guests.world.finish_op(0, 0, Ok(()));
    assert_eq!(guests.pending(), 2, "not all of them at once");
    guests.world.settle(&mut Rng::new(1));
    tokens.iter().for_each(|token| assert_eq!(guests.world.status(*token), Some(Status::Ok)));
}

#[test]
fn who_begins_something_on_a_disk_is_known_to_want_it() {
    let vhds = [0, 1].map(|slot| placed(&options(1), &[replica(0, slot), replica(1, slot)]));
    let mut guests = Guests::new(1, vhds.into(), 8);
    let wanted = |guests: &Guests, vhd: usize| [0, 1].map(|disk| guests.vhds[vhd].account(DiskId(disk)).take_wanted());
    for is_shared in [true, false] {
        guests.world.disks.iter().for_each(|disk| disk.shares.switch(is_shared));
        guests.read(0, 0);
        assert_eq!(wanted(&guests, 0).iter().filter(|wanted| **wanted).count(), 1, "one copy was read");
        assert_eq!((wanted(&guests, 0), wanted(&guests, 1)), ([false; 2], [false; 2]));
        guests.world.settle(&mut Rng::new(1));
    }
}

/// Two VHDs on two disks, the first of which has copies on both, and waits with a write for the first one.
fn mirrored() -> (Guests, Token) {
    let vhds = vec![placed(&options(1), &[replica(0, 0), replica(1, 0)]), placed(&options(1), &[replica(0, 1)])];
    vhds.iter().for_each(|vhd| vhd.map.set_intent(0));
    let mut guests = Guests::new(1, vhds, 1);
    guests.world.disks[1].shares.set_window(Work(Work::of(LEN).0 * 64));
    let (of, block) = (Arc::clone(&guests.vhds[0]), super::world::BLOCK);
    (0..2).for_each(|_| _ = guests.read(1, 0));
    let mut write = |at: u64| {
        let kind = RequestKind::Write { offset: at * block, len: LEN };
        guests.world.start_of(&of, 0, kind, &guests.memory)
    };
    write(0);
    let waits = write(1);
    (guests, waits)
}

#[test]
fn a_write_to_several_disks_keeps_its_turn_when_another_one_is_further_ahead() {
    let (mut guests, waits) = mirrored();
    assert_eq!(guests.world.status(waits), None);
    let turn = guests.vhds[0].account(DiskId(0)).so_far();
    // As much as it would take to wait there.
    let other = guests.vhds[0].account(DiskId(1));
    (0..100).for_each(|_| _ = guests.world.disks[1].shares.take_turn(other, Share::default(), Work::of(LEN)));
    let ahead = other.so_far();
    for tick in 1..=3 {
        guests.world.pipelines[0].tick(Nanos(tick * 250_000_000));
        let accounts = [0, 1].map(|disk| guests.vhds[0].account(DiskId(disk)).so_far());
        assert_eq!(accounts, [turn, ahead], "it has neither given its turn back nor taken another one");
    }
    guests.world.pipelines[0].tick(Nanos(1_250_000_000));
    assert!(guests.vhds[0].account(DiskId(1)).so_far() > ahead, "not for ever");
    guests.world.settle(&mut Rng::new(1));
    assert_eq!(guests.world.status(waits), Some(Status::Ok));
}

#[test]
fn those_who_wait_are_not_stepped_where_others_get_on() {
    let vhds = vec![placed(&options(1), &[replica(0, 0)])];
    let mut guests = Guests::new(1, vhds, 1);
    (0..20).for_each(|_| _ = guests.read(0, 0));
    let waits =
        |guests: &Guests| guests.vhds[0].metrics.of(ReactorId(0)).waits.load(std::sync::atomic::Ordering::Relaxed);
    let tick = |guests: &mut Guests, millis: u64| guests.world.pipelines[0].tick(Nanos(millis * 1_000_000));
    tick(&mut guests, 1000);
    for millis in [1250, 1500, 1750] {
        guests.world.finish_op(0, 0, Ok(()));
        let before = waits(&guests);
        tick(&mut guests, millis);
        assert_eq!(waits(&guests), before);
    }
    let before = waits(&guests);
    tick(&mut guests, 2000);
    assert_eq!(waits(&guests), before + 16, "nobody has got on");
    guests.world.settle(&mut Rng::new(1));
}
