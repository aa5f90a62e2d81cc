//! How long it takes to tell what the loss of a disk means.
//!
//! `cargo bench --bench impact` prints a table: 1,000 VHDs on 8 disks, half of them isolated, half of them spanned over all.

#![allow(missing_docs, clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a benchmark")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use spanblk::base::ids::{DiskId, VhdId};
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, Geometry, SlotIndex};
use spanblk::control::convert::Gone;
use spanblk::control::convert::impact::{Scene, Votes, of_vhds};
use spanblk::owner::command::VhdInfo;
use spanblk::owner::vhd_state;
use spanblk::placement::record::{Accept, DiskRecord, Layout, PoolRecord, RECORD_VERSION, VhdRecord, WhenFull};
use spanblk::placement::{Replica, ReplicaSet, ReplicaState};

const DISKS: u8 = 8;
const VHDS: u32 = 1000;
const EXTENT: u64 = 1 << 20;

fn pool() -> PoolRecord {
    let disk = |id: u8| DiskRecord {
        id: DiskId(id),
        uuid: uuid::Uuid::from_u128(u128::from(id) + 1),
        name: format!("d{id}"),
        slots: u32::MAX,
        data_offset: EXTENT,
        accept: Accept::Any,
        failure_domain: format!("f{id}"),
    };
    PoolRecord::new(uuid::Uuid::from_u128(7), EXTENT, (0..DISKS).map(disk).collect())
}

/// A VHD of `size` extents, of which one in `thinness` is placed; two replicas if it is `mirrored`.
fn vhd(id: u32, size: u32, thinness: u32, mirrored: bool) -> VhdInfo {
    let own = (id % u32::from(DISKS)) as u8;
    let spanned = (id / u32::from(DISKS)).is_multiple_of(2);
    let layout = if spanned || mirrored {
        Layout::Spanned { disks: (0..DISKS).map(DiskId).collect(), width: None, chosen: false }
    } else {
        Layout::Isolated { disk: DiskId(own), chosen: false }
    };
    let record = VhdRecord {
        version: RECORD_VERSION,
        id: VhdId(id),
        name: format!("vhd{id}"),
        uuid: uuid::Uuid::from_u128(id.into()),
        size: u64::from(size) * EXTENT,
        layout,
        replicas: if mirrored { 2 } else { 1 },
        thick: false,
        checksums: false,
        read_only: false,
        block_size: 512,
        queues: 1,
        vm: Some(format!("vm{}", id / 4)),
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
    let state = Arc::new(vhd_state(&record, Geometry::new(EXTENT).unwrap(), 1, None));
    let mut slots: BTreeMap<DiskId, u32> = BTreeMap::new();
    for extent in (0..size).step_by(thinness as usize) {
        let disk = if spanned || mirrored { (extent / thinness % u32::from(DISKS)) as u8 } else { own };
        let mut replicas = ReplicaSet::ABSENT;
        for copy in 0..=u8::from(mirrored) {
            let disk = DiskId((disk + copy) % DISKS);
            replicas.push(Replica { disk, slot: SlotIndex(extent), state: ReplicaState::InSync });
            *slots.entry(disk).or_default() += 1;
        }
        state.map.restore(ExtentIndex(extent), replicas, BlockMask(u32::MAX >> (extent % 31)), Generation(0));
    }
    VhdInfo {
        record,
        state,
        attached: None,
        ready: true,
        slots,
        allocated: 0,
        sharing: Default::default(),
        capacity: spanblk::owner::command::CapacityUse::default(),
        growth: Default::default(),
    }
}

fn main() {
    let pool = pool();
    println!("{:>12} {:>10} {:>9} {:>14} {:>14}", "VHD size", "placed", "replicas", "extents in all", "milliseconds");
    for (size, thinness, mirrored) in
        [(1 << 10, 1, false), (10 << 10, 1, false), (10 << 10, 1, true), (100 << 10, 16, false)]
    {
        let vhds: Vec<VhdInfo> = (0..VHDS).map(|id| vhd(id, size, thinness, mirrored)).collect();
        let disks = [DiskId(1)].into_iter().collect();
        let votes = Votes { members: disks, needed: 1 };
        let scene = Scene { pool: &pool, disks, gone: Gone::default(), votes };
        let mut took: Vec<f64> = (0..5)
            .map(|_| {
                let begun = Instant::now();
                let impact = of_vhds(&scene, &vhds);
                assert!(impact.totals.lost.vhds + impact.totals.degraded.vhds > 0);
                begun.elapsed().as_secs_f64() * 1e3
            })
            .collect();
        took.sort_by(f64::total_cmp);
        let extents = size / thinness * VHDS;
        let (gib, part, replicas) = (size >> 10, 100 / thinness, 1 + u8::from(mirrored));
        println!("{gib:>8} GiB {part:>8} % {replicas:>9} {extents:>14} {:>14.1}", took[2]);
    }
}
