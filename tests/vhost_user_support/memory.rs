//! What a guest does to the file of its memory.

use std::os::fd::AsRawFd;

use super::Guest;

impl Guest {
    /// From now on its memory can be mapped for reading only.
    pub fn seal_memory(&self) {
        rustix::fs::fcntl_add_seals(&self.file, rustix::fs::SealFlags::FUTURE_WRITE).unwrap();
    }

    /// Makes the file behind the memory shorter, as no frontend should.
    pub fn truncate_memory(&self, len: u64) {
        self.file.set_len(len).unwrap();
    }

    /// The file behind its memory.
    pub fn memory_file(&self) -> std::fs::File {
        self.file.try_clone().unwrap()
    }

    pub fn file_descriptor(&self) -> i32 {
        self.file.as_raw_fd()
    }
}
