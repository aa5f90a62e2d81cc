//! Who waits for what, and that a disk that hangs keeps nobody waiting who has nothing on it.

use super::world::{EXTENT, Guest, Kind, Options, World};
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, ReactorId};
use crate::base::rng::Rng;
use crate::base::units::{ExtentIndex, SlotIndex};
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::reactor::pipeline::{PipelineMessage, Token};
use crate::virtio::request::{RequestKind, Status};

const LEN: u64 = 4096;

/// A world whose extents lie on one disk after the other and are present and synced.
fn written(options: &Options) -> World {
    let mut world = World::new(options);
    for extent in 0..options.extents {
        let all = Guest::filled(usize::try_from(EXTENT).unwrap(), 3);
        assert_eq!(world.write(u64::from(extent) * EXTENT, &all), Status::Ok);
    }
    world.flush(0);
    world.settle(&mut Rng::new(0));
    world
}

fn read_extent(world: &mut World, extent: u64, guest: &Guest) -> Token {
    world.start(0, RequestKind::Read { offset: extent * EXTENT, len: LEN }, guest)
}

fn write_extent(world: &mut World, extent: u64, writethrough: bool) -> Token {
    let guest = Guest::filled(4096, 8);
    world.start_as(0, RequestKind::Write { offset: extent * EXTENT, len: LEN }, &guest, writethrough)
}

fn on_two_disks(first: u8, second: u8, slot: u32) -> ReplicaSet {
    let mut set = ReplicaSet::ABSENT;
    for disk in [first, second] {
        set.push(Replica { disk: DiskId(disk), slot: SlotIndex(slot), state: ReplicaState::InSync });
    }
    set
}

#[test]
fn disks_that_hang_do_not_use_up_the_engine() {
    for hung in [&[0u8][..], &[0, 1]] {
        let mut world = written(&Options { disks: 3, extents: 3, engine_slots: 16, ..Options::default() });
        hung.iter().for_each(|disk| world.hung.insert(DiskId(*disk)));
        let guest = Guest::filled(4096, 0);
        for _ in 0..20 {
            hung.iter().for_each(|disk| _ = read_extent(&mut world, u64::from(*disk), &guest));
        }
        let write = write_extent(&mut world, 2, false);
        world.settle(&mut Rng::new(0));
        assert_eq!(world.status(write), Some(Status::Ok), "disks {hung:?} hang");
        let flush = world.flush(0);
        world.settle(&mut Rng::new(0));
        assert_eq!(world.status(flush), Some(Status::Ok), "disks {hung:?} hang");
    }
}

#[test]
fn a_disk_may_use_what_others_leave_again() {
    let mut world = written(&Options { disks: 2, extents: 2, engine_slots: 16, ..Options::default() });
    let guest = Guest::filled(4096, 0);
    let others: Vec<_> = (0..20).map(|_| read_extent(&mut world, 1, &guest)).collect();
    let late: Vec<_> = (0..20).map(|_| read_extent(&mut world, 0, &guest)).collect();
    let on_first = |world: &World| world.pipelines[0].engine.pending.iter().filter(|op| op.disk == DiskId(0)).count();
    let before = on_first(&world);
    world.hung.insert(DiskId(0));
    world.settle(&mut Rng::new(0));
    assert!(others.into_iter().all(|token| world.status(token) == Some(Status::Ok)));
    assert!(on_first(&world) > before, "requests wait for a place that is free");
    world.hung.remove(DiskId(0));
    world.settle(&mut Rng::new(0));
    assert!(late.into_iter().all(|token| world.status(token) == Some(Status::Ok)));
}

#[test]
fn a_place_that_its_waiter_cannot_use_goes_to_the_next() {
    let mut world = written(&Options { disks: 3, extents: 4, engine_slots: 4, ..Options::default() });
    let guest = Guest::filled(4096, 0);
    for extent in [0, 0, 1, 2] {
        read_extent(&mut world, extent, &guest);
    }
    world.hung.insert(DiskId(0));
    world.hung.insert(DiskId(2));
    // Waits for two places, one of them on a disk that hangs.
    world.vhd.map.place(ExtentIndex(3), on_two_disks(1, 2, 40));
    write_extent(&mut world, 3, false);
    let read = read_extent(&mut world, 1, &guest);
    assert_eq!(world.pipelines[0].engine.pending.len(), 4);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(read), Some(Status::Ok));
}

#[test]
fn disks_that_hang_do_not_use_up_the_bounce_buffers() {
    for hung in [&[0u8][..], &[0, 1]] {
        let mut world = written(&Options { disks: 3, extents: 3, ..Options::default() });
        hung.iter().for_each(|disk| world.hung.insert(DiskId(*disk)));
        let guest = Guest::split(4096, 0, 1, 4096);
        for _ in 0..20 {
            hung.iter().for_each(|disk| _ = read_extent(&mut world, u64::from(*disk), &guest));
        }
        let tokens: Vec<_> = (0..20).map(|_| read_extent(&mut world, 2, &guest)).collect();
        world.settle(&mut Rng::new(0));
        assert!(tokens.into_iter().all(|token| world.status(token) == Some(Status::Ok)), "disks {hung:?} hang");
    }
}

#[test]
fn a_flush_needs_one_place_of_the_engine_at_a_time() {
    let mut world = World::new(&Options { disks: 3, extents: 3, engine_slots: 1, ..Options::default() });
    for extent in 0..3 {
        write_extent(&mut world, extent, false);
        world.settle(&mut Rng::new(0));
    }
    let flush = world.flush(0);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(flush), Some(Status::Ok));
    assert!(world.disks.iter().all(|disk| disk.is_synced(world.vhd.sync_needed_on(disk.id))));
}

#[test]
fn a_writethrough_write_waits_only_for_the_disks_it_wrote_to() {
    let mut world = written(&Options { disks: 2, extents: 2, ..Options::default() });
    write_extent(&mut world, 0, false);
    world.settle(&mut Rng::new(0));
    world.hung.insert(DiskId(0));
    let write = write_extent(&mut world, 1, true);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(write), Some(Status::Ok), "the other disk hangs with a write that is not synced");
    world.disks[0].fail();
    let write = write_extent(&mut world, 1, true);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(write), Some(Status::Ok), "the other disk failed");
    let flush = world.flush(0);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(flush), Some(Status::IoError), "what was written to the failed disk is lost");
}

#[test]
fn a_writethrough_write_over_two_disks_syncs_both() {
    let mut world = written(&Options { disks: 2, extents: 2, ..Options::default() });
    let guest = Guest::filled(8192, 8);
    let write = world.start_as(0, RequestKind::Write { offset: EXTENT - LEN, len: 2 * LEN }, &guest, true);
    for kind in [Kind::Write, Kind::Write, Kind::Sync, Kind::Sync] {
        assert_eq!(world.status(write), None);
        assert_eq!(world.pipelines[0].engine.pending[0].kind, kind);
        world.finish_op(0, 0, Ok(()));
    }
    assert_eq!(world.status(write), Some(Status::Ok));
}

#[test]
fn what_is_done_keeps_the_reactor_awake() {
    let mut world = World::new(&Options::default());
    let flush = world.flush(0);
    assert!(world.pipelines[0].has_ready(), "a request that is done and not taken is work");
    assert_eq!(world.status(flush), Some(Status::Ok));
    assert!(!world.pipelines[0].has_ready());
}

#[test]
fn disk_blocks_that_wait_to_be_written_back_have_their_own_places() {
    let options = Options { extents: 3, disk_block: 4096, engine_slots: 2, ..Options::default() };
    let mut world = written(&options);
    world.vhd.map.restore(
        ExtentIndex(2),
        on_two_disks(0, 1, 40),
        crate::base::units::BlockMask::ALL,
        crate::base::units::Generation(2),
    );
    world.vhd.map.set_intent(0);
    let part = Guest::filled(512, 1);
    let write = world.start(0, RequestKind::Write { offset: 2 * EXTENT, len: 512 }, &part);
    let guest = Guest::filled(4096, 0);
    let second = read_extent(&mut world, 1, &guest);
    // The block has been read, but there is room for one of two writes only; a read takes it.
    world.finish_op(0, 0, Ok(()));
    let third = read_extent(&mut world, 0, &guest);
    assert_eq!(world.pipelines[0].engine.pending.len(), 2);
    world.settle(&mut Rng::new(0));
    for token in [write, second, third] {
        assert_eq!(world.status(token), Some(Status::Ok));
    }
}

#[test]
fn a_fence_waits_for_a_disk_block_that_is_being_changed() {
    for engine_slots in [2, 64] {
        let mut world = written(&Options { disk_block: 4096, engine_slots, ..Options::default() });
        let part = Guest::filled(512, 1);
        let write = world.start(0, RequestKind::Write { offset: 0, len: 512 }, &part);
        assert_eq!(world.pipelines[0].engine.pending[0].kind, Kind::Read);
        world.tell(ReactorId(0), PipelineMessage::Fence { fence: 5, disk: DiskId(0) });
        world.finish_op(0, 0, Ok(()));
        assert_eq!(world.pipelines[0].engine.pending[0].kind, Kind::Write);
        assert_eq!(world.fences_reached(), Vec::<u64>::new(), "it writes to where the block was");
        world.finish_op(0, 0, Ok(()));
        assert_eq!(world.status(write), Some(Status::Ok));
        assert_eq!(world.fences_reached(), vec![5]);
    }
}

#[test]
fn a_large_read_of_nothing_lets_others_have_their_turn() {
    let mut world = World::new(&Options { extents: 64, ..Options::default() });
    let guest = Guest::filled(4 << 20, 9);
    let large = world.start(0, RequestKind::Read { offset: 0, len: 4 << 20 }, &guest);
    assert!(world.pipelines[0].has_ready(), "it goes on at the next poll");
    assert_eq!(world.status(large), None);
    let mut turns = 0;
    while world.status(large).is_none() {
        world.pipelines[0].poll(Nanos(0));
        turns += 1;
    }
    assert_eq!(turns, 3, "a MiB in each turn");
    assert!(guest.bytes().iter().all(|&byte| byte == 0));
}
