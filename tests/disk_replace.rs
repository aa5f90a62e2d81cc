//! Disks that take the place of others while the pool is served, as administrators do it: working ones, dead ones, and what is
//! refused.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;
#[path = "common/pool_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod pool_host;

use daemon_host::{Host, pattern, read, text};

const MIB: u64 = 1 << 20;

/// A pool of so many disks of 256 MiB, and a VHD of 24 MiB over the first two, full of noise.
fn host_with(disks: usize) -> (Host, Vec<u8>) {
    let mut host = Host::with_pool(disks);
    host.serve(&[], &["*.img"]);
    host.ok(&["vhd", "create", "s", "--size", "24MiB", "--layout", "spanned", "--disks", "d0,d1"]);
    let data = pattern(3, (24 * MIB) as usize);
    let mut guest = host.attach("s").unwrap();
    guest.write_at(0, &data).unwrap();
    guest.flush().unwrap();
    (host, data)
}

#[test]
fn a_new_disk_takes_the_place_of_another_under_guest_io() {
    let (mut host, data) = host_with(3);
    let mut guest = host.attach("s").unwrap();
    let plan = host.ok(&["disk", "replace", "d0", "./new.img", "--size", "256MiB", "--dry-run"]);
    for words in ["d0", "new", "12", "at most 12MiB would be copied"] {
        assert!(plan.contains(words), "{words} not in {plan}");
    }
    assert!(!host.path("new.img").exists() && host.disks() == ["d0", "d1", "d2"], "it was only a question");

    let wait = ["disk", "replace", "d0", "./new.img", "--size", "256MiB", "--wait"];
    let said = host.ok(&wait);
    for words in ["disk 'new' takes the place of 'd0': job 1", "12MiB copied", "disk 'd0' has left the pool"] {
        assert!(said.contains(words), "{words} not in {said}");
    }
    guest.write_at(0, &data[..8192]).unwrap();
    guest.flush().unwrap();
    assert!(read(&mut guest, 0, data.len()) == data);
    assert_eq!((host.disks(), host.members()), (vec!["d1".into(), "d2".into(), "new".into()], host.disks()));
    let job = host.json(&["job", "show", "1"]);
    assert_eq!((&job["kind"], &job["disk"], &job["replacement"]), (&"replace".into(), &"d0".into(), &"new".into()));
    assert!(host.ok(&["job", "list"]).contains("disk d0 by new"));
    host.until("its label is wiped", || text(&host.run(&["check", "d0.img"]).stderr).contains("belongs to no pool"));
    assert_eq!(host.json(&["check"])["consistent"], true);
    drop(guest);
    host.kill();
    host.serve(&[], &["*.img"]);
    assert_eq!(host.disks(), ["d1", "d2", "new"]);
    assert!(read(&mut host.attach("s").unwrap(), 0, data.len()) == data);
    // Its path can be used again at once: here to take the place of its successor.
    host.ok(&["disk", "replace", "new", "./d0.img", "--name", "back", "--wait"]);
    assert_eq!(host.disks(), ["d1", "d2", "back"]);
    assert!(read(&mut host.attach("s").unwrap(), 0, data.len()) == data);
    host.stop();
}

#[test]
fn a_replacement_that_was_interrupted_goes_on_and_the_old_disk_leaves_by_itself() {
    let (mut host, data) = host_with(4);
    let begun = host.json(&["disk", "replace", "d0", "d3", "--max-rate", "512KiB"]);
    assert_eq!((&begun["changed"], &begun["disk"]["name"]), (&true.into(), &"d3".into()), "{begun}");
    let again = host.refused(&["disk", "replace", "d0", "d2"], 4);
    assert!(again.contains("is being moved by job 1 (replace)"), "{again}");
    for disk in ["d0", "d3"] {
        assert!(host.refused(&["disk", "remove", disk], 4).contains("job 1 (replace)"));
    }
    host.until("something is moved", || host.json(&["job", "show", "1"])["moved_bytes"].as_u64().unwrap() > 0);
    host.kill();
    host.serve(&[], &["*.img"]);
    host.ok(&["job", "set", "1", "--max-rate", "none"]);
    host.until("the old disk leaves", || host.disks() == ["d1", "d2", "d3"]);
    host.until("its label is wiped", || text(&host.run(&["check", "d0.img"]).stderr).contains("belongs to no pool"));
    assert!(read(&mut host.attach("s").unwrap(), 0, data.len()) == data);

    // Empty, and still in the pool.
    host.ok(&["disk", "replace", "d1", "d2", "--keep", "--wait"]);
    assert_eq!(host.disks(), ["d1", "d2", "d3"]);
    let shown = host.json(&["disk", "show", "d1"]);
    assert_eq!((&shown["accept"], &shown["allocated_bytes"]), (&"none".into(), &0.into()));
    host.ok(&["disk", "remove", "d1"]);
    assert!(read(&mut host.attach("s").unwrap(), 0, data.len()) == data);
    assert_eq!(host.json(&["check"])["consistent"], true);
    host.stop();
}

/// Everything is off it, and it cannot leave yet: the next daemon sees to it.
#[test]
fn a_disk_that_could_not_leave_when_its_replacement_was_done_leaves_after_a_restart() {
    let (mut host, data) = host_with(4);
    // The fourth disk has no metadata region, and so cannot carry the placement table.
    host.ok(&["vhd", "unspan", "s", "--disk", "d0", "--wait"]);
    for disk in ["d1", "d2"] {
        host.ok(&["disk", "remove", disk]);
    }
    let begun = host.json(&["disk", "replace", "d0", "d3"]);
    assert!(begun["warnings"][0].as_str().unwrap().contains("the placement table stays on 'd0'"), "{begun}");
    host.until("it is said why it stays", || host.ok(&["events"]).contains("'spanblk disk remove d0' tries again"));
    assert_eq!(host.disks(), ["d0", "d3"]);
    host.ok(&["disk", "add", "d1.img"]);
    host.kill();
    host.serve(&[], &["*.img"]);
    host.until("the old disk leaves", || host.disks() == ["d3", "d1"] || host.disks() == ["d1", "d3"]);
    assert_eq!(host.members(), ["d1"]);
    assert!(read(&mut host.attach("s").unwrap(), 0, data.len()) == data);
    assert_eq!(host.json(&["check"])["consistent"], true);
    host.stop();
}

#[test]
fn what_a_dead_disk_had_is_named_and_only_that_is_lost() {
    let (mut host, data) = host_with(3);
    for disk in ["d0", "d1"] {
        host.ok(&["disk", "set", disk, "--failure-domain", disk]);
    }
    host.ok(&["vhd", "create", "r", "--size", "8MiB", "--layout", "spanned", "--disks", "d0,d1", "--replicas", "2"]);
    let mirrored = pattern(5, (8 * MIB) as usize);
    let mut guest = host.attach("r").unwrap();
    guest.write_at(0, &mirrored).unwrap();
    guest.flush().unwrap();
    drop(guest);
    let on_d0: Vec<u64> = {
        let map = host.json(&["vhd", "map", "s"]);
        let runs = map["runs"].as_array().unwrap().iter().filter(|run| run["disk"] == "d0");
        let extents = |run: &serde_json::Value| {
            let first = run["extent"].as_u64().unwrap();
            first..first + run["count"].as_u64().unwrap()
        };
        runs.flat_map(extents).collect()
    };
    assert_eq!(on_d0.len(), 12);
    host.stop();
    std::fs::rename(host.path("d0.img"), host.path("d0.away")).unwrap();
    host.serve(&[], &["*.img"]);
    let mut guest = host.attach("s").unwrap();
    assert!(guest.read_at(on_d0[0] * MIB, &mut [0; 4096]).is_err());

    let new = ["disk", "replace", "d0", "./new.img", "--size", "256MiB"];
    let plan = host.json(&[&new[..], &["--dry-run"]].concat());
    assert_eq!(plan["plan"]["lost_bytes"], 12 * MIB, "{plan}");
    let said = host.ok(&[&new[..], &["--dry-run"]].concat());
    assert!(said.contains("LOST unless one of those disks comes back") && said.contains("would be copied"), "{said}");
    let said = host.refused(&new, 4);
    for words in ["'d0' has failed or is missing", "s (12582912 bytes)", "nothing was changed", "--accept-loss"] {
        assert!(said.contains(words), "{words} not in {said}");
    }
    assert!(!host.path("new.img").exists() && host.disks() == ["d0", "d1", "d2"]);

    host.ok(&[&new[..], &["--accept-loss", "--wait"]].concat());
    assert_eq!((host.disks(), host.members()), (vec!["d1".into(), "d2".into(), "new".into()], host.disks()));
    assert!(host.ok(&["events"]).contains("data_lost"));
    let mut expected = data;
    for extent in &on_d0 {
        let start = (extent * MIB) as usize;
        expected[start..start + MIB as usize].fill(0);
    }
    assert!(read(&mut guest, 0, expected.len()) == expected);
    expected[..8192].copy_from_slice(&pattern(9, 8192));
    guest.write_at(0, &expected[..8192]).unwrap();
    guest.flush().unwrap();
    drop(guest);
    let shown = host.json(&["vhd", "show", "r"]);
    assert_eq!(shown["degraded_extents"].as_u64().unwrap_or(0), 0, "{shown}");
    assert!(read(&mut host.attach("r").unwrap(), 0, mirrored.len()) == mirrored);
    // The dead one comes back, and is a stranger.
    std::fs::rename(host.path("d0.away"), host.path("d0.img")).unwrap();
    host.kill();
    host.serve(&[], &["*.img"]);
    assert_eq!(host.disks(), ["d1", "d2", "new"]);
    assert!(read(&mut host.attach("s").unwrap(), 0, expected.len()) == expected);
    assert!(read(&mut host.attach("r").unwrap(), 0, mirrored.len()) == mirrored);
    host.stop();
}

#[test]
fn evacuating_a_dead_disk_saves_what_can_be_read_and_gives_up_the_rest_if_told_to() {
    let (mut host, data) = host_with(3);
    host.stop();
    std::fs::rename(host.path("d0.img"), host.path("d0.away")).unwrap();
    host.serve(&[], &["*.img"]);
    let failed = host.run(&["disk", "evacuate", "d0", "--wait"]);
    let said = text(&failed.stderr);
    assert!(!failed.status.success() && said.contains("12 extents could not be read"), "{said}");
    assert!(said.contains("--accept-loss"), "{said}");
    host.ok(&["job", "cancel", "1"]);
    host.ok(&["disk", "evacuate", "d0", "--accept-loss", "--wait"]);
    host.ok(&["disk", "remove", "d0"]);
    let found = read(&mut host.attach("s").unwrap(), 0, data.len());
    let is_lost = |extent: usize| found[extent << 20..(extent + 1) << 20].iter().all(|byte| *byte == 0);
    let is_whole = |extent: usize| found[extent << 20..(extent + 1) << 20] == data[extent << 20..(extent + 1) << 20];
    assert_eq!((0..24).filter(|e| is_lost(*e)).count(), 12);
    assert!((0..24).all(|extent| is_lost(extent) || is_whole(extent)));
    host.stop();
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing_behind() {
    let (mut host, data) = host_with(3);
    assert!(host.refused(&["disk", "replace", "nobody", "./new.img"], 3).contains("no disk 'nobody'"));
    assert!(host.refused(&["disk", "replace", "d0", "nobody"], 3).contains("no disk 'nobody'"));
    assert!(host.refused(&["disk", "replace", "d0", "d0"], 2).contains("its own place"));
    assert!(host.refused(&["disk", "replace", "d0", "./d0.img"], 2).contains("its own place"));
    assert!(host.refused(&["disk", "replace", "d0", "d2", "--name", "x"], 2).contains("not a path"));
    assert!(host.refused(&["disk", "replace", "d0", "./none.img"], 3).contains("none.img"));
    let small = host.refused(&["disk", "replace", "d0", "./small.img", "--size", "4MiB"], 4);
    assert!(small.contains("too small"), "{small}");
    std::fs::write(host.path("foreign.raw"), vec![0; 64 << 20]).unwrap();
    let made = std::process::Command::new("mkfs.ext4").args(["-q", "-F"]).arg(host.path("foreign.raw")).status();
    if made.is_ok_and(|status| status.success()) {
        let foreign = host.refused(&["disk", "replace", "d0", "./foreign.raw"], 4);
        assert!(foreign.contains("ext4") && foreign.contains("--force"), "{foreign}");
    }
    host.ok(&["disk", "set", "d2", "--accept", "isolated"]);
    assert!(host.refused(&["disk", "replace", "d0", "d2"], 4).contains("does not accept spanned VHDs"));
    assert!(!host.path("small.img").exists());
    assert_eq!(
        (host.disks(), host.json(&["job", "list"])["jobs"].as_array().unwrap().len()),
        (vec!["d0".into(), "d1".into(), "d2".into()], 0)
    );
    assert_eq!(host.json(&["disk", "show", "d0"])["accept"], "any");
    assert!(read(&mut host.attach("s").unwrap(), 0, data.len()) == data);
    host.stop();
}
