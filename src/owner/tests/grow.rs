//! VHDs that grow onto other disks because the policy may change them.

use super::super::command::{GrowthSaid, SetCapacity, SetVhd};
use super::*;
use crate::placement::capacity::Capacity;
use crate::placement::record::Expand;
use crate::policy::rules::{Mode, Rules, Scope};

fn on_d0() -> LayoutRequest {
    LayoutRequest::Isolated { disk: Some("d0".to_owned()) }
}

/// A VHD on a disk with four slots, all of them taken; the next write has an error.
fn full() -> (World, VhdInfo) {
    let mut world = World::new(&[4, 6, 8], 1);
    let vhd = world.create(CreateVhd { when_full: WhenFull::Error, ..create("a", 20, on_d0()) });
    for extent in 0..4 {
        assert_eq!(world.allocate(&vhd, extent), Some(Ok(())));
    }
    assert_eq!(world.allocate(&vhd, 4), Some(Err(AllocateError::NoSpace)));
    (world, vhd)
}

fn want(world: &mut World, wishes: &[(Scope, &str)]) {
    let mut rules = Rules::default();
    wishes.iter().for_each(|(scope, mode)| rules.set(*scope, "mode", mode).unwrap());
    assert!(matches!(world.run(Command::KeepPolicy(Box::new(rules))), Ok(Reply::PolicyKept)));
}

fn set_expand(world: &mut World, vhd: &VhdInfo, expand: Option<Expand>) {
    let set = SetVhd { vhd: vhd.record.name.clone(), expand: Some(expand), ..SetVhd::default() };
    world.run(Command::SetVhd(Box::new(set))).unwrap();
}

#[test]
fn it_is_told_who_says_whether_a_vhd_grows() {
    let (mut world, isolated) = full();
    let spanned = world.create(create("b", 2, SPANNED));
    let growth = |world: &mut World, vhd: &VhdInfo| {
        let Ok(Reply::Vhd { vhd, .. }) = world.ask(Command::ShowVhd { vhd: vhd.record.name.clone() }) else { panic!() };
        (vhd.growth.grows, vhd.growth.said_by)
    };
    assert_eq!(growth(&mut world, &isolated), (false, GrowthSaid::Layout));
    assert_eq!(growth(&mut world, &spanned), (true, GrowthSaid::Layout));
    want(&mut world, &[(Scope::Pool, "auto")]);
    assert_eq!(growth(&mut world, &isolated), (true, GrowthSaid::Policy));
    assert_eq!(growth(&mut world, &spanned), (true, GrowthSaid::Layout));
    world.run(Command::SetPool { expand: Some(Some(Expand::Never)) }).unwrap();
    assert_eq!(growth(&mut world, &isolated), (false, GrowthSaid::Pool));
    assert_eq!(growth(&mut world, &spanned), (false, GrowthSaid::Pool));
    set_expand(&mut world, &isolated, Some(Expand::Auto));
    assert_eq!(growth(&mut world, &isolated), (true, GrowthSaid::Vhd));
}

/// A quota counts for who grows as well.
#[test]
fn who_grows_stops_at_its_quota() {
    let (mut world, vhd) = full();
    want(&mut world, &[(Scope::Pool, "auto")]);
    let capacity = SetCapacity { quota: Some(Some(6 * EXTENT)), reservation: None };
    world.run(Command::SetVhd(Box::new(SetVhd { vhd: "a".to_owned(), capacity, ..SetVhd::default() }))).unwrap();
    assert_eq!([4, 5].map(|extent| world.allocate(&vhd, extent)), [Some(Ok(())); 2]);
    assert_eq!(world.allocate(&vhd, 6), Some(Err(AllocateError::NoSpace)));
}

#[test]
fn what_the_policy_may_change_grows_when_its_disk_is_full() {
    let (mut world, vhd) = full();
    want(&mut world, &[(Scope::Pool, "advise")]);
    assert_eq!(world.allocate(&vhd, 4), Some(Err(AllocateError::NoSpace)), "it may not change anything");
    want(&mut world, &[(Scope::Pool, "auto"), (Scope::Vhd(vhd.record.id), "off")]);
    assert_eq!(world.allocate(&vhd, 4), Some(Err(AllocateError::NoSpace)), "nor this one");
    want(&mut world, &[(Scope::Pool, "auto")]);
    // All of the pool, and no more: on to the roomiest disk until that is full, too.
    for extent in 4..18 {
        assert_eq!(world.allocate(&vhd, extent), Some(Ok(())), "extent {extent}");
    }
    assert_eq!(World::place_of(&vhd, 4).unwrap().0, DiskId(2));
    assert_eq!(world.allocate(&vhd, 18), Some(Err(AllocateError::NoSpace)));
    let told = world.mail.events.iter().filter(|event| matches!(event, Event::VhdExpanded { .. })).count();
    assert_eq!(told, 2, "once for each disk");
    world.check();
}

#[test]
fn what_an_administrator_says_of_growing_counts_more_than_the_mode() {
    let (mut world, vhd) = full();
    want(&mut world, &[(Scope::Pool, "auto")]);
    set_expand(&mut world, &vhd, Some(Expand::Never));
    assert_eq!(world.allocate(&vhd, 4), Some(Err(AllocateError::NoSpace)));
    set_expand(&mut world, &vhd, None);
    world.run(Command::SetPool { expand: Some(Some(Expand::Never)) }).unwrap();
    assert_eq!(world.allocate(&vhd, 4), Some(Err(AllocateError::NoSpace)));
    world.run(Command::SetPool { expand: Some(None) }).unwrap();
    assert_eq!(world.allocate(&vhd, 4), Some(Ok(())));
}

#[test]
fn the_mode_of_a_vm_counts_for_its_vhds_and_who_waits_grows_as_soon_as_it_may() {
    let mut world = World::new(&[4, 6], 1);
    let vhd = world.create(CreateVhd { vm: Some("web".to_owned()), ..create("a", 20, on_d0()) });
    for extent in 0..4 {
        assert_eq!(world.allocate(&vhd, extent), Some(Ok(())));
    }
    assert_eq!(world.allocate(&vhd, 4), None, "it waits for room");
    let vm = world.owner.vms.named("web").unwrap().id;
    want(&mut world, &[(Scope::Vm(vm), "auto")]);
    assert_eq!(world.allocated(1004), Some(Ok(())));
    assert_eq!(World::place_of(&vhd, 4).unwrap().0, DiskId(1));
}

#[test]
fn what_is_wanted_counts_for_the_next_daemon_from_its_first_write_on() {
    let (world, vhd) = full();
    let mut rules = Rules::default();
    rules.all.mode = Some(Mode::Auto);
    let disks = world.owner.pool.disks.iter().map(disk_state).collect();
    let vhds = vec![(vhd.record.clone(), Arc::clone(&vhd.state))];
    let mut owner = Owner::new(world.owner.pool.clone(), disks, vhds, 1).unwrap().with_policy(rules);
    let mut mail = Mail::default();
    owner.start(&mut mail);
    let mut world = World { owner, mail, now: Nanos(0), next_command: 0 };
    assert_eq!(world.allocate(&vhd, 4), Some(Ok(())));
}

/// Reservations of others are kept, also from those who grow.
#[test]
fn who_grows_takes_nothing_that_is_held_for_others() {
    let (mut world, vhd) = full();
    let reserved = Capacity { reservation: Some(14 * EXTENT), quota: None };
    let spanned = LayoutRequest::Spanned { disks: Some(vec!["d1".to_owned(), "d2".to_owned()]), width: None };
    let other = world.create(CreateVhd { capacity: reserved, ..create("b", 14, spanned) });
    want(&mut world, &[(Scope::Pool, "auto")]);
    assert_eq!(world.allocate(&vhd, 4), Some(Err(AllocateError::NoSpace)));
    for extent in 0..14 {
        assert_eq!(world.allocate(&other, extent), Some(Ok(())), "extent {extent}");
    }
}

/// A guest that discards and writes again (mkfs, fstrim) stays on its disk.
#[test]
fn who_grows_if_need_be_waits_for_slots_on_their_way_back_but_not_for_long() {
    for when_full in [WhenFull::Error, WhenFull::Queue { secs: 60 }] {
        let mut world = World::new(&[4, 2], 1);
        let vhd = world.create(CreateVhd { when_full, ..create("a", 20, on_d0()) });
        want(&mut world, &[(Scope::Pool, "auto")]);
        assert!((0..4).all(|extent| world.allocate(&vhd, extent) == Some(Ok(()))));
        world.discard(&vhd, 0);
        assert_eq!(world.allocate(&vhd, 4), None, "it waits");
        world.settle();
        assert_eq!(world.allocated(1004), Some(Ok(())));
        assert_eq!(World::place_of(&vhd, 4).unwrap().0, DiskId(0));

        // What is on its way back does not come.
        world.discard(&vhd, 1);
        for extent in 5..8 {
            assert_eq!(world.allocate(&vhd, extent), None);
        }
        world.advance(3000);
        assert_eq!([5, 6].map(|extent| world.allocated(1000 + extent)), [Some(Ok(())); 2]);
        assert_eq!(World::place_of(&vhd, 5).unwrap().0, DiskId(1));
        let left = world.allocated(1007);
        let (error, waits) = (Some(Err(AllocateError::NoSpace)), None);
        let waiting = Event::WaitingForRoom { vhd: "a".to_owned() };
        assert_eq!(world.mail.events.contains(&waiting), when_full != WhenFull::Error, "only once it cannot grow");
        assert_eq!(left, if when_full == WhenFull::Error { error } else { waits }, "{when_full:?}");
        world.check();
    }
}
