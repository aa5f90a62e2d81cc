//! What needs more rights than serving does, and then giving those rights up.
//!
//! In this order: the control socket (so that a second daemon is refused before anything else), the broker, the disks; then
//! another user, no capabilities, no files. All of it on the first thread, before there are others. The filter of system calls
//! comes last, when all rings are there.

use std::collections::HashMap;
use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::ServeError;
use super::config::Config;
use super::fd_store::Stored;
use super::takeover::TakeoverError;
use super::takeover::taking::{self, Gate, Taken};
use super::works::Engines;
use crate::base::clock;
use crate::control::broker::policy::Policy;
use crate::control::broker::{self, Rights};
use crate::control::error_chain;
use crate::control::http::{self, Bound};
use crate::disk::file::{FileDisk, OpenError};
use crate::disk::identity::Host as HostFacts;
use crate::disk::pool::{FindError, OpenOptions, OpenPool, open_pool, reopen_pool};
use crate::sandbox::files::{self, Enforced, Right, Rule, Subject};
use crate::sandbox::seccomp::{self, Filtering};
use crate::sandbox::user::{Account, keep_capabilities};
use crate::sandbox::{Mode, user};
use crate::vhost_user::{HeldVhd, ServerError, SocketIdentity, SocketPaths};

/// How long disks may take until whoever had them before has let go of them, and how often that is looked at.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

/// How long disks may take to show their labels while guests wait.
const LOOK_PATIENCE: Duration = Duration::from_secs(8);

/// What a daemon that serves reads by name: facts about disks that are added, and itself. `/dev/null` stands for missing disks.
const READABLE: [&str; 4] = ["/sys", "/proc", "/dev/disk", "/dev/null"];

/// Everything that needs the rights which the daemon was started with.
pub struct Opened {
    /// The control socket's path.
    pub control: ControlSocket,
    /// The control socket.
    pub bound: Bound,
    /// The socket for metrics.
    pub metrics: Option<Bound>,
    /// With whose rights names are used from now on.
    pub rights: Rights,
    /// The pool, its disks open and locked.
    pub pool: OpenPool<FileDisk>,
    /// What is there from a daemon before this one.
    pub inherited: Inherited,
}

/// What a daemon leaves to the one that goes on with it; nothing, if there is none.
#[derive(Default)]
pub struct Inherited {
    /// VHDs whose frontends wait, by UUID.
    pub vhds: HashMap<Uuid, HeldVhd>,
    /// What the service manager wants to hear how often.
    pub watchdog: Option<Duration>,
    /// Threads with rings, if it was this process.
    pub engines: Option<Engines>,
    /// What one that has stopped has left with the service manager.
    pub stored: Stored,
    /// What has to be passed before anybody is served, and the control socket is ours, if it is another process.
    pub gate: Option<(Gate, SocketIdentity)>,
}

impl Opened {
    /// Opens everything, then gives up the rights that this took.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn open(config: &Config) -> Result<Opened, ServeError> {
        if config.takeover {
            return Opened::take_over(config);
        }
        let account = config.user.as_deref().map(Account::find).transpose()?;
        let control_dir = config.control.parent().filter(|dir| !dir.exists()).map(Path::to_owned);
        let bound = http::bind_control(&config.control)?;
        let own = Rights::own();
        let mut control = ControlSocket::new(&config.control, Arc::clone(&own.sockets))?;
        let metrics = config.metrics_listen.map(http::bind_metrics).transpose()?;
        make_socket_dir(&config.socket_dir)?;
        if let Some(account) = &account {
            let made = [control_dir.as_deref(), Some(&*config.control)];
            made.into_iter().flatten().try_for_each(|path| give(path, account))?;
        }
        let rights = start_broker(config, account.as_ref())?;
        control.paths = Arc::clone(&rights.sockets);
        let pool = open(config)?;
        give_up(config.sandbox, account.as_ref())?;
        Ok(Opened { control, bound, metrics, rights, pool, inherited: Inherited::default() })
    }

    /// Takes everything from the daemon that serves.
    fn take_over(config: &Config) -> Result<Opened, ServeError> {
        let account = config.user.as_deref().map(Account::find).transpose()?;
        let stream = taking::connect(&config.control)?;
        let rights = start_broker(config, account.as_ref())?;
        let Taken { control: bound, identity, metrics, disks, watchdog, vhds, gate } = taking::take(stream, config)?;
        let paths = Arc::clone(&rights.sockets);
        let control = ControlSocket { path: config.control.clone(), identity: None, paths };
        let metrics = match (metrics, config.metrics_listen) {
            (None, Some(address)) => Some(http::bind_metrics(address)?),
            (taken, _) => taken,
        };
        let options = OpenOptions { read_only: false, accept_stale: false, pool: config.pool };
        let needed: Vec<PathBuf> = disks.iter().filter(|disk| disk.works).map(|disk| disk.path.clone()).collect();
        let pool = reopen_pool(disks, LOOK_PATIENCE, &options, &HostFacts::default())?;
        tell(&pool);
        // The daemon before would only have waited for it.
        if let Some(path) = needed.into_iter().find(|path| pool.disks.iter().all(|disk| disk.path != *path)) {
            let rejected = pool.rejected.iter().find(|rejected| rejected.path == path);
            let reason =
                rejected.map_or_else(|| "it is no disk of the pool".to_owned(), |rejected| rejected.to_string());
            return Err(TakeoverError::Lacking { what: format!("disk {}", path.display()), reason }.into());
        }
        give_up(config.sandbox, account.as_ref())?;
        let inherited = Inherited { vhds, watchdog, gate: Some((gate, identity)), ..Inherited::default() };
        Ok(Opened { control, bound, metrics, rights, pool, inherited })
    }
}

/// Without another user and sandbox, nothing is given up.
fn start_broker(config: &Config, account: Option<&Account>) -> Result<Rights, ServeError> {
    if account.is_none() && config.sandbox == Mode::Off {
        return Ok(Rights::own());
    }
    let policy = Policy::new(&config.disks, &config.disk_dirs, &config.socket_dir, &config.control);
    let owner = account.map(|account| (account.uid, account.gid));
    Ok(broker::start(&policy, owner, config.sandbox == Mode::On)?)
}

/// The path of the control socket; removed when the daemon ends.
pub struct ControlSocket {
    path: PathBuf,
    /// `None`: it is somebody else's.
    identity: Option<SocketIdentity>,
    paths: Arc<dyn SocketPaths>,
}

impl ControlSocket {
    fn new(path: &Path, paths: Arc<dyn SocketPaths>) -> Result<ControlSocket, ServeError> {
        let meta = fs::symlink_metadata(path).map_err(system("examine the control socket"))?;
        Ok(ControlSocket { path: path.to_owned(), identity: Some((meta.dev(), meta.ino())), paths })
    }

    /// Which file it is.
    #[must_use]
    pub fn identity(&self) -> SocketIdentity {
        self.identity.expect("it is ours")
    }

    /// It is ours from now on.
    pub fn take(&mut self, identity: SocketIdentity) {
        self.identity = Some(identity);
    }

    /// Leaves it to somebody else.
    pub fn leave(mut self) {
        self.identity = None;
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        if let Some(identity) = self.identity {
            self.paths.remove(&self.path, identity);
        }
    }
}

fn system(what: &'static str) -> impl Fn(io::Error) -> ServeError {
    move |source| ServeError::System { what, source }
}

/// What a daemon that had been started by that user would own.
fn give(path: &Path, account: &Account) -> Result<(), ServeError> {
    let become_it = |source| user::AccountError::Become { name: account.name.clone(), source };
    Ok(chown(path, Some(account.uid), Some(account.gid)).map_err(become_it)?)
}

/// Unprivileged VMMs must reach their sockets, whatever our umask is. A directory made by others keeps its mode.
fn make_socket_dir(path: &Path) -> Result<(), ServeError> {
    if path.exists() {
        return Ok(());
    }
    let failed = |source| ServerError::Directory { path: path.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed)?;
    fs::set_permissions(path, Permissions::from_mode(0o755)).map_err(system("set the mode of the socket directory"))
}

fn open(config: &Config) -> Result<OpenPool<FileDisk>, ServeError> {
    let options = OpenOptions { read_only: false, accept_stale: config.accept_stale, pool: config.pool };
    let pool = open_free_pool(config, &options)?;
    tell(&pool);
    Ok(pool)
}

/// Logs what is wrong with the disks.
pub fn tell(pool: &OpenPool<FileDisk>) {
    pool.rejected.iter().for_each(|rejected| log::warn!("{rejected}"));
    pool.warnings().iter().for_each(|warning| log::warn!("{warning}"));
}

/// Opens the pool. A daemon that was killed holds its disks until the last of its requests has ended, so that none of them can
/// land on ours.
fn open_free_pool(config: &Config, options: &OpenOptions) -> Result<OpenPool<FileDisk>, FindError> {
    let deadline = clock::now().after(RELEASE_PATIENCE);
    let mut told = false;
    loop {
        match open_pool(&config.disks, options, &HostFacts::default()) {
            Err(error @ FindError::Open(OpenError::Locked { .. } | OpenError::Busy { .. }))
                if clock::now() < deadline =>
            {
                if !std::mem::replace(&mut told, true) {
                    log::info!("waiting for a disk: {}", error_chain(&error));
                }
                std::thread::sleep(RELEASE_PAUSE);
            }
            opened => return opened,
        }
    }
}

fn give_up(mode: Mode, account: Option<&Account>) -> Result<(), ServeError> {
    if let Some(account) = account {
        account.become_it()?;
        log::info!("serving with the rights of user {} ({}:{})", account.name, account.uid, account.gid);
    }
    if mode == Mode::Off {
        return Ok(());
    }
    keep_capabilities(rustix::thread::CapabilitySet::empty())?;
    if mode == Mode::On {
        let rules: Vec<Rule> = READABLE.iter().map(|path| (PathBuf::from(path), Right::Read)).collect();
        match files::restrict(Subject::Daemon, &rules)? {
            Enforced::Version(version) => log::info!("sandbox: files are out of reach (Landlock, version {version})"),
            Enforced::Nothing => log::warn!(
                "sandbox: this kernel has no Landlock, so that files which this user may read stay in reach: it needs \
                 CONFIG_SECURITY_LANDLOCK, and landlock among the kernel's lsm= modules"
            ),
        }
    }
    Ok(())
}

/// Filters the system calls of all threads.
///
/// # Errors
/// See [`seccomp::FilterError`].
pub fn filter(mode: Mode) -> Result<(), ServeError> {
    match (mode, seccomp::install(mode)?) {
        (Mode::Off, _) => log::warn!("sandbox: off"),
        (Mode::On, Filtering::Filtered) => log::info!("sandbox: system calls are filtered (seccomp)"),
        (Mode::Log, Filtering::Filtered) => {
            log::warn!(
                "sandbox: system calls that are not on the list go to the kernel's audit log, and are carried out"
            );
        }
        (_, Filtering::Unsupported) => log::warn!(
            "sandbox: this kernel cannot filter system calls (it needs CONFIG_SECCOMP_FILTER): sockets and programs stay in reach"
        ),
    }
    Ok(())
}
