//! The placement store on simulated disks that lose power: at every write and every sync, with one, two and three members.
//!
//! A random workload (changes with syncs of their data, edits, commits, reopenings, members that are away or fail) is run
//! once. Then the power fails at each step of its trace, several times with different sectors surviving, and the store is
//! opened from what is left: from all disks, and with three members also from any two of them. What is found must be the
//! state of one commit, and every acknowledged commit must be in it.
//!
//! `SPANBLK_CRASH_ROUNDS=n` makes it n times as long (1 by default). A failure prints the one command that repeats it.

#![allow(clippy::cast_possible_truncation, reason = "small numbers")]

mod store_crash_world;

use std::time::{Duration, Instant};

use store_crash_world::{Flaw, History, Plan};

/// Wall time for all cuts of one history; when it is used up, the remaining cuts are sampled.
const BUDGET: Duration = Duration::from_secs(20);

fn rounds() -> u64 {
    std::env::var("SPANBLK_CRASH_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(1)
}

/// Which majorities a store of `members` is opened from.
fn majorities(members: usize) -> Vec<Vec<usize>> {
    let all = (0..members).collect();
    match members {
        3 => vec![all, vec![0, 1], vec![0, 2], vec![1, 2]],
        _ => vec![all],
    }
}

fn check_everywhere(history: &History, plan: Plan, budget: Duration) -> Result<u64, String> {
    let mut replay = history.replay();
    let start = Instant::now();
    let cuts = replay.len();
    let mut checked = 0;
    let mut stride = 1;
    let mut cut = 0;
    while cut <= cuts {
        replay.advance_to(cut);
        // Nothing undecided: every seed gives the same disks.
        let images = if replay.undecided_sectors() == 0 { 1 } else { 3 };
        for image in 0..images {
            for subset in majorities(plan.members) {
                let disks = replay.crash_images(image);
                history.check(&disks, cut, &subset).map_err(|problem| {
                    format!(
                        "{problem}\n  repeat with: SPANBLK_CRASH_ONE={},{},{cut},{image} cargo test --test store_crash one_case -- --nocapture",
                        plan.members, plan.seed
                    )
                })?;
                checked += 1;
            }
        }
        // Every cut, unless the machine is too slow for that; then evenly spread ones.
        let done = cut as f64 / cuts.max(1) as f64;
        if start.elapsed() > budget.mul_f64(done.max(0.02)) && start.elapsed() > budget / 4 {
            stride = (stride * 2).min(16);
        } else {
            stride = 1;
        }
        cut += stride;
    }
    Ok(checked)
}

fn run(members: usize) {
    for round in 0..rounds() {
        for seed in [1, 2] {
            let plan = Plan { members, seed: seed + 2 * round, steps: 24 / members, flaw: None };
            let history = History::run(plan);
            match check_everywhere(&history, plan, BUDGET / 2) {
                Ok(checked) => println!(
                    "{members} members, seed {}: {} commits, {} cuts, {checked} openings",
                    plan.seed,
                    history.commits(),
                    history.replay().len()
                ),
                Err(problem) => panic!("{problem}"),
            }
        }
    }
}

#[test]
fn one_member() {
    run(1);
}

#[test]
fn two_members() {
    run(2);
}

#[test]
fn three_members() {
    run(3);
}

#[test]
fn one_case() {
    let Ok(case) = std::env::var("SPANBLK_CRASH_ONE") else { return };
    let numbers: Vec<u64> = case.split(',').map(|n| n.parse().expect("members,seed,cut,image")).collect();
    let [members, seed, cut, image] = numbers[..] else { panic!("members,seed,cut,image") };
    let members = members as usize;
    let history = History::run(Plan { members, seed, steps: 24 / members, flaw: None });
    let mut replay = history.replay();
    replay.advance_to(cut as usize);
    for subset in majorities(members) {
        history.check(&replay.crash_images(image), cut as usize, &subset).unwrap_or_else(|problem| panic!("{problem}"));
    }
}

/// The test must notice what it is there for.
#[test]
fn deliberate_flaws_are_noticed() {
    for (members, flaw) in [(1, Flaw::LyingSync), (3, Flaw::LyingSync), (3, Flaw::MinorityCounts)] {
        let noticed = (1..6).find_map(|seed| {
            let plan = Plan { members, seed, steps: 24 / members, flaw: Some(flaw) };
            // A database whose disk lied may also be so broken that it trips over itself.
            let check = || check_everywhere(&History::run(plan), plan, BUDGET / 4);
            std::panic::catch_unwind(check).unwrap_or_else(|_| Err("the database gave up".to_owned())).err()
        });
        let noticed = noticed.unwrap_or_else(|| panic!("{flaw:?} with {members} members went unnoticed"));
        println!("{flaw:?}, {members} members: {noticed}");
    }
}
