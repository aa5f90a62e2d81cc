//! Who takes much is not given more at the expense of others.

use std::collections::BTreeMap;

use super::*;
use crate::policy::outcome::Verdict;

#[test]
fn who_needs_most_of_a_disk_goes_where_nobody_waits_for_that() {
    // The second one is served within 0.17 ms, and would be within 0.4 ms with a third of the first one beside it.
    let guests = vec![busy_vhd(1, None, &[(0, 50), (1, 50)], 1.6), busy_vhd(2, None, &[(2, 40)], 0.1)];
    let run = |latency: &str| {
        let mut world = World::new(disks(4), guests.clone());
        world.rules.set(Scope::Vhd(VhdId(2)), "latency", latency).unwrap();
        world.run(24 * 60);
        (on(&world, 1), on(&world, 2))
    };
    let (much, little) = run("200us");
    assert!(much.len() == 3 && little.iter().all(|disk| !much.contains(disk)), "{much:?} and {little:?}");
    assert_eq!(run("15ms").0.len(), 4, "who can wait so long need not be kept apart");
}

#[test]
fn an_aggressor_on_all_disks_is_put_on_fewer() {
    let mut world = insatiable();
    world.pool.vhds[0] = busy_vhd(1, None, &[(0, 20), (1, 20), (2, 20)], 3.0);
    world.run(15);
    assert_eq!(rules_of(&world), [Rule::Neighbour], "{:?}", world.done);
    assert!(are_apart(&world) && on(&world, 1).len() == 2, "{:?}", world.done);
    // That it does less on fewer disks is no other load.
    world.look(30);
    world.pool.vhds[0].flow.iops *= 0.5;
    world.run(40);
    assert_eq!(world.state.applied[0].measured.unwrap().verdict, Verdict::Kept);
    world.pool.vhds[0].flow.iops *= 2.0;
    world.run(12 * 60);
    assert!(are_apart(&world), "and stays there: {:?}", world.done);
}

#[test]
fn who_was_put_on_fewer_disks_was_not_given_more() {
    let mut world = insatiable();
    world.pool.vhds[0] = busy_vhd(1, None, &[(0, 20), (1, 20), (2, 20)], 3.0);
    world.run(15);
    assert!(on(&world, 1).len() == 2 && world.done.len() == 1, "{:?}", world.done);
    world.run(12 * 60);
    let verdict = world.state.applied[0].measured.unwrap().verdict;
    assert_eq!((verdict, &world.state.insatiable), (Verdict::Kept, &BTreeMap::new()), "it takes all that it was left");
    assert!(are_apart(&world), "{:?}", world.done);
}

/// A guest that takes all there is, on however many disks, and one that asks for little.
fn insatiable() -> World {
    let guests = vec![busy_vhd(1, None, &[(0, 30), (1, 30)], 3.0), busy_vhd(2, None, &[(0, 40)], 0.02)];
    let mut world = World::new(disks(3), guests);
    // The first one does not mind how long it waits.
    for (id, latency) in [(1, "1s"), (2, "1ms")] {
        world.rules.set(Scope::Vhd(VhdId(id)), "latency", latency).unwrap();
    }
    world
}

fn are_apart(world: &World) -> bool {
    on(world, 2).iter().all(|disk| !on(world, 1).contains(disk))
}

#[test]
fn who_makes_others_wait_is_parted_from_them_before_it_is_given_more() {
    let mut world = insatiable();
    let asks = std::mem::take(&mut world.pool.vhds[1].flow);
    (0..2).for_each(|_| world.look(300));
    // It has needed most of its disks for ten minutes when the other one begins to ask.
    world.pool.vhds[1].flow = asks;
    world.look(300);
    assert_eq!(world.done, [], "whether somebody suffers is to be seen");
    world.look(300);
    assert_eq!(rules_of(&world), [Rule::Neighbour], "{:?}", world.done);
    assert!(are_apart(&world), "{:?}", world.done);
}

#[test]
fn what_was_given_in_vain_is_taken_back_for_those_who_suffer_from_it() {
    let mut world = insatiable();
    world.rules.all.mode = Some(Mode::Off);
    // As an earlier look may have left it, when nobody else was there.
    world.run(5);
    let widened = Action::Span { vhd: VhdId(1), disks: vec![DiskId(0), DiskId(1), DiskId(2)] };
    world.rules.all.mode = Some(Mode::Auto);
    world.carry_out(&widened);
    world.look(30);
    world.state.rests.insert(VhdId(1), u64::MAX);
    world.state.rests.insert(VhdId(2), u64::MAX);
    world.run(60);
    assert!(!are_apart(&world), "both rest: {:?}", world.done);
    world.state.applied.push(crate::policy::outcome::Applied {
        number: 99,
        rule: Rule::Rate,
        subject: Subject::Vhd(VhdId(1)),
        action: widened,
        effect: super::super::super::proposal::Effect {
            metric: Metric::Busy,
            subject: Subject::Disk(DiskId(0)),
            before: 1.0,
            after: 0.7,
        },
        bytes: 1,
        more_disks: true,
        started: world.state.clock.secs,
        load: None,
        settled: None,
        measured: None,
    });
    world.run(60);
    assert_eq!(world.state.applied[0].measured.unwrap().verdict, Verdict::Missed);
    assert!(are_apart(&world), "{:?}", world.done);
    world.run(12 * 60);
    assert!(are_apart(&world), "it is not given more again: {:?}", world.done);
}

/// What its guest is used to counts as a target, where that is less.
#[test]
fn nobody_is_spread_over_the_disk_of_somebody_who_is_used_to_less_than_its_target() {
    let run = |usual_ns: u64| {
        let guests = vec![busy_vhd(1, None, &[(0, 50), (1, 50)], 1.7), busy_vhd(2, None, &[(2, 40)], 0.3)];
        let mut world = World::new(disks(3), guests);
        world.pool.vhds[1].usual_latency.mean_ns = usual_ns;
        // Both would wait for 1.13 ms on a disk that they share.
        world.run(24 * 60);
        are_apart(&world)
    };
    assert!(!run(0), "15 ms are the target, and nothing else is known");
    assert!(!run(500_000), "1.5 ms are borne");
    assert!(run(200_000));
}

/// More disks only give it more: whatever it takes of each as long as it has few, it would take all of those that it gets.
#[test]
fn who_takes_all_of_its_disks_is_not_spread_over_one_where_somebody_would_wait_then() {
    let guests = vec![busy_vhd(1, None, &[(0, 30), (1, 30)], 2.0), busy_vhd(2, None, &[(2, 40)], 0.1)];
    let run = |part: f64| {
        let mut world = World::new(disks(3), guests.clone());
        world.pool.vhds[0] = busy_vhd(1, None, &[(0, 30), (1, 30)], part);
        // A third of what it asks for would let the other one wait for 0.65 ms.
        world.rules.set(Scope::Vhd(VhdId(1)), "latency", "1s").unwrap();
        world.rules.set(Scope::Vhd(VhdId(2)), "latency", "1ms").unwrap();
        world.run(24 * 60);
        (are_apart(&world), world.done)
    };
    let (are_apart, done) = run(1.7);
    assert!(!are_apart, "{done:?}");
    let (are_apart, done) = run(2.0);
    assert!(are_apart && done.is_empty(), "{done:?}");
}

#[test]
fn who_is_served_worse_than_it_is_used_to_is_found_though_its_target_is_kept() {
    let run = |usual_ns: u64| {
        let guests = vec![busy_vhd(1, None, &[(0, 50)], 0.7), busy_vhd(2, None, &[(0, 40)], 0.2)];
        let mut world = World::new(disks(3), guests);
        // The rules that look at the day say nothing.
        world.pool.vhds.iter_mut().for_each(|vhd| vhd.usual = Default::default());
        world.pool.vhds[1].usual_latency.mean_ns = usual_ns;
        world.run(60);
        (rules_of(&world), world.done.first().map(|(_, done)| done.facts[0].target))
    };
    // It waits for 1.5 ms; its target is 15 ms.
    assert_eq!(run(0), (vec![], None));
    assert_eq!(run(600_000), (vec![], None), "three times that are borne");
    let (rules, target) = run(400_000);
    assert_eq!(rules, [Rule::Neighbour]);
    assert!(target.is_some_and(|nanos| (nanos - 1.2e6).abs() < 1e3), "{target:?}");
    assert!(run(1000).1.is_some_and(|nanos| (nanos - 1e6).abs() < 1e3), "a millisecond is borne, whatever was before");
}
