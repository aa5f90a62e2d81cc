//! Disks as administrators meet them: bad input, what is left behind, block devices. Needs root for the latter.

#![allow(clippy::unwrap_used, reason = "a failed step is a failed test")]

#[path = "common/daemon_host.rs"]
#[allow(dead_code, reason = "shared with other tests")]
mod daemon_host;

use daemon_host::Host;

#[test]
fn a_disk_that_cannot_be_added_leaves_nothing_behind() {
    let mut host = Host::with_pool(1);
    host.serve(&[], &["d0.img"]);
    let add = ["disk", "add", "new.img", "--size"];
    let refused = |more: &[&str], code, says: &str| {
        let said = host.refused(&[&add, more].concat(), code);
        assert!(said.contains(says), "{said}");
        assert!(!host.path("new.img").exists(), "{more:?}: the file stays behind");
    };
    refused(&["1MiB"], 4, "too small");
    refused(&["256MiB", "--name", "b@d"], 2, "b@d");
    refused(&["256MiB", "--name", "d0"], 4, "'d0'");
    refused(&["256MiB", "--failure-domain", "a b"], 2, "failure domain");
    assert!(host.refused(&["disk", "add", "absent.img"], 3).contains("absent.img"));
    assert_eq!(host.json(&["disk", "list"])["disks"].as_array().unwrap().len(), 1);

    assert!(host.ok(&["disk", "add", "new.img", "--size", "256MiB"]).contains("added"));
    assert!(host.ok(&["disk", "add", "new.img", "--size", "256MiB"]).contains("nothing changed"));
    assert!(host.ok(&["disk", "add", "d0.img"]).contains("'d0' is like that already"));
    assert!(host.refused(&["disk", "add", "d0.img", "--name", "other"], 4).contains("'d0'"));
    host.stop();
}
