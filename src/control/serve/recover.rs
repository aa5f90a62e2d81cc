//! After SIGKILL: what guests rely on and the table does not have yet.
//!
//! The view that was kept is what guests saw last: every request had changed it before it completed. The table is the newest state
//! that was committed. Per extent the generation says which of them is newer:
//!
//! * equal: it is where the table says (a move changes the table first), and has the blocks that the view says;
//! * the view is newer: what the table has was dropped, and the slots are to be freed; then it may have been placed again;
//! * the table is newer: a command was durable and not in the view yet.
//!
//! The differences become changes that are pending as they were before, with the first sync after the opening in front of them
//! (ordering rule 1: what was written before may be in the disk's cache). If the view is not there (another boot, no room), the table
//! is all there is, as after a power cut. So it is for what only disks in doubt have ([`super::trust`]).

use std::collections::HashMap;

use super::trust::{Losses, Trust};
use crate::base::ids::DiskId;
use crate::base::limits::COPIES_MAX;
use crate::base::units::{BlockMask, ExtentIndex, Generation, Geometry, SlotIndex};
use crate::placement::view::{Kept, Lookup, VhdMap};
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::shared::VhdState;
use crate::shared::disk::{SyncNumber, SyncPoint};
use crate::store::change::{Change, ChangeKind};

/// Brings an extent in the map of a VHD, restored from the table, to what was `seen` as far as disks can be trusted to have it, and adds
/// what the table lacks to `recovered`.
pub fn recover(vhd: &VhdState, extent: ExtentIndex, seen: Kept, trust: &Trust, recovered: &mut Recovered) {
    // A VHD that was shrunk durably may have been longer in the view.
    if extent.0 >= vhd.map.extents() {
        return;
    }
    let seen = Kept { present: seen.present.and(blocks_of(vhd.settings.geometry, vhd.size(), extent)), ..seen };
    let table = vhd.map.lookup(extent);
    if seen.generation == table.generation {
        same_content(vhd, extent, &seen, &table, trust, recovered);
    } else if seen.generation > table.generation {
        newer_content(vhd, extent, &seen, &table, trust, recovered);
    }
}

/// What a view has that the table lacks.
#[derive(Debug, Default)]
pub struct Recovered {
    /// To be made durable.
    pub changes: Vec<Change>,
    /// Slots that the table has not given to those extents.
    pub placed: Vec<Replica>,
    /// What is not recovered.
    pub losses: Losses,
}

impl Recovered {
    /// Whether the table agrees: nobody else has a slot that was placed or freed, of the disks with their number of `slots`. If not,
    /// view and table are not of one pool at one time. Reads all maps once, if any slot is in question.
    ///
    /// # Errors
    /// The first slot that two have.
    pub fn check<'a>(
        &self,
        slots: impl Fn(DiskId) -> Option<u32>,
        maps: impl Iterator<Item = &'a VhdMap>,
    ) -> Result<(), Replica> {
        let mut users: HashMap<(DiskId, SlotIndex), u32> = HashMap::new();
        let freed = self.changes.iter().filter_map(|change| match change.kind {
            ChangeKind::Freed { freed } => Some(freed),
            ChangeKind::Written { .. } | ChangeKind::Cleared { .. } | ChangeKind::Placed { .. } => None,
        });
        for replica in freed.flat_map(|freed| freed.iter().collect::<Vec<_>>()) {
            *users.entry((replica.disk, replica.slot)).or_default() += 1;
        }
        // Counted by the maps, which have them.
        for replica in &self.placed {
            users.entry((replica.disk, replica.slot)).or_default();
            if slots(replica.disk).is_none_or(|slots| replica.slot.0 >= slots) {
                return Err(*replica);
            }
        }
        let mut twice = None;
        if users.is_empty() {
            return Ok(());
        }
        for map in maps {
            map.for_each_placed(|placed| {
                for replica in placed.replicas() {
                    if let Some(count) = users.get_mut(&(replica.disk, replica.slot)) {
                        *count += 1;
                        twice = twice.or((*count > 1).then_some(replica));
                    }
                }
            });
        }
        twice.map_or(Ok(()), Err)
    }
}

/// The blocks of an extent that are within the VHD, in part or as a whole.
fn blocks_of(geometry: Geometry, size: u64, extent: ExtentIndex) -> BlockMask {
    let start = u64::from(extent.0) * geometry.extent_size();
    match size.saturating_sub(start).min(geometry.extent_size()) {
        0 => BlockMask::NONE,
        len => geometry.blocks(0, len),
    }
}

fn same_content(
    vhd: &VhdState,
    extent: ExtentIndex,
    seen: &Kept,
    table: &Lookup,
    trust: &Trust,
    recovered: &mut Recovered,
) {
    // Without a place in the view it was being dropped, under a claim on all its blocks, which had cleared them: the discard may
    // be applied, and those that had completed before must be.
    if table.replicas.is_absent() || seen.present == table.present {
        return;
    }
    let (generation, written) = (table.generation, seen.present.without(table.present));
    let Some(replicas) = trust.sure(table.replicas) else {
        recovered.losses.lose(vhd.id(), written);
        return;
    };
    recovered.losses.make_stale(vhd, extent, table, replicas);
    vhd.map.restore(extent, replicas, seen.present, generation);
    let mut add = |kind| recovered.changes.push(Change { vhd: vhd.id(), extent, generation, kind });
    let cleared = table.present.without(seen.present);
    if !cleared.is_empty() {
        add(ChangeKind::Cleared { blocks: cleared });
    }
    if !written.is_empty() {
        add(written_kind(replicas, written));
    }
}

fn newer_content(
    vhd: &VhdState,
    extent: ExtentIndex,
    seen: &Kept,
    table: &Lookup,
    trust: &Trust,
    recovered: &mut Recovered,
) {
    // While it was being placed, its words may be those of two moments; with a block in it, of a move that adds or takes a copy.
    let half_placed = seen.was_changing && seen.present.is_empty();
    let place = if half_placed { ReplicaSet::ABSENT } else { seen.replicas.settled() };
    // Without a trace where only disks in doubt have it: of a copy of the disks, not even that the slot was taken is true.
    let place = trust.sure(place).unwrap_or(ReplicaSet::ABSENT);
    let present = if place.is_absent() { BlockMask::NONE } else { seen.present };
    recovered.losses.lose(vhd.id(), seen.present.without(present));
    if place.is_absent() && trust.sure(table.replicas).is_none() {
        return;
    }
    let mut add = |generation, kind| recovered.changes.push(Change { vhd: vhd.id(), extent, generation, kind });
    if !table.replicas.is_absent() {
        // It was dropped by the generation before the one in which it was placed again.
        let placed = u32::from(!place.is_absent()) * 2;
        let generation = Generation(seen.generation.0.saturating_sub(placed).max(table.generation.0 + 2));
        add(generation, ChangeKind::Freed { freed: table.replicas });
    }
    vhd.map.restore(extent, place, present, seen.generation);
    recovered.placed.extend(place.iter());
    if !present.is_empty() {
        add(seen.generation, written_kind(place, present));
    }
}

/// Written on all replicas in sync, in which nothing counts as synced. Those that are stale have not got it, and need no sync.
fn written_kind(replicas: ReplicaSet, blocks: BlockMask) -> ChangeKind {
    let mut needs = [None; COPIES_MAX];
    let in_sync = |replica: &Replica| replica.state == ReplicaState::InSync;
    for (need, replica) in needs.iter_mut().zip(replicas.iter().filter(in_sync)) {
        *need = Some(SyncPoint { disk: replica.disk, number: SyncNumber(1) });
    }
    ChangeKind::Written { replicas, blocks, needs }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::{DiskSet, VhdId};
    use crate::shared::VhdSettings;
    use crate::store::edit::{MovedExtent, StoreEdit};

    const EXTENT: ExtentIndex = ExtentIndex(1);

    fn single(slot: u32) -> ReplicaSet {
        ReplicaSet::single(DiskId(3), SlotIndex(slot))
    }

    fn kept(generation: u32, replicas: ReplicaSet, present: u32) -> Kept {
        Kept { generation: Generation(generation), was_changing: false, replicas, present: BlockMask(present) }
    }

    /// What comes of a table row and a kept view, for an extent of a VHD of two and a half.
    fn recovered(table: (u32, ReplicaSet, u32), seen: Kept) -> (Lookup, Vec<(u32, ChangeKind)>) {
        let (lookup, changes, losses) = recovered_by(&Trust::default(), table, seen);
        assert!(losses.blocks.is_empty() && losses.stale.is_empty());
        (lookup, changes)
    }

    /// The same, with these disks in doubt, of which all work.
    fn doubted(disks: &[u8], table: (u32, ReplicaSet, u32), seen: Kept) -> (Lookup, Vec<(u32, ChangeKind)>, Losses) {
        let doubted = disks.iter().map(|disk| DiskId(*disk)).collect();
        recovered_by(&Trust { doubted, working: DiskSet(u64::MAX) }, table, seen)
    }

    fn recovered_by(
        trust: &Trust,
        table: (u32, ReplicaSet, u32),
        seen: Kept,
    ) -> (Lookup, Vec<(u32, ChangeKind)>, Losses) {
        let settings = VhdSettings {
            id: VhdId(1),
            uuid: uuid::Uuid::nil(),
            geometry: Geometry::new(1 << 20).unwrap(),
            block_size: 512,
            read_only: false,
            thick: false,
            checksums: false,
        };
        let vhd = VhdState::new(settings, 5 << 19, VhdMap::new(3), 1);
        vhd.map.restore(EXTENT, table.1, BlockMask(table.2), Generation(table.0));
        let mut recovered = Recovered::default();
        recover(&vhd, EXTENT, seen, trust, &mut recovered);
        recover(&vhd, ExtentIndex(3), seen, trust, &mut recovered);
        let Recovered { changes, losses, .. } = recovered;
        assert!(changes.iter().all(|change| change.extent == EXTENT && change.vhd == VhdId(1)));
        let changes = changes.iter().map(|change| (change.generation.0, change.kind)).collect();
        (vhd.map.lookup(EXTENT), changes, losses)
    }

    fn lost(losses: &Losses) -> u64 {
        losses.blocks.get(&VhdId(1)).copied().unwrap_or(0)
    }

    fn state(lookup: &Lookup) -> (u32, ReplicaSet, u32) {
        (lookup.generation.0, lookup.replicas, lookup.present.0)
    }

    #[test]
    fn what_was_written_and_cleared_since_the_commit_is_pending_again() {
        let (lookup, changes) = recovered((2, single(5), 0b0011), kept(2, single(5), 0b0110));
        assert_eq!(state(&lookup), (2, single(5), 0b0110));
        let cleared = ChangeKind::Cleared { blocks: BlockMask(1) };
        assert_eq!(changes, [(2, cleared), (2, written_kind(single(5), BlockMask(0b100)))]);
        let ChangeKind::Written { needs, .. } = changes[1].1 else { unreachable!() };
        assert_eq!(needs[0], Some(SyncPoint { disk: DiskId(3), number: SyncNumber(1) }), "rule 1");
        let (_, changes) = recovered((2, single(5), 0b11), kept(2, single(5), 0b11));
        assert!(changes.is_empty());
    }

    #[test]
    fn a_first_write_to_an_extent_that_the_table_does_not_have() {
        let (lookup, changes) = recovered((0, ReplicaSet::ABSENT, 0), kept(2, single(5), 0b1));
        assert_eq!(state(&lookup), (2, single(5), 1));
        assert_eq!(changes, [(2, written_kind(single(5), BlockMask(1)))]);
        // Placed, and nothing written: as it was, too, and nothing to commit.
        let (lookup, changes) = recovered((0, ReplicaSet::ABSENT, 0), kept(2, single(5), 0));
        assert_eq!((state(&lookup), changes.len()), ((2, single(5), 0), 0));
    }

    #[test]
    fn what_was_dropped_does_not_come_back() {
        let freed = ChangeKind::Freed { freed: single(5) };
        let (lookup, changes) = recovered((2, single(5), 0b11), kept(4, ReplicaSet::ABSENT, 0));
        assert_eq!((state(&lookup), changes), ((4, ReplicaSet::ABSENT, 0), vec![(4, freed)]));
        // Nor when the extent is somewhere else by now, maybe with the same blocks.
        let (lookup, changes) = recovered((2, single(5), 0b11), kept(6, single(9), 0b11));
        assert_eq!(state(&lookup), (6, single(9), 0b11));
        assert_eq!(changes, [(4, freed), (6, written_kind(single(9), BlockMask(0b11)))]);
    }

    #[test]
    fn a_move_is_where_the_table_says() {
        let mut both = single(5);
        both.push(Replica { disk: DiskId(1), slot: SlotIndex(8), state: ReplicaState::Sealing });
        let there = ReplicaSet::single(DiskId(1), SlotIndex(8));
        // The commit came, the switch of the view did not.
        let (lookup, changes) = recovered((2, there, 0b01), kept(2, both, 0b11));
        assert_eq!(state(&lookup), (2, there, 0b11));
        assert_eq!(changes, [(2, written_kind(there, BlockMask(0b10)))]);
        // Neither came: the copy is given up. Also of an extent that the table does not have.
        let (lookup, _) = recovered((2, single(5), 0b01), kept(2, both, 0b11));
        assert_eq!(state(&lookup), (2, single(5), 0b11));
        let (lookup, changes) = recovered((0, ReplicaSet::ABSENT, 0), kept(2, both, 0b11));
        assert_eq!(state(&lookup), (2, single(5), 0b11));
        assert_eq!(changes, [(2, written_kind(single(5), BlockMask(0b11)))]);
    }

    #[test]
    fn an_owner_that_died_between_two_stores() {
        let changing = |kept: Kept| Kept { was_changing: true, ..kept };
        // Placing: the version is still that of the absent extent.
        let (lookup, changes) = recovered((0, ReplicaSet::ABSENT, 0), changing(kept(4, single(5), 0)));
        assert_eq!((state(&lookup), changes.len()), ((4, ReplicaSet::ABSENT, 0), 0));
        // Dropping: all blocks are cleared by then, some maybe by discards that have completed.
        let (lookup, changes) = recovered((2, single(5), 0b1), changing(kept(2, ReplicaSet::ABSENT, 0)));
        assert_eq!(state(&lookup), (2, single(5), 0));
        assert_eq!(changes, [(2, ChangeKind::Cleared { blocks: BlockMask(1) })]);
        // Moving, of what the table does not have.
        let (lookup, _) = recovered((0, ReplicaSet::ABSENT, 0), changing(kept(2, single(5), 0b1)));
        assert_eq!(state(&lookup), (2, single(5), 1));
    }

    #[test]
    fn what_a_stale_replica_lacks_needs_no_sync_there() {
        let mut both = single(5);
        both.push(Replica { disk: DiskId(1), slot: SlotIndex(8), state: ReplicaState::Stale });
        let need = Some(SyncPoint { disk: DiskId(3), number: SyncNumber(1) });
        for (table, view) in [((2, both, 0b01), kept(2, both, 0b11)), ((0, ReplicaSet::ABSENT, 0), kept(2, both, 0b11))]
        {
            let (_, changes) = recovered(table, view);
            let ChangeKind::Written { needs, replicas, .. } = changes[0].1 else { panic!("{changes:?}") };
            assert_eq!((replicas, needs), (both, [need, None, None, None]));
        }
    }

    fn both(first: ReplicaState, second: ReplicaState) -> ReplicaSet {
        let mut both = ReplicaSet::ABSENT;
        both.push(Replica { disk: DiskId(3), slot: SlotIndex(5), state: first });
        both.push(Replica { disk: DiskId(1), slot: SlotIndex(8), state: second });
        both
    }

    #[test]
    fn what_only_a_disk_in_doubt_has_is_as_after_a_power_cut() {
        // First writes and discards in a place that the table has.
        let (lookup, changes, losses) = doubted(&[3], (2, single(5), 0b0011), kept(2, single(5), 0b1110));
        assert_eq!((state(&lookup), changes.len()), ((2, single(5), 0b0011), 0));
        assert_eq!((lost(&losses), losses.stale.len()), (2, 0));
        // In a place that the table does not have: nobody knows of it any more.
        let (lookup, changes, losses) = doubted(&[3], (0, ReplicaSet::ABSENT, 0), kept(2, single(5), 0b11));
        assert_eq!((state(&lookup), changes.len(), lost(&losses)), ((2, ReplicaSet::ABSENT, 0), 0, 2));
        // What was dropped there comes back, wherever it was placed again: of a copy it may not have been dropped.
        for seen in [kept(4, ReplicaSet::ABSENT, 0), kept(6, single(9), 0b1)] {
            let (lookup, changes, losses) = doubted(&[3], (2, single(5), 0b11), seen);
            assert_eq!((state(&lookup), changes.len()), ((2, single(5), 0b11), 0));
            assert_eq!(lost(&losses), u64::from(seen.present.0));
        }
        // But not if that was on a disk that is well.
        let elsewhere = ReplicaSet::single(DiskId(1), SlotIndex(8));
        let (lookup, changes, losses) = doubted(&[3], (2, elsewhere, 0b11), kept(6, single(9), 0b1));
        assert_eq!((state(&lookup), lost(&losses)), ((6, ReplicaSet::ABSENT, 0), 1));
        assert_eq!(changes, [(6, ChangeKind::Freed { freed: elsewhere })]);
        // And what is on one that is well is there, whatever has become of the place before.
        let (lookup, changes, losses) = doubted(&[3], (2, single(5), 0b11), kept(6, elsewhere, 0b1));
        assert_eq!((state(&lookup), lost(&losses)), ((6, elsewhere, 0b1), 0));
        let freed = ChangeKind::Freed { freed: single(5) };
        assert_eq!(changes, [(4, freed), (6, written_kind(elsewhere, BlockMask(1)))]);
    }

    #[test]
    fn what_another_replica_has_is_recovered_and_those_in_doubt_are_stale() {
        use ReplicaState::{InSync, Stale};
        let (good, without) = (both(InSync, InSync), both(Stale, InSync));
        let (lookup, changes, losses) = doubted(&[3], (2, good, 0b01), kept(2, good, 0b11));
        assert_eq!((state(&lookup), lost(&losses)), ((2, without, 0b11), 0));
        let need = Some(SyncPoint { disk: DiskId(1), number: SyncNumber(1) });
        let written =
            |replicas| ChangeKind::Written { replicas, blocks: BlockMask(0b10), needs: [need, None, None, None] };
        assert_eq!(changes, [(2, written(without))]);
        let moved = MovedExtent { extent: EXTENT, generation: Generation(2), from: Some(DiskId(3)), replicas: without };
        assert_eq!(losses.rows(), [StoreEdit::Move { vhd: VhdId(1), moves: vec![moved] }], "the table has to know");
        // Of what the table does not have, what is pending says it.
        let (lookup, changes, losses) = doubted(&[3], (0, ReplicaSet::ABSENT, 0), kept(2, good, 0b10));
        assert_eq!((state(&lookup), losses.rows()), ((2, without, 0b10), vec![]));
        assert_eq!(changes, [(2, written(without))]);
        // A stale one is no other, nor is one in doubt, nor one that cannot be read.
        let stale = both(InSync, Stale);
        let (lookup, changes, losses) = doubted(&[3], (2, stale, 0b01), kept(2, stale, 0b11));
        assert_eq!((state(&lookup), changes.len(), lost(&losses)), ((2, stale, 0b01), 0, 1));
        let (lookup, _, losses) = doubted(&[1, 3], (2, good, 0b01), kept(2, good, 0b11));
        assert_eq!((state(&lookup), lost(&losses)), ((2, good, 0b01), 1));
        let trust = Trust { doubted: DiskSet(1 << 3), working: DiskSet(1 << 3) };
        let (lookup, _, losses) = recovered_by(&trust, (2, good, 0b01), kept(2, good, 0b11));
        assert_eq!((state(&lookup), lost(&losses)), ((2, good, 0b01), 1));
    }

    #[test]
    fn slots_that_others_have_contradict_a_view() {
        let map = |slot: u32| {
            let map = VhdMap::new(1);
            map.restore(ExtentIndex(0), single(slot), BlockMask(1), Generation(2));
            map
        };
        let check = |placed: u32, freed: u32, maps: &[VhdMap]| {
            let kind = ChangeKind::Freed { freed: single(freed) };
            let change = Change { vhd: VhdId(1), extent: EXTENT, generation: Generation(4), kind };
            let placed = single(placed).iter().collect();
            let recovered = Recovered { changes: vec![change], placed, losses: Losses::default() };
            let slots = |disk| (disk == DiskId(3)).then_some(10);
            recovered.check(slots, maps.iter()).map_err(|replica| replica.slot.0)
        };
        assert_eq!(check(5, 6, &[map(5), map(7)]), Ok(()));
        assert_eq!(check(5, 6, &[map(5), map(5)]), Err(5), "placed where another is");
        assert_eq!(check(5, 6, &[map(5), map(6)]), Err(6), "freed, and another is there");
        assert_eq!(check(5, 5, &[map(5)]), Err(5), "placed in a slot that waits to be free");
        assert_eq!(check(10, 6, &[map(10)]), Err(10), "beyond the end of the disk");
    }

    #[test]
    fn a_table_that_is_newer_counts() {
        let (lookup, changes) = recovered((4, single(7), 0), kept(2, single(5), 0b1));
        assert_eq!((state(&lookup), changes.len()), ((4, single(7), 0), 0));
    }

    #[test]
    fn blocks_beyond_the_end_of_a_shrunk_vhd_are_not_there() {
        let geometry = Geometry::new(1 << 20).unwrap();
        assert_eq!(blocks_of(geometry, 5 << 19, ExtentIndex(2)), BlockMask(0xffff));
        assert_eq!(blocks_of(geometry, 5 << 19, ExtentIndex(1)), BlockMask::ALL);
        assert_eq!(blocks_of(geometry, 5 << 19, ExtentIndex(3)), BlockMask::NONE);
    }
}
