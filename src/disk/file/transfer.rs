//! Blocking I/O of any offset and length on a file that wants whole blocks in aligned memory.

use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use super::FileDisk;
use crate::base::aligned::AlignedBuf;
use crate::disk::{BlockDev, sys};

/// Largest piece that misaligned I/O is cut into.
const BOUNCE_PIECE: u64 = 1 << 20;

impl FileDisk {
    fn check_end(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.size => Ok(()),
            _ => Err(ErrorKind::UnexpectedEof.into()),
        }
    }

    fn is_aligned(&self, offset: u64, bytes: &[u8]) -> bool {
        let block = u64::from(self.block_size);
        offset.is_multiple_of(block)
            && (bytes.len() as u64).is_multiple_of(block)
            && bytes.as_ptr().addr().is_multiple_of(self.memory_alignment as usize)
    }

    fn read_direct(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match sys::pread(self.fd.as_fd(), &mut into[done..], offset + done as u64) {
                Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.work.read(into.len() as u64);
        Ok(())
    }

    fn write_direct(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < from.len() {
            match sys::pwrite(self.fd.as_fd(), &from[done..], offset + done as u64) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.work.written(from.len() as u64);
        Ok(())
    }

    /// Cuts `len` bytes at `offset` into pieces of whole blocks around them.
    fn pieces(&self, offset: u64, len: usize) -> impl Iterator<Item = Piece> + use<> {
        let block = u64::from(self.block_size);
        let end = offset + len as u64;
        let index = |n: u64| usize::try_from(n).expect("a piece fits in memory");
        let mut at = offset;
        std::iter::from_fn(move || {
            let start = at / block * block;
            let stop = end.min(start + BOUNCE_PIECE);
            let piece = Piece {
                start,
                len: index(stop.div_ceil(block) * block - start),
                skip: index(at - start),
                used: index(stop.saturating_sub(at)),
            };
            at = stop;
            (piece.used > 0).then_some(piece)
        })
    }
}

/// Whole blocks on disk, of which `used` bytes from `skip` on are meant.
struct Piece {
    start: u64,
    len: usize,
    skip: usize,
    used: usize,
}

impl BlockDev for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn block_size(&self) -> u32 {
        self.block_size
    }

    fn read_at(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let _in_use = self.begin()?;
        let _awaited = self.awaited.under_way();
        self.check_end(offset, into.len() as u64)?;
        if self.is_aligned(offset, into) {
            return self.read_direct(offset, into);
        }
        let mut rest = into;
        for piece in self.pieces(offset, rest.len()) {
            let mut buffer = AlignedBuf::zeroed(piece.len);
            self.read_direct(piece.start, &mut buffer)?;
            let (now, later) = rest.split_at_mut(piece.used);
            now.copy_from_slice(&buffer[piece.skip..piece.skip + piece.used]);
            rest = later;
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, from: &[u8]) -> io::Result<()> {
        let _in_use = self.begin()?;
        let _awaited = self.awaited.under_way();
        self.check_end(offset, from.len() as u64)?;
        if self.is_aligned(offset, from) {
            return self.write_direct(offset, from);
        }
        let _edges = self.edges.lock().expect("no panic while the edges are locked");
        let block = self.block_size as usize;
        let mut rest = from;
        for piece in self.pieces(offset, from.len()) {
            let mut buffer = AlignedBuf::zeroed(piece.len);
            let last = piece.len - block;
            if piece.skip > 0 {
                self.read_direct(piece.start, &mut buffer[..block])?;
            }
            if piece.skip + piece.used < piece.len && (last > 0 || piece.skip == 0) {
                self.read_direct(piece.start + last as u64, &mut buffer[last..])?;
            }
            let (now, later) = rest.split_at(piece.used);
            buffer[piece.skip..piece.skip + piece.used].copy_from_slice(now);
            self.write_direct(piece.start, &buffer)?;
            rest = later;
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let _in_use = self.begin()?;
        let _awaited = self.awaited.under_way();
        self.synced(sys::fdatasync(self.fd.as_fd())).inspect(|()| self.work.synced())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let _in_use = self.begin()?;
        self.check_end(offset, len)?;
        let block = u64::from(self.block_size);
        let start = offset.div_ceil(block) * block;
        let end = (offset + len) / block * block;
        if start >= end {
            return Ok(());
        }
        let result = if self.is_device {
            sys::discard(self.fd.as_fd(), start, end - start)
        } else {
            sys::punch_hole(self.fd.as_fd(), start, end - start)
        };
        result.map_err(|e| match e.raw_os_error() {
            Some(libc::EOPNOTSUPP | libc::ENOSYS) => io::Error::new(ErrorKind::Unsupported, e),
            _ => e,
        })
    }
}
