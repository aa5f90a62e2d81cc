//! How a slot that was given back becomes free (ordering rule 2).
//!
//! In this order, per disk: the change that frees it is durable; every reactor and the mover have passed a fence on the disk, so that no
//! operation that saw the old placement is in flight; the worker of the disk has punched it. Any step taken early could
//! show one VHD's bytes to another, now or after a power cut. A disk that hangs keeps its own slots, nobody else's.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use super::outbox::{OwnerOutbox, SlotRun};
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, ReactorId};
use crate::base::limits::{DISKS_MAX, FREE_COMMIT_MILLIS, PUNCH_SLOTS_MAX, REACTORS_MAX};
use crate::base::units::SlotIndex;
use crate::mover::messages::{MoverMessage, WaveId};
use crate::reactor::messages::ReactorMessage;

#[derive(Debug)]
struct Fence {
    number: u64,
    /// Reactors (bits) that have not reached it; the bit after theirs is the mover's.
    missing: u64,
    runs: Vec<SlotRun>,
    /// The disk is new, and may be used once the fence is reached.
    opens: bool,
    /// The disk has left the pool, and is let go of once the fence is reached.
    closes: bool,
    /// Moves that go on once the fence is reached.
    waves: Vec<WaveId>,
}

#[derive(Debug, Default)]
struct DiskReuse {
    /// Freed durably, waiting for the next fence.
    durable: Vec<SlotRun>,
    /// The next fence opens the disk.
    opening: bool,
    /// The next fence closes the disk.
    closing: bool,
    /// Moves that wait for the next fence.
    waves: Vec<WaveId>,
    /// At most one at a time.
    fence: Option<Fence>,
    punching: HashSet<SlotRun>,
}

/// What a reached fence allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reached {
    pub disk: DiskId,
    /// The disk may be used from now on.
    pub opens: bool,
    /// Nothing of it is in flight any more, and nothing will be.
    pub closes: bool,
    /// Moves that waited for it.
    pub waves: Vec<WaveId>,
}

/// All slots on their way back.
#[derive(Debug)]
pub(super) struct Reuse {
    reactors: u16,
    disks: Vec<DiskReuse>,
    next_fence: u64,
    /// Freed changes handed over, and how many of them a commit was asked for.
    handed: u64,
    asked: u64,
    /// When to ask for a commit of the others.
    due: Option<Nanos>,
    /// Tests only: a pipeline without its fence must fail them.
    #[cfg(test)]
    pub skip_fences: bool,
}

impl Reuse {
    pub fn new(reactors: u16) -> Reuse {
        assert!(usize::from(reactors) <= REACTORS_MAX);
        Reuse {
            reactors,
            disks: (0..DISKS_MAX).map(|_| DiskReuse::default()).collect(),
            next_fence: 1,
            handed: 0,
            asked: 0,
            due: None,
            #[cfg(test)]
            skip_fences: false,
        }
    }

    /// A `Freed` change was handed to the committer.
    pub fn handed_over(&mut self, now: Nanos) {
        self.handed += 1;
        self.due.get_or_insert(now.after(Duration::from_millis(FREE_COMMIT_MILLIS)));
    }

    /// Asks for a commit if freed slots wait for one: at once if somebody needs room, else when they have waited for long.
    pub fn ask_for_commit(&mut self, now: Nanos, room_needed: bool, out: &mut impl OwnerOutbox) {
        let overdue = self.due.is_some_and(|due| due <= now);
        if self.handed > self.asked && (room_needed || overdue) {
            self.asked = self.handed;
            self.due = None;
            out.commit();
        }
    }

    /// When [`Reuse::ask_for_commit`] will have something to do.
    pub fn due(&self) -> Option<Nanos> {
        self.due
    }

    /// These slots are free in the durable table.
    pub fn freed_durably(&mut self, disk: DiskId, mut slots: Vec<SlotIndex>, out: &mut impl OwnerOutbox) {
        slots.sort_unstable();
        let runs = &mut self.disks[disk.index()].durable;
        for slot in slots {
            push_slot(runs, slot);
        }
        self.begin_fence(disk, out);
    }

    /// These runs are free in the durable table.
    pub fn freed_runs_durably(&mut self, disk: DiskId, runs: Vec<SlotRun>, out: &mut impl OwnerOutbox) {
        self.disks[disk.index()].durable.extend(runs);
        self.begin_fence(disk, out);
    }

    /// Reactors have been told of a new disk: it may be used when all have heard.
    pub fn open_disk(&mut self, disk: DiskId, out: &mut impl OwnerOutbox) -> Option<Reached> {
        self.disks[disk.index()].opening = true;
        self.begin_fence(disk, out)
    }

    /// A disk has left the pool: it may be let go of when all have heard.
    pub fn close_disk(&mut self, disk: DiskId, out: &mut impl OwnerOutbox) -> Option<Reached> {
        self.disks[disk.index()].closing = true;
        self.begin_fence(disk, out)
    }

    /// The moves go on when everything that saw an older placement on the disk has completed.
    pub fn fence_for(&mut self, wave: WaveId, disk: DiskId, out: &mut impl OwnerOutbox) {
        self.disks[disk.index()].waves.push(wave);
        self.begin_fence(disk, out);
    }

    fn begin_fence(&mut self, id: DiskId, out: &mut impl OwnerOutbox) -> Option<Reached> {
        let disk = &mut self.disks[id.index()];
        let nothing = disk.durable.is_empty() && !disk.opening && !disk.closing && disk.waves.is_empty();
        if disk.fence.is_some() || nothing {
            return None;
        }
        let number = self.next_fence;
        self.next_fence += 1;
        let runs = std::mem::take(&mut disk.durable);
        let opens = std::mem::take(&mut disk.opening);
        let closes = std::mem::take(&mut disk.closing);
        let waves = std::mem::take(&mut disk.waves);
        let missing = u64::MAX >> (63 - self.reactors);
        disk.fence = Some(Fence { number, missing, runs, opens, closes, waves });
        out.to_mover(MoverMessage::Fence { fence: number, disk: id });
        for reactor in 0..self.reactors {
            out.to_reactor(ReactorId(reactor), ReactorMessage::Fence { fence: number, disk: id });
        }
        #[cfg(test)]
        if self.skip_fences {
            return self.pass(id, out);
        }
        None
    }

    /// The number by which the mover answers fences.
    pub fn mover(&self) -> ReactorId {
        ReactorId(self.reactors)
    }

    /// A reactor reached a fence. `Some` if it was the last one.
    pub fn reached(&mut self, reactor: ReactorId, number: u64, out: &mut impl OwnerOutbox) -> Option<Reached> {
        let is_it = |disk: &DiskReuse| disk.fence.as_ref().is_some_and(|fence| fence.number == number);
        let index = self.disks.iter().position(is_it)?;
        let fence = self.disks[index].fence.as_mut()?;
        fence.missing &= !(1 << reactor.0);
        if fence.missing != 0 {
            return None;
        }
        let id = DiskId(u8::try_from(index).expect("fewer than 256 disks"));
        let reached = self.pass(id, out);
        self.begin_fence(id, out);
        reached
    }

    /// The fence of the disk has been reached by all: its slots can be punched.
    fn pass(&mut self, id: DiskId, out: &mut impl OwnerOutbox) -> Option<Reached> {
        let disk = &mut self.disks[id.index()];
        let fence = disk.fence.take()?;
        for run in fence.runs {
            for part in split(run) {
                let new = disk.punching.insert(part);
                assert!(new, "a slot is freed once");
                out.punch(id, part);
            }
        }
        Some(Reached { disk: id, opens: fence.opens, closes: fence.closes, waves: fence.waves })
    }

    /// The worker is done with a run, which may be released now.
    ///
    /// # Panics
    /// If it was not asked to punch it.
    pub fn punched(&mut self, disk: DiskId, run: SlotRun) {
        let asked = self.disks[disk.index()].punching.remove(&run);
        assert!(asked, "punched slots {run:?} of disk {} without being asked", disk.0);
    }
}

/// Slots by disk.
pub(super) type SlotRuns = BTreeMap<DiskId, Vec<SlotRun>>;

/// Appends a slot to a list of runs.
pub(super) fn push_slot(runs: &mut Vec<SlotRun>, slot: SlotIndex) {
    match runs.last_mut() {
        Some(last) if last.first.0 + last.count == slot.0 => last.count += 1,
        _ => runs.push(SlotRun { first: slot, count: 1 }),
    }
}

fn split(run: SlotRun) -> impl Iterator<Item = SlotRun> {
    let end = run.first.0 + run.count;
    (run.first.0..end)
        .step_by(PUNCH_SLOTS_MAX as usize)
        .map(move |first| SlotRun { first: SlotIndex(first), count: PUNCH_SLOTS_MAX.min(end - first) })
}
