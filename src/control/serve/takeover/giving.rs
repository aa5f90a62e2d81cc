//! The old process: passes on what it has, and goes on with it if the new one fails.

use std::io::{self, Read};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Answer, Handover, Hello, Report, VERSION, shared_memory};
use crate::control::frames::{receive, send};
use crate::control::http::Bound;
use crate::control::serve::ServeError;
use crate::control::serve::config::Config;
use crate::control::serve::daemon::{Daemon, Listeners};
use crate::control::serve::files;
use crate::control::serve::pause::{Paused, Pausing};
use crate::control::view_files::PLACE;

/// How long the new process may take to say what it wants, once it has connected.
const HELLO_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is said that the new process is waited for.
const TELL_EVERY: Duration = Duration::from_secs(10);

/// What a daemon is given away on.
pub struct Terms<'a> {
    /// What it was started with.
    pub config: &'a Config,
    /// By whom: views belong to this user.
    pub user: u32,
    /// It has a service manager.
    pub managed: bool,
    /// What that wants.
    pub watchdog: Option<Duration>,
}

/// How it ended.
pub enum Given {
    /// The new process has it all. This one has to end, and may touch nothing.
    Gone {
        /// The new process.
        pid: u32,
    },
    /// This one goes on.
    Kept(Box<Daemon>),
    /// Something hangs, or the daemon cannot go on: see the log.
    Lost(Option<ServeError>),
}

/// Lets the process at the other end of `stream` take the daemon over. `told`: is called with its number when it has everything, before it is told so.
pub fn give(daemon: Daemon, terms: &Terms<'_>, stream: &UnixStream, told: impl FnOnce(u32)) -> Given {
    let pid =
        rustix::net::sockopt::socket_peercred(stream).map_or(0, |peer| peer.pid.as_raw_nonzero().get().unsigned_abs());
    let refused = |reason: &str| {
        log::warn!("process {pid} does not take over: {reason}");
        // It may have gone.
        let _ = send(stream, &Answer::Refused(reason.to_owned()), &[]);
    };
    if let Err(reason) = hear(stream, &daemon, terms) {
        refused(&reason);
        return Given::Kept(Box::new(daemon));
    }
    log::info!("process {pid} wants to take over");
    let paused = match daemon.pause() {
        Pausing::Paused(paused) => paused,
        Pausing::Refused { daemon, reason } => {
            refused(&reason);
            return Given::Kept(daemon);
        }
        Pausing::Lost => return Given::Lost(None),
    };
    match hand_over(stream, &paused, terms, pid) {
        Ok(()) => {
            told(pid);
            // If it is not there to hear this, nobody serves, as if it had been killed right after.
            if send(stream, &Answer::Gone, &[]).is_ok() {
                paused.leave();
                return Given::Gone { pid };
            }
            log::error!("process {pid} has not taken over: it ended when it was ready");
        }
        Err(error) => log::error!("process {pid} has not taken over: {error}"),
    }
    wait_for_end(stream, pid);
    match paused.resume(terms.config) {
        Ok(daemon) => {
            log::warn!("this daemon goes on");
            Given::Kept(Box::new(daemon))
        }
        Err(error) => Given::Lost(Some(error)),
    }
}

/// What the new process wants; an error if it cannot have it.
fn hear(stream: &UnixStream, daemon: &Daemon, terms: &Terms<'_>) -> Result<(), String> {
    let unheard = |error: io::Error| format!("it does not say what it wants: {error}");
    stream.set_nonblocking(false).map_err(unheard)?;
    stream.set_read_timeout(Some(HELLO_PATIENCE)).map_err(unheard)?;
    // One that does not read is one that has ended, as far as we are concerned.
    stream.set_write_timeout(Some(HELLO_PATIENCE)).map_err(unheard)?;
    let config = terms.config;
    let (said, _) = receive::<serde_json::Value>(stream)
        .map_err(unheard)?
        .ok_or_else(|| unheard(io::ErrorKind::UnexpectedEof.into()))?;
    // Another version may say other things.
    let version = said["version"].as_u64().ok_or_else(|| unheard(io::ErrorKind::InvalidData.into()))?;
    if version != u64::from(VERSION) {
        let (theirs, ours) = (said["program"].as_str().unwrap_or("?"), env!("CARGO_PKG_VERSION"));
        return Err(format!(
            "spanblk {theirs} cannot take over from spanblk {ours}: stop this daemon, then start that one"
        ));
    }
    let hello = serde_json::from_value(said).map_err(|error| unheard(error.into()))?;
    let Hello { pool, socket_dir, managed, files: may_open, shared_memory: seen, .. } = hello;
    if pool.is_some_and(|pool| pool != daemon.pool()) {
        return Err(format!("it wants another pool than {}, which is served here", daemon.pool()));
    }
    if socket_dir != config.socket_dir {
        let (there, here) = (socket_dir.display(), config.socket_dir.display());
        return Err(format!(
            "its socket directory would be {there}, and the sockets are in {here}: start it with that --socket-dir"
        ));
    }
    let files = files::limit().unwrap_or_default();
    if may_open < files {
        return Err(format!(
            "it may have {may_open} files open, and this daemon {files}: start it with the same limit (ulimit -n, LimitNOFILE=)"
        ));
    }
    if seen != shared_memory() {
        return Err(format!("it has another {PLACE} than this daemon: start it in the same mount namespace"));
    }
    if terms.managed && !managed {
        return Err("this daemon belongs to a service manager, which would take its end for that of the service: restart the service".to_owned());
    }
    let user = rustix::net::sockopt::socket_peercred(stream).map(|peer| peer.uid.as_raw());
    if user.is_ok_and(|user| user != terms.user) {
        return Err(format!(
            "this daemon was started by user {}, and has to be able to go on with what the other one makes: start that as the same",
            terms.user
        ));
    }
    Ok(())
}

/// Sends everything, and waits until the new process is ready, as long as it lives.
fn hand_over(stream: &UnixStream, paused: &Paused, terms: &Terms<'_>, pid: u32) -> io::Result<()> {
    let Listeners { control, metrics } = &paused.listeners;
    let address = metrics.as_ref().and_then(Bound::address);
    let metrics = metrics.iter().filter(|_| address.is_some());
    let disks = paused.disks.iter().map(|disk| (disk.path.clone(), disk.works)).collect();
    let watchdog_us = terms.watchdog.map(|span| u64::try_from(span.as_micros()).unwrap_or(u64::MAX));
    let handover =
        Handover { control: paused.control.identity(), metrics: address, disks, watchdog_us, vhds: paused.vhds.len() };
    let fds = std::iter::once(control).chain(metrics).map(AsFd::as_fd);
    let fds: Vec<BorrowedFd<'_>> = fds.chain(paused.disks.iter().map(|disk| disk.fd.as_fd())).collect();
    send(stream, &Answer::Held(handover), &fds)?;
    for (state, fds) in &paused.vhds {
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        send(stream, state, &fds)?;
    }
    stream.set_read_timeout(Some(TELL_EVERY))?;
    loop {
        match receive(stream) {
            Ok(Some((Report::Ready, _))) => return Ok(()),
            Ok(None) => return Err(io::Error::other("it ended before it was ready")),
            Err(error) if is_timeout(&error) => {
                log::warn!("guests wait for process {pid}, which takes over: kill it, and this daemon goes on");
            }
            Err(error) => return Err(error),
        }
    }
}

/// Waits until the process at the other end has ended: as long as it lives, it may write to the disks.
fn wait_for_end(mut stream: &UnixStream, pid: u32) {
    // It waits for us no longer; and if there is no limit, nobody is told.
    let _ = stream.shutdown(Shutdown::Write);
    let _ = stream.set_read_timeout(Some(TELL_EVERY));
    loop {
        match stream.read(&mut [0; 512]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if is_timeout(&error) => {
                log::warn!(
                    "guests wait until process {pid}, which has not taken over, has ended: kill it if it does not"
                );
            }
            // It ended before it had read everything.
            Err(_) => return,
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}
