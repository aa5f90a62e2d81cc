//! Parts of `layouts.rs`: guests whose load checks each answer, jobs and resizes of their VHDs, disks that come and go, and what the
//! daemon counts meanwhile.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::lab::daemon::{Pool, SPANBLK};

pub mod counters;
pub mod disks;
pub mod jobs;
pub mod resize;

/// A VHD under load.
pub struct Vhd {
    /// Its name.
    pub name: &'static str,
    /// Options of `vhd create`.
    pub options: &'static [&'static str],
    /// Sectors of a block.
    pub block: u64,
    /// Whether the guest makes it writethrough.
    pub writethrough: bool,
    /// Whether it has, or will have, several replicas.
    pub replicated: bool,
}

/// The VHDs.
pub const VHDS: [Vhd; 5] = [
    Vhd::new("iso", &["--layout", "isolated", "--block-size", "512"], 1),
    Vhd { replicated: true, ..Vhd::new("span", &["--layout", "spanned", "--block-size", "4096"], 8) },
    Vhd { writethrough: true, ..Vhd::new("through", &["--layout", "spanned", "--width", "2"], 1) },
    Vhd::new("thick", &["--layout", "spanned", "--width", "2", "--thick"], 1),
    Vhd { replicated: true, ..Vhd::new("twin", &["--layout", "spanned", "--replicas", "2"], 1) },
];

impl Vhd {
    const fn new(name: &'static str, options: &'static [&'static str], block: u64) -> Vhd {
        Vhd { name, options, block, writethrough: false, replicated: false }
    }
}

/// What was done, by kind.
#[derive(Default)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// Once more.
    pub fn count(&mut self, what: &'static str) {
        *self.0.entry(what).or_default() += 1;
    }

    /// How often.
    #[must_use]
    pub fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// All of it in one line.
    #[must_use]
    pub fn told(&self) -> String {
        self.0.iter().map(|(kind, count)| format!("{kind} {count}")).collect::<Vec<_>>().join(", ")
    }
}

/// Asks the daemon; `None` if the state of the pool forbids it, perhaps because a disk has just left.
///
/// # Errors
/// Anything else that it says.
pub fn ask(pool: &Pool, args: &[&str]) -> Result<Option<Value>> {
    let output = command(pool, args).output()?;
    match output.status.code() {
        Some(0) => Ok(Some(serde_json::from_slice(&output.stdout)?)),
        Some(3 | 4) => Ok(None),
        _ => bail!("{args:?}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}

/// A question to the daemon, to be answered in JSON.
#[must_use]
pub fn command(pool: &Pool, args: &[&str]) -> Command {
    let mut command = Command::new(SPANBLK);
    command.arg("--control").arg(pool.control()).arg("--json").args(args);
    command
}
