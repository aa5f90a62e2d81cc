//! Requests to the broker, and its answers: JSON behind a length, an answer with a descriptor where one was asked for.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::base::limits::BROKER_MESSAGE_MAX;
use crate::control::view_files::{Part, Serving, ViewFileError};
use crate::disk::file::{Access, OpenError};
use crate::placement::record::SocketOwner;
use crate::vhost_user::{SocketError, SocketIdentity, SocketSettings};

/// What the daemon asks.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Request {
    OpenDisk { path: PathBuf, access: Access },
    CreateDisk { path: PathBuf, size: u64 },
    DiscardDisk { path: PathBuf },
    BindSocket { path: PathBuf, settings: SocketSettings },
    SetSocket { path: PathBuf, settings: SocketSettings },
    RenameSocket { from: PathBuf, to: PathBuf },
    ClearSocket { path: PathBuf },
    RemoveSocket { path: PathBuf, identity: SocketIdentity },
    CheckOwner { owner: SocketOwner },
    View(ViewRequest),
}

/// What the daemon asks of the files of its views.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum ViewRequest {
    Begin { serving: Serving },
    Make { serving: Serving, part: Part },
    Forget { serving: Serving, vhd: Uuid },
    End { serving: Serving },
    Find { ended: Serving },
    Open { ended: Serving, part: Part },
    RemoveOthers { serving: Serving },
}

/// What the broker answers.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Answer {
    /// Done.
    Done,
    /// The disk comes with this message.
    Disk,
    /// The socket comes with this message.
    Socket(SocketIdentity),
    /// The file, or directory, comes with this message; where it is, if it was looked for.
    View(PathBuf),
    NoDisk(OpenError),
    NoSocket(SocketError),
    NoView(ViewFileError),
}

/// Sends a message, and perhaps a descriptor.
pub(super) fn send(stream: &UnixStream, message: &impl Serialize, fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let len = u32::try_from(body.len()).map_err(io::Error::other)?;
    if body.len() > BROKER_MESSAGE_MAX {
        return Err(io::Error::other("the request is too long"));
    }
    let head = len.to_le_bytes();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<BorrowedFd<'_>> = fd.into_iter().collect();
    if !fds.is_empty() {
        let pushed = control.push(SendAncillaryMessage::ScmRights(&fds));
        assert!(pushed, "there is room for one descriptor");
    }
    // The descriptor goes with the length: four bytes of a stream socket are never split.
    let sent = sendmsg(stream, &[IoSlice::new(&head)], &mut control, SendFlags::NOSIGNAL)?;
    if sent != head.len() {
        return Err(io::ErrorKind::WriteZero.into());
    }
    let mut stream = stream;
    stream.write_all(&body)
}

/// Receives a message; `None` when the other side has gone.
pub(super) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    let mut head = [0; 4];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let got = loop {
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::WAITALL;
        match recvmsg(stream.as_fd(), &mut [IoSliceMut::new(&mut head)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other?.bytes,
        }
    };
    if got == 0 {
        return Ok(None);
    }
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let len = usize::try_from(u32::from_le_bytes(head)).map_err(io::Error::other)?;
    if got != head.len() || len > BROKER_MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut body = vec![0; len];
    let mut stream = stream;
    stream.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fd)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_arrive_with_their_descriptors_and_errors_with_their_numbers() {
        let (one, other) = UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        send(&one, &Answer::Disk, Some(file.as_fd())).unwrap();
        let path = PathBuf::from("/x");
        let error = OpenError::Open { path, source: io::Error::from_raw_os_error(libc::EACCES) };
        let text = error.to_string();
        send(&one, &Answer::NoDisk(error), None).unwrap();
        drop(one);
        let (answer, fd) = receive::<Answer>(&other).unwrap().unwrap();
        assert!(matches!(answer, Answer::Disk) && fd.is_some());
        let (answer, fd) = receive::<Answer>(&other).unwrap().unwrap();
        let Answer::NoDisk(error) = answer else { panic!("{answer:?}") };
        assert_eq!((error.to_string(), fd.is_none()), (text, true));
        assert!(receive::<Answer>(&other).unwrap().is_none());
    }

    #[test]
    fn long_and_broken_messages_are_refused() {
        let (mut one, other) = UnixStream::pair().unwrap();
        let path = PathBuf::from("x".repeat(BROKER_MESSAGE_MAX));
        assert!(send(&one, &Request::ClearSocket { path }, None).is_err());
        one.write_all(&u32::MAX.to_le_bytes()).unwrap();
        assert!(receive::<Request>(&other).is_err());
        one.write_all(b"\x02\0\0\0{x").unwrap();
        assert!(receive::<Request>(&other).is_err());
        one.write_all(b"\x02\0").unwrap();
        drop(one);
        assert!(receive::<Request>(&other).is_err());
    }
}
