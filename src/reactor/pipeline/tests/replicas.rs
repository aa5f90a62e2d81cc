//! Requests to extents with replicas, some of which fail (ordering rules 6 and 7).

use super::world::{BLOCK, EXTENT, Guest, Kind, Options, World};
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, ReactorId};
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use crate::engine::IoError;
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::reactor::messages::{MissedBy, OwnerRequest};
use crate::reactor::pipeline::{PipelineMessage, Token};
use crate::virtio::request::{RequestKind, Status};

const A: DiskId = DiskId(0);
const B: DiskId = DiskId(1);
const EIO: Result<(), IoError> = Err(IoError::Os(libc::EIO));
const LEN: u64 = 4096;

fn replicas(states: &[ReplicaState]) -> ReplicaSet {
    let mut set = ReplicaSet::ABSENT;
    for (disk, state) in (0..).zip(states) {
        set.push(Replica { disk: DiskId(disk), slot: SlotIndex(3), state: *state });
    }
    set
}

/// Two extents, all of whose blocks are present, with a replica on each of two disks.
fn world_with(options: &Options) -> World {
    let world = World::new(options);
    let both = replicas(&[ReplicaState::InSync, ReplicaState::InSync]);
    for (extent, slot) in [(0, 3), (1, 4)] {
        let mut placed = ReplicaSet::ABSENT;
        both.iter().for_each(|replica| placed.push(Replica { slot: SlotIndex(slot), ..replica }));
        world.vhd.map.restore(ExtentIndex(extent), placed, BlockMask::ALL, Generation(2));
    }
    world.vhd.map.set_intent(0);
    world
}

fn world() -> World {
    world_with(&Options::default())
}

fn finish(world: &mut World, kind: Kind, disk: DiskId, result: Result<(), IoError>) {
    let pending = &world.pipelines[0].engine.pending;
    let index = pending.iter().position(|op| op.kind == kind && op.disk == disk).expect("an operation in flight");
    world.finish_op(0, index, result);
}

fn in_flight(world: &World) -> Vec<(Kind, DiskId)> {
    world.pipelines[0].engine.pending.iter().map(|op| (op.kind, op.disk)).collect()
}

fn write(world: &mut World, byte: u8) -> Token {
    world.start(0, RequestKind::Write { offset: 0, len: LEN }, &Guest::filled(4096, byte))
}

/// What the owner was asked about a copy.
fn asked(world: &World) -> Vec<(DiskId, MissedBy)> {
    let missed = |request: OwnerRequest| match request {
        OwnerRequest::CopyMissed { disk, by, .. } => Some((disk, by)),
        _ => None,
    };
    world.mail.borrow_mut().owner.drain(..).filter_map(missed).collect()
}

fn answer(world: &mut World, (disk, by): (DiskId, MissedBy), ok: bool) {
    world.tell(ReactorId(0), PipelineMessage::CopyDropped { by, disk, ok });
}

#[test]
fn a_read_that_fails_is_answered_by_another_replica() {
    let mut world = world();
    let token = write(&mut world, 7);
    finish(&mut world, Kind::Write, A, Ok(()));
    finish(&mut world, Kind::Write, B, Ok(()));
    assert_eq!(world.status(token), Some(Status::Ok));
    let guest = Guest::filled(4096, 0);
    let token = world.start(0, RequestKind::Read { offset: 0, len: LEN }, &guest);
    finish(&mut world, Kind::Read, A, EIO);
    assert_eq!(world.status(token), None);
    let told =
        |request: &OwnerRequest| matches!(request, OwnerRequest::ReadFailed { disk: A, extent: ExtentIndex(0), .. });
    assert!(world.mail.borrow().owner.iter().any(told), "the bad replica is to be written anew");
    finish(&mut world, Kind::Read, B, Ok(()));
    assert_eq!(world.status(token), Some(Status::Ok));
    assert!(guest.bytes().iter().all(|byte| *byte == 7));
}

#[test]
fn a_read_fails_once_all_replicas_have() {
    let mut world = world();
    let token = world.start(0, RequestKind::Read { offset: 0, len: LEN }, &Guest::filled(4096, 0));
    finish(&mut world, Kind::Read, A, EIO);
    finish(&mut world, Kind::Read, B, EIO);
    assert_eq!(world.status(token), Some(Status::IoError));
    assert!(in_flight(&world).is_empty());
}

/// Each extent has its own bad replica, and one read is about both.
#[test]
fn a_long_read_fails_over_extent_by_extent() {
    for order in [[A, B], [B, A]] {
        let mut world = world();
        let guest = Guest::filled(8192, 0);
        let token = world.start(0, RequestKind::Read { offset: EXTENT - LEN, len: 2 * LEN }, &guest);
        // The second extent was read from the disk with less to do.
        assert_eq!(in_flight(&world), [(Kind::Read, A), (Kind::Read, B)]);
        order.iter().for_each(|disk| finish(&mut world, Kind::Read, *disk, EIO));
        let mut turns = 0;
        while let Some((_, disk)) = in_flight(&world).first().copied() {
            let offset = world.pipelines[0].engine.pending[0].offset;
            // The first extent, of which the end is read, is bad on A, the second on B.
            let is_bad = (disk == A) != offset.is_multiple_of(EXTENT);
            finish(&mut world, Kind::Read, disk, if is_bad { EIO } else { Ok(()) });
            turns += 1;
            assert!(turns < 10, "it comes to an end");
        }
        assert_eq!(world.status(token), Some(Status::Ok), "{order:?}");
    }
}

/// A bounce buffer that could not be filled has what another guest read.
#[test]
fn nothing_of_a_failed_read_reaches_the_guest() {
    let mut world = world_with(&Options { memory_alignment: 4096, ..Options::default() });
    let guest = Guest::split(4096, 0x11, 16, 4096);
    let token = world.start(0, RequestKind::Read { offset: 0, len: LEN }, &guest);
    finish(&mut world, Kind::Read, A, EIO);
    assert!(guest.bytes().iter().all(|byte| *byte == 0x11), "untouched so far");
    finish(&mut world, Kind::Read, B, Ok(()));
    assert_eq!(world.status(token), Some(Status::Ok));
}

#[test]
fn reads_go_to_the_replica_with_less_to_do_unless_they_may_differ() {
    let mut world = world();
    let guest = Guest::filled(4096, 0);
    for _ in 0..4 {
        world.start(0, RequestKind::Read { offset: 0, len: LEN }, &guest);
    }
    assert_eq!(in_flight(&world).iter().filter(|(_, disk)| *disk == A).count(), 2);
    while !in_flight(&world).is_empty() {
        world.finish_op(0, 0, Ok(()));
    }
    world.vhd.map.set_in_doubt(0);
    for _ in 0..4 {
        world.start(0, RequestKind::Read { offset: 0, len: LEN }, &guest);
    }
    assert_eq!(in_flight(&world), [(Kind::Read, A); 4]);
}

#[test]
fn a_write_that_one_replica_missed_is_acknowledged_once_that_is_stale() {
    for ok in [true, false] {
        let mut world = world();
        let token = write(&mut world, 1);
        finish(&mut world, Kind::Write, B, EIO);
        finish(&mut world, Kind::Write, A, Ok(()));
        assert_eq!(world.status(token), None, "not before the table says that one lacks it");
        assert_eq!(world.vhd.map.lookup(ExtentIndex(0)).claimed, BlockMask(1));
        let asked = asked(&world);
        assert_eq!(asked.iter().map(|(disk, _)| *disk).collect::<Vec<_>>(), [B]);
        answer(&mut world, asked[0], ok);
        assert_eq!(world.status(token), Some(if ok { Status::Ok } else { Status::IoError }));
        assert!(world.vhd.map.lookup(ExtentIndex(0)).claimed.is_empty());
    }
}

#[test]
fn a_write_that_no_replica_has_fails_without_a_question() {
    let mut world = world();
    let token = write(&mut world, 1);
    finish(&mut world, Kind::Write, B, EIO);
    finish(&mut world, Kind::Write, A, EIO);
    assert_eq!(world.status(token), Some(Status::IoError));
    assert!(asked(&world).is_empty());
}

#[test]
fn nothing_is_sent_to_a_failed_disk_if_there_is_another() {
    let mut world = world();
    world.disks[1].fail();
    let token = write(&mut world, 1);
    assert_eq!(in_flight(&world), [(Kind::Write, A)]);
    finish(&mut world, Kind::Write, A, Ok(()));
    assert_eq!(world.status(token), None);
    let asked = asked(&world);
    answer(&mut world, asked[0], true);
    assert_eq!(world.status(token), Some(Status::Ok));
    let read = world.start(0, RequestKind::Read { offset: 0, len: LEN }, &Guest::filled(4096, 0));
    assert_eq!(in_flight(&world), [(Kind::Read, A)]);
    finish(&mut world, Kind::Read, A, Ok(()));
    assert_eq!(world.status(read), Some(Status::Ok));
    world.disks[0].fail();
    let (write, read) =
        (write(&mut world, 2), world.start(0, RequestKind::Read { offset: 0, len: LEN }, &Guest::filled(4096, 0)));
    assert_eq!((world.status(write), world.status(read)), (Some(Status::IoError), Some(Status::IoError)));
}

#[test]
fn a_stale_replica_is_neither_written_nor_read() {
    let mut world = world();
    world.vhd.map.set_replicas(ExtentIndex(0), replicas(&[ReplicaState::Stale, ReplicaState::InSync]));
    let token = write(&mut world, 1);
    assert_eq!(in_flight(&world), [(Kind::Write, B)]);
    finish(&mut world, Kind::Write, B, Ok(()));
    assert_eq!(world.status(token), Some(Status::Ok));
    world.start(0, RequestKind::Read { offset: 0, len: LEN }, &Guest::filled(4096, 0));
    assert_eq!(in_flight(&world), [(Kind::Read, B)]);
}

#[test]
fn several_replicas_are_not_written_without_an_intent() {
    let mut world = world();
    world.vhd.map.clear_intent(0);
    let token = write(&mut world, 1);
    assert!(in_flight(&world).is_empty());
    assert!(world.answer_owner(), "it asks");
    assert_eq!(in_flight(&world).len(), 2);
    finish(&mut world, Kind::Write, B, Ok(()));
    finish(&mut world, Kind::Write, A, Ok(()));
    assert_eq!(world.status(token), Some(Status::Ok));
    // One replica needs none.
    world.vhd.map.clear_intent(0);
    world.vhd.map.set_replicas(ExtentIndex(0), replicas(&[ReplicaState::InSync, ReplicaState::Stale]));
    write(&mut world, 2);
    assert_eq!(in_flight(&world), [(Kind::Write, A)]);
}

#[test]
fn a_disk_that_hangs_is_done_without_once_it_has_failed() {
    let mut world = world();
    let first = write(&mut world, 1);
    finish(&mut world, Kind::Write, A, Ok(()));
    finish(&mut world, Kind::Write, B, Ok(()));
    assert_eq!(world.status(first), Some(Status::Ok));
    let late = write(&mut world, 2);
    let flush = world.flush(0);
    finish(&mut world, Kind::Write, A, Ok(()));
    finish(&mut world, Kind::Sync, A, Ok(()));
    assert_eq!((world.status(late), world.status(flush)), (None, None));
    world.disks[1].fail();
    world.tell(ReactorId(0), PipelineMessage::DiskFailed { disk: B });
    world.tell(ReactorId(0), PipelineMessage::DiskFailed { disk: B });
    let asked = asked(&world);
    assert_eq!(asked.len(), 2, "once for the write, once for the FLUSH: {asked:?}");
    asked.iter().for_each(|asked| answer(&mut world, *asked, true));
    assert_eq!((world.status(late), world.status(flush)), (Some(Status::Ok), Some(Status::Ok)));
    // What it has not answered keeps its slot from being used again.
    world.tell(ReactorId(0), PipelineMessage::Fence { fence: 5, disk: B });
    assert!(world.fences_reached().is_empty());
    finish(&mut world, Kind::Write, B, EIO);
    finish(&mut world, Kind::Sync, B, EIO);
    assert_eq!(world.fences_reached(), [5]);
}

/// A part of a disk block is read before it is written back: from another replica, if one cannot be read.
#[test]
fn a_disk_block_is_filled_from_another_replica() {
    let mut world = world_with(&Options { disk_block: 4096, ..Options::default() });
    let token = world.start(0, RequestKind::Write { offset: BLOCK, len: 512 }, &Guest::filled(512, 9));
    finish(&mut world, Kind::Read, A, EIO);
    finish(&mut world, Kind::Read, B, Ok(()));
    assert_eq!(in_flight(&world).len(), 2, "written back to both");
    finish(&mut world, Kind::Write, A, Ok(()));
    finish(&mut world, Kind::Write, B, Ok(()));
    assert_eq!(world.status(token), Some(Status::Ok));
    let token = world.start(0, RequestKind::Write { offset: BLOCK, len: 512 }, &Guest::filled(512, 9));
    finish(&mut world, Kind::Read, A, EIO);
    finish(&mut world, Kind::Read, B, EIO);
    assert_eq!(world.status(token), Some(Status::IoError));
    assert!(world.vhd.map.lookup(ExtentIndex(0)).claimed.is_empty());
    assert!(!world.pipelines[0].poll(Nanos(0)));
}
