//! The whole device in one process: a frontend on the `virtio-driver` crate, sockets, messages, rings, reactors, io_uring on
//! file-backed disks. Next to it, frontends that misbehave.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;
mod vhost_user_support;

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, Ordering};
use std::time::{Duration, Instant};

use host::{EXTENT, Host};
use spanblk::base::ids::ReactorId;
use spanblk::base::rng::Rng;
use spanblk::cli::blk_client::{BlkClient, BlkOp, BlkRequest, ClientOptions};
use spanblk::reactor::handle::ReactorHandle;
use spanblk::reactor::messages::ReactorMessage;
use spanblk::shared::VhdState;
use spanblk::vhost_user::{Reactors, SocketSettings, VhdEndpoint, VhostUserServer};
use vhost::VhostBackend;
use vhost_user_support::{Events, eventually, raw};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SIZE: usize = 8 << 20;

/// Real reactors, of which one says that it works all the time.
struct Steered {
    reactors: Vec<ReactorHandle>,
    /// The one; none if there is no such number.
    hot: AtomicU16,
    busy: Mutex<(Instant, Vec<u64>)>,
}

impl Steered {
    fn new(reactors: Vec<ReactorHandle>) -> Arc<Steered> {
        let busy = Mutex::new((Instant::now(), vec![0; reactors.len()]));
        Arc::new(Steered { reactors, hot: AtomicU16::new(u16::MAX), busy })
    }
}

struct Ways(Arc<Steered>);

impl Reactors for Ways {
    fn count(&self) -> u16 {
        u16::try_from(self.0.reactors.len()).unwrap()
    }

    fn busy_ns(&self) -> Vec<u64> {
        let (since, busy) = &mut *self.0.busy.lock().unwrap();
        let elapsed = u64::try_from(since.elapsed().as_nanos()).unwrap();
        *since = Instant::now();
        if let Some(busy) = busy.get_mut(usize::from(self.0.hot.load(Ordering::SeqCst))) {
            *busy += elapsed;
        }
        busy.clone()
    }

    fn send(&self, reactor: ReactorId, message: ReactorMessage) {
        self.0.reactors[usize::from(reactor.0)].send(message);
    }
}

struct World {
    server: VhostUserServer,
    steered: Arc<Steered>,
    host: Host,
    _directory: tempfile::TempDir,
}

impl World {
    fn new(disks: u8, reactors: u16) -> World {
        let directory = tempfile::tempdir().unwrap();
        let host = Host::new(directory.path(), disks, 64, reactors);
        let sockets = directory.path().join("sockets");
        let steered = Steered::new(host.reactors.clone());
        let server = VhostUserServer::start(sockets, Ways(Arc::clone(&steered)), Arc::new(Events::default())).unwrap();
        World { server, steered, host, _directory: directory }
    }

    fn serve(&self, id: u32, disks: &[u8]) -> (Arc<VhdState>, PathBuf) {
        let state = self.host.vhd(id, 8, disks);
        let socket = self.server.add_vhd(VhdEndpoint {
            state: state.clone(),
            name: format!("disk{id}"),
            queues: 4,
            optimal_io_size: EXTENT,
            writeback: true,
            socket: SocketSettings { mode: 0o600, owner: None },
        });
        (state, socket.unwrap())
    }
}

fn options(queues: usize) -> ClientOptions {
    ClientOptions { queues, buffer_len: 256 << 10, timeout: Duration::from_secs(60), ..ClientOptions::default() }
}

/// Random requests, one at a time but on all queues, against a plain copy.
fn exercise(client: &mut BlkClient, queues: usize, model: &mut [u8], rng: &mut Rng, rounds: usize) {
    for _ in 0..rounds {
        let sectors = if rng.chance(1, 4) { 512 } else { 16 };
        let len = (1 + rng.index(sectors)) * 512;
        let at = rng.index((model.len() - len) / 512 + 1) * 512;
        let op = [BlkOp::Read, BlkOp::Write, BlkOp::Write, BlkOp::Flush, BlkOp::WriteZeroes][rng.index(5)];
        let buffer = client.idle_buffer().unwrap();
        if matches!(op, BlkOp::Write) {
            rng.fill(&mut model[at..at + len]);
            client.buffer_mut(buffer)[..len].copy_from_slice(&model[at..at + len]);
        }
        if matches!(op, BlkOp::WriteZeroes) {
            model[at..at + len].fill(0);
        }
        let (offset, bytes) = if matches!(op, BlkOp::Flush) { (0, 0) } else { (at as u64, len as u64) };
        let queue = rng.index(queues);
        client.submit(queue, BlkRequest { op, offset, len: bytes, buffer }).unwrap();
        client.kick(queue).unwrap();
        let done = client.wait(queue).unwrap();
        assert_eq!(done.len(), 1);
        done.into_iter().for_each(|done| done.result.unwrap());
        if matches!(op, BlkOp::Read) {
            assert_eq!(client.buffer(buffer)[..len], model[at..at + len], "at {at}, {len} bytes");
        }
    }
}

/// Writes one block that is there already, and reads it back, on one queue.
fn rewrite(client: &mut BlkClient, queue: usize, model: &mut [u8], rng: &mut Rng) {
    const BLOCK: usize = 4096;
    let at = rng.index(model.len() / BLOCK) * BLOCK;
    rng.fill(&mut model[at..at + BLOCK]);
    let buffer = client.idle_buffer().unwrap();
    client.buffer_mut(buffer)[..BLOCK].copy_from_slice(&model[at..at + BLOCK]);
    for op in [BlkOp::Write, BlkOp::Read] {
        client.submit(queue, BlkRequest { op, offset: at as u64, len: BLOCK as u64, buffer }).unwrap();
        client.kick(queue).unwrap();
        client.wait(queue).unwrap().into_iter().for_each(|done| done.result.unwrap());
    }
    assert_eq!(client.buffer(buffer)[..BLOCK], model[at..at + BLOCK], "at {at}");
}

fn verify(client: &mut BlkClient, model: &[u8]) {
    let mut whole = vec![0; model.len()];
    client.read_at(0, &mut whole).unwrap();
    assert!(whole == model, "the VHD does not hold what was written");
}

#[test]
fn a_frontend_finds_after_reconnects_what_it_wrote() {
    let world = World::new(3, 2);
    for (id, disks, queues) in [(1, &[0][..], 1), (2, &[0, 1, 2], 3)] {
        let (_, socket) = world.serve(id, disks);
        let mut model = vec![0; SIZE];
        let mut rng = Rng::new(u64::from(id));
        for _ in 0..5 {
            let mut client = BlkClient::connect(&socket, options(queues)).unwrap();
            assert_eq!((client.capacity(), client.block_size()), (SIZE as u64, 512));
            verify(&mut client, &model);
            exercise(&mut client, queues, &mut model, &mut rng, 200);
        }
        let status = world.server.status(spanblk::base::ids::VhdId(id)).unwrap();
        assert_eq!((status.connections, status.refused, status.faults), (5, 0, 0));
    }
}

/// Rings change their reactors under a guest that compares everything it reads.
#[test]
fn rings_move_to_a_reactor_with_less_to_do() {
    let world = World::new(2, 2);
    let (_, socket) = world.serve(1, &[0, 1]);
    let (mut model, mut rng) = (vec![0; SIZE], Rng::new(5));
    let mut client = BlkClient::connect(&socket, options(4)).unwrap();
    exercise(&mut client, 4, &mut model, &mut rng, 200);
    assert_eq!(world.server.reactor_status().ring_moves, 0, "nobody has much to do");
    // Four rings, two on each: those of the first reactor have to leave it, then those of the second, as far as they may.
    for (hot, moves) in [(0, 1), (1, 2)] {
        world.steered.hot.store(hot, Ordering::SeqCst);
        let begun = Instant::now();
        while world.server.reactor_status().ring_moves < moves {
            assert!(begun.elapsed() < Duration::from_secs(30), "no ring has left reactor {hot}");
            exercise(&mut client, 4, &mut model, &mut rng, 20);
        }
        exercise(&mut client, 4, &mut model, &mut rng, 200);
    }
    verify(&mut client, &model);
    drop(client);
    // Where they are is forgotten with the connection; what was written is not.
    verify(&mut BlkClient::connect(&socket, options(4)).unwrap(), &model);
    let status = world.server.status(spanblk::base::ids::VhdId(1)).unwrap();
    assert_eq!((status.connections, status.faults), (2, 0));
}

/// A ring with a request that waits for room is not drained for ever to be moved: the guest's other requests go on.
#[test]
fn a_ring_that_cannot_be_drained_soon_stays_where_it_is() {
    let world = World::new(1, 2);
    let (_, socket) = world.serve(1, &[0]);
    let (mut model, mut rng) = (vec![0; 1 << 20], Rng::new(6));
    // Three rings: the first and the third are on the first reactor.
    let mut client = BlkClient::connect(&socket, options(3)).unwrap();
    client.write_at(0, &model).unwrap();
    world.host.seen.has_no_room.store(true, Ordering::SeqCst);
    let waiting = client.idle_buffer().unwrap();
    client.buffer_mut(waiting)[..4096].fill(7);
    let write = BlkRequest { op: BlkOp::Write, offset: 4 << 20, len: 4096, buffer: waiting };
    client.submit(0, write).unwrap();
    client.kick(0).unwrap();
    world.steered.hot.store(0, Ordering::SeqCst);
    let (begun, mut longest) = (Instant::now(), Duration::ZERO);
    // It takes the balance three seconds to see it, and then it tries the first ring, which does the most.
    while begun.elapsed() < Duration::from_secs(8) || world.server.reactor_status().ring_moves == 0 {
        assert!(begun.elapsed() < Duration::from_secs(60), "the other ring does not move either");
        let before = Instant::now();
        rewrite(&mut client, [0, 0, 0, 1, 2][rng.index(5)], &mut model, &mut rng);
        longest = longest.max(before.elapsed());
    }
    assert!(longest < Duration::from_secs(2), "requests waited for {longest:?}");
    assert_eq!(client.in_flight(), 1, "the write waits all the while");
    world.host.seen.has_no_room.store(false, Ordering::SeqCst);
    client.wait(0).unwrap().into_iter().for_each(|done| done.result.unwrap());
    verify(&mut client, &model);
    let mut written = vec![0; 4096];
    client.read_at(4 << 20, &mut written).unwrap();
    assert!(written == vec![7; 4096]);
}

#[test]
fn a_frontend_that_vanishes_with_requests_in_flight_leaves_nothing_behind() {
    let world = World::new(2, 2);
    let (_, socket) = world.serve(1, &[0, 1]);
    let stamp = |round: u64| u8::try_from(round % 251).unwrap() + 1;
    for round in 0..30 {
        let mut client = BlkClient::connect(&socket, options(2)).unwrap();
        for i in 0..16_u64 {
            let buffer = client.idle_buffer().unwrap();
            client.buffer_mut(buffer).fill(stamp(round));
            let request = BlkRequest { op: BlkOp::Write, offset: i * (256 << 10), len: 256 << 10, buffer };
            client.submit(usize::try_from(i % 2).unwrap(), request).unwrap();
        }
        client.kick(0).unwrap();
        client.kick(1).unwrap();
    }
    // Every block holds one of the stamps whole, and the device is as good as new.
    let mut client = BlkClient::connect(&socket, options(1)).unwrap();
    let mut block = vec![0; 512];
    for at in (0..4 << 20).step_by(64 << 10) {
        client.read_at(at, &mut block).unwrap();
        assert!(block.iter().all(|byte| *byte == block[0]), "a torn sector at {at}");
    }
    client.write_at(0, &[7; 4096]).unwrap();
    client.flush().unwrap();
}

#[test]
fn a_neighbour_works_on_while_a_frontend_misbehaves() {
    let world = World::new(2, 1);
    let (_, good) = world.serve(1, &[0, 1]);
    let (_, bad) = world.serve(2, &[0, 1]);
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = stop.clone();
    let hostile = std::thread::spawn(move || {
        let guest = vhost_user_support::Guest::new();
        let mut sessions = 0;
        while !stopping.load(Ordering::SeqCst) {
            let stream = UnixStream::connect(&bad).unwrap();
            raw::random_session(&stream, &guest, &mut Rng::new(sessions));
            sessions += 1;
        }
        sessions
    });
    let mut model = vec![0; SIZE];
    let mut client = BlkClient::connect(&good, options(2)).unwrap();
    exercise(&mut client, 2, &mut model, &mut Rng::new(4), 3000);
    verify(&mut client, &model);
    stop.store(true, Ordering::SeqCst);
    assert!(hostile.join().unwrap() > 20);
    let status = || world.server.status(spanblk::base::ids::VhdId(2)).unwrap();
    eventually("the hostile frontend is gone", || status().frontend.is_none() && status().rings == 0);
    drop(client);
    assert!(world.server.shut_down(Duration::from_secs(30)));
}

#[test]
fn a_frontend_that_takes_its_memory_away_breaks_its_own_device_and_nothing_else() {
    const READ: u32 = 0;
    const WRITE: u32 = 1;
    const DATA: u64 = 0x8_0000;
    let world = World::new(2, 1);
    let (_, good) = world.serve(1, &[0, 1]);
    let (_, bad) = world.serve(2, &[0, 1]);
    let mut model = vec![0; SIZE];
    let mut rng = Rng::new(9);
    let mut client = BlkClient::connect(&good, options(2)).unwrap();
    exercise(&mut client, 2, &mut model, &mut rng, 100);
    // All of it, rings included; then only the data: of a read that we answer, of a write that we copy, and of one that the kernel reads.
    for (left, kind, data) in [(0, READ, DATA), (DATA, READ, DATA), (DATA, WRITE, DATA + 1), (DATA, WRITE, DATA)] {
        let guest = vhost_user_support::Guest::new();
        let frontend = guest.start(&bad, 2);
        let error = EventFd::new(EFD_NONBLOCK).unwrap();
        frontend.set_vring_err(1, &error).unwrap();
        frontend.get_features().unwrap();
        let status = guest.submit(1, kind, data, 512);
        guest.truncate_memory(left);
        guest.kick.write(1).unwrap();
        eventually("the frontend is told", || error.read().is_ok());
        if left > 0 {
            eventually("the request has failed", || guest.read_memory(status, 1) == [1]);
        }
        exercise(&mut client, 2, &mut model, &mut rng, 100);
        frontend.get_vring_base(1).unwrap();
    }
    verify(&mut client, &model);
    // With other memory, the device is as good as new.
    let mut client = BlkClient::connect(&bad, options(1)).unwrap();
    client.write_at(1 << 20, &[7; 4096]).unwrap();
    client.flush().unwrap();
}
