//! Frontends that send what does not fit, or nothing at all, to reactors that only take notes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod vhost_user_support;

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use vhost::VhostBackend;
use vhost_user_support::{Guest, Host, eventually, raw};

#[test]
fn descriptors_that_are_missing_or_too_many_and_regions_that_cannot_be() {
    let host = Host::new(1);
    let socket = host.add(1, "disk", 2);
    let neighbour = host.add(2, "neighbour", 1);
    let guest = Guest::new();
    let neighbour = guest.start(&neighbour, 1);
    let file = guest.file_descriptor();
    let region = |guest_address: u64, len: u64, user: u64| [guest_address, len, user, 0].map(u64::to_ne_bytes).concat();
    let table = |regions: &[Vec<u8>]| {
        let count = u32::try_from(regions.len()).unwrap();
        [[count.to_ne_bytes(), [0; 4]].concat(), regions.concat()].concat()
    };
    let one = region(0x10_0000, 0x1000, 0x7f00_1000_0000);
    let queue_0 = 0_u64.to_ne_bytes().to_vec();
    let wishes = [
        (raw::SET_MEM_TABLE, table(std::slice::from_ref(&one)), vec![]),
        (raw::SET_MEM_TABLE, table(std::slice::from_ref(&one)), vec![file; 2]),
        (raw::SET_MEM_TABLE, table(std::slice::from_ref(&one)), vec![file; 60]),
        (raw::SET_MEM_TABLE, table(&[one.clone(), one.clone()]), vec![file; 2]),
        (raw::SET_MEM_TABLE, table(&[region(0, 0, 0)]), vec![file]),
        (raw::SET_MEM_TABLE, table(&[region(u64::MAX - 0xfff, 0x2000, 0)]), vec![file]),
        (raw::SET_MEM_TABLE, table(&[region(0, 1 << 40, 0)]), vec![file]),
        (raw::SET_MEM_TABLE, table(std::slice::from_ref(&one)), vec![guest.call.as_raw_fd()]),
        (raw::ADD_MEM_REG, [vec![0; 8], one.clone()].concat(), vec![]),
        (raw::ADD_MEM_REG, [vec![0; 8], one.clone()].concat(), vec![file; 2]),
        (raw::REM_MEM_REG, [vec![0; 8], region(0, 0x1000, 0)].concat(), vec![]),
        (raw::SET_VRING_KICK, queue_0.clone(), vec![guest.kick.as_raw_fd(); 2]),
        (raw::SET_VRING_CALL, 0x100_u64.to_ne_bytes().to_vec(), vec![file]),
        (raw::SET_VRING_ERR, queue_0, vec![]),
        (raw::GET_FEATURES, vec![], vec![file]),
    ];
    for (count, (code, payload, fds)) in wishes.into_iter().enumerate() {
        let frontend = guest.start(&socket, 2);
        raw::send(&frontend, code, &payload, &fds);
        host.wait_for_detach(1);
        assert_eq!(host.status(1).faults, 1 + count as u64, "message {code}, {} descriptors", fds.len());
        assert_eq!(host.reactors.running(), 1, "the neighbour's ring");
    }
    neighbour.get_features().unwrap();
}

#[test]
fn a_frontend_that_only_comes_and_goes_does_not_fill_the_log() {
    let host = Host::new(1);
    let socket = host.add(1, "fickle", 1);
    for count in 1..=300 {
        drop(UnixStream::connect(&socket).unwrap());
        eventually("it has come and gone", || host.status(1).connections == count && host.status(1).frontend.is_none());
    }
    let lines = host.count_logged("VHD fickle: process");
    assert!((2..40).contains(&lines), "{lines} lines");
}
