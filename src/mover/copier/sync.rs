//! Syncs that make moves durable.

use super::Copier;
use crate::base::clock::Nanos;
use crate::base::ids::DiskId;
use crate::engine::{Completion, Engine, IoError, Op, OpTag};
use crate::mover::messages::{MoverOutbox, MoverReport, WaveId};
use crate::shared::disk::SyncNumber;

/// A sync in flight.
pub(super) struct Sync {
    pub wave: WaveId,
    pub disk: DiskId,
    pub number: SyncNumber,
    pub begun: Nanos,
    pub told: bool,
}

impl<E: Engine, O: MoverOutbox> Copier<E, O> {
    pub(super) fn begin_sync(&mut self, wave: WaveId, disk: DiskId, now: Nanos) {
        let state = self.disks[disk.index()].as_ref().expect("copies lie on disks of the pool");
        let number = state.begin_sync();
        state.copying.begun();
        let tag = self.next_sync;
        self.next_sync += 1;
        // SAFETY: a sync has no buffers.
        unsafe { self.engine.submit(Op::Sync { disk }, OpTag(tag)) }
            .expect("the engine has room for every place and sync");
        self.syncs.insert(tag, Sync { wave, disk, number, begun: now, told: false });
    }

    pub(super) fn sync_done(&mut self, completion: Completion) {
        let Sync { wave, disk, number, .. } = self.syncs.remove(&completion.tag.0).expect("a sync in flight");
        let state = self.disks[disk.index()].as_ref().expect("it was submitted there");
        state.copying.completed();
        match completion.result {
            Ok(()) => state.sync_succeeded(number),
            Err(_) => state.fail(),
        }
        // Asked of the shared state: somebody else's sync may have failed the disk meanwhile.
        let failed = || Err(completion.result.err().unwrap_or(IoError::Os(libc::EIO)));
        let result = if state.is_synced(number) { Ok(()) } else { failed() };
        self.outbox.to_owner(MoverReport::Synced { wave, disk, result });
    }
}
