//! Random requests on one ring, with a model that knows what each read must return.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Result, ensure};

use super::frontend::{Frontend, Options};
use super::model::{FlushCover, Model, Random};
use super::ring::Op;

/// Requests in flight.
const DEPTH: u16 = 32;

/// Longest request, in sectors.
const SECTORS_MAX: u64 = 2048;

/// What may be asked of a disk.
#[derive(Clone, Copy, Debug)]
pub struct Terms {
    /// Sectors of its logical blocks: every request is a multiple.
    pub block: u64,
    /// Sectors of the ranges that a discard zeroes whole.
    pub discard: u64,
    /// Whether a completed write is durable without a flush.
    pub writethrough: bool,
    /// Whether whatever has completed outlives a SIGKILL of the backend.
    pub outlives: bool,
}

/// A load on one disk.
#[derive(Debug)]
pub struct Load {
    /// What the disk must hold.
    pub model: Model,
    terms: Terms,
    random: Random,
    in_flight: Vec<Option<InFlight>>,
    /// Sectors that the disk has grown by, and that are still to be read.
    unread: Range<u64>,
    /// Sectors that the disk had at first.
    first_size: u64,
    /// Sectors that the load knows of, for whoever waits until it knows of more.
    pub known: Arc<AtomicU64>,
    /// Requests that completed, for whoever waits until there are more.
    pub progress: Arc<AtomicU64>,
    /// Requests that completed behind the first end of the disk.
    pub beyond: u64,
    /// Requests that completed, and flushes among them.
    pub completed: u64,
    /// Flushes that completed.
    pub flushes: u64,
}

#[derive(Clone, Debug)]
struct InFlight {
    first: u64,
    count: u64,
    kind: Kind,
}

#[derive(Clone, Debug)]
enum Kind {
    Read,
    Write(u32),
    Zero(u32),
    Flush(FlushCover),
}

impl Load {
    /// A load on a disk that was never written.
    #[must_use]
    pub fn new(disk: u64, sectors: u64, terms: Terms, seed: u64) -> Load {
        let model = Model::new(disk, sectors);
        Load {
            model,
            terms,
            random: Random::new(seed),
            in_flight: Vec::new(),
            unread: 0..0,
            first_size: sectors,
            known: Arc::new(AtomicU64::new(sectors)),
            progress: Arc::default(),
            beyond: 0,
            completed: 0,
            flushes: 0,
        }
    }

    /// The disk has another size. Nothing may be in flight when it shrinks.
    pub fn resize(&mut self, sectors: u64) {
        let before = self.model.sectors();
        self.model.resize(sectors);
        self.unread = before..before.max(sectors);
        self.known.store(sectors, Ordering::Relaxed);
    }

    /// Keeps the ring full until `stop`, which may also be the moment when the backend was killed. If the backend tells of a new
    /// size, the load reads what is new, and uses it from then on.
    ///
    /// # Errors
    /// A request fails or a read returns the wrong data before that.
    pub fn run(&mut self, frontend: &mut Frontend, stop: &AtomicBool) -> Result<()> {
        let ring = frontend.ring();
        self.in_flight = vec![None; usize::from(DEPTH.min(ring.shape.slots()))];
        let slots = DEPTH.min(ring.shape.slots());
        while !stop.load(Ordering::Relaxed) {
            if let Some(sectors) = frontend.resized()? {
                ensure!(sectors >= self.model.sectors(), "{sectors} sectors: less than before, under a running load");
                self.resize(sectors);
            }
            for slot in 0..slots {
                if self.in_flight[usize::from(slot)].is_none() {
                    self.submit(frontend, slot)?;
                }
            }
            let ring = frontend.ring();
            ring.kick()?;
            ring.wait(Duration::from_millis(20))?;
            while let Some((slot, status)) = frontend.ring().completed()? {
                self.complete(frontend, slot, status)?;
            }
        }
        Ok(())
    }

    /// Whether whatever completes from now on will be there after a SIGKILL.
    pub fn set_outlives(&mut self, outlives: bool) {
        self.terms.outlives = outlives;
    }

    /// Reads the whole disk of a backend that was killed and started again, and checks every sector.
    ///
    /// # Errors
    /// Flushed data is missing, or something is there that was never written.
    pub fn verify(&mut self, frontend: &mut Frontend) -> Result<()> {
        for first in (0..self.model.sectors()).step_by(usize::try_from(SECTORS_MAX)?) {
            let count = SECTORS_MAX.min(self.model.sectors() - first);
            let data = frontend.ring().read(first, count * 512)?;
            self.model.check_after_crash(first, &data)?;
        }
        frontend.ring().flush()?;
        self.model.settled();
        Ok(())
    }

    fn submit(&mut self, frontend: &mut Frontend, slot: u16) -> Result<()> {
        let ring = frontend.ring();
        let choice = self.random.below(100);
        if choice < 6 {
            ring.push(slot, Op::Flush, 0, 0)?;
            let cover = self.model.flush();
            self.in_flight[usize::from(slot)] = Some(InFlight { first: 0, count: 0, kind: Kind::Flush(cover) });
            return Ok(());
        }
        let discard = choice < 10;
        let unread = self.next_unread();
        let grown = unread.is_some();
        let Some((first, count)) = unread.or_else(|| self.free_range(discard)) else { return Ok(()) };
        let kind = if grown {
            ring.push(slot, Op::In, first, count * 512)?;
            Kind::Read
        } else if discard {
            let len = ring.fill_range(slot, first, u32::try_from(count)?, false)?;
            ring.push(slot, Op::Discard, 0, len)?;
            Kind::Zero(self.model.zero(first, count))
        } else if choice < 16 {
            let len = ring.fill_range(slot, first, u32::try_from(count)?, choice.is_multiple_of(2))?;
            ring.push(slot, Op::WriteZeroes, 0, len)?;
            Kind::Zero(self.model.zero(first, count))
        } else if choice < 80 {
            let (sequence, data) = self.model.write(first, count);
            ring.fill(slot, &data)?;
            ring.push(slot, Op::Out, first, count * 512)?;
            Kind::Write(sequence)
        } else {
            ring.push(slot, Op::In, first, count * 512)?;
            Kind::Read
        };
        self.in_flight[usize::from(slot)] = Some(InFlight { first, count, kind });
        Ok(())
    }

    fn complete(&mut self, frontend: &mut Frontend, slot: u16, status: u8) -> Result<()> {
        let request = self.in_flight[usize::from(slot)].take();
        let Some(InFlight { first, count, kind }) = request else {
            anyhow::bail!("slot {slot} completed, which was idle");
        };
        ensure!(status == 0, "{kind:?} of {count} sectors at {first}: status {status}");
        self.completed += 1;
        self.progress.store(self.completed, Ordering::Relaxed);
        self.beyond += u64::from(first + count > self.first_size);
        match kind {
            Kind::Read => self.model.check_read(first, &frontend.ring().data(slot, count * 512)?)?,
            Kind::Write(sequence) if self.terms.writethrough => self.model.completed_durably(sequence),
            Kind::Write(sequence) | Kind::Zero(sequence) if self.terms.outlives => {
                self.model.completed_durably(sequence);
            }
            Kind::Write(sequence) | Kind::Zero(sequence) => self.model.completed(sequence),
            Kind::Flush(cover) => {
                self.model.flushed(&cover);
                self.flushes += 1;
            }
        }
        Ok(())
    }

    /// A random range that no request in flight touches: mostly short, sometimes up to 1 MiB.
    fn free_range(&mut self, discard: bool) -> Option<(u64, u64)> {
        let unit = if discard { self.terms.discard } else { self.terms.block };
        let most = if self.random.below(10) == 0 { SECTORS_MAX } else { SECTORS_MAX / 16 };
        let count = unit * (1 + self.random.below((most / unit).max(1)));
        let places = (self.model.sectors() - count) / unit + 1;
        let first = unit * self.random.below(places);
        (!self.is_busy(first, count)).then_some((first, count))
    }

    /// The next part of the sectors that are new, unless a request in flight touches it.
    fn next_unread(&mut self) -> Option<(u64, u64)> {
        let first = self.unread.start;
        let count = SECTORS_MAX.min(self.unread.end - first);
        if count == 0 || self.is_busy(first, count) {
            return None;
        }
        self.unread.start += count;
        Some((first, count))
    }

    /// Whether a request in flight touches the range.
    fn is_busy(&self, first: u64, count: u64) -> bool {
        self.in_flight.iter().flatten().any(|r| first < r.first + r.count && r.first < first + count)
    }
}

/// The frontend that a load needs.
///
/// # Errors
/// What the backend refuses.
pub fn connect(socket: &std::path::Path) -> Result<Frontend> {
    Frontend::connect(socket, &Options::for_data())
}
