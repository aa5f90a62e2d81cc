//! What a serving of a pool says of itself beside its views: how far its table was durable, and on which disks. A view is the truth
//! only together with them: of a copy of the disks, or of an older state of them, it would say that blocks are written which are not.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::ids::DiskId;
use crate::base::kept::{KeptFile, PAGE, Words};
use crate::base::limits::DISKS_MAX;
use crate::disk::identity::DiskIdentity;
use crate::store::page::Stamp;

/// Words of the stamp: epoch and commit.
const EPOCH: usize = 0;
const COMMIT: usize = 1;
/// Then, for each disk, what it is (0: none) and two numbers.
const DISKS: usize = 2;
const OF_DISK: usize = 3;
const DEVICE: u64 = 1;
const FILE: u64 = 2;

const WORDS: usize = DISKS + DISKS_MAX * OF_DISK;

const _: () = assert!(WORDS * size_of::<u64>() <= PAGE);

/// Why a view is not one of the pool as it is.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// The table lacks commits.
    #[error(
        "it goes with a placement table of {seen}, and the disks have {found}: they were put back to an older state"
    )]
    OlderTable {
        /// What guests were told.
        seen: Stamp,
        /// What there is.
        found: Stamp,
    },
    /// Not the disks that guests wrote to.
    #[error("disk #{} is another device or file than the one that was served: the disks are a copy, or were away", .0.0)]
    OtherDisk(DiskId),
}

/// That of a serving that goes on, written at every commit.
pub struct Mark(Words<AtomicU64>);

impl Mark {
    /// In a new file of `len` bytes.
    ///
    /// # Errors
    /// There is no memory for it, or what else the kernel says.
    pub fn begin(file: File, len: usize) -> io::Result<Mark> {
        let kept = KeptFile::map(file, len)?;
        kept.reserve(0..PAGE)?;
        Ok(Mark(Words::within(&kept, 0, u32::try_from(WORDS).expect("less than a page"))))
    }

    /// The store has this commit durably.
    pub fn note_durable(&self, stamp: Stamp) {
        // Of one serving there is one epoch.
        self.0[EPOCH].store(stamp.epoch, Ordering::Release);
        self.0[COMMIT].fetch_max(stamp.commit, Ordering::AcqRel);
    }

    /// A disk is served from now on.
    pub fn note_disk(&self, disk: DiskId, identity: DiskIdentity) {
        let words = &self.0[DISKS + disk.index() * OF_DISK..][..OF_DISK];
        words.iter().zip(words_of(identity)).rev().for_each(|(word, value)| word.store(value, Ordering::Release));
    }
}

/// That of a serving that has ended.
pub struct ServingMark([u64; WORDS]);

impl ServingMark {
    /// What the file says.
    ///
    /// # Errors
    /// What the kernel says; or the file is too short.
    pub fn read(file: &File) -> io::Result<ServingMark> {
        let mut bytes = [0; WORDS * size_of::<u64>()];
        file.read_exact_at(&mut bytes, 0)?;
        let mut words = [0; WORDS];
        words.iter_mut().zip(bytes.as_chunks().0).for_each(|(word, bytes)| *word = u64::from_ne_bytes(*bytes));
        Ok(ServingMark(words))
    }

    /// Whether views of that serving go with a table and disks. A disk that was not there then has nothing that the views are about.
    ///
    /// # Errors
    /// They do not.
    pub fn fits(&self, found: Stamp, disks: impl Iterator<Item = (DiskId, DiskIdentity)>) -> Result<(), Unfit> {
        let seen = Stamp { epoch: self.0[EPOCH], commit: self.0[COMMIT] };
        if found < seen {
            return Err(Unfit::OlderTable { seen, found });
        }
        for (disk, identity) in disks {
            let words = &self.0[DISKS + disk.index() * OF_DISK..][..OF_DISK];
            if words[0] != 0 && words != words_of(identity) {
                return Err(Unfit::OtherDisk(disk));
            }
        }
        Ok(())
    }
}

fn words_of(identity: DiskIdentity) -> [u64; OF_DISK] {
    match identity {
        DiskIdentity::Device { number } => [DEVICE, number, 0],
        DiskIdentity::File { device, inode } => [FILE, device, inode],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_goes_with_its_disks_and_a_table_that_is_not_older() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(2 * PAGE as u64).unwrap();
        let mark = Mark::begin(file.try_clone().unwrap(), 2 * PAGE).unwrap();
        let image = |inode| DiskIdentity::File { device: 7, inode };
        let device = DiskIdentity::Device { number: 7 };
        mark.note_disk(DiskId(0), image(5));
        mark.note_disk(DiskId(63), device);
        mark.note_durable(Stamp { epoch: 3, commit: 9 });
        mark.note_durable(Stamp { epoch: 3, commit: 8 });
        let fits = |commit, disks: &[(u8, DiskIdentity)]| {
            let disks = disks.iter().map(|(disk, identity)| (DiskId(*disk), *identity));
            ServingMark::read(&file).unwrap().fits(Stamp { epoch: 3, commit }, disks)
        };
        let ours = [(0, image(5)), (63, device)];
        assert_eq!((fits(9, &ours), fits(10, &ours)), (Ok(()), Ok(())));
        let (seen, found) = (Stamp { epoch: 3, commit: 9 }, Stamp { epoch: 3, commit: 8 });
        assert_eq!(fits(8, &ours), Err(Unfit::OlderTable { seen, found }));
        assert_eq!(fits(9, &[(63, device)]), Ok(()), "one is missing");
        assert_eq!(fits(9, &[(0, image(6))]), Err(Unfit::OtherDisk(DiskId(0))));
        assert_eq!(fits(9, &[(63, DiskIdentity::File { device: 7, inode: 0 })]), Err(Unfit::OtherDisk(DiskId(63))));
        assert_eq!(fits(9, &[(1, image(6))]), Ok(()), "it was not there");
    }
}
