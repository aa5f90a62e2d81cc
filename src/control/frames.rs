//! Messages between processes of ours on a unix socket: JSON behind its length, with descriptors.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::base::limits::{FRAME_FDS_MAX, FRAME_MESSAGE_MAX};

/// Descriptors that go with one call of the kernel's, which takes 253.
const FDS_AT_ONCE: usize = 128;

/// Length of the body, number of descriptors.
const HEAD: usize = 8;

/// Sends a message and descriptors.
///
/// # Errors
/// There is more of it than a message may have, or what the kernel says.
pub fn send(stream: &UnixStream, message: &impl Serialize, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() > FRAME_MESSAGE_MAX || fds.len() > FRAME_FDS_MAX {
        return Err(io::Error::other("the message is too long"));
    }
    let number = |count: usize| u32::try_from(count).expect("limited above").to_le_bytes();
    let head = [number(body.len()), number(fds.len())].concat();
    // Bytes that carry descriptors are never split: the head has the first of them, and one byte each those that follow.
    let mut parts = fds.chunks(FDS_AT_ONCE);
    send_with(stream, &head, parts.next().unwrap_or_default())?;
    parts.try_for_each(|part| send_with(stream, &[0], part))?;
    let mut stream = stream;
    stream.write_all(&body)
}

fn send_with(stream: &UnixStream, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        let pushed = control.push(SendAncillaryMessage::ScmRights(fds));
        assert!(pushed, "there is room for as many");
    }
    let sent = loop {
        match sendmsg(stream, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => break sent?,
        }
    };
    if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

/// Receives a message and descriptors; `None` when the other side has gone.
///
/// # Errors
/// It is none, or what the kernel says. A socket with a read timeout can say `WouldBlock` before the first byte, and only there be asked again.
pub fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut head = [0; HEAD];
    let mut fds = Vec::new();
    match receive_with(stream, &mut head, &mut fds)? {
        0 => return Ok(None),
        HEAD => {}
        _ => return Err(io::ErrorKind::InvalidData.into()),
    }
    let (len, count) = head.split_at(4);
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().expect("four bytes")) as usize;
    let (len, count) = (number(len), number(count));
    if len > FRAME_MESSAGE_MAX || count > FRAME_FDS_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    while fds.len() < count {
        let before = fds.len();
        if receive_with(stream, &mut [0], &mut fds)? != 1 || fds.len() == before {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "descriptors are missing (is the limit of open files too low?)",
            ));
        }
    }
    let mut body = vec![0; len];
    let mut stream = stream;
    stream.read_exact(&mut body)?;
    if fds.len() > count {
        return Err(io::ErrorKind::InvalidData.into());
    }
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

fn receive_with(stream: &UnixStream, bytes: &mut [u8], fds: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_AT_ONCE))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        match recvmsg(stream.as_fd(), &mut [IoSliceMut::new(bytes)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(given) = message {
            fds.extend(given);
        }
    }
    Ok(got)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_with_their_descriptors() {
        let (one, other) = UnixStream::pair().unwrap();
        let files: Vec<_> = (0..2 * FDS_AT_ONCE + 1).map(|_| tempfile::tempfile().unwrap()).collect();
        for count in [0, 1, FDS_AT_ONCE, files.len()] {
            let fds: Vec<_> = files[..count].iter().map(AsFd::as_fd).collect();
            let text = "x".repeat(count);
            send(&one, &text, &fds).unwrap();
            let (got, came) = receive::<String>(&other).unwrap().unwrap();
            assert_eq!((got, came.len()), (text, count));
        }
        drop(one);
        assert!(receive::<String>(&other).unwrap().is_none());
    }

    #[test]
    fn long_and_broken_messages_are_refused() {
        let (one, _other) = UnixStream::pair().unwrap();
        assert!(send(&one, &"x".repeat(FRAME_MESSAGE_MAX), &[]).is_err());
        let too_long = [0xff; HEAD];
        let no_json = b"\x02\0\0\0\0\0\0\0{x";
        let no_descriptor = b"\x02\0\0\0\x01\0\0\0\0\"\"";
        let cut = b"\x02\0";
        for broken in [&too_long[..], no_json, no_descriptor, cut] {
            let (mut one, other) = UnixStream::pair().unwrap();
            one.write_all(broken).unwrap();
            drop(one);
            assert!(receive::<String>(&other).is_err());
        }
    }
}
