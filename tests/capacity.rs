//! Quotas and reservations, as administrators and guests see them.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;

use std::time::{Duration, Instant};

use daemon_host::{Host, pattern};
use serde_json::json;

const DISKS: [&str; 1] = ["d0.img"];
const MIB: u64 = 1 << 20;

fn create(host: &Host, name: &str, size: &str, more: &[&str]) -> String {
    host.ok(&[&["vhd", "create", name, "--size", size, "--layout", "isolated"][..], more].concat())
}

#[test]
fn a_greedy_vhd_leaves_what_is_reserved_and_stops_at_its_quota() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &DISKS);
    create(&host, "kept", "64MiB", &["--reservation", "64MiB", "--when-full", "error"]);
    create(&host, "greedy", "1GiB", &["--when-full", "error"]);
    let said = host.refused(&["vhd", "set", "greedy", "--reservation", "1GiB"], 4);
    assert!(said.contains("1073741824 bytes have to be kept free") && said.contains("disk 'd0'"), "{said}");
    let mut guest = host.attach("greedy").unwrap();
    let block = pattern(1, usize::try_from(MIB).unwrap());
    let written = (0..1024).take_while(|extent| guest.write_at(extent * MIB, &block).is_ok()).count();
    assert!((100..200).contains(&written), "{written} of 256 MiB");
    let pool = host.json(&["pool", "show"]);
    assert_eq!((&pool["space"]["free_bytes"], &pool["space"]["reserved_bytes"]), (&json!(0), &json!(64 * MIB)));
    let mut kept = host.attach("kept").unwrap();
    (0..64).for_each(|extent| kept.write_at(extent * MIB, &block).unwrap());
    drop((guest, kept));
    assert!(host.ok(&["vhd", "show", "kept"]).contains("64MiB (0B kept free)"));
    host.ok(&["vhd", "delete", "greedy", "--force"]);

    let said = create(&host, "tame", "1GiB", &["--quota", "8388000", "--vm", "web", "--when-full", "queue:50s"]);
    assert!(said.contains("quota: 8388608 bytes (whole extents)"), "{said}");
    let mut guest = host.attach("tame").unwrap();
    guest.write_at(0, &pattern(2, 8 << 20)).unwrap();
    let writer = std::thread::spawn(move || guest.write_at(8 * MIB, &pattern(3, 4096)));
    let deadline = Instant::now() + Duration::from_secs(30);
    while host.json(&["pool", "show"])["requests_waiting"] == json!(0) {
        assert!(Instant::now() < deadline, "nobody waits");
        std::thread::sleep(Duration::from_millis(20));
    }
    let events = host.ok(&["events"]);
    assert!(events.contains("quota_reached  quota_bytes=8388608  used_bytes=8388608  vhd=tame"), "{events}");
    host.ok(&["vhd", "set", "tame", "--quota", "16MiB"]);
    writer.join().unwrap().unwrap();
    let metrics = host.ok(&["metrics"]);
    for line in [
        "spanblk_vhd_quota_bytes{vhd=\"tame\"} 16777216\n",
        "spanblk_vhd_reservation_bytes{vhd=\"kept\"} 67108864\n",
        "spanblk_vhd_reservation_short_bytes{vhd=\"kept\"} 0\n",
    ] {
        assert!(metrics.contains(line), "{line} not in {metrics}");
    }
    assert!(!metrics.contains("spanblk_vhd_quota_bytes{vhd=\"kept\"}"), "only where set");
    let said = host.ok(&["vhd", "set", "tame", "--quota", "4MiB"]);
    assert!(said.contains("9MiB are used already"), "{said}");
    assert!(host.ok(&["vhd", "show", "tame"]).contains("EXCEEDED"));
    assert!(host.refused(&["vhd", "set", "tame", "--reservation", "5MiB"], 4).contains("raise the quota"));
    host.stop();
}

#[test]
fn vms_have_both_and_they_outlive_daemons_and_dumps() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &DISKS);
    host.ok(&["vm", "create", "web", "--quota", "32MiB", "--reservation", "16MiB"]);
    create(&host, "root", "64MiB", &["--vm", "web", "--reservation", "4MiB"]);
    let capacity = json!({
        "quota_bytes": 32 * MIB, "reservation_bytes": 16 * MIB, "charged_bytes": 0, "held_bytes": 12 * MIB, "short_bytes": 0,
    });
    assert_eq!(host.json(&["vm", "show", "web"])["capacity"], capacity);
    let shown = host.ok(&["vm", "show", "web"]);
    assert!(shown.contains("32MiB (0B used)") && shown.contains("16MiB (12MiB kept free)"), "{shown}");
    assert!(host.ok(&["vm", "list"]).contains("32MiB"));
    assert!(host.refused(&["vm", "set", "web", "--quota", "8MiB"], 4).contains("VM 'web' would have a quota"));
    assert!(host.refused(&["vm", "set", "web", "--quota", "0"], 2).contains("give 'none'"));
    assert!(host.ok(&["metrics"]).contains("spanblk_vm_reservation_bytes{vm=\"web\"} 16777216\n"));
    let refused = create_refused(&host);
    assert!(refused.contains("VM 'web' may place 33554432 bytes"), "{refused}");

    host.take_over(&[], &DISKS);
    assert_eq!(host.json(&["vm", "show", "web"])["capacity"], capacity);
    host.stop();
    let dumped = host.ok(&["metadata", "dump", "d0.img"]);
    assert!(dumped.contains("\"capacity\":{\"quota\":33554432,\"reservation\":16777216}"), "{dumped}");
    std::fs::write(host.path("pool.dump"), &dumped).unwrap();
    host.ok(&["metadata", "restore", "pool.dump", "d0.img", "--force"]);
    host.ok(&["check", "d0.img"]);
    host.serve(&[], &DISKS);
    assert_eq!(host.json(&["vm", "show", "web"])["capacity"], capacity);
    assert_eq!(host.json(&["vhd", "show", "root"])["capacity"]["held_bytes"], 4 * MIB);
    host.ok(&["vm", "set", "web", "--quota", "none", "--reservation", "none"]);
    assert_eq!(host.json(&["pool", "show"])["space"]["reserved_bytes"], 4 * MIB);
    host.stop();
}

fn create_refused(host: &Host) -> String {
    host.refused(&["vhd", "create", "big", "--size", "40MiB", "--layout", "isolated", "--thick", "--vm", "web"], 4)
}
