//! A daemon that has ended everything and could go on: its frontends wait, its disks stay locked, its sockets are there.
//!
//! What comes next is another process that goes on with it all (`takeover`), or this one again: it opens the pool as at every start, on the
//! threads that have rings, since the sandbox lets it make no more.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, Sender};

use super::ServeError;
use super::config::Config;
use super::confine::{ControlSocket, Inherited, Opened, tell};
use super::daemon::{Daemon, Listeners};
use super::works::{Engines, Finished, sync_all};
use crate::base::clock;
use crate::control::broker::Rights;
use crate::control::error_chain;
use crate::disk::identity::Host as HostFacts;
use crate::disk::pool::{OpenOptions, OpenedDisk, reopen_pool};
use crate::vhost_user::{HeldState, HeldVhd};

/// How long requests of guests, and changes of disks, may take to end: meanwhile guests wait.
const HOLD_PATIENCE: Duration = Duration::from_secs(2);

/// How long everything else may take to end, once there is no way back: guests wait, and a process that ended would not help them, because the
/// kernel would keep the disk that is waited for.
const DISK_PATIENCE: Duration = Duration::from_secs(24 * 3600);

/// How often it is said that a disk is waited for.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// How long requests to the API may take to end, once nobody answers them.
const API_PATIENCE: Duration = Duration::from_millis(200);

/// How often it is looked whether somebody has let go.
const LOOK_PAUSE: Duration = Duration::from_millis(1);

/// How a daemon was brought to a pause.
pub enum Pausing {
    /// It is.
    Paused(Box<Paused>),
    /// It goes on as before.
    Refused {
        /// The daemon.
        daemon: Box<Daemon>,
        /// Why.
        reason: String,
    },
    /// A disk has hung in the middle of it, and hangs still.
    Lost,
}

/// What is left of a daemon.
pub struct Paused {
    /// The path of the control socket.
    pub control: ControlSocket,
    /// The sockets of the API.
    pub listeners: Listeners,
    /// The disks, locked.
    pub disks: Vec<OpenedDisk>,
    /// The VHDs, whose frontends wait.
    pub vhds: Vec<(HeldState, Vec<OwnedFd>)>,
    rights: Rights,
    engines: Engines,
}

impl Daemon {
    /// Ends everything but what [`Paused`] has. What guests rely on is durable then, or noted for the next one.
    pub fn pause(self) -> Pausing {
        let refused = |daemon: Daemon, reason: String| Pausing::Refused { daemon: Box::new(daemon), reason };
        let deadline = clock::now().after(HOLD_PATIENCE);
        // As long as this is held, no disk comes or goes.
        let turn = Arc::clone(&self.changing_disks);
        let Some(turn) = by(deadline, || Arc::clone(&turn).try_lock_owned().ok()) else {
            return refused(self, "a disk is being added, removed or replaced: wait until that is done".to_owned());
        };
        if let Some(reason) = self.cannot_pause() {
            return refused(self, reason);
        }
        // A disk that hangs shows here, and guests wait less for the last of it.
        if !sync_all(&self.host.usable_disks(), HOLD_PATIENCE) {
            return refused(self, "a disk hangs, or has failed just now: see the log".to_owned());
        }
        let host = Arc::clone(&self.host);
        let Some(labels) = by(deadline, || host.hold_labels()) else {
            return refused(self, "the labels of the disks are being written: try again".to_owned());
        };
        let disks = match labels.disks() {
            Ok(disks) => disks,
            Err(error) => {
                drop(labels);
                return refused(self, format!("its disks cannot be passed on: {error}"));
            }
        };
        let vhds = match self.server.hold(HOLD_PATIENCE) {
            Ok(vhds) => vhds,
            Err(error) => {
                drop(labels);
                return refused(self, error_chain(&error));
            }
        };
        let devices = labels.devices();
        self.stop_api.send_replace(true);
        let reminder = Reminder::begin();
        let Finished { engines, .. } =
            self.works.finish(&self.events, self.sampler, true, &self.host.usable_disks(), DISK_PATIENCE);
        // Whatever is left somewhere finds no disk any more.
        let retired = devices.iter().all(|device| device.retire(DISK_PATIENCE));
        drop((reminder, labels, turn));
        let (Some(engines), true) = (engines, retired) else {
            log::error!("a disk has hung for hours while the daemon was being taken over: it ends");
            return Pausing::Lost;
        };
        self.runtime.shutdown_timeout(API_PATIENCE);
        if let Some(kept) = &self.kept {
            kept.let_go();
        }
        let vhds = vhds.into_iter().map(HeldVhd::into_parts).collect();
        let Daemon { control, listeners, rights, .. } = self;
        Pausing::Paused(Box::new(Paused { control, listeners, disks, vhds, rights, engines }))
    }

    /// Why everything might not end soon, or not be there afterwards.
    fn cannot_pause(&self) -> Option<String> {
        let store = self.works.store.status();
        if store.failed || store.members.iter().any(|member| member.lost.is_some()) {
            return Some(
                "the placement store has failed on a disk: restart the daemon, or replace that disk first".to_owned(),
            );
        }
        if let Some(hangs) = self.host.one_that_hangs() {
            let name = &hangs.name;
            return Some(format!(
                "disk '{name}' has failed and still has not answered: restart the daemon, or wait until it does"
            ));
        }
        let all_kept = self.kept.as_ref().is_some_and(|kept| kept.has_all());
        let failed = self.host.usable_disks().into_iter().find(|disk| disk.state.is_failed() && !all_kept)?;
        let name = &failed.state.name;
        Some(format!(
            "disk '{name}' has failed, and there is no room in shared memory for what was written there: replace it first"
        ))
    }
}

/// Says again and again that a disk is waited for, until it is dropped.
struct Reminder(#[allow(dead_code, reason = "its end tells")] Sender<()>);

impl Reminder {
    fn begin() -> Reminder {
        let (end, ended) = crossbeam_channel::bounded::<()>(0);
        let tell = move || {
            while ended.recv_timeout(TELL_EVERY) == Err(RecvTimeoutError::Timeout) {
                log::error!("a disk hangs at the wrong moment of a takeover: guests wait until it answers");
            }
        };
        // Without it, only the log has less.
        drop(std::thread::Builder::new().name("spanblk-reminder".to_owned()).spawn(tell));
        Reminder(end)
    }
}

/// Tries until it works, or it is too late.
fn by<T>(deadline: clock::Nanos, attempt: impl Fn() -> Option<T>) -> Option<T> {
    loop {
        let result = attempt();
        if result.is_some() || clock::now() >= deadline {
            return result;
        }
        std::thread::sleep(LOOK_PAUSE);
    }
}

impl Paused {
    /// Goes on, as after a restart.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn resume(self, config: &Config) -> Result<Daemon, ServeError> {
        let Paused { control, listeners, disks, vhds, rights, engines } = self;
        let options = OpenOptions { read_only: false, accept_stale: false, pool: None };
        let reminder = Reminder::begin();
        let pool = reopen_pool(disks, DISK_PATIENCE, &options, &HostFacts::default())?;
        drop(reminder);
        tell(&pool);
        let vhds = vhds.into_iter().filter_map(|(state, fds)| match HeldVhd::from_parts(state, fds) {
            Ok(held) => Some((held.vhd(), held)),
            Err(error) => {
                log::error!("a VHD was not held as it should: {error}");
                None
            }
        });
        let inherited = Inherited { vhds: vhds.collect(), engines: Some(engines), ..Inherited::default() };
        let config = Config { accept_stale: false, ..config.clone() };
        let Listeners { control: bound, metrics } = listeners;
        Daemon::start(&config, Opened { control, bound, metrics, rights, pool, inherited })
    }

    /// Leaves it all to another process.
    pub fn leave(self) {
        self.control.leave();
    }
}
