//! Reservations: slots that can always be placed for a VHD, or for the VHDs of a VM together, whatever others take.
//!
//! Nothing is stored but their sizes. The part that is not used is held on the disks of the VHD's layout (of a VM: of the layouts of
//! its VHDs, as a whole), by [`Holds`](crate::placement::holds::Holds): others do not see it as free. A VHD takes from what is held
//! for it first, then from what is held for its VM. What VHDs have reserved for themselves counts as the VM's.

use std::collections::{BTreeMap, BTreeSet};

use super::Owner;
use super::command::{CapacityError, CapacityUse, CommandError};
use super::outbox::{Event, OwnerOutbox, ReservationOf};
use super::place::Purse;
use super::quota::{Coming, vhd_subject, vm_subject};
use super::space::{DiskSpace, Ideal, Source};
use super::vhds::Vhd;
use crate::base::ids::{DiskId, DiskSet, VhdId, VmId};
use crate::base::limits::DISKS_MAX;
use crate::base::units::{ExtentIndex, SlotIndex};
use crate::placement::ReplicaSet;
use crate::placement::holds::{Holder, Need};
use crate::placement::record::VhdRecord;
use crate::placement::vm::VmRecord;
use crate::plan::Plan;

/// Whether a write can still wait for a better place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// What is on its way back will be there.
    Waits,
    /// It has waited for that in vain: any place is better than none.
    Ends,
}

/// What is known of quotas and reservations beside the records.
#[derive(Debug, Default)]
pub(super) struct Capacities {
    /// What holders need once the rows of the command in progress are durable: it is held before.
    asked: BTreeMap<Holder, Need>,
    /// What a thick VHD is about to have.
    pub coming: Option<Coming>,
    /// Quotas of which it has been reported that they are in the way.
    pub told_quota: BTreeSet<Holder>,
    /// VMs that have reserved something: on which disks, and how many replicas the VHD with the most has.
    layouts: BTreeMap<VmId, (DiskSet, u8)>,
    /// Reservations of which it has been reported that they cannot be kept.
    told_short: BTreeMap<Holder, ReservationOf>,
}

/// What the VHDs of a VM come to.
#[derive(Clone, Copy, Default)]
struct Together {
    /// Slots of the VM's reservation that they use, or have reserved for themselves.
    claimed: u64,
    disks: DiskSet,
    replicas: u8,
}

impl Together {
    fn add(&mut self, record: &VhdRecord, used: u64, reserved: u64) {
        self.claimed += used.max(reserved);
        self.disks.0 |= record.layout.disks().0;
        self.replicas = self.replicas.max(record.replicas);
    }
}

impl Owner {
    pub(super) fn slots_in(&self, bytes: Option<u64>) -> u64 {
        bytes.unwrap_or(0) / self.geometry.extent_size()
    }

    /// What has to be held for `unused` slots. With too few failure domains that work, extents get fewer replicas.
    fn need(&self, unused: u64, disks: DiskSet, replicas: u8) -> Need {
        let extents = u32::try_from(unused / u64::from(replicas.max(1))).unwrap_or(u32::MAX);
        self.need_of(extents, disks, replicas)
    }

    fn need_of(&self, extents: u32, disks: DiskSet, replicas: u8) -> Need {
        let working = u8::try_from(self.space.working_domains(disks)).unwrap_or(u8::MAX);
        Need { disks: self.space.usable(disks), extents, replicas: replicas.min(working).max(1) }
    }

    fn need_of_vhd(&self, record: &VhdRecord, used: u64) -> Option<Need> {
        record.capacity.reservation?;
        let unused = self.slots_in(record.capacity.reservation).saturating_sub(used);
        Some(self.need(unused, record.layout.disks(), record.replicas))
    }

    fn need_of_vm(&self, vm: &VmRecord, vhds: Together) -> Option<Need> {
        vm.capacity.reservation?;
        let unused = self.slots_in(vm.capacity.reservation).saturating_sub(vhds.claimed);
        Some(self.need(unused, vhds.disks, vhds.replicas))
    }

    /// What all need, if VHDs had these records, and a VM that one. A VM without VHDs has no disks, and needs nothing.
    fn needs(&self, vhds: &[VhdRecord], vm: Option<&VmRecord>) -> BTreeMap<Holder, Need> {
        let mut needs = BTreeMap::new();
        let mut together: BTreeMap<&str, Together> = BTreeMap::new();
        let is_new = |record: &&VhdRecord| self.vhds.get(record.id).is_none();
        let new = vhds.iter().filter(is_new).map(|record| {
            let extents = if record.thick { record.extents(self.geometry) } else { 0 };
            (record, u64::from(extents) * u64::from(record.replicas))
        });
        let known = self.vhds.iter().map(|vhd| {
            let record = vhds.iter().find(|record| record.id == vhd.record.id).unwrap_or(&vhd.record);
            (record, vhd.used(record))
        });
        for (record, used) in known.chain(new) {
            needs.extend(self.need_of_vhd(record, used).map(|need| (Holder::Vhd(record.id), need)));
            if let Some(vm) = &record.vm {
                together.entry(vm).or_default().add(record, used, self.slots_in(record.capacity.reservation));
            }
        }
        for known in self.vms.iter() {
            let record = vm.filter(|changed| changed.id == known.id).unwrap_or(known);
            if let Some(vhds) = together.get(&record.name[..]) {
                needs.extend(self.need_of_vm(record, *vhds).map(|need| (Holder::Vm(record.id), need)));
            }
        }
        needs
    }

    /// Makes what is held what should be, after records, disks or jobs have changed.
    pub(super) fn refresh_holds(&mut self) {
        self.note_jobs();
        let mut needs = self.needs(&[], None);
        needs.extend(&self.capacity.asked);
        self.capacity.layouts = self.layouts_of_vms();
        if needs.is_empty() && self.space.holds().is_empty() {
            return;
        }
        self.space.change_holds(|holds, room| {
            let gone: Vec<Holder> = holds.holders().filter(|holder| !needs.contains_key(holder)).collect();
            gone.into_iter().for_each(|holder| holds.set(holder, None, room));
            needs.iter().for_each(|(holder, need)| holds.set(*holder, Some(*need), room));
            needs.keys().for_each(|holder| holds.fill(*holder, room));
        });
        self.space.hold_for_short();
    }

    fn note_jobs(&mut self) {
        let moved = self.jobs.moved();
        let changed = |vhd: &&Vhd| vhd.in_job != moved.contains(&vhd.record.id);
        let changed: Vec<VhdId> = self.vhds.iter().filter(changed).map(|vhd| vhd.record.id).collect();
        for id in changed {
            let vhd = self.vhds.get_mut(id).expect("just looked up");
            vhd.in_job = !vhd.in_job;
            vhd.recount();
        }
    }

    fn layouts_of_vms(&self) -> BTreeMap<VmId, (DiskSet, u8)> {
        let mut layouts = BTreeMap::new();
        for record in self.vhds.iter().map(|vhd| &vhd.record) {
            if let Some(vm) = self.vm_of(record).filter(|vm| vm.capacity.reservation.is_some()) {
                let (disks, replicas): &mut (DiskSet, u8) = layouts.entry(vm.id).or_default();
                disks.0 |= record.layout.disks().0;
                *replicas = record.replicas.max(*replicas);
            }
        }
        layouts
    }

    /// The same after the use of one VHD has changed. Looks at no other one.
    pub(super) fn hold_again(&mut self, id: VhdId) {
        let Some(vm) = self.vhds.get(id).map(|vhd| vhd.record.vm.clone()) else { return };
        let claimed = vm.map_or(0, |vm| self.vhds.sum_of_vm(&vm).claimed);
        let Some(vhd) = self.vhds.get(id) else { return };
        // What a command has asked for that is not durable yet is held already, though no record says so.
        let asked = |holder: Holder| self.capacity.asked.get(&holder).copied();
        let own = asked(Holder::Vhd(id)).or_else(|| self.need_of_vhd(&vhd.record, vhd.used(&vhd.record)));
        let together = |vm: &VmRecord| {
            let (disks, replicas) = *self.capacity.layouts.get(&vm.id)?;
            self.need_of_vm(vm, Together { claimed, disks, replicas })
        };
        let of_vm = self.vm_of(&vhd.record).and_then(|vm| {
            let need = asked(Holder::Vm(vm.id)).or_else(|| together(vm))?;
            Some((Holder::Vm(vm.id), need))
        });
        let needs: Vec<(Holder, Need)> = own.map(|need| (Holder::Vhd(id), need)).into_iter().chain(of_vm).collect();
        if needs.iter().all(|(holder, need)| {
            self.space.holds().need(*holder) == Some(*need) && self.space.holds().lacks(*holder) == 0
        }) {
            return;
        }
        self.space.change_holds(|holds, room| {
            needs.iter().for_each(|(holder, need)| holds.set(*holder, Some(*need), room));
            needs.iter().for_each(|(holder, _)| holds.fill(*holder, room));
        });
        // What it does not need any more is for others that lack something, before anybody else finds it free.
        self.space.hold_for_short();
    }

    /// Room has come: who lacks some of what should be held gets it first.
    pub(super) fn refill_holds(&mut self, out: &mut impl OwnerOutbox) {
        self.space.hold_for_short();
        self.tell_reservations(out);
    }

    /// Whose slots a VHD may take: its own, and its VM's.
    pub(super) fn holders_of(&self, vhd: &Vhd) -> impl Iterator<Item = Holder> + use<> {
        let vm = self.vm_of(&vhd.record).map(|vm| Holder::Vm(vm.id));
        let known = [Some(Holder::Vhd(vhd.record.id)), vm]
            .map(|holder| holder.filter(|of| self.space.holds().need(*of).is_some()));
        known.into_iter().flatten()
    }

    /// Gives an absent extent its slots: of those held for the VHD or its VM, else of those free to anybody. With the disk that the VHD
    /// has grown onto by that, if it has.
    pub(super) fn place_extent(
        &mut self,
        id: VhdId,
        extent: ExtentIndex,
        patience: Patience,
    ) -> Option<(ReplicaSet, Option<DiskId>)> {
        let vhd = self.vhds.get(id)?;
        let holders: Vec<Holder> = self.holders_of(vhd).collect();
        // One replica after the other can go to any disk.
        let may_wait = patience == Patience::Waits
            && vhd.record.replicas > 1
            && self.space.is_reclaiming(vhd.record.layout.disks());
        let mut is_coming = false;
        for holder in &holders {
            let soon = self.space.held_soon(*holder).filter(|_| patience == Patience::Waits);
            is_coming |= may_wait && soon.is_some();
            let vhd = self.vhds.get_mut(id)?;
            if let Some(replicas) = vhd.place_held(extent, &mut self.space, *holder, soon) {
                self.hold_again(id);
                return Some((replicas, None));
            }
        }
        if is_coming {
            // All that is reserved will be there, and has to be used as it is planned: what is held now, used without what is on its way
            // back, might leave slots to the extents after this one that fail together.
            let placed = self.place_free(id, extent, patience);
            if placed.is_some() {
                self.hold_again(id);
            }
            return placed;
        }
        // Some of what is held may be where it can be used along with what is free.
        if !holders.is_empty() {
            self.space.change_holds(|holds, room| holders.iter().for_each(|holder| holds.set(*holder, None, room)));
        }
        let placed = self.place_free(id, extent, patience);
        let placed = placed.or_else(|| self.place_making_room(id, extent, patience));
        if !holders.is_empty() {
            self.hold_again(id);
        }
        placed
    }

    /// What is held for others goes where it is not in the way, if it can.
    fn place_making_room(
        &mut self,
        id: VhdId,
        extent: ExtentIndex,
        patience: Patience,
    ) -> Option<(ReplicaSet, Option<DiskId>)> {
        if self.space.holds().is_empty() {
            return None;
        }
        let vhd = self.vhds.get(id)?;
        let (layout, replicas) = (vhd.record.layout.disks(), vhd.record.replicas);
        let accepting = self.space.iter().filter(|disk| disk.accept.spanned()).map(|disk| disk.state.id);
        let expands = vhd.expands(self.expand_unless_said(vhd));
        let beyond = expands.then(|| accepting.fold(layout.0, |set, disk| set | 1 << disk.0));
        self.make_room(&[(id, layout, 1, replicas)]);
        self.place_free(id, extent, patience).or_else(|| {
            self.make_room(&[(id, DiskSet(beyond?), 1, replicas)]);
            self.place_free(id, extent, patience)
        })
    }

    /// Makes room for so many extents of each VHD, with so many replicas, on these disks, as far as what is held for others can be held
    /// elsewhere. Nothing is held for these VHDs now.
    pub(super) fn make_room(&mut self, wanted: &[(VhdId, DiskSet, u32, u8)]) {
        if self.space.holds().is_empty() {
            return;
        }
        let need = |(_, disks, extents, replicas): &(_, DiskSet, u32, u8)| self.need_of(*extents, *disks, *replicas);
        let needs: Vec<(Holder, Need)> = wanted.iter().map(|wanted| (Holder::Vhd(wanted.0), need(wanted))).collect();
        self.space.change_holds(|holds, room| {
            for (holder, need) in &needs {
                holds.set(*holder, Some(*need), room);
                holds.fill(*holder, room);
            }
            needs.iter().for_each(|(holder, _)| holds.set(*holder, None, room));
        });
    }

    /// As [`Owner::make_room`], for a VHD that a job moves, beside what is held for it.
    pub(super) fn make_room_again(&mut self, id: VhdId) {
        let Some(vhd) = self.vhds.get(id).filter(|_| !self.space.holds().is_empty()) else { return };
        let (layout, placed, replicas) = (vhd.record.layout.disks(), vhd.placed, vhd.record.replicas);
        let holder = Holder::Vhd(id);
        let (own, wanted) = (self.space.holds().need(holder), self.need_of(placed, layout, replicas));
        self.space.change_holds(|holds, room| {
            let both = own.map_or(0, |need| need.extents).saturating_add(wanted.extents);
            holds.set(holder, Some(Need { extents: both, ..wanted }), room);
            holds.fill(holder, room);
            holds.set(holder, own, room);
        });
    }

    fn place_free(
        &mut self,
        id: VhdId,
        extent: ExtentIndex,
        patience: Patience,
    ) -> Option<(ReplicaSet, Option<DiskId>)> {
        let vhd = self.vhds.get_mut(id)?;
        if let Some(replicas) = vhd.place(extent, &mut self.space, Purse::Free) {
            return Some((replicas, None));
        }
        let vhd = self.vhds.get(id)?;
        let may_wait = patience == Patience::Waits && self.space.is_reclaiming(vhd.record.layout.disks());
        if may_wait && self.grows_if_need_be(vhd) {
            return None;
        }
        let unless_said = self.expand_unless_said(vhd);
        let vhd = self.vhds.get_mut(id)?;
        let (replicas, disk, first) = vhd.place_beyond(extent, &mut self.space, unless_said)?;
        Some((replicas, first.then_some(disk)))
    }

    /// Makes sure that what is reserved can be kept if VHDs have these records, and a VM that one; and holds it from now on. `comes`:
    /// slots per disk that are spoken for by moves.
    ///
    /// # Errors
    /// If there is less of a reservation that can be kept than before, and not all.
    pub(super) fn hold_for(
        &mut self,
        vhds: &[VhdRecord],
        vm: Option<&VmRecord>,
        comes: Option<&[u64; DISKS_MAX]>,
    ) -> Result<(), CommandError> {
        let needs = self.needs(vhds, vm);
        let now = self.space.holds();
        let changed: BTreeMap<Holder, Need> =
            needs.iter().filter(|(of, need)| now.need(**of) != Some(**need)).map(|(of, need)| (*of, *need)).collect();
        if changed.is_empty() {
            return Ok(());
        }
        let mut holds = now.clone();
        // Room that is on its way back counts.
        let mut room = self.space.room(DiskSpace::free_soon);
        for (free, comes) in room.free.iter_mut().zip(comes.into_iter().flatten()) {
            *free = free.saturating_sub(u32::try_from(*comes).unwrap_or(u32::MAX));
        }
        let gone: Vec<Holder> = holds.holders().filter(|holder| !needs.contains_key(holder)).collect();
        gone.into_iter().for_each(|holder| holds.set(holder, None, &mut room));
        needs.iter().for_each(|(holder, need)| holds.set(*holder, Some(*need), &mut room));
        // Others that wait for room on its way back come first.
        needs.keys().filter(|holder| !changed.contains_key(holder)).for_each(|holder| holds.fill(*holder, &mut room));
        changed.keys().for_each(|holder| holds.fill(*holder, &mut room));
        let size = self.geometry.extent_size();
        for (holder, need) in &changed {
            if holds.lacks(*holder) > now.lacks(*holder) {
                let held = |disk: &DiskId| holds.held(*holder).map_or(0, |slots| slots[disk.index()]);
                let room_on = |disk: &DiskId| u64::from(room.free[disk.index()] + held(disk)) * size;
                let disk = need.disks.iter().min_by_key(room_on);
                return Err(CommandError::Capacity(CapacityError::NoRoomToReserve {
                    subject: self.subject(*holder, vhds, vm),
                    needed: need.slots() * size,
                    room: holds.held_slots(*holder) * size,
                    disk: disk.map_or_else(String::new, |disk| self.pool.disk_name(disk)),
                    disk_room: disk.as_ref().map_or(0, room_on),
                }));
            }
        }
        self.capacity.asked = changed;
        self.refresh_holds();
        Ok(())
    }

    /// As [`Owner::hold_for`], for a job that carries these plans out.
    pub(super) fn hold_for_job(&mut self, vhds: &[VhdRecord], plans: &[Plan]) -> Result<(), CommandError> {
        let mut comes = [0; DISKS_MAX];
        for to in plans.iter().flat_map(|plan| &plan.relocations).filter_map(|relocation| relocation.to) {
            comes[to.index()] += 1;
        }
        vhds.iter().try_for_each(|record| self.check_capacity(record))?;
        self.hold_for(vhds, None, Some(&comes))
    }

    fn subject(&self, holder: Holder, vhds: &[VhdRecord], vm: Option<&VmRecord>) -> String {
        match holder {
            Holder::Vhd(id) => {
                let changed = vhds.iter().find(|record| record.id == id);
                let record = changed.or_else(|| self.vhds.get(id).map(|vhd| &vhd.record));
                record.map_or_else(String::new, |record| vhd_subject(&record.name))
            }
            Holder::Vm(id) => {
                let record = vm.filter(|vm| vm.id == id).or_else(|| self.vms.get(id));
                record.map_or_else(String::new, |record| vm_subject(&record.name))
            }
        }
    }

    /// What is held for a VHD or its VM is free, for a command that gives it room or plans to, until [`Owner::refresh_holds`].
    pub(super) fn lend_holds(&mut self, record: &VhdRecord) {
        let vm = self.vm_of(record).map(|vm| Holder::Vm(vm.id));
        if self.space.holds().is_empty() {
            return;
        }
        self.space.change_holds(|holds, room| {
            holds.set(Holder::Vhd(record.id), None, room);
            vm.into_iter().for_each(|vm| holds.set(vm, None, room));
        });
    }

    /// Takes a slot for a copy that makes good what a VHD has lost, or is to move: one that is free, with what is held there for anybody
    /// held elsewhere if that can be, else (`makes_good`) one that is held for the VHD or its VM. Replicas that are missing now count more
    /// than what may be written once: the reservation is short then, and said to be.
    pub(super) fn take_for_copy(
        &mut self,
        id: VhdId,
        disk: DiskId,
        ideal: &Ideal,
        makes_good: bool,
    ) -> Option<SlotIndex> {
        if self.space.disk(disk).free() == 0 {
            self.space.clear(disk, 1);
        }
        if let Some(slot) = self.space.take(disk, ideal, Source::Free) {
            return Some(slot);
        }
        let holder = self.holders_of(self.vhds.get(id)?).find(|holder| self.space.held_on(*holder, disk) > 0)?;
        if !makes_good || self.space.disk(disk).is_closed() {
            return None;
        }
        let slot = self.space.take(disk, ideal, Source::Held(holder));
        self.hold_again(id);
        slot
    }

    /// Slots of the disk that are held for a VHD or its VM.
    pub(super) fn held_for(&self, vhd: &Vhd, disk: DiskId) -> u32 {
        self.holders_of(vhd).map(|holder| self.space.held_on(holder, disk)).sum()
    }

    /// As [`Owner::lend_holds`], of a VHD that there is.
    pub(super) fn lend_holds_of(&mut self, vhd: VhdId) {
        if let Some(record) = self.vhds.get(vhd).map(|vhd| vhd.record.clone()) {
            self.lend_holds(&record);
        }
    }

    /// The command in progress has ended: records say what is reserved.
    pub(super) fn settle_reservations(&mut self, out: &mut impl OwnerOutbox) {
        self.capacity.asked.clear();
        self.refresh_holds();
        self.retry_waiters(out);
    }

    /// Slots that should be held and are not, without those that are on their way back.
    fn short(&self, holder: Holder) -> u64 {
        let holds = self.space.holds();
        let disks = holds.need(holder).map_or(DiskSet::default(), |need| need.disks);
        let coming: u64 = disks.iter().map(|disk| u64::from(self.space.disk(disk).slots().limbo())).sum();
        holds.lacks(holder).saturating_sub(coming)
    }

    /// What became of a quota and a reservation; `charged`: slots.
    pub(super) fn capacity_use(&self, holder: Holder, charged: u64) -> CapacityUse {
        let size = self.geometry.extent_size();
        let held = self.space.holds().held_slots(holder) * size;
        CapacityUse { charged: charged * size, held, short: self.short(holder) * size }
    }

    /// Reports which reservations cannot be kept any more, or can be again.
    pub(super) fn tell_reservations(&mut self, out: &mut impl OwnerOutbox) {
        if !self.space.holds().is_short() && self.capacity.told_short.is_empty() {
            return;
        }
        let short: BTreeMap<Holder, u64> =
            self.space.holds().holders().map(|of| (of, self.short(of))).filter(|(_, short)| *short > 0).collect();
        let told = std::mem::take(&mut self.capacity.told_short);
        for (holder, slots) in &short {
            let of = match holder {
                Holder::Vhd(id) => self.vhds.get(*id).map(|vhd| ReservationOf::Vhd(vhd.record.name.clone())),
                Holder::Vm(id) => self.vms.get(*id).map(|vm| ReservationOf::Vm(vm.name.clone())),
            };
            // Of a VHD that is being made, its creation tells.
            let Some(of) = of else { continue };
            if !told.contains_key(holder) {
                out.event(Event::ReservationShort { of: of.clone(), short: slots * self.geometry.extent_size() });
            }
            self.capacity.told_short.insert(*holder, of);
        }
        for (holder, of) in told {
            if !short.contains_key(&holder) && self.space.holds().need(holder).is_some() {
                out.event(Event::ReservationKept { of });
            }
        }
    }
}
