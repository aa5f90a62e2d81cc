//! The socket of one VHD, and whose turn it is.
//!
//! A VHD has one frontend at a time: a second connection is closed at once. If the first is gone already and only its rings
//! are still being drained, its successor (a frontend that reconnects) waits for that instead.

use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::channel::Channel;
use super::hub::Hub;
use super::server::{Frontend, ServerEvents, VhdEndpoint};
use super::{connection, sys};
use crate::base::clock;
use crate::base::ids::VhdId;
use crate::base::log_gate::LogGate;
use crate::shared::VhdState;
use crate::virtio::device::DeviceSettings;

/// Pause after a failure to accept (no file descriptor left), so that it is not tried in a loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Lines of coming and going that a VHD may log at once: a frontend that does nothing else is not to fill the log.
const CONNECTION_LINES: u64 = 10;

/// What all connections of a VHD share.
pub(super) struct Vhd {
    state: Arc<VhdState>,
    queues: u16,
    optimal_io_size: u64,
    name: Mutex<String>,
    /// The `writeback` field of the configuration space. It outlives connections: a guest does not notice a reconnect.
    writeback_field: AtomicBool,
    /// Rings that reactors serve.
    running: AtomicUsize,
    frontend: Mutex<Option<Frontend>>,
    channel: Channel,
    /// The size that frontends were last told of.
    told_size: AtomicU64,
    events: Arc<dyn ServerEvents>,
    pub(super) counters: Counters,
    comings: LogGate,
    refusals: LogGate,
    pub(super) faults: LogGate,
}

/// What happened at a VHD's socket since it was made.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) connections: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) faults: AtomicU64,
}

impl Vhd {
    pub(super) fn new(endpoint: VhdEndpoint, events: Arc<dyn ServerEvents>) -> Vhd {
        Vhd {
            channel: Channel::default(),
            told_size: AtomicU64::new(endpoint.state.size()),
            state: endpoint.state,
            queues: endpoint.queues,
            optimal_io_size: endpoint.optimal_io_size,
            name: Mutex::new(endpoint.name),
            writeback_field: AtomicBool::new(endpoint.writeback),
            running: AtomicUsize::new(0),
            frontend: Mutex::new(None),
            events,
            counters: Counters::default(),
            comings: LogGate::with_burst(CONNECTION_LINES),
            refusals: LogGate::new(),
            faults: LogGate::new(),
        }
    }

    pub(super) fn id(&self) -> VhdId {
        self.state.id()
    }

    pub(super) fn state(&self) -> &Arc<VhdState> {
        &self.state
    }

    pub(super) fn name(&self) -> String {
        self.name.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_name(&self, name: &str) {
        name.clone_into(&mut self.name.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(super) fn frontend(&self) -> Option<Frontend> {
        *self.frontend.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_frontend(&self, frontend: Option<Frontend>) {
        *self.frontend.lock().unwrap_or_else(PoisonError::into_inner) = frontend;
    }

    pub(super) fn writeback_field(&self) -> bool {
        self.writeback_field.load(Ordering::SeqCst)
    }

    pub(super) fn set_writeback_field(&self, writeback: bool) {
        if self.writeback_field.swap(writeback, Ordering::SeqCst) != writeback {
            self.events.cache_mode(self.id(), writeback);
        }
    }

    pub(super) fn channel(&self) -> &Channel {
        &self.channel
    }

    /// Tells the frontend that is connected if the VHD has been resized.
    pub(super) fn tell_size(&self) {
        let size = self.state.size();
        if self.told_size.swap(size, Ordering::SeqCst) != size {
            self.channel.tell_config_changed();
        }
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    pub(super) fn set_running(&self, rings: usize) {
        self.running.store(rings, Ordering::Relaxed);
    }

    pub(super) fn device_settings(&self) -> DeviceSettings {
        let fixed = &self.state.settings;
        DeviceSettings {
            size: self.state.size(),
            block_size: fixed.block_size,
            read_only: fixed.read_only,
            queues: self.queues,
            geometry: fixed.geometry,
            optimal_io_size: self.optimal_io_size,
        }
    }
}

/// The connection whose turn it is.
struct Active {
    frontend: Frontend,
    /// To see whether the frontend is still there.
    socket: UnixStream,
    task: JoinHandle<()>,
}

/// Serves the socket until `stop` becomes true; returns when the last ring is drained.
pub(super) async fn run(vhd: Arc<Vhd>, hub: Arc<Hub>, listener: UnixListener, mut stop: watch::Receiver<bool>) {
    let mut turns = Turns { vhd, hub, stop: stop.clone(), active: None, next: None };
    loop {
        tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            () = ended(&mut turns.active) => turns.finish(),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => turns.admit(stream),
                Err(error) => {
                    turns.log_refusal(&format!("cannot accept a connection: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Nobody can connect any more; the connection sees the same signal.
    drop(listener);
    turns.next = None;
    ended_if_any(&mut turns.active).await;
    turns.finish();
}

/// Returns when the VHD is taken out of service.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    // If nobody can say so any more, it is.
    let _ = stop.wait_for(|stop| *stop).await.map(drop);
}

async fn ended(active: &mut Option<Active>) {
    if active.is_none() {
        std::future::pending::<()>().await;
    }
    ended_if_any(active).await;
}

async fn ended_if_any(active: &mut Option<Active>) {
    if let Some(active) = active
        && let Err(error) = (&mut active.task).await
        && error.is_panic()
    {
        std::panic::resume_unwind(error.into_panic());
    }
}

struct Turns {
    vhd: Arc<Vhd>,
    hub: Arc<Hub>,
    stop: watch::Receiver<bool>,
    active: Option<Active>,
    /// Waits until the rings of one that is gone are drained.
    next: Option<(Frontend, UnixStream)>,
}

impl Turns {
    fn admit(&mut self, stream: tokio::net::UnixStream) {
        let (pid, uid) = stream.peer_cred().map_or((0, u32::MAX), |peer| (peer.pid().unwrap_or(0), peer.uid()));
        let frontend = Frontend { pid: u32::try_from(pid).unwrap_or(0), uid, since: clock::wall_secs() };
        // Messages are read by threads, once they are there as a whole.
        let stream = stream.into_std().and_then(|stream| stream.set_nonblocking(false).map(|()| stream));
        let stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                return self.log_refusal(&format!("a connection of process {} is lost: {error}", frontend.pid));
            }
        };
        match &self.active {
            None => self.begin(frontend, stream),
            Some(active) if sys::is_hung_up(&active.socket) && !self.successor_is_there() => {
                self.next = Some((frontend, stream));
            }
            Some(active) => {
                self.vhd.counters.refused.fetch_add(1, Ordering::Relaxed);
                let first = active.frontend.pid;
                let second = frontend.pid;
                self.log_refusal(&format!(
                    "process {second} tried to connect while process {first} is connected, and was turned away: a VHD has one \
                     frontend at a time"
                ));
            }
        }
    }

    fn successor_is_there(&self) -> bool {
        self.next.as_ref().is_some_and(|(_, socket)| !sys::is_hung_up(socket))
    }

    fn begin(&mut self, frontend: Frontend, stream: UnixStream) {
        let socket = match stream.try_clone() {
            Ok(socket) => socket,
            Err(error) => {
                return self.log_refusal(&format!("a connection of process {} is lost: {error}", frontend.pid));
            }
        };
        let vhd = Arc::clone(&self.vhd);
        if !vhd.state.door.enter() {
            let pid = frontend.pid;
            return self.log_refusal(&format!("process {pid} tried to connect while the VHD is being resized"));
        }
        vhd.counters.connections.fetch_add(1, Ordering::Relaxed);
        vhd.set_frontend(Some(frontend));
        vhd.events.attached(vhd.id(), frontend.pid);
        self.log_coming(&format!("process {} (user {}) is connected", frontend.pid, frontend.uid));
        let serve = connection::serve(stream, frontend, vhd, Arc::clone(&self.hub), self.stop.clone());
        self.active = Some(Active { frontend, socket, task: tokio::spawn(serve) });
    }

    /// The active connection has ended and its rings are drained.
    fn finish(&mut self) {
        let Some(Active { frontend, .. }) = self.active.take() else { return };
        self.vhd.set_frontend(None);
        self.vhd.state.door.leave();
        self.vhd.events.detached(self.vhd.id(), frontend.pid);
        self.log_coming(&format!("process {} is disconnected", frontend.pid));
        if let Some((frontend, stream)) = self.next.take() {
            self.begin(frontend, stream);
        }
    }

    fn log_coming(&self, what: &str) {
        match self.vhd.comings.pass(clock::now()) {
            Some(0) => log::info!("VHD {}: {what}", self.vhd.name()),
            Some(held_back) => {
                log::info!("VHD {}: {what} ({held_back} comings and goings not logged)", self.vhd.name())
            }
            None => {}
        }
    }

    fn log_refusal(&self, what: &str) {
        if let Some(held_back) = self.vhd.refusals.pass(clock::now()) {
            log::warn!("VHD {}: {what} ({held_back} more refusals not logged)", self.vhd.name());
        }
    }
}
