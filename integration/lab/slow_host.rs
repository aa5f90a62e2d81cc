//! A host whose disks are slow, and the VHDs of `fio_guest` on them: what is asked of them piles up.

use std::process::ExitCode;

use anyhow::Result;

use super::daemon::Pool;
use super::fio_guest::{self, Place};
use super::machine::{Drive, Machine};
use super::report::Report;
use super::throttle::{Limit, SlowDisks};
use super::tools::RunDir;

const MIB: u64 = 1 << 20;

/// Slow disks, and a pool of them that is served.
pub struct SlowHost {
    /// The pool, with both VHDs. It ends before its disks do.
    pub pool: Pool,
    slow: SlowDisks,
}

impl SlowHost {
    /// Where such a host can be. `None`: something is missing, which the report says.
    pub fn prepare(report: &mut Report) -> Option<Place> {
        if let Some(reason) = SlowDisks::unavailable() {
            report.skip("slow disks", reason);
            return None;
        }
        Place::prepare(report)
    }

    /// Its disks can do so much each, once [`SlowHost::hold_back`] has been called.
    ///
    /// # Errors
    /// What the system or spanblk says.
    pub fn start(dir: &RunDir, limit: Limit) -> Result<SlowHost> {
        let slow = SlowDisks::on_files(dir.disks(), 2, 256 * MIB)?;
        slow.limit(limit)?;
        let mut pool = Pool::create(dir.sockets(), slow.devices.clone(), &["--force"])?;
        pool.serve_all()?;
        fio_guest::create_vhds(&pool)?;
        Ok(SlowHost { pool, slow })
    }

    /// Makes the disks slow for the daemon that runs now.
    ///
    /// # Errors
    /// What the system says.
    pub fn hold_back(&self) -> Result<()> {
        self.slow.hold_back(self.pool.id()?)
    }

    /// The VHDs as QEMU gets them.
    #[must_use]
    pub fn drives(&self) -> Vec<Drive> {
        fio_guest::drives(&self.pool)
    }

    /// Ends fio: rounds on each disk.
    ///
    /// # Errors
    /// What fio or the guest's kernel has found wrong.
    pub fn end_fio(&self, machine: &mut Machine) -> Result<Vec<u64>> {
        fio_guest::end(machine, &self.pool)
    }

    /// The guest ends, then the daemon, and nothing was wrong all the time.
    pub fn finish(mut self, machine: Machine, report: Report) -> ExitCode {
        fio_guest::finish(&mut self.pool, machine, report)
    }
}
