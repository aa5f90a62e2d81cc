//! All guests together cannot map so much memory that the daemon has no addresses left: alone in its process, whose they are.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod vhost_user_support;

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};

use spanblk::base::limits::WATCHED_REGIONS_MAX;
use spanblk::shared::guest_memory::{Watch, WatchError};
use vhost::VhostBackend;
use vhost_user_support::{Guest, Host, raw};

const EACH: u64 = 16 << 40;

/// A file of memory that nobody has touched.
fn memory() -> File {
    // SAFETY: a name that ends with a zero.
    let fd = unsafe { libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC) };
    // SAFETY: a new descriptor that nobody else has.
    let file = unsafe { File::from_raw_fd(fd) };
    file.set_len(EACH).unwrap();
    file
}

#[test]
fn frontends_cannot_use_up_the_address_space_together() {
    let host = Host::new(1);
    let guest = Guest::new();
    let connect = |id: u32| {
        let frontend = guest.negotiate(&host.server.path_of(&format!("disk{id}")));
        let region = [0, EACH, 0, 0].map(u64::to_ne_bytes).concat();
        let table = [vec![1, 0, 0, 0, 0, 0, 0, 0], region].concat();
        raw::send(&frontend, raw::SET_MEM_TABLE, &table, &[memory().as_raw_fd()]);
        frontend
    };
    (0..5).for_each(|id| drop(host.add(id, &format!("disk{id}"), 1)));
    let mut frontends: Vec<_> = (0..4).map(connect).collect();
    frontends.iter().for_each(|frontend| assert!(frontend.get_features().is_ok()));
    assert!(connect(4).get_features().is_err());
    assert!(host.logged("VHD disk4", "of all guests together").contains("cannot be watched"));
    // Whoever comes when another has left is served.
    host.wait_for_detach(4);
    drop(frontends.pop());
    host.wait_for_detach(3);
    connect(4).get_features().unwrap();
    drop(frontends);
    (0..5).for_each(|id| host.wait_for_detach(id));
    regions_are_not_without_end();
}

/// Nothing else has any by now.
fn regions_are_not_without_end() {
    let watch = |page: usize| Watch::new(std::ptr::without_provenance(page << 12), 1 << 12, 1 << 12);
    let mut watches: Vec<Watch> = (1..=WATCHED_REGIONS_MAX).map(|page| watch(page).unwrap()).collect();
    assert!(matches!(watch(WATCHED_REGIONS_MAX + 1), Err(WatchError::TooMany)));
    watches.pop();
    assert!(watch(WATCHED_REGIONS_MAX + 1).is_ok());
}
