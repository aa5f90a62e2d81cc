//! Large reads for a database that asks for small ones, one after another.
//!
//! `redb` reads single pages of 4 KiB, each when it needs it. While a store is opened and loaded nearly all of them are
//! needed, and a disk gives 64 at once in hardly more time than one.

use std::collections::{HashMap, VecDeque};
use std::io;

/// Bytes read at once.
const PIECE: u64 = 256 << 10;

/// Pieces kept: 64 MiB.
const PIECES_MAX: usize = 256;

/// Pieces of the database that were read lately.
#[derive(Debug, Default)]
pub(super) struct ReadAhead {
    pieces: HashMap<u64, Box<[u8]>>,
    /// In the order in which they were read.
    order: VecDeque<u64>,
}

impl ReadAhead {
    /// Reads from the pieces; `fill(offset, into)` reads from the disk. `len` is where the database ends.
    pub(super) fn read(
        &mut self,
        offset: u64,
        out: &mut [u8],
        len: u64,
        mut fill: impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let piece = self.piece(at / PIECE, len, &mut fill)?;
            let skip = usize::try_from(at % PIECE).expect("less than a piece");
            let n = rest.len().min(piece.len() - skip);
            rest[..n].copy_from_slice(&piece[skip..skip + n]);
            at += n as u64;
            rest = &mut rest[n..];
        }
        Ok(())
    }

    fn piece(
        &mut self,
        index: u64,
        len: u64,
        fill: &mut impl FnMut(u64, &mut [u8]) -> io::Result<()>,
    ) -> io::Result<&[u8]> {
        if !self.pieces.contains_key(&index) {
            let size = PIECE.min(len - index * PIECE);
            let mut bytes = vec![0; usize::try_from(size).expect("at most a piece")].into_boxed_slice();
            fill(index * PIECE, &mut bytes)?;
            if self.order.len() == PIECES_MAX
                && let Some(oldest) = self.order.pop_front()
            {
                self.pieces.remove(&oldest);
            }
            self.order.push_back(index);
            self.pieces.insert(index, bytes);
        }
        Ok(&self.pieces[&index])
    }

    /// Drops what covers these bytes: they are about to be written.
    pub(super) fn forget(&mut self, offset: u64, len: usize) {
        let last = (offset + len as u64).saturating_sub(1) / PIECE;
        for index in offset / PIECE..=last {
            if self.pieces.remove(&index).is_some() {
                self.order.retain(|&kept| kept != index);
            }
        }
    }

    /// Drops everything: the length changes.
    pub(super) fn clear(&mut self) {
        *self = ReadAhead::default();
    }
}
