//! The device as a guest meets it, without vhost-user: rings, reactors, pipeline and io_uring on file-backed disks.

#![allow(clippy::unwrap_used, reason = "tests")]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;

use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::atomic::Ordering;
use std::time::Duration;

use guest::{DISCARD, FLUSH, GET_ID, Guest, READ, WRITE};
use host::{Connection, EXTENT, Host, duplicate, eventfd, poll};
use spanblk::base::rng::Rng;
use spanblk::reactor::messages::RingCommand;

const DATA: usize = 256 << 10;

fn host(disks: u8, reactors: u16) -> (tempfile::TempDir, Host) {
    let directory = tempfile::tempdir().unwrap();
    let host = Host::new(directory.path(), disks, 64, reactors);
    (directory, host)
}

/// A ring under random load, and what its part of the VHD must hold.
struct Load {
    connection: Connection,
    rng: Rng,
    base: u64,
    model: Vec<u8>,
    under_way: HashMap<u16, (u32, usize, usize)>,
    requests: u32,
}

impl Load {
    fn new(connection: Connection, base: u64, len: usize, seed: u64) -> Load {
        let rng = Rng::new(seed);
        Load { connection, rng, base, model: vec![0; len], under_way: HashMap::new(), requests: 0 }
    }

    /// Submits a batch of requests that do not overlap each other or any that is under way.
    fn submit_some(&mut self) {
        for _ in 0..self.rng.below(8) {
            let Some(slot) = (0..16).find(|slot| !self.under_way.contains_key(slot)) else { break };
            let sectors = if self.rng.chance(1, 8) { 512 } else { 32 };
            let len = (self.rng.index(sectors) + 1) * 512;
            let at = self.rng.index((self.model.len() - len) / 512 + 1) * 512;
            let overlaps = |&(_, other, other_len): &(u32, usize, usize)| at < other + other_len && other < at + len;
            if self.under_way.values().any(overlaps) {
                continue;
            }
            let kind = if self.rng.chance(1, 2) { WRITE } else { READ };
            if kind == WRITE {
                self.rng.fill(&mut self.model[at..at + len]);
                self.connection.guest.put_data(slot, &self.model[at..at + len]);
            }
            let sector = (self.base + at as u64) / 512;
            self.connection.guest.submit(slot, kind, sector, len, self.rng.index(len / 512) * 512);
            self.under_way.insert(slot, (kind, at, len));
            self.requests += 1;
        }
        self.connection.kick();
    }

    fn check(&mut self, slot: u16, status: u8) {
        let (kind, at, len) = self.under_way.remove(&slot).expect("completed once");
        assert_eq!(status, 0);
        if kind == READ {
            let data = self.connection.guest.data(slot, len);
            assert!(data == self.model[at..at + len], "a read of {len} bytes at {at} differs");
        }
    }

    fn run(&mut self, requests: u32) {
        let end = self.requests + requests;
        while self.requests < end {
            self.submit_some();
            while let Some((slot, status)) = self.connection.guest.take() {
                self.check(slot, status);
            }
            if self.under_way.len() > 12 {
                let (slot, status) = self.connection.take();
                self.check(slot, status);
            }
        }
        self.drain();
    }

    fn drain(&mut self) {
        while !self.under_way.is_empty() {
            let (slot, status) = self.connection.take();
            self.check(slot, status);
        }
    }

    /// Reads everything and compares.
    fn verify(&mut self) {
        for at in (0..self.model.len()).step_by(DATA) {
            let len = DATA.min(self.model.len() - at);
            assert_eq!(self.connection.run(READ, (self.base + at as u64) / 512, len), 0);
            assert!(self.connection.guest.data(0, len) == self.model[at..at + len], "at {at}");
        }
    }
}

fn guest(event_idx: bool) -> Guest {
    Guest::new(16, DATA, event_idx)
}

#[test]
fn isolated_and_spanned_vhds_share_disks_under_load() {
    let (_directory, mut host) = host(3, 2);
    let isolated = host.vhd(1, 16, &[1]);
    let spanned = host.vhd(2, 16, &[0, 1, 2]);
    let len = 4 << 20;
    let mut loads = Vec::new();
    for (seed, (vhd, queue)) in (0u64..).zip([(&isolated, 0u16), (&isolated, 1), (&spanned, 0), (&spanned, 1)]) {
        let connection = host.connect(guest(seed % 2 == 0), vhd, queue);
        // Queues of one VHD keep to their own halves, which share an extent at the border.
        loads.push(Load::new(connection, u64::from(queue) * (len as u64 + 512), len, seed));
    }
    let threads: Vec<_> = loads
        .into_iter()
        .map(|mut load| {
            std::thread::spawn(move || {
                load.run(1500);
                assert_eq!(load.connection.run(FLUSH, 0, 0), 0);
                load.run(500);
                load.verify();
                load.connection.stop();
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let on_one_disk = |vhd: &spanblk::shared::VhdState| vhd.disks_to_sync().len();
    assert_eq!((on_one_disk(&isolated), on_one_disk(&spanned)), (1, 3));
    assert!(host.seen.commits.load(Ordering::SeqCst) > 0);
    assert!(host.seen.reports.lock().unwrap().is_empty());
    host.shut_down();
}

#[test]
fn no_kick_and_no_interrupt_is_lost() {
    let (_directory, mut host) = host(1, 2);
    for event_idx in [false, true] {
        let vhd = host.vhd(u32::from(event_idx), 4, &[0]);
        let mut connection = host.connect(guest(event_idx), &vhd, 1);
        for round in 0..5000u64 {
            // Absent extents are answered without a disk: the tightest race between kick and sleep.
            assert_eq!(connection.run(READ, round % 64, 512), 0);
        }
        connection.stop();
    }
    host.shut_down();
}

/// More rings than a reactor looks at without end, one of which never lets it sleep; the others come and go.
#[test]
fn many_rings_beside_a_busy_one_are_all_served() {
    let (_directory, mut host) = host(1, 1);
    let vhd = host.prefilled_vhd(1, 8, 0);
    let mut busy = host.connect(guest(true), &vhd, 0);
    let mut others: Vec<Connection> = (0..24).map(|i| host.connect(guest(i % 2 == 0), &vhd, 0)).collect();
    let mut rng = Rng::new(3);
    let mut kicks = 0;
    (0..16).for_each(|slot| busy.guest.submit(slot, READ, u64::from(slot) * 8, 4096, 0));
    busy.kick();
    for _ in 0..300 {
        let chosen: Vec<usize> = (0..others.len()).filter(|_| rng.chance(1, 4)).collect();
        for &i in &chosen {
            others[i].guest.submit(0, READ, 0, 4096, 0);
            kicks += u32::from(others[i].kick());
        }
        for _ in 0..20 {
            let (slot, status) = busy.take();
            assert_eq!(status, 0);
            busy.guest.submit(slot, READ, u64::from(slot) * 8, 4096, 0);
            busy.kick();
        }
        for i in chosen {
            assert_eq!(others[i].take(), (0, 0), "guest {i}");
        }
    }
    assert!(kicks > 0, "quiet rings are looked at for ever");
    (0..16).for_each(|_| assert_eq!(busy.take().1, 0));
    drop((busy, others));
    host.shut_down();
}

#[test]
fn identity_discard_and_bad_requests() {
    let (_directory, mut host) = host(2, 1);
    let vhd = host.vhd(1, 4, &[0, 1]);
    let mut connection = host.connect(guest(true), &vhd, 0);
    assert_eq!(connection.run(GET_ID, 0, 512), 0);
    assert_ne!(connection.guest.data(0, 20), [0; 20]);
    connection.guest.put_data(0, &[7; DATA]);
    for sector in (0..4 * EXTENT / 512).step_by(DATA / 512) {
        assert_eq!(connection.run(WRITE, sector, DATA), 0);
    }
    assert_eq!(connection.run(READ, 4 * EXTENT / 512, 512), 1, "beyond the end");
    let mut range = Vec::new();
    range.extend_from_slice(&0u64.to_le_bytes());
    range.extend_from_slice(&u32::try_from(2 * EXTENT / 512).unwrap().to_le_bytes());
    range.extend_from_slice(&0u32.to_le_bytes());
    connection.guest.put_data(0, &range);
    connection.guest.submit(0, DISCARD, 0, 16, 0);
    connection.kick();
    assert_eq!(connection.take(), (0, 0));
    assert!(vhd.map.lookup(spanblk::base::units::ExtentIndex(0)).replicas.is_absent());
    connection.guest.put_data(0, &[7; 512]);
    assert_eq!(connection.run(READ, 8, 512), 0);
    assert_eq!(connection.guest.data(0, 512), [0; 512]);
    assert_eq!(connection.run(READ, 2 * EXTENT / 512, 512), 0);
    assert_eq!(connection.guest.data(0, 512), [7; 512]);
    host.shut_down();
}

#[test]
fn a_ring_stops_with_everything_completed_and_starts_where_it_stopped() {
    let (_directory, mut host) = host(2, 2);
    let vhd = host.vhd(1, 8, &[0, 1]);
    let mut next = 0;
    let mut load = Load::new(host.connect(guest(true), &vhd, 0), 0, 6 << 20, 5);
    for round in 0..30u16 {
        for _ in 0..3 {
            load.submit_some();
        }
        let stopped = load.connection.stop();
        let popped = stopped.next_available.wrapping_sub(next);
        assert_eq!(load.connection.guest.completed_count(), popped, "what was popped is completed, and nothing else");
        next = stopped.next_available;
        // The same driver goes on with the other reactor, as after a vhost-user reconnect.
        let Connection { guest, .. } = load.connection;
        let used = next;
        load.connection = host.connect_with(guest, &vhd, round % 2, |config| config.next_available = used);
        load.drain();
        next = load.connection.guest.made_available();
    }
    load.verify();
    load.connection.stop();
    host.shut_down();
}

#[test]
fn eventfds_can_be_exchanged_and_be_missing() {
    let (_directory, mut host) = host(1, 1);
    let vhd = host.vhd(1, 4, &[0]);
    // Without a kick eventfd the ring is polled.
    let mut connection = host.connect_with(guest(false), &vhd, 0, |config| config.kick = None);
    for sector in 0..20 {
        assert_eq!(connection.run(WRITE, sector, 512), 0);
    }
    for _ in 0..20 {
        let (kick, call) = (eventfd(), eventfd());
        connection.command(RingCommand::SetKick { key: connection.key, kick: Some(duplicate(&kick)) });
        connection.command(RingCommand::SetCall { key: connection.key, call: Some(duplicate(&call)) });
        (connection.kick, connection.call) = (kick, call);
        for sector in 0..20 {
            assert_eq!(connection.run(READ, sector, 512), 0);
        }
    }
    // A completion that had nowhere to go is announced as soon as there is somewhere.
    connection.command(RingCommand::SetCall { key: connection.key, call: None });
    connection.guest.submit(0, READ, 0, 512, 0);
    connection.kick();
    while connection.guest.completed_count() == 0 {
        std::thread::yield_now();
    }
    let call = eventfd();
    connection.command(RingCommand::SetCall { key: connection.key, call: Some(duplicate(&call)) });
    assert!(poll(&call, Duration::from_secs(10)));
    connection.stop();
    host.shut_down();
}

#[test]
fn after_a_switch_to_writethrough_every_write_is_durable() {
    let (_directory, mut host) = host(1, 1);
    let vhd = host.vhd(1, 4, &[0]);
    let mut connection = host.connect(guest(true), &vhd, 0);
    let commits = |host: &Host| host.seen.commits.load(Ordering::SeqCst);
    for sector in 0..4 {
        assert_eq!(connection.run(WRITE, sector * 64, 512), 0);
    }
    assert_eq!(commits(&host), 0);
    (0..8).for_each(|slot| connection.guest.submit(slot, WRITE, 1024 + u64::from(slot) * 64, 512, 0));
    connection.kick();
    assert!(connection.set_writeback(false));
    assert!(commits(&host) > 0, "what was written before is durable");
    // Popped before the switch, they are covered by its flush; popped after it, each waits for its own.
    (0..8).for_each(|_| assert_eq!(connection.take().1, 0));
    assert!(!vhd.has_pending_changes());
    let before = commits(&host);
    assert_eq!(connection.run(WRITE, 3000, 512), 0);
    assert_eq!(commits(&host), before + 1);
    assert!(!vhd.has_pending_changes());
    assert!(connection.set_writeback(true));
    assert_eq!(connection.run(WRITE, 4000, 512), 0);
    assert!(vhd.has_pending_changes());
    connection.stop();
    host.shut_down();
}

#[test]
fn a_switch_to_writethrough_with_nothing_to_flush_is_answered() {
    let (_directory, mut host) = host(1, 1);
    let vhd = host.vhd(1, 4, &[0]);
    let mut connection = host.connect(guest(true), &vhd, 0);
    connection.guest.put_data(0, &[7; DATA]);
    assert_eq!((connection.run(WRITE, 0, DATA), connection.run(FLUSH, 0, 0)), (0, 0));
    for _ in 0..300 {
        // What is in flight delays the switch, and leaves nothing behind that would wake the reactor.
        (0..8).for_each(|slot| connection.guest.submit(slot, READ, 0, 4096, 0));
        connection.kick();
        std::thread::yield_now();
        assert!(connection.set_writeback(false));
        (0..8).for_each(|_| assert_eq!(connection.take().1, 0));
        assert!(connection.set_writeback(true));
    }
    connection.stop();
    host.shut_down();
}

#[test]
fn a_hostile_guest_breaks_its_own_ring_and_nothing_else() {
    let (_directory, mut host) = host(1, 1);
    let vhd = host.vhd(1, 4, &[0]);
    let mut neighbour = host.connect(guest(true), &vhd, 0);
    for attack in 0..7 {
        let mut hostile = match attack {
            4 => host.connect_with(guest(false), &vhd, 0, |config| config.addresses.used = 1 << 40),
            5 => host.connect_with(guest(false), &vhd, 0, |config| {
                let (reader, writer) = std::io::pipe().unwrap();
                (config.kick, config.call) = (Some(reader.into()), Some(writer.into()));
            }),
            6 => host.connect_with(guest(false), &vhd, 0, |config| {
                config.kick = Some(std::fs::File::open("/dev/zero").unwrap().into());
            }),
            _ => host.connect(guest(false), &vhd, 0),
        };
        match attack {
            0 => hostile.guest.set_available_index(1000),
            1 => hostile.guest.push_available(60_000),
            2 => (0..2).for_each(|_| hostile.guest.submit(0, WRITE, 0, 512, 0)),
            3 => {
                // A chain that runs in a circle is a bad request, not a broken ring; the bad index after it is.
                hostile.guest.set_descriptor(0, 0x3_0000, 16, guest::NEXT, 0);
                hostile.guest.push_available(0);
                hostile.guest.push_available(64);
            }
            _ => {}
        }
        hostile.kick.write_all(&1u64.to_ne_bytes()).unwrap();
        assert!(poll(&hostile.error, Duration::from_secs(10)), "attack {attack}: no error is told");
        let _ = hostile.error.read(&mut [0; 8]);
        assert_eq!(neighbour.run(WRITE, attack * 8, 512), 0);
        if attack != 4 {
            hostile.stop();
        }
    }
    neighbour.stop();
    host.shut_down();
}

#[test]
fn a_full_call_eventfd_stops_nobody_else() {
    let (_directory, mut host) = host(1, 1);
    let vhd = host.vhd(1, 4, &[0]);
    let mut neighbour = host.connect(guest(true), &vhd, 0);
    // SAFETY: takes no pointers.
    let blocking = unsafe { libc::eventfd(0, 0) };
    // SAFETY: a new descriptor that nobody else has.
    let blocking = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(blocking) };
    let call = duplicate(&blocking);
    let mut hostile = host.connect_with(guest(false), &vhd, 0, |config| config.call = Some(call));
    let _ = (&blocking).read(&mut [0; 8]);
    (&blocking).write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    for round in 0..100 {
        hostile.guest.submit(0, READ, 0, 512, 0);
        hostile.kick();
        while hostile.guest.take().is_none() {
            std::thread::yield_now();
        }
        assert_eq!(neighbour.run(READ, round, 512), 0);
    }
    hostile.stop();
    neighbour.stop();
    (&blocking).read_exact(&mut [0; 8]).unwrap();
    host.shut_down();
}

#[test]
fn a_storm_of_kicks_leaves_the_neighbour_its_turn() {
    let (_directory, mut host) = host(1, 1);
    let vhd = host.vhd(1, 4, &[0]);
    let mut neighbour = host.connect(guest(true), &vhd, 0);
    let hostile = host.connect(guest(false), &vhd, 0);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                (&hostile.kick).write_all(&1u64.to_ne_bytes()).unwrap();
            }
        });
        for round in 0..500 {
            assert_eq!(neighbour.run(if round % 2 == 0 { WRITE } else { READ }, round % 64, 512), 0);
        }
        stop.store(true, Ordering::Relaxed);
    });
    hostile.stop();
    neighbour.stop();
    host.shut_down();
}

/// Open files of the whole system, roughly.
fn open_files() -> u64 {
    let counts = std::fs::read_to_string("/proc/sys/fs/file-nr").unwrap();
    counts.split_whitespace().next().unwrap().parse().unwrap()
}

fn full_eventfd() -> std::fs::File {
    // SAFETY: takes no pointers.
    let fd = unsafe { libc::eventfd(0, 0) };
    // SAFETY: a new descriptor that nobody else has.
    let mut fd = unsafe { <std::fs::File as std::os::fd::FromRawFd>::from_raw_fd(fd) };
    fd.write_all(&(u64::MAX - 1).to_ne_bytes()).unwrap();
    fd
}

#[test]
fn full_eventfds_without_end_are_all_let_go() {
    const COUNT: u64 = 4000;
    let (_directory, mut host) = host(1, 1);
    let vhd = host.vhd(1, 4, &[0]);
    let before = open_files();
    let hostile = host.connect(guest(false), &vhd, 0);
    for round in 0..COUNT {
        let call = Some(full_eventfd().into());
        hostile.command(RingCommand::SetCall { key: hostile.key, call });
        if round % 100 == 0 {
            // A broken ring, too.
            let error = Some(full_eventfd().into());
            let mut broken = host.connect_with(guest(false), &vhd, 0, |config| config.error = error);
            broken.guest.set_available_index(1000);
            broken.kick();
            broken.stop();
        }
    }
    hostile.stop();
    let kept = open_files().saturating_sub(before);
    assert!(kept < COUNT / 2, "{kept} files stay open");
    host.shut_down();
}

#[test]
fn a_shutdown_completes_what_was_popped() {
    let (_directory, mut host) = host(2, 2);
    let vhd = host.vhd(1, 8, &[0, 1]);
    let mut connections: Vec<_> = (0..4).map(|i| host.connect(guest(true), &vhd, i % 2)).collect();
    for (base, connection) in (0u64..).zip(&mut connections) {
        (0..16).for_each(|slot| {
            connection.guest.submit(slot, WRITE, base * 1024 + u64::from(slot) * 8, 4096, 0);
        });
        connection.kick();
    }
    host.shut_down();
    for connection in &mut connections {
        let completed = connection.guest.completed_count();
        for _ in 0..completed {
            assert_eq!(connection.guest.take().unwrap().1, 0);
        }
        let answered = (0..16).filter(|&slot| connection.guest.status(slot) != 0xff).count();
        assert_eq!(answered, usize::from(completed));
    }
}
