//! Events of the owner as the API tells them.

use crate::control::wire::{EventDetail, Severity};
use crate::owner::outbox::{Event, ReservationOf};
use crate::placement::job::JobState;

/// What the API tells of an event, and how bad it is. What the failure of a disk means is for the caller to add.
#[must_use]
pub fn event_detail(event: Event) -> (Severity, EventDetail) {
    use EventDetail as D;
    use Severity::{Error, Info, Warning};
    match event {
        Event::VhdCreated { vhd } => (Info, D::VhdCreated { vhd }),
        Event::VhdDeleted { vhd } => (Info, D::VhdDeleted { vhd }),
        Event::VhdRenamed { from, to } => (Info, D::VhdRenamed { vhd: to, old_name: from }),
        Event::VhdResized { vhd, old_bytes, new_bytes } => (Info, D::VhdResized { vhd, old_bytes, new_bytes }),
        Event::VhdChanged { vhd } => (Info, D::VhdChanged { vhd }),
        Event::VmCreated { vm } => (Info, D::VmCreated { vm }),
        Event::VmDeleted { vm } => (Info, D::VmDeleted { vm }),
        Event::VmRenamed { from, to } => (Info, D::VmRenamed { vm: to, old_name: from }),
        Event::VmChanged { vm } => (Info, D::VmChanged { vm }),
        Event::VhdAttached { vhd, pid } => (Info, D::VhdAttached { vhd, pid: (pid != 0).then_some(pid) }),
        Event::LimitHit { vhd, by } => (Info, D::LimitHit { vhd, limit: by.word().to_owned() }),
        Event::VhdDetached { vhd } => (Info, D::VhdDetached { vhd }),
        Event::DataLost { vhd, disk, lost } => {
            (Error, D::DataLost { vhd, disk, bytes: lost.bytes, ranges: super::job::ranges(&lost) })
        }
        Event::BadPlace { disk, slot, error, vhd, extent, count } => {
            let message = format!(
                "disk '{disk}' does not take what is written to slot {} ({error}): extent {} of VHD '{vhd}' is to go to another slot; such \
                 places on this disk: {count}",
                slot.0, extent.0
            );
            (Warning, D::Note { message })
        }
        Event::DiskAdded { disk } => (Info, D::DiskAdded { disk }),
        Event::DiskRemoved { disk } => (Info, D::DiskRemoved { disk }),
        Event::DiskChanged { disk } => (Info, D::DiskChanged { disk }),
        Event::DiskError { disk, error, count } => (Warning, D::DiskError { disk, message: error, count }),
        Event::DiskFailed { disk, error } => (Error, D::DiskFailed { disk, message: error, impact: None }),
        Event::DiskSuspect { disk, reason } => (Warning, D::DiskSuspect { disk, message: reason }),
        Event::DiskHealthy { disk } => (Info, D::DiskHealthy { disk }),
        Event::Fill { disk, percent, above, allocated, capacity } => {
            let severity = if above { Warning } else { Info };
            (severity, D::Fill { disk, percent, above, allocated_bytes: allocated, total_bytes: capacity })
        }
        Event::VhdExpanded { vhd, disk } => (Warning, D::VhdExpanded { vhd, disk }),
        Event::VhdDegraded { vhd, disk } => (Warning, D::VhdDegraded { vhd, disk }),
        Event::WaitingForRoom { vhd } => (Warning, D::WaitingForRoom { vhd }),
        Event::OutOfRoom { vhd } => (Error, D::OutOfRoom { vhd }),
        Event::MetadataLow { low, used, size } => {
            let severity = if low { Error } else { Info };
            (severity, D::MetadataLow { low, used_bytes: used, region_bytes: size })
        }
        Event::Job { job, kind, state, reason, vhds } => {
            let severity = if state == JobState::Stopped { Error } else { Info };
            (severity, D::Job { job: job.0, kind: kind.to_owned(), state: state.word().to_owned(), reason, vhds })
        }
        Event::QuotaReached { vhd, vm, quota, used } => {
            (Warning, D::QuotaReached { vhd, vm, quota_bytes: quota, used_bytes: used })
        }
        Event::ReservationShort { of, short } => {
            let (vhd, vm) = names(of);
            (Error, D::ReservationShort { vhd, vm, short_bytes: short })
        }
        Event::ReservationKept { of } => {
            let (vhd, vm) = names(of);
            (Info, D::ReservationKept { vhd, vm })
        }
        Event::ThickIncomplete { vhd, missing } => (Warning, D::ThickIncomplete { vhd, missing_extents: missing }),
    }
}

/// The VHD or the VM.
fn names(of: ReservationOf) -> (Option<String>, Option<String>) {
    match of {
        ReservationOf::Vhd(vhd) => (Some(vhd), None),
        ReservationOf::Vm(vm) => (None, Some(vm)),
    }
}
