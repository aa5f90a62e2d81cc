//! `spanblk disk`.

use super::Session;
use super::args::DiskCommand;
use super::output::{Failure, Outcome};
use crate::control::wire::ErrorKind;

/// Runs a command.
pub fn run(_session: &Session, _command: DiskCommand) -> Outcome {
    Err(Failure::new(ErrorKind::Failed, "not built in"))
}
