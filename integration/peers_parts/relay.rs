//! Between a frontend and its backend, for two things that the crate of the frontend does not do: event descriptors that do not
//! block, which every VMM's are, and a backend may take a worse path for others; and memory in which the backend keeps what is in flight,
//! which QEMU gives to whoever can use it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::thread;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Bytes of the head of a vhost-user message: request, flags, bytes of the body.
const HEAD: usize = 12;

/// Longest body; that of the configuration is the longest that is used here.
const BODY_MAX: usize = 4096;

/// Descriptors of a message.
const DESCRIPTORS: usize = 32;

/// Requests that are looked at, and the protocol feature that one of them asks for.
const SET_VRING_NUM: u32 = 8;
const SET_PROTOCOL_FEATURES: u32 = 16;
const GET_INFLIGHT_FD: u32 = 31;
const SET_INFLIGHT_FD: u32 = 32;
const INFLIGHT_SHMFD: u64 = 1 << 12;

/// A socket that leads to another one.
pub struct Relay {
    pub socket: PathBuf,
    _dir: TempDir,
}

impl Relay {
    /// Passes on the messages of one connection, as long as it lasts. `inflight`: the number of virtqueues and their size, of which the
    /// backend is to keep what is in flight in memory of its own choice.
    ///
    /// # Errors
    /// The backend's socket is not there.
    pub fn new(backend: &Path, inflight: Option<(u16, u16)>) -> Result<Relay> {
        let dir = tempfile::Builder::new().prefix("spanblk-lab-").tempdir()?;
        let socket = dir.path().join("relay.sock");
        let listener = UnixListener::bind(&socket)?;
        let backend = UnixStream::connect(backend).with_context(|| format!("connecting to {}", backend.display()))?;
        thread::spawn(move || -> Result<()> {
            let (frontend, _) = listener.accept()?;
            let (tracked, is_tracked) = mpsc::channel();
            let (from, to) = (backend.try_clone()?, frontend.try_clone()?);
            thread::spawn(move || closing(&to, || pass_answers(&from, &to, &tracked)));
            closing(&backend, || pass_requests(&frontend, &backend, inflight, &is_tracked))
        });
        Ok(Relay { socket, _dir: dir })
    }
}

/// Each side learns that the other one is gone.
fn closing(to: &UnixStream, passed: impl FnOnce() -> Result<()>) -> Result<()> {
    let result = passed();
    let _ = to.shutdown(Shutdown::Write);
    result
}

fn pass_requests(
    from: &UnixStream,
    to: &UnixStream,
    mut inflight: Option<(u16, u16)>,
    is_tracked: &mpsc::Receiver<()>,
) -> Result<()> {
    while let Some(mut message) = Message::receive(from)? {
        match message.request() {
            SET_PROTOCOL_FEATURES if inflight.is_some() => {
                let features = u64::from_le_bytes(message.body[..8].try_into()?) | INFLIGHT_SHMFD;
                message.body[..8].copy_from_slice(&features.to_le_bytes());
            }
            // Before the first virtqueue is set up.
            SET_VRING_NUM => {
                if let Some((queues, size)) = inflight.take() {
                    Message::about_inflight(GET_INFLIGHT_FD, queues, size).send(to)?;
                    is_tracked.recv().context("the backend gives no memory for what is in flight")?;
                }
            }
            _ => {}
        }
        message.send(to)?;
    }
    Ok(())
}

fn pass_answers(from: &UnixStream, to: &UnixStream, tracked: &mpsc::Sender<()>) -> Result<()> {
    while let Some(mut message) = Message::receive(from)? {
        if message.request() == GET_INFLIGHT_FD {
            ensure!(message.files.len() == 1, "no memory for what is in flight");
            message.head = Message::about_inflight(SET_INFLIGHT_FD, 0, 0).head;
            message.send(from)?;
            tracked.send(())?;
        } else {
            message.send(to)?;
        }
    }
    Ok(())
}

struct Message {
    head: [u8; HEAD],
    body: Vec<u8>,
    files: Vec<File>,
}

impl Message {
    fn request(&self) -> u32 {
        u32::from_le_bytes(self.head[..4].try_into().expect("four bytes"))
    }

    /// Without descriptors; the numbers are those of the body, behind the place of the memory.
    fn about_inflight(request: u32, queues: u16, size: u16) -> Message {
        const VERSION: u32 = 1;
        let body = [&[0; 16][..], &queues.to_le_bytes(), &size.to_le_bytes(), &[0; 4]].concat();
        let words = [request, VERSION, u32::try_from(body.len()).expect("a short body")];
        let mut head = [0; HEAD];
        words.iter().zip(head.chunks_exact_mut(4)).for_each(|(word, bytes)| bytes.copy_from_slice(&word.to_le_bytes()));
        Message { head, body, files: Vec::new() }
    }

    /// The next one; `None` at the end.
    fn receive(mut from: &UnixStream) -> Result<Option<Message>> {
        let mut head = [0_u8; HEAD];
        let mut descriptors: [RawFd; DESCRIPTORS] = [-1; DESCRIPTORS];
        let mut piece = [libc::iovec { iov_base: head.as_mut_ptr().cast(), iov_len: head.len() }];
        // SAFETY: `piece` describes `head`, which outlives the call, and any content is fine there.
        let (len, count) = unsafe { from.recv_with_fds(&mut piece, &mut descriptors) }?;
        if len == 0 {
            return Ok(None);
        }
        // SAFETY: they were just received and belong to nobody else; they are closed once they have been passed on.
        let files: Vec<File> = descriptors[..count].iter().map(|fd| unsafe { File::from_raw_fd(*fd) }).collect();
        for file in &files {
            // SAFETY: takes no pointer. On memory, which comes this way as well, the flag has no effect.
            let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) };
            ensure!(done == 0, std::io::Error::last_os_error());
        }
        from.read_exact(&mut head[len..])?;
        let body = usize::try_from(u32::from_le_bytes(head[8..].try_into()?))?;
        ensure!(body <= BODY_MAX, "a message of {body} bytes");
        let mut body = vec![0; body];
        from.read_exact(&mut body)?;
        Ok(Some(Message { head, body, files }))
    }

    fn send(&self, mut to: &UnixStream) -> Result<()> {
        let bytes = [&self.head[..], &self.body].concat();
        let descriptors: Vec<RawFd> = self.files.iter().map(AsRawFd::as_raw_fd).collect();
        let sent = to.send_with_fds(&[&bytes[..]], &descriptors)?;
        Ok(to.write_all(&bytes[sent..])?)
    }
}
