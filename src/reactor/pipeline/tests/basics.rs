//! One behaviour each.

use super::world::{BLOCK, EXTENT, GARBAGE, Guest, Kind, Options, World};
use crate::base::ids::{DiskId, ReactorId};
use crate::base::rng::Rng;
use crate::base::units::{BlockMask, ExtentIndex, SlotIndex};
use crate::engine::IoError;
use crate::placement::ReplicaSet;
use crate::reactor::messages::{AllocateError, OwnerRequest};
use crate::reactor::pipeline::PipelineMessage;
use crate::store::change::ChangeKind;
use crate::virtio::request::{RequestKind, Status};

const LEN: u64 = 4096;

fn write_at(offset: u64) -> RequestKind {
    RequestKind::Write { offset, len: LEN }
}

fn guest(byte: u8) -> Guest {
    Guest::filled(4096, byte)
}

#[test]
fn what_was_never_written_reads_as_zeros_without_touching_a_disk() {
    let mut world = World::new(&Options::default());
    let buffer = guest(0x55);
    let token = world.start(0, RequestKind::Read { offset: 0, len: LEN }, &buffer);
    assert_eq!(world.status(token), Some(Status::Ok));
    assert!(buffer.bytes().iter().all(|&b| b == 0));
}

#[test]
fn a_first_write_pads_its_block_with_zeros_and_no_more() {
    let mut world = World::new(&Options::default());
    let token = world.start(0, write_at(BLOCK * 3 + 512), &guest(1));
    assert!(world.pipelines[0].engine.pending.is_empty(), "nothing to write to yet");
    assert!(world.answer_owner());
    let op = &world.pipelines[0].engine.pending[0];
    assert_eq!((op.kind, op.len()), (Kind::Write, BLOCK));
    assert_eq!(world.status(token), None);
    world.finish_op(0, 0, Ok(()));
    assert_eq!(world.status(token), Some(Status::Ok));
    let read = world.read(BLOCK * 3, 8192);
    assert!(read[..512].iter().all(|&b| b == 0));
    assert!(read[512..4608].iter().all(|&b| b == 1));
    assert!(read[4608..].iter().all(|&b| b == 0));
    let seen = world.vhd.map.lookup(ExtentIndex(0));
    assert_eq!((seen.present, seen.claimed), (BlockMask(1 << 3), BlockMask::NONE));
}

#[test]
fn a_first_write_hands_over_its_change_with_the_sync_that_covers_it() {
    let mut world = World::new(&Options::default());
    let begun_before = world.disks[0].begin_sync();
    assert_eq!(world.write(0, &guest(1)), Status::Ok);
    let changes = world.mail.borrow().changes.clone();
    let [change] = changes.as_slice() else { panic!("one change: {changes:?}") };
    let ChangeKind::Written { blocks, needs, .. } = change.kind else { panic!("{change:?}") };
    assert_eq!(blocks, BlockMask(1));
    let needed = needs[0].expect("one replica");
    assert!(needed.number > begun_before, "a sync that began before the write does not cover it");
    assert!(world.vhd.has_pending_changes());
}

#[test]
fn two_first_writes_to_one_block_both_survive() {
    for first in [0, 1] {
        let mut world = World::new(&Options::default());
        world.place(ExtentIndex(0));
        let a = world.start(0, RequestKind::Write { offset: 0, len: 512 }, &Guest::filled(512, 1));
        let b = world.start(0, RequestKind::Write { offset: 512, len: 512 }, &Guest::filled(512, 2));
        assert_eq!(world.pipelines[0].engine.pending.len(), 1, "the second waits for the first");
        let mut rng = Rng::new(first);
        world.settle(&mut rng);
        assert_eq!((world.status(a), world.status(b)), (Some(Status::Ok), Some(Status::Ok)));
        let read = world.read(0, 1024);
        assert!(read[..512].iter().all(|&x| x == 1) && read[512..].iter().all(|&x| x == 2));
    }
}

#[test]
fn first_writes_on_two_reactors_wait_for_each_other() {
    let mut world = World::new(&Options { reactors: 2, ..Options::default() });
    world.place(ExtentIndex(0));
    let a = world.start(0, RequestKind::Write { offset: 0, len: 512 }, &Guest::filled(512, 1));
    let b = world.start(1, RequestKind::Write { offset: 512, len: 512 }, &Guest::filled(512, 2));
    assert!(world.pipelines[1].engine.pending.is_empty());
    world.finish_op(0, 0, Ok(()));
    assert_eq!(world.status(a), Some(Status::Ok));
    assert!(world.pipelines[1].engine.pending.is_empty(), "not told yet");
    assert!(world.deliver());
    assert_eq!(world.pipelines[1].engine.pending.len(), 1);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(b), Some(Status::Ok));
    let read = world.read(0, 1024);
    assert!(read[..512].iter().all(|&x| x == 1) && read[512..].iter().all(|&x| x == 2));
}

#[test]
fn a_failed_first_write_leaves_the_block_absent() {
    let mut world = World::new(&Options::default());
    world.place(ExtentIndex(0));
    let token = world.start(0, write_at(0), &guest(1));
    world.finish_op(0, 0, Err(IoError::Os(libc::EIO)));
    assert_eq!(world.status(token), Some(Status::IoError));
    assert!(matches!(world.mail.borrow().owner[0], OwnerRequest::DiskError { sync: false, .. }));
    assert!(world.mail.borrow().changes.is_empty());
    assert!(world.read(0, 4096).iter().all(|&b| b == 0));
    assert_eq!(world.write(0, &guest(2)), Status::Ok, "the claim was given up");
}

#[test]
fn no_room_fails_only_the_write_that_asked() {
    let mut world = World::new(&Options::default());
    let token = world.start(0, write_at(0), &guest(1));
    let Some(OwnerRequest::Allocate { ticket, .. }) = world.mail.borrow_mut().owner.pop_front() else { panic!() };
    let result = Err(AllocateError::NoSpace);
    world.tell(ReactorId(0), PipelineMessage::Allocated { ticket, result });
    assert_eq!(world.status(token), Some(Status::IoError));
    world.tell(ReactorId(0), PipelineMessage::Allocated { ticket, result });
    assert_eq!(world.write(EXTENT, &guest(1)), Status::Ok);
}

#[test]
fn flush_syncs_then_commits_then_completes() {
    let mut world = World::new(&Options::default());
    assert_eq!(world.write(0, &guest(1)), Status::Ok);
    let flush = world.flush(0);
    assert_eq!(world.pipelines[0].engine.pending[0].kind, Kind::Sync);
    assert!(world.mail.borrow().commits.is_empty(), "the table comes after the data");
    world.finish_op(0, 0, Ok(()));
    assert_eq!(world.mail.borrow().commits.len(), 1);
    assert_eq!(world.status(flush), None);
    world.answer_commit(true);
    assert_eq!(world.status(flush), Some(Status::Ok));
}

#[test]
fn flush_costs_nothing_when_nothing_is_dirty_and_no_commit_when_the_table_is_clean() {
    let mut world = World::new(&Options::default());
    let flush = world.flush(0);
    assert_eq!(world.status(flush), Some(Status::Ok));
    world.write(0, &guest(1));
    world.flush(0);
    world.settle(&mut Rng::new(0));
    world.write(0, &guest(2));
    let flush = world.flush(0);
    world.finish_op(0, 0, Ok(()));
    assert_eq!(world.status(flush), Some(Status::Ok), "an overwrite changes no table");
    let flush = world.flush(0);
    assert_eq!(world.status(flush), Some(Status::Ok), "already synced");
}

#[test]
fn flush_does_not_trust_a_sync_that_began_before_the_write_completed() {
    let mut world = World::new(&Options::default());
    world.write(0, &guest(1));
    let early = world.flush(0);
    assert_eq!(world.pipelines[0].engine.pending.len(), 1);
    // Completes while the first sync is in flight: not covered by it.
    let write = world.start(0, write_at(0), &guest(2));
    world.finish_op(0, 1, Ok(()));
    assert_eq!(world.status(write), Some(Status::Ok));
    let late = world.flush(0);
    world.finish_op(0, 0, Ok(()));
    assert_eq!(world.pipelines[0].engine.pending.len(), 1, "a second sync");
    world.answer_commit(true);
    assert_eq!((world.status(early), world.status(late)), (Some(Status::Ok), None));
    world.finish_op(0, 0, Ok(()));
    assert_eq!(world.status(late), Some(Status::Ok));
}

#[test]
fn a_failed_sync_fails_the_flush_and_the_disk_for_good() {
    let mut world = World::new(&Options::default());
    world.write(0, &guest(1));
    let flush = world.flush(0);
    world.finish_op(0, 0, Err(IoError::Os(libc::EIO)));
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(flush), Some(Status::IoError));
    assert!(world.disks[0].is_failed());
    let again = world.flush(0);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(again), Some(Status::IoError), "never retried into success");
    assert_eq!(world.write(0, &guest(2)), Status::IoError);
}

#[test]
fn a_failed_commit_fails_the_flush() {
    let mut world = World::new(&Options::default());
    world.write(0, &guest(1));
    let flush = world.flush(0);
    world.finish_op(0, 0, Ok(()));
    world.answer_commit(false);
    assert_eq!(world.status(flush), Some(Status::IoError));
}

#[test]
fn a_writethrough_write_is_durable_when_it_completes() {
    let mut world = World::new(&Options::default());
    world.place(ExtentIndex(0));
    let token = world.start_as(0, write_at(0), &guest(1), true);
    world.finish_op(0, 0, Ok(()));
    assert_eq!(world.status(token), None);
    assert_eq!(world.pipelines[0].engine.pending[0].kind, Kind::Sync);
    world.finish_op(0, 0, Ok(()));
    assert_eq!(world.status(token), None);
    world.answer_commit(true);
    assert_eq!(world.status(token), Some(Status::Ok));
}

#[test]
fn discarded_blocks_read_as_zeros_and_whole_extents_are_given_back() {
    let mut world = World::new(&Options::default());
    let full = Guest::filled(usize::try_from(EXTENT).unwrap(), 9);
    world.write(0, &full);
    world.clear(0, RequestKind::Discard, BLOCK / 2, BLOCK * 2);
    world.settle(&mut Rng::new(0));
    let read = world.read(0, usize::try_from(BLOCK * 4).unwrap());
    let (block, half) = (usize::try_from(BLOCK).unwrap(), usize::try_from(BLOCK / 2).unwrap());
    assert!(read[..block].iter().all(|&b| b == 9), "a part of a block is left alone");
    assert!(read[block..2 * block].iter().all(|&b| b == 0));
    assert!(read[2 * block..2 * block + half].iter().all(|&b| b == 9));
    let slot = world.vhd.map.lookup(ExtentIndex(0)).replicas;
    world.clear(0, RequestKind::Discard, 0, EXTENT);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.freed, vec![slot]);
    assert!(world.vhd.map.lookup(ExtentIndex(0)).replicas.is_absent());
    assert!(world.read(0, 4096).iter().all(|&b| b == 0));
}

#[test]
fn write_zeroes_reaches_parts_of_blocks() {
    let mut world = World::new(&Options::default());
    world.write(0, &Guest::filled(usize::try_from(EXTENT).unwrap(), 9));
    world.clear(0, RequestKind::WriteZeroes, 512, BLOCK * 2);
    world.settle(&mut Rng::new(0));
    let read = world.read(0, usize::try_from(BLOCK * 3).unwrap());
    let end = 512 + usize::try_from(BLOCK * 2).unwrap();
    assert!(read[..512].iter().all(|&b| b == 9));
    assert!(read[512..end].iter().all(|&b| b == 0));
    assert!(read[end..].iter().all(|&b| b == 9));
}

#[test]
fn thick_vhds_keep_their_slots() {
    let mut world = World::new(&Options { thick: true, ..Options::default() });
    world.write(0, &guest(9));
    world.clear(0, RequestKind::Discard, 0, EXTENT);
    world.settle(&mut Rng::new(0));
    assert!(world.freed.is_empty());
    assert!(world.read(0, 4096).iter().all(|&b| b == 0));
}

#[test]
fn a_fence_waits_for_what_was_in_flight_on_its_disk_only() {
    let mut world = World::new(&Options::default());
    world.write(0, &guest(1));
    world.write(EXTENT, &guest(1));
    let old = world.start(0, RequestKind::Read { offset: 0, len: LEN }, &guest(0));
    world.tell(ReactorId(0), PipelineMessage::Fence { fence: 5, disk: DiskId(1) });
    assert_eq!(world.fences_reached(), vec![5], "nothing is in flight on the other disk");
    world.tell(ReactorId(0), PipelineMessage::Fence { fence: 6, disk: DiskId(0) });
    let new = world.start(0, RequestKind::Read { offset: 0, len: LEN }, &guest(0));
    world.finish_op(0, 1, Ok(()));
    assert_eq!(world.status(new), Some(Status::Ok));
    assert_eq!(world.fences_reached(), vec![5], "the older read still runs");
    world.finish_op(0, 0, Ok(()));
    assert_eq!(world.status(old), Some(Status::Ok));
    assert_eq!(world.fences_reached(), vec![5, 6]);
}

#[test]
fn misaligned_guest_buffers_bounce() {
    let options = Options { disk_block: 4096, guest_block: 4096, memory_alignment: 4096, ..Options::default() };
    let mut world = World::new(&options);
    let written = Guest::split(3 * 4096, 7, 512, 1024);
    assert_eq!(world.write(4096, &written), Status::Ok);
    let buffer = Guest::split(3 * 4096, 0, 3, 1000);
    let token = world.start(0, RequestKind::Read { offset: 4096, len: 3 * 4096 }, &buffer);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(token), Some(Status::Ok));
    assert!(buffer.bytes().iter().all(|&b| b == 7));
}

#[test]
fn small_writes_to_one_large_disk_block_both_survive() {
    let mut world = World::new(&Options { disk_block: 4096, ..Options::default() });
    world.write(0, &Guest::filled(8192, 9));
    let a = world.start(0, RequestKind::Write { offset: 512, len: 512 }, &Guest::filled(512, 1));
    let b = world.start(0, RequestKind::Write { offset: 2048, len: 512 }, &Guest::filled(512, 2));
    let whole = world.start(0, RequestKind::Write { offset: 4096, len: 4096 }, &Guest::filled(4096, 3));
    assert_eq!(world.pipelines[0].engine.pending.len(), 1, "they wait for each other");
    world.settle(&mut Rng::new(0));
    for token in [a, b, whole] {
        assert_eq!(world.status(token), Some(Status::Ok));
    }
    let read = world.read(0, 8192);
    let expected = |i: usize| match i {
        512..1024 => 1,
        2048..2560 => 2,
        4096.. => 3,
        _ => 9,
    };
    assert!(read.iter().enumerate().all(|(i, &b)| b == expected(i)));
}

#[test]
fn large_misaligned_requests_bounce_in_parts() {
    let mut world = World::new(&Options { extents: 8, ..Options::default() });
    let len = usize::try_from(EXTENT * 3).unwrap();
    let mut written = Guest::split(len, 0, 1, 9000);
    written.fill_with(|bytes| bytes.iter_mut().enumerate().for_each(|(i, b)| *b = u8::try_from(i % 251).unwrap()));
    assert_eq!(world.write(512, &written), Status::Ok);
    assert!(world.read(512, len).iter().enumerate().all(|(i, &b)| usize::from(b) == i % 251));
    let buffer = Guest::split(len, 0, 5, 11_000);
    let token = world.start(0, RequestKind::Read { offset: 512, len: len as u64 }, &buffer);
    world.settle(&mut Rng::new(0));
    assert_eq!(world.status(token), Some(Status::Ok));
    assert!(buffer.bytes() == written.bytes());
}

#[test]
fn a_full_engine_makes_requests_wait_and_nothing_fail() {
    let mut world = World::new(&Options { engine_slots: 3, ..Options::default() });
    world.write(0, &Guest::filled(usize::try_from(EXTENT).unwrap(), 3));
    let buffers: Vec<_> = (0..10).map(|_| guest(0)).collect();
    let kinds = (0..10).map(|i| RequestKind::Read { offset: i * LEN, len: LEN });
    let tokens: Vec<_> = kinds.zip(&buffers).map(|(kind, buffer)| world.start(0, kind, buffer)).collect();
    assert_eq!(world.pipelines[0].engine.pending.len(), 2);
    world.settle(&mut Rng::new(0));
    for (token, buffer) in tokens.into_iter().zip(&buffers) {
        assert_eq!(world.status(token), Some(Status::Ok));
        assert!(buffer.bytes().iter().all(|&b| b == 3));
    }
}

#[test]
fn get_id_answers_the_uuid() {
    let mut world = World::new(&Options::default());
    let buffer = Guest::filled(20, 0xff);
    let token = world.start(0, RequestKind::GetId, &buffer);
    assert_eq!(world.status(token), Some(Status::Ok));
    assert_eq!(buffer.bytes(), b"00000000000000000000");
}

#[test]
fn a_deleted_vhd_fails_every_request() {
    let mut world = World::new(&Options::default());
    world.vhd.mark_deleted();
    assert_eq!(world.write(0, &guest(1)), Status::IoError);
}

#[test]
fn a_request_that_waited_while_its_vhd_was_deleted_does_not_touch_a_disk() {
    let mut world = World::new(&Options::default());
    let token = world.start(0, write_at(0), &guest(1));
    let Some(OwnerRequest::Allocate { ticket, .. }) = world.mail.borrow_mut().owner.pop_front() else { panic!() };
    world.vhd.map.place(ExtentIndex(0), ReplicaSet::single(DiskId(0), SlotIndex(0)));
    world.vhd.mark_deleted();
    world.tell(ReactorId(0), PipelineMessage::Allocated { ticket, result: Ok(()) });
    assert!(world.pipelines[0].engine.pending.is_empty());
    assert_eq!(world.status(token), Some(Status::IoError));
}

#[test]
fn disks_full_of_garbage_never_show_it() {
    let mut world = World::new(&Options::default());
    world.write(BLOCK * 5 + 1024, &guest(1));
    let read = world.read(0, usize::try_from(EXTENT).unwrap());
    assert!(read.iter().all(|&b| b != GARBAGE));
}

/// Otherwise a power cut brings back what the second request, completed and flushed, has zeroed.
#[test]
fn zeroing_what_another_request_is_discarding_completes_after_the_change_is_handed_over() {
    for (offset, len) in [(0, EXTENT), (BLOCK, BLOCK), (512, 512)] {
        let mut world = World::new(&Options { reactors: 2, ..Options::default() });
        assert_eq!(world.write(0, &guest(1)), Status::Ok);
        assert_eq!(world.write(BLOCK, &guest(1)), Status::Ok);
        let flush = world.flush(0);
        world.settle(&mut Rng::new(0));
        assert_eq!(world.status(flush), Some(Status::Ok));
        assert!(!world.vhd.has_pending_changes());
        let discard = world.clear(0, RequestKind::Discard, 0, EXTENT);
        let zeroes = world.clear(1, RequestKind::WriteZeroes, offset, len);
        assert_eq!(world.status(zeroes), None, "the owner has not dropped the extent");
        assert!(world.answer_owner());
        assert!(world.vhd.has_pending_changes());
        world.settle(&mut Rng::new(0));
        assert_eq!((world.status(discard), world.status(zeroes)), (Some(Status::Ok), Some(Status::Ok)));
    }
}
