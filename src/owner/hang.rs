//! Disks that do not answer: one on which nothing completes for long, although something is in flight, has failed.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Owner;
use super::outbox::OwnerOutbox;
use crate::base::clock::Nanos;
use crate::base::ids::DiskId;
use crate::base::limits::HANG_LOOK_MILLIS;
use crate::engine::IoError;

/// What was seen at the last look.
#[derive(Debug, Default)]
pub(super) struct Hangs {
    /// How long a disk may take; `None`: as long as it likes.
    pub patience: Option<Duration>,
    /// By disk and thread: what had completed when something was found to be in flight, and when that was.
    waiting: BTreeMap<(DiskId, usize), (u32, Nanos)>,
    looked: Nanos,
}

impl Hangs {
    /// When [`Owner::look_for_hangs`] has something to do.
    pub fn due(&self) -> Option<Nanos> {
        self.patience.map(|_| self.looked.after(Duration::from_millis(HANG_LOOK_MILLIS)))
    }
}

impl Owner {
    /// Looks at every disk. One that hangs has failed: nothing more is asked of it, and whatever can do without goes on.
    pub(super) fn look_for_hangs(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        let Some(patience) = self.hangs.patience else { return };
        if self.hangs.due().is_none_or(|due| due > now) {
            return;
        }
        self.hangs.looked = now;
        let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        let mut hung = Vec::new();
        for disk in self.space.iter().filter(|disk| !disk.state.is_failed()) {
            let id = disk.state.id;
            for (thread, progress) in disk.state.progress().iter().enumerate() {
                let Some(done) = progress.waiting_since() else {
                    self.hangs.waiting.remove(&(id, thread));
                    continue;
                };
                let seen = self.hangs.waiting.entry((id, thread)).or_insert((done, now));
                if seen.0 != done {
                    *seen = (done, now);
                } else if now.since(seen.1) >= patience_ns && !hung.contains(&id) {
                    hung.push(id);
                }
            }
        }
        for disk in hung {
            self.hangs.waiting.retain(|(of, _), _| *of != disk);
            self.disk_error(disk, IoError::Os(libc::ETIMEDOUT), true, out);
        }
    }
}
