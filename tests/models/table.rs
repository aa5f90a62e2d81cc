//! The consistency check against a table that is kept right by hand.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use spanblk::base::ids::{DiskId, VhdId};
use spanblk::base::units::{BlockMask, ExtentIndex, SlotIndex};
use spanblk::placement::check::{Checker, TableExtent, Violation};
use spanblk::placement::record::{Accept, DiskRecord, Layout, PoolRecord, RECORD_VERSION, VhdRecord, WhenFull};
use spanblk::placement::{Replica, ReplicaSet, ReplicaState};

const TABLE_DISKS: u8 = 3;
const TABLE_SLOTS: u32 = 40;
const TABLE_EXTENTS: u32 = 50;

fn table_pool() -> PoolRecord {
    let disk = |id: u8| DiskRecord {
        id: DiskId(id),
        uuid: uuid::Uuid::from_u128(u128::from(id) + 1),
        name: format!("d{id}"),
        slots: TABLE_SLOTS,
        data_offset: 1 << 20,
        accept: Accept::Any,
        failure_domain: format!("domain{id}"),
    };
    let mut pool = PoolRecord::new(uuid::Uuid::from_u128(7), 1 << 20, (0..TABLE_DISKS).map(disk).collect());
    pool.next_vhd_id = VhdId(3);
    pool
}

fn table_vhds() -> Vec<VhdRecord> {
    let vhd = |id: u32| VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(id),
        name: format!("v{id}"),
        uuid: uuid::Uuid::from_u128(id.into()),
        size: u64::from(TABLE_EXTENTS) << 20,
        layout: Layout::Isolated { disk: DiskId(0), chosen: false },
        replicas: 1,
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: None,
        socket_owner: None,
        socket_mode: 0o600,
        when_full: WhenFull::Error,
        expand: None,
        limits: spanblk::placement::limits::IoLimits::default(),
        sharing: spanblk::placement::sharing::Sharing::default(),
        capacity: spanblk::placement::capacity::Capacity::default(),
        created: 0,
        writeback: true,
    };
    (1..3).map(vhd).collect()
}

#[derive(Clone, Debug)]
enum TableEdit {
    /// Places the extent in a free slot, or moves it to one.
    Place {
        vhd: u32,
        extent: u32,
        disk: u8,
        near: u32,
        present: u32,
    },
    /// Adds a replica on another disk.
    Replicate {
        vhd: u32,
        extent: u32,
        disk: u8,
        near: u32,
    },
    Drop {
        vhd: u32,
        extent: u32,
    },
}

fn table_edit() -> impl Strategy<Value = TableEdit> {
    let at = || (1..3_u32, 0..TABLE_EXTENTS);
    let slot = || (0..TABLE_DISKS, 0..TABLE_SLOTS);
    prop_oneof![
        3 => (at(), slot(), any::<u32>()).prop_map(|((vhd, extent), (disk, near), present)| {
            TableEdit::Place { vhd, extent, disk, near, present }
        }),
        2 => (at(), slot()).prop_map(|((vhd, extent), (disk, near))| TableEdit::Replicate { vhd, extent, disk, near }),
        1 => at().prop_map(|(vhd, extent)| TableEdit::Drop { vhd, extent }),
    ]
}

/// Disk and slot of each replica, and the present bits.
type Placed = (Vec<(u8, u32)>, u32);

/// A table that is kept right by hand: maps, and sets of the slots in use.
#[derive(Default)]
struct TableModel {
    extents: BTreeMap<(u32, u32), Placed>,
    used: BTreeSet<(u8, u32)>,
}

impl TableModel {
    fn free_slot(&self, disk: u8, near: u32) -> Option<u32> {
        (near..TABLE_SLOTS).chain(0..near).find(|slot| !self.used.contains(&(disk, *slot)))
    }

    fn apply(&mut self, edit: &TableEdit) {
        match *edit {
            TableEdit::Place { vhd, extent, disk, near, present } => {
                let Some(slot) = self.free_slot(disk, near) else { return };
                self.apply(&TableEdit::Drop { vhd, extent });
                self.used.insert((disk, slot));
                self.extents.insert((vhd, extent), (vec![(disk, slot)], present));
            }
            TableEdit::Replicate { vhd, extent, disk, near } => {
                let slot = self.free_slot(disk, near);
                let (Some((replicas, _)), Some(slot)) = (self.extents.get_mut(&(vhd, extent)), slot) else { return };
                if replicas.iter().all(|replica| replica.0 != disk) {
                    replicas.push((disk, slot));
                    self.used.insert((disk, slot));
                }
            }
            TableEdit::Drop { vhd, extent } => {
                for replica in self.extents.remove(&(vhd, extent)).unwrap_or_default().0 {
                    self.used.remove(&replica);
                }
            }
        }
    }

    fn table(&self) -> Vec<TableExtent> {
        let extent = |(&(vhd, extent), (places, present)): (&(u32, u32), &Placed)| {
            let mut replicas = ReplicaSet::ABSENT;
            for (disk, slot) in places {
                let state = ReplicaState::InSync;
                replicas.push(Replica { disk: DiskId(*disk), slot: SlotIndex(*slot), state });
            }
            TableExtent { vhd: VhdId(vhd), extent: ExtentIndex(extent), replicas, present: BlockMask(*present) }
        };
        self.extents.iter().map(extent).collect()
    }
}

fn violations(table: &[TableExtent]) -> Vec<Violation> {
    let (pool, vhds) = (table_pool(), table_vhds());
    let report = Checker::check(&pool, &vhds, || table.iter().copied());
    let placed = table.iter().filter(|extent| !extent.replicas.is_absent()).count();
    assert_eq!(report.extents, placed as u64);
    report.violations
}

proptest! {
    #[test]
    fn check_accepts_right_tables_and_finds_each_wrong_extent(
        edits in prop::collection::vec(table_edit(), 1..80),
        victim in any::<prop::sample::Index>(),
        donor in any::<prop::sample::Index>(),
        kind in 0..6_u8,
    ) {
        let mut model = TableModel::default();
        for edit in &edits {
            model.apply(edit);
            prop_assert_eq!(violations(&model.table()), []);
        }
        let mut table = model.table();
        prop_assume!(table.len() >= 2);
        let (victim, donor) = (victim.index(table.len()), donor.index(table.len()));
        let (own, other) = (table[victim].replicas, table[donor].replicas);
        let at = &mut table[victim];
        match kind {
            0 if victim != donor => at.replicas = other,
            1 => at.vhd = VhdId(9),
            2 => at.extent = ExtentIndex(TABLE_EXTENTS),
            3 => at.replicas = ReplicaSet::single(DiskId(0), SlotIndex(TABLE_SLOTS)),
            4 => at.replicas = ReplicaSet::single(DiskId(TABLE_DISKS), SlotIndex(0)),
            _ => {
                at.present = BlockMask(1);
                at.replicas = ReplicaSet::ABSENT;
                for replica in own.iter() {
                    at.replicas.push(Replica { state: ReplicaState::Stale, ..replica });
                }
            }
        }
        let found = violations(&table);
        let names_it = |violation: &Violation| matches!(
            (kind, violation),
            (0, Violation::SlotShared { .. })
                | (1, Violation::VhdUnknown { .. })
                | (2, Violation::BeyondEnd { .. })
                | (3, Violation::SlotOutOfRange { .. })
                | (4, Violation::DiskUnknown { .. })
                | (_, Violation::Unreadable { .. })
        );
        prop_assert!(found.iter().any(names_it), "{} was not found: {:?}", kind, found);
    }
}
