//! The owner's thread: one queue in, effects out to reactors, committer, disk workers, and the service thread.
//!
//! The owner itself is pure; this shell gives it time and carries out what it decides. Nothing here waits for a disk, a
//! frontend, or a name service: what may wait goes to a thread of its own.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::convert::event_detail;
use super::disk_worker::DiskWorker;
use super::events::EventLog;
use super::failures::Snapshot;
use super::owner_link::{Asked, OwnerLink};
use super::reactors::Handles;
use super::service::{Answer, Service};
use crate::base::clock;
use crate::base::ids::{DiskId, ReactorId, VhdId};
use crate::base::limits::HEALTH_LOOK_SECS;
use crate::mover::messages::{MoverMessage, MoverReport};
use crate::mover::thread::MoverHandle;
use crate::owner::Owner;
use crate::owner::command::{CommandError, CommandId, Reply};
use crate::owner::outbox::{Event, OwnerOutbox, SlotRun};
use crate::placement::record::VhdRecord;
use crate::reactor::messages::{OwnerRequest, ReactorMessage};
use crate::shared::VhdState;
use crate::shared::disk::SyncPoint;
use crate::store::change::Change;
use crate::store::edit::{EditId, StoreEdit, StoreReport};
use crate::store::thread::StoreHandle;

/// Messages taken before the owner's deadlines are looked at again.
const MESSAGES_PER_TURN: usize = 256;

/// What the owner is told.
pub enum OwnerInput {
    /// By the API.
    Command(Asked),
    /// By a reactor.
    Reactor(OwnerRequest),
    /// By the committer.
    Store(StoreReport),
    /// By the mover.
    Mover(MoverReport),
    /// By the vhost-user server: a frontend attached (its process), or left.
    Attached {
        /// The VHD.
        vhd: VhdId,
        /// The process; `None`: it left.
        pid: Option<u32>,
    },
    /// By a disk's worker.
    Punched {
        /// The disk.
        disk: DiskId,
        /// The slots.
        run: SlotRun,
    },
    /// A disk is open and about to be added: what is needed once the owner has taken it.
    Disk(Box<NewDisk>),
    /// The owner did not take that disk.
    ForgetDisk(DiskId),
    /// Show that the loop gets on: answered when it comes to this.
    Alive(Sender<()>),
    /// Leave the loop.
    Stop {
        /// Reactors and the mover have ended, and disks have been synced.
        quiet: bool,
    },
}

/// An open disk that may become part of the pool.
pub struct NewDisk {
    /// Its identifier.
    pub id: DiskId,
    /// Its worker.
    pub worker: DiskWorker,
    /// Makes one message for a reactor.
    pub announce: Box<dyn Fn() -> ReactorMessage + Send>,
    /// And the one for the mover.
    pub announce_to_mover: MoverMessage,
}

/// The owner's queue.
#[derive(Clone)]
pub struct OwnerSender(Sender<OwnerInput>);

impl OwnerSender {
    /// A queue.
    #[must_use]
    pub fn channel() -> (OwnerSender, Receiver<OwnerInput>) {
        let (sender, receiver) = crossbeam_channel::unbounded();
        (OwnerSender(sender), receiver)
    }

    /// Queues a message; dropped once the owner has ended.
    pub fn send(&self, input: OwnerInput) {
        let _ = self.0.send(input);
    }

    /// The API's way in.
    #[must_use]
    pub fn link(&self) -> OwnerLink {
        let sender = self.clone();
        OwnerLink::new(move |asked| sender.send(OwnerInput::Command(asked)))
    }
}

/// Where the owner's effects go.
pub struct Effects {
    /// The reactors, by number.
    pub reactors: Handles,
    /// The mover.
    pub mover: MoverHandle,
    /// The committer.
    pub store: StoreHandle,
    /// A worker per open disk.
    pub workers: HashMap<DiskId, DiskWorker>,
    /// The service thread.
    pub service: Sender<Service>,
    /// What happened lately.
    pub events: Arc<EventLog>,
}

/// The owner's thread, which waits.
pub struct Prepared {
    thread: JoinHandle<Vec<DiskWorker>>,
    go: Sender<Sender<()>>,
}

/// Starts the thread, which does nothing yet, and ends if it is not to begin. It gives the workers back when it ends.
///
/// # Errors
/// No thread.
pub fn prepare(mut owner: Owner, queue: Receiver<OwnerInput>, effects: Effects) -> io::Result<Prepared> {
    let (answers, new_disks) = (HashMap::new(), HashMap::new());
    let mut outbox = Outbox { effects, answers, new_disks, punched: Vec::new(), failures: Vec::new() };
    let (go, may_go) = crossbeam_channel::bounded::<Sender<()>>(1);
    let work = move || {
        let Ok(begun) = may_go.recv() else { return outbox.into_workers() };
        owner.set_wall_secs(clock::wall_secs());
        owner.start(&mut outbox);
        drop(begun);
        run(owner, &queue, outbox)
    };
    let thread = std::thread::Builder::new().name("spanblk-owner".to_owned()).spawn(work)?;
    Ok(Prepared { thread, go })
}

impl Prepared {
    /// Has it call [`Owner::start`], and go on. So whatever that hands over is with the others when this returns, before anything that a
    /// guest asks can be.
    pub fn begin(self) -> JoinHandle<Vec<DiskWorker>> {
        let (begun, has_begun) = crossbeam_channel::bounded(0);
        self.go.send(begun).expect("it waits for this");
        // Its end tells.
        let _ = has_begun.recv();
        self.thread
    }
}

fn run(mut owner: Owner, queue: &Receiver<OwnerInput>, mut outbox: Outbox) -> Vec<DiskWorker> {
    let mut next_command = 1;
    let mut next_look = clock::now();
    loop {
        outbox.punch_where_there_is_no_disk(&mut owner);
        outbox.tell_failures(&owner);
        let deadline = owner.next_deadline().map_or(next_look, |deadline| deadline.min(next_look));
        let first = match queue.recv_timeout(Duration::from_nanos(deadline.since(clock::now()))) {
            Ok(input) => Some(input),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return outbox.into_workers(),
        };
        owner.set_wall_secs(clock::wall_secs());
        owner.set_now(clock::now());
        let more = std::iter::from_fn(|| queue.try_recv().ok());
        for input in first.into_iter().chain(more).take(MESSAGES_PER_TURN) {
            if let OwnerInput::Stop { quiet } = input {
                if quiet {
                    owner.end_intents(&mut outbox);
                }
                return outbox.into_workers();
            }
            take(&mut owner, input, &mut outbox, &mut next_command);
        }
        let now = clock::now();
        if owner.next_deadline().is_some_and(|deadline| deadline <= now) {
            owner.tick(now, &mut outbox);
        }
        if next_look <= now {
            owner.watch_disks(now, &mut outbox);
            next_look = now.after(Duration::from_secs(HEALTH_LOOK_SECS));
        }
    }
}

fn take(owner: &mut Owner, input: OwnerInput, outbox: &mut Outbox, next_command: &mut u64) {
    match input {
        OwnerInput::Command(Asked { command, answer }) => {
            let id = CommandId(*next_command);
            *next_command += 1;
            outbox.answers.insert(id, answer);
            owner.handle_command(id, command, outbox);
        }
        OwnerInput::Reactor(request) => owner.handle_reactor(request, clock::now(), outbox),
        OwnerInput::Store(report) => owner.handle_store(report, outbox),
        OwnerInput::Mover(report) => owner.handle_mover(report, clock::now(), outbox),
        OwnerInput::Attached { vhd, pid } => owner.handle_attached(vhd, pid, outbox),
        OwnerInput::Punched { disk, run } => owner.handle_punched(disk, run, outbox),
        OwnerInput::Disk(disk) => {
            outbox.new_disks.insert(disk.id, *disk);
        }
        OwnerInput::ForgetDisk(disk) => {
            outbox.new_disks.remove(&disk);
        }
        // There is room for one answer; whoever asked may have given up.
        OwnerInput::Alive(answer) => drop(answer.try_send(())),
        OwnerInput::Stop { .. } => unreachable!("handled by the loop"),
    }
}

struct Outbox {
    effects: Effects,
    answers: HashMap<CommandId, Answer>,
    new_disks: HashMap<DiskId, NewDisk>,
    /// Runs on disks that have no worker: answered without a punch.
    punched: Vec<(DiskId, SlotRun)>,
    /// Disks that have failed: told once it is known what that means.
    failures: Vec<Event>,
}

impl Outbox {
    fn into_workers(self) -> Vec<DiskWorker> {
        self.effects.workers.into_values().collect()
    }

    fn serve(&self, service: Service) {
        // The service thread ends after the owner; if it has died, the daemon is going down.
        let _ = self.effects.service.send(service);
    }

    /// Tells of disks that have failed, and what that means. A thread of its own finds that out, because reading the maps of many
    /// large VHDs takes a while.
    fn tell_failures(&mut self, owner: &Owner) {
        if self.failures.is_empty() {
            return;
        }
        let is_here = |id| self.effects.workers.contains_key(&id);
        let scene = Arc::new(Snapshot::of(owner, is_here, &self.effects.store.status()));
        for event in self.failures.drain(..) {
            let (severity, detail) = event_detail(event);
            let (events, scene, known) = (Arc::clone(&self.effects.events), Arc::clone(&scene), detail.clone());
            let tell = move || events.record(severity, scene.explain(detail));
            if std::thread::Builder::new().name("spanblk-impact".to_owned()).spawn(tell).is_err() {
                self.effects.events.record(severity, known);
            }
        }
    }

    /// A missing disk has nothing that could be given back.
    fn punch_where_there_is_no_disk(&mut self, owner: &mut Owner) {
        while let Some((disk, run)) = self.punched.pop() {
            owner.handle_punched(disk, run, self);
        }
    }
}

impl OwnerOutbox for Outbox {
    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        self.effects.reactors.tell(reactor, message);
    }

    fn to_mover(&mut self, message: MoverMessage) {
        self.effects.mover.send(message);
    }

    fn change(&mut self, change: Change) {
        self.effects.store.change(change);
    }

    fn edit(&mut self, edit: EditId, rows: Vec<StoreEdit>) {
        self.effects.store.edit(edit, rows);
    }

    fn excuse(&mut self, vhd: VhdId, point: SyncPoint) {
        self.effects.store.excuse(vhd, point);
    }

    fn commit(&mut self) {
        self.effects.store.commit_soon();
    }

    fn punch(&mut self, disk: DiskId, run: SlotRun) {
        match self.effects.workers.get(&disk) {
            Some(worker) => worker.punch(run),
            None => self.punched.push((disk, run)),
        }
    }

    fn open_vhd(&mut self, state: &Arc<VhdState>) {
        self.effects.store.open_vhd(state);
    }

    fn vhd_changed(&mut self, record: &VhdRecord) {
        self.serve(Service::Changed(Box::new(record.clone())));
    }

    fn close_vhd(&mut self, vhd: VhdId) {
        self.effects.store.close_vhd(vhd);
        self.serve(Service::Close(vhd));
    }

    fn disk_added(&mut self, disk: DiskId) {
        let Some(new) = self.new_disks.remove(&disk) else {
            log::error!("disk #{} was added without having been opened", disk.0);
            return;
        };
        self.effects.reactors.tell_all(&new.announce);
        self.effects.mover.send(new.announce_to_mover);
        self.effects.workers.insert(disk, new.worker);
    }

    fn disk_removed(&mut self, disk: DiskId) {
        self.effects.workers.remove(&disk);
    }

    fn reply(&mut self, command: CommandId, result: Result<Reply, CommandError>) {
        if command == CommandId::NOBODY {
            if let Err(error) = result {
                log::warn!("replicas cannot be brought back now: {error}");
            }
            return;
        }
        let answer = self.answers.remove(&command).expect("each command is answered once");
        self.serve(Service::Answer { answer, result });
    }

    fn event(&mut self, event: Event) {
        if matches!(event, Event::DiskFailed { .. }) {
            self.failures.push(event);
            return;
        }
        let (severity, detail) = event_detail(event);
        self.effects.events.record(severity, detail);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::units::{BlockMask, ExtentIndex, Generation, SlotIndex};
    use crate::control::mover::{Mover, Queue};
    use crate::control::reactors::Inboxes;
    use crate::disk::file::FileDisk;
    use crate::owner::vhd_state;
    use crate::placement::ReplicaSet;
    use crate::placement::record::{Accept, DiskRecord, Layout, PoolRecord, RECORD_VERSION, WhenFull};
    use crate::shared::DiskState;
    use crate::shared::disk::SyncNumber;
    use crate::store::change::{ChangeKind, CommitRequest};
    use crate::store::committer::Committer;
    use crate::store::mirror::threads::MemberThreads;
    use crate::store::page::Stamp;
    use crate::store::thread::{self, Replies};

    struct Nobody;

    impl Replies for Nobody {
        fn durable(&mut self, _stamp: Stamp) {}
        fn committed(&mut self, _request: CommitRequest, _ok: bool) {}
        fn report(&mut self, _report: StoreReport) {}
    }

    fn pool() -> (PoolRecord, Arc<DiskState>) {
        let (id, name) = (DiskId(0), "d0".to_owned());
        let record = DiskRecord {
            id,
            uuid: uuid::Uuid::from_u128(2),
            name: name.clone(),
            slots: 100,
            data_offset: 1 << 20,
            accept: Accept::Any,
            failure_domain: name.clone(),
        };
        let state = Arc::new(DiskState::new(id, name, 1 << 20, 100, 512, 512));
        (PoolRecord::new(uuid::Uuid::from_u128(1), 1 << 20, vec![record]), state)
    }

    fn vhd() -> VhdRecord {
        VhdRecord {
            version: RECORD_VERSION,
            id: VhdId(1),
            name: "v".to_owned(),
            uuid: uuid::Uuid::from_u128(3),
            size: 8 << 20,
            layout: Layout::Isolated { disk: DiskId(0), chosen: false },
            replicas: 1,
            thick: false,
            checksums: false,
            read_only: false,
            block_size: 512,
            queues: 1,
            vm: None,
            socket_owner: None,
            socket_mode: 0o660,
            when_full: WhenFull::Queue { secs: 60 },
            expand: None,
            limits: crate::placement::limits::IoLimits::default(),
            sharing: crate::placement::sharing::Sharing::default(),
            capacity: crate::placement::capacity::Capacity::default(),
            created: 0,
            writeback: true,
        }
    }

    /// Else a guest that flushes at once would be told that all is durable, with what was recovered still on its way.
    #[test]
    fn what_was_recovered_is_handed_over_before_anybody_is_served() {
        let ((pool, disk), record) = (pool(), vhd());
        let state = Arc::new(vhd_state(&record, pool.geometry().unwrap(), 1, None));
        let (replicas, generation) = (ReplicaSet::single(DiskId(0), SlotIndex(5)), Generation(2));
        state.map.restore(ExtentIndex(1), replicas, BlockMask(1), generation);
        let needs = [Some(SyncPoint { disk: DiskId(0), number: SyncNumber(1) }), None, None, None];
        let kind = ChangeKind::Written { replicas, blocks: BlockMask(1), needs };
        let change = Change { vhd: VhdId(1), extent: ExtentIndex(1), generation, kind };
        let owner = Owner::new(pool, vec![Arc::clone(&disk)], vec![(record, Arc::clone(&state))], 1).unwrap();
        let owner = owner.with_kept(None, vec![change]).unwrap();

        let (sender, queue) = OwnerSender::channel();
        let reactors = Inboxes::new(1).unwrap().handles();
        let mover = Mover::start(Queue::new().unwrap(), None, &sender, &reactors).unwrap();
        let members = MemberThreads::start::<FileDisk>(Vec::new(), 1).unwrap();
        let committer = Committer::new(Stamp { epoch: 1, commit: 0 }, 1 << 30);
        let (store, store_thread) = thread::start(committer, members, Nobody).unwrap();
        store.add_disk(&disk);
        store.open_vhd(&state);
        let (service, _services) = crossbeam_channel::unbounded();
        let (workers, events) = (HashMap::new(), Arc::default());
        let effects = Effects { reactors, mover: mover.handle(), store: store.clone(), workers, service, events };
        let thread = prepare(owner, queue, effects).unwrap().begin();
        assert!(state.has_pending_changes());
        sender.send(OwnerInput::Stop { quiet: true });
        thread.join().unwrap();
        store.stop();
        store_thread.join().unwrap();
        assert!(mover.finish(Duration::from_secs(10)).is_some() && store.status().pending, "the disk was never synced");
    }
}
