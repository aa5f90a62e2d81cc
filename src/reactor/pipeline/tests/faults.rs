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
