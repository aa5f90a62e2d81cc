//! `vhd resize` on a whole daemon: growing under a frontend, shrinking, restarts and kills.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
mod daemon_host;

use daemon_host::{Host, pattern, read};

const MIB: u64 = 1 << 20;

fn size(host: &Host, vhd: &str) -> u64 {
    host.json(&["vhd", "show", vhd])["size_bytes"].as_u64().unwrap()
}

/// Waits until the daemon has noticed that nobody is attached.
fn detached(host: &Host, vhd: &str) {
    for _ in 0..400 {
        if host.json(&["vhd", "show", vhd]).get("attached").is_none() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("still attached");
}

#[test]
fn a_vhd_grows_under_its_guest_and_stays_so() {
    let mut host = Host::with_pool(2);
    host.serve(&[], &["d0.img", "d1.img"]);
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "spanned"]);
    let mut client = host.attach("a").unwrap();
    client.write_at(15 * MIB + 512, &pattern(1, 4096)).unwrap();
    assert!(client.write_at(16 * MIB, &pattern(2, 4096)).is_err(), "beyond the end");
    assert!(host.ok(&["vhd", "resize", "a", "--size", "24MiB"]).contains("resized to 24"));
    assert!(host.ok(&["vhd", "resize", "a", "--size", "24MiB"]).contains("nothing changed"));
    // This frontend does not look at the capacity again; the device takes what lies within the new one.
    client.write_at(16 * MIB, &pattern(2, 3 * MIB as usize)).unwrap();
    client.write_at(24 * MIB - 4096, &pattern(3, 4096)).unwrap();
    assert!(client.write_at(24 * MIB, &pattern(4, 512)).is_err());
    client.flush().unwrap();
    let check = |host: &Host| {
        let mut client = host.attach_soon("a");
        assert_eq!(client.capacity(), 24 * MIB);
        assert!(read(&mut client, 15 * MIB + 512, 4096) == pattern(1, 4096));
        assert!(read(&mut client, 16 * MIB, 3 * MIB as usize) == pattern(2, 3 * MIB as usize));
        assert!(read(&mut client, 24 * MIB - 4096, 4096) == pattern(3, 4096));
        assert!(read(&mut client, 20 * MIB, 4096).iter().all(|&byte| byte == 0));
    };
    drop(client);
    check(&host);
    host.kill();
    host.serve(&[], &["d0.img", "d1.img"]);
    check(&host);
    // Grown once more: further segments, and one again after the restart.
    let grown = host.json(&["vhd", "resize", "a", "--size", "100GiB"]);
    assert_eq!((&grown["changed"], size(&host, "a")), (&true.into(), 100 << 30));
    let mut client = host.attach_soon("a");
    client.write_at((100 << 30) - 4096, &pattern(5, 4096)).unwrap();
    client.flush().unwrap();
    drop(client);
    host.kill();
    host.serve(&[], &["d0.img", "d1.img"]);
    let mut client = host.attach("a").unwrap();
    assert!(read(&mut client, (100 << 30) - 4096, 4096) == pattern(5, 4096));
    assert_eq!(host.json(&["check"])["consistent"], true);
    drop(client);
    host.stop();
}

#[test]
fn a_vhd_shrinks_only_detached_and_by_force_and_grows_again_with_zeros() {
    let mut host = Host::with_pool(2);
    host.serve(&[], &["d0.img", "d1.img"]);
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "spanned"]);
    let mut client = host.attach("a").unwrap();
    client.write_at(0, &pattern(1, 12 * MIB as usize)).unwrap();
    client.flush().unwrap();
    let to = format!("{}", 4 * MIB + 256 * 1024);
    let shrink = ["vhd", "resize", "a", "--size", &to];
    let by_force = [&shrink[..], &["--force"]].concat();
    let lost = 8 * MIB - 256 * 1024;
    let said = host.refused(&shrink, 4);
    assert!(said.contains(&lost.to_string()) && said.contains("--force"), "{said}");
    assert!(host.refused(&by_force, 4).contains("attached"));
    assert!(host.refused(&["vhd", "resize", "a", "--size", "1000000", "--force"], 2).contains("multiple"));
    assert!(host.refused(&["vhd", "resize", "a", "--size", "1049088", "--force"], 2).contains("within a block"));
    assert!(read(&mut client, 0, 12 * MIB as usize) == pattern(1, 12 * MIB as usize), "nothing has changed");
    drop(client);
    detached(&host, "a");
    assert!(host.ok(&by_force).contains("resized"));
    assert!(host.ok(&by_force).contains("nothing changed"));
    let shown = host.json(&["vhd", "show", "a"]);
    assert_eq!(
        (&shown["allocated_bytes"], &shown["written_bytes"]),
        (&(5 * MIB).into(), &(4 * MIB + 256 * 1024).into())
    );
    let check = |host: &Host, len: u64| {
        let mut client = host.attach_soon("a");
        assert_eq!(client.capacity(), len);
        let kept = 4 * MIB as usize + 256 * 1024;
        assert!(read(&mut client, 0, kept) == pattern(1, 12 * MIB as usize)[..kept]);
        assert!(read(&mut client, kept as u64, len as usize - kept).iter().all(|&byte| byte == 0));
    };
    check(&host, 4 * MIB + 256 * 1024);
    detached(&host, "a");
    assert_eq!(host.json(&["check"])["consistent"], true);
    host.ok(&["vhd", "resize", "a", "--size", "16MiB"]);
    check(&host, 16 * MIB);
    host.kill();
    host.serve(&[], &["d0.img", "d1.img"]);
    check(&host, 16 * MIB);
    let mut client = host.attach_soon("a");
    client.write_at(10 * MIB, &pattern(9, 4096)).unwrap();
    client.flush().unwrap();
    drop(client);
    host.kill();
    host.serve(&[], &["d0.img", "d1.img"]);
    let mut client = host.attach("a").unwrap();
    assert!(read(&mut client, 10 * MIB, 4096) == pattern(9, 4096), "a generation that begins again is no older one");
    drop(client);
    host.stop();
    assert_eq!(host.json(&["check", "d0.img", "d1.img"])["consistent"], true);
}

#[test]
fn a_shrunk_vhd_is_so_after_a_kill_and_thick_ones_keep_their_promise() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "t", "--size", "64MiB", "--layout", "isolated", "--thick"]);
    let said = host.refused(&["vhd", "resize", "t", "--size", "1GiB"], 4);
    assert!(said.contains("thick") && said.contains("bytes free"), "{said}");
    let grown = host.json(&["vhd", "resize", "t", "--size", "100MiB"]);
    assert_eq!(grown["vhd"]["allocated_bytes"], 100 * MIB);
    host.kill();
    host.serve(&[], &["d0.img"]);
    assert_eq!(host.json(&["vhd", "show", "t"])["allocated_bytes"], 100 * MIB);
    host.ok(&["vhd", "resize", "t", "--size", "10MiB", "--force"]);
    host.kill();
    host.serve(&[], &["d0.img"]);
    let shown = host.json(&["vhd", "show", "t"]);
    assert_eq!((&shown["size_bytes"], &shown["allocated_bytes"]), (&(10 * MIB).into(), &(10 * MIB).into()));
    assert!(host.refused(&["vhd", "resize", "nobody", "--size", "10MiB"], 3).contains("nobody"));
    assert_eq!(host.json(&["check"])["consistent"], true);
    host.stop();
}
