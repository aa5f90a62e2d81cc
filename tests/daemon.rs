//! The whole daemon on file-backed disks: pool, VHDs, data through vhost-user, stops and kills, bad input.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
mod daemon_host;

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;
use spanblk::cli::blk_client::BlkError;

use daemon_host::{Host, pattern, read, text};

const MIB: u64 = 1 << 20;

#[test]
fn what_was_flushed_survives_a_kill_and_disks_in_another_order() {
    let mut host = Host::with_pool(3);
    host.serve(&[], &["d0.img", "d1.img", "d2.img"]);
    host.ok(&["vhd", "create", "iso", "--size", "64MiB", "--layout", "isolated"]);
    host.ok(&["vhd", "create", "span", "--size", "64MiB", "--layout", "spanned"]);
    let places = [(0, 3 * MIB as usize + 512), (10 * MIB + 512, 512), (63 * MIB, MIB as usize)];
    for (seed, vhd) in [(1, "iso"), (2, "span")] {
        let mut client = host.attach(vhd).unwrap();
        assert_eq!((client.capacity(), client.block_size()), (64 * MIB, 512));
        for (i, (offset, len)) in places.iter().enumerate() {
            client.write_at(*offset, &pattern(seed + 10 * i as u64, *len)).unwrap();
        }
        client.flush().unwrap();
    }
    host.kill();
    for disks in [["d2.img", "d0.img", "d1.img"], ["d1.img", "d2.img", "d0.img"]] {
        host.serve(&[], &disks);
        for (seed, vhd) in [(1, "iso"), (2, "span")] {
            let mut client = host.attach(vhd).unwrap();
            for (i, (offset, len)) in places.iter().enumerate() {
                assert!(read(&mut client, *offset, *len) == pattern(seed + 10 * i as u64, *len), "{vhd} at {offset}");
            }
            assert!(read(&mut client, 20 * MIB, 4096).iter().all(|&byte| byte == 0), "never written reads as zeros");
        }
        let used = |vhd: &str| host.json(&["vhd", "show", vhd])["placement"].as_array().unwrap().len();
        assert_eq!((used("iso"), used("span")), (1, 3));
        assert_eq!(host.json(&["check"])["consistent"], true);
        host.stop();
    }
    assert_eq!(host.json(&["check", "d0.img", "d1.img", "d2.img"])["consistent"], true);
    assert!(!host.path("c/api.sock").exists() && !host.path("v/iso.sock").exists(), "sockets are removed");
}

#[test]
fn a_vhd_has_one_frontend_at_a_time() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated"]);
    let mut first = host.attach("a").unwrap();
    first.write_at(0, &pattern(1, 4096)).unwrap();
    assert!(matches!(host.attach("a"), Err(BlkError::InUse { .. })));
    let shown = host.json(&["vhd", "show", "a"]);
    assert_eq!(shown["attached"]["pid"], std::process::id());
    assert!(host.refused(&["vhd", "export", "a", "a.raw"], 4).contains("in use"));
    assert!(!host.path("a.raw").exists());
    assert!(host.refused(&["vhd", "delete", "a"], 4).contains("attached"));
    assert!(read(&mut first, 0, 4096) == pattern(1, 4096), "nobody troubled the first");
    drop(first);
    let second = host.attach_soon("a");
    host.ok(&["vhd", "delete", "a", "--force"]);
    drop(second);
    host.refused(&["vhd", "show", "a"], 3);
    assert!(!host.path("v/a.sock").exists());
    host.stop();
}

#[test]
fn settings_outlive_the_daemon_and_names_take_their_socket_along() {
    let mut host = Host::with_pool(2);
    host.serve(&[], &["d0.img", "d1.img"]);
    let create = ["vhd", "create", "a", "--size", "16MiB", "--layout", "spanned", "--vm", "web", "--queues", "2"];
    assert!(host.ok(&create).contains("created"));
    assert!(host.ok(&create).contains("nothing changed"));
    let mut other = create;
    other[4] = "32MiB";
    assert!(host.refused(&other, 4).contains("size"));
    host.ok(&["vhd", "set", "a", "--when-full", "error", "--socket-mode", "0600", "--vm", ""]);
    host.ok(&["vhd", "rename", "a", "b"]);
    host.refused(&["vhd", "set", "a", "--vm", "x"], 3);
    host.stop();
    host.serve(&[], &["d?.img"]);
    let vhd = host.json(&["vhd", "show", "b"]);
    assert_eq!(vhd["when_full"]["action"], "error");
    assert_eq!((&vhd["socket_mode"], &vhd["queues"]), (&Value::from("0600"), &Value::from(2)));
    assert_eq!(vhd.get("vm"), None);
    assert!(host.path("v/b.sock").exists() && !host.path("v/a.sock").exists());
    host.ok(&["disk", "set", "d1", "--accept", "isolated"]);
    assert!(
        host.refused(&["vhd", "create", "c", "--size", "1MiB", "--layout", "spanned", "--disks", "d1"], 4)
            .contains("d1")
    );
    host.stop();
}

#[test]
fn the_cache_mode_that_a_guest_chose_outlives_a_kill() {
    use vhost::VhostBackend;
    use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
    use vhost::vhost_user::{Frontend, VhostUserFrontend};
    /// Offset of the field `writeback` in the configuration space.
    const WRITEBACK: u32 = 32;

    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated"]);
    let attach = |host: &Host| {
        let mut frontend = Frontend::connect(host.path("v/a.sock"), 1).unwrap();
        frontend.set_owner().unwrap();
        frontend.set_features(frontend.get_features().unwrap()).unwrap();
        let offered = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(offered & VhostUserProtocolFeatures::CONFIG).unwrap();
        frontend
    };
    let config =
        |frontend: &mut Frontend| frontend.get_config(WRITEBACK, 1, VhostUserConfigFlags::empty(), &[0]).unwrap().1[0];
    let mut frontend = attach(&host);
    assert_eq!(config(&mut frontend), 1);
    frontend.set_config(WRITEBACK, VhostUserConfigFlags::WRITABLE, &[0]).unwrap();
    assert_eq!(config(&mut frontend), 0, "asks after the change was taken");
    assert_eq!(host.json(&["vhd", "show", "a"])["writeback"], false);
    host.kill();
    host.serve(&[], &["d0.img"]);
    assert_eq!(config(&mut attach(&host)), 0);
    host.stop();
}

#[test]
fn a_full_pool_fails_or_waits_and_goes_on_with_a_new_disk() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "eager", "--size", "1GiB", "--layout", "isolated", "--when-full", "error"]);
    host.ok(&["vhd", "create", "patient", "--size", "1GiB", "--layout", "spanned", "--when-full", "queue:50s"]);
    let mut eager = host.attach("eager").unwrap();
    let block = pattern(1, MIB as usize);
    let mut written = 0;
    let failed = (0..1024).find_map(|extent| match eager.write_at(extent * MIB, &block) {
        Ok(()) => {
            written += 1;
            None
        }
        Err(error) => Some(error),
    });
    assert!(matches!(failed, Some(BlkError::Failed { .. })), "the pool has less than 1 GiB");
    assert!(written > 200, "{written}");
    assert!(read(&mut eager, 0, MIB as usize) == block, "what is there stays readable");

    let mut patient = host.attach("patient").unwrap();
    let writer = std::thread::spawn(move || {
        let outcome = patient.write_at(0, &pattern(2, 4096));
        (outcome, patient)
    });
    let waiting = || host.json(&["pool", "show"])["requests_waiting"].as_u64().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while waiting() == 0 {
        assert!(Instant::now() < deadline, "nobody waits");
        std::thread::sleep(Duration::from_millis(20));
    }
    host.ok(&["vhd", "delete", "eager", "--force"]);
    let (outcome, mut patient) = writer.join().unwrap();
    outcome.unwrap();
    assert!(read(&mut patient, 0, 4096) == pattern(2, 4096));
    let events = host.ok(&["events"]);
    for event in ["fill", "out_of_room", "waiting_for_room"] {
        assert!(events.contains(event), "{event} not in\n{events}");
    }
    host.ok(&["disk", "add", "--size", "128MiB", "d9.img"]);
    assert_eq!(host.json(&["disk", "list"])["disks"].as_array().unwrap().len(), 2);
    assert_eq!(host.json(&["check"])["consistent"], true);
    host.stop();
    host.serve(&[], &["d9.img", "d0.img"]);
    assert_eq!(host.json(&["disk", "show", "d9"])["health"], "healthy");
    host.stop();
}

#[test]
fn a_vhd_that_grew_onto_another_disk_is_brought_together_again() {
    let mut host = Host::with_pool(2);
    host.serve(&[], &["d0.img", "d1.img"]);
    let isolated = ["--layout", "isolated", "--disks", "d0"];
    host.ok(&[&["vhd", "create", "full", "--size", "230MiB", "--thick"][..], &isolated].concat());
    host.ok(&[&["vhd", "create", "grows", "--size", "16MiB", "--expand", "auto"][..], &isolated].concat());
    host.ok(&[&["vhd", "create", "stays", "--size", "16MiB", "--when-full", "error"][..], &isolated].concat());
    let mut guest = host.attach("grows").unwrap();
    guest.write_at(0, &pattern(1, 16 * MIB as usize)).unwrap();
    let refused = host.attach("stays").unwrap().write_at(0, &pattern(2, 4096));
    assert!(matches!(refused, Err(BlkError::Failed { .. })), "isolated VHDs do not grow unless they are told to");
    assert!(host.ok(&["events"]).contains("vhd_expanded  disk=d1  vhd=grows"));
    assert!(host.ok(&["vhd", "list"]).contains("d0 (now also d1)"));
    assert!(host.ok(&["vhd", "show", "grows"]).contains("no: extents lie on other disks; 'spanblk vhd settle'"));
    let refusal = host.refused(&["vhd", "settle", "grows"], 4);
    assert!(refusal.contains(&(16 * MIB).to_string()) && refusal.contains(&(8 * MIB).to_string()), "{refusal}");
    host.ok(&["vhd", "delete", "full"]);
    // Its room comes back a little later: the job waits for it.
    host.ok(&["vhd", "settle", "grows", "--wait"]);
    let placement = &host.json(&["vhd", "show", "grows"])["placement"];
    assert_eq!(placement, &serde_json::json!([{"disk": "d0", "extents": 16}]));
    assert!(read(&mut guest, 0, 16 * MIB as usize) == pattern(1, 16 * MIB as usize));
    assert_eq!(host.json(&["check"])["consistent"], true);
    host.stop();
}

#[test]
fn discarded_extents_are_given_back() {
    let mut host = Host::with_pool(2);
    host.serve(&[], &["d0.img", "d1.img"]);
    host.ok(&["vhd", "create", "a", "--size", "32MiB", "--layout", "spanned"]);
    let mut client = host.attach("a").unwrap();
    for extent in 0..8 {
        client.write_at(extent * MIB, &pattern(extent, MIB as usize)).unwrap();
    }
    client.discard(2 * MIB, 4 * MIB).unwrap();
    client.write_zeroes(7 * MIB, MIB).unwrap();
    client.flush().unwrap();
    assert!(read(&mut client, 2 * MIB, 4 * MIB as usize).iter().all(|&byte| byte == 0));
    assert!(read(&mut client, 6 * MIB, MIB as usize) == pattern(6, MIB as usize));
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let space = host.json(&["pool", "show"])["space"].clone();
        if space["allocated_bytes"] == 3 * MIB && space["freeing_bytes"] == 0 {
            break;
        }
        assert!(Instant::now() < deadline, "{space}");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(host.json(&["vhd", "map", "a"])["runs"].as_array().unwrap().len(), 3);
    host.stop();
}

#[test]
fn images_go_in_and_out() {
    let mut host = Host::with_pool(2);
    host.serve(&[], &["d0.img", "d1.img"]);
    let image = std::fs::File::options().create(true).write(true).truncate(true).open(host.path("image.raw")).unwrap();
    image.set_len(20 * MIB + 1000).unwrap();
    image.write_all_at(&pattern(1, 100_000), 3 * MIB + 77).unwrap();
    image.write_all_at(&pattern(2, 1000), 20 * MIB).unwrap();
    let imported =
        host.json(&["vhd", "import", "image.raw", "a", "--layout", "spanned", "--format", "raw", "--verify"]);
    assert_eq!(imported["verified"], true);
    assert!(host.refused(&["vhd", "import", "image.raw", "a", "--format", "raw"], 4).contains("--existing"));
    host.ok(&["vhd", "export", "a", "out.raw", "--verify"]);
    host.refused(&["vhd", "export", "a", "out.raw"], 4);
    let original = std::fs::read(host.path("image.raw")).unwrap();
    let exported = std::fs::read(host.path("out.raw")).unwrap();
    assert!(exported.starts_with(&original) && exported[original.len()..].iter().all(|&byte| byte == 0));

    // Over what was there: nothing of it may be left.
    let other = std::fs::File::create(host.path("other.raw")).unwrap();
    other.set_len(8 * MIB).unwrap();
    other.write_all_at(&pattern(3, 4096), MIB).unwrap();
    host.ok(&["vhd", "import", "other.raw", "a", "--format", "raw", "--existing", "--verify"]);
    host.ok(&["vhd", "export", "a", "out.raw", "--overwrite"]);
    let exported = std::fs::read(host.path("out.raw")).unwrap();
    assert!(exported[..8 * MIB as usize] == std::fs::read(host.path("other.raw")).unwrap());
    assert!(exported[8 * MIB as usize..].iter().all(|&byte| byte == 0));
    host.ok(&["vhd", "create", "small", "--size", "1MiB", "--layout", "isolated"]);
    assert!(
        host.refused(&["vhd", "import", "other.raw", "small", "--format", "raw", "--existing"], 4)
            .contains("too small")
    );
    let leftovers = std::fs::read_dir(host.directory.path()).unwrap().flatten();
    assert_eq!(leftovers.filter(|entry| entry.file_name().to_string_lossy().contains(".part")).count(), 0);

    if Command::new("qemu-img").arg("--version").output().is_err() {
        println!("qcow2 skipped: qemu-img is not installed");
        return;
    }
    host.ok(&["vhd", "export", "a", "out.qcow2", "--format", "qcow2"]);
    host.ok(&["vhd", "import", "out.qcow2", "b", "--verify"]);
    host.ok(&["vhd", "export", "b", "back.raw"]);
    assert!(std::fs::read(host.path("back.raw")).unwrap() == exported);
}

#[test]
fn disks_that_are_not_ours_are_refused_and_left_alone() {
    let host = Host::with_pool(2);
    let disk = |name: &str, len: u64| {
        let file = std::fs::File::create(host.path(name)).unwrap();
        file.set_len(len).unwrap();
        file
    };
    // An ext4 superblock: its magic is at byte 1080.
    disk("ext4.img", 256 * MIB).write_all_at(&[0x53, 0xef], 1024 + 56).unwrap();
    assert!(host.refused(&["pool", "create", "ext4.img"], 4).contains("--force"));
    assert!(host.refused(&["pool", "create", "d0.img"], 4).contains("pool"), "a disk of another pool");
    disk("new.img", 256 * MIB);
    std::os::unix::fs::symlink("new.img", host.path("link.img")).unwrap();
    assert!(host.refused(&["pool", "create", "new.img", "link.img"], 4).contains("same disk"));
    disk("tiny.img", MIB);
    assert!(host.refused(&["pool", "create", "tiny.img"], 4).contains("too small"));
    assert!(host.refused(&["pool", "create", "absent.img"], 3).contains("--size"));
    assert!(host.refused(&["pool", "create", "--size", "1MiB", "made.img"], 4).contains("too small"));
    assert!(!host.path("made.img").exists(), "what the failed command made is removed");
    assert!(host.refused(&["pool", "create", "--name", "b@d", "new.img"], 2).contains("b@d"));
    assert!(host.refused(&["pool", "create", "--extent-size", "3MiB", "new.img"], 2).contains("extent size"));
    assert!(host.refused(&["disk", "wipe", "--yes", "new.img"], 4).contains("no label"));
    assert!(host.refused(&["disk", "wipe", "d0.img"], 2).contains("--yes"));
    assert_eq!(host.json(&["check", "d0.img", "d1.img"])["consistent"], true, "nothing was changed");
    host.ok(&["pool", "destroy", "--yes", "d0.img", "d1.img"]);
    assert!(host.refused(&["check", "d0.img", "d1.img"], 3).contains("no disk of a pool"));
}

#[test]
fn pools_that_are_not_whole_say_what_is_missing() {
    let mut host = Host::with_pool(4);
    host.serve(&[], &["d0.img", "d1.img", "d2.img", "d3.img"]);
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated", "--disks", "d3"]);
    host.ok(&["vhd", "create", "b", "--size", "16MiB", "--layout", "isolated", "--disks", "d0"]);
    for vhd in ["a", "b"] {
        let mut client = host.attach(vhd).unwrap();
        client.write_at(0, &pattern(1, 4096)).unwrap();
        client.flush().unwrap();
    }
    host.stop();

    // A disk that carries data only: the others are served, and it is named with what it carries.
    host.serve(&[], &["d0.img", "d1.img", "d2.img"]);
    let warnings = host.json(&["pool", "show"])["warnings"].to_string();
    assert!(warnings.contains("'d3' is missing") && warnings.contains("it carries: a"), "{warnings}");
    assert!(read(&mut host.attach("b").unwrap(), 0, 4096) == pattern(1, 4096));
    let mut client = host.attach("a").unwrap();
    assert!(client.read_at(0, &mut [0; 512]).is_err(), "data on a missing disk cannot be read");
    drop(client);
    host.stop();

    // No majority of the placement store: refused with the names, until told to go on.
    let output = host.run(&Host::serve_args(&[], &["d0.img", "d3.img"]));
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("d1") && said.contains("d2") && said.contains("--accept-stale"), "{said}");
    host.serve(&["--accept-stale"], &["d0.img", "d3.img"]);
    assert!(read(&mut host.attach("a").unwrap(), 0, 4096) == pattern(1, 4096));
    let mut client = host.attach("b").unwrap();
    client.write_at(MIB, &pattern(2, 4096)).unwrap();
    client.flush().unwrap();
    drop(client);
    host.stop();

    // The others are a majority of the disks that they know, and go on by themselves, further than the first. Together with these
    // the pool would be a mixture of both.
    for _ in 0..2 {
        host.serve(&[], &["d1.img", "d2.img"]);
        host.stop();
    }
    let all = ["d0.img", "d1.img", "d2.img", "d3.img"];
    for options in [&[][..], &["--accept-stale"]] {
        let output = host.run(&Host::serve_args(options, &all));
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains("of one history: 'd1' (epoch"), "{said}");
        assert!(said.contains("not of it: 'd0' (epoch"), "{said}");
    }
    // Whoever wants the first state wipes the disks of the second one.
    for disk in ["d1.img", "d2.img"] {
        host.ok(&["disk", "wipe", "--yes", disk]);
    }
    host.serve(&[], &["d0.img", "d3.img"]);
    assert!(read(&mut host.attach("a").unwrap(), 0, 4096) == pattern(1, 4096));
    assert!(read(&mut host.attach("b").unwrap(), MIB, 4096) == pattern(2, 4096));
    host.stop();
}

#[test]
fn metrics_and_events_are_there_for_others() {
    let mut host = Host::with_pool(1);
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    host.serve(&["--metrics-listen", &free], &["d0.img"]);
    let mut follower = host.command(&["--json", "events", "--follow"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(follower.stdout.take().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("daemon_ready"));
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated"]);
    assert!(lines.next().unwrap().unwrap().contains("\"event\":\"vhd_created\",\"vhd\":\"a\""));
    follower.kill().unwrap();
    follower.wait().unwrap();

    let mut client = host.attach("a").unwrap();
    client.write_at(0, &pattern(1, 4096)).unwrap();
    let get = |path: &str| {
        let mut stream = std::net::TcpStream::connect(&free).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    let metrics = get("/metrics");
    assert!(metrics.contains("spanblk_vhd_requests_total{vhd=\"a\",kind=\"write\"} 1\n"), "{metrics}");
    assert!(metrics.contains("spanblk_disk_requests_total{disk=\"d0\",kind=\"write\"} "), "{metrics}");
    assert!(get("/api/v1/pool").starts_with("HTTP/1.1 404"), "only metrics over TCP");
    assert_eq!(
        host.ok(&["metrics"]).lines().count(),
        metrics.lines().skip_while(|line| !line.starts_with('#')).count()
    );
    host.stop();
}

/// One that was away has the table from before, and must never win with it.
#[test]
fn a_restore_goes_without_a_disk_that_carries_the_table_only_when_told_to() {
    let disks = ["d0.img", "d1.img", "d2.img"];
    let mut host = Host::with_pool(3);
    host.serve(&[], &disks);
    host.ok(&["vhd", "create", "before", "--size", "16MiB", "--layout", "isolated"]);
    host.ok(&["metadata", "dump", "-o", "old.dump"]);
    host.ok(&["vhd", "create", "after", "--size", "16MiB", "--layout", "isolated"]);
    host.stop();
    let restore = ["metadata", "restore", "old.dump", "d0.img", "d1.img"];
    let refused = host.refused(&restore, 4);
    assert!(refused.contains("'d2'") && refused.contains("--force"), "{refused}");
    host.ok(&[&restore[..], &["--force"]].concat());
    host.serve(&[], &disks);
    let names = |host: &Host| -> Vec<String> {
        let vhds = host.json(&["vhd", "list"])["vhds"].clone();
        vhds.as_array().unwrap().iter().map(|vhd| vhd["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&host), ["before"]);
    host.ok(&["vhd", "create", "later", "--size", "16MiB", "--layout", "isolated", "--disks", "d0"]);
    host.stop();
    // All others are lost, and with them the majority.
    let restore = ["metadata", "restore", "old.dump", "d0.img"];
    let refused = host.refused(&restore, 1);
    assert!(refused.contains("'d1'") && refused.contains("--force"), "{refused}");
    host.ok(&[&restore[..], &["--force"]].concat());
    host.serve(&[], &["d0.img"]);
    assert_eq!(names(&host), ["before"]);
    host.stop();
    // They were not, and are out of date.
    host.serve(&[], &disks);
    assert_eq!(names(&host), ["before"]);
    host.stop();
}

#[test]
fn a_table_can_be_dumped_and_restored() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated"]);
    let mut client = host.attach("a").unwrap();
    client.write_at(5 * MIB, &pattern(1, 4096)).unwrap();
    client.flush().unwrap();
    drop(client);
    host.ok(&["metadata", "dump", "-o", "online.dump"]);
    host.stop();
    assert_eq!(host.ok(&["metadata", "dump", "d0.img"]), std::fs::read_to_string(host.path("online.dump")).unwrap());
    assert!(host.refused(&["metadata", "restore", "online.dump", "d0.img"], 4).contains("readable"));

    // The metadata region is lost: 8 MiB of it, behind the label.
    let disk = std::fs::File::options().write(true).open(host.path("d0.img")).unwrap();
    disk.write_all_at(&vec![0xa5; 8 * MIB as usize], MIB).unwrap();
    drop(disk);
    let output = host.run(&Host::serve_args(&[], &["d0.img"]));
    assert_eq!(output.status.code(), Some(1), "{}", text(&output.stderr));
    let dump = std::fs::read_to_string(host.path("online.dump")).unwrap();
    std::fs::write(host.path("cut.dump"), &dump[..dump.len() - 20]).unwrap();
    host.refused(&["metadata", "restore", "cut.dump", "d0.img"], 2);
    host.ok(&["metadata", "restore", "online.dump", "d0.img"]);
    assert_eq!(host.json(&["check", "d0.img"])["consistent"], true);
    host.serve(&[], &["d0.img"]);
    assert!(read(&mut host.attach("a").unwrap(), 5 * MIB, 4096) == pattern(1, 4096));
    host.stop();
}
