//! A copy of a guest's memory that follows the dirty log while requests go on.

use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::*;

/// Requests at the same time.
const SLOTS: u16 = 8;

/// Used rings and status bytes are on pages that the driver does not write to but for what the device overwrites.
const USED: u64 = 0x3_0000;
const STATUS: u64 = 0x4_0000;
const DATA: u64 = 0x8_0000;

/// Bytes of the disk that are read: each 8 say where they are.
const CONTENT: u64 = 64 << 10;

fn used_ring(queue: usize) -> u64 {
    USED + queue as u64 * 0x1000
}

/// Starts the rings again, with used rings elsewhere.
fn move_used_rings(logged: &Logged) {
    for queue in 0..QUEUES {
        let base = logged.frontend.get_vring_base(queue).unwrap();
        let (ring, user) = (logged.driver.ring(queue), logged.driver.guest.user_base());
        let index = u16::try_from(base).unwrap();
        logged.driver.guest.write_memory(used_ring(queue) + 2, &index.to_le_bytes());
        let addresses = RingAddresses {
            descriptors: user + ring.descriptors,
            available: user + ring.available,
            used: user + used_ring(queue),
        };
        Guest::address(&logged.frontend, queue, RING, addresses, Some(used_ring(queue)));
        logged.frontend.set_vring_kick(queue, &logged.driver.kicks[queue]).unwrap();
    }
    logged.frontend.get_features().unwrap();
}

/// Makes a read available. Its buffer and status byte have other content until it is done.
fn submit(driver: &mut Driver, slot: u16, offset: u64, (data, len): (u64, u32)) {
    let (ring, header, status) = (driver.ring(0), Driver::header(0, slot * 4), STATUS + u64::from(slot));
    driver.guest.write_memory(data, &vec![0xa5; usize::try_from(len).unwrap()]);
    driver.guest.write_memory(status, &[0xff]);
    driver.guest.write_memory(header, &[&[0; 8][..], &(offset / 512).to_le_bytes()].concat());
    let first = slot * 4;
    let chain =
        [(header, 16, NEXT, first + 1), (data, len, NEXT | DEVICE_WRITES, first + 2), (status, 1, DEVICE_WRITES, 0)];
    Driver::descriptors(ring.descriptors + u64::from(first) * 16, &driver.guest, &chain);
    let place = ring.available + 4 + u64::from(driver.available[0] % RING) * 2;
    driver.guest.write_memory(place, &first.to_le_bytes());
    driver.available[0] += 1;
    driver.guest.write_memory(ring.available + 2, &driver.available[0].to_le_bytes());
}

/// Rounds of reads to places that are used again and again, each of another part of the disk.
fn read_again_and_again(driver: &mut Driver) {
    let mut rng = spanblk::base::rng::Rng::new(1);
    for _ in 0..300 {
        for slot in 0..SLOTS {
            let at = DATA + u64::from(slot) * 0x4000 + rng.below(4) * 0x800;
            let len = 512 * (1 + rng.below(16));
            let offset = rng.below((CONTENT - len) / 512) * 512;
            submit(driver, slot, offset, (at, u32::try_from(len).unwrap()));
        }
        driver.kicks[0].write(1).unwrap();
        let shown = || driver.guest.read_memory(used_ring(0) + 2, 2) == driver.available[0].to_le_bytes();
        while !shown() {
            std::thread::yield_now();
        }
        let statuses = driver.guest.read_memory(STATUS, SLOTS.into());
        assert!(statuses.iter().all(|status| *status == 0), "{statuses:?}");
    }
}

/// What a migration copies: all of memory once, then page by page what the log says, while requests go on; the last time after the rings
/// were stopped. Nothing that the device has written may be missing at the other side.
#[test]
fn a_copy_that_follows_the_log_is_the_same_in_the_end() {
    let mut logged = Logged::new();
    let memory_len = usize::try_from(Guest::FIRST_LEN).unwrap();
    let content: Vec<u8> = (0..CONTENT / 8).flat_map(|word| (word * 8).to_le_bytes()).collect();
    logged.driver.guest.write_memory(DATA, &content);
    logged.run(WRITE, 0, DATA, u32::try_from(CONTENT).unwrap());
    move_used_rings(&logged);
    logged.driver.guest.write_memory(STATUS, &[0xff; SLOTS as usize]);
    let source = logged.driver.guest.memory_file();
    let log = logged.log.try_clone().unwrap();
    let done = AtomicBool::new(false);
    let begun = read_all(&source, memory_len);
    let mut copy = std::thread::scope(|scope| {
        let copier = scope.spawn(|| {
            let mut copy = begun.clone();
            let mut rounds = 0_u64;
            while !done.load(Ordering::SeqCst) {
                copy_marked(&log, &source, &mut copy);
                rounds += 1;
            }
            assert!(rounds > 3, "it was copied while requests went on");
            copy
        });
        read_again_and_again(&mut logged.driver);
        for queue in 0..QUEUES {
            logged.frontend.get_vring_base(queue).unwrap();
        }
        done.store(true, Ordering::SeqCst);
        copier.join().unwrap()
    });
    copy_marked(&log, &source, &mut copy);
    let now = read_all(&source, memory_len);
    // What the driver wrote itself is the VMM's business: headers, descriptors, the available ring.
    let driver_only: BTreeSet<u64> = (0..QUEUES)
        .flat_map(|queue| {
            let ring = logged.driver.ring(queue);
            let headers = pages(Driver::header(queue, 0), 64 * 32);
            pages(ring.descriptors, ring.used - ring.descriptors).into_iter().chain(headers)
        })
        .collect();
    let differ = |copy: &[u8]| -> Vec<u64> {
        let page = |bytes: &[u8], page: u64| bytes[usize::try_from(page * 4096).unwrap()..][..4096].to_vec();
        let differs = |at: &u64| !driver_only.contains(at) && page(copy, *at) != page(&now, *at);
        (0..Guest::FIRST_LEN / 4096).filter(differs).collect()
    };
    let changed = differ(&begun);
    assert!(
        changed.len() > 25 && [used_ring(0) / 4096, STATUS / 4096].iter().all(|at| changed.contains(at)),
        "{changed:x?}"
    );
    let missed = differ(&copy);
    assert!(missed.is_empty(), "pages {missed:x?} are not what they are at the source");
    assert!(logged.daemon.server.shut_down(Duration::from_secs(30)));
}

fn read_all(file: &File, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, 0).unwrap();
    bytes
}

/// Takes the bits out of the log, one byte at a time as a VMM takes words, and copies their pages.
fn copy_marked(log: &File, source: &File, copy: &mut [u8]) {
    let log = FileOffset::new(log.try_clone().unwrap(), 0);
    let map = MmapRegion::<()>::from_file(log, usize::try_from(LOG_LEN).unwrap()).unwrap();
    for at in 0..copy.len() / 4096 / 8 {
        let bits = map.get_atomic_ref::<AtomicU8>(at).unwrap().swap(0, Ordering::AcqRel);
        for page in (0..8).filter(|bit| bits >> bit & 1 == 1).map(|bit| at * 8 + bit) {
            source.read_exact_at(&mut copy[page * 4096..][..4096], page as u64 * 4096).unwrap();
        }
    }
}
