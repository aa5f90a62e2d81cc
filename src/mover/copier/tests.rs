mod room;

use std::cell::RefCell;
use std::rc::Rc;

use super::super::messages::Speed;
use super::*;
use crate::base::ids::{JobId, ReactorId};
use crate::base::limits::COPY_TURN_MILLIS;
use crate::base::rng::Rng;
use crate::base::units::{ExtentIndex, Geometry, SlotIndex};
use crate::disk::BlockDev;
use crate::disk::sim::{Fault, FaultKind, OpKind, SimDisk};
use crate::engine::sim::SimEngine;
use crate::mover::messages::{MoveId, WaveId};
use crate::placement::view::{Checksum, VhdMap};
use crate::placement::{Replica, ReplicaSet};
use crate::reactor::messages::ReactorMessage;
use crate::shared::VhdSettings;
use crate::shared::VhdState;

const EXTENT: u64 = 1 << 20;
const EXTENT_LEN: usize = 1 << 20;
const BLOCK: u64 = EXTENT / 32;
const BLOCK_LEN: usize = EXTENT_LEN / 32;
const DATA: u64 = 1 << 20;
const E: ExtentIndex = ExtentIndex(1);
const A: DiskId = DiskId(0);
const B: DiskId = DiskId(1);
const NOW: Nanos = Nanos(0);

#[derive(Clone, Default)]
struct Mail(Rc<RefCell<(Vec<MoverReport>, Vec<ReactorId>)>>);

impl MoverOutbox for Mail {
    fn to_owner(&mut self, report: MoverReport) {
        self.0.borrow_mut().0.push(report);
    }

    fn to_reactor(&mut self, reactor: ReactorId, _message: ReactorMessage) {
        self.0.borrow_mut().1.push(reactor);
    }
}

struct World {
    disks: [SimDisk; 2],
    vhd: Arc<VhdState>,
    copier: Copier<SimEngine, Mail>,
    mail: Mail,
    rng: Rng,
}

fn on(disk: DiskId, slot: u32, state: ReplicaState) -> Replica {
    Replica { disk, slot: SlotIndex(slot), state }
}

impl World {
    /// Extent 1 is in slot 2 of disk A with these blocks, and a copy is to be made in slot 3 of disk B.
    fn new(present: u32) -> World {
        World::with(present, VhdMap::new(4))
    }

    fn with(present: u32, map: VhdMap) -> World {
        let settings = VhdSettings {
            id: VhdId(7),
            uuid: uuid::Uuid::from_u128(7),
            geometry: Geometry::new(EXTENT).unwrap(),
            block_size: 512,
            read_only: false,
            thick: false,
            checksums: map.has_checksums(),
        };
        let vhd = Arc::new(VhdState::new(settings, 4 * EXTENT, map, 2));
        vhd.map.place(E, ReplicaSet::single(A, SlotIndex(2)));
        let seen = vhd.map.lookup(E);
        if present != 0 {
            vhd.map.claim_absent(E, BlockMask(present), seen.version).unwrap();
            vhd.map.release(E, BlockMask(present), BlockMask(present));
        }
        let mut copies = seen.replicas;
        copies.push(on(B, 3, ReplicaState::Syncing));
        vhd.map.set_replicas(E, copies);
        let disks = [SimDisk::new(DATA + 8 * EXTENT, 512), SimDisk::new(DATA + 8 * EXTENT, 512)];
        let mut engine = SimEngine::new(64);
        let mail = Mail::default();
        for (id, disk) in [A, B].into_iter().zip(&disks) {
            engine.add_disk(id, disk.clone(), 512);
        }
        let mut copier = Copier::new(engine, mail.clone());
        for id in [A, B] {
            copier.add_disk(Arc::new(DiskState::new(id, format!("d{}", id.0), DATA, 8, 512, 512)));
        }
        let bytes: Vec<u8> = (0..32_u8).flat_map(|block| vec![block + 1; BLOCK_LEN]).collect();
        disks[0].write_at(DATA + 2 * EXTENT, &bytes).unwrap();
        World { disks, vhd, copier, mail, rng: Rng::new(5) }
    }

    fn begin(&mut self) {
        self.begin_to(on(B, 3, ReplicaState::Syncing));
    }

    fn begin_to(&mut self, target: Replica) {
        let copy = CopyTask {
            id: MoveId(1),
            job: JobId(1),
            vhd: Arc::clone(&self.vhd),
            extent: E,
            source: on(A, 2, ReplicaState::InSync),
            target,
        };
        self.copier.handle(MoverMessage::Copy(copy), NOW);
    }

    fn run(&mut self) {
        while self.copier.poll(NOW) | self.copier.engine.step(&mut self.rng) {}
    }

    fn reports(&self) -> Vec<MoverReport> {
        let reports = std::mem::take(&mut self.mail.0.borrow_mut().0);
        reports.into_iter().filter(|report| !matches!(report, MoverReport::Progress { .. })).collect()
    }

    /// First byte of each block of the copy.
    fn copied(&self) -> Vec<u8> {
        let mut bytes = vec![0; EXTENT_LEN];
        self.disks[1].read_at(DATA + 3 * EXTENT, &mut bytes).unwrap();
        bytes.chunks(BLOCK_LEN).map(|block| block[0]).collect()
    }
}

#[test]
fn what_is_present_is_copied_and_nothing_else() {
    let present = 0b1111_1111_1111_0000_0000_0000_0000_1011;
    let mut world = World::new(present);
    world.begin();
    world.run();
    assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
    let expected: Vec<u8> = (0..32_u8).map(|block| if present >> block & 1 == 1 { block + 1 } else { 0 }).collect();
    assert_eq!(world.copied(), expected);
    assert!(world.vhd.map.lookup(E).claimed.is_empty() && world.copier.is_idle());
}

#[test]
fn an_extent_without_blocks_is_done_at_once() {
    let mut world = World::new(0);
    world.begin();
    world.run();
    assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
}

#[test]
fn a_chunk_is_claimed_while_it_is_copied() {
    let mut world = World::new(u32::MAX);
    world.begin();
    world.copier.poll(NOW);
    let held = world.vhd.map.lookup(E).claimed;
    assert_eq!(u64::from(held.len()) * BLOCK, COPY_CHUNK_LEN);
    let version = world.vhd.map.lookup(E).version;
    assert!(world.vhd.map.claim_any(E, BlockMask(1), version).is_err());
    world.vhd.wait_for_release(1 << 1);
    world.run();
    assert_eq!(world.mail.0.borrow().1, [ReactorId(1)], "who waited is woken, once");
    assert_eq!(world.copied(), (1..=32).collect::<Vec<u8>>());
}

#[test]
fn a_claimed_block_is_waited_for_and_writers_give_way() {
    let mut world = World::new(u32::MAX);
    let version = world.vhd.map.lookup(E).version;
    world.vhd.map.claim_any(E, BlockMask(2), version).unwrap();
    world.begin();
    world.run();
    assert!(world.reports().is_empty() && world.copier.must_retry());
    assert!(world.vhd.copier_waits(E) && !world.vhd.copier_waits(ExtentIndex(2)));
    world.vhd.map.release(E, BlockMask(2), BlockMask::NONE);
    world.vhd.wait_for_release(1);
    world.run();
    assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
    assert!(!world.vhd.copier_waits(E) && world.mail.0.borrow().1.contains(&ReactorId(0)));
}

#[test]
fn a_discarded_block_is_not_copied() {
    let mut world = World::new(0b11);
    world.begin();
    let version = world.vhd.map.lookup(E).version;
    world.vhd.map.claim_and_clear(E, BlockMask(1), version).unwrap();
    world.vhd.map.release(E, BlockMask(1), BlockMask::NONE);
    world.run();
    assert_eq!(world.copied()[..3], [0, 2, 0]);
}

#[test]
fn a_move_that_was_given_up_ends() {
    let mut world = World::new(u32::MAX);
    world.begin();
    world.copier.poll(NOW);
    world.vhd.map.set_replicas(E, ReplicaSet::single(A, SlotIndex(2)));
    world.run();
    assert_eq!(world.reports(), [MoverReport::Gone { id: MoveId(1) }]);
    assert!(world.vhd.map.lookup(E).claimed.is_empty());
}

#[test]
fn errors_name_the_disk_and_leave_nothing_claimed() {
    for (index, disk, kind) in [(0, A, OpKind::Read), (1, B, OpKind::Write)] {
        let mut world = World::new(u32::MAX);
        world.disks[index].inject(Fault::next(kind, FaultKind::Error(libc::EIO)));
        world.begin();
        world.run();
        let failed = MoverReport::Failed { id: MoveId(1), disk, error: IoError::Os(libc::EIO) };
        assert_eq!(world.reports(), [failed]);
        assert!(world.vhd.map.lookup(E).claimed.is_empty() && world.copier.is_idle());
    }
}

#[test]
fn a_fence_waits_for_chunks_in_flight_and_not_for_tasks() {
    let mut world = World::new(u32::MAX);
    world.begin();
    world.copier.handle(MoverMessage::Fence { fence: 1, disk: B }, NOW);
    assert_eq!(world.reports(), [MoverReport::FenceReached { fence: 1 }]);
    world.copier.poll(NOW);
    // Nothing has been written yet, but the place that will be written to was looked up.
    for (fence, disk) in [(2, A), (3, B)] {
        world.copier.handle(MoverMessage::Fence { fence, disk }, NOW);
    }
    assert!(world.reports().is_empty());
    world.run();
    let reached: Vec<MoverReport> = world.reports();
    assert_eq!(reached[..2], [MoverReport::FenceReached { fence: 2 }, MoverReport::FenceReached { fence: 3 }]);
}

#[test]
fn a_sync_covers_what_was_copied_and_a_failed_one_fails_the_disk() {
    let mut world = World::new(1);
    world.begin();
    world.run();
    world.reports();
    let wave = WaveId(4);
    world.copier.handle(MoverMessage::Sync { wave, disk: B }, NOW);
    world.run();
    assert_eq!(world.reports(), [MoverReport::Synced { wave, disk: B, result: Ok(()) }]);
    world.disks[1].inject(Fault::next(OpKind::Sync, FaultKind::Error(libc::EIO)));
    world.copier.handle(MoverMessage::Sync { wave, disk: B }, NOW);
    world.run();
    let failed = MoverReport::Synced { wave, disk: B, result: Err(IoError::Os(libc::EIO)) };
    assert_eq!(world.reports(), [failed]);
    world.copier.handle(MoverMessage::Sync { wave, disk: B }, NOW);
    world.run();
    assert_eq!(world.reports(), [failed], "a failed disk does not become well");
}

#[test]
fn a_job_keeps_to_its_rate() {
    let mut world = World::new(u32::MAX);
    let speed = Speed { max_rate: Some(1 << 20), urgent: true };
    world.copier.handle(MoverMessage::SetSpeed { job: JobId(1), speed }, NOW);
    world.begin();
    world.run();
    // The first chunk goes at once; the second one a quarter of a second later.
    let due = world.copier.next_deadline().unwrap();
    assert!(due.0.abs_diff(250_000_000) < 1_000_000, "{due:?}");
    assert!(world.reports().is_empty());
}

#[test]
fn nobody_waits_for_a_target_that_hangs() {
    let mut world = World::new(u32::MAX);
    world.copier.engine.hold(B);
    world.begin();
    world.run();
    world.vhd.wait_for_release(1);
    world.copier.tick(Nanos(1_000_000_000));
    assert!(world.reports().is_empty() && !world.vhd.map.lookup(E).claimed.is_empty(), "patience");
    world.copier.tick(Nanos(2_100_000_000));
    assert_eq!(world.reports(), [MoverReport::Stuck { disk: B }]);
    assert!(world.vhd.map.lookup(E).claimed.is_empty() && world.mail.0.borrow().1.contains(&ReactorId(0)));
    world.copier.handle(MoverMessage::Fence { fence: 3, disk: B }, NOW);
    assert!(world.reports().is_empty(), "the write is still out there");
    world.vhd.map.set_replicas(E, ReplicaSet::single(A, SlotIndex(2)));
    world.copier.engine.release(B);
    world.run();
    assert_eq!(
        world.reports(),
        [MoverReport::FenceReached { fence: 3 }],
        "a move that was given up is not reported again"
    );
    assert!(world.copier.is_idle());
}

/// A task that found its block claimed, and writers that stand back for it.
fn asking(world: &mut World) {
    let version = world.vhd.map.lookup(E).version;
    world.vhd.map.claim_any(E, BlockMask(1), version).unwrap();
    world.begin();
    world.run();
    assert!(world.vhd.copier_waits(E));
    world.vhd.wait_for_release(1);
}

fn stand_back(world: &World) -> bool {
    world.vhd.copier_waits(E) || !world.mail.0.borrow().1.contains(&ReactorId(0))
}

#[test]
fn writers_do_not_stand_back_while_a_job_keeps_to_its_rate() {
    let mut world = World::new(u32::MAX);
    let speed = Speed { max_rate: Some(1), urgent: true };
    world.copier.handle(MoverMessage::SetSpeed { job: JobId(1), speed }, NOW);
    asking(&mut world);
    world.copier.paces.get_mut(JobId(1)).unwrap().take(COPY_CHUNK_LEN, NOW);
    world.run();
    assert!(world.copier.next_deadline().is_some());
    assert!(!stand_back(&world), "its turn is days away");
}

#[test]
fn writers_do_not_stand_back_for_a_disk_that_hangs() {
    let mut world = World::new(u32::MAX);
    world.copier.engine.hold(B);
    asking(&mut world);
    fill_places(&mut world);
    world.run();
    assert!(world.vhd.copier_waits(E), "not for long");
    world.copier.tick(Nanos(COPY_TURN_MILLIS * 1_000_000));
    assert!(!stand_back(&world));
}

#[test]
fn a_move_that_was_given_up_ends_although_its_disk_hangs() {
    let mut world = World::new(u32::MAX);
    world.copier.engine.hold(B);
    asking(&mut world);
    fill_places(&mut world);
    world.vhd.map.set_replicas(E, ReplicaSet::single(A, SlotIndex(2)));
    world.run();
    assert_eq!(world.reports(), [MoverReport::Gone { id: MoveId(1) }]);
    assert!(!stand_back(&world));
}

/// Other copies take all the places that there are for disk B.
fn fill_places(world: &mut World) {
    let extents = u32::try_from(COPY_CHUNKS_MAX).unwrap();
    let settings = VhdSettings { id: VhdId(8), ..world.vhd.settings.clone() };
    let size = u64::from(extents) * EXTENT;
    let vhd = Arc::new(VhdState::new(settings, size, VhdMap::new(extents), 2));
    for extent in (0..extents).map(ExtentIndex) {
        vhd.map.place(extent, ReplicaSet::single(A, SlotIndex(2)));
        let seen = vhd.map.lookup(extent);
        vhd.map.claim_absent(extent, BlockMask::ALL, seen.version).unwrap();
        vhd.map.release(extent, BlockMask::ALL, BlockMask::ALL);
        let (source, target) = (on(A, 2, ReplicaState::InSync), on(B, 4, ReplicaState::Syncing));
        let mut copies = seen.replicas;
        copies.push(target);
        vhd.map.set_replicas(extent, copies);
        let id = MoveId(100 + u64::from(extent.0));
        let copy = CopyTask { id, job: JobId(2), vhd: Arc::clone(&vhd), extent, source, target };
        world.copier.handle(MoverMessage::Copy(copy), NOW);
    }
    world.run();
    assert!(world.copier.place_for(&world.copier.tasks.back().unwrap().copy).is_none());
}

/// A world in which blocks have checksums; that of block 1 is known.
fn checked() -> World {
    let world = World::with(0b111, VhdMap::checked(4));
    world.vhd.map.set_checksum(E, 1, Some(Checksum::of(&vec![2; BLOCK_LEN])));
    world
}

const WRONG: MoverReport = MoverReport::Failed { id: MoveId(1), disk: A, error: IoError::Checksum };

#[test]
fn what_a_disk_has_changed_is_not_copied() {
    let mut world = checked();
    world.disks[0].poke(DATA + 2 * EXTENT + BLOCK + 77, &[99]);
    world.begin();
    world.run();
    assert_eq!(world.reports(), [WRONG]);
    assert_eq!(world.copied()[..3], [0, 0, 0]);
    assert!(world.vhd.map.lookup(E).claimed.is_empty() && world.copier.is_idle());
    assert_eq!(world.vhd.checksum_errors.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn what_nobody_knew_has_the_checksum_of_what_was_copied() {
    let mut world = checked();
    world.begin();
    world.run();
    assert_eq!(world.reports(), [MoverReport::Copied { id: MoveId(1) }]);
    assert_eq!(world.copied()[..4], [1, 2, 3, 0]);
    let known: Vec<_> = (0..4).map(|block| world.vhd.map.checksum(E, block)).collect();
    let of = |byte| Some(Checksum::of(&vec![byte; BLOCK_LEN]));
    assert_eq!(known, [of(1), of(2), of(3), None]);
}

#[test]
fn a_replica_is_read_and_nothing_is_written() {
    for wrong in [false, true] {
        let mut world = checked();
        world.vhd.map.set_replicas(E, ReplicaSet::single(A, SlotIndex(2)));
        if wrong {
            world.disks[0].poke(DATA + 2 * EXTENT + BLOCK, &[99]);
        }
        world.disks[0].inject(Fault::next(OpKind::Write, FaultKind::Error(libc::EIO)));
        world.begin_to(on(A, 2, ReplicaState::InSync));
        world.run();
        assert_eq!(world.reports(), [if wrong { WRONG } else { MoverReport::Copied { id: MoveId(1) } }]);
        assert!(world.vhd.map.checksum(E, 2).is_some());
        assert!(world.vhd.map.lookup(E).claimed.is_empty() && world.copier.is_idle());
        world.copier.handle(MoverMessage::Fence { fence: 1, disk: A }, NOW);
        assert_eq!(world.reports(), [MoverReport::FenceReached { fence: 1 }], "both of its places are left");
    }
}

#[test]
fn replicas_that_are_wrong_in_different_blocks_are_each_repaired() {
    let mut world = checked();
    let (a, b) = (on(A, 2, ReplicaState::InSync), on(B, 3, ReplicaState::InSync));
    let mut both = ReplicaSet::ABSENT;
    [a, b].into_iter().for_each(|replica| both.push(replica));
    world.vhd.map.set_replicas(E, both);
    let bytes: Vec<u8> = (0..3_u8).flat_map(|block| vec![block + 1; BLOCK_LEN]).collect();
    for (block, bytes) in (0..).zip(bytes.chunks(BLOCK_LEN)) {
        world.vhd.map.set_checksum(E, block, Some(Checksum::of(bytes)));
    }
    world.disks[1].write_at(DATA + 3 * EXTENT, &bytes).unwrap();
    world.disks[0].poke(DATA + 2 * EXTENT + 9, &[99]);
    world.disks[1].poke(DATA + 3 * EXTENT + 2 * BLOCK + 9, &[99]);
    for (source, target, ends) in [(a, b, WRONG), (b, a, MoverReport::Copied { id: MoveId(1) })] {
        let copy = CopyTask { id: MoveId(1), job: JobId(1), vhd: Arc::clone(&world.vhd), extent: E, source, target };
        world.copier.handle(MoverMessage::Copy(copy), NOW);
        world.run();
        assert_eq!(world.reports(), [ends]);
    }
    for (disk, slot) in [(0, 2), (1, 3)] {
        let mut found = vec![0; 3 * BLOCK_LEN];
        world.disks[disk].read_at(DATA + slot * EXTENT, &mut found).unwrap();
        assert!(found == bytes, "disk {disk}");
    }
}

#[test]
fn a_mover_that_turns_says_so() {
    let mut world = World::new(1);
    world.copier.handle(MoverMessage::Turn, NOW);
    assert_eq!(world.reports(), [MoverReport::Turned]);
}
