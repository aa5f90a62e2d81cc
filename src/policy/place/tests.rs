use super::super::judge::tests::pool::{busy_vhd, disk, pool, vhd};
use super::super::observe::{DiskKind, Health};
use super::*;
use crate::placement::record::Accept;

const NEW: NewVhd = NewVhd { vm: None, size: 100 << 20, used: 0, replicas: 1 };

fn isolated(disk: u8) -> Option<Layout> {
    Some(Layout::Isolated { disk: DiskId(disk), chosen: false })
}

#[test]
fn a_new_vhd_goes_where_its_vm_is_or_where_most_is_to_spare() {
    let rules = Rules::default();
    let disks: Vec<_> = (0..3).map(disk).collect();
    let there = vec![vhd(1, Some(1), &[(0, 400)]), busy_vhd(2, None, &[(1, 10)], 0.5)];
    let seen = pool(disks, there.clone());
    assert_eq!(place(&seen, &rules, NEW), isolated(2));
    assert_eq!(place(&seen, &rules, NewVhd { vm: Some(VmId(1)), ..NEW }), isolated(0));
    // Where its VM is there is no room, or no time.
    let large = NewVhd { vm: Some(VmId(1)), size: 290 << 20, ..NEW };
    assert_eq!(place(&seen, &rules, large), isolated(2));
    let busy = pool((0..3).map(disk).collect(), vec![busy_vhd(1, Some(1), &[(0, 300)], 0.8)]);
    assert_ne!(place(&busy, &rules, NewVhd { vm: Some(VmId(1)), ..NEW }), isolated(0));
}

#[test]
fn of_disks_with_equal_room_the_one_with_fewer_unknown_guests_is_taken_and_a_fast_one_bears_more_of_them() {
    let rules = Rules::default();
    let three = [vhd(1, None, &[(0, 20)]), vhd(2, None, &[(0, 20)]), vhd(3, None, &[(0, 20)])];
    let there: Vec<_> = three.into_iter().chain([vhd(4, None, &[(1, 60)]), vhd(5, None, &[(2, 90)])]).collect();
    let mut seen = pool((0..3).map(disk).collect(), there);
    assert_eq!(place(&seen, &rules, NEW), isolated(1), "as much is written on disk 0, by three");
    seen.disks[0].kind = DiskKind::Nvme;
    assert_eq!(place(&seen, &rules, NEW), isolated(0), "three are little for it");
}

#[test]
fn those_that_have_nothing_yet_count_where_they_will_have_it() {
    let unwritten = |id: u32, at: u8| {
        let mut vhd = vhd(id, None, &[(at, 1)]);
        vhd.extents.clear();
        (vhd.placed, vhd.size) = (0, 1 << 20);
        vhd
    };
    let rules = Rules::default();
    let mut seen = pool((0..2).map(disk).collect(), vec![unwritten(1, 0), unwritten(2, 0), unwritten(3, 1)]);
    assert_eq!(place(&seen, &rules, NEW), isolated(1));
    seen.disks[0].kind = DiskKind::Nvme;
    assert_eq!(place(&seen, &rules, NEW), isolated(0), "two are little for it");
}

#[test]
fn a_large_one_is_spread_and_what_nobody_can_take_is_placed_nowhere() {
    let rules = Rules::default();
    let mut seen = pool((0..4).map(disk).collect(), vec![]);
    for (mib, disks) in [(290, 1), (310, 2), (900, 3)] {
        let layout = place(&seen, &rules, NewVhd { size: mib << 20, ..NEW }).unwrap();
        assert_eq!(layout.width(), disks, "{mib} MiB on disks of 1000 MiB");
    }
    let huge = place(&seen, &rules, NewVhd { size: 1 << 40, ..NEW }).unwrap();
    assert_eq!(huge.width(), 4, "thin: it may never be written");
    let mirrored = place(&seen, &rules, NewVhd { replicas: 2, ..NEW }).unwrap();
    assert_eq!(mirrored.width(), 2);
    seen.disks.iter_mut().for_each(|disk| disk.domain = 0);
    assert_eq!(place(&seen, &rules, NewVhd { replicas: 2, ..NEW }), None, "all fail together");
    seen.disks.iter_mut().for_each(|disk| disk.health = Health::Failed);
    assert_eq!(place(&seen, &rules, NEW), None);
    seen.disks.iter_mut().for_each(|disk| (disk.health, disk.accept) = (Health::Works, Accept::None));
    assert_eq!(place(&seen, &rules, NEW), None);
}
