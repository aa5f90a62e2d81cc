//! Which disks have what was written to them and not flushed, after the daemon that wrote it was killed.
//!
//! Without a power cut a disk has every write that it has completed. Not so one that has failed (a sync that fails takes back what went
//! before, and the kernel tells nobody a second time), was away, or is a copy. What such a disk has beyond the table is as after a
//! power cut: unknown, down to bytes that a slot held for another VHD. So nothing is recovered that only disks in doubt have; where
//! a disk has it that is not, the replicas in doubt are stale.

use std::collections::BTreeMap;

use crate::base::ids::{DiskSet, VhdId};
use crate::base::limits::STALE_ROWS_MAX;
use crate::base::units::{BlockMask, ExtentIndex};
use crate::placement::view::Lookup;
use crate::placement::{Replica, ReplicaSet, ReplicaState};
use crate::shared::VhdState;
use crate::store::edit::{MovedExtent, StoreEdit};
use crate::store::page::{PAGE_EXTENTS, PageKey};

/// What is known of the disks of the pool.
#[derive(Clone, Copy, Debug, Default)]
pub struct Trust {
    /// May lack what was not flushed.
    pub doubted: DiskSet,
    /// Can be read.
    pub working: DiskSet,
}

impl Trust {
    /// The copies of which one at least is known to have what was written last, with those in doubt as stale; `None` if it is not known of
    /// any that can be read.
    #[must_use]
    pub fn sure(&self, replicas: ReplicaSet) -> Option<ReplicaSet> {
        let in_sync = |replica: &Replica| replica.state == ReplicaState::InSync;
        let in_doubt = |replica: &Replica| in_sync(replica) && self.doubted.contains(replica.disk);
        let is_good = |replica: &Replica| {
            in_sync(replica) && !self.doubted.contains(replica.disk) && self.working.contains(replica.disk)
        };
        if !replicas.iter().any(|replica| in_doubt(&replica)) {
            return Some(replicas);
        }
        let stale = |replica| Replica { state: ReplicaState::Stale, ..replica };
        let doubtful = replicas.iter().filter(in_doubt);
        let sure = doubtful.fold(replicas, |replicas, replica| replicas.with(replica.disk, stale(replica)));
        replicas.iter().any(|replica| is_good(&replica)).then_some(sure)
    }
}

/// What comes of the doubt.
#[derive(Debug, Default)]
pub struct Losses {
    /// Extents of the table whose replicas in doubt are stale now, to be written to it. By VHD, ascending.
    pub stale: BTreeMap<VhdId, BTreeMap<ExtentIndex, MovedExtent>>,
    /// Blocks that were there and are not recovered.
    pub blocks: BTreeMap<VhdId, u64>,
    /// Disks with replicas in doubt that are not stale, because no other one is there: they stay in doubt.
    pub unsettled: DiskSet,
}

impl Losses {
    /// Replicas in doubt in pages that were written to lately (the others are synced) are stale from now on, in the map as the table has it.
    /// Nobody may have looked at it yet.
    pub fn doubt_written(&mut self, vhd: &VhdState, trust: &Trust) {
        if trust.doubted.is_empty() {
            return;
        }
        for page in vhd.map.pages_with_intent() {
            let page = PageKey { vhd: vhd.id(), page };
            let extents = (0..PAGE_EXTENTS).filter_map(|place| page.extent(place));
            for extent in extents.take_while(|extent| extent.0 < vhd.map.extents()) {
                let table = vhd.map.lookup(extent);
                match trust.sure(table.replicas) {
                    Some(sure) => self.make_stale(vhd, extent, &table, sure),
                    None if table.replicas.in_sync() > 1 => {
                        let doubted = table.replicas.iter().filter(|replica| trust.doubted.contains(replica.disk));
                        doubted.for_each(|replica| self.unsettled.insert(replica.disk));
                    }
                    None => {}
                }
            }
        }
    }

    /// The extent is in these replicas, some of which may be stale only now.
    pub fn make_stale(&mut self, vhd: &VhdState, extent: ExtentIndex, table: &Lookup, replicas: ReplicaSet) {
        if replicas == table.replicas {
            return;
        }
        let generation = table.generation;
        let now_stale = |before: &Replica| replicas.on(before.disk) != Some(*before);
        let from = table.replicas.iter().find(now_stale).map(|replica| replica.disk);
        vhd.map.restore(extent, replicas, table.present, generation);
        let moved = MovedExtent { extent, generation, from, replicas };
        self.stale.entry(vhd.id()).or_default().insert(extent, moved);
    }

    /// Blocks are not recovered.
    pub fn lose(&mut self, vhd: VhdId, blocks: BlockMask) {
        if !blocks.is_empty() {
            *self.blocks.entry(vhd).or_default() += u64::from(blocks.0.count_ones());
        }
    }

    /// Rows for the table, in parts that one commit can take.
    #[must_use]
    pub fn rows(&self) -> Vec<StoreEdit> {
        let mut rows = Vec::new();
        for (vhd, moves) in &self.stale {
            let moves: Vec<MovedExtent> = moves.values().copied().collect();
            let parts = moves.chunks(STALE_ROWS_MAX);
            rows.extend(parts.map(|part| StoreEdit::Move { vhd: *vhd, moves: part.to_vec() }));
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::DiskId;
    use crate::base::units::SlotIndex;

    const STATES: [Option<ReplicaState>; 3] = [None, Some(ReplicaState::InSync), Some(ReplicaState::Stale)];

    /// Every place on up to three disks, with every set of disks in doubt and of those that work.
    #[test]
    fn what_is_read_is_never_in_doubt_and_nothing_is_given_up_that_is_sure() {
        let mut cases = 0;
        for code in 0..27 * 64 {
            let mut replicas = ReplicaSet::ABSENT;
            for disk in 0..3_u8 {
                if let Some(state) = STATES[code / [1, 3, 9][usize::from(disk)] % 3] {
                    replicas.push(Replica { disk: DiskId(disk), slot: SlotIndex(7), state });
                }
            }
            let (doubted, working) = (DiskSet(code as u64 / 27 % 8), DiskSet(code as u64 / 27 / 8));
            let in_sync: Vec<DiskId> =
                replicas.iter().filter(|r| r.state == ReplicaState::InSync).map(|r| r.disk).collect();
            let good = in_sync.iter().any(|disk| !doubted.contains(*disk) && working.contains(*disk));
            let any_doubted = in_sync.iter().any(|disk| doubted.contains(*disk));
            match (Trust { doubted, working }).sure(replicas) {
                None => assert!(any_doubted && !good, "{replicas:?} {doubted:?} {working:?}"),
                Some(sure) if !any_doubted => assert_eq!(sure, replicas),
                Some(sure) => {
                    assert!(good && sure.len() == replicas.len());
                    let read = |r: &Replica| r.state == ReplicaState::InSync;
                    assert!(sure.iter().filter(read).all(|r| !doubted.contains(r.disk) && in_sync.contains(&r.disk)));
                    let kept = in_sync.iter().filter(|disk| !doubted.contains(**disk));
                    assert!(kept.into_iter().all(|disk| sure.on(*disk) == replicas.on(*disk)));
                }
            }
            cases += 1;
        }
        assert_eq!(cases, 1728);
    }
}
