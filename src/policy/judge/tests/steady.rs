//! What is not asked over and over.

use super::*;
use crate::base::limits::POLICY_REFUSED_SECS_MAX;
use crate::base::rng::Rng;

/// So many looks, every half minute, with an owner that refuses all that is to be started. Returns how much that was.
fn refuse_all(world: &mut World, looks: u32) -> usize {
    let mut orders = 0;
    for _ in 0..looks {
        world.pool.at.unix_secs += 30;
        measure(&mut world.pool);
        let judgement = judge(&world.pool, &world.rules, &world.state);
        world.state = judgement.state;
        for number in judgement.start {
            world.state.apply(number, world.rules.rest_secs).unwrap();
            world.state.refused(number);
            orders += 1;
        }
    }
    orders
}

#[test]
fn what_the_owner_refuses_is_asked_again_later_and_later() {
    let mut tolerance = World::new(disks(4), vec![vhd(1, None, &[(0, 100)])]);
    tolerance.rules.set(Scope::Vhd(VhdId(1)), "survives", "1").unwrap();
    tolerance.rules.hold_secs = 0;
    let mut urgent = World::new(disks(3), vec![vhd(1, None, &[(0, 960)])]);
    urgent.rules.moved_a_day = 1.0;
    for mut world in [tolerance, urgent] {
        // After 0, 10 and 30 minutes of 50; each of them is told once.
        assert_eq!(refuse_all(&mut world, 100), 3);
        assert_eq!(world.state.proposed, 3);
        assert_eq!(world.state.spent_bytes(), 0);
        assert_eq!(State::decode(&world.state.encode()).unwrap(), world.state);
        // Two days more: every six hours.
        let orders = refuse_all(&mut world, 2 * 2880);
        assert!((7..=13).contains(&orders), "{orders}");
        assert!(world.state.refusals.values().all(|refusal| refusal.times > 8));
        // What has not been asked for long begins anew.
        world.state.clock.secs += 3 * POLICY_REFUSED_SECS_MAX;
        world.look(30);
        assert!(world.state.refusals.is_empty() && !world.done.is_empty());
    }
}

/// The owner may have a reason to refuse the move of one VHD that it does not have for others.
#[test]
fn who_may_not_be_moved_keeps_nobody_else_from_being_moved() {
    let mut world = World::new(disks(3), vec![vhd(1, None, &[(0, 480)]), vhd(2, None, &[(0, 480)])]);
    world.rules.moved_a_day = 1.0;
    let mut asked = Vec::new();
    for _ in 0..15 {
        world.pool.at.unix_secs += 30;
        let judgement = judge(&world.pool, &world.rules, &world.state);
        world.state = judgement.state;
        for number in judgement.start {
            let vhd = world.state.apply(number, world.rules.rest_secs).unwrap().action.vhd();
            world.state.refused(number);
            asked.push(vhd);
        }
    }
    asked.sort_unstable();
    assert_eq!(asked, [VhdId(1), VhdId(2)], "each once within ten minutes");
    // One of them could have been moved all the time.
    world.state.refusals.retain(|key, _| key.2 != VhdId(2));
    world.look(30);
    assert_eq!(world.done.iter().map(|(_, done)| done.action.vhd()).collect::<Vec<_>>(), [VhdId(2)]);
}

#[test]
fn what_was_begun_after_all_begins_anew_when_it_is_refused_again() {
    let mut world = World::new(disks(3), vec![vhd(1, None, &[(0, 960)])]);
    world.rules.moved_a_day = 1.0;
    assert_eq!(refuse_all(&mut world, 100), 3);
    let key = *world.state.refusals.keys().next().unwrap();
    assert_eq!(world.state.refusals[&key].times, 3);
    for _ in 0..200 {
        world.look(30);
    }
    assert!(!world.done.is_empty() && !world.state.refusals.contains_key(&key), "{:?}", world.state.refusals);
}

#[test]
fn a_proposal_keeps_its_number_while_measurements_wobble() {
    // Ten disks that do about the same, and a VHD that should have more of them.
    let mut guests: Vec<_> =
        (2..=11_u32).map(|id| busy_vhd(id, None, &[(u8::try_from(id - 2).unwrap(), 30)], 0.05)).collect();
    guests.push(busy_vhd(1, None, &[(0, 100)], 0.8));
    let mut world = World::new(disks(10), guests);
    world.rules.all.mode = Some(Mode::Advise);
    // Until everything that has to be so for an hour has been.
    world.run(180);
    let steady = world.pool.clone();
    let numbers = |world: &World| world.state.open.iter().map(|open| open.number).collect::<Vec<_>>();
    let (before, proposed) = (numbers(&world), world.state.proposed);
    assert!(!before.is_empty());
    let mut rng = Rng::new(7);
    for look in 0..50 {
        for (vhd, usual) in world.pool.vhds.iter_mut().zip(&steady.vhds) {
            let percent = 98.0 + f64::from(u32::try_from(rng.below(401)).unwrap()) / 100.0;
            (vhd.flow.iops, vhd.usual.iops) = (usual.flow.iops * percent / 100.0, usual.usual.iops * percent / 100.0);
        }
        world.look(30);
        assert_eq!((numbers(&world), world.state.proposed), (before.clone(), proposed), "look {look}");
    }
}

#[test]
fn what_is_about_something_that_is_gone_is_forgotten() {
    let mut world = World::new(disks(3), vec![vhd(1, Some(4), &[(0, 500)]), vhd(2, None, &[(0, 350)])]);
    world.rules.all.mode = Some(Mode::Advise);
    world.rules.moved_a_day = 0.5;
    world.run(60);
    let number = world.state.open[0].number;
    world.state.dismiss(number).unwrap();
    let dismissal = world.state.dismissed.values().next().unwrap().clone();
    let gone = [Subject::Disk(DiskId(9)), Subject::Vm(VmId(9)), Subject::Vhd(VhdId(9))];
    let there = [Subject::Disk(DiskId(0)), Subject::Vm(VmId(4)), Subject::Vhd(VhdId(1)), Subject::Pool];
    world.state.dismissed.clear();
    for subject in gone.into_iter().chain(there) {
        world.state.dismissed.insert((Rule::Contract, subject), dismissal.clone());
    }
    world.look(30);
    let left: Vec<Subject> = world.state.dismissed.keys().map(|(_, subject)| *subject).collect();
    let mut expected = there.to_vec();
    expected.sort();
    assert_eq!(left, expected);
}
