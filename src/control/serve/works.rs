//! What works behind the sockets: reactors, mover, owner, store, and how they end, in the order in which data flows.

use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::Sender;

use super::daemon::UsableDisk;
use super::manager::Probe;
use crate::base::clock;
use crate::control::disk_worker::DiskWorker;
use crate::control::events::EventLog;
use crate::control::mover::Mover;
use crate::control::owner_thread::{OwnerInput, OwnerSender};
use crate::control::reactors::{Threads, join_until};
use crate::control::service::Service;
use crate::control::stats::Sampler;
use crate::disk::BlockDev;
use crate::disk::file::FileDisk;
use crate::engine::uring::thread::EngineThread;
use crate::shared::DiskState;
use crate::store::thread::{StoreHandle, StoreStatus};

/// How long one thread may take to end, if the process can end without it.
pub(super) const END_PATIENCE: Duration = Duration::from_secs(10);

/// The threads with rings: others in their place would need new ones, which the sandbox refuses.
pub struct Engines {
    /// Those of the reactors.
    pub reactors: Vec<EngineThread>,
    /// The mover's.
    pub mover: EngineThread,
}

/// Everything that runs.
pub struct Works {
    pub(super) reactors: Threads,
    pub(super) mover: Mover,
    pub(super) owner: OwnerSender,
    pub(super) owner_thread: JoinHandle<Vec<DiskWorker>>,
    pub(super) service: Sender<Service>,
    pub(super) service_thread: JoinHandle<()>,
    pub(super) store: StoreHandle,
    pub(super) store_thread: JoinHandle<()>,
}

/// How it ended.
pub struct Finished {
    /// Nothing was held up: all that could be made durable is.
    pub clean: bool,
    /// What of it is not durable, because of disks that have failed or are missing.
    pub store: StoreStatus,
    /// The threads with rings, if all threads have ended.
    pub engines: Option<Engines>,
}

impl Works {
    /// The threads without which nothing is served, as the watchdog asks them.
    pub fn probes(&self) -> Vec<Probe> {
        let (owner, store) = (self.owner.clone(), self.store.clone());
        let mut probes = vec![
            Probe::new("the owner", move |answer| owner.send(OwnerInput::Alive(answer))),
            Probe::new("the committer", move |answer| store.alive(answer)),
        ];
        probes.extend(self.reactors.probes());
        probes
    }

    /// Ends everything, each step with a limit. `drained`: no guest has a request in flight.
    pub fn finish(
        self,
        events: &EventLog,
        sampler: Sampler,
        drained: bool,
        disks: &[UsableDisk],
        patience: Duration,
    ) -> Finished {
        let mover = self.mover.finish(patience);
        let reactors = self.reactors.finish(patience);
        let mut clean = drained && mover.is_some() && reactors.is_some();
        clean &= sync_all(disks, patience);
        let mut ended = sampler.finish(patience);
        self.owner.send(OwnerInput::Stop { quiet: clean });
        let deadline = clock::now().after(patience);
        let workers = join_until(self.owner_thread, deadline);
        ended &= workers.is_some();
        // They finish what they are at, and may be left alone.
        workers.into_iter().flatten().for_each(|worker| drop(worker.leave()));
        // The answers of the last commands pass through it.
        let _ = self.service.send(Service::Stop);
        ended &= join_until(self.service_thread, deadline).is_some();
        events.keep_all();
        self.store.stop();
        ended &= join_until(self.store_thread, clock::now().after(patience)).is_some();
        let store = self.store.status();
        clean &= ended && !store.failed;
        let engines = reactors.zip(mover).filter(|_| ended).map(|(reactors, mover)| Engines { reactors, mover });
        Finished { clean, store, engines }
    }
}

/// Makes everything written durable, on all disks at once. A disk that hangs is given up.
pub(super) fn sync_all(disks: &[UsableDisk], at_most: Duration) -> bool {
    let deadline = clock::now().after(at_most);
    let start = |disk: &UsableDisk| {
        let disk = disk.clone();
        std::thread::Builder::new().name("spanblk-sync".to_owned()).spawn(move || sync(&disk.state, &disk.device))
    };
    let threads: Vec<_> = disks.iter().map(start).collect();
    // Each is waited for, even if one before has failed.
    let results: Vec<bool> = threads
        .into_iter()
        .map(|thread| thread.is_ok_and(|thread| join_until(thread, deadline) == Some(true)))
        .collect();
    results.into_iter().all(|synced| synced)
}

/// Makes everything written durable, if the disk still works.
fn sync(state: &DiskState, device: &FileDisk) -> bool {
    if state.is_failed() {
        return true;
    }
    let number = state.begin_sync();
    match device.sync() {
        Ok(()) => {
            state.sync_succeeded(number);
            true
        }
        Err(error) => {
            state.fail();
            log::error!("disk '{}': cannot sync: {error}", state.name);
            false
        }
    }
}
