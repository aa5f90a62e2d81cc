//! Layout changes through the daemon on file-backed disks, as users order them: what is moved, what is refused, and how jobs are
//! paused, cancelled, taken back and gone on with. Loads and SIGKILLs in between are in `integration/layouts.rs`.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
mod daemon_host;

use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use daemon_host::{Host, pattern, read, text};

const MIB: u64 = 1 << 20;

/// Extents of the VHD `a`.
const EXTENTS: u64 = 24;

/// Makes the VHD `a` full of noise, isolated on d0.
fn import(host: &Host) {
    std::fs::write(host.path("image.raw"), pattern(7, (EXTENTS * MIB) as usize)).unwrap();
    host.ok(&["vhd", "import", "image.raw", "a", "--format", "raw", "--layout", "isolated", "--disks", "d0"]);
}

/// `a` has in it what was imported.
fn is_whole(host: &Host) {
    host.ok(&["vhd", "export", "a", "out.raw", "--overwrite"]);
    let same = std::fs::read(host.path("image.raw")).unwrap() == std::fs::read(host.path("out.raw")).unwrap();
    assert!(same, "'a' differs from what was imported; log:\n{}", host.log());
    assert_eq!(host.json(&["check"])["consistent"], true);
}

/// Disks and extents of a VHD.
fn places(host: &Host, vhd: &str) -> Vec<(String, u64)> {
    let shown = host.json(&["vhd", "show", vhd]);
    let place = |place: &Value| (place["disk"].as_str().unwrap().to_owned(), place["extents"].as_u64().unwrap());
    shown["placement"].as_array().unwrap().iter().map(place).collect()
}

fn on(disks: &[(&str, u64)]) -> Vec<(String, u64)> {
    disks.iter().map(|(disk, extents)| ((*disk).to_owned(), *extents)).collect()
}

fn job(host: &Host, id: u64) -> Value {
    host.json(&["job", "show", &id.to_string()])
}

/// Orders a job and returns its number.
fn order(host: &Host, args: &[&str]) -> u64 {
    let result = host.json(args);
    assert_eq!(result["changed"], true, "{args:?}: {result}");
    result["job"]["id"].as_u64().unwrap()
}

fn until(host: &Host, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}; jobs:\n{}log:\n{}", host.ok(&["job", "list"]), host.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn check_offline(host: &Host, disks: &[&str]) {
    assert_eq!(host.json(&[&["check"], disks].concat())["consistent"], true);
}

fn spawn(host: &Host, args: &[&str]) -> Child {
    host.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// The exit code of a command, and all it has said.
fn end_of(child: Child) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    (status.code(), text(&stdout) + &text(&stderr))
}

#[test]
fn a_vhd_goes_everywhere_and_keeps_its_data() {
    let mut host = Host::with_pool(4);
    let disks = ["d0.img", "d1.img", "d2.img", "d3.img"];
    host.serve(&[], &disks);
    import(&host);

    let plan = host.json(&["vhd", "span", "a", "--dry-run"])["plan"].clone();
    assert_eq!((&plan["vhds"][0]["layout"], &plan["total_bytes"]), (&"spanned".into(), &(18 * MIB).into()), "{plan}");
    let told = host.ok(&["vhd", "span", "a", "--dry-run"]);
    for words in ["VHD", "Extents now", "Afterwards", "d3", "18MiB would be copied"] {
        assert!(told.contains(words), "{words} not in\n{told}");
    }
    assert_eq!(
        (places(&host, "a"), host.json(&["job", "list"])["jobs"].clone()),
        (on(&[("d0", 24)]), Vec::<Value>::new().into())
    );

    let told = host.ok(&["vhd", "span", "a", "--wait"]);
    assert!(told.contains("job 1 (span a) is done") && told.contains("18MiB copied"), "{told}");
    assert_eq!(places(&host, "a"), on(&[("d0", 6), ("d1", 6), ("d2", 6), ("d3", 6)]));
    is_whole(&host);
    for again in [&["vhd", "span", "a", "--wait"][..], &["vhd", "settle", "a"], &["pool", "rebalance", "--wait"]] {
        assert!(host.ok(again).contains("already"), "{again:?}");
    }

    host.ok(&["vhd", "unspan", "a", "--width", "2", "--wait"]);
    assert_eq!(places(&host, "a").iter().map(|(_, extents)| *extents).collect::<Vec<_>>(), [12, 12]);
    is_whole(&host);
    host.ok(&["vhd", "unspan", "a", "--disk", "d2", "--wait"]);
    assert_eq!(places(&host, "a"), on(&[("d2", 24)]));
    assert_eq!(host.json(&["vhd", "show", "a"])["layout"], "isolated");
    is_whole(&host);
    host.ok(&["vhd", "migrate", "a", "--disk", "d1", "--wait", "--priority", "urgent"]);
    assert_eq!(places(&host, "a"), on(&[("d1", 24)]));
    host.ok(&["vhd", "migrate", "a", "--wait"]);
    assert!(places(&host, "a").len() == 1 && places(&host, "a") != on(&[("d1", 24)]));
    is_whole(&host);
    assert!(host.ok(&["vhd", "show", "a"]).contains("Settled:        yes"));
    let metrics = host.ok(&["metrics"]);
    assert!(metrics.contains("spanblk_job_moved_bytes_total{job=\"1\",kind=\"span\"} 18874368\n"), "{metrics}");
    assert!(!metrics.contains("spanblk_disk_copy_bytes_total{disk=\"d3\",direction=\"write\"} 0\n"), "{metrics}");
    host.stop();
    check_offline(&host, &disks);
}

#[test]
fn a_guest_reads_and_writes_while_its_disk_is_moved() {
    let mut host = Host::with_pool(3);
    let disks = ["d0.img", "d1.img", "d2.img"];
    host.serve(&[], &disks);
    import(&host);
    let mut guest = host.attach_soon("a");
    let mut expected = pattern(7, (EXTENTS * MIB) as usize);
    let orders: [&[&str]; 3] =
        [&["vhd", "span", "a"], &["vhd", "unspan", "a", "--disk", "d1"], &["vhd", "migrate", "a"]];
    let mut seed = 100;
    for args in orders {
        let waiter = spawn(&host, &[args, &["--wait", "--max-rate", "32MiB"]].concat());
        for _ in 0..60 {
            seed += 1;
            let offset = seed * 7919 % (EXTENTS * 256) * 4096;
            let new = pattern(seed, 4096);
            guest.write_at(offset, &new).unwrap();
            expected[offset as usize..][..4096].copy_from_slice(&new);
            assert!(read(&mut guest, offset, 4096) == new, "at {offset} during {args:?}");
        }
        guest.flush().unwrap();
        let (code, said) = end_of(waiter);
        assert_eq!(code, Some(0), "{args:?}: {said}");
        assert!(read(&mut guest, 0, expected.len()) == expected, "after {args:?}");
    }
    drop(guest);
    std::fs::write(host.path("image.raw"), expected).unwrap();
    until(&host, "the guest is still attached", || host.json(&["vhd", "show", "a"]).get("attached").is_none());
    is_whole(&host);
    host.kill();
    host.serve(&[], &disks);
    is_whole(&host);
    host.stop();
    check_offline(&host, &disks);
}

#[test]
fn an_evacuated_disk_is_empty_and_a_new_one_gets_its_share() {
    let mut host = Host::with_pool(3);
    host.serve(&[], &["d0.img", "d1.img", "d2.img"]);
    import(&host);
    host.ok(&["vhd", "create", "s", "--size", "24MiB", "--layout", "spanned"]);
    let mut guest = host.attach("s").unwrap();
    guest.write_at(0, &pattern(9, (24 * MIB) as usize)).unwrap();

    let plan = host.json(&["disk", "evacuate", "d0", "--dry-run"])["plan"].clone();
    assert_eq!(plan["total_bytes"], 32 * MIB, "{plan}");
    assert_eq!(host.json(&["disk", "show", "d0"])["accept"], "any", "a dry run changes no role");
    let told = host.ok(&["disk", "evacuate", "d0", "--wait"]);
    assert!(told.contains("(evacuate disk d0) is done"), "{told}");
    let disk = || host.json(&["disk", "show", "d0"]);
    assert_eq!((&disk()["accept"], &disk()["vhds"]), (&"none".into(), &Vec::<Value>::new().into()));
    until(&host, "room is not given back", || {
        disk()["allocated_bytes"] == 0 && disk()["free_bytes"] == disk()["total_bytes"]
    });
    assert_eq!(places(&host, "s"), on(&[("d1", 12), ("d2", 12)]));
    assert!(host.ok(&["disk", "evacuate", "d0", "--wait"]).contains("already"));
    host.refused(&["vhd", "create", "x", "--size", "1MiB", "--layout", "isolated", "--disks", "d0"], 4);
    is_whole(&host);

    host.ok(&["disk", "add", "--size", "256MiB", "d9.img"]);
    host.ok(&["pool", "rebalance", "--wait"]);
    assert_eq!(places(&host, "s").len(), 3, "{:?}", places(&host, "s"));
    let parts: Vec<u64> = places(&host, "s").iter().map(|(_, extents)| *extents).collect();
    assert!(parts.iter().all(|part| (6..=10).contains(part)), "in proportion to the room: {parts:?}");
    host.ok(&["disk", "set", "d0", "--accept", "any"]);
    host.ok(&["pool", "rebalance", "--wait"]);
    assert_eq!(places(&host, "s").len(), 4);
    assert!(read(&mut guest, 0, (24 * MIB) as usize) == pattern(9, (24 * MIB) as usize));
    drop(guest);
    is_whole(&host);
    host.stop();
    let disks = ["d0.img", "d1.img", "d2.img", "d9.img"];
    check_offline(&host, &disks);
    host.serve(&[], &disks);
    assert_eq!(disk_accept(&host, "d0"), "any");
    host.ok(&["disk", "evacuate", "d0", "--wait"]);
    host.stop();
    host.serve(&[], &disks);
    assert_eq!(disk_accept(&host, "d0"), "none");
    host.stop();
}

fn disk_accept(host: &Host, disk: &str) -> Value {
    host.json(&["disk", "show", disk])["accept"].clone()
}

#[test]
fn jobs_are_paused_resumed_cancelled_and_taken_back() {
    let mut host = Host::with_pool(3);
    let disks = ["d0.img", "d1.img", "d2.img"];
    host.serve(&[], &disks);
    import(&host);
    let first = order(&host, &["vhd", "span", "a", "--max-rate", "1MiB"]);
    let waiter = spawn(&host, &["job", "wait", &first.to_string()]);
    let refusal = host.refused(&["vhd", "unspan", "a"], 4);
    assert!(refusal.contains(&format!("job {first} (span)")), "{refusal}");
    for (args, says) in [
        (&["vhd", "show", "a"][..], "no: job 1 (span) is running"),
        (&["vhd", "list"], "(job 1: span)"),
        (&["pool", "show"], "span"),
        (&["job", "show", "1"], "1MiB/s"),
    ] {
        assert!(host.ok(args).contains(says), "{says} not in\n{}", host.ok(args));
    }
    until(&host, "nothing is moved", || job(&host, first)["moved_bytes"].as_u64() > Some(0));
    // Long enough for a line on how far it is.
    std::thread::sleep(Duration::from_secs(6));
    assert_eq!(host.json(&["job", "pause", "1"])["job"]["state"], "paused");
    let (code, said) = end_of(waiter);
    assert!(code == Some(1) && said.contains("paused") && said.contains("job resume 1"), "{said}");
    assert!(said.contains("moved, at most"), "{said}");
    assert!(host.ok(&["job", "pause", "1"]).contains("nothing changed"));
    host.ok(&["job", "set", "1", "--max-rate", "none"]);
    until(&host, "waves go on", || {
        let before = job(&host, first)["moved_bytes"].clone();
        std::thread::sleep(Duration::from_millis(300));
        before == job(&host, first)["moved_bytes"]
    });
    assert_eq!(job(&host, first)["state"], "paused");
    host.ok(&["job", "resume", "1"]);
    host.ok(&["job", "wait", "1"]);
    assert_eq!(places(&host, "a"), on(&[("d0", 8), ("d1", 8), ("d2", 8)]));
    is_whole(&host);

    let args = ["vhd", "unspan", "a", "--disk", "d0", "--max-rate", "1MiB"];
    let waiter = spawn(&host, &[&args[..], &["--wait"]].concat());
    until(&host, "no second job", || host.json(&["job", "list"])["jobs"].as_array().unwrap().len() == 2);
    until(&host, "nothing is moved", || job(&host, 2)["moved_bytes"].as_u64() > Some(0));
    assert_eq!(host.json(&["job", "cancel", "2"])["job"]["state"], "cancelled");
    let (code, said) = end_of(waiter);
    assert!(code == Some(1) && said.contains("cancelled"), "{said}");
    host.refused(&["job", "resume", "2"], 4);
    host.refused(&["job", "cancel", "2", "--revert"], 4);
    assert!(host.ok(&["job", "cancel", "2"]).contains("nothing changed"));
    is_whole(&host);
    host.ok(&["vhd", "settle", "a", "--wait"]);
    assert_eq!(places(&host, "a"), on(&[("d0", 24)]));
    is_whole(&host);

    let third = order(&host, &["vhd", "span", "a", "--max-rate", "1MiB"]).to_string();
    host.ok(&["job", "cancel", &third, "--revert", "--wait"]);
    assert_eq!(places(&host, "a"), on(&[("d0", 24)]));
    assert_eq!(host.json(&["vhd", "show", "a"])["layout"], "isolated");
    is_whole(&host);
    let events = host.ok(&["events"]);
    for words in ["job  1 (span) is running", "job  1 (span) is paused", "job  2 (unspan) is cancelled"] {
        assert!(events.contains(words), "{words} not in\n{events}");
    }
    host.stop();
    check_offline(&host, &disks);
}

#[test]
fn a_restart_goes_on_with_what_was_under_way() {
    let mut host = Host::with_pool(3);
    let disks = ["d0.img", "d1.img", "d2.img"];
    host.serve(&[], &disks);
    import(&host);
    std::fs::write(host.path("b.raw"), pattern(8, MIB as usize)).unwrap();
    host.ok(&["vhd", "import", "b.raw", "b", "--format", "raw", "--layout", "isolated", "--disks", "d0"]);
    let slow = order(&host, &["vhd", "span", "a", "--max-rate", "2MiB", "--priority", "urgent"]);
    let paused = order(&host, &["vhd", "migrate", "b"]);
    host.ok(&["job", "pause", &paused.to_string()]);
    until(&host, "nothing is moved", || job(&host, slow)["moved_bytes"].as_u64() > Some(0));
    host.stop();
    check_offline(&host, &disks);
    host.serve(&[], &disks);
    let shown = job(&host, slow);
    assert_eq!(
        (&shown["state"], &shown["urgent"], &shown["max_rate_bytes"]),
        (&"running".into(), &true.into(), &(2 * MIB).into())
    );
    assert_eq!(job(&host, paused)["state"], "paused");
    assert_eq!(host.json(&["check"])["consistent"], true, "copies on their way are no fault");
    until(&host, "it does not go on", || job(&host, slow)["rate_bytes"].as_u64() > Some(0));
    host.ok(&["job", "set", &slow.to_string(), "--max-rate", "none"]);
    host.ok(&["job", "wait", &slow.to_string()]);
    assert_eq!(places(&host, "a"), on(&[("d0", 8), ("d1", 8), ("d2", 8)]));
    is_whole(&host);
    host.ok(&["job", "resume", &paused.to_string()]);
    host.ok(&["job", "wait", &paused.to_string()]);
    assert_ne!(places(&host, "b"), on(&[("d0", 1)]));
    host.stop();
    check_offline(&host, &disks);
    host.serve(&[], &disks);
    assert_eq!(job(&host, slow)["state"], "done");
    assert!(order(&host, &["vhd", "unspan", "a", "--wait"]) > paused, "numbers are not used again");
    host.stop();
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_moved() {
    let mut host = Host::with_pool(3);
    host.serve(&[], &["d0.img", "d1.img", "d2.img"]);
    import(&host);
    let free = host.json(&["disk", "show", "d1"])["free_bytes"].as_u64().unwrap();
    let size = (free - 10 * MIB).to_string();
    host.ok(&["vhd", "create", "big", "--size", &size, "--layout", "isolated", "--disks", "d1", "--thick"]);
    host.ok(&["vhd", "create", "half", "--size", "100MiB", "--layout", "isolated", "--disks", "d2", "--thick"]);
    let said = host.refused(&["vhd", "migrate", "a", "--disk", "d1"], 4);
    assert!(said.contains(&(24 * MIB).to_string()) && said.contains(&(10 * MIB).to_string()), "{said}");
    let refused: [(&[&str], i32, &str); 12] = [
        (&["vhd", "span", "none"], 3, "none"),
        (&["vhd", "migrate", "a", "--disk", "dx"], 3, "dx"),
        (&["vhd", "span", "a", "--disks", "d0,dx"], 3, "dx"),
        (&["disk", "evacuate", "dx"], 3, "dx"),
        (&["job", "show", "99"], 3, "99"),
        (&["job", "cancel", "99"], 3, "99"),
        (&["vhd", "span", "a", "--width", "4"], 4, "width 4"),
        (&["vhd", "unspan", "a", "--width", "2"], 4, "vhd span a --width 2"),
        (&["vhd", "span", "a", "--disks", "d0,d0"], 2, "twice"),
        (&["vhd", "span", "a", "--max-rate", "0"], 2, "max_rate_bytes"),
        (&["vhd", "unspan", "a", "--width", "0"], 2, "width 0"),
        (&["disk", "evacuate", "d1"], 4, "room"),
    ];
    for (args, code, says) in refused {
        let said = host.refused(args, code);
        assert!(said.contains(says), "{args:?}: {said}");
    }
    host.ok(&["disk", "set", "d2", "--accept", "none"]);
    assert!(host.refused(&["vhd", "migrate", "a", "--disk", "d2"], 4).contains("d2"));
    host.ok(&["disk", "set", "d2", "--accept", "spanned"]);
    assert!(host.refused(&["vhd", "migrate", "a", "--disk", "d2"], 4).contains("'d2' does not accept isolated"));
    assert_eq!(host.json(&["job", "list"])["jobs"].as_array().unwrap().len(), 0);
    assert_eq!(host.json(&["disk", "show", "d1"])["accept"], "any", "a refused evacuation changes no role");
    assert_eq!(places(&host, "a"), on(&[("d0", 24)]));

    // A VHD that is deleted while it is moved takes its job along.
    order(&host, &["vhd", "span", "a", "--disks", "d0,d2", "--max-rate", "1MiB"]);
    assert!(host.refused(&["vhd", "span", "a"], 4).contains("job 1"));
    host.ok(&["vhd", "delete", "a"]);
    until(&host, "the job goes on without its VHD", || job(&host, 1)["state"] == "done");
    assert_eq!(host.json(&["check"])["consistent"], true);
    host.stop();
    check_offline(&host, &["d0.img", "d1.img", "d2.img"]);
}

#[test]
fn evacuated_vhds_share_the_room_there_is() {
    let mut host = Host::with_pool(3);
    host.serve(&[], &["d0.img", "d1.img", "d2.img"]);
    let thick = |vhd: &str, size: &str, disk: &str| {
        host.ok(&["vhd", "create", vhd, "--size", size, "--layout", "isolated", "--disks", disk, "--thick"]);
    };
    for (vhd, size, disk) in
        [("p", "110MiB", "d0"), ("q", "110MiB", "d0"), ("r", "100MiB", "d1"), ("s", "100MiB", "d2")]
    {
        thick(vhd, size, disk);
    }
    host.ok(&["disk", "evacuate", "d0", "--wait"]);
    assert_ne!(places(&host, "p"), places(&host, "q"), "each has room on one disk only");
    let left = &host.json(&["disk", "show", "d0"])["vhds"];
    assert_eq!(left, &Value::from(Vec::<Value>::new()));
    host.stop();
    check_offline(&host, &["d0.img", "d1.img", "d2.img"]);
}

#[test]
fn a_spanned_vhd_with_one_disk_left_is_isolated_when_asked_to_be() {
    let mut host = Host::with_pool(2);
    host.serve(&[], &["d0.img", "d1.img"]);
    host.ok(&["vhd", "create", "a", "--size", "8MiB", "--layout", "spanned"]);
    host.ok(&["disk", "evacuate", "d1", "--wait"]);
    let layout = || host.json(&["vhd", "show", "a"])["layout"].clone();
    assert_eq!(layout(), "spanned");
    host.ok(&["vhd", "unspan", "a", "--wait"]);
    assert_eq!(layout(), "isolated");
    assert!(host.ok(&["vhd", "unspan", "a", "--wait"]).contains("already"));
    host.stop();
}

#[test]
fn jobs_go_side_by_side_unless_they_share_a_disk() {
    let mut host = Host::with_pool(4);
    let disks = ["d0.img", "d1.img", "d2.img", "d3.img"];
    host.serve(&[], &disks);
    import(&host);
    std::fs::write(host.path("other.raw"), pattern(8, (8 * MIB) as usize)).unwrap();
    for (vhd, disk) in [("b", "d2"), ("c", "d1")] {
        host.ok(&["vhd", "import", "other.raw", vhd, "--format", "raw", "--layout", "isolated", "--disks", disk]);
    }
    let first = order(&host, &["vhd", "migrate", "a", "--disk", "d1", "--max-rate", "1MiB"]);
    let beside = order(&host, &["vhd", "migrate", "b", "--disk", "d3"]);
    let behind = order(&host, &["vhd", "migrate", "c", "--disk", "d0"]);
    host.ok(&["job", "wait", &beside.to_string()]);
    let is_waiting = |id| (job(&host, id)["state"].clone(), job(&host, id)["waiting"].clone());
    assert_eq!(is_waiting(first), ("running".into(), false.into()));
    assert_eq!(is_waiting(behind), ("running".into(), true.into()));
    assert!(host.ok(&["job", "list"]).contains("waits for its turn"));
    host.ok(&["job", "cancel", &first.to_string()]);
    host.ok(&["job", "wait", &behind.to_string()]);
    assert_eq!((places(&host, "b"), places(&host, "c")), (on(&[("d3", 8)]), on(&[("d0", 8)])));
    host.ok(&["vhd", "settle", "a", "--wait"]);
    assert_eq!(places(&host, "a"), on(&[("d1", 24)]));
    is_whole(&host);
    host.stop();
    check_offline(&host, &disks);
}

#[test]
fn a_disk_that_fills_up_stops_the_job_which_goes_on_when_there_is_room() {
    let mut host = Host::with_pool(2);
    let disks = ["d0.img", "d1.img"];
    host.serve(&[], &disks);
    std::fs::write(host.path("image.raw"), pattern(7, (150 * MIB) as usize)).unwrap();
    host.ok(&["vhd", "import", "image.raw", "a", "--format", "raw", "--layout", "isolated", "--disks", "d0"]);
    let id = order(&host, &["vhd", "migrate", "a", "--disk", "d1", "--max-rate", "16MiB"]).to_string();
    let free = host.json(&["disk", "show", "d1"])["free_bytes"].as_u64().unwrap();
    assert!((MIB..150 * MIB).contains(&free), "a part of the room is taken already: {free}");
    let size = free.to_string();
    host.ok(&["vhd", "create", "greedy", "--size", &size, "--layout", "isolated", "--disks", "d1", "--thick"]);
    let (code, said) = end_of(spawn(&host, &["job", "wait", &id]));
    assert!(code == Some(1) && said.contains("stopped") && said.contains("room"), "{said}");
    assert!(host.ok(&["events"]).contains("is stopped: "), "{}", host.ok(&["events"]));
    assert_eq!(places(&host, "a").len(), 2);
    assert!(host.ok(&["vhd", "show", "a"]).contains("is stopped"));
    is_whole(&host);
    host.ok(&["vhd", "delete", "greedy"]);
    host.ok(&["job", "set", &id, "--max-rate", "none"]);
    host.ok(&["job", "resume", &id]);
    host.ok(&["job", "wait", &id]);
    assert_eq!(places(&host, "a"), on(&[("d1", 150)]));
    is_whole(&host);
    host.stop();
    check_offline(&host, &disks);
}

#[test]
fn replicas_come_and_go_while_data_stays() {
    let mut host = Host::with_pool(3);
    let disks = ["d0.img", "d1.img", "d2.img"];
    host.serve(&[], &disks);
    import(&host);
    host.ok(&["vhd", "span", "a", "--wait"]);
    for disk in ["d0", "d1", "d2"] {
        host.ok(&["disk", "set", disk, "--failure-domain", "one-shelf"]);
    }
    let told = host.refused(&["vhd", "set", "a", "--replicas", "2"], 4);
    assert!(told.contains("1 failure domain") && told.contains("--failure-domain"), "{told}");
    for disk in ["d0", "d1", "d2"] {
        host.ok(&["disk", "set", disk, "--failure-domain", disk]);
    }
    assert!(host.refused(&["vhd", "set", "a", "--replicas", "4"], 2).contains("1 to 3"));
    assert!(host.refused(&["vhd", "set", "a", "--vm", "x", "--wait"], 2).contains("go with --replicas"));
    let plan = host.json(&["vhd", "set", "a", "--replicas", "2", "--dry-run"])["plan"].clone();
    assert_eq!(plan["total_bytes"], 24 * MIB, "{plan}");
    for replicas in [2, 3, 1] {
        host.ok(&["vhd", "set", "a", "--replicas", &replicas.to_string(), "--wait"]);
        assert_eq!(places(&host, "a"), on(&["d0", "d1", "d2"].map(|disk| (disk, 8 * replicas))), "{replicas} replicas");
        is_whole(&host);
    }
    assert!(host.ok(&["vhd", "set", "a", "--replicas", "1"]).contains("already"));
    host.ok(&["vhd", "set", "a", "--replicas", "2", "--wait"]);
    assert!(host.ok(&["vhd", "show", "a"]).contains("Replicas:       2"));
    host.ok(&["disk", "evacuate", "d1", "--wait"]);
    assert_eq!(places(&host, "a"), on(&[("d0", 24), ("d2", 24)]));
    is_whole(&host);
    let refused = host.refused(&["disk", "evacuate", "d2"], 4);
    assert!(refused.contains("2 replicas"), "{refused}");
    host.kill();
    host.serve(&[], &disks);
    is_whole(&host);
    host.stop();
    check_offline(&host, &disks);
}
