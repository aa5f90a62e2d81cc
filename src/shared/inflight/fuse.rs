//! SIGKILL between two stores, for tests: from one of them on, nothing that this thread stores in shared memory arrives. Asked in
//! tests only; always here, because benchmarks build the rings by themselves, tests included.

use std::cell::Cell;

thread_local! {
    static LEFT: Cell<u64> = const { Cell::new(u64::MAX) };
}

/// So many stores more arrive.
pub fn set(stores: u64) {
    LEFT.set(stores);
}

/// All stores arrive again. Whether the fuse had blown.
pub fn reset() -> bool {
    LEFT.replace(u64::MAX) == 0
}

/// Whether the process would be dead by now.
pub fn is_dead() -> bool {
    LEFT.get() == 0
}

/// As [`is_dead`], and counts. Asked once before every store.
pub fn is_blown() -> bool {
    let left = LEFT.get();
    if left != u64::MAX {
        LEFT.set(left.saturating_sub(1));
    }
    left == 0
}
