//! A queue of messages to a thread that waits in its ring, such as a reactor: many senders, one receiver, woken only when it
//! sleeps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering, fence};

use crossbeam_channel::{Receiver, Sender};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::handle::ReactorHandle;
use super::messages::ReactorMessage;

/// What senders and the reactor share besides the queue.
pub(super) struct Doorbell {
    /// Set by the reactor before it looks at the queue for the last time and blocks; whoever clears it rings.
    sleeping: AtomicBool,
    /// Its counter is never read: the reactor watches for writes.
    eventfd: EventFd,
}

impl Doorbell {
    /// Call after queueing a message.
    pub(super) fn ring(&self) {
        // Pairs with the fence in `prepare_to_sleep`: either we see the flag, or the reactor sees the message.
        fence(Ordering::SeqCst);
        if self.sleeping.load(Ordering::Relaxed) && self.sleeping.swap(false, Ordering::Relaxed) {
            // Fails only when the counter is full, which takes 2^64 wake-ups.
            let _ = self.eventfd.write(1);
        }
    }
}

/// The reactor's end.
pub struct Inbox<M = ReactorMessage> {
    messages: Receiver<M>,
    doorbell: Arc<Doorbell>,
}

/// A queue and its two ends.
///
/// # Errors
/// No eventfd could be made (too many open files).
pub fn channel<M>() -> io::Result<(ReactorHandle<M>, Inbox<M>)> {
    let (sender, messages): (Sender<M>, _) = crossbeam_channel::unbounded();
    let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
    let doorbell = Arc::new(Doorbell { sleeping: AtomicBool::new(false), eventfd });
    Ok((ReactorHandle::new(sender, Arc::clone(&doorbell)), Inbox { messages, doorbell }))
}

impl<M> Inbox<M> {
    /// The next message.
    #[must_use]
    pub fn take(&self) -> Option<M> {
        self.messages.try_recv().ok()
    }

    /// Whether there is no message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.messages.is_empty()
    }

    /// Announces that the reactor is about to block. False if there is a message: do not block.
    #[must_use]
    pub fn prepare_to_sleep(&self) -> bool {
        self.doorbell.sleeping.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
        if self.messages.is_empty() {
            return true;
        }
        self.awake();
        false
    }

    /// The reactor is awake: senders need not ring.
    pub fn awake(&self) {
        self.doorbell.sleeping.store(false, Ordering::Relaxed);
    }

    /// Written to when a message arrives while the reactor sleeps.
    #[must_use]
    pub fn wake_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the eventfd lives as long as `self`, which the borrow is tied to.
        unsafe { BorrowedFd::borrow_raw(std::os::fd::AsRawFd::as_raw_fd(&self.doorbell.eventfd)) }
    }
}

impl<M> AsFd for Inbox<M> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::ids::VhdId;

    fn message(n: u32) -> ReactorMessage {
        ReactorMessage::ClaimReleased { vhd: VhdId(n) }
    }

    fn number(message: &ReactorMessage) -> u32 {
        match message {
            ReactorMessage::ClaimReleased { vhd } => vhd.0,
            _ => unreachable!("only these are sent"),
        }
    }

    #[test]
    fn only_a_sleeping_reactor_is_rung_for_and_only_once() {
        let (handle, inbox) = channel().unwrap();
        handle.send(message(1));
        assert!(inbox.doorbell.eventfd.read().is_err(), "awake: no system call");
        assert!(!inbox.prepare_to_sleep(), "a message is there");
        assert_eq!(number(&inbox.take().unwrap()), 1);
        assert!(inbox.prepare_to_sleep());
        handle.send(message(2));
        handle.send(message(3));
        assert_eq!(inbox.doorbell.eventfd.read().unwrap(), 1);
        inbox.awake();
        assert_eq!(std::iter::from_fn(|| inbox.take()).map(|m| number(&m)).collect::<Vec<_>>(), [2, 3]);
    }

    #[test]
    fn sending_to_a_reactor_that_has_ended_is_harmless() {
        let (handle, inbox) = channel().unwrap();
        drop(inbox);
        handle.send(message(1));
    }

    #[test]
    fn no_wake_up_is_lost() {
        const PER_SENDER: u32 = 20_000;
        let (handle, inbox) = channel().unwrap();
        let senders: Vec<_> = (0..3)
            .map(|_| {
                let handle = handle.clone();
                std::thread::spawn(move || (0..PER_SENDER).for_each(|n| handle.send(message(n))))
            })
            .collect();
        let mut taken = 0;
        while taken < 3 * PER_SENDER {
            while let Some(_message) = inbox.take() {
                taken += 1;
            }
            if taken < 3 * PER_SENDER && inbox.prepare_to_sleep() {
                let mut poll = libc::pollfd {
                    fd: std::os::fd::AsRawFd::as_raw_fd(&inbox.wake_fd()),
                    events: libc::POLLIN,
                    revents: 0,
                };
                // SAFETY: one valid entry.
                let ready = unsafe { libc::poll(&raw mut poll, 1, 10_000) };
                assert_eq!(ready, 1, "asleep with {} messages waiting", inbox.messages.len());
                let _ = inbox.doorbell.eventfd.read();
                inbox.awake();
            }
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    }
}
