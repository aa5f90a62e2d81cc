//! What the owner would hear.

use std::sync::Mutex;

use spanblk::base::ids::VhdId;
use spanblk::vhost_user::ServerEvents;

/// Events as lines.
#[derive(Default)]
pub struct Events(Mutex<Vec<String>>);

impl Events {
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap())
    }

    fn push(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl ServerEvents for Events {
    fn attached(&self, vhd: VhdId, pid: u32) {
        assert_ne!(pid, 0);
        self.push(format!("attached {}", vhd.0));
    }

    fn detached(&self, vhd: VhdId, pid: u32) {
        assert_ne!(pid, 0);
        self.push(format!("detached {}", vhd.0));
    }

    fn cache_mode(&self, vhd: VhdId, writeback: bool) {
        self.push(format!("cache mode {} {writeback}", vhd.0));
    }
}
