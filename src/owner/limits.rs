//! What VHDs and VMs are limited to, and what they get of disks that are shared out. The owner makes the buckets; the reactors that take from them are told only that there are others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Owner;
use super::outbox::{Event, OwnerOutbox};
use crate::base::clock::Nanos;
use crate::base::ids::{ReactorId, VhdId, VmId};
use crate::qos::{Admission, Buckets, LimitKind, Rates};
use crate::reactor::messages::ReactorMessage;

/// The buckets of VMs that have limits.
pub(super) type VmBuckets = BTreeMap<VmId, Arc<Buckets>>;

impl Owner {
    /// What the time is for reactors: for buckets that get another rate.
    pub fn set_now(&mut self, now: Nanos) {
        self.now = now;
    }

    /// Limits all VHDs, and gives them their shares, at the start.
    pub(super) fn limit_all(&mut self, out: &mut impl OwnerOutbox) {
        let vhds: Vec<VhdId> = self.vhds.iter().map(|vhd| vhd.record.id).collect();
        self.limit(&vhds, out);
    }

    /// Limits or share of a VHD, or its VM, may have changed.
    pub(super) fn limit_vhd(&mut self, vhd: VhdId, out: &mut impl OwnerOutbox) {
        self.limit(&[vhd], out);
    }

    /// Limits of a VM, or what its VHDs share, may have changed.
    pub(super) fn limit_vm(&mut self, vm: &str, out: &mut impl OwnerOutbox) {
        let vhds: Vec<VhdId> = self.vhds_of(vm).map(|vhd| vhd.record.id).collect();
        self.limit(&vhds, out);
    }

    fn limit(&mut self, vhds: &[VhdId], out: &mut impl OwnerOutbox) {
        let mut changed = false;
        for vhd in vhds {
            self.renew_share(*vhd);
            changed |= self.renew_limits(*vhd);
        }
        if changed {
            // Those that are held back ask again, at once.
            (0..self.reactors).for_each(|reactor| out.to_reactor(ReactorId(reactor), ReactorMessage::LimitsChanged));
        }
    }

    /// Whether the VHD has other buckets now.
    fn renew_limits(&mut self, id: VhdId) -> bool {
        let vm = self.vhds.get(id).and_then(|vhd| vhd.record.vm.clone());
        let vm = vm.and_then(|vm| self.renew_vm_buckets(&vm));
        let Some(vhd) = self.vhds.get_mut(id) else { return false };
        let own_before = vhd.admission.as_ref().and_then(|admission| admission.own());
        let vm_before = vhd.admission.as_ref().and_then(|admission| admission.vm());
        let own = renew(own_before, vhd.record.limits.rates(), self.now);
        let is_same = |a: Option<&Arc<Buckets>>, b: Option<&Arc<Buckets>>| a.map(Arc::as_ptr) == b.map(Arc::as_ptr);
        if is_same(own.as_ref(), own_before) && is_same(vm.as_ref(), vm_before) {
            return false;
        }
        vhd.admission = Admission::new(own, vm).map(Arc::new);
        vhd.state.limits.set(vhd.admission.clone());
        true
    }

    fn renew_vm_buckets(&mut self, name: &str) -> Option<Arc<Buckets>> {
        let vm = self.vms.named(name)?;
        let id = vm.id;
        let buckets = renew(self.vm_buckets.get(&id), vm.limits.rates(), self.now);
        match &buckets {
            Some(buckets) => self.vm_buckets.insert(id, Arc::clone(buckets)),
            None => self.vm_buckets.remove(&id),
        };
        buckets
    }

    pub(super) fn limit_hit(&self, vhd: VhdId, by: LimitKind, out: &mut impl OwnerOutbox) {
        if let Some(vhd) = self.vhds.get(vhd) {
            out.event(Event::LimitHit { vhd: vhd.record.name.clone(), by });
        }
    }
}

/// The same buckets for the same rates, so that changes of something else give nothing away.
fn renew(before: Option<&Arc<Buckets>>, rates: Rates, now: Nanos) -> Option<Arc<Buckets>> {
    match before {
        Some(before) if before.rates() == rates => Some(Arc::clone(before)),
        _ => Buckets::carried(before.map(Arc::as_ref), rates, now).map(Arc::new),
    }
}
