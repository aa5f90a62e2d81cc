//! Frontends that a server holds and another one goes on with: as the frontend sees it, and its guest, nothing has happened.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;
#[path = "held_frontends/inside.rs"]
mod inside;
#[path = "held_frontends/load.rs"]
mod load;
#[path = "held_frontends/orders.rs"]
mod orders;
#[path = "held_frontends/parts.rs"]
mod parts;
#[path = "common/served.rs"]
mod served;
mod vhost_user_support;

use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use host::EXTENT;
use served::{Daemon, Driver, QUEUES, READ, RING, WRITE};
use spanblk::vhost_user::{HeldVhd, HoldFault, NotHeld, ServerError, SocketSettings, VhdEndpoint};
use spanblk::virtio::features;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost_user_support::held::passed_on;
use vhost_user_support::{Guest, Host, Note, eventually, raw};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SECOND: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(30);
const CONFIG_FLAGS: VhostUserConfigFlags = VhostUserConfigFlags::empty();

/// Returns when everything that a frontend has sent has been dealt with.
fn settled(frontend: &Frontend) {
    frontend.get_features().unwrap();
}

/// Two servers after one another with a frontend of two rings on the first.
fn started() -> (Host, Guest, Frontend) {
    let host = Host::new(2);
    let socket = host.add(1, "disk", 2);
    let guest = Guest::new();
    let frontend = guest.start(&socket, 2);
    assert_eq!(host.starts().len(), 2);
    (host, guest, frontend)
}

#[test]
fn a_device_is_as_it_was() {
    let (mut host, guest, frontend) = started();
    guest.set_ring(&frontend, 1, 128, 77);
    let mut frontend = frontend;
    frontend.set_config(0x20, CONFIG_FLAGS, &[0]).unwrap();
    frontend.add_mem_region(&guest.extra_region(0x900_0000)).unwrap();
    settled(&frontend);
    let before = host.status(1);
    let told = host.events.take();
    assert_eq!(told, ["attached 1", "cache mode 1 false"]);
    // The second one first, so that they have changed places.
    (0..2).for_each(|queue| frontend.set_vring_enable(queue, false).unwrap());
    (0..2).rev().for_each(|queue| frontend.set_vring_enable(queue, true).unwrap());
    settled(&frontend);
    let mut starts = host.starts();
    starts.pop().unwrap();
    let last = starts.pop().unwrap();
    host.reactors.pretend_popped(5);
    host.take_over();
    eventually("its rings run", || host.status(1).rings == 2);
    assert_eq!(host.status(1), before);
    let starts = host.starts();
    let [first, second] = &starts[..] else { panic!("two rings start: {starts:?}") };
    assert_eq!((first.size, first.next_available, second.size, second.next_available), (64, 5, 128, 82));
    assert_eq!((second.addresses, second.features, second.event_idx), (last.addresses, last.features, true));
    assert_eq!((first.regions, first.has_kick, first.has_call, second.writeback), (3, true, true, false));
    assert_ne!(first.reactor, second.reactor);
    assert_eq!(second.reactor, last.reactor, "where it was");
    // What was agreed on holds, and answers come where they are asked for.
    frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    frontend.set_vring_enable(0, false).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
    frontend.remove_mem_region(&guest.extra_region(0x900_0000)).unwrap();
    frontend.set_hdr_flags(VhostUserHeaderFlag::empty());
    assert_eq!(frontend.get_config(0x20, 1, CONFIG_FLAGS, &[0]).unwrap().1, [0]);
    assert_eq!(frontend.get_queue_num().unwrap(), 2);
    frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 2, 64)).unwrap();
    assert_eq!(frontend.get_vring_base(0).unwrap(), 5 + 5 + 5 + 5, "stopped four times since it began");
    frontend.reset_device().unwrap();
    settled(&frontend);
    assert_eq!(host.status(1).rings, 0);
    drop(frontend);
    host.wait_for_detach(1);
    assert_eq!(host.events.take(), ["attached 1", "cache mode 1 true", "detached 1"], "told again, then once");
}

#[test]
fn nobody_is_told_of_a_hold_and_paths_stay() {
    let (host, _guest, mut frontend) = started();
    let path = host.status(1).socket;
    host.events.take();
    let mut held = host.server.hold(LONG).unwrap();
    assert!(host.server.statuses().is_empty());
    assert!(!host.state(1).door.close(), "they are in all the while");
    let next = host.next_server();
    let Host { server, .. } = &host;
    let refused = |result: Result<(), ServerError>| matches!(result, Err(ServerError::HandedOver));
    assert!(refused(server.remove_vhd(host.id(1)).map(drop)), "it serves nothing any more");
    // Who connects meanwhile waits.
    let early = UnixStream::connect(&path).unwrap();
    assert_eq!(host.serve_held(&next, passed_on(held.pop().unwrap())).unwrap(), path);
    settled(&frontend);
    let status = || next.status(host.id(1)).unwrap();
    eventually("the second is let in", || status().connections == 2);
    drop(early);
    frontend.set_config(0x20, CONFIG_FLAGS, &[0]).unwrap();
    assert_eq!((status().rings, status().refused, status().faults), (2, 0, 0));
    next.rename(host.id(1), "other").unwrap();
    assert!(!path.exists() && status().socket.exists());
    let renamed = status().socket;
    drop(next);
    assert!(!renamed.exists(), "the next server has made it its own");
    assert_eq!(host.events.take().first().map(String::as_str), Some("attached 1"));
}

/// A server that waits has changed nothing yet: the one before can go on.
#[test]
fn a_takeover_that_is_given_up_leaves_no_trace() {
    let (mut host, _guest, mut frontend) = started();
    let path = host.status(1).socket;
    let (state, descriptors) = host.server.hold(LONG).unwrap().pop().unwrap().into_parts();
    let copies = || descriptors.iter().map(|fd| fd.try_clone().unwrap()).collect();
    for goes_on in [false, true] {
        let next = host.next_server().waiting();
        let held = HeldVhd::from_parts(state.clone(), copies()).unwrap();
        host.serve_held(&next, held).unwrap();
        let early = UnixStream::connect(&path).unwrap();
        std::thread::sleep(SECOND / 20);
        assert!(host.starts().is_empty(), "it waits");
        assert_eq!(next.status(host.id(1)).unwrap().connections, 1);
        if goes_on {
            next.go_on();
            eventually("its rings run", || host.reactors.running() == 2);
            drop(std::mem::replace(&mut host.server, next));
        } else {
            assert!(next.shut_down(LONG));
            assert!(path.exists() && host.state(1).door.close());
            host.state(1).door.open();
        }
        drop(early);
    }
    drop(descriptors);
    frontend.set_config(0x20, CONFIG_FLAGS, &[0]).unwrap();
    settled(&frontend);
    assert_eq!((host.status(1).rings, host.status(1).faults), (2, 0));
    drop(host);
    assert!(!path.exists());
}

#[test]
fn what_is_held_and_dropped_is_disconnected() {
    let (host, _guest, frontend) = started();
    let path = host.status(1).socket;
    drop(host.server.hold(LONG).unwrap());
    assert!(host.state(1).door.close());
    host.state(1).door.open();
    assert!(frontend.get_features().is_err());
    assert!(path.exists(), "only who listens there may remove it");
    assert!(UnixStream::connect(&path).is_err());
    assert_eq!(host.events.take(), ["attached 1"]);
    // The next daemon binds it as if the one before had been killed.
    let mut host = host;
    host.restart();
    host.try_add(1, "disk", 2).unwrap();
    UnixStream::connect(&path).unwrap();
}

#[test]
fn messages_are_handled_by_whoever_is_there_when_they_are_whole() {
    let (mut host, guest, frontend) = started();
    let socket = host.status(1).socket;
    let mut half = UnixStream::connect(&socket).unwrap();
    half.set_read_timeout(Some(LONG)).unwrap();
    let message = raw::message(raw::GET_FEATURES, &[]);
    let answer = |stream: &mut UnixStream| {
        let mut answer = [0; 20];
        stream.read_exact(&mut answer).unwrap();
        u64::from_ne_bytes(answer[12..].try_into().unwrap())
    };
    for cut in 0..message.len() {
        half.write_all(&message[..cut]).unwrap();
        eventually("it is connected", || host.status(1).waiting.is_some());
        host.take_over();
        half.write_all(&message[cut..]).unwrap();
        assert_eq!(answer(&mut half) & features::LOG_ALL, features::LOG_ALL);
    }
    // Whole ones that nobody has read, with descriptors.
    let held = host.server.hold(LONG).unwrap().pop().unwrap();
    guest.set_ring(&frontend, 0, 32, 9);
    let (call, other) = (EventFd::new(EFD_NONBLOCK).unwrap(), EventFd::new(EFD_NONBLOCK).unwrap());
    frontend.set_vring_call(0, &call).unwrap();
    raw::send(&frontend, raw::SET_LOG_FD, &[], &[other.as_raw_fd()]);
    host.take_notes();
    let next = host.next_server();
    host.serve_held(&next, passed_on(held)).unwrap();
    settled(&frontend);
    let notes = host.take_notes();
    assert!(matches!(notes.last(), Some(Note::SetLog { .. })), "{notes:?}");
    let size = |note: &Note| if let Note::Start(start) = note { Some((start.size, start.index)) } else { None };
    assert_eq!(notes.iter().filter_map(size).next_back(), Some((32, 0)));
}

#[test]
fn the_second_keeps_waiting_and_then_has_its_turn() {
    let (mut host, guest, first) = started();
    let socket = host.status(1).socket;
    let other = Guest::new();
    let second = other.start(&socket, 2);
    assert!(host.take_notes().is_empty());
    host.take_over();
    // Each is gone on with by a thread of its own.
    settled(&first);
    settled(&second);
    assert_eq!(host.starts().len(), 2, "those of the first");
    assert!(host.status(1).waiting.is_some());
    // The grace for one that has stopped goes on, too.
    (0..2).for_each(|queue| assert!(first.get_vring_base(queue).is_ok()));
    let stopped = Instant::now();
    host.take_notes();
    host.take_over();
    std::thread::sleep(SECOND);
    assert!(host.starts().is_empty(), "the first may come back");
    host.take_over();
    eventually("the second has its turn", || host.status(1).rings == 2);
    let waited = stopped.elapsed();
    assert!(waited > 2 * SECOND && waited < 5 * SECOND, "{waited:?}");
    // Now the first waits, which it has not been told either.
    host.take_over();
    first.set_vring_kick(0, &guest.kick).unwrap();
    settled(&first);
    assert_eq!(host.status(1).rings, 2);
    host.take_notes();
    drop(second);
    eventually("the first goes on", || host.status(1).waiting.is_none() && host.status(1).rings == 1);
}

/// A disk that hangs, a message that waits for it: all goes on.
#[test]
fn what_does_not_come_to_an_end_is_not_held() {
    let (host, guest, first) = started();
    let socket = host.add(2, "other", 2);
    let second = guest.start(&socket, 2);
    host.take_notes();
    let fails = |names: &[&str]| {
        let begun = Instant::now();
        let error = host.server.hold(SECOND / 5).unwrap_err();
        assert!(begun.elapsed() < SECOND, "{:?}", begun.elapsed());
        // Whoever is late may be named alone by a moment.
        let found: Vec<&str> = error.0.iter().map(|vhd| vhd.name.as_str()).collect();
        assert!(!found.is_empty() && found.iter().all(|name| names.contains(name)), "{error}");
        assert!(error.to_string().contains("takes too long"), "{error}");
    };
    host.reactors.hang(true);
    fails(&["disk", "other"]);
    settled(&first);
    settled(&second);
    let notes = host.take_notes();
    assert_eq!(notes.iter().filter(|note| matches!(note, Note::GoOn(_))).count(), 4, "{notes:?}");
    assert_eq!((host.reactors.running(), host.status(1).rings, host.status(2).rings), (4, 2, 2));
    // One of them stops a ring, and waits for that.
    let stops = std::thread::spawn(move || {
        assert_eq!(first.get_vring_base(0).unwrap(), 0);
        first
    });
    eventually("it is being handled", || host.take_notes().iter().any(|note| matches!(note, Note::Stop(_))));
    fails(&["disk", "other"]);
    host.reactors.hang(false);
    let first = stops.join().unwrap();
    settled(&second);
    eventually("the other one goes on", || host.reactors.running() == 3);
    assert_eq!((host.status(1).rings, host.status(2).rings), (1, 2));
    assert_eq!(host.server.hold(LONG).unwrap().len(), 2);
    drop((first, second));
}

#[test]
fn a_backend_channel_is_told_of_sizes() {
    let (mut host, _guest, mut frontend) = started();
    let (mut channel, theirs) = UnixStream::pair().unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    frontend.get_config(0, 8, CONFIG_FLAGS, &[0; 8]).unwrap();
    channel.set_read_timeout(Some(LONG)).unwrap();
    let mut message = [0; 12];
    let grow = |host: &Host, extents| {
        let state = host.state(1);
        state.map.reserve(extents).unwrap();
        state.map.grow(extents);
        state.set_size(u64::from(extents) << 20);
    };
    host.take_over();
    channel.set_nonblocking(true).unwrap();
    settled(&frontend);
    assert!(matches!(channel.read(&mut message), Err(error) if error.kind() == ErrorKind::WouldBlock), "no news");
    channel.set_nonblocking(false).unwrap();
    grow(&host, 100);
    host.server.tell_size(host.id(1)).unwrap();
    channel.read_exact(&mut message).unwrap();
    // Grown while it is held, so that nobody could tell.
    let held = host.server.hold(LONG).unwrap().pop().unwrap();
    grow(&host, 200);
    let next = host.next_server();
    host.serve_held(&next, passed_on(held)).unwrap();
    channel.read_exact(&mut message).unwrap();
    assert_eq!(message[..4], 2_u32.to_ne_bytes());
}

#[test]
fn a_frontend_that_takes_its_memory_away_ends_its_own_connection() {
    let (host, guest, first) = started();
    let socket = host.add(2, "other", 2);
    let other = Guest::new();
    let second = other.start(&socket, 2);
    let held = host.server.hold(LONG).unwrap();
    guest.truncate_memory(4096);
    let next = host.next_server();
    for held in held {
        host.serve_held(&next, passed_on(held)).unwrap();
    }
    settled(&second);
    assert!(first.get_features().is_err());
    let status = || next.status(host.id(1)).unwrap();
    eventually("it is gone", || status().frontend.is_none());
    let status = status();
    assert_eq!((status.frontend, status.faults, status.rings), (None, 1, 0));
    // There is room for another one.
    other.start(&status.socket, 2);
}

/// What was written before is in the log, what is written afterwards, too.
#[test]
fn the_dirty_log_is_complete() {
    let mut daemon = Daemon::new();
    let mut driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&daemon);
    driver.start(&mut frontend, 0);
    let log = driver.guest.log(&mut frontend, 4096);
    let call = EventFd::new(EFD_NONBLOCK).unwrap();
    frontend.set_log_fd(call.as_raw_fd()).unwrap();
    frontend.set_features(driver.guest.features | features::LOG_ALL).unwrap();
    settled(&frontend);
    for (turn, page) in (0_u16..).zip([0x4100_u64, 0x4102, 0x4105]) {
        if turn > 0 {
            daemon.take_over(usize::from(turn % 2));
        }
        driver.submit_at(0, turn * 3, READ, 0, (page * 4096, 512), false);
        driver.kick();
        assert_eq!(driver.wait(0, 1), [turn * 3]);
        eventually("the frontend is told", || call.read().is_ok());
    }
    frontend.get_vring_base(0).unwrap();
    let mut bytes = [0; 4096];
    log.read_exact_at(&mut bytes, 0).unwrap();
    for page in [0x4100, 0x4102, 0x4105, (Driver::header(0, 0) + 16) / 4096] {
        let page = usize::try_from(page).unwrap();
        assert_eq!(bytes[page / 8] >> (page % 8) & 1, 1, "page {page:#x}");
    }
    assert!(daemon.server.shut_down(LONG));
}

/// A write waits for room: it is not held, and completes when there is some.
#[test]
fn a_request_that_waits_for_room_goes_on() {
    let mut daemon = Daemon::new();
    let mut driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&daemon);
    driver.start(&mut frontend, 0);
    daemon.host.seen.has_no_room.store(true, Ordering::SeqCst);
    driver.submit(0, 0, WRITE, EXTENT, 1, false);
    driver.submit(0, 3, READ, 0, 0xee, false);
    driver.kick();
    assert_eq!(driver.wait(0, 1), [3]);
    let error = daemon.server.hold(SECOND / 5).unwrap_err();
    assert_eq!(error.0.len(), 1, "{error}");
    for queue in 0..QUEUES {
        driver.submit(queue, 6, READ, 0, 0xee, false);
        driver.kick();
        assert_eq!(driver.wait(queue, 1), [6], "queue {queue} goes on");
    }
    daemon.host.seen.has_no_room.store(false, Ordering::SeqCst);
    assert_eq!(driver.wait(0, 1), [0]);
    daemon.take_over(0);
    driver.submit(0, 0, READ, EXTENT, 0xee, false);
    driver.kick();
    assert_eq!(driver.wait(0, 1), [0]);
    assert_eq!(driver.guest.read_memory(Driver::data(0, 0), 512), [1; 512]);
    assert_eq!(frontend.get_vring_base(0).unwrap(), 4);
    assert!(daemon.server.shut_down(LONG));
}

/// A broken ring runs again only after what would have made it run.
#[test]
fn a_broken_ring_stays_broken() {
    let mut daemon = Daemon::new();
    let mut driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&daemon);
    let error = EventFd::new(EFD_NONBLOCK).unwrap();
    frontend.set_vring_err(0, &error).unwrap();
    driver.start(&mut frontend, 0);
    let ring = driver.ring(0);
    driver.guest.write_memory(ring.available + 2, &(2 * RING).to_le_bytes());
    driver.kick();
    eventually("it is broken", || error.read().is_ok());
    driver.guest.write_memory(ring.available + 2, &[0; 2]);
    for first in [0, 1] {
        daemon.take_over(first);
        settled(&frontend);
        driver.submit(1, 0, READ, 0, 0xee, false);
        driver.kick();
        assert_eq!(driver.wait(1, 1), [0]);
    }
    driver.submit(0, 0, READ, 0, 0xee, false);
    driver.kick();
    std::thread::sleep(SECOND / 5);
    assert_eq!((driver.used(0), error.read().is_err()), (0, true));
    assert_eq!(daemon.server.status(daemon.vhd.id()).unwrap().rings, 2, "as before");
    frontend.get_vring_base(0).unwrap();
    driver.start(&mut frontend, 0);
    driver.seen[1] = 0;
    eventually("it runs", || driver.used(0) == 1);
    assert!(daemon.server.shut_down(LONG));
}

/// A migration that would lose something is told so, whoever is asked.
#[test]
fn what_the_log_had_no_bit_for_is_not_forgotten() {
    let mut daemon = Daemon::new();
    let mut driver = Driver::new(Guest::new());
    let mut frontend = driver.connect(&daemon);
    let error = EventFd::new(EFD_NONBLOCK).unwrap();
    frontend.set_vring_err(0, &error).unwrap();
    driver.start(&mut frontend, 0);
    let _log = driver.guest.log(&mut frontend, 512);
    frontend.set_features(driver.guest.features | features::LOG_ALL).unwrap();
    settled(&frontend);
    driver.submit_at(0, 0, READ, 0, (0x410_0000, 512), false);
    driver.kick();
    eventually("it is broken", || error.read().is_ok());
    daemon.take_over(0);
    assert!(frontend.get_vring_base(0).is_err());
    assert!(daemon.server.shut_down(LONG));
}

/// What was written before a switch to writethrough is flushed by the first ring that runs, also that of another server.
#[test]
fn a_flush_that_is_owed_is_owed_by_whoever_goes_on() {
    let (mut host, _guest, mut frontend) = started();
    (0..2).for_each(|queue| frontend.set_vring_enable(queue, false).unwrap());
    frontend.set_config(0x20, CONFIG_FLAGS, &[0]).unwrap();
    settled(&frontend);
    host.take_over();
    host.take_notes();
    frontend.set_vring_enable(0, true).unwrap();
    settled(&frontend);
    let notes = host.take_notes();
    assert!(matches!(notes[..], [Note::Start(_), Note::SetWriteback(false)]), "{notes:?}");
}
