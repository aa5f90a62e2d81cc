//! Limits of rates: on reactors as they run, and as administrators set them. Clocks are real here and machines may be busy, so what is
//! measured is never tight: too much is an error at once, too little only if it is very little.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;
#[path = "common/guest.rs"]
mod guest;
#[path = "common/host.rs"]
mod host;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guest::{Guest, READ};
use host::{Connection, Host, poll};
use serde_json::json;
use spanblk::base::ids::ReactorId;
use spanblk::cli::blk_client::{BlkClient, BlkOp, BlkRequest};
use spanblk::qos::{Admission, Buckets, LimitKind, Rate, Rates};
use spanblk::reactor::messages::{OwnerRequest, ReactorMessage, RingCommand};
use spanblk::shared::VhdState;

/// Requests of a guest at a time.
const DEPTH: u16 = 16;

fn buckets(per_sec: u64, burst: u64) -> Option<Arc<Buckets>> {
    Buckets::new(Rates { iops: Some(Rate { per_sec, burst }), bytes: None }).map(Arc::new)
}

/// Limits the VHD, as the owner does.
fn limit(host: &Host, vhd: &VhdState, own: Option<Arc<Buckets>>, vm: Option<Arc<Buckets>>) {
    vhd.limits.set(Admission::new(own, vm).map(Arc::new));
    host.reactors.iter().for_each(|reactor| reactor.send(ReactorMessage::LimitsChanged));
}

/// A guest that always asks for as much as its ring holds.
struct Load {
    connection: Connection,
    idle: Vec<u16>,
}

impl Load {
    fn on(host: &mut Host, vhd: &Arc<VhdState>, reactor: u16) -> Load {
        let connection = host.connect(Guest::new(DEPTH, 4096, true), vhd, reactor);
        Load { connection, idle: (0..DEPTH).collect() }
    }

    /// Requests that complete in that time, and how long it took.
    fn run(&mut self, time: Duration) -> (u64, Duration) {
        let (begun, mut done) = (Instant::now(), 0);
        while begun.elapsed() < time {
            for slot in self.idle.drain(..) {
                self.connection.guest.submit(slot, READ, u64::from(slot) * 8, 4096, 0);
            }
            self.connection.kick();
            if self.connection.guest.arm_interrupt() {
                let _ = poll(&self.connection.call, Duration::from_millis(5));
                let _ = std::io::Read::read(&mut self.connection.call, &mut [0; 8]);
            }
            while let Some((slot, status)) = self.connection.guest.take() {
                assert_eq!(status, 0);
                self.idle.push(slot);
                done += 1;
            }
        }
        (done, begun.elapsed())
    }

    /// At most what the limit allows, and at least half of it.
    fn expect(&mut self, per_sec: u64, burst: u64, millis: u64) {
        let (done, took) = self.run(Duration::from_millis(millis));
        let allowed = per_sec * u64::try_from(took.as_millis()).unwrap() / 1000;
        // What had completed and not been taken before counts here.
        let most = allowed + burst + u64::from(DEPTH) + 2;
        assert!(done <= most, "{done} in {took:?}, of at most {most}");
        assert!(done >= allowed / 2, "{done} in {took:?}, of {allowed}");
    }
}

#[test]
fn a_limit_holds_until_it_is_changed() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::new(directory.path(), 1, 16, 1);
    let vhd = host.prefilled_vhd(1, 4, 0);
    limit(&host, &vhd, buckets(50, 5), None);
    let mut load = Load::on(&mut host, &vhd, 0);
    load.expect(50, 5, 2000);
    limit(&host, &vhd, buckets(1000, 100), None);
    load.expect(1000, 100, 1000);
    let metrics = vhd.metrics.of(ReactorId(0));
    assert!(metrics.throttled.load(Ordering::Relaxed) > 10);
    assert!(metrics.throttled_ns.load(Ordering::Relaxed) > 500_000_000);
    let told = host.seen.reports.lock().unwrap();
    assert!(matches!(told[..], [OwnerRequest::LimitHit { by: LimitKind::VhdIops, .. }]), "once: {told:?}");
    drop(told);
    // A minute's wait ends when the limit does.
    limit(
        &host,
        &vhd,
        Buckets::new(Rates { bytes: Some(Rate { per_sec: 100, burst: 1 }), iops: None }).map(Arc::new),
        None,
    );
    load.run(Duration::from_millis(200));
    assert!(load.run(Duration::from_millis(200)).0 <= 1);
    limit(&host, &vhd, None, None);
    let (done, _) = load.run(Duration::from_millis(500));
    assert!(done >= u64::from(DEPTH), "{done}");
    load.connection.stop();
    host.shut_down();
}

#[test]
fn a_ring_that_is_held_back_stops_at_once_and_keeps_nobody_awake() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::new(directory.path(), 1, 16, 1);
    let vhd = host.prefilled_vhd(1, 4, 0);
    limit(&host, &vhd, buckets(1, 1), None);
    let mut load = Load::on(&mut host, &vhd, 0);
    load.run(Duration::from_millis(100));
    let before = host.busy[0].total();
    std::thread::sleep(Duration::from_millis(500));
    let worked = Duration::from_nanos(host.busy[0].total() - before);
    assert!(worked < Duration::from_millis(100), "it has been busy for {worked:?}");
    let begun = Instant::now();
    assert!(load.connection.set_writeback(false) && load.connection.set_writeback(true));
    let (reply, answer) = crossbeam_channel::bounded(1);
    let key = load.connection.key;
    load.connection.command(RingCommand::Yield { key, even_broken: false, reply });
    answer.recv_timeout(Duration::from_secs(10)).expect("a ring that is held back can go on elsewhere");
    let mut other = Load::on(&mut host, &vhd, 0);
    other.run(Duration::from_millis(50));
    let stopped = other.connection.stop();
    assert!(stopped.next_available <= 2, "{stopped:?}");
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    host.shut_down();
}

#[test]
fn who_shares_a_limit_gets_a_share() {
    let directory = tempfile::tempdir().unwrap();
    let mut host = Host::new(directory.path(), 1, 16, 2);
    let vhds = [host.prefilled_vhd(1, 4, 0), host.prefilled_vhd(2, 4, 0)];
    let vm = buckets(200, 20);
    vhds.iter().for_each(|vhd| limit(&host, vhd, None, vm.clone()));
    // Two rings of one VHD on one reactor, and one of the other VHD on another.
    let mut loads =
        [(0, 0), (0, 0), (1, 1)].map(|(vhd, reactor): (usize, u16)| Load::on(&mut host, &vhds[vhd], reactor));
    let done: Vec<u64> = std::thread::scope(|scope| {
        let run = |load: &'_ mut Load| load.run(Duration::from_millis(2500)).0;
        let threads: Vec<_> = loads.iter_mut().map(|load| scope.spawn(move || run(load))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let sum: u64 = done.iter().sum();
    assert!(sum >= 200 && sum <= 200 * 4 + 20 + 3 * u64::from(DEPTH), "{done:?}");
    assert!(done.iter().all(|done| *done >= sum / 10), "{done:?}");
    loads.iter().for_each(|load| _ = load.connection.stop());
    host.shut_down();
}

/// Asks for as many reads as there are buffers.
fn ask(client: &mut BlkClient) {
    while let Some(buffer) = client.idle_buffer() {
        client.submit(0, BlkRequest { op: BlkOp::Read, offset: 0, len: 4096, buffer }).unwrap();
    }
    client.kick(0).unwrap();
}

/// Reads that complete in that time.
fn reads(client: &mut BlkClient, time: Duration) -> u64 {
    let (begun, mut done) = (Instant::now(), 0);
    while begun.elapsed() < time {
        ask(client);
        for read in client.wait(0).unwrap() {
            read.result.unwrap();
            done += 1;
        }
    }
    done
}

#[test]
fn administrators_set_limits_while_guests_work() {
    let mut host = daemon_host::Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    let create = ["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated", "--vm", "web", "--iops-limit", "50"];
    host.ok(&create);
    assert!(host.ok(&create).contains("nothing changed"));
    let limits = |host: &daemon_host::Host| host.json(&["vhd", "show", "a"])["limits"].clone();
    assert_eq!(limits(&host), json!({"iops": {"per_sec": 50, "burst": 5}}));
    assert!(host.ok(&["vhd", "show", "a"]).contains("50 requests/s (burst 5)"));
    for (wrong, says) in [
        (&["--iops-limit", "0"][..], "give 1 or more"),
        (&["--iops-limit", "5", "--iops-burst", "0"], "give 1 or more"),
        (&["--iops-burst", "5"], "--iops-limit"),
        (&["--bps-limit", "none", "--bps-burst", "5"], "--bps-limit"),
        (&["--bps-limit", "100PiB"], "at most"),
    ] {
        let said = host.refused(&[&["vhd", "set", "a"][..], wrong].concat(), 2);
        assert!(said.contains(says), "{wrong:?}: {said}");
    }
    let mut client = host.attach("a").unwrap();
    let slow = reads(&mut client, Duration::from_secs(2));
    assert!((50..=200).contains(&slow), "{slow}");
    host.ok(&["vhd", "set", "a", "--iops-limit", "none", "--bps-limit", "40MiB"]);
    host.ok(&["vm", "set", "web", "--iops-limit", "200", "--iops-burst", "20"]);
    assert_eq!(host.json(&["vm", "show", "web"])["limits"], json!({"iops": {"per_sec": 200, "burst": 20}}));
    let shared = reads(&mut client, Duration::from_secs(2));
    assert!((100..=800).contains(&shared), "{shared}");
    let metrics = host.ok(&["metrics"]);
    for line in [
        "spanblk_vhd_bytes_per_second_limit{vhd=\"a\"} 41943040\n",
        "spanblk_vm_iops_limit{vm=\"web\"} 200\n",
        "spanblk_vhd_throttled_total{vhd=\"a\"} ",
        "spanblk_vhd_throttled_seconds_total{vhd=\"a\"} ",
    ] {
        assert!(metrics.contains(line), "{line} not in {metrics}");
    }
    assert_eq!(host.ok(&["events"]).matches("limit_hit").count(), 1);
    // A daemon that stops, and one that starts.
    drop(client);
    host.stop();
    host.serve(&[], &["d0.img"]);
    assert_eq!(limits(&host), json!({"bytes": {"per_sec": 41_943_040, "burst": 4_194_304}}));
    let mut client = host.attach_soon("a");
    let again = reads(&mut client, Duration::from_secs(1));
    assert!((50..=600).contains(&again), "{again}");
    host.ok(&["vm", "set", "web", "--iops-limit", "none"]);
    host.ok(&["vhd", "set", "a", "--bps-limit", "1"]);
    ask(&mut client);
    // Its requests wait for an hour and more: that keeps neither its guest from leaving nor the daemon from ending.
    let begun = Instant::now();
    drop(client);
    host.stop();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}
