//! The guest of a measurement: a vhost-user-blk frontend in a process of its own, so that nothing of it is counted as the
//! daemon's. It keeps a number of requests in flight on each of its queues, a thread for each.
//!
//! It treats its rings as Linux does: sleeps until it is signalled, wants no more signals while it takes what has completed but
//! wants them again while it asks for the next lot (in Linux the handler of the interrupt does the former, and others the latter),
//! and rings the bell if the device wants to hear it.

use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use virtio_driver::{
    EventFd, QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioBlkTransport, VirtioFeatureFlags,
};
use vm_memory::FileOffset;
use vm_memory::mmap::MmapRegion;

use super::places::{Course, Places};
use super::relay::Relay;
use lab::helper::{self, Helper};
use lab::model::Random;
use lab::tally::{Outcome, Tally};
use lab::tools::Fill;

/// What a process is told that is to be a frontend, before its [`Order`].
pub const ARGUMENT: &str = "--as-frontend";

/// Descriptors of a ring. A request takes three.
const QUEUE_SIZE: u16 = 128;

/// Longest time without an end, besides that of the measurement.
const PATIENCE: Duration = Duration::from_secs(60);

/// One measurement.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    pub socket: PathBuf,
    pub queues: u16,
    /// Requests in flight, on each queue.
    pub depth: u16,
    pub write: bool,
    /// Bytes of a request.
    pub len: u64,
    /// Bytes of the disk that requests go to.
    pub size: u64,
    pub warm_up: Duration,
    pub time: Duration,
    /// Look for completions all the time rather than sleep.
    pub poll: bool,
    /// What is written.
    pub fill: Fill,
    pub seed: u64,
    pub places: Places,
    /// Each write is followed by a FLUSH, and has completed with that.
    pub flush: bool,
    /// What is in flight is kept in memory that outlives the backend, as QEMU has it.
    pub inflight: bool,
}

/// As [`Helper`] wants it: says that it is ready, measures once when told to, and lets go of the disk when its input ends.
pub fn main(order: &str) -> ExitCode {
    helper::main("frontend", || talk(order))
}

fn talk(order: &str) -> Result<()> {
    let order: Order = serde_json::from_str(order).context("what to measure")?;
    helper::watch(order.warm_up + order.time + PATIENCE);
    let mut disk = Disk::attach(&order)?;
    disk.run(&order, order.warm_up)?;
    helper::serve(|| disk.run(&order, order.time))
}

/// Writes a whole disk once.
///
/// # Errors
/// What the backend refuses.
pub fn fill(socket: &std::path::Path, size: u64, fill: Fill) -> Result<()> {
    const CHUNK: u64 = 1 << 20;
    let order = Order {
        socket: socket.to_owned(),
        queues: 1,
        depth: 4,
        write: true,
        len: CHUNK,
        size,
        warm_up: Duration::ZERO,
        time: Duration::ZERO,
        poll: false,
        fill,
        seed: 7,
        places: Places::Random,
        flush: false,
        inflight: false,
    };
    let mut disk = Disk::attach(&order)?;
    let lane = &mut disk.lanes[0];
    let mut tally = Tally::default();
    let mut next = (0..size / CHUNK).map(|index| index * CHUNK);
    let mut idle: Vec<u16> = (0..order.depth).collect();
    loop {
        while let Some(slot) = idle.pop() {
            let Some(offset) = next.next() else { break };
            lane.renew(&order, slot)?;
            lane.push(&order, slot, offset, Instant::now())?;
        }
        if lane.in_flight == 0 {
            return Ok(());
        }
        lane.ring_bell(&mut tally)?;
        lane.await_completion(false, &mut tally)?;
        lane.take(false, &mut tally, &mut idle)?;
    }
}

/// An attached disk.
struct Disk {
    // Declared before the transport, which owns the memory that the queues are in: fields drop in order.
    lanes: Vec<Lane>,
    _transport: Box<VirtioBlkTransport>,
    _relay: Relay,
}

/// A request in flight.
struct Request {
    slot: u16,
    submitted: Instant,
    /// A FLUSH is to follow.
    flush: bool,
}

/// A queue with the buffers of its requests.
struct Lane {
    queue: VirtioBlkQueue<'static, Request>,
    bell: Box<dyn QueueNotifier>,
    call: Arc<EventFd>,
    buffers: MmapRegion,
    random: Random,
    in_flight: u16,
    /// Writes that have completed and wait for their FLUSH to be asked for.
    unflushed: Vec<Request>,
}

impl Disk {
    fn attach(order: &Order) -> Result<Disk> {
        let relay = Relay::new(&order.socket, order.inflight.then_some((order.queues, QUEUE_SIZE)))?;
        let path = relay.socket.to_str().context("a socket whose path is UTF-8")?;
        let virtio = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        let features = virtio.bits() | (VirtioBlkFeatureFlags::all() - VirtioBlkFeatureFlags::SECURE_ERASE).bits();
        let transport = VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, features);
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(transport.with_context(|| format!("attaching to {path}"))?);
        ensure!(transport.get_features() & virtio.bits() == virtio.bits(), "the backend lacks {virtio:?}");
        let config = transport.get_config()?;
        let capacity = u64::from(config.capacity) * 512;
        ensure!(capacity >= order.size, "a disk of {capacity} bytes is shorter than {}", order.size);
        let regions: Result<Vec<_>> = (0..order.queues).map(|_| share(order, &mut *transport)).collect();
        let queues = VirtioBlkQueue::setup_queues(&mut *transport, order.queues.into(), QUEUE_SIZE)?;
        let lane = |(index, (queue, buffers))| Lane {
            queue,
            bell: transport.get_submission_notifier(index),
            call: transport.get_completion_fd(index),
            buffers,
            random: Random::new(order.seed + index as u64),
            in_flight: 0,
            unflushed: Vec::new(),
        };
        let mut lanes: Vec<Lane> = queues.into_iter().zip(regions?).enumerate().map(lane).collect();
        for lane in &mut lanes {
            (0..order.depth).try_for_each(|slot| lane.renew(order, slot))?;
        }
        Ok(Disk { lanes, _transport: transport, _relay: relay })
    }

    /// Keeps all queues busy for a while.
    fn run(&mut self, order: &Order, time: Duration) -> Result<Outcome> {
        let tallies: Vec<Result<Tally>> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                self.lanes.iter_mut().map(|lane| scope.spawn(move || lane.run(order, time))).collect();
            threads.into_iter().map(|thread| thread.join().expect("a thread that does not panic")).collect()
        });
        let mut all = Tally::default();
        for tally in tallies {
            all.join(&tally?);
        }
        Ok(all.outcome())
    }
}

/// Memory for the buffers of one queue, shared with the backend.
fn share(order: &Order, transport: &mut VirtioBlkTransport) -> Result<MmapRegion> {
    let size = order.len * u64::from(order.depth);
    // A file without a name in shared memory, as a VMM's memfd.
    let file = tempfile::tempfile_in("/dev/shm").context("shared memory in /dev/shm")?;
    file.set_len(size)?;
    let region = MmapRegion::from_file(FileOffset::new(file.try_clone()?, 0), usize::try_from(size)?)?;
    transport.map_mem_region(region.as_ptr() as usize, region.size(), file.as_raw_fd(), 0)?;
    Ok(region)
}

impl Lane {
    fn run(&mut self, order: &Order, time: Duration) -> Result<Tally> {
        let mut tally = Tally::default();
        let mut idle: Vec<u16> = (0..order.depth).collect();
        // Before the clock starts: an order of all places takes a while to make.
        let mut course = Course::new(order, &mut self.random);
        tally.started = Instant::now();
        let mut now = tally.started;
        loop {
            self.push_flushes()?;
            if now - tally.started < time {
                for slot in idle.drain(..) {
                    let Some(offset) = course.next(&mut self.random) else { break };
                    self.push(order, slot, offset, now)?;
                }
            }
            self.ring_bell(&mut tally)?;
            if self.in_flight == 0 {
                return Ok(tally);
            }
            self.await_completion(order.poll, &mut tally)?;
            now = self.take(order.poll, &mut tally, &mut idle)?;
        }
    }

    /// Where the buffer of a request is.
    fn buffer(&self, order: &Order, slot: u16) -> Result<(*mut u8, usize)> {
        let len = usize::try_from(order.len)?;
        let at = usize::from(slot) * len;
        ensure!(at + len <= self.buffers.size(), "there is no buffer {slot}");
        Ok((self.buffers.as_ptr().wrapping_add(at), len))
    }

    /// Puts new data into a buffer.
    fn renew(&mut self, order: &Order, slot: u16) -> Result<()> {
        let (pointer, len) = self.buffer(order, slot)?;
        // SAFETY: within the mapping, which `self` owns and nobody else in this process looks at; the slot is idle.
        let buffer = unsafe { std::slice::from_raw_parts_mut(pointer, len) };
        order.fill.put(&mut self.random, buffer);
        Ok(())
    }

    fn push(&mut self, order: &Order, slot: u16, offset: u64, submitted: Instant) -> Result<()> {
        let (pointer, len) = self.buffer(order, slot)?;
        let request = Request { slot, submitted, flush: order.flush };
        if order.write {
            // SAFETY: the buffer lies in the mapping, which outlives the queue; nobody else uses it until completion.
            unsafe { self.queue.write_raw(offset, pointer, len, request) }?;
        } else {
            // SAFETY: as above.
            unsafe { self.queue.read_raw(offset, pointer, len, request) }?;
        }
        self.in_flight += 1;
        Ok(())
    }

    /// Asks for those FLUSHes that follow writes.
    fn push_flushes(&mut self) -> Result<()> {
        for request in self.unflushed.drain(..) {
            self.queue.flush(Request { flush: false, ..request })?;
        }
        Ok(())
    }

    fn ring_bell(&mut self, tally: &mut Tally) -> Result<()> {
        if self.queue.avail_notif_needed() {
            tally.kicks += 1;
            self.bell.notify()?;
        }
        Ok(())
    }

    /// Returns when something has completed.
    fn await_completion(&mut self, poll: bool, tally: &mut Tally) -> Result<()> {
        while !self.queue.completions().has_next() {
            if poll {
                std::hint::spin_loop();
            } else {
                self.sleep()?;
                tally.wakeups += 1;
            }
        }
        Ok(())
    }

    /// Sleeps until the device gives a signal.
    fn sleep(&self) -> Result<()> {
        let mut entry = libc::pollfd { fd: self.call.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry that outlives the call.
        let ready = unsafe { libc::poll(&raw mut entry, 1, -1) };
        ensure!(ready == 1, std::io::Error::last_os_error());
        self.call.read()?;
        Ok(())
    }

    /// Takes all that has completed; when that was. Signals are off meanwhile; if this one sleeps at all, they are on afterwards.
    fn take(&mut self, poll: bool, tally: &mut Tally, idle: &mut Vec<u16>) -> Result<Instant> {
        loop {
            self.queue.set_used_notif_enabled(false);
            let now = self.take_all(tally, idle)?;
            self.queue.set_used_notif_enabled(!poll);
            if poll || !self.queue.completions().has_next() {
                return Ok(now);
            }
        }
    }

    fn take_all(&mut self, tally: &mut Tally, idle: &mut Vec<u16>) -> Result<Instant> {
        let now = Instant::now();
        for completion in self.queue.completions() {
            ensure!(completion.ret == 0, "a request failed: {}", std::io::Error::from_raw_os_error(-completion.ret));
            if completion.context.flush {
                self.unflushed.push(completion.context);
                continue;
            }
            let Request { slot, submitted, .. } = completion.context;
            tally.add(now - submitted);
            idle.push(slot);
            self.in_flight -= 1;
        }
        tally.ended = now;
        Ok(now)
    }
}

/// Runs a frontend in a process of its own. `measured` is called once before and once after the measurement, when no request is
/// in flight.
///
/// # Errors
/// What the frontend says.
pub fn run<T>(order: &Order, mut measured: impl FnMut() -> Result<T>) -> Result<(Outcome, T, T)> {
    let mut helper = Helper::start(ARGUMENT, order)?;
    let before = measured()?;
    let outcome = helper.go()?;
    let after = measured()?;
    helper.finish()?;
    Ok((outcome, before, after))
}
