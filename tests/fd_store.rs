//! A restart under a service manager that keeps descriptors: frontends stay connected, and what the manager loses, spoils, or keeps too long
//! costs a connection and nothing else.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "common/daemon_host.rs"]
mod daemon_host;

use std::collections::HashMap;
use std::io::{IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use daemon_host::{Host, pattern, read};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use spanblk::cli::blk_client::{BlkClient, ClientOptions};

const MIB: usize = 1 << 20;
const DISKS: [&str; 3] = ["d0.img", "d1.img", "d2.img"];
const PATIENCE: Duration = Duration::from_secs(60);

/// Descriptors that a daemon which starts finds before it knows of them.
const FIRST_PASSED: i32 = 3;

/// Out of the way of those.
const FREE: i32 = 200;

/// What systemd does for a unit with FileDescriptorStoreMax=.
struct Manager {
    host: Host,
    socket: UnixDatagram,
    daemon: Option<Child>,
    /// How many descriptors it keeps; `None`: it has no store.
    max: Option<usize>,
    kept: Vec<(String, OwnedFd)>,
    /// It does not do what it is told.
    forgets_nothing: bool,
    /// Where sockets are to be.
    sockets: &'static str,
    vhds: HashMap<String, String>,
}

impl Drop for Manager {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

impl Manager {
    fn new(max: Option<usize>) -> Manager {
        let host = Host::with_pool(3);
        let socket = UnixDatagram::bind(host.path("manager")).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
        let (kept, vhds) = (Vec::new(), HashMap::new());
        Manager { host, socket, daemon: None, max, kept, forgets_nothing: false, sockets: "v", vhds }
    }

    /// With VHDs of these names.
    fn serving(max: Option<usize>, vhds: &[&str]) -> Manager {
        let mut manager = Manager::new(max);
        manager.start(&[]);
        for name in vhds {
            manager.host.ok(&["vhd", "create", name, "--size", "40MiB", "--layout", "spanned"]);
            let uuid = manager.host.json(&["vhd", "show", name])["uuid"].as_str().unwrap().to_owned();
            manager.vhds.insert((*name).to_owned(), format!("spanblk-vhd-{uuid}"));
        }
        manager
    }

    /// Runs a daemon, with all that is kept, until it is ready or ends.
    fn run(&mut self, options: &[&str]) -> Option<ExitStatus> {
        let plain = ["serve", "--socket-dir", self.sockets, "--reactors", "2"];
        let plain = self.host.command(&[&plain, options, &DISKS].concat());
        let mut command = Command::new("sh");
        command
            .args(["-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""])
            .arg(plain.get_program())
            .args(plain.get_args());
        command.current_dir(self.host.directory.path()).env("SPANBLK_CONTROL", self.host.path("c/api.sock"));
        command.env("NOTIFY_SOCKET", self.host.path("manager")).stdout(Stdio::null());
        command.envs(self.max.map(|max| ("FDSTORE", max.to_string())));
        // In another order: a store has none.
        let (names, fds): (Vec<_>, Vec<_>) = self.kept.iter().rev().map(|(name, fd)| (name.clone(), free(fd))).unzip();
        if !names.is_empty() {
            command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        }
        let numbers: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let pass = move || {
            for (number, to) in numbers.iter().zip(FIRST_PASSED..) {
                // SAFETY: between fork and exec, where nothing else uses the number.
                if unsafe { libc::dup2(*number, to) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        // SAFETY: only a system call is made, and nothing is allocated.
        unsafe { command.pre_exec(pass) };
        let log = std::fs::File::options().create(true).append(true).open(self.host.path("log")).unwrap();
        self.daemon = Some(command.stderr(log).spawn().unwrap());
        drop(fds);
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(ended) = self.daemon.as_mut().unwrap().try_wait().unwrap() {
                self.daemon = None;
                return Some(ended);
            }
            if self.hear() == Some("READY=1".to_owned()) {
                return None;
            }
            assert!(Instant::now() < deadline, "not ready; log:\n{}", self.host.log());
        }
    }

    fn start(&mut self, options: &[&str]) {
        assert_eq!(self.run(options), None, "it ended; log:\n{}", self.host.log());
        assert!(self.kept.is_empty() || self.forgets_nothing, "taken out before anybody is served");
    }

    /// SIGTERM, and what the daemon says until it has ended, which must be cleanly.
    fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        assert!(Command::new("kill").args(["-TERM", &daemon.id().to_string()]).status().unwrap().success());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            // Nothing more is said by one that has ended before it was last listened to.
            let ended = daemon.try_wait().unwrap();
            while self.hear().is_some() {}
            if let Some(status) = ended {
                break status;
            }
            assert!(Instant::now() < deadline, "did not stop; log:\n{}", self.host.log());
        };
        assert!(status.success(), "{status}; log:\n{}", self.host.log());
    }

    fn kill(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
    }

    /// The first line of the next message, if there is one, after it was done what it says.
    fn hear(&mut self) -> Option<String> {
        let mut bytes = [0; 512];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let parts = &mut [IoSliceMut::new(&mut bytes)];
        let len = recvmsg(&self.socket, parts, &mut control, RecvFlags::CMSG_CLOEXEC).ok()?.bytes;
        let fds: Vec<OwnedFd> = control.drain().flat_map(rights).collect();
        let text = String::from_utf8(bytes[..len].to_vec()).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        let name = lines.iter().find_map(|line| line.strip_prefix("FDNAME=")).unwrap_or("stored").to_owned();
        if lines.contains(&"FDSTOREREMOVE=1") && !self.forgets_nothing {
            self.kept.retain(|(kept, _)| *kept != name);
        }
        if lines.contains(&"FDSTORE=1") {
            for fd in fds {
                let is_watched = !lines.contains(&"FDPOLL=0");
                let has_room = self.kept.len() < self.max.unwrap_or(0);
                if has_room && !(is_watched && is_hung_up(&fd)) {
                    self.kept.push((name.clone(), fd));
                }
            }
        }
        Some(lines[0].to_owned())
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.kept.iter().map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }

    /// What is kept of a VHD.
    fn kept_of(&mut self, vhd: &str) -> &mut (String, OwnedFd) {
        let name = &self.vhds[vhd];
        self.kept.iter_mut().find(|(kept, _)| kept == name).unwrap()
    }

    fn is_attached(&self, vhd: &str) -> bool {
        self.host.json(&["vhd", "show", vhd])["attached"]["pid"].is_number()
    }

    /// Waits until it is seen that nobody is connected any more.
    fn is_left(&self, vhd: &str) {
        let deadline = Instant::now() + PATIENCE;
        while self.is_attached(vhd) {
            assert!(Instant::now() < deadline, "still attached");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

fn rights(message: RecvAncillaryMessage<'_>) -> Vec<OwnedFd> {
    match message {
        RecvAncillaryMessage::ScmRights(fds) => fds.collect(),
        _ => Vec::new(),
    }
}

fn free(fd: &OwnedFd) -> OwnedFd {
    rustix::io::fcntl_dupfd_cloexec(fd, FREE).unwrap()
}

/// systemd takes such a descriptor out of its store, if it may look.
fn is_hung_up(fd: &OwnedFd) -> bool {
    let mut watched = libc::pollfd { fd: fd.as_raw_fd(), events: 0, revents: 0 };
    // SAFETY: one valid `pollfd` that outlives the call.
    assert!(unsafe { libc::poll(&raw mut watched, 1, 0) } >= 0);
    watched.revents & (libc::POLLHUP | libc::POLLERR) != 0
}

/// The same with a descriptor less, of which the message knows.
fn without_one(carrier: &OwnedFd) -> OwnedFd {
    let mut stream = UnixStream::from(carrier.try_clone().unwrap());
    let mut head = [0; 8];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    recvmsg(&stream, &mut [IoSliceMut::new(&mut head)], &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    let mut fds: Vec<OwnedFd> = control.drain().flat_map(rights).collect();
    let mut body = Vec::new();
    stream.read_to_end(&mut body).unwrap();
    fds.pop().unwrap();
    head[4..].copy_from_slice(&u32::try_from(fds.len()).unwrap().to_le_bytes());
    let (carrier, mut writer) = UnixStream::pair().unwrap();
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(128))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
    sendmsg(&writer, &[IoSlice::new(&head)], &mut control, SendFlags::empty()).unwrap();
    writer.write_all(&body).unwrap();
    carrier.into()
}

#[test]
fn guests_go_on_after_every_restart() {
    let mut manager = Manager::serving(Some(16), &["one", "two", "idle"]);
    let data = pattern(1, 4 * MIB);
    let mut clients = ["one", "two"].map(|name| manager.host.attach(name).unwrap());
    clients.iter_mut().for_each(|client| client.write_at(0, &data).unwrap());
    clients[0].flush().unwrap();
    clients[1].discard(2 << 20, 1 << 20).unwrap();
    let mut expected = [data.clone(), data];
    expected[1][2 * MIB..3 * MIB].fill(0);
    for life in 1..4_u64 {
        manager.stop();
        assert_eq!(manager.names().len(), 2, "one for each VHD that somebody is connected to:\n{}", manager.host.log());
        let is_there = |name: &str| manager.host.path("v").join(format!("{name}.sock")).exists();
        assert_eq!(["one", "two", "idle"].map(is_there), [true, true, false]);
        // What guests ask for meanwhile waits.
        std::thread::scope(|scope| {
            let (begun, begins) = std::sync::mpsc::channel();
            let reads = clients.iter_mut().map(|client| {
                let begun = begun.clone();
                scope.spawn(move || {
                    begun.send(()).unwrap();
                    read(client, 0, 4 * MIB)
                })
            });
            let reads: Vec<_> = reads.collect();
            begins.iter().take(2).for_each(drop);
            std::thread::sleep(Duration::from_millis(50));
            manager.start(&[]);
            for (read, expected) in reads.into_iter().zip(&expected) {
                assert!(read.join().unwrap() == *expected, "life {life}; log:\n{}", manager.host.log());
            }
        });
        let more = pattern(100 + life, MIB);
        for client in &mut clients {
            client.write_at(life << 23, &more).unwrap();
            assert!(read(client, life << 23, MIB) == more);
        }
        manager.host.ok(&["check"]);
        assert_eq!(["one", "two", "idle"].map(|name| manager.is_attached(name)), [true, true, false]);
        manager.host.attach("idle").unwrap().write_at(0, &more).unwrap();
        manager.is_left("idle");
    }
    // Once nobody is connected, nothing is left.
    drop(clients);
    ["one", "two"].iter().for_each(|name| manager.is_left(name));
    manager.stop();
    assert_eq!(manager.names(), [""; 0]);
    assert!(!manager.host.path("v/one.sock").exists());
}

#[test]
fn without_a_store_or_with_one_that_is_too_small_frontends_are_disconnected() {
    for max in [None, Some(0), Some(1)] {
        let mut manager = Manager::serving(max, &["one", "two"]);
        let mut clients = ["one", "two"].map(|name| manager.host.attach(name).unwrap());
        clients.iter_mut().for_each(|client| client.write_at(0, &pattern(1, MIB)).unwrap());
        manager.stop();
        assert_eq!(manager.names(), [""; 0], "{max:?}");
        assert_eq!(manager.host.log().contains("FileDescriptorStoreMax="), max == Some(1));
        assert!(!manager.host.path("v/one.sock").exists() && !manager.host.path("v/two.sock").exists());
        manager.start(&[]);
        assert_eq!(["one", "two"].map(|name| manager.is_attached(name)), [false; 2], "{max:?}");
        drop(clients);
        for name in ["one", "two"] {
            assert!(read(&mut manager.host.attach_soon(name), 0, MIB) == pattern(1, MIB), "{max:?}");
        }
    }
}

#[test]
fn a_vhd_that_is_not_complete_is_served_anew_and_others_go_on() {
    let names = ["whole", "less", "rubbish", "gone", "renamed"];
    let mut manager = Manager::serving(Some(16), &names);
    let mut clients: Vec<BlkClient> = names.iter().map(|name| manager.host.attach(name).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.write_at(0, &pattern(1, MIB)).unwrap());
    manager.stop();
    let less = &mut manager.kept_of("less").1;
    *less = without_one(less);
    manager.kept_of("rubbish").1 = std::fs::File::open("/dev/null").unwrap().into();
    manager.kept_of("renamed").0 = "stored".to_owned();
    let gone = manager.vhds["gone"].clone();
    manager.kept.retain(|(name, _)| *name != gone);
    manager.start(&[]);
    assert!(read(&mut clients[0], 0, MIB) == pattern(1, MIB), "{}", manager.host.log());
    clients[0].write_at(1 << 20, &pattern(2, MIB)).unwrap();
    assert_eq!(names.map(|name| manager.is_attached(name)), [true, false, false, false, false]);
    clients.truncate(1);
    for name in &names[1..] {
        assert!(read(&mut manager.host.attach_soon(name), 0, MIB) == pattern(1, MIB), "{name}");
    }
    for said in ["descriptors came with a VHD that was held", "it cannot be read", "has not left it"] {
        assert!(manager.host.log().contains(said), "{said}; log:\n{}", manager.host.log());
    }
}

#[test]
fn a_start_that_fails_loses_nothing_and_what_was_gone_on_with_is_of_no_use() {
    let mut manager = Manager::serving(Some(16), &["one"]);
    let mut client = manager.host.attach("one").unwrap();
    client.write_at(0, &pattern(1, MIB)).unwrap();
    manager.stop();
    let other_pool = ["--pool", "00000000-0000-0000-0000-000000000001"];
    assert!(manager.run(&other_pool).is_some_and(|status| !status.success()));
    assert_eq!(manager.names().len(), 1);
    manager.forgets_nothing = true;
    manager.start(&[]);
    assert!(read(&mut client, 0, MIB) == pattern(1, MIB), "{}", manager.host.log());
    client.write_at(1 << 20, &pattern(2, MIB)).unwrap();
    manager.kill();
    assert_eq!(manager.names().len(), 1, "the manager still has it");
    manager.start(&[]);
    assert!(!manager.is_attached("one"), "but nobody is connected by it");
    drop(client);
    assert!(manager.host.log().contains("another daemon has gone on with it"), "{}", manager.host.log());
    let mut client = manager.host.attach_soon("one");
    assert!(read(&mut client, 0, MIB) == pattern(1, MIB) && read(&mut client, 1 << 20, MIB) == pattern(2, MIB));
    manager.host.ok(&["check"]);
}

#[test]
fn sockets_that_are_to_be_elsewhere_are_made_there() {
    let mut manager = Manager::serving(Some(16), &["one"]);
    let mut client = manager.host.attach("one").unwrap();
    client.write_at(0, &pattern(1, MIB)).unwrap();
    manager.stop();
    manager.sockets = "w";
    manager.start(&[]);
    assert!(manager.host.log().contains("and is to be"), "{}", manager.host.log());
    assert!(!manager.is_attached("one"));
    drop(client);
    let mut client = BlkClient::connect(&manager.host.path("w/one.sock"), ClientOptions::default()).unwrap();
    assert!(read(&mut client, 0, MIB) == pattern(1, MIB));
}
