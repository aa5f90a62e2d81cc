//! What everybody else has of a reactor.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::inbox::Doorbell;
use super::messages::ReactorMessage;

/// Sends messages to one reactor. Cheap to clone; never blocks.
#[derive(Clone)]
pub struct ReactorHandle {
    messages: Sender<ReactorMessage>,
    doorbell: Arc<Doorbell>,
}

impl ReactorHandle {
    pub(super) fn new(messages: Sender<ReactorMessage>, doorbell: Arc<Doorbell>) -> ReactorHandle {
        ReactorHandle { messages, doorbell }
    }

    /// Queues a message, and wakes the reactor if it sleeps. Messages of one sender arrive in order. After the reactor has
    /// ended, messages are dropped (and so are the reply channels in them).
    pub fn send(&self, message: ReactorMessage) {
        if self.messages.send(message).is_ok() {
            self.doorbell.ring();
        }
    }
}
