//! Copies being filled: tasks, and the chunks of them that are in flight.
//!
//! A task goes through its extent from the first block to the last, a chunk at a time: a run of present blocks is claimed, read
//! and written. Blocks that are absent when their turn comes are passed over: whoever writes one first writes all copies.

mod room;
mod sync;
mod turns;
mod verify;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use room::{Counted, Room};
use sync::Sync;
use turns::Asked;

use super::messages::{CopyTask, MoverMessage, MoverOutbox, MoverReport};
use super::pace::Paces;
use crate::base::aligned::AlignedBuf;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, DiskSet, VhdId};
use crate::base::limits::{COPY_BUFFER_LEN, COPY_CHUNK_LEN, COPY_CHUNKS_MAX, COPY_PATIENCE_MILLIS, DISKS_MAX};
use crate::base::units::{BLOCKS_PER_EXTENT, BlockMask};
use crate::engine::fences::Fences;
use crate::engine::{Buffer, Completion, Engine, IoError, Op, OpTag};
use crate::metrics::IoKind;
use crate::placement::ReplicaState;
use crate::placement::view::Lookup;
use crate::shared::DiskState;

/// Tags of syncs follow those of chunks.
const SYNC_TAG: u64 = COPY_CHUNKS_MAX as u64;

/// A task that waits for its next chunk, or has one in flight.
struct Task {
    copy: CopyTask,
    /// Blocks before this one are done.
    next_block: u32,
    /// Blocks before this one are read one by one: something among them is bad.
    one_by_one: u32,
    /// What was wrong with a part of the source, if the parts after it are wanted all the same.
    damage: Option<IoError>,
}

/// What came of trying to begin a chunk.
enum Begin {
    /// It is in flight.
    Begun,
    /// Nothing is left to copy.
    Done,
    /// The extent is not being moved any more.
    Gone,
    /// Somebody holds a claim on one of its blocks.
    Busy,
}

/// A chunk in flight. It holds a claim on its blocks, and an epoch on each of the two disks.
struct Chunk {
    task: Task,
    blocks: BlockMask,
    /// Offset within the extent, and length.
    within: u64,
    len: u64,
    source_epoch: u64,
    target_epoch: u64,
    writing: bool,
    counted: Counted,
    begun: Nanos,
    /// Its target has not answered for too long: the claim has been given up, and the task with it.
    given_up: bool,
}

/// The mover without its thread.
pub struct Copier<E: Engine, O: MoverOutbox> {
    /// Runs the disk operations. Public for the thread that waits on it.
    pub engine: E,
    outbox: O,
    disks: [Option<Arc<DiskState>>; DISKS_MAX],
    fences: [Fences; DISKS_MAX],
    tasks: VecDeque<Task>,
    chunks: [Option<Chunk>; COPY_CHUNKS_MAX],
    buffers: Vec<AlignedBuf>,
    syncs: BTreeMap<u64, Sync>,
    next_sync: u64,
    /// Jobs that are being carried out.
    paces: Paces,
    /// What waits for its turn on disks that are shared out.
    room: Room,
    /// VHDs whose writers have been asked to let the copier go first.
    asked: BTreeMap<VhdId, Asked>,
    /// When a task that had to wait for its pace may go on.
    due: Option<Nanos>,
    /// A task found its blocks claimed: nothing will announce that they are free.
    must_retry: bool,
}

impl<E: Engine, O: MoverOutbox> Copier<E, O> {
    /// A mover with nothing to do.
    #[must_use]
    pub fn new(engine: E, outbox: O) -> Self {
        Copier {
            engine,
            outbox,
            disks: [const { None }; DISKS_MAX],
            fences: std::array::from_fn(|_| Fences::default()),
            tasks: VecDeque::new(),
            chunks: [const { None }; COPY_CHUNKS_MAX],
            buffers: (0..COPY_CHUNKS_MAX).map(|_| AlignedBuf::zeroed(COPY_BUFFER_LEN)).collect(),
            syncs: BTreeMap::new(),
            next_sync: SYNC_TAG,
            paces: Paces::default(),
            room: Room::new(),
            asked: BTreeMap::new(),
            due: None,
            must_retry: false,
        }
    }

    /// Makes a host disk known. The engine must know it, too.
    pub fn add_disk(&mut self, disk: Arc<DiskState>) {
        let index = disk.id.index();
        self.disks[index] = Some(disk);
    }

    /// Takes a message. (`AddDisk`, `RemoveDisk` and `Shutdown` are the thread's.)
    pub fn handle(&mut self, message: MoverMessage, now: Nanos) {
        match message {
            MoverMessage::Copy(copy) => self.tasks.push_back(Task { copy, next_block: 0, one_by_one: 0, damage: None }),
            MoverMessage::Sync { wave, disk } => self.begin_sync(wave, disk, now),
            MoverMessage::Fence { fence, disk } => {
                self.fences[disk.index()].begin(fence);
                self.report_fences(disk);
            }
            MoverMessage::SetSpeed { job, speed } => self.paces.set_speed(job, speed, now),
            MoverMessage::ForgetJob(job) => self.paces.forget(job),
            MoverMessage::Turn => self.outbox.to_owner(MoverReport::Turned),
            MoverMessage::AddDisk { disk, .. } => self.add_disk(disk),
            // Whoever turns looks.
            MoverMessage::RemoveDisk { .. } | MoverMessage::Room => {}
            MoverMessage::Shutdown => {
                while let Some(task) = self.tasks.pop_front() {
                    self.end_turn(&task.copy);
                }
            }
        }
    }

    /// Takes completions and begins what can be begun. Returns whether anything happened.
    pub fn poll(&mut self, now: Nanos) -> bool {
        let mut progress = false;
        while let Some(completion) = self.engine.take_completion() {
            progress = true;
            self.complete(completion, now);
        }
        progress |= self.begin_chunks(now);
        while self.announce_turns() {
            progress |= self.begin_chunks(now);
        }
        progress
    }

    /// Gives up what has waited too long for a target: guests must not wait for a claim on its behalf.
    pub fn tick(&mut self, now: Nanos) {
        self.end_unused_turns(now);
        let late = |begun| now.since(begun) >= COPY_PATIENCE_MILLIS * 1_000_000;
        let mut stuck = DiskSet::default();
        let mut freed = Vec::new();
        let disks = &self.disks;
        let has_failed = |disk: DiskId| disks[disk.index()].as_ref().is_some_and(|disk| disk.is_failed());
        for chunk in self.chunks.iter_mut().flatten().filter(|chunk| late(chunk.begun)) {
            let copy = &chunk.task.copy;
            let disk = if chunk.writing { copy.target.disk } else { copy.source.disk };
            // A late write to a replica in sync could land on newer ones, as long as these go there.
            let failed = has_failed(disk);
            let may_be_left = chunk.writing && copy.target.state == ReplicaState::Syncing;
            if !failed && !may_be_left {
                continue;
            }
            if !failed {
                stuck.insert(disk);
            }
            if !std::mem::replace(&mut chunk.given_up, true) {
                freed.push((chunk.task.copy.clone(), chunk.blocks, disk));
            }
        }
        for sync in self.syncs.values_mut().filter(|sync| late(sync.begun) && !sync.told) {
            sync.told = true;
            stuck.insert(sync.disk);
        }
        // First the owner, so that nobody takes the copy for complete; then whoever waits for the claim.
        stuck.iter().for_each(|disk| self.outbox.to_owner(MoverReport::Stuck { disk }));
        for (copy, blocks, disk) in freed {
            if !stuck.contains(disk) {
                let error = IoError::Os(libc::ETIMEDOUT);
                self.outbox.to_owner(MoverReport::Failed { id: copy.id, disk, error });
            }
            copy.vhd.map.release(copy.extent, blocks, BlockMask::NONE);
            self.wake(&copy.vhd);
            self.end_turn(&copy);
        }
    }

    /// Whether nothing is in flight and nothing waits to be.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.tasks.is_empty() && self.in_flight() == 0
    }

    /// Operations in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.syncs.len() + self.chunks.iter().flatten().count()
    }

    /// Whether a task must be tried again although nothing will announce when.
    #[must_use]
    pub fn must_retry(&self) -> bool {
        self.must_retry
    }

    /// Whether it must be called now and then: something is in flight that may take too long, or a task waits for its turn on a disk, of which
    /// others tell, who may have gone.
    #[must_use]
    pub fn must_look(&self) -> bool {
        self.in_flight() > 0 || self.waits_for_room()
    }

    /// When a task that waits for its pace may go on.
    #[must_use]
    pub fn next_deadline(&self) -> Option<Nanos> {
        self.due
    }

    fn begin_chunks(&mut self, now: Nanos) -> bool {
        let mut progress = false;
        self.must_retry = false;
        self.due = None;
        for _ in 0..self.tasks.len() {
            let Some(task) = self.tasks.pop_front() else { break };
            // Whether there is room for its next chunk or not: writers may be standing back for it.
            if !is_wanted(&task.copy) {
                self.end_task(&task.copy, MoverReport::Gone { id: task.copy.id });
                progress = true;
                continue;
            }
            let Some(place) = self.place_for(&task.copy) else {
                self.tasks.push_back(task);
                continue;
            };
            if let Some(due) = self.must_wait(&task, now) {
                self.due = Some(self.due.map_or(due, |other| other.min(due)));
                // That may be long, and writers need not stand back meanwhile.
                self.end_turn(&task.copy);
                self.tasks.push_back(task);
                continue;
            }
            let Some(counted) = self.take_room(&task) else {
                self.end_turn(&task.copy);
                self.tasks.push_back(task);
                continue;
            };
            progress |= self.advance(task, place, counted, now);
        }
        progress
    }

    /// A free place for a chunk. A disk that hangs must leave some to the others.
    fn place_for(&self, copy: &CopyTask) -> Option<usize> {
        let disks: DiskSet = [copy.source.disk, copy.target.disk].into_iter().collect();
        let shares_disk = |chunk: &&Chunk| {
            let other = &chunk.task.copy;
            disks.contains(other.source.disk) || disks.contains(other.target.disk)
        };
        let is_full = self.chunks.iter().flatten().filter(shares_disk).count() >= self.paces.depth(copy.job);
        if is_full || self.engine.available() == 0 {
            return None;
        }
        self.chunks.iter().position(Option::is_none)
    }

    fn end_task(&mut self, copy: &CopyTask, report: MoverReport) {
        self.end_turn(copy);
        self.outbox.to_owner(report);
    }

    /// When the task may go on, if its pace makes it wait.
    fn must_wait(&mut self, task: &Task, now: Nanos) -> Option<Nanos> {
        let pace = self.paces.get_mut(task.copy.job)?;
        if pace.must_observe(now) {
            let in_flight = self.chunks.iter().flatten().map(|chunk| &chunk.task);
            let tasks = self.tasks.iter().chain(in_flight).chain([task]).filter(|t| t.copy.job == task.copy.job);
            let disks: DiskSet = tasks.flat_map(|t| [t.copy.source.disk, t.copy.target.disk]).collect();
            pace.observe(disks.iter().filter_map(|disk| self.disks[disk.index()].as_deref()), now);
        }
        pace.due(now)
    }

    /// Begins the next chunk of a task in a free place, or ends the task. Returns whether anything happened.
    fn advance(&mut self, task: Task, place: usize, counted: Counted, now: Nanos) -> bool {
        let id = task.copy.id;
        let (begin, task) = self.begin_chunk(task, place, counted, now);
        if let Some(task) = &task {
            self.take_back(task, counted);
        }
        match (begin, task) {
            (Begin::Busy, Some(task)) => {
                self.must_retry = true;
                self.ask_for_turn(&task, now);
                self.tasks.push_back(task);
                return false;
            }
            (Begin::Done, Some(Task { copy, damage: Some(error), .. })) => {
                self.end_task(&copy, MoverReport::Failed { id, disk: copy.source.disk, error });
            }
            (Begin::Done, Some(task)) => self.end_task(&task.copy, MoverReport::Copied { id }),
            (Begin::Gone, Some(task)) => self.end_task(&task.copy, MoverReport::Gone { id }),
            _ => {}
        }
        true
    }

    /// The task is given back unless it is in flight.
    fn begin_chunk(&mut self, mut task: Task, place: usize, counted: Counted, now: Nanos) -> (Begin, Option<Task>) {
        let copy = &task.copy;
        let seen = copy.vhd.map.lookup(copy.extent);
        if copy.vhd.is_deleted() || !is_as_planned(copy, &seen) {
            return (Begin::Gone, Some(task));
        }
        let geometry = copy.vhd.settings.geometry;
        let block_size = geometry.block_size();
        let max = if task.next_block < task.one_by_one { 1 } else { COPY_CHUNK_LEN / block_size };
        let Some((blocks, first)) = next_run(seen.present, task.next_block, max) else {
            return (Begin::Done, Some(task));
        };
        let present = match copy.vhd.map.claim_any(copy.extent, blocks, seen.version) {
            // Changed since it was looked at: looks again. Somebody may have begun to wait for the claim meanwhile.
            Err(_) => {
                self.wake(&Arc::clone(&copy.vhd));
                return (Begin::Busy, Some(task));
            }
            Ok(present) => present,
        };
        let copy = task.copy.clone();
        self.end_turn(&copy);
        if present != blocks {
            // Discarded between lookup and claim.
            copy.vhd.map.release(copy.extent, blocks, BlockMask::NONE);
            self.wake(&copy.vhd);
            return (Begin::Busy, Some(task));
        }
        task.next_block = first + blocks.len();
        let chunk = Chunk {
            blocks,
            within: u64::from(first) * block_size,
            len: u64::from(blocks.len()) * block_size,
            source_epoch: self.fences[copy.source.disk.index()].enter(),
            target_epoch: self.fences[copy.target.disk.index()].enter(),
            writing: false,
            counted,
            begun: now,
            given_up: false,
            task,
        };
        if let Some(pace) = self.paces.get_mut(copy.job) {
            pace.take(chunk.len, now);
        }
        self.chunks[place] = Some(chunk);
        self.submit(place);
        (Begin::Begun, None)
    }

    /// Reads or writes the chunk in a place.
    fn submit(&mut self, place: usize) {
        let chunk = self.chunks[place].as_ref().expect("a chunk in flight");
        let copy = &chunk.task.copy;
        let replica = if chunk.writing { copy.target } else { copy.source };
        let disk = self.disks[replica.disk.index()].as_ref().expect("copies lie on disks of the pool");
        let extent_size = copy.vhd.settings.geometry.extent_size();
        let offset = disk.data_offset + u64::from(replica.slot.0) * extent_size + chunk.within;
        disk.copying.begun();
        let len = usize::try_from(chunk.len).expect("a chunk fits memory");
        let buffers = [Buffer { ptr: self.buffers[place].as_ptr(), len }];
        let op = if chunk.writing {
            Op::Write { disk: replica.disk, offset, buffers: &buffers }
        } else {
            Op::Read { disk: replica.disk, offset, buffers: &buffers }
        };
        // SAFETY: the buffer of a place is used by the one chunk in it, lives as long as the engine is in use, and is not freed
        // before the engine (see the order of the fields, and `drop` of the engine).
        unsafe { self.engine.submit(op, OpTag(place as u64)) }.expect("the engine has room for every place and sync");
    }

    fn complete(&mut self, completion: Completion, now: Nanos) {
        if completion.tag.0 >= SYNC_TAG {
            return self.sync_done(completion);
        }
        let place = usize::try_from(completion.tag.0).expect("tags below that of syncs are places");
        let chunk = self.chunks[place].as_mut().expect("a chunk in flight");
        let copy = &chunk.task.copy;
        let (source, target) = (copy.source.disk, copy.target.disk);
        let (disk, kind) = if chunk.writing { (target, IoKind::Write) } else { (source, IoKind::Read) };
        let state = self.disks[disk.index()].as_ref().expect("it was submitted there");
        state.copying.completed();
        if copy.only_reads() {
            completion.result.iter().for_each(|()| state.scrub_work.read(chunk.len));
        } else {
            state.copy_metrics.record(kind, chunk.len, now.since(chunk.begun), completion.result.is_ok());
        }
        if !chunk.writing {
            let counted = chunk.counted.source;
            self.fences[source.index()].leave(chunk.source_epoch);
            self.give_room(source, counted);
            self.report_fences(source);
            let result = completion.result.and_then(|()| self.verify(place));
            let chunk = self.chunks[place].as_mut().expect("still in flight");
            if result.is_ok() && !chunk.given_up && !chunk.task.copy.only_reads() {
                chunk.writing = true;
                chunk.begun = now;
                self.count_write(place);
                return self.submit(place);
            }
            return self.end_chunk(place, disk, result);
        }
        let counted = chunk.counted.target;
        self.give_room(target, counted);
        self.end_chunk(place, disk, completion.result);
    }

    fn end_chunk(&mut self, place: usize, disk: DiskId, result: Result<(), IoError>) {
        let Chunk { mut task, blocks, len, target_epoch, given_up, writing, .. } =
            self.chunks[place].take().expect("a chunk in flight");
        let target = task.copy.target.disk;
        self.fences[target.index()].leave(target_epoch);
        self.report_fences(target);
        if given_up {
            return;
        }
        task.copy.vhd.map.release(task.copy.extent, blocks, BlockMask::NONE);
        self.wake(&task.copy.vhd);
        match result {
            Ok(()) => {
                if task.copy.target.state == ReplicaState::InSync && !task.copy.only_reads() {
                    // Nobody but guests syncs it.
                    let state = self.disks[target.index()].as_ref().expect("it was written there");
                    task.copy.vhd.note_written(state.sync_needed());
                }
                self.outbox.to_owner(MoverReport::Progress { job: task.copy.job, bytes: len });
                // The next chunk of the same extent before those of others, so that extents are done one after the other.
                self.tasks.push_front(task);
            }
            // Replicas that are damaged in different places can each be repaired from the other.
            Err(error) if !writing && task.copy.target.state == ReplicaState::InSync => {
                if blocks.len() > 1 {
                    (task.one_by_one, task.next_block) = (task.next_block, task.next_block - blocks.len());
                } else {
                    task.damage.get_or_insert(error);
                }
                self.tasks.push_front(task);
            }
            Err(error) => self.end_task(&task.copy, MoverReport::Failed { id: task.copy.id, disk, error }),
        }
    }

    fn report_fences(&mut self, disk: DiskId) {
        while let Some(fence) = self.fences[disk.index()].next_reached() {
            self.outbox.to_owner(MoverReport::FenceReached { fence });
        }
    }
}

/// Whether the copy is still to be filled.
fn is_wanted(copy: &CopyTask) -> bool {
    !copy.vhd.is_deleted() && is_as_planned(copy, &copy.vhd.map.lookup(copy.extent))
}

/// Whether the extent is where the task says, and the copy is still wanted.
fn is_as_planned(copy: &CopyTask, seen: &Lookup) -> bool {
    let is = |replica: crate::placement::Replica, state| {
        seen.replicas.on(replica.disk).is_some_and(|found| found.slot == replica.slot && found.state == state)
    };
    is(copy.source, ReplicaState::InSync) && is(copy.target, copy.target.state)
}

/// The next run of at most `max` present blocks from `from` on, and its first block.
fn next_run(present: BlockMask, from: u32, max: u64) -> Option<(BlockMask, u32)> {
    let first = (from..BLOCKS_PER_EXTENT).find(|&block| present.has(block))?;
    let in_run =
        |&block: &u32| block < BLOCKS_PER_EXTENT && u64::from(block - first) < max.max(1) && present.has(block);
    let last = (first..).take_while(in_run).last().expect("the first block is present");
    Some((BlockMask::span(first, last), first))
}

#[cfg(test)]
mod tests;
