//! The broker's side: requests are checked against the policy, carried out, and answered.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;

use super::policy::{OneServing, Policy};
use super::wire::{Answer, Request, ViewRequest};
use crate::control::frames::{receive, send};
use crate::control::view_files::{OwnRights as OwnViews, ViewFileError, ViewFiles};
use crate::disk::file::{FileDisk, OpenError};
use crate::disk::paths::{DiskPaths, OwnRights as OwnDisks};
use crate::vhost_user::{OwnRights as OwnSockets, SocketError, SocketPaths};

/// With whose rights, and for what.
#[derive(Debug)]
pub(super) struct Means<'a> {
    pub policy: &'a Policy,
    pub sockets: OwnSockets,
    pub views: OwnViews,
    pub serving: OneServing,
}

/// Serves one socket until the daemon has gone.
pub(super) fn serve(stream: &UnixStream, means: &Means<'_>) -> io::Result<()> {
    let mut broker = Broker { means, created: BTreeSet::new() };
    while let Some((request, _)) = receive(stream)? {
        let (answer, fd) = broker.answer(request);
        // The descriptor is closed here right after: the daemon's own carries the lock, and ends with it.
        send(stream, &answer, fd.as_ref().map(OwnedFd::as_fd).as_slice())?;
    }
    Ok(())
}

struct Broker<'a> {
    means: &'a Means<'a>,
    /// Files that were made here; no others are removed.
    created: BTreeSet<PathBuf>,
}

impl Broker<'_> {
    fn answer(&mut self, request: Request) -> (Answer, Option<OwnedFd>) {
        let Means { policy, sockets, .. } = self.means;
        match request {
            Request::OpenDisk { path, access } => {
                // For every access: to read what somebody else uses would be to read the host's own disks.
                disk(policy.disk(&path).and_then(|path| FileDisk::unused_descriptor(&path, access)))
            }
            Request::IdentifyDisk { path } => {
                let identity = policy.disk(&path).and_then(|path| OwnDisks.identity(&path));
                (identity.map_or_else(Answer::NoDisk, Answer::Identity), None)
            }
            Request::CreateDisk { path, size } => disk(self.create(&path, size)),
            Request::DiscardDisk { path } => {
                if let Ok(path) = policy.disk(&path)
                    && self.created.remove(&path)
                {
                    OwnDisks.discard(&path);
                }
                (Answer::Done, None)
            }
            Request::BindSocket { path, settings } => {
                match policy.socket(&path).and_then(|path| sockets.bind(&path, &settings)) {
                    Ok((fd, identity)) => (Answer::Socket(identity), Some(fd)),
                    Err(error) => (Answer::NoSocket(error), None),
                }
            }
            Request::SetSocket { path, settings } => {
                done(policy.socket(&path).and_then(|path| sockets.set(&path, &settings)))
            }
            Request::RenameSocket { from, to } => done(self.rename(&from, &to)),
            Request::ClearSocket { path } => done(policy.socket(&path).and_then(|path| sockets.clear(&path))),
            Request::RemoveSocket { path, identity } => {
                done(policy.removable(&path).map(|path| sockets.remove(&path, identity)))
            }
            Request::CheckOwner { owner } => done(sockets.check_owner(&owner)),
            Request::View(request) => self.view(request).unwrap_or_else(|error| (Answer::NoView(error), None)),
        }
    }

    fn create(&mut self, path: &std::path::Path, size: u64) -> Result<OwnedFd, OpenError> {
        let path = self.means.policy.new_disk(path, size)?;
        let fd = OwnDisks.create(&path, size)?;
        self.created.insert(path);
        Ok(fd)
    }

    fn rename(&self, from: &std::path::Path, to: &std::path::Path) -> Result<(), SocketError> {
        let Means { policy, sockets, .. } = self.means;
        sockets.rename(&policy.socket(from)?, &policy.socket(to)?)
    }

    fn view(&self, request: ViewRequest) -> Result<(Answer, Option<OwnedFd>), ViewFileError> {
        let Means { views, serving: one, .. } = self.means;
        let came = |fd| (Answer::View(PathBuf::new()), Some(fd));
        let done = |()| (Answer::Done, None);
        match request {
            ViewRequest::Begin { serving } => views.begin(one.begin(serving)?).map(came),
            ViewRequest::Make { serving, part } => views.make(one.own(serving)?, part).map(came),
            ViewRequest::Forget { serving, vhd } => views.forget(one.own(serving)?, vhd).map(done),
            ViewRequest::End { serving } => views.end(one.own(serving)?).map(done),
            ViewRequest::RemoveOthers { serving } => views.remove_others(one.own(serving)?).map(done),
            ViewRequest::Open { ended, part } => views.open_ended(one.earlier(ended)?, part).map(came),
            ViewRequest::Find { ended } => match views.find(one.earlier(ended)?)? {
                Some((fd, path)) => Ok((Answer::View(path), Some(fd))),
                None => Ok((Answer::Done, None)),
            },
        }
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

    use uuid::Uuid;

    use super::super::client::Client;
    use super::*;
    use crate::control::view_files::{Part, Serving};
    use crate::disk::file::Access;
    use crate::disk::file::tests::LoopDevice;
    use crate::disk::identity::DiskIdentity;
    use crate::placement::record::SocketOwner;
    use crate::placement::view::kept_len;
    use crate::vhost_user::SocketSettings;

    const OPEN: SocketSettings = SocketSettings { mode: 0o660, owner: None };

    /// A broker on a thread, and a client of it.
    fn with_broker(test: impl FnOnce(&Path, &Client)) {
        with_broker_for(&[], test);
    }

    /// It may also open disks in `more`.
    fn with_broker_for(more: &[PathBuf], test: impl FnOnce(&Path, &Client)) {
        // Not in TMPDIR, which may be without direct I/O.
        let dir = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let root = dir.path().canonicalize().unwrap();
        for sub in ["disks", "v", "c", "else"] {
            std::fs::create_dir(root.join(sub)).unwrap();
        }
        let dirs = [&[root.join("disks")], more].concat();
        let policy = Policy::new(&[], &dirs, &root.join("v"), &root.join("c/api.sock"));
        let (ours, theirs) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let views = OwnViews::at(&root.join("else"), "boot", None);
            let means =
                Means { policy: &policy, sockets: OwnSockets::default(), views, serving: OneServing::default() };
            let served = scope.spawn(move || serve(&theirs, &means).unwrap());
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
            let disk = FileDisk::from_fd(&path, fd, Access::Write).unwrap();
            assert!(matches!(client.identity(&path).unwrap(), DiskIdentity::File { .. }));
            assert_eq!(client.identity(&path).unwrap(), *disk.identity());
            drop(disk);
            let other = root.join("else/precious");
            std::fs::write(&other, "precious").unwrap();
            assert!(matches!(client.open(&other, Access::Probe), Err(OpenError::Outside { .. })));
            assert!(matches!(client.identity(&other), Err(OpenError::Outside { .. })));
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
    fn a_device_that_is_in_use_can_be_told_from_others_and_is_not_even_read() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let Some(device) = LoopDevice::new(file.path(), 512) else { return };
        with_broker_for(&["/dev".into()], |root, client| {
            let used = FileDisk::open(&device.path, Access::Write).unwrap();
            let same = || client.identity(&device.path).unwrap() == *used.identity();
            for access in [Access::Probe, Access::Read, Access::Write] {
                let error = client.open(&device.path, access).unwrap_err();
                assert!(matches!(error, OpenError::Busy { .. }) && error.to_string().contains("release it"), "{error}");
                assert!(same(), "{access:?}");
            }
            let link = root.join("disks/link");
            std::os::unix::fs::symlink(&device.path, &link).unwrap();
            assert_eq!(client.identity(&link).unwrap(), *used.identity());
            drop(used);
            for access in [Access::Probe, Access::Read, Access::Write] {
                let fd = client.open(&device.path, access).unwrap();
                FileDisk::from_fd(&device.path, fd, access).unwrap();
            }
        });
    }

    #[test]
    fn among_the_devices_nothing_but_block_devices_is_opened_or_made() {
        let shared = tempfile::tempdir_in("/dev/shm").unwrap();
        let memory = shared.path().join("guest-memory");
        std::fs::write(&memory, [1; 4096]).unwrap();
        with_broker_for(&["/dev".into(), shared.path().into()], |root, client| {
            let link = root.join("disks/link");
            std::os::unix::fs::symlink(&memory, &link).unwrap();
            for path in [&memory, &link, Path::new("/dev/null")] {
                for access in [Access::Probe, Access::Read, Access::Write] {
                    let error = client.open(path, access).unwrap_err();
                    assert!(matches!(error, OpenError::NotADevice { .. }), "{}: {error}", path.display());
                }
                assert!(matches!(client.identity(path), Err(OpenError::NotADevice { .. })), "{}", path.display());
            }
            let new = shared.path().join("new.img");
            assert!(matches!(client.create(&new, 1 << 20), Err(OpenError::NotADevice { .. })));
            assert!(!new.exists());
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
    fn views_come_through_and_those_of_others_stay() {
        with_broker(|root, client| {
            let serving = |pool, lineage| Serving { pool: Uuid::from_u128(pool), lineage };
            let part = Part { vhd: Uuid::from_u128(5), start: 0, extents: 10 };
            let refused =
                |result: Result<OwnedFd, ViewFileError>| assert!(matches!(result, Err(ViewFileError::Refused)));
            let files = OwnViews::at(&root.join("else"), "boot", None);
            for other in [serving(1, 6), serving(2, 6)] {
                drop(files.begin(other).unwrap());
                drop(files.make(other, part).unwrap());
            }
            refused(client.open_ended(serving(1, 6), part));
            let in_use = client.begin(serving(1, 7)).unwrap();
            assert!(matches!(files.find(serving(1, 7)), Err(ViewFileError::InUse(_))), "as long as the daemon has it");
            drop(in_use);
            // A child of another test has it, too, between fork and exec.
            let is_in_use = || matches!(files.find(serving(1, 7)), Err(ViewFileError::InUse(_)));
            while is_in_use() {
                std::thread::yield_now();
            }
            assert!(files.find(serving(1, 7)).unwrap().is_some(), "not longer");
            refused(client.begin(serving(2, 8)));
            let made = std::fs::File::from(client.make(serving(1, 7), part).unwrap());
            assert_eq!(made.metadata().unwrap().len(), kept_len(10) as u64);
            refused(client.make(serving(1, 6), part));
            refused(client.open_ended(serving(2, 6), part));
            assert!(client.find(serving(2, 6)).is_err() && client.find(serving(1, 5)).unwrap().is_none());
            assert!(client.find(serving(1, 6)).unwrap().is_some());
            client.open_ended(serving(1, 6), part).unwrap();
            assert!(client.end(serving(1, 6)).is_err() && client.remove_others(serving(2, 6)).is_err());
            client.remove_others(serving(1, 7)).unwrap();
            client.forget(serving(1, 7), part.vhd).unwrap();
            client.make(serving(1, 7), part).unwrap();
            client.end(serving(1, 7)).unwrap();
            drop(client.begin(serving(1, 8)).unwrap());
            refused(client.make(serving(1, 7), part));
            let left: Vec<_> =
                [serving(1, 6), serving(1, 7), serving(2, 6)].map(|of| files.find(of).unwrap().is_some()).into();
            assert_eq!(left, [false, false, true]);
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
