//! Starting and stopping the daemon.
//!
//! Start: the control socket (so that a second daemon is refused before anything else), the disks under their lock, the
//! store, the threads, a socket for each VHD, the API; then readiness is reported. Stop: the same backwards, each step with
//! a limit, so that a hung disk delays the end and cannot prevent it. Frontends may stay connected until the next start
//! (`fd_store`).

pub mod config;
mod confine;
mod daemon;
mod error_kinds;
mod fd_store;
mod files;
mod front;
mod host;
pub mod manager;
mod members;
mod memory;
mod pause;
mod recover;
pub mod serving;
mod signals;
pub mod table;
pub mod takeover;
mod trust;
mod views;
mod works;

use std::io;

use config::Config;
use confine::Opened;
use daemon::Daemon;
pub use error_kinds::{create_error_kind, find_error_kind, open_error};
use fd_store::Stored;
use manager::Manager;
use sd_notify::NotifyState;
pub use takeover::TakeoverError;
use takeover::giving::{Given, Terms, give};

use super::http::ListenError;
use crate::control::broker::BrokerError;
use crate::control::mover::MoverError;
use crate::disk::file::FileDisk;
use crate::disk::label;
use crate::disk::pool::{FindError, OpenDisk};
use crate::owner;
use crate::placement::record::{self, DiskRecord};
use crate::reactor::thread::StartError;
use crate::sandbox::files::RestrictError;
use crate::sandbox::seccomp::FilterError;
use crate::sandbox::user::AccountError;
use crate::vhost_user::ServerError;

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The disks do not make a pool that can be opened.
    #[error("cannot open the pool")]
    Pool(#[from] FindError),
    /// The placement store cannot be opened.
    #[error("cannot open the pool")]
    Store(#[from] table::TableError),
    /// The placement table contradicts itself.
    #[error("cannot use the placement table")]
    Table(#[from] owner::OpenError),
    /// No reactors.
    #[error("cannot start the reactors")]
    Reactors(#[from] StartError),
    /// No mover.
    #[error("cannot start the mover")]
    Mover(#[from] MoverError),
    /// No vhost-user server.
    #[error("cannot serve vhost-user sockets")]
    Server(#[from] ServerError),
    /// No control socket.
    #[error("cannot serve the API")]
    Listen(#[from] ListenError),
    /// No broker process.
    #[error(transparent)]
    Broker(#[from] BrokerError),
    /// No such user, or not ours to become.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// Files could not be put out of reach.
    #[error("cannot start the sandbox")]
    Files(#[from] RestrictError),
    /// System calls could not be refused.
    #[error("cannot start the sandbox")]
    Filter(#[from] FilterError),
    /// Another daemon, which goes on.
    #[error("cannot take over")]
    Takeover(#[from] TakeoverError),
    /// The system has no more of something.
    #[error("cannot {what}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// How the daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Everything was drained and is durable.
    Cleanly,
    /// A disk or guest held something up; what was flushed is durable.
    Forced,
    /// Another process goes on with everything.
    TakenOver,
}

/// Runs the daemon until a signal tells it to stop.
///
/// # Errors
/// See [`ServeError`]; nothing is left behind then.
pub fn run(config: Config) -> Result<Ended, ServeError> {
    // First of all, as they are told from others by their numbers.
    let passed = fd_store::take_passed();
    match files::raise_limit() {
        Ok(files) => log::debug!("up to {files} open files"),
        Err(error) => log::warn!("cannot raise the limit of open files: {error}"),
    }
    let mut manager = Manager::connect();
    let user = rustix::process::geteuid().as_raw();
    let stored = Stored::new(&manager, passed);
    // Before there are threads: they have the rights of the one that starts them.
    let mut opened = Opened::open(&config)?;
    opened.inherited.stored = stored;
    manager.inherit_watchdog(opened.inherited.watchdog);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name("spanblk-signals")
        .enable_all()
        .build()
        .map_err(|source| ServeError::System { what: "start the thread for signals", source })?;
    let mut signals = runtime.block_on(async { signals::Signals::new() })?;
    let mut daemon = Daemon::start(&config, opened)?;
    let signal = loop {
        let watchdog = manager.watch(daemon.probes());
        manager.tell(&[NotifyState::Ready]);
        let asked = runtime.block_on(async {
            tokio::select! {
                signal = signals.next() => Err(signal),
                stream = daemon.asked_to_give() => Ok(stream),
            }
        });
        drop(watchdog);
        let stream = match asked {
            Ok(stream) => stream,
            Err(signal) => break signal,
        };
        // Waiting for another process may take long, and has a reason.
        let watchdog = manager.watch(Vec::new());
        let impatient = runtime.spawn(end_at_second_signal());
        let terms = Terms { config: &config, user, managed: manager.is_there(), watchdog: manager.watchdog() };
        let given = give(daemon, &terms, &stream, |pid| manager.tell(&[NotifyState::MainPid(pid)]));
        impatient.abort();
        drop(watchdog);
        daemon = match given {
            Given::Kept(daemon) => {
                manager.tell(&[NotifyState::MainPid(std::process::id())]);
                *daemon
            }
            Given::Gone { pid } => {
                log::info!("process {pid} has taken over");
                return Ok(Ended::TakenOver);
            }
            Given::Lost(error) => return error.map_or(Ok(Ended::Forced), Err),
        };
    };
    log::info!("{signal}: finishing what guests have asked for; a second signal stops at once");
    manager.tell(&[NotifyState::Stopping]);
    runtime.spawn(async move {
        let signal = signals.next().await;
        log::warn!("{signal}: stopping at once; what was flushed is durable");
        std::process::exit(1);
    });
    let ended = daemon.stop(&manager);
    // A thread that waits for a hung disk must not keep the process.
    runtime.shutdown_background();
    Ok(ended)
}

/// While the daemon is being taken over, the first signal has to wait for how that ends.
async fn end_at_second_signal() {
    let Ok(mut signals) = signals::Signals::new() else { return };
    let signal = signals.next().await;
    log::warn!("{signal}: another process is taking over; a second signal stops at once");
    let signal = signals.next().await;
    log::warn!("{signal}: stopping at once; what was flushed is durable");
    std::process::exit(1);
}

/// What the store says of a disk that has just been labelled.
#[must_use]
pub fn disk_record(disk: &OpenDisk<FileDisk>) -> DiskRecord {
    let label = &disk.label;
    DiskRecord {
        id: disk.id,
        uuid: disk.uuid,
        name: disk.name.clone(),
        slots: label.layout.slots,
        data_offset: label.layout.data_offset,
        accept: match label.accept {
            label::Accept::Any => record::Accept::Any,
            label::Accept::Isolated => record::Accept::Isolated,
            label::Accept::Spanned => record::Accept::Spanned,
            label::Accept::None => record::Accept::None,
        },
        failure_domain: disk.failure_domain.to_string(),
    }
}

/// What a label says of a disk's role.
#[must_use]
pub fn label_accept(accept: record::Accept) -> label::Accept {
    match accept {
        record::Accept::Any => label::Accept::Any,
        record::Accept::Isolated => label::Accept::Isolated,
        record::Accept::Spanned => label::Accept::Spanned,
        record::Accept::None => label::Accept::None,
    }
}
