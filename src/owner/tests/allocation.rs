//! Placing, freeing, reusing, waiting for room.

use super::*;
use crate::engine::IoError;

fn world() -> (World, VhdInfo) {
    let mut world = World::new(&[10], 2);
    let vhd = world.create(create("a", 20, ISOLATED));
    (world, vhd)
}

#[test]
fn an_extent_is_placed_once() {
    let (mut world, vhd) = world();
    assert_eq!(world.allocate(&vhd, 3), Some(Ok(())));
    let place = World::place_of(&vhd, 3);
    assert!(place.is_some());
    assert_eq!(world.allocate(&vhd, 3), Some(Ok(())), "asking again is answered at once");
    assert_eq!(World::place_of(&vhd, 3), place);
    assert_eq!(world.free_slots(0), 9);
    assert!(world.mail.changes.is_empty(), "an allocation becomes durable with the first write");
    world.check();
}

#[test]
fn isolated_extents_are_contiguous_in_any_order() {
    let mut world = World::new(&[100], 1);
    let vhds = [world.create(create("a", 20, ISOLATED)), world.create(create("b", 20, ISOLATED))];
    for extent in [7, 3, 19, 0, 12, 4] {
        vhds.iter().for_each(|vhd| assert_eq!(world.allocate(vhd, extent), Some(Ok(()))));
    }
    for vhd in &vhds {
        let (_, start) = World::place_of(vhd, 0).unwrap();
        for extent in [7, 3, 19, 12, 4] {
            assert_eq!(World::place_of(vhd, extent), Some((DiskId(0), SlotIndex(start.0 + extent))));
        }
    }
}

#[test]
fn spanned_extents_go_round() {
    let mut world = World::new(&[100, 100, 100], 1);
    let vhd = world.create(create("a", 30, SPANNED));
    for extent in 0..30 {
        assert_eq!(world.allocate(&vhd, extent), Some(Ok(())));
        let disk = u8::try_from(extent % 3).unwrap();
        assert_eq!(World::place_of(&vhd, extent), Some((DiskId(disk), SlotIndex(extent / 3))));
    }
}

#[test]
fn homes_are_found_again_after_a_restart() {
    let mut world = World::new(&[200], 1);
    let a = world.create(create("a", 50, ISOLATED));
    let b = world.create(create("b", 50, ISOLATED));
    assert_eq!(world.allocate(&a, 10), Some(Ok(())));
    assert_eq!(world.allocate(&b, 20), Some(Ok(())));
    let pool = world.owner.pool.clone();
    let vhds = vec![(a.record.clone(), Arc::clone(&a.state)), (b.record.clone(), Arc::clone(&b.state))];
    let mut world = World::with(pool, vhds, 1);
    assert_eq!(world.allocate(&b, 49), Some(Ok(())));
    assert_eq!(world.allocate(&a, 49), Some(Ok(())));
    let slot = |vhd: &VhdInfo, extent| World::place_of(vhd, extent).unwrap().1.0;
    assert_eq!(slot(&a, 49) - slot(&a, 10), 39);
    assert_eq!(slot(&b, 49) - slot(&b, 20), 29);
    world.check();
}

/// An earlier daemon may have completed writes that are not durable: a first FLUSH that synced nothing would lie.
#[test]
fn after_a_restart_the_first_flush_syncs_the_disks_with_extents() {
    let (mut world, vhd) = world();
    assert_eq!(world.allocate(&vhd, 0), Some(Ok(())));
    let (used, _) = World::place_of(&vhd, 0).unwrap();
    let pool = world.owner.pool.clone();
    for missing in [false, true] {
        let state = Arc::new(crate::owner::vhd_state(&vhd.record, world.owner.geometry, 1, None));
        let place = vhd.state.map.lookup(ExtentIndex(0));
        state.map.restore(ExtentIndex(0), place.replicas, BlockMask(1), place.generation);
        let disks: Vec<Arc<DiskState>> = pool.disks.iter().map(disk_state).collect();
        disks.iter().filter(|disk| missing && disk.id == used).for_each(|disk| disk.fail());
        assert!(state.disks_to_sync().iter().next().is_none());
        assert!(Owner::new(pool.clone(), disks, vec![(vhd.record.clone(), Arc::clone(&state))], 1).is_ok());
        let expected: Vec<DiskId> = [used].into_iter().filter(|_| !missing).collect();
        assert_eq!(state.disks_to_sync().iter().collect::<Vec<_>>(), expected);
    }
}

#[test]
fn two_extents_in_one_slot_are_refused_at_open() {
    let (mut world, vhd) = world();
    assert_eq!(world.allocate(&vhd, 0), Some(Ok(())));
    let place = vhd.state.map.lookup(ExtentIndex(0)).replicas;
    vhd.state.map.place(ExtentIndex(1), place);
    assert!(!world.owner.check().is_consistent());
    let pool = world.owner.pool.clone();
    let disks = pool.disks.iter().map(disk_state).collect();
    let vhds = vec![(vhd.record.clone(), Arc::clone(&vhd.state))];
    let error = Owner::new(pool, disks, vhds, 1).err().unwrap();
    assert!(matches!(error, OpenError::SlotTaken { extent: 1, slot: 0, .. }), "{error}");
}

#[test]
fn a_freed_slot_takes_all_steps_in_order() {
    let (mut world, vhd) = world();
    assert_eq!(world.allocate(&vhd, 0), Some(Ok(())));
    let (disk, slot) = World::place_of(&vhd, 0).unwrap();
    world.discard(&vhd, 0);
    assert_eq!(world.free_slots(0), 9, "in limbo");
    let [change] = world.mail.changes[..] else { panic!() };
    assert_eq!(change.kind, ChangeKind::Freed { freed: crate::placement::ReplicaSet::single(disk, slot) });
    assert_eq!(change.generation, vhd.state.map.lookup(ExtentIndex(0)).generation);
    assert!(vhd.state.has_pending_changes());
    assert!(world.fences(0).is_empty(), "no fence before it is durable");
    world.commit_changes();
    let ([(first, _)], [(second, _)]) = (&world.fences(0)[..], &world.fences(1)[..]) else { panic!() };
    assert_eq!(first, second);
    world.reach(0, *first);
    world.reach(0, *first);
    assert!(world.mail.punches.is_empty(), "no punch before both reactors have passed");
    world.reach(1, *first);
    assert_eq!(world.mail.punches, [(disk, SlotRun { first: slot, count: 1 })]);
    assert_eq!(world.free_slots(0), 9);
    world.punched();
    assert_eq!(world.free_slots(0), 10);
    world.check();
}

#[test]
fn many_freed_slots_share_a_fence_and_a_punch() {
    let (mut world, vhd) = world();
    for extent in 0..8 {
        assert_eq!(world.allocate(&vhd, extent), Some(Ok(())));
    }
    for extent in [2, 0, 1, 6] {
        world.discard(&vhd, extent);
    }
    world.commit_changes();
    world.discard(&vhd, 3);
    world.discard(&vhd, 7);
    world.commit_changes();
    let (fences, others) = (world.fences(0), world.fences(1));
    assert_eq!((fences.len(), others.len()), (1, 1), "one fence per disk at a time");
    world.reach(0, fences[0].0);
    world.reach(1, fences[0].0);
    let run = |first, count| (DiskId(0), SlotRun { first: SlotIndex(first), count });
    assert_eq!(std::mem::take(&mut world.mail.punches), [run(0, 3), run(6, 1)]);
    let next = world.fences(0);
    assert_eq!(next.len(), 1, "then the next");
    world.reach(0, next[0].0);
    world.reach(1, next[0].0);
    assert_eq!(std::mem::take(&mut world.mail.punches), [run(3, 1), run(7, 1)]);
}

#[test]
fn a_hung_disk_keeps_its_own_slots_only() {
    let mut world = World::new(&[4, 4], 1);
    let on = |disk: &str| LayoutRequest::Isolated { disk: Some(disk.to_owned()) };
    let (a, b) = (world.create(create("a", 4, on("d0"))), world.create(create("b", 4, on("d1"))));
    assert_eq!(world.allocate(&a, 0), Some(Ok(())));
    assert_eq!(world.allocate(&b, 0), Some(Ok(())));
    world.discard(&a, 0);
    world.discard(&b, 0);
    world.commit_changes();
    let fences = world.fences(0);
    assert_eq!(fences.len(), 2);
    let second = fences.iter().find(|(_, disk)| *disk == DiskId(1)).unwrap();
    world.reach(0, second.0);
    world.punched();
    assert_eq!((world.free_slots(0), world.free_slots(1)), (3, 4));
}

#[test]
fn a_freed_extent_of_a_thick_vhd_keeps_its_slot() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(CreateVhd { thick: true, ..create("a", 4, ISOLATED) });
    let place = World::place_of(&vhd, 2);
    world.discard(&vhd, 2);
    assert_eq!(World::place_of(&vhd, 2), place);
    assert!(matches!(world.mail.changes[..], [Change { kind: ChangeKind::Cleared { blocks: BlockMask::ALL }, .. }]));
}

fn fill(world: &mut World, vhd: &VhdInfo) {
    for extent in 0..10 {
        assert_eq!(world.allocate(vhd, extent), Some(Ok(())));
    }
}

#[test]
fn a_write_into_a_full_pool_waits_then_fails() {
    let (mut world, vhd) = world();
    fill(&mut world, &vhd);
    assert_eq!(world.allocate(&vhd, 10), None);
    assert_eq!(world.allocate(&vhd, 11), None);
    let told = |world: &World, event: &Event| world.mail.events.iter().filter(|e| *e == event).count();
    let waiting = Event::WaitingForRoom { vhd: "a".to_owned() };
    assert_eq!(told(&world, &waiting), 1, "told once");
    assert_eq!(world.owner.next_deadline(), Some(Nanos(60_000_000_000)));
    world.advance(59_999);
    assert_eq!(world.allocated(1010), None);
    world.advance(1);
    assert_eq!(world.allocated(1010), Some(Err(AllocateError::NoSpace)));
    assert_eq!(world.allocated(1011), Some(Err(AllocateError::NoSpace)));
    assert_eq!(told(&world, &Event::OutOfRoom { vhd: "a".to_owned() }), 1);
    assert_eq!(world.owner.next_deadline(), None);
    assert_eq!(world.allocate(&vhd, 12), None);
    assert_eq!(told(&world, &waiting), 2, "told again after nobody waited");
}

#[test]
fn a_write_that_waits_gets_the_first_slot_that_comes_back() {
    let (mut world, vhd) = world();
    fill(&mut world, &vhd);
    assert_eq!(world.allocate(&vhd, 10), None);
    world.discard(&vhd, 4);
    assert_eq!(world.mail.commits, 1, "somebody waits: commit at once");
    world.settle();
    assert_eq!(world.allocated(1010), Some(Ok(())));
    assert_eq!(World::place_of(&vhd, 10), Some((DiskId(0), SlotIndex(4))));
    world.check();
}

#[test]
fn waiting_asks_for_a_commit_of_what_was_freed_before() {
    let (mut world, vhd) = world();
    fill(&mut world, &vhd);
    world.discard(&vhd, 4);
    assert_eq!(world.mail.commits, 0);
    assert_eq!(world.allocate(&vhd, 10), None);
    assert_eq!(world.mail.commits, 1);
    assert_eq!(world.allocate(&vhd, 11), None);
    assert_eq!(world.mail.commits, 1, "one is under way");
}

#[test]
fn freed_slots_are_committed_by_and_by() {
    let (mut world, vhd) = world();
    assert_eq!(world.allocate(&vhd, 0), Some(Ok(())));
    world.discard(&vhd, 0);
    assert_eq!(world.owner.next_deadline(), Some(Nanos(1_000_000_000)));
    world.advance(999);
    assert_eq!(world.mail.commits, 0);
    world.advance(1);
    assert_eq!(world.mail.commits, 1);
    assert_eq!(world.owner.next_deadline(), None);
    world.advance(5000);
    assert_eq!(world.mail.commits, 1);
}

#[test]
fn a_vhd_that_does_not_wait_fails_at_once_unless_room_is_coming() {
    let mut world = World::new(&[10], 1);
    let vhd = world.create(CreateVhd { when_full: WhenFull::Error, ..create("a", 20, ISOLATED) });
    fill(&mut world, &vhd);
    assert_eq!(world.allocate(&vhd, 10), Some(Err(AllocateError::NoSpace)));
    world.discard(&vhd, 1);
    assert_eq!(world.allocate(&vhd, 10), None);
    assert_eq!(world.mail.commits, 1);
    assert_eq!(world.allocate(&vhd, 11), None);
    world.settle();
    assert_eq!(world.allocated(1010), Some(Ok(())));
    assert_eq!(world.allocated(1011), None, "still nothing for the second");
    world.advance(2000);
    assert_eq!(world.allocated(1011), Some(Err(AllocateError::NoSpace)));
}

#[test]
fn a_full_metadata_region_refuses_extents_but_not_frees() {
    let (mut world, vhd) = world();
    assert_eq!(world.allocate(&vhd, 0), Some(Ok(())));
    world.owner.handle_store(StoreReport::Fill { used: 95, size: 100, low: true }, &mut world.mail);
    assert_eq!(world.allocate(&vhd, 1), Some(Err(AllocateError::MetadataFull)));
    assert_eq!(world.allocate(&vhd, 0), Some(Ok(())), "it has its place");
    world.discard(&vhd, 0);
    world.settle();
    assert_eq!(world.free_slots(0), 10);
    let error = world.refuse(Command::CreateVhd(Box::new(create("b", 1, ISOLATED))));
    assert_eq!(error, CommandError::MetadataFull { used: 95, size: 100 });
    world.owner.handle_store(StoreReport::Fill { used: 50, size: 100, low: false }, &mut world.mail);
    assert_eq!(world.allocate(&vhd, 1), Some(Ok(())));
    let low: Vec<bool> = (world.mail.events.iter())
        .filter_map(|event| if let Event::MetadataLow { low, .. } = event { Some(*low) } else { None })
        .collect();
    assert_eq!(low, [true, false]);
}

#[test]
fn a_metadata_region_that_fills_up_answers_those_who_wait() {
    let (mut world, vhd) = world();
    fill(&mut world, &vhd);
    assert_eq!(world.allocate(&vhd, 10), None);
    world.owner.handle_store(StoreReport::Fill { used: 95, size: 100, low: true }, &mut world.mail);
    assert_eq!(world.allocated(1010), Some(Err(AllocateError::MetadataFull)));
}

#[test]
fn thresholds_are_told_once_per_crossing() {
    let mut world = World::new(&[100], 1);
    let vhd = world.create(create("a", 100, ISOLATED));
    let fills = |world: &mut World| -> Vec<(bool, u32, bool)> {
        let fill = |event| match event {
            Event::Fill { disk, percent, above, .. } => Some((disk.is_some(), percent, above)),
            _ => None,
        };
        std::mem::take(&mut world.mail.events).into_iter().filter_map(fill).collect()
    };
    for extent in 0..80 {
        world.allocate(&vhd, extent);
    }
    assert_eq!(fills(&mut world), []);
    world.allocate(&vhd, 80);
    assert_eq!(fills(&mut world), [(true, 80, true), (false, 80, true)]);
    world.discard(&vhd, 0);
    world.settle();
    world.allocate(&vhd, 0);
    assert_eq!(fills(&mut world), [], "hysteresis");
    for extent in 81..100 {
        world.allocate(&vhd, extent);
    }
    assert_eq!(fills(&mut world), [(true, 90, true), (false, 90, true), (true, 95, true), (false, 95, true)]);
    for extent in 0..21 {
        world.discard(&vhd, extent);
    }
    let fell = fills(&mut world);
    assert_eq!(
        fell.iter().filter(|(disk, ..)| *disk).map(|(_, p, a)| (*p, *a)).collect::<Vec<_>>(),
        [(95, false), (90, false)]
    );
}

#[test]
fn failed_disks_are_not_used() {
    let mut world = World::new(&[10, 10], 1);
    let vhd = world.create(create("a", 20, SPANNED));
    let error = |sync| OwnerRequest::DiskError { disk: DiskId(0), error: IoError::Os(5), sync };
    world.owner.handle_reactor(error(false), world.now, &mut world.mail);
    assert!(matches!(world.mail.events[..], [.., Event::DiskError { count: 1, .. }]));
    for _ in 0..4 {
        world.owner.handle_reactor(error(true), world.now, &mut world.mail);
    }
    assert_eq!(world.mail.events.iter().filter(|e| matches!(e, Event::DiskFailed { .. })).count(), 1);
    for extent in 0..10 {
        assert_eq!(world.allocate(&vhd, extent), Some(Ok(())));
        assert_eq!(World::place_of(&vhd, extent).unwrap().0, DiskId(1));
    }
    assert_eq!(world.allocate(&vhd, 10), None);
    assert_eq!(
        world.refuse(Command::CreateVhd(Box::new(create("b", 1, LayoutRequest::Isolated { disk: Some("d0".into()) })))),
        CommandError::DiskFailed { disk: "d0".to_owned() }
    );
}

#[test]
fn a_disk_that_has_failed_has_no_room() {
    let mut world = World::new(&[100, 100], 1);
    let vhd = world.create(create("a", 20, SPANNED));
    for extent in 0..20 {
        world.allocate(&vhd, extent);
    }
    world.owner.space.disk(DiskId(1)).state.fail();
    let pool = world.owner.pool_info();
    let extent = pool.record.extent_size;
    assert_eq!((pool.space.capacity, pool.space.free), (110 * extent, 90 * extent));
    assert_eq!((pool.disks[1].space.capacity, pool.disks[1].space.free), (10 * extent, 0));
}

#[test]
fn whoever_waits_for_an_extent_that_was_placed_for_another_has_it() {
    let mut world = World::new(&[2], 1);
    let vhd = world.create(create("a", 10, SPANNED));
    assert_eq!([0, 1].map(|extent| world.allocate(&vhd, extent)), [Some(Ok(())); 2]);
    for (ticket, extent) in [(1, 5), (2, 6), (3, 5)] {
        let extent = ExtentIndex(extent);
        let request = OwnerRequest::Allocate { reactor: ReactorId(0), ticket, vhd: vhd.record.id, extent };
        world.owner.handle_reactor(request, world.now, &mut world.mail);
    }
    world.discard(&vhd, 0);
    world.settle();
    assert_eq!([1, 2, 3].map(|ticket| world.allocated(ticket)), [Some(Ok(())), None, Some(Ok(()))]);
    world.check();
}
