//! Commands for disks that nobody serves: under the pool's lock, through `disk` and `store`.

use std::path::PathBuf;

use crate::cli::Session;
use crate::cli::args::{PoolCreateArgs, PoolDestroyArgs};
use crate::cli::output::{Failure, Outcome};
use crate::control::wire::{CheckReport, ErrorKind};

fn not_yet() -> Failure {
    Failure::new(ErrorKind::Failed, "not built in")
}

/// Formats disks into a new pool.
pub fn create(_session: &Session, _args: &PoolCreateArgs) -> Outcome {
    Err(not_yet())
}

/// Wipes the labels of a pool.
pub fn destroy(_session: &Session, _args: &PoolDestroyArgs) -> Outcome {
    Err(not_yet())
}

/// Brings the format of a pool up to this version.
pub fn upgrade(_session: &Session, _disks: &[PathBuf]) -> Outcome {
    Err(not_yet())
}

/// Proves that the table of a pool is consistent.
pub fn check(_disks: &[PathBuf]) -> Result<CheckReport, Failure> {
    Err(not_yet())
}

/// The table of a pool as text.
pub fn dump(_disks: &[PathBuf]) -> Result<String, Failure> {
    Err(not_yet())
}

/// Replaces the table of a pool.
pub fn restore(_session: &Session, _text: &str, _disks: &[PathBuf], _force: bool) -> Outcome {
    Err(not_yet())
}
