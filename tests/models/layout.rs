//! Which disk each extent of a spanned VHD goes to.

use std::collections::BTreeMap;

use proptest::prelude::*;
use spanblk::base::ids::DiskId;
use spanblk::placement::layout::{Candidate, NEIGHBOUR_SLACK, choose_disk};

proptest! {
    #[test]
    fn sequential_fill_of_equal_disks_is_a_round_robin(width in 1..9_u8, rounds in 1..40_u32) {
        let chosen = fill(&vec![1000; width.into()], (0..u32::from(width) * rounds).collect(), &[]);
        for (i, disk) in chosen.iter().enumerate() {
            prop_assert_eq!(usize::from(*disk), i % usize::from(width));
        }
    }

    #[test]
    fn unequal_disks_fill_in_proportion(
        frees in prop::collection::vec(50..2000_u32, 2..7),
        part in 1..=10_u32,
    ) {
        let total: u32 = frees.iter().sum();
        let extents = total * part / 10;
        let chosen = fill(&frees, (0..extents).collect(), &[]);
        let slack = NEIGHBOUR_SLACK + u32::try_from(frees.len()).unwrap();
        for (disk, free) in frees.iter().enumerate() {
            let count = u32::try_from(chosen.iter().filter(|d| usize::from(**d) == disk).count()).unwrap();
            let fair = u32::try_from(u64::from(extents) * u64::from(*free) / u64::from(total)).unwrap();
            prop_assert!(count.abs_diff(fair) <= slack, "disk {} of {:?}: {} extents, fair {}", disk, frees, count, fair);
        }
    }

    #[test]
    fn neighbours_are_apart_on_equal_disks_unless_that_would_be_out_of_proportion(
        width in 3..9_u8,
        extents in 2..200_u32,
        seed in any::<u64>(),
    ) {
        let mut order: Vec<u32> = (0..extents).collect();
        let mut state = seed | 1;
        for i in (1..order.len()).rev() {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            order.swap(i, (state >> 33) as usize % (i + 1));
        }
        let mut counts = vec![0_u32; width.into()];
        let mut chosen = vec![None; extents as usize + 2];
        fill_with(&vec![1000; width.into()], order, &[], |extent, disk| {
            let at = extent as usize + 1;
            if [chosen[at - 1], chosen[at + 1]].contains(&Some(disk)) {
                let apart = (0..width).filter(|other| ![chosen[at - 1], chosen[at + 1]].contains(&Some(*other)));
                let ahead = apart.map(|other| counts[usize::from(other)] - counts[usize::from(disk)]).min().unwrap();
                // A part of an extent less when what is free counts, too.
                assert!(ahead + 1 >= NEIGHBOUR_SLACK, "extent {extent} is beside another on disk {disk}: {counts:?}");
            }
            counts[usize::from(disk)] += 1;
            chosen[at] = Some(disk);
        });
        let most = counts.iter().max().unwrap() - counts.iter().min().unwrap();
        prop_assert!(most <= NEIGHBOUR_SLACK + 1, "out of proportion: {:?}", counts);
        let beside = chosen.windows(2).filter(|pair| pair[0].is_some() && pair[0] == pair[1]).count();
        prop_assert!(beside * 20 <= extents as usize, "{} of {} extents beside another on the same disk", beside, extents);
    }

    #[test]
    fn a_full_disk_falls_back_to_the_others(width in 2..6_u8, full in 0..6_u8, extents in 1..100_u32) {
        let full = full % width;
        let mut frees = vec![1000; width.into()];
        frees[usize::from(full)] = 0;
        let chosen = fill(&frees, (0..extents).collect(), &[]);
        prop_assert_eq!(chosen.len(), extents as usize);
        prop_assert!(chosen.iter().all(|disk| *disk != full));
    }

    #[test]
    fn disks_that_lost_their_role_come_last(frees in prop::collection::vec(1..50_u32, 2..5)) {
        let total: u32 = frees.iter().sum();
        let chosen = fill(&frees, (0..total).collect(), &[0]);
        let others = total - frees[0];
        prop_assert!(chosen[..others as usize].iter().all(|disk| *disk != 0));
        prop_assert!(chosen[others as usize..].iter().all(|disk| *disk == 0));
        prop_assert_eq!(chosen.len(), total as usize);
    }
}

/// Places the extents in `order` on disks with these free slots; the disk of each extent, by extent.
fn fill(frees: &[u32], order: Vec<u32>, refusing: &[usize]) -> Vec<u8> {
    let mut placed: BTreeMap<u32, u8> = BTreeMap::new();
    fill_with(frees, order, refusing, |extent, disk| {
        placed.insert(extent, disk);
    });
    placed.into_values().collect()
}

/// As [`fill`]; tells of each extent and the disk that was chosen for it.
fn fill_with(frees: &[u32], order: Vec<u32>, refusing: &[usize], mut chosen: impl FnMut(u32, u8)) {
    let mut counts = vec![0_u32; frees.len()];
    let mut placed: BTreeMap<u32, u8> = BTreeMap::new();
    for extent in order {
        let neighbours =
            [extent.checked_sub(1), extent.checked_add(1)].map(|n| n.and_then(|n| placed.get(&n).copied()));
        let candidates = (0..u8::try_from(frees.len()).unwrap()).map(|disk| Candidate {
            disk: DiskId(disk),
            free: frees[usize::from(disk)] - counts[usize::from(disk)],
            count: counts[usize::from(disk)],
            neighbour: neighbours.contains(&Some(disk)),
            accepts: !refusing.contains(&usize::from(disk)),
        });
        let disk = choose_disk(candidates).unwrap();
        counts[disk.index()] += 1;
        placed.insert(extent, disk.0);
        chosen(extent, disk.0);
    }
}
