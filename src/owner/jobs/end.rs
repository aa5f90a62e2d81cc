//! How jobs end, or stop.

use super::super::Owner;
use super::super::outbox::OwnerOutbox;
use crate::base::ids::JobId;
use crate::placement::job::{JobKind, JobState};
use crate::store::edit::StoreEdit;

impl Owner {
    /// Every VHD of the job is where it should be, as far as plans brought it there.
    pub(super) fn finish_job(&mut self, id: JobId, out: &mut impl OwnerOutbox) {
        let Some(job) = self.jobs.get_mut(id) else { return };
        if !job.unreadable.is_empty() {
            let mut why = format!("{} extents could not be read and stay where they are", job.unreadable.len());
            let emptied = job.record.kind.empties().and_then(|disk| self.space.get(disk));
            if emptied.is_some_and(|disk| disk.state.is_failed()) {
                why.push_str(
                    "; cancel the job and order it again with --accept-loss to give up what only failed disks have",
                );
            }
            return self.stop_job(id, &why, out);
        }
        if !job.unwritable.is_empty() {
            let why = format!(
                "{} extents could not be written where they should be, and stay as they are: 'spanblk events' has the places; replace the disk if \
                 they become more",
                job.unwritable.len()
            );
            // What is still stale must not keep other disks of the VHD from being made whole: it is tried again.
            if matches!(job.record.kind, JobKind::Resync { .. }) {
                return self.end_job(id, JobState::Done, Some(why), out);
            }
            return self.stop_job(id, &why, out);
        }
        let left: usize = job.left.values().sum();
        if left > 0 {
            let why = format!(
                "{left} extents are still where they should not be, or have too few replicas or too many, since moves of them were given \
                 up again and again: look for disks in trouble with 'spanblk disk list', and resume the job"
            );
            return self.stop_job(id, &why, out);
        }
        self.end_job(id, JobState::Done, None, out);
    }

    /// Something is in the way: the job stops, with everything it has moved so far in its new place and everything else in its
    /// old one. It can be resumed.
    pub(in crate::owner) fn stop_job(&mut self, id: JobId, why: &str, out: &mut impl OwnerOutbox) {
        if self.jobs.get(id).is_some_and(super::Job::is_running) {
            self.end_job(id, JobState::Stopped, Some(why.to_owned()), out);
            self.give_up_job(id, out);
            self.run_jobs(out);
        }
    }

    /// Puts the job in a state in which it begins nothing.
    pub(super) fn end_job(&mut self, id: JobId, state: JobState, reason: Option<String>, out: &mut impl OwnerOutbox) {
        let ended = self.wall_secs;
        let Some(job) = self.jobs.get_mut(id) else { return };
        job.record.state = state;
        job.record.reason = reason;
        job.record.ended = job.record.is_ended().then_some(ended);
        // If it goes on, it plans anew.
        job.todo.clear();
        (job.passes, job.begun) = (0, 0);
        job.rate = 0;
        self.restoring_ended(id);
        self.refresh_holds();
        self.save_job(id, out);
        self.tell_job(id, out);
        if self.waves.of_job(id) == 0 {
            self.forget_speed(id, out);
        }
    }

    /// Hands the record to the committer. Nobody waits for it: a job whose last state is lost goes on from the one before,
    /// which leads to the same place.
    pub(super) fn save_job(&mut self, id: JobId, out: &mut impl OwnerOutbox) {
        let Some(job) = self.jobs.get(id) else { return };
        let mut rows = vec![StoreEdit::PutJob(job.record.clone())];
        rows.extend(self.jobs.forget_oldest().into_iter().map(StoreEdit::DeleteJob));
        let edit = self.next_edit();
        out.edit(edit, rows);
    }
}
