//! Settings of which one could not be kept, or not be used, are refused with the numbers.

use super::super::super::command::StartJob;
use super::*;

fn thin(name: &str, extents: u64, capacity: Capacity) -> CreateVhd {
    on_disk(name, extents, "d0", capacity)
}

#[test]
fn a_reservation_is_no_more_than_the_vhd_can_place() {
    let mut world = world_of(&[(40, "x"), (40, "y")]);
    let too_much = CreateVhd { capacity: limits(None, Some(21)), ..replicated(10, 2) };
    let refused = world.refuse_capacity(Command::CreateVhd(Box::new(too_much.clone())));
    let CapacityError::BeyondSize { reservation, size, replicas, most, .. } = refused else { panic!("{refused}") };
    assert_eq!((reservation, size, replicas, most), (21 * EXTENT, 10 * EXTENT, 2, 20 * EXTENT));
    world.create(CreateVhd { capacity: limits(None, Some(20)), ..too_much });
    assert!(matches!(world.refuse_capacity(set_vhd("r", limits(None, Some(21)))), CapacityError::BeyondSize { .. }));
    let shrink = ResizeVhd { vhd: "r".to_owned(), size: 9 * EXTENT, force: true };
    assert!(matches!(world.refuse_capacity(Command::ResizeVhd(shrink)), CapacityError::BeyondSize { .. }));
    let one = JobRequest::Replicas { vhd: "r".to_owned(), replicas: 1 };
    let start = Command::StartJob(Box::new(StartJob { request: one, ..StartJob::by_itself(1) }));
    assert!(matches!(world.refuse_capacity(start), CapacityError::BeyondSize { most, .. } if most == 10 * EXTENT));
    let grow = ResizeVhd { vhd: "r".to_owned(), size: 11 * EXTENT, force: false };
    world.run(Command::ResizeVhd(grow)).unwrap();
    world.run(set_vhd("r", limits(None, Some(21)))).unwrap();
}

#[test]
fn a_vms_quota_has_room_for_what_its_vhds_have_reserved() {
    let mut world = World::new(&[60], 1);
    world.run(create_vm("web", limits(Some(10), None))).unwrap();
    world.create(in_vm(thin("a", 20, limits(None, Some(6))), "web"));
    let too_much = Command::CreateVhd(Box::new(in_vm(thin("b", 20, limits(None, Some(5))), "web")));
    let refused = world.refuse_capacity(too_much);
    let CapacityError::QuotaExceeded { needed, used, quota, .. } = refused else { panic!("{refused}") };
    assert_eq!((needed, used, quota), (5 * EXTENT, 6 * EXTENT, 10 * EXTENT));
    world.create(in_vm(thin("b", 20, limits(None, Some(4))), "web"));
    assert!(matches!(world.refuse_capacity(set_vhd("b", limits(None, Some(5)))), CapacityError::QuotaExceeded { .. }));
    let refused = world.refuse_capacity(set_vm("web", limits(Some(9), None)));
    let CapacityError::QuotaBelowVhds { quota, reserved, used, needed, .. } = refused else { panic!("{refused}") };
    assert_eq!((quota, reserved, used, needed), (9 * EXTENT, 10 * EXTENT, 0, 10 * EXTENT));
    world.create(thin("c", 20, limits(None, Some(1))));
    let joins = SetVhd { vhd: "c".to_owned(), vm: Some(Some("web".to_owned())), ..SetVhd::default() };
    assert!(matches!(
        world.refuse_capacity(Command::SetVhd(Box::new(joins.clone()))),
        CapacityError::QuotaExceeded { .. }
    ));
    world.run(set_vm("web", limits(Some(11), None))).unwrap();
    world.run(Command::SetVhd(Box::new(joins))).unwrap();
    assert!(matches!(
        world.refuse_capacity(set_vm("web", limits(Some(11), Some(12)))),
        CapacityError::BeyondQuota { .. }
    ));
    world.check_sums();
}

#[test]
fn a_vhd_cannot_have_the_part_of_its_vms_quota_that_another_one_has_reserved() {
    let mut world = World::new(&[60], 1);
    world.run(create_vm("web", limits(Some(10), None))).unwrap();
    let a = world.create(in_vm(thin("a", 20, limits(None, Some(6))), "web"));
    let b = world.create(in_vm(thin("b", 20, Capacity::default()), "web"));
    assert_eq!(world.place_all(&b, 0..5), 4);
    assert_eq!(world.place_all(&a, 0..6), 6);
    world.discard(&a, 0);
    assert_eq!(world.allocated(1004), None, "it is still reserved");
    // A quota below what is used takes nothing away; below what is reserved and not used, it would.
    assert!(matches!(
        world.refuse_capacity(set_vm("web", limits(Some(9), None))),
        CapacityError::QuotaBelowVhds { .. }
    ));
    world.settle();
    assert_eq!(world.place_all(&a, 0..1), 1);
    world.run(set_vm("web", limits(Some(9), None))).unwrap();
    world.check_sums();
}
