//! Where the time of requests goes, and what they touch.

use super::world::{EXTENT, Guest, Options, World};
use crate::base::clock::Nanos;
use crate::base::ids::ReactorId;
use crate::base::rng::Rng;
use crate::base::units::ExtentIndex;
use crate::metrics::heat::Window;
use crate::metrics::{IoKind, Stage, TransferTotals};
use crate::reactor::pipeline::PipelineMessage;
use crate::virtio::request::{RequestKind, Status};

const MILLI: u64 = 1_000_000;

fn totals(world: &World, kind: IoKind) -> TransferTotals {
    TransferTotals::of(world.vhd.metrics.iter().filter_map(|metrics| metrics.transfers(kind)))
}

/// Of a stage: how many requests, and the sum of their times in milliseconds.
fn stage(totals: &TransferTotals, stage: Stage) -> (u64, u64) {
    let (ns, counts) = &totals.stages[stage as usize];
    (counts.iter().sum(), ns / MILLI)
}

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

#[test]
fn waiting_for_room_is_admission_and_the_disk_is_the_disk() {
    let mut world = written(&Options { disks: 1, extents: 2, engine_slots: 2, ..Options::default() });
    let guest = Guest::filled(4096, 0);
    let read = |offset| RequestKind::Read { offset, len: 4096 };
    let tokens = [world.start(0, read(0), &guest), world.start(0, read(4096), &guest)];
    assert_eq!(world.pipelines[0].engine.pending.len(), 1, "the other one has no room");
    for at in [1, 4] {
        world.pipelines[0].engine.finish(0, Ok(()));
        world.pipelines[0].poll(Nanos(at * MILLI));
    }
    assert!(tokens.into_iter().all(|token| world.status(token) == Some(Status::Ok)));
    let reads = totals(&world, IoKind::Read);
    assert_eq!(stage(&reads, Stage::Admission), (2, 1));
    assert_eq!(stage(&reads, Stage::Disk), (2, 1 + 3));
    assert_eq!((reads.sequential, reads.sizes[3], reads.size_sum), (1, 2, 8192));
    // What the disk was asked, too.
    let of_disk = TransferTotals::of(world.disks[0].metrics.iter().filter_map(|of| of.transfers(IoKind::Read)));
    assert_eq!((of_disk.sizes[3], of_disk.sequential), (2, 1));
}

#[test]
fn time_in_the_virtqueue_is_admission() {
    let mut world = written(&Options { disks: 1, extents: 1, ..Options::default() });
    let pipeline = &mut world.pipelines[0];
    for waited in [5 * MILLI, 0] {
        let slot = pipeline.prepare().unwrap();
        pipeline.request_mut(slot).reset(RequestKind::Read { offset: 0, len: 0 });
        pipeline.waited(slot, waited);
        pipeline.start(slot, &world.vhd, false, super::super::Token(9), Nanos(7 * MILLI));
        assert_eq!(pipeline.next_finished().unwrap().back_ns, 0);
    }
    // The second request has the slot of the first, and not its time.
    assert_eq!(stage(&totals(&world, IoKind::Read), Stage::Admission), (2, 5));
    let held: u64 = world.vhd.metrics.iter().map(|of| of.held_ns.load(std::sync::atomic::Ordering::Relaxed)).sum();
    assert_eq!(held, 5 * MILLI);
}

#[test]
fn a_commit_is_completion() {
    let mut world = World::new(&Options { disks: 1, extents: 1, ..Options::default() });
    world.place(ExtentIndex(0));
    let token = world.start_as(0, RequestKind::Write { offset: 0, len: 4096 }, &Guest::filled(4096, 1), true);
    for at in [1, 3] {
        world.pipelines[0].engine.finish(0, Ok(()));
        world.pipelines[0].poll(Nanos(at * MILLI));
    }
    let request = world.mail.borrow_mut().commits.pop_front().expect("it waits for the table");
    let message = PipelineMessage::Committed { ticket: request.ticket, ok: true };
    world.pipelines[0].handle(message, Nanos(10 * MILLI));
    let finished = world.pipelines[0].next_finished().unwrap();
    assert_eq!((finished.token, finished.back_ns), (token, 7 * MILLI));
    // The sync is part of what the disk did.
    assert_eq!(stage(&totals(&world, IoKind::Write), Stage::Disk), (1, 3));
}

#[test]
fn extents_that_are_used_are_hot_and_count_once_in_a_window() {
    let mut world = written(&Options { disks: 2, extents: 4, ..Options::default() });
    let touched = |world: &World| -> u64 {
        world.vhd.metrics.iter().map(|of| of.touched.load(std::sync::atomic::Ordering::Relaxed)).sum()
    };
    assert_eq!(touched(&world), 4);
    for _ in 0..10 {
        world.read(EXTENT, 512);
    }
    world.read(2 * EXTENT - 512, 1024);
    assert_eq!(touched(&world), 4, "all of them had been written just before");
    let heat = |extent| world.vhd.map.heat(ExtentIndex(extent), Window::at(0));
    assert_eq!([0, 1, 2, 3].map(heat), [1, 12, 2, 1]);
    assert!(world.vhd.metrics.of(ReactorId(0)).transfers(IoKind::Flush).is_none());
}
