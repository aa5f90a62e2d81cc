//! The VMs that exist, and commands about them. A VHD belongs to a VM by name; whatever names one that does not exist makes it, in
//! the same commit.

use std::collections::BTreeMap;

use super::command::{CommandError, CommandId, CreateVm, Outcome, Reply, SetCapacity, SetVm, VhdInfo, VmInfo};
use super::commands::{Action, Step, not_found};
use super::outbox::{Event, OwnerOutbox};
use super::quota::{size_text, vm_subject};
use super::vhds::Vhd;
use super::{OpenError, Owner};
use crate::base::ids::{VmId, check_name};
use crate::placement::holds::Holder;
use crate::placement::record::{PoolRecord, VhdRecord};
use crate::placement::vm::{VmRecord, check_key};
use crate::store::edit::StoreEdit;

/// The VMs, by identifier and by name.
#[derive(Debug, Default)]
pub(super) struct Vms {
    vms: BTreeMap<VmId, VmRecord>,
    names: BTreeMap<String, VmId>,
}

impl Vms {
    /// A VM is new, or its record has changed, maybe its name.
    fn put(&mut self, record: VmRecord) {
        if let Some(before) = self.vms.get(&record.id) {
            self.names.remove(&before.name);
        }
        let before = self.names.insert(record.name.clone(), record.id);
        assert!(before.is_none(), "names are unique");
        self.vms.insert(record.id, record);
    }

    fn remove(&mut self, id: VmId) -> Option<VmRecord> {
        let record = self.vms.remove(&id)?;
        self.names.remove(&record.name);
        Some(record)
    }

    /// The VM of that name.
    pub fn named(&self, name: &str) -> Option<&VmRecord> {
        self.vms.get(self.names.get(name)?)
    }

    /// The VM of that name, or of that UUID in text form.
    fn find(&self, name_or_uuid: &str) -> Option<&VmRecord> {
        if let Some(found) = self.named(name_or_uuid) {
            return Some(found);
        }
        let uuid = uuid::Uuid::try_parse(name_or_uuid).ok()?;
        self.vms.values().find(|vm| vm.uuid == uuid)
    }

    /// By name.
    fn by_name(&self) -> impl Iterator<Item = &VmRecord> {
        self.names.values().filter_map(|id| self.vms.get(id))
    }

    pub fn get(&self, id: VmId) -> Option<&VmRecord> {
        self.vms.get(&id)
    }

    /// By identifier.
    pub fn iter(&self) -> impl Iterator<Item = &VmRecord> {
        self.vms.values()
    }

    /// By identifier.
    pub fn records(&self) -> Vec<VmRecord> {
        self.vms.values().cloned().collect()
    }
}

/// A VM that is made along with a VHD that names it. The pool record that counts it is written with it.
#[derive(Debug)]
pub(super) struct NewVm {
    pool: PoolRecord,
    record: VmRecord,
}

/// A VM whose record is being written, with those of its VHDs if it gets another name.
#[derive(Debug)]
pub(super) struct VmChange {
    /// If the VM is new.
    pool: Option<PoolRecord>,
    record: VmRecord,
    vhds: Vec<VhdRecord>,
    events: Vec<Event>,
}

impl Owner {
    /// Takes over the VMs that the store has. Before [`Owner::start`].
    ///
    /// # Errors
    /// Two have one name or identifier.
    pub fn with_vms(mut self, vms: Vec<VmRecord>) -> Result<Owner, OpenError> {
        for vm in vms {
            if self.vms.named(&vm.name).is_some() || self.vms.vms.contains_key(&vm.id) {
                return Err(OpenError::TwinVms { vm: vm.name });
            }
            self.vms.put(vm);
        }
        Ok(self)
    }

    /// All VMs, by identifier.
    #[must_use]
    pub fn vm_records(&self) -> Vec<VmRecord> {
        self.vms.records()
    }

    /// The VM that a VHD names, if it is to be made. `pool` counts it.
    ///
    /// # Errors
    /// The name breaks the rules, or there is no room for a record.
    pub(super) fn vm_to_make(
        &self,
        pool: &mut PoolRecord,
        name: Option<&str>,
        now: u64,
    ) -> Result<Option<VmRecord>, CommandError> {
        let Some(name) = name else { return Ok(None) };
        check_vm_name(name)?;
        if self.vms.named(name).is_some() {
            return Ok(None);
        }
        self.check_metadata()?;
        Ok(Some(VmRecord::next(pool, name, now)))
    }

    /// As [`Owner::vm_to_make`], with the pool record as it would be.
    pub(super) fn new_vm(&self, name: Option<&str>, now: u64) -> Result<Option<NewVm>, CommandError> {
        let mut pool = self.pool.clone();
        let record = self.vm_to_make(&mut pool, name, now)?;
        Ok(record.map(|record| NewVm { pool, record }))
    }

    /// A VM that came with something else is durable.
    pub(super) fn apply_new_vm(&mut self, record: VmRecord, out: &mut impl OwnerOutbox) {
        out.event(Event::VmCreated { vm: record.name.clone() });
        self.vms.put(record);
    }

    pub(super) fn begin_create_vm(&mut self, create: &CreateVm) -> Result<Step, CommandError> {
        check_vm_name(&create.name)?;
        let mut pool = self.pool.clone();
        let mut record = VmRecord::next(&mut pool, &create.name, create.created);
        record.labels.clone_from(&create.labels);
        record.owner.clone_from(&create.owner);
        (record.limits, record.sharing) = (create.limits, create.sharing);
        record.check()?;
        record.limits.check()?;
        record.sharing.check()?;
        let set = SetCapacity::to(create.capacity);
        record.capacity = self.new_capacity(|| vm_subject(&create.name), record.capacity, set)?;
        if let Some(existing) = self.vms.named(&create.name) {
            check_same(existing, &record)?;
            return Ok(Step::Done(self.vm_reply(existing, Outcome::Unchanged)));
        }
        self.check_metadata()?;
        let rows = vec![StoreEdit::PutPool(pool.clone()), StoreEdit::PutVm(record.clone())];
        let events = vec![Event::VmCreated { vm: record.name.clone() }];
        let change = VmChange { pool: Some(pool), record, vhds: Vec::new(), events };
        Ok(Step::Commit { rows, action: Action::ChangeVm(Box::new(change)) })
    }

    pub(super) fn begin_set_vm(&mut self, set: SetVm) -> Result<Step, CommandError> {
        let before = self.vms.find(&set.vm).ok_or_else(|| not_found("VM", &set.vm))?;
        let mut record = before.clone();
        for (key, value) in set.labels {
            check_key(&key)?;
            match value {
                Some(value) => record.labels.insert(key, value),
                None => record.labels.remove(&key),
            };
        }
        if let Some(owner) = set.owner {
            record.owner = owner;
        }
        record.check()?;
        record.limits = record.limits.with(set.limits);
        record.limits.check()?;
        record.sharing = record.sharing.with(set.sharing);
        record.sharing.check()?;
        record.capacity = self.new_capacity(|| vm_subject(&before.name), record.capacity, set.capacity)?;
        let mut events = Vec::new();
        if record != *before {
            events.push(Event::VmChanged { vm: set.name.as_ref().unwrap_or(&record.name).clone() });
        }
        let mut vhds = Vec::new();
        if let Some(to) = set.name.filter(|to| *to != before.name) {
            check_vm_name(&to)?;
            if self.vms.named(&to).is_some() {
                return Err(CommandError::NameTaken { what: "VM", name: to });
            }
            let renamed = |vhd: &Vhd| VhdRecord { vm: Some(to.clone()), ..vhd.record.clone() };
            vhds = self.vhds_of(&before.name).map(renamed).collect();
            events.insert(0, Event::VmRenamed { from: before.name.clone(), to: to.clone() });
            record.name = to;
        }
        if record == *before {
            return Ok(Step::Done(self.vm_reply(before, Outcome::Unchanged)));
        }
        if record.encode().len() > before.encode().len() {
            self.check_metadata()?;
        }
        if record.capacity.quota != before.capacity.quota {
            self.check_quota_of_vm(&record, &before.name)?;
        }
        self.hold_for(&vhds, Some(&record), None)?;
        let mut rows = vec![StoreEdit::PutVm(record.clone())];
        rows.extend(vhds.iter().cloned().map(StoreEdit::PutVhd));
        let change = VmChange { pool: None, record, vhds, events };
        Ok(Step::Commit { rows, action: Action::ChangeVm(Box::new(change)) })
    }

    pub(super) fn begin_delete_vm(&mut self, name: &str) -> Result<Step, CommandError> {
        let vm = self.vms.find(name).ok_or_else(|| not_found("VM", name))?;
        let vhds: Vec<String> = self.vhds_of(&vm.name).map(|vhd| vhd.record.name.clone()).collect();
        if !vhds.is_empty() {
            return Err(CommandError::VmNotEmpty { vm: vm.name.clone(), vhds });
        }
        Ok(Step::Commit { rows: vec![StoreEdit::DeleteVm(vm.id)], action: Action::DeleteVm { vm: vm.id } })
    }

    pub(super) fn apply_vm_change(&mut self, command: CommandId, change: VmChange, out: &mut impl OwnerOutbox) {
        let VmChange { pool, record, vhds, events } = change;
        let outcome = if pool.is_some() { Outcome::Created } else { Outcome::Changed };
        if let Some(pool) = pool {
            self.pool = pool;
        }
        self.vms.put(record.clone());
        for vhd in vhds {
            // Nothing that anybody outside has to hear of: a VHD's socket does not depend on its VM.
            self.vhds.replace_record(vhd, &self.space);
        }
        self.limit_vm(&record.name, out);
        out.reply(command, Ok(self.vm_reply(&record, outcome)));
        events.into_iter().for_each(|event| out.event(event));
    }

    pub(super) fn apply_delete_vm(&mut self, command: CommandId, vm: VmId, out: &mut impl OwnerOutbox) {
        let record = self.vms.remove(vm).expect("commands follow one another");
        self.vm_buckets.remove(&vm);
        out.event(Event::VmDeleted { vm: record.name.clone() });
        out.reply(command, Ok(Reply::VmDeleted { name: record.name }));
    }

    pub(super) fn apply_vm_of_vhd(&mut self, new: NewVm, out: &mut impl OwnerOutbox) {
        self.pool = new.pool;
        self.apply_new_vm(new.record, out);
    }

    pub(super) fn show_vm(&self, name: &str) -> Result<Reply, CommandError> {
        let vm = self.vms.find(name).ok_or_else(|| not_found("VM", name))?;
        Ok(self.vm_reply(vm, Outcome::Unchanged))
    }

    /// All VMs, by name.
    pub(super) fn vm_infos(&self) -> Vec<VmInfo> {
        let mut vhds: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for vhd in self.vhds.by_name() {
            if let Some(vm) = &vhd.record.vm {
                vhds.entry(vm).or_default().push(self.vhd_info(vhd));
            }
        }
        let info = |vm: &VmRecord| self.vm_info(vm, vhds.remove(&vm.name[..]).unwrap_or_default());
        self.vms.by_name().map(info).collect()
    }

    fn vm_reply(&self, vm: &VmRecord, outcome: Outcome) -> Reply {
        let vhds = self.vhds_of(&vm.name).map(|vhd| self.vhd_info(vhd)).collect();
        Reply::Vm { outcome, vm: Box::new(self.vm_info(vm, vhds)) }
    }

    fn vm_info(&self, vm: &VmRecord, vhds: Vec<VhdInfo>) -> VmInfo {
        let charged = vhds.iter().map(|vhd| vhd.capacity.charged).sum::<u64>() / self.geometry.extent_size();
        VmInfo { record: vm.clone(), vhds, capacity: self.capacity_use(Holder::Vm(vm.id), charged) }
    }

    /// By name.
    pub(super) fn vhds_of<'a>(&'a self, vm: &'a str) -> impl Iterator<Item = &'a Vhd> {
        self.vhds.by_name().filter(move |vhd| vhd.record.vm.as_deref() == Some(vm))
    }

    fn check_metadata(&self) -> Result<(), CommandError> {
        if self.metadata.low {
            return Err(CommandError::MetadataFull { used: self.metadata.used, size: self.metadata.size });
        }
        Ok(())
    }
}

impl NewVm {
    /// What is to be written with the VHD.
    pub(super) fn rows(&self) -> [StoreEdit; 2] {
        [StoreEdit::PutPool(self.pool.clone()), StoreEdit::PutVm(self.record.clone())]
    }
}

pub(super) fn check_vm_name(name: &str) -> Result<(), CommandError> {
    check_name(name).map_err(|source| CommandError::InvalidName { what: "VM", source })
}

/// Whether the VM that exists is the one that is asked for.
fn check_same(is: &VmRecord, asked: &VmRecord) -> Result<(), CommandError> {
    let labels = |labels: &BTreeMap<String, String>| match labels.len() {
        0 => "none".to_owned(),
        _ => labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","),
    };
    let owner = |owner: &Option<String>| owner.as_ref().map_or("none".to_owned(), |owner| format!("'{owner}'"));
    let differs = if is.labels != asked.labels {
        Some(("labels", labels(&is.labels), labels(&asked.labels)))
    } else if is.owner != asked.owner {
        Some(("owner", owner(&is.owner), owner(&asked.owner)))
    } else if is.limits != asked.limits {
        Some(("limits", is.limits.to_string(), asked.limits.to_string()))
    } else if is.sharing != asked.sharing {
        Some(("share of disks", is.sharing.to_string(), asked.sharing.to_string()))
    } else if is.capacity.quota != asked.capacity.quota {
        Some(("quota", size_text(is.capacity.quota), size_text(asked.capacity.quota)))
    } else {
        let (is, asked) = (is.capacity.reservation, asked.capacity.reservation);
        (is != asked).then(|| ("reservation", size_text(is), size_text(asked)))
    };
    match differs {
        Some((field, existing, asked)) => Err(CommandError::VmConflict { vm: is.name.clone(), field, existing, asked }),
        None => Ok(()),
    }
}
