//! Daemons beside each other, each of a variant and on a disk of its own, that are measured in turns; and if there is another build of spanblk
//! to compare with, that is one, too.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::Figures;
use lab::daemon::{Pool, spanblk};
use lab::tools::from_root;

/// What a daemon is a variant of.
pub trait Variant {
    fn name(&self) -> &'static str;

    /// It is the other build.
    fn is_earlier(&self) -> bool;

    /// Serves with this program, with the file of a disk and a directory for sockets that are its own.
    ///
    /// # Errors
    /// What spanblk says.
    fn serve(&self, program: &Path, disk: PathBuf, sockets: &Path) -> Result<Pool>;
}

/// The program of another build: `LAB_BENCH_BEFORE`.
#[must_use]
pub fn other_build() -> Option<PathBuf> {
    std::env::var_os("LAB_BENCH_BEFORE").filter(|program| !program.is_empty()).map(from_root)
}

/// A daemon of each variant for which there is a program.
///
/// # Errors
/// What spanblk says.
pub fn serve_all<'a, V: Variant>(variants: &'a [V], files: &Path, sockets: &Path) -> Result<Vec<(&'a V, Pool)>> {
    let before = other_build();
    let mut daemons = Vec::new();
    for (number, variant) in variants.iter().enumerate() {
        let program = if variant.is_earlier() { before.as_deref() } else { Some(spanblk()) };
        let Some(program) = program else { continue };
        let sockets = sockets.join(number.to_string());
        fs::create_dir(&sockets)?;
        let pool = variant.serve(program, files.join(format!("d{number}.img")), &sockets);
        daemons.push((variant, pool.with_context(|| format!("the daemon '{}'", variant.name()))?));
    }
    Ok(daemons)
}

/// What each of them has come to in each round.
///
/// # Errors
/// What spanblk says.
pub fn in_turns<V>(
    daemons: &[(&V, Pool)],
    rounds: usize,
    sample: impl Fn(&V, &Pool, usize) -> Result<Figures>,
) -> Result<Vec<Vec<Figures>>> {
    let mut samples: Vec<Vec<Figures>> = daemons.iter().map(|_| Vec::new()).collect();
    for round in 0..rounds {
        // Whoever comes first has nothing that goes before; so they take turns.
        for turn in 0..daemons.len() {
            let index = (round + turn) % daemons.len();
            let (variant, pool) = &daemons[index];
            samples[index].push(sample(variant, pool, round)?);
        }
    }
    Ok(samples)
}

/// Stops all of them, and removes their disks.
///
/// # Errors
/// One is not as it should be.
pub fn end<V>(daemons: Vec<(&V, Pool)>, files: &Path) -> Result<()> {
    for (_, mut pool) in daemons {
        pool.stop()?;
        pool.check()?;
    }
    Ok(fs::remove_dir_all(files)?)
}
