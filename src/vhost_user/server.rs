//! The vhost-user side of the daemon: a runtime of its own, and the VHDs it serves. `hold`: how another server goes on with them.

mod hold;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError};
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use super::error::{ServerError, SocketError};
use super::hold::Phase;
use super::hub::{self, Hub, Reactors};
use super::listener::{self, Handed, Resumed, Vhd};
use super::socket::{BoundPath, OwnRights, SocketPaths, SocketSettings};
use crate::base::clock;
use crate::base::ids::VhdId;
use crate::base::limits::VHOST_USER_THREADS_MAX;
use crate::placement::record::SocketOwner;
use crate::shared::VhdState;

/// How long a thread that handles messages waits for the next one before it ends.
const THREAD_KEEP_ALIVE: Duration = Duration::from_secs(1);

/// A VHD to serve.
pub struct VhdEndpoint {
    /// Its shared state.
    pub state: Arc<VhdState>,
    /// Its name: the socket is `NAME.sock`.
    pub name: String,
    /// Virtqueues.
    pub queues: u16,
    /// The transfer size that serves the guest best: an extent, or a stripe of them, in bytes.
    pub optimal_io_size: u64,
    /// The cache mode to begin with: true (writeback) for a VHD whose guest has never chosen, else what
    /// [`ServerEvents::cache_mode`] said last.
    pub writeback: bool,
    /// Who may connect.
    pub socket: SocketSettings,
}

/// Who is told what happens.
pub trait ServerEvents: Send + Sync + 'static {
    /// A frontend is connected, or takes the turn over from another one that may be connected still. Must not block.
    fn attached(&self, vhd: VhdId, pid: u32);

    /// The last frontend is gone, all rings are drained. Must not block.
    fn detached(&self, vhd: VhdId, pid: u32);

    /// The guest switched its cache mode. The guest has no answer before this returns, so that whoever wants the choice to
    /// outlive the daemon can make it durable here; may block.
    fn cache_mode(&self, vhd: VhdId, writeback: bool);
}

/// The process at the other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frontend {
    /// Process; 0 if the kernel does not say.
    pub pid: u32,
    /// User.
    pub uid: u32,
    /// When it connected, in seconds since the Unix epoch.
    pub since: u64,
}

/// A VHD that is served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VhdStatus {
    /// Which.
    pub vhd: VhdId,
    /// Its name.
    pub name: String,
    /// Its socket.
    pub socket: PathBuf,
    /// Who is connected: the one whose rings run, or that came first.
    pub frontend: Option<Frontend>,
    /// Who is connected besides, and waits for its turn.
    pub waiting: Option<Frontend>,
    /// Rings that reactors serve.
    pub rings: usize,
    /// The cache mode that the configuration space shows.
    pub writeback: bool,
    /// Connections so far.
    pub connections: u64,
    /// Connections turned away: there were others already, or the system could not say who it was.
    pub refused: u64,
    /// Connections closed because of a bad message.
    pub faults: u64,
}

/// What the reactors have done since they began.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReactorStatus {
    /// How long each has worked, in nanoseconds: neither slept nor looked for something to do.
    pub busy_ns: Vec<u64>,
    /// How often a virtqueue was moved from one to another.
    pub ring_moves: u64,
}

struct Entry {
    vhd: Arc<Vhd>,
    path: BoundPath,
    /// Mode and owner that the path is to have as soon as it is ours.
    wanted: Option<SocketSettings>,
    phase: watch::Sender<Phase>,
    done: Receiver<Handed>,
}

/// Whether what is served may be changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Orders {
    #[default]
    Taken,
    /// Another server has all.
    HandedOver,
}

/// A VHD that is being taken out of service.
#[must_use = "its rings are drained when this says so"]
pub struct Removal(Receiver<Handed>);

impl Removal {
    /// Waits until the frontend is disconnected and its rings are drained. False if that takes longer: a host disk hangs.
    #[must_use]
    pub fn wait(&self, at_most: Duration) -> bool {
        matches!(self.0.recv_timeout(at_most), Err(RecvTimeoutError::Disconnected))
    }
}

/// Serves VHDs to frontends. All methods may be called from any thread outside of the server's own; none waits for a
/// frontend or a disk, except [`VhostUserServer::shut_down`], [`Removal::wait`] and [`VhostUserServer::hold`]; while VHDs are being held
/// those that change which are served, and where, wait for that.
pub struct VhostUserServer {
    runtime: Option<Runtime>,
    hub: Arc<Hub>,
    events: Arc<dyn ServerEvents>,
    directory: PathBuf,
    paths: Arc<dyn SocketPaths>,
    /// Locked by whoever changes which VHDs are served, and where, before the entries: so that these can be looked at while VHDs are being
    /// held, which may need it to come to an end.
    orders: Mutex<Orders>,
    entries: Mutex<HashMap<VhdId, Entry>>,
    /// Whether what is added is served at once.
    open: watch::Sender<bool>,
}

impl VhostUserServer {
    /// Starts the threads. The directory for the sockets is made if it is not there.
    ///
    /// # Errors
    /// No directory, or no threads.
    pub fn start(
        directory: PathBuf,
        reactors: impl Reactors,
        events: Arc<dyn ServerEvents>,
    ) -> Result<VhostUserServer, ServerError> {
        // One that is there was made before the sandbox.
        let made = if directory.is_dir() { Ok(()) } else { std::fs::create_dir_all(&directory) };
        made.map_err(|source| ServerError::Directory { path: directory.clone(), source })?;
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(VHOST_USER_THREADS_MAX)
            .thread_keep_alive(THREAD_KEEP_ALIVE)
            .thread_name("vhost-user")
            .enable_io()
            .enable_time()
            .build()
            .map_err(ServerError::Runtime)?;
        let hub = Arc::new(Hub::new(reactors));
        runtime.spawn(hub::spread(Arc::downgrade(&hub)));
        let paths: Arc<dyn SocketPaths> = Arc::new(OwnRights::default());
        let (orders, entries, open) = (Mutex::default(), Mutex::default(), watch::Sender::new(true));
        Ok(VhostUserServer { runtime: Some(runtime), hub, events, directory, paths, orders, entries, open })
    }

    /// Sockets are made by `paths` from now on, not with the rights of this process.
    #[must_use]
    pub fn with_paths(mut self, paths: Arc<dyn SocketPaths>) -> VhostUserServer {
        self.paths = paths;
        self
    }

    /// Makes the socket of a VHD; it can be connected to when this returns. Returns its path.
    ///
    /// # Errors
    /// The VHD is served already, or all have been held, or its socket cannot be made.
    pub fn add_vhd(&self, endpoint: VhdEndpoint) -> Result<PathBuf, ServerError> {
        let id = endpoint.state.id();
        let _order = self.order()?;
        let mut entries = self.entries();
        if entries.contains_key(&id) {
            return Err(ServerError::AlreadyServed(id));
        }
        let runtime = self.runtime.as_ref().expect("taken when the server ends");
        let _context = runtime.enter();
        let (path, socket) = BoundPath::bind(Arc::clone(&self.paths), self.path_of(&endpoint.name), &endpoint.socket)?;
        let vhd = Arc::new(Vhd::new(endpoint, Arc::clone(&self.events)));
        Ok(self.serve(&mut entries, vhd, path, socket, Vec::new()).path.path().to_owned())
    }

    fn serve<'a>(
        &self,
        entries: &'a mut HashMap<VhdId, Entry>,
        vhd: Arc<Vhd>,
        path: BoundPath,
        socket: UnixListener,
        resumed: Vec<Resumed>,
    ) -> &'a mut Entry {
        let (phase, phases) = watch::channel(Phase::Serving);
        let (hands, done) = crossbeam_channel::bounded(1);
        let serve =
            listener::run(Arc::clone(&vhd), Arc::clone(&self.hub), socket, (phases, self.open.subscribe()), resumed);
        let runtime = self.runtime.as_ref().expect("taken when the server ends");
        runtime.spawn(async move {
            if let Some(handed) = serve.await {
                // Who holds VHDs waits for them; else there is room.
                let _ = hands.send(handed);
            }
        });
        entries.entry(vhd.id()).insert_entry(Entry { vhd, path, wanted: None, phase, done }).into_mut()
    }

    /// Removes the socket of a VHD and disconnects its frontend. Does not wait for its rings.
    ///
    /// # Errors
    /// The VHD is not served, or all have been held.
    pub fn remove_vhd(&self, vhd: VhdId) -> Result<Removal, ServerError> {
        let _order = self.order()?;
        let entry = self.entries().remove(&vhd).ok_or(ServerError::NotServed(vhd))?;
        Ok(entry.end())
    }

    /// Gives the VHD's socket the path that goes with another name. Whoever is connected stays connected.
    ///
    /// # Errors
    /// The VHD is not served, or all have been held, or the path cannot be had; then the old one stays.
    pub fn rename(&self, vhd: VhdId, name: &str) -> Result<PathBuf, ServerError> {
        let _order = self.order()?;
        let mut entries = self.entries();
        let entry = entries.get_mut(&vhd).ok_or(ServerError::NotServed(vhd))?;
        entry.path.rename(self.path_of(name))?;
        entry.vhd.set_name(name);
        Ok(entry.path.path().to_owned())
    }

    /// Changes mode and owner of the VHD's socket. Whoever is connected stays connected.
    ///
    /// # Errors
    /// The VHD is not served, or all have been held, or the system refuses.
    pub fn set_socket(&self, vhd: VhdId, settings: &SocketSettings) -> Result<(), ServerError> {
        let _order = self.order()?;
        let mut entries = self.entries();
        let entry = entries.get_mut(&vhd).ok_or(ServerError::NotServed(vhd))?;
        Ok(entry.path.set(settings)?)
    }

    /// The VHD may have been resized: its frontend is told, if it has asked to be. Does not wait for it.
    ///
    /// # Errors
    /// The VHD is not served.
    pub fn tell_size(&self, vhd: VhdId) -> Result<(), ServerError> {
        let entries = self.entries();
        entries.get(&vhd).ok_or(ServerError::NotServed(vhd))?.vhd.tell_size();
        Ok(())
    }

    /// The VHD has so many virtqueues from now on; as long as frontends are connected, they and who joins them see as many as before.
    ///
    /// # Errors
    /// The VHD is not served.
    pub fn set_queues(&self, vhd: VhdId, queues: u16) -> Result<(), ServerError> {
        let entries = self.entries();
        entries.get(&vhd).ok_or(ServerError::NotServed(vhd))?.vhd.set_queues(queues);
        Ok(())
    }

    /// Whether a VHD of this name, which is not served yet, could have its socket.
    ///
    /// # Errors
    /// Why not.
    pub fn check_name(&self, name: &str) -> Result<(), SocketError> {
        let path = self.path_of(name);
        // Locked all the while: a socket that is bound and does not listen yet looks like one that was left behind.
        let entries = self.entries();
        // One of ours is of a VHD that is about to be closed or renamed: the owner knows that the name is free.
        if entries.values().any(|entry| entry.path.path() == path) {
            return Ok(());
        }
        self.paths.clear(&path)
    }

    /// Whether sockets could belong to `owner`.
    ///
    /// # Errors
    /// Why not.
    pub fn check_owner(&self, owner: &SocketOwner) -> Result<(), SocketError> {
        self.paths.check_owner(owner)
    }

    /// What goes on at the VHD's socket; `None` if the VHD is not served.
    #[must_use]
    pub fn status(&self, vhd: VhdId) -> Option<VhdStatus> {
        self.entries().get(&vhd).map(Entry::status)
    }

    /// What goes on at all sockets, in no order.
    #[must_use]
    pub fn statuses(&self) -> Vec<VhdStatus> {
        self.entries().values().map(Entry::status).collect()
    }

    /// Whether the next daemon has to know whose rings ran last: some of those processes may connect to it.
    #[must_use]
    pub fn is_awaited(&self) -> bool {
        self.entries().values().any(|entry| entry.vhd.state().last_active.matters())
    }

    /// Whether that matters because a VM has moved: the VMM that it came from is still there.
    #[must_use]
    pub fn has_moved(&self) -> bool {
        self.entries().values().any(|entry| entry.vhd.state().last_active.has_earlier())
    }

    /// What the reactors have done.
    #[must_use]
    pub fn reactor_status(&self) -> ReactorStatus {
        ReactorStatus { busy_ns: self.hub.busy_ns(), ring_moves: self.hub.moves() }
    }

    /// The path that the socket of a VHD of this name has.
    #[must_use]
    pub fn path_of(&self, name: &str) -> PathBuf {
        self.directory.join(format!("{name}.sock"))
    }

    /// The directory of the sockets.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Disconnects all frontends and drains their rings. False if that took longer than `at_most`: a host disk hangs.
    #[must_use]
    pub fn shut_down(self, at_most: Duration) -> bool {
        let deadline = clock::now().after(at_most);
        let removals: Vec<Removal> = self.entries().drain().map(|(_, entry)| entry.end()).collect();
        removals.iter().all(|removal| removal.wait(Duration::from_nanos(deadline.since(clock::now()))))
    }

    /// Until it is dropped, nobody else changes what is served.
    fn order(&self) -> Result<MutexGuard<'_, Orders>, ServerError> {
        let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
        if *orders == Orders::HandedOver { Err(ServerError::HandedOver) } else { Ok(orders) }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<VhdId, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn end(self) -> Removal {
        // The path goes first: nobody is to find a socket that nobody listens on.
        drop(self.path);
        self.phase.send_replace(Phase::Stopped);
        Removal(self.done)
    }

    fn status(&self) -> VhdStatus {
        let vhd = &self.vhd;
        VhdStatus {
            vhd: vhd.id(),
            name: vhd.name(),
            socket: self.path.path().to_owned(),
            frontend: vhd.turn().frontend(),
            waiting: vhd.turn().waiting(),
            rings: vhd.running(),
            writeback: vhd.writeback_field(),
            connections: vhd.counters.connections.load(Ordering::Relaxed),
            refused: vhd.counters.refused.load(Ordering::Relaxed),
            faults: vhd.counters.faults.load(Ordering::Relaxed),
        }
    }
}

impl Drop for VhostUserServer {
    fn drop(&mut self) {
        self.entries().drain().for_each(|(_, entry)| drop(entry.end()));
        if let Some(runtime) = self.runtime.take() {
            // A thread may wait for a hung disk; the process is not to wait for it.
            runtime.shutdown_background();
        }
    }
}
