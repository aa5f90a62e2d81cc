//! How many files the daemon may have open.

use std::io;

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

#[cfg(test)]
mod tests {
    #[test]
    fn the_limit_is_raised() {
        assert!(super::raise_limit().unwrap() >= 256);
    }
}
