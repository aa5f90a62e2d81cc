//! The bodies of the fuzz targets (`tests/fuzz`) without a fuzzer: on the committed corpus, and on seeded bytes.
//! `SPANBLK_FUZZ_ROUNDS` says how many of those.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/fake_owner.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod fake_owner;
mod fuzz_bodies;
mod vhost_user_support;

use std::collections::BTreeSet;
use std::path::Path;

use spanblk::base::rng::Rng;
use spanblk::store::fuzz as stored;
use spanblk::virtio::fuzz as chains;

fn rounds(usual: u64) -> u64 {
    std::env::var("SPANBLK_FUZZ_ROUNDS").map_or(usual, |rounds| rounds.parse().unwrap())
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/corpus").join(target);
    let files = std::fs::read_dir(directory).unwrap();
    files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect()
}

fn seeded(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    Rng::new(seed).fill(&mut bytes);
    bytes
}

#[test]
fn chains_in_memory_that_changes_while_it_is_read() {
    let rounds = rounds(20_000);
    for data in corpus("changing") {
        chains::changing::run(&data);
    }
    let accepted = (0..rounds).filter(|&seed| chains::changing::run(&seeded(seed, 700))).count() as u64;
    assert!(
        accepted > rounds / 50 && accepted < rounds * 9 / 10,
        "{accepted} of {rounds} are accepted: the mix is off"
    );
}

#[test]
fn what_is_read_from_disks() {
    let corpus = corpus("stored");
    let kinds: BTreeSet<u8> = corpus.iter().filter(|data| stored::run(data)).map(|data| data[0] % 7).collect();
    assert_eq!(kinds, (0..7).collect(), "the corpus has a valid one of each kind");
    let (mut accepted, rounds) = (0, rounds(3_000));
    for seed in 0..rounds {
        let valid = &corpus[usize::try_from(seed).unwrap() % corpus.len()];
        accepted += u64::from(stored::run(&stored::mutate(valid, seed)));
        stored::run(&seeded(seed, 200));
    }
    assert!(
        accepted > rounds / 20 && accepted < rounds * 9 / 10,
        "{accepted} of {rounds} are accepted: the mix is off"
    );
}

#[test]
fn requests_to_every_route() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let corpus = corpus("api");
    let mut statuses: BTreeSet<u16> = corpus.iter().map(|data| fuzz_bodies::api::run(&runtime, data)).collect();
    for seed in 0..rounds(3_000) {
        let valid = &corpus[usize::try_from(seed).unwrap() % corpus.len()];
        statuses.insert(fuzz_bodies::api::run(&runtime, &stored::mutate(valid, seed)));
        statuses.insert(fuzz_bodies::api::run(&runtime, &seeded(seed, 40)));
    }
    for expected in [200, 201, 400, 404, 405] {
        assert!(statuses.contains(&expected), "{expected} never came: {statuses:?}");
    }
}

#[test]
fn sessions_of_messages() {
    let target = fuzz_bodies::messages::Target::new();
    corpus("messages").iter().for_each(|data| target.run(data));
    for seed in 0..rounds(300) {
        let mut data = seeded(seed, 400);
        // Short messages, most of them plausible: long ones end the session at once.
        data.chunks_mut(8).for_each(|message| {
            message[1] |= 0x40;
            message[1] &= if seed % 5 == 0 { 0xff } else { 0xc8 };
            message[3] = 4;
        });
        target.run(&data);
    }
}
