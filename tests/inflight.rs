//! A frontend that goes on when its daemon does not: requests in flight at a SIGKILL, which are what its memory and its in-flight
//! region hold at that moment, and another daemon that is given both.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;
#[path = "common/served.rs"]
mod served;
mod vhost_user_support;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use host::EXTENT;
use served::{Daemon, Driver, QUEUES, READ, RING, WRITE};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost_user_support::{Guest, eventually};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

fn asked() -> VhostUserInflight {
    VhostUserInflight::new(0, 0, QUEUES.try_into().unwrap(), RING)
}

fn region_of(frontend: &mut Frontend) -> (VhostUserInflight, File) {
    let (info, file) = frontend.get_inflight_fd(&asked()).unwrap();
    frontend.set_inflight_fd(&info, file.as_raw_fd()).unwrap();
    (info, file)
}

fn copy_of((info, file): &(VhostUserInflight, File)) -> (VhostUserInflight, File) {
    let mut bytes = vec![0; usize::try_from(info.mmap_size).unwrap()];
    file.read_exact_at(&mut bytes, info.mmap_offset).unwrap();
    let copy = tempfile::tempfile_in("/dev/shm").unwrap();
    copy.write_all_at(&bytes, 0).unwrap();
    (VhostUserInflight { mmap_offset: 0, ..*info }, copy)
}

/// Bytes of the part of a queue, as the region says.
fn part(info: &VhostUserInflight) -> u64 {
    info.mmap_size / QUEUES as u64
}

fn marks((info, file): &(VhostUserInflight, File), queue: usize) -> Vec<u16> {
    let mark = |head: &u16| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, part(info) * queue as u64 + 16 + u64::from(*head) * 16).unwrap();
        byte == [1]
    };
    (0..RING).filter(mark).collect()
}

#[test]
fn requests_in_flight_at_a_sigkill_are_given_back_once_each() {
    let first = Daemon::new();
    let mut driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&first);
    let region = region_of(&mut frontend);
    driver.start(&mut frontend, 0);
    // Index 0 and others of one queue, and indirect ones of the other, wait for room; what came between them does not.
    first.host.seen.has_no_room.store(true, Ordering::SeqCst);
    driver.submit(0, 9, READ, 0, 0xee, false);
    driver.submit(0, 0, WRITE, EXTENT, 1, false);
    driver.submit(0, 3, WRITE, 2 * EXTENT, 2, false);
    driver.submit(0, 6, READ, 512, 0xee, false);
    driver.submit(1, 0, WRITE, 3 * EXTENT, 3, true);
    driver.submit(1, 5, READ, 1024, 0xee, true);
    driver.submit(1, 7, WRITE, 4 * EXTENT, 4, true);
    driver.kick();
    assert_eq!((driver.wait(0, 2), driver.wait(1, 1)), (vec![6, 9], vec![5]));
    // One that was given back is used again, and waits, too.
    driver.submit(0, 6, WRITE, 5 * EXTENT, 5, false);
    driver.kick();
    eventually("they are marked", || (marks(&region, 0), marks(&region, 1)) == (vec![0, 3, 6], vec![0, 7]));

    // SIGKILL. The guest goes on alone.
    let (mut driver, region) = (driver.snapshot(), copy_of(&region));
    driver.submit(0, 12, READ, 0, 0xee, false);
    driver.submit(1, 5, WRITE, 6 * EXTENT, 6, true);

    let second = Daemon::new();
    let mut frontend = driver.connect(&second);
    frontend.set_inflight_fd(&region.0, region.1.as_raw_fd()).unwrap();
    driver.start(&mut frontend, 1);
    driver.kick();
    assert_eq!((driver.wait(0, 4), driver.wait(1, 3)), (vec![0, 3, 6, 12], vec![0, 5, 7]));
    for (queue, head) in [(0, 0), (0, 3), (0, 6), (0, 12), (1, 0), (1, 5), (1, 7)] {
        assert!(driver.is_ok(queue, head), "queue {queue}, head {head}");
    }
    assert_eq!((marks(&region, 0), marks(&region, 1)), (vec![], vec![]));
    // What they wrote is there, read through the same rings.
    for extent in 1..7u16 {
        driver.submit(0, 20, READ, u64::from(extent) * EXTENT, 0xee, false);
        driver.kick();
        assert_eq!(driver.wait(0, 1), [20]);
        let data = driver.guest.read_memory(Driver::data(0, 20), 512);
        assert_eq!(data, [u8::try_from(extent).unwrap(); 512]);
    }
    // Stopped cleanly, the rings are where the guest thinks, and begin there with the same region.
    for queue in 0..QUEUES {
        assert_eq!(frontend.get_vring_base(queue).unwrap(), u32::from(driver.available[queue]));
    }
    first.host.seen.has_no_room.store(false, Ordering::SeqCst);
    assert!(first.server.shut_down(Duration::from_secs(30)));
    assert!(second.server.shut_down(Duration::from_secs(30)));
}

#[test]
fn a_queue_stopped_cleanly_begins_where_the_frontend_says_with_the_same_region() {
    stopped_cleanly(false);
}

#[test]
fn so_does_one_that_was_disabled_before() {
    stopped_cleanly(true);
}

fn stopped_cleanly(disabled: bool) {
    let daemon = Daemon::new();
    let mut driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&daemon);
    let region = region_of(&mut frontend);
    driver.start(&mut frontend, 0);
    for head in [0, 3, 6] {
        driver.submit(0, head, WRITE, 0, 1, false);
    }
    driver.kick();
    assert_eq!(driver.wait(0, 3), [0, 3, 6]);
    if disabled {
        (0..QUEUES).for_each(|queue| frontend.set_vring_enable(queue, false).unwrap());
    }
    assert_eq!((frontend.get_vring_base(0).unwrap(), frontend.get_vring_base(1).unwrap()), (3, 0));
    // The guest's driver begins anew, with empty rings: the used index is another one than in the region.
    let ring = driver.ring(0);
    [ring.available, ring.used].iter().for_each(|at| driver.guest.write_memory(*at, &[0; 4]));
    (driver.available, driver.seen) = ([0; QUEUES], [0; QUEUES]);
    frontend.set_inflight_fd(&region.0, region.1.as_raw_fd()).unwrap();
    driver.start(&mut frontend, 0);
    driver.submit(0, 6, READ, 0, 0xee, false);
    driver.kick();
    assert_eq!(driver.wait(0, 1), [6]);
    assert_eq!(driver.guest.read_memory(Driver::data(0, 6), 512), [1; 512]);
    assert!(daemon.server.shut_down(Duration::from_secs(30)));
}

#[test]
fn a_region_that_is_nonsense_breaks_the_rings_and_nothing_else() {
    // Offsets in the part of queue 0, and what is written there.
    let nonsense: [(u64, &[u8]); 6] =
        [(8, &[2, 0]), (10, &[32, 0]), (14, &[1, 0]), (14, &[0, 128]), (16, &[7]), (12, &[255, 255, 255, 255])];
    let daemon = Daemon::new();
    for (offset, bytes) in nonsense {
        let mut driver = Driver::new(Guest::new());
        let mut frontend = driver.connect(&daemon);
        let region = frontend.get_inflight_fd(&asked()).unwrap();
        // As if it had been used.
        for queue in 0..QUEUES as u64 {
            region.1.write_all_at(&[1, 0, 64, 0], queue * part(&region.0) + 8).unwrap();
        }
        region.1.write_all_at(bytes, offset).unwrap();
        let error = EventFd::new(EFD_NONBLOCK).unwrap();
        frontend.set_vring_err(0, &error).unwrap();
        frontend.set_inflight_fd(&region.0, region.1.as_raw_fd()).unwrap();
        driver.start(&mut frontend, 0);
        eventually("the frontend is told", || error.read().is_ok());
        // The other queue works.
        driver.submit(1, 0, READ, 0, 0xee, true);
        driver.kick();
        assert_eq!(driver.wait(1, 1), [0]);
        drop(frontend);
        eventually("it is gone", || daemon.server.status(daemon.vhd.id()).unwrap().frontend.is_none());
    }
    assert!(daemon.server.shut_down(Duration::from_secs(30)));
}

/// The region is in a file of the frontend's own, which it makes shorter.
#[test]
fn a_region_that_is_taken_away_breaks_the_rings_and_nothing_else() {
    let daemon = Daemon::new();
    let mut driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&daemon);
    let (info, file) = copy_of(&frontend.get_inflight_fd(&asked()).unwrap());
    let error = EventFd::new(EFD_NONBLOCK).unwrap();
    frontend.set_vring_err(0, &error).unwrap();
    frontend.set_inflight_fd(&info, file.as_raw_fd()).unwrap();
    driver.start(&mut frontend, 0);
    driver.submit(0, 0, WRITE, 0, 7, false);
    driver.kick();
    assert_eq!(driver.wait(0, 1), [0]);
    file.set_len(0).unwrap();
    driver.submit(0, 3, READ, 0, 0, false);
    driver.kick();
    eventually("the frontend is told", || error.read().is_ok());
    drop(frontend);
    eventually("it is gone", || daemon.server.status(daemon.vhd.id()).unwrap().frontend.is_none());
    // With another region, the device is as good as new.
    let mut driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&daemon);
    let region = region_of(&mut frontend);
    driver.start(&mut frontend, 0);
    driver.submit(0, 0, READ, 0, 0, false);
    driver.kick();
    assert_eq!(driver.wait(0, 1), [0]);
    assert_eq!(driver.guest.read_memory(Driver::data(0, 0), 512), [7; 512]);
    assert!(marks(&region, 0).is_empty());
    assert!(daemon.server.shut_down(Duration::from_secs(30)));
}

#[test]
fn regions_that_cannot_be_end_the_connection() {
    let daemon = Daemon::new();
    let driver = Driver::new(Guest::new());
    let mut count = 0;
    let mut refused = |act: &dyn Fn(&mut Frontend)| {
        let mut frontend = driver.connect(&daemon);
        act(&mut frontend);
        count += 1;
        eventually("it is gone", || {
            let status = daemon.server.status(daemon.vhd.id()).unwrap();
            status.frontend.is_none() && status.faults == count
        });
    };
    let get = |queues, size| {
        move |frontend: &mut Frontend| {
            let _ = frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, queues, size));
        }
    };
    refused(&get(3, RING));
    refused(&get(u16::MAX, RING));
    refused(&get(1, 1025));
    refused(&get(1, u16::MAX));
    let set = |change: fn(&mut VhostUserInflight)| {
        move |frontend: &mut Frontend| {
            let (mut info, file) = frontend.get_inflight_fd(&asked()).unwrap();
            change(&mut info);
            let _ = frontend.set_inflight_fd(&info, file.as_raw_fd());
        }
    };
    refused(&set(|info| info.mmap_size -= 1));
    refused(&set(|info| info.mmap_offset = 1 << 40));
    refused(&set(|info| info.queue_size = 1024));
    refused(&set(|info| info.num_queues = 3));
    refused(&|frontend| {
        let (info, _) = frontend.get_inflight_fd(&asked()).unwrap();
        let _ = frontend.set_inflight_fd(&info, driver.guest.kick.as_raw_fd());
    });
    // A region for fewer queues than are started.
    refused(&|frontend| {
        let (info, file) = frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 1, RING)).unwrap();
        let _ = frontend.set_inflight_fd(&info, file.as_raw_fd());
        driver.guest.set_ring(frontend, 1, RING, 0);
        let _ = frontend.set_vring_kick(1, &driver.guest.kick);
        let _ = frontend.set_vring_enable(1, true);
    });
    assert!(daemon.server.shut_down(Duration::from_secs(30)));
}
