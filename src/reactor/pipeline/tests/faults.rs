//! What guests and disks do wrong, and long lives.

use super::world::{EXTENT, Guest, Options, World};
use crate::base::ids::DiskId;
use crate::base::limits::GENERATION_MAX;
use crate::base::rng::Rng;
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use crate::engine::IoError;
use crate::placement::ReplicaSet;
use crate::reactor::messages::OwnerRequest;
use crate::virtio::request::{RequestKind, Status};

#[test]
fn memory_that_a_frontend_took_away_is_no_fault_of_the_disk() {
    let mut world = World::new(&Options::default());
    world.place(ExtentIndex(0));
    for (errno, blamed) in [(libc::EFAULT, 0), (libc::EIO, 1)] {
        let token = world.start(0, RequestKind::Write { offset: 0, len: 512 }, &Guest::filled(512, 1));
        world.finish_op(0, 0, Err(IoError::Os(errno)));
        assert_eq!(world.status(token), Some(Status::IoError));
        let errors = world.mail.borrow().owner.iter().filter(|m| matches!(m, OwnerRequest::DiskError { .. })).count();
        assert_eq!(errors, blamed);
    }
}

/// The ring of such a guest breaks, so that it cannot go on asking for repairs of replicas that may differ.
#[test]
fn a_guest_whose_own_buffers_are_missing_is_told_from_one_that_has_nothing_to_do_with_it() {
    const EFAULT: Result<(), IoError> = Err(IoError::Os(libc::EFAULT));
    let mut world = World::new(&Options::default());
    world.place(ExtentIndex(0));
    let whole = Guest::filled(512, 1);
    // Copied first, into memory of ours.
    let skewed = Guest::split(512, 1, 3, 512);
    let write = RequestKind::Write { offset: 0, len: 512 };
    assert_eq!(world.write(0, &whole), Status::Ok);
    let read = RequestKind::Read { offset: 0, len: 512 };
    let moved = [(write, &whole, true), (read, &whole, true), (write, &skewed, false), (read, &skewed, false)];
    for (kind, guest, lost) in moved {
        let token = world.start(0, kind, guest);
        world.finish_op(0, 0, EFAULT);
        assert_eq!((world.status(token), world.has_lost_memory(token)), (Some(Status::IoError), lost), "{kind:?}");
    }
    // Zeros are ours, too.
    let token = world.clear(0, RequestKind::WriteZeroes, 0, 512);
    world.finish_op(0, 0, EFAULT);
    assert_eq!((world.status(token), world.has_lost_memory(token)), (Some(Status::IoError), false));
    let token = world.start(0, write, &whole);
    world.finish_op(0, 0, Ok(()));
    assert_eq!((world.status(token), world.has_lost_memory(token)), (Some(Status::Ok), false));
}

#[test]
fn an_extent_that_was_freed_too_often_keeps_its_slot() {
    let mut world = World::new(&Options::default());
    for (generation, freed) in [(GENERATION_MAX - 2, 1), (GENERATION_MAX, 0)] {
        let replicas = ReplicaSet::single(DiskId(0), SlotIndex(3));
        world.vhd.map.restore(ExtentIndex(1), replicas, BlockMask::ALL, Generation(generation));
        let discard = world.clear(0, RequestKind::Discard, EXTENT, EXTENT);
        world.settle(&mut Rng::new(0));
        assert_eq!(world.status(discard), Some(Status::Ok));
        assert_eq!(world.freed.len(), freed);
        assert!(world.read(EXTENT, 4096).iter().all(|&byte| byte == 0));
        world.freed.clear();
    }
}
