//! What everybody else has of a reactor, or of another thread that waits in its ring.

use std::sync::Arc;

use crossbeam_channel::Sender;

use super::inbox::Doorbell;
use super::messages::ReactorMessage;

/// Sends messages to one reactor. Cheap to clone; never blocks.
pub struct ReactorHandle<M = ReactorMessage> {
    messages: Sender<M>,
    doorbell: Arc<Doorbell>,
}

impl<M> Clone for ReactorHandle<M> {
    fn clone(&self) -> Self {
        ReactorHandle { messages: self.messages.clone(), doorbell: Arc::clone(&self.doorbell) }
    }
}

impl<M> ReactorHandle<M> {
    pub(super) fn new(messages: Sender<M>, doorbell: Arc<Doorbell>) -> Self {
        ReactorHandle { messages, doorbell }
    }

    /// Queues a message, and wakes the reactor if it sleeps. Messages of one sender arrive in order. After the reactor has
    /// ended, messages are dropped (and so are the reply channels in them).
    pub fn send(&self, message: M) {
        if self.messages.send(message).is_ok() {
            self.doorbell.ring();
        }
    }
}
