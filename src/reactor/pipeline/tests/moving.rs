//! Requests to extents that are being moved.

use super::world::{BLOCK, Guest, Kind, Options, World};
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, ReactorId};
use crate::base::units::{BlockMask, ExtentIndex, SlotIndex};
use crate::engine::IoError;
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::reactor::messages::{MissedBy, OwnerRequest};
use crate::reactor::pipeline::{PipelineMessage, Token};
use crate::store::change::ChangeKind;
use crate::virtio::request::{RequestKind, Status};

const E: ExtentIndex = ExtentIndex(0);
const SOURCE: DiskId = DiskId(0);
const TARGET: DiskId = DiskId(1);
const LATE: Nanos = Nanos(2_100_000_000);

/// Extent 0 has its first block, on the source, and a copy is made on the target.
fn world(state: ReplicaState) -> World {
    let world = World::new(&Options::default());
    world.vhd.map.place(E, ReplicaSet::single(SOURCE, SlotIndex(3)));
    let seen = world.vhd.map.lookup(E);
    world.vhd.map.claim_absent(E, BlockMask(1), seen.version).unwrap();
    world.vhd.map.release(E, BlockMask(1), BlockMask(1));
    let mut copies = seen.replicas;
    copies.push(Replica { disk: TARGET, slot: SlotIndex(5), state });
    world.vhd.map.set_replicas(E, copies);
    world.vhd.map.set_intent(0);
    world.mail.borrow_mut().owner.clear();
    world
}

fn write(world: &mut World, offset: u64, guest: &Guest) -> Token {
    world.start(0, RequestKind::Write { offset, len: 4096 }, guest)
}

/// The operation in flight of that kind on that disk.
fn pending(world: &World, kind: Kind, disk: DiskId) -> Option<usize> {
    world.pipelines[0].engine.pending.iter().position(|op| op.kind == kind && op.disk == disk)
}

fn finish(world: &mut World, kind: Kind, disk: DiskId, result: Result<(), IoError>) {
    let index = pending(world, kind, disk).expect("an operation in flight");
    world.finish_op(0, index, result);
}

/// What the owner was asked about a copy.
fn asked(world: &World) -> Option<MissedBy> {
    world.mail.borrow_mut().owner.drain(..).find_map(|request| match request {
        OwnerRequest::CopyMissed { disk: TARGET, by, .. } => Some(by),
        _ => None,
    })
}

fn answer(world: &mut World, by: MissedBy, ok: bool) {
    world.tell(ReactorId(0), PipelineMessage::CopyDropped { by, disk: TARGET, ok });
}

#[test]
fn a_write_goes_to_every_copy_and_claims_its_blocks() {
    goes_to_every_copy(ReplicaState::Syncing);
}

/// Else the one write could be the last on one disk, and the other on the other.
#[test]
fn overlapping_writes_to_replicas_go_one_after_the_other() {
    goes_to_every_copy(ReplicaState::InSync);
}

fn goes_to_every_copy(state: ReplicaState) {
    let mut world = world(state);
    let guest = Guest::filled(4096, 1);
    let first = write(&mut world, 0, &guest);
    assert_eq!(world.vhd.map.lookup(E).claimed, BlockMask(1));
    let overlapping = write(&mut world, BLOCK - 4096, &guest);
    assert_eq!(world.pipelines[0].engine.pending.len(), 2, "the second one waits for the first");
    finish(&mut world, Kind::Write, SOURCE, Ok(()));
    assert_eq!(world.status(first), None);
    finish(&mut world, Kind::Write, TARGET, Ok(()));
    assert_eq!(world.status(first), Some(Status::Ok));
    world.pipelines[0].poll(Nanos(0));
    assert_eq!(world.pipelines[0].engine.pending.len(), 2, "now it goes on");
    finish(&mut world, Kind::Write, TARGET, Ok(()));
    finish(&mut world, Kind::Write, SOURCE, Ok(()));
    assert_eq!(world.status(overlapping), Some(Status::Ok));
}

#[test]
fn writers_let_the_copier_go_first() {
    let mut world = world(ReplicaState::Syncing);
    world.vhd.set_copier_waits(Some(E));
    let guest = Guest::filled(4096, 1);
    let token = write(&mut world, 0, &guest);
    assert!(world.pipelines[0].engine.pending.is_empty());
    world.vhd.set_copier_waits(None);
    world.tell(ReactorId(0), PipelineMessage::ClaimReleased { vhd: world.vhd.id() });
    finish(&mut world, Kind::Write, SOURCE, Ok(()));
    finish(&mut world, Kind::Write, TARGET, Ok(()));
    assert_eq!(world.status(token), Some(Status::Ok));
}

#[test]
fn flush_syncs_a_copy_only_once_it_is_sealing() {
    for (state, disks) in [(ReplicaState::Syncing, 1), (ReplicaState::Sealing, 2)] {
        let mut world = world(state);
        let guest = Guest::filled(4096, 1);
        write(&mut world, 0, &guest);
        finish(&mut world, Kind::Write, SOURCE, Ok(()));
        finish(&mut world, Kind::Write, TARGET, Ok(()));
        world.flush(0);
        assert_eq!(
            world.pipelines[0].engine.pending.iter().filter(|op| op.kind == Kind::Sync).count(),
            disks,
            "{state:?}"
        );
    }
}

#[test]
fn what_a_first_write_needs_is_what_flush_syncs() {
    for (state, needs) in [(ReplicaState::Syncing, 1), (ReplicaState::Sealing, 2)] {
        let mut world = world(state);
        let guest = Guest::filled(4096, 1);
        write(&mut world, 2 * BLOCK, &guest);
        finish(&mut world, Kind::Write, SOURCE, Ok(()));
        finish(&mut world, Kind::Write, TARGET, Ok(()));
        let mail = world.mail.borrow();
        let ChangeKind::Written { replicas, needs: found, .. } = mail.changes[0].kind else { panic!() };
        assert_eq!(found.iter().flatten().count(), needs, "{state:?}");
        assert_eq!(replicas, ReplicaSet::single(SOURCE, SlotIndex(3)), "the table names no copy that is being made");
    }
}

#[test]
fn an_error_of_the_target_is_the_owners_business_first() {
    for (ok, status) in [(true, Status::Ok), (false, Status::IoError)] {
        let mut world = world(ReplicaState::Sealing);
        let guest = Guest::filled(4096, 1);
        let token = write(&mut world, 0, &guest);
        finish(&mut world, Kind::Write, TARGET, Err(IoError::Os(libc::EIO)));
        assert!(asked(&world).is_none(), "not before the other copies have it");
        finish(&mut world, Kind::Write, SOURCE, Ok(()));
        let by = asked(&world).expect("the owner is asked");
        assert_eq!(world.status(token), None);
        assert_eq!(world.vhd.map.lookup(E).claimed, BlockMask(1), "nobody else writes meanwhile");
        answer(&mut world, by, ok);
        assert_eq!(world.status(token), Some(status));
        assert!(world.vhd.map.lookup(E).claimed.is_empty());
    }
}

#[test]
fn an_error_of_the_source_fails_the_write() {
    let mut world = world(ReplicaState::Syncing);
    let guest = Guest::filled(4096, 1);
    let token = write(&mut world, 0, &guest);
    finish(&mut world, Kind::Write, SOURCE, Err(IoError::Os(libc::EIO)));
    finish(&mut world, Kind::Write, TARGET, Ok(()));
    assert_eq!(world.status(token), Some(Status::IoError));
}

#[test]
fn a_target_that_has_failed_is_not_written_to() {
    let mut world = world(ReplicaState::Syncing);
    world.disks[1].fail();
    let guest = Guest::filled(4096, 1);
    let token = write(&mut world, 0, &guest);
    finish(&mut world, Kind::Write, SOURCE, Ok(()));
    let by = asked(&world).expect("the owner is asked");
    answer(&mut world, by, true);
    assert_eq!(world.status(token), Some(Status::Ok));
}

#[test]
fn a_write_does_not_wait_for_a_target_that_hangs() {
    let mut world = world(ReplicaState::Syncing);
    let guest = Guest::filled(4096, 1);
    let token = write(&mut world, 0, &guest);
    finish(&mut world, Kind::Write, SOURCE, Ok(()));
    assert!(world.pipelines[0].wants_tick());
    world.pipelines[0].tick(Nanos(1_000_000_000));
    assert!(asked(&world).is_none(), "patience");
    world.pipelines[0].tick(LATE);
    let by = asked(&world).expect("the owner is asked");
    world.vhd.map.set_replicas(E, ReplicaSet::single(SOURCE, SlotIndex(3)));
    answer(&mut world, by, true);
    assert_eq!(world.status(token), Some(Status::Ok));
    assert!(!world.pipelines[0].wants_tick());
    // The operation is still out there: the slot must not be used again.
    world.tell(ReactorId(0), PipelineMessage::Fence { fence: 9, disk: TARGET });
    assert!(world.fences_reached().is_empty());
    finish(&mut world, Kind::Write, TARGET, Ok(()));
    assert_eq!(world.fences_reached(), [9]);
    assert!(world.pipelines[0].is_idle());
}

#[test]
fn a_flush_does_not_wait_for_a_target_that_hangs() {
    for ok in [true, false] {
        let mut world = world(ReplicaState::Sealing);
        let guest = Guest::filled(4096, 1);
        write(&mut world, 0, &guest);
        finish(&mut world, Kind::Write, SOURCE, Ok(()));
        finish(&mut world, Kind::Write, TARGET, Ok(()));
        let flush = world.flush(0);
        finish(&mut world, Kind::Sync, SOURCE, Ok(()));
        world.pipelines[0].tick(LATE);
        let by = asked(&world).expect("the owner is asked");
        answer(&mut world, by, ok);
        if !ok {
            // The extent lives there by now: a disk that only hangs is waited for.
            assert_eq!(world.status(flush), None);
            finish(&mut world, Kind::Sync, TARGET, Ok(()));
        }
        assert_eq!(world.status(flush), Some(Status::Ok), "{ok}");
    }
}

#[test]
fn a_flush_needs_no_sync_of_a_target_that_failed() {
    let mut world = world(ReplicaState::Sealing);
    let guest = Guest::filled(4096, 1);
    write(&mut world, 0, &guest);
    finish(&mut world, Kind::Write, SOURCE, Ok(()));
    finish(&mut world, Kind::Write, TARGET, Ok(()));
    let flush = world.flush(0);
    finish(&mut world, Kind::Sync, SOURCE, Ok(()));
    finish(&mut world, Kind::Sync, TARGET, Err(IoError::Os(libc::EIO)));
    let by = asked(&world).expect("the owner is asked");
    answer(&mut world, by, true);
    assert_eq!(world.status(flush), Some(Status::Ok));
    // The next one meets a disk that has failed.
    let again = world.flush(0);
    let by = asked(&world).expect("the owner is asked");
    answer(&mut world, by, true);
    assert_eq!(world.status(again), Some(Status::Ok));
}

#[test]
fn an_extent_is_read_from_where_it_is_in_sync() {
    for state in [ReplicaState::Syncing, ReplicaState::Sealing] {
        let mut world = world(state);
        let guest = Guest::filled(4096, 1);
        world.start(0, RequestKind::Read { offset: 0, len: 4096 }, &guest);
        assert!(pending(&world, Kind::Read, SOURCE).is_some() && world.pipelines[0].engine.pending.len() == 1);
    }
}

/// Otherwise it could end up on top of what is written there after it has been answered, from memory that holds something else by
/// then.
#[test]
fn a_late_write_to_what_is_the_extents_place_by_now_is_waited_for() {
    for result in [Ok(()), Err(IoError::Os(libc::EIO))] {
        let mut world = world(ReplicaState::Sealing);
        let guest = Guest::filled(4096, 1);
        let token = write(&mut world, 0, &guest);
        finish(&mut world, Kind::Write, SOURCE, Ok(()));
        world.pipelines[0].tick(LATE);
        let by = asked(&world).expect("the owner is asked");
        world.vhd.map.set_replicas(E, ReplicaSet::single(TARGET, SlotIndex(5)));
        answer(&mut world, by, false);
        assert_eq!(world.status(token), None, "the disk only hangs");
        assert_eq!(world.vhd.map.lookup(E).claimed, BlockMask(1), "nobody else writes meanwhile");
        world.pipelines[0].tick(Nanos(2 * LATE.0));
        assert!(asked(&world).is_none(), "it has been answered");
        finish(&mut world, Kind::Write, TARGET, result);
        if result.is_err() {
            let by = asked(&world).expect("an error is another matter");
            answer(&mut world, by, false);
        }
        let status = if result.is_ok() { Status::Ok } else { Status::IoError };
        assert_eq!(world.status(token), Some(status));
        assert!(world.vhd.map.lookup(E).claimed.is_empty() && world.pipelines[0].is_idle());
    }
}

#[test]
fn a_late_write_may_complete_before_the_owner_answers() {
    for (ok, result) in [(true, Ok(())), (false, Ok(())), (true, Err(IoError::Os(libc::EIO)))] {
        let mut world = world(ReplicaState::Sealing);
        let guest = Guest::filled(4096, 1);
        let token = write(&mut world, 0, &guest);
        world.pipelines[0].tick(LATE);
        let by = asked(&world).expect("the owner is asked");
        finish(&mut world, Kind::Write, TARGET, result);
        finish(&mut world, Kind::Write, SOURCE, Ok(()));
        assert_eq!(world.status(token), None, "the answer names it");
        assert!(asked(&world).is_none(), "one question at a time");
        answer(&mut world, by, ok);
        assert_eq!(world.status(token), Some(Status::Ok));
        assert!(world.pipelines[0].is_idle());
    }
}

#[test]
fn a_late_write_waits_for_the_other_copies() {
    let mut world = world(ReplicaState::Syncing);
    let guest = Guest::filled(4096, 1);
    let token = write(&mut world, 0, &guest);
    world.pipelines[0].tick(LATE);
    let by = asked(&world).expect("the owner is asked");
    answer(&mut world, by, true);
    assert_eq!(world.status(token), None);
    finish(&mut world, Kind::Write, SOURCE, Ok(()));
    assert_eq!(world.status(token), Some(Status::Ok));
    finish(&mut world, Kind::Write, TARGET, Ok(()));
    assert!(world.pipelines[0].is_idle());
}
