//! Disks that change what was written: it is found, repaired where a replica is good, and never read.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "common/daemon_host.rs"]
mod daemon_host;

use std::os::unix::fs::FileExt;

use daemon_host::{Host, pattern, read};
use spanblk::cli::blk_client::BlkClient;

const MIB: usize = 1 << 20;
const DISKS: [&str; 3] = ["d0.img", "d1.img", "d2.img"];

/// Where on a disk a part of a VHD is.
fn place(host: &Host, disk: &str, part: &[u8]) -> Option<u64> {
    let bytes = std::fs::read(host.path(disk)).unwrap();
    let found = (0..bytes.len()).step_by(4096).find(|at| bytes[*at..].starts_with(&part[..512]));
    found.map(|at| at as u64)
}

/// Changes a bit of it there.
fn damage(host: &Host, disk: &str, part: &[u8]) {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(host.path(disk)).unwrap();
    let at = place(host, disk, part).unwrap_or_else(|| panic!("it is not on {disk}")) + 3000;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
    file.sync_all().unwrap();
}

fn holders(host: &Host, part: &[u8]) -> Vec<&'static str> {
    DISKS.into_iter().filter(|disk| place(host, disk, part).is_some()).collect()
}

/// Whether a disk has all of it as it was written.
fn is_whole(host: &Host, disk: &str, part: &[u8]) -> bool {
    let bytes = std::fs::read(host.path(disk)).unwrap();
    let at = usize::try_from(place(host, disk, part).unwrap()).unwrap();
    bytes[at..].starts_with(part)
}

fn part(data: &[u8], at: usize) -> &[u8] {
    &data[at..at + 4096]
}

fn fails_to_read(client: &mut BlkClient, at: usize) -> bool {
    client.read_at(at as u64, &mut [0; 4096]).is_err()
}

fn served(replicas: &str) -> (Host, Vec<u8>) {
    let mut host = Host::with_pool(3);
    host.serve(&[], &DISKS);
    for disk in ["d0", "d1", "d2"] {
        host.ok(&["disk", "set", disk, "--failure-domain", disk]);
    }
    let create =
        ["vhd", "create", "db", "--size", "16MiB", "--layout", "spanned", "--checksums", "--replicas", replicas];
    host.ok(&create);
    assert!(host.ok(&["vhd", "show", "db"]).contains("Checksums"));
    let data = pattern(7, 4 * MIB);
    let mut client = host.attach("db").unwrap();
    client.write_at(0, &data).unwrap();
    client.flush().unwrap();
    drop(client);
    (host, data)
}

#[test]
fn what_disks_have_changed_is_repaired_from_good_replicas() {
    let (host, data) = served("2");
    let clean = host.ok(&["vhd", "scrub", "db", "--wait"]);
    assert!(clean.contains("8MiB read") && clean.contains("no replica was damaged"), "{clean}");
    // In one extent each of its replicas has another damage; in another one, one of them.
    let places = [part(&data, 64 << 10), part(&data, 900 << 10), part(&data, 2 * MIB + 8192)];
    let [one, other] = holders(&host, places[0])[..] else { panic!("two replicas") };
    let third = holders(&host, places[2])[1];
    for (disk, part) in [one, other, third].into_iter().zip(places) {
        damage(&host, disk, part);
    }
    let result = host.json(&["vhd", "scrub", "db", "--wait"]);
    let found = &result["job"]["scrubbed"];
    assert_eq!(
        (result["job"]["state"].as_str(), found["damaged_replicas"].as_u64()),
        (Some("done"), Some(3)),
        "{result}"
    );
    assert_eq!(found["repaired_replicas"].as_u64(), Some(3));
    for (disk, part) in [one, other, third].into_iter().zip(places) {
        assert!(is_whole(&host, disk, part), "{disk}");
    }
    assert!(read(&mut host.attach_soon("db"), 0, data.len()) == data);
    let again = host.ok(&["vhd", "scrub", "db", "--wait"]);
    assert!(again.contains("no replica was damaged"), "{again}");
}

#[test]
fn a_read_finds_it_too_and_repairs_it() {
    let (host, data) = served("2");
    let wrong = part(&data, MIB + 65536);
    let disk = holders(&host, wrong)[0];
    damage(&host, disk, wrong);
    let mut client = host.attach_soon("db");
    assert!((0..20).all(|_| read(&mut client, 0, data.len()) == data));
    let repaired = (0..100).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(50));
        is_whole(&host, disk, wrong)
    });
    assert!(repaired, "{}", host.log());
}

#[test]
fn what_no_replica_has_is_reported_and_never_read() {
    let (mut host, data) = served("1");
    let wrong = part(&data, MIB + 65536);
    let disk = holders(&host, wrong)[0];
    host.stop();
    damage(&host, disk, wrong);
    // In the life after a clean stop, and after a SIGKILL, before which nothing was written.
    for life in 0..3 {
        host.serve(&[], &DISKS);
        let mut client = host.attach_soon("db");
        assert!(fails_to_read(&mut client, MIB + 65536), "life {life}");
        assert!(
            read(&mut client, 0, MIB) == data[..MIB]
                && read(&mut client, 2 * MIB as u64, MIB) == data[2 * MIB..3 * MIB]
        );
        let metrics = host.ok(&["metrics"]);
        assert!(metrics.contains("spanblk_vhd_checksum_errors_total"), "{metrics}");
        drop(client);
        let said = host.refused(&["vhd", "scrub", "db", "--wait"], 1);
        assert!(said.contains("no good replica") && said.contains("backup"), "{said}");
        if life < 2 {
            host.kill();
        }
    }
    // It is written anew, from a backup.
    host.attach_soon("db").write_at(MIB as u64, &data[MIB..2 * MIB]).unwrap();
    host.ok(&["vhd", "scrub", "db", "--wait"]);
    assert!(read(&mut host.attach_soon("db"), 0, data.len()) == data);
    host.ok(&["check"]);
    host.stop();
}

/// What is written to when the daemon is killed has no checksum that counts: nothing right is taken for wrong.
#[test]
fn nothing_seems_wrong_after_a_sigkill() {
    let (mut host, mut data) = served("1");
    for life in 1..=3 {
        let mut client = host.attach_soon("db");
        let fresh = pattern(life, MIB);
        // Parts of blocks, not flushed.
        for at in [512, MIB / 2, 3 * MIB + 4096] {
            client.write_at(at as u64, &fresh[..100 << 10]).unwrap();
            data[at..at + (100 << 10)].copy_from_slice(&fresh[..100 << 10]);
        }
        host.kill();
        host.serve(&[], &DISKS);
        assert!(read(&mut host.attach_soon("db"), 0, data.len()) == data, "life {life}");
        let said = host.ok_after_jobs(&["vhd", "scrub", "db", "--wait"]);
        assert!(said.contains("no replica was damaged"), "{said}");
    }
    assert!(!host.log().contains("not what was written"), "{}", host.log());
    host.stop();
}
