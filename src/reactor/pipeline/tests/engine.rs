//! An engine on in-memory disks, whose every operation ends when the test says so.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use super::world::GARBAGE;
use crate::base::ids::DiskId;
use crate::engine::{Buffer, Completion, Engine, EngineFull, IoError, Op, OpTag};
use crate::shared::DiskState;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Read,
    Write,
    Sync,
}

pub struct Pending {
    pub kind: Kind,
    pub disk: DiskId,
    pub offset: u64,
    buffers: Vec<Buffer>,
    tag: OpTag,
}

impl Pending {
    pub fn len(&self) -> u64 {
        self.buffers.iter().map(|b| b.len as u64).sum()
    }
}

pub type Disks = Rc<RefCell<HashMap<DiskId, Image>>>;

/// What a disk holds, and how many syncs of it were submitted.
pub struct Image {
    pub state: Arc<DiskState>,
    pub bytes: Vec<u8>,
    pub syncs: u64,
}

pub struct TestEngine {
    pub pending: Vec<Pending>,
    pub done: VecDeque<Completion>,
    pub disks: Disks,
    pub capacity: usize,
    pub block: u64,
    pub alignment: usize,
}

impl TestEngine {
    /// Carries out a pending operation, or fails it.
    pub fn finish(&mut self, index: usize, result: Result<(), IoError>) {
        let op = self.pending.remove(index);
        let mut disks = self.disks.borrow_mut();
        let disk = &mut disks.get_mut(&op.disk).unwrap().bytes;
        let mut at = usize::try_from(op.offset).unwrap();
        for buffer in op.buffers.iter().filter(|_| result.is_ok()) {
            let range = at..at + buffer.len;
            disk.resize(disk.len().max(range.end), GARBAGE);
            match op.kind {
                Kind::Read => {
                    let from = disk[range].as_ptr();
                    // SAFETY: the pipeline vouches for its buffers until the completion is taken.
                    unsafe { std::ptr::copy_nonoverlapping(from, buffer.ptr, buffer.len) };
                }
                Kind::Write => {
                    let to = disk[range].as_mut_ptr();
                    // SAFETY: the pipeline vouches for its buffers until the completion is taken.
                    unsafe { std::ptr::copy_nonoverlapping(buffer.ptr, to, buffer.len) };
                }
                Kind::Sync => {}
            }
            at += buffer.len;
        }
        self.done.push_back(Completion { tag: op.tag, result });
    }
}

impl Engine for TestEngine {
    fn available(&self) -> usize {
        self.capacity - self.pending.len() - self.done.len()
    }

    unsafe fn submit(&mut self, op: Op<'_>, tag: OpTag) -> Result<(), EngineFull> {
        if self.available() == 0 {
            return Err(EngineFull);
        }
        if let Op::Read { offset, buffers, .. } | Op::Write { offset, buffers, .. } = op {
            let block = usize::try_from(self.block).expect("a small block");
            assert!(offset.is_multiple_of(self.block), "offset {offset}");
            assert!(buffers.iter().all(|b| b.len > 0 && b.len.is_multiple_of(block)), "{buffers:?}");
            assert!(buffers.iter().all(|b| b.ptr.addr().is_multiple_of(self.alignment)), "{buffers:?}");
        }
        self.pending.push(match op {
            Op::Read { disk, offset, buffers } => {
                Pending { kind: Kind::Read, disk, offset, buffers: buffers.to_vec(), tag }
            }
            Op::Write { disk, offset, buffers } => {
                Pending { kind: Kind::Write, disk, offset, buffers: buffers.to_vec(), tag }
            }
            Op::Sync { disk } => {
                let mut disks = self.disks.borrow_mut();
                let image = disks.get_mut(&disk).unwrap();
                image.syncs += 1;
                assert!(image.state.sync_needed().number.0 > image.syncs, "a sync is numbered before it is submitted");
                Pending { kind: Kind::Sync, disk, offset: 0, buffers: Vec::new(), tag }
            }
        });
        Ok(())
    }

    fn take_completion(&mut self) -> Option<Completion> {
        self.done.pop_front()
    }
}
