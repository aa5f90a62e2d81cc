//! Each ordering rule left out, one at a time: these tests would notice.

use super::world::{Scenario, World};
use super::{Mutation, moving, run, scenario, shrinking, troubled};

/// Some seed must show that the rule is needed: without any power cut, or with one.
fn is_noticed(mutation: Mutation) {
    notices(mutation, |seed| scenario(seed, 1, Some(mutation)));
}

/// As [`is_noticed`], of VHDs that are moved all the time. `likely`: the seed that noticed it last time, which saves the others.
fn is_noticed_in_moves(mutation: Mutation, likely: u64) {
    is_noticed_in(mutation, likely, |seed| moving(seed, Some(mutation)));
}

pub fn is_noticed_in(mutation: Mutation, likely: u64, scenario: impl Fn(u64) -> Scenario) {
    if let Err(error) = run(scenario(likely)) {
        println!("{mutation:?}: noticed with seed {likely}: {}", error.chars().take(300).collect::<String>());
        return;
    }
    notices(mutation, scenario);
}

fn notices(mutation: Mutation, scenario: impl Fn(u64) -> Scenario) {
    let live = (1..=200).find_map(|seed| {
        let broken = World::new(scenario(seed)).run();
        broken.err().map(|error| (seed, error))
    });
    if let Some((seed, error)) = live {
        println!("{mutation:?}: noticed with seed {seed}: {}", error.chars().take(300).collect::<String>());
        return;
    }
    for seed in 1..=20 {
        if let Err(error) = run(scenario(seed)) {
            println!("{mutation:?}: noticed with seed {seed}: {}", error.chars().take(300).collect::<String>());
            return;
        }
    }
    panic!("{mutation:?} was not noticed");
}

#[test]
fn committing_unsynced_data_is_noticed() {
    is_noticed(Mutation::CommitUnsynced);
}

#[test]
fn a_missing_data_sync_is_noticed() {
    is_noticed(Mutation::LyingDataSync);
}

#[test]
fn a_missing_store_sync_is_noticed() {
    is_noticed(Mutation::LyingStoreSync);
}

#[test]
fn losing_clears_is_noticed() {
    is_noticed(Mutation::LoseClears);
}

#[test]
fn reuse_before_commit_is_noticed() {
    is_noticed(Mutation::ReuseBeforeCommit);
}

#[test]
fn reuse_without_a_fence_is_noticed() {
    is_noticed(Mutation::NoFence);
}

#[test]
fn a_copy_without_a_sync_is_noticed() {
    is_noticed_in_moves(Mutation::NoCopySync, 1);
}

#[test]
fn a_switch_before_its_commit_is_noticed() {
    is_noticed_in_moves(Mutation::SwitchBeforeCommit, 4);
}

#[test]
fn a_flush_that_forgets_copies_is_noticed() {
    is_noticed_in_moves(Mutation::FlushForgetsCopies, 20);
}

#[test]
fn a_move_of_dropped_content_is_noticed() {
    is_noticed_in_moves(Mutation::MoveIgnoresGeneration, 1);
}

#[test]
fn moves_without_a_fence_are_noticed() {
    is_noticed_in_moves(Mutation::NoFence, 3);
}

#[test]
fn losing_shrinks_is_noticed() {
    is_noticed_in(Mutation::LoseShrinks, 1, |seed| shrinking(seed, Some(Mutation::LoseShrinks)));
}

#[test]
fn ignoring_a_sync_that_failed_is_noticed() {
    is_noticed_in(Mutation::IgnoreSyncErrors, 9, |seed| troubled(seed, Some(Mutation::IgnoreSyncErrors)));
}

#[test]
fn ignoring_a_copy_that_failed_is_noticed() {
    is_noticed_in(Mutation::IgnoreCopyErrors, 1, |seed| troubled(seed, Some(Mutation::IgnoreCopyErrors)));
}

#[test]
fn ignoring_writethrough_is_noticed() {
    is_noticed(Mutation::IgnoreWritethrough);
}
