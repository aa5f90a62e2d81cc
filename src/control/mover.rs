//! The mover's thread: starting it, its ways out, and the way to it.

use std::io;
use std::time::Duration;

use super::owner_thread::{OwnerInput, OwnerSender};
use super::reactors::Handles;
use crate::base::ids::ReactorId;
use crate::engine::uring::thread::EngineThread;
use crate::mover::messages::{MoverMessage, MoverOutbox, MoverReport};
use crate::mover::thread::{MoverHandle, StartError, begin, spawn};
use crate::reactor::inbox::{self, Inbox};
use crate::reactor::messages::ReactorMessage;

/// A mover that runs.
pub struct Mover {
    handle: MoverHandle,
    thread: EngineThread,
}

/// Why there is no mover.
#[derive(Debug, thiserror::Error)]
pub enum MoverError {
    /// No queue.
    #[error("cannot make the mover's queue")]
    Queue(#[from] io::Error),
    /// No thread, or no engine.
    #[error(transparent)]
    Start(#[from] StartError),
}

/// The queue of a mover that does not run yet.
pub struct Queue {
    handle: MoverHandle,
    inbox: Inbox<MoverMessage>,
}

impl Queue {
    /// A queue.
    ///
    /// # Errors
    /// Too many open files.
    pub fn new() -> Result<Queue, MoverError> {
        let (handle, inbox) = inbox::channel()?;
        Ok(Queue { handle, inbox })
    }

    /// The way to the mover.
    #[must_use]
    pub fn handle(&self) -> MoverHandle {
        self.handle.clone()
    }
}

impl Mover {
    /// Starts it, on the thread of an earlier one if there is one.
    ///
    /// # Errors
    /// See [`MoverError`].
    pub fn start(
        queue: Queue,
        thread: Option<EngineThread>,
        owner: &OwnerSender,
        reactors: &Handles,
    ) -> Result<Mover, MoverError> {
        let Queue { handle, inbox } = queue;
        let thread = thread.map_or_else(spawn, Ok)?;
        begin(&thread, inbox, Ways { owner: owner.clone(), reactors: reactors.clone() });
        Ok(Mover { handle, thread })
    }

    /// The way to it.
    #[must_use]
    pub fn handle(&self) -> MoverHandle {
        self.handle.clone()
    }

    /// Lets it finish what is in flight. The thread is free for another one, or ends if it is dropped. `None` if it takes longer than
    /// `at_most`: a host disk hangs.
    #[must_use]
    pub fn finish(self, at_most: Duration) -> Option<EngineThread> {
        self.handle.send(MoverMessage::Shutdown);
        self.thread.wait_idle(at_most).then_some(self.thread)
    }
}

struct Ways {
    owner: OwnerSender,
    reactors: Handles,
}

impl MoverOutbox for Ways {
    fn to_owner(&mut self, report: MoverReport) {
        self.owner.send(OwnerInput::Mover(report));
    }

    fn to_reactor(&mut self, reactor: ReactorId, message: ReactorMessage) {
        self.reactors.tell(reactor, message);
    }
}
