//! Sockets of the API: the unix socket, and TCP for metrics.
//!
//! Connections are limited in number and must send a request's head in time, so that idle or hostile ones cannot use up
//! the daemon.

use std::fs::{self, DirBuilder, Permissions};
use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener as StdUnixListener, UnixStream as StdUnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

use crate::base::limits::API_CONNECTIONS_MAX;

/// How long a connection may take to send the head of a request.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Length of a unix socket's path, with the byte that ends it (`sockaddr_un`).
const UNIX_PATH_MAX: usize = 108;

/// Why a socket could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// Does not fit the kernel's address structure.
    #[error("the path {} is {len} bytes long: a unix socket's path may have {}; choose a shorter directory", path.display(), UNIX_PATH_MAX - 1)]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        len: usize,
    },
    /// Somebody answers there.
    #[error("another process listens on {}: stop it, or choose another path with --control", .0.display())]
    InUse(PathBuf),
    /// Something other than a socket is there.
    #[error("{} exists and is not a socket: remove it, or choose another path with --control", .0.display())]
    NotASocket(PathBuf),
    /// Others could reach the socket.
    #[error("the directory {} is open to others (mode {mode:04o}): the control socket needs one that only its user may enter: chmod 0700", path.display())]
    DirectoryOpen {
        /// The directory.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The kernel refused.
    #[error("cannot {what} {}", path.display())]
    Path {
        /// What was tried.
        what: &'static str,
        /// With which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The kernel refused a TCP address.
    #[error("cannot listen on {address}")]
    Tcp {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A listener that is not served yet.
#[derive(Debug)]
pub enum Bound {
    /// The control socket.
    Unix(StdUnixListener),
    /// Metrics.
    Tcp(std::net::TcpListener),
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Bound::Unix(listener) => listener.as_fd(),
            Bound::Tcp(listener) => listener.as_fd(),
        }
    }
}

/// One that the current runtime serves.
enum Listening {
    Unix(UnixListener),
    Tcp(TcpListener),
}

impl Bound {
    /// Another descriptor of the same socket.
    ///
    /// # Errors
    /// Too many open files.
    pub fn try_clone(&self) -> io::Result<Bound> {
        match self {
            Bound::Unix(listener) => listener.try_clone().map(Bound::Unix),
            Bound::Tcp(listener) => listener.try_clone().map(Bound::Tcp),
        }
    }

    /// The address of a TCP socket.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        match self {
            Bound::Unix(_) => None,
            Bound::Tcp(listener) => listener.local_addr().ok(),
        }
    }

    fn served(self) -> io::Result<Listening> {
        match self {
            Bound::Unix(listener) => UnixListener::from_std(listener).map(Listening::Unix),
            Bound::Tcp(listener) => TcpListener::from_std(listener).map(Listening::Tcp),
        }
    }
}

/// Makes the control socket: mode 0600 in a directory of mode 0700, which is created if it is absent.
///
/// # Errors
/// The path is too long or taken, or the directory is open to others.
pub fn bind_control(path: &Path) -> Result<Bound, ListenError> {
    let len = path.as_os_str().len();
    if len >= UNIX_PATH_MAX {
        return Err(ListenError::PathTooLong { path: path.to_owned(), len });
    }
    private_directory(path)?;
    remove_stale(path)?;
    let failed = |what| move |source| ListenError::Path { what, path: path.to_owned(), source };
    let listener = StdUnixListener::bind(path).map_err(failed("listen on"))?;
    listener.set_nonblocking(true).map_err(failed("set up"))?;
    // The directory keeps everybody out until this is done.
    fs::set_permissions(path, Permissions::from_mode(0o600)).map_err(failed("set the mode of"))?;
    Ok(Bound::Unix(listener))
}

fn private_directory(socket: &Path) -> Result<(), ListenError> {
    let directory = match socket.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let failed = |what| move |source| ListenError::Path { what, path: directory.to_owned(), source };
    if !directory.exists() {
        if let Some(parent) = directory.parent() {
            // Above the private directory nothing is private: VMMs must reach their sockets.
            DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed("create"))?;
        }
        DirBuilder::new().mode(0o700).create(directory).map_err(failed("create"))?;
    }
    let meta = fs::metadata(directory).map_err(failed("examine"))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(ListenError::DirectoryOpen { path: directory.to_owned(), mode });
    }
    Ok(())
}

/// Removes a socket that a process which is gone has left behind.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let failed = |what| move |source| ListenError::Path { what, path: path.to_owned(), source };
    let meta = match fs::symlink_metadata(path) {
        Ok(meta) => meta,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("examine")(error)),
    };
    if !meta.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match StdUnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed("remove"))
        }
        Err(error) => Err(failed("connect to")(error)),
    }
}

/// Makes the TCP listener for metrics.
///
/// # Errors
/// The address is taken or not ours.
pub fn bind_metrics(address: SocketAddr) -> Result<Bound, ListenError> {
    let failed = |source| ListenError::Tcp { address, source };
    let listener = std::net::TcpListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    Ok(Bound::Tcp(listener))
}

/// Serves `router` on a listener until `stop` is ready; then takes no more connections.
pub async fn serve(bound: Bound, router: Router, stop: impl Future<Output = ()>) {
    let listener = match bound.served() {
        Ok(listener) => listener,
        Err(error) => return log::error!("cannot serve the API: {error}"),
    };
    let room = Arc::new(Semaphore::new(API_CONNECTIONS_MAX));
    tokio::pin!(stop);
    loop {
        let permit = room.clone().acquire_owned().await.expect("the semaphore is never closed");
        let accepted = async {
            match &listener {
                Listening::Unix(listener) => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
                Listening::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
            }
        };
        let stream = tokio::select! {
            accepted = accepted => accepted,
            () = &mut stop => return,
        };
        let service = router.clone();
        match stream {
            Ok(stream) => {
                tokio::spawn(async move {
                    match stream {
                        Stream::Unix(stream) => connection(stream, service).await,
                        Stream::Tcp(stream) => connection(stream, service).await,
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                // Out of descriptors or memory: others may give some back.
                log::warn!("cannot accept an API connection: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

async fn connection(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
        // For a takeover.
        .with_upgrades()
        .await;
    if let Err(error) = served {
        log::debug!("an API connection ended: {error}");
    }
}
