//! The reactor thread: one loop around the rings, the pipeline and the engine.
//!
//! Each turn takes messages and events, pops from the rings that were kicked, lets the pipeline go on, gives back what is
//! done, and ends in the one system call that submits the batch and waits for the next.
//!
//! * `rings`: the rings and what they wait for. `poll`: when to keep looking instead of sleeping.

mod gate;
mod poll;
mod rings;
mod signal;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use super::inbox::Inbox;
use super::messages::{Outbox, OwnerRequest, ReactorMessage};
use super::pipeline::{Pipeline, PipelineMessage};
use crate::base::clock::{self, Nanos};
use crate::base::ids::{DiskId, ReactorId};
use crate::base::limits::{MESSAGES_PER_TURN, TICK_MILLIS};
use crate::engine::uring::thread::{EngineThread, ThreadError};
use crate::engine::uring::{Event, EventTag, SetupError, UringEngine, Wait};
use crate::shared::{DiskState, Load, Rest};
use poll::{For, Polling};
use rings::{Rings, UringPipeline};

/// The inbox's own event.
const INBOX: EventTag = EventTag((1 << 56) - 2);

/// How often the pipeline looks at what waits for a disk, while something does.
const TICK: Duration = Duration::from_millis(TICK_MILLIS);

/// How often what the reactor has worked is counted: each time is a system call.
const COUNT_EVERY: Duration = Duration::from_millis(10);

/// How often rings without a kick eventfd are looked at.
const POLL_INTERVAL: Duration = Duration::from_micros(100);

/// A reactor to start.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// Its number.
    pub id: ReactorId,
    /// Longest time that it keeps looking for requests and completions before it sleeps; zero: it always sleeps at once.
    pub poll_max: Duration,
    /// Counts the nanoseconds that it works: is on a CPU, and not just looking for something to do.
    pub busy: Arc<Load>,
    /// Says whether the owner wants to hear that it does something.
    pub rest: Arc<Rest>,
}

/// Why a reactor did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No thread.
    #[error("cannot start a reactor thread: {0}")]
    Thread(#[source] io::Error),
    /// No engine.
    #[error(transparent)]
    Engine(#[from] SetupError),
    /// The CPU does not exist or is not ours.
    #[error("cannot run a reactor on CPU {cpu}: {source}; give CPUs that this process may use")]
    Cpu {
        /// The CPU.
        cpu: usize,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Starts a thread for a reactor, on a CPU of its own if one is given.
///
/// # Errors
/// The thread, its io_uring or its CPU is not to be had.
pub fn spawn(id: ReactorId, cpu: Option<usize>) -> Result<EngineThread, StartError> {
    EngineThread::spawn(format!("spanblk-r{}", id.0), move || prepare(cpu)).map_err(|error| match error {
        ThreadError::Thread(source) => StartError::Thread(source),
        ThreadError::Engine(error) => error,
    })
}

/// Runs a reactor on a thread that has nothing to do, until [`ReactorMessage::Shutdown`].
pub fn begin<O>(thread: &EngineThread, config: ReactorConfig, inbox: Inbox, outbox: O)
where
    O: Outbox + Send + 'static,
{
    thread.begin(move |engine| Reactor::new(config, inbox, engine, outbox).run());
}

/// What must happen on the thread itself.
fn prepare(cpu: Option<usize>) -> Result<UringEngine, StartError> {
    if let Some(cpu) = cpu {
        pin(cpu).map_err(|source| StartError::Cpu { cpu, source })?;
    }
    Ok(UringEngine::new()?)
}

/// Ties the calling thread to one CPU.
fn pin(cpu: usize) -> io::Result<()> {
    if cpu >= libc::CPU_SETSIZE as usize {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    // SAFETY: an all-zero set is an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is within the set, as checked above.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set is valid for its size.
    let result = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

struct Reactor<O: Outbox> {
    inbox: Inbox,
    /// Before the rings: its engine waits for what is in flight, which uses the memory that they keep mapped.
    pipeline: UringPipeline<O>,
    rings: Rings,
    leaving: bool,
    /// When the pipeline last looked at what waits for a disk.
    ticked: Nanos,
    polling: Polling,
    busy: Arc<Load>,
    rest: Arc<Rest>,
    /// When the work was counted last, and the time on a CPU then.
    counted: Nanos,
    cpu_ns: u64,
    /// What has been spent since on looking for something to do, in nanoseconds.
    looked_ns: u64,
}

impl<O: Outbox> Reactor<O> {
    fn new(config: ReactorConfig, inbox: Inbox, mut engine: UringEngine, outbox: O) -> Reactor<O> {
        let id = config.id;
        engine.watch(inbox.wake_fd(), INBOX);
        Reactor {
            inbox,
            rings: Rings::new(id),
            pipeline: Pipeline::new(id, engine, outbox),
            leaving: false,
            ticked: Nanos(0),
            polling: Polling::new(u64::try_from(config.poll_max.as_nanos()).unwrap_or(u64::MAX)),
            busy: config.busy,
            rest: config.rest,
            counted: clock::now(),
            cpu_ns: clock::thread_cpu_ns(),
            looked_ns: 0,
        }
    }

    fn run(mut self) -> UringEngine {
        loop {
            let now = clock::now();
            if now >= self.counted.after(COUNT_EVERY) {
                self.count(now);
            }
            let messages_left = self.take_messages(now);
            self.take_events(now);
            self.rings.queue_available(&mut self.pipeline.engine, now);
            if self.rings.has_polled() {
                self.rings.queue_polled();
            }
            self.rings.queue_due(now);
            self.rings.pop_ready(&mut self.pipeline, now);
            self.pipeline.poll(now);
            if now >= self.ticked.after(TICK) && self.pipeline.wants_tick() {
                self.pipeline.tick(now);
                self.ticked = now;
            }
            // Once nothing is in flight any more, the next that comes is a guest.
            let look = self.pipeline.engine.in_flight() == 0 && self.polling.pays(For::Guests);
            let shown = self.rings.deliver(&mut self.pipeline, look, now);
            if self.leaving && self.pipeline.is_idle() && !self.pipeline.has_ready() {
                break;
            }
            self.wait(messages_left, now, shown);
        }
        self.pipeline.engine.unwatch(INBOX);
        self.pipeline.engine.finish();
        self.rings.leave_open();
        self.pipeline.engine
    }

    /// Counts the work since the last time: all that was done on a CPU, but for looking for something to do.
    fn count(&mut self, now: Nanos) {
        let cpu_ns = clock::thread_cpu_ns();
        let worked_ns = cpu_ns.saturating_sub(self.cpu_ns).saturating_sub(std::mem::take(&mut self.looked_ns));
        self.busy.add(worked_ns);
        (self.counted, self.cpu_ns) = (now, cpu_ns);
        if self.rest.end() {
            self.pipeline.outbox.to_owner(OwnerRequest::Stirred);
        }
    }

    /// Submits the batch, and blocks if nothing is left to do. `shown`: the time a moment ago, if somebody has looked at the clock.
    fn wait(&mut self, messages_left: bool, now: Nanos, shown: Option<Nanos>) {
        let busy = messages_left || self.rings.has_ready() || self.pipeline.has_ready();
        if busy {
            return self.pipeline.engine.wait(Wait::No);
        }
        let what = For::in_flight(self.pipeline.engine.in_flight());
        if self.look(what, shown) {
            return;
        }
        let begun = clock::now();
        let came = self.sleep(now);
        self.polling.slept(what, clock::now().since(begun), came);
    }

    /// Looks for something to do for a while, if that mostly comes to something. Whether it has.
    fn look(&mut self, what: For, shown: Option<Nanos>) -> bool {
        if self.rings.are_many() {
            return false;
        }
        let begun = shown.unwrap_or_else(clock::now);
        let Some(limit_ns) = self.polling.look(what, begun) else { return false };
        self.pipeline.engine.wait(Wait::No);
        let submitted = clock::now();
        let due = self.rings.next_due();
        loop {
            let came = self.pipeline.engine.take_news() || self.rings.sees_available() || !self.inbox.is_empty();
            let now = clock::now();
            let spent_ns = now.since(begun);
            let is_due = due.is_some_and(|due| now >= due);
            if came || is_due || spent_ns >= limit_ns {
                self.looked_ns += now.since(submitted);
                self.polling.looked(what, spent_ns, came);
                return came || is_due;
            }
            std::hint::spin_loop();
        }
    }

    /// Submits what is queued and sleeps until there is something to do, or it is time to look at something. Whether there is.
    fn sleep(&mut self, now: Nanos) -> bool {
        let wait = if self.rings.arm(&mut self.pipeline.engine, now) || !self.inbox.prepare_to_sleep() {
            Wait::No
        } else {
            self.longest_sleep().map_or(Wait::Forever, Wait::AtMost)
        };
        self.pipeline.engine.wait(wait);
        self.inbox.awake();
        wait == Wait::No || self.pipeline.engine.take_news()
    }

    /// How long it may sleep if nothing comes; `None`: for ever.
    fn longest_sleep(&self) -> Option<Duration> {
        let polled = self.rings.has_polled().then_some(POLL_INTERVAL);
        let tick = self.pipeline.wants_tick().then_some(TICK);
        // The turn has taken time since it asked for that.
        let due = self.rings.next_due().map(|due| Duration::from_nanos(due.since(clock::now())));
        [polled, tick, due].into_iter().flatten().min()
    }

    fn take_events(&mut self, now: Nanos) {
        while let Some(event) = self.pipeline.engine.take_event() {
            match event {
                Event::Readable { tag: INBOX, watched } => {
                    if !watched {
                        self.pipeline.engine.watch(self.inbox.wake_fd(), INBOX);
                    }
                }
                Event::WatchFailed { tag: INBOX } => panic!("the kernel cannot watch our own eventfd"),
                other => self.rings.event(other, &mut self.pipeline.engine, now),
            }
        }
    }

    /// Takes messages; true if there may be more.
    fn take_messages(&mut self, now: Nanos) -> bool {
        for _ in 0..MESSAGES_PER_TURN {
            let Some(message) = self.inbox.take() else { return false };
            self.take_message(message, now);
        }
        true
    }

    fn take_message(&mut self, message: ReactorMessage, now: Nanos) {
        let message = match message {
            ReactorMessage::Ring(command) => return self.rings.command(command, &mut self.pipeline, now),
            ReactorMessage::AddDisk { disk, file } => return self.add_disk(disk, file),
            ReactorMessage::RemoveDisk { disk } => return self.remove_disk(disk),
            ReactorMessage::LimitsChanged => return self.rings.ask_again(now),
            ReactorMessage::Alive(answer) => {
                // There is room for one answer; whoever asked may have given up.
                let _ = answer.try_send(());
                return;
            }
            // The pipeline looks in every turn.
            ReactorMessage::Room => return,
            ReactorMessage::Shutdown => {
                self.leaving = true;
                return self.rings.leave();
            }
            ReactorMessage::Allocated { ticket, result } => PipelineMessage::Allocated { ticket, result },
            ReactorMessage::Freed { ticket } => PipelineMessage::Freed { ticket },
            ReactorMessage::Committed { ticket, ok } => PipelineMessage::Committed { ticket, ok },
            ReactorMessage::ClaimReleased { vhd } => PipelineMessage::ClaimReleased { vhd },
            ReactorMessage::CopyDropped { by, disk, ok } => PipelineMessage::CopyDropped { by, disk, ok },
            ReactorMessage::Turn => PipelineMessage::Turn,
            ReactorMessage::DiskFailed { disk } => PipelineMessage::DiskFailed { disk },
            ReactorMessage::Fence { fence, disk } => PipelineMessage::Fence { fence, disk },
        };
        self.pipeline.handle(message, now);
    }

    fn add_disk(&mut self, disk: Arc<DiskState>, file: Arc<OwnedFd>) {
        if let Err(error) = self.pipeline.engine.add_disk(disk.id, file) {
            // Requests to it will fail one by one, each with a typed error to the owner.
            log::error!("disk {}: cannot be registered with io_uring, its requests will fail: {error}", disk.name);
        }
        self.pipeline.add_disk(disk);
    }

    fn remove_disk(&mut self, disk: DiskId) {
        self.pipeline.remove_disk(disk);
        if let Err(error) = self.pipeline.engine.remove_disk(disk) {
            log::error!("disk #{}: stays open in io_uring until the daemon ends: {error}", disk.0);
        }
    }
}
