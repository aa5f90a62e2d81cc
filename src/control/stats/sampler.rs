//! The thread that takes a sample every ten seconds and now and then has the store keep them: each subject's every five minutes, not all at
//! once, and all of them when the daemon stops. What is lost when it is killed are the last minutes.
//!
//! While nothing happens, which is most of the time on many hosts, neither the owner is asked nor the disks are written to: that of a
//! subject at rest is stored once an hour.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};
use tokio::sync::oneshot;

use super::{Due, StatsBook};
use crate::base::clock;
use crate::control::owner_link::Asked;
use crate::control::owner_thread::{OwnerInput, OwnerSender};
use crate::control::reactors::join_until;
use crate::metrics::history::Tier;
use crate::owner::command::{Command, DiskInfo, Reply, VhdInfo};
use crate::store::history::Subject;
use crate::store::thread::StoreHandle;

/// Samples after which those of a subject are stored: five minutes.
const STORE_EVERY: u64 = 30;

/// And its heat, and samples of when nothing happened: an hour.
const STORE_SELDOM: u64 = 360;

/// The thread. It ends when this is dropped.
pub struct Sampler {
    stop: Sender<()>,
    thread: JoinHandle<()>,
}

impl Sampler {
    /// Starts it. Nothing is asked of the owner before the first sample is due.
    ///
    /// # Errors
    /// No thread.
    pub fn start(book: Arc<StatsBook>, owner: OwnerSender, store: StoreHandle) -> std::io::Result<Sampler> {
        let (stop, stopped) = crossbeam_channel::bounded(0);
        let work = Work { book, owner, store, vhds: Vec::new(), disks: Vec::new(), ticks: 0, changes: 0 };
        let thread = std::thread::Builder::new().name("spanblk-stats".to_owned()).spawn(move || work.run(&stopped))?;
        Ok(Sampler { stop, thread })
    }

    /// Takes a last sample and hands everything to the store. Whether that has ended in time. Call while the owner and the store work, and
    /// once guests do not any more.
    pub fn finish(self, at_most: Duration) -> bool {
        drop(self.stop);
        join_until(self.thread, clock::now().after(at_most)).is_some()
    }
}

/// Whether it is the subject's turn to have samples of when nothing happened stored: some of all at a time, not too many at once, and not so
/// few that disks are written to all the time.
fn is_turn_of_quiet(ticks: u64, subject: Subject) -> bool {
    const BATCHES: u64 = 6;
    let (batch, place) = (ticks / (STORE_SELDOM / BATCHES), ticks % (STORE_SELDOM / BATCHES));
    place == 0 && batch % BATCHES == u64::from(subject.code()) % BATCHES
}

struct Work {
    book: Arc<StatsBook>,
    owner: OwnerSender,
    store: StoreHandle,
    /// As they were last.
    vhds: Vec<VhdInfo>,
    disks: Vec<DiskInfo>,
    ticks: u64,
    /// As [`Work::changes`] said last.
    changes: u64,
}

impl Work {
    fn run(mut self, stopped: &Receiver<()>) {
        loop {
            let every = Tier::Seconds.secs();
            let pause = Duration::from_secs(every - clock::wall_secs() % every);
            match stopped.recv_timeout(pause) {
                Err(RecvTimeoutError::Timeout) => self.tick(),
                Ok(()) | Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        // Unless the daemon never began.
        if self.ticks > 0 {
            self.look_again();
            self.record();
        }
        self.hand_over(|_| Due { samples: true, quiet: true, heat: true });
    }

    fn tick(&mut self) {
        let changes = self.changes();
        // Now and then in any case, though nothing of them changes without this; and as long as nothing is known.
        if changes != self.changes || self.disks.is_empty() || self.ticks.is_multiple_of(STORE_EVERY) {
            self.changes = changes;
            self.look_again();
        }
        self.ticks += 1;
        self.record();
        let turn = |subject: Subject, every| (self.ticks + u64::from(subject.code())).is_multiple_of(every);
        let due = |subject: Subject| Due {
            samples: turn(subject, STORE_EVERY),
            quiet: is_turn_of_quiet(self.ticks, subject),
            heat: turn(subject, STORE_SELDOM),
        };
        self.hand_over(due);
    }

    /// A number that is another one once the pool has changed: that is durable before it is so, and so written to disks.
    fn changes(&self) -> u64 {
        self.disks.iter().map(|disk| disk.state.metadata_work.writes.load(Ordering::Relaxed)).sum()
    }

    fn record(&self) {
        self.book.record(&self.vhds, &self.disks, clock::now(), clock::wall_secs());
    }

    fn hand_over(&self, due: impl Fn(Subject) -> Due) {
        let status = self.store.status();
        let members = status.members.iter().filter(|member| member.lost.is_none());
        let region_len = members.map(|member| member.region_len).min().unwrap_or(0);
        let rows = self.book.rows(&self.vhds, region_len, due);
        if !rows.is_empty() {
            self.store.history(rows);
        }
    }

    /// Which VHDs and disks there are. An owner that stops leaves it at what was known.
    fn look_again(&mut self) {
        if let Some(Reply::Vhds(vhds)) = self.ask(Command::ListVhds) {
            self.vhds = vhds;
        }
        if let Some(Reply::Pool(pool)) = self.ask(Command::ShowPool) {
            self.disks = pool.disks;
        }
    }

    fn ask(&self, command: Command) -> Option<Reply> {
        let (answer, waiting) = oneshot::channel();
        self.owner.send(OwnerInput::Command(Asked { command, answer }));
        waiting.blocking_recv().ok()?.ok()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use super::super::tests::{disk, vhd};
    use super::*;
    use crate::base::ids::{DiskId, VhdId};
    use crate::control::policy::pool_of;

    /// A sampler whose owner is played: it has these disks and one VHD, and counts how often it is asked which there are.
    fn work(disks: Vec<DiskInfo>) -> (Work, Arc<AtomicUsize>, JoinHandle<()>) {
        let (owner, asked) = OwnerSender::channel();
        let looks = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&looks);
        let playing = std::thread::spawn(move || {
            for input in asked {
                let OwnerInput::Command(Asked { command, answer }) = input else { continue };
                let reply = match command {
                    Command::ListVhds => Reply::Vhds(vec![vhd(1, 100)]),
                    Command::ShowPool => {
                        counted.fetch_add(1, Ordering::Relaxed);
                        Reply::Pool(Box::new(pool_of(disks.clone())))
                    }
                    _ => continue,
                };
                let _ = answer.send(Ok(reply));
            }
        });
        let (book, store) = (Arc::default(), StoreHandle::unheard());
        let work = Work { book, owner, store, vhds: Vec::new(), disks: Vec::new(), ticks: 0, changes: 0 };
        (work, looks, playing)
    }

    #[test]
    fn the_owner_is_asked_only_if_something_was_written_and_now_and_then() {
        let disks = vec![disk(0), disk(1)];
        let (mut work, looks, playing) = work(disks.clone());
        let asks = |work: &mut Work, ticks: u64| {
            let before = looks.load(Ordering::Relaxed);
            (0..ticks).for_each(|_| work.tick());
            looks.load(Ordering::Relaxed) - before
        };
        assert_eq!(asks(&mut work, 1), 1, "nothing is known yet");
        assert_eq!((work.vhds.len(), work.disks.len()), (1, 2));
        assert_eq!(asks(&mut work, 20), 0, "nothing has changed");
        // A change is durable before it is so: some disk was written to.
        disks[1].state.metadata_work.writes.fetch_add(1, Ordering::Relaxed);
        assert_eq!(asks(&mut work, 1), 1);
        assert_eq!(asks(&mut work, 8), 0);
        assert_eq!(asks(&mut work, 1), 1, "the thirtieth after the start");
        assert_eq!(asks(&mut work, STORE_EVERY), 1);
        // What was there is known on, whatever becomes of the owner.
        work.owner = OwnerSender::channel().0;
        playing.join().unwrap();
        disks[0].state.metadata_work.writes.fetch_add(1, Ordering::Relaxed);
        work.tick();
        assert_eq!((work.vhds.len(), work.disks.len()), (1, 2));
        let seen =
            [Subject::Vhd(VhdId(1)), Subject::Disk(DiskId(1))].map(|subject| work.book.window(subject, 0, u64::MAX));
        assert!(seen.iter().all(Option::is_some), "samples were taken of all");
    }

    #[test]
    fn what_is_quiet_has_its_turn_once_an_hour_and_not_all_at_once() {
        let turns = |id: u32| (0..STORE_SELDOM).filter(move |tick| is_turn_of_quiet(*tick, Subject::Vhd(VhdId(id))));
        assert!((0..100).all(|id| turns(id).count() == 1));
        let ticks: std::collections::BTreeSet<u64> = (0..100).flat_map(turns).collect();
        assert_eq!(ticks.len(), 6);
    }
}
