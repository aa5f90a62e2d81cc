//! Which process a number names: the kernel gives numbers again, but not with the same start.

use std::fs;
use std::io::{self, ErrorKind};

/// A process, from its start to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in clock ticks since the host did.
    pub start: u64,
}

impl Process {
    /// The process that has the number now. `None`: it has ended, or cannot be seen from here (0 stands for one in another process
    /// namespace).
    ///
    /// # Errors
    /// It was not possible to look, for lack of descriptors or memory: it may be there.
    pub fn of(pid: u32) -> io::Result<Option<Process>> {
        Process::by(pid, fs::read_to_string(format!("/proc/{pid}/stat")))
    }

    /// By what was read about it.
    fn by(pid: u32, about: io::Result<String>) -> io::Result<Option<Process>> {
        match about {
            Ok(about) => Ok(start_of(&about).map(|start| Process { pid, start })),
            Err(error) if is_not_there(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether it has not ended yet, as far as anybody knows.
    #[must_use]
    pub fn is_alive(self) -> bool {
        Process::of(self.pid).map_or(true, |found| found == Some(self))
    }
}

/// Whether there is no such process, or the system hides it.
fn is_not_there(error: &io::Error) -> bool {
    let hidden = matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied);
    // It has ended between the opening and the reading.
    hidden || error.raw_os_error() == Some(libc::ESRCH)
}

/// The start of a process by its `/proc/PID/stat` (`man proc_pid_stat`); `None` if it has ended and its parent has not asked for its
/// exit status yet.
fn start_of(about: &str) -> Option<u64> {
    // The second field is a name, in which there may be anything.
    let (_, fields) = about.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    let state = fields.next()?;
    let threads: u64 = fields.nth(16)?.parse().ok()?;
    let start = fields.nth(1)?.parse().ok()?;
    // A first thread that has ended before the others looks like that, too.
    let has_ended = matches!(state, "Z" | "X") && threads <= 1;
    (!has_ended).then_some(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_process_with_the_same_number_is_another() {
        let ours = Process::of(std::process::id()).unwrap().unwrap();
        assert!(ours.is_alive());
        assert!(!Process { start: ours.start + 1, ..ours }.is_alive());
        assert_eq!(Process::of(0).unwrap(), None);
    }

    #[test]
    fn one_that_could_not_be_looked_at_is_not_one_that_is_not_there() {
        let by = |errno| Process::by(7, Err(io::Error::from_raw_os_error(errno)));
        for errno in [libc::ENOENT, libc::ESRCH, libc::EACCES, libc::EPERM] {
            assert_eq!(by(errno).unwrap(), None, "errno {errno}");
        }
        for errno in [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::EIO] {
            assert_eq!(by(errno).unwrap_err().raw_os_error(), Some(errno));
        }
    }

    #[test]
    fn a_name_can_have_anything_in_it() {
        let line = |name: &str, state: &str, threads: u32| {
            format!("7 ({name}) {state} 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 {threads} 0 4711 8\n")
        };
        for name in ["cat", "a) R 1 2", ") (", ""] {
            assert_eq!(start_of(&line(name, "S", 4)), Some(4711), "{name}");
        }
        assert_eq!((start_of(&line("x", "Z", 1)), start_of(&line("x", "Z", 2))), (None, Some(4711)));
        assert_eq!((start_of(""), start_of("7 (x) S 1")), (None, None));
    }
}
