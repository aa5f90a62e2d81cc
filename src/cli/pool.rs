//! `spanblk pool`, `check` and `metadata`.

use std::path::{Path, PathBuf};

use super::Session;
use super::args::PoolCommand;
use super::output::{Failure, Outcome};
use crate::control::wire::ErrorKind;

/// Runs a command.
pub fn run(_session: &Session, _command: PoolCommand) -> Outcome {
    Err(Failure::new(ErrorKind::Failed, "not built in"))
}
/// x
pub fn dump(_session: &Session, _disks: &[PathBuf], _output: Option<&Path>) -> Outcome {
    Err(Failure::new(ErrorKind::Failed, "not built in"))
}
/// x
pub fn restore(_session: &Session, _file: &Path, _disks: &[PathBuf], _force: bool) -> Outcome {
    Err(Failure::new(ErrorKind::Failed, "not built in"))
}
/// x
pub fn check(_session: &Session, _disks: &[PathBuf]) -> Outcome {
    Err(Failure::new(ErrorKind::Failed, "not built in"))
}
