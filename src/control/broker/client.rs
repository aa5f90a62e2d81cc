//! The daemon's side: names are used by asking the broker.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::wire::{Answer, Request, ViewRequest};
use crate::control::frames::{receive, send};
use crate::control::view_files::{Part, Serving, ViewFileError, ViewFiles};
use crate::disk::file::{Access, OpenError};
use crate::disk::identity::DiskIdentity;
use crate::disk::paths::DiskPaths;
use crate::placement::record::SocketOwner;
use crate::vhost_user::{SocketError, SocketIdentity, SocketPaths, SocketSettings};
use uuid::Uuid;

/// One way to the broker; requests on it follow one another.
#[derive(Debug)]
pub struct Client(Mutex<UnixStream>);

impl Client {
    pub(super) fn new(stream: UnixStream) -> Client {
        Client(Mutex::new(stream))
    }

    fn ask(&self, request: &Request) -> io::Result<(Answer, Option<OwnedFd>)> {
        let stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        send(&stream, request, &[]).map_err(gone)?;
        let (answer, mut fds) =
            receive(&stream).map_err(gone)?.ok_or_else(|| gone(io::ErrorKind::UnexpectedEof.into()))?;
        Ok((answer, fds.pop()))
    }

    fn ask_for_disk(&self, request: &Request, path: &Path) -> Result<OwnedFd, OpenError> {
        let failed = |source| OpenError::Open { path: path.to_owned(), source };
        match self.ask(request) {
            Ok((Answer::Disk, Some(fd))) => Ok(fd),
            Ok((Answer::NoDisk(error), _)) => Err(error),
            Ok(_) => Err(failed(confused())),
            Err(error) => Err(failed(error)),
        }
    }

    fn ask_for_view(&self, request: ViewRequest) -> Result<(Answer, Option<OwnedFd>), ViewFileError> {
        match self.ask(&Request::View(request))? {
            (Answer::NoView(error), _) => Err(error),
            answer => Ok(answer),
        }
    }

    fn view_descriptor(&self, request: ViewRequest) -> Result<OwnedFd, ViewFileError> {
        let (_, fd) = self.ask_for_view(request)?;
        Ok(fd.ok_or_else(confused)?)
    }

    fn ask_for_socket(&self, request: &Request, path: &Path) -> Result<(Answer, Option<OwnedFd>), SocketError> {
        let failed =
            |source| SocketError::System { what: "have the broker change".into(), path: path.to_owned(), source };
        match self.ask(request) {
            Ok((Answer::NoSocket(error), _)) => Err(error),
            Ok(answer) => Ok(answer),
            Err(error) => Err(failed(error)),
        }
    }
}

fn gone(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("the daemon's broker process does not answer ({error}): restart the daemon"))
}

fn confused() -> io::Error {
    io::Error::other("the daemon's broker process gave an answer to something else")
}

impl DiskPaths for Client {
    fn open(&self, path: &Path, access: Access) -> Result<OwnedFd, OpenError> {
        self.ask_for_disk(&Request::OpenDisk { path: path.to_owned(), access }, path)
    }

    fn identity(&self, path: &Path) -> Result<DiskIdentity, OpenError> {
        let failed = |source| OpenError::Open { path: path.to_owned(), source };
        match self.ask(&Request::IdentifyDisk { path: path.to_owned() }) {
            Ok((Answer::Identity(identity), _)) => Ok(identity),
            Ok((Answer::NoDisk(error), _)) => Err(error),
            Ok(_) => Err(failed(confused())),
            Err(error) => Err(failed(error)),
        }
    }

    fn create(&self, path: &Path, size: u64) -> Result<OwnedFd, OpenError> {
        self.ask_for_disk(&Request::CreateDisk { path: path.to_owned(), size }, path)
    }

    fn discard(&self, path: &Path) {
        if let Err(error) = self.ask(&Request::DiscardDisk { path: path.to_owned() }) {
            log::warn!("{} was created for nothing, and cannot be removed: {error}", path.display());
        }
    }
}

impl SocketPaths for Client {
    fn bind(&self, path: &Path, settings: &SocketSettings) -> Result<(OwnedFd, SocketIdentity), SocketError> {
        let request = Request::BindSocket { path: path.to_owned(), settings: settings.clone() };
        match self.ask_for_socket(&request, path)? {
            (Answer::Socket(identity), Some(fd)) => Ok((fd, identity)),
            _ => {
                let what = "have the broker make".into();
                Err(SocketError::System { what, path: path.to_owned(), source: confused() })
            }
        }
    }

    fn set(&self, path: &Path, settings: &SocketSettings) -> Result<(), SocketError> {
        let request = Request::SetSocket { path: path.to_owned(), settings: settings.clone() };
        self.ask_for_socket(&request, path).map(drop)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), SocketError> {
        let request = Request::RenameSocket { from: from.to_owned(), to: to.to_owned() };
        self.ask_for_socket(&request, to).map(drop)
    }

    fn clear(&self, path: &Path) -> Result<(), SocketError> {
        self.ask_for_socket(&Request::ClearSocket { path: path.to_owned() }, path).map(drop)
    }

    fn remove(&self, path: &Path, identity: SocketIdentity) {
        // If it cannot be removed, the next start replaces it.
        let _ = self.ask(&Request::RemoveSocket { path: path.to_owned(), identity });
    }

    fn check_owner(&self, owner: &SocketOwner) -> Result<(), SocketError> {
        self.ask_for_socket(&Request::CheckOwner { owner: owner.clone() }, Path::new("")).map(drop)
    }
}

impl ViewFiles for Client {
    fn begin(&self, serving: Serving) -> Result<OwnedFd, ViewFileError> {
        self.view_descriptor(ViewRequest::Begin { serving })
    }

    fn make(&self, serving: Serving, part: Part) -> Result<OwnedFd, ViewFileError> {
        self.view_descriptor(ViewRequest::Make { serving, part })
    }

    fn forget(&self, serving: Serving, vhd: Uuid) -> Result<(), ViewFileError> {
        self.ask_for_view(ViewRequest::Forget { serving, vhd }).map(drop)
    }

    fn end(&self, serving: Serving) -> Result<(), ViewFileError> {
        self.ask_for_view(ViewRequest::End { serving }).map(drop)
    }

    fn find(&self, ended: Serving) -> Result<Option<(OwnedFd, PathBuf)>, ViewFileError> {
        match self.ask_for_view(ViewRequest::Find { ended })? {
            (Answer::View(path), Some(fd)) => Ok(Some((fd, path))),
            (Answer::Done, None) => Ok(None),
            _ => Err(confused().into()),
        }
    }

    fn open_ended(&self, ended: Serving, part: Part) -> Result<OwnedFd, ViewFileError> {
        self.view_descriptor(ViewRequest::Open { ended, part })
    }

    fn remove_others(&self, serving: Serving) -> Result<(), ViewFileError> {
        self.ask_for_view(ViewRequest::RemoveOthers { serving }).map(drop)
    }
}
