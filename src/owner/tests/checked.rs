//! VHDs whose blocks have checksums.

use super::degraded::{on, reopened_after, replicas, write, written};
use super::replicas::replicated;
use super::*;
use crate::engine::IoError;
use crate::placement::ReplicaState;
use crate::placement::view::Checksum;

const E: ExtentIndex = ExtentIndex(3);
const WRONG: IoError = IoError::Checksum;

fn checked(replicas: u8) -> (World, VhdInfo) {
    let (mut world, vhd) = written(CreateVhd { checksums: true, ..replicated(8, replicas) });
    world.tell_fill(0);
    (world, vhd)
}

fn word(vhd: &VhdInfo, byte: u8) -> u32 {
    let checksum = Checksum::of(&[byte]);
    vhd.state.map.set_checksum(E, 5, Some(checksum));
    checksum.word()
}

/// Time goes by until pages that nobody writes to have lost their intent, but for fences.
fn grow_old(world: &mut World) {
    world.advance(10_000);
    world.advance(10_000);
}

/// What the table is told of the page, taken: whether it loses its intent, and the words of a block.
fn told(world: &mut World) -> (bool, Vec<u32>) {
    world.settle_fences();
    let rows: Vec<StoreEdit> = world.mail.edits.iter().flat_map(|(_, rows)| rows.clone()).collect();
    let cleaned = rows.iter().any(|row| matches!(row, StoreEdit::Intend { intend: false, .. }));
    let word = |row: &StoreEdit| match row {
        StoreEdit::Checksums { checksums, page: 0, .. } => Some(checksums.extent(E.0 as usize)[5]),
        _ => None,
    };
    (cleaned, rows.iter().filter_map(word).collect())
}

impl World {
    /// So many KiB of a MiB of metadata are in use.
    fn tell_fill(&mut self, used: u64) {
        self.owner.handle_store(StoreReport::Fill { used: used << 10, size: 1 << 20, low: false }, &mut self.mail);
    }

    fn settle_fences(&mut self) {
        for (fence, _) in self.fences(0) {
            self.reach(0, fence);
        }
    }
}

fn intended(replicas: u8) -> (World, VhdInfo) {
    let (mut world, vhd) = checked(replicas);
    world.intend(&vhd, E);
    world.commit_edits();
    assert!(vhd.state.map.may_write_replicas(E));
    (world, vhd)
}

#[test]
fn checksums_come_with_the_end_of_the_intent() {
    for replicas in [1, 2] {
        let (mut world, vhd) = intended(replicas);
        let first = word(&vhd, 7);
        grow_old(&mut world);
        assert_eq!(told(&mut world), (true, vec![first]));
        world.commit_edits();
        // Of blocks that are not there, nothing is said.
        world.intend(&vhd, E);
        world.commit_edits();
        word(&vhd, 8);
        let map = &vhd.state.map;
        map.claim_and_clear(E, BlockMask(1 << 5), map.lookup(E).version).unwrap();
        map.release(E, BlockMask(1 << 5), BlockMask::NONE);
        grow_old(&mut world);
        assert_eq!(told(&mut world), (true, vec![0]));
    }
}

#[test]
fn a_vhd_without_checksums_has_no_rows_of_them() {
    let (mut world, vhd) = written(replicated(8, 2));
    world.intend(&vhd, E);
    world.commit_edits();
    word(&vhd, 7);
    grow_old(&mut world);
    assert_eq!(told(&mut world), (true, Vec::new()));
}

/// A write waits for a disk that has failed, where no fence is awaited: it has its claim until its checksum is noted.
#[test]
fn an_intent_stays_as_long_as_somebody_holds_a_claim() {
    let (mut world, vhd) = intended(2);
    let map = &vhd.state.map;
    map.claim_any(E, BlockMask(1), map.lookup(E).version).unwrap();
    grow_old(&mut world);
    assert_eq!(told(&mut world), (false, Vec::new()));
    assert!(map.may_write_replicas(E), "it is back");
    map.release(E, BlockMask(1), BlockMask::NONE);
    grow_old(&mut world);
    assert!(told(&mut world).0);
}

#[test]
fn checksums_leave_room_for_extents() {
    let (mut world, vhd) = intended(1);
    world.tell_fill(497);
    grow_old(&mut world);
    assert_eq!(told(&mut world), (false, Vec::new()));
    assert!(vhd.state.map.may_write_replicas(E));
    world.tell_fill(496);
    grow_old(&mut world);
    assert!(told(&mut world).0);
}

#[test]
fn what_was_written_to_is_read_when_the_pool_is_opened() {
    let (mut world, vhd) = reopened_after(checked(1), None);
    world.tell_fill(0);
    let mut read = std::collections::BTreeSet::new();
    while vhd.state.map.is_in_doubt(E) {
        let copies = world.copies();
        assert!(!copies.is_empty());
        for copy in copies {
            assert!(copy.only_reads() && copy.source == replicas(&vhd, copy.extent)[0]);
            // What cannot be read has no checksum, and stays where it is.
            let report = if copy.extent == E {
                MoverReport::Failed { id: copy.id, disk: copy.source.disk, error: IoError::Os(libc::EIO) }
            } else {
                MoverReport::Copied { id: copy.id }
            };
            read.insert(copy.extent);
            world.owner.handle_mover(report, world.now, &mut world.mail);
        }
    }
    assert_eq!(read, (0..8).map(ExtentIndex).collect());
    assert_eq!(replicas(&vhd, E)[0].state, ReplicaState::InSync);
    // Once everything is synced that the daemon before may have written, its checksums are for the table.
    for disk in vhd.state.disks_to_sync().iter() {
        let state = &world.owner.space.disk(disk).state;
        state.sync_succeeded(state.begin_sync());
    }
    grow_old(&mut world);
    assert!(told(&mut world).0);
}

#[test]
fn nothing_is_made_stale_by_what_is_wrong_everywhere() {
    let (mut world, vhd) = intended(2);
    let [first, second] = replicas(&vhd, E)[..] else { panic!("two replicas") };
    world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: E, disk: first.disk });
    for (source, target) in [(second, first), (first, second)] {
        let [copy] = &world.copies()[..] else { panic!("one copy") };
        assert_eq!((copy.source, copy.target), (source, target));
        let report = MoverReport::Failed { id: copy.id, disk: source.disk, error: WRONG };
        world.owner.handle_mover(report, world.now, &mut world.mail);
    }
    assert!(world.copies().is_empty());
    world.commit_edits();
    assert!(
        on(&vhd, first.disk, ReplicaState::Stale).is_empty() && on(&vhd, second.disk, ReplicaState::Stale).is_empty()
    );
}

/// The daemon stops: what is still to be made equal, or stale, or has no room, is looked for by the next one.
#[test]
fn intents_that_say_something_stay_at_the_end() {
    let ends = |world: &mut World| {
        world.owner.end_intents(&mut world.mail);
        told(world)
    };
    let (mut world, vhd) = intended(2);
    let first = word(&vhd, 7);
    assert_eq!(ends(&mut world), (true, vec![first]));
    // A replica is being written anew.
    let (mut world, vhd) = intended(2);
    let second = replicas(&vhd, E)[1];
    world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: E, disk: second.disk });
    assert_eq!(ends(&mut world), (false, Vec::new()));
    // One is about to be stale.
    let (mut world, vhd) = intended(2);
    world.miss(&vhd, second.disk, write(E));
    assert!(!ends(&mut world).0);
    // There is no room for checksums, and one that is being written.
    let (mut world, _) = intended(1);
    world.tell_fill(500);
    assert!(!ends(&mut world).0);
    let (mut world, vhd) = intended(1);
    let map = &vhd.state.map;
    map.claim_any(E, BlockMask(1), map.lookup(E).version).unwrap();
    assert!(!ends(&mut world).0);
}

#[test]
fn a_third_replica_is_asked_if_two_are_bad() {
    let (mut world, vhd) = intended(3);
    let [a, b, c] = replicas(&vhd, E)[..] else { panic!("three replicas") };
    world.tell(OwnerRequest::ReadFailed { vhd: vhd.record.id, extent: E, disk: a.disk });
    let mut made = Vec::new();
    for _ in 0..10 {
        for copy in world.copies() {
            let is_good = copy.source == c;
            let failed = MoverReport::Failed { id: copy.id, disk: copy.source.disk, error: WRONG };
            let report = if is_good { MoverReport::Copied { id: copy.id } } else { failed };
            made.extend(is_good.then_some(copy.target.disk));
            world.owner.handle_mover(report, world.now, &mut world.mail);
        }
    }
    made.sort_unstable();
    assert_eq!(made, [a.disk, b.disk]);
    assert!(!world.owner.repairs.knows(vhd.record.id));
}

/// Guests read the first replica of a page in doubt, and the second where that cannot be read: neither may become what a third one has.
#[test]
fn in_doubt_nothing_is_taken_from_a_replica_that_guests_do_not_read() {
    let (mut world, vhd) = reopened_after(checked(3), None);
    let first = |copy: &crate::mover::messages::CopyTask| replicas(&vhd, copy.extent)[0];
    for _ in 0..20 {
        for copy in world.copies() {
            assert_eq!(copy.source, first(&copy));
            let report = MoverReport::Failed { id: copy.id, disk: copy.source.disk, error: IoError::Os(libc::EIO) };
            world.owner.handle_mover(report, world.now, &mut world.mail);
        }
    }
    assert!(vhd.state.map.is_in_doubt(E));
}
