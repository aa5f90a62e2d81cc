//! VMs of the fake owner: `web`, with the VHDs `old` and `busy`, and `idle`, with none.

use spanblk::owner::command::{CapacityUse, Command, CommandError, Outcome, Reply, VhdInfo, VmInfo};
use spanblk::placement::record::PoolRecord;
use spanblk::placement::vm::VmRecord;

/// The answer to a command about VMs.
pub fn answer(command: Command, pool: &mut PoolRecord, vhds: Vec<VhdInfo>) -> Result<Reply, CommandError> {
    let mut web = VmRecord::next(pool, "web", 7);
    web.labels.insert("env".to_owned(), "prod".to_owned());
    let capacity = CapacityUse::default();
    let idle = VmInfo { record: VmRecord::next(pool, "idle", 8), vhds: Vec::new(), capacity };
    let mut known = vec![VmInfo { record: web, vhds, capacity }, idle];
    let mut find = |name: &str| {
        let at = known.iter().position(|vm| vm.record.name == name || vm.record.uuid.to_string() == name);
        at.map(|at| known.remove(at)).ok_or(CommandError::NotFound { what: "VM", name: name.to_owned() })
    };
    let one = |outcome, vm| Ok(Reply::Vm { outcome, vm: Box::new(vm) });
    match command {
        Command::ShowVm { vm } => one(Outcome::Unchanged, find(&vm)?),
        Command::CreateVm(create) => match find(&create.name) {
            Ok(vm) if vm.record.labels == create.labels => one(Outcome::Unchanged, vm),
            Ok(vm) => Err(CommandError::VmConflict {
                vm: vm.record.name,
                field: "labels",
                existing: "env=prod".to_owned(),
                asked: "none".to_owned(),
            }),
            Err(_) => {
                let mut record = VmRecord::next(pool, &create.name, create.created);
                (record.labels, record.owner) = (create.labels, create.owner);
                (record.limits, record.capacity) = (create.limits, create.capacity);
                record.check()?;
                record.limits.check()?;
                one(Outcome::Created, VmInfo { record, vhds: Vec::new(), capacity })
            }
        },
        Command::SetVm(set) => {
            let mut vm = find(&set.vm)?;
            vm.record.name = set.name.unwrap_or(vm.record.name);
            for (key, value) in set.labels {
                match value {
                    Some(value) => vm.record.labels.insert(key, value),
                    None => vm.record.labels.remove(&key),
                };
            }
            vm.record.owner = set.owner.unwrap_or(vm.record.owner);
            vm.record.capacity = set.capacity.of(vm.record.capacity, 1 << 20);
            vm.record.check()?;
            vm.record.limits = vm.record.limits.with(set.limits);
            vm.record.limits.check()?;
            one(Outcome::Changed, vm)
        }
        Command::DeleteVm { vm } => {
            let VmInfo { record, vhds, .. } = find(&vm)?;
            let vhds: Vec<String> = vhds.into_iter().map(|vhd| vhd.record.name).collect();
            let vm = record.name;
            if vhds.is_empty() { Ok(Reply::VmDeleted { name: vm }) } else { Err(CommandError::VmNotEmpty { vm, vhds }) }
        }
        _ => Ok(Reply::Vms(known)),
    }
}
