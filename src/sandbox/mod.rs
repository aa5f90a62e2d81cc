//! What this process may still do once it serves: no program, no new socket, no file by name, nobody's rights.
//!
//! * [`seccomp`]: the system calls that are left. `calls`: their list, with reasons. `trap`: what happens at another one.
//! * [`files`]: the files that can still be opened by name (Landlock). [`user`]: another user than root, without capabilities.
//!
//! Landlock, users and capabilities are facts of the thread that sets them, and of those that it starts later: they are set
//! before there are others. The seccomp filter is put on all threads at once. Whatever needs more goes through the broker
//! (`control::broker`), which is another process.
//!
//! Uses `base` only.

mod calls;
pub mod files;
pub mod seccomp;
mod trap;
pub mod user;

use std::str::FromStr;

use serde::{Deserialize, Deserializer};

/// Whether the sandbox is on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// A system call that is not on the list ends the process; files are out of reach.
    #[default]
    On,
    /// The kernel writes such system calls to its audit log, and carries them out; Landlock, which has no such mode, is off.
    Log,
    /// No sandbox.
    Off,
}

/// No mode of the sandbox.
#[derive(Debug, thiserror::Error)]
#[error("'{0}' is no mode of the sandbox: use on, log or off")]
pub struct NoMode(String);

impl FromStr for Mode {
    type Err = NoMode;

    fn from_str(text: &str) -> Result<Mode, NoMode> {
        match text {
            "on" => Ok(Mode::On),
            "log" => Ok(Mode::Log),
            "off" => Ok(Mode::Off),
            _ => Err(NoMode(text.to_owned())),
        }
    }
}

impl<'de> Deserialize<'de> for Mode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Mode, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
