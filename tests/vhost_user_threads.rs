//! How many threads vhost-user connections take: alone in its process, since it counts them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod vhost_user_support;

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::VhostBackend;
use vhost_user_support::{Guest, Host, eventually, raw};

/// Threads of the vhost-user runtime in this process.
fn threads() -> usize {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).ok());
    names.filter(|name| name.starts_with("vhost-user")).count()
}

#[test]
fn connections_take_threads_only_while_messages_are_handled() {
    let host = Host::new(1);
    let guest = Guest::new();
    let sockets: Vec<_> = (0..100).map(|id| host.add(id, &format!("disk{id}"), 1)).collect();
    eventually("the runtime has started", || threads() == 1);
    // 98 in peace, one within a message, one that asks and never listens.
    let frontends: Vec<_> = sockets[2..].iter().map(|socket| guest.start(socket, 1)).collect();
    let mut half = UnixStream::connect(&sockets[0]).unwrap();
    half.write_all(&raw::message(raw::SET_FEATURES, &[0; 8])[..14]).unwrap();
    let mut deaf = UnixStream::connect(&sockets[1]).unwrap();
    deaf.set_nonblocking(true).unwrap();
    let question = raw::message(raw::GET_FEATURES, &[]);
    let mut asked = 0_u64;
    let mut pauses = 0;
    while pauses < 20 {
        match deaf.write(&question) {
            Ok(written) => {
                assert_eq!(written, question.len());
                asked += 1;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                pauses += 1;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(threads() < 60, "{} threads", threads());
    // Threads end when they have had nothing to do for a while.
    eventually("all is quiet", || threads() == 1);
    // It can still be had.
    frontends.iter().for_each(|frontend| assert!(frontend.get_features().is_ok()));
    deaf.set_nonblocking(false).unwrap();
    let mut answer = [0; 20];
    for _ in 0..asked {
        deaf.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..4], 1_u32.to_ne_bytes());
    }
}
