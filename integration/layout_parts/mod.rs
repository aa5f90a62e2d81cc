//! Parts of `layouts.rs`: guests whose load checks each answer, resizes of their VHDs, and what the daemon counts meanwhile.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Result, bail};
use serde_json::Value;

use crate::lab::daemon::{Pool, SPANBLK};

pub mod counters;
pub mod guest;
pub mod resize;

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

/// Asks the daemon; `None` if the state of the pool forbids it.
///
/// # Errors
/// Anything else that it says.
pub fn ask(pool: &Pool, args: &[&str]) -> Result<Option<Value>> {
    let output = command(pool, args).output()?;
    match output.status.code() {
        Some(0) => Ok(Some(serde_json::from_slice(&output.stdout)?)),
        Some(4) => Ok(None),
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
