//! Reservations while slots are on their way back.

use super::*;
use crate::base::ids::DiskSet;
use crate::placement::holds::Holder;

fn disks_of(vhd: &VhdInfo, extent: u32) -> DiskSet {
    vhd.state.map.lookup(ExtentIndex(extent)).replicas.iter().map(|replica| replica.disk).collect()
}

fn held_on(world: &World, vhd: &VhdInfo, disk: u8) -> u32 {
    world.owner.space.held_on(Holder::Vhd(vhd.record.id), DiskId(disk))
}

#[test]
fn a_slot_on_its_way_back_to_one_takes_nothing_from_another() {
    let mut world = world_of(&[(3, "x"), (1, "y"), (1, "z")]);
    let u = world.create(on_disk("u", 4, "d0", limits(None, Some(1))));
    assert_eq!(world.place_all(&u, 0..1), 1);
    let v = world.create(CreateVhd { capacity: limits(None, Some(4)), ..replicated(8, 2) });
    assert!(u.record.id < v.record.id);
    let held = |world: &World| [0, 1, 2].map(|disk| held_on(world, &v, disk));
    assert_eq!(held(&world), [2, 1, 1]);
    world.discard(&u, 0);
    assert_eq!(held(&world), [2, 1, 1], "it is there already");
    world.check_holds();
    assert_eq!(world.place_all(&v, 0..2), 2);
    world.settle();
    assert_eq!(world.allocate(&u, 1), Some(Ok(())), "its own has come back");
    world.check_holds();
    world.check();
}

#[test]
fn who_lacks_slots_that_are_on_their_way_back_is_placed_as_if_they_were_there() {
    let mut world = world_of(&[(2, "x"), (1, "y"), (1, "z")]);
    let u = world.create(on_disk("u", 4, "d0", Capacity::default()));
    assert_eq!(world.place_all(&u, 0..1), 1);
    world.discard(&u, 0);
    let id =
        world.command(Command::CreateVhd(Box::new(CreateVhd { capacity: limits(None, Some(4)), ..replicated(8, 2) })));
    world.commit_edits();
    let Some(Ok(Reply::Vhd { vhd: v, .. })) = world.mail.replies.remove(&id) else { panic!("it has room to come") };
    assert_eq!([0, 1, 2].map(|disk| held_on(&world, &v, disk)), [1, 1, 1], "and one more on disk 0 to come");
    assert_eq!(world.allocate(&v, 0), Some(Ok(())));
    assert!(disks_of(&v, 0).contains(DiskId(0)), "or what is left would fail together");
    assert_eq!(world.allocate(&v, 1), None, "waits for what is on its way back");
    world.settle();
    assert_eq!(world.allocated(1001), Some(Ok(())));
    assert!(disks_of(&v, 1).contains(DiskId(0)));
    world.check_holds();
    world.check();
}

/// It was to go where what comes back will be; that does not come in time, and there is another way to place it.
#[test]
fn who_waits_for_slots_on_their_way_back_in_vain_has_what_there_is() {
    let mut world = world_of(&[(1, "x"), (1, "y"), (2, "z")]);
    let u = world.create(on_disk("u", 4, "d2", Capacity::default()));
    assert_eq!(world.place_all(&u, 0..2), 2);
    [0, 1].into_iter().for_each(|extent| world.discard(&u, extent));
    let v = CreateVhd { capacity: limits(None, Some(4)), when_full: WhenFull::Error, ..replicated(8, 2) };
    let id = world.command(Command::CreateVhd(Box::new(v)));
    world.commit_edits();
    let Some(Ok(Reply::Vhd { vhd: v, .. })) = world.mail.replies.remove(&id) else { panic!("it has room to come") };
    assert_eq!(world.allocate(&v, 0), None, "waits for the disk with most of what is reserved");
    world.advance(3000);
    assert_eq!(world.allocated(1000), Some(Ok(())));
    assert_eq!(disks_of(&v, 0), DiskSet(0b11));
    world.check_holds();
    world.check();
}

#[test]
fn what_is_only_in_part_on_the_disks_of_the_layout_uses_nothing_of_the_reservation() {
    let mut world = world_of(&[(2, "x"), (1, "y"), (2, "z")]);
    let layout = LayoutRequest::Spanned { disks: Some(vec!["d0".to_owned(), "d1".to_owned()]), width: None };
    let v = world.create(CreateVhd { capacity: limits(None, Some(2)), layout, ..replicated(8, 2) });
    assert_eq!(world.place_all(&v, 0..2), 2);
    assert!(disks_of(&v, 0) == DiskSet(0b011) && disks_of(&v, 1) == DiskSet(0b101));
    world.discard(&v, 0);
    world.settle();
    // Others take all that they can have.
    for (name, disk) in [("g0", "d0"), ("g1", "d1"), ("g2", "d2")] {
        let greedy = world.create(on_disk(name, 4, disk, Capacity::default()));
        world.place_all(&greedy, 0..4);
    }
    world.discard(&v, 1);
    world.settle();
    world.mail.reactors.retain(|(_, message)| matches!(message, ReactorMessage::Fence { .. }));
    assert_eq!(world.allocate(&v, 2), Some(Ok(())), "it is reserved");
    world.check_holds();
    world.check();
}
