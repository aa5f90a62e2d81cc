//! What the loss of a disk means, as administrators ask for it: of a disk that works, that has failed, that is missing; with a daemon
//! and without. And what is served without the disk.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
mod daemon_host;
#[path = "common/pool_host.rs"]
mod pool_host;

use serde_json::Value;

use daemon_host::{Host, pattern, read, text};

const MIB: u64 = 1 << 20;

/// Four disks that fail apart, and VHDs of two VMs: `web` on d0, `db` on d3, `both` with two replicas over d0 and d3.
fn host() -> Host {
    let mut host = Host::with_pool(4);
    host.serve(&[], &["d?.img"]);
    for disk in ["d0", "d1", "d2", "d3"] {
        host.ok(&["disk", "set", disk, "--failure-domain", disk]);
    }
    let create = |name: &str, more: &[&str]| {
        host.ok(&[&["vhd", "create", name, "--size", "8MiB"], more].concat());
        let mut client = host.attach(name).unwrap();
        client.write_at(0, &pattern(1, 4 * MIB as usize)).unwrap();
        client.flush().unwrap();
    };
    create("web", &["--layout", "isolated", "--disks", "d0", "--vm", "shop"]);
    create("db", &["--layout", "isolated", "--disks", "d3", "--vm", "shop"]);
    create("both", &["--layout", "spanned", "--disks", "d0,d3", "--replicas", "2", "--vm", "mail"]);
    host.ok(&["vhd", "create", "new", "--size", "8MiB", "--layout", "isolated", "--disks", "d3"]);
    host
}

/// VHDs, VMs and extents that are lost, and degraded.
fn sums(impact: &Value) -> [[u64; 3]; 2] {
    ["lost", "degraded"].map(|fate| {
        let sum = &impact["totals"][fate];
        ["vhds", "vms", "extents"].map(|field| sum[field].as_u64().unwrap())
    })
}

fn fate<'a>(impact: &'a Value, name: &str) -> &'a str {
    let vms = impact["vms"].as_array().unwrap().iter();
    let mut vhds = vms.flat_map(|vm| vm["vhds"].as_array().unwrap());
    vhds.find(|vhd| vhd["name"] == name).map_or("left out", |vhd| vhd["fate"].as_str().unwrap())
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

fn event(host: &Host, name: &str) -> Value {
    let events = host.ok(&["--json", "events"]);
    let found = events.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()).find(|e| e["event"] == name);
    found.unwrap_or_else(|| panic!("no {name} in {events}"))
}

fn state(host: &Host, vhd: &str) -> (String, String) {
    let shown = host.json(&["vhd", "show", vhd]);
    let text = |field: &str| shown[field].as_str().unwrap_or_default().to_owned();
    (text("health"), text("problem"))
}

#[test]
fn impact_is_told_before_a_disk_is_lost() {
    let mut host = host();
    assert_eq!((host.disks(), host.members()), (names(&["d0", "d1", "d2", "d3"]), names(&["d0", "d1", "d2"])));
    let impact = host.json(&["disk", "impact", "d3"]);
    assert_eq!(sums(&impact), [[1, 1, 4], [2, 1, 4]], "{impact}");
    assert_eq!(impact["totals"]["lost"]["written_bytes"], 4 * MIB);
    assert_eq!(impact["totals"]["untouched"]["vhds"], 1);
    assert_eq!(
        ["db", "both", "new", "web"].map(|vhd| fate(&impact, vhd)),
        ["lost", "degraded", "degraded", "untouched"]
    );
    assert_eq!((&impact["store"]["left"], &impact["store"]["keeps_majority"]), (&3.into(), &true.into()));
    let told = host.ok(&["disk", "impact", "d3"]);
    let at = |words: &str| told.find(words).unwrap_or_else(|| panic!("no {words} in {told}"));
    assert!(
        at("lost") < at("Placement table") && at("Placement table") < at("shop") && at("shop") < at("mail"),
        "{told}"
    );
    assert!(told.contains("it goes on") && told.contains("Untouched VHDs: web"), "{told}");
    assert!(host.refused(&["disk", "impact", "d9"], 3).contains("d9"));
    assert!(host.refused(&["disk", "impact"], 2).contains("<DISK>"));
    assert!(host.refused(&["disk", "impact", "d3", "--offline", "d0.img"], 4).contains("leave out --offline"));
    host.stop();
    assert_eq!(host.json(&["disk", "impact", "d3", "--offline", "d?.img"])["totals"], impact["totals"]);
}

#[test]
fn without_a_disk_the_others_are_served_and_what_it_carries_is_named() {
    let mut host = host();
    host.stop();
    std::fs::rename(host.path("d3.img"), host.path("away")).unwrap();
    let before: Vec<Vec<u8>> =
        ["d0.img", "d1.img", "d2.img"].map(|disk| std::fs::read(host.path(disk)).unwrap()).into();
    let impact = host.json(&["disk", "impact", "--offline", "d?.img"]);
    assert_eq!(impact["disks"], serde_json::json!(["d3"]), "those that are missing");
    assert_eq!(impact["gone"][0]["health"], "missing");
    assert_eq!((sums(&impact), &impact["caveat"]), ([[1, 1, 4], [2, 1, 4]], &Value::Null));
    // With d3 gone, d0 has the only replicas of what was on both.
    let impact = host.json(&["disk", "impact", "d0", "--offline", "d?.img"]);
    assert_eq!((fate(&impact, "both"), fate(&impact, "web"), fate(&impact, "db")), ("lost", "lost", "untouched"));
    assert_eq!(impact["totals"]["lost_before"]["extents"], 4);
    for (disk, before) in ["d0.img", "d1.img", "d2.img"].iter().zip(before) {
        assert!(std::fs::read(host.path(disk)).unwrap() == before, "{disk} was only read");
    }

    host.serve(&[], &["d?.img"]);
    let missing = event(&host, "disk_missing");
    assert_eq!((&missing["disk"], sums(&missing["impact"])), (&"d3".into(), [[1, 1, 4], [2, 1, 4]]));
    assert_eq!(state(&host, "web"), ("healthy".to_owned(), String::new()));
    let (health, problem) = state(&host, "db");
    assert_eq!(health, "partial");
    for words in ["disk 'd3' is missing", "4 extents", "bring it back", "spanblk disk replace d3 NEW --accept-loss"] {
        assert!(problem.contains(words), "{words} not in {problem}");
    }
    let (health, problem) = state(&host, "both");
    assert!(health == "degraded" && problem.contains("4 extents have a replica less"), "{problem}");
    assert_eq!(host.json(&["vhd", "show", "both"])["degraded_extents"], 4);
    let (health, problem) = state(&host, "new");
    assert!(health == "degraded" && problem.contains("find no room"), "{problem}");
    let list = host.ok(&["vhd", "list"]);
    assert!(
        list.contains("PARTIAL") && list.contains("VHD 'db': disk 'd3' is missing") && list.contains("healthy"),
        "{list}"
    );
    let listed = host.ok(&["disk", "list"]);
    assert!(listed.contains("MISSING") && listed.contains("healthy"), "{listed}");

    let mut web = host.attach("web").unwrap();
    assert_eq!(fate(&host.json(&["disk", "impact", "d0"]), "web"), "lost");
    let attached = host.ok(&["disk", "impact", "d0"]);
    assert!(attached.contains("attached") && attached.contains("'d3' (missing) gone already"), "{attached}");
    assert!(read(&mut web, 0, 4 * MIB as usize) == pattern(1, 4 * MIB as usize));
    web.write_at(MIB, &pattern(2, 4096)).unwrap();
    web.flush().unwrap();
    assert!(read(&mut host.attach_soon("both"), 0, 4 * MIB as usize) == pattern(1, 4 * MIB as usize));
    let mut db = host.attach("db").unwrap();
    assert!(db.read_at(0, &mut [0; 512]).is_err() && db.read_at(6 * MIB, &mut [1; 512]).is_ok(), "that part only");
    drop((web, db));
    host.stop();

    std::fs::rename(host.path("away"), host.path("d3.img")).unwrap();
    host.serve(&[], &["d?.img"]);
    assert!(["web", "db", "both", "new"].iter().all(|vhd| state(&host, vhd).0 == "healthy"));
    assert!(read(&mut host.attach("db").unwrap(), 0, 4 * MIB as usize) == pattern(1, 4 * MIB as usize));
    host.stop();
}

#[test]
fn a_table_without_a_majority_is_read_and_said_to_be_stale() {
    let mut host = host();
    host.stop();
    assert!(host.refused(&["disk", "impact", "--offline", "d?.img"], 2).contains("no disk of the pool is missing"));
    assert!(host.refused(&["disk", "impact", "d9", "--offline", "d?.img"], 3).contains("d0, d1, d2, d3"));
    let impact = host.json(&["disk", "impact", "--offline", "d2.img"]);
    assert!(impact["caveat"].as_str().unwrap().contains("1 of the 3 disks"), "{impact}");
    assert_eq!(impact["disks"], serde_json::json!(["d0", "d1", "d3"]));
    assert_eq!((sums(&impact)[0], &impact["store"]["keeps_majority"]), ([3, 2, 12], &false.into()));
    let said = text(&host.run(&["disk", "impact", "--offline", "d2.img"]).stderr);
    assert!(said.contains("this may be stale"), "{said}");
    // d3 has data only.
    let said = host.refused(&["disk", "impact", "--offline", "d3.img"], 1);
    assert!(said.contains("'d0', 'd1', 'd2'"), "{said}");
}

#[test]
fn a_disk_is_failed_by_order_and_only_with_its_losses_accepted() {
    let mut host = host();
    let dry = host.ok(&["disk", "fail", "d3", "--dry-run"]);
    assert!(dry.contains("LOST") && dry.contains("db"), "{dry}");
    let said = host.refused(&["disk", "fail", "d3"], 2);
    assert!(said.contains("--yes"), "{said}");
    assert_eq!(host.json(&["disk", "show", "d3"])["health"], "healthy", "nothing was changed");

    let impact = host.json(&["disk", "impact", "d3"]);
    let failed = host.json(&["disk", "fail", "d3", "--yes"]);
    assert_eq!((&failed["changed"], &failed["disk"]["health"]), (&true.into(), &"failed".into()));
    assert_eq!(failed["impact"]["totals"], impact["totals"]);
    host.until("an event", || host.ok(&["events"]).contains("disk_failed"));
    let told = event(&host, "disk_failed");
    assert_eq!((&told["disk"], sums(&told["impact"])), (&"d3".into(), sums(&impact)));
    assert_eq!(fate(&told["impact"], "web"), "left out", "nothing happens to it");
    let line = host.ok(&["events"]).lines().find(|line| line.contains("disk_failed")).unwrap().to_owned();
    let brief = "disk=d3  message=marked as failed by order  lost: 1 VHDs, 4MiB written; degraded: 2 VHDs; 'spanblk disk impact d3'";
    assert!(line.contains(brief) && !line.contains("{"), "{line}");
    assert!(host.ok(&["disk", "fail", "d3", "--yes"]).starts_with("nothing changed"));
    assert!(host.ok(&["disk", "impact", "d3"]).contains("(failed now)"));
    let (health, problem) = state(&host, "db");
    assert!(health == "partial" && problem.contains("disk 'd3' has failed"), "{problem}");
    assert!(host.attach("db").unwrap().read_at(0, &mut [0; 512]).is_err(), "nothing more is submitted");
    assert!(read(&mut host.attach_soon("both"), 0, 4 * MIB as usize) == pattern(1, 4 * MIB as usize));
    let shown = host.ok(&["disk", "show", "d3"]);
    assert!(shown.contains("FAILED") && shown.contains("mean"), "{shown}");

    // d3 carries no placement table; two of those that do may not go.
    host.ok(&["disk", "fail", "d1", "--yes"]);
    host.ok(&["vhd", "set", "web", "--vm", "other"]);
    let said = host.refused(&["disk", "fail", "d2", "--yes"], 4);
    assert!(
        said.contains("1 of the disks that carry the placement table are left") && said.contains("--force"),
        "{said}"
    );
    host.ok(&["vhd", "set", "web", "--vm", "shop"]);
    assert_eq!(host.json(&["disk", "fail", "d2", "--yes", "--force"])["changed"], true);
    host.kill();
    host.serve(&[], &["d?.img"]);
    assert!(
        read(&mut host.attach("db").unwrap(), 0, 4 * MIB as usize) == pattern(1, 4 * MIB as usize),
        "until a restart"
    );
    host.stop();
}
