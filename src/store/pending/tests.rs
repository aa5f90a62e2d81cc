#![allow(clippy::cast_possible_truncation, reason = "small random numbers")]

use std::collections::BTreeMap;

use super::Pending;
use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::COPIES_MAX;
use crate::base::rng::Rng;
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use crate::placement::ReplicaSet;
use crate::shared::disk::{SyncNumber, SyncPoint};
use crate::store::batch::apply_move;
use crate::store::change::{Change, ChangeKind};
use crate::store::edit::MovedExtent;
use crate::store::page::{ExtentRow, PageKey, PageRow};

/// Deliberate mistakes, to show that the property below notices them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Commits written blocks whatever was synced.
    IgnoreNeeds,
    /// A clear does not reach what is waiting.
    KeepCleared,
}

const VHD: VhdId = VhdId(7);

fn change(extent: u32, generation: u32, kind: ChangeKind) -> Change {
    Change { vhd: VHD, extent: ExtentIndex(extent), generation: Generation(generation), kind }
}

fn at(slot: u32) -> ReplicaSet {
    ReplicaSet::single(DiskId(0), SlotIndex(slot))
}

fn need(disk: u8, number: u64) -> SyncPoint {
    SyncPoint { disk: DiskId(disk), number: SyncNumber(number) }
}

fn written(slot: u32, blocks: u32, needs: &[SyncPoint]) -> ChangeKind {
    let mut list = [None; COPIES_MAX];
    for (to, from) in list.iter_mut().zip(needs) {
        *to = Some(*from);
    }
    ChangeKind::Written { replicas: at(slot), blocks: BlockMask(blocks), needs: list }
}

fn cleared(blocks: u32) -> ChangeKind {
    ChangeKind::Cleared { blocks: BlockMask(blocks) }
}

/// The durable table, as a member would have it.
#[derive(Default)]
struct Table {
    rows: BTreeMap<PageKey, PageRow>,
    settled: BTreeMap<VhdId, u64>,
    freed: Vec<u32>,
}

impl Table {
    fn commit(&mut self, pending: &mut Pending, is_synced: impl Fn(SyncPoint) -> bool) {
        let taken = pending.take_committable(is_synced);
        assert!(taken.extents.is_sorted_by_key(|edit| (edit.key, edit.place)));
        for edit in &taken.extents {
            edit.apply(&mut self.rows.entry(edit.key).or_default().extents[edit.place]);
        }
        for (vhd, count) in taken.counts {
            assert!(count > 0);
            *self.settled.entry(vhd).or_default() += count;
        }
        self.freed.extend(taken.freed.iter().map(|(_, slot)| slot.0));
    }

    fn extent(&self, extent: u32) -> ExtentRow {
        let (key, place) = PageKey::of(VHD, ExtentIndex(extent));
        self.rows.get(&key).map_or(ExtentRow::default(), |row| row.extents[place])
    }

    fn present(&self, extent: u32) -> u32 {
        self.extent(extent).present.0
    }

    fn settled(&self) -> u64 {
        self.settled.get(&VHD).copied().unwrap_or(0)
    }
}

#[test]
fn written_waits_for_every_sync_it_needs() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, 0b1, &[need(0, 1), need(1, 5)])));
    table.commit(&mut pending, |_| false);
    table.commit(&mut pending, |point| point.disk == DiskId(1));
    table.commit(&mut pending, |point| point.disk == DiskId(0));
    assert_eq!((table.present(1), table.settled(), table.rows.len()), (0, 0, 0));
    assert!(!pending.waits_for_disks().is_empty());
    table.commit(&mut pending, |_| true);
    assert_eq!((table.present(1), table.settled()), (1, 1));
    assert_eq!(table.extent(1).replicas, at(10));
    assert!(pending.is_empty() && pending.waits_for_disks().is_empty());
}

#[test]
fn discarded_data_does_not_come_back_with_a_later_sync() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, 0b111, &[need(0, 1)])));
    table.commit(&mut pending, |_| false);
    pending.push(change(1, 2, cleared(0b011)));
    table.commit(&mut pending, |_| false);
    assert_eq!(table.settled(), 1);
    table.commit(&mut pending, |_| true);
    assert_eq!((table.present(1), table.settled()), (0b100, 2));
}

#[test]
fn a_freed_extent_takes_everything_with_it_and_its_slot_is_reported_once() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, 0b111, &[need(0, 1)])));
    pending.push(change(1, 4, ChangeKind::Freed { freed: at(10) }));
    assert!(table.freed.is_empty());
    table.commit(&mut pending, |_| false);
    assert_eq!((table.freed.clone(), table.settled()), (vec![10], 2));
    assert!(table.extent(1).replicas.is_absent());
    // Too late, with the old generation and with the one of the free: neither may bring the extent back.
    pending.push(change(1, 2, written(10, 0b111, &[])));
    pending.push(change(1, 4, written(10, 0b111, &[])));
    table.commit(&mut pending, |_| true);
    assert!(table.extent(1).replicas.is_absent());
    assert_eq!(table.settled(), 4);
    pending.push(change(1, 6, written(11, 0b1, &[])));
    table.commit(&mut pending, |_| true);
    assert_eq!((table.extent(1).replicas, table.present(1)), (at(11), 1));
}

#[test]
fn freed_and_written_again_between_two_commits() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, u32::MAX, &[])));
    table.commit(&mut pending, |_| true);
    pending.push(change(1, 4, ChangeKind::Freed { freed: at(10) }));
    pending.push(change(1, 6, written(11, 0b10, &[need(0, 9)])));
    table.commit(&mut pending, |_| false);
    assert!(table.extent(1).replicas.is_absent(), "the free is durable before the new data");
    table.commit(&mut pending, |_| true);
    assert_eq!((table.extent(1).replicas, table.present(1)), (at(11), 0b10));
}

#[test]
fn placed_is_durable_at_once_and_keeps_what_is_written() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, ChangeKind::Placed { replicas: at(10) }));
    pending.push(change(1, 2, written(10, 0b1, &[need(0, 1)])));
    table.commit(&mut pending, |_| false);
    assert_eq!((table.extent(1).replicas, table.present(1)), (at(10), 0));
    table.commit(&mut pending, |_| true);
    assert_eq!(table.present(1), 1);
}

#[test]
fn a_deleted_vhd_leaves_nothing_and_all_is_counted() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, 0b1, &[need(0, 1)])));
    pending.push(change(2, 2, cleared(0b1)));
    pending.delete_vhd(VHD);
    pending.push(change(3, 4, ChangeKind::Freed { freed: at(12) }));
    table.commit(&mut pending, |_| true);
    assert_eq!((table.rows.len(), table.settled(), table.freed.clone()), (0, 3, vec![12]));
    assert!(pending.is_empty() && pending.waits_for_disks().is_empty());
}

#[test]
fn memory_is_bounded_by_what_changed_not_by_how_often() {
    let mut pending = Pending::new();
    for round in 0..10_000 {
        pending.push(change(1, 2, written(10, 0b1, &[need(0, round)])));
        pending.push(change(1, 2, cleared(0b1)));
    }
    assert_eq!(
        (pending.entries.len(), pending.waiting.len(), pending.entries[&(VHD, ExtentIndex(1))].groups.len()),
        (1, 0, 0)
    );
    let mut table = Table::default();
    table.commit(&mut pending, |_| false);
    assert_eq!(table.settled(), 20_000);
}

/// The rule told naively: keep every change ever made, and work the durable table out from the beginning.
#[derive(Default)]
struct Naive {
    log: Vec<Logged>,
}

struct Logged {
    change: Change,
    /// Came too late, or was overtaken by a newer generation before it was covered.
    void: bool,
    /// A commit found all its syncs done (or it needs none).
    effective: bool,
}

impl Naive {
    fn push(&mut self, change: Change) {
        let mut generation = Generation(0);
        let mut dropped = false;
        for earlier in self.log.iter().filter(|earlier| earlier.change.extent == change.extent && !earlier.void) {
            if earlier.change.generation >= generation {
                dropped = matches!(earlier.change.kind, ChangeKind::Freed { .. });
            }
            generation = generation.max(earlier.change.generation);
        }
        let void = change.generation < generation || (change.generation == generation && dropped);
        if change.generation > generation {
            for earlier in self.log.iter_mut().filter(|earlier| earlier.change.extent == change.extent) {
                if matches!(earlier.change.kind, ChangeKind::Written { .. }) && !earlier.effective {
                    earlier.void = true;
                }
            }
        }
        self.log.push(Logged { change, void, effective: false });
    }

    fn commit(&mut self, is_synced: impl Fn(SyncPoint) -> bool) {
        for logged in &mut self.log {
            logged.effective |= match logged.change.kind {
                ChangeKind::Written { needs, .. } => needs.iter().flatten().all(|need| is_synced(*need)),
                _ => true,
            };
        }
    }

    /// Present blocks and place of an extent, and how many of its changes are not settled.
    fn extent(&self, extent: u32) -> (ExtentRow, u64) {
        let mut row = ExtentRow::default();
        let mut unsettled: Vec<(u64, BlockMask)> = Vec::new();
        for logged in self.log.iter().filter(|logged| logged.change.extent.0 == extent && !logged.void) {
            let generation = logged.change.generation;
            if generation > row.generation
                && logged.effective
                && !matches!(logged.change.kind, ChangeKind::Cleared { .. })
            {
                row = ExtentRow { generation, ..ExtentRow::default() };
            }
            match logged.change.kind {
                ChangeKind::Written { replicas, blocks, .. } if logged.effective => {
                    row.replicas = replicas;
                    row.present = row.present.or(blocks);
                }
                ChangeKind::Written { blocks, .. } => unsettled.push((1, blocks)),
                ChangeKind::Cleared { blocks } => {
                    row.present = row.present.without(blocks);
                    unsettled.iter_mut().for_each(|(_, left)| *left = left.without(blocks));
                }
                ChangeKind::Placed { replicas } => row.replicas = replicas,
                ChangeKind::Freed { .. } => {
                    row = ExtentRow { generation, ..ExtentRow::default() };
                    unsettled.clear();
                }
            }
        }
        let left = unsettled.iter().filter(|(_, left)| !left.is_empty()).map(|(count, _)| count).sum();
        (row, left)
    }
}

const EXTENTS: u64 = 3;
const DISKS: u64 = 3;

/// A random history; says what first went wrong.
fn run(seed: u64, sabotage: Option<Sabotage>) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let mut pending = Pending { sabotage, ..Pending::default() };
    let (mut table, mut naive) = (Table::default(), Naive::default());
    let mut generations = [2u32; EXTENTS as usize];
    let mut begun = [1u64; DISKS as usize];
    let mut done = [0u64; DISKS as usize];
    let mut pushed = 0;
    for step in 0..60 {
        let extent = rng.below(EXTENTS) as u32;
        let generation = &mut generations[extent as usize];
        // Mostly the current generation, sometimes one that is long gone.
        let stale = rng.chance(1, 12);
        let used = if stale { (2 + rng.below(u64::from(*generation) - 1) as u32) & !1 } else { *generation };
        let blocks = 1u32 << rng.below(6) | 1u32 << rng.below(6);
        let slot = used * 8 + extent;
        let mut push = |kind, generation| {
            let change = change(extent, generation, kind);
            pending.push(change);
            naive.push(change);
            pushed += 1;
        };
        match rng.below(10) {
            0..=3 => {
                let mut needs: Vec<SyncPoint> = Vec::new();
                for _ in 0..rng.below(3) {
                    let disk = rng.below(DISKS);
                    if needs.iter().all(|need| u64::from(need.disk.0) != disk) {
                        needs.push(need(disk as u8, begun[disk as usize]));
                    }
                }
                push(written(slot, blocks, &needs), used);
            }
            4 => push(cleared(blocks), used),
            5 if rng.chance(1, 3) => push(ChangeKind::Placed { replicas: at(slot) }, used),
            6 if rng.chance(1, 2) && !stale => {
                push(ChangeKind::Freed { freed: at(slot) }, *generation + 2);
                *generation += 4;
            }
            7 => begun[rng.index(DISKS as usize)] += 1,
            8 => {
                let disk = rng.index(DISKS as usize);
                done[disk] = done[disk].max(begun[disk] - rng.below(2));
            }
            _ => {
                let is_synced = |point: SyncPoint| done[point.disk.index()] >= point.number.0;
                table.commit(&mut pending, is_synced);
                naive.commit(is_synced);
                let mut unsettled = 0;
                for extent in 0..EXTENTS as u32 {
                    let (expected, left) = naive.extent(extent);
                    unsettled += left;
                    let found = table.extent(extent);
                    // An extent whose written blocks were all taken away before they were covered need not be placed.
                    let nowhere = found.replicas.is_absent() && expected.present.is_empty();
                    if found.present != expected.present || (found.replicas != expected.replicas && !nowhere) {
                        return Err(format!("step {step}, extent {extent}: {found:?} instead of {expected:?}"));
                    }
                }
                let counted = pushed - table.settled();
                // A change that came too late may wait for its syncs before anybody notices that it is void.
                let late = naive.log.iter().filter(|logged| logged.void).count() as u64;
                if counted < unsettled || (unsettled == 0 && counted > late) {
                    return Err(format!("step {step}: {counted} changes counted as pending instead of {unsettled}"));
                }
            }
        }
    }
    table.commit(&mut pending, |_| true);
    if table.settled() != pushed || !pending.is_empty() || !pending.waiting.is_empty() {
        return Err(format!("{} of {pushed} changes settled in the end", table.settled()));
    }
    Ok(())
}

fn seeds() -> std::ops::Range<u64> {
    let count = std::env::var("SPANBLK_PENDING_SEEDS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000);
    0..count
}

#[test]
fn durable_table_equals_the_naive_replay() {
    for seed in seeds() {
        if let Err(problem) = run(seed, None) {
            panic!("seed {seed}: {problem}");
        }
    }
}

#[test]
fn the_property_notices_deliberate_mistakes() {
    for sabotage in [Sabotage::IgnoreNeeds, Sabotage::KeepCleared] {
        let caught = seeds().filter(|&seed| run(seed, Some(sabotage)).is_err()).count();
        assert!(caught > 100, "{sabotage:?} was noticed with {caught} seeds only");
    }
}

fn moved(extent: u32, generation: u32, to: u8) -> MovedExtent {
    MovedExtent {
        extent: ExtentIndex(extent),
        generation: Generation(generation),
        from: Some(DiskId(0)),
        replicas: ReplicaSet::single(DiskId(to), SlotIndex(40)),
    }
}

impl Table {
    fn apply_move(&mut self, moved: &MovedExtent) {
        let (key, place) = PageKey::of(VHD, moved.extent);
        apply_move(moved, &mut self.rows.entry(key).or_default().extents[place]);
    }
}

#[test]
fn a_move_takes_pending_writes_along() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, 0b1, &[need(0, 5)])));
    pending.push(change(2, 2, written(11, 0b1, &[need(0, 5)])));
    table.commit(&mut pending, |_| false);
    // The edit comes first; what need not wait for the old place follows it.
    pending.moved(VHD, &moved(1, 2, 3));
    table.apply_move(&moved(1, 2, 3));
    table.commit(&mut pending, |_| false);
    assert_eq!((table.extent(1).replicas, table.present(1)), (moved(1, 2, 3).replicas, 1));
    assert_eq!(table.present(2), 0, "another extent waits on");
    // Written while the move was made durable: the new place must be synced, and the row stays where it is.
    pending.push(change(1, 2, written(10, 0b10, &[need(0, 6), need(3, 2)])));
    table.commit(&mut pending, |point| point.disk == DiskId(3) || point.number.0 < 6);
    assert_eq!((table.present(1), table.present(2)), (1, 1));
    table.commit(&mut pending, |_| true);
    assert_eq!((table.extent(1).replicas, table.present(1)), (moved(1, 2, 3).replicas, 3));
    assert_eq!(table.settled(), 3);
}

#[test]
fn nobody_waits_for_copies_that_were_given_up() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, 0b1, &[need(0, 6), need(3, 2)])));
    pending.excuse(VHD, need(3, 4));
    // Written before that, and handed over later.
    pending.push(change(1, 2, written(10, 0b10, &[need(0, 6), need(3, 4)])));
    // Written later, to the same disk.
    pending.push(change(2, 2, written(11, 0b1, &[need(3, 5)])));
    table.commit(&mut pending, |_| false);
    assert_eq!((table.present(1), table.present(2)), (0, 0));
    table.commit(&mut pending, |point| point.disk == DiskId(0));
    assert_eq!((table.present(1), table.present(2), table.settled()), (3, 0, 2));
    assert_eq!(pending.waits_for_disks().iter().collect::<Vec<_>>(), [DiskId(3)]);
    table.commit(&mut pending, |_| true);
    assert_eq!((table.present(2), pending.is_empty()), (1, true));
}

#[test]
fn a_move_of_content_that_was_dropped_is_void() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, 0b1, &[])));
    table.commit(&mut pending, |_| true);
    pending.push(change(1, 4, ChangeKind::Freed { freed: at(10) }));
    table.commit(&mut pending, |_| true);
    table.apply_move(&moved(1, 2, 3));
    assert!(table.extent(1).replicas.is_absent());
    // Placed again: the old move does not touch it.
    pending.push(change(1, 6, written(12, 0b1, &[])));
    table.commit(&mut pending, |_| true);
    table.apply_move(&moved(1, 2, 3));
    assert_eq!((table.extent(1).replicas, table.present(1)), (at(12), 1));
    // A move of content that was never committed places it.
    table.apply_move(&moved(9, 2, 3));
    assert_eq!((table.extent(9).replicas, table.present(9)), (moved(9, 2, 3).replicas, 0));
}

#[test]
fn only_what_a_move_leaves_is_not_waited_for() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, 0b1, &[need(0, 5), need(1, 7)])));
    pending.push(change(1, 2, written(10, 0b10, &[need(1, 7)])));
    pending.push(change(1, 2, written(10, 0b100, &[need(0, 6)])));
    // Another content, one copy more, and a disk that nothing waits for.
    pending.moved(VHD, &moved(1, 4, 3));
    pending.moved(VHD, &MovedExtent { from: None, ..moved(1, 2, 3) });
    pending.moved(VHD, &MovedExtent { from: Some(DiskId(9)), ..moved(1, 2, 3) });
    table.commit(&mut pending, |_| false);
    assert_eq!((table.present(1), table.settled()), (0, 0));
    pending.moved(VHD, &moved(1, 2, 3));
    assert_eq!(pending.waits_for_disks().iter().collect::<Vec<_>>(), [DiskId(1)], "the copy that stays");
    table.apply_move(&moved(1, 2, 3));
    table.commit(&mut pending, |_| false);
    assert_eq!((table.present(1), table.settled()), (0b100, 1));
    table.commit(&mut pending, |point| point.disk == DiskId(1));
    assert_eq!((table.present(1), table.settled()), (0b111, 3));
    assert!(pending.is_empty() && pending.waiting.is_empty());
}

#[test]
fn what_is_discarded_while_it_moves_stays_discarded() {
    let (mut pending, mut table) = (Pending::new(), Table::default());
    pending.push(change(1, 2, written(10, 0b111, &[need(0, 5)])));
    pending.moved(VHD, &moved(1, 2, 3));
    pending.push(change(1, 2, cleared(0b10)));
    table.apply_move(&moved(1, 2, 3));
    table.commit(&mut pending, |_| false);
    assert_eq!((table.extent(1).replicas, table.present(1)), (moved(1, 2, 3).replicas, 0b101));
    pending.push(change(1, 4, ChangeKind::Freed { freed: at(10) }));
    table.commit(&mut pending, |_| false);
    table.apply_move(&moved(1, 2, 4));
    assert!(table.extent(1).replicas.is_absent() && table.present(1) == 0);
}
