//! Two frontends of one VHD, each of a process of its own, and a daemon that is started anew between them: only what the process that was
//! active last has in its rings is of now.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod vhost_user_support;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use spanblk::shared::process::Process;
use vhost::VhostBackend;
use vhost::vhost_user::Frontend;
use vhost_user_support::{Guest, Host, Note, eventually};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

const SOCKET: &str = "SPANBLK_TEST_SOCKET";

/// A VMM: a process that connects, and lets the test speak for it.
struct Vmm {
    child: Child,
    control: UnixStream,
    guest: Guest,
}

impl Vmm {
    fn new(socket: &PathBuf) -> Vmm {
        let (control, theirs) = UnixStream::pair().unwrap();
        let args = ["--exact", "connects", "--ignored", "--nocapture", "--test-threads=1"];
        let mut command = Command::new(std::env::current_exe().unwrap());
        let child = command.args(args).env(SOCKET, socket).stdin(OwnedFd::from(theirs)).spawn().unwrap();
        Vmm { child, control, guest: Guest::new() }
    }

    fn connect(&mut self) -> Frontend {
        self.control.write_all(&[1]).unwrap();
        let (_, file) = self.control.recv_with_fd(&mut [0; 1]).unwrap();
        Frontend::from_stream(UnixStream::from(OwnedFd::from(file.unwrap())), 16)
    }

    /// Connects and starts two rings, as a VMM does that has a guest.
    fn start(&mut self) -> Frontend {
        let frontend = self.connect();
        self.guest.start_on(frontend, 2)
    }

    fn end(mut self) {
        drop(self.control);
        self.child.wait().unwrap();
    }
}

/// Not a test of its own: the process of a [`Vmm`].
#[test]
#[ignore = "run by the others, in a process of its own"]
fn connects() {
    let Ok(socket) = std::env::var(SOCKET) else { return };
    let mut control = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    // The connection stays the other process's alone.
    while control.read(&mut [0; 1]).unwrap() == 1 {
        let connection = File::from(OwnedFd::from(UnixStream::connect(&socket).unwrap()));
        control.send_with_fd(&[0_u8][..], connection.as_raw_fd()).unwrap();
    }
}

#[test]
fn a_process_is_alive_until_it_has_ended_not_until_its_parent_looks() {
    let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
    let process = Process::of(child.id()).unwrap().unwrap();
    assert!(process.is_alive());
    drop(child.stdin.take());
    eventually("it has ended", || !process.is_alive());
    assert!(std::fs::exists(format!("/proc/{}/stat", process.pid)).unwrap(), "it is a zombie");
    child.wait().unwrap();
    assert!(!process.is_alive());
}

fn stop(frontend: &Frontend) {
    for queue in 0..2 {
        frontend.get_vring_base(queue).unwrap();
    }
}

fn started(host: &Host) -> usize {
    host.take_notes().iter().filter(|note| matches!(note, Note::Start(_))).count()
}

#[test]
fn what_the_source_of_a_migration_has_left_in_its_rings_does_not_run_after_a_restart() {
    let mut host = Host::new(1);
    let socket = host.add(1, "moved", 2);
    let (mut source, mut destination) = (Vmm::new(&socket), Vmm::new(&socket));
    let from = source.start();
    let to = destination.connect();
    let to = destination.guest.negotiate_on(to);
    stop(&from);
    drop(to);
    let to = destination.start();
    eventually("the guest has moved", || host.status(1).rings == 2);
    assert_eq!(host.status(1).frontend.unwrap().pid, destination.child.id());
    assert!(host.server.is_awaited());
    host.restart();
    // The one that has stopped is the first to come back, and starts its rings as they were.
    let from_again = source.start();
    host.logged("VHD moved", "is out of date");
    let to_again = destination.start();
    eventually("the guest goes on", || host.status(1).rings == 2);
    assert_eq!((host.status(1).frontend.unwrap().pid, started(&host)), (destination.child.id(), 2));
    // The guest powers off.
    stop(&to_again);
    drop((from, to, to_again));
    destination.end();
    eventually("it is gone", || host.status(1).waiting.is_none());
    std::thread::sleep(Duration::from_millis(200));
    from_again.get_features().unwrap();
    assert_eq!((started(&host), host.status(1).rings), (0, 0), "older writes would follow newer ones");
    // A reset of its VM.
    stop(&from_again);
    (0..2).for_each(|queue| from_again.set_vring_kick(queue, &source.guest.kick).unwrap());
    eventually("new rings run", || host.status(1).rings == 2);
    drop(from_again);
    host.wait_for_detach(1);
    assert!(!host.server.is_awaited());
    source.end();
}

#[test]
fn others_wait_for_a_process_that_comes_back_and_go_on_when_it_has_ended() {
    let mut host = Host::new(1);
    let socket = host.add(1, "waited", 2);
    let (mut first, mut second) = (Vmm::new(&socket), Vmm::new(&socket));
    let _before = first.start();
    assert_eq!(started(&host), 2);
    host.restart();
    let early = second.start();
    host.logged("VHD waited", "starts them again");
    std::thread::sleep(Duration::from_millis(700));
    assert_eq!((started(&host), host.status(1).rings), (0, 0));
    let again = first.start();
    eventually("it goes on", || host.status(1).rings == 2);
    assert_eq!(host.status(1).frontend.unwrap().pid, first.child.id());
    host.restart();
    drop((early, again));
    let _late = second.start();
    assert_eq!(started(&host), 0);
    first.end();
    eventually("there is nobody to wait for", || host.status(1).rings == 2);
    assert_eq!(host.status(1).frontend.unwrap().pid, second.child.id());
    second.end();
}
