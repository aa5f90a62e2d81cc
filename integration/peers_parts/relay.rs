//! Between a frontend and its backend, for one thing that the crate of the frontend does not do: event descriptors that do not
//! block. Every VMM's are such, and a backend may take a worse path for others.

use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Longest vhost-user message that is passed on in one piece.
const PIECE: usize = 4096;

/// Descriptors in one piece.
const DESCRIPTORS: usize = 32;

/// A socket that leads to another one.
pub struct Relay {
    pub socket: PathBuf,
    _dir: TempDir,
}

impl Relay {
    /// Passes on the messages of one connection, as long as it lasts.
    ///
    /// # Errors
    /// The backend's socket is not there.
    pub fn new(backend: &Path) -> Result<Relay> {
        let dir = tempfile::Builder::new().prefix("spanblk-lab-").tempdir()?;
        let socket = dir.path().join("relay.sock");
        let listener = UnixListener::bind(&socket)?;
        let backend = UnixStream::connect(backend).with_context(|| format!("connecting to {}", backend.display()))?;
        thread::spawn(move || -> Result<()> {
            let (frontend, _) = listener.accept()?;
            let (requests, answers) = ((frontend.try_clone()?, backend.try_clone()?), (backend, frontend));
            thread::spawn(move || pass_on(&answers.0, &answers.1));
            pass_on(&requests.0, &requests.1)
        });
        Ok(Relay { socket, _dir: dir })
    }
}

fn pass_on(from: &UnixStream, to: &UnixStream) -> Result<()> {
    let result = pass_all(from, to);
    // Each side learns that the other one is gone.
    let _ = to.shutdown(Shutdown::Write);
    result
}

fn pass_all(from: &UnixStream, to: &UnixStream) -> Result<()> {
    loop {
        let mut bytes = [0_u8; PIECE];
        let mut descriptors: [RawFd; DESCRIPTORS] = [-1; DESCRIPTORS];
        let mut piece = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
        // SAFETY: `piece` describes `bytes`, which outlives the call, and any content is fine there.
        let (len, count) = unsafe { from.recv_with_fds(&mut piece, &mut descriptors) }?;
        if len == 0 {
            return Ok(());
        }
        let descriptors = &descriptors[..count];
        // SAFETY: they were just received and belong to nobody else; they are closed once they have been passed on.
        let owned: Vec<File> = descriptors.iter().map(|fd| unsafe { File::from_raw_fd(*fd) }).collect();
        for file in &owned {
            // SAFETY: takes no pointer. On memory, which comes this way as well, the flag has no effect.
            let done = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_RDWR | libc::O_NONBLOCK) };
            ensure!(done == 0, std::io::Error::last_os_error());
        }
        let sent = to.send_with_fds(&[&bytes[..len]], descriptors)?;
        ensure!(sent == len, "half a message was passed on");
    }
}
