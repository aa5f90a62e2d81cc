//! Disks that leave a pool while it is served, as administrators do it: what is refused, where the placement table goes, and what
//! is left on the disk.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;
#[path = "common/pool_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod pool_host;

use daemon_host::{Host, pattern, read, text};
use serde_json::Value;

const MIB: u64 = 1 << 20;

fn create(host: &Host, name: &str, more: &[&str]) {
    host.ok(&[&["vhd", "create", name, "--size", "24MiB"], more].concat());
}

#[test]
fn an_empty_disk_leaves_under_guest_io_and_is_blank() {
    let mut host = Host::with_pool(4);
    let all = ["d0.img", "d1.img", "d2.img", "d3.img"];
    host.serve(&[], &all);
    create(&host, "s", &["--layout", "spanned"]);
    let mut guest = host.attach("s").unwrap();
    let data = pattern(3, (24 * MIB) as usize);
    guest.write_at(0, &data).unwrap();
    guest.flush().unwrap();

    let said = host.refused(&["disk", "remove", "d3"], 4);
    for words in ["not empty", "6 extents (6291456 bytes)", ": s;", "disk evacuate d3"] {
        assert!(said.contains(words), "{words} not in {said}");
    }
    assert!(host.refused(&["disk", "remove", "nobody"], 3).contains("no disk 'nobody'"));
    let error = text(&host.run(&["--json", "disk", "remove", "d3"]).stderr);
    assert!(error.contains("\"code\": \"disk_not_empty\""), "{error}");
    host.ok(&["disk", "evacuate", "d3", "--max-rate", "64KiB"]);
    assert!(host.refused(&["disk", "remove", "d3"], 4).contains("job 1 (evacuate), which is running, needs disk 'd3'"));
    host.ok(&["job", "set", "1", "--max-rate", "none"]);
    host.ok(&["job", "wait", "1"]);

    guest.write_at(0, &data[..4096]).unwrap();
    let removed = host.json(&["disk", "remove", "d3"]);
    assert_eq!((&removed["name"], &removed["warnings"]), (&"d3".into(), &Vec::<Value>::new().into()), "{removed}");
    assert_eq!(removed["path"], host.path("d3.img").to_str().unwrap());
    guest.flush().unwrap();
    assert!(read(&mut guest, 0, data.len()) == data);
    assert_eq!(
        (host.disks(), host.members()),
        (vec!["d0".into(), "d1".into(), "d2".into()], vec!["d0".into(), "d1".into(), "d2".into()])
    );
    assert!(host.ok(&["events"]).contains("disk_removed"));
    assert!(host.refused(&["disk", "remove", "d3"], 3).contains("no disk 'd3'"));
    // Its path can be used for anything, and be added again.
    assert!(host.refused(&["check", "d3.img"], 3).contains("belongs to no pool"));
    assert!(host.ok(&["disk", "add", "d3.img"]).contains("added"));
    assert_eq!(host.disks(), ["d0", "d1", "d2", "d3"]);
    host.ok(&["vhd", "span", "s", "--wait"]);
    guest.flush().unwrap();
    assert!(read(&mut guest, 0, data.len()) == data);
    assert_eq!(host.json(&["check"])["consistent"], true);
    drop(guest);
    host.kill();
    host.serve(&[], &all);
    assert!(read(&mut host.attach("s").unwrap(), 0, data.len()) == data);
    host.stop();
    assert_eq!(host.json(&[&["check"][..], &all].concat())["consistent"], true);
}

#[test]
fn disks_that_carry_the_placement_table_leave_down_to_the_last_one() {
    let mut host = Host::with_pool(4);
    host.serve(&[], &["d?.img"]);
    create(&host, "a", &["--layout", "isolated", "--disks", "d3"]);
    let mut guest = host.attach("a").unwrap();
    guest.write_at(0, &pattern(1, 4096)).unwrap();
    guest.flush().unwrap();
    assert_eq!(host.members(), ["d0", "d1", "d2"]);
    let output = host.run(&["disk", "remove", "d0"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("two disks carry the placement table"), "{}", text(&output.stderr));
    assert_eq!(host.members(), ["d1", "d2"]);
    create(&host, "b", &["--layout", "isolated", "--disks", "d3"]);
    let removed = host.json(&["disk", "remove", "d2"]);
    assert!(removed["warnings"][0].as_str().unwrap().contains("one disk carries the placement table"), "{removed}");
    assert_eq!(host.members(), ["d1"]);
    let said = host.refused(&["disk", "remove", "d1"], 4);
    assert!(said.contains("only one that carries the placement table") && said.contains("disk replace"), "{said}");
    create(&host, "c", &["--layout", "isolated", "--disks", "d3"]);
    host.kill();

    // The disks that are left are the pool, and the others are none of it.
    host.serve(&[], &["d?.img"]);
    assert_eq!((host.disks(), host.members()), (vec!["d1".to_owned(), "d3".into()], vec!["d1".to_owned()]));
    assert_eq!(host.json(&["vhd", "list"])["vhds"].as_array().unwrap().len(), 3);
    assert!(read(&mut host.attach("a").unwrap(), 0, 4096) == pattern(1, 4096));
    // With a disk more there is one that can take its place.
    host.ok(&["disk", "add", "d0.img"]);
    assert_eq!(host.members(), ["d1"]);
    let said = text(&host.run(&["disk", "remove", "d1"]).stderr);
    assert!(said.contains("one disk carries"), "{said}");
    assert_eq!(host.members(), ["d0"]);
    // Three disks that can carry the table do.
    host.ok(&["disk", "add", "d1.img"]);
    assert_eq!(host.members(), ["d0"]);
    host.ok(&["disk", "add", "d2.img"]);
    assert_eq!(host.members(), ["d0", "d1", "d2"]);
    create(&host, "d", &["--layout", "isolated", "--disks", "d3"]);
    host.kill();
    std::fs::rename(host.path("d0.img"), host.path("away")).unwrap();
    host.serve(&[], &["d?.img"]);
    assert_eq!(host.json(&["vhd", "list"])["vhds"].as_array().unwrap().len(), 4);
    host.stop();
}

#[test]
fn a_missing_disk_with_nothing_on_it_can_be_removed() {
    let mut host = Host::with_pool(4);
    host.serve(&[], &["d?.img"]);
    create(&host, "a", &["--layout", "isolated", "--disks", "d1"]);
    create(&host, "b", &["--layout", "isolated", "--disks", "d2"]);
    host.attach("b").unwrap().write_at(0, &pattern(1, 4096)).unwrap();
    host.stop();
    for away in ["d0", "d3"] {
        std::fs::rename(host.path(&format!("{away}.img")), host.path(&format!("{away}.away"))).unwrap();
    }
    host.serve(&[], &["d?.img"]);
    for (gone, left) in [("d3", 3), ("d0", 2)] {
        let said = text(&host.run(&["disk", "remove", gone]).stderr);
        assert!(said.contains("not here") && said.contains("disk wipe"), "{said}");
        assert_eq!(host.disks().len(), left);
    }
    assert_eq!(host.members(), ["d1", "d2"]);
    host.stop();
    for away in ["d0", "d3"] {
        std::fs::rename(host.path(&format!("{away}.away")), host.path(&format!("{away}.img"))).unwrap();
    }
    host.serve(&[], &["d?.img"]);
    assert_eq!(host.disks(), ["d1", "d2"]);
    assert!(host.log().contains("is none of its disks any more"), "{}", host.log());
    host.stop();
    // Alone they are no pool.
    assert!(!host.run(&Host::serve_args(&[], &["d0.img"])).status.success());
    let mut lonely = Host::with_pool(1);
    lonely.serve(&[], &["d0.img"]);
    assert!(lonely.refused(&["disk", "remove", "d0"], 4).contains("only one of the pool"));
    lonely.stop();
}

/// The way back that takes no restart: it comes as a disk with nothing on it, so that nothing has to be known of what it has missed.
#[test]
fn a_disk_that_was_given_up_leaves_and_comes_back_while_guests_go_on() {
    let mut host = Host::with_pool(4);
    host.serve(&[], &["d0.img", "d1.img", "d2.img", "d3.img"]);
    for disk in ["d0", "d1", "d2", "d3"] {
        host.ok(&["disk", "set", disk, "--failure-domain", disk]);
    }
    create(&host, "m", &["--layout", "spanned", "--replicas", "2"]);
    let mut guest = host.attach("m").unwrap();
    let mut data = pattern(5, (24 * MIB) as usize);
    guest.write_at(0, &data).unwrap();
    guest.flush().unwrap();
    host.ok(&["disk", "fail", "d1", "--yes"]);
    data[..MIB as usize].copy_from_slice(&pattern(6, MIB as usize));
    guest.write_at(0, &data[..MIB as usize]).unwrap();
    guest.flush().unwrap();

    host.ok_after_jobs(&["disk", "evacuate", "d1", "--wait"]);
    let removed = host.json(&["disk", "remove", "d1"]);
    let warnings = removed["warnings"].to_string();
    assert!(warnings.contains("its label is not wiped") && !warnings.contains("stays locked"), "{warnings}");
    // With what it was, it is a disk of this pool that the pool does not know.
    let said = host.refused(&["disk", "add", "d1.img"], 4);
    assert!(said.contains("--force"), "{said}");
    host.ok(&["disk", "add", "d1.img", "--force", "--failure-domain", "d1"]);
    assert_eq!((host.disks().len(), host.members()), (4, vec!["d0".into(), "d1".into(), "d2".into()]));
    host.ok_after_jobs(&["vhd", "span", "m", "--wait"]);
    let on_it = &host.json(&["disk", "show", "d1"])["allocated_bytes"];
    assert!(on_it.as_u64().unwrap() > 0, "{on_it}");
    assert!(read(&mut guest, 0, data.len()) == data);
    drop(guest);
    host.ok(&["check"]);
    host.stop();
    host.serve(&[], &["d0.img", "d1.img", "d2.img", "d3.img"]);
    assert!(read(&mut host.attach("m").unwrap(), 0, data.len()) == data);
    host.stop();
}
