//! A guest on two VHDs in which fio discards, writes and verifies without end: so there are always requests in flight, and first writes
//! that nobody has flushed, when something happens to the daemon or to the VM.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};

use super::daemon::Pool;
use super::fio::endless;
use super::image::Image;
use super::machine::{Accel, Drive, Machine, probe_kvm};
use super::report::Report;
use super::tools::RunDir;

const MIB: u64 = 1 << 20;

/// The VHDs: name, device in the guest, queues, options of `vhd create`.
pub const VHDS: [(&str, &str, u16, &[&str]); 2] = [
    ("iso", "vda", 1, &["--layout", "isolated", "--queues", "1"]),
    ("span", "vdb", 2, &["--layout", "spanned", "--queues", "2"]),
];

/// Bytes of each of them, at first.
pub const SIZE: u64 = 96 * MIB;

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
        let dir = report.check("directories", RunDir::new)?;
        let image = report.check("guest image", Image::build)?;
        let accel = probe_kvm(&dir, &image).unwrap_or_else(|reason| {
            report.skip("guest on KVM", &format!("{reason}; the guest is emulated"));
            Accel::Tcg
        });
        Some(Place { dir, image, accel })
    }
}

/// Creates its VHDs.
///
/// # Errors
/// What spanblk says.
pub fn create_vhds(pool: &Pool) -> Result<()> {
    VHDS.iter().try_for_each(|(name, _, _, options)| pool.create_vhd(name, SIZE, options))
}

/// The VHDs as QEMU gets them.
#[must_use]
pub fn drives(pool: &Pool) -> Vec<Drive> {
    VHDS.iter().map(|(name, _, queues, _)| Drive::new(name, &pool.socket(name), *queues)).collect()
}

/// Starts fio on both disks.
///
/// # Errors
/// The guest does not answer.
pub fn begin(machine: &mut Machine) -> Result<()> {
    VHDS.iter().try_for_each(|(_, device, ..)| endless::begin(&mut machine.agent, device))
}

/// Ends it: rounds on each disk.
///
/// # Errors
/// What fio or the guest's kernel has found wrong.
pub fn end(machine: &mut Machine, pool: &Pool) -> Result<Vec<u64>> {
    let end = |(_, device, ..): &(_, &str, _, _)| endless::end(&mut machine.agent, device);
    VHDS.iter().map(end).collect::<Result<_>>().with_context(|| pool.log_tail())
}

/// What fio has said so far, for an error.
pub fn said(machine: &mut Machine) -> String {
    machine.agent.run("cat /tmp/failed.* /tmp/fio.* 2>/dev/null; true").unwrap_or_default()
}

/// The guest ends, then the daemon, and nothing was wrong all the time.
pub fn finish(pool: &mut Pool, machine: Machine, mut report: Report) -> ExitCode {
    report.check("the kernel has no complaints", || {
        let complaints = machine.complaints();
        ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
        Ok(())
    });
    report.check("guest powers off", || machine.power_off());
    report.check("placement is consistent", || {
        pool.check()?;
        pool.stop()?;
        pool.check()
    });
    report.finish()
}
