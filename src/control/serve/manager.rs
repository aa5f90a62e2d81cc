//! The service manager (systemd), if there is one: it is told when the daemon is ready, and that it is alive.
//!
//! The socket is connected at the start: a daemon that serves connects to nobody.

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use sd_notify::NotifyState;

use crate::base::clock;

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
pub struct Manager {
    socket: Option<Arc<UnixDatagram>>,
    watchdog: Option<Duration>,
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
        Manager { socket, watchdog: sd_notify::watchdog_enabled() }
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
    Ok(socket)
}

fn send(socket: &UnixDatagram, states: &[NotifyState<'_>]) -> io::Result<()> {
    let text: String = states.iter().map(|state| format!("{state}\n")).collect();
    socket.send(text.as_bytes()).map(drop)
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
    fn the_manager_hears_of_life_only_while_all_answer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let heard = UnixDatagram::bind(&path).unwrap();
        heard.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        let socket = Arc::new(connect(path.to_str().unwrap()).unwrap());
        let manager = Manager { socket: Some(socket), watchdog: Some(Duration::from_millis(60)) };
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
