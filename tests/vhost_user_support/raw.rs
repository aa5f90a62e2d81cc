//! Messages byte by byte, for frontends that do not keep to the rules.

use std::io::Write;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;

use spanblk::base::rng::Rng;
use vhost::vhost_user::Frontend;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

use super::Guest;

pub const GET_FEATURES: u32 = 1;
pub const SET_FEATURES: u32 = 2;
pub const SET_MEM_TABLE: u32 = 5;
pub const SET_LOG_BASE: u32 = 6;
pub const SET_LOG_FD: u32 = 7;
pub const SET_VRING_NUM: u32 = 8;
pub const SET_VRING_ADDR: u32 = 9;
pub const SET_VRING_BASE: u32 = 10;
pub const GET_VRING_BASE: u32 = 11;
pub const SET_VRING_KICK: u32 = 12;
pub const SET_VRING_CALL: u32 = 13;
pub const SET_VRING_ERR: u32 = 14;
pub const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const SET_BACKEND_REQ_FD: u32 = 21;
pub const GET_CONFIG: u32 = 24;
pub const SET_CONFIG: u32 = 25;
pub const GET_INFLIGHT_FD: u32 = 31;
pub const SET_INFLIGHT_FD: u32 = 32;
pub const RESET_DEVICE: u32 = 34;
pub const ADD_MEM_REG: u32 = 37;
pub const REM_MEM_REG: u32 = 38;

pub fn message(code: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap();
    let header = [code, 1, len].into_iter().flat_map(u32::to_ne_bytes);
    header.chain(payload.iter().copied()).collect()
}

pub fn write(stream: &mut UnixStream, code: u32, payload: &[u8]) {
    stream.write_all(&message(code, payload)).unwrap();
}

/// The socket of a frontend, borrowed for a moment.
fn with_socket<T>(frontend: &Frontend, act: impl FnOnce(&UnixStream) -> T) -> T {
    use std::mem::ManuallyDrop;
    use std::os::fd::FromRawFd;
    // SAFETY: the descriptor is open, and not closed by what is never dropped.
    let stream = ManuallyDrop::new(unsafe { UnixStream::from_raw_fd(frontend.as_raw_fd()) });
    act(&stream)
}

/// Sends a message behind the library's back.
pub fn send(frontend: &Frontend, code: u32, payload: &[u8], fds: &[RawFd]) {
    with_socket(frontend, |socket| send_on(socket, code, payload, fds));
}

fn send_on(socket: &UnixStream, code: u32, payload: &[u8], fds: &[RawFd]) {
    // The other end may have parted from us already.
    let _ = socket.send_with_fds(&[&message(code, payload)[..]], fds);
}

/// Sends bytes with descriptors; the other end may have parted from us already.
pub fn send_bytes(socket: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
    let _ = socket.send_with_fds(&[bytes], fds);
}

/// A session of messages that are plausible one by one, in no order, with a wrong one here and there.
pub fn random_session(socket: &UnixStream, guest: &Guest, rng: &mut Rng) {
    socket.set_nonblocking(true).unwrap();
    let sane_start = rng.chance(3, 4);
    if sane_start {
        send_on(socket, SET_PROTOCOL_FEATURES, &0xb20b_u64.to_ne_bytes(), &[]);
        send_on(socket, SET_FEATURES, &guest.features.to_ne_bytes(), &[]);
        let (payload, fds) = mem_table(guest, rng);
        send_on(socket, SET_MEM_TABLE, &payload, &fds);
    }
    let evil = if rng.chance(1, 2) { 200 } else { 20 };
    for _ in 0..rng.below(120) {
        if rng.chance(1, evil) {
            let mut payload = vec![0; rng.index(64)];
            rng.fill(&mut payload);
            send_on(socket, u32::try_from(rng.below(48)).unwrap(), &payload, &[]);
        } else {
            plausible(socket, guest, rng);
        }
    }
    // Let it be read before the connection ends, sometimes.
    if rng.chance(1, 2) {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}

fn plausible(socket: &UnixStream, guest: &Guest, rng: &mut Rng) {
    let queue = u32::try_from(rng.below(2)).unwrap();
    let state = |value: u32| [queue.to_ne_bytes(), value.to_ne_bytes()].concat();
    let file = u64::from(queue).to_ne_bytes();
    match rng.below(18) {
        0 => send_on(socket, SET_VRING_NUM, &state(64 << rng.below(3)), &[]),
        1..=3 => {
            let size = 64_u64;
            let at = guest.user_base() + u64::from(queue) * 0x1_0000;
            let words = [at, at + 16 * size + 6 + 2 * size + 2, at + 16 * size, 0].map(u64::to_ne_bytes).concat();
            send_on(socket, SET_VRING_NUM, &state(64), &[]);
            send_on(socket, SET_VRING_ADDR, &[state(0), words].concat(), &[]);
        }
        4 => send_on(socket, SET_VRING_BASE, &state(u32::try_from(rng.below(1 << 16)).unwrap()), &[]),
        5 => send_on(socket, GET_VRING_BASE, &state(0), &[]),
        6..=8 => send_on(socket, SET_VRING_KICK, &file, &[guest.kick.as_raw_fd()]),
        9 => send_on(socket, SET_VRING_CALL, &file, &[guest.call.as_raw_fd()]),
        10 => send_on(socket, SET_VRING_ERR, &file, &[guest.call.as_raw_fd()]),
        11..=12 => send_on(socket, SET_VRING_ENABLE, &state(u32::from(rng.chance(3, 4))), &[]),
        13 => {
            let wce = u8::from(rng.chance(1, 2));
            let head = [32_u32, 1, 0].map(u32::to_ne_bytes).concat();
            send_on(socket, SET_CONFIG, &[head, vec![wce]].concat(), &[]);
        }
        15 => {
            let sizes =
                [rng.below(3), rng.below(2) << 6].map(|size| u16::try_from(size).unwrap().to_ne_bytes()).concat();
            let region = [(rng.below(4) << 10).to_ne_bytes(), (rng.below(3) << 12).to_ne_bytes()].concat();
            let payload = [region, sizes, vec![0; 4]].concat();
            let code = if rng.chance(1, 2) { GET_INFLIGHT_FD } else { SET_INFLIGHT_FD };
            let file = if code == GET_INFLIGHT_FD { vec![] } else { vec![guest.file_descriptor()] };
            send_on(socket, code, &payload, &file);
        }
        14 if rng.chance(1, 3) => send_on(socket, RESET_DEVICE, &[], &[]),
        14 => {
            let (payload, fds) = mem_table(guest, rng);
            send_on(socket, SET_MEM_TABLE, &payload, &fds);
        }
        _ => {
            let code = if rng.chance(1, 2) { ADD_MEM_REG } else { REM_MEM_REG };
            let region = guest.extra_region(0x800_0000 + 0x40_0000 * rng.below(3));
            let words = [0, region.guest_phys_addr, region.memory_size, region.userspace_addr, region.mmap_offset];
            send_on(socket, code, &words.map(u64::to_ne_bytes).concat(), &[guest.file_descriptor()]);
        }
    }
}

fn mem_table(guest: &Guest, rng: &mut Rng) -> (Vec<u8>, Vec<RawFd>) {
    let count = if rng.chance(1, 8) { 1 } else { 2 };
    let mut payload = [u32::try_from(count).unwrap().to_ne_bytes(), [0; 4]].concat();
    for region in &guest.regions()[..count] {
        let words = [region.guest_phys_addr, region.memory_size, region.userspace_addr, region.mmap_offset];
        payload.extend(words.map(u64::to_ne_bytes).concat());
    }
    (payload, vec![guest.file_descriptor(); count])
}
