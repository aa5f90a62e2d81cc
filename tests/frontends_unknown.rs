//! A frontend that comes when the daemon has no descriptor left to look who it is: alone in its process, whose descriptors they are.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod vhost_user_support;

use std::fs::File;
use std::io::Read;
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use spanblk::shared::process::Process;
use vhost_user_support::{Guest, Host, eventually};

/// Takes all descriptors that the process may have from now on but `left`.
fn take_all_but(left: usize) -> Vec<File> {
    let null = File::open("/dev/null").unwrap();
    let before = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(256), ..before }).unwrap();
    let mut taken: Vec<File> = std::iter::from_fn(|| null.try_clone().ok()).collect();
    assert!(taken.len() > left, "there are {}", taken.len());
    taken.push(null);
    taken.truncate(taken.len() - left);
    taken
}

#[test]
fn a_frontend_that_could_not_be_looked_at_is_turned_away_and_may_come_again() {
    let host = Host::new(1);
    let path = host.add(1, "disk", 2);
    let guest = Guest::new();
    let client = socket(AddressFamily::UNIX, SocketType::STREAM, None).unwrap();
    let taken = take_all_but(1);
    connect(&client, &SocketAddrUnix::new(&path).unwrap()).unwrap();
    let end = UnixStream::from(client).read(&mut [0]);
    // Nor is it known of anybody whether he has ended.
    let rest: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    let ended = Process { pid: std::process::id(), start: 0 };
    let seems_alive = ended.is_alive();
    drop((taken, rest));
    assert!(seems_alive && !ended.is_alive());
    assert!(matches!(end, Ok(0)), "{end:?}");
    assert!(host.logged("VHD disk", "was turned away").contains("Too many open files"));
    assert_eq!((host.status(1).refused, host.status(1).connections), (1, 0));
    let _frontend = guest.start(&path, 2);
    eventually("its rings run", || host.status(1).rings == 2);
}
