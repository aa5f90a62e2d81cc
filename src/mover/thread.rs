//! The mover's thread: one queue in, one engine.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::copier::Copier;
use super::messages::{MoverMessage, MoverOutbox};
use crate::base::clock;
use crate::base::ids::DiskId;
use crate::base::limits::TICK_MILLIS;
use crate::engine::uring::thread::{EngineThread, ThreadError};
use crate::engine::uring::{Event, EventTag, SetupError, UringEngine, Wait};
use crate::reactor::handle::ReactorHandle;
use crate::reactor::inbox::Inbox;
use crate::shared::DiskState;

/// The way to the mover.
pub type MoverHandle = ReactorHandle<MoverMessage>;

/// The inbox's own event.
const INBOX: EventTag = EventTag(0);

/// How long a task waits before it looks at a claimed block again.
const RETRY: Duration = Duration::from_micros(200);

/// How often it looks at what is in flight.
const TICK: Duration = Duration::from_millis(TICK_MILLIS);

/// Why the mover did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread.
    #[error("cannot start the mover thread: {0}")]
    Thread(#[source] std::io::Error),
    /// No engine.
    #[error(transparent)]
    Engine(#[from] SetupError),
}

/// Starts a thread for the mover.
///
/// # Errors
/// The thread or its io_uring is not to be had.
pub fn spawn() -> Result<EngineThread, StartError> {
    EngineThread::spawn("spanblk-mover".to_owned(), UringEngine::new).map_err(|error| match error {
        ThreadError::Thread(source) => StartError::Thread(source),
        ThreadError::Engine(error) => error.into(),
    })
}

/// Runs the mover on a thread that has nothing to do, until [`MoverMessage::Shutdown`].
pub fn begin<O>(thread: &EngineThread, inbox: Inbox<MoverMessage>, outbox: O)
where
    O: MoverOutbox + Send + 'static,
{
    thread.begin(move |engine| Mover::new(inbox, engine, outbox).run());
}

struct Mover<O: MoverOutbox> {
    inbox: Inbox<MoverMessage>,
    copier: Copier<UringEngine, O>,
    leaving: bool,
}

impl<O: MoverOutbox> Mover<O> {
    fn new(inbox: Inbox<MoverMessage>, mut engine: UringEngine, outbox: O) -> Mover<O> {
        engine.watch(inbox.wake_fd(), INBOX);
        Mover { inbox, copier: Copier::new(engine, outbox), leaving: false }
    }

    fn run(mut self) -> UringEngine {
        loop {
            let now = clock::now();
            while let Some(message) = self.inbox.take() {
                match message {
                    MoverMessage::AddDisk { disk, file } => self.add_disk(disk, file),
                    MoverMessage::RemoveDisk { disk } => self.remove_disk(disk),
                    message => {
                        self.leaving |= matches!(message, MoverMessage::Shutdown);
                        self.copier.handle(message, now);
                    }
                }
            }
            while let Some(event) = self.copier.engine.take_event() {
                self.watch_again(event);
            }
            self.copier.poll(now);
            self.copier.tick(now);
            if self.leaving && self.copier.is_idle() {
                break;
            }
            self.wait();
        }
        self.copier.engine.unwatch(INBOX);
        self.copier.engine.finish();
        self.copier.engine
    }

    fn wait(&mut self) {
        let wait = if !self.inbox.prepare_to_sleep() {
            Wait::No
        } else if self.copier.must_retry() {
            Wait::AtMost(RETRY)
        } else {
            let due = self.copier.next_deadline().map(|due| Duration::from_nanos(due.since(clock::now()).max(1)));
            let tick = self.copier.must_look().then_some(TICK);
            due.into_iter().chain(tick).min().map_or(Wait::Forever, Wait::AtMost)
        };
        self.copier.engine.wait(wait);
        self.inbox.awake();
    }

    fn watch_again(&mut self, event: Event) {
        match event {
            Event::Readable { watched: false, .. } => self.copier.engine.watch(self.inbox.wake_fd(), INBOX),
            Event::Readable { .. } | Event::Signalled { .. } => {}
            Event::WatchFailed { .. } => panic!("the kernel cannot watch our own eventfd"),
        }
    }

    fn add_disk(&mut self, disk: Arc<DiskState>, file: Arc<OwnedFd>) {
        if let Err(error) = self.copier.engine.add_disk(disk.id, file) {
            // Moves to and from it will fail one by one, each with an error that says where.
            log::error!("disk {}: cannot be registered with the mover's io_uring: {error}", disk.name);
        }
        self.copier.add_disk(disk);
    }

    fn remove_disk(&mut self, disk: DiskId) {
        if let Err(error) = self.copier.engine.remove_disk(disk) {
            log::error!("disk #{}: stays open in the mover's io_uring until the daemon ends: {error}", disk.0);
        }
    }
}
