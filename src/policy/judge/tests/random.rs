//! Random pools, looked at for days: nothing illegal, never more than the budget, and no effect of the order in which things are listed.
//!
//! `POLICY_SEED=7 cargo test policy::judge::tests::random` repeats one seed.

use super::super::super::observe::{Disk, DiskKind, Flow, Health, Vhd};
use super::super::super::rules::{Scope, Wish};
use super::super::{Mode, budget, judge};
use super::pool::{MOST, World, disk, vhd};
use crate::base::ids::VhdId;
use crate::base::rng::Rng;
use crate::placement::record::Accept;

const SEEDS: u64 = 30;

fn seeds() -> Vec<u64> {
    match std::env::var("POLICY_SEED").ok().and_then(|seed| seed.parse().ok()) {
        Some(seed) => vec![seed],
        None => (1..=SEEDS).collect(),
    }
}

fn random_disk(id: u8, rng: &mut Rng) -> Disk {
    let mut disk = disk(id);
    disk.domain = u32::from(id) / if rng.chance(1, 3) { 2 } else { 1 };
    disk.slots = 500 + u32::try_from(rng.below(1000)).unwrap();
    disk.kind = [DiskKind::Nvme, DiskKind::Ssd, DiskKind::Hdd][rng.index(3)];
    if rng.chance(1, 8) {
        disk.health = [Health::Failed, Health::Suspect][rng.index(2)];
    }
    if rng.chance(1, 6) {
        disk.accept = [Accept::None, Accept::Isolated, Accept::Spanned][rng.index(3)];
    }
    disk
}

fn random_vhd(id: u32, disks: u8, rng: &mut Rng) -> Vhd {
    let first = u8::try_from(rng.below(u64::from(disks))).unwrap();
    let width = if rng.chance(1, 3) { 1 + u8::try_from(rng.below(u64::from(disks - first))).unwrap() } else { 1 };
    let on: Vec<(u8, u32)> =
        (first..first + width).map(|disk| (disk, 5 + u32::try_from(rng.below(60)).unwrap())).collect();
    let vm = rng.chance(2, 3).then(|| u32::try_from(rng.below(6)).unwrap());
    let mut vhd = vhd(id, vm, &on);
    vhd.growth = (rng.below(40) as f64 - 10.0) * f64::from(1 << 20);
    vhd
}

fn random_world(rng: &mut Rng) -> World {
    let count = 3 + u8::try_from(rng.below(6)).unwrap();
    let disks = (0..count).map(|id| random_disk(id, rng)).collect();
    let vhds = (1..=10 + u32::try_from(rng.below(20)).unwrap()).map(|id| random_vhd(id, count, rng)).collect();
    let mut world = World::new(disks, vhds);
    world.rules.moved_a_day = 0.02 + rng.below(10) as f64 / 100.0;
    world.rules.moves_max = 1 + u32::try_from(rng.below(4)).unwrap();
    world.rules.set(Scope::Pool, "latency", "1ms").unwrap();
    for id in 1..=10 {
        let modes = [None, None, Some(Mode::Off), Some(Mode::Advise)];
        let wish = Wish { mode: modes[rng.index(4)], survives: rng.chance(1, 4).then_some(1), ..Wish::default() };
        world.rules.vhds.insert(VhdId(id), wish);
    }
    world
}

fn swing(world: &mut World, rng: &mut Rng) {
    for vhd in &mut world.pool.vhds {
        if rng.chance(1, 6) {
            let part = rng.below(100) as f64 / 100.0;
            vhd.flow = Flow { iops: MOST * part * part, bytes: 0.0 };
        }
        vhd.usual.iops += (vhd.flow.iops - vhd.usual.iops) / 50.0;
    }
}

#[test]
fn nothing_illegal_and_never_above_the_budget_whatever_comes() {
    let mut moves = 0;
    for seed in seeds() {
        println!("POLICY_SEED={seed}");
        let mut rng = Rng::new(seed);
        let mut world = random_world(&mut rng);
        let budget = budget(&world.pool, &world.rules);
        for _ in 0..2 * 144 {
            swing(&mut world, &mut rng);
            let before = world.done.len();
            // Carrying out asserts that the planner agrees, and that no failed or closed disk is named.
            world.look(600);
            assert!(world.state.spent_bytes() <= budget, "{} of {budget} bytes", world.state.spent_bytes());
            assert!(world.done.len() - before <= world.rules.moves_max as usize);
            for (_, proposal) in &world.done[before..] {
                let id = proposal.action.vhd();
                let vhd = world.pool.vhds.iter().find(|vhd| vhd.id == id).unwrap();
                assert_eq!(world.rules.of(vhd).mode, Mode::Auto, "{proposal:?}");
                for disk in world.pool.disks.iter().filter(|disk| proposal.action.disks().contains(&disk.id)) {
                    let fill = 1.0 - f64::from(disk.free) / f64::from(disk.slots);
                    assert!(fill <= world.rules.space + 0.01, "{proposal:?} fills {} to {fill}", disk.name);
                }
            }
        }
        // In any 24 hours, not only at the end.
        for (at, _) in &world.done {
            let within = world.done.iter().filter(|(other, _)| (*at..at + 24 * 3600).contains(other));
            let moved: u64 = within.map(|(_, proposal)| proposal.cost.bytes).sum();
            assert!(moved <= budget, "{moved} of {budget} bytes from {at} on");
        }
        moves += world.done.len();
    }
    assert!(moves > 0, "the test shows nothing without moves");
}

#[test]
fn the_order_in_which_things_are_listed_does_not_matter() {
    for seed in seeds() {
        println!("POLICY_SEED={seed}");
        let mut rng = Rng::new(seed);
        let mut world = random_world(&mut rng);
        for _ in 0..40 {
            swing(&mut world, &mut rng);
            world.look(600);
            let mut other = world.pool.clone();
            other.at.unix_secs += 600;
            let mut same = other.clone();
            let mut shuffle = |len: usize| -> Vec<usize> {
                let mut order: Vec<usize> = (0..len).collect();
                (1..len).rev().for_each(|i| order.swap(i, rng.index(i + 1)));
                order
            };
            other.disks = shuffle(other.disks.len()).into_iter().map(|i| same.disks[i].clone()).collect();
            other.vhds = shuffle(other.vhds.len()).into_iter().map(|i| same.vhds[i].clone()).collect();
            other.vhds.iter_mut().for_each(|vhd| vhd.extents.reverse());
            same.jobs.clear();
            let [a, b] = [&same, &other].map(|pool| judge(pool, &world.rules, &world.state));
            assert_eq!(a, b);
            assert_eq!(a, judge(&same, &world.rules, &world.state), "the same again");
        }
    }
}
