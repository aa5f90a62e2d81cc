//! The sandbox: what is refused from inside, what every thread of the daemon has given up, and what works all the same.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "not all of it is used here")]
mod daemon_host;
#[path = "sandbox/inside.rs"]
mod inside;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::Command;
use std::time::{Duration, Instant};

use daemon_host::{Host, pattern, read};

/// A user and group that own nothing on any host.
const STRANGER: u32 = 54_321;
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("SKIP: this part needs root");
    }
    root
}

/// The lines of `/proc/PID/task/*/status` by thread name and key.
fn threads(pid: u32) -> Vec<BTreeMap<String, String>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let status = tasks.filter_map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).ok());
    let fields = |text: String| {
        text.lines().filter_map(|line| line.split_once(':')).map(|(k, v)| (k.into(), v.trim().into())).collect()
    };
    status.map(fields).collect()
}

/// All threads have the filter and no way to more rights; returns how many there are.
fn all_confined(pid: u32, uid: u32) -> usize {
    let threads = threads(pid);
    for thread in &threads {
        let of = |key: &str| thread[key].as_str();
        let name = of("Name");
        assert_eq!((of("Seccomp"), of("NoNewPrivs")), ("2", "1"), "{name}");
        for set in ["CapEff", "CapPrm", "CapInh", "CapAmb"] {
            assert_eq!(u64::from_str_radix(of(set), 16).unwrap(), 0, "{name}: {set}");
        }
        assert_eq!(of("Uid"), format!("{uid}\t{uid}\t{uid}\t{uid}"), "{name}");
    }
    threads.len()
}

/// The processes whose parent is `pid`.
fn children(pid: u32) -> Vec<u32> {
    let ids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let parent = |id: &u32| {
        let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap_or_default();
        status.lines().any(|line| line == format!("PPid:\t{pid}"))
    };
    ids.filter(parent).collect()
}

fn ends(pid: u32) -> bool {
    let deadline = Instant::now() + Duration::from_secs(10);
    // A zombie that nobody waits for has ended, too.
    let alive = || {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    };
    while alive() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    true
}

/// Everything that goes by name while the daemon serves.
fn names_work(host: &Host) {
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated"]);
    host.ok(&["disk", "add", "new.img", "--size", "256MiB"]);
    let mut client = host.attach("a").unwrap();
    client.write_at(0, &pattern(1, 8192)).unwrap();
    client.flush().unwrap();
    host.ok(&["disk", "replace", "d0", "./better.img", "--size", "256MiB", "--wait"]);
    assert!(read(&mut client, 0, 8192) == pattern(1, 8192));
    drop(client);
    // Made to be looked at, and not left behind.
    host.refused(&["disk", "add", "tiny.img", "--size", "1MiB"], 4);
    assert!(!host.path("tiny.img").exists());
    let outside = host.refused(&["disk", "add", "/usr/none.img", "--size", "64MiB"], 4);
    assert!(outside.contains("--disk-dir") && !std::path::Path::new("/usr/none.img").exists(), "{outside}");
    host.refused(&["disk", "add", "/etc/passwd"], 4);
    // A disk that the pool has, by another path, is told from a new one without being opened.
    if !host.path("link").exists() {
        std::os::unix::fs::symlink(host.path("new.img"), host.path("link")).unwrap();
    }
    host.ok(&["disk", "add", "link"]);
    host.ok(&["vhd", "rename", "a", "b"]);
    host.ok(&["vhd", "set", "b", "--socket-mode", "0600"]);
    let socket = std::fs::metadata(host.path("v/b.sock")).unwrap();
    assert_eq!(socket.permissions().mode() & 0o777, 0o600);
    drop(host.attach_soon("b"));
    host.refused(&["vhd", "create", "c", "--size", "1MiB", "--socket-owner", "no-such-user-here:root"], 2);
}

/// Sockets that belong to others.
fn owners_work(host: &Host) {
    let owner = format!("{STRANGER}:{STRANGER}");
    host.ok(&["vhd", "create", "theirs", "--size", "1MiB", "--layout", "isolated", "--socket-owner", &owner]);
    let socket = std::fs::metadata(host.path("v/theirs.sock")).unwrap();
    assert_eq!((socket.uid(), socket.gid()), (STRANGER, STRANGER));
    host.ok(&["vhd", "set", "b", "--socket-owner", &owner]);
    assert_eq!(std::fs::metadata(host.path("v/b.sock")).unwrap().uid(), STRANGER);
}

#[test]
fn every_thread_is_confined_and_what_goes_by_name_works() {
    let mut host = Host::with_pool(2);
    host.serve(&["--metrics-listen", "127.0.0.1:0"], &["d0.img", "d1.img"]);
    let pid = host.pid();
    let uid = rustix::process::geteuid().as_raw();
    let before = all_confined(pid, uid);
    assert!(before >= 8, "{before} threads");
    let log = host.log();
    assert!(log.contains("sandbox: files are out of reach") && log.contains("sandbox: system calls"), "{log}");
    names_work(&host);
    if is_root() {
        owners_work(&host);
    }
    assert!(all_confined(pid, uid) >= before, "threads that were started since");
    let [broker] = children(pid)[..] else { panic!("{:?}", children(pid)) };
    // Standard streams and its three sockets: nothing of the daemon's.
    assert_eq!(std::fs::read_dir(format!("/proc/{broker}/fd")).unwrap().count(), 6);
    for thread in threads(broker) {
        assert_eq!(thread["NoNewPrivs"], "1", "the broker has no way to more rights");
        // CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER.
        assert_eq!(u64::from_str_radix(&thread["CapEff"], 16).unwrap() & !0b1011, 0);
    }
    host.stop();
    assert!(ends(broker), "the broker ends with the daemon");
    assert!(!host.path("c/api.sock").exists() && !host.path("v/b.sock").exists(), "sockets are removed");
}

#[test]
fn the_broker_ends_with_a_killed_daemon_and_holds_nothing() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["disk", "add", "new.img", "--size", "256MiB"]);
    let [broker] = children(host.pid())[..] else { panic!("one child") };
    host.kill();
    // The disks' locks and the control socket are free.
    host.serve(&[], &["d0.img", "new.img"]);
    assert!(ends(broker));
    host.stop();
}

#[test]
fn a_daemon_without_its_broker_goes_on_and_says_so() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "a", "--size", "1MiB", "--layout", "isolated"]);
    let [broker] = children(host.pid())[..] else { panic!("one child") };
    assert!(Command::new("kill").args(["-KILL", &broker.to_string()]).status().unwrap().success());
    assert!(ends(broker));
    let error = host.refused(&["disk", "add", "new.img", "--size", "256MiB"], 1);
    assert!(error.contains("broker") && error.contains("restart the daemon"), "{error}");
    let mut client = host.attach("a").unwrap();
    client.write_at(0, &pattern(1, 4096)).unwrap();
    assert!(read(&mut client, 0, 4096) == pattern(1, 4096));
    drop(client);
    // What it grows by lies in ordinary memory.
    host.ok(&["vhd", "resize", "a", "--size", "100MiB"]);
    let log = host.log();
    assert!(log.contains("is not kept in shared memory") && log.contains("flushed"), "{log}");
    let mut client = host.attach_soon("a");
    client.write_at(90 << 20, &pattern(2, 4096)).unwrap();
    assert!(read(&mut client, 90 << 20, 4096) == pattern(2, 4096));
    drop(client);
    host.stop();
}

#[test]
fn another_user_serves_what_only_root_can_open() {
    if !is_root() {
        return;
    }
    let mut host = Host::with_pool(2);
    for disk in ["d0.img", "d1.img"] {
        assert_eq!(std::fs::metadata(host.path(disk)).unwrap().permissions().mode() & 0o777, 0o600);
    }
    host.serve(&["--user", "nobody"], &["d0.img", "d1.img"]);
    let pid = host.pid();
    all_confined(pid, NOBODY);
    for made in ["c", "c/api.sock"] {
        assert_eq!(std::fs::metadata(host.path(made)).unwrap().uid(), NOBODY, "{made}");
    }
    names_work(&host);
    assert_eq!(std::fs::metadata(host.path("v/b.sock")).unwrap().uid(), NOBODY, "sockets are the user's by default");
    owners_work(&host);
    all_confined(pid, NOBODY);
    host.stop();
    assert!(!host.path("c/api.sock").exists() && !host.path("v/b.sock").exists(), "sockets are removed");
    host.serve(&["--user", "nobody", "--sandbox", "off"], &["*.img"]);
    assert!(threads(host.pid()).iter().all(|thread| thread["Seccomp"] == "0" && thread["Uid"].starts_with("65534")));
    owners_work(&host);
    host.stop();
    let unknown = host.refused(&["serve", "--user", "no-such-user-here", "d1.img"], 1);
    assert!(unknown.contains("no user 'no-such-user-here'"), "{unknown}");
}

#[test]
fn a_user_without_privileges_can_run_it() {
    if !is_root() {
        return;
    }
    let mut host = Host::with_pool(1);
    for path in [host.directory.path().to_owned(), host.path("d0.img")] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    host.serve_as(NOBODY, &[], &["d0.img"]);
    all_confined(host.pid(), NOBODY);
    names_work(&host);
    let args = ["vhd", "create", "theirs", "--size", "1MiB", "--layout", "isolated", "--socket-owner", "root:root"];
    assert!(host.refused(&args, 1).contains("only root, or CAP_CHOWN"));
    host.stop();
    let cannot = host.run_as(NOBODY, &["serve", "--socket-dir", "v", "--user", "daemon", "d0.img"]);
    assert!(cannot.contains("CAP_SETUID"), "{cannot}");
}

#[test]
fn the_service_manager_hears_of_life_from_within_the_sandbox() {
    let host = Host::with_pool(1);
    let notify = host.path("notify");
    let heard = std::os::unix::net::UnixDatagram::bind(&notify).unwrap();
    heard.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let mut command = host.command(&Host::serve_args(&[], &["d0.img"]));
    command.env("NOTIFY_SOCKET", &notify).env("WATCHDOG_USEC", "300000");
    let mut daemon = command.stderr(std::process::Stdio::null()).spawn().unwrap();
    let mut buffer = [0; 64];
    let mut next = || heard.recv(&mut buffer).map(|len| String::from_utf8_lossy(&buffer[..len]).into_owned());
    assert_eq!(next().unwrap(), "READY=1\n");
    for _ in 0..3 {
        assert_eq!(next().unwrap(), "WATCHDOG=1\n");
    }
    daemon.kill().unwrap();
    daemon.wait().unwrap();
}

#[test]
fn the_sandbox_can_only_log_or_be_off() {
    let mut host = Host::with_pool(1);
    for (mode, seccomp, brokers) in [("log", "2", 1), ("off", "0", 0)] {
        host.serve(&["--sandbox", mode], &["d0.img"]);
        assert!(threads(host.pid()).iter().all(|thread| thread["Seccomp"] == seccomp), "{mode}");
        assert_eq!(children(host.pid()).len(), brokers, "{mode}");
        host.ok(&["vhd", "create", mode, "--size", "1MiB", "--layout", "isolated"]);
        host.stop();
    }
    assert!(host.refused(&["serve", "--sandbox", "maybe", "d0.img"], 2).contains("on, log or off"));
}
