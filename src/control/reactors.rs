//! The reactor threads: starting them, their ways out, and the ways to them.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use super::owner_thread::{OwnerInput, OwnerSender};
use super::serve::manager::Probe;
use crate::base::clock;
use crate::base::ids::ReactorId;
use crate::engine::uring::thread::EngineThread;
use crate::mover::messages::MoverMessage;
use crate::mover::thread::MoverHandle;
use crate::reactor::handle::ReactorHandle;
use crate::reactor::inbox::{self, Inbox};
use crate::reactor::messages::{Outbox, OwnerRequest, ReactorMessage};
use crate::reactor::thread::{ReactorConfig, StartError, begin, spawn};
use crate::shared::{Load, Rest};
use crate::store::change::{Change, CommitRequest};
use crate::store::thread::StoreHandle;
use crate::vhost_user::Reactors;

/// How often a thread that should end is looked at.
const JOIN_PAUSE: Duration = Duration::from_millis(1);

/// Queues of reactors that do not run yet.
pub struct Inboxes {
    handles: Vec<ReactorHandle>,
    inboxes: Vec<Inbox>,
    busy: Arc<[Arc<Load>]>,
    rest: Arc<Rest>,
}

impl Inboxes {
    /// Queues for `count` reactors.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new(count: u16) -> std::io::Result<Inboxes> {
        let pairs = (0..count).map(|_| inbox::channel()).collect::<std::io::Result<Vec<_>>>()?;
        let (handles, inboxes) = pairs.into_iter().unzip();
        let busy = (0..count).map(|_| Arc::default()).collect();
        Ok(Inboxes { handles, inboxes, busy, rest: Arc::default() })
    }

    /// How the owner has the reactors say that they do something.
    #[must_use]
    pub fn rest(&self) -> Arc<Rest> {
        Arc::clone(&self.rest)
    }

    /// The ways to the reactors.
    #[must_use]
    pub fn handles(&self) -> Handles {
        Handles { reactors: self.handles.clone().into(), busy: Arc::clone(&self.busy) }
    }

    /// Starts the reactors, each on its thread.
    #[must_use]
    pub fn start(
        self,
        threads: Vec<EngineThread>,
        poll_max: Duration,
        owner: &OwnerSender,
        store: &StoreHandle,
        mover: &MoverHandle,
    ) -> Threads {
        let handles = self.handles();
        assert_eq!(threads.len(), self.inboxes.len(), "a thread for each reactor");
        for (((inbox, busy), number), thread) in
            self.inboxes.into_iter().zip(self.busy.iter()).zip(0u16..).zip(&threads)
        {
            let (busy, rest) = (Arc::clone(busy), Arc::clone(&self.rest));
            let config = ReactorConfig { id: ReactorId(number), poll_max, busy, rest };
            let outbox =
                Ways { owner: owner.clone(), store: store.clone(), reactors: handles.clone(), mover: mover.clone() };
            begin(thread, config, inbox, outbox);
        }
        Threads { handles, threads }
    }
}

/// Threads for `count` reactors, with a CPU each, as long as there are some, if they are to be pinned.
///
/// # Errors
/// See [`StartError`].
pub fn threads(count: u16, pin: bool) -> Result<Vec<EngineThread>, StartError> {
    let cpus = if pin { allowed_cpus() } else { Vec::new() };
    let cpu = |number: u16| cpus.get(usize::from(number) % cpus.len().max(1)).copied();
    (0..count).map(|number| spawn(ReactorId(number), cpu(number))).collect()
}

/// The CPUs that this process may use; none if the kernel does not say.
fn allowed_cpus() -> Vec<usize> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    parse_cpus(list.unwrap_or_default())
}

/// Reads `0-3,8`.
fn parse_cpus(list: &str) -> Vec<usize> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some(first.trim().parse::<usize>().ok()?..=last.trim().parse::<usize>().ok()?)
    };
    list.split(',').filter_map(range).flatten().collect()
}

/// The ways to all reactors.
#[derive(Clone)]
pub struct Handles {
    reactors: Arc<[ReactorHandle]>,
    busy: Arc<[Arc<Load>]>,
}

impl Handles {
    /// Sends one message to each.
    pub fn tell_all(&self, message: impl Fn() -> ReactorMessage) {
        self.reactors.iter().for_each(|reactor| reactor.send(message()));
    }

    /// Sends a message to one.
    pub fn tell(&self, reactor: ReactorId, message: ReactorMessage) {
        self.reactors[usize::from(reactor.0)].send(message);
    }
}

impl Reactors for Handles {
    fn count(&self) -> u16 {
        u16::try_from(self.reactors.len()).expect("reactors are counted in u16")
    }

    fn busy_ns(&self) -> Vec<u64> {
        self.busy.iter().map(|busy| busy.total()).collect()
    }

    fn send(&self, reactor: ReactorId, message: ReactorMessage) {
        self.tell(reactor, message);
    }
}

/// Reactors that run.
pub struct Threads {
    handles: Handles,
    threads: Vec<EngineThread>,
}

impl Threads {
    /// How each is asked whether it gets on.
    pub fn probes(&self) -> impl Iterator<Item = Probe> + use<> {
        let handles = self.handles.clone();
        (0..handles.count()).map(ReactorId).map(move |reactor| {
            let handles = handles.clone();
            Probe::new(format!("reactor {}", reactor.0), move |answer| {
                handles.tell(reactor, ReactorMessage::Alive(answer));
            })
        })
    }

    /// Lets them finish what is in flight. The threads are free for others, or end if they are dropped. `None` if it takes longer than
    /// `at_most`: a host disk hangs.
    #[must_use]
    pub fn finish(self, at_most: Duration) -> Option<Vec<EngineThread>> {
        self.handles.tell_all(|| ReactorMessage::Shutdown);
        let deadline = clock::now().after(at_most);
        self.threads.iter().all(|thread| thread.wait_idle(until(deadline))).then_some(self.threads)
    }
}

/// The time that is left.
fn until(deadline: clock::Nanos) -> Duration {
    Duration::from_nanos(deadline.since(clock::now()))
}

/// Joins a thread that ends before `deadline`; one that does not is left alone.
#[must_use]
pub fn join_until<T>(thread: JoinHandle<T>, deadline: clock::Nanos) -> Option<T> {
    while !thread.is_finished() {
        if clock::now() >= deadline {
            return None;
        }
        std::thread::sleep(JOIN_PAUSE);
    }
    // A panic aborts the process, so a thread that has ended has ended well.
    thread.join().ok()
}

/// A reactor's ways out.
struct Ways {
    owner: OwnerSender,
    store: StoreHandle,
    reactors: Handles,
    mover: MoverHandle,
}

impl Outbox for Ways {
    fn to_owner(&mut self, message: OwnerRequest) {
        self.owner.send(OwnerInput::Reactor(message));
    }

    fn change(&mut self, change: Change) {
        self.store.change(change);
    }

    fn commit(&mut self, request: CommitRequest) {
        self.store.commit(request);
    }

    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        self.reactors.tell(reactor, message);
    }

    fn room_for_mover(&mut self) {
        self.mover.send(MoverMessage::Room);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_lists_are_read() {
        assert_eq!(parse_cpus("\t0-2,8"), [0, 1, 2, 8]);
        assert_eq!(parse_cpus("5"), [5]);
        assert_eq!(parse_cpus(""), Vec::<usize>::new());
        assert!(!allowed_cpus().is_empty());
    }
}
