//! The files that a run of measurements leaves, and what they say of the programs.

use std::ffi::OsStr;
use std::fs;
use std::process::Command;

use anyhow::{Context, Result};

use super::tools::{from_root, run, target_dir};

/// Writes a file to where results go: `LAB_BENCH_OUT`, or `target/bench`.
///
/// # Errors
/// As of the file system.
pub fn save(name: &str, text: &str) -> Result<()> {
    let dir = std::env::var_os("LAB_BENCH_OUT").map_or_else(|| target_dir().with_file_name("bench"), from_root);
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
    let path = dir.join(name);
    fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    println!("   {}", path.display());
    Ok(())
}

/// The first line of what a program says of its version.
///
/// # Errors
/// It does not tell.
pub fn version(program: impl AsRef<OsStr>) -> Result<String> {
    let text = run(Command::new(program).arg("--version"))?;
    Ok(text.lines().next().unwrap_or("?").to_owned())
}
