//! What a frontend says of the dirty log.

use std::fs::File;
use std::os::fd::AsRawFd;

use vhost::vhost_user::Frontend;
use vhost::{VhostBackend, VhostUserDirtyLogRegion};

use super::Guest;

impl Guest {
    /// Gives the frontend's device a dirty log of so many bytes.
    pub fn log(&self, frontend: &mut Frontend, len: u64) -> File {
        let file = tempfile::tempfile_in("/dev/shm").unwrap();
        file.set_len(len).unwrap();
        let region = VhostUserDirtyLogRegion { mmap_size: len, mmap_offset: 0, mmap_handle: file.as_raw_fd() };
        frontend.set_log_base(0, Some(region)).unwrap();
        file
    }

    /// The same addresses again; writes to the used ring are logged as if it were at `log`.
    pub fn set_addresses_with_log(&self, frontend: &Frontend, queue: usize, size: u16, log: Option<u64>) {
        let at = self.user_base() + self.ring_addresses(queue, size).descriptors;
        Guest::address(frontend, queue, size, self.addresses_from(at, size), log);
    }
}
