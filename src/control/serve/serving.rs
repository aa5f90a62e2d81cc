//! What a serving of a pool says of itself beside its views: how far its table was durable, on which disks, and which of these have
//! failed. A view is the truth only together with them: of a copy of the disks, of an older state of them, or of one that has lost
//! what it had not synced, it would say that blocks are written which are not.

use std::fmt;
use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::ids::DiskId;
use crate::base::kept::{KeptFile, PAGE, Words};
use crate::base::limits::DISKS_MAX;
use crate::control::view_files::ENDED;
use crate::disk::file::FileDisk;
use crate::disk::identity::DiskIdentity;
use crate::shared::failure::FAILED;
use crate::store::page::Stamp;

/// Words of the stamp: epoch and commit.
const EPOCH: usize = 0;
const COMMIT: usize = 1;
/// Then, for each disk, what it is (0: none), two numbers, its sequence number, and what is noted of it.
const DISKS: usize = 2;
const OF_DISK: usize = 5;
const NOTES: usize = 4;
const DEVICE: u64 = 1;
const FILE: u64 = 2;

/// A note beside [`FAILED`]: the disk is in doubt until the table says what it may lack.
const UNSETTLED: u64 = 1 << 1;

const WORDS: usize = DISKS + DISKS_MAX * OF_DISK;

const _: () = assert!(WORDS <= ENDED);

/// A disk as long as it is here without a break.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Presence {
    /// Which it is.
    pub identity: DiskIdentity,
    /// See [`FileDisk::sequence`].
    pub sequence: u64,
}

impl Presence {
    /// That of an open disk.
    #[must_use]
    pub fn of(disk: &FileDisk) -> Presence {
        Presence { identity: *disk.identity(), sequence: disk.sequence() }
    }

    fn words(self) -> [u64; NOTES] {
        match self.identity {
            DiskIdentity::Device { number } => [DEVICE, number, 0, self.sequence],
            DiskIdentity::File { device, inode } => [FILE, device, inode, self.sequence],
        }
    }
}

/// Why it is not certain that a disk has what was written to it and not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Doubt {
    /// It has failed: what it had not synced may be lost.
    Failed,
    /// It is a copy, or was away, maybe without power.
    Other,
    /// One of these when the daemon before opened the pool, which was killed before the table said so.
    Unsettled,
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Doubt::Failed => "has failed, so that what it had not synced may be lost",
            Doubt::Other => {
                "is another device or file than the one that was served, as it is a copy or was away, so that it may not have what was not \
                 synced"
            }
            Doubt::Unsettled => "was found to lack something by a daemon that was killed before the table said so",
        })
    }
}

/// Views are of a later time than the table.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("it goes with a placement table of {seen}, and the disks have {found}: they were put back to an older state")]
pub struct OlderTable {
    /// What guests were told.
    seen: Stamp,
    /// What there is.
    found: Stamp,
}

/// Whether a disk that is here is another one than was noted, or was away since. Whoever noted no sequence did not know it: for files,
/// earlier versions did not ask.
fn is_another(noted: [u64; NOTES], here: [u64; NOTES]) -> bool {
    let ([noted @ .., sequence], [here @ .., sequence_here]) = (noted, here);
    noted != here || sequence != 0 && sequence != sequence_here
}

fn map(file: File, len: usize) -> io::Result<(Arc<KeptFile>, Words<AtomicU64>)> {
    let kept = KeptFile::map(file, len)?;
    kept.reserve(0..PAGE)?;
    let words = Words::within(&kept, 0, u32::try_from(ENDED + 1).expect("a page"));
    Ok((kept, words))
}

/// What is noted of a disk, also by whoever finds that it has failed.
fn notes_of(kept: &Arc<KeptFile>, disk: DiskId) -> Words<AtomicU64> {
    Words::within(kept, at(disk, NOTES) * size_of::<u64>(), 1)
}

fn at(disk: DiskId, word: usize) -> usize {
    DISKS + disk.index() * OF_DISK + word
}

/// That of a serving that goes on, written at every commit.
pub struct Mark {
    kept: Arc<KeptFile>,
    words: Words<AtomicU64>,
}

impl Mark {
    /// In a new file of `len` bytes.
    ///
    /// # Errors
    /// There is no memory for it, or what else the kernel says.
    pub fn begin(file: File, len: usize) -> io::Result<Mark> {
        map(file, len).map(|(kept, words)| Mark { kept, words })
    }

    /// The store has this commit durably.
    pub fn note_durable(&self, stamp: Stamp) {
        // Of one serving there is one epoch.
        self.words[EPOCH].store(stamp.epoch, Ordering::Release);
        self.words[COMMIT].fetch_max(stamp.commit, Ordering::AcqRel);
    }

    /// A disk is served from now on. Returns where it is to be noted that it has failed.
    #[must_use]
    pub fn note_disk(&self, disk: DiskId, presence: Presence) -> Words<AtomicU64> {
        self.put(disk, presence.words());
        notes_of(&self.kept, disk)
    }

    /// A disk is missing that an earlier serving had: what that has written there is all that there is.
    pub fn note_missing(&self, disk: DiskId, before: &ServingMark) {
        self.put(disk, before.disk_words(disk));
    }

    /// A disk has left the pool. Another one may have its number later.
    pub fn note_left(&self, disk: DiskId) {
        self.put(disk, [0; NOTES]);
    }

    /// Until [`Mark::settle`], what is on the disk is in doubt, also should it not fail.
    pub fn doubt(&self, disk: DiskId) {
        self.words[at(disk, NOTES)].fetch_or(UNSETTLED, Ordering::AcqRel);
    }

    /// The table says which replicas on that disk may lack something.
    pub fn settle(&self, disk: DiskId) {
        self.words[at(disk, NOTES)].fetch_and(!UNSETTLED, Ordering::AcqRel);
    }

    /// The daemon has stopped, and everything is durable. `how`: see [`ENDED`].
    pub fn end(&self, how: u64) {
        self.words[ENDED].store(how, Ordering::Release);
    }

    /// Whether there is a disk of which the next daemon has to know something.
    #[must_use]
    pub fn has_notes(&self) -> bool {
        (0..DISKS_MAX).any(|disk| self.words[DISKS + disk * OF_DISK + NOTES].load(Ordering::Acquire) != 0)
    }

    fn put(&self, disk: DiskId, presence: [u64; NOTES]) {
        let [words @ .., notes] = &self.words[at(disk, 0)..at(disk, OF_DISK)] else { unreachable!("words of a disk") };
        notes.store(0, Ordering::Release);
        words.iter().zip(presence).rev().for_each(|(word, value)| word.store(value, Ordering::Release));
    }
}

/// That of a serving that has ended.
pub struct ServingMark {
    kept: Arc<KeptFile>,
    words: Words<AtomicU64>,
}

impl ServingMark {
    /// What the file says.
    ///
    /// # Errors
    /// What the kernel says; or the file is too short.
    pub fn open(file: File) -> io::Result<ServingMark> {
        map(file, PAGE).map(|(kept, words)| ServingMark { kept, words })
    }

    /// Whether views of that serving go with a table.
    ///
    /// # Errors
    /// They do not.
    pub fn fits(&self, found: Stamp) -> Result<(), OlderTable> {
        let seen = Stamp { epoch: self.word(EPOCH), commit: self.word(COMMIT) };
        if found < seen { Err(OlderTable { seen, found }) } else { Ok(()) }
    }

    /// Whether its daemon has stopped with everything durable: the table is all there is.
    #[must_use]
    pub fn has_stopped(&self) -> bool {
        self.word(ENDED) != 0
    }

    /// Where it is to be noted that a disk has failed: as long as no other serving has begun, that one counts.
    #[must_use]
    pub fn notes_of(&self, disk: DiskId) -> Words<AtomicU64> {
        notes_of(&self.kept, disk)
    }

    /// Whether the disk may lack what was written to it. `here`: the disk, if it is not missing. A disk that was not there then has
    /// nothing that the views are about.
    #[must_use]
    pub fn doubt(&self, disk: DiskId, here: Option<Presence>) -> Option<Doubt> {
        let words = self.disk_words(disk);
        match self.word(at(disk, NOTES)) {
            _ if words[0] == 0 => None,
            // Nothing was left unsynced that another one could lack.
            0 if self.has_stopped() => None,
            0 => here.is_some_and(|here| is_another(words, here.words())).then_some(Doubt::Other),
            notes if notes & FAILED != 0 => Some(Doubt::Failed),
            _ => Some(Doubt::Unsettled),
        }
    }

    fn disk_words(&self, disk: DiskId) -> [u64; NOTES] {
        std::array::from_fn(|word| self.word(at(disk, word)))
    }

    fn word(&self, at: usize) -> u64 {
        self.words[at].load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::Failure;

    fn image(inode: u64) -> Presence {
        Presence { identity: DiskIdentity::File { device: 7, inode }, sequence: 0 }
    }

    fn device(sequence: u64) -> Presence {
        Presence { identity: DiskIdentity::Device { number: 7 }, sequence }
    }

    fn marks() -> (Mark, ServingMark) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * PAGE as u64).unwrap();
        let mark = Mark::begin(file.try_clone().unwrap(), 2 * PAGE).unwrap();
        (mark, ServingMark::open(file).unwrap())
    }

    #[test]
    fn a_view_goes_with_a_table_that_is_not_older() {
        let (mark, ended) = marks();
        mark.note_durable(Stamp { epoch: 3, commit: 9 });
        mark.note_durable(Stamp { epoch: 3, commit: 8 });
        let fits = |commit| ended.fits(Stamp { epoch: 3, commit });
        assert_eq!((fits(9), fits(10)), (Ok(()), Ok(())));
        let (seen, found) = (Stamp { epoch: 3, commit: 9 }, Stamp { epoch: 3, commit: 8 });
        assert_eq!(fits(8), Err(OlderTable { seen, found }));
    }

    #[test]
    fn a_disk_that_is_another_or_was_away_is_in_doubt() {
        let (mark, ended) = marks();
        let _ = (mark.note_disk(DiskId(0), image(5)), mark.note_disk(DiskId(63), device(4)));
        let doubt = |disk, here| ended.doubt(DiskId(disk), here);
        assert_eq!((doubt(0, Some(image(5))), doubt(63, Some(device(4)))), (None, None));
        assert_eq!(doubt(0, Some(image(6))), Some(Doubt::Other));
        assert_eq!(doubt(63, Some(device(5))), Some(Doubt::Other), "it was away");
        assert_eq!(doubt(63, Some(image(0))), Some(Doubt::Other));
        // An earlier version noted none for a file, and there is none where the kernel does not tell.
        assert_eq!(doubt(0, Some(Presence { sequence: 9, ..image(5) })), None);
        let _ = mark.note_disk(DiskId(0), Presence { sequence: 9, ..image(5) });
        assert_eq!(doubt(0, Some(Presence { sequence: 9, ..image(5) })), None);
        assert_eq!(
            doubt(0, Some(Presence { sequence: 10, ..image(5) })),
            Some(Doubt::Other),
            "what it lies on was away"
        );
        let _ = mark.note_disk(DiskId(0), image(5));
        assert_eq!(doubt(63, None), None, "it is missing, and may come back as it was");
        assert_eq!(doubt(1, Some(image(6))), None, "it was not there");
        // Through a serving that it is not there for.
        let (next, after) = marks();
        next.note_missing(DiskId(63), &ended);
        next.note_missing(DiskId(1), &ended);
        assert_eq!(after.doubt(DiskId(63), Some(device(4))), None);
        assert_eq!(after.doubt(DiskId(63), Some(device(5))), Some(Doubt::Other));
        assert_eq!(after.doubt(DiskId(1), Some(image(6))), None);
        // Another disk has its number.
        mark.note_left(DiskId(63));
        assert_eq!(doubt(63, Some(image(8))), None);
    }

    #[test]
    fn a_disk_that_has_failed_is_in_doubt_wherever_it_is() {
        let (mark, ended) = marks();
        let failure = Failure::default();
        failure.note_in(mark.note_disk(DiskId(2), image(5)));
        let _ = mark.note_disk(DiskId(3), image(6));
        assert_eq!(ended.doubt(DiskId(2), Some(image(5))), None);
        failure.fail();
        let failed = Some(Doubt::Failed);
        assert_eq!((ended.doubt(DiskId(2), Some(image(5))), ended.doubt(DiskId(2), None)), (failed, failed));
        assert_eq!(ended.doubt(DiskId(3), Some(image(6))), None, "not its neighbour");
        assert!(mark.has_notes() && !marks().0.has_notes());
        // What is settled is only what was unsettled.
        mark.doubt(DiskId(2));
        mark.settle(DiskId(2));
        assert_eq!(ended.doubt(DiskId(2), None), failed);
        // While the next daemon opens the pool, it finds another one that has failed.
        let (later, (next, after)) = (Failure::default(), marks());
        later.note_in(ended.notes_of(DiskId(3)));
        later.fail();
        assert_eq!(ended.doubt(DiskId(3), Some(image(6))), failed, "the next serving has not begun");
        later.note_in(next.note_disk(DiskId(3), image(6)));
        assert_eq!(after.doubt(DiskId(3), Some(image(6))), failed);
    }

    #[test]
    fn after_a_stop_only_disks_that_have_failed_are_in_doubt() {
        let (mark, ended) = marks();
        let failure = Failure::default();
        failure.note_in(mark.note_disk(DiskId(2), image(5)));
        let _ = (mark.note_disk(DiskId(3), image(6)), mark.note_disk(DiskId(63), image(7)));
        assert_eq!((ended.doubt(DiskId(3), Some(image(9))), ended.has_stopped()), (Some(Doubt::Other), false));
        failure.fail();
        mark.doubt(DiskId(63));
        mark.end(1);
        assert!(ended.has_stopped());
        assert_eq!(ended.doubt(DiskId(3), Some(image(9))), None, "what it has was synced");
        assert_eq!(ended.doubt(DiskId(2), Some(image(5))), Some(Doubt::Failed));
        assert_eq!(ended.doubt(DiskId(63), Some(image(7))), Some(Doubt::Unsettled));
    }

    #[test]
    fn what_is_not_settled_is_in_doubt_in_the_next_serving() {
        let (mark, ended) = marks();
        let _ = mark.note_disk(DiskId(2), image(5));
        mark.doubt(DiskId(2));
        assert_eq!(ended.doubt(DiskId(2), Some(image(5))), Some(Doubt::Unsettled));
        mark.settle(DiskId(2));
        assert_eq!(ended.doubt(DiskId(2), Some(image(5))), None);
    }
}
