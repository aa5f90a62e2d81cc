//! That a disk has failed: one flag for all who have to do with it, and a note of it for the next daemon.
//!
//! A failed sync takes back what was completed before: it may not be on the disk. While the daemon lives, nothing more is read from a
//! failed disk. After SIGKILL the disk may work again, and the kernel tells nobody a second time; so the note lies in memory that
//! outlives the process, and is there before anybody can have seen the flag.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering, fence};

use crate::base::kept::Words;

/// A failure is noted for the serving that is, and, while the pool is being opened, for the one before.
const NOTES: usize = 2;

/// Bit of a note: the disk has failed.
pub const FAILED: u64 = 1;

/// Whether an open disk has failed. Shared by all who read, write or sync it.
#[derive(Default)]
pub struct Failure {
    failed: AtomicBool,
    notes: [OnceLock<Words<AtomicU64>>; NOTES],
}

impl Failure {
    /// The disk has failed: noted first, then so for everybody.
    pub fn fail(&self) {
        self.note();
        self.failed.store(true, Ordering::SeqCst);
        // Pairs with the one in `note_in`: either we see the new place, or who has added it sees the flag.
        fence(Ordering::SeqCst);
        self.note();
    }

    /// Whether it has.
    #[must_use]
    pub fn is_failed(&self) -> bool {
        self.failed.load(Ordering::SeqCst)
    }

    /// From now on a failure is noted there, too; one that was before, at once.
    ///
    /// # Panics
    /// If it is the third place, or not a single word.
    pub fn note_in(&self, word: Words<AtomicU64>) {
        assert_eq!(word.len(), 1);
        let taken = self.notes.iter().try_fold(word, |word, note| match note.set(word) {
            Ok(()) => ControlFlow::Break(()),
            Err(word) => ControlFlow::Continue(word),
        });
        assert!(taken.is_break(), "a disk is of two servings at most");
        fence(Ordering::SeqCst);
        if self.is_failed() {
            self.note();
        }
    }

    fn note(&self) {
        for word in self.notes.iter().filter_map(OnceLock::get) {
            word[0].fetch_or(FAILED, Ordering::SeqCst);
        }
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure").field("failed", &self.failed).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::kept::{KeptFile, PAGE};

    #[test]
    fn a_failure_is_noted_wherever_it_is_to_be_and_nothing_else_is_changed() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE as u64).unwrap();
        let kept = KeptFile::map(file, PAGE).unwrap();
        let words: Words<AtomicU64> = Words::within(&kept, 0, 4);
        words[1].store(6, Ordering::SeqCst);
        let place = |at: usize| Words::within(&kept, at * 8, 1);
        let failure = Failure::default();
        failure.note_in(place(1));
        let seen = || [0, 1, 2, 3].map(|at| words[at].load(Ordering::SeqCst));
        assert_eq!((seen(), failure.is_failed()), ([0, 6, 0, 0], false));
        failure.fail();
        assert_eq!((seen(), failure.is_failed()), ([0, 6 | FAILED, 0, 0], true));
        failure.note_in(place(2));
        assert_eq!(seen(), [0, 6 | FAILED, FAILED, 0], "also what was before");
        let (nowhere, failed) = (Failure::default(), Failure::default());
        nowhere.fail();
        assert!(nowhere.is_failed() && !failed.is_failed());
    }

    #[test]
    #[should_panic(expected = "two servings")]
    fn there_are_two_places() {
        let failure = Failure::default();
        (0..3).for_each(|_| failure.note_in(Words::zeroed(1)));
    }
}
