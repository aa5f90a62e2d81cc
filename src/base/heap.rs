//! Memory that nothing is in.

/// Gives free memory back to the kernel. The allocator by itself gives back only what is at the end of its heap, so that after
/// work that took much memory for a while little of it comes back. Takes a few milliseconds for each 100 MiB.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer, and may be called by any thread at any time.
    unsafe {
        libc::malloc_trim(0);
    }
}
