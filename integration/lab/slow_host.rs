//! A host whose disks are slow, and a guest on two VHDs of it in which fio discards, writes and verifies without end: so there are always
//! requests in flight, and first writes that nobody has flushed, when something happens to the daemon or to the VM.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::daemon::Pool;
use super::fio::endless;
use super::image::Image;
use super::machine::{Accel, Drive, Machine, probe_kvm};
use super::report::Report;
use super::throttle::{Limit, SlowDisks};
use super::tools::RunDir;

const MIB: u64 = 1 << 20;

/// The VHDs: name, device in the guest, queues, options of `vhd create`.
pub const VHDS: [(&str, &str, u16, &[&str]); 2] = [
    ("iso", "vda", 1, &["--layout", "isolated", "--queues", "1"]),
    ("span", "vdb", 2, &["--layout", "spanned", "--queues", "2"]),
];

const SIZE: u64 = 96 * MIB;

/// What a guest is booted with.
pub struct Place {
    /// Where disks and sockets are.
    pub dir: RunDir,
    /// What it boots.
    pub image: Image,
    /// How it runs.
    pub accel: Accel,
}

impl Place {
    /// `None`: something is missing, which the report says.
    pub fn prepare(report: &mut Report) -> Option<Place> {
        if let Some(reason) = SlowDisks::unavailable() {
            report.skip("slow disks", reason);
            return None;
        }
        let dir = report.check("directories", RunDir::new)?;
        let image = report.check("guest image", Image::build)?;
        let accel = probe_kvm(&dir, &image).unwrap_or_else(|reason| {
            report.skip("guest on KVM", &format!("{reason}; the guest is emulated"));
            Accel::Tcg
        });
        Some(Place { dir, image, accel })
    }
}

/// Slow disks, and a pool of them that is served.
pub struct SlowHost {
    /// The pool, with both VHDs. It ends before its disks do.
    pub pool: Pool,
    slow: SlowDisks,
}

impl SlowHost {
    /// Its disks can do so much each, once [`SlowHost::hold_back`] has been called.
    ///
    /// # Errors
    /// What the system or spanblk says.
    pub fn start(dir: &RunDir, limit: Limit) -> Result<SlowHost> {
        let slow = SlowDisks::on_files(dir.disks(), 2, 256 * MIB)?;
        slow.limit(limit)?;
        let mut pool = Pool::create(dir.sockets(), slow.devices.clone(), &["--force"])?;
        pool.serve_all()?;
        for (name, _, _, options) in VHDS {
            pool.create_vhd(name, SIZE, options)?;
        }
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
        VHDS.iter().map(|(name, _, queues, _)| Drive::new(name, &self.pool.socket(name), *queues)).collect()
    }

    /// Starts fio on both disks.
    ///
    /// # Errors
    /// The guest does not answer.
    pub fn begin_fio(&self, machine: &mut Machine) -> Result<()> {
        VHDS.iter().try_for_each(|(_, device, ..)| endless::begin(&mut machine.agent, device))
    }

    /// Ends it: rounds on each disk.
    ///
    /// # Errors
    /// What fio or the guest's kernel has found wrong.
    pub fn end_fio(&self, machine: &mut Machine) -> Result<Vec<u64>> {
        let end = |(_, device, ..): &(_, &str, _, _)| endless::end(&mut machine.agent, device);
        VHDS.iter().map(end).collect::<Result<_>>().with_context(|| self.pool.log_tail())
    }

    /// What fio has said so far, for an error.
    pub fn said_by_fio(machine: &mut Machine) -> String {
        machine.agent.run("cat /tmp/failed.* /tmp/fio.* 2>/dev/null; true").unwrap_or_default()
    }

    /// The guest ends, then the daemon, and nothing was wrong all the time.
    pub fn finish(mut self, machine: Machine, mut report: Report) -> ExitCode {
        report.check("the kernel has no complaints", || {
            let complaints = machine.complaints();
            ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
            Ok(())
        });
        report.check("guest powers off", || machine.power_off());
        report.check("placement is consistent", || {
            self.pool.check()?;
            self.pool.stop()?;
            self.pool.check()
        });
        report.finish()
    }
}
