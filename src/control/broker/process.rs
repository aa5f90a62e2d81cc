//! Starting the broker: a fork of the daemon, made before it has threads.

use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use nix::sys::signal::{SigHandler, Signal, signal};
use nix::unistd::{ForkResult, fork};

use super::policy::{OneServing, Policy};
use super::server::Means;
use super::{Client, Rights, server};
use crate::control::error_chain;
use crate::control::view_files::OwnRights as OwnViews;
use crate::sandbox::files::{self, RestrictError, Subject};
use crate::sandbox::user::{AccountError, BROKER_CAPABILITIES, keep_capabilities};
use crate::vhost_user::OwnRights as OwnSockets;

/// Sockets between daemon and broker: for disks, for sockets of VHDs, for views.
const STREAMS: usize = 3;

/// Why there is no broker.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// No sockets, or no process.
    #[error("cannot start the broker process")]
    Start(#[from] io::Error),
    /// It would be a copy of one thread only.
    #[error("the broker process must be started before there are threads")]
    Threads,
}

/// Forks the broker. Sockets whose settings name no owner belong to `owner`; `confined`: the kernel holds the broker to its policy,
/// too. It ends when the returned rights are dropped, be it by the end of this process.
///
/// # Errors
/// See [`BrokerError`].
pub fn start(policy: &Policy, owner: Option<(u32, u32)>, confined: bool) -> Result<Rights, BrokerError> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(BrokerError::Threads);
    }
    let (disks, broker_disks) = UnixStream::pair()?;
    let (sockets, broker_sockets) = UnixStream::pair()?;
    let (views, broker_views) = UnixStream::pair()?;
    // SAFETY: there is one thread, as checked above, so that no lock is held by another one in the copy.
    match unsafe { fork() }.map_err(io::Error::from)? {
        ForkResult::Parent { .. } => {}
        ForkResult::Child => {
            drop((disks, sockets, views));
            let streams = [broker_disks, broker_sockets, broker_views];
            let views = OwnViews::new(owner.map(|(user, _)| user));
            let sockets = OwnSockets { default_owner: owner };
            let means = Means { policy, sockets, views, serving: OneServing::default() };
            let ended = prepare(&streams, policy, confined)
                .map_err(|error| error_chain(&error))
                .and_then(|()| serve(&streams, &means).map_err(|error| error.to_string()));
            if let Err(error) = &ended {
                log::error!("the broker process ends: {error}");
            }
            std::process::exit(i32::from(ended.is_err()));
        }
    }
    Ok(Rights {
        disks: Arc::new(Client::new(disks)),
        sockets: Arc::new(Client::new(sockets)),
        views: Arc::new(Client::new(views)),
    })
}

/// What the child's life begins with.
#[derive(Debug, thiserror::Error)]
enum PrepareError {
    #[error("cannot let go of the daemon's files and signals")]
    Inherited(#[source] io::Error),
    #[error(transparent)]
    Capabilities(#[from] AccountError),
    #[error(transparent)]
    Files(#[from] RestrictError),
}

fn prepare(streams: &[UnixStream; STREAMS], policy: &Policy, confined: bool) -> Result<(), PrepareError> {
    close_others(streams).map_err(PrepareError::Inherited)?;
    // What ends the daemon comes to its whole process group. The broker has to outlive it: sockets are removed at the end.
    for ignored in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: ignoring a signal runs no handler.
        unsafe { signal(ignored, SigHandler::SigIgn) }.map_err(|error| PrepareError::Inherited(error.into()))?;
    }
    rustix::thread::set_name(c"spanblk-broker").map_err(|error| PrepareError::Inherited(error.into()))?;
    keep_capabilities(BROKER_CAPABILITIES)?;
    if confined {
        files::restrict(Subject::Broker, &policy.rules())?;
    }
    Ok(())
}

/// Closes what was inherited, but for standard streams and ours: a descriptor of a listening socket would keep it alive.
fn close_others(streams: &[UnixStream; STREAMS]) -> io::Result<()> {
    let ours = streams.each_ref().map(AsRawFd::as_raw_fd);
    let open: Vec<i32> = std::fs::read_dir("/proc/self/fd")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|fd| *fd > libc::STDERR_FILENO && !ours.contains(fd))
        .collect();
    for fd in open {
        // The directory that was read is among them, and closed already.
        // SAFETY: this process has one thread, and what owned these descriptors is the daemon's and never used here.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

fn serve(streams: &[UnixStream; STREAMS], means: &Means<'_>) -> io::Result<()> {
    let [disks, others @ ..] = streams;
    std::thread::scope(|scope| {
        let start = |stream| {
            let thread = std::thread::Builder::new().name("spanblk-names".to_owned());
            thread.spawn_scoped(scope, move || server::serve(stream, means))
        };
        let others = others.iter().map(start).collect::<io::Result<Vec<_>>>()?;
        let first = server::serve(disks, means);
        let ends = others.into_iter().map(|thread| thread.join().expect("a panic aborts the process"));
        ends.fold(first, Result::and)
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn a_process_with_threads_is_not_forked() {
        let policy = Policy::new(&[], &[], Path::new("/nonexistent"), Path::new("/nonexistent/c"));
        std::thread::scope(|scope| {
            let (go, wait) = std::sync::mpsc::channel::<()>();
            scope.spawn(move || wait.recv());
            assert!(matches!(start(&policy, None, true), Err(BrokerError::Threads)));
            drop(go);
        });
    }
}
