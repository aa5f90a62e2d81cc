//! Shares of a host disk that can do so much and no more, as guests see them: a daemon on a disk of nbdkit's that serves some requests at a
//! time, each in a few milliseconds. What comes of it is printed; what is asserted is far from what is expected, since machines may be
//! busy. Without nbdkit, nbdfuse or FUSE it says so, and is no failure.
//!
//! `cargo test --test shares -- --nocapture` prints the tables.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;
#[path = "../integration/lab"]
#[allow(dead_code, reason = "shared with the integration runs")]
mod lab {
    pub mod model;
    pub mod nbd;
    pub mod tools;
}

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use daemon_host::Host;
use lab::nbd::NbdDisk;
use spanblk::base::clock;
use spanblk::cli::blk_client::{BlkClient, BlkError, BlkOp, BlkRequest, ClientOptions};

/// Bytes of the disk, and of each VHD.
const DISK: u64 = 256 << 20;
const VHD: u64 = 16 << 20;

/// Requests that the disk serves at a time, and how long each takes: 1000 a second.
const CHANNELS: u32 = 4;
const SERVICE: Duration = Duration::from_millis(4);

/// Until windows have been found, and how long is measured.
const SETTLE: Duration = Duration::from_secs(4);
const MEASURE: Duration = Duration::from_secs(4);

/// What is missing for a slow disk.
fn missing() -> Option<&'static str> {
    let has =
        |program: &str| Command::new(program).arg("--version").output().is_ok_and(|output| output.status.success());
    if !Path::new("/dev/fuse").exists() {
        return Some("/dev/fuse");
    }
    ["nbdkit", "nbdfuse", "fusermount3", "setpriv"].into_iter().find(|program| !has(program))
}

/// A pool on a slow disk, with these VHDs full of data.
fn pool(vhds: &[&str]) -> Option<(Host, NbdDisk)> {
    if let Some(missing) = missing() {
        println!("SKIP: no {missing}");
        return None;
    }
    let mut host = Host::empty();
    let disk = NbdDisk::new(host.directory.path(), "slow", DISK, |server| {
        let delay = SERVICE.as_millis();
        server.arg("--filter=delay").arg(format!("--threads={CHANNELS}")).arg("memory").arg(format!("size={DISK}"));
        server.arg(format!("rdelay={delay}ms"));
    });
    let disk = match disk {
        Ok(disk) => disk,
        Err(error) => {
            println!("SKIP: no disk of nbdkit's: {error:#}");
            return None;
        }
    };
    let path = disk.path.to_str().unwrap().to_owned();
    host.ok(&["pool", "create", &path]);
    host.serve(&[], &[&path]);
    for vhd in vhds {
        host.ok(&["vhd", "create", vhd, "--size", &VHD.to_string(), "--layout", "isolated"]);
        let mut client = host.attach(vhd).unwrap();
        let data = vec![0x5a; 1 << 20];
        (0..VHD >> 20).for_each(|extent| client.write_at(extent << 20, &data).unwrap());
        client.flush().unwrap();
    }
    Some((host, disk))
}

/// What a guest got.
#[derive(Debug)]
struct Got {
    per_sec: f64,
    latencies: Vec<Duration>,
}

impl Got {
    fn percentile(&self, percent: usize) -> Duration {
        self.latencies.get(self.latencies.len() * percent / 100).copied().unwrap_or_default()
    }

    fn show(&self, what: &str) {
        let [p50, p99] = [50, 99].map(|percent| self.percentile(percent));
        println!("{what:44} {:7.0}/s  p50 {p50:9.1?}  p99 {p99:9.1?}", self.per_sec);
    }
}

/// Connects, once whoever was connected before is gone.
fn connect(socket: &Path, options: ClientOptions) -> BlkClient {
    for _ in 0..500 {
        match BlkClient::connect(socket, options) {
            Err(BlkError::InUse { .. }) => std::thread::sleep(Duration::from_millis(10)),
            other => return other.unwrap(),
        }
    }
    panic!("{} is in use", socket.display())
}

/// A guest that has `depth` reads of 4 KiB in flight until it is told to stop. What completes before `from` does not count.
fn guest(socket: &Path, depth: usize, from: Instant, stop: &AtomicBool) -> Got {
    let options = ClientOptions { buffers: depth, buffer_len: 4096, queue_size: 256, ..ClientOptions::default() };
    let mut client = connect(socket, options);
    let (mut next, mut latencies) = (0, Vec::new());
    while !stop.load(Ordering::Relaxed) {
        while let Some(buffer) = client.idle_buffer() {
            let offset = next % (VHD / 4096) * 4096;
            client.submit(0, BlkRequest { op: BlkOp::Read, offset, len: 4096, buffer }).unwrap();
            next += 7;
        }
        client.kick(0).unwrap();
        for read in client.wait(0).unwrap() {
            read.result.unwrap();
            if Instant::now() >= from {
                latencies.push(Duration::from_nanos(clock::now().since(read.submitted)));
            }
        }
    }
    let per_sec = latencies.len() as f64 / from.elapsed().as_secs_f64();
    latencies.sort_unstable();
    Got { per_sec, latencies }
}

/// Guests of these VHDs at the same time, each with so many requests in flight.
fn together(host: &Host, guests: &[(&str, usize)]) -> Vec<Got> {
    let stop = AtomicBool::new(false);
    let from = Instant::now() + SETTLE;
    std::thread::scope(|scope| {
        let run = |(vhd, depth): (&str, usize)| {
            let socket = host.path("v").join(format!("{vhd}.sock"));
            let stop = &stop;
            scope.spawn(move || guest(&socket, depth, from, stop))
        };
        let threads: Vec<_> = guests.iter().copied().map(run).collect();
        std::thread::sleep(SETTLE + MEASURE);
        stop.store(true, Ordering::Relaxed);
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

#[test]
fn weights_are_kept() {
    let Some((mut host, _disk)) = pool(&["a", "b"]) else { return };
    let alone = together(&host, &[("a", 32)]);
    alone[0].show("32 alone");
    host.ok(&["vhd", "set", "a", "--weight", "300"]);
    let both = together(&host, &[("a", 32), ("b", 32)]);
    both.iter().zip(["32, weight 300", "32, weight 100"]).for_each(|(got, what)| got.show(what));
    let ratio = both[0].per_sec / both[1].per_sec;
    let total = (both[0].per_sec + both[1].per_sec) / alone[0].per_sec;
    println!("shares {ratio:.2} : 1, {:.1} % of what one gets alone", total * 100.0);
    assert!((1.8..5.0).contains(&ratio), "{ratio}");
    assert!(total > 0.6, "{total}");
    host.stop();
}

#[test]
fn one_request_at_a_time_is_served_beside_many() {
    let Some((mut host, disk)) = pool(&["victim", "aggressor"]) else { return };
    let path = disk.path.to_str().unwrap();
    let alone = together(&host, &[("victim", 1)]).remove(0);
    alone.show("1 alone");
    let crowd = [("victim", 1), ("aggressor", 64)];
    let fair = together(&host, &crowd);
    fair.iter().zip(["1 beside 64", "64 beside 1"]).for_each(|(got, what)| got.show(what));
    host.ok(&["vhd", "set", "victim", "--latency-target", "7ms"]);
    let target = together(&host, &crowd);
    target.iter().zip(["1 beside 64, target 7 ms", "64 beside 1, target 7 ms"]).for_each(|(got, what)| got.show(what));
    let metrics = host.ok(&["metrics"]);
    for line in [
        "spanblk_disk_shared{disk=\"slow\"} ",
        "spanblk_vhd_latency_target_missed_total{vhd=\"victim\"} ",
        "spanblk_vhd_share_waiting_seconds_total{vhd=\"aggressor\"} ",
    ] {
        assert!(metrics.contains(line), "{line} not in {metrics}");
    }
    host.stop();
    host.serve(&["--fair-shares", "off"], &[path]);
    let off = together(&host, &crowd);
    off.iter()
        .zip(["1 beside 64, not shared out", "64 beside 1, not shared out"])
        .for_each(|(got, what)| got.show(what));
    assert!(
        fair[0].percentile(50) * 2 < off[0].percentile(50),
        "{:?} {:?}",
        fair[0].percentile(50),
        off[0].percentile(50)
    );
    host.stop();
}

#[test]
fn administrators_set_shares() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vm", "create", "web", "--io-priority", "low"]);
    let create = ["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated", "--vm", "web", "--weight", "300"];
    host.ok(&create);
    assert!(host.ok(&create).contains("nothing changed"));
    let shown = host.json(&["vhd", "show", "a"]);
    assert_eq!(shown["sharing"], serde_json::json!({"weight": 300}));
    assert_eq!(shown["sharing_in_effect"], serde_json::json!({"weight": 300, "priority": "low"}));
    assert!(host.ok(&["vhd", "show", "a"]).contains("weight 300, priority low (partly from its VM)"));
    for (wrong, says) in [
        (&["--weight", "0"][..], "give 1 to 10000"),
        (&["--weight", "10001"], "give 1 to 10000"),
        (&["--latency-target", "10us"], "50 us to 10 s"),
        (&["--latency-target", "fast"], "such as 500us or 2ms"),
        (&["--io-priority", "urgent"], "high"),
    ] {
        let said = host.refused(&[&["vhd", "set", "a"][..], wrong].concat(), 2);
        assert!(said.contains(says), "{wrong:?}: {said}");
    }
    host.ok(&["vhd", "set", "a", "--weight", "none", "--latency-target", "2ms"]);
    host.ok(&["vm", "set", "web", "--weight", "7", "--io-priority", "high"]);
    let in_effect = serde_json::json!({"weight": 7, "priority": "high", "latency_target_us": 2000});
    assert_eq!(host.json(&["vhd", "show", "a"])["sharing_in_effect"], in_effect);
    assert_eq!(host.json(&["vhd", "list"])["vhds"][0]["sharing_in_effect"], in_effect);
    assert_eq!(host.json(&["vm", "show", "web"])["sharing"], serde_json::json!({"weight": 7, "priority": "high"}));
    assert!(host.ok(&["metrics"]).contains("spanblk_vhd_share{vhd=\"a\"} 700\n"));
    host.stop();
    host.serve(&[], &["d0.img"]);
    assert_eq!(host.json(&["vhd", "show", "a"])["sharing_in_effect"], in_effect);
    host.stop();
}
