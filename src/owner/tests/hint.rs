//! Where a new VHD comes if the policy says something, and nobody else does.

use super::super::command::SetDisk;
use super::*;
use crate::placement::record::Layout;

fn on(disk: u8) -> Layout {
    Layout::Isolated { disk: DiskId(disk), chosen: false }
}

fn over(disks: &[u8]) -> Layout {
    let disks: Vec<DiskId> = disks.iter().copied().map(DiskId).collect();
    Layout::Spanned { width: u32::try_from(disks.len()).ok(), disks, chosen: false }
}

fn hinted(name: &str, layout: LayoutRequest, hint: Layout) -> CreateVhd {
    CreateVhd { hint: Some(hint), ..create(name, 4, layout) }
}

/// The third disk has the most room, and would be taken.
fn world() -> World {
    World::new(&[10, 10, 40], 1)
}

#[test]
fn a_hint_counts_where_nobody_names_disks_and_goes_with_what_is_asked_for() {
    let mut world = world();
    for (name, layout, hint, expected) in [
        ("a", LayoutRequest::Any, on(0), on(0)),
        ("b", LayoutRequest::Any, over(&[0, 1]), over(&[0, 1])),
        ("c", ISOLATED, on(1), on(1)),
        ("d", ISOLATED, over(&[0, 1]), on(2)),
        (
            "e",
            LayoutRequest::Isolated { disk: Some("d1".to_owned()) },
            on(0),
            Layout::Isolated { disk: DiskId(1), chosen: true },
        ),
        (
            "f",
            SPANNED,
            over(&[0, 1]),
            Layout::Spanned { disks: vec![DiskId(0), DiskId(1), DiskId(2)], width: None, chosen: false },
        ),
    ] {
        let vhd = world.create(hinted(name, layout, hint));
        assert_eq!(vhd.record.layout, expected, "{name}");
    }
    world.check();
}

#[test]
fn a_hint_that_cannot_be_is_nobodys_error() {
    let mut world = world();
    let closed = SetDisk { disk: "d0".to_owned(), accept: Some(Accept::None), failure_domain: None };
    world.run(Command::SetDisk(Box::new(closed))).unwrap();
    // Closed, gone, one of them closed; no room for a thick one; replicas that would fail together.
    assert_eq!(world.create(hinted("a", LayoutRequest::Any, on(0))).record.layout, on(2));
    assert_eq!(world.create(hinted("b", LayoutRequest::Any, on(9))).record.layout, on(2));
    assert_eq!(world.create(hinted("c", LayoutRequest::Any, over(&[0, 1]))).record.layout, on(2));
    let thick = CreateVhd { thick: true, size: 12 * EXTENT, ..hinted("d", LayoutRequest::Any, on(1)) };
    assert_eq!(world.create(thick).record.layout, on(2));
    assert_eq!(world.free_slots(1), 10, "nothing is left reserved there");
    let mirrored = CreateVhd { replicas: 2, ..hinted("e", LayoutRequest::Any, on(1)) };
    assert_eq!(world.create(mirrored).record.layout.disks().len(), 2);
    world.check();
}

#[test]
fn who_does_not_say_where_gets_one_disk_or_several_if_that_cannot_be_and_the_same_again_is_no_conflict() {
    let mut world = world();
    let any = |name: &str| create(name, 4, LayoutRequest::Any);
    assert_eq!(world.create(any("a")).record.layout, on(2));
    let (mirrored, named) = (
        CreateVhd { replicas: 2, ..any("b") },
        create("c", 4, LayoutRequest::Isolated { disk: Some("d0".to_owned()) }),
    );
    assert_eq!(world.create(mirrored.clone()).record.layout.disks().len(), 3);
    world.create(named);
    for again in [any("a"), mirrored, any("c"), CreateVhd { hint: Some(on(1)), ..any("a") }] {
        let reply = world.run(Command::CreateVhd(Box::new(again)));
        assert!(matches!(reply, Ok(Reply::Vhd { outcome: Outcome::Unchanged, .. })), "{reply:?}");
    }
    for disk in ["d0", "d1", "d2"] {
        let only = SetDisk { disk: disk.to_owned(), accept: Some(Accept::Spanned), failure_domain: None };
        world.run(Command::SetDisk(Box::new(only))).unwrap();
    }
    assert_eq!(world.create(any("d")).record.layout.disks().len(), 3, "no disk takes isolated ones");
}

#[test]
fn what_no_disk_has_room_for_is_spread_if_all_is_the_same_to_whoever_asks() {
    let mut world = world();
    let any = |name: &str, extents: u64| create(name, extents, LayoutRequest::Any);
    assert_eq!(world.create(any("fits", 40)).record.layout, on(2));
    let all = Layout::Spanned { disks: vec![DiskId(0), DiskId(1), DiskId(2)], width: None, chosen: false };
    assert_eq!(world.create(any("thin", 41)).record.layout, all);
    assert_eq!(world.create(CreateVhd { thick: true, ..any("thick", 50) }).record.layout, all);
    world.check();
}
