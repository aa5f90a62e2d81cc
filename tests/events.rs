//! Events of a daemon, over restarts.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
mod daemon_host;

use std::time::Duration;

use daemon_host::Host;
use serde_json::Value;

/// How many events come before the first one of this name.
fn events_named(json: &str, name: &str) -> usize {
    json.lines().take_while(|line| !line.contains(&format!("\"event\":\"{name}\""))).count()
}

/// Events are kept in the placement store: nobody has to have followed them.
#[test]
fn what_happened_is_known_after_a_restart_and_a_kill() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    host.ok(&["vhd", "create", "old", "--size", "16MiB", "--layout", "isolated"]);
    host.stop();
    host.serve(&[], &["d0.img"]);
    let events = host.ok(&["events"]);
    for event in ["vhd_created  vhd=old", "daemon_stopping"] {
        assert!(events.contains(event), "{event} not in\n{events}");
    }
    host.ok(&["vhd", "rename", "old", "new"]);
    // A commit takes it along within a second.
    std::thread::sleep(Duration::from_secs(3));
    host.kill();
    host.serve(&[], &["d0.img"]);
    let json = host.ok(&["--json", "events", "--vhd", "old"]);
    let events: Vec<Value> = json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let told: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(told, ["vhd_created", "vhd_renamed"]);
    let all = host.ok(&["--json", "events"]);
    let seq = |line: &str| serde_json::from_str::<Value>(line).unwrap()["seq"].as_u64().unwrap();
    let numbers: Vec<u64> = all.lines().map(seq).collect();
    assert!(numbers.is_sorted_by(|a, b| a < b), "no number is given twice:\n{all}");
    // The kill may have taken numbers along that nobody had noted.
    let stopped = events_named(&all, "daemon_stopping");
    assert!(numbers[..stopped].iter().copied().eq(1..=stopped as u64), "a stop leaves no gap:\n{all}");
    // Killed at once: nobody has noted these events, and somebody may have read them. What is durable has taken the promise along.
    host.ok(&["vhd", "create", "next", "--size", "16MiB", "--layout", "isolated"]);
    let seen = host.ok(&["--json", "events"]).lines().map(seq).max().unwrap();
    host.kill();
    host.serve(&[], &["d0.img"]);
    let after = host.ok(&["--json", "events", "--after", &seen.to_string()]);
    assert!(after.contains("daemon_ready"), "their numbers are not given again:\n{after}");
    host.stop();
}
