//! The dirty log: memory of a frontend in which a bit stands for each page of guest memory that we have written to, so that a live
//! migration copies it once more.
//!
//! The layout is that of the vhost-user specification, "Migration": pages of 4 KiB by guest physical address, eight to a byte, the
//! lowest bit first. The frontend takes bits out while we put others in, so each is set by one atomic operation, and only *after*
//! the page was written: one that is set earlier could be taken out, and its page copied, before the page has changed.

use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

use super::guest_memory::Watch;

/// Bytes of guest memory that a bit stands for, whatever the pages of host and guest are.
pub const LOG_PAGE: u64 = 4096;

/// Bits of a byte.
const BITS: u64 = 8;

/// A mapped dirty log.
#[derive(Debug)]
pub struct DirtyLog {
    /// Before the mapping: what is unmapped is not watched any more.
    _watch: Watch,
    mapping: MmapRegion,
    /// Bytes of it that are the log: of huge pages only whole ones are mapped.
    len: u64,
}

impl DirtyLog {
    /// A log in the first `len` bytes of a mapping that is watched.
    ///
    /// # Panics
    /// The mapping is shorter.
    #[must_use]
    pub fn new(mapping: MmapRegion, watch: Watch, len: u64) -> DirtyLog {
        assert!(len <= mapping.size() as u64);
        DirtyLog { _watch: watch, mapping, len }
    }

    /// The file that it is mapped from, and where it begins there; `None` if it is of no file.
    #[must_use]
    pub fn file(&self) -> Option<&FileOffset> {
        self.mapping.file_offset()
    }

    /// Bytes of it.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.len
    }

    /// The first address of the log, by which `guest_memory` knows it.
    #[must_use]
    pub fn start(&self) -> usize {
        self.mapping.as_ptr().addr()
    }

    /// Marks the pages of `len` bytes from a guest physical address, which have been written. False if the log is too short for
    /// them: then none is marked.
    #[must_use]
    pub fn mark(&self, address: u64, len: u64) -> bool {
        if len == 0 {
            return true;
        }
        let Some(last) = address.checked_add(len - 1) else { return false };
        let (first, last) = (address / LOG_PAGE, last / LOG_PAGE);
        if last / BITS >= self.len {
            return false;
        }
        for byte in first / BITS..=last / BITS {
            let low = first.max(byte * BITS) % BITS;
            let high = last.min(byte * BITS + BITS - 1) % BITS;
            let bits = u8::MAX >> (BITS - 1 - high) & u8::MAX << low;
            let at = usize::try_from(byte).expect("less than the length of the mapping");
            let byte = self.mapping.get_atomic_ref::<AtomicU8>(at).expect("within the mapping");
            byte.fetch_or(bits, Ordering::AcqRel);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    fn log(len: usize) -> (DirtyLog, std::fs::File) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(len as u64).unwrap();
        let mapping = MmapRegion::from_file(FileOffset::new(file.try_clone().unwrap(), 0), len).unwrap();
        let watch = Watch::new(mapping.as_ptr(), len.next_multiple_of(4096), 4096).unwrap();
        (DirtyLog::new(mapping, watch, len as u64), file)
    }

    /// The pages that are marked.
    fn marked(file: &std::fs::File) -> Vec<u64> {
        let mut bytes = vec![0; usize::try_from(file.metadata().unwrap().len()).unwrap()];
        file.read_exact_at(&mut bytes, 0).unwrap();
        (0u64..)
            .zip(bytes.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1 == 1)))
            .filter_map(|(page, set)| set.then_some(page))
            .collect()
    }

    #[test]
    fn exactly_the_pages_that_were_written_are_marked() {
        let model = |address: u64, len: u64| (address / 4096..(address + len).div_ceil(4096)).collect::<Vec<_>>();
        for first in [0, 1, 7, 8, 15, 100] {
            for within in [0, 1, 4095] {
                for len in [1, 2, 4096, 4097, 8 * 4096, 33 * 4096 + 1] {
                    let (log, file) = log(64);
                    let address = first * 4096 + within;
                    assert!(log.mark(address, len));
                    assert_eq!(marked(&file), model(address, len), "{len} bytes at {address}");
                }
            }
        }
    }

    #[test]
    fn bits_are_added_and_the_lowest_comes_first() {
        let (log, file) = log(64);
        assert!(log.mark(9 * 4096, 1) && log.mark(10 * 4096, 1) && log.mark(0, 0));
        let mut bytes = [0; 2];
        file.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0, 0b110]);
    }

    #[test]
    fn what_is_beyond_the_log_is_told() {
        let (log, file) = log(64);
        let end = 64 * 8 * 4096;
        assert!(log.mark(end - 1, 1));
        for (address, len) in [(end, 1), (end - 1, 2), (u64::MAX, 1), (u64::MAX, 2), (0, u64::MAX)] {
            assert!(!log.mark(address, len), "{len} bytes at {address}");
        }
        assert_eq!(marked(&file), [64 * 8 - 1]);
    }
}
