//! Which process's frontend had the rings of a VHD last, and which ones had them before and still wait at the socket.
//!
//! It outlives the daemon beside the view (`placement::view::Keep`), because frontends do: the source of a live migration that has stopped
//! starts its rings again when it connects to the next daemon, and what is in them is older than what the destination has written.
//!
//! One thread at a time changes it (`vhost_user::turn`), before any ring runs by the change. A daemon that is killed between two
//! stores leaves a process that there is not, or nobody: then nothing has run yet that others could be too late for.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use uuid::Uuid;

use super::process::Process;
use crate::base::kept::{PAGE, Words};
use crate::placement::view::Keep;

/// In the place of the first extent in the name of the file: no VHD has it.
pub const PART: u32 = u32::MAX;

/// And how many extents the file is for.
pub const PART_EXTENTS: u32 = 1;

/// Processes that had the rings before. More than two at a time would take as many migrations whose sources do not end.
pub const EARLIER_MAX: usize = 3;

/// A process: its number, then its start. The last one comes first.
const WORDS: usize = 2 * (1 + EARLIER_MAX);

/// Beside the number of the last one: it has stopped its rings.
const STOPPED: u64 = 1 << 32;

/// Who had the rings last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Last {
    /// The process.
    pub process: Process,
    /// It has stopped all of them: others may go on.
    pub stopped: bool,
}

/// Who had the rings of a VHD.
pub struct LastActive(Words<AtomicU64>);

impl Default for LastActive {
    /// Nobody, and nobody will know after this daemon.
    fn default() -> LastActive {
        LastActive(Words::zeroed(words()))
    }
}

fn words() -> u32 {
    u32::try_from(WORDS).expect("a few")
}

fn pid_of(word: u64) -> u32 {
    // The upper half has flags.
    u32::try_from(word & u64::from(u32::MAX)).expect("32 bits")
}

impl LastActive {
    /// Nobody, kept for the next daemon if there is room for that.
    #[must_use]
    pub fn kept(vhd: Uuid, keep: &Arc<dyn Keep>) -> LastActive {
        let Some(file) = keep.make(vhd, PART, PART_EXTENTS) else { return LastActive::default() };
        match file.reserve(0..PAGE) {
            Ok(()) => LastActive(Words::within(&file, 0, words())),
            Err(error) => {
                keep.is_full(vhd, &error);
                LastActive::default()
            }
        }
    }

    /// Takes over what another daemon has left in a file.
    ///
    /// # Errors
    /// What the kernel says; or the file is too short.
    pub fn take_over(&self, file: &File) -> io::Result<()> {
        if file.metadata()?.len() == 0 {
            // Its daemon was killed when it had just made it.
            return Ok(());
        }
        let mut bytes = [0; WORDS * size_of::<u64>()];
        file.read_exact_at(&mut bytes, 0)?;
        for (word, bytes) in self.0.iter().zip(bytes.as_chunks().0) {
            word.store(u64::from_ne_bytes(*bytes), Ordering::Release);
        }
        Ok(())
    }

    fn get(&self, at: usize) -> Option<Process> {
        let pid = pid_of(self.0[2 * at].load(Ordering::Acquire));
        (pid != 0).then(|| Process { pid, start: self.0[2 * at + 1].load(Ordering::Acquire) })
    }

    fn put(&self, at: usize, process: Option<Process>) {
        self.0[2 * at].store(0, Ordering::Release);
        if let Some(Process { pid, start }) = process {
            self.0[2 * at + 1].store(start, Ordering::Release);
            self.0[2 * at].store(pid.into(), Ordering::Release);
        }
    }

    /// Who had the rings last, or has them. `None`: nobody, one that has left since, or one that cannot be told from others.
    #[must_use]
    pub fn last(&self) -> Option<Last> {
        let stopped = self.0[0].load(Ordering::Acquire) & STOPPED != 0;
        self.get(0).map(|process| Last { process, stopped })
    }

    /// It has them now.
    pub fn set_last(&self, process: Option<Process>) {
        self.put(0, process);
    }

    /// The last one has stopped them.
    pub fn set_stopped(&self) {
        self.0[0].fetch_or(STOPPED, Ordering::AcqRel);
    }

    /// Whether this process had the rings before another one went on with them.
    #[must_use]
    pub fn was_earlier(&self, process: Process) -> bool {
        (1..=EARLIER_MAX).any(|at| self.get(at) == Some(process))
    }

    /// This process had them, and another one is about to go on.
    pub fn add_earlier(&self, process: Process) {
        if self.was_earlier(process) {
            return;
        }
        let free = (1..=EARLIER_MAX).find(|at| self.get(*at).is_none_or(|earlier| !earlier.is_alive()));
        let at = free.unwrap_or_else(|| {
            (2..=EARLIER_MAX).for_each(|at| self.put(at - 1, self.get(at)));
            EARLIER_MAX
        });
        self.put(at, Some(process));
    }

    /// This process may have the rings again like any other.
    pub fn forget_earlier(&self, process: Process) {
        (1..=EARLIER_MAX).filter(|at| self.get(*at) == Some(process)).for_each(|at| self.put(at, None));
    }

    /// Whether a process is there that had the rings before another one.
    #[must_use]
    pub fn has_earlier(&self) -> bool {
        (1..=EARLIER_MAX).filter_map(|at| self.get(at)).any(Process::is_alive)
    }

    /// Whether the next daemon has to know: some of them may connect to it.
    #[must_use]
    pub fn matters(&self) -> bool {
        (0..=EARLIER_MAX).filter_map(|at| self.get(at)).any(Process::is_alive)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::kept::KeptFile;

    const ENDED: Process = Process { pid: u32::MAX, start: 1 };

    fn ours() -> Process {
        Process::of(std::process::id()).unwrap().unwrap()
    }

    #[test]
    fn the_next_daemon_finds_who_it_was() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE as u64).unwrap();
        let kept = LastActive(Words::within(&KeptFile::map(file.try_clone().unwrap(), PAGE).unwrap(), 0, words()));
        assert!(kept.last().is_none() && !kept.matters());
        kept.set_last(Some(ENDED));
        kept.add_earlier(ours());
        let next = LastActive::default();
        next.take_over(&file).unwrap();
        assert_eq!(next.last(), Some(Last { process: ENDED, stopped: false }));
        assert!(next.was_earlier(ours()) && !next.was_earlier(ENDED) && next.matters());
        kept.set_stopped();
        next.take_over(&file).unwrap();
        assert_eq!(next.last(), Some(Last { process: ENDED, stopped: true }));
        assert!(next.has_earlier());
        next.forget_earlier(ours());
        assert!(!next.matters(), "the last one has ended");
        next.set_last(Some(ours()));
        assert!(next.last().is_some_and(|last| !last.stopped) && next.matters() && !next.has_earlier());
        next.set_last(None);
        assert_eq!(next.last(), None);
        file.set_len(8).unwrap();
        assert!(next.take_over(&file).is_err());
        file.set_len(0).unwrap();
        next.take_over(&file).unwrap();
    }

    #[test]
    fn those_that_have_ended_make_room() {
        let kept = LastActive::default();
        let ended = |start| Process { start, ..ENDED };
        kept.add_earlier(ours());
        (0..10).for_each(|start| kept.add_earlier(ended(start)));
        assert!(kept.was_earlier(ours()) && kept.was_earlier(ended(9)) && !kept.was_earlier(ended(0)));
    }
}
