//! Two guests on one daemon and the same disks: one sends garbage, rings full of garbage, and takes its memory away; the other
//! verifies what it writes, and notices nothing.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod daemon_host;
mod vhost_user_support;

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use daemon_host::{pattern, read};
use spanblk::base::rng::Rng;
use spanblk::cli::blk_client::BlkClient;
use vhost_user_support::{Guest, raw};

const ROUNDS: u64 = 120;
const LEN: usize = 16 << 10;
const SIZE: u64 = 16 << 20;

#[test]
fn a_guest_that_verifies_notices_nothing_of_one_that_attacks() {
    let mut host = daemon_host::Host::with_pool(2);
    host.serve(&[], &["d0.img", "d1.img"]);
    for vhd in ["good", "evil"] {
        host.ok(&["vhd", "create", vhd, "--size", "16MiB", "--layout", "spanned", "--queues", "2"]);
    }
    let pid = host.pid();
    let good = host.attach("good").unwrap();
    let socket = host.path("v/evil.sock");
    let (stop, verified) = (AtomicBool::new(false), AtomicU64::new(0));
    let rounds = std::env::var("SPANBLK_FUZZ_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    std::thread::scope(|scope| {
        let verifier = scope.spawn(|| verify(good, &stop, &verified));
        (0..rounds).for_each(|seed| attack(&socket, seed));
        stop.store(true, Ordering::SeqCst);
        verifier.join().unwrap();
    });
    assert!(verified.load(Ordering::SeqCst) > 50, "the verifier had its turns");
    assert_eq!(host.pid(), pid);
    let metrics = host.json(&["vhd", "show", "evil"]);
    assert_eq!(metrics["name"], "evil", "the daemon lives");
    assert!(host.log().contains("VHD evil: "), "what the attacker did is told");
    assert!(!host.log().contains("VHD good: a message"), "{}", host.log());
    // The attacker's disk is whole, too: another frontend can use it.
    let mut client = host.attach_soon("evil");
    client.write_at(0, &pattern(7, LEN)).unwrap();
    client.flush().unwrap();
    assert!(read(&mut client, 0, LEN) == pattern(7, LEN));
    drop(client);
    assert_eq!(host.json(&["check"])["consistent"], true);
    host.stop();
}

/// Writes, flushes and reads back at random places; all of them again at the end.
fn verify(mut client: BlkClient, stop: &AtomicBool, verified: &AtomicU64) {
    let mut rng = Rng::new(1);
    let places = usize::try_from(SIZE).unwrap() / LEN;
    let mut written = vec![0; places];
    let bytes = |seed: u64| if seed == 0 { vec![0; LEN] } else { pattern(seed, LEN) };
    let mut count = 0;
    while !stop.load(Ordering::SeqCst) {
        let place = rng.index(places);
        let offset = (place * LEN) as u64;
        assert!(read(&mut client, offset, LEN) == bytes(written[place]), "at {offset}");
        count += 1;
        written[place] = count;
        client.write_at(offset, &bytes(count)).unwrap();
        if rng.chance(1, 8) {
            client.flush().unwrap();
        }
        verified.store(count, Ordering::SeqCst);
    }
    for (place, seed) in written.into_iter().enumerate() {
        assert!(read(&mut client, (place * LEN) as u64, LEN) == bytes(seed), "place {place} at the end");
    }
}

/// One session of the attacker.
fn attack(socket: &Path, seed: u64) {
    let mut rng = Rng::new(seed);
    let guest = Guest::new();
    if seed.is_multiple_of(3) {
        let stream = UnixStream::connect(socket).unwrap();
        return raw::random_session(&stream, &guest, &mut rng);
    }
    // Rings that a driver could have set up; what is in them, none would.
    let _frontend = guest.start(socket, 2);
    for _ in 0..4 {
        garbage_in_rings(&guest, &mut rng);
        guest.kick.write(1).unwrap();
        std::thread::sleep(Duration::from_millis(rng.below(4)));
    }
    if seed % 3 == 2 {
        // Rings, headers and data are gone while requests are under way.
        guest.truncate_memory(0x1000 * rng.below(20));
        guest.kick.write(1).unwrap();
        std::thread::sleep(Duration::from_millis(rng.below(4)));
    }
}

/// Chains of plausible and of random descriptors, and a ring that says that all of them are available.
fn garbage_in_rings(guest: &Guest, rng: &mut Rng) {
    for queue in 0..2 {
        let ring = guest.ring_addresses(queue, 64);
        let mut table = vec![0; 64 * 16];
        if rng.chance(1, 3) {
            rng.fill(&mut table);
        } else {
            for entry in table.chunks_exact_mut(16) {
                let address = if rng.chance(1, 10) { rng.next_u64() } else { rng.below(Guest::FIRST_LEN) };
                let len = u32::try_from([16, 512, 4096, 1, 1 << 20][rng.index(5)]).unwrap();
                let flags = u16::try_from(rng.below(8)).unwrap();
                let next = u16::try_from(rng.below(70)).unwrap();
                entry[..8].copy_from_slice(&address.to_le_bytes());
                entry[8..12].copy_from_slice(&len.to_le_bytes());
                entry[12..14].copy_from_slice(&flags.to_le_bytes());
                entry[14..].copy_from_slice(&next.to_le_bytes());
            }
        }
        guest.write_memory(ring.descriptors, &table);
        let mut available = vec![0; 4 + 2 * 64];
        rng.fill(&mut available);
        if rng.chance(4, 5) {
            // Not more than there can be, or the ring is broken at once; heads that exist.
            available[2..4].copy_from_slice(&u16::try_from(rng.below(64)).unwrap().to_le_bytes());
            available[4..].chunks_exact_mut(2).for_each(|head| {
                head[0] &= 63;
                head[1] = 0;
            });
        }
        guest.write_memory(ring.available, &available);
        // Headers that make some of it a request.
        let mut header = [[0_u32, 1, 4, 8, 11, 13][rng.index(6)].to_le_bytes().to_vec(), vec![0; 12]].concat();
        header[8] = u8::try_from(rng.below(256)).unwrap();
        guest.write_memory(rng.below(Guest::FIRST_LEN - 16), &header);
    }
}
