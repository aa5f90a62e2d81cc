//! The parts of a running daemon.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::config::{Config, FairShares};
use super::confine::{self, ControlSocket, Inherited, Opened};
use super::fd_store::Waiting;
use super::front::Front;
use super::host::DaemonHost;
use super::manager::{Manager, Probe};
use super::memory::Memory;
use super::table::open_table;
use super::views::ViewDir;
use super::works::{END_PATIENCE, Finished, Works};
use super::{Ended, ServeError};
use crate::base::clock;
use crate::base::ids::{DiskId, VhdId};
use crate::base::log_gate::LogGate;
use crate::control::broker::Rights;
use crate::control::disk_worker::DiskWorker;
use crate::control::error_chain;
use crate::control::events::EventLog;
use crate::control::failures::Snapshot;
use crate::control::http::Bound;
use crate::control::mover::{Mover, Queue};
use crate::control::owner_link::Asked;
use crate::control::owner_thread::{self, Effects, OwnerInput, OwnerSender};
use crate::control::reactors::{self, Handles, Inboxes, Threads};
use crate::control::service::{self, Problems};
use crate::control::stats::{Sampler, StatsBook};
use crate::control::wire::{EventDetail, Severity};
use crate::disk::BlockDev;
use crate::disk::file::FileDisk;
use crate::disk::pool::OpenPool;
use crate::engine::uring::thread::EngineThread;
use crate::mover::messages::MoverMessage;
use crate::mover::thread::MoverHandle;
use crate::owner::Owner;
use crate::owner::command::Command;
use crate::placement::record::{DiskRecord, PoolRecord};
use crate::placement::view::Keep;
use crate::reactor::messages::ReactorMessage;
use crate::shared::DiskState;
use crate::store::change::CommitRequest;
use crate::store::committer::Committer;
use crate::store::edit::StoreReport;
use crate::store::mirror::threads::MemberThreads;
use crate::store::page::Stamp;
use crate::store::thread::{self, Replies, StoreHandle};
use crate::vhost_user::{Removal, ServerEvents, VhostUserServer};

/// How long guests' requests may take to finish when the daemon stops.
const DRAIN_PATIENCE: Duration = Duration::from_secs(30);

/// A daemon that serves.
pub struct Daemon {
    pub(super) pool: Uuid,
    pub(super) control: ControlSocket,
    pub(super) listeners: Listeners,
    pub(super) rights: Rights,
    pub(super) runtime: Runtime,
    pub(super) stop_api: watch::Sender<bool>,
    pub(super) changing_disks: Arc<tokio::sync::Mutex<()>>,
    pub(super) takeovers: mpsc::Receiver<UnixStream>,
    pub(super) server: Arc<VhostUserServer>,
    pub(super) works: Works,
    pub(super) sampler: Sampler,
    pub(super) host: Arc<DaemonHost>,
    pub(super) events: Arc<EventLog>,
    pub(super) kept: Option<Arc<ViewDir>>,
}

/// Sockets of the API.
pub struct Listeners {
    /// The control socket.
    pub control: Bound,
    /// The one for metrics.
    pub metrics: Option<Bound>,
}

/// A disk that is here.
#[derive(Clone)]
pub struct UsableDisk {
    /// What everybody may know of it.
    pub state: Arc<DiskState>,
    /// The disk.
    pub device: Arc<FileDisk>,
}

impl Daemon {
    /// Starts everything. VHDs are served and the API answers when this returns.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn start(config: &Config, opened: Opened) -> Result<Daemon, ServeError> {
        let Opened { control, bound, metrics, rights, mut pool, inherited } = opened;
        let Inherited { vhds: mut held, engines, gate, stored, .. } = inherited;
        let is_confined = engines.is_some();
        let threads = match engines {
            Some(engines) => (engines.reactors, Some(engines.mover)),
            None => (reactors::threads(config.reactors, config.pin)?, None),
        };
        let table = open_table(&mut pool, config.accept_stale, config.reactors, &rights.views)?;
        let (states, disks) = disks_of(&table.pool, &pool);
        let (uuid, vhds) = (table.pool.uuid, table.vhds.len() as u64);

        let (owner, queue) = OwnerSender::channel();
        let inboxes = Inboxes::new(config.reactors).map_err(system("make the reactors' queues"))?;
        let (handles, rest) = (inboxes.handles(), inboxes.rest());
        let (kept, stats) = (table.kept, StatsBook::load(&table.members, &table.vhds));
        let replies = StoreReplies { owner: owner.clone(), reactors: handles.clone(), kept: kept.clone() };
        let committer = Committer::new(table.state.stamp, table.region_len);
        let members = MemberThreads::start(table.members, table.total).map_err(system("start the store's threads"))?;
        let (store, store_thread) =
            thread::start(committer, members, replies).map_err(system("start the committer"))?;
        let wanted = table.noted.policy.rules.clone();
        let memory = Memory::recall(table.noted, stats, table.region_len, &store);
        states.iter().for_each(|disk| store.add_disk(disk));
        table.vhds.iter().for_each(|(_, vhd)| store.open_vhd(vhd));
        let server = Arc::new(start_server(config, &rights, &handles, &owner)?);
        let problems = Arc::new(Problems::default());
        let workers = start_workers(&disks, table.pool.extent_size, &owner)?;
        let (reactors, mover) = start_data_plane(inboxes, threads, config.poll_max, &owner, &store)?;
        announce_disks(&states, &disks, &handles, &mover.handle())?;
        let (service, service_thread) =
            service::start(Arc::clone(&server), Arc::clone(&problems)).map_err(system("start the service thread"))?;
        let core = Owner::new(table.pool, states, table.vhds.clone(), config.reactors)?
            .with_vms(table.vms)?
            .with_jobs(table.jobs)
            .with_patience(config.hang_timeout, config.rebuild_delay)
            .with_policy(wanted)
            .with_fair_shares(config.fair_shares == FairShares::Auto, rest)
            .with_kept(kept.clone().map(|kept| kept as Arc<dyn Keep>), table.recovered)?;
        report_disks(&pool, table.lost, &core, &store, &memory.events);
        let effects = Effects {
            reactors: handles,
            mover: mover.handle(),
            store: store.clone(),
            workers,
            service: service.clone(),
            events: Arc::clone(&memory.events),
        };
        let front = Front { control, rights, pool, disks, server, problems, kept, memory, uuid };
        let mut ready = front.prepare(bound, metrics, &owner, &store, config)?;
        // All threads are there that need rings; nobody from outside has been heard yet, and nothing decided.
        if !is_confined {
            confine::filter(config.sandbox)?;
        }
        let is_another = gate.is_some();
        let sockets = table.vhds.iter().map(|(record, _)| (record.uuid, ready.server.path_of(&record.name)));
        stored.take(uuid, &sockets.collect(), &mut held);
        let others = ready.go_on_with(table.vhds, &mut held, is_another)?;
        let owner_thread = owner_thread::prepare(core, queue, effects).map_err(system("start the owner's thread"))?;
        if let Some((gate, identity)) = gate {
            gate.pass()?;
            ready.control.take(identity);
        }
        let owner_thread = owner_thread.begin();
        ready.server.go_on();
        ready.drop_deleted(held);
        others.iter().for_each(|(record, state)| ready.serve(record, state));
        let works = Works { reactors, mover, owner, owner_thread, service, service_thread, store, store_thread };
        let daemon = ready.open(works);
        daemon.events.record(Severity::Info, EventDetail::DaemonReady { vhds });
        Ok(daemon)
    }

    /// Its pool.
    #[must_use]
    pub fn pool(&self) -> Uuid {
        self.pool
    }

    /// A connection of a process that wants to take over.
    pub async fn asked_to_give(&mut self) -> UnixStream {
        match self.takeovers.recv().await {
            Some(stream) => stream,
            // The API has ended.
            None => std::future::pending().await,
        }
    }

    /// The threads without which nothing is served, as the watchdog asks them.
    #[must_use]
    pub fn probes(&self) -> Vec<Probe> {
        self.works.probes()
    }

    /// Stops everything, in the order in which data flows. Frontends stay connected if the manager can keep them for the next daemon.
    pub fn stop(self, manager: &Manager) -> Ended {
        self.events.record(Severity::Info, EventDetail::DaemonStopping {});
        self.stop_api.send_replace(true);
        // Nobody is to find a socket that nobody listens on.
        drop(self.control);
        let (is_awaited, is_moved) = (self.server.is_awaited(), self.server.has_moved());
        let waiting = Waiting::hold(&self.server, manager, &self.rights.sockets, DRAIN_PATIENCE);
        let drained = waiting.is_some() || disconnect(&self.server, DRAIN_PATIENCE);
        let Finished { clean, store, .. } =
            self.works.finish(&self.events, self.sampler, drained, &self.host.usable_disks(), END_PATIENCE);
        // A thread that waits for a hung disk must not keep the process.
        self.runtime.shutdown_background();
        if !clean {
            log::error!("stopped with a disk or guest that hangs; what was flushed is durable");
            return Ended::Forced;
        }
        if store.pending {
            // A FLUSH of it has failed, or was never asked for.
            log::warn!(
                "stopped; what guests wrote to disks that have failed or are missing is not durable: the next daemon has what is on \
                 missing ones, if they are back before the host restarts, and only what was flushed of those that have failed"
            );
        } else {
            self.kept.iter().for_each(|kept| kept.end(is_awaited, is_moved));
            log::info!("stopped; everything is durable");
        }
        if let Some(waiting) = waiting {
            waiting.leave(manager, self.pool);
        }
        Ended::Cleanly
    }
}

pub fn system(what: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

/// What was noticed of disks that are here, what they have lost, and what it means that others are not.
fn report_disks(pool: &OpenPool<FileDisk>, lost: Vec<String>, owner: &Owner, store: &StoreHandle, events: &EventLog) {
    for disk in &pool.disks {
        for notice in &disk.notices {
            let message = format!("disk '{}': {notice}", disk.name);
            events.record(Severity::Warning, EventDetail::Note { message });
        }
    }
    lost.into_iter().for_each(|message| events.record(Severity::Error, EventDetail::Note { message }));
    Snapshot::of(owner, |id| pool.disk(id).is_some(), &store.status()).tell_missing(events);
}

/// Shared state of every disk of the pool (a missing one counts as failed), and those that are here.
fn disks_of(record: &PoolRecord, pool: &OpenPool<FileDisk>) -> (Vec<Arc<DiskState>>, Vec<UsableDisk>) {
    let block_size = pool.disks.first().map_or(512, |disk| disk.dev.block_size());
    let mut here = Vec::new();
    let state = |disk: &DiskRecord| {
        let found = pool.disk(disk.id).filter(|found| found.uuid == disk.uuid);
        let memory_alignment = found.map_or(512, |found| found.dev.memory_alignment());
        let (name, offset) = (disk.name.clone(), disk.data_offset);
        let state = DiskState::new(disk.id, name, offset, disk.slots, block_size, memory_alignment);
        let Some(found) = found else {
            state.fail();
            return Arc::new(state);
        };
        let state = state.failing_with(found.dev.failed()).with_metadata_work(found.dev.work());
        let state = Arc::new(state.awaiting_with(found.dev.awaited()));
        if state.is_failed() {
            log::error!("disk '{}' has failed: its label could not be synced", disk.name);
        }
        here.push(UsableDisk { state: Arc::clone(&state), device: Arc::clone(&found.dev) });
        state
    };
    (record.disks.iter().map(state).collect(), here)
}

fn start_server(
    config: &Config,
    rights: &Rights,
    reactors: &Handles,
    owner: &OwnerSender,
) -> Result<VhostUserServer, ServeError> {
    let events = Arc::new(ToOwner(owner.clone()));
    let server = VhostUserServer::start(config.socket_dir.clone(), reactors.clone(), events)?;
    // Frontends that another daemon has held are heard last.
    Ok(server.with_paths(Arc::clone(&rights.sockets)).waiting())
}

fn start_workers(
    disks: &[UsableDisk],
    extent_size: u64,
    owner: &OwnerSender,
) -> Result<HashMap<DiskId, DiskWorker>, ServeError> {
    let start = |disk: &UsableDisk| Ok((disk.state.id, start_worker(disk, extent_size, owner)?));
    disks.iter().map(start).collect::<io::Result<_>>().map_err(system("start a disk's thread"))
}

/// Starts the worker of a disk.
pub fn start_worker(disk: &UsableDisk, extent_size: u64, owner: &OwnerSender) -> io::Result<DiskWorker> {
    let (owner, id) = (owner.clone(), disk.state.id);
    let device: Arc<dyn BlockDev> = disk.device.clone();
    DiskWorker::start(Arc::clone(&disk.state), device, extent_size, move |run| {
        owner.send(OwnerInput::Punched { disk: id, run });
    })
}

/// What tells reactors of a disk.
pub fn announcement(disk: &UsableDisk) -> impl Fn() -> ReactorMessage + Send + use<> {
    let (disk, file) = (Arc::clone(&disk.state), Arc::clone(disk.device.fd()));
    move || ReactorMessage::AddDisk { disk: Arc::clone(&disk), file: Arc::clone(&file) }
}

/// What tells the mover of a disk.
pub fn announcement_to_mover(disk: &UsableDisk) -> MoverMessage {
    MoverMessage::AddDisk { disk: Arc::clone(&disk.state), file: Arc::clone(disk.device.fd()) }
}

/// Starts the reactors on their threads, and the mover, which they wake.
fn start_data_plane(
    inboxes: Inboxes,
    (reactors, mover): (Vec<EngineThread>, Option<EngineThread>),
    poll_max: Duration,
    owner: &OwnerSender,
    store: &StoreHandle,
) -> Result<(Threads, Mover), ServeError> {
    let (queue, handles) = (Queue::new()?, inboxes.handles());
    let reactors = inboxes.start(reactors, poll_max, owner, store, &queue.handle());
    Ok((reactors, Mover::start(queue, mover, owner, &handles)?))
}

/// Tells reactors and the mover of every disk that the table can name. One that is missing counts as failed, so that nothing is submitted to
/// it; its file is one that can neither be written nor has anything to read.
fn announce_disks(
    states: &[Arc<DiskState>],
    here: &[UsableDisk],
    reactors: &Handles,
    mover: &MoverHandle,
) -> Result<(), ServeError> {
    for disk in here {
        reactors.tell_all(announcement(disk));
        mover.send(announcement_to_mover(disk));
    }
    let missing = states.iter().filter(|state| here.iter().all(|disk| disk.state.id != state.id));
    for state in missing {
        let nothing = File::open("/dev/null").map_err(system("open /dev/null"))?;
        let file: Arc<OwnedFd> = Arc::new(nothing.into());
        reactors.tell_all(|| ReactorMessage::AddDisk { disk: Arc::clone(state), file: Arc::clone(&file) });
        mover.send(MoverMessage::AddDisk { disk: Arc::clone(state), file });
    }
    Ok(())
}

/// Disconnects all frontends; false if their requests do not end in time.
fn disconnect(server: &VhostUserServer, at_most: Duration) -> bool {
    let removals: Vec<Removal> =
        server.statuses().iter().filter_map(|status| server.remove_vhd(status.vhd).ok()).collect();
    let deadline = clock::now().after(at_most);
    removals.iter().all(|removal| removal.wait(Duration::from_nanos(deadline.since(clock::now()))))
}

/// The committer's answers.
struct StoreReplies {
    owner: OwnerSender,
    reactors: Handles,
    kept: Option<Arc<ViewDir>>,
}

impl Replies for StoreReplies {
    fn durable(&mut self, stamp: Stamp) {
        if let Some(kept) = &self.kept {
            kept.note_durable(stamp);
        }
    }

    fn committed(&mut self, request: CommitRequest, ok: bool) {
        self.reactors.tell(request.reactor, ReactorMessage::Committed { ticket: request.ticket, ok });
    }

    fn report(&mut self, report: StoreReport) {
        self.owner.send(OwnerInput::Store(report));
    }
}

/// What happens at sockets, for the owner.
struct ToOwner(OwnerSender);

impl ServerEvents for ToOwner {
    fn attached(&self, vhd: VhdId, pid: u32) {
        self.0.send(OwnerInput::Attached { vhd, pid: Some(pid) });
    }

    fn detached(&self, vhd: VhdId, _pid: u32) {
        self.0.send(OwnerInput::Attached { vhd, pid: None });
    }

    /// Waits until the choice is durable. The owner answers every command, also if the store has failed, and drops those that
    /// it leaves behind when it ends.
    fn cache_mode(&self, vhd: VhdId, writeback: bool) {
        static GATE: LogGate = LogGate::new();
        let (answer, waiting) = tokio::sync::oneshot::channel();
        let command = Command::SetCacheMode { vhd, writeback };
        self.0.send(OwnerInput::Command(Asked { command, answer }));
        let reason = match waiting.blocking_recv() {
            Ok(Ok(_)) => return,
            Ok(Err(error)) => error_chain(&error),
            Err(_) => "the daemon is stopping".to_owned(),
        };
        // A guest may try as often as it likes.
        let Some(held_back) = GATE.pass(clock::now()) else { return };
        let id = vhd.0;
        if writeback {
            log::warn!("VHD #{id}: will be writethrough again after a restart: {reason} ({held_back} more not logged)");
        } else {
            log::error!(
                "VHD #{id}: its guest chose writethrough, which could not be stored: it is writethrough until the daemon \
                 restarts, so restart its VM as well then: {reason} ({held_back} more not logged)"
            );
        }
    }
}
