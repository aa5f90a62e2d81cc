//! The socket of one VHD, and who may connect.
//!
//! A VHD has two frontends at a time, so that a VM can move from one VMM to another; of them one is served (`turn`). A third
//! connection is closed at once. If one is gone already and only its rings are still being drained, its successor (a frontend that
//! reconnects) waits for that instead. `hold`: the VHD goes to another server, or comes from one.

mod hold;

use std::io;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::channel::Channel;
use super::connection::Session;
use super::device::HeldParts;
use super::held::HeldVhd;
use super::hold::{Asked, End, Paused, PausedSender, Phase, asked, is_open};
use super::hub::Hub;
use super::server::{Frontend, ServerEvents, VhdEndpoint};
use super::turn::{FrontendId, Turn};
use super::{connection, sys};
use crate::base::clock;
use crate::base::ids::VhdId;
use crate::base::log_gate::LogGate;
use crate::shared::VhdState;
use crate::shared::process::Process;
use crate::virtio::device::DeviceSettings;
pub(super) use hold::{Handed, Resumed};

/// Pause after a failure to accept (no file descriptor left), so that it is not tried in a loop.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Lines of coming and going that a VHD may log at once: a frontend that does nothing else is not to fill the log.
const CONNECTION_LINES: u64 = 10;

/// What all connections of a VHD share.
pub(super) struct Vhd {
    state: Arc<VhdState>,
    /// Virtqueues of the device that frontends see.
    queues: AtomicU16,
    /// Virtqueues for the first frontend that comes when there is none.
    queues_set: AtomicU16,
    optimal_io_size: u64,
    name: Mutex<String>,
    /// The `writeback` field of the configuration space. It outlives connections: a guest does not notice a reconnect.
    writeback_field: AtomicBool,
    /// Switched to writethrough while no ring ran: what was written before is flushed through the first one that does, of whichever
    /// frontend.
    owes_flush: AtomicBool,
    /// Rings that reactors serve.
    running: AtomicUsize,
    turn: Turn,
    /// Of the frontends that are connected.
    channels: Mutex<Vec<Weak<Channel>>>,
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
            turn: Turn::new(Arc::clone(&endpoint.state), Arc::clone(&events)),
            channels: Mutex::default(),
            told_size: AtomicU64::new(endpoint.state.size()),
            state: endpoint.state,
            queues: AtomicU16::new(endpoint.queues),
            queues_set: AtomicU16::new(endpoint.queues),
            optimal_io_size: endpoint.optimal_io_size,
            name: Mutex::new(endpoint.name),
            writeback_field: AtomicBool::new(endpoint.writeback),
            owes_flush: AtomicBool::new(false),
            running: AtomicUsize::new(0),
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

    pub(super) fn set_queues(&self, queues: u16) {
        self.queues_set.store(queues, Ordering::SeqCst);
    }

    pub(super) fn turn(&self) -> &Turn {
        &self.turn
    }

    pub(super) fn writeback_field(&self) -> bool {
        self.writeback_field.load(Ordering::SeqCst)
    }

    pub(super) fn set_writeback_field(&self, writeback: bool) {
        if self.writeback_field.swap(writeback, Ordering::SeqCst) != writeback {
            self.events.cache_mode(self.id(), writeback);
        }
    }

    pub(super) fn owes_flush(&self) -> bool {
        self.owes_flush.load(Ordering::SeqCst)
    }

    pub(super) fn owe_flush(&self, owes: bool) {
        self.owes_flush.store(owes, Ordering::SeqCst);
    }

    /// A way to a frontend that has come; it lasts as long as who asks keeps it.
    pub(super) fn new_channel(&self) -> Arc<Channel> {
        let channel = Arc::<Channel>::default();
        let mut channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
        channels.retain(|channel| channel.strong_count() > 0);
        channels.push(Arc::downgrade(&channel));
        channel
    }

    /// Tells the frontends that are connected if the VHD has been resized.
    pub(super) fn tell_size(&self) {
        let size = self.state.size();
        if self.told_size.swap(size, Ordering::SeqCst) != size {
            let channels = self.channels.lock().unwrap_or_else(PoisonError::into_inner);
            for channel in channels.iter().filter_map(Weak::upgrade) {
                channel.tell_config_changed();
            }
        }
    }

    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::Relaxed)
    }

    /// A frontend has so many rings that run, instead of `before`.
    pub(super) fn set_running(&self, before: usize, now: usize) {
        self.running.fetch_add(now, Ordering::Relaxed);
        self.running.fetch_sub(before, Ordering::Relaxed);
    }

    /// Logs what a frontend does, unless there has been too much of that.
    pub(super) fn log_coming(&self, what: &str) {
        match self.comings.pass(clock::now()) {
            Some(0) => log::info!("VHD {}: {what}", self.name()),
            Some(held_back) => log::info!("VHD {}: {what} ({held_back} comings and goings not logged)", self.name()),
            None => {}
        }
    }

    pub(super) fn device_settings(&self) -> DeviceSettings {
        let fixed = &self.state.settings;
        DeviceSettings {
            size: self.state.size(),
            block_size: fixed.block_size,
            read_only: fixed.read_only,
            queues: self.queues.load(Ordering::SeqCst),
            geometry: fixed.geometry,
            optimal_io_size: self.optimal_io_size,
        }
    }
}

/// A frontend that has connected.
struct Visitor {
    frontend: Frontend,
    process: Option<Process>,
    stream: UnixStream,
}

/// A connection that has ended, its rings drained.
struct Gone {
    id: FrontendId,
    end: End,
}

/// A frontend that is connected.
struct Connected {
    id: FrontendId,
    frontend: Frontend,
    /// To see whether the frontend is still there.
    socket: UnixStream,
}

/// Serves the socket, and frontends that another server has held, until the phase says otherwise; returns when the last ring is drained,
/// what another server needs if one goes on. Nothing begins before it is `open`.
pub(super) async fn run(
    vhd: Arc<Vhd>,
    hub: Arc<Hub>,
    listener: UnixListener,
    (mut phase, mut open): (watch::Receiver<Phase>, watch::Receiver<bool>),
    resumed: Vec<Resumed>,
) -> Option<Handed> {
    let (says_paused, paused) = unbounded_channel();
    let (connected, serving) = (Vec::new(), JoinSet::new());
    let (phases, handed) = (phase.clone(), Vec::new());
    let mut entry = Entry { vhd, hub, phase: phases, connected, serving, next: None, says_paused, paused, handed };
    if !is_open(&mut open, &mut phase).await {
        // Whoever has held them goes on with them.
        resumed.iter().for_each(|_| entry.vhd.state.door.leave());
        return None;
    }
    resumed.into_iter().for_each(|resumed| entry.resume(resumed));
    loop {
        tokio::select! {
            biased;
            asked = asked(&mut phase) => match asked {
                Asked::Stop => break,
                Asked::Hold(hold) => {
                    if let Some(socket) = entry.hold(&hold, &listener, &mut phase).await {
                        return Some(entry.hand_over(socket).await);
                    }
                }
            },
            Some(gone) = ended(&mut entry.serving) => entry.end(gone),
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => entry.admit(stream),
                Err(error) => {
                    entry.log_refusal(&format!("cannot accept a connection: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
    // Nobody can connect any more; the connections see the same signal.
    drop(listener);
    entry.next = None;
    while let Some(gone) = ended(&mut entry.serving).await {
        entry.end(gone);
    }
    None
}

/// Waits until a connection has ended and its rings are drained; `None`: there is none.
async fn ended(serving: &mut JoinSet<Gone>) -> Option<Gone> {
    match serving.join_next().await? {
        Ok(gone) => Some(gone),
        Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
        // Only a runtime that ends cancels a task, and this one with it.
        Err(_) => std::future::pending().await,
    }
}

/// Says once that processes cannot be told from each other.
fn tell_hidden(pid: u32) {
    static TOLD: AtomicBool = AtomicBool::new(false);
    if !TOLD.swap(true, Ordering::Relaxed) {
        log::warn!(
            "/proc does not show process {pid} to this daemon: after a restart it does not know which VMM had a VHD last (is /proc mounted \
             with hidepid, or ProtectProc= set in the unit?)"
        );
    }
}

struct Entry {
    vhd: Arc<Vhd>,
    hub: Arc<Hub>,
    phase: watch::Receiver<Phase>,
    connected: Vec<Connected>,
    serving: JoinSet<Gone>,
    /// Waits until the rings of one that is gone are drained.
    next: Option<Visitor>,
    /// How connections say that they are paused.
    says_paused: PausedSender,
    paused: UnboundedReceiver<Paused>,
    /// What somebody else goes on with.
    handed: Vec<(FrontendId, Box<HeldParts>)>,
}

impl Entry {
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
        let process = match Process::of(frontend.pid) {
            Ok(process) => process,
            Err(error) => return self.turn_away_unknown(frontend, &error),
        };
        if process.is_none() && frontend.pid != 0 {
            tell_hidden(frontend.pid);
        }
        let visitor = Visitor { frontend, process, stream };
        if !self.one_is_gone() {
            self.seat(visitor);
        } else if self.successor_is_there() {
            self.turn_away(frontend);
        } else {
            self.next = Some(visitor);
        }
    }

    fn one_is_gone(&self) -> bool {
        self.connected.iter().any(|connected| sys::is_hung_up(&connected.socket))
    }

    fn seat(&mut self, visitor: Visitor) {
        if self.vhd.turn.has_room(visitor.process) {
            self.begin(visitor);
        } else {
            self.turn_away(visitor.frontend);
        }
    }

    fn turn_away(&mut self, Frontend { pid, .. }: Frontend) {
        self.vhd.counters.refused.fetch_add(1, Ordering::Relaxed);
        let there: Vec<String> =
            self.connected.iter().map(|connected| format!("process {}", connected.frontend.pid)).collect();
        let verb = if there.len() == 1 { "is" } else { "are" };
        self.log_refusal(&format!(
            "process {pid} was turned away, since {} {verb} connected: a VHD has one frontend, and during a live migration \
             another one that waits (after a restart of the daemon one place is for the frontend that was served before)",
            there.join(" and ")
        ));
    }

    /// It may be one that must not have its turn now. It will come again, and there may be descriptors by then.
    fn turn_away_unknown(&self, Frontend { pid, .. }: Frontend, error: &io::Error) {
        self.vhd.counters.refused.fetch_add(1, Ordering::Relaxed);
        self.log_refusal(&format!(
            "process {pid} was turned away, since it is not known whether its VM has moved elsewhere: /proc/{pid} cannot be read: {error} \
             (give the daemon more descriptors, LimitNOFILE= in the unit, if that is what is missing)"
        ));
    }

    fn successor_is_there(&self) -> bool {
        self.next.as_ref().is_some_and(|next| !sys::is_hung_up(&next.stream))
    }

    fn begin(&mut self, Visitor { frontend, process, stream }: Visitor) {
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
        // A VM that moves takes its device along: the destination sees the one that the source has.
        if self.connected.is_empty() {
            vhd.queues.store(vhd.queues_set.load(Ordering::SeqCst), Ordering::SeqCst);
        }
        vhd.counters.connections.fetch_add(1, Ordering::Relaxed);
        let id = vhd.turn.join(frontend, process, clock::now());
        let Frontend { pid, uid, .. } = frontend;
        vhd.log_coming(&match vhd.turn.earlier(id) {
            None => format!("process {pid} (user {uid}) is connected"),
            Some(first) => format!(
                "process {pid} (user {uid}) is connected, too: its virtqueues wait until those of process {} are stopped",
                first.pid
            ),
        });
        let hub = Arc::clone(&self.hub);
        match Session::new(stream, id, &vhd, hub) {
            Ok(session) => self.serve(session, id, frontend, socket),
            Err(error) => {
                self.log_refusal(&format!("a connection of process {pid} is lost: {error}"));
                self.leave(id, false);
            }
        }
    }

    fn serve(&mut self, session: Session, id: FrontendId, frontend: Frontend, socket: UnixStream) {
        let (vhd, phase, paused) = (Arc::clone(&self.vhd), self.phase.clone(), self.says_paused.clone());
        let serve = connection::serve(session, frontend, vhd, phase, paused);
        self.serving.spawn(async move { Gone { id, end: serve.await } });
        self.connected.push(Connected { id, frontend, socket });
    }

    /// A connection has ended and its rings are drained.
    fn end(&mut self, gone: Gone) {
        match gone.end {
            End::Left => self.finish(gone.id, true),
            End::Parted => self.finish(gone.id, false),
            End::HandedOver(held) => self.handed.push((gone.id, held)),
        }
    }

    /// Nobody goes on with the frontend.
    fn finish(&mut self, id: FrontendId, by_itself: bool) {
        let at = self.connected.iter().position(|connected| connected.id == id).expect("it is served once");
        let Connected { frontend, .. } = self.connected.swap_remove(at);
        self.leave(id, by_itself);
        self.vhd.log_coming(&format!("process {} is disconnected", frontend.pid));
        // It may be the successor of another one, whose rings are still being drained.
        if !self.one_is_gone()
            && let Some(next) = self.next.take()
        {
            self.seat(next);
        }
    }

    fn leave(&self, id: FrontendId, by_itself: bool) {
        self.vhd.state.door.leave();
        self.vhd.turn.leave(id, by_itself);
    }

    fn log_refusal(&self, what: &str) {
        if let Some(held_back) = self.vhd.refusals.pass(clock::now()) {
            log::warn!("VHD {}: {what} ({held_back} more refusals not logged)", self.vhd.name());
        }
    }
}
