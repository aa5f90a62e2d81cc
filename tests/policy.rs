//! The policy of a daemon: what is wanted, what it proposes, applied by hand and by itself, over restarts.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
mod daemon_host;
#[path = "common/pool_host.rs"]
mod pool_host;

use daemon_host::Host;
use serde_json::Value;

const DISKS: [&str; 3] = ["d0.img", "d1.img", "d2.img"];

/// A pool on disks that do not fail together, whatever they lie on.
fn apart() -> Host {
    let mut host = Host::with_pool(3);
    host.serve(&[], &DISKS);
    for disk in ["d0", "d1", "d2"] {
        host.ok(&["disk", "set", disk, "--failure-domain", disk]);
    }
    host
}

fn proposals(host: &Host) -> Vec<Value> {
    host.json(&["advise"])["proposals"].as_array().unwrap().clone()
}

fn replicas(host: &Host, vhd: &str) -> u64 {
    host.json(&["vhd", "show", vhd])["replicas"].as_u64().unwrap()
}

#[test]
fn what_is_wanted_is_kept_and_what_can_never_be_is_refused_with_the_numbers() {
    let mut host = apart();
    host.ok(&["vhd", "create", "a", "--size", "16MiB", "--layout", "isolated", "--vm", "web"]);
    host.ok(&["policy", "set", "space=70%", "quiet=22:00-06:00"]);
    host.ok(&["policy", "set", "--vm", "web", "latency=20ms"]);
    host.ok(&["policy", "set", "--vhd", "a", "mode=off", "iops=500"]);
    host.ok(&["policy", "set", "--vhd", "a", "iops="]);
    for (args, exit, words) in [
        (&["policy", "set", "space=99%"][..], 4, "space is 99.0 %: give between 5.0 % and 95.0 %"),
        (&["policy", "set", "survives=2", "mode=auto", "moves=0"], 4, "moves is 0"),
        (&["policy", "set", "--vhd", "a", "mode=advise", "survives=9"], 4, "takes 10 replicas, and there can be 3"),
        (&["policy", "set", "--vhd", "a", "mode=advise", "latency=1us"], 4, "within 0.001 ms"),
        (&["policy", "set", "colour=blue"], 2, "there is no setting 'colour'"),
        (&["policy", "set", "latency=3"], 2, "give a time, such as 15ms or 500us"),
        (&["policy", "set", "--vhd", "a", "space=70%"], 2, "a setting of the pool"),
        (&["policy", "set", "--vhd", "nobody", "mode=off"], 3, "there is no VHD 'nobody'"),
        (&["apply", "7"], 3, "there is no proposal 7"),
        (&["dismiss", "7"], 3, "there is no proposal 7"),
        (&["why", "nobody"], 3, "nobody"),
    ] {
        let said = host.refused(args, exit);
        assert!(said.contains(words), "{args:?}: {said}");
    }
    let before = host.json(&["policy", "show"]);
    assert_eq!(before["pool"]["space"], "70%");
    assert_eq!(before["vms"]["web"]["latency"], "20000us");
    assert_eq!(before["vhds"]["a"], serde_json::json!({ "mode": "off" }));
    host.stop();
    host.serve(&[], &DISKS);
    assert_eq!(host.json(&["policy", "show"]), before, "it is kept");
    assert!(host.ok(&["why", "a"]).contains("its mode is off"));
    host.stop();
}

/// A VHD that is to survive the loss of a disk, and does not.
#[test]
fn too_little_fault_tolerance_is_found_proposed_and_repaired() {
    let mut host = apart();
    for vhd in ["a", "b", "c"] {
        host.ok(&["vhd", "create", vhd, "--size", "16MiB", "--layout", "spanned", "--thick"]);
    }
    // Nothing is proposed before it has been so for long enough; here that is at once.
    host.ok(&["policy", "set", "hold=0s", "moved-a-day=50%"]);
    host.ok(&["policy", "set", "--vhd", "a", "survives=1"]);
    host.ok(&["policy", "set", "--vhd", "c", "survives=1"]);
    let found = proposals(&host);
    let of = |vhd: &str| found.iter().find(|found| found["command"].as_str().unwrap().contains(vhd)).cloned();
    let proposal = of(" a ").unwrap_or_else(|| panic!("{found:?}"));
    assert_eq!((&proposal["rule"], &proposal["standing"]), (&"tolerance".into(), &"advice".into()));
    assert!(proposal["because"].as_str().unwrap().contains("survives the loss of 0 failure domains and should 1"));
    assert!(of(" b ").is_none());
    assert!(host.ok(&["events", "--vhd", "a"]).contains("proposal"));
    let text = host.ok(&["advise"]);
    assert!(text.contains("because  it survives too little") && text.contains("moved in the last 24 hours"), "{text}");

    // One is dismissed, and does not come back; one is applied.
    host.ok(&["dismiss", &of(" c ").unwrap()["number"].to_string()]);
    host.ok(&["apply", &proposal["number"].to_string()]);
    host.until("the VHD has a second replica", || {
        let jobs = host.json(&["job", "list"]);
        jobs["jobs"].as_array().unwrap().iter().all(|job| job["state"] == "done") && replicas(&host, "a") == 2
    });
    host.ok(&["policy", "set", "hold=0s"]);
    assert!(proposals(&host).is_empty(), "{:?}", proposals(&host));
    assert!(host.json(&["advise"])["outcomes"][0]["text"].as_str().unwrap().contains("replicas of VHD a"));

    // What was dismissed and applied is known after a restart.
    host.stop();
    host.serve(&[], &DISKS);
    host.ok(&["policy", "set", "hold=0s"]);
    assert!(proposals(&host).is_empty(), "{:?}", proposals(&host));

    // In auto mode nobody has to do anything.
    host.ok(&["policy", "set", "--vhd", "b", "survives=1", "mode=auto"]);
    host.until("the policy has repaired it", || replicas(&host, "b") == 2);
    assert!(host.ok(&["why", "b"]).contains("it survives too little"), "{}", host.ok(&["why", "b"]));
    host.until("it is done", || {
        let jobs = host.json(&["job", "list"]);
        jobs["jobs"].as_array().unwrap().iter().all(|job| job["state"] == "done")
    });
    assert_eq!(host.json(&["check"])["consistent"], true);
    host.stop();
}

/// Where the policy may decide, it decides where a new VHD comes, if nobody else does.
#[test]
fn new_vhds_come_where_the_policy_says() {
    let mut host = apart();
    let disks = |host: &Host, vhd: &str| host.json(&["vhd", "show", vhd])["disks"].clone();
    let why = |host: &Host, vhd: &str| host.ok(&["why", vhd]).lines().next().unwrap().to_owned();
    // Less room than elsewhere: a VHD that comes here was sent here.
    host.ok(&[
        "vhd", "create", "web1", "--size", "16MiB", "--layout", "isolated", "--disks", "d1", "--vm", "web", "--thick",
    ]);
    host.ok(&["vhd", "create", "before", "--size", "8MiB", "--vm", "mail"]);
    assert_ne!(disks(&host, "before"), serde_json::json!(["d1"]));
    assert!(why(&host, "before").contains("was chosen by the daemon"), "{}", why(&host, "before"));
    host.ok(&["policy", "set", "--vm", "web", "mode=auto"]);
    for (vhd, how) in [("web2", &[][..]), ("web3", &["--layout", "isolated"][..])] {
        host.ok(&[&["vhd", "create", vhd, "--size", "8MiB", "--vm", "web"], how].concat());
        assert_eq!(disks(&host, vhd), serde_json::json!(["d1"]), "with its VM");
        assert_eq!(host.json(&["vhd", "show", vhd])["disks_chosen"], false);
        assert!(why(&host, vhd).contains("was chosen by the policy when it was created"), "{}", why(&host, vhd));
        assert_eq!(
            host.json(&[&["vhd", "create", vhd, "--size", "8MiB", "--vm", "web"], how].concat())["changed"],
            false
        );
    }
    // Those of others are not its business, nor those whose disks somebody names.
    host.ok(&["vhd", "create", "other", "--size", "8MiB"]);
    assert!(why(&host, "other").contains("was chosen by the daemon"), "{}", why(&host, "other"));
    host.ok(&["vhd", "create", "web4", "--size", "8MiB", "--vm", "web", "--layout", "isolated", "--disks", "d2"]);
    assert!(why(&host, "web4").contains("was ordered by name"), "{}", why(&host, "web4"));
    // A disk that takes no isolated VHDs any more.
    host.ok(&["disk", "set", "d1", "--accept", "spanned"]);
    host.ok(&["vhd", "create", "web5", "--size", "8MiB", "--vm", "web"]);
    assert_ne!(disks(&host, "web5"), serde_json::json!(["d1"]));
    // It is written down after a look.
    host.ok(&["policy", "set", "hold=9m"]);
    host.stop();
    host.serve(&[], &DISKS);
    assert!(why(&host, "web2").contains("was chosen by the policy"), "{}", why(&host, "web2"));
    host.stop();
}
