//! Resizing as frontends see it: the configuration space, and the message on the backend channel.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod vhost_user_support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures as Protocol};
use vhost::vhost_user::{
    Frontend, FrontendReqHandler, HandlerResult, VhostUserFrontend, VhostUserFrontendReqHandlerMut,
};

use vhost_user_support::{Guest, Host, eventually};

/// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG: request 2, version 1 without a wish for a reply, no body.
const MESSAGE: [u32; 3] = [2, 1, 0];

/// What owner and service thread do when the VHD has grown.
fn grow(host: &Host, extents: u32) {
    let state = host.state(1);
    state.map.reserve(extents).unwrap();
    state.map.grow(extents);
    state.set_size(u64::from(extents) << 20);
    host.server.tell_size(host.id(1)).unwrap();
}

/// A frontend with running rings that has given its backend channel; and the other end of it.
fn with_channel(host: &Host, guest: &Guest) -> (Frontend, UnixStream) {
    let socket = host.server.path_of("disk");
    let mut frontend = guest.negotiate(&socket);
    let (ours, theirs) = UnixStream::pair().unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    assert_eq!(capacity(&mut frontend), host.state(1).size());
    run(&mut frontend, guest);
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (frontend, ours)
}

fn run(frontend: &mut Frontend, guest: &Guest) {
    frontend.set_features(guest.features).unwrap();
    frontend.set_mem_table(&guest.regions()).unwrap();
    guest.set_ring(frontend, 0, 64, 0);
    frontend.set_vring_kick(0, &guest.kick).unwrap();
    frontend.set_vring_enable(0, true).unwrap();
    frontend.get_features().unwrap();
}

fn capacity(frontend: &mut Frontend) -> u64 {
    let (_, config) = frontend.get_config(0, 60, VhostUserConfigFlags::empty(), &[0; 60]).unwrap();
    u64::from_le_bytes(config[..8].try_into().unwrap()) * 512
}

fn message(channel: &mut UnixStream) -> [u32; 3] {
    let mut bytes = [0; 12];
    channel.read_exact(&mut bytes).unwrap();
    [0, 4, 8].map(|at| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap()))
}

/// Whether there is nothing to read.
fn is_silent(channel: &mut UnixStream) -> bool {
    channel.set_nonblocking(true).unwrap();
    let silent = matches!(channel.read(&mut [0; 1]), Err(error) if error.kind() == ErrorKind::WouldBlock);
    channel.set_nonblocking(false).unwrap();
    silent
}

#[test]
fn a_frontend_with_a_channel_is_told_and_reads_the_new_capacity() {
    let host = Host::new(1);
    host.add(1, "disk", 1);
    let guest = Guest::new();
    let (mut frontend, mut channel) = with_channel(&host, &guest);
    assert!(is_silent(&mut channel), "it has read the size");
    for extents in [100, 3000, 9000] {
        grow(&host, extents);
        assert_eq!(message(&mut channel), MESSAGE);
        assert_eq!(capacity(&mut frontend), u64::from(extents) << 20);
        assert!(is_silent(&mut channel));
    }
    host.server.tell_size(host.id(1)).unwrap();
    frontend.get_features().unwrap();
    assert!(is_silent(&mut channel), "the same size again is no news");
    assert_eq!(host.status(1).rings, 1, "rings go on");
    drop(frontend);
    host.wait_for_detach(1);
    assert_eq!(channel.read(&mut [0; 1]).unwrap(), 0, "the channel is closed with the connection");
}

#[test]
fn frontends_without_a_channel_or_without_the_features_are_not_told() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let guest = Guest::new();
    let mut frontend = guest.start(&socket, 1);
    grow(&host, 100);
    assert_eq!(capacity(&mut frontend), 100 << 20, "whoever asks is told");
    drop(frontend);
    host.wait_for_detach(1);

    // Without CONFIG there is nothing that it could read.
    let mut frontend = guest.connect(&socket);
    frontend.get_features().unwrap();
    frontend.set_features(1 << 30).unwrap();
    let offered = frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(offered & (Protocol::BACKEND_REQ | Protocol::MQ)).unwrap();
    frontend.set_owner().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    drop(theirs);
    run(&mut frontend, &guest);
    grow(&host, 200);
    frontend.get_features().unwrap();
    let mut rest = Vec::new();
    ours.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    (&ours).read_to_end(&mut rest).unwrap();
    assert!(rest.is_empty());
    drop(frontend);
    host.wait_for_detach(1);

    // Without BACKEND_REQ the message is a mistake, which ends the connection.
    let mut frontend = guest.connect(&socket);
    frontend.get_features().unwrap();
    frontend.set_features(1 << 30).unwrap();
    frontend.get_protocol_features().unwrap();
    frontend.set_protocol_features(Protocol::CONFIG | Protocol::REPLY_ACK).unwrap();
    let (_ours, theirs) = UnixStream::pair().unwrap();
    assert!(frontend.set_backend_request_fd(&theirs).is_err() || frontend.get_features().is_err());
}

#[test]
fn what_changed_while_nobody_was_there_is_told_when_the_rings_start() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let guest = Guest::new();
    let (frontend, _) = with_channel(&host, &guest);
    drop(frontend);
    host.wait_for_detach(1);
    grow(&host, 100);
    // A VMM that connects again does not read the configuration.
    let mut frontend = guest.negotiate(&socket);
    let (mut ours, theirs) = UnixStream::pair().unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    frontend.get_features().unwrap();
    assert!(is_silent(&mut ours), "its device does not run yet");
    run(&mut frontend, &guest);
    assert_eq!(message(&mut ours), MESSAGE);
    assert!(is_silent(&mut ours));
}

#[test]
fn a_frontend_that_never_reads_its_channel_stops_nobody() {
    let host = Host::new(1);
    host.add(1, "disk", 1);
    let guest = Guest::new();
    let (mut frontend, mut channel) = with_channel(&host, &guest);
    let begun = Instant::now();
    (0..20_000).for_each(|i| grow(&host, 100 + i));
    assert!(begun.elapsed() < Duration::from_secs(20));
    assert_eq!(capacity(&mut frontend), 20_099 << 20);
    assert_eq!((message(&mut channel), host.status(1).rings), (MESSAGE, 1));
    // One that writes where it should read is not listened to.
    let _ = channel.set_nonblocking(true);
    while channel.write(&[0; 4096]).is_ok() {}
    grow(&host, 20_100);
    assert_eq!(capacity(&mut frontend), 20_100 << 20);
}

struct Counter(u32);

impl VhostUserFrontendReqHandlerMut for Counter {
    fn handle_config_change(&mut self) -> HandlerResult<u64> {
        self.0 += 1;
        Ok(0)
    }
}

/// As Cloud Hypervisor does it.
#[test]
fn the_protocol_library_understands_the_message() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let guest = Guest::new();
    let counter = Arc::new(Mutex::new(Counter(0)));
    let mut handler = FrontendReqHandler::new(Arc::clone(&counter)).unwrap();
    handler.set_reply_ack_flag(true);
    let mut frontend = guest.negotiate(&socket);
    frontend.set_backend_request_fd(&handler.get_tx_raw_fd()).unwrap();
    capacity(&mut frontend);
    run(&mut frontend, &guest);
    for extents in [100, 101] {
        grow(&host, extents);
        handler.handle_request().unwrap();
    }
    assert_eq!(counter.lock().unwrap().0, 2);
}

#[test]
fn nobody_connects_while_the_owner_keeps_the_vhd_to_itself() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 1);
    let guest = Guest::new();
    let frontend = guest.start(&socket, 1);
    assert!(!host.state(1).door.close());
    drop(frontend);
    host.wait_for_detach(1);
    eventually("the door can be closed", || host.state(1).door.close());
    let refused = guest.connect(&socket);
    assert!(refused.get_features().is_err());
    host.logged("VHD disk:", "being resized");
    host.state(1).door.open();
    let mut frontend = guest.start(&socket, 1);
    assert_eq!(capacity(&mut frontend), 64 << 20);
}
