//! VHDs whose blocks have checksums, on disks that change what was written.

use super::world::{BLOCK, EXTENT, Guest, Kind, Options, World};
use crate::base::ids::DiskId;
use crate::base::rng::Rng;
use crate::base::units::{ExtentIndex, SlotIndex};
use crate::engine::IoError;
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::reactor::messages::OwnerRequest;
use crate::reactor::pipeline::Token;
use crate::virtio::request::{RequestKind, Status};

const A: DiskId = DiskId(0);
const B: DiskId = DiskId(1);
const SLOT: u32 = 3;

/// One extent on so many disks, in which block 0 holds 7 and block 1 holds 8.
fn world(disks: &[DiskId]) -> World {
    let world = &mut World::new(&Options { checksums: true, ..Options::default() });
    let mut set = ReplicaSet::ABSENT;
    disks.iter().for_each(|disk| set.push(Replica { disk: *disk, slot: SlotIndex(SLOT), state: ReplicaState::InSync }));
    world.vhd.map.place(ExtentIndex(0), set);
    for (offset, byte) in [(0, 7), (BLOCK, 8)] {
        assert_eq!(world.write(offset, &Guest::filled(BLOCK_LEN, byte)), Status::Ok);
    }
    std::mem::replace(world, World::new(&Options::default()))
}

#[allow(clippy::cast_possible_truncation, reason = "a small constant")]
const BLOCK_LEN: usize = BLOCK as usize;

fn start_read(world: &mut World, offset: u64, len: usize) -> (Token, Guest) {
    let guest = Guest::filled(len, 0x55);
    (world.start(0, RequestKind::Read { offset, len: len as u64 }, &guest), guest)
}

/// Reads and waits. The status, and the bytes: each with how often it follows itself.
fn read(world: &mut World, offset: u64, len: usize) -> (Status, Vec<(u8, usize)>) {
    let (token, guest) = start_read(world, offset, len);
    world.settle(&mut Rng::new(1));
    (world.status(token).unwrap(), runs(&guest))
}

fn runs(guest: &Guest) -> Vec<(u8, usize)> {
    guest.bytes().chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
}

/// The disks of which the owner was told that they cannot be read, or are wrong.
fn told(world: &World) -> Vec<(DiskId, bool)> {
    let told = |request: OwnerRequest| match request {
        OwnerRequest::ReadFailed { disk, .. } => Some((disk, false)),
        OwnerRequest::DiskError { disk, error: IoError::Checksum, .. } => Some((disk, true)),
        _ => None,
    };
    world.mail.borrow_mut().owner.drain(..).filter_map(told).collect()
}

#[test]
fn what_a_disk_has_changed_never_reaches_the_guest() {
    let mut world = world(&[A]);
    world.damage(A, SLOT, BLOCK + 100);
    assert_eq!(read(&mut world, 0, BLOCK_LEN), (Status::Ok, vec![(7, BLOCK_LEN)]), "another block");
    // Wherever in the block the guest looks.
    for offset in [BLOCK, BLOCK + 4096] {
        let (token, guest) = start_read(&mut world, offset, 512);
        while !world.pipelines[0].engine.pending.is_empty() {
            world.finish_op(0, 0, Ok(()));
        }
        assert_eq!(world.status(token), Some(Status::IoError));
        assert_eq!(runs(&guest), [(0x55, 512)]);
        assert!(told(&world).contains(&(A, true)));
    }
    assert!(world.vhd.checksum_errors.load(std::sync::atomic::Ordering::Relaxed) > 0);
    assert!(world.vhd.map.lookup(ExtentIndex(0)).claimed.is_empty());
    // A part of it cannot be written either: what is around it is lost. All of it can.
    assert_eq!(world.write(BLOCK + 512, &Guest::filled(512, 9)), Status::IoError);
    assert_eq!(world.write(BLOCK, &Guest::filled(BLOCK_LEN, 9)), Status::Ok);
    assert_eq!(read(&mut world, BLOCK, BLOCK_LEN), (Status::Ok, vec![(9, BLOCK_LEN)]));
}

#[test]
fn another_replica_answers_and_the_owner_is_told_which_one_is_wrong() {
    for (wrong, offset) in [(A, 0), (B, 0), (A, BLOCK), (B, BLOCK)] {
        let mut world = world(&[A, B]);
        world.damage(wrong, SLOT, offset);
        told(&world);
        for _ in 0..3 {
            let right = vec![(7, BLOCK_LEN), (8, BLOCK_LEN)];
            assert_eq!(read(&mut world, 0, 2 * BLOCK_LEN), (Status::Ok, right));
        }
        // Nobody takes the owner's mail meanwhile.
        let (token, _guest) = start_read(&mut world, offset, BLOCK_LEN);
        while !world.pipelines[0].engine.pending.is_empty() {
            world.finish_op(0, 0, Ok(()));
        }
        assert_eq!(world.status(token), Some(Status::Ok));
        // It begins with the first one, as long as nothing else is in flight.
        let expected: &[_] = if wrong == A { &[(A, false), (A, true)] } else { &[] };
        assert_eq!(told(&world), expected);
        // A write of a part is made of what is right.
        assert_eq!(world.write(offset + 512, &Guest::filled(512, 9)), Status::Ok);
        let (_, bytes) = read(&mut world, offset, 1536);
        let byte = if offset == 0 { 7 } else { 8 };
        assert_eq!(bytes, [(byte, 512), (9, 512), (byte, 512)]);
    }
}

#[test]
fn a_read_that_meets_a_write_is_not_an_error() {
    let mut world = world(&[A]);
    let (token, guest) = start_read(&mut world, 0, BLOCK_LEN);
    let write = world.start(0, RequestKind::Write { offset: 0, len: BLOCK }, &Guest::filled(BLOCK_LEN, 9));
    // The write is done first, its checksum is known, and then the read has read what was there before it.
    let pending = &world.pipelines[0].engine.pending;
    assert_eq!(pending.iter().map(|op| op.kind).collect::<Vec<_>>(), [Kind::Read, Kind::Write]);
    let before = world.image(A, SLOT);
    world.finish_op(0, 1, Ok(()));
    assert_eq!(world.status(write), Some(Status::Ok));
    let after = world.image(A, SLOT);
    world.set_image(A, SLOT, &before);
    world.finish_op(0, 0, Ok(()));
    world.set_image(A, SLOT, &after);
    world.settle(&mut Rng::new(1));
    assert_eq!((world.status(token), runs(&guest)), (Some(Status::Ok), vec![(9, BLOCK_LEN)]), "it reads once more");
    assert_eq!((told(&world), world.vhd.checksum_errors.load(std::sync::atomic::Ordering::Relaxed)), (Vec::new(), 0));
}

#[test]
fn a_failed_write_leaves_a_block_of_which_nobody_knows_what_is_in_it() {
    let mut world = world(&[A]);
    let write = world.start(0, RequestKind::Write { offset: 0, len: BLOCK }, &Guest::filled(BLOCK_LEN, 9));
    world.finish_op(0, 0, Err(IoError::Os(libc::EIO)));
    world.settle(&mut Rng::new(1));
    assert_eq!(world.status(write), Some(Status::IoError));
    assert_eq!(world.vhd.map.checksum(ExtentIndex(0), 0), None);
    assert_eq!(read(&mut world, 0, BLOCK_LEN).0, Status::Ok);
}

#[test]
fn one_replica_is_not_written_without_an_intent_either() {
    let mut world = world(&[A]);
    world.vhd.map.clear_intent(0);
    world.start(0, RequestKind::Write { offset: 0, len: EXTENT }, &Guest::filled(BLOCK_LEN * 32, 9));
    assert!(world.pipelines[0].engine.pending.is_empty());
    let asks = |request: &OwnerRequest| matches!(request, OwnerRequest::Intend { .. });
    assert!(world.mail.borrow().owner.iter().any(asks));
    world.settle(&mut Rng::new(1));
}

#[test]
fn replicas_that_are_wrong_in_different_blocks_answer_together() {
    let mut world = world(&[A, B]);
    world.damage(A, SLOT, 5);
    world.damage(B, SLOT, BLOCK + 5);
    let right = vec![(7, BLOCK_LEN), (8, BLOCK_LEN)];
    assert_eq!(read(&mut world, 0, 2 * BLOCK_LEN), (Status::Ok, right));
    world.damage(B, SLOT, 5);
    assert_eq!(read(&mut world, 0, 2 * BLOCK_LEN).0, Status::IoError, "one that is wrong everywhere");
}
