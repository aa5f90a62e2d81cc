//! The new process: asks for everything, and says when it is ready.

use std::collections::HashMap;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};
use http_body_util::Empty;
use hyper::body::Bytes;
use hyper::header::{CONNECTION, HOST, UPGRADE};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use uuid::Uuid;

use super::{Answer, Handover, Hello, Report, TakeoverError, VERSION, shared_memory};
use crate::control::frames::{receive, send};
use crate::control::http::{Bound, TAKEOVER_PATH, TAKEOVER_PROTOCOL};
use crate::control::serve::config::Config;
use crate::control::serve::files;
use crate::disk::pool::OpenedDisk;
use crate::vhost_user::{HeldState, HeldVhd, SocketIdentity};

/// How long the old process may take to answer: it lets guests' requests end.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);

/// How long guests may wait for us: then we end, and the old process goes on.
const READY_PATIENCE: Duration = Duration::from_secs(15);

/// Everything that the old process had.
pub struct Taken {
    /// The control socket.
    pub control: Bound,
    /// Which file it is.
    pub identity: SocketIdentity,
    /// The socket for metrics, if its address is still the one wanted.
    pub metrics: Option<Bound>,
    /// The disks.
    pub disks: Vec<OpenedDisk>,
    /// What the service manager wants.
    pub watchdog: Option<Duration>,
    /// The VHDs that were served, by their UUIDs.
    pub vhds: HashMap<Uuid, HeldVhd>,
    /// Has to be passed before anybody is served.
    pub gate: Gate,
}

/// A way to the daemon that serves.
///
/// # Errors
/// There is none that can be taken over. Nothing has happened.
pub fn connect(control: &Path) -> Result<UnixStream, TakeoverError> {
    let lost = |what| move |source| TakeoverError::Lost { what, source };
    // On this thread alone: the process has no others yet.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(lost("no event loop"))?;
    let stream = runtime.block_on(upgrade(control))?;
    let stream = stream.into_std().map_err(lost("no socket"))?;
    stream.set_nonblocking(false).map_err(lost("no socket"))?;
    Ok(stream)
}

async fn upgrade(control: &Path) -> Result<tokio::net::UnixStream, TakeoverError> {
    let stream = tokio::net::UnixStream::connect(control).await;
    let stream = stream.map_err(|source| match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => TakeoverError::NoDaemon(control.to_owned()),
        _ => TakeoverError::Connect { path: control.to_owned(), source },
    })?;
    let unable = |answer: String| TakeoverError::Unable { path: control.to_owned(), answer };
    let broken = |error: hyper::Error| unable(error.to_string());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
    tokio::spawn(connection.with_upgrades());
    let request = Request::builder()
        .method(Method::POST)
        .uri(TAKEOVER_PATH)
        .header(HOST, "spanblk")
        .header(CONNECTION, "upgrade")
        .header(UPGRADE, TAKEOVER_PROTOCOL)
        .body(Empty::<Bytes>::new())
        .expect("a request of constants");
    let response = sender.send_request(request).await.map_err(broken)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(unable(format!("it answers '{}'", response.status())));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(broken)?;
    let parts = upgraded.downcast::<TokioIo<tokio::net::UnixStream>>().map_err(|_| unable("no upgrade".to_owned()))?;
    // It says nothing before it is asked.
    if parts.read_buf.is_empty() { Ok(parts.io.into_inner()) } else { Err(unable("it speaks unasked".to_owned())) }
}

/// Asks for everything. If this or anything later fails, the process has to end.
///
/// # Errors
/// The old process goes on.
pub fn take(stream: UnixStream, config: &Config) -> Result<Taken, TakeoverError> {
    let lost = |what| move |source| TakeoverError::Lost { what, source };
    stream.set_read_timeout(Some(ANSWER_PATIENCE)).map_err(lost("no time limit"))?;
    let program = env!("CARGO_PKG_VERSION").to_owned();
    let managed = std::env::var_os("NOTIFY_SOCKET").is_some();
    let socket_dir = config.socket_dir.clone();
    let files = files::limit().map_err(lost("no limit of open files"))?;
    let shared_memory = shared_memory();
    let hello = Hello { version: VERSION, program, pool: config.pool, socket_dir, managed, files, shared_memory };
    send(&stream, &hello, &[]).map_err(lost("it cannot be asked"))?;
    let (handover, fds) = match next(&stream)? {
        (Answer::Refused(reason), _) => return Err(TakeoverError::Refused(reason)),
        (Answer::Held(handover), fds) => (handover, fds),
        (answer @ Answer::Gone, _) => return Err(TakeoverError::Confused(format!("{answer:?}"))),
    };
    // From here on guests wait.
    let gate = Gate::new(stream);
    let Handover { control: identity, metrics, disks, watchdog_us, vhds } = handover;
    let mut fds = fds.into_iter();
    let mut next_fd = || fds.next().ok_or_else(|| TakeoverError::Confused("too few descriptors".to_owned()));
    let control = Bound::Unix(UnixListener::from(next_fd()?));
    let metrics = match metrics {
        Some(address) => Some((address, next_fd()?)),
        None => None,
    };
    let opened = |(path, works)| Ok(OpenedDisk { path, fd: next_fd()?, works });
    let disks = disks.into_iter().map(opened).collect::<Result<_, _>>()?;
    let vhds = (0..vhds).map(|_| gate.receive_vhd()).collect::<Result<_, _>>()?;
    let wanted = metrics.filter(|(address, _)| config.metrics_listen == Some(*address));
    let metrics = wanted.map(|(_, fd)| Bound::Tcp(std::net::TcpListener::from(fd)));
    let watchdog = watchdog_us.map(Duration::from_micros);
    Ok(Taken { control, identity, metrics, disks, watchdog, vhds, gate })
}

fn next(stream: &UnixStream) -> Result<(Answer, Vec<OwnedFd>), TakeoverError> {
    let lost = |source| TakeoverError::Lost { what: "its answer is missing", source };
    receive(stream).map_err(lost)?.ok_or_else(|| lost(io::ErrorKind::UnexpectedEof.into()))
}

/// Where the old process has to go before the new one may come.
pub struct Gate {
    /// Its end tells the old process that nothing of ours uses the disks any more: so it must not end before this process does.
    stream: ManuallyDrop<UnixStream>,
    /// Whoever sets it first decides: the end of the time that we have, or that we are ready.
    decided: Arc<AtomicBool>,
    /// Nobody need wait for the end of the time any more.
    _in_time: Sender<()>,
}

impl Gate {
    fn new(stream: UnixStream) -> Gate {
        let (in_time, waiting) = crossbeam_channel::bounded::<()>(0);
        let decided = Arc::<AtomicBool>::default();
        let late = Arc::clone(&decided);
        let wait = move || {
            let in_time = waiting.recv_timeout(READY_PATIENCE) != Err(RecvTimeoutError::Timeout);
            if !in_time && !late.swap(true, Ordering::SeqCst) {
                log::error!("not ready after {} s: the daemon before this one goes on", READY_PATIENCE.as_secs());
                std::process::exit(1);
            }
        };
        std::thread::Builder::new().name("spanblk-limit".to_owned()).spawn(wait).map(drop).unwrap_or_else(|error| {
            log::warn!("nobody will notice if this takes too long: {error}");
        });
        Gate { stream: ManuallyDrop::new(stream), decided, _in_time: in_time }
    }

    fn receive_vhd(&self) -> Result<(Uuid, HeldVhd), TakeoverError> {
        let lost = |source| TakeoverError::Lost { what: "a VHD is missing", source };
        let message = receive::<HeldState>(&self.stream).map_err(lost)?;
        let (state, fds) = message.ok_or_else(|| lost(io::ErrorKind::UnexpectedEof.into()))?;
        let held = HeldVhd::from_parts(state, fds).map_err(|error| TakeoverError::Confused(error.to_string()))?;
        Ok((held.vhd(), held))
    }

    /// Says that we are ready, and returns when the old process does nothing any more.
    ///
    /// # Errors
    /// It goes on, or nobody knows: this process must end.
    pub fn pass(self) -> Result<(), TakeoverError> {
        let lost = |source| TakeoverError::Lost { what: "it does not hear that we are ready", source };
        // Once it may have heard that, nobody but it can say that it goes on: there is no limit any more.
        if self.decided.swap(true, Ordering::SeqCst) {
            return Err(TakeoverError::Late);
        }
        self.stream.set_read_timeout(None).map_err(lost)?;
        send(&self.stream, &Report::Ready, &[]).map_err(lost)?;
        match next(&self.stream)?.0 {
            Answer::Gone => {
                drop(ManuallyDrop::into_inner(self.stream));
                Ok(())
            }
            answer => Err(TakeoverError::Confused(format!("{answer:?}"))),
        }
    }
}
