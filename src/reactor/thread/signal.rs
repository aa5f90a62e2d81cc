//! Interrupting guests, and telling frontends: of an eventfd that can make us wait, at most one write under way, and none forgotten.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd};

use crate::engine::uring::{EventTag, UringEngine};

/// An eventfd that interrupts a guest or tells its frontend something.
pub(super) struct CallFd {
    fd: OwnedFd,
    tag: EventTag,
    /// Its signals may have to wait, and are told of.
    patient: bool,
    under_way: bool,
    again: bool,
}

impl CallFd {
    /// Signals of this descriptor are named `tag`.
    pub fn new(fd: OwnedFd, tag: EventTag) -> CallFd {
        let patient = may_block(fd.as_fd());
        CallFd { fd, tag, patient, under_way: false, again: false }
    }

    /// Interrupts the guest with the next submission.
    pub fn signal(&mut self, engine: &mut UringEngine) {
        if !self.patient {
            return engine.signal(self.fd.as_fd(), self.tag);
        }
        if self.under_way {
            self.again = true;
            return;
        }
        self.under_way = true;
        engine.signal_patiently(self.fd.as_fd(), self.tag);
    }

    /// Lets go of the descriptor. A signal under way is still delivered, unless the eventfd is full of those before it.
    ///
    /// Then the descriptor is returned, to be kept open until [`CallFd::delivered`]: a worker of the kernel looks for the file by its
    /// number, maybe later, and would write to whatever has that number by then.
    #[must_use]
    pub fn retire(self, engine: &mut UringEngine) -> Option<CallFd> {
        // What was queued for the descriptor goes out before it is closed.
        engine.flush();
        if self.under_way && is_full(self.fd.as_fd()) {
            engine.cancel_signal(self.tag);
        }
        self.under_way.then_some(self)
    }

    /// Lets go of a descriptor whose signals nobody has to rely on: one under way may be lost, and no worker of the kernel stays with it.
    /// Returned as by [`CallFd::retire`].
    #[must_use]
    pub fn abandon(self, engine: &mut UringEngine) -> Option<CallFd> {
        engine.flush();
        if self.under_way {
            engine.cancel_signal(self.tag);
        }
        self.under_way.then_some(self)
    }

    /// Never closes it.
    pub fn leave_open(self) {
        let _ = self.fd.into_raw_fd();
    }

    /// Whether its signals are named so.
    pub fn is_named(&self, tag: EventTag) -> bool {
        self.tag == tag
    }

    /// A signal that can wait has been delivered, or one that cannot has failed.
    pub fn delivered(&mut self, tag: EventTag, engine: &mut UringEngine) {
        if tag != self.tag {
            return;
        }
        if !self.patient {
            // A full eventfd has a signal in it. Else the signal is lost: whoever shares the descriptor may have put it into
            // blocking mode, or the kernel lacked something for a moment. What can wait is told of, and not forgotten.
            if !is_full(self.fd.as_fd()) {
                self.patient = true;
                self.signal(engine);
            }
            return;
        }
        self.under_way = false;
        if std::mem::take(&mut self.again) {
            self.signal(engine);
        }
    }
}

/// Whether a write to the descriptor can wait.
pub(super) fn may_block(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: takes no pointer.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    flags & libc::O_NONBLOCK == 0
}

/// Whether a write to the eventfd would have to wait. If so, there is a signal in it that nobody has taken yet.
pub(super) fn is_full(fd: BorrowedFd<'_>) -> bool {
    let mut entry = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: one valid entry, and no waiting.
    let ready = unsafe { libc::poll(&raw mut entry, 1, 0) };
    ready == 0
}

/// Whether the descriptor is an eventfd, as far as that can be found out. Others could wake us without end.
pub(super) fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    match std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())) {
        Ok(target) => target.as_os_str() == "anon_inode:[eventfd]",
        Err(_) => true,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Read;
    use std::os::fd::{FromRawFd, IntoRawFd};
    use std::time::Duration;

    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;
    use crate::engine::uring::{Event, Wait};

    /// O_NONBLOCK belongs to all who share a descriptor.
    #[test]
    fn an_interrupt_is_not_lost_when_the_frontend_changes_the_mode_of_its_eventfd() {
        const TAG: EventTag = EventTag(7);
        let mut engine = UringEngine::new().unwrap();
        let theirs = EventFd::new(EFD_NONBLOCK).unwrap();
        // SAFETY: nobody else owns the descriptor that is given away here.
        let ours = unsafe { OwnedFd::from_raw_fd(theirs.try_clone().unwrap().into_raw_fd()) };
        let mut call = CallFd::new(ours, TAG);
        // SAFETY: takes no pointer.
        assert_eq!(unsafe { libc::fcntl(theirs.as_raw_fd(), libc::F_SETFL, 0) }, 0);
        call.signal(&mut engine);
        for _ in 0..2 {
            engine.wait(Wait::AtMost(Duration::from_secs(5)));
            while let Some(event) = engine.take_event() {
                assert_eq!(event, Event::Signalled { tag: TAG });
                call.delivered(TAG, &mut engine);
            }
        }
        let mut count = [0; 8];
        File::from(call.fd).read_exact(&mut count).unwrap();
        assert_eq!(u64::from_ne_bytes(count), 1);
    }

    /// A frontend that keeps its eventfd full would keep a worker of the kernel with each of them.
    #[test]
    fn a_hint_that_nobody_takes_is_given_up_with_its_descriptor() {
        const TAG: EventTag = EventTag(8);
        let mut engine = UringEngine::new().unwrap();
        let theirs = EventFd::new(0).unwrap();
        theirs.write(u64::MAX - 1).unwrap();
        // SAFETY: nobody else owns the descriptor that is given away here.
        let ours = unsafe { OwnedFd::from_raw_fd(theirs.try_clone().unwrap().into_raw_fd()) };
        let mut call = CallFd::new(ours, TAG);
        call.signal(&mut engine);
        engine.wait(Wait::AtMost(Duration::from_millis(50)));
        assert_eq!(engine.take_event(), None, "it waits");
        call.signal(&mut engine);
        // Open until then: the kernel's worker may not have looked for it yet.
        let kept = call.abandon(&mut engine).unwrap();
        assert!(kept.is_named(TAG));
        engine.wait(Wait::AtMost(Duration::from_secs(5)));
        engine.wait(Wait::AtMost(Duration::from_millis(50)));
        assert_eq!((engine.take_event(), engine.take_event()), (Some(Event::Signalled { tag: TAG }), None));
    }
}
