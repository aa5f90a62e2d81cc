//! The mover's thread: starting it, its ways out, and the way to it.

use std::io;
use std::thread::JoinHandle;
use std::time::Duration;

use super::owner_thread::{OwnerInput, OwnerSender};
use super::reactors::{Handles, join_until};
use crate::base::clock;
use crate::base::ids::ReactorId;
use crate::mover::messages::{MoverMessage, MoverOutbox, MoverReport};
use crate::mover::thread::{MoverHandle, StartError, spawn};
use crate::reactor::inbox;
use crate::reactor::messages::ReactorMessage;

/// A mover that runs.
pub struct Mover {
    handle: MoverHandle,
    thread: JoinHandle<()>,
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

impl Mover {
    /// Starts it.
    ///
    /// # Errors
    /// See [`MoverError`].
    pub fn start(owner: &OwnerSender, reactors: &Handles) -> Result<Mover, MoverError> {
        let (handle, inbox) = inbox::channel()?;
        let thread = spawn(inbox, Ways { owner: owner.clone(), reactors: reactors.clone() })?;
        Ok(Mover { handle, thread })
    }

    /// The way to it.
    #[must_use]
    pub fn handle(&self) -> MoverHandle {
        self.handle.clone()
    }

    /// Lets it finish what is in flight. False if that takes longer than `at_most`: a host disk hangs.
    #[must_use]
    pub fn stop(self, at_most: Duration) -> bool {
        self.handle.send(MoverMessage::Shutdown);
        join_until(self.thread, clock::now().after(at_most)).is_some()
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
