//! The system calls that host disks need, each behind a safe function.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_len(result: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

fn offset_of(offset: u64) -> io::Result<libc::off_t> {
    libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// `open(2)`; `O_CLOEXEC` is added.
pub(super) fn open(path: &Path, flags: libc::c_int) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a terminated string that outlives the call.
    let fd = check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) })?;
    // SAFETY: just opened, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `pread(2)`: may be short.
pub(super) fn pread(fd: BorrowedFd<'_>, into: &mut [u8], offset: u64) -> io::Result<usize> {
    let offset = offset_of(offset)?;
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`, which is ours for the call.
    check_len(unsafe { libc::pread(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len(), offset) })
}

/// `pwrite(2)`: may be short.
pub(super) fn pwrite(fd: BorrowedFd<'_>, from: &[u8], offset: u64) -> io::Result<usize> {
    let offset = offset_of(offset)?;
    // SAFETY: the kernel reads at most `from.len()` bytes of `from`, which is borrowed for the call.
    check_len(unsafe { libc::pwrite(fd.as_raw_fd(), from.as_ptr().cast(), from.len(), offset) })
}

/// `fdatasync(2)`.
pub(super) fn fdatasync(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes no memory.
    check(unsafe { libc::fdatasync(fd.as_raw_fd()) }).map(drop)
}

/// `flock(2)` without waiting.
pub(super) fn try_lock(fd: BorrowedFd<'_>, exclusive: bool) -> io::Result<()> {
    let how = if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: takes no memory.
    check(unsafe { libc::flock(fd.as_raw_fd(), how | libc::LOCK_NB) }).map(drop)
}

/// What `statx(2)` says of an open file.
pub(super) fn statx(fd: BorrowedFd<'_>) -> io::Result<libc::statx> {
    let mask = libc::STATX_BASIC_STATS | libc::STATX_DIOALIGN;
    // SAFETY: `statx` is plain integers: all zeros is a value.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    // SAFETY: the path is a terminated string, `stat` is ours for the call.
    check(unsafe { libc::statx(fd.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, mask, &raw mut stat) })?;
    Ok(stat)
}

/// Logical block size of a block device (`BLKSSZGET`).
pub(super) fn logical_block_size(fd: BorrowedFd<'_>) -> io::Result<u32> {
    let mut size: libc::c_int = 0;
    // SAFETY: this request writes one `int` to its argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::BLKSSZGET, &raw mut size) })?;
    u32::try_from(size).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// `BLKGETSIZE64`, `_IOR(0x12, 114, size_t)`.
const BLKGETSIZE64: libc::Ioctl = {
    let read: libc::Ioctl = if cfg!(any(target_arch = "powerpc64", target_arch = "mips64", target_arch = "sparc64")) {
        1 << 30
    } else {
        2 << 30
    };
    read | ((size_of::<usize>() as libc::Ioctl) << 16) | (0x12 << 8) | 114
};

/// `BLKDISCARD`, `_IO(0x12, 119)`.
const BLKDISCARD: libc::Ioctl = {
    let none: libc::Ioctl =
        if cfg!(any(target_arch = "powerpc64", target_arch = "mips64", target_arch = "sparc64")) { 1 << 29 } else { 0 };
    none | (0x12 << 8) | 119
};

/// `BLKGETDISKSEQ`, `_IOR(0x12, 128, __u64)`.
const BLKGETDISKSEQ: libc::Ioctl = {
    let read: libc::Ioctl = if cfg!(any(target_arch = "powerpc64", target_arch = "mips64", target_arch = "sparc64")) {
        1 << 30
    } else {
        2 << 30
    };
    read | ((size_of::<u64>() as libc::Ioctl) << 16) | (0x12 << 8) | 128
};

/// Number of a block device among all that there were since the kernel started.
pub(super) fn device_sequence(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut sequence: u64 = 0;
    // SAFETY: this request writes one `u64` to its argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETDISKSEQ, &raw mut sequence) })?;
    Ok(sequence)
}

/// Bytes of a block device.
pub(super) fn device_size(fd: BorrowedFd<'_>) -> io::Result<u64> {
    let mut size: u64 = 0;
    // SAFETY: this request writes one `u64` to its argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKGETSIZE64, &raw mut size) })?;
    Ok(size)
}

/// Discards a range of a block device.
pub(super) fn discard(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let range = [offset, len];
    // SAFETY: this request reads two `u64` from its argument.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), BLKDISCARD, range.as_ptr()) }).map(drop)
}

/// Punches a hole into a file.
pub(super) fn punch_hole(fd: BorrowedFd<'_>, offset: u64, len: u64) -> io::Result<()> {
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let (offset, len) = (offset_of(offset)?, offset_of(len)?);
    // SAFETY: takes no memory.
    check(unsafe { libc::fallocate(fd.as_raw_fd(), mode, offset, len) }).map(drop)
}

/// The device number of major and minor, as `st_dev` and `st_rdev` have it.
pub(super) fn device_number(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}

/// Major and minor of a device number.
pub(super) fn major_minor(device: u64) -> (u32, u32) {
    (libc::major(device), libc::minor(device))
}
