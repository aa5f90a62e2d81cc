//! What the placement store says about a job: work of minutes or hours on where extents are, which goes on after a restart.
//!
//! Stored like the records in [`super::record`]: same version, same rules. What a job names (VHDs, disks) may be gone.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::record::{Layout, RecordError, decode, impossible};
use crate::base::ids::{DiskId, JobId, VhdId};
use crate::base::limits::{DISKS_MAX, REPLICAS_MAX};

/// What a job is for, and what was before it, so that it can be taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", deny_unknown_fields)]
pub enum JobKind {
    /// Spreads a VHD over several disks.
    Span {
        /// The layout before.
        from: Layout,
    },
    /// Brings a VHD together on one disk.
    Unspan {
        /// The layout before.
        from: Layout,
    },
    /// Moves a VHD to other disks.
    Migrate {
        /// The layout before.
        from: Layout,
    },
    /// Moves extents to where the layout of their VHD wants them.
    Settle,
    /// Changes how many replicas a VHD has.
    Replicas {
        /// How many it had before.
        from: u8,
    },
    /// Empties a disk.
    Evacuate {
        /// The disk.
        disk: DiskId,
        /// Failed disks: what only they have, this one among them, is given up.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gives_up: Vec<DiskId>,
    },
    /// Lets another disk take the place of one, which leaves the pool at the end.
    Replace {
        /// The disk that goes.
        disk: DiskId,
        /// Its UUID: another disk may have its identifier one day.
        uuid: Uuid,
        /// The disk that comes.
        by: DiskId,
        /// Failed disks: what only they have, the one that goes among them, is given up.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        gives_up: Vec<DiskId>,
        /// The disk stays in the pool, empty.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        keep: bool,
    },
    /// Evens out how full the disks are.
    Rebalance,
    /// Makes the replicas that were on a failed disk anew, on others.
    Rebuild {
        /// The disk.
        disk: DiskId,
    },
    /// Fills replicas on a disk that missed something, where they are.
    Resync {
        /// The disk.
        disk: DiskId,
    },
    /// Reads all replicas of a VHD, and repairs those that are not as they should be.
    Scrub {
        /// Replicas of extents that were not.
        #[serde(default)]
        damaged: u64,
        /// Those that have been written anew.
        #[serde(default)]
        repaired: u64,
    },
}

impl JobKind {
    /// The word of the command line and the API.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            JobKind::Span { .. } => "span",
            JobKind::Unspan { .. } => "unspan",
            JobKind::Migrate { .. } => "migrate",
            JobKind::Settle => "settle",
            JobKind::Replicas { .. } => "replicas",
            JobKind::Evacuate { .. } => "evacuate",
            JobKind::Replace { .. } => "replace",
            JobKind::Rebalance => "rebalance",
            JobKind::Rebuild { .. } => "rebuild",
            JobKind::Resync { .. } => "resync",
            JobKind::Scrub { .. } => "scrub",
        }
    }

    /// The disk that it empties: nothing may be put there any more.
    #[must_use]
    pub fn empties(&self) -> Option<DiskId> {
        match self {
            JobKind::Evacuate { disk, .. } | JobKind::Replace { disk, .. } => Some(*disk),
            JobKind::Span { .. }
            | JobKind::Unspan { .. }
            | JobKind::Migrate { .. }
            | JobKind::Settle
            | JobKind::Replicas { .. }
            | JobKind::Rebalance
            | JobKind::Rebuild { .. }
            | JobKind::Resync { .. }
            | JobKind::Scrub { .. } => None,
        }
    }

    /// The disks that had failed when the job was ordered, if what only they have is given up. What others have that fail later
    /// was not named to whoever ordered it.
    #[must_use]
    pub fn gives_up(&self) -> &[DiskId] {
        match self {
            JobKind::Evacuate { gives_up, .. } | JobKind::Replace { gives_up, .. } => gives_up,
            _ => &[],
        }
    }

    /// A disk works (again): nothing that it has is given up.
    pub fn keep_what_is_on(&mut self, works: impl Fn(DiskId) -> bool) {
        if let JobKind::Evacuate { gives_up, .. } | JobKind::Replace { gives_up, .. } = self {
            gives_up.retain(|disk| !works(*disk));
        }
    }

    /// The disk that comes in the place of the one that it empties.
    #[must_use]
    pub fn replacement(&self) -> Option<DiskId> {
        if let JobKind::Replace { by, .. } = self { Some(*by) } else { None }
    }
}

/// How far a job is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum JobState {
    /// It works, or waits for its turn.
    Running,
    /// Somebody paused it.
    Paused,
    /// An error stopped it; it can be resumed.
    Stopped,
    /// It has done all it was for.
    Done,
    /// Somebody cancelled it.
    Cancelled,
}

impl JobState {
    /// Whether nothing can come after it.
    #[must_use]
    pub fn is_ended(self) -> bool {
        matches!(self, JobState::Done | JobState::Cancelled)
    }

    /// The word of the command line and the API.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            JobState::Running => "running",
            JobState::Paused => "paused",
            JobState::Stopped => "stopped",
            JobState::Done => "done",
            JobState::Cancelled => "cancelled",
        }
    }
}

/// What the store says about one job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JobRecord {
    /// [`RECORD_VERSION`](super::record::RECORD_VERSION).
    pub version: u32,
    /// Its identifier in the pool; never reused.
    pub id: JobId,
    /// What it is for.
    pub kind: JobKind,
    /// The VHDs, each once, in the order in which they are worked on. They may have been deleted since.
    pub vhds: Vec<VhdId>,
    /// How far it is.
    pub state: JobState,
    /// Bytes that it may move per second, not 0; `None`: no limit of its own.
    pub max_rate: Option<u64>,
    /// Whether guests have to stand back for it.
    pub urgent: bool,
    /// When it was created, in seconds since the Unix epoch.
    pub created: u64,
    /// When it ended, in seconds since the Unix epoch: there if and only if its state is one in which it has ended. A clock
    /// may have been set back meanwhile.
    pub ended: Option<u64>,
    /// Bytes moved so far.
    pub bytes_moved: u64,
    /// Why it stopped or failed, for people.
    pub reason: Option<String>,
}

impl JobRecord {
    /// The bytes for the store.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a record of plain fields is always JSON")
    }

    /// Reads what [`JobRecord::encode`] wrote.
    ///
    /// # Errors
    /// If it is not a valid record of this version.
    pub fn decode(bytes: &[u8]) -> Result<JobRecord, RecordError> {
        let record: JobRecord = decode("job", bytes)?;
        record.check()?;
        Ok(record)
    }

    /// Whether it is done or cancelled.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.state.is_ended()
    }

    fn check(&self) -> Result<(), RecordError> {
        let subject = format!("job {}", self.id.0);
        let mut seen = HashSet::new();
        if let Some(twin) = self.vhds.iter().find(|vhd| !seen.insert(**vhd)) {
            return Err(impossible(&subject, "list of VHDs", format!("#{} twice", twin.0)));
        }
        if self.max_rate == Some(0) {
            return Err(impossible(&subject, "rate", 0));
        }
        if self.ended.is_some() != self.is_ended() {
            let value = format!("{:?} of a job that is {}", self.ended, self.state.word());
            return Err(impossible(&subject, "time of its end", value));
        }
        if let Some(unknown) = self.kind.gives_up().iter().find(|disk| usize::from(disk.0) >= DISKS_MAX) {
            return Err(impossible(&subject, "set of failed disks", unknown.0));
        }
        match &self.kind {
            JobKind::Span { from } | JobKind::Unspan { from } | JobKind::Migrate { from } => from.check(&subject),
            JobKind::Replicas { from } if !(1..=REPLICAS_MAX).contains(&usize::from(*from)) => {
                Err(impossible(&subject, "number of replicas", from))
            }
            JobKind::Evacuate { disk, .. } | JobKind::Rebuild { disk } | JobKind::Resync { disk }
                if usize::from(disk.0) >= DISKS_MAX =>
            {
                Err(impossible(&subject, "disk", disk.0))
            }
            JobKind::Replace { disk, by, .. } if usize::from(disk.0.max(by.0)) >= DISKS_MAX || disk == by => {
                Err(impossible(&subject, "pair of disks", format!("{} and {}", disk.0, by.0)))
            }
            JobKind::Settle
            | JobKind::Replicas { .. }
            | JobKind::Evacuate { .. }
            | JobKind::Replace { .. }
            | JobKind::Rebalance
            | JobKind::Rebuild { .. }
            | JobKind::Resync { .. }
            | JobKind::Scrub { .. } => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
