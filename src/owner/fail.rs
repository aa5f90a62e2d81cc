//! A disk is marked as failed by order of the operator: for one that hangs, or lies.
//!
//! No row is written, so nothing has to wait: what may be wrong with the disk must not keep it from being given up. It is a failed
//! disk from here on as if a sync of it had failed, until the pool is opened again.

use super::Owner;
use super::command::{CommandError, Outcome, Reply};
use super::commands::not_found;
use super::moves::wave::Fault;
use super::outbox::{Event, OwnerOutbox};
use crate::engine::IoError;

/// What events say of a disk that was failed by order.
const BY_ORDER: &str = "marked as failed by order";

impl Owner {
    pub(super) fn fail_disk(&mut self, name: &str, out: &mut impl OwnerOutbox) -> Result<Reply, CommandError> {
        let id = self.pool.find_disk(name).ok_or_else(|| not_found("disk", name))?.id;
        let disk = self.space.disk_mut(id);
        if disk.state.is_failed() {
            return Ok(self.disk_reply(id, Outcome::Unchanged));
        }
        disk.state.fail();
        disk.failure_told = true;
        let disk = disk.state.name.clone();
        out.event(Event::DiskFailed { disk, error: BY_ORDER.to_owned() });
        self.disk_failed(Fault { disk: id, error: IoError::Os(libc::EIO) }, out);
        // Who waits for room on it waits for nothing, and jobs have to plan without it.
        self.retry_waiters(out);
        self.run_jobs(out);
        Ok(self.disk_reply(id, Outcome::Changed))
    }
}
