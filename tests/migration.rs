//! The dirty log on real reactors: what a guest's memory has been changed by, a page at a time; and a guest that moves from one
//! frontend to another.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "migration/copy.rs"]
mod copy;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;
#[path = "common/served.rs"]
mod served;
mod vhost_user_support;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use host::EXTENT;
use served::{DEVICE_WRITES, Daemon, Driver, NEXT, QUEUES, READ, RING, WRITE};
use spanblk::reactor::messages::RingAddresses;
use spanblk::virtio::features;
use vhost::vhost_user::message::{VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vhost_user_support::{Guest, eventually, raw};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const GET_ID: u32 = 8;

/// Bytes of a log that has a bit for each page of the guest.
const LOG_LEN: u64 = 4096;

/// Where writes to the used rings are logged: by another address than they have, which is how it shows whose address counts.
const USED_LOG: u64 = 0x500_0000;

/// A guest whose frontend logs.
struct Logged {
    daemon: Daemon,
    driver: Driver,
    frontend: Frontend,
    log: File,
    features: u64,
}

impl Logged {
    fn new() -> Logged {
        let daemon = Daemon::new();
        let driver = Driver::new(Guest::new());
        let mut frontend = driver.connect(&daemon);
        driver.start(&mut frontend, 0);
        let log = driver.guest.log(&mut frontend, LOG_LEN);
        let features = driver.guest.features | features::LOG_ALL;
        frontend.set_features(features).unwrap();
        let mut logged = Logged { daemon, driver, frontend, log, features };
        logged.log_used(true);
        logged.take();
        logged
    }

    fn log_used(&mut self, on: bool) {
        self.log_used_at(|_, queue| on.then_some(USED_LOG + queue as u64 * 0x1_0000));
    }

    /// Says by which address writes to the used ring of each queue are logged, if they are.
    fn log_used_at(&mut self, at: impl Fn(&Driver, usize) -> Option<u64>) {
        for queue in 0..QUEUES {
            let (ring, base) = (self.driver.ring(queue), self.driver.guest.user_base());
            let user = RingAddresses {
                descriptors: base + ring.descriptors,
                available: base + ring.available,
                used: base + ring.used,
            };
            Guest::address(&self.frontend, queue, RING, user, at(&self.driver, queue));
        }
        self.frontend.get_features().unwrap();
    }

    /// The pages that are marked, and clears them.
    fn take(&mut self) -> BTreeSet<u64> {
        let mut bytes = vec![0; usize::try_from(LOG_LEN).unwrap()];
        self.log.read_exact_at(&mut bytes, 0).unwrap();
        self.log.write_all_at(&vec![0; bytes.len()], 0).unwrap();
        (0..LOG_LEN * 8).filter(|page| bytes[usize::try_from(page / 8).unwrap()] >> (page % 8) & 1 == 1).collect()
    }

    /// Runs one request of queue 0 with data at a guest address; the pages that it marks, without those that every request does.
    fn run(&mut self, kind: u32, offset: u64, data: u64, len: u32) -> BTreeSet<u64> {
        self.driver.submit_at(0, 0, kind, offset, (data, len), false);
        self.driver.kicks[0].write(1).unwrap();
        assert_eq!(self.driver.wait(0, 1), [0]);
        let mut marked = self.settled();
        let status = (Driver::header(0, 0) + 16) / 4096;
        for page in [status, USED_LOG / 4096] {
            assert!(marked.remove(&page), "page {page:#x} is marked by every request");
        }
        marked
    }

    /// What is marked when the reactor has done all that belongs to a completion: the guest sees the used index a moment before.
    fn settled(&mut self) -> BTreeSet<u64> {
        // The same features again: answered once the reactor knows.
        self.set_features(self.features);
        self.take()
    }

    fn set_features(&mut self, features: u64) {
        self.features = features;
        self.frontend.set_features(features).unwrap();
        self.frontend.get_features().unwrap();
    }

    /// A read of queue 1; nothing else is asked of that queue.
    fn read_on_the_other(&mut self) {
        self.driver.submit_at(1, 0, READ, 0, (0x410_0000, 512), false);
        self.driver.kicks[1].write(1).unwrap();
        self.driver.wait(1, 1);
    }
}

fn pages(address: u64, len: u64) -> BTreeSet<u64> {
    (address / 4096..(address + len).div_ceil(4096)).collect()
}

#[test]
fn exactly_the_pages_that_were_written_are_marked() {
    let mut logged = Logged::new();
    // Written and never written, aligned and not, in both regions, one page and many.
    for (offset, data, len) in [
        (0, 0x8_0000, 512),
        (0, 0x8_0e00, 1024),
        (0, 0x8_0fff, 512),
        (4096, 0x9_0010, 64 << 10),
        (0, 0x410_0000, 256 << 10),
        (EXTENT, 0x8_0000, 4096),
        (3 * EXTENT + 512, 0x411_0801, 32 << 10),
        (EXTENT - 4096, 0x412_0000, 8192),
    ] {
        let marked = logged.run(READ, offset, data, len);
        assert_eq!(marked, pages(data, len.into()), "{len} bytes of byte {offset} to {data:#x}");
    }
    // Twenty bytes of an identifier, whatever the length of the buffer.
    assert_eq!(logged.run(GET_ID, 0, 0x413_0ff8, 4096), pages(0x413_0ff8, 20));
    assert_eq!(logged.run(WRITE, 0, 0x8_0000, 64 << 10), BTreeSet::new());
    assert_eq!(logged.run(0x77, 0, 0x8_0000, 512), BTreeSet::new(), "refused, and its status byte marked");
    assert!(logged.daemon.server.shut_down(Duration::from_secs(30)));
}

#[test]
fn logging_ends_with_log_all_and_the_used_ring_is_logged_only_on_demand() {
    let mut logged = Logged::new();
    logged.log_used(false);
    logged.take();
    logged.read_on_the_other();
    assert_eq!(logged.settled(), [0x4100, (Driver::header(1, 0) + 16) / 4096].into());
    logged.log_used(true);
    logged.set_features(logged.driver.guest.features);
    logged.take();
    logged.read_on_the_other();
    assert_eq!(logged.settled(), BTreeSet::new());
    logged.set_features(logged.driver.guest.features | features::LOG_ALL);
    assert_eq!(logged.run(READ, 0, 0x410_0000, 512), [0x4100].into());
    assert!(logged.daemon.server.shut_down(Duration::from_secs(30)));
}

#[test]
fn a_log_that_is_replaced_is_written_no_more() {
    let mut logged = Logged::new();
    let later = logged.driver.guest.log(&mut logged.frontend, LOG_LEN);
    let earlier = std::mem::replace(&mut logged.log, later);
    assert_eq!(logged.run(READ, 0, 0x410_0000, 512), [0x4100].into());
    let mut bytes = vec![0xff; usize::try_from(LOG_LEN).unwrap()];
    earlier.read_exact_at(&mut bytes, 0).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0));
    assert!(logged.daemon.server.shut_down(Duration::from_secs(30)));
}

#[test]
fn the_frontend_is_told_that_the_log_has_changed_if_it_wants() {
    let mut logged = Logged::new();
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    // With and without an answer; what is no eventfd does no harm.
    logged.frontend.set_log_fd(logged.log.as_raw_fd()).unwrap();
    logged.run(READ, 0, 0x410_0000, 512);
    logged.frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    logged.frontend.set_log_fd(call.as_raw_fd()).unwrap();
    logged.frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
    let _ = call.read();
    logged.run(READ, 0, 0x410_0000, 512);
    eventually("it is told", || call.read().is_ok());
    logged.set_features(logged.driver.guest.features);
    logged.settled();
    let _ = call.read();
    logged.read_on_the_other();
    logged.settled();
    assert!(call.read().is_err(), "nothing is logged");
    // One with a body is refused.
    raw::send(&logged.frontend, raw::SET_LOG_FD, &[0; 8], &[call.as_raw_fd()]);
    assert!(logged.frontend.get_features().is_err());
    assert!(logged.daemon.server.shut_down(Duration::from_secs(30)));
}

/// Breaks the rings of a frontend by its log; then another frontend is served as if nothing had been.
fn breaks_by(spoil: impl FnOnce(&mut Logged), data: u64, is_told: bool) {
    let mut logged = Logged::new();
    let error = EventFd::new(EFD_NONBLOCK).unwrap();
    logged.frontend.set_vring_err(0, &error).unwrap();
    logged.frontend.get_features().unwrap();
    spoil(&mut logged);
    logged.driver.submit_at(0, 0, READ, 0, (data, 512), false);
    logged.driver.kick();
    eventually("the frontend is told", || error.read().is_ok());
    if is_told {
        let status = logged.driver.guest.read_memory(Driver::header(0, 0) + 16, 1);
        assert_eq!(status, [1], "an error");
        let base = logged.frontend.get_vring_base(0);
        assert!(base.is_err(), "a copy by the log is not what the guest has here");
    }
    let Logged { daemon, frontend, .. } = logged;
    drop(frontend);
    eventually("it is gone", || daemon.server.status(daemon.vhd.id()).unwrap().frontend.is_none());
    let mut driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&daemon);
    driver.start(&mut frontend, 0);
    driver.submit(0, 0, READ, 0, 0xee, false);
    driver.kick();
    assert_eq!(driver.wait(0, 1), [0]);
    assert!(driver.is_ok(0, 0));
    assert!(daemon.server.shut_down(Duration::from_secs(30)));
}

#[test]
fn a_log_that_is_taken_away_breaks_the_rings_and_nothing_else() {
    breaks_by(|logged| logged.log.set_len(0).unwrap(), 0x410_0000, false);
}

#[test]
fn a_log_that_is_too_short_breaks_the_rings_and_nothing_else() {
    let spoil = |logged: &mut Logged| {
        // Or the ring breaks before it has taken the request, as soon as it says whether it wants to be kicked.
        logged.log_used(false);
        logged.log = logged.driver.guest.log(&mut logged.frontend, 512);
    };
    breaks_by(spoil, 0x410_0000, true);
}

#[test]
fn logs_that_cannot_be_end_the_connection() {
    let daemon = Daemon::new();
    let driver = Driver::new(Guest::new());
    let file = tempfile::tempfile_in("/dev/shm").unwrap();
    file.set_len(8192).unwrap();
    let null = File::open("/dev/null").unwrap();
    let impossible = [
        (8193, 0, &file),
        (4096, 8192, &file),
        (4096, u64::MAX - 8192, &file),
        (4096, 100, &file),
        ((1 << 30) + 4096, 0, &file),
        (1 << 62, 0, &file),
        (4096, 0, &null),
    ];
    for (count, (mmap_size, mmap_offset, file)) in (1..).zip(impossible) {
        let mut frontend = driver.connect(&daemon);
        driver.start(&mut frontend, 0);
        let region = VhostUserDirtyLogRegion { mmap_size, mmap_offset, mmap_handle: file.as_raw_fd() };
        assert!(frontend.set_log_base(0, Some(region)).is_err());
        eventually("it is gone", || {
            let status = daemon.server.status(daemon.vhd.id()).unwrap();
            status.frontend.is_none() && status.faults == count
        });
    }
    assert!(daemon.server.shut_down(Duration::from_secs(30)));
}

/// What QEMU does: the source logs, its rings are stopped, memory is copied, the destination goes on where they were; with an
/// in-flight region each, and back again.
#[test]
fn a_guest_moves_from_one_frontend_to_another_and_back() {
    let daemon = Daemon::new();
    let asked = || VhostUserInflight::new(0, 0, QUEUES.try_into().unwrap(), RING);
    let connect = |driver: &Driver| {
        let mut frontend = driver.connect(&daemon);
        let (info, file) = frontend.get_inflight_fd(&asked()).unwrap();
        frontend.set_inflight_fd(&info, file.as_raw_fd()).unwrap();
        frontend
    };
    let mut driver = Driver::new(Guest::new());
    let mut frontend = connect(&driver);
    driver.start(&mut frontend, 0);
    for (turn, extent) in (1..=6_u8).zip(1..) {
        // The destination is there early.
        let waiting = Driver::new(Guest::new());
        let mut destination = connect(&waiting);
        driver.submit(0, 0, WRITE, extent * EXTENT, turn, false);
        driver.submit(1, 3, WRITE, extent * EXTENT + 4096, turn, true);
        driver.kick();
        assert_eq!((driver.wait(0, 1), driver.wait(1, 1)), (vec![0], vec![3]));
        // Available, and maybe not popped, when the source stops.
        driver.submit(0, 6, READ, extent * EXTENT, 0xee, false);
        driver.kick();
        let bases = [0, 1].map(|queue| frontend.get_vring_base(queue).unwrap());
        let moved = driver.snapshot();
        for (queue, base) in bases.iter().enumerate() {
            assert!(*base <= u32::from(moved.available[queue]) && *base >= u32::from(moved.seen[queue]));
        }
        waiting.guest.write_memory(0, &moved.guest.read_memory(0, usize::try_from(Guest::FIRST_LEN).unwrap()));
        let moved = Driver { guest: waiting.guest, ..moved };
        for (queue, base) in bases.iter().enumerate() {
            destination.set_vring_base(queue, u16::try_from(*base).unwrap()).unwrap();
        }
        moved.start_rings(&mut destination);
        drop(frontend);
        (driver, frontend) = (moved, destination);
        driver.kick();
        assert_eq!(driver.wait(0, 1), [6]);
        assert!(driver.is_ok(0, 6));
        assert_eq!(driver.guest.read_memory(Driver::data(0, 6), 512), [turn; 512]);
    }
    assert!(daemon.server.shut_down(Duration::from_secs(30)));
}

/// One that is kept full, given again and again: each write that waits would keep a worker of the kernel.
#[test]
fn an_eventfd_that_is_full_has_no_writes_waiting() {
    let mut logged = Logged::new();
    let full = EventFd::new(0).unwrap();
    full.write(u64::MAX - 1).unwrap();
    for _ in 0..50 {
        logged.frontend.set_log_fd(full.as_raw_fd()).unwrap();
        logged.run(READ, 0, 0x410_0000, 512);
    }
    // What waits goes on now, and adds one each.
    assert_eq!(full.read().unwrap(), u64::MAX - 1);
    std::thread::sleep(Duration::from_millis(300));
    full.write(1).unwrap();
    let waited = full.read().unwrap() - 1;
    assert!(waited <= QUEUES as u64, "{waited} writes");
    assert!(logged.daemon.server.shut_down(Duration::from_secs(30)));
}
