//! Whose turn it is: writers of an extent that is always claimed let the copier go first, and are woken when it has had its turn.

use std::collections::btree_map::Entry;
use std::sync::Arc;

use super::{Copier, Task};
use crate::base::clock::Nanos;
use crate::base::ids::{ReactorId, VhdId};
use crate::base::limits::COPY_TURN_MILLIS;
use crate::base::units::ExtentIndex;
use crate::engine::Engine;
use crate::mover::messages::{CopyTask, MoverOutbox};
use crate::reactor::messages::ReactorMessage;
use crate::shared::VhdState;

/// An extent whose writers let the copier go first.
pub(super) struct Asked {
    vhd: Arc<VhdState>,
    extent: ExtentIndex,
    since: Nanos,
}

impl<E: Engine, O: MoverOutbox> Copier<E, O> {
    /// Writers of this extent let the copier go first until it has had its turn. One extent of a VHD at a time.
    pub(super) fn ask_for_turn(&mut self, task: &Task, now: Nanos) {
        let (vhd, extent) = (&task.copy.vhd, task.copy.extent);
        if let Entry::Vacant(place) = self.asked.entry(vhd.id()) {
            vhd.set_copier_waits(Some(extent));
            place.insert(Asked { vhd: Arc::clone(vhd), extent, since: now });
        }
    }

    pub(super) fn end_turn(&mut self, copy: &CopyTask) {
        let id = copy.vhd.id();
        if self.asked.get(&id).is_some_and(|asked| asked.extent == copy.extent) {
            self.end_turn_of(id);
        }
    }

    fn end_turn_of(&mut self, id: VhdId) {
        if let Some(Asked { vhd, .. }) = self.asked.remove(&id) {
            vhd.set_copier_waits(None);
            self.wake(&vhd);
        }
    }

    /// Ends turns that were not made use of: there was no place for a chunk, or its disk hangs.
    pub(super) fn end_unused_turns(&mut self, now: Nanos) {
        let late = |asked: &Asked| now.since(asked.since) >= COPY_TURN_MILLIS * 1_000_000;
        let ids: Vec<VhdId> = self.asked.iter().filter(|(_, asked)| late(asked)).map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.end_turn_of(id));
    }

    /// Wakes requests that wait for a claim of the VHD.
    pub(super) fn wake(&mut self, vhd: &Arc<VhdState>) {
        let mut waiters = vhd.take_release_waiters();
        while waiters != 0 {
            let reactor = ReactorId(u16::try_from(waiters.trailing_zeros()).expect("a bit of a u64"));
            waiters &= waiters - 1;
            self.outbox.to_reactor(reactor, ReactorMessage::ClaimReleased { vhd: vhd.id() });
        }
    }
}
