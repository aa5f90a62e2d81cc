//! Disks as administrators meet them: damaged labels, missing disks, bad input and what is left behind of it.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;

use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::Command;

use daemon_host::{Host, text};

const MIB: u64 = 1 << 20;

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

/// A disk's label copies, which a test may change.
struct Label {
    file: std::fs::File,
    places: [u64; 2],
}

impl Label {
    fn of(host: &Host, disk: &str) -> Label {
        let file = std::fs::File::options().read(true).write(true).open(host.path(disk)).unwrap();
        let len = file.metadata().unwrap().len();
        Label { file, places: [4096, len - 4096] }
    }

    /// Without the right checksum.
    fn damage(&self, copy: usize) {
        self.file.write_all_at(b"damaged", self.places[copy] + 1000).unwrap();
    }

    fn set_version(&self, version: u32) {
        for place in self.places {
            let mut bytes = [0; 4096];
            self.file.read_exact_at(&mut bytes, place).unwrap();
            bytes[12..16].copy_from_slice(&version.to_le_bytes());
            bytes[8..12].fill(0);
            let checksum = crc32c::crc32c(&bytes);
            bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
            self.file.write_all_at(&bytes, place).unwrap();
        }
    }
}

#[test]
fn a_damaged_label_copy_is_repaired_and_said_so() {
    for copy in [0, 1] {
        let mut host = Host::with_pool(1);
        Label::of(&host, "d0.img").damage(copy);
        let output = host.run(&["check", "d0.img"]);
        assert!(output.status.success());
        assert!(text(&output.stderr).contains("has not been repaired"), "a check changes nothing");
        host.serve(&[], &["d0.img"]);
        assert!(host.log().contains("repaired from the other"), "{}", host.log());
        assert!(host.ok(&["events"]).contains("repaired from the other"));
        host.stop();
        let output = host.run(&["check", "d0.img"]);
        assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    }
}

#[test]
fn labels_that_cannot_be_used_say_what_to_do() {
    let host = Host::with_pool(2);
    let unusable = |says: &str| {
        let before = std::fs::read(host.path("d1.img")).unwrap();
        let served = Host::serve_args(&[], &["d1.img"]);
        for (args, code) in [
            (&["check", "d1.img"][..], 1),
            (&["metadata", "dump", "d1.img"], 1),
            (&["pool", "upgrade", "d1.img"], 1),
            (&["pool", "create", "d1.img"], 4),
            // The other disk is not wiped, either.
            (&["pool", "destroy", "--yes", "d0.img", "d1.img"], 1),
            (&served, 1),
        ] {
            let said = host.refused(args, code);
            assert!(said.contains(says) && said.contains("d1.img"), "{args:?}: {said}");
        }
        assert!(std::fs::read(host.path("d1.img")).unwrap() == before, "nothing was changed");
    };
    let label = Label::of(&host, "d1.img");
    label.set_version(1000);
    unusable("use a newer spanblk");
    label.set_version(0);
    unusable("pool upgrade");
    label.set_version(1);
    host.ok(&["check", "d0.img", "d1.img"]);
    label.damage(0);
    label.damage(1);
    unusable("both copies of its label are damaged");
    host.ok(&["disk", "wipe", "--yes", "d1.img"]);
    assert!(host.refused(&["check", "d1.img"], 3).contains("belongs to no pool"));
    assert!(host.ok(&["check", "d0.img"]).contains("consistent"));
}

#[test]
fn a_missing_disk_is_named_with_its_vhds() {
    let mut host = Host::with_pool(4);
    host.serve(&[], &["d?.img"]);
    host.ok(&["vhd", "create", "on-d3", "--size", "4MiB", "--layout", "isolated", "--disks", "d3"]);
    host.ok(&["vhd", "create", "on-d0", "--size", "4MiB", "--layout", "isolated", "--disks", "d0"]);
    host.stop();
    std::fs::rename(host.path("d3.img"), host.path("away")).unwrap();
    let said = text(&host.run(&["check", "d0.img", "d1.img", "d2.img"]).stderr);
    assert!(said.contains("'d3'") && said.contains("it carries: on-d3"), "{said}");
    host.serve(&[], &["d?.img"]);
    let told = "\"event\":\"disk_missing\",\"disk\":\"d3\",\"vhds\":[\"on-d3\"]";
    assert!(host.log().contains(told), "{}", host.log());
    assert!(host.ok(&["--json", "events"]).contains(told));
    assert_eq!(host.json(&["disk", "show", "d3"])["health"], "missing");
    host.stop();
}

#[test]
fn disks_of_several_pools_are_not_mixed_up() {
    let mut host = Host::with_pool(1);
    host.ok(&["pool", "create", "--size", "256MiB", "other.img"]);
    let said = host.refused(&Host::serve_args(&[], &["d0.img", "other.img"]), 4);
    assert!(said.contains("different pools") && said.contains("--pool"), "{said}");
    assert!(host.refused(&["check", "d0.img", "other.img"], 4).contains("different pools"));
    assert!(host.refused(&["pool", "destroy", "--yes", "d0.img", "other.img"], 4).contains("one pool"));
    host.serve(&[], &["d0.img"]);
    let pool = host.json(&["pool", "show"]);
    assert_eq!(pool["disks"][0]["path"], host.path("d0.img").to_str().unwrap(), "paths are whole");
    host.stop();
    host.serve(&["--pool", pool["uuid"].as_str().unwrap()], &["*.img"]);
    assert_eq!(host.json(&["pool", "show"])["uuid"], pool["uuid"]);
    assert!(host.refused(&["check", "d0.img"], 4).contains("leave out the disks"));
    assert!(host.refused(&["pool", "upgrade", "d0.img"], 4).contains("stop the daemon"));
    assert!(host.refused(&["pool", "destroy", "--yes", "d0.img"], 4).contains("stop that process"));
    host.stop();
}

#[test]
fn an_import_that_finds_no_room_says_where_to_look() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    let create = |name: &str, size: &str, more: &[&str]| {
        host.ok(&[&["vhd", "create", name, "--size", size, "--layout", "isolated"], more].concat())
    };
    create("a", "8MiB", &["--when-full", "error"]);
    let free = host.json(&["pool", "show"])["space"]["free_bytes"].as_u64().unwrap();
    create("all", &format!("{}KiB", free / 1024), &["--thick"]);
    assert!(host.run(&["pool", "show"]).stderr.windows(4).any(|part| part == b"95 %"), "the pool is full");
    std::fs::write(host.path("image.raw"), vec![1; 4096]).unwrap();
    let said = host.refused(&["vhd", "import", "image.raw", "a", "--format", "raw", "--existing"], 1);
    assert!(said.contains("spanblk events"), "{said}");
    assert!(host.ok(&["events"]).contains("out_of_room"));
    let thick = ["vhd", "create", "b", "--size", "1GiB", "--layout", "isolated", "--thick"];
    assert!(host.refused(&thick, 4).contains("does not fit"));
    host.stop();
}

#[test]
fn without_permission_nothing_is_done() {
    if !is_root() {
        println!("skipped: not root");
        return;
    }
    let mut host = Host::with_pool(1);
    std::fs::set_permissions(host.path("d0.img"), PermissionsExt::from_mode(0o600)).unwrap();
    // The program as a copy, and the directories: where everybody can go.
    let away = tempfile::tempdir().unwrap();
    std::fs::set_permissions(away.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = away.path().join("spanblk");
    std::fs::copy(env!("CARGO_BIN_EXE_spanblk"), &program).unwrap();
    std::fs::copy(host.path("d0.img"), away.path().join("d0.img")).unwrap();
    std::fs::create_dir(away.path().join("c")).unwrap();
    std::fs::set_permissions(away.path().join("c"), PermissionsExt::from_mode(0o700)).unwrap();
    let refused = |args: &[&str], code: i32, says: &str| {
        let mut command = Command::new(&program);
        command.args(args).current_dir(away.path()).env("SPANBLK_CONTROL", away.path().join("c/api.sock"));
        let output = command.uid(65534).gid(65534).output().unwrap();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(says), "{args:?}: {}", text(&output.stderr));
    };
    for args in
        [&["check", "d0.img"][..], &["pool", "create", "--force", "d0.img"], &["disk", "wipe", "--yes", "d0.img"]]
    {
        refused(args, 1, "run as root");
    }
    refused(&["vhd", "list"], 5, "sudo");
    host.serve(&[], &["d0.img"]);
    host.stop();
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}

/// A loop device, detached in the end.
struct Loop(String);

impl Loop {
    fn over(host: &Host, file: &str, options: &[&str]) -> Option<Loop> {
        let mut command = Command::new("losetup");
        let output = command.args(["--find", "--show"]).args(options).arg(host.path(file)).output().ok()?;
        output.status.success().then(|| Loop(text(&output.stdout).trim().to_owned()))
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

#[test]
fn block_devices_are_looked_at_as_closely_as_files() {
    let mut host = Host::empty();
    let disk = |name: &str| {
        let file = std::fs::File::create(host.path(name)).unwrap();
        file.set_len(256 * MIB).unwrap();
        file
    };
    // An MBR with one partition from 1 MiB, of 100 MiB.
    let table = disk("table.img");
    let entry = [&[0, 0, 0, 0, 0x83, 0, 0, 0], &2048_u32.to_le_bytes()[..], &204_800_u32.to_le_bytes()].concat();
    table.write_all_at(&entry, 446).unwrap();
    table.write_all_at(&[0x55, 0xaa], 510).unwrap();
    disk("large.img");
    disk("small.img");
    disk("more.img");
    let device = |file, options: &[&str]| Loop::over(&host, file, options);
    let (Some(parts), Some(large), Some(small), Some(more)) = (
        device("table.img", &["--partscan"]),
        device("large.img", &["-b", "4096"]),
        device("small.img", &[]),
        device("more.img", &["-b", "4096"]),
    ) else {
        println!("skipped: no loop devices");
        return;
    };
    assert!(host.refused(&["pool", "create", &parts.0], 4).contains("MBR partition table"));
    let lies_on = "give each disk once";
    assert!(host.refused(&["pool", "create", "--force", &parts.0, "table.img"], 4).contains(lies_on));
    // Where the kernel has not looked for partitions by itself.
    let _ = Command::new("partx").args(["--add", &parts.0]).output();
    let part = format!("{}p1", parts.0);
    if std::path::Path::new(&part).exists() {
        assert!(host.refused(&["pool", "create", "--force", &part, &parts.0], 4).contains("lies on"));
        assert!(host.refused(&["pool", "create", "--force", "table.img", &part], 4).contains("lies on"));
    } else {
        println!("skipped: partitions of loop devices");
    }
    assert_eq!(table.metadata().unwrap().len(), 256 * MIB);
    assert!(host.refused(&["pool", "create", &large.0, &small.0], 4).contains("logical blocks of 4096"));
    assert!(host.refused(&["check", &large.0], 3).contains("belongs to no pool"), "nothing was changed");

    host.ok(&["pool", "create", &large.0]);
    host.serve(&["--disk-dir", "."], &[&large.0]);
    assert!(host.refused(&["disk", "add", &small.0], 4).contains(" of 512: "));
    assert!(host.refused(&["disk", "add", "large.img"], 4).contains("lies on"));
    assert!(host.ok(&["disk", "add", &large.0]).contains("nothing changed"));
    assert_eq!(host.json(&["disk", "list"])["disks"].as_array().unwrap().len(), 1);
    // From within the sandbox.
    host.ok(&["disk", "add", &more.0]);
    assert_eq!(host.json(&["disk", "list"])["disks"].as_array().unwrap().len(), 2);
    host.stop();
}
