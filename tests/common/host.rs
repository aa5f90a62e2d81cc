//! A host for device tests: file-backed disks, real reactors, and doubles of the owner and the committer that do the least
//! that the reactors ask for.

#![allow(dead_code, clippy::unwrap_used, reason = "a test helper, of which each test uses a part")]

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};
use spanblk::base::ids::{DiskId, ReactorId, VhdId};
use spanblk::base::units::{BlockMask, ExtentIndex, Generation, Geometry, SlotIndex};
use spanblk::disk::file::FileDisk;
use spanblk::engine::uring::thread::EngineThread;
use spanblk::placement::ReplicaSet;
use spanblk::placement::view::VhdMap;
use spanblk::reactor::handle::ReactorHandle;
use spanblk::reactor::inbox;
use spanblk::reactor::messages::{
    Outbox, OwnerRequest, ReactorMessage, RingAddresses, RingCommand, RingConfig, RingKey, RingLog, RingStopped,
};
use spanblk::reactor::thread::{ReactorConfig, begin, spawn};
use spanblk::shared::dirty_log::DirtyLog;
use spanblk::shared::guest_memory::Watch;
use spanblk::shared::inflight::{InflightQueue, InflightRegion, region_len};
use spanblk::shared::{DiskState, Load, VhdSettings, VhdState};
use spanblk::store::change::{Change, ChangeKind, CommitRequest};
use spanblk::store::page::PageKey;
use vm_memory::MmapRegion;

use super::guest::Guest;

/// Bytes of an extent.
pub const EXTENT: u64 = 1 << 20;

/// Bytes before the first slot.
const DATA_OFFSET: u64 = 1 << 20;

enum ToDouble {
    Owner(OwnerRequest),
    Change(Change),
    Commit(CommitRequest),
    Serve(Arc<VhdState>, Vec<DiskId>),
}

/// What the doubles saw.
#[derive(Default)]
pub struct Seen {
    /// Commits answered.
    pub commits: AtomicU64,
    /// What reactors reported that needs no answer: errors of disks, limits that were hit.
    pub reports: Mutex<Vec<OwnerRequest>>,
    /// There is no room as long as this is set.
    pub has_no_room: AtomicBool,
}

struct ToDoubles {
    double: Sender<ToDouble>,
    reactors: Vec<ReactorHandle>,
}

impl Outbox for ToDoubles {
    fn to_owner(&mut self, message: OwnerRequest) {
        let _ = self.double.send(ToDouble::Owner(message));
    }

    fn change(&mut self, change: Change) {
        let _ = self.double.send(ToDouble::Change(change));
    }

    fn commit(&mut self, request: CommitRequest) {
        let _ = self.double.send(ToDouble::Commit(request));
    }

    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        self.reactors[usize::from(reactor.0)].send(message);
    }

    fn room_for_mover(&mut self) {}
}

/// An outbox for reactors that have nothing to say.
pub struct Nowhere;

impl Outbox for Nowhere {
    fn to_owner(&mut self, _message: OwnerRequest) {}

    fn change(&mut self, _change: Change) {}

    fn commit(&mut self, _request: CommitRequest) {}

    fn to_reactor(&mut self, _reactor: ReactorId, _message: ReactorMessage) {}

    fn room_for_mover(&mut self) {}
}

/// Owner and committer in one.
struct Double {
    reactors: Vec<ReactorHandle>,
    disks: Vec<Arc<DiskState>>,
    next_slot: Vec<u32>,
    vhds: HashMap<VhdId, (Arc<VhdState>, Vec<DiskId>)>,
    pending: Vec<Change>,
    seen: Arc<Seen>,
}

impl Double {
    fn run(mut self, messages: &Receiver<ToDouble>) {
        while let Ok(message) = messages.recv() {
            match message {
                ToDouble::Serve(vhd, disks) => {
                    self.vhds.insert(vhd.id(), (vhd, disks));
                }
                ToDouble::Change(change) => self.pending.push(change),
                ToDouble::Commit(request) => self.commit(request),
                ToDouble::Owner(OwnerRequest::Allocate { reactor, ticket, vhd, extent }) => {
                    while self.seen.has_no_room.load(Ordering::SeqCst) {
                        std::thread::sleep(Duration::from_millis(1));
                    }
                    self.allocate(vhd, extent);
                    self.reactors[usize::from(reactor.0)].send(ReactorMessage::Allocated { ticket, result: Ok(()) });
                }
                ToDouble::Owner(OwnerRequest::Intend { reactor, ticket, vhd, extent }) => {
                    self.vhds[&vhd].0.map.set_intent(PageKey::of(vhd, extent).0.page);
                    self.reactors[usize::from(reactor.0)].send(ReactorMessage::Allocated { ticket, result: Ok(()) });
                }
                ToDouble::Owner(OwnerRequest::Free { reactor, ticket, vhd, extent }) => {
                    self.vhds[&vhd].0.map.drop_extent(extent);
                    self.reactors[usize::from(reactor.0)].send(ReactorMessage::Freed { ticket });
                }
                ToDouble::Owner(other) => self.seen.reports.lock().unwrap().push(other),
            }
        }
    }

    fn allocate(&mut self, vhd: VhdId, extent: ExtentIndex) {
        let (vhd, disks) = &self.vhds[&vhd];
        if vhd.map.lookup(extent).replicas.is_absent() {
            let disk = disks[extent.0 as usize % disks.len()];
            let slot = &mut self.next_slot[disk.index()];
            assert!(*slot < self.disks[disk.index()].slots, "the test's disks are large enough");
            vhd.map.place(extent, ReplicaSet::single(disk, SlotIndex(*slot)));
            *slot += 1;
        }
    }

    fn commit(&mut self, request: CommitRequest) {
        self.seen.commits.fetch_add(1, Ordering::SeqCst);
        let disks = &self.disks;
        let is_covered = |change: &Change| match change.kind {
            ChangeKind::Written { needs, .. } => {
                needs.iter().flatten().all(|point| disks[point.disk.index()].is_synced(point.number))
            }
            ChangeKind::Cleared { .. } | ChangeKind::Placed { .. } | ChangeKind::Freed { .. } => true,
        };
        let (covered, rest) = self.pending.drain(..).partition(is_covered);
        self.pending = rest;
        let covered: Vec<Change> = covered;
        covered.iter().for_each(|change| self.vhds[&change.vhd].0.changes_committed(1));
        let reply = ReactorMessage::Committed { ticket: request.ticket, ok: true };
        self.reactors[usize::from(request.reactor.0)].send(reply);
    }
}

/// Disks, reactors and doubles.
pub struct Host {
    /// The disks.
    pub disks: Vec<FileDisk>,
    /// What everybody may know of them.
    pub states: Vec<Arc<DiskState>>,
    /// The reactors.
    pub reactors: Vec<ReactorHandle>,
    /// What the doubles saw.
    pub seen: Arc<Seen>,
    /// How long each reactor has worked.
    pub busy: Vec<Arc<Load>>,
    threads: Vec<EngineThread>,
    double: Sender<ToDouble>,
    next_key: u64,
}

impl Host {
    /// A host with `disks` disks of `slots` extents each in `directory`, and `reactors` reactors.
    pub fn new(directory: &Path, disks: u8, slots: u32, reactors: u16) -> Host {
        let size = DATA_OFFSET + u64::from(slots) * EXTENT;
        let files: Vec<FileDisk> =
            (0..disks).map(|i| FileDisk::create(&directory.join(format!("disk{i}")), size).unwrap()).collect();
        Host::on(files, slots, reactors)
    }

    /// A host whose one reactor sleeps whenever it has nothing to do.
    pub fn sleeping(directory: &Path, slots: u32) -> Host {
        let size = DATA_OFFSET + u64::from(slots) * EXTENT;
        Host::with_poll_max(vec![FileDisk::create(&directory.join("disk0"), size).unwrap()], slots, 1, Duration::ZERO)
    }

    /// A host on existing disks.
    pub fn on(files: Vec<FileDisk>, slots: u32, reactors: u16) -> Host {
        Host::with_poll_max(files, slots, reactors, Duration::from_micros(20))
    }

    fn with_poll_max(files: Vec<FileDisk>, slots: u32, reactors: u16, poll_max: Duration) -> Host {
        let state = |(i, file): (u8, &FileDisk)| {
            let block_size = spanblk::disk::BlockDev::block_size(file);
            let name = format!("disk{i}");
            Arc::new(DiskState::new(DiskId(i), name, DATA_OFFSET, slots, block_size, file.memory_alignment()))
        };
        let states: Vec<Arc<DiskState>> = (0u8..).zip(&files).map(state).collect();
        let ends: Vec<_> = (0..reactors).map(|_| inbox::channel().unwrap()).collect();
        let handles: Vec<ReactorHandle> = ends.iter().map(|(handle, _)| handle.clone()).collect();
        let (double, messages) = crossbeam_channel::unbounded();
        let busy: Vec<Arc<Load>> = (0..reactors).map(|_| Arc::default()).collect();
        let threads = (0..reactors)
            .zip(ends)
            .map(|(id, (_, inbox))| {
                let busy = Arc::clone(&busy[usize::from(id)]);
                let outbox = ToDoubles { double: double.clone(), reactors: handles.clone() };
                let thread = spawn(ReactorId(id), None).unwrap();
                let config = ReactorConfig { id: ReactorId(id), poll_max, busy, rest: Arc::default() };
                begin(&thread, config, inbox, outbox);
                thread
            })
            .collect();
        for handle in &handles {
            for (state, file) in states.iter().zip(&files) {
                let (disk, file) = (Arc::clone(state), Arc::clone(file.fd()));
                handle.send(ReactorMessage::AddDisk { disk, file });
            }
        }
        let seen = Arc::new(Seen::default());
        let doubles = Double {
            reactors: handles.clone(),
            next_slot: vec![0; states.len()],
            disks: states.clone(),
            vhds: HashMap::new(),
            pending: Vec::new(),
            seen: Arc::clone(&seen),
        };
        std::thread::spawn(move || doubles.run(&messages));
        Host { disks: files, states, reactors: handles, seen, busy, threads, double, next_key: 0 }
    }

    /// A VHD of `extents` absent extents that are placed on `disks` in turn.
    pub fn vhd(&self, id: u32, extents: u32, disks: &[u8]) -> Arc<VhdState> {
        let settings = VhdSettings {
            id: VhdId(id),
            uuid: uuid::Uuid::from_u128(u128::from(id)),
            geometry: Geometry::new(EXTENT).unwrap(),
            block_size: 512,
            read_only: false,
            thick: false,
            checksums: false,
        };
        let reactors = u16::try_from(self.reactors.len()).unwrap();
        let vhd = Arc::new(VhdState::new(settings, u64::from(extents) * EXTENT, VhdMap::new(extents), reactors));
        let disks = disks.iter().map(|&disk| DiskId(disk)).collect();
        self.double.send(ToDouble::Serve(Arc::clone(&vhd), disks)).unwrap();
        vhd
    }

    /// A VHD whose extents are all present, in order, from slot 0 of one disk.
    pub fn prefilled_vhd(&self, id: u32, extents: u32, disk: u8) -> Arc<VhdState> {
        let vhd = self.vhd(id, extents, &[disk]);
        for extent in 0..extents {
            let place = ReplicaSet::single(DiskId(disk), SlotIndex(extent));
            vhd.map.restore(ExtentIndex(extent), place, BlockMask::ALL, Generation(0));
        }
        vhd
    }

    /// Serves a ring of `guest` on a reactor.
    pub fn connect(&mut self, guest: Guest, vhd: &Arc<VhdState>, reactor: u16) -> Connection {
        self.connect_with(guest, vhd, reactor, |_| {})
    }

    /// Serves a ring with a changed configuration.
    pub fn connect_with(
        &mut self,
        guest: Guest,
        vhd: &Arc<VhdState>,
        reactor: u16,
        change: impl FnOnce(&mut RingConfig),
    ) -> Connection {
        self.next_key += 1;
        let key = RingKey(self.next_key);
        let (kick, call, error) = (eventfd(), eventfd(), eventfd());
        let (descriptors, available, used) = guest.addresses();
        let writeback = Arc::new(AtomicBool::new(true));
        let mut config = RingConfig {
            key,
            vhd: Arc::clone(vhd),
            index: 0,
            size: guest.size,
            addresses: RingAddresses { descriptors, available, used },
            next_available: 0,
            inflight: None,
            log: None,
            event_idx: guest.uses_event_idx(),
            indirect: false,
            writeback,
            features: 1 << 13 | 1 << 14,
            load: Arc::default(),
            memory: Arc::clone(&guest.memory),
            kick: Some(duplicate(&kick)),
            call: Some(duplicate(&call)),
            error: Some(duplicate(&error)),
        };
        change(&mut config);
        let handle = self.reactors[usize::from(reactor)].clone();
        handle.send(ReactorMessage::Ring(RingCommand::Start(Box::new(config))));
        Connection { guest, key, kick, call, error, handle }
    }

    /// Ends the reactors and waits for them.
    pub fn shut_down(self) {
        self.reactors.iter().for_each(|reactor| reactor.send(ReactorMessage::Shutdown));
        self.threads.into_iter().for_each(|thread| assert!(thread.join(Duration::from_secs(60))));
    }
}

/// A ring being served, from the guest's side.
pub struct Connection {
    /// The driver.
    pub guest: Guest,
    /// The ring's name.
    pub key: RingKey,
    /// Our ends of the eventfds.
    pub kick: File,
    /// See `kick`.
    pub call: File,
    /// See `kick`.
    pub error: File,
    handle: ReactorHandle,
}

impl Connection {
    /// Kicks if the device wants it; whether it did.
    pub fn kick(&mut self) -> bool {
        let wanted = self.guest.needs_kick();
        if wanted {
            self.kick.write_all(&1u64.to_ne_bytes()).unwrap();
        }
        wanted
    }

    /// Waits for an interrupt, as a sleeping guest does; panics after ten seconds.
    pub fn wait(&mut self) {
        while self.guest.arm_interrupt() {
            assert!(poll(&self.call, Duration::from_secs(10)), "no interrupt in ten seconds");
            let _ = self.call.read(&mut [0; 8]);
        }
    }

    /// Waits for one completion: slot and status.
    pub fn take(&mut self) -> (u16, u8) {
        loop {
            if let Some(done) = self.guest.take() {
                return done;
            }
            self.wait();
        }
    }

    /// Runs one request in slot 0 to its end.
    pub fn run(&mut self, kind: u32, sector: u64, len: usize) -> u8 {
        self.guest.submit(0, kind, sector, len, len / 1024 * 512);
        self.kick();
        let (slot, status) = self.take();
        assert_eq!(slot, 0);
        status
    }

    /// Sends a command about this ring.
    pub fn command(&self, command: RingCommand) {
        self.handle.send(ReactorMessage::Ring(command));
    }

    /// Stops the ring; its reply.
    pub fn stop(&self) -> RingStopped {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.command(RingCommand::Stop { key: self.key, reply });
        answer.recv_timeout(Duration::from_secs(10)).expect("the ring stops")
    }

    /// Switches the cache mode; whether that worked.
    pub fn set_writeback(&self, writeback: bool) -> bool {
        let (reply, answer) = crossbeam_channel::bounded(1);
        self.command(RingCommand::SetWriteback { key: self.key, writeback, reply });
        answer.recv_timeout(Duration::from_secs(10)).expect("the ring switches")
    }
}

/// The part of a ring of `size` entries in a new in-flight region.
pub fn inflight(size: u16) -> InflightQueue {
    let len = region_len(1, size);
    let mapping = MmapRegion::new(len).unwrap();
    let watch = Watch::new(mapping.as_ptr(), len.next_multiple_of(4096), 4096).unwrap();
    Arc::new(InflightRegion::new(mapping, watch, 1, size)).queue(0).unwrap()
}

/// A dirty log for a guest of up to 128 MiB, for the used ring at a guest address, too.
pub fn dirty_log(used: u64) -> RingLog {
    let mapping = MmapRegion::new(4096).unwrap();
    let watch = Watch::new(mapping.as_ptr(), 4096, 4096).unwrap();
    RingLog { log: Arc::new(DirtyLog::new(mapping, watch, 4096)), used: Some(used), call: None }
}

/// A new eventfd in non-blocking mode.
pub fn eventfd() -> File {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
    assert!(fd >= 0);
    // SAFETY: a new descriptor that nobody else has.
    unsafe { File::from_raw_fd(fd) }
}

/// Another descriptor of the same file, to give away.
pub fn duplicate(file: &File) -> OwnedFd {
    file.try_clone().unwrap().into()
}

/// Whether the file is readable within `limit`.
pub fn poll(file: &File, limit: Duration) -> bool {
    let mut entry = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one valid entry.
    let ready = unsafe { libc::poll(&raw mut entry, 1, i32::try_from(limit.as_millis()).unwrap()) };
    ready == 1
}
