//! Blocks of VHDs with checksums are compared before they are written elsewhere: a copy of what a disk has changed would look right.

use std::sync::atomic::Ordering;

use super::Copier;
use crate::engine::{Engine, IoError};
use crate::mover::messages::MoverOutbox;
use crate::placement::ReplicaState;
use crate::placement::view::Checksum;

impl<E: Engine, O: MoverOutbox> Copier<E, O> {
    /// The blocks of a chunk have been read, and are claimed. Those whose checksums nobody knows get those of what has been read.
    ///
    /// # Errors
    /// A block is not what was written.
    pub(super) fn verify(&self, place: usize) -> Result<(), IoError> {
        let chunk = self.chunks[place].as_ref().expect("a chunk in flight");
        let (vhd, extent) = (&chunk.task.copy.vhd, chunk.task.copy.extent);
        if !vhd.map.has_checksums() || chunk.given_up {
            return Ok(());
        }
        let block_size = vhd.settings.geometry.block_size();
        let to_usize = |bytes: u64| usize::try_from(bytes).expect("a chunk fits memory");
        let first = u32::try_from(chunk.within / block_size).expect("an extent has few blocks");
        let blocks = self.buffers[place][..to_usize(chunk.len)].chunks_exact(to_usize(block_size));
        let mut wrong = 0;
        for (block, bytes) in (first..).zip(blocks) {
            let found = Checksum::of(bytes);
            match vhd.map.checksum(extent, block) {
                None => vhd.map.set_checksum(extent, block, Some(found)),
                Some(checksum) => wrong += u64::from(checksum != found),
            }
        }
        if chunk.blocks.len() == 1 || chunk.task.copy.target.state != ReplicaState::InSync {
            // Others are read once more, one by one.
            vhd.checksum_errors.fetch_add(wrong, Ordering::Relaxed);
        }
        if wrong == 0 { Ok(()) } else { Err(IoError::Checksum) }
    }
}
