//! What VHDs, VMs and disks did, on a real daemon: over restarts, takeovers, SIGKILL and new names.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;

use std::time::{Duration, Instant};

use daemon_host::{Host, pattern, read};
use serde_json::Value;
use spanblk::cli::blk_client::BlkClient;

fn stats(host: &Host, args: &[&str]) -> Value {
    host.json(&[args, &["--since", "1h"]].concat())
}

fn number(of: &Value, field: &str) -> f64 {
    of["summary"][field].as_f64().unwrap_or_else(|| panic!("{field} in {of}"))
}

/// Reads until a sample of that has been taken.
fn work(host: &Host, client: &mut BlkClient, vhd: &str) -> Value {
    let begun = Instant::now();
    loop {
        for at in 0..50 {
            read(client, at * 4096, 4096);
        }
        let now = stats(host, &["vhd", "stats", vhd]);
        if number(&now, "reads_per_sec") > 0.0 && number(&now, "covered_secs") >= 10.0 {
            return now;
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "no sample has come: {now}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_was_done_is_known_until_its_vhd_is_gone() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated", "--vm", "web"]);
    let mut client = host.attach("a").unwrap();
    client.write_at(0, &pattern(1, 1 << 20)).unwrap();
    let seen = work(&host, &mut client, "a");
    assert!(number(&seen, "read_share") > 0.9 && number(&seen, "sequential_share") > 0.5, "{seen}");
    assert!(number(&seen, "latency_us_p99") > 0.0 && number(&seen, "disk_us_p99") > 0.0, "{seen}");
    assert!(number(&seen, "used_bytes") >= f64::from(1 << 20), "{seen}");
    assert!(number(&seen, "working_set_bytes") >= f64::from(1 << 20), "{seen}");
    assert_eq!(seen["hottest"][0]["extent"], 0);
    for args in [["vm", "stats", "web"], ["disk", "stats", "d0"]] {
        let of = stats(&host, &args);
        assert!(number(&of, "reads_per_sec") > 0.0, "{of}");
    }
    let all = host.ok(&["vhd", "stats"]);
    assert!(all.contains("Working set") && all.lines().last().unwrap().contains('a'), "{all}");
    assert!(host.ok(&["vhd", "stats", "a", "--samples"]).contains("Hottest extents: 0 ("));
    let metrics = host.ok(&["metrics"]);
    for part in [
        "spanblk_vhd_stage_seconds_count{vhd=\"a\",kind=\"read\",stage=\"admission\"} ",
        "spanblk_vhd_stage_seconds_count{vhd=\"a\",kind=\"read\",stage=\"disk\"} ",
        "spanblk_vhd_stage_seconds_count{vhd=\"a\",kind=\"read\",stage=\"completion\"} ",
        "spanblk_vhd_request_size_bytes_bucket{vhd=\"a\",kind=\"read\",le=\"4096\"} ",
        "spanblk_disk_sequential_requests_total{disk=\"d0\",kind=\"read\"} ",
        "spanblk_vhd_touched_extents_total{vhd=\"a\"} 1\n",
        "spanblk_disk_background_bytes_total{disk=\"d0\",work=\"metadata\",direction=\"write\"} ",
    ] {
        assert!(metrics.contains(part), "{part} not in {metrics}");
    }
    // Another name, and a stop.
    host.ok(&["vhd", "rename", "a", "b"]);
    drop(client);
    host.stop();
    host.serve(&[], &["d0.img"]);
    let reads = |host: &Host| number(&stats(host, &["vhd", "stats", "b"]), "reads_per_sec");
    let kept = stats(&host, &["vhd", "stats", "b"]);
    assert!(reads(&host) > 0.0 && kept["hottest"][0]["heat"].as_u64().unwrap() > 10, "{kept}");
    assert!(number(&stats(&host, &["disk", "stats", "d0"]), "reads_per_sec") > 0.0);
    host.take_over(&[], &["d0.img"]);
    assert!(reads(&host) > 0.0, "another process has it, too");
    host.kill();
    host.serve(&[], &["d0.img"]);
    assert!(reads(&host) > 0.0, "what was stored before is there");
    host.ok(&["vhd", "delete", "b"]);
    host.ok(&["vhd", "create", "b", "--size", "16MiB", "--layout", "isolated"]);
    let new = stats(&host, &["vhd", "stats", "b"]);
    assert!(number(&new, "reads_per_sec") == 0.0 && new["hottest"].is_null(), "{new}");
    host.stop();
}

#[test]
fn what_there_is_no_history_of_is_refused_by_name() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated"]);
    for (wrong, says) in [
        (&["--since", "1w"][..], "such as 10m, 1h or 7d"),
        (&["--since", "5s"], "such as 10m, 1h or 7d"),
        (&["--resolution", "1m"], "5m (week)"),
        (&["--metric", "iops"], "--metric"),
    ] {
        let said = host.refused(&[&["vhd", "stats", "a"][..], wrong].concat(), 2);
        assert!(said.contains(says), "{wrong:?}: {said}");
    }
    for args in [["vhd", "stats", "none"], ["vm", "stats", "none"], ["disk", "stats", "none"]] {
        assert!(host.refused(&args, 3).contains("none"));
    }
    host.stop();
}
