//! What the owner asks the committer to write besides [`Change`](super::change::Change)s, and what it hears back. Plain data.

use crate::base::ids::{DiskId, JobId, VhdId, VmId};
use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
use crate::placement::ReplicaSet;
use crate::placement::job::JobRecord;
use crate::placement::record::{PoolRecord, VhdRecord};
use crate::placement::vm::VmRecord;

use super::checksums::PageChecksums;
use super::note::Note;
use super::page::PAGE_EXTENTS;

/// The owner's name for an edit; never reused while the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EditId(pub u64);

/// Rows to write or delete. All rows of one edit become durable in one commit, after every change and edit handed over
/// before it that can be committed, and before every one handed over after it. An edit starts a commit by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreEdit {
    /// Writes the pool record.
    PutPool(PoolRecord),
    /// Writes the record of a VHD.
    PutVhd(VhdRecord),
    /// Deletes the record of a VHD and all its pages. A change of that VHD handed over later is void (but still counted
    /// as committed): requests may have been in flight.
    DeleteVhd(VhdId),
    /// Forgets all extents of a VHD from `extents` on, and of the last one that stays all blocks but `last`. What was handed
    /// over of them before is void (but still counted as committed). Comes with the record that says so, while no request of
    /// the VHD is in flight.
    Shrink {
        /// The VHD.
        vhd: VhdId,
        /// Extents that stay; at least 1.
        extents: u32,
        /// Blocks of the last of them that stay.
        last: BlockMask,
    },
    /// Writes the record of a job. It may come with the changes of the pool and of VHDs that belong to it.
    PutJob(JobRecord),
    /// Deletes the record of a job.
    DeleteJob(JobId),
    /// Writes the record of a VM. It may come with the records of the pool and of VHDs that belong to it.
    PutVm(VmRecord),
    /// Deletes the record of a VM.
    DeleteVm(VmId),
    /// Gives room to consecutive extents, none of which is present (thick allocation).
    Place {
        /// The VHD.
        vhd: VhdId,
        /// The first extent.
        first: ExtentIndex,
        /// The generation of each.
        generation: Generation,
        /// Where each of them is, from `first` on.
        replicas: Vec<ReplicaSet>,
    },
    /// Moves extents: from here on each is where its copy has been filled and synced. What is pending for it need not wait for
    /// syncs of the place that it leaves.
    Move {
        /// The VHD.
        vhd: VhdId,
        /// In ascending order.
        moves: Vec<MovedExtent>,
    },
    /// Sets or takes back the write intent of pages of a VHD.
    Intend {
        /// The VHD.
        vhd: VhdId,
        /// In ascending order.
        pages: Vec<u32>,
        /// Set it.
        intend: bool,
    },
    /// Writes what administrators want of the policy, as JSON. What is in it is for who makes it.
    PutPolicy(String),
    /// Writes or deletes a note.
    Note(Note),
    /// Writes the checksums of a page.
    Checksums {
        /// The VHD.
        vhd: VhdId,
        /// The page.
        page: u32,
        /// Those of all its blocks.
        checksums: PageChecksums,
    },
}

impl StoreEdit {
    /// Rows that it changes at most, as far as commits are measured by that (deleting frees more than it takes).
    #[must_use]
    pub fn rows(&self) -> usize {
        match self {
            StoreEdit::PutPool(_)
            | StoreEdit::PutVhd(_)
            | StoreEdit::DeleteVhd(_)
            | StoreEdit::Shrink { .. }
            | StoreEdit::DeleteJob(_)
            | StoreEdit::DeleteVm(_) => 1,
            StoreEdit::PutPolicy(text) => text.len() / BYTES_PER_ROW + 1,
            StoreEdit::Note(note) => note.bytes.as_ref().map_or(0, Vec::len) / BYTES_PER_ROW + 1,
            // Its list of VHDs may be longer than any row.
            StoreEdit::PutJob(job) => job.vhds.len() / PAGE_EXTENTS + 1,
            // The longest one is as long as several rows.
            StoreEdit::PutVm(vm) => vm.labels.len() / LABELS_PER_ROW + 1,
            StoreEdit::Place { replicas, .. } => replicas.len() / PAGE_EXTENTS + 2,
            // Those of one page share a row.
            StoreEdit::Move { moves, .. } => moves.chunk_by(|a, b| page_of(a) == page_of(b)).count(),
            StoreEdit::Intend { pages, .. } => pages.len(),
            StoreEdit::Checksums { .. } => CHECKSUM_ROWS,
        }
    }
}

/// A row of 64 extents with a replica or two is about as long.
pub(super) const BYTES_PER_ROW: usize = 1024;

/// So many labels, as long as they can be, are about as long as a row of 64 extents with a replica or two.
const LABELS_PER_ROW: usize = 4;

/// A row of checksums is as long as so many others.
const CHECKSUM_ROWS: usize = 6;

fn page_of(moved: &MovedExtent) -> usize {
    moved.extent.0 as usize / PAGE_EXTENTS
}

/// Where an extent is once its move is durable. Void if its content has been dropped since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MovedExtent {
    /// The extent.
    pub extent: ExtentIndex,
    /// The content that was moved.
    pub generation: Generation,
    /// Disk of the replica that it leaves; `None`: it gets one more.
    pub from: Option<DiskId>,
    /// Where it is.
    pub replicas: ReplicaSet,
}

/// An edit was not committed, and no later one will be: the store must be opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the placement store has no majority of working metadata disks: look at the log, then restart the daemon")]
pub struct EditFailed;

/// From the committer to the owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreReport {
    /// These slots of [`ChangeKind::Freed`](super::change::ChangeKind::Freed) changes are free in the durable table: one
    /// entry per replica of each change, voided changes included.
    Freed {
        /// The slots.
        slots: Vec<(DiskId, SlotIndex)>,
    },
    /// An edit is durable, or failed.
    EditDone {
        /// Which.
        edit: EditId,
        /// How it went.
        result: Result<(), EditFailed>,
    },
    /// A member of the store was given up (and logged): it takes part again after the next opening.
    MemberDropped {
        /// Its disk.
        disk: DiskId,
        /// A sync failed there: what others wrote to that disk may be lost, too, so that the disk has failed.
        sync_failed: bool,
    },
    /// How full the metadata region is; sent at start and when it changes noticeably.
    Fill {
        /// Bytes in use.
        used: u64,
        /// Bytes there are.
        size: u64,
        /// Below the low-water mark: no new extent may be placed. Changes, frees and edits go on.
        low: bool,
    },
}
