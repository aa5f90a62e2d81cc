//! The views that survive SIGKILL, and not a restart of the host: in shared memory, in a directory for each serving of the pool.
//!
//! A serving is named by the lineage that the store was given when its epoch began, and by the boot. The next one looks for the
//! directory of the lineage that the store has: whatever else lies around, of another serving in between or of another boot, is
//! not the truth and is removed. Its own directory is complete before the epoch is raised, so that at any moment the store names
//! the one that counts.
//!
//! A daemon in its sandbox opens nothing by name: files are made, opened and removed by whoever has the right to
//! (`control::view_files`). It maps them.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{Dir, FlockOperation};
use uuid::Uuid;

use crate::base::clock;
use crate::base::ids::DiskId;
use crate::base::kept::KeptFile;
use crate::control::serve::serving::{Mark, Presence, ServingMark};
use crate::control::view_files::{MARK, PLACE, Part, STOPPED, STOPPED_FOR_ALL, Serving, ViewFileError, ViewFiles};
use crate::disk::file::FileDisk;
use crate::placement::view::{Keep, KeptSegment, kept_len};
use crate::shared::last_active;
use crate::store::page::Stamp;

/// How long a daemon that was killed may still have its files, and how often that is looked at. Its disks are free already.
const RELEASE_PATIENCE: Duration = Duration::from_secs(5);
const RELEASE_PAUSE: Duration = Duration::from_millis(10);

/// Those of a pool.
pub struct Views {
    pool: Uuid,
    files: Arc<dyn ViewFiles>,
}

impl Views {
    /// Those of a pool, in files that are made by `files`.
    #[must_use]
    pub fn of(pool: Uuid, files: Arc<dyn ViewFiles>) -> Views {
        Views { pool, files }
    }

    /// Makes the directory of a serving.
    ///
    /// # Errors
    /// See [`ViewFileError`].
    pub fn make(&self, lineage: u64) -> Result<ViewDir, ViewFileError> {
        let serving = Serving { pool: self.pool, lineage };
        let in_use = self.files.begin(serving)?;
        let mark = self.files.make(serving, MARK).and_then(|file| {
            let len = kept_len(MARK.extents);
            Mark::begin(File::from(file), len).map_err(failed("take memory for", MARK))
        });
        let mark = mark.inspect_err(|_| drop(self.files.end(serving)))?;
        Ok(ViewDir {
            serving,
            files: Arc::clone(&self.files),
            mark,
            is_full: AtomicBool::new(false),
            lacks_some: AtomicBool::new(false),
            in_use,
        })
    }

    /// What a serving has left that was killed, or that ended with something the next one has to know; `None` if there is nothing.
    ///
    /// # Errors
    /// There is something, and it cannot be used.
    pub fn find(&self, lineage: u64) -> Result<Option<Left>, ViewFileError> {
        let serving = Serving { pool: self.pool, lineage };
        let deadline = clock::now().after(RELEASE_PATIENCE);
        let found = loop {
            match self.files.find(serving) {
                Err(ViewFileError::InUse(_)) if clock::now() < deadline => std::thread::sleep(RELEASE_PAUSE),
                // Views of before a restart could not be told apart.
                Err(ViewFileError::NoBoot) => return Ok(None),
                Err(error @ ViewFileError::InUse(_)) => {
                    log::warn!("this pool is a copy of one that is being served, as it was on its disks: {error}");
                    return Ok(None);
                }
                Err(error @ ViewFileError::NotNeeded { .. }) => {
                    log::warn!(
                        "{error}. This daemon goes on without it, and does not know which VMM had a VHD last: the first that starts its \
                         virtqueues has it"
                    );
                    return Ok(None);
                }
                found => break found?,
            }
        };
        let Some((directory, path)) = found else { return Ok(None) };
        let parts = list(&directory).map_err(|source| ViewFileError::System {
            what: "list".to_owned(),
            path: path.clone(),
            source,
        })?;
        let mark = File::from(self.files.open_ended(serving, MARK)?);
        let mark = ServingMark::open(mark).map_err(failed("use", MARK))?;
        Ok(Some(Left { serving, files: Arc::clone(&self.files), path, parts, mark, _in_use: directory }))
    }

    /// Removes what all other servings of the pool that have ended have left.
    pub fn remove_others(&self, lineage: u64) {
        if let Err(error) = self.files.remove_others(Serving { pool: self.pool, lineage }) {
            log::warn!("views of daemons before this one stay in shared memory: {error}");
        }
    }
}

fn failed(what: &str, part: Part) -> impl FnOnce(io::Error) -> ViewFileError {
    move |source| ViewFileError::System { what: what.to_owned(), path: part.name().into(), source }
}

/// Parts by VHD, in order.
fn list(directory: &OwnedFd) -> io::Result<HashMap<Uuid, Vec<Part>>> {
    let mut parts: HashMap<Uuid, Vec<Part>> = HashMap::new();
    // The descriptor itself, not one that is opened by the name '.'.
    for entry in Dir::new(directory.try_clone()?)? {
        if let Some(part) = entry?.file_name().to_str().ok().and_then(Part::named) {
            parts.entry(part.vhd).or_default().push(part);
        }
    }
    parts.values_mut().for_each(|parts| parts.sort_unstable());
    Ok(parts)
}

/// What an earlier serving has left.
pub struct Left {
    serving: Serving,
    files: Arc<dyn ViewFiles>,
    path: PathBuf,
    parts: HashMap<Uuid, Vec<Part>>,
    mark: ServingMark,
    /// Nobody else takes it, or away.
    _in_use: OwnedFd,
}

impl Left {
    /// Where it is, to be told to people.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the serving says of itself.
    #[must_use]
    pub fn mark(&self) -> &ServingMark {
        &self.mark
    }

    /// What was kept of a VHD, in the order of its extents.
    ///
    /// # Errors
    /// A file that cannot be read, or of a length that it cannot have.
    pub fn segments(&self, vhd: Uuid) -> Result<Vec<KeptSegment>, ViewFileError> {
        let parts = self.parts.get(&vhd).map_or([].as_slice(), Vec::as_slice);
        let of_view = parts.iter().filter(|part| part.start != last_active::PART);
        of_view.filter_map(|part| self.segment(*part).transpose()).collect()
    }

    /// Whose rings of a VHD ran last (`shared::last_active`); `None` if that was not kept.
    ///
    /// # Errors
    /// A file that cannot be opened.
    pub fn last_active(&self, vhd: Uuid) -> Result<Option<File>, ViewFileError> {
        let part = self.parts.get(&vhd).and_then(|parts| parts.iter().find(|part| part.start == last_active::PART));
        part.map(|part| self.files.open_ended(self.serving, *part).map(File::from)).transpose()
    }

    /// `None`: the file was about to be made, so that nothing was placed there yet.
    fn segment(&self, part: Part) -> Result<Option<KeptSegment>, ViewFileError> {
        let file = File::from(self.files.open_ended(self.serving, part)?);
        KeptSegment::open(file, part.start, part.extents).map_err(failed("use", part))
    }
}

/// The directory of this serving.
pub struct ViewDir {
    serving: Serving,
    files: Arc<dyn ViewFiles>,
    mark: Mark,
    /// That was told.
    is_full: AtomicBool,
    /// There was no file for something.
    lacks_some: AtomicBool,
    /// Locked as long as the pool is served.
    in_use: OwnedFd,
}

impl ViewDir {
    /// Everything is durable: says so in what is left for the next daemon, or removes it if that need know nothing of it. `is_awaited`: VMMs
    /// that it served may come back; `is_moved`: and others from which their VMs have moved.
    pub fn end(&self, is_awaited: bool, is_moved: bool) {
        // What a disk that has failed may lack is known by the note of it until the table says so.
        let has_notes = self.mark.has_notes();
        if is_awaited || has_notes {
            self.mark.end(if has_notes || is_moved { STOPPED } else { STOPPED_FOR_ALL });
        } else {
            self.remove();
        }
    }

    /// Removes it: it is of no use.
    pub fn remove(&self) {
        if let Err(error) = self.files.end(self.serving) {
            log::warn!("{error}; it is of no use any more");
        }
    }

    /// Leaves it to whoever opens the pool next, as if this daemon had been killed. Nothing is placed any more.
    pub fn let_go(&self) {
        if let Err(error) = rustix::fs::flock(&self.in_use, FlockOperation::Unlock) {
            log::warn!("the placement of VHDs stays locked in shared memory: {error}");
        }
    }

    /// The store has this commit durably. Before anybody is told so.
    pub fn note_durable(&self, stamp: Stamp) {
        self.mark.note_durable(stamp);
    }

    /// A disk is served from now on. Before anything is placed there. If it fails, the next daemon is told.
    pub fn note_disk(&self, disk: DiskId, dev: &FileDisk) {
        dev.failed().note_in(self.mark.note_disk(disk, Presence::of(dev)));
    }

    /// Whether there was always room for everything.
    #[must_use]
    pub fn has_all(&self) -> bool {
        !self.is_full.load(Ordering::Relaxed) && !self.lacks_some.load(Ordering::Relaxed)
    }

    /// What is said of the disks of the pool.
    #[must_use]
    pub fn mark(&self) -> &Mark {
        &self.mark
    }

    fn try_make(&self, part: Part) -> Result<Arc<KeptFile>, ViewFileError> {
        let file = File::from(self.files.make(self.serving, part)?);
        KeptFile::map(file, kept_len(part.extents)).map_err(failed("map", part))
    }
}

impl Keep for ViewDir {
    fn make(&self, vhd: Uuid, start: u32, extents: u32) -> Option<Arc<KeptFile>> {
        let kept = self.try_make(Part { vhd, start, extents });
        kept.inspect_err(|error| {
            self.lacks_some.store(true, Ordering::Relaxed);
            log::warn!(
                "the placement of VHD {vhd} is not kept in shared memory: {error}. If the daemon is killed under its guest, the guest \
                 loses first writes that it has not flushed; give {PLACE} more room if that is it, then restart the daemon"
            );
        })
        .ok()
    }

    fn is_full(&self, vhd: Uuid, error: &io::Error) {
        if self.is_full.swap(true, Ordering::Relaxed) {
            return;
        }
        log::error!(
            "{PLACE} is full ({error}): of some extents of VHD {vhd}, and from now on maybe of others, it is not kept where they are. If the \
             daemon is killed under its guests, they lose first writes there that they have not flushed; give {PLACE} more room, \
             then restart the daemon"
        );
    }

    fn forget(&self, vhd: Uuid) {
        // Of no harm if it stays: nobody asks for it.
        if let Err(error) = self.files.forget(self.serving, vhd) {
            log::debug!("files of VHD {vhd}, which was deleted, stay in shared memory: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::{BlockMask, ExtentIndex, SlotIndex};
    use crate::control::view_files::OwnRights;
    use crate::placement::ReplicaSet;
    use crate::placement::view::VhdMap;
    use crate::shared::last_active::LastActive;
    use crate::shared::process::Process;

    const POOL: Uuid = Uuid::from_u128(1);
    const VHD: Uuid = Uuid::from_u128(2);
    const GONE: Uuid = Uuid::from_u128(3);

    fn views_in(place: &Path, pool: Uuid, boot: &str) -> Views {
        Views::of(pool, Arc::new(OwnRights::at(place, boot, None)))
    }

    #[test]
    fn a_view_is_found_as_it_was_by_lineage_and_boot() {
        let place = tempfile::tempdir().unwrap();
        let views = views_in(place.path(), POOL, "boot");
        let keep: Arc<dyn Keep> = Arc::new(views.make(7).unwrap());
        let map = VhdMap::kept(3, false, VHD, &keep);
        map.place(ExtentIndex(2), ReplicaSet::single(DiskId(1), SlotIndex(5)));
        let version = map.lookup(ExtentIndex(2)).version;
        map.claim_absent(ExtentIndex(2), BlockMask(0b110), version).unwrap();
        map.release(ExtentIndex(2), BlockMask(0b110), BlockMask(0b100));
        map.reserve(5000).unwrap();
        map.grow(5000);
        map.place(ExtentIndex(4999), ReplicaSet::single(DiskId(0), SlotIndex(6)));
        drop(VhdMap::kept(3, false, GONE, &keep));
        keep.forget(GONE);
        // The end of the process takes the lock along.
        drop((map, keep));

        let found = views.find(7).unwrap().unwrap();
        assert!(found.segments(GONE).unwrap().is_empty(), "it was deleted");
        let mut seen = Vec::new();
        for part in found.segments(VHD).unwrap() {
            part.read(|extent, kept| seen.push((extent.0, kept.replicas, kept.present.0))).unwrap();
        }
        let single = |disk, slot| ReplicaSet::single(DiskId(disk), SlotIndex(slot));
        assert_eq!(seen, [(2, single(1, 5), 0b100), (4999, single(0, 6), 0)]);
        let none = |views: &Views, lineage| views.find(lineage).unwrap().is_none();
        assert!(none(&views, 8), "another serving");
        assert!(none(&views_in(place.path(), POOL, "other"), 7), "another boot");
        assert!(none(&views_in(place.path(), GONE, "boot"), 7), "another pool");
        drop(found);
        let next = views.make(9).unwrap();
        views.remove_others(9);
        assert!(none(&views, 7));
        next.remove();
        drop(next);
        assert!(none(&views, 9));
    }

    #[test]
    fn whose_rings_ran_last_is_found_and_is_no_part_of_the_view() {
        let place = tempfile::tempdir().unwrap();
        let views = views_in(place.path(), POOL, "boot");
        let keep: Arc<dyn Keep> = Arc::new(views.make(7).unwrap());
        let ours = Process::of(std::process::id()).unwrap().unwrap();
        let map = VhdMap::kept(3, false, VHD, &keep);
        let last = LastActive::kept(VHD, &keep);
        last.set_last(Some(ours));
        drop((map, last, keep));
        let found = views.find(7).unwrap().unwrap();
        assert!(found.last_active(GONE).unwrap().is_none());
        let next = LastActive::default();
        next.take_over(&found.last_active(VHD).unwrap().unwrap()).unwrap();
        assert_eq!(next.last().map(|last| last.process), Some(ours));
        let mut seen = 0;
        let segments = found.segments(VHD).unwrap();
        segments.iter().for_each(|segment| segment.read(|_, _| seen += 1).unwrap());
        assert_eq!((segments.len(), seen), (1, 0));
    }

    #[test]
    fn a_file_of_another_length_is_an_error() {
        let place = tempfile::tempdir().unwrap();
        let views = views_in(place.path(), POOL, "boot");
        drop(views.make(7).unwrap());
        let [directory] = std::fs::read_dir(place.path()).unwrap().collect::<Vec<_>>().try_into().unwrap();
        let file =
            |start: u32| File::create(directory.as_ref().unwrap().path().join(format!("{VHD}.{start}.100"))).unwrap();
        let (first, _killed_before_it_had_a_length) = (file(0), file(100));
        first.set_len(kept_len(100) as u64 - 1).unwrap();
        let found = views.find(7).unwrap().unwrap();
        assert!(found.segments(VHD).is_err());
        first.set_len(kept_len(100) as u64).unwrap();
        assert_eq!(found.segments(VHD).unwrap().len(), 1, "what has no length has nothing to say of the others");
    }
}
