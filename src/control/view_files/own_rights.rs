//! Files of views, made and opened by name with the rights of this process.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::{ENDED, MARK, PLACE, Part, STOPPED_FOR_ALL, Serving, ViewFileError, ViewFiles};
use crate::base::kept::free_bytes;
use crate::placement::view::kept_len;

/// What is in the files and how, counted up when that changes. In the names of directories.
const FORMAT: u32 = 2;

/// What is left of it for others, in bytes.
const LEAVE_FREE: u64 = 16 << 20;

/// With the rights of this process.
#[derive(Clone, Debug)]
pub struct OwnRights {
    place: PathBuf,
    boot: Option<String>,
    trusted: Vec<u32>,
}

impl OwnRights {
    /// Trusts what this process's user has made, and `account`, whose rights the daemon will have.
    #[must_use]
    pub fn new(account: Option<u32>) -> OwnRights {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok().map(|boot| boot.trim().to_owned());
        OwnRights { boot, ..OwnRights::at(Path::new(PLACE), "", account) }
    }

    /// In another place than shared memory, and in a boot of that name.
    #[must_use]
    pub fn at(place: &Path, boot: &str, account: Option<u32>) -> OwnRights {
        let own = rustix::process::geteuid().as_raw();
        let trusted = [Some(own), account].into_iter().flatten().collect();
        OwnRights { place: place.to_owned(), boot: Some(boot.to_owned()), trusted }
    }

    /// The directory of a serving in this boot.
    fn path(&self, serving: Serving) -> Result<PathBuf, ViewFileError> {
        Ok(self.place.join(format!("{}.{FORMAT}", self.name(serving)?)))
    }

    /// Its name but for the format.
    fn name(&self, serving: Serving) -> Result<String, ViewFileError> {
        let boot = self.boot.as_deref().ok_or(ViewFileError::NoBoot)?;
        Ok(format!("{}{:016x}-{boot}", prefix(serving.pool), serving.lineage))
    }

    /// The directories of a serving by other versions.
    fn of_other_formats(&self, serving: Serving) -> Result<Vec<PathBuf>, ViewFileError> {
        let (name, ours) = (self.name(serving)?, self.path(serving)?);
        let entries = fs::read_dir(&self.place).map_err(system("list", &self.place))?.flatten();
        let same =
            |path: &PathBuf| path.file_name().is_some_and(|file| file.as_encoded_bytes().starts_with(name.as_bytes()));
        Ok(entries.map(|entry| entry.path()).filter(|path| same(path) && *path != ours).collect())
    }

    /// There is nothing that can be used: whether nothing was left, or what was left is not needed. Whoever made a directory that says so has
    /// not taken another one away: the names are taken by those who made the first.
    fn without(&self, ended: Serving, of_another: Option<ViewFileError>) -> Result<(), ViewFileError> {
        let mut not_needed = None;
        if let Some(error) = of_another {
            let path = self.path(ended)?;
            if !is_not_needed(&path) {
                return Err(error);
            }
            not_needed = Some(path);
        }
        for path in self.of_other_formats(ended)? {
            if !is_not_needed(&path) {
                return Err(ViewFileError::OtherFormat { path });
            }
            not_needed = Some(path);
        }
        not_needed.map_or(Ok(()), |path| Err(ViewFileError::NotNeeded { path }))
    }

    /// A directory that only those whom we trust can have made.
    fn directory(&self, path: &Path) -> Result<Option<File>, ViewFileError> {
        match fs::symlink_metadata(path) {
            Ok(metadata) => self.trust(path, &metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(system("look at", path)(source)),
        }
        let flags = libc::O_DIRECTORY | libc::O_NOFOLLOW;
        let opened = OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(system("open", path))?;
        self.trust(path, &opened.metadata().map_err(system("look at", path))?)?;
        Ok(Some(opened))
    }

    fn trust(&self, path: &Path, metadata: &fs::Metadata) -> Result<(), ViewFileError> {
        let path = path.to_owned();
        if !self.trusted.contains(&metadata.uid()) {
            return Err(ViewFileError::OfAnother { path, owner: metadata.uid() });
        }
        if !metadata.is_dir() || metadata.mode() & 0o077 != 0 {
            return Err(ViewFileError::NotAlone { path });
        }
        Ok(())
    }
}

impl ViewFiles for OwnRights {
    fn begin(&self, serving: Serving) -> Result<OwnedFd, ViewFileError> {
        let path = self.path(serving)?;
        DirBuilder::new().mode(0o700).create(&path).map_err(system("make", &path))?;
        let gone = || system("open", &path)(io::ErrorKind::NotFound.into());
        let made = self.directory(&path)?.ok_or_else(gone)?;
        made.lock().map_err(system("lock", &path))?;
        Ok(made.into())
    }

    fn make(&self, serving: Serving, part: Part) -> Result<OwnedFd, ViewFileError> {
        let (path, len) = (self.path(serving)?.join(part.name()), kept_len(part.extents) as u64);
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(system("make", &path))?;
        // What is never touched takes no room; but if all of it is one day, there must be some: a page that cannot be had then ends
        // the daemon.
        let room = free_bytes(&file).map_err(system("look at", &path))?;
        let set = if room < len + LEAVE_FREE { Err(ViewFileError::NoRoom { len }) } else { Ok(()) }
            .and_then(|()| file.set_len(len).map_err(system("set the length of", &path)));
        if set.is_err() {
            let _ = fs::remove_file(&path);
        }
        set.map(|()| file.into())
    }

    fn forget(&self, serving: Serving, vhd: Uuid) -> Result<(), ViewFileError> {
        let path = self.path(serving)?;
        let of_vhd = |name: &str| Part::named(name).is_some_and(|part| part.vhd == vhd);
        for entry in fs::read_dir(&path).map_err(system("list", &path))?.flatten() {
            if entry.file_name().to_str().is_some_and(of_vhd) {
                fs::remove_file(entry.path()).map_err(system("remove", &entry.path()))?;
            }
        }
        Ok(())
    }

    fn end(&self, serving: Serving) -> Result<(), ViewFileError> {
        let path = self.path(serving)?;
        fs::remove_dir_all(&path).map_err(system("remove", &path))
    }

    fn find(&self, ended: Serving) -> Result<Option<(OwnedFd, PathBuf)>, ViewFileError> {
        let path = self.path(ended)?;
        let found = match self.directory(&path) {
            Ok(Some(found)) => found,
            Ok(None) => return self.without(ended, None).map(|()| None),
            Err(error @ ViewFileError::OfAnother { .. }) => return self.without(ended, Some(error)).map(|()| None),
            Err(error) => return Err(error),
        };
        match found.try_lock() {
            Ok(()) => Ok(Some((found.into(), path))),
            Err(fs::TryLockError::WouldBlock) => Err(ViewFileError::InUse(path)),
            Err(fs::TryLockError::Error(source)) => Err(system("lock", &path)(source)),
        }
    }

    fn open_ended(&self, ended: Serving, part: Part) -> Result<OwnedFd, ViewFileError> {
        let path = self.path(ended)?.join(part.name());
        // Whoever may make files in there could have made something else.
        let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path);
        let file = file.map_err(system("open", &path))?;
        let metadata = file.metadata().map_err(system("look at", &path))?;
        if !metadata.is_file() || metadata.nlink() != 1 || !self.trusted.contains(&metadata.uid()) {
            return Err(ViewFileError::OfAnother { path, owner: metadata.uid() });
        }
        Ok(file.into())
    }

    fn remove_others(&self, serving: Serving) -> Result<(), ViewFileError> {
        let (kept, prefix) = (self.path(serving)?, prefix(serving.pool));
        let of_pool = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(&prefix)) && *path != kept
        };
        let entries = fs::read_dir(&self.place).map_err(system("list", &self.place))?;
        for path in entries.flatten().map(|entry| entry.path()).filter(of_pool) {
            // What others have made is left to them.
            let Ok(Some(directory)) = self.directory(&path) else { continue };
            if directory.try_lock().is_err() {
                continue;
            }
            if let Err(error) = fs::remove_dir_all(&path) {
                log::warn!("cannot remove {}: {error}; it is of no use any more", path.display());
            }
        }
        Ok(())
    }
}

/// Whether a directory that is not ours to use says that nobody needs it.
fn is_not_needed(directory: &Path) -> bool {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let Ok(file) = OpenOptions::new().read(true).custom_flags(flags).open(directory.join(MARK.name())) else {
        return false;
    };
    let mut word = [0; size_of::<u64>()];
    let read = file.read_exact_at(&mut word, (ENDED * size_of::<u64>()) as u64);
    read.is_ok() && u64::from_ne_bytes(word) == STOPPED_FOR_ALL
}

/// How the names of a pool's directories begin.
fn prefix(pool: Uuid) -> String {
    format!("spanblk-{pool}-")
}

fn system(what: &str, path: &Path) -> impl FnOnce(io::Error) -> ViewFileError {
    let (what, path) = (what.to_owned(), path.to_owned());
    move |source| ViewFileError::System { what, path, source }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, chown, symlink};

    use super::super::STOPPED;
    use super::*;
    use crate::base::kept::PAGE;

    const SERVING: Serving = Serving { pool: Uuid::from_u128(1), lineage: 7 };
    const PART: Part = Part { vhd: Uuid::from_u128(2), start: 64, extents: 100 };

    fn only_entry(place: &Path) -> PathBuf {
        let [entry] = fs::read_dir(place).unwrap().collect::<Vec<_>>().try_into().unwrap();
        entry.unwrap().path()
    }

    /// The daemon of a directory has ended like that.
    fn say(directory: &Path, how: u64) {
        say_in(&directory.join(MARK.name()), how);
    }

    fn say_in(mark: &Path, how: u64) {
        let mark = OpenOptions::new().write(true).create(true).truncate(false).open(mark).unwrap();
        mark.write_all_at(&how.to_ne_bytes(), PAGE as u64 - 8).unwrap();
    }

    #[test]
    fn files_are_named_by_what_is_in_them() {
        assert_eq!(Part::named(&PART.name()), Some(PART));
        for other in
            ["", "x.0.1", "00000000-0000-0000-0000-000000000002.0", "00000000-0000-0000-0000-000000000002.0.1.2"]
        {
            assert_eq!(Part::named(other), None, "{other}");
        }
    }

    #[test]
    fn a_serving_that_has_not_ended_is_in_use() {
        let place = tempfile::tempdir().unwrap();
        let files = OwnRights::at(place.path(), "boot", None);
        let in_use = files.begin(SERVING).unwrap();
        let next = Serving { lineage: 9, ..SERVING };
        let _next = files.begin(next).unwrap();
        assert!(matches!(files.find(SERVING), Err(ViewFileError::InUse(_))));
        files.remove_others(next).unwrap();
        drop(in_use);
        assert!(files.find(SERVING).unwrap().is_some());
        files.remove_others(next).unwrap();
        assert!(files.find(SERVING).unwrap().is_none());
    }

    #[test]
    fn a_directory_that_others_could_have_made_is_not_trusted() {
        let place = tempfile::tempdir().unwrap();
        let files = OwnRights::at(place.path(), "boot", None);
        drop(files.begin(SERVING).unwrap());
        let path = only_entry(place.path());
        assert!(files.find(SERVING).unwrap().is_some());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(matches!(files.find(SERVING), Err(ViewFileError::NotAlone { .. })));
        let elsewhere = tempfile::tempdir().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).unwrap();
        fs::rename(&path, elsewhere.path().join("x")).unwrap();
        symlink(elsewhere.path().join("x"), &path).unwrap();
        assert!(matches!(files.find(SERVING), Err(ViewFileError::NotAlone { .. })));
        fs::remove_file(&path).unwrap();
        fs::rename(elsewhere.path().join("x"), &path).unwrap();
        if rustix::process::geteuid().is_root() {
            chown(&path, Some(65_534), None).unwrap();
            let error = files.find(SERVING).unwrap_err().to_string();
            assert!(error.contains("user 65534") && error.contains("start the daemon as that user"), "{error}");
            files.remove_others(Serving { lineage: 9, ..SERVING }).unwrap();
            assert!(path.exists(), "left to its owner");
            assert!(OwnRights::at(place.path(), "boot", Some(65_534)).find(SERVING).unwrap().is_some());
            say(&path, STOPPED_FOR_ALL);
            assert!(matches!(files.find(SERVING), Err(ViewFileError::NotNeeded { .. })), "and it says so");
            say(&path, STOPPED);
            assert!(matches!(files.find(SERVING), Err(ViewFileError::OfAnother { .. })), "not for all");
            let mark = path.join(MARK.name());
            fs::rename(&mark, place.path().join("elsewhere")).unwrap();
            say_in(&place.path().join("elsewhere"), STOPPED_FOR_ALL);
            symlink(place.path().join("elsewhere"), &mark).unwrap();
            assert!(matches!(files.find(SERVING), Err(ViewFileError::OfAnother { .. })), "a link");
        }
    }

    #[test]
    fn what_another_version_has_left_is_named() {
        let place = tempfile::tempdir().unwrap();
        let files = OwnRights::at(place.path(), "boot", None);
        drop(files.begin(SERVING).unwrap());
        let path = only_entry(place.path());
        let other = place.path().join(path.file_name().unwrap().to_str().unwrap().replace("boot.2", "boot.1"));
        fs::rename(&path, &other).unwrap();
        let error = files.find(SERVING).unwrap_err().to_string();
        assert!(error.contains(other.to_str().unwrap()) && error.contains("start that version"), "{error}");
        say(&other, STOPPED);
        assert!(matches!(files.find(SERVING), Err(ViewFileError::OtherFormat { .. })), "not for all");
        say(&other, STOPPED_FOR_ALL);
        assert!(matches!(files.find(SERVING), Err(ViewFileError::NotNeeded { .. })));
        let third = place.path().join(path.file_name().unwrap().to_str().unwrap().replace("boot.2", "boot.3"));
        fs::create_dir(&third).unwrap();
        assert!(matches!(files.find(SERVING), Err(ViewFileError::OtherFormat { .. })), "one of them is needed");
        assert!(files.find(Serving { lineage: 8, ..SERVING }).unwrap().is_none(), "another serving");
        files.remove_others(Serving { lineage: 9, ..SERVING }).unwrap();
        assert!(!other.exists());
    }

    #[test]
    fn links_in_a_directory_are_not_followed() {
        let place = tempfile::tempdir().unwrap();
        let files = OwnRights::at(place.path(), "boot", None);
        let _in_use = files.begin(SERVING).unwrap();
        drop(files.make(SERVING, PART).unwrap());
        assert!(files.make(SERVING, PART).is_err(), "it is there");
        let path = only_entry(place.path()).join(PART.name());
        assert_eq!(fs::metadata(&path).unwrap().len(), kept_len(PART.extents) as u64);
        drop(files.open_ended(SERVING, PART).unwrap());
        let precious = place.path().join("precious");
        fs::rename(&path, &precious).unwrap();
        symlink(&precious, &path).unwrap();
        assert!(files.open_ended(SERVING, PART).is_err(), "a link");
        fs::remove_file(&path).unwrap();
        fs::hard_link(&precious, &path).unwrap();
        assert!(files.open_ended(SERVING, PART).is_err(), "another name");
        files.forget(SERVING, Uuid::from_u128(5)).unwrap();
        assert!(path.exists(), "of another VHD");
        files.forget(SERVING, PART.vhd).unwrap();
        assert!(!path.exists() && precious.exists());
        let too_long = Part { extents: u32::MAX, ..PART };
        let error = files.make(SERVING, too_long).unwrap_err();
        assert!(matches!(error, ViewFileError::NoRoom { .. }), "{error}");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
        files.end(SERVING).unwrap();
        assert!(!path.parent().unwrap().exists());
    }
}
