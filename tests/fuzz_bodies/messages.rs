//! Sessions of vhost-user messages with descriptors, against the real server with reactors that take notes.

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use vhost::VhostBackend;

use crate::vhost_user_support::{Guest, Host, eventually, raw};

/// A server with the VHD that is attacked, and a neighbour.
pub struct Target {
    host: Host,
    guest: Guest,
    attacked: PathBuf,
    neighbour: vhost::vhost_user::Frontend,
}

impl Target {
    pub fn new() -> Target {
        let host = Host::new(2);
        let attacked = host.add(1, "attacked", 2);
        let neighbour = host.add(2, "neighbour", 1);
        let guest = Guest::new();
        let neighbour = guest.start(&neighbour, 1);
        Target { host, guest, attacked, neighbour }
    }

    /// One session. Each message of `data`: code, flags, number of descriptors, length, then that many bytes.
    ///
    /// # Panics
    /// If the server ends, keeps a ring of the session, or forgets the neighbour.
    pub fn run(&self, data: &[u8]) {
        let stream = UnixStream::connect(&self.attacked).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        let guest = &self.guest;
        let descriptors = [guest.kick.as_raw_fd(), guest.call.as_raw_fd(), guest.file_descriptor()];
        let mut rest = data;
        while let [code, flags, fds, len, tail @ ..] = rest {
            let (payload, tail) = tail.split_at(tail.len().min(usize::from(*len)));
            rest = tail;
            let count = usize::from(fds >> 4) % 10;
            let fds: Vec<_> = (0..count).map(|i| descriptors[(usize::from(*fds) + i) % descriptors.len()]).collect();
            let payload = if flags & 0x40 == 0 { payload.to_vec() } else { self.plausible(*code, payload) };
            // Mostly the version that there is, and a length that is true.
            let header_flags = if flags & 0x30 == 0x30 { u32::from(*flags) } else { 1 | u32::from(flags & 8) };
            let said = if flags & 7 == 7 { u32::from(*len) << 8 } else { u32::try_from(payload.len()).unwrap() };
            let header = [u32::from(code % 48), header_flags, said].map(u32::to_ne_bytes).concat();
            raw::send_bytes(&stream, &[header, payload].concat(), &fds);
        }
        // Let it be read before the connection ends.
        let _ = stream.shutdown(std::net::Shutdown::Write);
        eventually("the session is over", || self.host.status(1).frontend.is_none());
        drop(stream);
        assert_eq!(self.host.reactors.running(), 1, "only the neighbour's ring is left");
        self.neighbour.get_features().unwrap();
        self.host.take_notes();
    }

    /// What such a message could carry, with the fuzzer's bytes mixed in at their place.
    fn plausible(&self, code: u8, bytes: &[u8]) -> Vec<u8> {
        let byte = |at: usize| u64::from(bytes.get(at).copied().unwrap_or(0));
        let state = |value: u64| (byte(0) % 3) | (value << 32);
        let base = self.guest.user_base() + 0x1_0000 * (byte(0) % 3);
        let words: Vec<u64> = match u32::from(code % 48) {
            raw::SET_FEATURES => vec![self.guest.features ^ byte(0)],
            raw::SET_PROTOCOL_FEATURES => vec![0xa209 ^ byte(0)],
            raw::SET_MEM_TABLE => {
                let regions = self.guest.regions();
                let of = |i: usize| {
                    [
                        regions[i].guest_phys_addr,
                        regions[i].memory_size,
                        regions[i].userspace_addr,
                        regions[i].mmap_offset,
                    ]
                };
                [vec![2 ^ (byte(0) >> 6)], of(0).to_vec(), of(1).to_vec()].concat()
            }
            raw::SET_VRING_NUM => vec![state(64 << (byte(1) % 6))],
            raw::SET_VRING_ADDR => vec![byte(0) % 3, base, base + 0x800 + byte(1), base + 0x400, 0],
            raw::SET_VRING_BASE | raw::GET_VRING_BASE => vec![state(byte(1))],
            raw::SET_VRING_ENABLE => vec![state(byte(1) & 1)],
            raw::ADD_MEM_REG | raw::REM_MEM_REG => {
                let region = self.guest.extra_region(0x800_0000 + 0x40_0000 * (byte(0) % 3));
                vec![0, region.guest_phys_addr, region.memory_size, region.userspace_addr, region.mmap_offset]
            }
            _ => vec![byte(0) % 3],
        };
        words.into_iter().flat_map(u64::to_ne_bytes).collect()
    }
}
