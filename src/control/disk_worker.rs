//! One thread per host disk for what blocks and no guest waits for: giving back the backing of freed slots.
//!
//! A disk that hangs holds up its own worker only. The queue has no bound of its own: the owner asks for at most one punch of
//! each slot at a time, and a freed slot is not reused before its punch is answered, so that the runs in a queue never
//! overlap.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use crate::disk::BlockDev;
use crate::owner::outbox::SlotRun;
use crate::shared::DiskState;

/// The way to a disk's worker. The worker ends when this is dropped and its queue is empty.
#[derive(Debug)]
pub struct DiskWorker {
    runs: Sender<SlotRun>,
    /// What is queued is not wanted any more.
    leaving: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl DiskWorker {
    /// Starts a worker. `punched` is called on its thread for each run, however it went.
    ///
    /// # Errors
    /// No thread.
    pub fn start(
        disk: Arc<DiskState>,
        device: Arc<dyn BlockDev>,
        extent_size: u64,
        punched: impl Fn(SlotRun) + Send + 'static,
    ) -> io::Result<DiskWorker> {
        let (runs, queue) = crossbeam_channel::unbounded();
        let name = format!("spanblk-d{}", disk.id.0);
        let leaving = Arc::<AtomicBool>::default();
        let left = Arc::clone(&leaving);
        let work = move || {
            let queue = queue.into_iter().take_while(|_| !left.load(Ordering::Relaxed));
            serve(&disk, device.as_ref(), extent_size, queue, &punched);
        };
        let thread = std::thread::Builder::new().name(name).spawn(work)?;
        Ok(DiskWorker { runs, leaving, thread: Some(thread) })
    }

    /// Queues a run of freed slots.
    pub fn punch(&self, run: SlotRun) {
        // The worker lives as long as this handle.
        let _ = self.runs.send(run);
    }

    /// Lets the worker finish what it is at, and nothing else: whoever opens the pool next takes the slots as they are. Its disk may hang.
    pub fn leave(mut self) -> Option<JoinHandle<()>> {
        self.leaving.store(true, Ordering::Relaxed);
        self.thread.take()
    }
}

fn serve(
    disk: &DiskState,
    device: &dyn BlockDev,
    extent_size: u64,
    queue: impl Iterator<Item = SlotRun>,
    punched: &impl Fn(SlotRun),
) {
    let mut supported = true;
    for run in queue {
        if supported && !disk.is_failed() {
            let offset = disk.data_offset + u64::from(run.first.0) * extent_size;
            match device.punch(offset, u64::from(run.count) * extent_size) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                    log::info!("disk {}: cannot give back freed room to what is below it", disk.name);
                    supported = false;
                }
                // The slots can be used again all the same: what they hold is never shown.
                Err(error) => log::warn!("disk {}: freed room was not given back: {error}", disk.name),
            }
        }
        punched(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::DiskId;
    use crate::base::units::SlotIndex;
    use std::sync::Mutex;

    #[derive(Debug, Default)]
    struct Recorder {
        punched: Mutex<Vec<(u64, u64)>>,
        unsupported: bool,
    }

    impl BlockDev for Recorder {
        fn size(&self) -> u64 {
            1 << 30
        }
        fn block_size(&self) -> u32 {
            512
        }
        fn read_at(&self, _: u64, _: &mut [u8]) -> io::Result<()> {
            Ok(())
        }
        fn write_at(&self, _: u64, _: &[u8]) -> io::Result<()> {
            Ok(())
        }
        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
        fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
            self.punched.lock().unwrap().push((offset, len));
            if self.unsupported { Err(io::ErrorKind::Unsupported.into()) } else { Ok(()) }
        }
    }

    fn run_worker(unsupported: bool) -> (Vec<(u64, u64)>, usize) {
        let device = Arc::new(Recorder { unsupported, ..Recorder::default() });
        let disk = Arc::new(DiskState::new(DiskId(0), "d".into(), 4 << 20, 100, 512, 512));
        let (done, answers) = crossbeam_channel::unbounded();
        let worker = DiskWorker::start(disk, device.clone(), 1 << 20, move |run| done.send(run).unwrap()).unwrap();
        worker.punch(SlotRun { first: SlotIndex(0), count: 1 });
        worker.punch(SlotRun { first: SlotIndex(8), count: 2 });
        let answered = answers.iter().take(2).count();
        worker.leave().unwrap().join().unwrap();
        let punched = device.punched.lock().unwrap().clone();
        (punched, answered)
    }

    #[test]
    fn runs_are_punched_where_their_slots_are() {
        assert_eq!(run_worker(false), (vec![(4 << 20, 1 << 20), (12 << 20, 2 << 20)], 2));
    }

    #[test]
    fn a_disk_that_cannot_punch_is_asked_once_and_answers_all() {
        assert_eq!(run_worker(true), (vec![(4 << 20, 1 << 20)], 2));
    }
}
