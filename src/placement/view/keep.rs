//! Views that outlive the process.
//!
//! The view is what guests see: whatever a request has changed is in it before the request completes. The table on disk is
//! behind: it has first writes and discards only once they were committed. So where the arrays of a view are in files that
//! survive SIGKILL, the next daemon finds what guests rely on (`control::serve::views` has the files).

use std::sync::Arc;
use std::sync::atomic::Ordering;

use uuid::Uuid;

use super::segments::{Segment, Segments};
use super::{Version, VhdMap, replicas_at, unpack_bits};
use crate::base::kept::KeptFile;
use crate::base::limits::COPIES_MAX;
use crate::base::units::{BlockMask, ExtentIndex, Generation};
use crate::placement::ReplicaSet;

/// Where arrays of views are kept.
pub trait Keep: Send + Sync {
    /// A file of [`kept_len`] zeros for `extents` extents of a VHD from `start` on; `None` if there is no room for it (which has been logged),
    /// then they are not kept.
    fn make(&self, vhd: Uuid, start: u32, extents: u32) -> Option<Arc<KeptFile>>;

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
}

/// Byte offsets of versions, bits and copies in a file for so many extents; the last is its length.
pub(super) fn offsets(extents: u32) -> ([usize; 2 + COPIES_MAX], usize) {
    const PAGE: usize = 4096;
    let extents = extents as usize;
    let (versions, words) = ((extents * 4).next_multiple_of(PAGE), (extents * 8).next_multiple_of(PAGE));
    let starts = std::array::from_fn(|array| if array == 0 { 0 } else { versions + (array - 1) * words });
    (starts, versions + (1 + COPIES_MAX) * words)
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
    pub fn kept(extents: u32, vhd: Uuid, keep: &Arc<dyn Keep>) -> VhdMap {
        let keeping = Keeping { keep: Arc::clone(keep), vhd };
        VhdMap { segments: Segments::new(extents, Some(&keeping)), keeping: Some(keeping), extents: extents.into() }
    }

    /// The VHD is gone: its files are not needed any more.
    pub fn forget(&self) {
        if let Some(Keeping { keep, vhd }) = &self.keeping {
            keep.forget(*vhd);
        }
    }
}

/// A part of a view that was kept, to be looked at by nobody but who opens the pool.
pub struct KeptSegment(Segment);

impl KeptSegment {
    /// The part for `extents` extents from `start` on; `None` if the file has another length.
    #[must_use]
    pub fn open(file: &Arc<KeptFile>, start: u32, extents: u32) -> Option<KeptSegment> {
        (file.len() == kept_len(extents)).then(|| KeptSegment(Segment::within(file, start, extents)))
    }

    /// What it says of those of its extents that were ever placed, in order.
    pub fn iter(&self) -> impl Iterator<Item = (ExtentIndex, Kept)> + '_ {
        let segment = &self.0;
        for copy in 0..COPIES_MAX {
            segment.words(copy);
        }
        (segment.start..).zip(segment.versions.iter()).enumerate().filter_map(move |(at, (extent, version))| {
            let version = Version(version.load(Ordering::Acquire));
            if version == Version::of(Generation(0)) {
                return None;
            }
            let (replicas, bits) = (replicas_at(segment, at), segment.bits[at].load(Ordering::Acquire));
            let (present, _) = unpack_bits(bits);
            let (generation, was_changing) = (version.generation(), version.is_changing());
            Some((ExtentIndex(extent), Kept { generation, was_changing, replicas, present }))
        })
    }
}
