//! What the owner and the mover say to each other.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::base::ids::{DiskId, JobId, ReactorId};
use crate::base::units::ExtentIndex;
use crate::engine::IoError;
use crate::placement::Replica;
use crate::reactor::messages::ReactorMessage;
use crate::shared::{DiskState, VhdState};

/// The owner's name for the move of one extent; never reused while the daemon runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MoveId(pub u64);

/// The owner's name for moves that are made durable together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WaveId(pub u64);

/// A copy to fill.
#[derive(Clone)]
pub struct CopyTask {
    /// The move.
    pub id: MoveId,
    /// Whose pace it goes at.
    pub job: JobId,
    /// The VHD.
    pub vhd: Arc<VhdState>,
    /// The extent.
    pub extent: ExtentIndex,
    /// A copy that is in sync.
    pub source: Replica,
    /// The one to fill. One that is syncing has been published, and every reactor has passed a fence since. One that is in sync is
    /// made equal to the source. If it is the source itself, that is only read, and compared with its checksums.
    pub target: Replica,
}

impl CopyTask {
    /// Whether nothing is written.
    #[must_use]
    pub fn only_reads(&self) -> bool {
        self.source == self.target
    }
}

/// How fast a job may go.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Speed {
    /// Bytes per second at most; `None`: as fast as guests allow.
    pub max_rate: Option<u64>,
    /// Whether it goes on as fast as the disks can, leaving guests little.
    pub urgent: bool,
}

/// To the mover.
pub enum MoverMessage {
    /// Fill a copy. Answered by one of the reports that name the move.
    Copy(CopyTask),
    /// Sync a disk. Answered by [`MoverReport::Synced`].
    Sync {
        /// For whom.
        wave: WaveId,
        /// The disk.
        disk: DiskId,
    },
    /// As [`ReactorMessage::Fence`].
    Fence {
        /// Which fence.
        fence: u64,
        /// The disk.
        disk: DiskId,
    },
    /// A job begins, or goes at another speed from now on.
    SetSpeed {
        /// The job.
        job: JobId,
        /// Its speed.
        speed: Speed,
    },
    /// A job has ended.
    ForgetJob(JobId),
    /// As [`ReactorMessage::AddDisk`].
    AddDisk {
        /// Shared state of the disk.
        disk: Arc<DiskState>,
        /// The open disk.
        file: Arc<OwnedFd>,
    },
    /// As [`ReactorMessage::RemoveDisk`].
    RemoveDisk {
        /// The disk.
        disk: DiskId,
    },
    /// As [`ReactorMessage::Room`].
    Room,
    /// As [`ReactorMessage::Turn`]: answer with [`MoverReport::Turned`].
    Turn,
    /// Give up what is not in flight, and leave the loop.
    Shutdown,
}

/// From the mover to the owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoverReport {
    /// The copy has everything that was there before it was published; what is written since goes to all copies anyway.
    Copied {
        /// The move.
        id: MoveId,
    },
    /// The extent is not being moved any more.
    Gone {
        /// The move.
        id: MoveId,
    },
    /// A part of the extent could not be read, or not be written.
    Failed {
        /// The move.
        id: MoveId,
        /// Where.
        disk: DiskId,
        /// What the engine said.
        error: IoError,
    },
    /// A disk has not answered a write or a sync of the mover for too long. What was asked of it is not answered otherwise until
    /// it comes back.
    Stuck {
        /// The disk.
        disk: DiskId,
    },
    /// A chunk was copied: for progress.
    Progress {
        /// The job.
        job: JobId,
        /// Bytes.
        bytes: u64,
    },
    /// Everything that had completed on the disk when the sync was asked for is durable, or the disk has failed.
    Synced {
        /// For whom.
        wave: WaveId,
        /// The disk.
        disk: DiskId,
        /// How it went.
        result: Result<(), IoError>,
    },
    /// Answer to [`MoverMessage::Fence`].
    FenceReached {
        /// Which fence.
        fence: u64,
    },
    /// Answer to [`MoverMessage::Turn`].
    Turned,
}

/// Where the mover's messages go. Threads and queues in production, a scheduler in the simulation.
pub trait MoverOutbox {
    /// To the owner.
    fn to_owner(&mut self, report: MoverReport);
    /// To a reactor: a claim was released.
    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage);
}
