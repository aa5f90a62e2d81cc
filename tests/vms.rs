//! VMs, as administrators see them: over restarts and takeovers, and in pools from before there were records of them.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;

use daemon_host::{Host, pattern, text};
use serde_json::{Value, json};

const DISKS: [&str; 2] = ["d0.img", "d1.img"];

fn create(host: &Host, name: &str, vm: &str) {
    host.ok(&["vhd", "create", name, "--size", "16MiB", "--layout", "spanned", "--vm", vm]);
}

/// Names of the VMs, each with those of its VHDs.
fn vms(host: &Host) -> Value {
    let list = host.json(&["vm", "list"]);
    let names = |vm: &Value| {
        let vhds: Vec<&Value> = vm["vhds"].as_array().unwrap().iter().map(|vhd| &vhd["name"]).collect();
        json!([vm["name"], vhds])
    };
    list["vms"].as_array().unwrap().iter().map(names).collect()
}

#[test]
fn vms_group_vhds_and_outlive_daemons() {
    let mut host = Host::with_pool(2);
    host.serve(&[], &DISKS);
    let made = ["vm", "create", "web", "--label", "env=prod", "--label", "tier=front", "--owner", "ops@example.org"];
    assert_eq!(host.ok(&made), "VM 'web' created\n");
    assert!(host.ok(&made).contains("nothing changed"));
    assert!(host.refused(&["vm", "create", "web"], 4).contains("labels env=prod,tier=front, not none"));
    create(&host, "root", "web");
    create(&host, "data", "web");
    create(&host, "other", "db");
    assert_eq!(vms(&host), json!([["db", ["other"]], ["web", ["data", "root"]]]));
    let mut guest = host.attach("root").unwrap();
    guest.write_at(0, &pattern(1, 2 << 20)).unwrap();
    guest.flush().unwrap();
    let web = host.json(&["vm", "show", "web"]);
    assert_eq!(
        (&web["size_bytes"], &web["written_bytes"], &web["attached"]),
        (&json!(32 << 20), &json!(2 << 20), &json!(1))
    );
    assert_eq!((&web["health"], &web["disks"]), (&json!("healthy"), &json!(["d0", "d1"])));
    assert_eq!(web["io"]["write"]["bytes"], json!(2 << 20));
    assert_eq!(host.json(&["vm", "show", web["uuid"].as_str().unwrap()])["name"], "web");
    let shown = host.ok(&["vm", "show", "web"]);
    for words in ["env=prod, tier=front", "ops@example.org", "1 of 2 VHDs", "32MiB", "data", "root"] {
        assert!(shown.contains(words), "{words} not in {shown}");
    }
    assert!(host.ok(&["vm", "list"]).contains("d0,d1"));
    let listed = host.ok(&["vhd", "list", "--vm", "web"]);
    assert!(listed.contains("root") && listed.contains("data") && !listed.contains("other"), "{listed}");
    assert!(host.refused(&["vhd", "list", "--vm", "none"], 3).contains("no VM 'none'"));

    let said = host.refused(&["vm", "delete", "web"], 4);
    assert!(said.contains("data, root") && said.contains("vhd set NAME --vm ''"), "{said}");
    host.ok(&["vm", "set", "web", "--name", "shop", "--label", "tier=", "--label", "env=test", "--owner", "none"]);
    assert!(host.refused(&["vm", "set", "shop", "--name", "db"], 4).contains("'db' belongs to another VM"));
    assert!(host.refused(&["vm", "show", "web"], 3).contains("no VM 'web'"));
    assert_eq!(host.json(&["vhd", "show", "root"])["vm"], "shop");
    assert!(host.ok(&["disk", "impact", "d0"]).contains("shop"));
    let events = host.ok(&["events"]);
    for words in ["vm_created  vm=web", "vm_created  vm=db", "vm_renamed  old_name=web  vm=shop", "vm_changed  vm=shop"]
    {
        assert!(events.contains(words), "{words} not in {events}");
    }
    assert!(host.ok(&["metrics"]).contains("spanblk_vm_vhds{vm=\"shop\"} 2\n"));
    let check = host.ok(&["check"]);
    drop(guest);

    let known = json!([["db", ["other"]], ["shop", ["data", "root"]]]);
    host.take_over(&[], &DISKS);
    assert_eq!(vms(&host), known);
    host.kill();
    host.serve(&[], &DISKS);
    assert_eq!(vms(&host), known);
    let shop = host.json(&["vm", "show", "shop"]);
    assert_eq!((&shop["labels"], shop.get("owner")), (&json!({"env": "test"}), None));
    assert_eq!(shop["uuid"], web["uuid"]);
    assert_eq!(host.ok(&["check"]), check);
    host.ok(&["vhd", "set", "other", "--vm", ""]);
    host.ok(&["vm", "delete", "db"]);
    host.stop();
    host.ok(&["check", "d0.img", "d1.img"]);
    host.serve(&[], &DISKS);
    assert_eq!(vms(&host), json!([["shop", ["data", "root"]]]));
    host.stop();
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &DISKS[..1]);
    for (args, says) in [
        (&["vm", "create", "a b"][..], "bad VM name"),
        (&["vm", "create", "a", "--label", "e v=x"], "key \"e v\""),
        (&["vm", "create", "a", "--label", "env="], "has no value"),
        (&["vm", "create", "a", "--label", "env=a", "--label", "env=b"], "given twice"),
        (&["vm", "set", "a"], "nothing to set"),
    ] {
        let said = host.refused(args, 2);
        assert!(said.contains(says), "{args:?}: {said}");
    }
    host.refused(&["vm", "delete", "a"], 3);
    host.refused(&["vm", "set", "a", "--owner", "x"], 3);
    let error = text(&host.run(&["--json", "vm", "create", "a", "--label", "e v=x"]).stderr);
    assert!(error.contains("\"code\": \"invalid_labels\""), "{error}");
    assert_eq!(vms(&host), json!([]));
    host.stop();
}

/// What an earlier version would have dumped: names of VMs are all there is.
fn without_records(dump: &str) -> String {
    let lines = dump.lines().filter(|line| !line.starts_with("{\"vm\":"));
    let lines = lines.map(|line| line.replace("\"next_vm_id\":3,", "").replace("\"vms\":2,", "") + "\n");
    lines.collect()
}

#[test]
fn vms_that_were_only_names_have_records_once_the_pool_is_served() {
    let mut host = Host::with_pool(2);
    host.serve(&[], &DISKS);
    create(&host, "root", "web");
    create(&host, "data", "web");
    create(&host, "other", "db");
    host.stop();
    let dumped = host.ok(&["metadata", "dump", "d0.img", "d1.img"]);
    let old = without_records(&dumped);
    assert!(!old.contains("next_vm_id") && old.contains("\"vm\":\"web\""), "{old}");
    assert!(old.contains("{\"end\":{\"vhds\":3,\"pages\":"), "{old}");
    std::fs::write(host.path("old.dump"), &old).unwrap();
    host.ok(&["metadata", "restore", "old.dump", "d0.img", "d1.img", "--force"]);

    // To look at it changes nothing.
    host.ok(&["check", "d0.img", "d1.img"]);
    let impact = host.ok(&["disk", "impact", "d0", "--offline", "d0.img", "d1.img"]);
    assert!(impact.contains("d0"), "{impact}");
    assert_eq!(host.ok(&["metadata", "dump", "d0.img", "d1.img"]), old);

    host.serve(&[], &DISKS);
    let known = json!([["db", ["other"]], ["web", ["data", "root"]]]);
    assert_eq!(vms(&host), known);
    host.ok(&["check"]);
    // It was durable before anybody was served.
    host.kill();
    host.ok(&["check", "d0.img", "d1.img"]);
    let new = host.ok(&["metadata", "dump", "d0.img", "d1.img"]);
    assert!(new.contains("\"next_vm_id\":3,") && new.contains("\"vms\":2,"), "{new}");
    let web = new.lines().find(|line| line.starts_with("{\"vm\":") && line.contains("\"web\"")).unwrap();
    let web: Value = serde_json::from_str(web).unwrap();
    assert!(web["vm"]["created"].as_u64().unwrap() > 1_600_000_000, "{web}");
    host.serve(&[], &DISKS);
    assert_eq!(vms(&host), known, "once");
    create(&host, "more", "web");
    host.stop();
    assert_eq!(host.ok(&["metadata", "dump", "d0.img", "d1.img"]).matches("{\"vm\":").count(), 2);
}
