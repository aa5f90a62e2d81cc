//! The guests of a measurement: vhost-user-blk frontends in a process of their own, so that nothing of them is counted as the
//! daemon's. One thread serves them all, because a machine has fewer CPUs than guests. Each has memory and a ring of its own.
//!
//! Requests are made by the clock, in turns on all VHDs: one each `1 / rate` seconds, whether earlier ones have completed or not.
//! Between two of them the thread sleeps, until the next is due or a guest is signalled. If it sleeps too long, which happens
//! when the machine has other things to do, what it has missed is left out and not made up for: that would come in lots, which
//! on one VHD cost the daemon far less than on many.

use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use lab::frontend::{Frontend, Options};
use lab::helper;
use lab::model::Random;
use lab::ring::{Op, Ring, Shape};
use lab::tally::{Outcome, Tally};

/// What a process is told that is to be the guests, before its [`Order`].
pub const ARGUMENT: &str = "--as-crowd";

/// Bytes of a request.
const LEN: u64 = 4096;

/// Bytes of a request that fills a VHD.
pub const FILL_LEN: u64 = 64 << 10;

/// Rings as guests have them.
const SHAPE: Shape = Shape { size: 128, buffer_len: FILL_LEN };

const SECTOR: u64 = 512;

/// Longest time without an end, however long the run is.
const PATIENCE: Duration = Duration::from_secs(1200);

/// Events taken at a time.
const EVENTS: usize = 64;

/// What the guests do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// One for each VHD.
    pub sockets: Vec<PathBuf>,
    /// Bytes of each VHD that are written at first, and read from then on.
    pub size: u64,
    /// Requests a second, over all VHDs.
    pub rate: u64,
    pub warm_up: Duration,
    pub time: Duration,
    pub seed: u64,
}

/// As [`helper::Helper`] wants it: attaches, fills the VHDs and says that it is ready; keeps them busy for a while when told to,
/// and quiet otherwise; lets go of them when its input ends.
pub fn main(order: &str) -> ExitCode {
    helper::main("guests", || {
        let order: Order = serde_json::from_str(order).context("what to do")?;
        helper::watch(PATIENCE);
        raise_limit()?;
        sleep_exactly()?;
        let mut crowd = Crowd::attach(&order)?;
        crowd.fill(order.size)?;
        crowd.run(&order, order.warm_up)?;
        helper::serve(|| crowd.run(&order, order.time))
    })
}

/// A guest.
struct Guest {
    frontend: Frontend,
    /// Slots of its ring that no request uses.
    idle: Vec<u16>,
    /// By slot.
    submitted: Vec<Instant>,
}

struct Crowd {
    guests: Vec<Guest>,
    /// Tells of signals of the devices, by the place of the guest.
    epoll: Epoll,
    random: Random,
    in_flight: usize,
}

impl Crowd {
    fn attach(order: &Order) -> Result<Crowd> {
        let epoll = Epoll::new()?;
        let mut guests = Vec::new();
        for socket in &order.sockets {
            let mut frontend = Frontend::connect(socket, &Options::cloud_hypervisor(1, SHAPE))?;
            ensure!(frontend.capacity() * SECTOR >= order.size, "{} is short", socket.display());
            // Each signal is an edge, so that none needs to be read.
            let event = EpollEvent::new(EventSet::IN | EventSet::EDGE_TRIGGERED, guests.len() as u64);
            epoll.ctl(ControlOperation::Add, frontend.ring().call.as_raw_fd(), event)?;
            let idle = (0..SHAPE.slots()).rev().collect();
            guests.push(Guest { frontend, idle, submitted: vec![Instant::now(); SHAPE.slots().into()] });
        }
        Ok(Crowd { guests, epoll, random: Random::new(order.seed), in_flight: 0 })
    }

    /// Writes what will be read, with data that does not compress.
    fn fill(&mut self, size: u64) -> Result<()> {
        let mut data = vec![0; usize::try_from(FILL_LEN)?];
        ensure!(size.is_multiple_of(FILL_LEN), "{size} bytes of a VHD cannot be filled");
        for guest in &mut self.guests {
            let ring = guest.frontend.ring();
            for at in (0..size).step_by(data.len()) {
                data.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&self.random.next_u64().to_le_bytes()));
                ring.write(at / SECTOR, &data)?;
            }
            ring.flush()?;
            // What waited for each of these looked again before it slept, and so need not have asked for the next signal.
            ring.arm()?;
        }
        Ok(())
    }

    /// Keeps all VHDs busy for a while.
    fn run(&mut self, order: &Order, time: Duration) -> Result<Outcome> {
        let interval = Duration::from_secs(1) / u32::try_from(order.rate)?;
        let mut tally = Tally::default();
        let (mut due, mut turn) = (Duration::ZERO, 0);
        loop {
            let now = tally.started.elapsed();
            if due < time && due <= now {
                tally.kicks += u64::from(self.request(turn, order.size)?);
                turn = (turn + 1) % self.guests.len();
                due += interval;
                due += interval * u32::try_from(now.saturating_sub(due).as_nanos() / interval.as_nanos())?;
            }
            if due >= time && self.in_flight == 0 {
                return Ok(tally.outcome());
            }
            let left = (due < time).then(|| due.saturating_sub(tally.started.elapsed()));
            self.sleep(left, &mut tally)?;
        }
    }

    /// Makes a request on a VHD, unless its ring is full. Whether the device wanted to be told.
    fn request(&mut self, place: usize, size: u64) -> Result<bool> {
        let guest = &mut self.guests[place];
        let Some(slot) = guest.idle.pop() else { return Ok(false) };
        guest.submitted[usize::from(slot)] = Instant::now();
        let at = self.random.below(size / LEN) * LEN;
        let ring = guest.frontend.ring();
        ring.push(slot, Op::In, at / SECTOR, LEN)?;
        self.in_flight += 1;
        ring.kick()
    }

    /// Sleeps until a device has completed something or the time is up, and takes what has completed.
    fn sleep(&mut self, limit: Option<Duration>, tally: &mut Tally) -> Result<()> {
        let mut events = [EpollEvent::default(); EVENTS];
        let count = wait(&self.epoll, limit, &mut events)?;
        for event in &events[..count] {
            tally.wakeups += 1;
            self.take(usize::try_from(event.data())?, tally)?;
        }
        Ok(())
    }

    fn take(&mut self, place: usize, tally: &mut Tally) -> Result<()> {
        let Guest { frontend, idle, submitted } = &mut self.guests[place];
        let ring: &mut Ring = frontend.ring();
        loop {
            tally.ended = Instant::now();
            while let Some((slot, status)) = ring.completed()? {
                ensure!(status == 0, "a read of VHD {place} failed with status {status}");
                tally.add(tally.ended - submitted[usize::from(slot)]);
                idle.push(slot);
                self.in_flight -= 1;
            }
            if !ring.arm()? {
                return Ok(());
            }
        }
    }
}

/// Waits for events, to the nanosecond: [`Epoll::wait`] counts milliseconds, in which many requests are due.
fn wait(epoll: &Epoll, limit: Option<Duration>, events: &mut [EpollEvent]) -> Result<usize> {
    let limit = match limit {
        Some(limit) => {
            Some(libc::timespec { tv_sec: i64::try_from(limit.as_secs())?, tv_nsec: i64::from(limit.subsec_nanos()) })
        }
        None => None,
    };
    let limit = limit.as_ref().map_or(std::ptr::null(), std::ptr::from_ref);
    let room = i32::try_from(events.len())?;
    // SAFETY: `EpollEvent` is `libc::epoll_event` by another name (`repr(transparent)`); there is room for so many; the limit
    // is null or outlives the call.
    let count =
        unsafe { libc::epoll_pwait2(epoll.as_raw_fd(), events.as_mut_ptr().cast(), room, limit, std::ptr::null()) };
    if count < 0 {
        let error = io::Error::last_os_error();
        ensure!(error.kind() == io::ErrorKind::Interrupted, error);
    }
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Makes timers of this thread as exact as the clock: the kernel would otherwise round them up to 50 us, the time between two
/// requests.
fn sleep_exactly() -> Result<()> {
    // SAFETY: takes no pointer.
    let done = unsafe { libc::prctl(libc::PR_SET_TIMERSLACK, 1) };
    ensure!(done == 0, io::Error::last_os_error());
    Ok(())
}

/// Each guest has half a dozen descriptors, and the usual soft limit is for programs that use `select`.
fn raise_limit() -> Result<()> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure that outlives the call.
    ensure!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } == 0, io::Error::last_os_error());
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: as above.
    ensure!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } == 0, io::Error::last_os_error());
    Ok(())
}
