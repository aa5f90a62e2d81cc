//! The engine that runs on simulated disks: the same callers as in production, every order of completions.
//!
//! Nothing happens by itself. What was submitted waits until a driver lets it go on: [`SimEngine::step`] in random order,
//! [`SimEngine::finish`] one operation by name. Faults are those of the simulated disks; a disk can also be held, as if it
//! hung.
//!
//! * Writes and syncs *begin* when they are submitted, the earliest moment the kernel could begin them: a caller that submits
//!   a sync before its writes have completed gets nothing for it.
//! * A read may see the disk at any moment between submission and completion.
//! * As direct I/O does, it refuses buffers that are not aligned.

use std::collections::VecDeque;
use std::io;

use super::{Buffer, Completion, Engine, EngineFull, IoError, Op, OpTag};
use crate::base::ids::{DiskId, DiskSet};
use crate::base::limits::DISKS_MAX;
use crate::base::rng::Rng;
use crate::disk::BlockDev;
use crate::disk::sim::{OpId, SimDisk};

/// An operation submitted and not completed.
enum Pending {
    Read {
        offset: u64,
        buffers: Vec<Buffer>,
        seen: Option<Result<(), IoError>>,
    },
    Write(OpId),
    Sync(OpId),
    /// Refused at once; the refusal is still told in its turn.
    Refused(IoError),
}

struct Entry {
    tag: OpTag,
    disk: DiskId,
    pending: Pending,
}

struct Attached {
    disk: SimDisk,
    memory_alignment: u32,
}

/// The simulated engine.
pub struct SimEngine {
    disks: [Option<Attached>; DISKS_MAX],
    pending: Vec<Entry>,
    completions: VecDeque<Completion>,
    held: DiskSet,
    slots: usize,
}

impl SimEngine {
    /// An engine without disks that takes `slots` operations at a time.
    #[must_use]
    pub fn new(slots: usize) -> SimEngine {
        SimEngine {
            disks: [const { None }; DISKS_MAX],
            pending: Vec::new(),
            completions: VecDeque::new(),
            held: DiskSet::default(),
            slots,
        }
    }

    /// Makes a disk known. It refuses buffers whose address is not a multiple of `memory_alignment`.
    pub fn add_disk(&mut self, id: DiskId, disk: SimDisk, memory_alignment: u32) {
        assert!(memory_alignment.is_power_of_two());
        self.disks[id.index()] = Some(Attached { disk, memory_alignment });
    }

    /// From now on nothing submitted to the disk goes on, as if it hung.
    pub fn hold(&mut self, disk: DiskId) {
        self.held.insert(disk);
    }

    /// Ends [`SimEngine::hold`].
    pub fn release(&mut self, disk: DiskId) {
        self.held.remove(disk);
    }

    /// The operations submitted and not completed, in the order of submission as far as nothing has completed.
    pub fn pending(&self) -> impl Iterator<Item = OpTag> + '_ {
        self.pending.iter().map(|entry| entry.tag)
    }

    /// Lets one operation, chosen at random, go on: completes it, or lets a read see the disk. False if there is none that
    /// can.
    pub fn step(&mut self, rng: &mut Rng) -> bool {
        let held = self.held;
        let can_go_on = |entry: &Entry| !held.contains(entry.disk);
        let count = self.pending.iter().filter(|entry| can_go_on(entry)).count();
        if count == 0 {
            return false;
        }
        let chosen = rng.index(count);
        let index = self.pending.iter().enumerate().filter(|(_, entry)| can_go_on(entry)).nth(chosen);
        let (index, entry) = index.expect("counted");
        let unseen_read = matches!(entry.pending, Pending::Read { seen: None, .. });
        if unseen_read && rng.chance(1, 4) {
            self.look(index);
        } else {
            self.complete(index);
        }
        true
    }

    /// Completes one operation.
    ///
    /// # Panics
    /// If it is not pending.
    pub fn finish(&mut self, tag: OpTag) {
        let index = self.pending.iter().position(|entry| entry.tag == tag).expect("an operation that is pending");
        self.complete(index);
    }

    /// Completes everything that no held disk holds back, in random order.
    pub fn finish_all(&mut self, rng: &mut Rng) {
        while self.step(rng) {}
    }

    /// Lets a pending read see the disk now.
    fn look(&mut self, index: usize) {
        let entry = &mut self.pending[index];
        let Pending::Read { offset, buffers, seen: seen @ None } = &mut entry.pending else { return };
        let attached = self.disks[entry.disk.index()].as_ref().expect("checked at submission");
        *seen = Some(read(&attached.disk, *offset, buffers));
    }

    fn complete(&mut self, index: usize) {
        self.look(index);
        let Entry { tag, disk, pending } = self.pending.swap_remove(index);
        let disk = || &self.disks[disk.index()].as_ref().expect("checked at submission").disk;
        let result = match pending {
            Pending::Read { seen, .. } => seen.expect("looked at just now"),
            Pending::Write(op) => disk().end_write(op).map_err(|error| io_error(&error)),
            Pending::Sync(op) => disk().end_sync(op).map_err(|error| io_error(&error)),
            Pending::Refused(error) => Err(error),
        };
        self.completions.push_back(Completion { tag, result });
    }

    fn begin(&self, op: Op<'_>) -> Pending {
        let (disk, buffers) = match op {
            Op::Read { disk, buffers, .. } | Op::Write { disk, buffers, .. } => (disk, buffers),
            Op::Sync { disk } => (disk, [].as_slice()),
        };
        let Some(attached) = &self.disks[disk.index()] else {
            return Pending::Refused(IoError::Os(libc::EBADF));
        };
        if !is_aligned(buffers, attached.memory_alignment, attached.disk.block_size()) {
            return Pending::Refused(IoError::Os(libc::EINVAL));
        }
        match op {
            Op::Read { offset, .. } => Pending::Read { offset, buffers: buffers.to_vec(), seen: None },
            Op::Write { offset, .. } => match attached.disk.begin_write(offset, &gather(buffers)) {
                Ok(op) => Pending::Write(op),
                Err(error) => Pending::Refused(io_error(&error)),
            },
            Op::Sync { .. } => Pending::Sync(attached.disk.begin_sync()),
        }
    }
}

impl Engine for SimEngine {
    fn available(&self) -> usize {
        self.slots.saturating_sub(self.pending.len() + self.completions.len())
    }

    unsafe fn submit(&mut self, op: Op<'_>, tag: OpTag) -> Result<(), EngineFull> {
        if self.available() == 0 {
            return Err(EngineFull);
        }
        let disk = match op {
            Op::Read { disk, .. } | Op::Write { disk, .. } | Op::Sync { disk } => disk,
        };
        let pending = self.begin(op);
        self.pending.push(Entry { tag, disk, pending });
        Ok(())
    }

    fn take_completion(&mut self) -> Option<Completion> {
        self.completions.pop_front()
    }
}

/// What direct I/O asks of every buffer, on the kernels that ask the most.
fn is_aligned(buffers: &[Buffer], memory_alignment: u32, block_size: u32) -> bool {
    let is_multiple = |value: usize, of: u32| value.is_multiple_of(of as usize);
    buffers.iter().all(|buffer| is_multiple(buffer.ptr.addr(), memory_alignment) && is_multiple(buffer.len, block_size))
}

/// Reads all of it, however short the disk's reads are, as an engine does.
fn read(disk: &SimDisk, offset: u64, buffers: &[Buffer]) -> Result<(), IoError> {
    let mut bytes = vec![0; buffers.iter().map(|buffer| buffer.len).sum()];
    let mut done = 0;
    while done < bytes.len() {
        match disk.read(offset + done as u64, &mut bytes[done..]) {
            Ok(0) => return Err(IoError::UnexpectedEnd),
            Ok(len) => done += len,
            Err(error) => return Err(io_error(&error)),
        }
    }
    let mut rest = bytes.as_slice();
    for buffer in buffers {
        let (piece, tail) = rest.split_at(buffer.len);
        // SAFETY: whoever submitted the read vouched for the buffer until the completion, which has not been taken; `piece`
        // has its length and is our own memory.
        unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), buffer.ptr, buffer.len) };
        rest = tail;
    }
    Ok(())
}

fn gather(buffers: &[Buffer]) -> Vec<u8> {
    let mut bytes = vec![0; buffers.iter().map(|buffer| buffer.len).sum()];
    let mut done = 0;
    for buffer in buffers {
        let room = &mut bytes[done..done + buffer.len];
        // SAFETY: whoever submits the write vouches for the buffer; `room` has its length and is our own memory.
        unsafe { std::ptr::copy_nonoverlapping(buffer.ptr, room.as_mut_ptr(), buffer.len) };
        done += buffer.len;
    }
    bytes
}

fn io_error(error: &io::Error) -> IoError {
    match error.raw_os_error() {
        Some(errno) => IoError::Os(errno),
        None if error.kind() == io::ErrorKind::UnexpectedEof => IoError::UnexpectedEnd,
        None => IoError::Os(libc::EIO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::aligned::AlignedBuf;
    use crate::disk::sim::{Fault, FaultKind, OpKind};

    const DISK: DiskId = DiskId(0);

    fn engine() -> (SimEngine, SimDisk) {
        let disk = SimDisk::new(1 << 20, 512);
        let mut engine = SimEngine::new(4);
        engine.add_disk(DISK, disk.clone(), 4);
        (engine, disk)
    }

    fn whole(memory: &AlignedBuf) -> [Buffer; 1] {
        [Buffer { ptr: memory.as_ptr(), len: memory.len() }]
    }

    fn submit(engine: &mut SimEngine, op: Op<'_>, tag: u64) -> Result<(), EngineFull> {
        // SAFETY: the tests keep their buffers until the completion.
        unsafe { engine.submit(op, OpTag(tag)) }
    }

    fn write(engine: &mut SimEngine, offset: u64, memory: &AlignedBuf, tag: u64) {
        submit(engine, Op::Write { disk: DISK, offset, buffers: &whole(memory) }, tag).unwrap();
    }

    fn results(engine: &mut SimEngine) -> Vec<(u64, Result<(), IoError>)> {
        std::iter::from_fn(|| engine.take_completion()).map(|done| (done.tag.0, done.result)).collect()
    }

    #[test]
    fn what_was_written_is_read_and_nothing_happens_by_itself() {
        let (mut engine, _) = engine();
        let mut from = AlignedBuf::zeroed(1024);
        from.fill(7);
        let into = AlignedBuf::zeroed(1024);
        write(&mut engine, 512, &from, 1);
        assert_eq!(results(&mut engine), []);
        engine.finish(OpTag(1));
        submit(&mut engine, Op::Read { disk: DISK, offset: 512, buffers: &whole(&into) }, 2).unwrap();
        engine.finish_all(&mut Rng::new(0));
        assert_eq!(results(&mut engine), [(1, Ok(())), (2, Ok(()))]);
        assert_eq!(into[..], from[..]);
    }

    #[test]
    fn every_order_of_completions_occurs() {
        let mut orders = std::collections::HashSet::new();
        for seed in 0..200 {
            let (mut engine, _) = engine();
            let memory = AlignedBuf::zeroed(512);
            (0..3).for_each(|tag| write(&mut engine, tag * 512, &memory, tag));
            engine.finish_all(&mut Rng::new(seed));
            orders.insert(results(&mut engine).into_iter().map(|(tag, _)| tag).collect::<Vec<_>>());
        }
        assert_eq!(orders.len(), 6);
    }

    #[test]
    fn a_sync_submitted_before_the_write_completed_does_not_cover_it() {
        for sync_first in [true, false] {
            let (mut engine, disk) = engine();
            let mut memory = AlignedBuf::zeroed(512);
            memory.fill(9);
            write(&mut engine, 0, &memory, 1);
            if sync_first {
                submit(&mut engine, Op::Sync { disk: DISK }, 2).unwrap();
                engine.finish(OpTag(1));
            } else {
                engine.finish(OpTag(1));
                submit(&mut engine, Op::Sync { disk: DISK }, 2).unwrap();
            }
            engine.finish(OpTag(2));
            let after = &disk.trace().crash_now(crate::disk::sim::SEED_OLDEST)[0];
            let mut byte = [0];
            after.read_at(0, &mut byte).unwrap();
            assert_eq!(byte[0] == 0, sync_first);
        }
    }

    #[test]
    fn faults_limits_and_hung_disks() {
        let (mut engine, disk) = engine();
        let memory = AlignedBuf::zeroed(1024);
        engine.hold(DISK);
        (0..4).for_each(|tag| write(&mut engine, 0, &memory, tag));
        assert_eq!(submit(&mut engine, Op::Sync { disk: DISK }, 9), Err(EngineFull));
        assert!(!engine.step(&mut Rng::new(1)));
        engine.release(DISK);
        disk.inject(Fault::next(OpKind::Write, FaultKind::Error(libc::EIO)));
        engine.finish_all(&mut Rng::new(1));
        let failed = results(&mut engine).iter().filter(|(_, result)| *result == Err(IoError::Os(libc::EIO))).count();
        assert_eq!(failed, 1);
        disk.inject(Fault::next(OpKind::Read, FaultKind::Short));
        submit(&mut engine, Op::Read { disk: DISK, offset: 0, buffers: &whole(&memory) }, 1).unwrap();
        let odd = [Buffer { ptr: memory.as_ptr().wrapping_add(1), len: 512 }];
        submit(&mut engine, Op::Read { disk: DISK, offset: 0, buffers: &odd }, 2).unwrap();
        submit(&mut engine, Op::Sync { disk: DiskId(1) }, 3).unwrap();
        write(&mut engine, (1 << 20) - 512, &memory, 4);
        engine.finish_all(&mut Rng::new(1));
        let mut all = results(&mut engine);
        all.sort_by_key(|&(tag, _)| tag);
        let refused = |errno| Err(IoError::Os(errno));
        let expected =
            [(1, Ok(())), (2, refused(libc::EINVAL)), (3, refused(libc::EBADF)), (4, Err(IoError::UnexpectedEnd))];
        assert_eq!(all, expected);
    }
}
