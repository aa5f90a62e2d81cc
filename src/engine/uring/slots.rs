//! The slab of operations in flight: what the kernel still owes us of each, and the I/O vectors it works from.
//!
//! Pure: makes submission entries and judges results, but never touches a ring.

use io_uring::{opcode, squeue, types};

use crate::base::ids::DiskId;
use crate::base::limits::{ENGINE_SLOTS, IO_RETRIES_MAX, IOVECS_MAX};
use crate::engine::{Completion, IoError, Op, OpTag};

/// Address and length: a `libc::iovec` that can be made from zeroed memory, so that vectors never used cost nothing.
type Iovec = [usize; 2];

const _: () = assert!(size_of::<Iovec>() == size_of::<libc::iovec>());
const _: () = assert!(align_of::<Iovec>() == align_of::<libc::iovec>());
const _: () = assert!(std::mem::offset_of!(libc::iovec, iov_base) == 0);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Free,
    Read,
    Write,
    Sync,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    kind: Kind,
    disk: DiskId,
    /// First vector that is not done, and the end of the vectors, within the slot's room.
    first: u8,
    end: u8,
    retries: u8,
    /// Where the rest begins on the disk.
    offset: u64,
    tag: OpTag,
}

const FREE: Slot =
    Slot { kind: Kind::Free, disk: DiskId(0), first: 0, end: 0, retries: 0, offset: 0, tag: OpTag(u64::MAX) };

/// What a result of the kernel means for its operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Done or failed; the slot is free again.
    Finished(Completion),
    /// The rest must be submitted.
    Resubmit,
}

/// All slots of an engine.
pub(super) struct Slots {
    slots: Box<[Slot]>,
    iovecs: Box<[Iovec]>,
    /// Free slots; the last one freed is used first, so that its memory is warm.
    free: Vec<u16>,
}

impl Slots {
    pub fn new() -> Slots {
        let count = u16::try_from(ENGINE_SLOTS).expect("checked beside the limit");
        Slots {
            slots: vec![FREE; ENGINE_SLOTS].into_boxed_slice(),
            iovecs: bytemuck::zeroed_slice_box(ENGINE_SLOTS * IOVECS_MAX),
            free: (0..count).rev().collect(),
        }
    }

    pub fn available(&self) -> usize {
        self.free.len()
    }

    pub fn in_flight(&self) -> usize {
        ENGINE_SLOTS - self.free.len()
    }

    /// Takes a slot for an operation; `None` if all are in flight.
    ///
    /// # Panics
    /// If the operation moves nothing, has too many buffers, or an empty one.
    pub fn insert(&mut self, op: Op<'_>, tag: OpTag) -> Option<u16> {
        let (kind, disk, offset, buffers) = match op {
            Op::Read { disk, offset, buffers } => (Kind::Read, disk, offset, buffers),
            Op::Write { disk, offset, buffers } => (Kind::Write, disk, offset, buffers),
            Op::Sync { disk } => (Kind::Sync, disk, 0, [].as_slice()),
        };
        assert!((kind == Kind::Sync) == buffers.is_empty() && buffers.len() <= IOVECS_MAX);
        let index = self.free.pop()?;
        let room = &mut self.iovecs[usize::from(index) * IOVECS_MAX..][..buffers.len()];
        for (iovec, buffer) in room.iter_mut().zip(buffers) {
            assert!(buffer.len > 0);
            *iovec = [buffer.ptr.expose_provenance(), buffer.len];
        }
        let end = u8::try_from(buffers.len()).expect("checked beside the limit");
        let slot = &mut self.slots[usize::from(index)];
        assert!(slot.kind == Kind::Free);
        *slot = Slot { kind, disk, first: 0, end, retries: 0, offset, tag };
        Some(index)
    }

    /// The disk of an operation.
    pub fn disk(&self, index: u16) -> DiskId {
        self.slots[usize::from(index)].disk
    }

    /// The submission entry for what is left of an operation. Points into the slab, which never moves.
    pub fn entry(&self, index: u16) -> squeue::Entry {
        let slot = &self.slots[usize::from(index)];
        let file = types::Fixed(u32::from(slot.disk.0));
        let iovecs = &self.iovecs[usize::from(index) * IOVECS_MAX..][usize::from(slot.first)..usize::from(slot.end)];
        match (slot.kind, iovecs) {
            (Kind::Free, _) => unreachable!("a free slot is not submitted"),
            (Kind::Sync, _) => opcode::Fsync::new(file).flags(types::FsyncFlags::DATASYNC).build(),
            (Kind::Read, &[[base, len]]) => {
                let ptr = std::ptr::with_exposed_provenance_mut(base);
                opcode::Read::new(file, ptr, transfer_len(len)).offset(slot.offset).build()
            }
            (Kind::Write, &[[base, len]]) => {
                let ptr = std::ptr::with_exposed_provenance(base);
                opcode::Write::new(file, ptr, transfer_len(len)).offset(slot.offset).build()
            }
            (Kind::Read, many) => {
                opcode::Readv::new(file, many.as_ptr().cast(), vector_len(many)).offset(slot.offset).build()
            }
            (Kind::Write, many) => {
                opcode::Writev::new(file, many.as_ptr().cast(), vector_len(many)).offset(slot.offset).build()
            }
        }
    }

    /// Takes the kernel's result for an operation.
    pub fn judge(&mut self, index: u16, result: i32) -> Verdict {
        let slot = &mut self.slots[usize::from(index)];
        assert!(slot.kind != Kind::Free, "a completion without an operation");
        let transfer = slot.kind != Kind::Sync;
        match result {
            // A sync is never tried again: the error it would have reported may be gone the second time.
            error if error < 0 => {
                let again = transfer && matches!(-error, libc::EINTR | libc::EAGAIN) && slot.retries < IO_RETRIES_MAX;
                if again {
                    slot.retries += 1;
                    return Verdict::Resubmit;
                }
                self.finish(index, Err(IoError::Os(-error)))
            }
            _ if !transfer => self.finish(index, Ok(())),
            0 => self.finish(index, Err(IoError::UnexpectedEnd)),
            bytes => {
                self.advance(index, usize::try_from(bytes).expect("not negative"));
                let slot = &self.slots[usize::from(index)];
                if slot.first == slot.end { self.finish(index, Ok(())) } else { Verdict::Resubmit }
            }
        }
    }

    fn finish(&mut self, index: u16, result: Result<(), IoError>) -> Verdict {
        let slot = &mut self.slots[usize::from(index)];
        let tag = slot.tag;
        *slot = FREE;
        self.free.push(index);
        Verdict::Finished(Completion { tag, result })
    }

    /// Moves the beginning of the rest behind `done` bytes.
    fn advance(&mut self, index: u16, mut done: usize) {
        let slot = &mut self.slots[usize::from(index)];
        slot.offset += done as u64;
        slot.retries = 0;
        let iovecs = &mut self.iovecs[usize::from(index) * IOVECS_MAX..][..usize::from(slot.end)];
        while done > 0 {
            assert!(slot.first < slot.end, "the kernel moved more bytes than asked for");
            let [base, len] = &mut iovecs[usize::from(slot.first)];
            let step = done.min(*len);
            *base += step;
            *len -= step;
            done -= step;
            if *len == 0 {
                slot.first += 1;
            }
        }
    }
}

/// The length of one transfer; what exceeds the kernel's limit is a short transfer.
fn transfer_len(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(!0xfff)
}

fn vector_len(iovecs: &[Iovec]) -> u32 {
    u32::try_from(iovecs.len()).expect("at most IOVECS_MAX")
}

#[cfg(test)]
impl Slots {
    /// What is left of an operation: where, and the addresses and lengths.
    pub fn rest(&self, index: u16) -> (u64, Vec<(usize, usize)>) {
        let slot = &self.slots[usize::from(index)];
        let iovecs = &self.iovecs[usize::from(index) * IOVECS_MAX..][usize::from(slot.first)..usize::from(slot.end)];
        (slot.offset, iovecs.iter().map(|&[base, len]| (base, len)).collect())
    }
}
