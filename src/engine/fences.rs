//! Fences of one disk, on one thread that does I/O: the owner asks when everything that may have seen an old placement on it has
//! completed.
//!
//! Every transfer belongs to the epoch in which it began; a fence closes the current epoch. A fence is reached when its
//! epoch and all before it have no transfer in flight. Requests that wait hold no placement: they look up again. A disk block
//! that is read, changed and written back holds the epoch of the lookup until it has been written, like a transfer.

use std::collections::VecDeque;

/// The fences of one disk. See the module.
#[derive(Debug, Default)]
pub struct Fences {
    /// Epochs that are closed and not reached, oldest first: fence and transfers in flight.
    closed: VecDeque<(u64, u64)>,
    /// Number of the epoch at the front of `closed` (or of the current one, if none is closed).
    first: u64,
    /// Transfers in flight of the current epoch.
    current: u64,
}

impl Fences {
    /// A transfer begins: the epoch it belongs to.
    #[must_use]
    pub fn enter(&mut self) -> u64 {
        self.current += 1;
        self.first + self.closed.len() as u64
    }

    /// A transfer of `epoch` has completed.
    ///
    /// # Panics
    /// If the epoch has none in flight.
    pub fn leave(&mut self, epoch: u64) {
        let index = usize::try_from(epoch - self.first).expect("an epoch with a transfer in flight is not reached");
        let count = match self.closed.get_mut(index) {
            Some((_, count)) => count,
            None => &mut self.current,
        };
        assert!(*count > 0);
        *count -= 1;
    }

    /// Closes the current epoch.
    pub fn begin(&mut self, fence: u64) {
        self.closed.push_back((fence, std::mem::take(&mut self.current)));
    }

    /// The next fence that has been reached.
    pub fn next_reached(&mut self) -> Option<u64> {
        match self.closed.front() {
            Some(&(fence, 0)) => {
                self.closed.pop_front();
                self.first += 1;
                Some(fence)
            }
            _ => None,
        }
    }
}
