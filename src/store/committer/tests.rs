use super::*;
use crate::base::ids::ReactorId;
use crate::base::units::{BlockMask, ExtentIndex, Generation};
use crate::placement::ReplicaSet;
use crate::shared::disk::SyncNumber;
use crate::store::batch::REGION_BYTES_PER_ROW;
use crate::store::change::ChangeKind;
use crate::store::dump::DumpError;
use crate::store::edit::MovedExtent;
use crate::store::member::tests::samples;
use crate::store::mirror::{Applied, Lost, MemberStatus};
use crate::store::note::NoteKind;

const VHD: VhdId = VhdId(7);
const EPOCH: Stamp = Stamp { epoch: 3, commit: 0 };

/// Members that only write down what they are given.
#[derive(Default)]
struct Recorder {
    batches: Vec<Arc<Batch>>,
    /// Fail from this commit on.
    fails_from: Option<u64>,
}

impl Members for Recorder {
    fn apply(&mut self, batch: &Arc<Batch>) -> Applied {
        if self.fails_from.is_some_and(|from| batch.stamp.commit >= from) {
            let dropped = vec![Dropped { disk: DiskId(0), why: Lost::Ended, sync_failed: false }];
            return Applied { committed: false, dropped };
        }
        self.batches.push(Arc::clone(batch));
        Applied { committed: true, dropped: Vec::new() }
    }

    fn status(&self) -> Vec<MemberStatus> {
        Vec::new()
    }

    fn needed(&self) -> usize {
        1
    }

    fn dump(&mut self) -> Result<String, DumpError> {
        Err(DumpError::NoMember)
    }
}

fn written(extent: u32, needs: u64) -> Change {
    let need = SyncPoint { disk: DiskId(0), number: SyncNumber(needs) };
    let kind = ChangeKind::Written {
        replicas: ReplicaSet::single(DiskId(0), SlotIndex(extent)),
        blocks: BlockMask(1),
        needs: [Some(need), None, None, None],
    };
    Change { vhd: VHD, extent: ExtentIndex(extent), generation: Generation(2), kind }
}

fn freed(extent: u32) -> Change {
    let kind = ChangeKind::Freed { freed: ReplicaSet::single(DiskId(0), SlotIndex(extent)) };
    Change { vhd: VHD, extent: ExtentIndex(extent), generation: Generation(4), kind }
}

fn request(ticket: u64) -> CommitRequest {
    CommitRequest { reactor: ReactorId(0), ticket }
}

#[test]
fn one_commit_answers_everybody() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 1 << 30), Recorder::default());
    for ticket in 0..5 {
        committer.change(written(u32::try_from(ticket).unwrap(), 1));
        committer.request(request(ticket));
    }
    let outcome = committer.commit(&mut members, |_| true);
    assert_eq!(outcome.commits, 1);
    assert_eq!(outcome.requests, (0..5).map(|ticket| (request(ticket), true)).collect::<Vec<_>>());
    assert_eq!(outcome.counts, BTreeMap::from([(VHD, 5)]));
    assert_eq!(members.batches[0].stamp, Stamp { epoch: 3, commit: 1 });
    assert!(!committer.is_urgent());
}

#[test]
fn without_anything_covered_there_is_no_commit_but_an_answer() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 1 << 30), Recorder::default());
    committer.change(written(1, 5));
    committer.request(request(1));
    let outcome = committer.commit(&mut members, |need| need.number.0 < 5);
    assert_eq!((outcome.commits, outcome.requests.len(), outcome.counts.len()), (0, 1, 0));
    assert!(members.batches.is_empty() && committer.waits_for_disks().contains(DiskId(0)));
    assert!(committer.has_pending());
    assert_eq!(committer.stamp(), EPOCH);
}

#[test]
fn an_edit_comes_after_what_was_before_it_and_before_what_is_after() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 1 << 30), Recorder::default());
    committer.change(written(1, 1));
    committer.change(written(2, 9));
    committer.edit(EditId(5), vec![StoreEdit::PutVhd(samples::vhd(9))], |need| need.number.0 < 5);
    committer.change(freed(1));
    let outcome = committer.commit(&mut members, |_| true);
    assert_eq!((outcome.edits, outcome.commits), (vec![(EditId(5), Ok(()))], 1));
    let [Step::Extents(before), Step::Edit(StoreEdit::PutVhd(_)), Step::Extents(after)] = &members.batches[0].steps[..]
    else {
        panic!("{:?}", members.batches[0])
    };
    assert_eq!((before.len(), before[0].place), (1, 1));
    assert_eq!(after.iter().map(|edit| edit.place).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(outcome.freed, [(DiskId(0), SlotIndex(1))]);
    assert_eq!(outcome.counts, BTreeMap::from([(VHD, 3)]));
}

#[test]
fn what_a_move_takes_along_is_committed_after_it() {
    // One row per commit: a power cut between two of them must not show blocks that are synced at the new place only.
    let (mut committer, mut members) = (Committer::new(EPOCH, REGION_BYTES_PER_ROW), Recorder::default());
    committer.change(written(1, 9));
    let replicas = ReplicaSet::single(DiskId(1), SlotIndex(8));
    let from = Some(DiskId(0));
    let moved = MovedExtent { extent: ExtentIndex(1), generation: Generation(2), from, replicas };
    committer.edit(EditId(5), vec![StoreEdit::Move { vhd: VHD, moves: vec![moved] }], |_| false);
    committer.request(request(1));
    let outcome = committer.commit(&mut members, |_| false);
    assert_eq!((outcome.edits, outcome.commits), (vec![(EditId(5), Ok(()))], 2));
    assert_eq!(outcome.counts, BTreeMap::from([(VHD, 1)]), "it waits for nothing but the move");
    assert!(matches!(members.batches[0].steps[..], [Step::Edit(StoreEdit::Move { .. })]));
    assert!(matches!(members.batches[1].steps[..], [Step::Extents(_)]));
}

#[test]
fn large_work_is_divided_by_rows_and_counted_when_all_of_it_is_durable() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 4 * REGION_BYTES_PER_ROW), Recorder::default());
    for extent in 0..64 * 10 {
        committer.change(written(extent, 1));
    }
    committer.change(freed(3));
    committer.request(request(1));
    let outcome = committer.commit(&mut members, |_| true);
    let rows: Vec<usize> = members
        .batches
        .iter()
        .map(|batch| {
            let [Step::Extents(edits)] = &batch.steps[..] else { panic!("{batch:?}") };
            edits.chunk_by(|a, b| a.key == b.key).count()
        })
        .collect();
    assert_eq!((rows, outcome.commits), (vec![4, 4, 2], 3));
    assert_eq!(outcome.counts, BTreeMap::from([(VHD, 641)]));

    let (mut committer, mut members) = (Committer::new(EPOCH, 4 * REGION_BYTES_PER_ROW), Recorder::default());
    members.fails_from = Some(3);
    (0..64 * 10).for_each(|extent| committer.change(written(extent, 1)));
    committer.change(freed(3));
    let outcome = committer.commit(&mut members, |_| true);
    assert!(outcome.counts.is_empty() && outcome.freed.is_empty() && outcome.failed);
}

#[test]
fn after_a_failed_commit_nothing_succeeds() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 1 << 30), Recorder::default());
    committer.change(written(1, 1));
    committer.request(request(1));
    members.fails_from = Some(1);
    let outcome = committer.commit(&mut members, |_| true);
    assert_eq!((outcome.requests, outcome.failed, outcome.dropped.len()), (vec![(request(1), false)], true, 1));
    assert!(outcome.counts.is_empty());
    members.fails_from = None;
    committer.request(request(2));
    committer.edit(EditId(1), vec![StoreEdit::DeleteVhd(VHD)], |_| true);
    let outcome = committer.commit(&mut members, |_| true);
    assert_eq!((outcome.requests, outcome.failed), (vec![(request(2), false)], false));
    assert_eq!(outcome.edits, [(EditId(1), Err(EditFailed))]);
    assert!(members.batches.is_empty());
}

#[test]
fn changes_of_a_deleted_vhd_are_void_and_counted_after_the_edit() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 1 << 30), Recorder::default());
    committer.change(written(1, 9));
    committer.edit(EditId(1), vec![StoreEdit::DeleteVhd(VHD)], |_| false);
    committer.change(written(2, 1));
    committer.change(freed(1));
    let outcome = committer.commit(&mut members, |_| true);
    assert_eq!(outcome.counts, BTreeMap::from([(VHD, 3)]));
    assert_eq!(outcome.freed, [(DiskId(0), SlotIndex(1))]);
    assert_eq!(members.batches[0].steps, [Step::Edit(StoreEdit::DeleteVhd(VHD))]);
}

#[test]
fn what_is_pending_beyond_the_new_end_is_void_and_counted() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 1 << 30), Recorder::default());
    let late = |extent: u32, blocks: u32| {
        let mut change = written(extent, 9);
        if let ChangeKind::Written { blocks: of_change, .. } = &mut change.kind {
            *of_change = BlockMask(blocks);
        }
        change
    };
    // Blocks of the last extent that stays: one that stays, two that go.
    [late(5, 1), late(5, 2), late(5, 4), late(6, 1), late(70, 1)]
        .into_iter()
        .for_each(|change| committer.change(change));
    let shrink = StoreEdit::Shrink { vhd: VHD, extents: 6, last: BlockMask(1) };
    committer.edit(EditId(1), vec![shrink.clone()], |need| need.number.0 < 9);
    let outcome = committer.commit(&mut members, |need| need.number.0 < 9);
    assert_eq!(outcome.counts, BTreeMap::from([(VHD, 2)]), "those that nothing is left of");
    // Grown again: the same extent is another one.
    committer.change(Change { generation: Generation(6), ..written(6, 9) });
    let outcome = committer.commit(&mut members, |_| true);
    assert_eq!(outcome.counts, BTreeMap::from([(VHD, 4)]));
    assert_eq!(members.batches[0].steps, [Step::Edit(shrink)]);
    let [Step::Extents(edits)] = &members.batches[1].steps[..] else { panic!("{:?}", members.batches[1]) };
    let written: Vec<_> = edits.iter().map(|edit| (edit.place, edit.present, edit.generation)).collect();
    assert_eq!(written, [(5, BlockMask(1), Generation(2)), (6, BlockMask(1), Generation(6))]);
}

/// Notes come with whatever is committed next, a few at a time, the newest of each key.
#[test]
fn notes_are_taken_along_and_never_waited_for() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 8 << 20), Recorder::default());
    let note = |number: usize, text: u8| Note::put(NoteKind::Events, u32::try_from(number).unwrap(), vec![text]);
    let mut take = |committer: &mut Committer| {
        let outcome = committer.commit(&mut members, |_| true);
        assert!(outcome.edits.is_empty() && outcome.requests.is_empty() && !outcome.failed);
        let steps = members.batches.pop().map(|batch| batch.steps.clone()).unwrap_or_default();
        let said = steps.into_iter().map(|step| match step {
            Step::Edit(StoreEdit::Note(Note { key, bytes })) => (key.number, bytes.unwrap()[0]),
            other => panic!("{other:?}"),
        });
        said.collect::<Vec<_>>()
    };
    (0..NOTES_PER_COMMIT_MAX + 2).for_each(|number| committer.note(note(number, 1)));
    committer.note(note(1, 2));
    assert!(committer.has_notes() && !committer.has_pending() && !committer.is_urgent());
    let first = take(&mut committer);
    assert_eq!((first.len(), first[0], first[1]), (NOTES_PER_COMMIT_MAX, (0, 1), (1, 2)));
    assert_eq!(take(&mut committer).len(), 2);
    assert!(!committer.has_notes());
    // What only deletes is in nobody's way.
    (0..500).for_each(|number| committer.note(Note::delete(NoteKind::Events, number)));
    committer.note(note(1000, 4));
    let outcome = committer.commit(&mut Recorder::default(), |_| true);
    assert!(outcome.commits == 1 && !committer.has_notes());
    (0..2 * NOTES_WAITING_MAX).for_each(|number| committer.note(note(number, 3)));
    let oldest = u32::try_from(NOTES_WAITING_MAX).unwrap();
    assert_eq!(take(&mut committer)[0], (oldest, 3), "the oldest are given up");
}

fn history_row(vhd: u32, block: u32, len: usize) -> HistoryRow {
    let part = crate::store::history::Part::Samples(crate::metrics::history::Tier::Seconds, block);
    HistoryRow { subject: Subject::Vhd(VhdId(vhd)), part, bytes: vec![0; len], kept: (0, block) }
}

fn history_in(batch: &Batch) -> usize {
    let rows = |step: &Step| if let Step::History(rows) = step { rows.len() } else { 0 };
    batch.steps.iter().map(rows).sum()
}

#[test]
fn history_goes_along_a_little_at_a_time_and_nobody_hurries_for_it() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 1 << 30), Recorder::default());
    committer.history((0..10).map(|block| history_row(1, block, HISTORY_BYTES_PER_COMMIT_MAX / 4)).collect());
    // The same row again takes the place of the one that waits.
    committer.history(vec![history_row(1, 3, HISTORY_BYTES_PER_COMMIT_MAX / 4)]);
    assert!(committer.has_history() && !committer.is_urgent() && !committer.has_pending());
    committer.request(request(1));
    let outcome = committer.commit(&mut members, |_| true);
    assert_eq!((outcome.requests.len(), outcome.commits), (1, 1));
    let mut commits = 1;
    while committer.has_history() {
        committer.commit(&mut members, |_| true);
        commits += 1;
    }
    assert_eq!(commits, 3);
    assert_eq!(members.batches.iter().map(|batch| history_in(batch)).collect::<Vec<_>>(), [4, 4, 2]);
    // A row that is longer than that is no obstacle.
    committer.history(vec![history_row(1, 1, 2 * HISTORY_BYTES_PER_COMMIT_MAX)]);
    committer.commit(&mut members, |_| true);
    assert!(!committer.has_history());
}

#[test]
fn history_of_a_vhd_that_is_deleted_and_what_is_too_much_is_dropped() {
    let (mut committer, mut members) = (Committer::new(EPOCH, 1 << 30), Recorder::default());
    committer.history(vec![history_row(1, 1, 10), history_row(2, 1, 10)]);
    committer.edit(EditId(1), vec![StoreEdit::DeleteVhd(VhdId(1))], |_| true);
    committer.commit(&mut members, |_| true);
    assert_eq!(history_in(&members.batches[0]), 1);
    committer.history((0..9).map(|block| history_row(1, block, HISTORY_BYTES_WAITING_MAX / 8)).collect());
    committer.drop_history();
    assert!(!committer.has_history());
    committer.history((0..20).map(|block| history_row(1, block, HISTORY_BYTES_WAITING_MAX / 8)).collect());
    let waiting: usize = committer.history.iter().map(|row| row.bytes.len()).sum();
    assert_eq!((waiting, committer.history_bytes), (HISTORY_BYTES_WAITING_MAX, HISTORY_BYTES_WAITING_MAX));
    // Of a store that has failed nothing is kept for ever.
    members.fails_from = Some(0);
    committer.commit(&mut members, |_| true);
    committer.commit(&mut members, |_| true);
    assert!(!committer.has_history());
}
