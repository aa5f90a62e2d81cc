//! Quotas: the most slots that a VHD, or all VHDs of a VM together, may place.
//!
//! What counts is [`Vhd::charged`]. First writes, thick VHDs and further replicas stop at a quota. What moves, or makes up for lost
//! replicas, takes nothing that is not counted already, and does not.

use super::Owner;
use super::command::{CapacityError, CommandError, SetCapacity};
use super::outbox::{Event, OwnerOutbox};
use super::sums::Sum;
use super::vhds::Vhd;
use crate::base::ids::VhdId;
use crate::placement::capacity::Capacity;
use crate::placement::holds::Holder;
use crate::placement::record::VhdRecord;
use crate::placement::vm::VmRecord;

/// Room that a thick VHD is about to have, while the rows for that are written.
#[derive(Debug)]
pub(super) struct Coming {
    pub vhd: VhdId,
    pub vm: Option<String>,
    pub slots: u64,
}

/// A quota that is in the way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reached {
    of: Holder,
    quota: u64,
    used: u64,
    more: u64,
}

/// What a VHD is about to take, in slots.
#[derive(Clone, Copy, Debug)]
struct Step {
    used: u64,
    more: u64,
    /// What it has reserved for itself then, and before.
    reserved: u64,
    reserved_before: u64,
    /// It is new in its VM.
    joins: bool,
}

impl Owner {
    /// The VM of a VHD.
    pub(super) fn vm_of(&self, record: &VhdRecord) -> Option<&VmRecord> {
        self.vms.named(record.vm.as_deref()?)
    }

    /// Slots of a VHD that count against quotas.
    pub(super) fn charged(&self, vhd: &Vhd) -> u64 {
        let coming = self.capacity.coming.as_ref().filter(|coming| coming.vhd == vhd.record.id);
        vhd.charged() + coming.map_or(0, |coming| coming.slots)
    }

    /// What the VHDs of a VM come to, by looking at all of them.
    pub(super) fn sum_of_vm(&self, vm: &str) -> Sum {
        self.vhds_of_vm(vm).map(Vhd::sum).sum()
    }

    /// By identifier.
    pub(super) fn vhds_of_vm<'a>(&'a self, vm: &'a str) -> impl Iterator<Item = &'a Vhd> {
        self.vhds.iter().filter(move |vhd| vhd.record.vm.as_deref() == Some(vm))
    }

    fn exceeded(&self, of: Holder, quota: Option<u64>, used: u64, more: u64) -> Option<Reached> {
        let size = self.geometry.extent_size();
        let exceeds = |quota: &u64| more > 0 && used + more > quota / size;
        quota.filter(exceeds).map(|quota| Reached { of, quota, used: used * size, more: more * size })
    }

    /// The quota of a VM that keeps one of its VHDs from what `step` says. What other VHDs have reserved for themselves is theirs; what
    /// this one has reserved it may use, as long as they are not beyond the quota by what they use.
    fn exceeded_in_vm(&self, vm: &VmRecord, all: Sum, step: Step) -> Option<Reached> {
        let before = if step.joins { 0 } else { step.used.max(step.reserved_before) };
        let used_before = if step.joins { 0 } else { step.used };
        let (used, after) = (step.used + step.more, (step.used + step.more).max(step.reserved));
        let of = Holder::Vm(vm.id);
        self.exceeded(of, vm.capacity.quota, all.spoken_for, after.saturating_sub(before))
            .or_else(|| self.exceeded(of, vm.capacity.quota, all.charged, used.saturating_sub(used_before)))
    }

    /// The quota that keeps a VHD from having one more extent placed.
    pub(super) fn quota_against_extent(&mut self, id: VhdId) -> Option<Reached> {
        let vhd = self.vhds.get(id)?;
        // All extents of a thick VHD count from the start.
        let more = if vhd.record.thick { 0 } else { u64::from(vhd.record.replicas) };
        let (used, reserved) = (self.charged(vhd), self.slots_in(vhd.record.capacity.reservation));
        if let Some(reached) = self.exceeded(Holder::Vhd(id), vhd.record.capacity.quota, used, more) {
            return Some(reached);
        }
        let vm = self.vms.named(vhd.record.vm.as_deref()?).filter(|vm| vm.capacity.quota.is_some())?;
        let mut all = self.vhds.sum_of_vm(&vm.name);
        if let Some(coming) = self.capacity.coming.as_ref().filter(|coming| coming.vm.as_deref() == Some(&vm.name)) {
            (all.charged, all.spoken_for) = (all.charged + coming.slots, all.spoken_for + coming.slots);
        }
        self.exceeded_in_vm(vm, all, Step { used, more, reserved, reserved_before: reserved, joins: false })
    }

    /// Whether a quota stands for the VHD.
    pub(super) fn has_quota(&self, vhd: &Vhd) -> bool {
        vhd.record.capacity.quota.is_some() || self.vm_of(&vhd.record).is_some_and(|vm| vm.capacity.quota.is_some())
    }

    /// Whether a VHD may have the record that a command wants for it: with a reservation that it can use, and within quotas, as far as it
    /// takes more slots by that, or gets another VM.
    pub(super) fn check_capacity(&self, record: &VhdRecord) -> Result<(), CommandError> {
        self.check_reservable(record)?;
        let vhd = self.vhds.get(record.id);
        let (used, before) = vhd.map_or((0, 0), |vhd| (self.charged(vhd), vhd.due(&vhd.record)));
        let new = if record.thick { u64::from(record.extents(self.geometry)) * u64::from(record.replicas) } else { 0 };
        let more = vhd.map_or(new, |vhd| vhd.due(record)).saturating_sub(before);
        if let Some(reached) = self.exceeded(Holder::Vhd(record.id), record.capacity.quota, used, more) {
            return Err(quota_exceeded(
                reached,
                vhd_subject(&record.name),
                format!("`spanblk vhd set {}`", record.name),
            ));
        }
        let Some(vm) = self.vm_of(record) else { return Ok(()) };
        let step = Step {
            used,
            more,
            reserved: self.slots_in(record.capacity.reservation),
            reserved_before: self.slots_in(vhd.and_then(|vhd| vhd.record.capacity.reservation)),
            joins: vhd.is_none_or(|vhd| vhd.record.vm != record.vm),
        };
        self.exceeded_in_vm(vm, self.sum_of_vm(&vm.name), step).map_or(Ok(()), |reached| {
            Err(quota_exceeded(reached, vm_subject(&vm.name), format!("`spanblk vm set {}`", vm.name)))
        })
    }

    /// Whether all that is reserved for the VHD could be placed: it has no more than its size.
    pub(super) fn check_reservable(&self, record: &VhdRecord) -> Result<(), CommandError> {
        let size = u64::from(record.extents(self.geometry)) * self.geometry.extent_size();
        let most = size * u64::from(record.replicas);
        match record.capacity.reservation {
            Some(reservation) if reservation > most => {
                let (subject, replicas) = (vhd_subject(&record.name), record.replicas);
                Err(CapacityError::BeyondSize { subject, reservation, size, replicas, most }.into())
            }
            _ => Ok(()),
        }
    }

    /// Whether a VM may have this quota: its VHDs must be able to use what they have reserved for themselves.
    pub(super) fn check_quota_of_vm(&self, vm: &VmRecord, name_before: &str) -> Result<(), CommandError> {
        let Some(quota) = vm.capacity.quota else { return Ok(()) };
        let size = self.geometry.extent_size();
        let Sum { charged, spoken_for, .. } = self.sum_of_vm(name_before);
        let reserved =
            self.vhds_of_vm(name_before).map(|vhd| self.slots_in(vhd.record.capacity.reservation)).sum::<u64>();
        // That they use more than it already is no contradiction: nothing is added.
        if reserved <= quota / size && (spoken_for == charged || spoken_for <= quota / size) {
            return Ok(());
        }
        let (reserved, used, needed) = (reserved * size, charged * size, spoken_for * size);
        Err(CapacityError::QuotaBelowVhds { subject: vm_subject(&vm.name), quota, reserved, used, needed }.into())
    }

    /// Quota and reservation as they are to be.
    pub(super) fn new_capacity(
        &self,
        subject: impl Fn() -> String,
        before: Capacity,
        set: SetCapacity,
    ) -> Result<Capacity, CommandError> {
        let zero = |what| Err(CapacityError::Zero { subject: subject(), what }.into());
        if set.quota == Some(Some(0)) {
            return zero("quota");
        }
        if set.reservation == Some(Some(0)) {
            return zero("reservation");
        }
        let capacity = set.of(before, self.geometry.extent_size());
        match (capacity.quota, capacity.reservation) {
            (Some(quota), Some(reservation)) if capacity.contradicts_itself() => {
                Err(CapacityError::BeyondQuota { subject: subject(), quota, reservation }.into())
            }
            _ => Ok(capacity),
        }
    }

    /// A quota keeps a VHD from having an extent placed.
    pub(super) fn tell_quota(&mut self, id: VhdId, reached: Reached, out: &mut impl OwnerOutbox) {
        let Some(vhd) = self.vhds.get(id) else { return };
        let Reached { of, quota, used, .. } = reached;
        if self.capacity.told_quota.insert(of) {
            let vm = if let Holder::Vm(_) = of { vhd.record.vm.clone() } else { None };
            out.event(Event::QuotaReached { vhd: vhd.record.name.clone(), vm, quota, used });
        }
    }

    /// An extent of the VHD was placed: quotas that were in the way are no more.
    pub(super) fn quota_let_pass(&mut self, id: VhdId) {
        if self.capacity.told_quota.is_empty() {
            return;
        }
        let vm = self.vhds.get(id).and_then(|vhd| self.vm_of(&vhd.record)).map(|vm| Holder::Vm(vm.id));
        self.capacity.told_quota.retain(|told| *told != Holder::Vhd(id) && Some(*told) != vm);
    }
}

fn quota_exceeded(reached: Reached, subject: String, command: String) -> CommandError {
    let Reached { quota, used, more: needed, .. } = reached;
    CapacityError::QuotaExceeded { subject, needed, used, quota, command }.into()
}

pub(super) fn vhd_subject(name: &str) -> String {
    format!("VHD '{name}'")
}

pub(super) fn vm_subject(name: &str) -> String {
    format!("VM '{name}'")
}

pub(super) fn size_text(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "none".to_owned(), |bytes| format!("{bytes} bytes"))
}
