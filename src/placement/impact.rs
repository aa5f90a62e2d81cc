//! What becomes of extents if disks are lost. Pure.
//!
//! Data is there as long as a disk that works has an in-sync replica of it. So counts of replicas per disk are not enough: an extent
//! on two disks is lost if one of them is gone already.

use super::{Replica, ReplicaState};
use crate::base::ids::DiskSet;
use crate::base::units::BlockMask;

/// The disks that it is about, and those that cannot be read anyway.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Loss {
    /// The disks whose loss is looked at.
    pub disks: DiskSet,
    /// Disks that have failed or are missing. Those of [`Loss::disks`] do not count here.
    pub gone: DiskSet,
}

/// What becomes of one extent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ExtentFate {
    /// The disks have nothing of it.
    Untouched,
    /// They have nothing of it, and disks that are gone already have all of it.
    LostBefore,
    /// They have its only readable replicas, but nothing has been written: it goes on reading as zeros, and writes fail.
    Empty,
    /// They have one of its replicas; another disk has a readable one.
    Degraded,
    /// They have its only readable replicas.
    Lost,
}

impl Loss {
    /// The disks that cannot be read then.
    #[must_use]
    pub fn unreadable(&self) -> DiskSet {
        DiskSet(self.disks.0 | self.gone.0)
    }

    /// What becomes of an extent. Copies that a move is making count for nothing: they are not in the table.
    ///
    /// A stale replica on the disks counts as one that is lost with them: it is the last trace of the extent if nobody else has any.
    #[must_use]
    pub fn fate(&self, replicas: impl Iterator<Item = Replica>, present: BlockMask) -> ExtentFate {
        let unreadable = self.unreadable();
        let (mut any, mut touched, mut survives) = (false, false, false);
        for replica in replicas.filter(|replica| !replica.state.is_moving()) {
            any = true;
            touched |= self.disks.contains(replica.disk);
            survives |= replica.state == ReplicaState::InSync && !unreadable.contains(replica.disk);
        }
        match (touched, survives, present.is_empty()) {
            (true, true, _) => ExtentFate::Degraded,
            (true, false, false) => ExtentFate::Lost,
            (true, false, true) => ExtentFate::Empty,
            (false, false, false) if any => ExtentFate::LostBefore,
            (false, ..) => ExtentFate::Untouched,
        }
    }
}

/// A number of extents.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtentCount {
    /// Extents.
    pub extents: u64,
    /// Blocks written in them.
    pub blocks: u64,
}

impl ExtentCount {
    fn add(&mut self, present: BlockMask) {
        self.extents += 1;
        self.blocks += u64::from(present.len());
    }
}

/// What becomes of the extents of one VHD, by [`ExtentFate`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct VhdLoss {
    /// Lost.
    pub lost: ExtentCount,
    /// Lost before.
    pub lost_before: ExtentCount,
    /// Placed on lost disks only, and never written.
    pub empty: u64,
    /// With fewer replicas.
    pub degraded: ExtentCount,
    /// As before.
    pub untouched: ExtentCount,
}

impl VhdLoss {
    /// Counts an extent.
    pub fn add(&mut self, fate: ExtentFate, present: BlockMask) {
        match fate {
            ExtentFate::Untouched => self.untouched.add(present),
            ExtentFate::LostBefore => self.lost_before.add(present),
            ExtentFate::Empty => self.empty += 1,
            ExtentFate::Degraded => self.degraded.add(present),
            ExtentFate::Lost => self.lost.add(present),
        }
    }
}

#[cfg(test)]
mod tests;
