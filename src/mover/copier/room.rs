//! Room on disks that are shared out: see [`crate::qos::shares`]. Jobs are one client of each disk, behind guests but not left out.
//!
//! A chunk waits for one of its disks, the one on which jobs have had most of what is theirs, before it claims anything: whoever waits here keeps
//! nobody else waiting.
//! It pays on both, and counts on the source while it is read and on the target while it is written: a source that hangs takes nothing of
//! its target. The turn on a disk belongs to whichever task gets there first.

use super::{Copier, Task};
use crate::base::ids::{DiskId, DiskSet, ReactorId};
use crate::base::limits::{COPY_CHUNK_LEN, DISKS_MAX};
use crate::engine::Engine;
use crate::mover::messages::MoverOutbox;
use crate::qos::Share;
use crate::qos::shares::{Account, Turn, Work};
use crate::reactor::messages::ReactorMessage;
use crate::shared::disk::MOVER_THREAD;

/// What a chunk of extents with blocks of so many bytes counts as, whatever its length: most are as long as they can be.
fn chunk_of(block_size: u64) -> Work {
    Work::of(COPY_CHUNK_LEN.max(block_size))
}

/// The mover's turn on one disk.
#[derive(Default)]
struct Line {
    account: Account,
    /// The turn for which somebody waits.
    turn: Option<Turn>,
    /// As published.
    said: Option<Turn>,
}

/// What the mover waits for on shared disks.
pub(super) struct Room {
    lines: [Line; DISKS_MAX],
    /// What a chunk counts as: all extents of a pool are alike.
    chunk: Work,
    /// Disks for which somebody has been refused in this round.
    wanted: DiskSet,
}

impl Room {
    pub fn new() -> Room {
        Room { lines: std::array::from_fn(|_| Line::default()), chunk: chunk_of(0), wanted: DiskSet::default() }
    }
}

/// What a chunk has paid, and counts as.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counted {
    /// Where it has paid.
    paid: DiskSet,
    /// What the source counts it as while it is read, and the target while it is written. Nothing if others came first there.
    pub source: Work,
    pub target: Work,
    /// The turn for which it has paid on the target.
    write_turn: Option<Turn>,
}

impl<E: Engine, O: MoverOutbox> Copier<E, O> {
    /// The next chunk of a task pays on its disks, and counts on the source; `None`: it has to wait for its turn on one of them.
    pub(super) fn take_room(&mut self, task: &Task) -> Option<Counted> {
        let copy = &task.copy;
        let (source, target) = (copy.source.disk, copy.target.disk);
        self.room.chunk = chunk_of(copy.vhd.settings.geometry.block_size());
        let shared = [source, target].into_iter().filter(|disk| self.disk(*disk).shares.is_on());
        let shared: DiskSet = shared.collect();
        let reason = |disk: &DiskId| self.disk(*disk).shares.reason_to_wait(&self.room.lines[disk.index()].account);
        let waits_on = shared.iter().max_by_key(reason).filter(|_| !self.paces.is_urgent(copy.job));
        let waited = match waits_on {
            Some(disk) => Some((disk, self.begin_on(disk)?)),
            None => None,
        };
        let mut counted = Counted { paid: shared, ..Counted::default() };
        for disk in shared.iter() {
            let begun = waited.filter(|(on, _)| *on == disk).map(|(_, turn)| turn);
            let turn = begun.unwrap_or_else(|| self.take_turn_anyway_on(disk));
            // One that is only read has one disk.
            if disk == source {
                counted.source = if begun.is_some() { self.room.chunk } else { self.begin_anyway_on(disk, turn) };
            } else {
                counted.write_turn = Some(turn);
                if begun.is_some() {
                    // It has been paid for, and is not in flight yet.
                    self.give_room(disk, self.room.chunk);
                }
            }
        }
        Some(counted)
    }

    fn disk(&self, disk: DiskId) -> &crate::shared::DiskState {
        self.disks[disk.index()].as_ref().expect("copies lie on disks of the pool")
    }

    /// The turn with which a chunk has begun.
    fn begin_on(&mut self, disk: DiskId) -> Option<Turn> {
        let state = self.disks[disk.index()].as_ref().expect("copies lie on disks of the pool");
        let work = self.room.chunk;
        let Line { account, turn, .. } = &mut self.room.lines[disk.index()];
        *turn = turn.filter(|turn| !state.shares.has_expired(*turn));
        let taken = *turn.get_or_insert_with(|| state.shares.take_turn(account, Share::BACKGROUND, work));
        if !state.shares.begin(MOVER_THREAD, taken, work) {
            self.room.wanted.insert(disk);
            return None;
        }
        turn.take()
    }

    /// The chunk has not begun: what it has paid is given back, too.
    pub(super) fn take_back(&mut self, task: &Task, counted: Counted) {
        for disk in counted.paid.iter() {
            let account = &self.room.lines[disk.index()].account;
            self.disk(disk).shares.give_back_turn(account, Share::BACKGROUND, self.room.chunk);
        }
        self.give_room(task.copy.source.disk, counted.source);
    }

    /// What is about to be written counts from now on: it has been paid for.
    pub(super) fn count_write(&mut self, place: usize) {
        let chunk = self.chunks[place].as_ref().expect("a chunk in flight");
        let (target, turn) = (chunk.task.copy.target.disk, chunk.counted.write_turn);
        let counted = turn.map_or(Work::default(), |turn| self.begin_anyway_on(target, turn));
        self.chunks[place].as_mut().expect("still in flight").counted.target = counted;
    }

    fn take_turn_anyway_on(&self, disk: DiskId) -> Turn {
        let account = &self.room.lines[disk.index()].account;
        self.disk(disk).shares.take_turn_anyway(account, Share::BACKGROUND, self.room.chunk)
    }

    fn begin_anyway_on(&self, disk: DiskId, turn: Turn) -> Work {
        self.disk(disk).shares.begin_anyway(turn, self.room.chunk)
    }

    /// What was counted is not in flight any more.
    pub(super) fn give_room(&mut self, disk: DiskId, work: Work) {
        if work == Work::default() {
            return;
        }
        self.disk(disk).shares.end(work);
        self.call_first(disk);
    }

    /// Wakes the reactor on which somebody waits before the mover.
    fn call_first(&mut self, disk: DiskId) {
        if let Some(thread) = self.disk(disk).shares.call_first(MOVER_THREAD) {
            let reactor = ReactorId(u16::try_from(thread).expect("threads are numbered like reactors"));
            self.outbox.to_reactor(reactor, ReactorMessage::Room);
        }
    }

    /// Whether a task waits for its turn on a disk.
    pub(super) fn waits_for_room(&self) -> bool {
        self.room.lines.iter().any(|line| line.turn.is_some())
    }

    /// Tells reactors whether the mover waits. Turns that nobody waits for any more are given back, since others would wait behind them.
    /// Whether something new has been said: then what has ended before has woken nobody, and somebody must try once more.
    pub(super) fn announce_turns(&mut self) -> bool {
        let (wanted, work) = (std::mem::take(&mut self.room.wanted), self.room.chunk);
        let mut is_news = false;
        for index in 0..DISKS_MAX {
            let Line { account, turn, said } = &mut self.room.lines[index];
            let Some(state) = self.disks[index].as_ref().filter(|_| turn.is_some() || said.is_some()) else { continue };
            if turn.is_some() && !wanted.contains(state.id) {
                *turn = None;
                state.shares.give_back_turn(account, Share::BACKGROUND, work);
            }
            if *turn == *said {
                continue;
            }
            state.shares.publish(MOVER_THREAD, *said, *turn);
            *said = *turn;
            is_news |= turn.is_some();
            let id = state.id;
            self.call_first(id);
        }
        is_news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_large_blocks_count_as_such() {
        assert_eq!(chunk_of(32 << 10), Work::of(COPY_CHUNK_LEN));
        assert_eq!(chunk_of(2 << 20), Work::of(2 << 20));
    }
}
