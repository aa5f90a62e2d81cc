//! The engine that runs on io_uring: one ring of one thread, for disk operations, kicks and interrupts alike.
//!
//! * [`slots`]: operations in flight; each owns its I/O vectors until the kernel has answered.
//! * `setup`: the ring, restricted to the few operations needed here.
//! * [`thread`]: a thread with a ring, which can outlive what it works for.
//!
//! [`UringEngine::wait`] is the only place where the thread blocks, and submits everything queued since the last time: one
//! system call per batch. The ring must be used by the thread that made it.
//!
//! Unsafe: entries are pushed to the ring here and nowhere else.

mod setup;
mod slots;
#[cfg(test)]
mod tests;
pub mod thread;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::{IoUring, cqueue, opcode, squeue, types};

use super::{Completion, Engine, EngineFull, Op, OpTag};
use crate::base::aligned::AlignedBuf;
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::{COMPLETION_ENTRIES, DISKS_MAX, ENGINE_SLOTS};

pub use setup::SetupError;
use slots::{Slots, Verdict};

/// The caller's name for a descriptor that is watched or signalled.
///
/// Must not be used again while something of it may still come (a completion can be under way when the descriptor is
/// given up), and must be below 2^56.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EventTag(pub u64);

/// What happened on descriptors that are not disks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// A watched eventfd was written to.
    Readable {
        /// As given to [`UringEngine::watch`].
        tag: EventTag,
        /// Whether it is still watched; if not, watch it again.
        watched: bool,
    },
    /// A descriptor cannot be watched (any more).
    WatchFailed {
        /// As given to [`UringEngine::watch`].
        tag: EventTag,
    },
    /// A signal that can wait has been delivered (or cannot be: then nobody listens); one that cannot wait has failed.
    Signalled {
        /// As given to [`UringEngine::signal`].
        tag: EventTag,
    },
}

/// How long to wait for a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Only submit, and collect what is there.
    No,
    /// Until there is one.
    Forever,
    /// Until there is one, or the time is up.
    AtMost(Duration),
}

/// User data: in the top byte what it belongs to and in which life of the engine, its name below.
const KIND_SHIFT: u32 = 56;
const KIND_MASK: u64 = 0b11;
const LIFE_SHIFT: u32 = 58;
const LIVES: u64 = 1 << (64 - LIFE_SHIFT);
const KIND_OP: u64 = 0;
const KIND_WATCH: u64 = 1;
const KIND_SIGNAL: u64 = 2;
const KIND_IGNORED: u64 = 3;

/// What a signal adds to an eventfd.
static ONE: u64 = 1;

/// The io_uring engine.
pub struct UringEngine {
    ring: IoUring,
    slots: Slots,
    completions: VecDeque<Completion>,
    events: VecDeque<Event>,
    /// Keeps the disks open (and so locked) as long as the ring has them.
    disks: [Option<Arc<OwnedFd>>; DISKS_MAX],
    /// Those that can hold up whoever submits something: kernel workers do that.
    blocking: DiskSet,
    /// Counts how often it was given to somebody else: what comes late for the one before is nobody's.
    life: u64,
}

impl UringEngine {
    /// An engine for the calling thread, without disks.
    ///
    /// # Errors
    /// The kernel refuses or is too old.
    pub fn new() -> Result<UringEngine, SetupError> {
        Ok(UringEngine {
            ring: setup::create()?,
            slots: Slots::new(),
            completions: VecDeque::with_capacity(ENGINE_SLOTS),
            events: VecDeque::with_capacity(COMPLETION_ENTRIES as usize),
            disks: [const { None }; DISKS_MAX],
            blocking: DiskSet::default(),
            life: 0,
        })
    }

    /// Waits for everything in flight, and forgets it: the kernel uses the memory as long.
    pub fn finish(&mut self) {
        self.flush();
        while self.slots.in_flight() > 0 {
            self.completions.clear();
            self.events.clear();
            self.wait(Wait::Forever);
        }
        self.completions.clear();
    }

    /// The engine as it was in the beginning, for somebody else: without disks, and nobody hears of what was watched or signalled. Nothing is
    /// in flight.
    ///
    /// # Errors
    /// A disk stays open.
    pub fn recycle(&mut self) -> io::Result<()> {
        assert_eq!(self.slots.in_flight(), 0, "operations end before the engine changes hands");
        self.finish();
        let open = (0u8..).zip(&self.disks).filter(|(_, disk)| disk.is_some()).map(|(disk, _)| DiskId(disk));
        for disk in open.collect::<Vec<_>>() {
            self.remove_disk(disk)?;
        }
        self.blocking = DiskSet::default();
        self.events.clear();
        self.life = (self.life + 1) % LIVES;
        Ok(())
    }

    /// Makes a disk known.
    ///
    /// A file whose *submission* can block (one on a hung FUSE file system does that, and holds the thread uninterruptibly) is
    /// left to kernel workers: a hung disk must not stop the thread.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn add_disk(&mut self, disk: DiskId, file: Arc<OwnedFd>) -> io::Result<()> {
        let index = u32::from(disk.0);
        self.ring.submitter().register_files_update(index, &[file.as_raw_fd()])?;
        if submission_can_block(file.as_fd()) {
            self.blocking.insert(disk);
        } else {
            self.blocking.remove(disk);
        }
        self.disks[disk.index()] = Some(file);
        Ok(())
    }

    /// Forgets a disk, which has nothing in flight but what completes by itself. What is submitted to it from now on fails.
    ///
    /// # Errors
    /// What the kernel said; the disk stays open then.
    pub fn remove_disk(&mut self, disk: DiskId) -> io::Result<()> {
        // What is queued names the disk by its place.
        self.flush();
        self.ring.submitter().register_files_update(u32::from(disk.0), &[-1])?;
        self.disks[disk.index()] = None;
        Ok(())
    }

    /// Tells of every write to an eventfd from now on, as [`Event::Readable`]. Once at the beginning if it was written to
    /// already. It need not be read: only its being written to counts.
    pub fn watch(&mut self, fd: BorrowedFd<'_>, tag: EventTag) {
        let events = u32::try_from(libc::POLLIN).expect("a poll bit");
        let poll = opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), events).multi(true).build();
        self.push(poll.user_data(self.user_data(KIND_WATCH, tag.0)));
    }

    /// Ends a watch. Events already under way may still come.
    pub fn unwatch(&mut self, tag: EventTag) {
        let remove = opcode::PollRemove::new(self.user_data(KIND_WATCH, tag.0)).build();
        self.push(remove.user_data(self.user_data(KIND_IGNORED, 0)));
    }

    /// Adds one to an eventfd with the next submission, at once: the descriptor is not in blocking mode. [`Event::Signalled`]
    /// comes only if that *fails*: the eventfd is full of signals that nobody has taken, or broken, or somebody has put it into
    /// blocking mode.
    pub fn signal(&mut self, fd: BorrowedFd<'_>, tag: EventTag) {
        // A completion would wake us from the very wait that submits the signal.
        let write = signal_entry(fd, libc::RWF_NOWAIT).flags(squeue::Flags::SKIP_SUCCESS);
        self.push(write.user_data(self.user_data(KIND_SIGNAL, tag.0)));
    }

    /// The same for a descriptor in blocking mode, where a frontend could make the write wait: a worker thread does it, and
    /// [`Event::Signalled`] follows.
    pub fn signal_patiently(&mut self, fd: BorrowedFd<'_>, tag: EventTag) {
        let write = signal_entry(fd, 0).flags(squeue::Flags::ASYNC);
        self.push(write.user_data(self.user_data(KIND_SIGNAL, tag.0)));
    }

    /// Gives up a signal that has not been delivered: a frontend can keep its eventfd full for ever, and the kernel would keep
    /// the descriptor open as long. [`Event::Signalled`] comes all the same.
    pub fn cancel_signal(&mut self, tag: EventTag) {
        let cancel = opcode::AsyncCancel::new(self.user_data(KIND_SIGNAL, tag.0)).build();
        self.push(cancel.user_data(self.user_data(KIND_IGNORED, 0)));
    }

    /// The next event.
    pub fn take_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether there is something to take, without waiting. A system call is made only if the kernel says that it has something.
    pub fn take_news(&mut self) -> bool {
        let submission = self.ring.submission();
        let deferred = submission.taskrun();
        drop(submission);
        if deferred {
            self.enter(Wait::No);
        }
        self.reap();
        !self.completions.is_empty() || !self.events.is_empty()
    }

    /// Operations submitted whose completion the kernel owes.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.slots.in_flight()
    }

    /// Submits everything queued. Call before a descriptor that was watched or signalled is closed.
    pub fn flush(&mut self) {
        loop {
            self.enter(Wait::No);
            if self.ring.submission().is_empty() {
                return;
            }
            // The kernel took only a part: it lacks memory, or completions must be taken first. An entry left behind would
            // name whatever file gets the number of the closed descriptor.
            self.reap();
        }
    }

    /// Submits everything queued, and waits for a completion or event unless one is there already.
    pub fn wait(&mut self, wait: Wait) {
        self.reap();
        let nothing_yet = self.completions.is_empty() && self.events.is_empty();
        self.enter(if nothing_yet { wait } else { Wait::No });
        self.reap();
    }

    fn enter(&mut self, wait: Wait) {
        let submission = self.ring.submission();
        let nothing_to_do = submission.is_empty() && !submission.taskrun() && !submission.cq_overflow();
        drop(submission);
        let submitter = self.ring.submitter();
        let result = match wait {
            // Without the flag that tells of deferred work, the kernel does that work by itself.
            Wait::No if nothing_to_do => return,
            Wait::No => submitter.submit(),
            Wait::Forever => submitter.submit_and_wait(1),
            Wait::AtMost(limit) => {
                let limit = types::Timespec::from(limit);
                submitter.submit_with_args(1, &types::SubmitArgs::new().timespec(&limit))
            }
        };
        match result {
            Ok(_) => {}
            Err(error) => match error.raw_os_error() {
                // Interrupted, time is up, no memory for now, completions must be taken first: the caller comes again.
                Some(libc::EINTR | libc::ETIME | libc::EAGAIN | libc::EBUSY | libc::ENOMEM) => {}
                _ => panic!("io_uring_enter failed, which only a bug can cause: {error}"),
            },
        }
    }

    /// Sorts what the kernel has posted.
    fn reap(&mut self) {
        loop {
            let entry = self.ring.completion().next();
            let Some(entry) = entry else { return };
            let name = entry.user_data() & ((1 << KIND_SHIFT) - 1);
            match entry.user_data() >> KIND_SHIFT & KIND_MASK {
                KIND_OP => {
                    let index = u16::try_from(name).expect("our own user data");
                    match self.slots.judge(index, entry.result()) {
                        Verdict::Finished(completion) => self.completions.push_back(completion),
                        Verdict::Resubmit => self.push_op(index),
                    }
                }
                KIND_IGNORED => {}
                // Of somebody who had the engine before.
                _ if entry.user_data() >> LIFE_SHIFT != self.life => {}
                KIND_WATCH => self.push_watch_event(EventTag(name), &entry),
                KIND_SIGNAL => self.events.push_back(Event::Signalled { tag: EventTag(name) }),
                _ => unreachable!("two bits have four values"),
            }
        }
    }

    fn push_watch_event(&mut self, tag: EventTag, entry: &cqueue::Entry) {
        let readable = i32::from(libc::POLLIN);
        match entry.result() {
            // Ended by us.
            cancelled if cancelled == -libc::ECANCELED => {}
            bits if bits >= 0 && bits & readable != 0 => {
                self.events.push_back(Event::Readable { tag, watched: cqueue::more(entry.flags()) });
            }
            _ => self.events.push_back(Event::WatchFailed { tag }),
        }
    }

    fn push_op(&mut self, index: u16) {
        let entry = self.slots.entry(index).user_data(self.user_data(KIND_OP, u64::from(index)));
        let may_block = !self.blocking.is_empty() && self.blocking.contains(self.slots.disk(index));
        self.push(if may_block { entry.flags(squeue::Flags::FIXED_FILE | squeue::Flags::ASYNC) } else { entry });
    }

    fn user_data(&self, kind: u64, name: u64) -> u64 {
        assert!(name >> KIND_SHIFT == 0);
        self.life << LIFE_SHIFT | kind << KIND_SHIFT | name
    }

    fn push(&mut self, entry: squeue::Entry) {
        loop {
            // SAFETY: what the entry points to outlives the operation: I/O vectors lie in the slab, which is neither moved
            // nor freed before every operation is back (see `drop`), and their slot is not used again before; the memory
            // behind the vectors is vouched for by whoever called `submit`; the value of a signal is a static.
            if unsafe { self.ring.submission().push(&entry) }.is_ok() {
                return;
            }
            self.enter(Wait::No);
        }
    }
}

fn signal_entry(fd: BorrowedFd<'_>, flags: i32) -> squeue::Entry {
    opcode::Write::new(types::Fd(fd.as_raw_fd()), (&raw const ONE).cast(), 8).rw_flags(flags).build()
}

impl Engine for UringEngine {
    fn available(&self) -> usize {
        self.slots.available().saturating_sub(self.completions.len())
    }

    unsafe fn submit(&mut self, op: Op<'_>, tag: OpTag) -> Result<(), EngineFull> {
        if self.available() == 0 {
            return Err(EngineFull);
        }
        let index = self.slots.insert(op, tag).ok_or(EngineFull)?;
        self.push_op(index);
        Ok(())
    }

    fn take_completion(&mut self) -> Option<Completion> {
        if self.completions.is_empty() {
            self.reap();
        }
        self.completions.pop_front()
    }
}

impl Drop for UringEngine {
    fn drop(&mut self) {
        self.finish();
    }
}

/// Whether reading from or writing to the file may hold up whoever submits it: it does not know how to refuse instead of waiting.
fn submission_can_block(file: BorrowedFd<'_>) -> bool {
    // What is read does not matter, only whether the flag is understood; a read of nothing would not look at it.
    let block = AlignedBuf::zeroed(4096);
    let buffer = libc::iovec { iov_base: block.as_ptr().cast(), iov_len: block.len() };
    // SAFETY: one vector, of memory that is ours until the call returns.
    let result = unsafe { libc::preadv2(file.as_raw_fd(), &raw const buffer, 1, 0, libc::RWF_NOWAIT) };
    result < 0 && std::io::Error::last_os_error().raw_os_error() == Some(libc::EOPNOTSUPP)
}
