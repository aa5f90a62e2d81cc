//! A disk that is only read: what is written to it stays in memory.
//!
//! Looking at a store means opening it, and opening means recovering, mending and raising the epoch. On an overlay all of
//! this happens, and nothing of it to the disk.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::disk::BlockDev;

/// Granularity, in bytes.
const PIECE: u64 = 4096;

/// A disk below, and what was written above it.
#[derive(Debug)]
pub struct Overlay<D: ?Sized> {
    written: Mutex<HashMap<u64, Box<[u8]>>>,
    below: Arc<D>,
}

impl<D: BlockDev + ?Sized> Overlay<D> {
    /// Nothing written yet.
    #[must_use]
    pub fn new(below: Arc<D>) -> Overlay<D> {
        Overlay { written: Mutex::default(), below }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Box<[u8]>>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, len: usize) -> io::Result<()> {
        match offset.checked_add(len as u64) {
            Some(end) if end <= self.size() => Ok(()),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// The parts of a byte range by pieces: index of the piece, where the part starts in it, and how long it is.
fn parts(offset: u64, len: usize) -> impl Iterator<Item = (u64, usize, usize)> {
    let mut at = offset;
    let mut left = len;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let skip = usize::try_from(at % PIECE).expect("less than a piece");
        let n = left.min(usize::try_from(PIECE).expect("small") - skip);
        let part = (at / PIECE, skip, n);
        at += n as u64;
        left -= n;
        Some(part)
    })
}

impl<D: BlockDev + ?Sized> BlockDev for Overlay<D> {
    fn size(&self) -> u64 {
        self.below.size()
    }

    fn block_size(&self) -> u32 {
        self.below.block_size()
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.check(offset, into.len())?;
        self.below.read_at(offset, into)?;
        let written = self.lock();
        let mut done = 0;
        for (index, skip, n) in parts(offset, into.len()) {
            if let Some(piece) = written.get(&index) {
                into[done..done + n].copy_from_slice(&piece[skip..skip + n]);
            }
            done += n;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        self.check(offset, from.len())?;
        let mut written = self.lock();
        let mut done = 0;
        for (index, skip, n) in parts(offset, from.len()) {
            let piece = match written.entry(index) {
                Entry::Occupied(piece) => piece.into_mut(),
                Entry::Vacant(vacant) => {
                    // The last piece of a disk may be short.
                    let len = PIECE.min(self.size() - index * PIECE);
                    let mut piece = vec![0; usize::try_from(len).expect("at most a piece")].into_boxed_slice();
                    self.below.read_at(index * PIECE, &mut piece)?;
                    vacant.insert(piece)
                }
            };
            piece[skip..skip + n].copy_from_slice(&from[done..done + n]);
            done += n;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::rng::Rng;
    use crate::disk::sim::SimDisk;

    #[test]
    fn it_reads_what_was_written_and_the_disk_below_does_not_change() {
        let disk = SimDisk::new(64 << 10, 512);
        let mut rng = Rng::new(1);
        let mut below = vec![0; 64 << 10];
        rng.fill(&mut below);
        disk.write_at(0, &below).unwrap();
        let overlay = Overlay::new(Arc::new(disk.clone()));
        let mut model = below.clone();
        for _ in 0..200 {
            let at = rng.index(model.len());
            let mut bytes = vec![0; rng.index((model.len() - at).min(9000) + 1)];
            rng.fill(&mut bytes);
            overlay.write_at(at as u64, &bytes).unwrap();
            model[at..at + bytes.len()].copy_from_slice(&bytes);
            let mut all = vec![0; model.len()];
            overlay.read_at(0, &mut all).unwrap();
            assert!(all == model);
        }
        overlay.sync().unwrap();
        let mut all = vec![0; model.len()];
        disk.read_at(0, &mut all).unwrap();
        assert!(all == below);
        assert!(overlay.write_at(64 << 10, &[0]).is_err() && overlay.read_at(u64::MAX, &mut [0]).is_err());
    }
}
