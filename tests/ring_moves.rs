//! A reactor lets go of a ring that is to go on at another one, or has as much in flight as it may; and how reactors count what they work.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;

use std::io::Write;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError};
use guest::{Guest, READ, WRITE};
use host::{Connection, EXTENT, Host, inflight};
use spanblk::reactor::messages::{RingCommand, RingStopped};

const SECOND: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(10);

/// A ring on the first of two reactors, with a first block that is there.
fn world() -> (tempfile::TempDir, Host, Connection) {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::new(directory.path(), 1, 64, 2);
    let vhd = host.vhd(1, 8, &[0]);
    let mut connection = host.connect(Guest::new(16, 64 << 10, true), &vhd, 0);
    assert_eq!(connection.run(WRITE, 0, 4096), 0);
    (directory, host, connection)
}

/// A write that waits for room, in slot 1.
fn wait_for_room(host: &Host, connection: &mut Connection) {
    host.seen.has_no_room.store(true, Ordering::SeqCst);
    connection.guest.submit(1, WRITE, 4 * EXTENT / 512, 4096, 2048);
    connection.kick();
    // The next one is answered, so the first is in flight.
    connection.guest.submit(2, READ, 0, 512, 0);
    connection.kick();
    assert_eq!(connection.take(), (2, 0));
}

fn ask_to_yield(connection: &Connection) -> Receiver<RingStopped> {
    let (reply, answer) = crossbeam_channel::bounded(1);
    connection.command(RingCommand::Yield { key: connection.key, even_broken: false, reply });
    answer
}

#[test]
fn a_ring_yields_where_it_is() {
    let (_directory, host, connection) = world();
    assert_eq!(
        ask_to_yield(&connection).recv_timeout(PATIENCE),
        Ok(RingStopped { next_available: 1, is_unlogged: false, is_broken: false })
    );
    // It is unknown from now on.
    assert_eq!(ask_to_yield(&connection).recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    host.shut_down();
}

/// Its in-flight region says where it goes on, whatever it is told.
#[test]
fn a_ring_goes_on_elsewhere_with_its_in_flight_region() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::new(directory.path(), 1, 64, 2);
    let vhd = host.vhd(1, 8, &[0]);
    let guest = Guest::new(16, 64 << 10, true);
    let kept = inflight(guest.size);
    let mut connection = host.connect_with(guest, &vhd, 0, |config| config.inflight = Some(kept.clone()));
    for turn in 1..=8u16 {
        for _ in 0..3 {
            assert_eq!(connection.run(WRITE, 0, 4096), 0);
        }
        let stopped = ask_to_yield(&connection).recv_timeout(PATIENCE);
        assert_eq!(stopped, Ok(RingStopped { next_available: 3 * turn, is_unlogged: false, is_broken: false }));
        assert!((0..kept.capacity()).all(|head| kept.mark(head) == 0) && kept.used_index() == 3 * turn);
        let Connection { guest, .. } = connection;
        connection = host.connect_with(guest, &vhd, turn % 2, |config| {
            config.inflight = Some(kept.clone());
            config.next_available = 0xdead;
        });
    }
    assert_eq!(connection.run(READ, 0, 4096), 0);
    assert_eq!(connection.stop().next_available, 25);
    host.shut_down();
}

#[test]
fn a_ring_that_cannot_yield_yet_goes_on_when_told_to() {
    let (_directory, host, mut connection) = world();
    wait_for_room(&host, &mut connection);
    let answer = ask_to_yield(&connection);
    connection.guest.submit(3, READ, 0, 512, 0);
    connection.kick();
    assert_eq!(answer.recv_timeout(SECOND / 10), Err(RecvTimeoutError::Timeout), "the write is in flight");
    assert_eq!(connection.guest.completed_count(), 0, "nothing is popped meanwhile");
    connection.command(RingCommand::GoOn { key: connection.key });
    assert_eq!(answer.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    assert_eq!(connection.take(), (3, 0));
    host.seen.has_no_room.store(false, Ordering::SeqCst);
    assert_eq!(connection.take(), (1, 0));
    host.shut_down();
}

#[test]
fn a_ring_that_breaks_while_it_yields_goes_on_nowhere() {
    let (_directory, host, mut connection) = world();
    wait_for_room(&host, &mut connection);
    let answer = ask_to_yield(&connection);
    let no_eventfd = tempfile::tempfile().unwrap().into();
    connection.command(RingCommand::SetCall { key: connection.key, call: Some(no_eventfd) });
    assert_eq!(answer.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    host.seen.has_no_room.store(false, Ordering::SeqCst);
    // It can still be stopped.
    assert_eq!(connection.stop().next_available, 3);
    host.shut_down();
}

/// One that is to go on in another process goes on broken: what it has in flight is waited for.
#[test]
fn a_broken_ring_stops_too_if_that_is_asked_for() {
    let (_directory, host, mut connection) = world();
    wait_for_room(&host, &mut connection);
    let no_eventfd = tempfile::tempfile().unwrap().into();
    connection.command(RingCommand::SetCall { key: connection.key, call: Some(no_eventfd) });
    let ask = |even_broken| {
        let (reply, answer) = crossbeam_channel::bounded(1);
        connection.command(RingCommand::Yield { key: connection.key, even_broken, reply });
        answer
    };
    assert_eq!(ask(false).recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    let answer = ask(true);
    assert_eq!(answer.recv_timeout(SECOND / 10), Err(RecvTimeoutError::Timeout), "the write is in flight");
    connection.command(RingCommand::GoOn { key: connection.key });
    assert_eq!(answer.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
    let answer = ask(true);
    host.seen.has_no_room.store(false, Ordering::SeqCst);
    let stopped = RingStopped { next_available: 3, is_unlogged: false, is_broken: true };
    assert_eq!(answer.recv_timeout(PATIENCE), Ok(stopped));
    host.shut_down();
}

/// Work is counted while there is some, by the reactor that does it, and comes to an end with it.
#[test]
fn reactors_count_what_they_work() {
    let (_directory, host, mut connection) = world();
    let work = |index: usize| Duration::from_nanos(host.busy[index].total());
    let begun = Instant::now();
    let mut requests = 0;
    while begun.elapsed() < SECOND || work(0) < SECOND / 50 {
        assert!(begun.elapsed() < 60 * SECOND, "{requests} requests are hardly any work: {:?}", work(0));
        assert_eq!(connection.run(WRITE, 0, 4096), 0);
        requests += 1;
    }
    assert!(work(0) < begun.elapsed(), "{:?} of {:?}", work(0), begun.elapsed());
    assert!(work(1) < SECOND / 100, "nobody asked the other one for anything: {:?}", work(1));
    // Quiet again: what is counted comes to an end.
    std::thread::sleep(SECOND / 10);
    assert_eq!(connection.run(READ, 0, 4096), 0);
    let before = work(0);
    std::thread::sleep(SECOND / 2);
    assert_eq!(connection.run(READ, 0, 4096), 0);
    assert!(work(0) - before < SECOND / 50, "{:?} in a quiet half second", work(0) - before);
    host.shut_down();
}

/// 256 MiB are asked for at once. What is in flight waits for room, and the reactor sleeps, although there is more in the ring.
#[test]
fn a_ring_that_is_full_lets_its_reactor_sleep_and_goes_on() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::sleeping(directory.path(), 8);
    let vhd = host.vhd(1, 8, &[0]);
    host.seen.has_no_room.store(true, Ordering::SeqCst);
    let mut connection = host.connect(Guest::new(256, 1 << 20, true), &vhd, 0);
    (0..256).for_each(|slot| connection.guest.submit(slot, WRITE, u64::from(slot % 8) * 2048, 1 << 20, 0));
    connection.kick();
    std::thread::sleep(Duration::from_millis(100));
    let worked = host.busy[0].total();
    // A kick all the same, and the next one, which has its work counted, change nothing.
    connection.kick.write_all(&1u64.to_ne_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(200));
    connection.kick.write_all(&1u64.to_ne_bytes()).unwrap();
    std::thread::sleep(Duration::from_millis(20));
    let worked_ns = host.busy[0].total() - worked;
    assert!(worked_ns < 50_000_000, "the reactor has worked for {worked_ns} ns of 220 ms");
    assert_eq!(connection.guest.completed_count(), 0);
    host.seen.has_no_room.store(false, Ordering::SeqCst);
    for _ in 0..256 {
        assert_eq!(connection.take().1, 0);
    }
    assert_eq!(connection.run(READ, 0, 4096), 0);
    assert_eq!(usize::from(connection.stop().next_available), 257);
    host.shut_down();
}
