use super::*;
use crate::base::ids::DiskId;
use crate::base::units::SlotIndex;

const WRITTEN: BlockMask = BlockMask(0b101);

fn set(disks: &[u8]) -> DiskSet {
    disks.iter().map(|&disk| DiskId(disk)).collect()
}

fn fate(replicas: &[(u8, ReplicaState)], present: BlockMask, gone: &[u8]) -> ExtentFate {
    let loss = Loss { disks: set(&[0]), gone: set(gone) };
    let replica = |&(disk, state): &(u8, ReplicaState)| Replica { disk: DiskId(disk), slot: SlotIndex(1), state };
    loss.fate(replicas.iter().map(replica), present)
}

use ExtentFate::{Degraded, Empty, Lost, LostBefore, Untouched};
use ReplicaState::{InSync, Sealing, Stale, Syncing};

#[test]
fn one_replica_is_lost_with_its_disk() {
    assert_eq!(fate(&[(0, InSync)], WRITTEN, &[]), Lost);
    assert_eq!(fate(&[(1, InSync)], WRITTEN, &[]), Untouched);
    assert_eq!(fate(&[(0, InSync)], BlockMask::NONE, &[]), Empty);
    assert_eq!(fate(&[], BlockMask::NONE, &[]), Untouched);
}

#[test]
fn a_replica_elsewhere_keeps_an_extent_if_it_can_be_read() {
    assert_eq!(fate(&[(0, InSync), (1, InSync)], WRITTEN, &[]), Degraded);
    assert_eq!(fate(&[(1, InSync), (0, InSync)], WRITTEN, &[2]), Degraded);
    // The other disk is gone, too: counts per disk would not show it.
    assert_eq!(fate(&[(0, InSync), (1, InSync)], WRITTEN, &[1]), Lost);
    assert_eq!(fate(&[(0, InSync), (1, InSync), (2, InSync)], WRITTEN, &[1]), Degraded);
    assert_eq!(fate(&[(0, InSync), (1, InSync), (2, InSync)], WRITTEN, &[1, 2]), Lost);
    assert_eq!(fate(&[(0, InSync), (1, Stale)], WRITTEN, &[]), Lost, "a stale replica cannot be read");
    assert_eq!(fate(&[(0, Stale), (1, InSync)], WRITTEN, &[]), Degraded);
}

#[test]
fn copies_that_a_move_is_making_count_for_nothing() {
    for state in [Syncing, Sealing] {
        assert_eq!(fate(&[(0, InSync), (1, state)], WRITTEN, &[]), Lost);
        assert_eq!(fate(&[(1, InSync), (0, state)], WRITTEN, &[]), Untouched);
    }
}

#[test]
fn what_was_lost_before_is_told_apart() {
    assert_eq!(fate(&[(1, InSync)], WRITTEN, &[1]), LostBefore);
    assert_eq!(fate(&[(1, InSync)], BlockMask::NONE, &[1]), Untouched, "nothing was written there");
    assert_eq!(fate(&[(1, InSync), (2, InSync)], WRITTEN, &[1]), Untouched);
    // A disk that is gone is looked at as if it were the last to go.
    assert_eq!(fate(&[(0, InSync)], WRITTEN, &[0]), Lost);
}

/// Against a model that reads the definition literally, for all placements on four disks with up to three replicas.
#[test]
fn every_small_placement_has_the_fate_that_the_definition_gives_it() {
    let states = [None, Some(InSync), Some(Stale), Some(Syncing)];
    for code in 0..4_usize.pow(4) {
        let on = |disk: u8| states[code / 4_usize.pow(disk.into()) % 4];
        let replicas: Vec<(u8, ReplicaState)> = (0..4).filter_map(|d| on(d).map(|state| (d, state))).collect();
        if replicas.len() > 3 {
            continue;
        }
        for gone in 0..16_u8 {
            let gone: Vec<u8> = (0..4).filter(|disk| gone >> disk & 1 == 1).collect();
            let readable = |without: &[u8]| {
                replicas.iter().any(|(d, state)| *state == InSync && !without.contains(d) && !gone.contains(d))
            };
            let before_it = replicas.iter().any(|(d, state)| *state == InSync && (*d == 0 || !gone.contains(d)));
            let settled = replicas.iter().any(|(_, state)| *state != Syncing);
            let touched = matches!(on(0), Some(InSync | Stale));
            let wanted = match (touched, readable(&[0])) {
                (true, true) => Degraded,
                (true, false) => Lost,
                (false, true) => Untouched,
                (false, false) if settled && !before_it => LostBefore,
                (false, false) => Untouched,
            };
            assert_eq!(fate(&replicas, WRITTEN, &gone), wanted, "{replicas:?}, gone: {gone:?}");
        }
    }
}
