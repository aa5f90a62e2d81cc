//! What one commit writes: the same for every member of the store. Pure.

use crate::base::ids::{DiskId, VhdId};
use crate::base::limits::STORE_ROWS_PER_COMMIT_MAX;
use crate::base::units::{BlockMask, Generation, SlotIndex};
use crate::placement::ReplicaSet;

use super::edit::{MovedExtent, StoreEdit};
use super::history::HistoryRow;
use super::page::{ExtentRow, PageKey, Stamp};

/// What a commit does to one extent: everything that happened to it since the last one, merged. In this order: free, clear,
/// place and set present.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExtentEdit {
    /// The row.
    pub key: PageKey,
    /// Place of the extent in the row.
    pub place: usize,
    /// The extent was dropped, and had this generation from then on.
    pub freed: Option<Generation>,
    /// Blocks that are not present any more, per generation; nearly always of one generation.
    pub cleared: Vec<(Generation, BlockMask)>,
    /// The generation that the following fields belong to.
    pub generation: Generation,
    /// Where the extent is.
    pub replicas: Option<ReplicaSet>,
    /// Blocks that are present, given with `replicas`.
    pub present: BlockMask,
}

impl ExtentEdit {
    /// Changes what the table says about the extent. Edits of a generation older than the table's are void.
    pub fn apply(&self, row: &mut ExtentRow) {
        if let Some(freed) = self.freed
            && freed >= row.generation
        {
            *row = ExtentRow { generation: freed, ..ExtentRow::default() };
        }
        for &(generation, blocks) in &self.cleared {
            if !is_void(generation, row) {
                row.present = row.present.without(blocks);
            }
        }
        if let Some(replicas) = self.replicas
            && !is_void(self.generation, row)
        {
            // What an older generation had is in slots that are not the extent's any more. Of the same generation the row is
            // where it is: the extent may have been moved since these blocks were written.
            if self.generation > row.generation {
                *row = ExtentRow { generation: self.generation, replicas, present: BlockMask::NONE };
            }
            row.present = row.present.or(self.present);
        }
    }

    /// Whether it does anything at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.freed.is_none() && self.cleared.is_empty() && self.replicas.is_none()
    }
}

/// Changes what the table says about an extent that has been moved.
pub fn apply_move(moved: &MovedExtent, row: &mut ExtentRow) {
    if is_void(moved.generation, row) {
        return;
    }
    if moved.generation > row.generation {
        *row = ExtentRow { generation: moved.generation, ..ExtentRow::default() };
    }
    row.replicas = moved.replicas;
}

/// Whether a change of `generation` comes too late for what the table says. An absent extent with a generation was freed at
/// that generation: nothing of it may come back.
fn is_void(generation: Generation, row: &ExtentRow) -> bool {
    let was_freed = row.replicas.is_absent() && row.generation != Generation::default();
    generation < row.generation || (generation == row.generation && was_freed)
}

/// A part of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::large_enum_variant, reason = "edits are few: a record of a VHD is not worth an allocation of its own")]
pub enum Step {
    /// Edits of extents, sorted by row.
    Extents(Vec<ExtentEdit>),
    /// An edit of the owner.
    Edit(StoreEdit),
    /// Samples and heat.
    History(Vec<HistoryRow>),
}

/// One commit.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// Its number; stamped on every row it writes.
    pub stamp: Stamp,
    /// What it does, in order.
    pub steps: Vec<Step>,
}

impl Batch {
    /// Rows that it changes at most: see [`StoreEdit::rows`].
    #[must_use]
    pub fn rows(&self) -> usize {
        let rows = |step: &Step| match step {
            Step::Extents(edits) => edits.chunk_by(|a, b| a.key == b.key).count(),
            Step::Edit(edit) => edit.rows(),
            Step::History(rows) => rows.iter().map(HistoryRow::rows).sum(),
        };
        self.steps.iter().map(rows).sum()
    }
}

/// A commit changes at most one row for so many bytes of the smallest region: each row costs a page of copy-on-write, and
/// so the largest commit takes an eighth of the region.
pub(super) const REGION_BYTES_PER_ROW: u64 = 32 << 10;

/// Rows that one commit may change in a metadata region of so many bytes.
#[must_use]
pub fn rows_max(region_len: u64) -> usize {
    usize::try_from(region_len / REGION_BYTES_PER_ROW).unwrap_or(usize::MAX).clamp(1, STORE_ROWS_PER_COMMIT_MAX)
}

/// Changes that are ready to be committed, and what becomes true once they are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Committable {
    /// Sorted by row.
    pub extents: Vec<ExtentEdit>,
    /// Changes, per VHD, that are then durable or superseded by ones that are.
    pub counts: Vec<(VhdId, u64)>,
    /// Slots that are then free in the durable table.
    pub freed: Vec<(DiskId, SlotIndex)>,
}

impl Committable {
    /// Whether there is nothing to do and nothing to tell.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty() && self.counts.is_empty() && self.freed.is_empty()
    }
}
