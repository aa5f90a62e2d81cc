//! Socket paths: making, taking over, giving away, removing.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::{UnixListener, UnixSocket};

use super::error::SocketError;
use super::sys;
use crate::placement::record::SocketOwner;

/// Longest path that fits a socket address with its terminating zero.
const PATH_MAX: usize = 107;

/// Connections that may wait to be accepted.
const BACKLOG: u32 = 16;

/// Who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketSettings {
    /// Permission bits.
    pub mode: u32,
    /// Owner; `None`: the daemon's own.
    pub owner: Option<SocketOwner>,
}

/// A path that a listener of ours is bound to. Dropping it removes the path, if it is still ours.
#[derive(Debug)]
pub(super) struct BoundPath {
    path: PathBuf,
    /// Device and inode of what we bound.
    identity: (u64, u64),
}

impl BoundPath {
    /// Binds a listener. A stale socket is replaced; nobody can connect before mode and owner are set.
    pub(super) fn bind(path: PathBuf, settings: &SocketSettings) -> Result<(BoundPath, UnixListener), SocketError> {
        let owner = resolve(settings.owner.as_ref())?;
        clear(&path)?;
        let fail = |what| {
            let path = path.clone();
            move |source| SocketError::System { what, path, source }
        };
        let socket = UnixSocket::new_stream().map_err(fail("make a socket for"))?;
        sys::set_mode_before_bind(&socket, 0o600).map_err(fail("set the mode of"))?;
        socket.bind(&path).map_err(fail("bind a socket to"))?;
        let identity = identity(&path).map_err(fail("examine"))?;
        let bound = BoundPath { path: path.clone(), identity };
        bound.permit(settings, owner)?;
        let listener = socket.listen(BACKLOG).map_err(fail("listen on"))?;
        Ok((bound, listener))
    }

    /// The path.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Changes mode and owner.
    pub(super) fn set(&self, settings: &SocketSettings) -> Result<(), SocketError> {
        self.permit(settings, resolve(settings.owner.as_ref())?)
    }

    /// Moves the socket; whoever is connected stays connected.
    pub(super) fn rename(&mut self, to: PathBuf) -> Result<(), SocketError> {
        if to == self.path {
            return Ok(());
        }
        clear(&to)?;
        std::fs::rename(&self.path, &to).map_err(|source| self.system("rename", source))?;
        self.path = to;
        Ok(())
    }

    /// The owner first: before that, the mode would let the daemon's own group in.
    fn permit(&self, settings: &SocketSettings, owner: Option<(u32, u32)>) -> Result<(), SocketError> {
        let (user, group) = owner.unzip();
        if let Some(name) = &settings.owner {
            std::os::unix::fs::lchown(&self.path, user, group).map_err(|source| SocketError::Chown {
                path: self.path.clone(),
                owner: format!("{}:{}", name.user, name.group),
                source,
            })?;
        }
        std::fs::set_permissions(&self.path, std::fs::Permissions::from_mode(settings.mode))
            .map_err(|source| self.system("set the mode of", source))
    }

    fn system(&self, what: &'static str, source: io::Error) -> SocketError {
        SocketError::System { what, path: self.path.clone(), source }
    }
}

impl Drop for BoundPath {
    fn drop(&mut self) {
        if identity(&self.path).ok() == Some(self.identity) {
            // If it cannot be removed, the next start replaces it.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Makes sure that `path` can be bound: removes what a daemon that is gone left there, and nothing else.
pub(super) fn clear(path: &Path) -> Result<(), SocketError> {
    let len = path.as_os_str().len();
    if len > PATH_MAX {
        return Err(SocketError::TooLong { path: path.to_owned(), len, max: PATH_MAX });
    }
    let fail = |what| move |source| SocketError::System { what, path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(fail("examine")(error)),
        Ok(metadata) if !metadata.file_type().is_socket() => return Err(SocketError::NotASocket(path.to_owned())),
        Ok(_) => {}
    }
    match sys::is_listening(path).map_err(fail("probe"))? {
        true => Err(SocketError::Taken(path.to_owned())),
        false => std::fs::remove_file(path).map_err(fail("remove the stale socket")),
    }
}

/// Whether sockets could belong to `owner`.
pub(super) fn check_owner(owner: &SocketOwner) -> Result<(), SocketError> {
    resolve(Some(owner)).map(drop)
}

/// User and group numbers.
fn resolve(owner: Option<&SocketOwner>) -> Result<Option<(u32, u32)>, SocketError> {
    let Some(owner) = owner else { return Ok(None) };
    let find = |kind, name: &str, id: io::Result<Option<u32>>| match id {
        Ok(Some(id)) => Ok(id),
        Ok(None) => Err(SocketError::NoSuchOwner { kind, name: name.to_owned() }),
        Err(source) => Err(SocketError::OwnerLookup { kind, name: name.to_owned(), source }),
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
        BoundPath::bind(path.to_owned(), settings)
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
        assert!(matches!(&error, SocketError::NoSuchOwner { kind: "user", .. }), "{error}");
        assert!(!path.exists());
    }
}
