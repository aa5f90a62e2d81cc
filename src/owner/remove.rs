//! A disk leaves the pool: only when nothing is on it, and nothing can come there any more.
//!
//! 1. It is held: no extent is placed there any more, and no VHD can be put there. (Guests go on while what follows is written.)
//! 2. The pool record goes without it, durably.
//! 3. A fence on it: what was in flight there has completed. Nothing of any VHD is there, so that no FLUSH and no commit needs
//!    a sync of it any more.
//! 4. Reactors, mover and worker let go of its file.
//!
//! The owner goes on knowing a disk that has left, because what is said of it may be under way; its identifier is not given to
//! another one before the pool is opened again.

use super::Owner;
use super::command::{CommandError, Outcome, RemovalStep, Reply};
use super::commands::{Action, Step, not_found};
use super::outbox::{Event, OwnerOutbox};
use crate::base::ids::{DiskId, ReactorId};
use crate::base::limits::DISKS_MAX;
use crate::mover::messages::MoverMessage;
use crate::placement::job::JobKind;
use crate::placement::record::PoolRecord;
use crate::reactor::messages::ReactorMessage;
use crate::shared::disk::{SyncNumber, SyncPoint};
use crate::store::edit::StoreEdit;

impl Owner {
    pub(super) fn begin_remove_disk(
        &mut self,
        name: &str,
        step: RemovalStep,
        out: &mut impl OwnerOutbox,
    ) -> Result<Step, CommandError> {
        let id = self.pool.find_disk(name).ok_or_else(|| not_found("disk", name))?.id;
        if step == RemovalStep::Release {
            self.space.disk_mut(id).open = true;
            self.retry_waiters(out);
            return Ok(Step::Done(self.disk_reply(id, Outcome::Unchanged)));
        }
        self.check_unused(id)?;
        self.space.disk_mut(id).open = false;
        if step == RemovalStep::Hold {
            return Ok(Step::Done(self.disk_reply(id, Outcome::Unchanged)));
        }
        let mut pool = self.pool.clone();
        pool.disks.retain(|disk| disk.id != id);
        let rows = vec![StoreEdit::PutPool(pool.clone())];
        Ok(Step::Commit { rows, action: Action::RemoveDisk { pool, disk: id } })
    }

    /// Whether nothing is on the disk, and nothing is about to be.
    fn check_unused(&self, id: DiskId) -> Result<(), CommandError> {
        let disk = self.pool.disk_name(id);
        if self.pool.disks.len() == 1 {
            return Err(CommandError::LastDisk { disk });
        }
        let vhds: Vec<String> =
            self.vhds.by_name().filter(|vhd| vhd.is_on(id)).map(|vhd| vhd.record.name.clone()).collect();
        let job = self.jobs.iter().filter(|job| !job.record.is_ended()).find(|job| names(&job.record.kind, id));
        if let Some(job) = job {
            let (job, kind, state) = (job.record.id.0, job.record.kind.word(), job.record.state.word());
            return Err(CommandError::DiskOfJob { disk, job, kind, state });
        }
        if !vhds.is_empty() {
            let extents: u64 = self.vhds.iter().map(|vhd| u64::from(vhd.counts[id.index()])).sum();
            let (bytes, failed) = (extents * self.geometry.extent_size(), self.space.disk(id).state.is_failed());
            return Err(CommandError::DiskNotEmpty { disk, extents, bytes, vhds, failed });
        }
        let space = self.space.disk(id);
        let moves = self.waves.iter().any(|(_, wave)| wave.moves.iter().any(|moved| moved.touches(id)));
        if moves || space.promised() > 0 || space.slots().used() > 0 || space.slots().limbo() > 0 {
            return Err(CommandError::DiskBusy { disk });
        }
        Ok(())
    }

    /// What the pool record is to be without the disk is durable.
    pub(super) fn apply_remove_disk(&mut self, pool: PoolRecord, disk: DiskId, out: &mut impl OwnerOutbox) -> Reply {
        let name = self.pool.disk_name(disk);
        self.pool = pool;
        let space = self.space.disk_mut(disk);
        // Else its label would be wiped with something on it.
        assert!(!space.open && space.slots().used() == 0 && space.slots().limbo() == 0 && space.promised() == 0);
        space.left = true;
        out.event(Event::DiskRemoved { disk: name.clone() });
        if let Some(reached) = self.reuse.close_disk(disk, out) {
            self.fence_reached(reached, out);
        }
        Reply::DiskRemoved { id: disk, name }
    }

    /// Nothing is in flight on a disk that has left the pool.
    pub(super) fn close_disk(&mut self, disk: DiskId, out: &mut impl OwnerOutbox) {
        for vhd in self.vhds.iter() {
            vhd.state.forget_disk(disk);
            out.excuse(vhd.record.id, SyncPoint { disk, number: SyncNumber(u64::MAX) });
        }
        for reactor in 0..self.reactors {
            out.to_reactor(ReactorId(reactor), ReactorMessage::RemoveDisk { disk });
        }
        out.to_mover(MoverMessage::RemoveDisk { disk });
        out.disk_removed(disk);
    }

    /// The identifier for one more disk: one above all others, as long as there is one, and none that a disk has had since the
    /// daemon started.
    pub(super) fn next_disk_id(&self) -> Option<DiskId> {
        let above = self.pool.disks.iter().map(|disk| disk.id.index() + 1).max().unwrap_or(0);
        let ids = (above..DISKS_MAX).chain(0..above).map(|id| DiskId(u8::try_from(id).expect("fewer than 256 disks")));
        ids.into_iter().find(|id| self.space.get(*id).is_none())
    }
}

/// Whether a job is about the disk itself, or can bring it back into the layout of a VHD.
fn names(kind: &JobKind, disk: DiskId) -> bool {
    match kind {
        JobKind::Span { from } | JobKind::Unspan { from } | JobKind::Migrate { from } => from.disks().contains(disk),
        JobKind::Evacuate { .. } | JobKind::Replace { .. } => {
            kind.empties() == Some(disk) || kind.replacement() == Some(disk)
        }
        JobKind::Rebuild { disk: of } | JobKind::Resync { disk: of } => *of == disk,
        JobKind::Settle | JobKind::Replicas { .. } | JobKind::Rebalance | JobKind::Scrub { .. } => false,
    }
}
