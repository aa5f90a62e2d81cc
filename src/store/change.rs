//! What reactors and the owner tell the committer about the table.

use crate::base::ids::{ReactorId, VhdId};
use crate::base::limits::COPIES_MAX;
use crate::base::units::{BlockMask, ExtentIndex, Generation};
use crate::placement::ReplicaSet;
use crate::shared::disk::SyncPoint;

/// One change of the table, not yet durable.
///
/// A change that publishes data carries the syncs that must have succeeded first (ordering rule 1): committing it earlier
/// would let a power cut show whatever the slot held before. Changes that take data away need no sync.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// The VHD.
    pub vhd: VhdId,
    /// The extent.
    pub extent: ExtentIndex,
    /// The generation of the extent that the change belongs to. A change of an older generation than one already
    /// committed, or pending before it, is void.
    pub generation: Generation,
    /// What changed.
    pub kind: ChangeKind,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    /// First writes to `blocks` completed on all copies.
    Written {
        /// Where the extent is, without copies that a move is making: makes its allocation durable, too. If the table has a
        /// place already it stays there: only a move changes it.
        replicas: ReplicaSet,
        /// The blocks that are present now.
        blocks: BlockMask,
        /// One sync per copy that covers the data; of a copy that is only being filled, none.
        needs: [Option<SyncPoint>; COPIES_MAX],
    },
    /// `blocks` were discarded or zeroed and read as zeros.
    Cleared {
        /// The blocks.
        blocks: BlockMask,
    },
    /// The extent has room but no data yet (thick allocation).
    Placed {
        /// Where.
        replicas: ReplicaSet,
    },
    /// The extent was dropped; `freed` may be used again once this is durable and more (ordering rule 2).
    Freed {
        /// The slots it had.
        freed: ReplicaSet,
    },
}

/// A request of a reactor for a commit: answered when every change handed over before it, whose data is synced, is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitRequest {
    /// Who asks.
    pub reactor: ReactorId,
    /// The reactor's name for the request.
    pub ticket: u64,
}
