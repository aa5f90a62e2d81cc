//! The service manager (systemd), if there is one: it is told when the daemon is ready, and that it is alive, and may keep descriptors for
//! the next daemon.
//!
//! The socket is connected at the start: a daemon that serves connects to nobody.

use std::env;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use sd_notify::NotifyState;

use crate::base::clock;
use crate::base::limits::PASSED_FDS_MAX;

/// How long the manager may take to make room for a message: a daemon that ends waits no longer.
const SEND_PATIENCE: Duration = Duration::from_secs(5);

/// A thread that is to show that it gets on.
pub struct Probe {
    /// Its name.
    name: String,
    /// Has it answer. Must not wait.
    ask: Box<dyn Fn(Sender<()>) + Send>,
    /// It has been asked and has not answered.
    asked: Option<Receiver<()>>,
    silent: bool,
}

impl Probe {
    /// A thread by name, and how it is asked: its loop answers when it comes to the question.
    pub fn new(name: impl Into<String>, ask: impl Fn(Sender<()>) + Send + 'static) -> Probe {
        Probe { name: name.into(), ask: Box::new(ask), asked: None, silent: false }
    }

    /// Whether it answers by `deadline`. One question at a time: a thread that is stuck does not find a heap of them.
    fn answers_by(&mut self, deadline: clock::Nanos) -> bool {
        let asked = self.asked.take().unwrap_or_else(|| {
            let (answer, asked) = bounded(1);
            (self.ask)(answer);
            asked
        });
        let left = Duration::from_nanos(deadline.since(clock::now()));
        let answered = match asked.recv_timeout(left) {
            Ok(()) => true,
            Err(RecvTimeoutError::Timeout) => {
                self.asked = Some(asked);
                false
            }
            Err(RecvTimeoutError::Disconnected) => false,
        };
        match (answered, self.silent) {
            (false, false) => {
                log::error!("{} does not answer: the service manager is not told that the daemon is alive", self.name)
            }
            (true, true) => log::warn!("{} answers again", self.name),
            _ => {}
        }
        self.silent = !answered;
        answered
    }
}

/// Whether all threads answer by `deadline`.
fn all_answer(probes: &mut [Probe], deadline: clock::Nanos) -> bool {
    // Each is asked, also after one that does not answer.
    let answers: Vec<bool> = probes.iter_mut().map(|probe| probe.answers_by(deadline)).collect();
    answers.into_iter().all(|answered| answered)
}

/// Ends the watching when dropped.
pub struct Watching {
    _end: Sender<()>,
}

/// The way to the service manager.
#[derive(Clone, Default)]
pub struct Manager {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
    store_max: usize,
}

impl Manager {
    /// Connects to the manager that the environment names, if any.
    #[must_use]
    pub fn connect() -> Manager {
        let socket = env::var("NOTIFY_SOCKET").ok().and_then(|path| match connect(&path) {
            Ok(socket) => Some(Arc::new(socket)),
            Err(error) => {
                log::warn!("cannot notify the service manager at {path}: {error}");
                None
            }
        });
        let store_max = if socket.is_some() { store_max(env::var("FDSTORE").ok().as_deref()) } else { 0 };
        Manager { socket, watchdog: sd_notify::watchdog_enabled(), store_max }
    }

    /// How many descriptors it keeps for the next daemon; 0: none.
    #[must_use]
    pub fn store_max(&self) -> usize {
        self.store_max
    }

    /// Leaves a descriptor with the manager, which passes it to the next daemon, by this name. It does not say if it cannot keep it.
    ///
    /// # Errors
    /// There is no manager, or what the kernel says.
    pub fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
        let socket = self.socket.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        // Without the last line it drops a socket whose other end is closed.
        send_with(socket, &format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"), fd)
    }

    /// It is to keep what has this name no longer.
    pub fn forget(&self, name: &str) {
        self.tell(&[NotifyState::Custom("FDSTOREREMOVE=1"), NotifyState::Custom(&format!("FDNAME={name}"))]);
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.socket.is_some()
    }

    /// How long it bears not to hear that the daemon is alive.
    #[must_use]
    pub fn watchdog(&self) -> Option<Duration> {
        self.watchdog
    }

    /// The same as a daemon before us was told.
    pub fn inherit_watchdog(&mut self, watchdog: Option<Duration>) {
        self.watchdog = self.watchdog.or(watchdog);
    }

    /// Tells something.
    pub fn tell(&self, states: &[NotifyState<'_>]) {
        if let Some(socket) = &self.socket
            && let Err(error) = send(socket, states)
        {
            log::warn!("cannot notify the service manager: {error}");
        }
    }

    /// Tells that the daemon is alive, as often as the manager wants, but only while all those threads answer.
    #[must_use]
    pub fn watch(&self, mut probes: Vec<Probe>) -> Option<Watching> {
        let (socket, limit) = (self.socket.clone()?, self.watchdog?);
        let (end, ended) = bounded::<()>(0);
        let work = move || {
            // Two answers in each span that the manager bears without one.
            let span = limit / 3;
            while ended.recv_timeout(span) == Err(RecvTimeoutError::Timeout) {
                if all_answer(&mut probes, clock::now().after(span))
                    && let Err(error) = send(&socket, &[NotifyState::Watchdog])
                {
                    log::warn!("cannot notify the service manager: {error}");
                }
            }
        };
        match std::thread::Builder::new().name("spanblk-watch".to_owned()).spawn(work) {
            Ok(_) => Some(Watching { _end: end }),
            Err(error) => {
                log::error!("cannot tell the service manager that the daemon is alive: {error}");
                None
            }
        }
    }
}

fn connect(path: &str) -> io::Result<UnixDatagram> {
    let address = match path.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(SEND_PATIENCE))?;
    Ok(socket)
}

/// What the manager says of its store; it says nothing before version 254, and if there is none. Not more than the next daemon takes.
fn store_max(text: Option<&str>) -> usize {
    text.and_then(|text| text.trim().parse().ok()).unwrap_or(0).min(PASSED_FDS_MAX)
}

fn send(socket: &UnixDatagram, states: &[NotifyState<'_>]) -> io::Result<()> {
    let text: String = states.iter().map(|state| format!("{state}\n")).collect();
    socket.send(text.as_bytes()).map(drop)
}

fn send_with(socket: &UnixDatagram, text: &str, fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [fd];
    assert!(control.push(SendAncillaryMessage::ScmRights(&fds)), "there is room for one");
    loop {
        match sendmsg(socket, &[IoSlice::new(text.as_bytes())], &mut control, SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return Ok(sent.map(drop)?),
        }
    }
}

#[cfg(test)]
impl Manager {
    /// One at a path, without a watchdog, that keeps so many descriptors.
    pub(super) fn at(path: &str, store_max: usize) -> io::Result<Manager> {
        Ok(Manager { socket: Some(Arc::new(connect(path)?)), watchdog: None, store_max })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_is_stuck_is_asked_once_and_heard_again() {
        let (questions, stuck) = crossbeam_channel::unbounded();
        let mut probes = vec![
            Probe::new("stuck", move |answer| questions.send(answer).unwrap()),
            Probe::new("well", |answer| answer.send(()).unwrap()),
        ];
        let soon = || clock::now().after(Duration::from_millis(20));
        assert!(!all_answer(&mut probes, soon()));
        assert!(!all_answer(&mut probes, soon()));
        assert_eq!(stuck.len(), 1);
        stuck.recv().unwrap().send(()).unwrap();
        assert!(all_answer(&mut probes, soon()), "the late answer counts");
        drop(stuck);
    }

    #[test]
    fn a_thread_that_drops_the_question_is_not_well() {
        let mut probes = [Probe::new("gone", drop)];
        assert!(!all_answer(&mut probes, clock::now().after(Duration::from_secs(5))));
    }

    #[test]
    fn a_store_is_what_a_manager_that_has_one_says() {
        assert_eq!([Some("3"), Some("0"), Some("-1"), Some("many"), Some(""), None].map(store_max), [3, 0, 0, 0, 0, 0]);
        assert_eq!(store_max(Some("99999")), PASSED_FDS_MAX, "the next daemon takes no more");
        assert!(Manager::default().keep("name", std::os::fd::AsFd::as_fd(&std::io::stdin())).is_err());
    }

    #[test]
    fn the_manager_hears_of_life_only_while_all_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let heard = UnixDatagram::bind(&path).unwrap();
        heard.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let socket = Arc::new(connect(path.to_str().unwrap()).unwrap());
        let manager = Manager { socket: Some(socket), watchdog: Some(Duration::from_millis(60)), store_max: 0 };
        manager.tell(&[NotifyState::Ready]);
        let mut buffer = [0; 64];
        let mut next = || heard.recv(&mut buffer).map(|len| String::from_utf8_lossy(&buffer[..len]).into_owned());
        assert_eq!(next().unwrap(), "READY=1\n");
        let alive = Arc::new(std::sync::atomic::AtomicBool::new(true));
        let asked = Arc::clone(&alive);
        let probe = Probe::new("t", move |answer| {
            if asked.load(std::sync::atomic::Ordering::SeqCst) {
                answer.send(()).unwrap();
            }
        });
        let watching = manager.watch(vec![probe]).unwrap();
        assert_eq!(next().unwrap(), "WATCHDOG=1\n");
        alive.store(false, std::sync::atomic::Ordering::SeqCst);
        heard.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        while next().is_ok() {}
        drop(watching);
    }
}
