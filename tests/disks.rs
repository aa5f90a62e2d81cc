//! Disks as administrators meet them: damaged labels, missing disks, bad input and what is left behind of it.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;

use daemon_host::{Host, text};


#[test]
fn a_disk_that_cannot_be_added_leaves_nothing_behind() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    let add = ["disk", "add", "new.img", "--size"];
    let refused = |more: &[&str], code, says: &str| {
        let said = host.refused(&[&add, more].concat(), code);
        assert!(said.contains(says), "{said}");
        assert!(!host.path("new.img").exists(), "{more:?}: the file stays behind");
    };
    refused(&["1MiB"], 4, "too small");
    refused(&["256MiB", "--name", "b@d"], 2, "b@d");
    refused(&["256MiB", "--name", "d0"], 4, "'d0'");
    refused(&["256MiB", "--failure-domain", "a b"], 2, "failure domain");
    assert!(host.refused(&["disk", "add", "absent.img"], 3).contains("absent.img"));
    assert_eq!(host.json(&["disk", "list"])["disks"].as_array().unwrap().len(), 1);

    assert!(host.ok(&["disk", "add", "new.img", "--size", "256MiB"]).contains("added"));
    assert!(host.ok(&["disk", "add", "new.img", "--size", "256MiB"]).contains("nothing changed"));
    assert!(host.ok(&["disk", "add", "d0.img"]).contains("'d0' is like that already"));
    assert!(host.refused(&["disk", "add", "d0.img", "--name", "other"], 4).contains("'d0'"));
    host.stop();
}

#[test]
fn a_vhd_that_could_have_no_socket_is_not_made() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    let create = |name: &str, more: &[&str], code| {
        let args = [&["vhd", "create", name, "--size", "4MiB", "--layout", "isolated"], more].concat();
        host.refused(&args, code)
    };
    std::fs::write(host.path("v/file.sock"), "precious").unwrap();
    let _listener = std::os::unix::net::UnixListener::bind(host.path("v/taken.sock")).unwrap();
    assert!(create("file", &[], 4).contains("not a socket"));
    assert!(create("taken", &[], 4).contains("another process listens"));
    assert!(create("owned", &["--socket-owner", "no-such-user:root"], 2).contains("no-such-user"));
    assert!(host.json(&["vhd", "list"])["vhds"].as_array().unwrap().is_empty(), "nothing was made");

    host.ok(&["vhd", "create", "a", "--size", "4MiB", "--layout", "isolated"]);
    assert!(host.refused(&["vhd", "rename", "a", "taken"], 4).contains("another process listens"));
    assert!(host.refused(&["vhd", "set", "a", "--socket-owner", "no-such-user:root"], 2).contains("no-such-user"));
    let shown = host.json(&["vhd", "show", "a"]);
    assert_eq!((shown.get("socket_owner"), shown.get("socket_problem")), (None, None), "nothing was changed");
    assert_eq!(std::fs::read(host.path("v/file.sock")).unwrap(), b"precious");
    host.stop();

    // What is in the way at a start keeps that VHD from being served, and is said wherever the VHD is shown.
    std::fs::write(host.path("v/a.sock"), "in the way").unwrap();
    host.serve(&[], &["d0.img"]);
    assert!(host.ok(&["vhd", "list"]).contains("SOCKET PROBLEM"));
    assert!(host.ok(&["vhd", "show", "a"]).contains("remove it"));
    let again = ["vhd", "create", "a", "--size", "4MiB", "--layout", "isolated"];
    assert!(host.refused(&again, 1).contains("remove it"));
    std::fs::remove_file(host.path("v/a.sock")).unwrap();
    assert!(host.ok(&again).contains("nothing changed"));
    host.attach("a").unwrap();
    host.stop();

    let directory = "l".repeat(40);
    let mut daemon = host.command(&["serve", "--socket-dir", &directory, "--reactors", "1", "d0.img"]).spawn().unwrap();
    while !host.run(&["pool", "show"]).status.success() {
        assert!(daemon.try_wait().unwrap().is_none(), "the daemon ended");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let said = host.run(&["vhd", "create", &"n".repeat(64), "--size", "4MiB", "--layout", "isolated"]);
    let vhds = host.json(&["vhd", "list"])["vhds"].as_array().unwrap().len();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert!(text(&said.stderr).contains("choose a shorter --socket-dir"), "{}", text(&said.stderr));
    assert_eq!((said.status.code(), vhds), (Some(2), 1), "nothing was made");
}
