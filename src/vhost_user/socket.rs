//! Socket paths: making, taking over, giving away, removing.

use std::fmt::Debug;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use super::error::SocketError;
use super::sys;
use crate::placement::record::SocketOwner;

/// Longest path that fits a socket address with its terminating zero.
const PATH_MAX: usize = 107;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 16;

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketSettings {
    /// Permission bits.
    pub mode: u32,
    /// Owner; `None`: the daemon's own.
    pub owner: Option<SocketOwner>,
}

/// Device and inode of a socket's path: whether it is still the one that we made.
pub type SocketIdentity = (u64, u64);

/// Where a socket is, and who may connect.
pub(super) type SocketPlace = (PathBuf, SocketIdentity, SocketSettings);

/// Makes the paths of sockets, and changes them: with the rights of this process, or through another one that has them.
pub trait SocketPaths: Debug + Send + Sync {
    /// Binds a socket that does not listen yet. A stale one is replaced; nobody can connect before mode and owner are set.
    ///
    /// # Errors
    /// See [`SocketError`].
    fn bind(&self, path: &Path, settings: &SocketSettings) -> Result<(OwnedFd, SocketIdentity), SocketError>;

    /// Changes mode and owner.
    ///
    /// # Errors
    /// See [`SocketError`].
    fn set(&self, path: &Path, settings: &SocketSettings) -> Result<(), SocketError>;

    /// Moves a socket; whoever is connected stays connected.
    ///
    /// # Errors
    /// See [`SocketError`].
    fn rename(&self, from: &Path, to: &Path) -> Result<(), SocketError>;

    /// Makes sure that `path` can be bound: removes what a daemon that is gone left there, and nothing else.
    ///
    /// # Errors
    /// See [`SocketError`].
    fn clear(&self, path: &Path) -> Result<(), SocketError>;

    /// Removes a socket if it is still the same one.
    fn remove(&self, path: &Path, identity: SocketIdentity);

    /// Whether sockets could belong to `owner`.
    ///
    /// # Errors
    /// See [`SocketError`].
    fn check_owner(&self, owner: &SocketOwner) -> Result<(), SocketError>;
}

/// With the rights of this process.
#[derive(Clone, Copy, Debug, Default)]
pub struct OwnRights {
    /// User and group of sockets whose settings name none; `None`: those of this process.
    pub default_owner: Option<(u32, u32)>,
}

impl OwnRights {
    /// The owner first: before that, the mode would let the daemon's own group in.
    fn permit(&self, path: &Path, settings: &SocketSettings, owner: Option<(u32, u32)>) -> Result<(), SocketError> {
        if let Some((user, group)) = owner.or(self.default_owner) {
            let name = settings.owner.as_ref().map(|name| format!("{}:{}", name.user, name.group));
            std::os::unix::fs::lchown(path, Some(user), Some(group)).map_err(|source| SocketError::Chown {
                path: path.to_owned(),
                owner: name.unwrap_or_else(|| format!("{user}:{group}")),
                source,
            })?;
        }
        let mode = std::fs::Permissions::from_mode(settings.mode);
        std::fs::set_permissions(path, mode).map_err(failed("set the mode of", path))
    }
}

impl SocketPaths for OwnRights {
    fn bind(&self, path: &Path, settings: &SocketSettings) -> Result<(OwnedFd, SocketIdentity), SocketError> {
        let owner = resolve(settings.owner.as_ref())?;
        clear(path)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(|error| failed("make a socket for", path)(error.into()))?;
        sys::set_mode_before_bind(&socket, 0o600).map_err(failed("set the mode of", path))?;
        SocketAddrUnix::new(path)
            .and_then(|address| net::bind(&socket, &address))
            .map_err(|error| failed("bind a socket to", path)(error.into()))?;
        let identity = identity(path).map_err(failed("examine", path))?;
        if let Err(error) = self.permit(path, settings, owner) {
            self.remove(path, identity);
            return Err(error);
        }
        Ok((socket, identity))
    }

    fn set(&self, path: &Path, settings: &SocketSettings) -> Result<(), SocketError> {
        self.permit(path, settings, resolve(settings.owner.as_ref())?)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<(), SocketError> {
        clear(to)?;
        std::fs::rename(from, to).map_err(failed("rename", from))
    }

    fn clear(&self, path: &Path) -> Result<(), SocketError> {
        clear(path)
    }

    fn remove(&self, path: &Path, identity: SocketIdentity) {
        if self::identity(path).ok() == Some(identity) {
            // If it cannot be removed, the next start replaces it.
            let _ = std::fs::remove_file(path);
        }
    }

    fn check_owner(&self, owner: &SocketOwner) -> Result<(), SocketError> {
        resolve(Some(owner)).map(drop)
    }
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> SocketError {
    let path = path.to_owned();
    move |source| SocketError::System { what: what.into(), path, source }
}

/// A path that a listener of ours is bound to. Dropping it removes the path, if it is still ours.
#[derive(Debug)]
pub(super) struct BoundPath {
    path: PathBuf,
    identity: SocketIdentity,
    settings: SocketSettings,
    paths: Arc<dyn SocketPaths>,
    /// Whoever else knows the path may not listen there any more.
    is_ours: bool,
}

impl BoundPath {
    /// The path of a listener that somebody else has bound, and may go on with until [`BoundPath::own`].
    pub(super) fn take_over(paths: Arc<dyn SocketPaths>, (path, identity, settings): SocketPlace) -> BoundPath {
        BoundPath { path, identity, settings, paths, is_ours: false }
    }

    /// It is ours, to be removed in the end.
    pub(super) fn own(&mut self) {
        self.is_ours = true;
    }

    /// Leaves the path where it is, for whoever gets the listener.
    pub(super) fn hand_over(mut self) -> SocketPlace {
        self.is_ours = false;
        (self.path.clone(), self.identity, self.settings.clone())
    }

    /// Binds a listener. A stale socket is replaced; nobody can connect before mode and owner are set.
    pub(super) fn bind(
        paths: Arc<dyn SocketPaths>,
        path: PathBuf,
        settings: &SocketSettings,
    ) -> Result<(BoundPath, UnixListener), SocketError> {
        let (socket, identity) = paths.bind(&path, settings)?;
        let bound = BoundPath { path, identity, settings: settings.clone(), paths, is_ours: true };
        net::listen(&socket, BACKLOG).map_err(|error| failed("listen on", &bound.path)(error.into()))?;
        let listener = UnixListener::from_std(socket.into()).map_err(failed("listen on", &bound.path))?;
        Ok((bound, listener))
    }

    /// The path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Changes mode and owner.
    pub(super) fn set(&mut self, settings: &SocketSettings) -> Result<(), SocketError> {
        self.paths.set(&self.path, settings)?;
        self.settings = settings.clone();
        Ok(())
    }

    /// Mode and owner.
    pub(super) fn settings(&self) -> &SocketSettings {
        &self.settings
    }

    /// Moves the socket; whoever is connected stays connected.
    pub(super) fn rename(&mut self, to: PathBuf) -> Result<(), SocketError> {
        if to == self.path {
            return Ok(());
        }
        self.paths.rename(&self.path, &to)?;
        self.path = to;
        Ok(())
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        if self.is_ours {
            self.paths.remove(&self.path, self.identity);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// See [`SocketPaths::clear`].
fn clear(path: &Path) -> Result<(), SocketError> {
    let len = path.as_os_str().len();
    if len > PATH_MAX {
        return Err(SocketError::TooLong { path: path.to_owned(), len, max: PATH_MAX });
    }
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("examine", path)(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match sys::is_listening(path).map_err(failed("probe", path))? {
        true => Err(SocketError::Taken(path.to_owned())),
        false => std::fs::remove_file(path).map_err(failed("remove the stale socket", path)),
    }
}

/// User and group numbers.
fn resolve(owner: Option<&SocketOwner>) -> Result<Option<(u32, u32)>, SocketError> {
    let Some(owner) = owner else { return Ok(None) };
    let find = |kind: &'static str, name: &str, id: io::Result<Option<u32>>| match id {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(SocketError::NoSuchOwner { kind: kind.into(), name: name.to_owned() }),
        Err(source) => Err(SocketError::OwnerLookup { kind: kind.into(), name: name.to_owned(), source }),
    };
    let user = find("user", &owner.user, sys::user_id(&owner.user))?;
    let group = find("group", &owner.group, sys::group_id(&owner.group))?;
    Ok(Some((user, group)))
}

#[cfg(test)]
mod tests {
    use std::os::unix::net;

    use super::*;

    const OPEN: SocketSettings = SocketSettings { mode: 0o660, owner: None };

    fn bind(path: &Path, settings: &SocketSettings) -> Result<(BoundPath, UnixListener), SocketError> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        let _context = runtime.enter();
        BoundPath::bind(Arc::new(OwnRights::default()), path.to_owned(), settings)
    }

    #[test]
    fn mode_and_path() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let (mut bound, _listener) = bind(&path, &OPEN).unwrap();
        let mode = || std::fs::metadata(&path).unwrap().mode() & 0o777;
        assert_eq!(mode(), 0o660);
        bound.set(&SocketSettings { mode: 0o600, owner: None }).unwrap();
        assert_eq!(mode(), 0o600);
        let other = dir.path().join("b.sock");
        bound.rename(other.clone()).unwrap();
        assert!(!path.exists());
        net::UnixStream::connect(&other).unwrap();
        drop(bound);
        assert!(!other.exists());
    }

    #[test]
    fn stale_sockets_are_replaced_and_live_ones_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let (bound, _listener) = bind(&path, &OPEN).unwrap();
        let taken = bind(&path, &OPEN).unwrap_err();
        assert!(matches!(&taken, SocketError::Taken(at) if *at == path), "{taken}");
        let (mut other, _other_listener) = bind(&dir.path().join("b.sock"), &OPEN).unwrap();
        assert!(matches!(other.rename(path.clone()), Err(SocketError::Taken(_))));
        // What somebody else put there in the meantime is not ours to remove.
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "precious").unwrap();
        drop(bound);
        assert_eq!(std::fs::read(&path).unwrap(), b"precious");
        assert!(matches!(bind(&path, &OPEN), Err(SocketError::NotASocket(_))));
    }

    #[test]
    fn refusals_name_what_is_wrong() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(100));
        assert!(matches!(bind(&long, &OPEN), Err(SocketError::TooLong { max: 107, .. })));
        let nowhere = dir.path().join("no/a.sock");
        let error = bind(&nowhere, &OPEN).unwrap_err().to_string();
        assert!(error.contains("no/a.sock"), "{error}");
        let owner = SocketOwner { user: "no-such-user-here".into(), group: "root".into() };
        let path = dir.path().join("a.sock");
        let error = bind(&path, &SocketSettings { mode: 0o660, owner: Some(owner) }).unwrap_err();
        assert!(matches!(&error, SocketError::NoSuchOwner { kind, .. } if kind == "user"), "{error}");
        assert!(!path.exists());
    }
}
