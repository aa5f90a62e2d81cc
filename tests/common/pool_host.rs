//! What tests of disks that come and go ask of the daemon. Beside `daemon_host.rs`.

use std::time::{Duration, Instant};

use super::daemon_host::Host;

impl Host {
    /// Names of the disks that carry the placement table.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn members(&self) -> Vec<String> {
        let pool = self.json(&["pool", "show"]);
        let members = pool["store"]["members"].as_array().unwrap().iter();
        let mut members: Vec<String> = members.map(|member| member["disk"].as_str().unwrap().to_owned()).collect();
        members.sort();
        members
    }

    /// Names of the disks of the pool.
    #[allow(dead_code, reason = "not every test that uses this file")]
    pub fn disks(&self) -> Vec<String> {
        let list = self.json(&["disk", "list"]);
        list["disks"].as_array().unwrap().iter().map(|disk| disk["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Waits until something is so.
    pub fn until(&self, what: &str, mut is_so: impl FnMut() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_so() {
            assert!(Instant::now() < deadline, "{what}; jobs:\n{}log:\n{}", self.ok(&["job", "list"]), self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}
