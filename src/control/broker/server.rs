//! The broker's side: requests are checked against the policy, carried out, and answered.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::policy::Policy;
use super::wire::{Answer, Request, receive, send};
use crate::disk::file::OpenError;
use crate::disk::paths::{DiskPaths, OwnRights as OwnDisks};
use crate::vhost_user::{OwnRights as OwnSockets, SocketError, SocketPaths};

/// Serves one socket until the daemon has gone.
pub(super) fn serve(stream: &UnixStream, policy: &Policy, sockets: OwnSockets) -> io::Result<()> {
    let mut broker = Broker { policy, sockets, created: BTreeSet::new() };
    while let Some((request, _)) = receive(stream)? {
        let (answer, fd) = broker.answer(request);
        // The descriptor is closed here right after: the daemon's own carries the lock, and ends with it.
        send(stream, &answer, fd.as_ref().map(OwnedFd::as_fd))?;
    }
    Ok(())
}

struct Broker<'a> {
    policy: &'a Policy,
    sockets: OwnSockets,
    /// Files that were made here; no others are removed.
    created: BTreeSet<PathBuf>,
}

impl Broker<'_> {
    fn answer(&mut self, request: Request) -> (Answer, Option<OwnedFd>) {
        match request {
            Request::OpenDisk { path, access } => {
                disk(self.policy.disk(&path).and_then(|path| OwnDisks.open(&path, access)))
            }
            Request::CreateDisk { path, size } => disk(self.create(&path, size)),
            Request::DiscardDisk { path } => {
                if let Ok(path) = self.policy.disk(&path)
                    && self.created.remove(&path)
                {
                    OwnDisks.discard(&path);
                }
                (Answer::Done, None)
            }
            Request::BindSocket { path, settings } => {
                match self.policy.socket(&path).and_then(|path| self.sockets.bind(&path, &settings)) {
                    Ok((fd, identity)) => (Answer::Socket(identity), Some(fd)),
                    Err(error) => (Answer::NoSocket(error), None),
                }
            }
            Request::SetSocket { path, settings } => {
                done(self.policy.socket(&path).and_then(|path| self.sockets.set(&path, &settings)))
            }
            Request::RenameSocket { from, to } => done(self.rename(&from, &to)),
            Request::ClearSocket { path } => done(self.policy.socket(&path).and_then(|path| self.sockets.clear(&path))),
            Request::RemoveSocket { path, identity } => {
                done(self.policy.removable(&path).map(|path| self.sockets.remove(&path, identity)))
            }
            Request::CheckOwner { owner } => done(self.sockets.check_owner(&owner)),
        }
    }

    fn create(&mut self, path: &std::path::Path, size: u64) -> Result<OwnedFd, OpenError> {
        let path = self.policy.new_disk(path, size)?;
        let fd = OwnDisks.create(&path, size)?;
        self.created.insert(path);
        Ok(fd)
    }

    fn rename(&self, from: &std::path::Path, to: &std::path::Path) -> Result<(), SocketError> {
        self.sockets.rename(&self.policy.socket(from)?, &self.policy.socket(to)?)
    }
}

fn disk(result: Result<OwnedFd, OpenError>) -> (Answer, Option<OwnedFd>) {
    match result {
        Ok(fd) => (Answer::Disk, Some(fd)),
        Err(error) => (Answer::NoDisk(error), None),
    }
}

fn done(result: Result<(), SocketError>) -> (Answer, Option<OwnedFd>) {
    (result.map_or_else(Answer::NoSocket, |()| Answer::Done), None)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::client::Client;
    use super::*;
    use crate::disk::file::{Access, FileDisk};
    use crate::placement::record::SocketOwner;
    use crate::vhost_user::SocketSettings;

    const OPEN: SocketSettings = SocketSettings { mode: 0o660, owner: None };

    /// A broker on a thread, and a client of it.
    fn with_broker(test: impl FnOnce(&Path, &Client)) {
        // Not in TMPDIR, which may be without direct I/O.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let root = dir.path().canonicalize().unwrap();
        for sub in ["disks", "v", "c", "else"] {
            std::fs::create_dir(root.join(sub)).unwrap();
        }
        let policy = Policy::new(&[], &[root.join("disks")], &root.join("v"), &root.join("c/api.sock"));
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let served = scope.spawn(|| serve(&{ theirs }, &policy, OwnSockets::default()).unwrap());
            test(&root, &Client::new(ours));
            served.join().unwrap();
        });
    }

    #[test]
    fn disks_come_through_and_others_stay_where_they_are() {
        with_broker(|root, client| {
            let path = root.join("disks/a.img");
            let disk = FileDisk::from_fd(&path, client.create(&path, 1 << 20).unwrap(), Access::Write).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().len(), 1 << 20);
            assert!(matches!(client.create(&path, 1), Err(OpenError::Exists { .. })));
            drop(disk);
            let fd = client.open(&path, Access::Write).unwrap();
            FileDisk::from_fd(&path, fd, Access::Write).unwrap();
            let other = root.join("else/precious");
            std::fs::write(&other, "precious").unwrap();
            assert!(matches!(client.open(&other, Access::Probe), Err(OpenError::Outside { .. })));
            assert!(matches!(client.open(Path::new("/etc/passwd"), Access::Write), Err(OpenError::Outside { .. })));
            assert!(matches!(client.open(&root.join("disks/none"), Access::Read), Err(OpenError::Open { .. })));
            // Only what was created here is removed.
            let old = root.join("disks/old.img");
            std::fs::write(&old, "old").unwrap();
            [&old, &other, &path].into_iter().for_each(|path| client.discard(path));
            assert!(old.exists() && other.exists() && !path.exists());
        });
    }

    #[test]
    fn sockets_come_through() {
        with_broker(|root, client| {
            let path = root.join("v/a.sock");
            let (fd, identity) = client.bind(&path, &OPEN).unwrap();
            rustix::net::listen(&fd, 16).unwrap();
            assert!(matches!(client.bind(&path, &OPEN), Err(SocketError::Taken(_))));
            assert!(matches!(client.clear(&path), Err(SocketError::Taken(_))));
            client.set(&path, &SocketSettings { mode: 0o600, owner: None }).unwrap();
            let moved = root.join("v/b.sock");
            client.rename(&path, &moved).unwrap();
            UnixStream::connect(&moved).unwrap();
            client.remove(&moved, (0, 0));
            assert!(moved.exists(), "another socket than was meant");
            client.remove(&moved, identity);
            assert!(!moved.exists());
            let elsewhere = client.bind(&root.join("else/a.sock"), &OPEN).unwrap_err();
            assert!(elsewhere.to_string().contains("permission denied"), "{elsewhere}");
            let owner = SocketOwner { user: "no-such-user-here".into(), group: "root".into() };
            assert!(matches!(client.check_owner(&owner), Err(SocketError::NoSuchOwner { .. })));
        });
    }

    #[test]
    fn a_broker_that_is_gone_is_named() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let client = Client::new(ours);
        let error = client.open(Path::new("/x"), Access::Read).unwrap_err().to_string();
        assert!(error.contains("broker") && error.contains("restart"), "{error}");
    }
}
