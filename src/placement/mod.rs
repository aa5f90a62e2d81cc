//! The placement table: which slot of which host disk holds each extent of each VHD.
//!
//! Pure, except for [`view`], whose atomics are the one thing that reactors and the owner share. There is one copy of
//! the table in memory, the view itself: the owner writes the replicas, reactors the present bits.
//!
//! Uses `base` and `qos`.

pub mod allocator;
pub mod capacity;
pub mod check;
pub mod holds;
pub mod homes;
pub mod impact;
pub mod job;
pub mod layout;
pub mod limits;
pub mod record;
pub mod sharing;
pub mod view;
pub mod vm;

use crate::base::ids::DiskId;
use crate::base::limits::COPIES_MAX;
use crate::base::units::SlotIndex;

/// Whether a replica holds what was last written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReplicaState {
    /// Holds every completed write: may be read.
    InSync,
    /// Is being filled by a move: is written, never read. An error of its disk ends the move and is nobody's else.
    Syncing,
    /// Has been filled by a move, and is about to take its place in the table: is written and synced like one in sync, and not
    /// read yet. Only in memory: the table on disk has the old place or the new one.
    Sealing,
    /// Missed a write: neither read nor written until it is filled again.
    Stale,
}

impl ReplicaState {
    /// Whether the replica is being made by a move.
    #[must_use]
    pub fn is_moving(self) -> bool {
        matches!(self, ReplicaState::Syncing | ReplicaState::Sealing)
    }
}

/// One copy of an extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Replica {
    /// The host disk.
    pub disk: DiskId,
    /// The slot on it.
    pub slot: SlotIndex,
    /// Whether it may be read.
    pub state: ReplicaState,
}

/// The copies of one extent: none (absent) to three, on different disks; while it is being moved, one more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct ReplicaSet {
    replicas: [Option<Replica>; COPIES_MAX],
}

impl ReplicaSet {
    /// No copy: the extent is absent and reads as zeros.
    pub const ABSENT: ReplicaSet = ReplicaSet { replicas: [None; COPIES_MAX] };

    /// One in-sync copy.
    #[must_use]
    pub fn single(disk: DiskId, slot: SlotIndex) -> ReplicaSet {
        let mut set = ReplicaSet::ABSENT;
        set.push(Replica { disk, slot, state: ReplicaState::InSync });
        set
    }

    /// Adds a copy.
    ///
    /// # Panics
    /// If the set is full or has a copy on that disk.
    pub fn push(&mut self, replica: Replica) {
        assert!(self.on(replica.disk).is_none(), "two replicas of an extent on one disk");
        let room = self.replicas.iter_mut().find(|r| r.is_none()).expect("at most three replicas, and one being moved");
        *room = Some(replica);
    }

    /// The copies, in order.
    pub fn iter(&self) -> impl Iterator<Item = Replica> + '_ {
        self.replicas.iter().flatten().copied()
    }

    /// The copy on `disk`.
    #[must_use]
    pub fn on(&self, disk: DiskId) -> Option<Replica> {
        self.iter().find(|r| r.disk == disk)
    }

    /// The copies without those that a move is making: what the table on disk says.
    #[must_use]
    pub fn settled(&self) -> ReplicaSet {
        let mut set = ReplicaSet::ABSENT;
        self.iter().filter(|r| !r.state.is_moving()).for_each(|r| set.push(r));
        set
    }

    /// Whether a move is making a copy.
    #[must_use]
    pub fn is_moving(&self) -> bool {
        self.iter().any(|r| r.state.is_moving())
    }

    /// The copies without the one on `disk`.
    #[must_use]
    pub fn without(&self, disk: DiskId) -> ReplicaSet {
        let mut set = ReplicaSet::ABSENT;
        self.iter().filter(|r| r.disk != disk).for_each(|r| set.push(r));
        set
    }

    /// Whether there is no copy.
    #[must_use]
    pub fn is_absent(&self) -> bool {
        self.replicas[0].is_none()
    }

    /// Whether there is one copy at most: nothing that two writes at the same time could leave different.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.replicas[1].is_none()
    }

    /// The copies with `other` in the place of the one on `disk`.
    #[must_use]
    pub fn with(&self, disk: DiskId, other: Replica) -> ReplicaSet {
        let mut set = ReplicaSet::ABSENT;
        self.iter().for_each(|r| set.push(if r.disk == disk { other } else { r }));
        set
    }

    /// Number of copies that may be read.
    #[must_use]
    pub fn in_sync(&self) -> usize {
        self.iter().filter(|replica| replica.state == ReplicaState::InSync).count()
    }

    /// Number of copies.
    #[must_use]
    #[allow(clippy::len_without_is_empty, reason = "an empty set is an absent extent: `is_absent`")]
    pub fn len(&self) -> usize {
        self.iter().count()
    }
}
