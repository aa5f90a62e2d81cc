//! Files of the views that survive SIGKILL, and not a restart of the host: in shared memory, in a directory for each serving of the
//! pool.
//!
//! A serving is named by the lineage that the store was given when its epoch began, and by the boot. The next one looks for the
//! directory of the lineage that the store has: whatever else lies around, of another serving in between or of another boot, is
//! not the truth and is removed. Its own directory is complete before the epoch is raised, so that at any moment the store names
//! the one that counts.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::base::kept::{KeptFile, free_bytes};
use crate::placement::view::{Keep, KeptSegment, kept_len};

/// Shared memory.
const PLACE: &str = "/dev/shm";

/// What is left of it for others.
const LEAVE_FREE: u64 = 16 << 20;

/// Where the directories of a pool are.
pub struct Views {
    place: PathBuf,
    /// How their names begin, and end.
    pool: String,
    boot: String,
}

impl Views {
    /// Those of a pool. `None` if the system does not say which boot this is.
    #[must_use]
    pub fn of(pool: Uuid) -> Option<Views> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        Some(Views::at(Path::new(PLACE), pool, boot.trim()))
    }

    fn at(place: &Path, pool: Uuid, boot: &str) -> Views {
        Views { place: place.to_owned(), pool: format!("spanblk-{pool}-"), boot: boot.to_owned() }
    }

    fn path(&self, lineage: u64) -> PathBuf {
        self.place.join(format!("{}{lineage:016x}-{}", self.pool, self.boot))
    }

    /// The directory of a serving that ended without saying so; `None` if there is none that we can trust.
    #[must_use]
    pub fn find(&self, lineage: u64) -> Option<ViewDir> {
        let path = self.path(lineage);
        let metadata = fs::symlink_metadata(&path).ok()?;
        if !metadata.is_dir() || metadata.uid() != own_user() || metadata.mode() & 0o077 != 0 {
            log::error!(
                "{} is not a directory of this user alone, so what it says is not used; remove it",
                path.display()
            );
            return None;
        }
        Some(ViewDir { path, _in_use: None })
    }

    /// Makes the directory of a serving.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn make(&self, lineage: u64) -> io::Result<ViewDir> {
        let path = self.path(lineage);
        DirBuilder::new().mode(0o700).create(&path)?;
        let in_use = File::open(&path)?;
        in_use.lock()?;
        Ok(ViewDir { path, _in_use: Some(in_use) })
    }

    /// Removes the directories of all other servings of the pool that have ended (a copy of the pool may be served, too).
    pub fn remove_others(&self, lineage: u64) {
        let kept = self.path(lineage);
        let Ok(entries) = fs::read_dir(&self.place) else { return };
        let ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(&self.pool)) && *path != kept
        };
        for path in entries.flatten().map(|entry| entry.path()).filter(ours) {
            let Ok(directory) = File::open(&path) else { continue };
            if directory.try_lock().is_err() {
                continue;
            }
            if let Err(error) = fs::remove_dir_all(&path) {
                log::warn!("cannot remove {}: {error}; it is of no use any more", path.display());
            }
        }
    }
}

/// The directory of one serving.
pub struct ViewDir {
    path: PathBuf,
    /// Locked as long as the pool is served.
    _in_use: Option<File>,
}

impl ViewDir {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was kept of a VHD, by the first extent of each part.
    ///
    /// # Errors
    /// A file that cannot be read, or of a length that it cannot have.
    pub fn segments(&self, vhd: Uuid) -> io::Result<Vec<KeptSegment>> {
        let prefix = format!("{vhd}.");
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path)? {
            let name = entry?.file_name();
            let Some((start, extents)) = name.to_str().and_then(|name| name.strip_prefix(&prefix)).and_then(extents_of)
            else {
                continue;
            };
            let file = OpenOptions::new().read(true).write(true).open(self.path.join(&name))?;
            let kept = KeptFile::map(&file, kept_len(extents))?;
            found.push((start, KeptSegment::open(&kept, start, extents).expect("mapped with that length")));
        }
        found.sort_by_key(|(start, _)| *start);
        Ok(found.into_iter().map(|(_, segment)| segment).collect())
    }

    /// Removes it: everything is durable.
    pub fn remove(&self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("cannot remove {}: {error}", self.path.display());
        }
    }

    fn try_make(&self, vhd: Uuid, start: u32, extents: u32, len: usize) -> io::Result<Arc<KeptFile>> {
        let path = self.path.join(format!("{vhd}.{start}.{extents}"));
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path)?;
        // What is never touched takes no room; but if all of it is one day, there must be some: a page that cannot be had then ends
        // the process.
        if free_bytes(&file)? < len as u64 + LEAVE_FREE {
            let _ = fs::remove_file(&path);
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        file.set_len(len as u64)?;
        KeptFile::map(&file, len)
    }
}

impl Keep for ViewDir {
    fn make(&self, vhd: Uuid, start: u32, extents: u32) -> Option<Arc<KeptFile>> {
        let kept = self.try_make(vhd, start, extents, kept_len(extents));
        kept.inspect_err(|error| {
            log::warn!(
                "the placement of VHD {vhd} cannot be kept in {}: {error}. If the daemon is killed under its guest, the guest loses \
                 first writes that it has not flushed; give {PLACE} more room",
                self.path.display()
            );
        })
        .ok()
    }

    fn forget(&self, vhd: Uuid) {
        let prefix = format!("{vhd}.");
        let Ok(entries) = fs::read_dir(&self.path) else { return };
        for entry in entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix)) {
            // Of no harm if it stays: nobody asks for it.
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// First extent and number of extents, from the end of a file's name.
fn extents_of(name: &str) -> Option<(u32, u32)> {
    let (start, extents) = name.split_once('.')?;
    Some((start.parse().ok()?, extents.parse().ok()?))
}

fn own_user() -> u32 {
    // What we make belongs to us, whoever we are.
    fs::metadata("/proc/self").map_or(u32::MAX, |metadata| metadata.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::DiskId;
    use crate::base::units::{BlockMask, ExtentIndex, SlotIndex};
    use crate::placement::ReplicaSet;
    use crate::placement::view::VhdMap;

    const POOL: Uuid = Uuid::from_u128(1);
    const VHD: Uuid = Uuid::from_u128(2);

    #[test]
    fn a_view_is_found_as_it_was_by_lineage_and_boot() {
        let place = tempfile::tempdir().unwrap();
        let views = Views::at(place.path(), POOL, "boot");
        let keep: Arc<dyn Keep> = Arc::new(views.make(7).unwrap());
        let map = VhdMap::kept(3, VHD, &keep);
        map.place(ExtentIndex(2), ReplicaSet::single(DiskId(1), SlotIndex(5)));
        let version = map.lookup(ExtentIndex(2)).version;
        map.claim_absent(ExtentIndex(2), BlockMask(0b110), version).unwrap();
        map.release(ExtentIndex(2), BlockMask(0b110), BlockMask(0b100));
        map.reserve(5000).unwrap();
        map.grow(5000);
        map.place(ExtentIndex(4999), ReplicaSet::single(DiskId(0), SlotIndex(6)));
        drop(map);

        let found = views.find(7).unwrap();
        let seen: Vec<_> =
            found.segments(VHD).unwrap().iter().flat_map(|part| part.iter().collect::<Vec<_>>()).collect();
        let seen: Vec<_> = seen.iter().map(|(extent, kept)| (extent.0, kept.replicas, kept.present.0)).collect();
        let single = |disk, slot| ReplicaSet::single(DiskId(disk), SlotIndex(slot));
        assert_eq!(seen, [(2, single(1, 5), 0b100), (4999, single(0, 6), 0)]);
        assert!(views.find(8).is_none(), "another serving");
        assert!(Views::at(place.path(), POOL, "other").find(7).is_none(), "another boot");
        assert!(Views::at(place.path(), VHD, "boot").find(7).is_none(), "another pool");

        keep.forget(VHD);
        assert!(found.segments(VHD).unwrap().is_empty());
        let next = views.make(9).unwrap();
        views.remove_others(9);
        assert!(views.find(7).is_some(), "it is still served");
        drop(keep);
        views.remove_others(9);
        assert!(views.find(7).is_none() && views.find(9).is_some());
        drop(next);
    }

    #[test]
    fn a_directory_that_others_could_have_made_is_not_trusted() {
        use std::os::unix::fs::PermissionsExt;
        let place = tempfile::tempdir().unwrap();
        let views = Views::at(place.path(), POOL, "boot");
        let path = views.make(7).unwrap().path().to_owned();
        assert!(views.find(7).is_some());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o770)).unwrap();
        assert!(views.find(7).is_none());
        let elsewhere = place.path().join("elsewhere");
        fs::rename(&path, &elsewhere).unwrap();
        fs::set_permissions(&elsewhere, fs::Permissions::from_mode(0o700)).unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        assert!(views.find(7).is_none());
    }

    #[test]
    fn a_file_of_another_length_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let dir = Views::at(place.path(), POOL, "boot").make(7).unwrap();
        let file = File::create(dir.path.join(format!("{VHD}.0.100"))).unwrap();
        assert!(dir.segments(VHD).is_err());
        file.set_len(kept_len(100) as u64).unwrap();
        assert_eq!(dir.segments(VHD).unwrap().len(), 1);
    }
}
