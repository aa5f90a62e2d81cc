//! Extents that are moved together. Data, and finding things in it.

use std::collections::{BTreeMap, BTreeSet};

use crate::base::ids::{DiskId, DiskSet, JobId, VhdId};
use crate::base::units::{ExtentIndex, Generation, SlotIndex};
use crate::engine::IoError;
use crate::mover::messages::{MoveId, WaveId};
use crate::owner::command::MOVE_STEPS;
use crate::placement::Replica;
use crate::plan::Relocation;
use crate::store::edit::EditId;

/// A step of a plan, and the content that the extent had when it was made: what is written after the extent was dropped is
/// somewhere else, and has as many replicas as it should have by then.
#[derive(Clone, Copy, Debug)]
pub(in crate::owner) struct Planned {
    pub relocation: Relocation,
    pub generation: Generation,
}

/// How far a wave is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::owner) enum Stage {
    /// Published as syncing; fences on these disks are awaited.
    Draining { missing: DiskSet },
    /// The mover fills the copies.
    Copying,
    /// Published as sealing; fences on these disks are awaited.
    Sealing { missing: DiskSet },
    /// The mover syncs these disks.
    Syncing { missing: DiskSet },
    /// The rows are being written.
    Committing { edit: EditId },
    /// The rows may have been written or not: both places are kept until the pool is opened again.
    Undecided,
}

/// The move of one extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::owner) struct Move {
    pub id: MoveId,
    pub extent: ExtentIndex,
    /// The content that is moved.
    pub generation: Generation,
    /// The replica that goes; `None`: the extent gets one more.
    pub from: Option<Replica>,
    /// The copy that is made; `None`: the extent gets one fewer.
    pub to: Option<Replica>,
    /// The copy is a stale replica, which is filled again where it is.
    pub in_place: bool,
    /// The slot that it had on that disk, if that is bad and it is filled in another one.
    pub vacates: Option<SlotIndex>,
    pub copied: bool,
}

/// Moves that share fences, syncs and a commit.
#[derive(Clone, Debug)]
pub(in crate::owner) struct Wave {
    pub job: JobId,
    pub vhd: VhdId,
    pub stage: Stage,
    /// Those that have not ended.
    pub moves: Vec<Move>,
}

impl Move {
    /// The slot that is given back and still in the table, and its disk.
    pub fn vacated(&self) -> Option<(DiskId, SlotIndex)> {
        self.to.zip(self.vacates).map(|(to, slot)| (to.disk, slot))
    }

    /// Whether it takes from the disk, or gives to it.
    pub fn touches(&self, disk: DiskId) -> bool {
        [self.from, self.to].into_iter().flatten().any(|replica| replica.disk == disk)
    }
}

impl Stage {
    /// Place of the step in [`MOVE_STEPS`].
    fn index(&self) -> usize {
        match self {
            Stage::Draining { .. } => 0,
            Stage::Copying => 1,
            Stage::Sealing { .. } => 2,
            Stage::Syncing { .. } => 3,
            Stage::Committing { .. } | Stage::Undecided => 4,
        }
    }
}

impl Wave {
    /// The disks on which copies are made.
    pub fn targets(&self) -> DiskSet {
        self.moves.iter().filter_map(|m| m.to).map(|to| to.disk).collect()
    }
}

/// A write or FLUSH of a guest that waits until it is known what becomes of a move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::owner) struct Missed {
    pub reactor: crate::base::ids::ReactorId,
    pub vhd: VhdId,
    pub disk: DiskId,
    pub by: crate::reactor::messages::MissedBy,
}

/// Why moves were given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::owner) struct Fault {
    pub disk: DiskId,
    pub error: IoError,
}

/// All moves in progress.
#[derive(Debug, Default)]
pub(in crate::owner) struct Waves {
    waves: BTreeMap<WaveId, Wave>,
    by_move: BTreeMap<MoveId, WaveId>,
    by_extent: BTreeMap<(VhdId, ExtentIndex), (WaveId, MoveId)>,
    /// Guests that wait for a commit which is under way.
    pub missed: Vec<Missed>,
    /// VHDs of which nothing more begins to move, because a FLUSH that misses a sync of the disk waits until nothing does.
    held: BTreeSet<(VhdId, DiskId)>,
    /// One of them may go on.
    released: bool,
    /// Moves that ended before they were durable, by the step they were at.
    pub ended_early: [u64; MOVE_STEPS.len()],
    next_wave: u64,
    next_move: u64,
}

impl Waves {
    pub fn next_move(&mut self) -> MoveId {
        self.next_move += 1;
        MoveId(self.next_move)
    }

    pub fn insert(&mut self, wave: Wave) -> WaveId {
        self.next_wave += 1;
        let id = WaveId(self.next_wave);
        for moved in &wave.moves {
            self.by_move.insert(moved.id, id);
            let before = self.by_extent.insert((wave.vhd, moved.extent), (id, moved.id));
            assert!(before.is_none(), "an extent is moved by one wave at a time");
        }
        self.waves.insert(id, wave);
        id
    }

    pub fn get(&self, id: WaveId) -> Option<&Wave> {
        self.waves.get(&id)
    }

    pub fn get_mut(&mut self, id: WaveId) -> Option<&mut Wave> {
        self.waves.get_mut(&id)
    }

    /// The wave of a move that has not ended.
    pub fn of_move(&self, id: MoveId) -> Option<WaveId> {
        self.by_move.get(&id).copied()
    }

    /// The move of an extent.
    pub fn of_extent(&self, vhd: VhdId, extent: ExtentIndex) -> Option<(WaveId, MoveId)> {
        self.by_extent.get(&(vhd, extent)).copied()
    }

    /// The wave whose rows are written by an edit.
    pub fn committing(&self, edit: EditId) -> Option<WaveId> {
        self.waves.iter().find(|(_, wave)| wave.stage == Stage::Committing { edit }).map(|(id, _)| *id)
    }

    /// Waves, in the order in which they began.
    pub fn iter(&self) -> impl Iterator<Item = (WaveId, &Wave)> {
        self.waves.iter().map(|(id, wave)| (*id, wave))
    }

    /// Waves of a job.
    pub fn of_job(&self, job: JobId) -> usize {
        self.waves.values().filter(|wave| wave.job == job).count()
    }

    /// A move has ended. The wave stays, even if it was the last of its moves.
    pub fn remove_move(&mut self, id: MoveId) -> Option<(WaveId, Move)> {
        let wave_id = self.by_move.remove(&id)?;
        let wave = self.waves.get_mut(&wave_id).expect("moves are in waves");
        self.ended_early[wave.stage.index()] += 1;
        let index = wave.moves.iter().position(|m| m.id == id).expect("and waves have their moves");
        let moved = wave.moves.remove(index);
        self.by_extent.remove(&(wave.vhd, moved.extent));
        Some((wave_id, moved))
    }

    /// A wave has ended, with all of its moves.
    pub fn remove(&mut self, id: WaveId) -> Option<Wave> {
        let wave = self.waves.remove(&id)?;
        for moved in &wave.moves {
            self.by_move.remove(&moved.id);
            self.by_extent.remove(&(wave.vhd, moved.extent));
        }
        Some(wave)
    }

    /// Moves that have not ended, by the step they are at.
    pub fn by_step(&self) -> [u64; MOVE_STEPS.len()] {
        let mut moves = [0; MOVE_STEPS.len()];
        for wave in self.waves.values() {
            moves[wave.stage.index()] += wave.moves.len() as u64;
        }
        moves
    }

    /// Whether an extent is on its way, and will arrive or be given up.
    pub fn is_under_way(&self, vhd: VhdId, extent: ExtentIndex) -> bool {
        let wave = self.of_extent(vhd, extent).and_then(|(wave, _)| self.get(wave));
        wave.is_some_and(|wave| wave.stage != Stage::Undecided)
    }

    /// Whether an extent is being moved, and that cannot be given up any more.
    pub fn is_carried_through(&self, vhd: VhdId, extent: ExtentIndex) -> bool {
        let wave = self.of_extent(vhd, extent).and_then(|(wave, _)| self.get(wave));
        wave.is_some_and(|wave| matches!(wave.stage, Stage::Committing { .. } | Stage::Undecided))
    }

    /// Whether what became of each move of the VHD is known, or will be.
    pub fn is_decided(&self, vhd: VhdId) -> bool {
        !self.waves.values().any(|wave| wave.vhd == vhd && wave.stage == Stage::Undecided)
    }

    /// Whether an extent of the VHD is being moved.
    pub fn is_moving(&self, vhd: VhdId) -> bool {
        self.waves.values().any(|wave| wave.vhd == vhd)
    }

    /// Whether the table may name the disk as the place of the extent, or of any extent of the VHD, although nobody knows.
    pub fn is_undecided(&self, vhd: VhdId, extent: Option<ExtentIndex>, disk: DiskId) -> bool {
        let mut undecided = self.waves.values().filter(|wave| wave.vhd == vhd && wave.stage == Stage::Undecided);
        let is_it = |m: &Move| extent.is_none_or(|extent| m.extent == extent) && m.to.is_some_and(|to| to.disk == disk);
        undecided.any(|wave| wave.moves.iter().any(is_it))
    }

    /// Whether a commit that puts the extent, or any extent of the VHD, on the disk is under way.
    pub fn is_committing(&self, vhd: VhdId, extent: Option<ExtentIndex>, disk: DiskId) -> bool {
        let committing = |wave: &&Wave| wave.vhd == vhd && matches!(wave.stage, Stage::Committing { .. });
        let is_it = |m: &Move| extent.is_none_or(|extent| m.extent == extent) && m.to.is_some_and(|to| to.disk == disk);
        self.waves.values().filter(committing).any(|wave| wave.moves.iter().any(is_it))
    }

    /// Nothing more of the VHD begins to move, for a FLUSH without this disk.
    pub fn hold(&mut self, vhd: VhdId, disk: DiskId) {
        self.held.insert((vhd, disk));
    }

    /// That FLUSH has its answer.
    pub fn release(&mut self, vhd: VhdId, disk: DiskId) {
        self.released |= self.held.remove(&(vhd, disk));
    }

    /// Whether nothing more of the VHD may begin to move.
    pub fn is_held(&self, vhd: VhdId) -> bool {
        self.held.range((vhd, DiskId(0))..=(vhd, DiskId(u8::MAX))).next().is_some()
    }

    /// Whether something was released since the last call.
    pub fn take_released(&mut self) -> bool {
        std::mem::take(&mut self.released)
    }
}
