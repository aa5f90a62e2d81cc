//! VHDs that write and discard at random: nobody is beyond a quota, and who has reserved room gets it.

use super::*;
use crate::base::ids::DiskSet;
use crate::base::rng::Rng;

/// A VHD, its settings, and what it has.
struct Subject {
    vhd: VhdInfo,
    replicas: u64,
    quota: Option<u64>,
    reservation: u64,
    /// Whether its VM has a quota.
    shares: bool,
}

/// Slots of a VHD, by its map.
fn slots(vhd: &VhdInfo) -> u64 {
    let map = &vhd.state.map;
    map.placed_from(ExtentIndex(0)).map(|extent| map.lookup(extent).replicas.iter().count() as u64).sum()
}

/// Slots of its reservation that it uses: of extents that are on these disks as a whole.
fn used(vhd: &VhdInfo, replicas: u64, disks: DiskSet) -> u64 {
    let map = &vhd.state.map;
    let here = |extent: &ExtentIndex| map.lookup(*extent).replicas.iter().all(|replica| disks.contains(replica.disk));
    map.placed_from(ExtentIndex(0)).filter(here).count() as u64 * replicas
}

fn a_world(rng: &mut Rng) -> (World, Vec<Subject>) {
    let domains = ["x", "y", "z", "x", "y"];
    let table: Vec<(u32, &str)> =
        (0..3 + rng.index(3)).map(|disk| (u32::try_from(4 + rng.below(12)).unwrap(), domains[disk])).collect();
    let mut world = world_of(&table);
    for vm in ["m0", "m1"] {
        let quota = rng.chance(2, 3).then(|| 6 + rng.below(16));
        let reservation = rng.chance(1, 2).then(|| 1 + rng.below(6));
        world.run(create_vm(vm, limits(quota, reservation))).unwrap();
    }
    let mut subjects = Vec::new();
    for number in 0..6 {
        let replicas = u8::try_from(1 + rng.below(2)).unwrap();
        let layout = match rng.below(3) {
            0 if replicas == 1 => LayoutRequest::Isolated { disk: Some(format!("d{}", rng.index(table.len()))) },
            1 => LayoutRequest::Spanned { disks: Some(vec!["d0".to_owned(), "d1".to_owned()]), width: None },
            _ => SPANNED,
        };
        let reservation = rng.chance(2, 3).then(|| 1 + rng.below(8));
        let quota = rng.chance(1, 2).then(|| reservation.unwrap_or(1) + rng.below(6));
        let name = format!("v{number}");
        let mut asked = CreateVhd { capacity: limits(quota, reservation), replicas, ..create(&name, 24, layout) };
        asked.vm = rng.chance(2, 3).then(|| format!("m{}", rng.below(2)));
        // If there is no room to reserve, without that; if the VM has none, without the VM.
        let mut tries = [asked.clone(), asked.clone(), asked];
        (tries[1].capacity.reservation, tries[2].capacity.reservation, tries[2].vm) = (None, None, None);
        let made = tries.into_iter().find(|asked| world.run(Command::CreateVhd(Box::new(asked.clone()))).is_ok());
        let reservation = made.expect("nothing is in the way of the last").capacity.reservation;
        let Ok(Reply::Vhd { vhd, .. }) = world.ask(Command::ShowVhd { vhd: name }) else { panic!("just made") };
        let reservation = reservation.map_or(0, |bytes| bytes / EXTENT);
        let vm = world.owner.vm_of(&vhd.record);
        let shares = vm.is_some_and(|vm| vm.capacity.quota.is_some());
        subjects.push(Subject { vhd: *vhd, replicas: replicas.into(), quota, reservation, shares });
    }
    (world, subjects)
}

/// A first write: whoever has reserved room for it has it.
fn write(world: &mut World, subject: &Subject, extent: u32) -> Result<(), String> {
    let Subject { vhd, replicas, quota, reservation, shares } = subject;
    let is_placed = || !vhd.state.map.lookup(ExtentIndex(extent)).replicas.is_absent();
    if is_placed() || world.owner.waiters.iter().any(|waiter| waiter.vhd == vhd.record.id) {
        return Ok(());
    }
    let used = used(vhd, *replicas, vhd.record.layout.disks());
    // What it has grown onto elsewhere counts against its quota, and its VM's, too.
    let total = slots(vhd) + replicas;
    let is_allowed = quota.is_none_or(|quota| total <= quota) && (!shares || total <= *reservation);
    world.allocate(vhd, extent);
    if !is_placed() && is_allowed && used + replicas <= *reservation {
        // What is on its way back may have to come first.
        world.settle();
        if !is_placed() {
            let disks: Vec<_> =
                world.owner.space.iter().map(|disk| (disk.free(), disk.failure_domain.clone())).collect();
            let holds = world.owner.space.holds();
            let needs: Vec<_> = holds.holders().map(|of| (of, holds.need(of), holds.held_slots(of))).collect();
            return Err(format!("'{}' has {used} of {reservation}; {disks:?}, {needs:?}", vhd.record.name));
        }
    }
    Ok(())
}

fn check_quotas(world: &World, subjects: &[Subject]) -> Result<(), String> {
    for Subject { vhd, quota, .. } in subjects {
        if quota.is_some_and(|quota| slots(vhd) > quota) {
            return Err(format!("'{}' has {} slots of {quota:?}", vhd.record.name, slots(vhd)));
        }
    }
    for vm in world.owner.vm_records() {
        let of_vm = subjects.iter().filter(|subject| subject.vhd.record.vm.as_ref() == Some(&vm.name));
        let used: u64 = of_vm.map(|subject| slots(&subject.vhd)).sum();
        if vm.capacity.quota.is_some_and(|quota| used > quota / EXTENT) {
            return Err(format!("'{}' has {used} slots of {:?}", vm.name, vm.capacity));
        }
    }
    Ok(())
}

fn run_randomly(seed: u64) -> Result<(), String> {
    let mut rng = Rng::new(seed);
    let (mut world, subjects) = a_world(&mut rng);
    for step in 0..150 {
        let subject = &subjects[rng.index(subjects.len())];
        let extent = u32::try_from(rng.below(24)).unwrap();
        if !rng.chance(1, 3) {
            write(&mut world, subject, extent).map_err(|error| format!("step {step}: {error}"))?;
        } else if !subject.vhd.state.map.lookup(ExtentIndex(extent)).replicas.is_absent() {
            world.discard(&subject.vhd, extent);
        }
        if rng.chance(1, 4) {
            world.settle();
        }
        check_quotas(&world, &subjects).map_err(|error| format!("step {step}: {error}"))?;
        world.mail.reactors.retain(|(_, message)| matches!(message, ReactorMessage::Fence { .. }));
        world.check_holds();
        world.check_sums();
    }
    world.check();
    Ok(())
}

#[test]
fn quotas_and_reservations_are_kept_whatever_happens() {
    let number = |name: &str, default| std::env::var(name).map_or(default, |text| text.parse().expect("a number"));
    // These have found a wrong model, extents of which only some replicas are on the disks of the layout, and one that used up the only
    // disk of another one, instead of the one on which its own room was on its way back; and one whose room on its way back was counted
    // against what another one had.
    let found = [6_723_532_141_468_477_130, 12_425_786_705_763_831_181, 1435, 2652];
    let first = number("SPANBLK_SEED", 0);
    for seed in (first..first + number("SPANBLK_SEEDS", 100)).chain(found) {
        if let Err(violation) = run_randomly(seed) {
            let test = "quotas_and_reservations_are_kept_whatever_happens";
            panic!("{violation}; again: SPANBLK_SEED={seed} SPANBLK_SEEDS=1 cargo test --lib -- {test}");
        }
    }
}
