//! Holding and going on inside the sandbox: a copy of this test program puts it around itself.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use spanblk::sandbox::seccomp::{Filtering, install};
use spanblk::sandbox::{Mode, user};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserInflight;

use super::vhost_user_support::held::passed_on;
use super::vhost_user_support::{Guest, Host, eventually};
use super::{LONG, settled};

const INSIDE: &str = "SPANBLK_TEST_HELD_INSIDE";

/// Not a test of its own: what the other one runs.
#[test]
#[ignore = "run by the other one, in a process of its own"]
fn takeover() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    let host = Host::new(2);
    let socket = host.add(1, "disk", 2);
    let (guest, other) = (Guest::new(), Guest::new());
    let mut frontend = guest.start(&socket, 2);
    let (info, file) = frontend.get_inflight_fd(&VhostUserInflight::new(0, 0, 2, 64)).unwrap();
    frontend.set_inflight_fd(&info, file.as_raw_fd()).unwrap();
    let _log = guest.log(&mut frontend, 4096);
    let (_channel, theirs) = UnixStream::pair().unwrap();
    frontend.set_backend_request_fd(&theirs).unwrap();
    let second = other.start(&socket, 2);
    // The directory is made at its start.
    let next = host.next_server().waiting();
    user::keep_capabilities(rustix::thread::CapabilitySet::empty()).unwrap();
    assert_eq!(install(Mode::On).unwrap(), Filtering::Filtered);
    let held = host.server.hold(LONG).unwrap();
    for held in held {
        host.serve_held(&next, passed_on(held)).unwrap();
    }
    next.go_on();
    settled(&frontend);
    settled(&second);
    eventually("its rings run", || next.status(host.id(1)).unwrap().rings == 2);
    // What the test would tidy up with is not allowed here.
    std::process::exit(0);
}

#[test]
fn all_of_it_works_inside_the_sandbox() {
    let args = ["--exact", "inside::takeover", "--ignored", "--nocapture", "--test-threads=1"];
    let output = Command::new(std::env::current_exe().unwrap()).args(args).env(INSIDE, "1").output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains("test result"), "it came to its end: {output:?}");
}
