//! The proof that a placement table is consistent: used on the stored table offline and on the live one.
//!
//! Extents are given one by one, so that a table of any size can be checked while it is read. Memory: one bit per slot.
//! Only if slots have more than one owner are the extents given a second time, to name all owners.
//!
//! Every VM that a VHD names has a record, unless the pool counts none: then it is of a program that knew none, and its records
//! are made when it is served (in several commits, if there are many, and the last one counts them). Jobs are not part of it. Whatever a job names may be gone, since VHDs are deleted and disks removed while it waits; and a
//! record that makes no sense is refused when the store is opened.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use super::record::{PoolRecord, VhdRecord};
use super::vm::VmRecord;
use super::{ReplicaSet, ReplicaState};
use crate::base::ids::{DiskId, VhdId, VmId};
use crate::base::limits::DISKS_MAX;
use crate::base::units::{BlockMask, ExtentIndex, SlotIndex};

/// One extent of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableExtent {
    /// The VHD.
    pub vhd: VhdId,
    /// The extent.
    pub extent: ExtentIndex,
    /// Where it is. (The type already keeps two replicas off one disk.)
    pub replicas: ReplicaSet,
    /// Which blocks have been written.
    pub present: BlockMask,
}

/// An extent, for people.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExtentName {
    /// Name of the VHD; its number if it is unknown.
    pub vhd: String,
    /// Index of the extent.
    pub extent: u32,
}

impl fmt::Display for ExtentName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "extent {} of VHD '{}'", self.extent, self.vhd)
    }
}

/// One thing that is wrong with the table.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// Two VHDs share a name, UUID or identifier.
    #[error("VHDs '{first}' and '{second}' have the same {field}")]
    TwinVhds {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// "name", "UUID" or "identifier".
        field: &'static str,
    },
    /// The pool would give the identifier of an existing VHD to the next one.
    #[error("VHD '{vhd}' has identifier {id}, but the pool's next identifier is {next}")]
    IdentifierAhead {
        /// The VHD.
        vhd: String,
        /// Its identifier.
        id: u32,
        /// The pool's next.
        next: u32,
    },
    /// Two VMs share a name, UUID or identifier.
    #[error("VMs '{first}' and '{second}' have the same {field}")]
    TwinVms {
        /// One of them.
        first: String,
        /// The other.
        second: String,
        /// "name", "UUID" or "identifier".
        field: &'static str,
    },
    /// The pool would give the identifier of an existing VM to the next one.
    #[error("VM '{vm}' has identifier {id}, but the pool's next identifier is {next}")]
    VmIdentifierAhead {
        /// The VM.
        vm: String,
        /// Its identifier.
        id: u32,
        /// The pool's next.
        next: u32,
    },
    /// A VHD belongs to a VM without a record, in a pool that has had records of VMs.
    #[error("VHD '{vhd}' belongs to VM '{vm}', which has no record")]
    VmUnknown {
        /// The VHD.
        vhd: String,
        /// The VM.
        vm: String,
    },
    /// The layout of a VHD names a disk that the pool does not have.
    #[error("the layout of VHD '{vhd}' names disk #{disk}, which the pool does not have")]
    LayoutDiskUnknown {
        /// The VHD.
        vhd: String,
        /// The disk.
        disk: u8,
    },
    /// An extent belongs to no VHD.
    #[error("extent {extent} belongs to VHD #{vhd}, which does not exist")]
    VhdUnknown {
        /// The VHD.
        vhd: u32,
        /// The extent.
        extent: u32,
    },
    /// An extent lies beyond the end of its VHD.
    #[error("{at} lies beyond the end: the VHD has {extents} extents")]
    BeyondEnd {
        /// Which.
        at: ExtentName,
        /// How many there are.
        extents: u32,
    },
    /// A replica is on a disk that the pool does not have.
    #[error("{at} is on disk #{disk}, which the pool does not have")]
    DiskUnknown {
        /// Which.
        at: ExtentName,
        /// The disk.
        disk: u8,
    },
    /// A replica is beyond the end of its disk.
    #[error("{at} is in slot {slot} of disk '{disk}', which has {slots} slots")]
    SlotOutOfRange {
        /// Which.
        at: ExtentName,
        /// The disk.
        disk: String,
        /// The slot.
        slot: u32,
        /// How many there are.
        slots: u32,
    },
    /// A slot has more than one owner.
    #[error("slot {slot} of disk '{disk}' has {} owners: {}", owners.len(), list(owners))]
    SlotShared {
        /// The disk.
        disk: String,
        /// The slot.
        slot: u32,
        /// All its owners.
        owners: Vec<ExtentName>,
    },
    /// Two replicas fail together.
    #[error("{at} has replicas on disks '{first}' and '{second}', which share the failure domain '{domain}'")]
    DomainShared {
        /// Which.
        at: ExtentName,
        /// One disk.
        first: String,
        /// The other disk.
        second: String,
        /// Their failure domain.
        domain: String,
    },
    /// Blocks are marked as written but there is no copy that may be read.
    #[error("{at} has written blocks but no readable replica")]
    Unreadable {
        /// Which.
        at: ExtentName,
    },
    /// The allocator and the table disagree (online check only).
    #[error("slot {slot} of disk '{disk}' is {allocator} for the allocator, but {table} in the table")]
    AllocatorDisagrees {
        /// The disk.
        disk: String,
        /// The slot.
        slot: u32,
        /// What the allocator holds it for.
        allocator: &'static str,
        /// What the table holds it for.
        table: &'static str,
    },
}

fn list(owners: &[ExtentName]) -> String {
    owners.iter().map(ExtentName::to_string).collect::<Vec<_>>().join(", ")
}

/// What a check found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckReport {
    /// VHDs checked.
    pub vhds: u64,
    /// Placed extents checked.
    pub extents: u64,
    /// Replicas checked.
    pub replicas: u64,
    /// Slots in use per disk.
    pub used: BTreeMap<DiskId, u64>,
    /// All that is wrong; empty means consistent.
    pub violations: Vec<Violation>,
}

impl CheckReport {
    /// Whether the table is consistent.
    #[must_use]
    pub fn is_consistent(&self) -> bool {
        self.violations.is_empty()
    }
}

/// A check in progress.
pub struct Checker<'a> {
    pool: &'a PoolRecord,
    vhds: HashMap<VhdId, (&'a VhdRecord, u32)>,
    owned: Vec<Vec<u64>>,
    shared: BTreeMap<(DiskId, SlotIndex), Vec<ExtentName>>,
    report: CheckReport,
}

impl<'a> Checker<'a> {
    /// Starts a check: the records first.
    #[must_use]
    pub fn new(pool: &'a PoolRecord, vhds: impl IntoIterator<Item = &'a VhdRecord>) -> Checker<'a> {
        let mut owned = vec![Vec::new(); DISKS_MAX];
        for disk in &pool.disks {
            owned[disk.id.index()] = vec![0; disk.slots.div_ceil(64) as usize];
        }
        let mut checker =
            Checker { pool, vhds: HashMap::new(), owned, shared: BTreeMap::new(), report: CheckReport::default() };
        checker.check_records(vhds);
        checker
    }

    /// Checks all extents in one call. `extents` gives the same extents each time it is called.
    pub fn check<I: Iterator<Item = TableExtent>>(
        pool: &'a PoolRecord,
        vhds: impl IntoIterator<Item = &'a VhdRecord>,
        extents: impl Fn() -> I,
    ) -> CheckReport {
        let mut checker = Checker::new(pool, vhds);
        extents().for_each(|extent| checker.add(&extent));
        if checker.wants_owners() {
            extents().for_each(|extent| checker.add_owners(&extent));
        }
        checker.finish()
    }

    fn check_records(&mut self, vhds: impl IntoIterator<Item = &'a VhdRecord>) {
        let geometry = self.pool.geometry().expect("pool records are checked when they are decoded");
        let mut names: HashMap<&str, &str> = HashMap::new();
        let mut uuids: HashMap<uuid::Uuid, &str> = HashMap::new();
        for vhd in vhds {
            self.report.vhds += 1;
            let twin =
                |first: &str, field| Violation::TwinVhds { first: first.to_owned(), second: vhd.name.clone(), field };
            let mut found = Vec::new();
            if let Some(first) = names.insert(&vhd.name, &vhd.name) {
                found.push(twin(first, "name"));
            }
            if let Some(first) = uuids.insert(vhd.uuid, &vhd.name) {
                found.push(twin(first, "UUID"));
            }
            if let Some((first, _)) = self.vhds.insert(vhd.id, (vhd, vhd.extents(geometry))) {
                found.push(twin(&first.name, "identifier"));
            }
            if vhd.id >= self.pool.next_vhd_id {
                let next = self.pool.next_vhd_id.0;
                found.push(Violation::IdentifierAhead { vhd: vhd.name.clone(), id: vhd.id.0, next });
            }
            let unknown = vhd.layout.disks().iter().filter(|disk| self.pool.disk(*disk).is_none());
            found.extend(unknown.map(|disk| Violation::LayoutDiskUnknown { vhd: vhd.name.clone(), disk: disk.0 }));
            self.report.violations.extend(found);
        }
    }

    /// Checks the records of VMs, and that VHDs belong to VMs that there are.
    #[must_use]
    pub fn with_vms(mut self, vms: &[VmRecord]) -> Checker<'a> {
        let next = self.pool.next_vm_id;
        let had_some = next > VmId(1);
        let mut found = Vec::new();
        let (mut known, mut uuids, mut ids) = (HashMap::new(), HashMap::new(), HashMap::new());
        for vm in vms {
            let name = vm.name.as_str();
            let twins = [
                (known.insert(name, name), "name"),
                (uuids.insert(vm.uuid, name), "UUID"),
                (ids.insert(vm.id, name), "identifier"),
            ];
            let twins = twins.into_iter().filter_map(|(first, field)| Some((first?.to_owned(), field)));
            found.extend(twins.map(|(first, field)| Violation::TwinVms { first, second: vm.name.clone(), field }));
            if had_some && vm.id >= next {
                found.push(Violation::VmIdentifierAhead { vm: vm.name.clone(), id: vm.id.0, next: next.0 });
            }
        }
        let named = self.vhds.values().filter_map(|(vhd, _)| Some((*vhd, vhd.vm.as_ref()?)));
        let unknown = named.filter(|(_, vm)| had_some && !known.contains_key(vm.as_str()));
        let unknown = unknown.map(|(vhd, vm)| Violation::VmUnknown { vhd: vhd.name.clone(), vm: vm.clone() });
        found.extend(unknown);
        self.report.violations.extend(found);
        self
    }

    /// Checks one extent. Absent extents may be left out.
    pub fn add(&mut self, extent: &TableExtent) {
        let at = self.name(extent);
        match self.vhds.get(&extent.vhd) {
            None => self.violation(Violation::VhdUnknown { vhd: extent.vhd.0, extent: extent.extent.0 }),
            Some((_, extents)) if extent.extent.0 >= *extents => {
                let extents = *extents;
                self.violation(Violation::BeyondEnd { at: at(), extents });
            }
            Some(_) => {}
        }
        let readable = extent.replicas.iter().any(|r| r.state == ReplicaState::InSync);
        if !extent.present.is_empty() && !readable {
            self.violation(Violation::Unreadable { at: at() });
        }
        self.report.extents += u64::from(!extent.replicas.is_absent());
        for (i, replica) in extent.replicas.iter().enumerate() {
            self.report.replicas += 1;
            let Some(disk) = self.pool.disk(replica.disk) else {
                self.violation(Violation::DiskUnknown { at: at(), disk: replica.disk.0 });
                continue;
            };
            let twin = extent.replicas.iter().take(i).filter(|other| !other.state.is_moving());
            let twin = twin.filter_map(|other| self.pool.disk(other.disk));
            let twin = twin.into_iter().find(|other| other.failure_domain == disk.failure_domain);
            // A copy that a move is making will take the place of another one.
            if let Some(first) = twin.filter(|_| !replica.state.is_moving()) {
                let (first, second) = (first.name.clone(), disk.name.clone());
                let domain = disk.failure_domain.clone();
                self.violation(Violation::DomainShared { at: at(), first, second, domain });
            }
            if replica.slot.0 >= disk.slots {
                let (slot, slots) = (replica.slot.0, disk.slots);
                self.violation(Violation::SlotOutOfRange { at: at(), disk: disk.name.clone(), slot, slots });
                continue;
            }
            self.own(replica.disk, replica.slot);
        }
    }

    fn own(&mut self, disk: DiskId, slot: SlotIndex) {
        let word = &mut self.owned[disk.index()][slot.0 as usize / 64];
        let bit = 1 << (slot.0 % 64);
        if *word & bit == 0 {
            *word |= bit;
            *self.report.used.entry(disk).or_default() += 1;
        } else {
            self.shared.entry((disk, slot)).or_default();
        }
    }

    /// Whether slots have several owners: then give every extent once more, to [`Checker::add_owners`].
    #[must_use]
    pub fn wants_owners(&self) -> bool {
        !self.shared.is_empty()
    }

    /// Second pass: finds the owners of the shared slots.
    pub fn add_owners(&mut self, extent: &TableExtent) {
        let at = self.name(extent);
        for replica in extent.replicas.iter() {
            if let Some(owners) = self.shared.get_mut(&(replica.disk, replica.slot)) {
                owners.push(at());
            }
        }
    }

    /// Whether some extent owns the slot.
    #[must_use]
    pub fn is_owned(&self, disk: DiskId, slot: SlotIndex) -> bool {
        self.owned[disk.index()].get(slot.0 as usize / 64).is_some_and(|word| word >> (slot.0 % 64) & 1 == 1)
    }

    /// Adds a violation found by someone else.
    pub fn violation(&mut self, violation: Violation) {
        self.report.violations.push(violation);
    }

    /// The result.
    #[must_use]
    pub fn finish(mut self) -> CheckReport {
        for ((disk, slot), owners) in std::mem::take(&mut self.shared) {
            let disk = self.pool.disk_name(disk);
            self.violation(Violation::SlotShared { disk, slot: slot.0, owners });
        }
        self.report
    }

    /// Makes the extent's name when it is asked for: names are only needed for violations.
    fn name(&self, extent: &TableExtent) -> impl Fn() -> ExtentName + use<'a> {
        let vhd = self.vhds.get(&extent.vhd).map(|(record, _)| *record);
        let (id, extent) = (extent.vhd.0, extent.extent.0);
        move || ExtentName { vhd: vhd.map_or_else(|| format!("#{id}"), |record| record.name.clone()), extent }
    }
}

#[cfg(test)]
mod tests;
