//! Completion scripts and manual pages, generated from the command line's definition.

use std::fs;
use std::path::Path;

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use super::args::Cli;
use super::output::{Outcome, print};

/// Prints a completion script.
pub fn completions(shell: Shell) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "spanblk", &mut script);
    print(&String::from_utf8_lossy(&script))
}

/// Writes a manual page per command.
pub fn man(directory: &Path) -> Outcome {
    fs::create_dir_all(directory).with_context(|| format!("cannot create {}", directory.display()))?;
    clap_mangen::generate_to(Cli::command(), directory)
        .with_context(|| format!("cannot write manual pages into {}", directory.display()))?;
    Ok(())
}
