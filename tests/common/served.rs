//! A daemon's vhost-user side on real reactors and disks, and a guest's driver that goes on when the daemon does not.

#![allow(dead_code, clippy::unwrap_used, reason = "a test helper, of which each test uses a part")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use spanblk::base::ids::{DiskId, ReactorId};
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use spanblk::placement::ReplicaSet;
use spanblk::reactor::handle::ReactorHandle;
use spanblk::reactor::messages::{ReactorMessage, RingAddresses};
use spanblk::shared::VhdState;
use spanblk::vhost_user::{Reactors, SocketSettings, VhdEndpoint, VhostUserServer};
use vhost::VhostBackend;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::host::{EXTENT, Host};
use super::vhost_user_support::held::passed_on;
use super::vhost_user_support::{Events, Guest, eventually};

pub const READ: u32 = 0;
pub const WRITE: u32 = 1;
pub const QUEUES: usize = 2;
pub const RING: u16 = 64;

/// A descriptor: address, length, flags, next.
pub type Descriptor = (u64, u32, u16, u16);

pub const NEXT: u16 = 1;
pub const DEVICE_WRITES: u16 = 2;
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
pub struct Daemon {
    pub server: VhostUserServer,
    pub host: Host,
    pub socket: PathBuf,
    pub vhd: Arc<VhdState>,
    _directory: tempfile::TempDir,
}

impl Daemon {
    pub fn new() -> Daemon {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::new(directory.path(), 2, 64, 2);
        let vhd = host.vhd(1, 8, &[1]);
        let place = ReplicaSet::single(DiskId(0), SlotIndex(0));
        vhd.map.restore(ExtentIndex(0), place, BlockMask::ALL, Generation(0));
        let ways = Ways(host.reactors.clone());
        let server = VhostUserServer::start(directory.path().join("v"), ways, Arc::new(Events::default())).unwrap();
        let socket = server.add_vhd(endpoint(vhd.clone()));
        Daemon { server, host, socket: socket.unwrap(), vhd, _directory: directory }
    }
}

impl Daemon {
    /// Another server goes on with everything, as one of another process would, with the reactors from this one on.
    pub fn take_over(&mut self, first_reactor: usize) {
        let held = self.server.hold(Duration::from_secs(10)).unwrap();
        let ways = Ways(self.host.reactors[first_reactor..].to_vec());
        let directory = self.server.directory().to_owned();
        let next = VhostUserServer::start(directory, ways, Arc::new(Events::default())).unwrap();
        for held in held {
            next.add_held(endpoint(self.vhd.clone()), passed_on(held)).unwrap();
        }
        assert!(std::mem::replace(&mut self.server, next).shut_down(Duration::from_secs(30)));
    }
}

fn endpoint(state: Arc<VhdState>) -> VhdEndpoint {
    VhdEndpoint {
        state,
        name: "disk".to_owned(),
        queues: QUEUES.try_into().unwrap(),
        optimal_io_size: EXTENT,
        writeback: true,
        socket: SocketSettings { mode: 0o600, owner: None },
    }
}

/// A guest's driver: where its requests are in memory, and what it has made available and seen.
pub struct Driver {
    pub guest: Guest,
    /// One for each ring: they may be served by different reactors.
    pub kicks: [EventFd; QUEUES],
    pub available: [u16; QUEUES],
    pub seen: [u16; QUEUES],
}

impl Driver {
    pub fn new(guest: Guest) -> Driver {
        let kicks = std::array::from_fn(|_| EventFd::new(EFD_NONBLOCK).unwrap());
        Driver { guest, kicks, available: [0; QUEUES], seen: [0; QUEUES] }
    }

    pub fn data(queue: usize, head: u16) -> u64 {
        0x8_0000 + (queue as u64) * 0x4_0000 + u64::from(head) * 0x1000
    }

    /// Where a ring is: not at guest address 0, where none can be.
    pub fn ring(&self, queue: usize) -> RingAddresses {
        self.guest.ring_addresses(queue + 1, RING)
    }

    pub fn header(queue: usize, head: u16) -> u64 {
        queue as u64 * 0x1_0000 + 0x1_8000 + u64::from(head) * 32
    }

    pub fn descriptors(at: u64, guest: &Guest, descriptors: &[Descriptor]) {
        let bytes = descriptors.iter().flat_map(|(address, len, flags, next)| {
            [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
        });
        guest.write_memory(at, &bytes.collect::<Vec<_>>());
    }

    /// Makes a request of 512 bytes available, whose descriptors begin at `head`.
    pub fn submit(&mut self, queue: usize, head: u16, kind: u32, offset: u64, fill: u8, indirect: bool) {
        let data = Driver::data(queue, head);
        self.guest.write_memory(data, &[fill; 512]);
        self.submit_at(queue, head, kind, offset, (data, 512), indirect);
    }

    /// Makes a request available whose data is at a guest address, of some length.
    pub fn submit_at(
        &mut self,
        queue: usize,
        head: u16,
        kind: u32,
        offset: u64,
        (data, len): (u64, u32),
        indirect: bool,
    ) {
        let ring = self.ring(queue);
        let header = Driver::header(queue, head);
        let words = [&kind.to_le_bytes()[..], &[0; 4], &(offset / 512).to_le_bytes(), &[0xff]].concat();
        self.guest.write_memory(header, &words);
        let flags = if kind == WRITE { 0 } else { DEVICE_WRITES };
        let first = if indirect { 0 } else { head };
        let chain =
            [(header, 16, NEXT, first + 1), (data, len, NEXT | flags, first + 2), (header + 16, 1, DEVICE_WRITES, 0)];
        if indirect {
            let table = Driver::data(queue, head) + 0x800;
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

    pub fn used(&self, queue: usize) -> u16 {
        let at = self.ring(queue).used + 2;
        u16::from_le_bytes(self.guest.read_memory(at, 2).try_into().unwrap())
    }

    /// The heads that were given back since the last call.
    pub fn take(&mut self, queue: usize) -> Vec<u16> {
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
    pub fn wait(&mut self, queue: usize, count: u16) -> Vec<u16> {
        eventually("the requests are given back", || self.used(queue) == self.seen[queue] + count);
        let mut heads = self.take(queue);
        heads.sort_unstable();
        heads
    }

    /// Whether a request was answered with success.
    pub fn is_ok(&self, queue: usize, head: u16) -> bool {
        self.guest.read_memory(Driver::header(queue, head) + 16, 1) == [0]
    }

    /// A frontend without rings.
    pub fn connect(&self, daemon: &Daemon) -> Frontend {
        let frontend = self.guest.negotiate(&daemon.socket);
        frontend.set_features(self.guest.features).unwrap();
        frontend.set_mem_table(&self.guest.regions()).unwrap();
        frontend
    }

    /// Starts the rings; where they begin is nonsense if the in-flight region knows better.
    pub fn start(&self, frontend: &mut Frontend, base: u16) {
        (0..QUEUES).for_each(|queue| frontend.set_vring_base(queue, base).unwrap());
        self.start_rings(frontend);
    }

    /// Starts the rings where the frontend has said.
    pub fn start_rings(&self, frontend: &mut Frontend) {
        for queue in 0..QUEUES {
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

    pub fn kick(&self) {
        self.kicks.iter().for_each(|kick| kick.write(1).unwrap());
    }

    /// What a SIGKILL would leave of it at this moment.
    pub fn snapshot(&self) -> Driver {
        let copy = Driver { available: self.available, seen: self.seen, ..Driver::new(Guest::new()) };
        copy.guest.write_memory(0, &self.guest.read_memory(0, usize::try_from(Guest::FIRST_LEN).unwrap()));
        copy
    }
}
