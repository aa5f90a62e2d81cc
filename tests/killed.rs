//! A daemon that is killed loses nothing that guests rely on, flushed or not: what was written, discarded and zeroed before is there
//! for the next one, also when that is killed, too; and it is made durable by the next FLUSH.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "common/daemon_host.rs"]
mod daemon_host;

use std::os::unix::fs::{MetadataExt, chown};
use std::path::PathBuf;
use std::time::Duration;

use daemon_host::{Host, pattern, read};

const MIB: usize = 1 << 20;
const DISKS: [&str; 3] = ["d0.img", "d1.img", "d2.img"];

/// Directories in shared memory that belong to the pool.
fn kept(host: &Host) -> Vec<PathBuf> {
    let pool = host.json(&["pool", "show"])["uuid"].as_str().unwrap().to_owned();
    let of_pool = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(&format!("spanblk-{pool}-"));
    std::fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().path()).filter(of_pool).collect()
}

/// The name of the file in which a serving says how it ended.
fn mark() -> String {
    format!("{}.0.1", uuid::Uuid::nil())
}

fn start_again(host: &mut Host) {
    host.kill();
    host.serve(&[], &DISKS);
}

#[test]
fn what_was_not_flushed_is_there_after_a_sigkill_and_another() {
    let mut host = Host::with_pool(3);
    host.serve(&[], &DISKS);
    for (name, layout) in [("one", "isolated"), ("all", "spanned")] {
        host.ok(&["vhd", "create", name, "--size", "40MiB", "--layout", layout]);
    }
    let data = pattern(1, 24 * MIB);
    for name in ["one", "all"] {
        let mut client = host.attach(name).unwrap();
        client.write_at(0, &data[..16 * MIB]).unwrap();
        client.flush().unwrap();
        // Parts of blocks, blocks, extents; then some of that goes, and some comes again.
        client.write_at(16 * MIB as u64 + 4096, &data[16 * MIB + 4096..]).unwrap();
        client.discard(2 << 20, 3 << 20).unwrap();
        client.discard((8 << 20) + (64 << 10), 256 << 10).unwrap();
        client.write_at(3 << 20, &data[..MIB / 2]).unwrap();
    }
    let mut expected = data.clone();
    expected[16 * MIB..16 * MIB + 4096].fill(0);
    expected[2 * MIB..5 * MIB].fill(0);
    expected[8 * MIB + (64 << 10)..8 * MIB + (320 << 10)].fill(0);
    expected[3 * MIB..7 * MIB / 2].copy_from_slice(&data[..MIB / 2]);
    for life in 1..=3 {
        start_again(&mut host);
        host.ok(&["check"]);
        for name in ["one", "all"] {
            let mut client = host.attach_soon(name);
            assert!(read(&mut client, 0, expected.len()) == expected, "VHD {name} in life {life}");
            // The room of what was discarded is used again, by somebody else's data.
            client.write_at(30 << 20, &pattern(life, 2 * MIB)).unwrap();
        }
    }
    // A FLUSH makes all of it durable: without what was kept, as after a power cut, it is there.
    for name in ["one", "all"] {
        host.attach_soon(name).flush().unwrap();
    }
    let of_this_life = kept(&host);
    assert_eq!(of_this_life.len(), 1, "that of the serving, and no other");
    host.kill();
    std::fs::remove_dir_all(&of_this_life[0]).unwrap();
    host.serve(&[], &DISKS);
    for name in ["one", "all"] {
        let mut client = host.attach_soon(name);
        assert!(read(&mut client, 0, expected.len()) == expected, "VHD {name} after the FLUSH");
        assert!(read(&mut client, 30 << 20, 2 * MIB) == pattern(3, 2 * MIB));
    }
    host.ok(&["check"]);
    // A daemon that is stopped leaves nothing behind.
    let of_this_life = kept(&host);
    host.stop();
    assert!(!of_this_life[0].exists());
    host.serve(&[], &DISKS);
    host.ok(&["check"]);
    host.stop();
}

/// A guest that has not come back yet has its VHD, however the daemon ended; another process is told so at once.
#[test]
fn a_vhd_waits_for_the_process_that_had_it() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "one", "--size", "1MiB", "--layout", "isolated"]);
    for killed in [true, false] {
        let mut client = host.attach_soon("one");
        client.write_at(0, &[1; 512]).unwrap();
        let left = kept(&host);
        if killed {
            host.kill();
        } else {
            host.stop();
        }
        assert!(left[0].exists());
        drop(client);
        host.serve(&[], &["d0.img"]);
        let refused = host.run(&["vhd", "export", "one", "copy.img", "--overwrite"]);
        let why = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && why.contains("in use"), "{why}");
        drop(host.attach_soon("one"));
        assert!((0..200).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            host.run(&["vhd", "export", "one", "copy.img", "--overwrite"]).status.success()
        }));
    }
    let left = kept(&host);
    host.stop();
    assert!(!left[0].exists(), "nobody is expected");
}

/// The table alone does not have it: what the test above finds comes from what was kept.
#[test]
fn without_what_was_kept_the_table_is_all_there_is() {
    let mut host = Host::with_pool(3);
    host.serve(&[], &DISKS);
    host.ok(&["vhd", "create", "one", "--size", "8MiB", "--layout", "spanned"]);
    host.attach("one").unwrap().write_at(0, &pattern(1, MIB)).unwrap();
    let kept = kept(&host);
    host.kill();
    std::fs::remove_dir_all(&kept[0]).unwrap();
    host.serve(&[], &DISKS);
    assert!(read(&mut host.attach_soon("one"), 0, MIB) == vec![0; MIB]);
    host.stop();
}

#[test]
fn resized_deleted_and_new_vhds_are_kept_too() {
    let mut host = Host::with_pool(3);
    host.serve(&[], &DISKS);
    for name in ["grows", "shrinks", "goes"] {
        host.ok(&["vhd", "create", name, "--size", "8MiB", "--layout", "spanned"]);
        host.attach(name).unwrap().write_at(0, &pattern(1, 8 * MIB)).unwrap();
    }
    host.ok(&["vhd", "resize", "grows", "--size", "100MiB"]);
    host.attach_soon("grows").write_at(90 << 20, &pattern(2, 2 * MIB)).unwrap();
    host.attach_soon("shrinks").flush().unwrap();
    // It takes the daemon a moment to notice that nobody is attached any more.
    let shrink = || host.run(&["vhd", "resize", "shrinks", "--size", "3MiB", "--force"]).status.success();
    assert!(
        (0..200).any(|_| shrink() || {
            std::thread::sleep(Duration::from_millis(10));
            false
        }),
        "{}",
        host.log()
    );
    host.ok(&["vhd", "delete", "goes"]);
    host.ok(&["vhd", "create", "goes", "--size", "8MiB", "--layout", "spanned"]);
    host.attach_soon("goes").write_at(1 << 20, &pattern(3, 512)).unwrap();
    for _ in 0..2 {
        start_again(&mut host);
        host.ok(&["check"]);
        let mut client = host.attach_soon("grows");
        assert!(read(&mut client, 0, 8 * MIB) == pattern(1, 8 * MIB));
        assert!(read(&mut client, 90 << 20, 2 * MIB) == pattern(2, 2 * MIB));
        assert!(read(&mut host.attach_soon("shrinks"), 0, 3 * MIB) == pattern(1, 8 * MIB)[..3 * MIB]);
        let mut client = host.attach_soon("goes");
        assert!(read(&mut client, 0, MIB) == vec![0; MIB], "the data of a VHD that was deleted");
        assert!(read(&mut client, 1 << 20, 512) == pattern(3, 512));
    }
    host.stop();
}

/// What is done to a pool, under the daemon of one way of running it; returns what a guest then sees.
fn write_unflushed(host: &Host, seed: u64) -> Vec<u8> {
    let name = format!("v{seed}");
    host.ok(&["vhd", "create", &name, "--size", "4MiB", "--layout", "spanned"]);
    host.ok(&["vhd", "resize", &name, "--size", "30MiB"]);
    let data = pattern(seed, 2 * MIB);
    host.attach(&name).unwrap().write_at(25 << 20, &data).unwrap();
    data
}

fn see(host: &Host, seed: u64, data: &[u8]) {
    let mut client = host.attach_soon(&format!("v{seed}"));
    assert!(read(&mut client, 25 << 20, data.len()) == data, "VHD v{seed}; log:\n{}", host.log());
}

#[test]
fn however_the_daemon_and_the_next_are_confined() {
    let mut host = Host::with_pool(3);
    let mut ways = vec![vec![], vec!["--sandbox", "log"], vec!["--sandbox", "off"], vec![]];
    if rustix::process::geteuid().is_root() {
        ways.extend([vec!["--user", "nobody"], vec!["--user", "daemon"], vec!["--user", "nobody", "--sandbox", "off"]]);
        ways.push(vec![]);
    }
    let mut written: Vec<Vec<u8>> = Vec::new();
    for (seed, way) in (1..).zip(&ways) {
        host.serve(way, &DISKS);
        for (before, data) in (1..).zip(&written) {
            see(&host, before, data);
        }
        host.ok(&["check"]);
        assert_eq!(kept(&host).len(), 1, "{way:?}");
        written.push(write_unflushed(&host, seed));
        host.ok(&["vhd", "create", "gone", "--size", "1MiB", "--layout", "isolated"]);
        host.ok(&["vhd", "delete", "gone"]);
        host.kill();
    }
    host.serve(&[], &DISKS);
    let kept = kept(&host);
    host.stop();
    assert!(kept.len() == 1 && !kept[0].exists());
    let log = host.log();
    assert!(!log.contains("shared memory"), "{log}");
    assert_eq!(log.matches("that it had not committed").count(), ways.len(), "{log}");
}

/// Of what a daemon has left that was stopped while a VMM was connected, only who that is counts.
#[test]
fn after_a_stop_the_table_is_all_there_is() {
    let mut host = Host::with_pool(3);
    host.serve(&[], &DISKS);
    let data = write_unflushed(&host, 1);
    let client = host.attach_soon("v1");
    let left = kept(&host);
    host.stop();
    let parts = || std::fs::read_dir(&left[0]).unwrap().map(|entry| entry.unwrap().path());
    let of_view = |path: &PathBuf| path.to_string_lossy().contains(".0.") && !path.ends_with(mark());
    assert!(parts().any(|path| path.ends_with(mark())) && parts().any(|path| of_view(&path)));
    parts().filter(of_view).for_each(|path| std::fs::write(path, "nothing that a view could be").unwrap());
    host.serve(&[], &DISKS);
    let refused = host.run(&["vhd", "export", "v1", "copy.img"]);
    assert!(String::from_utf8_lossy(&refused.stderr).contains("in use"), "it waits for the VMM that had it");
    drop(client);
    see(&host, 1, &data);
    host.ok(&["check"]);
    let log = host.log();
    assert!(!log.contains("was killed") && !log.contains("lost"), "{log}");
    host.stop();
}

/// Nothing in it is needed, whoever can see that goes on.
#[test]
fn what_a_daemon_of_another_user_left_that_was_stopped_is_no_reason_to_refuse() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP: this needs root");
        return;
    }
    let mut host = Host::with_pool(1);
    let give = |host: &Host, path: &str| chown(host.path(path), Some(NOBODY), Some(NOBODY)).unwrap();
    ["", "d0.img"].into_iter().for_each(|path| give(&host, path));
    host.serve_as(NOBODY, &[], &["d0.img"]);
    let data = write_unflushed(&host, 1);
    let client = host.attach_soon("v1");
    let left = kept(&host);
    host.stop();
    assert_eq!(std::fs::metadata(&left[0]).unwrap().uid(), NOBODY);
    host.serve(&[], &["d0.img"]);
    assert!(host.log().contains("goes on without it"), "{}", host.log());
    drop(client);
    see(&host, 1, &data);
    // A user without privileges cannot look into what root has left.
    let client = host.attach_soon("v1");
    host.stop();
    for path in ["c", "v"] {
        give(&host, path);
    }
    let refused = host.run_as(NOBODY, &["serve", "--socket-dir", "v", "d0.img"]);
    assert!(refused.contains("of user 0"), "{refused}");
    drop(client);
    host.serve(&[], &["d0.img"]);
    see(&host, 1, &data);
    host.stop();
    left.iter().for_each(|left| std::fs::remove_dir_all(left).unwrap());
}

/// A user without privileges, then root, for whom that user's directory could be anything, then root as that user.
#[test]
fn what_belongs_to_another_user_is_not_used_and_not_lost() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIP: this needs root");
        return;
    }
    let mut host = Host::with_pool(1);
    for path in [host.directory.path().to_owned(), host.path("d0.img")] {
        chown(path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    host.serve_as(NOBODY, &[], &["d0.img"]);
    let data = write_unflushed(&host, 1);
    let left = kept(&host);
    assert_eq!(std::fs::metadata(&left[0]).unwrap().uid(), NOBODY);
    host.kill();
    let refused = host.does_not_serve(&[], &["d0.img"]);
    assert!(
        refused.contains(left[0].to_str().unwrap()) && refused.contains("start the daemon as that user"),
        "{refused}"
    );
    host.serve(&["--user", "nobody"], &["d0.img"]);
    see(&host, 1, &data);
    // Now it is root's, who makes files for the daemon.
    let left = kept(&host);
    assert_eq!((left.len(), std::fs::metadata(&left[0]).unwrap().uid()), (1, 0));
    host.kill();
    for path in ["c", "c/api.sock", "v"] {
        let _ = chown(host.path(path), Some(NOBODY), Some(NOBODY));
    }
    let refused = host.run_as(NOBODY, &["serve", "--socket-dir", "v", "d0.img"]);
    assert!(refused.contains(left[0].to_str().unwrap()) && refused.contains("of user 0"), "{refused}");
    host.serve(&["--user", "nobody"], &["d0.img"]);
    see(&host, 1, &data);
    host.stop();
}
