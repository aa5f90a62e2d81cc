//! Disks that do not answer: one on which nothing completes for long, although something is in flight, has failed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Owner;
use super::outbox::OwnerOutbox;
use crate::base::clock::Nanos;
use crate::base::ids::{DiskId, ReactorId};
use crate::base::limits::HANG_LOOK_MILLIS;
use crate::engine::IoError;
use crate::mover::messages::MoverMessage;
use crate::reactor::messages::ReactorMessage;

/// What was seen at the last look.
#[derive(Debug, Default)]
pub(super) struct Hangs {
    /// How long a disk may take; `None`: as long as it likes.
    pub patience: Option<Duration>,
    /// By disk and reactor, or mover: what had completed when something was found to be in flight, and when that was.
    waiting: BTreeMap<(DiskId, ReactorId), (u32, Nanos)>,
    /// Reactors, and the mover, that have been asked whether they turn, and have not answered: nothing is known of their disks.
    asked: BTreeSet<ReactorId>,
    /// Those that have answered since the last look.
    turned: BTreeSet<ReactorId>,
    looked: Nanos,
}

impl Hangs {
    /// When [`Owner::look_for_hangs`] has something to do.
    pub fn due(&self) -> Option<Nanos> {
        self.patience.map(|_| self.looked.after(Duration::from_millis(HANG_LOOK_MILLIS)))
    }
}

impl Owner {
    /// Disks that somebody else has found to have failed: whoever writes labels, or the store.
    fn announce_failures(&mut self, out: &mut impl OwnerOutbox) {
        let unheard = |disk: &&super::space::DiskSpace| disk.state.is_failed() && !disk.failure_told && !disk.missing;
        let disks: Vec<DiskId> = self.space.iter().filter(unheard).map(|disk| disk.state.id).collect();
        disks.into_iter().for_each(|disk| self.disk_error(disk, IoError::Os(libc::EIO), true, out));
    }

    /// A reactor that was asked has answered, or the mover.
    pub(super) fn turned(&mut self, reactor: ReactorId) {
        self.hangs.asked.remove(&reactor);
        self.hangs.turned.insert(reactor);
    }

    /// Looks at every disk. One that hangs has failed: nothing more is asked of it, and whatever can do without goes on. First the
    /// reactor is asked: one that is held up itself does not notice what completes. So it is with the mover: what guests write where it
    /// has a chunk in flight waits for that, and then nothing else need be in flight on the disk.
    pub(super) fn look_for_hangs(&mut self, now: Nanos, out: &mut impl OwnerOutbox) {
        let Some(patience) = self.hangs.patience else { return };
        if self.hangs.due().is_none_or(|due| due > now) {
            return;
        }
        self.hangs.looked = now;
        let patience_ns = u64::try_from(patience.as_nanos()).unwrap_or(u64::MAX);
        self.announce_failures(out);
        let turned = std::mem::take(&mut self.hangs.turned);
        let (mut hung, mut late) = (Vec::new(), BTreeSet::new());
        let mover = self.reuse.mover();
        for disk in self.space.iter().filter(|disk| !disk.state.is_failed()) {
            let id = disk.state.id;
            for reactor in (0..self.reactors).map(ReactorId).chain([mover]) {
                // What the mover waits for may be a sync, which may take long on a disk that works: what reactors get counts, too.
                let progress = if reactor == mover {
                    disk.state.copying_waits_since()
                } else {
                    disk.state.progress_of(reactor).waiting_since()
                };
                let Some(done) = progress else {
                    self.hangs.waiting.remove(&(id, reactor));
                    continue;
                };
                let seen = self.hangs.waiting.entry((id, reactor)).or_insert((done, now));
                if seen.0 != done {
                    *seen = (done, now);
                } else if now.since(seen.1) >= patience_ns {
                    if turned.contains(&reactor) && !hung.contains(&id) {
                        hung.push(id);
                    }
                    late.insert(reactor);
                }
            }
        }
        for reactor in late {
            if !self.hangs.asked.insert(reactor) {
                continue;
            }
            if reactor == mover {
                out.to_mover(MoverMessage::Turn);
            } else {
                out.to_reactor(reactor, ReactorMessage::Turn);
            }
        }
        for disk in hung {
            self.hangs.waiting.retain(|(of, _), _| *of != disk);
            self.disk_error(disk, IoError::Os(libc::ETIMEDOUT), true, out);
        }
    }
}
