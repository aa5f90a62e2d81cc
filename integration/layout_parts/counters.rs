//! What daemons count, added up over those that were killed.

use anyhow::{Context, Result};

use lab::daemon::Pool;

/// Steps of a move, as metrics name them.
const STEPS: [&str; 5] = ["draining", "copying", "sealing", "syncing", "committing"];

/// Sums over all daemons of a run: each counts from its start on.
#[derive(Debug, Default)]
pub struct Counters {
    /// Guest requests that met a block being copied.
    pub waits: u64,
    /// Moves that ended early, by step.
    pub ended_early: [u64; STEPS.len()],
    /// Kills while there were moves at a step, and how many moves that were.
    killed: [(u64, u64); STEPS.len()],
}

impl Counters {
    /// Kills the daemon, after a last look at what it has counted.
    ///
    /// # Errors
    /// It does not answer before.
    pub fn kill(&mut self, pool: &mut Pool) -> Result<()> {
        // Not by a command, whose start and end would take longer than a step.
        let metrics = pool.metrics();
        pool.kill();
        let metrics = metrics?;
        self.add(&metrics)?;
        for (step, killed) in STEPS.iter().zip(&mut self.killed) {
            let moves = value(&metrics, &format!("spanblk_moves{{step=\"{step}\"}}"))?;
            *killed = (killed.0 + u64::from(moves > 0), killed.1 + moves);
        }
        Ok(())
    }

    /// Adds what a daemon has counted that is about to end.
    ///
    /// # Errors
    /// It does not answer.
    pub fn add_last(&mut self, pool: &Pool) -> Result<()> {
        self.add(&pool.metrics()?)
    }

    fn add(&mut self, metrics: &str) -> Result<()> {
        for (step, sum) in STEPS.iter().zip(&mut self.ended_early) {
            *sum += value(metrics, &format!("spanblk_moves_ended_early_total{{step=\"{step}\"}}"))?;
        }
        let waits = metrics.lines().filter(|line| line.starts_with("spanblk_vhd_copy_waits_total{"));
        self.waits += waits.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum::<u64>();
        Ok(())
    }

    /// Steps at which no move ended early.
    #[must_use]
    pub fn never_ended_early(&self) -> Vec<&'static str> {
        STEPS.into_iter().zip(self.ended_early).filter(|(_, count)| *count == 0).map(|(step, _)| step).collect()
    }

    /// All of it, line by line.
    #[must_use]
    pub fn told(&self) -> Vec<String> {
        let ended: Vec<String> = STEPS.iter().zip(self.ended_early).map(|(step, n)| format!("{step} {n}")).collect();
        let killed = STEPS.iter().zip(self.killed);
        let killed: Vec<String> = killed.map(|(step, (kills, moves))| format!("{step} {kills} ({moves})")).collect();
        vec![
            format!("moves that ended early, by their step: {}", ended.join(", ")),
            format!("SIGKILLs with moves at a step, as of the last answer (and the moves): {}", killed.join(", ")),
        ]
    }
}

/// The value of a series.
fn value(metrics: &str, series: &str) -> Result<u64> {
    let found = metrics.lines().find_map(|line| line.strip_prefix(series)?.trim().parse().ok());
    found.with_context(|| format!("no {series} in the metrics"))
}
