mod apart;
pub(crate) mod pool;
mod random;
mod steady;

use super::super::observe::{Health, Moment};
use super::super::proposal::{Action, Metric, Subject};
use super::super::rules::{Quiet, Scope};
use super::super::say::Names;
use super::super::why::why;
use super::*;
use crate::base::ids::{DiskId, VhdId, VmId};
use crate::placement::record::{Accept, Layout};
use pool::{World, busy_vhd, disk, measure, vhd};

fn disks(count: u8) -> Vec<super::super::observe::Disk> {
    (0..count).map(disk).collect()
}

fn on(world: &World, vhd: u32) -> Vec<u8> {
    let seen = world.pool.vhds.iter().find(|seen| seen.id == VhdId(vhd)).unwrap();
    let mut on: Vec<u8> = seen.extents.iter().map(|(disk, _)| disk.0).collect();
    on.sort_unstable();
    on
}

fn rules_of(world: &World) -> Vec<Rule> {
    world.done.iter().map(|(_, proposal)| proposal.rule).collect()
}

#[test]
fn a_vhd_that_survives_too_little_is_found_and_repaired_on_other_domains() {
    let mut four = disks(4);
    four[1].domain = 0;
    four[2].health = Health::Failed;
    let mut world = World::new(four, vec![vhd(1, None, &[(0, 100)])]);
    world.rules.set(Scope::Vhd(VhdId(1)), "survives", "1").unwrap();
    world.run(5);
    assert_eq!(world.done, [], "it has not been so for long enough");
    world.run(60);
    // Disk 1 fails together with disk 0, and disk 2 has failed.
    assert_eq!(on(&world, 1), [0, 3]);
    assert_eq!(world.pool.vhds[0].survives, Some(1));
    let actions: Vec<&Action> = world.done.iter().map(|(_, proposal)| &proposal.action).collect();
    let span = Action::Span { vhd: VhdId(1), disks: vec![DiskId(0), DiskId(3)] };
    assert_eq!(actions, [&span, &Action::Replicas { vhd: VhdId(1), replicas: 2 }]);
    let sentence = |world: &World| why(&world.pool, &world.rules, &world.state, VhdId(1)).unwrap().sentences[0].clone();
    assert!(sentence(&world).contains("this was chosen by the policy."), "{}", sentence(&world));
    let layout = std::mem::replace(
        &mut world.pool.vhds[0].layout,
        Layout::Spanned { disks: vec![DiskId(0), DiskId(1), DiskId(3)], width: None, chosen: true },
    );
    assert!(sentence(&world).contains("was ordered by name"), "by somebody else: {}", sentence(&world));
    world.pool.vhds[0].layout = layout;
    world.run(600);
    assert_eq!(world.done.len(), 2, "it is enough");
}

/// Their owner would refuse them.
#[test]
fn replicas_that_a_quota_has_no_room_for_are_not_proposed() {
    let proposed = |left: Option<u64>| {
        let mut world = World::new(disks(3), vec![vhd(1, None, &[(0, 100)])]);
        world.pool.vhds[0].quota_left = left;
        world.rules.set(Scope::Vhd(VhdId(1)), "survives", "1").unwrap();
        world.run(60);
        world.done.len() + world.state.open.len()
    };
    assert_eq!([None, Some(100), Some(99), Some(0)].map(proposed), [2, 2, 0, 0]);
}

#[test]
fn what_only_a_suspect_disk_has_is_moved_away_within_the_budget_and_what_has_replicas_is_not() {
    let mut four = disks(4);
    four[0].health = Health::Suspect;
    let mut replicated = vhd(3, None, &[(0, 60), (2, 60)]);
    (replicated.placed, replicated.replicas) = (60, 2);
    let guests = vec![vhd(1, None, &[(0, 100)]), vhd(2, None, &[(0, 40), (1, 40)]), replicated];
    let mut world = World::new(four, guests);
    world.rules.moved_a_day = 0.04;
    world.rules.quiet = Some(Quiet { from: 0, to: 1439 });
    world.run(5);
    assert_eq!(rules_of(&world), [Rule::Suspect; 2], "nobody may suspect it any more before long: {:?}", world.done);
    assert!(!on(&world, 1).contains(&0) && !on(&world, 2).contains(&0) && on(&world, 3) == [0, 2]);
    let (_, proposal) = &world.done[0];
    assert_eq!(proposal.effect.after, 0.0);
    let said = Names(&world.pool).proposal(proposal);
    assert!(said.because.starts_with("its disk is suspect: VHD vhd"), "{said:?}");
    world.run(60);
    assert!(
        world
            .state
            .applied
            .iter()
            .all(|applied| applied.measured.unwrap().verdict == super::super::outcome::Verdict::Kept)
    );

    // More than the budget has is told, and waits.
    world.pool.vhds.push(vhd(4, None, &[(0, 150)]));
    world.run(30);
    let open: Vec<_> = world.state.open.iter().map(|open| (open.rule, open.standing)).collect();
    assert_eq!(open, [(Rule::Suspect, Standing::Budget)]);
    // A disk that works again is not suspect any more.
    world.pool.disks[0].health = Health::Works;
    world.run(5);
    assert_eq!(world.state.open, []);
}

/// Nothing is moved for the sake of room alone: an empty disk helps those who wait, and those who come.
#[test]
fn a_disk_that_is_added_empty_takes_load_and_stays_empty_if_there_is_none() {
    let run = |part: f64| {
        let guests = (1..=12).map(|id| busy_vhd(id, None, &[(u8::try_from(id % 3).unwrap(), 20)], part)).collect();
        let mut world = World::new(disks(3), guests);
        world.run(12 * 60);
        assert_eq!(world.done, [], "all is even");
        world.pool.disks.push(disk(3));
        world.run(24 * 60);
        let model = Model::new(&world.pool, 0.8, Window::Usual);
        (model.disks[3].busy, model.imbalance())
    };
    let (busy, imbalance) = run(0.1);
    assert!(busy > 0.15 && imbalance < 0.1, "{busy} {imbalance}");
    assert_eq!(run(0.0).0, 0.0);
}

#[test]
fn a_disk_that_runs_full_gives_something_away_before_it_is() {
    let mut world = World::new(disks(3), vec![vhd(1, None, &[(0, 600)]), vhd(2, None, &[(0, 150)])]);
    world.rules.moved_a_day = 1.0;
    world.run(120);
    assert_eq!(world.done, [], "75 % are not 80 %");
    world.pool.vhds[1].growth = 3.0 * f64::from(1 << 30);
    world.pool.vhds[1].size = 1 << 40;
    world.run(60);
    assert_eq!(rules_of(&world), [Rule::Space], "it would be full within hours");
    let (_, proposal) = &world.done[0];
    assert_eq!((proposal.subject, proposal.effect.metric), (Subject::Disk(DiskId(0)), Metric::Fill));
    assert!(proposal.effect.after < 0.8 && world.pool.disks[0].free > 250, "{proposal:?}");
}

#[test]
fn an_isolated_vhd_that_fills_its_disk_is_expanded_at_once() {
    let mut world = World::new(disks(3), vec![vhd(1, None, &[(0, 960)])]);
    world.rules.moved_a_day = 1.0;
    world.look(300);
    assert_eq!(rules_of(&world), [Rule::Space], "96 % cannot wait");
    assert!(on(&world, 1).len() > 1 && world.pool.disks.iter().all(|disk| disk.free >= 200));
}

#[test]
fn a_neighbour_that_takes_too_much_is_found_named_and_moved_away() {
    let mut guests: Vec<_> = (2..=5).map(|id| busy_vhd(id, None, &[(0, 40)], 0.04)).collect();
    // It waits as long as the others, and is nobody's victim.
    guests.push(busy_vhd(1, None, &[(0, 60)], 0.8));
    guests.push(busy_vhd(6, None, &[(1, 60)], 0.1));
    let mut world = World::new(disks(3), guests);
    // Nobody is used to it: the rules that look at the day say nothing.
    world.pool.vhds.iter_mut().for_each(|vhd| vhd.usual = super::super::observe::Flow::default());
    world.rules.set(Scope::Pool, "latency", "1ms").unwrap();
    world.look(300);
    assert_eq!(world.done, [], "it may be over at once");
    world.run(10);
    assert_eq!(rules_of(&world), [Rule::Neighbour]);
    let (_, proposal) = &world.done[0];
    assert_eq!(proposal.aggressor, Some(VhdId(1)));
    assert_eq!(proposal.subject, Subject::Disk(DiskId(0)));
    assert!(!on(&world, 1).contains(&0) && on(&world, 2) == [0], "they are separated");
    assert!(!proposal.alternatives.is_empty());
    let said = Names(&world.pool).proposal(proposal);
    assert!(said.because.contains("VHD vhd1 takes so much") && said.because.contains("queues get long"), "{said:?}");
    world.run(60);
    assert_eq!(world.done.len(), 1, "{:?}", world.done);
    // What was promised is compared with what came.
    let outcome = world.state.applied[0].measured.unwrap();
    assert_eq!(outcome.verdict, super::super::outcome::Verdict::Kept);
    let why = why(&world.pool, &world.rules, &world.state, VhdId(1)).unwrap();
    assert!(why.sentences.iter().any(|line| line.contains("a neighbour takes too much")), "{why:?}");
    assert!(why.sentences[0].contains("this was chosen by the policy."), "{why:?}");
}

#[test]
fn whoever_needs_most_of_a_disk_gets_more_disks_unless_it_took_all_of_them_before() {
    let mut world = World::new(disks(4), vec![busy_vhd(1, None, &[(0, 100)], 0.9)]);
    world.run(120);
    assert!(on(&world, 1).len() >= 2, "{:?}", world.done);
    let mut world = World::new(disks(4), vec![busy_vhd(1, None, &[(0, 100)], 0.9)]);
    world.rules.imbalance = 0.5;
    world.state.insatiable.insert(VhdId(1), u64::MAX);
    world.run(120);
    assert_eq!(on(&world, 1), [0]);
}

#[test]
fn disks_of_which_some_do_much_more_are_evened_out_and_a_steady_load_comes_to_rest() {
    let guests = (1..=12).map(|id| busy_vhd(id, None, &[(0, 20)], 0.05)).collect();
    let mut world = World::new(disks(4), guests);
    world.rules.moved_a_day = 1.0;
    world.run(24 * 60);
    let model = Model::new(&world.pool, 0.8, Window::Usual);
    assert!(model.imbalance() < 0.06, "{}: {:?}", model.imbalance(), world.done);
    let moves = world.done.len();
    assert!(moves <= 10, "{moves} moves");
    world.run(24 * 60);
    assert_eq!(world.done.len(), moves, "a steady load moves nothing");
}

#[test]
fn a_small_vhd_that_does_much_is_moved_before_a_large_one_that_does_a_little_more() {
    let guests = vec![busy_vhd(1, None, &[(0, 400)], 0.3), busy_vhd(2, None, &[(0, 20)], 0.25)];
    let mut world = World::new(disks(3), guests);
    world.rules.moved_a_day = 1.0;
    while world.done.is_empty() {
        world.look(300);
        assert!(world.state.clock.secs < 24 * 3600, "nothing is done about it");
    }
    let (_, proposal) = &world.done[0];
    assert_eq!((proposal.rule, proposal.action.vhd()), (Rule::Imbalance, VhdId(2)), "{proposal:?}");
}

#[test]
fn vhds_of_a_vm_come_together_and_idle_ones_contract() {
    let guests = vec![
        vhd(1, Some(1), &[(0, 20)]),
        vhd(2, Some(1), &[(1, 20)]),
        vhd(3, Some(2), &[(0, 10), (1, 10), (2, 10), (3, 10)]),
    ];
    let mut world = World::new(disks(4), guests);
    world.run(12 * 60);
    assert_eq!(on(&world, 1), on(&world, 2));
    assert_eq!(on(&world, 3).len(), 1);
    assert!(rules_of(&world).contains(&Rule::Together) && rules_of(&world).contains(&Rule::Contract));
}

#[test]
fn modes_quiet_hours_moves_in_flight_and_budgets_say_what_becomes_of_a_proposal() {
    let standing = |edit: &dyn Fn(&mut World)| {
        let mut world = World::new(disks(3), vec![vhd(1, None, &[(0, 500)]), vhd(2, None, &[(0, 350)])]);
        world.rules.moved_a_day = 0.5;
        edit(&mut world);
        (0..4).for_each(|_| {
            world.pool.at.unix_secs += 300;
            let judgement = judge(&world.pool, &world.rules, &world.state);
            world.state = judgement.state;
        });
        world.state.open.iter().map(|open| open.standing).collect::<Vec<_>>()
    };
    assert_eq!(standing(&|_| {}), [Standing::Start]);
    assert_eq!(standing(&|world| world.rules.all.mode = Some(Mode::Advise)), [Standing::Advice]);
    assert_eq!(standing(&|world| world.rules.all.mode = Some(Mode::Off)), []);
    assert_eq!(standing(&|world| world.pool.in_flight = 2), [Standing::InFlight]);
    // Jobs that are stopped keep nobody else from being moved.
    assert_eq!(standing(&|world| world.pool.jobs = vec![VhdId(8), VhdId(9)]), [Standing::Start]);
    assert_eq!(standing(&|world| world.rules.quiet = Some(Quiet { from: 0, to: 1439 })), [Standing::Quiet]);
    assert_eq!(standing(&|world| world.pool.moved_bytes = 1 << 40), [Standing::Budget]);
    // One of two cannot be moved: the other one is.
    assert_eq!(standing(&|world| world.pool.jobs = vec![VhdId(1)]), [Standing::Start]);
    assert_eq!(standing(&|world| world.pool.disks[1..].iter_mut().for_each(|d| d.accept = Accept::None)), []);
}

#[test]
fn what_was_dismissed_comes_back_only_when_it_has_changed() {
    let mut world = World::new(disks(3), vec![vhd(1, None, &[(0, 500)]), vhd(2, None, &[(0, 310)])]);
    world.rules.all.mode = Some(Mode::Advise);
    world.rules.moved_a_day = 0.5;
    world.run(30);
    let number = world.state.open[0].number;
    world.run(30);
    assert_eq!((world.state.open.len(), world.state.open[0].number), (1, number), "it keeps its number");
    assert!(world.state.dismiss(number + 1).is_err());
    let dismissed = world.state.dismiss(number).unwrap();
    assert_eq!(dismissed.facts[0].metric, Metric::Fill);
    world.run(120);
    assert_eq!(world.state.open, []);
    // 81 % then, 99 % now.
    (world.pool.vhds[1].extents[0].1, world.pool.vhds[1].placed) = (490, 490);
    world.run(10);
    assert_eq!(world.state.open.len(), 1);
    assert!(world.state.open[0].number > number);
    assert!(world.state.apply(number, 60).is_err(), "the old number is nobody's");
}

/// It is not done, so that it takes nobody's place.
#[test]
fn what_was_dismissed_is_in_nobodys_way() {
    let guests = [(1, 0, 500), (2, 0, 350), (3, 1, 500), (4, 1, 350)];
    let guests = guests.map(|(id, disk, extents)| vhd(id, None, &[(disk, extents)])).to_vec();
    let mut world = World::new(disks(4), guests);
    world.rules.all.mode = Some(Mode::Advise);
    (world.rules.moved_a_day, world.rules.moves_max) = (0.2, 1);
    world.run(30);
    assert_eq!(world.state.open.len(), 2);
    let dismissed = world.state.open[0].number;
    world.state.dismiss(dismissed).unwrap();
    world.rules.all.mode = Some(Mode::Auto);
    world.look(300);
    assert_eq!(rules_of(&world), [Rule::Space], "{:?}", world.state.open);
    world.run(60);
    assert_eq!(world.done.len(), 1, "{:?}", world.done);
}

#[test]
fn what_was_dismissed_keeps_its_vhd_from_nothing_else() {
    let mut three = disks(3);
    three[0].health = Health::Suspect;
    let mut world = World::new(three, vec![vhd(1, None, &[(0, 10), (1, 850)])]);
    world.rules.all.mode = Some(Mode::Advise);
    world.rules.moved_a_day = 0.5;
    world.run(30);
    let rules = |world: &World| world.state.open.iter().map(|open| open.rule).collect::<Vec<_>>();
    assert_eq!(rules(&world), [Rule::Suspect]);
    let dismissed = world.state.open[0].number;
    world.state.dismiss(dismissed).unwrap();
    world.run(30);
    assert_eq!(rules(&world), [Rule::Space], "it is too full all the same: {:?}", world.state);
}

#[test]
fn a_clock_that_jumps_neither_holds_nor_spends_nor_refills() {
    let mut world = World::new(disks(3), vec![vhd(1, None, &[(0, 500)]), vhd(2, None, &[(0, 350)])]);
    world.rules.moved_a_day = 0.5;
    let at = |world: &mut World, unix_secs: u64| {
        world.pool.at = Moment { unix_secs, minute_of_day: 0 };
        let judgement = judge(&world.pool, &world.rules, &world.state);
        world.state = judgement.state;
        (judgement.clock, judgement.start.len())
    };
    assert_eq!(at(&mut world, 1_000_000), (ClockStep::On, 0));
    // A year later: nobody knows whether it was so all the time.
    assert_eq!(at(&mut world, 32_536_000), (ClockStep::Far(31_536_000), 0));
    assert_eq!(at(&mut world, 1_000_000), (ClockStep::Back(31_536_000), 0));
    assert_eq!(at(&mut world, 1_000_300), (ClockStep::On, 0));
    assert_eq!(at(&mut world, 1_000_600), (ClockStep::On, 1));
    let number = world.state.open[0].number;
    let bytes = world.state.apply(number, 3600).unwrap().cost.bytes;
    assert!(bytes > 0 && world.state.spent_bytes() == bytes);
    // Jumps of years do not give it back; a day of looks does.
    for jump in [u64::from(u32::MAX), 0, 1 << 50, 1] {
        at(&mut world, jump);
        assert_eq!(world.state.spent_bytes(), bytes);
        assert!(world.state.rests.contains_key(&VhdId(1)) || world.state.rests.contains_key(&VhdId(2)));
    }
    for step in 0..26 * 12 {
        at(&mut world, 1 + 300 * step);
    }
    assert_eq!(world.state.spent_bytes(), 0);
}

#[test]
fn what_the_daemon_refuses_gives_its_bytes_back() {
    let mut world = World::new(disks(3), vec![vhd(1, None, &[(0, 500)]), vhd(2, None, &[(0, 350)])]);
    world.rules.moved_a_day = 0.5;
    (0..3).for_each(|_| {
        world.pool.at.unix_secs += 300;
        world.state = judge(&world.pool, &world.rules, &world.state).state;
    });
    let number = world.state.open[0].number;
    world.state.apply(number, 3600).unwrap();
    assert!(world.state.spent_bytes() > 0 && world.state.applied.len() == 1);
    world.state.refused(number);
    assert!(world.state.spent_bytes() == 0 && world.state.applied.is_empty() && world.state.rests.len() == 1);
}

#[test]
fn a_load_that_swings_moves_no_more_than_the_budget() {
    let guests = (1..=8).map(|id| busy_vhd(id, None, &[(u8::try_from(id % 4).unwrap(), 50)], 0.1)).collect();
    let mut world = World::new(disks(4), guests);
    world.rules.moved_a_day = 0.05;
    let budget = budget(&world.pool, &world.rules);
    for step in 0..3 * 288_u32 {
        let high = step / 24 % 2;
        for (index, vhd) in (0_u32..).zip(&mut world.pool.vhds) {
            vhd.flow.iops = pool::MOST * if index % 2 == high { 0.5 } else { 0.02 };
            vhd.usual = vhd.flow;
        }
        world.look(300);
        assert!(world.state.spent_bytes() <= budget);
    }
    let moved: u64 = world.done.iter().map(|(_, proposal)| proposal.cost.bytes).sum();
    println!("{} moves, {} MiB of {} MiB a day", world.done.len(), moved >> 20, budget >> 20);
    assert!(moved <= 3 * budget, "{moved} bytes in three days, {budget} a day");
}

#[test]
fn proposals_read_as_sentences() {
    let mut world = World::new(disks(3), vec![vhd(1, Some(3), &[(0, 500)]), vhd(2, Some(3), &[(0, 350)])]);
    world.rules.all.mode = Some(Mode::Advise);
    world.rules.moved_a_day = 0.5;
    world.run(30);
    let said = Names(&world.pool).proposal(&world.state.open[0]);
    assert_eq!(said.standing, "waits for you: 'spanblk apply N' or 'spanblk dismiss N'");
    assert!(said.because.starts_with("room runs out: disk disk0 is 85.0 % full, the limit is 80.0 %"), "{said:?}");
    assert!(said.command.starts_with("spanblk vhd ") && said.costs.contains("of the day's budget"), "{said:?}");
    assert!(said.brings.contains("fill of disk disk0: 85.0 % becomes"), "{said:?}");
    let why = why(&world.pool, &world.rules, &world.state, VhdId(1)).unwrap();
    assert!(why.sentences[0].contains("VHD vhd1 is isolated on disk0"), "{why:?}");
    assert_eq!((why.shares.len(), why.shares[0].strangers), (1, 0), "the other one is of the same VM");
    assert!(super::super::why::why(&world.pool, &world.rules, &world.state, VhdId(9)).is_none());
    assert_eq!(Names(&world.pool).vm(VmId(3)), "the VM of vhd1, vhd2");
    measure(&mut world.pool);
}
