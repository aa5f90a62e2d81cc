//! What the broker does for the daemon, and what not: an attacker may control it.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::control::view_files::{PLACE, Serving, ViewFileError};
use crate::disk::file::{FileDisk, OpenError};
use crate::disk::identity::DiskIdentity;
use crate::sandbox::files::{Right, Rule};
use crate::vhost_user::SocketError;

/// Where the host's devices are, and memory that processes share (`/dev/shm`).
const DEVICES: &str = "/dev";

/// Where the daemon may have things done. All directories are real paths, links followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    /// Disks are opened and created in these directories, and below.
    pub disk_dirs: Vec<PathBuf>,
    /// Sockets of VHDs are made here, not below.
    pub socket_dir: PathBuf,
    /// The control socket, which may be removed.
    pub control: PathBuf,
}

impl Policy {
    /// Disks may be opened where those are that the daemon was given, and in `more`. Directories that are not there are left out.
    #[must_use]
    pub fn new(disks: &[String], more: &[PathBuf], socket_dir: &Path, control: &Path) -> Policy {
        let given = disks.iter().flat_map(|disk| directories_of(disk));
        let disk_dirs: BTreeSet<PathBuf> =
            given.chain(more.iter().cloned()).filter_map(|dir| dir.canonicalize().ok()).collect();
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let control = match (control.parent(), control.file_name()) {
            (Some(parent), Some(name)) => real(parent).join(name),
            _ => control.to_owned(),
        };
        Policy { disk_dirs: disk_dirs.into_iter().collect(), socket_dir: real(socket_dir), control }
    }

    /// The same for the kernel, which enforces it on the broker. Name services read what they like.
    #[must_use]
    pub fn rules(&self) -> Vec<Rule> {
        let control_dir = self.control.parent().unwrap_or(Path::new("/")).to_owned();
        let mut rules = vec![
            (PathBuf::from("/"), Right::Read),
            (self.socket_dir.clone(), Right::Sockets),
            (control_dir, Right::Sockets),
            (PathBuf::from(PLACE), Right::Files),
        ];
        rules.extend(self.disk_dirs.iter().map(|dir| (dir.clone(), Right::Disks)));
        rules
    }

    /// The real path of a disk that is there.
    ///
    /// # Errors
    /// It is not there, or not where disks may be opened, or among the devices and not a disk.
    pub fn disk(&self, path: &Path) -> Result<PathBuf, OpenError> {
        let real = path.canonicalize().map_err(|source| OpenError::Open { path: path.to_owned(), source })?;
        let real = self.within(real)?;
        let is_device = || matches!(FileDisk::identity_at(&real), Ok(DiskIdentity::Device { .. }));
        if is_among_devices(&real) && !is_device() {
            return Err(OpenError::NotADevice { path: real });
        }
        Ok(real)
    }

    /// The real path of a disk that is to be created.
    ///
    /// # Errors
    /// Its directory is not there, or not one where disks may be opened, or one of devices.
    pub fn new_disk(&self, path: &Path, size: u64) -> Result<PathBuf, OpenError> {
        let failed = |source| OpenError::Create { path: path.to_owned(), size, source };
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(failed(io::ErrorKind::InvalidInput.into()));
        };
        let real = self.within(parent.canonicalize().map_err(failed)?.join(name))?;
        match is_among_devices(&real) {
            true if real.exists() => Err(OpenError::Exists { path: real }),
            true => Err(OpenError::NotADevice { path: real }),
            false => Ok(real),
        }
    }

    fn within(&self, real: PathBuf) -> Result<PathBuf, OpenError> {
        if self.disk_dirs.iter().any(|dir| real.starts_with(dir)) {
            return Ok(real);
        }
        Err(OpenError::Outside { path: real, directories: self.disk_dirs.clone() })
    }

    /// The real path of a VHD's socket.
    ///
    /// # Errors
    /// It is not directly in the directory of sockets.
    pub fn socket(&self, path: &Path) -> Result<PathBuf, SocketError> {
        let refused = || SocketError::System {
            what: "have the broker touch".into(),
            path: path.to_owned(),
            source: io::ErrorKind::PermissionDenied.into(),
        };
        let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
        let name = path.file_name().filter(|name| is_plain(name)).ok_or_else(refused)?;
        if parent.as_deref() == Some(&self.socket_dir) { Ok(self.socket_dir.join(name)) } else { Err(refused()) }
    }

    /// The real path of a socket that may be removed: a VHD's or the control socket.
    ///
    /// # Errors
    /// It is neither.
    pub fn removable(&self, path: &Path) -> Result<PathBuf, SocketError> {
        let parent = path.parent().and_then(|parent| parent.canonicalize().ok());
        if parent.as_deref() == self.control.parent() && path.file_name() == self.control.file_name() {
            return Ok(self.control.clone());
        }
        self.socket(path)
    }
}

/// The serving whose views the daemon has. A daemon begins another one only when nobody has taken it over, and then of the same pool.
#[derive(Debug, Default)]
pub struct OneServing(Mutex<Option<Serving>>);

impl OneServing {
    /// That of this daemon, from now on.
    ///
    /// # Errors
    /// It has one of another pool already.
    pub fn begin(&self, serving: Serving) -> Result<Serving, ViewFileError> {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if own.is_some_and(|own| own.pool != serving.pool) {
            return Err(ViewFileError::Refused);
        }
        *own = Some(serving);
        Ok(serving)
    }

    /// The daemon's own, if it is that.
    ///
    /// # Errors
    /// It is another one.
    pub fn own(&self, serving: Serving) -> Result<Serving, ViewFileError> {
        if self.current() == Some(serving) { Ok(serving) } else { Err(ViewFileError::Refused) }
    }

    /// An earlier one of the same pool.
    ///
    /// # Errors
    /// It is not.
    pub fn earlier(&self, serving: Serving) -> Result<Serving, ViewFileError> {
        let same_pool = self.current().is_some_and(|own| own.pool == serving.pool && own != serving);
        if same_pool { Ok(serving) } else { Err(ViewFileError::Refused) }
    }

    fn current(&self) -> Option<Serving> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn is_among_devices(real: &Path) -> bool {
    real.starts_with(DEVICES)
}

fn is_plain(name: &OsStr) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None))
}

/// The directories of a disk or of what a pattern matches: where its name is, and where it leads to.
fn directories_of(disk: &str) -> Vec<PathBuf> {
    let parent = |path: &Path| path.parent().map(Path::to_owned);
    let mut found: Vec<PathBuf> = Vec::new();
    if !Path::new(disk).exists() {
        // Where a file would be that is not there, or not yet. The fixed part of a pattern, unless it is everything.
        let fixed = disk.find(['*', '?', '[']).map_or(disk, |at| &disk[..at]);
        let fixed = fixed.rfind('/').map_or("", |at| &fixed[..at]);
        found.extend((!fixed.is_empty()).then(|| PathBuf::from(fixed)));
    }
    let matched = glob::glob(disk).into_iter().flatten().flatten();
    for path in matched.chain([PathBuf::from(disk)]).filter(|path| path.exists()) {
        found.extend(parent(&path));
        found.extend(path.canonicalize().ok().as_deref().and_then(parent));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(dir: &Path) -> Policy {
        for sub in ["disks/below", "v", "c", "else"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        for file in ["disks/a.img", "disks/below/b.img", "else/x.img"] {
            std::fs::write(dir.join(file), b"").unwrap();
        }
        std::os::unix::fs::symlink(dir.join("else/x.img"), dir.join("disks/link")).unwrap();
        std::os::unix::fs::symlink(dir.join("else"), dir.join("disks/way")).unwrap();
        let disks = [dir.join("disks/*.img").display().to_string()];
        Policy::new(&disks, &[], &dir.join("v"), &dir.join("c/api.sock"))
    }

    #[test]
    fn disks_are_opened_where_the_given_ones_are_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let policy = policy(&root);
        assert_eq!(policy.disk_dirs, [root.join("disks")]);
        assert!(policy.disk(&root.join("disks/a.img")).is_ok());
        assert!(policy.disk(&root.join("disks/below/b.img")).is_ok());
        assert!(policy.new_disk(&root.join("disks/new.img"), 1).is_ok());
        for outside in ["else/x.img", "disks/link", "disks/../else/x.img", "disks/way/x.img"] {
            let error = policy.disk(&root.join(outside)).unwrap_err();
            assert!(matches!(error, OpenError::Outside { .. }), "{outside}: {error}");
            assert!(error.to_string().contains("--disk-dir"), "{error}");
        }
        let error = policy.new_disk(&root.join("disks/way/new.img"), 1).unwrap_err();
        assert!(matches!(error, OpenError::Outside { .. }), "{error}");
        assert!(policy.new_disk(Path::new("/"), 1).is_err());
        assert!(matches!(policy.disk(&root.join("disks/none")), Err(OpenError::Open { .. })));
        let wider = Policy::new(&[], &[root.join("else"), root.join("none")], &root, &root);
        assert_eq!(wider.disk_dirs, [root.join("else")]);
    }

    #[test]
    fn a_link_given_as_a_disk_counts_with_the_place_that_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        policy(&root);
        let given = [root.join("disks/link").display().to_string()];
        let policy = Policy::new(&given, &[], &root.join("v"), &root.join("c/api.sock"));
        assert_eq!(policy.disk_dirs, [root.join("disks"), root.join("else")]);
    }

    #[test]
    fn views_are_those_of_one_serving_and_of_earlier_ones_of_its_pool() {
        let serving = |pool, lineage| Serving { pool: uuid::Uuid::from_u128(pool), lineage };
        let one = OneServing::default();
        assert!(one.own(serving(1, 7)).is_err() && one.earlier(serving(1, 6)).is_err(), "nothing before it begins");
        one.begin(serving(1, 7)).unwrap();
        assert!(one.begin(serving(2, 7)).is_err());
        assert!(one.own(serving(1, 7)).is_ok() && one.own(serving(1, 6)).is_err());
        assert!(one.earlier(serving(1, 6)).is_ok() && one.earlier(serving(1, 7)).is_err());
        assert!(one.own(serving(2, 7)).is_err() && one.earlier(serving(2, 6)).is_err());
        one.begin(serving(1, 8)).unwrap();
        assert!(one.own(serving(1, 7)).is_err() && one.earlier(serving(1, 7)).is_ok());
    }

    #[test]
    fn sockets_are_made_directly_in_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        let policy = policy(&root);
        assert_eq!(policy.socket(&root.join("v/a.sock")).unwrap(), root.join("v/a.sock"));
        for outside in ["a.sock", "v/../a.sock", "v/..", "v/x/a.sock", "c/api.sock", "disks/a.img"] {
            assert!(policy.socket(&root.join(outside)).is_err(), "{outside}");
        }
        assert!(policy.removable(&root.join("c/api.sock")).is_ok());
        assert!(policy.removable(&root.join("c/other")).is_err());
    }
}
