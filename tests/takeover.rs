//! `serve --takeover`: another process goes on with everything, and guests whose VMM would not connect again notice a pause. If it does
//! not come to serve, the one before goes on, whenever that happens (ordering rule 11).

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[allow(dead_code, reason = "shared with other tests")]
#[path = "common/daemon_host.rs"]
mod daemon_host;

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daemon_host::{Host, pattern, read};
use spanblk::cli::blk_client::BlkClient;

const MIB: usize = 1 << 20;
const DISKS: [&str; 3] = ["d0.img", "d1.img", "d2.img"];

/// A host that serves two VHDs.
fn serving(options: &[&str]) -> Host {
    let mut host = Host::with_pool(3);
    host.serve(options, &DISKS);
    host.ok(&["vhd", "create", "one", "--size", "40MiB", "--layout", "isolated"]);
    host.ok(&["vhd", "create", "all", "--size", "40MiB", "--layout", "spanned"]);
    host
}

/// The pools' directories in shared memory.
fn kept(host: &Host) -> usize {
    let pool = host.json(&["pool", "show"])["uuid"].as_str().unwrap().to_owned();
    let entries = std::fs::read_dir("/dev/shm").unwrap().flatten();
    entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&format!("spanblk-{pool}-"))).count()
}

/// A connection over which the daemon can be asked to give everything away.
fn ask(host: &Host, upgrade: &str) -> (UnixStream, String) {
    let mut stream = UnixStream::connect(host.path("c/api.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    write!(
        stream,
        "POST /takeover HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: {upgrade}\r\ncontent-length: 0\r\n\r\n"
    )
    .unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        head.extend(byte);
    }
    (stream, String::from_utf8(head).unwrap())
}

fn say(stream: &mut UnixStream, json: &str) {
    let head = [u32::try_from(json.len()).unwrap().to_le_bytes(), [0; 4]].concat();
    stream.write_all(&[&head, json.as_bytes()].concat()).unwrap();
}

/// What it answers; its descriptors are closed.
fn hear(stream: &mut UnixStream) -> String {
    let mut head = [0; 8];
    stream.read_exact(&mut head).unwrap();
    let mut body = vec![0; u32::from_le_bytes(head[..4].try_into().unwrap()) as usize];
    stream.read_exact(&mut body).unwrap();
    String::from_utf8(body).unwrap()
}

fn hello(host: &Host, version: u32) -> String {
    let directory = host.path("v").display().to_string();
    let memory = std::fs::metadata("/dev/shm").unwrap();
    let memory = format!("[{},{}]", memory.dev(), memory.ino());
    format!(
        r#"{{"version":{version},"program":"0.0.0","pool":null,"socket_dir":"{directory}","managed":true,
            "files":1000000000,"shared_memory":{memory}}}"#
    )
}

#[test]
fn guests_go_on_and_nothing_is_lost() {
    let mut host = serving(&[]);
    let data = pattern(1, 8 * MIB);
    let mut clients: Vec<BlkClient> = ["one", "all"].iter().map(|name| host.attach(name).unwrap()).collect();
    clients.iter_mut().for_each(|client| client.write_at(0, &data).unwrap());
    clients[0].flush().unwrap();
    clients[1].discard(2 << 20, 1 << 20).unwrap();
    let mut expected = data.clone();
    expected[2 * MIB..3 * MIB].fill(0);
    for life in 1..4_u64 {
        let before = host.pid();
        host.take_over(&[], &DISKS);
        assert_ne!(host.pid(), before);
        let begun = Instant::now();
        assert!(read(&mut clients[0], 0, data.len()) == data, "life {life}");
        assert!(read(&mut clients[1], 0, data.len()) == expected, "life {life}");
        eprintln!("takeover {life}: first requests after {:?}", begun.elapsed());
        let more = pattern(100 + life, MIB);
        for client in &mut clients {
            client.write_at(20 << 20, &more).unwrap();
            assert!(read(client, 20 << 20, MIB) == more);
        }
        host.ok(&["check"]);
        assert_eq!(kept(&host), 1, "that of the serving, and no other");
        for name in ["one", "all"] {
            assert!(host.json(&["vhd", "show", name])["attached"]["pid"].is_number(), "{name} is attached");
        }
    }
    clients.iter_mut().for_each(|client| client.flush().unwrap());
    // Sockets are those of the last one: a clean end removes them, and others connect.
    drop(clients);
    assert!(read(&mut host.attach_soon("one"), 0, data.len()) == data);
    let path = host.path("c/api.sock");
    host.stop();
    assert!(!path.exists() && !host.path("v/one.sock").exists());
    host.serve(&[], &DISKS);
    assert!(read(&mut host.attach_soon("all"), 0, data.len()) == expected);
    host.stop();
}

/// After SIGKILL of the next one nothing is lost, either.
#[test]
fn the_next_daemon_can_be_killed() {
    let mut host = serving(&[]);
    let mut client = host.attach("all").unwrap();
    client.write_at(0, &pattern(1, MIB)).unwrap();
    host.take_over(&[], &DISKS);
    client.write_at(1 << 20, &pattern(2, MIB)).unwrap();
    host.kill();
    drop(client);
    host.serve(&[], &DISKS);
    let mut client = host.attach_soon("all");
    assert!(read(&mut client, 0, MIB) == pattern(1, MIB) && read(&mut client, 1 << 20, MIB) == pattern(2, MIB));
    host.ok(&["check"]);
    host.stop();
}

#[test]
fn whoever_fails_after_it_has_everything_gives_it_back() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let mut host = serving(&[]);
    let mut client = host.attach("all").unwrap();
    client.write_at(0, &pattern(1, MIB)).unwrap();
    for round in 1..4 {
        let pid = host.pid();
        let error = host.does_not_serve(&["--takeover", "--metrics-listen", &address], &DISKS);
        assert!(error.contains(&address), "{error}");
        assert!(read(&mut client, 0, MIB) == pattern(1, MIB), "round {round}");
        client.write_at(round << 20, &pattern(round, MIB)).unwrap();
        assert!(host.runs() && host.pid() == pid);
        assert_eq!(host.log().matches("this daemon goes on").count() as u64, round);
        host.ok(&["check"]);
        assert_eq!(kept(&host), 1);
        host.ok(&["vhd", "create", &format!("new{round}"), "--size", "1MiB", "--layout", "spanned"]);
        host.attach(&format!("new{round}")).unwrap().write_at(0, &[1; 512]).unwrap();
    }
    host.take_over(&[], &DISKS);
    for round in 1..4 {
        assert!(read(&mut client, round << 20, MIB) == pattern(round, MIB), "round {round}");
    }
    host.kill();
    host.serve(&[], &DISKS);
    assert!(read(&mut host.attach_soon("all"), 3 << 20, MIB) == pattern(3, MIB));
    host.stop();
}

#[test]
fn what_asks_and_says_nonsense_gets_nothing_or_gives_it_back() {
    let mut host = serving(&[]);
    let mut client = host.attach("all").unwrap();
    client.write_at(0, &pattern(1, MIB)).unwrap();
    let goes_on = |host: &mut Host, client: &mut BlkClient| {
        assert!(read(client, 0, MIB) == pattern(1, MIB), "{}", host.log());
        client.write_at(1 << 20, &[7; 4096]).unwrap();
        host.ok(&["check"]);
        assert!(host.runs());
    };
    assert!(ask(&host, "websocket").1.contains("400"));
    // Nothing, rubbish, another version, another directory.
    let (mut silent, head) = ask(&host, "spanblk-takeover");
    assert!(head.contains("101"), "{head}");
    // The first may not have had its turn yet.
    let mut waits = std::iter::repeat_with(|| ask(&host, "spanblk-takeover"));
    let (waits, _) = waits.find(|(_, head)| head.contains("101")).unwrap();
    assert!(ask(&host, "spanblk-takeover").1.contains("409"), "one at a time, and one that waits");
    drop(waits);
    assert!(hear(&mut silent).contains("does not say what it wants"));
    let refused = |host: &Host, text: &str| {
        // Those before may still wait for their turn.
        let mut stream = std::iter::repeat_with(|| ask(host, "spanblk-takeover"));
        let mut stream = stream.find(|(_, head)| head.contains("101")).unwrap().0;
        say(&mut stream, text);
        hear(&mut stream)
    };
    assert!(refused(&host, "[1,").contains("does not say what it wants"));
    assert!(refused(&host, &hello(&host, 1000)).contains("cannot take over from spanblk"));
    let says = |from: &str, to: &str| refused(&host, &hello(&host, 2).replace(from, to));
    assert!(says("/v\"", "/elsewhere\"").contains("--socket-dir"));
    assert!(says("1000000000", "100").contains("LimitNOFILE="));
    assert!(says("\"shared_memory\":[", "\"shared_memory\":[1").contains("another /dev/shm"));
    assert!(says("\"files\"", "\"sockets\"").contains("does not say what it wants"));
    goes_on(&mut host, &mut client);
    let other = ["--takeover", "--pool", "00000000-0000-0000-0000-000000000001"];
    let error = host.refused(&Host::serve_args(&other, &DISKS), 4);
    assert!(error.contains("another pool"), "{error}");
    let error = host.refused(&Host::serve_args(&["--takeover"], &DISKS), 4);
    assert!(error.contains("restart the service"), "{error}");
    goes_on(&mut host, &mut client);
    // It has everything, and then goes, says something else, or is not there to hear that the other one has gone.
    for report in [None, Some("\"Never\""), Some("\"Ready\"")] {
        let (mut stream, _) = ask(&host, "spanblk-takeover");
        say(&mut stream, &hello(&host, 2));
        assert!(hear(&mut stream).starts_with("{\"Held\""));
        // The descriptors that have come are lost with what carries them.
        std::thread::sleep(Duration::from_millis(50));
        // What it says is heard, and the answer finds nobody.
        stream.shutdown(Shutdown::Read).unwrap();
        report.iter().for_each(|report| say(&mut stream, report));
        drop(stream);
        goes_on(&mut host, &mut client);
    }
    assert!(host.log().contains("it ended when it was ready"), "{}", host.log());
    host.take_over(&[], &DISKS);
    goes_on(&mut host, &mut client);
    host.stop();
    let alone = host.refused(&Host::serve_args(&["--takeover"], &DISKS), 5);
    assert!(alone.contains("no daemon answers"), "{alone}");
}

/// A process that takes over is killed, earlier and later, while guests work.
#[test]
fn it_may_be_killed_at_any_moment() {
    let mut host = serving(&[]);
    let mut lost = 0;
    let mut client = host.attach("all").unwrap();
    for round in 0..20_u64 {
        let data = pattern(round, MIB);
        client.write_at(round << 20, &data).unwrap();
        let mut next = host.begin_takeover(&[], &DISKS);
        std::thread::sleep(Duration::from_millis(10 * round));
        next.kill().unwrap();
        next.wait().unwrap();
        // Once it has all, it alone counts; its end is that of any daemon.
        let deadline = Instant::now() + Duration::from_millis(300);
        while host.runs() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(10));
        }
        if !host.runs() {
            lost += 1;
            host.replace_daemon(None);
            drop(client);
            host.serve(&[], &DISKS);
            client = host.attach_soon("all");
        }
        for before in 0..=round {
            assert!(read(&mut client, before << 20, MIB) == pattern(before, MIB), "round {round}: {}", host.log());
        }
        host.ok(&["check"]);
        assert_eq!(kept(&host), 1, "round {round}");
    }
    eprintln!("killed 20 times, {lost} of them after it had taken over");
    host.stop();
}

/// Requests go on while the daemon changes again and again.
#[test]
fn under_load_no_request_is_lost_and_the_pause_is_short() {
    let mut host = serving(&[]);
    let mut clients: Vec<BlkClient> = ["one", "all"].iter().map(|name| host.attach(name).unwrap()).collect();
    let done = AtomicBool::new(false);
    let log = host.path("log");
    let said = || std::fs::read_to_string(&log).unwrap();
    let load = &|(seed, client): (u64, &mut BlkClient)| {
        let mut longest = Duration::ZERO;
        for turn in 0.. {
            if done.load(Ordering::Relaxed) {
                break;
            }
            let (at, data) = ((turn * 7 % 300) << 16, pattern(seed * 1000 + turn, 64 << 10));
            let begun = Instant::now();
            client.write_at(at, &data).unwrap_or_else(|error| panic!("{error}; {}", said()));
            let mut found = vec![0; data.len()];
            client.read_at(at, &mut found).unwrap_or_else(|error| panic!("{error}; {}", said()));
            assert!(found == data, "{}", said());
            longest = longest.max(begun.elapsed());
            if turn % 16 == 0 {
                client.flush().unwrap();
            }
        }
        longest
    };
    let longest = std::thread::scope(|scope| {
        let loads: Vec<_> = (1..).zip(&mut clients).map(|one| scope.spawn(move || load(one))).collect();
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(100));
            host.take_over(&[], &DISKS);
        }
        done.store(true, Ordering::Relaxed);
        loads.into_iter().map(|load| load.join().unwrap()).max().unwrap()
    });
    eprintln!("longest pause of 5 takeovers: {longest:?}");
    host.ok(&["check"]);
    host.stop();
}

#[test]
fn however_the_two_are_confined() {
    let mut host = serving(&[]);
    let mut client = host.attach("all").unwrap();
    let mut ways = vec![vec!["--sandbox", "off"], vec!["--sandbox", "log"], vec![]];
    if rustix::process::geteuid().is_root() {
        ways.extend([
            vec!["--user", "nobody"],
            vec!["--user", "nobody", "--sandbox", "off"],
            vec!["--user", "daemon"],
            vec![],
        ]);
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (round, way) in (0..).zip(&ways) {
        client.write_at(round << 20, &pattern(round, MIB)).unwrap();
        let fails = [way.as_slice(), &["--takeover", "--metrics-listen", &address]].concat();
        assert!(host.does_not_serve(&fails, &DISKS).contains(&address));
        host.take_over(way, &DISKS);
        for before in 0..=round {
            assert!(read(&mut client, before << 20, MIB) == pattern(before, MIB), "{way:?}: {}", host.log());
        }
        host.ok(&["check"]);
        host.ok(&["vhd", "create", &format!("n{round}"), "--size", "2MiB", "--layout", "spanned"]);
        host.attach(&format!("n{round}")).unwrap().write_at(0, &[1; 512]).unwrap();
        assert_eq!(kept(&host), 1, "{way:?}");
    }
    drop(client);
    host.stop();
    assert!(!host.path("v/all.sock").exists());
}

#[test]
fn jobs_and_disks_go_along() {
    let mut host = serving(&[]);
    let data = pattern(1, 30 * MIB);
    let mut client = host.attach("one").unwrap();
    client.write_at(0, &data).unwrap();
    host.ok(&["disk", "add", "d3.img", "--size", "256MiB"]);
    ["d0", "d1", "d2", "d3"].iter().for_each(|disk| drop(host.ok(&["disk", "set", disk, "--failure-domain", disk])));
    host.ok(&["vhd", "create", "twice", "--size", "20MiB", "--layout", "spanned", "--replicas", "2"]);
    let mut twice = host.attach("twice").unwrap();
    twice.write_at(0, &data[..8 * MIB]).unwrap();
    host.ok(&["vhd", "span", "one", "--max-rate", "4MiB"]);
    let job = host.json(&["job", "list"])["jobs"][0]["id"].to_string();
    // The disk that was added is none of those that the next one is given.
    host.take_over(&[], &DISKS);
    assert_eq!(host.json(&["disk", "list"])["disks"].as_array().unwrap().len(), 4, "{}", host.log());
    assert_eq!(host.json(&["job", "show", &job])["state"], "running");
    host.ok(&["job", "set", &job, "--max-rate", "none"]);
    client.write_at(0, &data[MIB..2 * MIB]).unwrap();
    host.ok(&["job", "wait", &job]);
    assert!(read(&mut client, MIB as u64, 29 * MIB) == data[MIB..] && read(&mut client, 0, MIB) == data[MIB..2 * MIB]);
    // A disk without placement store is given up, which the next one finds well again.
    host.ok(&["disk", "fail", "d3", "--yes"]);
    twice.write_at(8 << 20, &data[8 * MIB..16 * MIB]).unwrap();
    host.take_over(&[], &DISKS);
    for _ in 0..3 {
        assert!(read(&mut twice, 0, 16 * MIB) == data[..16 * MIB]);
    }
    let healthy = |host: &Host| host.json(&["vhd", "show", "twice"])["health"] == "healthy";
    let deadline = Instant::now() + Duration::from_secs(60);
    while !healthy(&host) {
        assert!(Instant::now() < deadline, "{}", host.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    assert!(read(&mut twice, 0, 16 * MIB) == data[..16 * MIB]);
    host.ok(&["check"]);
    host.stop();
}
