//! How many files the daemon may have open, and which were open when it began.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};

/// The first descriptor that a service manager passes on.
const FIRST_PASSED: i32 = 3;

/// Raises the limit of open files to what the administrator allows: each queue of each guest has descriptors, and the usual
/// soft limit is for programs that use `select`. Returns the limit.
///
/// # Errors
/// What the kernel said.
pub fn raise_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure that outlives the call.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: a valid structure that outlives the call.
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(limit.rlim_cur)
}

/// Takes the first `count` descriptors that a service manager has passed on; `None` in the place of one that is not open. To be called
/// once, before anything else is opened that could have such a number. Programs that are run do not get them.
pub fn take_passed(count: usize) -> Vec<Option<OwnedFd>> {
    let numbers = (FIRST_PASSED..).take(count);
    let take = |number| {
        // SAFETY: sets a flag of a descriptor, which need not be open.
        let is_open = unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } == 0;
        // SAFETY: it is open, and was when this process began, so that nobody here owns it.
        is_open.then(|| unsafe { OwnedFd::from_raw_fd(number) })
    };
    numbers.map(take).collect()
}

/// How many files may be open.
///
/// # Errors
/// What the kernel said.
pub fn limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a valid structure that outlives the call.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) };
    if result == 0 { Ok(limit.rlim_cur) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_is_raised() {
        assert!(super::raise_limit().unwrap() >= 256);
    }
}
