//! Reactors that take notes, and a guest with memory and rings for frontends to describe.

#![allow(dead_code, reason = "not every test uses all of it")]

mod dirty;
mod events;
pub mod held;
mod log;
mod memory;
pub mod raw;

use std::collections::HashMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crossbeam_channel::Sender;
use spanblk::base::ids::{ReactorId, VhdId};
use spanblk::base::units::Geometry;
use spanblk::placement::view::VhdMap;
use spanblk::reactor::messages::{ReactorMessage, RingAddresses, RingCommand, RingConfig, RingKey, RingStopped};
use spanblk::shared::{VhdSettings, VhdState};
use spanblk::vhost_user::{Reactors, ServerError, SocketSettings, VhdEndpoint, VhdStatus, VhostUserServer};
use spanblk::virtio::features;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub use events::Events;

/// Waits until it is so.
#[track_caller]
pub fn eventually(what: &str, so: impl Fn() -> bool) {
    for _ in 0..4000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    panic!("it never became so that {what}");
}

/// What a reactor was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    Start(Box<Start>),
    Stop(RingKey),
    Yield(RingKey),
    GoOn(RingKey),
    SetCall,
    SetKick { polled: bool },
    SetMemory { regions: usize },
    SetLog { used: Option<u64>, logs: bool },
    SetWriteback(bool),
}

/// The parts of a ring's configuration that tests look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub reactor: u16,
    pub key: RingKey,
    pub index: u16,
    pub size: u16,
    pub addresses: RingAddresses,
    pub next_available: u16,
    pub event_idx: bool,
    pub indirect: bool,
    pub writeback: bool,
    pub features: u64,
    pub regions: usize,
    pub has_kick: bool,
    pub has_call: bool,
    pub logs: bool,
}

#[derive(Default)]
struct Inner {
    notes: Vec<Note>,
    rings: HashMap<RingKey, (u16, RingConfig)>,
    held: Vec<(RingKey, Sender<RingStopped>)>,
    last_memory: Weak<GuestMemoryMmap>,
    most_running: usize,
}

/// Reactors that serve nothing.
pub struct FakeReactors {
    count: u16,
    inner: Mutex<Inner>,
    hangs: AtomicBool,
    popped: AtomicU16,
}

pub struct Handle(Arc<FakeReactors>);

impl FakeReactors {
    pub fn pretend_popped(&self, chains: u16) {
        self.popped.store(chains, Ordering::SeqCst);
    }

    /// While it hangs, rings do not stop.
    pub fn hang(&self, hangs: bool) {
        self.hangs.store(hangs, Ordering::SeqCst);
        if !hangs {
            let mut inner = self.inner.lock().unwrap();
            for (key, reply) in std::mem::take(&mut inner.held) {
                self.stop(&mut inner, key, &reply);
            }
        }
    }

    pub fn running(&self) -> usize {
        self.inner.lock().unwrap().rings.len()
    }

    pub fn most_running(&self) -> usize {
        self.inner.lock().unwrap().most_running
    }

    /// The guest memory of the ring that was started last.
    pub fn last_memory(&self) -> Weak<GuestMemoryMmap> {
        self.inner.lock().unwrap().last_memory.clone()
    }

    fn stop(&self, inner: &mut Inner, key: RingKey, reply: &Sender<RingStopped>) {
        let (_, config) = inner.rings.remove(&key).expect("only what was started is stopped");
        let popped = self.popped.load(Ordering::SeqCst);
        let next_available = config.next_available.wrapping_add(popped);
        drop(config);
        reply.send(RingStopped { next_available, is_unlogged: false, is_broken: false }).unwrap();
    }

    fn command(&self, reactor: u16, command: RingCommand) {
        let mut inner = self.inner.lock().unwrap();
        let known = |inner: &Inner, key| assert_eq!(inner.rings[key].0, reactor, "a ring stays with its reactor");
        match command {
            RingCommand::Start(config) => {
                let note = Note::Start(Box::new(start(reactor, &config)));
                inner.notes.push(note);
                inner.last_memory = Arc::downgrade(&config.memory);
                assert!(inner.rings.insert(config.key, (reactor, *config)).is_none(), "keys are not reused");
                inner.most_running = inner.most_running.max(inner.rings.len());
            }
            RingCommand::Stop { key, reply } => {
                known(&inner, &key);
                inner.notes.push(Note::Stop(key));
                if self.hangs.load(Ordering::SeqCst) {
                    inner.held.push((key, reply));
                } else {
                    self.stop(&mut inner, key, &reply);
                }
            }
            RingCommand::Yield { key, reply, .. } => {
                known(&inner, &key);
                inner.notes.push(Note::Yield(key));
                if self.hangs.load(Ordering::SeqCst) {
                    inner.held.push((key, reply));
                } else {
                    self.stop(&mut inner, key, &reply);
                }
            }
            // It may have stopped just before.
            RingCommand::GoOn { key } => {
                inner.notes.push(Note::GoOn(key));
                inner.held.retain(|(held, _)| *held != key);
            }
            RingCommand::SetCall { key, .. } => {
                known(&inner, &key);
                inner.notes.push(Note::SetCall);
            }
            RingCommand::SetKick { key, kick } => {
                known(&inner, &key);
                inner.notes.push(Note::SetKick { polled: kick.is_none() });
            }
            RingCommand::SetMemory { key, memory } => {
                known(&inner, &key);
                inner.notes.push(Note::SetMemory { regions: memory.num_regions() });
                inner.rings.get_mut(&key).unwrap().1.memory = memory;
            }
            RingCommand::SetLog { key, log, reply } => {
                known(&inner, &key);
                let used = log.as_ref().and_then(|log| log.used);
                inner.notes.push(Note::SetLog { used, logs: log.is_some() });
                reply.send(()).unwrap();
            }
            RingCommand::SetWriteback { key, writeback, reply } => {
                known(&inner, &key);
                inner.notes.push(Note::SetWriteback(writeback));
                reply.send(true).unwrap();
            }
        }
    }
}

fn start(reactor: u16, config: &RingConfig) -> Start {
    Start {
        reactor,
        key: config.key,
        index: config.index,
        size: config.size,
        addresses: config.addresses,
        next_available: config.next_available,
        event_idx: config.event_idx,
        indirect: config.indirect,
        writeback: config.writeback.load(Ordering::SeqCst),
        features: config.features,
        regions: config.memory.num_regions(),
        has_kick: config.kick.is_some(),
        has_call: config.call.is_some(),
        logs: config.log.is_some(),
    }
}

impl Reactors for Handle {
    fn count(&self) -> u16 {
        self.0.count
    }

    fn busy_ns(&self) -> Vec<u64> {
        vec![0; usize::from(self.0.count)]
    }

    fn send(&self, reactor: ReactorId, message: ReactorMessage) {
        assert!(reactor.0 < self.0.count);
        match message {
            ReactorMessage::Ring(command) => self.0.command(reactor.0, command),
            _ => panic!("connections speak of rings only"),
        }
    }
}

/// A server, its reactors, and a directory for sockets.
pub struct Host {
    pub server: VhostUserServer,
    pub reactors: Arc<FakeReactors>,
    pub events: Arc<Events>,
    states: Mutex<HashMap<u32, Arc<VhdState>>>,
    directory: tempfile::TempDir,
}

impl Host {
    pub fn new(reactors: u16) -> Host {
        log::capture();
        let directory = tempfile::tempdir().unwrap();
        let reactors = Arc::new(FakeReactors {
            count: reactors,
            inner: Mutex::default(),
            hangs: AtomicBool::new(false),
            popped: AtomicU16::new(0),
        });
        let events = Arc::new(Events::default());
        let server =
            VhostUserServer::start(directory.path().join("sockets"), Handle(reactors.clone()), events.clone()).unwrap();
        Host { server, reactors, events, states: Mutex::default(), directory }
    }

    pub fn id(&self, id: u32) -> VhdId {
        VhdId(id)
    }

    /// Serves a VHD of 64 MiB.
    pub fn add(&self, id: u32, name: &str, queues: u16) -> PathBuf {
        self.try_add(id, name, queues).unwrap()
    }

    pub fn try_add(&self, id: u32, name: &str, queues: u16) -> Result<PathBuf, ServerError> {
        let settings = VhdSettings {
            id: VhdId(id),
            uuid: uuid::Uuid::from_u128(u128::from(id)),
            geometry: Geometry::new(1 << 20).unwrap(),
            block_size: 512,
            read_only: false,
            thick: false,
            checksums: false,
        };
        let state = Arc::new(VhdState::new(settings, 64 << 20, VhdMap::new(64), self.reactors.count));
        self.states.lock().unwrap().insert(id, Arc::clone(&state));
        self.serve(state, name, queues)
    }

    fn serve(&self, state: Arc<VhdState>, name: &str, queues: u16) -> Result<PathBuf, ServerError> {
        self.server.add_vhd(endpoint(state, name, queues))
    }

    pub fn state(&self, id: u32) -> Arc<VhdState> {
        Arc::clone(&self.states.lock().unwrap()[&id])
    }

    pub fn status(&self, id: u32) -> VhdStatus {
        self.server.status(VhdId(id)).unwrap()
    }

    pub fn take_notes(&self) -> Vec<Note> {
        std::mem::take(&mut self.reactors.inner.lock().unwrap().notes)
    }

    /// The configurations of the rings that were started, forgetting all notes.
    pub fn starts(&self) -> Vec<Start> {
        let started = |note| match note {
            Note::Start(start) => Some(*start),
            _ => None,
        };
        self.take_notes().into_iter().filter_map(started).collect()
    }

    pub fn wait_for_detach(&self, id: u32) {
        eventually("the frontend is gone", || self.status(id).frontend.is_none());
    }

    /// How many lines of the log begin like this.
    pub fn count_logged(&self, begin: &str) -> usize {
        log::lines().iter().filter(|line| line.starts_with(begin)).count()
    }

    /// A line of the log that begins and continues like this.
    pub fn logged(&self, begin: &str, part: &str) -> String {
        let find = || log::lines().iter().find(|line| line.starts_with(begin) && line.contains(part)).cloned();
        eventually("the log has the line", || find().is_some());
        find().unwrap()
    }
}

fn endpoint(state: Arc<VhdState>, name: &str, queues: u16) -> VhdEndpoint {
    let socket = SocketSettings { mode: 0o660, owner: None };
    VhdEndpoint { state, name: name.to_owned(), queues, optimal_io_size: 1 << 20, writeback: true, socket }
}

/// A guest with two regions of memory in one file, and rings in the first.
pub struct Guest {
    file: std::fs::File,
    pub kick: EventFd,
    pub call: EventFd,
    /// What its driver acknowledges.
    pub features: u64,
}

impl Guest {
    pub const FIRST_LEN: u64 = 0x10_0000;
    const SECOND: u64 = 0x400_0000;
    const SECOND_LEN: u64 = 0x20_0000;

    pub fn new() -> Guest {
        let file = tempfile::tempfile().unwrap();
        Guest::in_file(file)
    }

    /// Its memory is in a file that can be sealed.
    pub fn sealable() -> Guest {
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::ALLOW_SEALING;
        Guest::in_file(rustix::fs::memfd_create(c"spanblk-test-guest", flags).unwrap().into())
    }

    fn in_file(file: std::fs::File) -> Guest {
        file.set_len(Guest::FIRST_LEN + 2 * Guest::SECOND_LEN).unwrap();
        Guest { file, kick: EventFd::new(0).unwrap(), call: EventFd::new(0).unwrap(), features: 0x1_7000_7e44 }
    }

    /// The frontend's own address of guest address 0.
    pub fn user_base(&self) -> u64 {
        0x7f00_0000_0000
    }

    pub fn regions(&self) -> [VhostUserMemoryRegionInfo; 2] {
        [self.region(0, Guest::FIRST_LEN, 0), self.region(Guest::SECOND, Guest::SECOND_LEN, Guest::FIRST_LEN)]
    }

    pub fn extra_region(&self, guest: u64) -> VhostUserMemoryRegionInfo {
        self.region(guest, Guest::SECOND_LEN, Guest::FIRST_LEN + Guest::SECOND_LEN)
    }

    fn region(&self, guest: u64, len: u64, offset: u64) -> VhostUserMemoryRegionInfo {
        VhostUserMemoryRegionInfo {
            guest_phys_addr: guest,
            memory_size: len,
            userspace_addr: self.user_base() + guest,
            mmap_offset: offset,
            mmap_handle: self.file.as_raw_fd(),
        }
    }

    /// Writes to guest memory, by the file behind it.
    pub fn write_memory(&self, guest: u64, bytes: &[u8]) {
        std::os::unix::fs::FileExt::write_all_at(&self.file, bytes, guest).unwrap();
    }

    pub fn read_memory(&self, guest: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut bytes, guest).unwrap();
        bytes
    }

    /// Makes the first chain of a ring available: a request with one data buffer. Returns where its status byte is.
    pub fn submit(&self, queue: usize, kind: u32, data: u64, len: u32) -> u64 {
        const NEXT: u16 = 1;
        const DEVICE_WRITES: u16 = 2;
        let ring = self.ring_addresses(queue, 64);
        let header = ring.descriptors + 0x8000;
        let status = header + 16;
        let data_flags = if kind == 0 { DEVICE_WRITES } else { 0 };
        let descriptors =
            [(header, 16_u32, NEXT, 1_u16), (data, len, NEXT | data_flags, 2), (status, 1, DEVICE_WRITES, 0)];
        let bytes = descriptors.iter().flat_map(|(at, len, flags, next)| {
            [&at.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()].concat()
        });
        self.write_memory(ring.descriptors, &bytes.collect::<Vec<_>>());
        self.write_memory(header, &[&kind.to_le_bytes()[..], &[0; 12], &[0xff]].concat());
        self.write_memory(ring.available + 2, &[1, 0, 0, 0]);
        status
    }

    pub fn connect(&self, socket: &Path) -> Frontend {
        Frontend::connect(socket, 16).unwrap()
    }

    /// Connects and agrees on protocol features.
    pub fn negotiate(&self, socket: &Path) -> Frontend {
        self.negotiate_on(self.connect(socket))
    }

    /// Agrees on protocol features.
    pub fn negotiate_on(&self, mut frontend: Frontend) -> Frontend {
        let offered = frontend.get_features().unwrap();
        assert_eq!(offered, self.features | features::LOG_ALL);
        frontend.set_features(offered & features::VHOST_USER_PROTOCOL).unwrap();
        let protocol: VhostUserProtocolFeatures = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        frontend.set_owner().unwrap();
        frontend
    }

    /// Connects and starts `queues` rings; returns when they run.
    pub fn start(&self, socket: &Path, queues: usize) -> Frontend {
        self.start_on(self.connect(socket), queues)
    }

    /// Starts `queues` rings of a frontend that has just connected; returns when the daemon knows.
    pub fn start_on(&self, frontend: Frontend, queues: usize) -> Frontend {
        let mut frontend = self.negotiate_on(frontend);
        frontend.set_features(self.features).unwrap();
        frontend.set_mem_table(&self.regions()).unwrap();
        for queue in 0..queues {
            self.set_ring(&frontend, queue, 64, 0);
            frontend.set_vring_call(queue, &self.call).unwrap();
            frontend.set_vring_kick(queue, &self.kick).unwrap();
            frontend.set_vring_enable(queue, true).unwrap();
        }
        frontend.get_features().unwrap();
        frontend
    }

    pub fn ring_addresses(&self, queue: usize, size: u16) -> RingAddresses {
        self.addresses_from(queue as u64 * 0x1_0000, size)
    }

    fn addresses_from(&self, at: u64, size: u16) -> RingAddresses {
        let descriptors = at;
        let available = descriptors + 16 * u64::from(size);
        let used = (available + 6 + 2 * u64::from(size)).next_multiple_of(4);
        RingAddresses { descriptors, available, used }
    }

    pub fn set_ring(&self, frontend: &Frontend, queue: usize, size: u16, base: u16) {
        frontend.set_vring_num(queue, size).unwrap();
        frontend.set_vring_base(queue, base).unwrap();
        self.set_addresses(frontend, queue, size);
    }

    pub fn set_addresses(&self, frontend: &Frontend, queue: usize, size: u16) {
        let at = self.user_base() + self.ring_addresses(queue, size).descriptors;
        self.address_ring(frontend, queue, size, at);
    }

    pub fn set_ring_at(&self, frontend: &Frontend, queue: usize, size: u16, user: u64) {
        frontend.set_vring_num(queue, size).unwrap();
        self.address_ring(frontend, queue, size, user);
    }

    fn address_ring(&self, frontend: &Frontend, queue: usize, size: u16, user: u64) {
        Guest::address(frontend, queue, size, self.addresses_from(user, size), None);
    }

    pub fn address(frontend: &Frontend, queue: usize, size: u16, addresses: RingAddresses, log: Option<u64>) {
        let config = VringConfigData {
            queue_max_size: 1024,
            queue_size: size,
            flags: u32::from(log.is_some()),
            desc_table_addr: addresses.descriptors,
            used_ring_addr: addresses.used,
            avail_ring_addr: addresses.available,
            log_addr: log,
        };
        frontend.set_vring_addr(queue, &config).unwrap();
    }
}
