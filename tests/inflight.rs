//! A frontend that goes on when its daemon does not: requests in flight at a SIGKILL, which are what its memory and its in-flight
//! region hold at that moment, and another daemon that is given both.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;
mod vhost_user_support;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use host::{EXTENT, Host};
use spanblk::base::ids::{DiskId, ReactorId};
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use spanblk::placement::ReplicaSet;
use spanblk::reactor::handle::ReactorHandle;
use spanblk::reactor::messages::{ReactorMessage, RingAddresses};
use spanblk::shared::VhdState;
use spanblk::vhost_user::{Reactors, SocketSettings, VhdEndpoint, VhostUserServer};
use vhost::VhostBackend;
use vhost::vhost_user::message::VhostUserInflight;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost_user_support::{Events, Guest, eventually};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const READ: u32 = 0;
const WRITE: u32 = 1;
const QUEUES: usize = 2;
const RING: u16 = 64;

/// A descriptor: address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

const NEXT: u16 = 1;
const DEVICE_WRITES: u16 = 2;
const INDIRECT: u16 = 4;

struct Ways(Vec<ReactorHandle>);

impl Reactors for Ways {
    fn count(&self) -> u16 {
        u16::try_from(self.0.len()).unwrap()
    }

    fn busy_ns(&self) -> Vec<u64> {
        vec![0; self.0.len()]
    }

    fn send(&self, reactor: ReactorId, message: ReactorMessage) {
        self.0[usize::from(reactor.0)].send(message);
    }
}

/// A daemon with one VHD of 8 extents, of which the first is there and the others have to be placed.
struct Daemon {
    server: VhostUserServer,
    host: Host,
    socket: PathBuf,
    vhd: Arc<VhdState>,
    _directory: tempfile::TempDir,
}

impl Daemon {
    fn new() -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::new(directory.path(), 2, 64, 2);
        let vhd = host.vhd(1, 8, &[1]);
        let place = ReplicaSet::single(DiskId(0), SlotIndex(0));
        vhd.map.restore(ExtentIndex(0), place, BlockMask::ALL, Generation(0));
        let ways = Ways(host.reactors.clone());
        let server = VhostUserServer::start(directory.path().join("v"), ways, Arc::new(Events::default())).unwrap();
        let socket = server.add_vhd(VhdEndpoint {
            state: vhd.clone(),
            name: "disk".to_owned(),
            queues: QUEUES.try_into().unwrap(),
            optimal_io_size: EXTENT,
            writeback: true,
            socket: SocketSettings { mode: 0o600, owner: None },
        });
        Daemon { server, host, socket: socket.unwrap(), vhd, _directory: directory }
    }
}

/// A guest's driver: where its requests are in memory, and what it has made available and seen.
struct Driver {
    guest: Guest,
    /// One for each ring: they may be served by different reactors.
    kicks: [EventFd; QUEUES],
    available: [u16; QUEUES],
    seen: [u16; QUEUES],
}

impl Driver {
    fn new(guest: Guest) -> Driver {
        let kicks = std::array::from_fn(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        Driver { guest, kicks, available: [0; QUEUES], seen: [0; QUEUES] }
    }

    fn data(queue: usize, head: u16) -> u64 {
        0x8_0000 + (queue as u64) * 0x4_0000 + u64::from(head) * 0x1000
    }

    /// Where a ring is: not at guest address 0, where none can be.
    fn ring(&self, queue: usize) -> RingAddresses {
        self.guest.ring_addresses(queue + 1, RING)
    }

    fn header(queue: usize, head: u16) -> u64 {
        queue as u64 * 0x1_0000 + 0x1_8000 + u64::from(head) * 32
    }

    fn descriptors(at: u64, guest: &Guest, descriptors: &[Descriptor]) {
        let bytes = descriptors.iter().flat_map(|(address, len, flags, next)| {
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
        });
        guest.write_memory(at, &bytes.collect::<Vec<_>>());
    }

    /// Makes a request of 512 bytes available, whose descriptors begin at `head`.
    fn submit(&mut self, queue: usize, head: u16, kind: u32, offset: u64, fill: u8, indirect: bool) {
        let ring = self.ring(queue);
        let (header, data) = (Driver::header(queue, head), Driver::data(queue, head));
        let words = [&kind.to_le_bytes()[..], &[0; 4], &(offset / 512).to_le_bytes(), &[0xff]].concat();
        self.guest.write_memory(header, &words);
        self.guest.write_memory(data, &[fill; 512]);
        let flags = if kind == READ { DEVICE_WRITES } else { 0 };
        let first = if indirect { 0 } else { head };
        let chain =
            [(header, 16, NEXT, first + 1), (data, 512, NEXT | flags, first + 2), (header + 16, 1, DEVICE_WRITES, 0)];
        if indirect {
            let table = data + 0x800;
            Driver::descriptors(table, &self.guest, &chain);
            Driver::descriptors(ring.descriptors + u64::from(head) * 16, &self.guest, &[(table, 48, INDIRECT, 0)]);
        } else {
            Driver::descriptors(ring.descriptors + u64::from(head) * 16, &self.guest, &chain);
        }
        let place = ring.available + 4 + u64::from(self.available[queue] % RING) * 2;
        self.guest.write_memory(place, &head.to_le_bytes());
        self.available[queue] += 1;
        self.guest.write_memory(ring.available + 2, &self.available[queue].to_le_bytes());
    }

    fn used(&self, queue: usize) -> u16 {
        let at = self.ring(queue).used + 2;
        u16::from_le_bytes(self.guest.read_memory(at, 2).try_into().unwrap())
    }

    /// The heads that were given back since the last call.
    fn take(&mut self, queue: usize) -> Vec<u16> {
        let used = self.used(queue);
        let ring = self.ring(queue).used;
        let heads = (self.seen[queue]..used).map(|index| {
            let bytes = self.guest.read_memory(ring + 4 + u64::from(index % RING) * 8, 4);
            u16::try_from(u32::from_le_bytes(bytes.try_into().unwrap())).unwrap()
        });
        let heads = heads.collect();
        self.seen[queue] = used;
        heads
    }

    /// Waits for so many more, and takes them in the order of their heads.
    fn wait(&mut self, queue: usize, count: u16) -> Vec<u16> {
        eventually("the requests are given back", || self.used(queue) == self.seen[queue] + count);
        let mut heads = self.take(queue);
        heads.sort_unstable();
        heads
    }

    /// Whether a request was answered with success.
    fn is_ok(&self, queue: usize, head: u16) -> bool {
        self.guest.read_memory(Driver::header(queue, head) + 16, 1) == [0]
    }

    /// A frontend without rings.
    fn connect(&self, daemon: &Daemon) -> Frontend {
        let frontend = self.guest.negotiate(&daemon.socket);
        frontend.set_features(self.guest.features).unwrap();
        frontend.set_mem_table(&self.guest.regions()).unwrap();
        frontend
    }

    /// Starts the rings; where they begin is nonsense if the in-flight region knows better.
    fn start(&self, frontend: &mut Frontend, base: u16) {
        for queue in 0..QUEUES {
            frontend.set_vring_base(queue, base).unwrap();
            let at = self.guest.user_base() + self.ring(queue).descriptors;
            self.guest.set_ring_at(frontend, queue, RING, at);
            frontend.set_vring_call(queue, &self.guest.call).unwrap();
            frontend.set_vring_kick(queue, &self.kicks[queue]).unwrap();
        }
        for queue in 0..QUEUES {
            frontend.set_vring_enable(queue, true).unwrap();
        }
        frontend.get_features().unwrap();
    }

    fn kick(&self) {
        self.kicks.iter().for_each(|kick| kick.write(1).unwrap());
    }

    /// What a SIGKILL would leave of it at this moment.
    fn snapshot(&self) -> Driver {
        let copy = Driver { available: self.available, seen: self.seen, ..Driver::new(Guest::new()) };
        copy.guest.write_memory(0, &self.guest.read_memory(0, usize::try_from(Guest::FIRST_LEN).unwrap()));
        copy
    }
}

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
