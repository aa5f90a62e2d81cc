//! Power cuts at every write and sync of the whole request path: pipelines, owner, committer and store, the very code that
//! serves guests, on simulated disks.
//!
//! A run is recorded once; then, for every step of the record, the disks are rebuilt as a power cut would have left them (each
//! 512-byte sector that was written and not synced is old or new), the pool is opened again, and everything in it is compared
//! with what guests were told.
//!
//! `SPANBLK_SEED`, `SPANBLK_SEEDS` and `SPANBLK_STEPS` choose what is run; each failure prints the command that repeats it.

#[path = "crash/commands.rs"]
mod commands;
#[path = "crash/faults.rs"]
mod faults;
#[path = "crash/growth.rs"]
mod growth;
#[path = "crash/guest.rs"]
mod guest;
#[path = "crash/left_out.rs"]
mod left_out;
#[path = "crash/losses.rs"]
mod losses;
#[path = "crash/moves.rs"]
mod moves;
#[path = "crash/oracle.rs"]
mod oracle;
#[path = "crash/orders.rs"]
mod orders;
#[path = "crash/post.rs"]
mod post;
#[path = "crash/replace.rs"]
mod replace;
#[path = "crash/resume.rs"]
mod resume;
#[path = "crash/settle.rs"]
mod settle;
#[path = "crash/shrink.rs"]
mod shrink;
#[path = "crash/store.rs"]
mod store;
#[path = "crash/verify.rs"]
mod verify;
#[path = "crash/world.rs"]
mod world;

use left_out::is_noticed_in;
use resume::{Resumed, go_on};
use spanblk::base::ids::DiskSet;
use spanblk::disk::sim::SimDisk;
use verify::check_cut;
use world::{Besides, Scenario, World};

/// A rule left out, to show that these tests would notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    /// Rule 1: commits take changes whose data is not synced (data and table swapped).
    CommitUnsynced,
    /// Rule 1: syncs of data do nothing.
    LyingDataSync,
    /// The store's syncs do nothing.
    LyingStoreSync,
    /// Rule 1 and 4: cleared blocks are not committed.
    LoseClears,
    /// Rule 2: a slot is used again before its being free is durable.
    ReuseBeforeCommit,
    /// Rule 2: a slot is used again while requests that saw it are in flight.
    NoFence,
    /// Rule 3: a copy takes its place in the table before it is synced.
    NoCopySync,
    /// Rule 3: the old place is given up before the new one is durable.
    SwitchBeforeCommit,
    /// Rule 3: FLUSH does not sync copies that are about to take their place.
    FlushForgetsCopies,
    /// Rule 4: a move is committed whatever became of the content meanwhile.
    MoveIgnoresGeneration,
    /// The record of a VHD that shrinks is written, and its extents are not forgotten.
    LoseShrinks,
    /// Rule 3: a copy takes its place in the table although the target could not be synced.
    IgnoreSyncErrors,
    /// Rule 3: a copy takes its place in the table although a part of it could not be read or written.
    IgnoreCopyErrors,
    /// Rule 7: a write that a replica missed is acknowledged, and the replica still read.
    AcknowledgeMissed,
    /// Rule 7: a replica that missed a write is stale for the daemon, and not for the table.
    StaleInMemoryOnly,
    /// Rule 7: replicas are written to, and the table does not say so.
    NoIntents,
    /// Rule 8: writes of a writethrough guest complete before they are durable.
    IgnoreWritethrough,
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |s| s.parse().unwrap_or_else(|_| panic!("{name} must be a number")))
}

/// What all seeds together must have shown for the test to be one of what it is called after. A single one, with which a failure is
/// repeated, cannot.
fn must_show(enough: bool) {
    assert!(enough || setting("SPANBLK_SEEDS", 2) == 1, "the runs show little");
}

/// Runs a scenario and cuts the power everywhere. Returns the number of cuts, or what was broken.
fn run(scenario: Scenario) -> Result<(usize, World), String> {
    run_some(scenario, 1)
}

/// Every so many steps, in scenarios that show more with more seeds than with more cuts: another one with each seed.
/// `SPANBLK_SOME=1`: at every step.
const SOME: u64 = 24;

/// As [`run`], and cuts the power at every step of `every`.
fn run_some(scenario: Scenario, every: u64) -> Result<(usize, World), String> {
    run_and(scenario, every, |_, _, _| Ok(()))
}

/// As [`run_some`], and does something more with the disks after each cut.
fn run_and(
    scenario: Scenario,
    every: u64,
    mut more: impl FnMut(Vec<SimDisk>, u64, usize) -> Result<(), String>,
) -> Result<(usize, World), String> {
    let every = setting("SPANBLK_SOME", every);
    let mut world = World::new(scenario);
    world.run()?;
    let mut replay = world.trace.replay();
    let mut cuts = 0;
    let small = |number| usize::try_from(number).expect("a small number");
    for cut in (small(scenario.seed % every)..=replay.len()).step_by(small(every)) {
        replay.advance_to(cut);
        let undecided = replay.undecided_sectors() > 0;
        // Where nothing is undecided, all seeds give the same disks.
        for choice in 0..if undecided { 2 } else { 1 } {
            let seed = scenario.seed.wrapping_mul(0x9e37_79b9).wrapping_add((cut * 4 + choice) as u64);
            let images = replay.crash_images(seed);
            let checked = check_cut(&world, &images, cut).and_then(|()| more(images, seed, choice));
            checked.map_err(|error| format!("cut {cut}, choice {choice}: {error}"))?;
            cuts += 1;
        }
    }
    Ok((cuts, world))
}

fn scenario(seed: u64, members: usize, mutation: Option<Mutation>) -> Scenario {
    let steps = usize::try_from(setting("SPANBLK_STEPS", 400)).expect("a small number");
    Scenario {
        seed,
        disks: 3,
        members,
        reactors: if seed.is_multiple_of(2) { 2 } else { 1 },
        steps,
        // Either room for all that three guests can write, or slots that go from one guest to another all the time.
        slots: if seed % 4 < 2 { 5 } else { 2 },
        slow_disks: seed.is_multiple_of(3),
        moving: false,
        replicated: false,
        checksums: false,
        besides: Besides::Nothing,
        dead: DiskSet::default(),
        mutation,
    }
}

fn all_promises_hold(members: usize, seeds: u64) {
    let first = setting("SPANBLK_SEED", 1);
    let (mut cuts, mut reused, mut moved, mut grown) = (0, 0, 0, 0);
    for seed in first..first + setting("SPANBLK_SEEDS", seeds) {
        match run(Scenario { besides: Besides::Vms, ..scenario(seed, members, None) }) {
            Ok((count, world)) => {
                cuts += count;
                reused += world.reused_slots;
                moved += world.moves_done;
                grown += world.growths;
            }
            Err(error) => panic!(
                "seed {seed} with {members} metadata disks: {error}\nrepeat with: SPANBLK_SEED={seed} SPANBLK_SEEDS=1 \
                 cargo test --test crash on_{members}_"
            ),
        }
    }
    println!(
        "{members} metadata disks: {cuts} power cuts survived, {reused} slots given back, {moved} extents moved, {grown} growths"
    );
    // Growing; rule 3; rule 2.
    must_show(grown > 0 && moved > 0 && reused > 0);
}

/// VHDs that are moved all the time.
fn moving(seed: u64, mutation: Option<Mutation>) -> Scenario {
    let steps = usize::try_from(setting("SPANBLK_STEPS", 700)).expect("a small number");
    Scenario { moving: true, slots: 5, steps, ..scenario(seed, 1, mutation) }
}

/// VHDs that are moved all the time, and room for every plan.
fn roomy(seed: u64, mutation: Option<Mutation>) -> Scenario {
    let steps = usize::try_from(setting("SPANBLK_STEPS", 300)).expect("a small number");
    Scenario { slots: 14, steps, replicated: seed.is_multiple_of(3), ..moving(seed, mutation) }
}

/// Cuts the power everywhere, and lets the jobs of every pool go on.
fn resumed(scenario: Scenario, every: u64, sum: &mut Resumed) -> Result<(usize, World), String> {
    run_and(scenario, every, |images, seed, choice| {
        // One of the two that differ in what survived is enough: what is moved is what was found.
        if choice == 0 { go_on(scenario, images, seed, sum) } else { Ok(()) }
    })
}

/// Does this with so many seeds. `test`: what names the test among the others.
fn each_seed(test: &str, seeds: u64, mut with: impl FnMut(u64) -> Result<(), String>) {
    let first = setting("SPANBLK_SEED", 1);
    for seed in first..first + setting("SPANBLK_SEEDS", seeds) {
        with(seed).unwrap_or_else(|error| {
            panic!(
                "seed {seed}: {error}\nrepeat with: SPANBLK_SEED={seed} SPANBLK_SEEDS=1 cargo test --test crash {test}"
            )
        });
    }
}

/// Cuts the power everywhere in runs of so many seeds. `test`: what names the test among the others.
fn cut_everywhere(test: &str, seeds: u64, scenario: impl Fn(u64) -> Scenario) {
    let first = setting("SPANBLK_SEED", 1);
    let (mut cuts, mut moved) = (0, 0);
    for seed in first..first + setting("SPANBLK_SEEDS", seeds) {
        let (count, world) = run(scenario(seed)).unwrap_or_else(|error| {
            panic!(
                "seed {seed}: {error}\nrepeat with: SPANBLK_SEED={seed} SPANBLK_SEEDS=1 cargo test --test crash {test}"
            )
        });
        cuts += count;
        moved += world.moves_done;
    }
    println!("{cuts} power cuts survived, {moved} extents moved");
    must_show(moved > 10);
}

#[test]
fn power_cuts_while_extents_are_moved() {
    cut_everywhere("are_moved", 5, |seed| moving(seed, None));
}

#[test]
fn jobs_go_on_after_power_cuts() {
    let (mut cuts, mut sum) = (0, Resumed::default());
    each_seed("go_on_after", 8, |seed| {
        // Everywhere in two runs, and here and there in others, some of which have replicas.
        let every = if seed <= 2 { 1 } else { SOME };
        cuts += resumed(roomy(seed, None), every, &mut sum)?.0;
        Ok(())
    });
    println!("{cuts} power cuts survived, then {sum:?}");
    must_show(sum.ran > 300 && sum.stood > 15 && sum.moved > 300);
}

/// VHDs that are moved all the time on disks that give errors now and then.
fn troubled(seed: u64, mutation: Option<Mutation>) -> Scenario {
    let steps = usize::try_from(setting("SPANBLK_STEPS", 700)).expect("a small number");
    Scenario { besides: Besides::Faults, replicated: false, steps, ..roomy(seed, mutation) }
}

#[test]
fn power_cuts_while_disks_give_errors() {
    let (mut cuts, mut stopped, mut of_mover, mut sum) = (0, 0, [0; 3], Resumed::default());
    each_seed("disks_give_errors", 12, |seed| {
        let (count, world) = resumed(troubled(seed, None), SOME, &mut sum)?;
        cuts += count;
        stopped += world.post.queues.borrow().stopped;
        for (sum, count) in of_mover.iter_mut().zip(world.trouble.of_mover) {
            *sum += count;
        }
        Ok(())
    });
    println!(
        "{cuts} power cuts survived; {of_mover:?} reads, writes, syncs of the mover failed, {stopped} jobs stopped; then {sum:?}"
    );
    must_show(!of_mover.contains(&0) && stopped > 10 && sum.ran > 10 && sum.stood > 10);
}

#[test]
fn reads_are_right_while_extents_are_moved() {
    let first = setting("SPANBLK_SEED", 1);
    let (mut moved, mut waits, mut ended_early) = (0, 0, [0; 5]);
    for seed in first..first + setting("SPANBLK_SEEDS", 300) {
        let mut world = World::new(moving(seed, None));
        world.run().unwrap_or_else(|error| {
            panic!(
                "seed {seed}: {error}\nrepeat with: SPANBLK_SEED={seed} SPANBLK_SEEDS=1 cargo test --test crash reads_are"
            )
        });
        moved += world.moves_done;
        waits += world.copy_waits();
        for (sum, count) in ended_early.iter_mut().zip(world.ended_early()) {
            *sum += count;
        }
    }
    println!(
        "{moved} extents moved, {waits} requests met the copier; moves ended early while draining, copying, sealing, syncing, \
         committing: {ended_early:?}"
    );
    must_show(moved > 1000 && waits > 0 && !ended_early.contains(&0));
}

/// VHDs with replicas, more and fewer of them all the time.
fn replicated(seed: u64) -> Scenario {
    Scenario { replicated: true, slots: 7, ..moving(seed, None) }
}

/// Every replica has all that it must have, by itself.
#[test]
fn power_cuts_with_replicas() {
    cut_everywhere("with_replicas", 4, replicated);
}

#[test]
fn replicas_are_the_same_while_they_are_moved() {
    let first = setting("SPANBLK_SEED", 1);
    let (mut moved, mut compared) = (0, 0);
    for seed in first..first + setting("SPANBLK_SEEDS", 300) {
        let mut world = World::new(replicated(seed));
        let result = world.run().and_then(|()| world.compare_replicas());
        compared += result.unwrap_or_else(|error| {
            panic!(
                "seed {seed}: {error}\nrepeat with: SPANBLK_SEED={seed} SPANBLK_SEEDS=1 cargo test --test crash replicas_are"
            )
        });
        moved += world.moves_done;
    }
    println!("{moved} extents moved, {compared} replicas compared");
    must_show(moved > 1000 && compared > 300);
}

/// VHDs with replicas on disks that give errors now and then: no guest must notice as long as one replica has no trouble.
fn troubled_replicas(seed: u64, mutation: Option<Mutation>) -> Scenario {
    Scenario { replicated: true, slots: 14, ..troubled(seed, mutation) }
}

#[test]
fn guests_do_not_notice_errors_of_one_replica() {
    let (mut compared, mut stale, mut repaired) = (0, 0, 0);
    each_seed("guests_do_not", 120, |seed| {
        let mut world = World::new(troubled_replicas(seed, None));
        world.run()?;
        compared += world.compare_replicas()?;
        let (made_stale, made_equal) = world.replica_counts();
        stale += made_stale;
        repaired += made_equal;
        Ok(())
    });
    println!("{stale} replicas missed something, {repaired} were repaired, {compared} are equal in the end");
    must_show(stale > 500 && repaired > 10 && compared > 300);
}

/// Replicas in pages without a write intent are equal after every power cut, and all are once the pool has been open for a while.
#[test]
fn power_cuts_while_replicas_miss_writes() {
    let (mut cuts, mut sum) = (0, Resumed::default());
    each_seed("replicas_miss", 8, |seed| {
        cuts += resumed(troubled_replicas(seed, None), SOME, &mut sum)?.0;
        Ok(())
    });
    println!("{cuts} power cuts survived; then {sum:?}");
    must_show(sum.compared > 1000);
}

#[test]
fn acknowledging_what_a_replica_missed_is_noticed() {
    is_noticed_in(Mutation::AcknowledgeMissed, 1, |seed| troubled_replicas(seed, Some(Mutation::AcknowledgeMissed)));
}

#[test]
fn replicas_that_are_stale_in_memory_only_are_noticed() {
    let mutation = Mutation::StaleInMemoryOnly;
    let broken = |seed| run_some(troubled_replicas(seed, Some(mutation)), SOME).err();
    let noticed = (1..=40).find_map(|seed| Some((seed, broken(seed)?)));
    let (seed, error) = noticed.expect("it is noticed");
    println!("{mutation:?}: noticed with seed {seed}: {}", error.chars().take(300).collect::<String>());
}

#[test]
fn writing_to_replicas_without_intents_is_noticed() {
    is_noticed_in(Mutation::NoIntents, 1, |seed| troubled_replicas(seed, Some(Mutation::NoIntents)));
}

/// VHDs whose blocks have checksums, moved all the time; half of the runs have replicas, and disks that give errors now and then.
fn checked(seed: u64, mutation: Option<Mutation>) -> Scenario {
    let troubled = seed.is_multiple_of(2);
    Scenario { checksums: true, ..if troubled { troubled_replicas(seed, mutation) } else { roomy(seed, mutation) } }
}

/// What has a checksum has that of what is on each disk, and nobody ever sees another one.
#[test]
fn checksums_are_right_all_the_time() {
    let (mut compared, mut errors) = (0, 0);
    each_seed("checksums_are_right", 120, |seed| {
        let mut world = World::new(checked(seed, None));
        world.run()?;
        compared += world.compare_checksums()?;
        errors += world.checksum_errors();
        Ok(())
    });
    println!("{compared} blocks have the checksum of what is there");
    assert!(errors == 0, "{errors} blocks seemed wrong and were not");
    must_show(compared > 1000);
}

#[test]
fn checksums_are_right_after_power_cuts() {
    let (mut cuts, mut compared, mut sum) = (0, 0, Resumed::default());
    each_seed("right_after", 8, |seed| {
        let (count, world) = resumed(checked(seed, None), SOME, &mut sum)?;
        (cuts, compared) = (cuts + count, compared + world.checksums_found.get());
        Ok(())
    });
    println!("{cuts} power cuts survived, {compared} blocks with their checksums found; then {sum:?}");
    must_show(compared > 1000);
}

#[test]
fn checksums_without_intents_are_noticed() {
    let mutation = Some(Mutation::NoIntents);
    let broken = |seed: u64| run_some(Scenario { replicated: false, ..checked(seed * 2 + 1, mutation) }, SOME).err();
    let (seed, error) = (0..20).find_map(|seed| Some((seed, broken(seed)?))).expect("it is noticed");
    assert!(error.contains("checksum"), "seed {seed}: {error}");
}

/// VHDs that shrink while nobody uses them, grow again, and are written again.
fn shrinking(seed: u64, mutation: Option<Mutation>) -> Scenario {
    let steps = usize::try_from(setting("SPANBLK_STEPS", 700)).expect("a small number");
    let members = if seed.is_multiple_of(3) { 3 } else { 1 };
    Scenario { besides: Besides::Shrinking, steps, ..scenario(seed, members, mutation) }
}

#[test]
fn power_cuts_while_vhds_shrink_and_grow() {
    let (mut cuts, mut shrunk, mut grown) = (0, 0, 0);
    each_seed("shrink_and_grow", 18, |seed| {
        let (count, world) = run_some(shrinking(seed, None), SOME)?;
        cuts += count;
        shrunk += world.shrinks;
        grown += world.growths;
        Ok(())
    });
    println!("{cuts} power cuts survived, {shrunk} shrinks, {grown} growths");
    must_show(shrunk > 50 && grown > 50);
}

#[test]
fn power_cuts_on_1_metadata_disk() {
    all_promises_hold(1, 4);
}

#[test]
fn power_cuts_on_2_metadata_disks() {
    all_promises_hold(2, 2);
}

#[test]
fn power_cuts_on_3_metadata_disks() {
    all_promises_hold(3, 2);
}
