//! Queues between the parts of the daemon, delivered one message at a time by the scheduler.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use spanblk::base::ids::{DiskId, ReactorId, VhdId};
use spanblk::mover::messages::{MoverMessage, MoverOutbox, MoverReport};
use spanblk::owner::command::{CommandError, CommandId, LostData, Reply};
use spanblk::owner::outbox::{Event, OwnerOutbox, SlotRun};
use spanblk::placement::ReplicaState;
use spanblk::placement::job::JobState;
use spanblk::placement::record::VhdRecord;
use spanblk::reactor::messages::{Outbox, OwnerRequest, ReactorMessage};
use spanblk::shared::VhdState;
use spanblk::shared::disk::SyncPoint;
use spanblk::store::change::{Change, ChangeKind, CommitRequest};
use spanblk::store::edit::{EditId, StoreEdit};

use super::Mutation;

pub enum ToCommitter {
    Change(Change),
    Request(CommitRequest),
    Edit(EditId, Vec<StoreEdit>),
    Open(Arc<VhdState>),
    Excuse(VhdId, SyncPoint),
    Commit,
}

#[derive(Default)]
pub struct Queues {
    pub owner: VecDeque<OwnerRequest>,
    pub committer: VecDeque<ToCommitter>,
    pub reactors: Vec<VecDeque<ReactorMessage>>,
    pub mover: VecDeque<MoverMessage>,
    pub mover_reports: VecDeque<MoverReport>,
    pub punches: VecDeque<(DiskId, SlotRun)>,
    pub replies: VecDeque<(CommandId, Result<Reply, CommandError>)>,
    pub opened: Vec<Arc<VhdState>>,
    pub closed: Vec<VhdId>,
    /// Jobs that an error has stopped.
    pub stopped: usize,
    /// VHDs, and what was given up of them.
    pub lost: Vec<(String, LostData)>,
}

/// Where everybody's messages go.
#[derive(Clone)]
pub struct Post {
    pub queues: Rc<RefCell<Queues>>,
    mutation: Option<Mutation>,
}

impl Post {
    pub fn new(reactors: usize, mutation: Option<Mutation>) -> Post {
        let reactors = (0..reactors).map(|_| VecDeque::new()).collect();
        Post { queues: Rc::new(RefCell::new(Queues { reactors, ..Queues::default() })), mutation }
    }

    fn hand_over(&self, mut change: Change) {
        match &mut change.kind {
            ChangeKind::Written { needs, .. } if self.mutation == Some(Mutation::CommitUnsynced) => *needs = [None; 4],
            ChangeKind::Cleared { .. } if self.mutation == Some(Mutation::LoseClears) => {
                // Still counted, so that FLUSH does not notice.
                change.kind = ChangeKind::Cleared { blocks: spanblk::base::units::BlockMask::NONE };
            }
            _ => {}
        }
        self.queues.borrow_mut().committer.push_back(ToCommitter::Change(change));
    }
}

impl Outbox for Post {
    fn to_owner(&mut self, message: OwnerRequest) {
        if let (OwnerRequest::CopyMissed { reactor, disk, by, .. }, Some(Mutation::AcknowledgeMissed)) =
            (&message, self.mutation)
        {
            let answer = ReactorMessage::CopyDropped { by: *by, disk: *disk, ok: true };
            self.queues.borrow_mut().reactors[usize::from(reactor.0)].push_back(answer);
            return;
        }
        self.queues.borrow_mut().owner.push_back(message);
    }

    fn change(&mut self, change: Change) {
        self.hand_over(change);
    }

    fn commit(&mut self, request: CommitRequest) {
        self.queues.borrow_mut().committer.push_back(ToCommitter::Request(request));
    }

    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        self.queues.borrow_mut().reactors[usize::from(reactor.0)].push_back(message);
    }

    fn room_for_mover(&mut self) {
        self.queues.borrow_mut().mover.push_back(MoverMessage::Room);
    }
}

impl MoverOutbox for Post {
    fn to_owner(&mut self, report: MoverReport) {
        let report = match (report, self.mutation) {
            (MoverReport::Synced { wave, disk, .. }, Some(Mutation::IgnoreSyncErrors)) => {
                MoverReport::Synced { wave, disk, result: Ok(()) }
            }
            (MoverReport::Failed { id, .. }, Some(Mutation::IgnoreCopyErrors)) => MoverReport::Copied { id },
            (report, _) => report,
        };
        self.queues.borrow_mut().mover_reports.push_back(report);
    }

    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        self.queues.borrow_mut().reactors[usize::from(reactor.0)].push_back(message);
    }
}

impl OwnerOutbox for Post {
    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        if let (ReactorMessage::Fence { fence, .. }, Some(Mutation::NoFence)) = (&message, self.mutation) {
            let reached = OwnerRequest::FenceReached { reactor, fence: *fence };
            self.queues.borrow_mut().owner.push_back(reached);
            return;
        }
        self.queues.borrow_mut().reactors[usize::from(reactor.0)].push_back(message);
    }

    fn change(&mut self, change: Change) {
        self.hand_over(change);
    }

    fn to_mover(&mut self, message: MoverMessage) {
        let queues = &mut *self.queues.borrow_mut();
        match (message, self.mutation) {
            (MoverMessage::Fence { fence, .. }, Some(Mutation::NoFence)) => {
                queues.mover_reports.push_back(MoverReport::FenceReached { fence });
            }
            (MoverMessage::Sync { wave, disk }, Some(Mutation::NoCopySync)) => {
                queues.mover_reports.push_back(MoverReport::Synced { wave, disk, result: Ok(()) });
            }
            (message, _) => queues.mover.push_back(message),
        }
    }

    fn edit(&mut self, edit: EditId, mut rows: Vec<StoreEdit>) {
        if self.mutation == Some(Mutation::MoveIgnoresGeneration) {
            for row in &mut rows {
                if let StoreEdit::Move { moves, .. } = row {
                    moves.iter_mut().for_each(|moved| moved.generation.0 += 2);
                }
            }
        }
        if self.mutation == Some(Mutation::StaleInMemoryOnly) {
            for row in &mut rows {
                if let StoreEdit::Move { moves, .. } = row {
                    moves.retain(|moved| moved.replicas.iter().all(|r| r.state == ReplicaState::InSync));
                }
            }
        }
        if self.mutation == Some(Mutation::NoIntents) {
            rows.retain(|row| !matches!(row, StoreEdit::Intend { intend: true, .. }));
        }
        if self.mutation == Some(Mutation::LoseShrinks) {
            rows.retain(|row| !matches!(row, StoreEdit::Shrink { .. }));
        }
        self.queues.borrow_mut().committer.push_back(ToCommitter::Edit(edit, rows));
    }

    fn excuse(&mut self, vhd: VhdId, point: SyncPoint) {
        self.queues.borrow_mut().committer.push_back(ToCommitter::Excuse(vhd, point));
    }

    fn commit(&mut self) {
        self.queues.borrow_mut().committer.push_back(ToCommitter::Commit);
    }

    fn punch(&mut self, disk: DiskId, run: SlotRun) {
        self.queues.borrow_mut().punches.push_back((disk, run));
    }

    fn open_vhd(&mut self, state: &Arc<VhdState>) {
        self.queues.borrow_mut().committer.push_back(ToCommitter::Open(Arc::clone(state)));
        self.queues.borrow_mut().opened.push(Arc::clone(state));
    }

    fn vhd_changed(&mut self, _record: &VhdRecord) {}

    fn close_vhd(&mut self, vhd: VhdId) {
        self.queues.borrow_mut().closed.push(vhd);
    }

    fn disk_added(&mut self, _disk: DiskId) {}

    fn disk_removed(&mut self, _disk: DiskId) {}

    fn reply(&mut self, command: CommandId, result: Result<Reply, CommandError>) {
        if command != CommandId::NOBODY {
            self.queues.borrow_mut().replies.push_back((command, result));
        }
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::Job { state: JobState::Stopped, .. } => self.queues.borrow_mut().stopped += 1,
            Event::DataLost { vhd, lost, .. } => self.queues.borrow_mut().lost.push((vhd, lost)),
            _ => {}
        }
    }
}
