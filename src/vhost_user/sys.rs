//! System calls that the standard library does not have. Everything unsafe of this module is here.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tokio::io::unix::AsyncFd;

/// Watches a socket from the current runtime.
pub(super) fn watch(socket: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned by what is registered, so it stays open and the same until that is dropped.
    unsafe { AsyncFd::register(socket) }.map_err(|error| error.into_parts().1)
}

/// Reads into `into` without taking the bytes away. Does not wait.
pub(super) fn peek(socket: impl AsFd, into: &mut [u8]) -> io::Result<usize> {
    let fd = socket.as_fd().as_raw_fd();
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT;
    // SAFETY: the kernel writes at most `into.len()` bytes to `into`.
    let got = unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), flags) };
    usize::try_from(got).map_err(|_| io::Error::last_os_error())
}

/// Writes what fits without waiting. A peer that is gone is an error and no signal.
pub(super) fn send_now(socket: impl AsFd, bytes: &[u8]) -> io::Result<usize> {
    let fd = socket.as_fd().as_raw_fd();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the kernel reads at most `bytes.len()` bytes from `bytes`.
    let sent = unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) };
    usize::try_from(sent).map_err(|_| io::Error::last_os_error())
}

/// A copy of the first file descriptor that comes with the next bytes, without taking anything away. Does not wait.
pub(super) fn peek_descriptor(socket: impl AsFd) -> io::Result<Option<OwnedFd>> {
    let mut byte = [0_u8; 1];
    let mut iovec = libc::iovec { iov_base: byte.as_mut_ptr().cast(), iov_len: byte.len() };
    // Aligned as a header must be, with room for one descriptor; the kernel closes what does not fit.
    let mut control = [0_u64; 4];
    // SAFETY: all-zero is a value of this struct of integers and pointers.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut iovec;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    // SAFETY: takes no pointer.
    message.msg_controllen = unsafe { libc::CMSG_SPACE(FD_LEN) } as usize;
    assert!(message.msg_controllen <= size_of_val(&control));
    let flags = libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_CMSG_CLOEXEC;
    // SAFETY: the message points to buffers of ours, of the lengths that it says, which outlive the call.
    if unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has filled in the message; the result is null or points to a header within `control`.
    let Some(header) = (unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() }) else { return Ok(None) };
    // SAFETY: takes no pointer.
    let whole = unsafe { libc::CMSG_LEN(FD_LEN) } as usize;
    if header.cmsg_level != libc::SOL_SOCKET || header.cmsg_type != libc::SCM_RIGHTS || header.cmsg_len < whole {
        return Ok(None);
    }
    // SAFETY: the header says that a descriptor follows.
    let fd: RawFd = unsafe { std::ptr::read_unaligned(libc::CMSG_DATA(header).cast()) };
    // SAFETY: the kernel made the descriptor for us in this call.
    Ok(Some(unsafe { OwnedFd::from_raw_fd(fd) }))
}

/// Bytes of a file descriptor in a control message.
const FD_LEN: libc::c_uint = 4;

const _: () = assert!(size_of::<RawFd>() == FD_LEN as usize);

/// Makes the descriptor `fd` stand for `socket` from now on.
pub(super) fn replace(fd: RawFd, socket: impl AsFd) -> io::Result<()> {
    // SAFETY: whoever has the first descriptor keeps it, and an open one; nothing in our memory is touched.
    let result = unsafe { libc::dup3(socket.as_fd().as_raw_fd(), fd, libc::O_CLOEXEC) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Bytes that can be read without waiting.
pub(super) fn readable_bytes(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(usize::try_from(bytes).unwrap_or(0))
}

fn poll(fd: impl AsFd, events: libc::c_short) -> io::Result<libc::c_short> {
    let mut entry = libc::pollfd { fd: fd.as_fd().as_raw_fd(), events, revents: 0 };
    // SAFETY: one valid entry, and no waiting.
    let result = unsafe { libc::poll(&raw mut entry, 1, 0) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(entry.revents) }
}

/// Whether a message of ordinary size can be written without waiting (or the peer is gone, and writing fails at once).
pub(super) fn is_writable(socket: impl AsFd) -> io::Result<bool> {
    Ok(poll(socket, libc::POLLOUT)? != 0)
}

/// Whether the peer has closed its end, or ours has been shut down.
pub(super) fn is_hung_up(socket: impl AsFd) -> bool {
    poll(socket, libc::POLLRDHUP).is_ok_and(|events| events != 0)
}

/// Whether somebody listens on the socket at `path`, which must exist. Does not wait.
pub(super) fn is_listening(path: &Path) -> io::Result<bool> {
    // SAFETY: all-zero is a value of this struct of integers.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::sa_family_t::try_from(libc::AF_UNIX).expect("a small constant");
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = libc::c_char::from_ne_bytes([*from]);
    }
    // SAFETY: makes a descriptor; nothing in our memory is touched.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let len = libc::socklen_t::try_from(size_of_val(&address)).expect("a small struct");
    // SAFETY: the address is as long as said.
    let result = unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), len) };
    let error = io::Error::last_os_error();
    // Anything but a refusal (a full backlog, no permission) says that somebody is there.
    Ok(result == 0 || error.raw_os_error() != Some(libc::ECONNREFUSED))
}

/// Memory that a file descriptor stands for, of a length that nobody can change.
pub(super) fn sealed_memory(name: &CStr, len: u64) -> io::Result<File> {
    // SAFETY: the name is NUL-terminated; makes a descriptor.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is new, and nobody else's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(len)?;
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: takes no pointer.
    let result = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(file) }
}

/// File systems whose pages come from another process or another host, and may never come: FUSE, NFS, SMB, 9P, Ceph, AFS, Coda.
const REMOTE: [u32; 8] =
    [0x6573_5546, 0x6969, 0xff53_4d42, 0xfe53_4d42, 0x0102_1997, 0x00c3_6400, 0x5346_414f, 0x7375_7245];

/// How a file is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Paging {
    /// Bytes of a page.
    pub(super) page: usize,
    /// They are huge pages: only whole ones can be mapped and unmapped.
    pub(super) huge: bool,
    /// Whether somebody else decides when a page is there.
    pub(super) remote: bool,
}

/// Whether a file system is one of those, by its magic number.
fn is_remote(magic: libc::__fsword_t) -> bool {
    // Some have the highest bit set, which is a sign for some.
    u32::try_from(magic & 0xffff_ffff).is_ok_and(|magic| REMOTE.contains(&magic))
}

/// Finds out how a file will be mapped.
pub(super) fn paging(file: impl AsFd) -> io::Result<Paging> {
    // SAFETY: all-zero is a value of this struct of integers.
    let mut about: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: writes one struct.
    if unsafe { libc::fstatfs(file.as_fd().as_raw_fd(), &raw mut about) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let huge = about.f_type == libc::HUGETLBFS_MAGIC;
    let page = if huge {
        about.f_bsize
    } else {
        // SAFETY: takes no pointer.
        unsafe { libc::sysconf(libc::_SC_PAGESIZE) }
    };
    let page = usize::try_from(page).expect("pages have a size");
    Ok(Paging { page, huge, remote: is_remote(about.f_type) })
}

/// Sets the permission bits that a socket's path gets when it is bound.
pub(super) fn set_mode_before_bind(socket: impl AsFd, mode: u32) -> io::Result<()> {
    // SAFETY: changes the socket's own inode, nothing in our memory.
    let result = unsafe { libc::fchmod(socket.as_fd().as_raw_fd(), mode) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number of a user; `None` if there is none of that name.
pub(super) fn user_id(name: &str) -> io::Result<Option<u32>> {
    lookup(name, |name, buffer| {
        // SAFETY: all-zero is a value of this struct of integers and pointers.
        let mut entry: libc::passwd = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: the name is NUL-terminated, the buffer is as long as said, both results are ours.
        let error = unsafe {
            libc::getpwnam_r(name.as_ptr(), &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found)
        };
        (error, (!found.is_null()).then_some(entry.pw_uid))
    })
}

/// The number of a group; `None` if there is none of that name.
pub(super) fn group_id(name: &str) -> io::Result<Option<u32>> {
    lookup(name, |name, buffer| {
        // SAFETY: all-zero is a value of this struct of integers and pointers.
        let mut entry: libc::group = unsafe { std::mem::zeroed() };
        let mut found = std::ptr::null_mut();
        // SAFETY: the name is NUL-terminated, the buffer is as long as said, both results are ours.
        let error = unsafe {
            libc::getgrnam_r(name.as_ptr(), &raw mut entry, buffer.as_mut_ptr(), buffer.len(), &raw mut found)
        };
        (error, (!found.is_null()).then_some(entry.gr_gid))
    })
}

/// A number stands for itself; a name is looked up with a buffer that grows until the entry fits.
fn lookup(
    name: &str,
    call: impl Fn(&CString, &mut [libc::c_char]) -> (libc::c_int, Option<u32>),
) -> io::Result<Option<u32>> {
    if let Ok(number) = name.parse() {
        return Ok(Some(number));
    }
    let name = CString::new(name)?;
    let mut buffer = vec![0; 1 << 10];
    loop {
        match call(&name, &mut buffer) {
            (0 | libc::ENOENT | libc::ESRCH | libc::EBADF | libc::EPERM, found) => return Ok(found),
            (libc::ERANGE, _) if buffer.len() < 1 << 20 => buffer.resize(buffer.len() * 2, 0),
            (libc::EINTR, _) => {}
            (error, _) => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A file of so many huge pages; `None` where the kernel has no such files. Nothing in it may be touched: there may be no memory.
    pub(in super::super) fn huge_pages(name: &str, pages: u64) -> Option<File> {
        let flags = rustix::fs::MemfdFlags::CLOEXEC | rustix::fs::MemfdFlags::HUGETLB;
        let Ok(file) = rustix::fs::memfd_create(name, flags) else {
            eprintln!("SKIP: this needs hugetlbfs");
            return None;
        };
        let file = File::from(file);
        let paging = paging(&file).unwrap();
        assert!(paging.huge);
        file.set_len(pages * paging.page as u64).unwrap();
        Some(file)
    }

    /// How many mappings this process has of a memory file.
    pub(in super::super) fn mappings_of(name: &str) -> usize {
        std::fs::read_to_string("/proc/self/maps").unwrap().lines().filter(|line| line.contains(name)).count()
    }

    #[test]
    fn files_of_others_and_our_own() {
        let paging = paging(tempfile::tempfile().unwrap()).unwrap();
        assert!(paging.page.is_power_of_two() && !paging.remote && !paging.huge);
        const { assert!(libc::FUSE_SUPER_MAGIC == 0x6573_5546 && libc::NFS_SUPER_MAGIC == 0x6969) };
        for local in [libc::TMPFS_MAGIC, libc::HUGETLBFS_MAGIC, libc::EXT4_SUPER_MAGIC, libc::XFS_SUPER_MAGIC] {
            assert!(!is_remote(local));
        }
        assert!(is_remote(libc::FUSE_SUPER_MAGIC) && is_remote(libc::NFS_SUPER_MAGIC) && is_remote(0xff53_4d42));
    }

    #[test]
    fn owners_by_name_and_number() {
        assert_eq!(user_id("root").unwrap(), Some(0));
        assert_eq!(group_id("root").unwrap(), Some(0));
        assert_eq!(user_id("12345").unwrap(), Some(12345));
        assert_eq!(user_id("no-such-user-here").unwrap(), None);
        assert_eq!(group_id("no-such-group-here").unwrap(), None);
        assert!(user_id("a\0b").is_err());
    }
}
