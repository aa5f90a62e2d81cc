//! One simulated disk: the begin/end calls for engines, and [`BlockDev`] on top of them.

use std::io;
use std::sync::{Arc, Mutex};

use super::fault::{Fault, FaultKind, OpCounts, OpKind};
use super::model::{Content, DiskIndex, Event, OpId, SECTOR, SyncOutcome};
use super::{SimTrace, Spec};
use crate::base::units::SECTOR_SIZE;
use crate::disk::BlockDev;

/// One simulated disk. Cheap to clone; clones are the same disk.
#[derive(Clone, Debug)]
pub struct SimDisk {
    trace: SimTrace,
    index: DiskIndex,
    spec: Spec,
    /// Held over the read-modify-write of a partial block.
    edges: Arc<Mutex<()>>,
}

fn sectors_of(offset: u64, bytes: &[u8]) -> Vec<(u64, Content)> {
    let content = |chunk: &[u8]| -> Content {
        let zeros = chunk.iter().all(|&b| b == 0);
        (!zeros).then(|| Arc::new(chunk.try_into().expect("chunks of one sector")))
    };
    (offset / SECTOR_SIZE..).zip(bytes.chunks_exact(SECTOR)).map(|(sector, chunk)| (sector, content(chunk))).collect()
}

impl SimDisk {
    pub(super) fn new_on(trace: SimTrace, index: DiskIndex, spec: Spec) -> SimDisk {
        SimDisk { trace, index, spec, edges: Arc::default() }
    }

    /// A disk on a trace of its own.
    ///
    /// # Panics
    /// As [`SimTrace::add_disk`].
    #[must_use]
    pub fn new(size: u64, block_size: u32) -> SimDisk {
        SimTrace::new().add_disk(size, block_size)
    }

    /// The history it belongs to.
    #[must_use]
    pub fn trace(&self) -> &SimTrace {
        &self.trace
    }

    /// How many operations there have been since the disk was made.
    #[must_use]
    pub fn op_counts(&self) -> OpCounts {
        self.trace.lock().faults[self.index].counts
    }

    /// Plans a fault.
    pub fn inject(&self, fault: Fault) {
        self.trace.lock().faults[self.index].add(fault);
    }

    /// Forgets all planned faults.
    pub fn clear_faults(&self) {
        self.trace.lock().faults[self.index].clear();
    }

    /// While paused, calls through [`BlockDev`] hang. Begun operations of an engine are the engine's to hold back.
    pub fn set_paused(&self, paused: bool) {
        self.trace.lock().paused[self.index] = paused;
        self.trace.shared.resumed.notify_all();
    }

    /// How long each sync through [`BlockDev`] takes from now on.
    pub fn set_slow(&self, sync: std::time::Duration) {
        self.trace.lock().slow[self.index] = sync;
    }

    /// Changes the medium behind everybody's back, any offset: durable at once. For corruption and for initial content.
    ///
    /// # Panics
    /// Beyond the end of the disk.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        assert!(offset + bytes.len() as u64 <= self.spec.size, "poke beyond the end");
        let mut state = self.trace.lock();
        let (start, mut whole, skip) = widen(offset, bytes.len(), SECTOR_SIZE);
        state.read(self.index, start, &mut whole);
        whole[skip..skip + bytes.len()].copy_from_slice(bytes);
        let event = Event::Poke { disk: self.index, sectors: Arc::new(sectors_of(start, &whole)) };
        state.record(event);
    }

    /// Reads what is visible; may be short (a fault) and then says how much was read. For engines.
    ///
    /// # Errors
    /// `EINVAL` unless block-aligned, `UnexpectedEof` beyond the end, or a planned fault.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<usize> {
        self.check(offset, into.len() as u64)?;
        let mut state = self.trace.lock();
        let len = match state.faults[self.index].next(OpKind::Read) {
            Some(FaultKind::Error(errno)) => return Err(io::Error::from_raw_os_error(errno)),
            Some(FaultKind::Short) => {
                let block = self.spec.block_size as usize;
                into.len() / 2 / block * block
            }
            Some(FaultKind::Lie) | None => into.len(),
        };
        state.read(self.index, offset, &mut into[..len]);
        Ok(len)
    }

    /// Submits a write. Nobody sees it before [`SimDisk::end_write`], but a power cut may leave any of its sectors. For
    /// engines.
    ///
    /// # Errors
    /// `EINVAL` unless block-aligned, `UnexpectedEof` beyond the end.
    pub fn begin_write(&self, offset: u64, bytes: &[u8]) -> io::Result<OpId> {
        self.check(offset, bytes.len() as u64)?;
        let sectors = Arc::new(sectors_of(offset, bytes));
        let mut state = self.trace.lock();
        let op = state.new_op();
        state.record(Event::WriteBegin { op, disk: self.index, sectors });
        Ok(op)
    }

    /// Ends a write.
    ///
    /// # Errors
    /// A planned fault: the first half of the sectors is written, the others are old and after a power cut old or new.
    ///
    /// # Panics
    /// If `op` is not a write in flight.
    pub fn end_write(&self, op: OpId) -> io::Result<()> {
        self.end_write_as(op, OpKind::Write)
    }

    fn end_write_as(&self, op: OpId, kind: OpKind) -> io::Result<()> {
        let mut state = self.trace.lock();
        let all = state.model.sectors_in_flight(op);
        match state.faults[self.index].next(kind) {
            Some(FaultKind::Error(errno)) => {
                state.record(Event::WriteEnd { op, applied: all / 2 });
                Err(io::Error::from_raw_os_error(errno))
            }
            Some(FaultKind::Short | FaultKind::Lie) | None => {
                state.record(Event::WriteEnd { op, applied: all });
                Ok(())
            }
        }
    }

    /// Submits a sync: it will cover the writes that have ended by now. For engines.
    #[must_use]
    pub fn begin_sync(&self) -> OpId {
        let mut state = self.trace.lock();
        let op = state.new_op();
        state.record(Event::SyncBegin { op, disk: self.index });
        op
    }

    /// Ends a sync.
    ///
    /// # Errors
    /// A planned fault; what it should have covered will never be durable.
    ///
    /// # Panics
    /// If `op` is not a sync in flight.
    pub fn end_sync(&self, op: OpId) -> io::Result<()> {
        let mut state = self.trace.lock();
        let (outcome, result) = match state.faults[self.index].next(OpKind::Sync) {
            Some(FaultKind::Error(errno)) => (SyncOutcome::Failed, Err(io::Error::from_raw_os_error(errno))),
            Some(FaultKind::Lie) => (SyncOutcome::Lied, Ok(())),
            Some(FaultKind::Short) | None => (SyncOutcome::Durable, Ok(())),
        };
        state.record(Event::SyncEnd { op, outcome });
        result
    }

    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_end(offset, len)?;
        let block = u64::from(self.spec.block_size);
        if offset.is_multiple_of(block) && len.is_multiple_of(block) {
            Ok(())
        } else {
            Err(io::Error::from_raw_os_error(libc::EINVAL))
        }
    }

    fn check_end(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.spec.size => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn wait_until_resumed(&self) {
        let mut state = self.trace.lock();
        while state.paused[self.index] {
            state = self.trace.shared.resumed.wait(state).expect("no panic while the trace is locked");
        }
    }

    fn read_whole(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match self.read(offset + done as u64, &mut into[done..])? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                n => done += n,
            }
        }
        Ok(())
    }
}

/// Whole blocks around `len` bytes at `offset`: their offset, a buffer for them, and where the bytes start in it.
fn widen(offset: u64, len: usize, block: u64) -> (u64, Vec<u8>, usize) {
    let start = offset / block * block;
    let end = (offset + len as u64).div_ceil(block) * block;
    let index = |n: u64| usize::try_from(n).expect("fits in memory");
    (start, vec![0; index(end - start)], index(offset - start))
}

impl BlockDev for SimDisk {
    fn size(&self) -> u64 {
        self.spec.size
    }

    fn block_size(&self) -> u32 {
        self.spec.block_size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check_end(offset, into.len() as u64)?;
        self.wait_until_resumed();
        let (start, mut whole, skip) = widen(offset, into.len(), u64::from(self.spec.block_size));
        self.read_whole(start, &mut whole)?;
        into.copy_from_slice(&whole[skip..skip + into.len()]);
        Ok(())
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.check_end(offset, from.len() as u64)?;
        self.wait_until_resumed();
        if self.check(offset, from.len() as u64).is_ok() {
            let op = self.begin_write(offset, from)?;
            return self.end_write(op);
        }
        let _edges = self.edges.lock().expect("no panic while the edges are locked");
        let (start, mut whole, skip) = widen(offset, from.len(), u64::from(self.spec.block_size));
        self.read_whole(start, &mut whole)?;
        whole[skip..skip + from.len()].copy_from_slice(from);
        let op = self.begin_write(start, &whole)?;
        self.end_write(op)
    }

    fn sync(&self) -> io::Result<()> {
        self.wait_until_resumed();
        let takes = self.trace.lock().slow[self.index];
        std::thread::sleep(takes);
        let op = self.begin_sync();
        self.end_sync(op)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.check_end(offset, len)?;
        self.wait_until_resumed();
        let op = {
            let mut state = self.trace.lock();
            let range = offset.div_ceil(SECTOR_SIZE)..(offset + len) / SECTOR_SIZE;
            let sectors = Arc::new(state.model.disks[self.index].punchable(range));
            let op = state.new_op();
            state.record(Event::WriteBegin { op, disk: self.index, sectors });
            op
        };
        self.end_write_as(op, OpKind::Punch)
    }
}
