//! Arrays of atomics that may outlive the process: in anonymous memory, or in a mapped file, which is as it was at the moment when
//! the process was killed.
//!
//! A page of shared memory that is touched and cannot be had is a SIGBUS. So whoever maps a file reserves each part of it before the
//! first access, and takes anonymous memory for those that there is no room for.
//!
//! Unsafe: maps files and makes slices of the mappings.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64};

use rustix::fs::{FallocateFlags, fallocate};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A mapped file that nobody else changes, and that does not become shorter.
#[derive(Debug)]
pub struct KeptFile {
    start: NonNull<u8>,
    len: usize,
    file: File,
}

// SAFETY: memory that is accessed by atomics only and stays mapped as long as this lives.
unsafe impl Send for KeptFile {}
// SAFETY: as above.
unsafe impl Sync for KeptFile {}

impl KeptFile {
    /// Maps the first `len` bytes of a file, which must be at least that long.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn map(file: File, len: usize) -> io::Result<Arc<KeptFile>> {
        if file.metadata()?.len() < len as u64 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        }
        let (protection, fd) = (libc::PROT_READ | libc::PROT_WRITE, file.as_raw_fd());
        // SAFETY: a new mapping, which replaces nothing.
        let at = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(at.cast()).expect("nothing is mapped at 0");
        Ok(Arc::new(KeptFile { start, len, file }))
    }

    /// Its length in bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Takes memory for these bytes of the file, so that an access to them cannot fail. What is there already stays.
    ///
    /// # Errors
    /// What the kernel says, above all that there is no room.
    pub fn reserve(&self, bytes: Range<usize>) -> io::Result<()> {
        let (offset, len) = (bytes.start as u64, bytes.len() as u64);
        loop {
            match fallocate(&self.file, FallocateFlags::empty(), offset, len) {
                Err(rustix::io::Errno::INTR) => {}
                done => return Ok(done?),
            }
        }
    }

    /// Puts zeros of anonymous memory in the place of these bytes, which nobody has looked at yet. They do not outlive the process.
    ///
    /// # Errors
    /// What the kernel says.
    ///
    /// # Panics
    /// If they are not whole pages of the mapping.
    pub fn give_up(&self, bytes: Range<usize>) -> io::Result<()> {
        assert!(bytes.end <= self.len && bytes.start.is_multiple_of(PAGE) && bytes.len().is_multiple_of(PAGE));
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: within the mapping, as was just checked.
        let at = unsafe { self.start.add(bytes.start) };
        // SAFETY: replaces pages of a mapping that is ours; what is in them is accessed by atomics only.
        let done = unsafe { libc::mmap(at.as_ptr().cast(), bytes.len(), protection, flags, -1, 0) };
        if done == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl Drop for KeptFile {
    fn drop(&mut self) {
        // SAFETY: what was mapped, and nobody has a slice of it any more.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// Bytes that a file system has room for.
///
/// # Errors
/// What the kernel says.
pub fn free_bytes(file: &File) -> io::Result<u64> {
    // SAFETY: all-zero is a value of this struct of integers.
    let mut about: libc::statvfs = unsafe { std::mem::zeroed() };
    // SAFETY: writes one struct.
    if unsafe { libc::fstatvfs(file.as_raw_fd(), &raw mut about) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(about.f_bavail.saturating_mul(about.f_frsize))
}

/// An atomic of which every bit pattern is a value.
pub trait Word: bytemuck::Zeroable {}

impl Word for AtomicU32 {}
impl Word for AtomicU64 {}

enum Home {
    /// A box that was taken apart.
    Anonymous,
    Kept(#[allow(dead_code, reason = "keeps it mapped")] Arc<KeptFile>),
}

/// An array of words.
pub struct Words<T> {
    words: NonNull<[T]>,
    home: Home,
}

// SAFETY: a box, or a part of a mapping, of atomics.
unsafe impl<T: Send> Send for Words<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Words<T> {}

impl<T: Word> Words<T> {
    /// `len` zeros in anonymous memory: what is never touched costs none.
    #[must_use]
    pub fn zeroed(len: u32) -> Words<T> {
        let words = Box::into_raw(bytemuck::zeroed_slice_box(len as usize));
        Words { words: NonNull::new(words).expect("a box is somewhere"), home: Home::Anonymous }
    }

    /// `len` words of a file, from byte `offset` on.
    ///
    /// # Panics
    /// If the file does not have them, or they are misaligned.
    #[must_use]
    pub fn within(file: &Arc<KeptFile>, offset: usize, len: u32) -> Words<T> {
        let len = len as usize;
        let end = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(offset));
        assert!(end.is_some_and(|end| end <= file.len) && offset.is_multiple_of(align_of::<T>()));
        // SAFETY: within the mapping, as was just checked.
        let first = unsafe { file.start.add(offset) };
        let words = NonNull::slice_from_raw_parts(first.cast(), len);
        Words { words, home: Home::Kept(Arc::clone(file)) }
    }
}

impl<T> Deref for Words<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: a box that is ours, or within a mapping that `home` keeps; only shared references are made of it, and every
        // bit pattern is a value.
        unsafe { self.words.as_ref() }
    }
}

impl<T> Drop for Words<T> {
    fn drop(&mut self) {
        if matches!(self.home, Home::Anonymous) {
            // SAFETY: came out of a box, and goes back once.
            drop(unsafe { Box::from_raw(self.words.as_ptr()) });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::Ordering::Relaxed;

    use super::*;

    #[test]
    fn what_is_kept_is_there_in_another_mapping() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8192).unwrap();
        let map = |len| KeptFile::map(file.try_clone().unwrap(), len);
        let words: Words<AtomicU64> = Words::within(&map(8192).unwrap(), 4096, 512);
        words[511].store(7, Relaxed);
        drop(words);
        let again = map(8192).unwrap();
        let (words, halves): (Words<AtomicU64>, Words<AtomicU32>) =
            (Words::within(&again, 4096, 512), Words::within(&again, 8184, 2));
        assert_eq!((words.len(), words[0].load(Relaxed), words[511].load(Relaxed)), (512, 0, 7));
        assert_eq!(halves[0].load(Relaxed), 7);
        assert!(map(8193).is_err());
        assert!(free_bytes(&file).unwrap() > 0);
    }

    #[test]
    #[should_panic(expected = "end <= file.len")]
    fn nothing_is_beyond_the_end() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        drop(Words::<AtomicU64>::within(&KeptFile::map(file, 4096).unwrap(), 8, 512));
    }

    #[test]
    fn what_is_given_up_is_zeros_that_do_not_outlive_the_mapping() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 * PAGE as u64).unwrap();
        let kept = KeptFile::map(file.try_clone().unwrap(), 3 * PAGE).unwrap();
        let words: Words<AtomicU64> = Words::within(&kept, 0, 3 * 512);
        kept.reserve(0..PAGE).unwrap();
        kept.give_up(PAGE..2 * PAGE).unwrap();
        for page in 0..3 {
            words[page * 512].store(7, Relaxed);
        }
        drop((words, kept));
        let words: Words<AtomicU64> = Words::within(&KeptFile::map(file, 3 * PAGE).unwrap(), 0, 3 * 512);
        assert_eq!([0, 512, 1024].map(|at| words[at].load(Relaxed)), [7, 0, 7]);
    }

    #[test]
    fn anonymous_words_begin_as_zeros() {
        let words: Words<AtomicU32> = Words::zeroed(3);
        assert!(words.iter().all(|word| word.load(Relaxed) == 0) && words.len() == 3);
    }
}
