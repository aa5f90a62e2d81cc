//! Memory that the frontend shares with the daemon.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// Anonymous memory that another process can map.
pub struct SharedMemory {
    /// First byte.
    pub ptr: *mut u8,
    /// Length in bytes.
    pub len: usize,
    /// The memory file.
    pub file: OwnedFd,
}

// SAFETY: a mapping is not tied to the thread that made it; access goes through `&BlkClient` and `&mut BlkClient`.
unsafe impl Send for SharedMemory {}

impl SharedMemory {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// What the kernel said.
    pub fn new(len: usize) -> io::Result<SharedMemory> {
        // SAFETY: the name is a C string; the result is checked.
        let fd = unsafe { libc::memfd_create(c"spanblk-client".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: `fd` was just opened and belongs to nobody else.
        let file = unsafe { OwnedFd::from_raw_fd(fd) };
        let file_len = libc::off_t::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: plain system call on our descriptor.
        if unsafe { libc::ftruncate(fd, file_len) } < 0 {
            return Err(io::Error::last_os_error());
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh shared mapping of our descriptor, at an address of the kernel's choice; the result is checked.
        let ptr = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, libc::MAP_SHARED, fd, 0) };
        if ptr == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(SharedMemory { ptr: ptr.cast(), len, file })
    }
}

impl Drop for SharedMemory {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more: the client that lent it out is gone.
        unsafe { libc::munmap(self.ptr.cast(), self.len) };
    }
}
