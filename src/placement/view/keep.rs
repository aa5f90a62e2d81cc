//! Views that outlive the process.
//!
//! The view is what guests see: whatever a request has changed is in it before the request completes. The table on disk is
//! behind: it has first writes and discards only once they were committed. So where the arrays of a view are in files that
//! survive SIGKILL, the next daemon finds what guests rely on (`control::serve::views` has the files).

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use uuid::Uuid;

use super::segments::{PART, Segments};
use super::{Version, VhdMap, push_replica, unpack_bits};
use crate::base::kept::{KeptFile, PAGE};
use crate::base::limits::COPIES_MAX;
use crate::base::units::{BlockMask, ExtentIndex, Generation};
use crate::placement::ReplicaSet;

/// Where arrays of views are kept.
pub trait Keep: Send + Sync {
    /// A file of [`kept_len`] zeros for `extents` extents of a VHD from `start` on; `None` if there is no room for it (which has been logged),
    /// then they are not kept.
    fn make(&self, vhd: Uuid, start: u32, extents: u32) -> Option<Arc<KeptFile>>;

    /// There was no room for a part of the file of a VHD: what is placed there is not kept.
    fn is_full(&self, vhd: Uuid, error: &io::Error);

    /// The VHD is gone, and nobody will ask for its files.
    fn forget(&self, vhd: Uuid);
}

/// How the view of one VHD is kept.
#[derive(Clone)]
pub(super) struct Keeping {
    keep: Arc<dyn Keep>,
    vhd: Uuid,
}

impl Keeping {
    pub fn make(&self, start: u32, extents: u32) -> Option<Arc<KeptFile>> {
        self.keep.make(self.vhd, start, extents)
    }

    pub fn is_full(&self, error: &io::Error) {
        self.keep.is_full(self.vhd, error);
    }
}

/// Byte offsets of versions, bits and copies in a file for so many extents; the last is its length.
pub(super) fn offsets(extents: u32) -> ([usize; 2 + COPIES_MAX], usize) {
    let extents = extents as usize;
    let (versions, words) = ((extents * 4).next_multiple_of(PAGE), (extents * 8).next_multiple_of(PAGE));
    let starts = std::array::from_fn(|array| if array == 0 { 0 } else { versions + (array - 1) * words });
    (starts, versions + (1 + COPIES_MAX) * words)
}

/// Which bytes of a file for `len` extents some of them take in one of its arrays, in whole pages.
pub(super) fn array_of(len: u32, array: usize, extents: &Range<usize>) -> Range<usize> {
    let (starts, _) = offsets(len);
    let word = if array == 0 { size_of::<u32>() } else { size_of::<u64>() };
    starts[array] + extents.start * word..(starts[array] + extents.end * word).next_multiple_of(PAGE)
}

/// Bytes that the view of so many extents takes in a file, most of which are never touched.
#[must_use]
pub fn kept_len(extents: u32) -> usize {
    offsets(extents).1
}

/// What a view that was kept says of an extent. Its owner may have been changing it when the process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// As in a lookup; of an extent that was being changed, the one before.
    pub generation: Generation,
    /// The owner was between two stores.
    pub was_changing: bool,
    /// Where it is; maybe words of two moments if it was being changed.
    pub replicas: ReplicaSet,
    /// Blocks that were there.
    pub present: BlockMask,
}

impl VhdMap {
    /// As [`VhdMap::new`], of arrays that outlive the process where there is room for them.
    #[must_use]
    pub fn kept(extents: u32, checked: bool, vhd: Uuid, keep: &Arc<dyn Keep>) -> VhdMap {
        let keeping = Keeping { keep: Arc::clone(keep), vhd };
        let segments = Segments::new(extents, checked, Some(&keeping));
        VhdMap { segments, keeping: Some(keeping), extents: extents.into() }
    }

    /// The VHD is gone: its files are not needed any more.
    pub fn forget(&self) {
        if let Some(Keeping { keep, vhd }) = &self.keeping {
            keep.forget(*vhd);
        }
    }
}

/// A part of a view that was kept, to be looked at by nobody but who opens the pool. It is read and not mapped: looking at what
/// was never written must not take memory, of which there may be none left.
pub struct KeptSegment {
    file: File,
    start: u32,
    extents: u32,
}

impl KeptSegment {
    /// The part for `extents` extents from `start` on; `None` if whoever made the file was killed before it had a length.
    ///
    /// # Errors
    /// Another length, or what the kernel says.
    pub fn open(file: File, start: u32, extents: u32) -> io::Result<Option<KeptSegment>> {
        match file.metadata()?.len() {
            0 => Ok(None),
            len if len == kept_len(extents) as u64 => Ok(Some(KeptSegment { file, start, extents })),
            _ => Err(io::Error::new(io::ErrorKind::InvalidData, "it has a length that it cannot have")),
        }
    }

    /// Tells `each` what it says of those of its extents that were ever placed, in order.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn read(&self, mut each: impl FnMut(ExtentIndex, Kept)) -> io::Result<()> {
        let mut arrays: [Vec<u8>; 2 + COPIES_MAX] = std::array::from_fn(|_| Vec::new());
        for part in (0..self.extents as usize).step_by(PART) {
            let extents = part..(part + PART).min(self.extents as usize);
            self.read_array(0, &extents, &mut arrays)?;
            if arrays[0].iter().all(|byte| *byte == 0) {
                continue;
            }
            (1..arrays.len()).try_for_each(|array| self.read_array(array, &extents, &mut arrays))?;
            for at in 0..extents.len() {
                if let Some(kept) = kept_at(&arrays, at) {
                    let extent = u32::try_from(part + at).expect("extents are counted in u32");
                    each(ExtentIndex(self.start + extent), kept);
                }
            }
        }
        Ok(())
    }

    fn read_array(&self, array: usize, extents: &Range<usize>, into: &mut [Vec<u8>; 2 + COPIES_MAX]) -> io::Result<()> {
        let bytes = array_of(self.extents, array, extents);
        into[array].resize(bytes.len(), 0);
        self.file.read_exact_at(&mut into[array], bytes.start as u64)
    }
}

/// What the arrays of a part say of one of its extents; `None` if it was never placed.
fn kept_at(arrays: &[Vec<u8>; 2 + COPIES_MAX], at: usize) -> Option<Kept> {
    let [versions, bits, copies @ ..] = arrays;
    let version = Version(u32::from_ne_bytes(*versions.as_chunks().0.get(at)?));
    if version == Version::of(Generation(0)) {
        return None;
    }
    let word = |array: &Vec<u8>| u64::from_ne_bytes(array.as_chunks().0[at]);
    let mut replicas = ReplicaSet::ABSENT;
    let _ = copies.iter().all(|words| push_replica(&mut replicas, word(words)));
    let (present, _) = unpack_bits(word(bits));
    Some(Kept { generation: version.generation(), was_changing: version.is_changing(), replicas, present })
}
