//! Two frontends of one VHD: the one whose rings run, and the one that waits for them to stop.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod vhost_user_support;

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use spanblk::virtio::features;
use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{Frontend, VhostUserFrontend};

use vhost_user_support::{Guest, Host, Note, eventually, raw};

const CONFIG_FLAGS: VhostUserConfigFlags = VhostUserConfigFlags::empty();

/// A VHD of two queues with a frontend that is served, and another one that has started its rings, too.
struct Pair {
    host: Host,
    guests: [Guest; 2],
    first: Frontend,
    second: Frontend,
}

fn pair() -> Pair {
    let host = Host::new(2);
    let socket = host.add(1, "disk", 2);
    let guests = [Guest::new(), Guest::new()];
    let first = guests[0].start(&socket, 2);
    assert_eq!(host.starts().len(), 2);
    let second = guests[1].start(&socket, 2);
    assert!(host.take_notes().is_empty(), "the rings of the second wait");
    Pair { host, guests, first, second }
}

/// Waits until the first is gone and both rings of the second run.
fn second_runs(host: &Host) {
    eventually("the second has its turn", || host.status(1).waiting.is_none() && host.status(1).rings == 2);
}

/// Returns when everything that a frontend has sent has been dealt with.
fn settled(frontend: &Frontend) {
    frontend.get_features().unwrap();
}

#[test]
fn rings_of_the_second_wait_until_every_ring_of_the_first_is_stopped() {
    let Pair { host, guests, first, second } = pair();
    let status = host.status(1);
    assert!(status.frontend.is_some() && status.waiting.is_some() && status.rings == 2);
    assert_eq!(host.events.take(), ["attached 1"]);
    // It may change its mind about everything meanwhile.
    second.set_vring_enable_all(false);
    guests[1].set_ring(&second, 0, 128, 5);
    second.set_mem_table(&guests[1].regions()[..1]).unwrap();
    second.set_vring_enable_all(true);
    settled(&second);
    first.get_vring_base(0).unwrap();
    settled(&second);
    std::thread::sleep(Duration::from_millis(50));
    let notes = host.take_notes();
    assert!(matches!(notes[..], [Note::Stop(_)]), "one ring of the first still runs: {notes:?}");
    assert_eq!(host.status(1).rings, 1);
    first.get_vring_base(1).unwrap();
    eventually("the second has its turn", || host.status(1).rings == 2);
    let starts = host.starts();
    assert_eq!((starts[0].size, starts[0].next_available, starts[0].regions), (128, 5, 1));
    assert_eq!(host.events.take(), ["attached 1"], "the other one this time");
    // Now the first waits, if it starts again.
    first.set_vring_kick(0, &guests[0].kick).unwrap();
    settled(&first);
    assert!(host.take_notes().is_empty());
    // The second is active until it is gone; what it had is drained before the first goes on.
    host.reactors.hang(true);
    drop(second);
    std::thread::sleep(Duration::from_millis(50));
    assert!(host.starts().is_empty());
    host.reactors.hang(false);
    eventually("the first has its turn again", || host.status(1).rings == 1);
    assert_eq!(host.starts().len(), 1);
    assert!(host.status(1).waiting.is_none() && host.status(1).refused == 0);
    drop(first);
    host.wait_for_detach(1);
    assert_eq!(host.events.take(), ["attached 1", "detached 1"]);
}

#[test]
fn the_second_takes_over_when_the_first_is_gone() {
    let Pair { host, guests: _guests, first, second } = pair();
    host.reactors.hang(true);
    drop(first);
    std::thread::sleep(Duration::from_millis(50));
    settled(&second);
    assert!(matches!(host.take_notes()[..], [Note::Stop(_), Note::Stop(_)]), "not before its rings are drained");
    host.reactors.hang(false);
    second_runs(&host);
    assert_eq!(host.starts().len(), 2);
    assert_eq!(host.reactors.most_running(), 2, "never both");
}

#[test]
fn if_the_second_goes_away_the_first_goes_on() {
    let Pair { host, guests: _guests, first, second } = pair();
    drop(second);
    eventually("it is gone", || host.status(1).waiting.is_none());
    settled(&first);
    assert!(host.take_notes().is_empty());
    assert_eq!((host.status(1).rings, host.events.take()), (2, vec!["attached 1".to_owned()]));
    assert_eq!(host.logged("VHD disk", "is connected, too").matches("process").count(), 2);
}

#[test]
fn of_two_that_start_the_first_with_a_started_ring_is_active() {
    let host = Host::new(1);
    let socket = host.add(1, "race", 1);
    let guests = [Guest::new(), Guest::new()];
    let [early, late] = [0, 1].map(|index| guests[index].negotiate(&socket));
    let start = |frontend: &mut Frontend, guest: &Guest, base| {
        frontend.set_features(guest.features).unwrap();
        frontend.set_mem_table(&guest.regions()).unwrap();
        guest.set_ring(frontend, 0, 64, base);
        frontend.set_vring_kick(0, &guest.kick).unwrap();
        frontend.set_vring_enable(0, true).unwrap();
        settled(frontend);
    };
    let (mut early, mut late) = (early, late);
    start(&mut late, &guests[1], 7);
    start(&mut early, &guests[0], 3);
    let starts = host.starts();
    assert_eq!(starts.iter().map(|start| start.next_available).collect::<Vec<_>>(), [7]);
    assert!(host.logged("VHD race", "virtqueues wait").contains("are stopped"));
    late.reset_device().unwrap();
    eventually("the other one has its turn", || host.starts().iter().any(|start| start.next_available == 3));
    drop(late);
    eventually("it is gone", || host.status(1).waiting.is_none());
    assert_eq!(host.status(1).rings, 1);
}

#[test]
fn a_third_is_turned_away_and_the_log_names_all() {
    let Pair { host, guests: _guests, first, second } = pair();
    let mut third = UnixStream::connect(host.status(1).socket).unwrap();
    assert_eq!(third.read(&mut [0; 1]).unwrap(), 0, "closed at once");
    let line = host.logged("VHD disk", "turned away");
    let pid = std::process::id();
    assert_eq!(line.matches(&format!("process {pid} ")).count(), 3, "{line}");
    settled(&first);
    settled(&second);
    assert_eq!((host.status(1).connections, host.status(1).refused), (2, 1));
}

/// Import and export, for one, are no destinations of a migration: they are told at once instead of waiting for a guest.
#[test]
fn a_second_that_cannot_migrate_is_turned_away() {
    let host = Host::new(1);
    let socket = host.add(1, "busy", 1);
    let guest = Guest::new();
    let first = guest.start(&socket, 1);
    let other = Guest::new();
    let mut second = other.connect(&socket);
    let offered = second.get_features().unwrap();
    second.set_features(offered & features::VHOST_USER_PROTOCOL).unwrap();
    second.get_protocol_features().unwrap();
    second.set_protocol_features(Protocol::CONFIG | Protocol::MQ).unwrap();
    assert!(second.get_features().is_err());
    host.logged("VHD busy", "must be able to take part in a live migration");
    // One without protocol features shows when it starts a ring.
    let second = other.connect(&socket);
    second.get_features().unwrap();
    second.set_owner().unwrap();
    second.set_features(other.features & !features::VHOST_USER_PROTOCOL).unwrap();
    second.set_mem_table(&other.regions()).unwrap();
    other.set_ring(&second, 0, 64, 0);
    settled(&second);
    second.set_vring_kick(0, &other.kick).unwrap();
    assert!(second.get_features().is_err());
    eventually("both are counted", || host.status(1).refused == 2);
    settled(&first);
    assert_eq!((host.status(1).rings, host.status(1).faults), (1, 0));
    // It is no obstacle for one that came first.
    drop(first);
    host.wait_for_detach(1);
    let mut plain = other.connect(&socket);
    let offered = plain.get_features().unwrap();
    plain.set_features(offered & features::VHOST_USER_PROTOCOL).unwrap();
    plain.get_protocol_features().unwrap();
    plain.set_protocol_features(Protocol::CONFIG | Protocol::MQ).unwrap();
    let waiting = guest.start(&socket, 1);
    settled(&plain);
    settled(&waiting);
}

/// A VMM that does not migrate: its guest resets the device, and another one has started its rings meanwhile.
#[test]
fn one_that_was_active_waits_and_is_not_cut_off_if_it_cannot_migrate() {
    let host = Host::new(1);
    let socket = host.add(1, "reset", 1);
    let (guest, other) = (Guest::new(), Guest::new());
    let first = guest.connect(&socket);
    let features = guest.features & !features::VHOST_USER_PROTOCOL;
    first.get_features().unwrap();
    first.set_owner().unwrap();
    first.set_features(features).unwrap();
    first.set_mem_table(&guest.regions()).unwrap();
    guest.set_ring(&first, 0, 64, 0);
    first.set_vring_kick(0, &guest.kick).unwrap();
    settled(&first);
    assert_eq!(host.starts().len(), 1);
    let second = other.negotiate(&socket);
    first.get_vring_base(0).unwrap();
    drop(second);
    let second = other.start(&socket, 1);
    assert_eq!(host.starts().len(), 1);
    first.set_vring_kick(0, &guest.kick).unwrap();
    settled(&first);
    assert_eq!((host.starts().len(), host.status(1).refused), (0, 0));
    drop(second);
    eventually("it goes on", || host.starts().len() == 1);
    settled(&first);
}

#[test]
fn the_cache_mode_is_chosen_through_the_active_one() {
    let Pair { host, guests: _guests, mut first, mut second } = pair();
    second.set_config(32, CONFIG_FLAGS, &[0]).unwrap();
    settled(&second);
    assert!(host.status(1).writeback && host.take_notes().is_empty(), "its guest does not run yet");
    first.set_config(32, CONFIG_FLAGS, &[0]).unwrap();
    settled(&first);
    assert_eq!(host.take_notes(), [Note::SetWriteback(false), Note::SetWriteback(false)]);
    // A reset of the second is no reset of the guest.
    second.reset_device().unwrap();
    settled(&second);
    assert!(!host.status(1).writeback);
    drop(second);
    eventually("it is gone", || host.status(1).waiting.is_none());
    // Configured while the mode was another one than when its turn comes.
    first.set_config(32, CONFIG_FLAGS, &[1]).unwrap();
    let guest = Guest::new();
    let second = guest.start(&host.status(1).socket, 2);
    first.set_config(32, CONFIG_FLAGS, &[0]).unwrap();
    settled(&first);
    host.take_notes();
    drop(first);
    second_runs(&host);
    settled(&second);
    assert_eq!(host.starts().iter().map(|start| start.writeback).collect::<Vec<_>>(), [false, false]);
}

#[test]
fn nothing_is_taken_away_while_one_of_them_is_there() {
    let Pair { host, guests: _guests, first, second } = pair();
    let state = host.state(1);
    assert!(!state.door.close());
    drop(first);
    second_runs(&host);
    assert!(!state.door.close());
    drop(second);
    host.wait_for_detach(1);
    assert!(state.door.close());
    let mut late = UnixStream::connect(host.status(1).socket).unwrap();
    assert_eq!(late.read(&mut [0; 1]).unwrap(), 0);
    state.door.open();
}

#[test]
fn both_are_told_of_another_size() {
    let Pair { host, guests: _guests, first, second } = pair();
    let channels = [&first, &second].map(|frontend| {
        let (ours, theirs) = UnixStream::pair().unwrap();
        raw::send(frontend, raw::SET_BACKEND_REQ_FD, &[], &[std::os::fd::AsRawFd::as_raw_fd(&theirs)]);
        settled(frontend);
        ours
    });
    host.state(1).set_size(32 << 20);
    host.server.tell_size(host.id(1)).unwrap();
    for mut channel in channels {
        channel.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        channel.read_exact(&mut [0; 12]).unwrap();
    }
}

#[test]
fn logging_begins_and_ends_while_rings_run() {
    let host = Host::new(2);
    let guest = Guest::new();
    let mut frontend = guest.start(&host.add(1, "disk", 2), 2);
    assert!(host.starts().iter().all(|start| !start.logs));
    let log = guest.log(&mut frontend, 4096);
    settled(&frontend);
    let nothing = Note::SetLog { used: None, logs: false };
    assert_eq!(host.take_notes(), [nothing.clone(), nothing.clone()], "not before LOG_ALL");
    frontend.set_features(guest.features | features::LOG_ALL).unwrap();
    settled(&frontend);
    let logs = |used| Note::SetLog { used, logs: true };
    assert_eq!(host.take_notes(), [logs(None), logs(None)]);
    guest.set_addresses_with_log(&frontend, 1, 64, Some(0x5000));
    settled(&frontend);
    assert_eq!(host.take_notes(), [logs(None), logs(Some(0x5000))]);
    // A ring that is started meanwhile logs from its first moment, also in another log.
    let other = guest.log(&mut frontend, 8192);
    host.take_notes();
    frontend.get_vring_base(0).unwrap();
    frontend.set_vring_kick(0, &guest.kick).unwrap();
    settled(&frontend);
    let notes = host.take_notes();
    assert!(matches!(&notes[..], [Note::Stop(_), Note::Start(start)] if start.logs), "{notes:?}");
    frontend.set_features(guest.features).unwrap();
    settled(&frontend);
    assert_eq!(host.take_notes().len(), 2, "told, and neither stopped nor started");
    drop((log, other));
    // Other features are another matter.
    frontend.set_features(guest.features & !features::EVENT_IDX | features::LOG_ALL).unwrap();
    settled(&frontend);
    assert!(matches!(host.take_notes()[..], [Note::Stop(_), Note::Stop(_), Note::Start(_), Note::Start(_)]));
}

trait EnableAll {
    fn set_vring_enable_all(&self, enable: bool);
}

impl EnableAll for Frontend {
    fn set_vring_enable_all(&self, enable: bool) {
        for queue in 0..2_u32 {
            let payload = [queue.to_ne_bytes(), u32::from(enable).to_ne_bytes()].concat();
            raw::send(self, raw::SET_VRING_ENABLE, &payload, &[]);
        }
    }
}
