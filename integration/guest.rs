//! Real guests on a pool: disks of different layouts on the same host disks, file systems, raw verification, discard, hot-plug,
//! reset, and a cold start of the daemon.
//!
//! `LAB_BACKEND=qemu-storage-daemon` runs the same checks on QEMU's own daemon, to tell a fault of the lab from one of ours.

mod guest_checks;

use std::process::ExitCode;

use guest_checks::Session;
use lab::image::Image;
use lab::machine::{Accel, probe_kvm};
use lab::report::Report;
use lab::tools::RunDir;

fn main() -> ExitCode {
    let mut report = Report::new("guest");
    let Some(dir) = report.check("directories", RunDir::new) else { return report.finish() };
    let Some(image) = report.check("guest image", Image::build) else { return report.finish() };
    report.note(&format!("guest kernel {}", image.version));
    let accel = match probe_kvm(&dir, &image) {
        Ok(accel) => accel,
        Err(reason) => {
            report.skip("guest on KVM", &format!("{reason}; the guest is emulated"));
            Accel::Tcg
        }
    };
    if let Some(session) = report.check("pool, disks and sockets", || Session::start(&dir, &image, accel)) {
        guest_checks::run(&mut report, session);
    }
    report.finish()
}
