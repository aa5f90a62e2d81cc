//! What the committer does, without its thread: gathers changes, edits and requests, and turns them into commits.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::limits::{
    HISTORY_BYTES_PER_COMMIT_MAX, HISTORY_BYTES_WAITING_MAX, NOTES_PER_COMMIT_MAX, NOTES_WAITING_MAX,
};
use crate::base::units::SlotIndex;
use crate::shared::disk::SyncPoint;

use super::batch::{Batch, Committable, ExtentEdit, Step, rows_max};
use super::change::{Change, CommitRequest};
use super::edit::{EditFailed, EditId, StoreEdit};
use super::history::{HistoryRow, Subject};
use super::mirror::{Applied, Dropped, Members};
use super::note::Note;
use super::page::Stamp;
use super::pending::Pending;

/// What came of a call to [`Committer::commit`]; to be carried out in the order of the fields.
#[derive(Debug, Default)]
pub struct Outcome {
    /// Per VHD, changes that are durable now or superseded: for `VhdState::changes_committed`.
    pub counts: BTreeMap<VhdId, u64>,
    /// Requests to answer, and whether everything they asked for is durable.
    pub requests: Vec<(CommitRequest, bool)>,
    /// Edits to answer.
    pub edits: Vec<(EditId, Result<(), EditFailed>)>,
    /// Slots that are free in the durable table now.
    pub freed: Vec<(DiskId, SlotIndex)>,
    /// Members that were given up.
    pub dropped: Vec<Dropped>,
    /// Commits made.
    pub commits: u64,
    /// The store has just failed: no majority.
    pub failed: bool,
}

/// Work in the order in which it must become durable.
#[derive(Debug)]
enum Queued {
    Changes(Committable),
    Edit(EditId, Vec<StoreEdit>),
}

/// What one commit will contain.
#[derive(Debug, Default)]
struct Draft {
    steps: Vec<Step>,
    rows: usize,
    counts: Vec<(VhdId, u64)>,
    freed: Vec<(DiskId, SlotIndex)>,
    edits: Vec<EditId>,
}

/// Gathers changes and commits them.
#[derive(Debug)]
pub struct Committer {
    stamp: Stamp,
    rows_max: usize,
    pending: Pending,
    queue: Vec<Queued>,
    notes: VecDeque<Note>,
    /// Goes along with commits, a little at a time.
    history: VecDeque<HistoryRow>,
    history_bytes: usize,
    history_per_commit: usize,
    requests: Vec<CommitRequest>,
    failed: bool,
}

impl Committer {
    /// For a store whose members all have commit `stamp`, and whose smallest region has `region_len` bytes.
    #[must_use]
    pub fn new(stamp: Stamp, region_len: u64) -> Committer {
        Committer {
            stamp,
            rows_max: rows_max(region_len),
            pending: Pending::new(),
            queue: Vec::new(),
            notes: VecDeque::new(),
            history: VecDeque::new(),
            history_bytes: 0,
            history_per_commit: HISTORY_BYTES_PER_COMMIT_MAX,
            requests: Vec::new(),
            failed: false,
        }
    }

    /// A member with a region of `region_len` bytes has joined.
    pub fn fit_region(&mut self, region_len: u64) {
        self.rows_max = self.rows_max.min(rows_max(region_len));
    }

    /// The last commit.
    #[must_use]
    pub fn stamp(&self) -> Stamp {
        self.stamp
    }

    /// Takes in a change.
    pub fn change(&mut self, change: Change) {
        self.pending.push(change);
    }

    /// Takes in a request for a commit.
    pub fn request(&mut self, request: CommitRequest) {
        self.requests.push(request);
    }

    /// Takes in rows to write in one commit: after all changes that were handed over before and whose data is synced, and
    /// before all that come later.
    pub fn edit(&mut self, id: EditId, rows: Vec<StoreEdit>, is_synced: impl Fn(SyncPoint) -> bool) {
        for row in &rows {
            if let StoreEdit::DeleteVhd(vhd) = row {
                self.pending.delete_vhd(*vhd);
                self.forget_history(|row| row.subject == Subject::Vhd(*vhd));
            }
            if let StoreEdit::Shrink { vhd, extents, last } = row {
                self.pending.shrink(*vhd, *extents, *last);
            }
        }
        self.take_committable(is_synced);
        // Only after that: what need not wait for the old place any more must not be committed before the move.
        for row in &rows {
            if let StoreEdit::Move { vhd, moves } = row {
                moves.iter().for_each(|moved| self.pending.moved(*vhd, moved));
            }
        }
        self.queue.push(Queued::Edit(id, rows));
    }

    /// Takes in a note, to be written some time; it takes the place of one that waits. If too many wait, the oldest is given up.
    pub fn note(&mut self, note: Note) {
        if let Some(waiting) = self.notes.iter_mut().find(|waiting| waiting.key == note.key) {
            *waiting = note;
            return;
        }
        if self.notes.len() == NOTES_WAITING_MAX {
            self.notes.pop_front();
        }
        self.notes.push_back(note);
    }

    /// What is pending for the VHD, now or later, does not wait for syncs of this disk up to this one.
    pub fn excuse(&mut self, vhd: VhdId, point: SyncPoint) {
        self.pending.excuse(vhd, point);
    }

    /// Takes in rows of samples and heat. Nobody waits for them: those of one key replace each other, and what is too much is dropped.
    pub fn history(&mut self, rows: Vec<HistoryRow>) {
        let keys: HashSet<_> = rows.iter().map(HistoryRow::key).collect();
        debug_assert_eq!(keys.len(), rows.len(), "each once");
        self.forget_history(|old| keys.contains(&old.key()));
        for row in rows {
            if self.history_bytes + row.bytes.len() <= HISTORY_BYTES_WAITING_MAX {
                self.history_bytes += row.bytes.len();
                self.history.push_back(row);
            }
        }
    }

    /// Drops all rows of samples and heat: there is no room for them.
    pub fn drop_history(&mut self) {
        self.forget_history(|_| true);
    }

    /// Nobody waits for commits any more: they may have as much of it as there is.
    pub fn hurry_history(&mut self) {
        self.history_per_commit = HISTORY_BYTES_WAITING_MAX;
    }

    fn forget_history(&mut self, is: impl Fn(&HistoryRow) -> bool) {
        self.history.retain(|row| !is(row));
        self.history_bytes = self.history.iter().map(|row| row.bytes.len()).sum();
    }

    /// What of it goes along with one commit.
    fn take_history(&mut self) -> Vec<HistoryRow> {
        let (mut taken, mut bytes) = (Vec::new(), 0);
        while let Some(row) = self.history.front() {
            bytes += row.bytes.len();
            if bytes > self.history_per_commit && !taken.is_empty() {
                break;
            }
            self.history_bytes -= row.bytes.len();
            taken.extend(self.history.pop_front());
        }
        taken
    }

    /// Whether there are rows of samples and heat to be written.
    #[must_use]
    pub fn has_history(&self) -> bool {
        !self.history.is_empty()
    }

    /// Whether somebody waits for a commit.
    #[must_use]
    pub fn is_urgent(&self) -> bool {
        !self.requests.is_empty() || !self.queue.is_empty()
    }

    /// Whether there is something to commit, now or once its data is synced.
    #[must_use]
    pub fn has_pending(&self) -> bool {
        self.is_urgent() || !self.pending.is_empty()
    }

    /// Whether there are notes to be taken along.
    #[must_use]
    pub fn has_notes(&self) -> bool {
        !self.notes.is_empty()
    }

    /// Disks whose syncs pending changes wait for. Changes of a guest that never flushes stay here until somebody syncs.
    #[must_use]
    pub fn waits_for_disks(&self) -> DiskSet {
        self.pending.waits_for_disks()
    }

    /// Commits everything that may be committed, in as few commits as the members can take. Without anything to commit the
    /// members are not troubled.
    pub fn commit(&mut self, members: &mut impl Members, is_synced: impl Fn(SyncPoint) -> bool) -> Outcome {
        self.take_committable(is_synced);
        let mut outcome = Outcome::default();
        let mut drafts = drafts(std::mem::take(&mut self.queue), self.rows_max);
        if self.failed {
            self.drop_history();
        }
        // With the last of them: whoever waits for a commit hardly waits longer.
        if let Some(last) = drafts.last_mut() {
            last.steps.extend(self.take_notes().into_iter().map(|note| Step::Edit(StoreEdit::Note(note))));
            let history = self.take_history();
            if !history.is_empty() {
                last.steps.push(Step::History(history));
            }
        }
        for draft in drafts {
            self.commit_draft(draft, members, &mut outcome);
        }
        let ok = !self.failed;
        outcome.requests = self.requests.drain(..).map(|request| (request, ok)).collect();
        outcome
    }

    /// What of the notes goes along with one commit: a few that say something, and those that only delete.
    fn take_notes(&mut self) -> Vec<Note> {
        let mut left = NOTES_PER_COMMIT_MAX;
        let is_taken = |note: &Note| {
            left = left.saturating_sub(usize::from(note.bytes.is_some()));
            left > 0
        };
        let count = self.notes.iter().map(is_taken).take_while(|taken| *taken).count();
        self.notes.drain(..self.notes.len().min(count + 1)).collect()
    }

    /// Makes a commit that changes nothing, by `apply`. Whoever has it has all before it.
    pub fn mark(&mut self, apply: impl FnOnce(&Arc<Batch>) -> Applied) -> Outcome {
        let mut outcome = Outcome::default();
        if !self.failed {
            self.stamp.commit += 1;
            let applied = apply(&Arc::new(Batch { stamp: self.stamp, steps: Vec::new() }));
            self.note_applied(applied, &mut outcome);
        }
        outcome
    }

    fn note_applied(&mut self, applied: Applied, outcome: &mut Outcome) {
        outcome.dropped.extend(applied.dropped);
        if applied.committed {
            outcome.commits += 1;
        } else {
            // Some members may have it and others not: nothing may follow it in this epoch.
            self.failed = true;
            outcome.failed = true;
        }
    }

    fn take_committable(&mut self, is_synced: impl Fn(SyncPoint) -> bool) {
        let taken = self.pending.take_committable(is_synced);
        if !taken.is_empty() {
            self.queue.push(Queued::Changes(taken));
        }
    }

    fn commit_draft(&mut self, draft: Draft, members: &mut impl Members, outcome: &mut Outcome) {
        if !self.failed && !draft.steps.is_empty() {
            self.stamp.commit += 1;
            let applied = members.apply(&Arc::new(Batch { stamp: self.stamp, steps: draft.steps }));
            self.note_applied(applied, outcome);
        }
        let result = if self.failed { Err(EditFailed) } else { Ok(()) };
        outcome.edits.extend(draft.edits.into_iter().map(|id| (id, result)));
        if result.is_ok() {
            outcome.freed.extend(draft.freed);
            for (vhd, count) in draft.counts {
                *outcome.counts.entry(vhd).or_default() += count;
            }
        }
    }
}

/// Packs work into commits of at most `rows_max` rows. An edit is never divided.
fn drafts(queue: Vec<Queued>, rows_max: usize) -> Vec<Draft> {
    let mut drafts = Vec::new();
    let mut draft = Draft::default();
    for work in queue {
        match work {
            Queued::Changes(changes) => {
                let mut part: Vec<ExtentEdit> = Vec::new();
                for edit in changes.extents {
                    let new_row = part.last().is_none_or(|last| last.key != edit.key);
                    if new_row && draft.rows == rows_max {
                        draft.push_extents(&mut part);
                        drafts.push(std::mem::take(&mut draft));
                    }
                    draft.rows += usize::from(new_row);
                    part.push(edit);
                }
                draft.push_extents(&mut part);
                // True only once the last of them is durable.
                draft.counts.extend(changes.counts);
                draft.freed.extend(changes.freed);
            }
            Queued::Edit(id, rows) => {
                draft.rows += rows.iter().map(StoreEdit::rows).sum::<usize>();
                draft.steps.extend(rows.into_iter().map(Step::Edit));
                draft.edits.push(id);
                if draft.rows >= rows_max {
                    drafts.push(std::mem::take(&mut draft));
                }
            }
        }
    }
    drafts.push(draft);
    drafts
}

impl Draft {
    fn push_extents(&mut self, part: &mut Vec<ExtentEdit>) {
        if !part.is_empty() {
            self.steps.push(Step::Extents(std::mem::take(part)));
        }
    }
}
