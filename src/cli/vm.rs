//! `spanblk vm`.

use std::collections::BTreeMap;

use hyper::Method;

use super::args::{VmCommand, VmCreateArgs, VmSetArgs};
use super::client::path_segment;
use super::output::{Failure, Outcome, Table, facts};
use super::sharing::sharing_text;
use super::vhd::{health_word, limits_text};
use super::{Session, capacity, stats};
use crate::control::wire::size::human_size;
use crate::control::wire::{
    Attachment, ErrorKind, VmCreate, VmDeleted, VmInfo, VmIoStats, VmList, VmResult, VmUpdate, VmVhd,
};

/// Runs a command.
pub fn run(session: &Session, command: VmCommand) -> Outcome {
    match command {
        VmCommand::Create(args) => create(session, args),
        VmCommand::List => {
            let list: VmList = session.client()?.get("/vms")?;
            session.output().show(&list, table)
        }
        VmCommand::Show { vm } => {
            let info: VmInfo = session.client()?.get(&path(&vm))?;
            session.output().show(&info, details)
        }
        VmCommand::Stats(args) => stats::one(session, "vms", &args.name, args.time),
        VmCommand::Set(args) => set(session, args),
        VmCommand::Delete { vm } => {
            let deleted: VmDeleted = session.client()?.delete(&path(&vm))?;
            session.output().show(&deleted, |deleted| format!("VM '{}' deleted\n", deleted.name))
        }
    }
}

fn path(vm: &str) -> String {
    format!("/vms/{}", path_segment(vm))
}

fn create(session: &Session, args: VmCreateArgs) -> Outcome {
    let labels = by_key(args.labels)?;
    if let Some((key, _)) = labels.iter().find(|(_, value)| value.is_empty()) {
        let message = format!("label '{key}' has no value");
        return Err(Failure::new(ErrorKind::Invalid, message).hint(format!("give one, as in --label {key}=VALUE")));
    }
    let request = VmCreate {
        name: args.name,
        labels,
        owner: args.owner,
        limits: args.limits.limits()?,
        sharing: args.sharing.sharing(),
        quota_bytes: capacity::given(args.quota).flatten(),
        reservation_bytes: capacity::given(args.reservation).flatten(),
    };
    let result: VmResult = session.client()?.send(Method::POST, "/vms", &request)?;
    let remarks = capacity::remarks(args.quota, args.reservation, &result.vm.capacity);
    session.output().show(&result, |r| said(r, "created") + &remarks)
}

fn set(session: &Session, args: VmSetArgs) -> Outcome {
    let or_none = |text: String| if text == "none" { None } else { Some(text) };
    let value = |(key, value): (String, String)| (key, (!value.is_empty()).then_some(value));
    let request = VmUpdate {
        name: args.name,
        labels: by_key(args.labels)?.into_iter().map(value).collect(),
        owner: args.owner.map(or_none),
        limits: args.limits.update()?,
        sharing: args.sharing.update(),
        quota_bytes: capacity::given(args.quota),
        reservation_bytes: capacity::given(args.reservation),
    };
    if request == VmUpdate::default() {
        return Err(Failure::new(ErrorKind::Invalid, "nothing to set").hint("see 'spanblk vm set --help'"));
    }
    let result: VmResult = session.client()?.send(Method::PATCH, &path(&args.vm), &request)?;
    let remarks = capacity::remarks(args.quota, args.reservation, &result.vm.capacity);
    session.output().show(&result, |r| said(r, "changed") + &remarks)
}

/// Which of two values of one label is meant, nobody can say.
fn by_key(labels: Vec<(String, String)>) -> Result<BTreeMap<String, String>, Failure> {
    let mut found = BTreeMap::new();
    for (key, value) in labels {
        if found.contains_key(&key) {
            return Err(Failure::new(ErrorKind::Invalid, format!("label '{key}' is given twice")));
        }
        found.insert(key, value);
    }
    Ok(found)
}

fn said(result: &VmResult, what: &str) -> String {
    let name = &result.vm.name;
    if result.changed {
        format!("VM '{name}' {what}\n")
    } else {
        format!("VM '{name}' is like that already: nothing changed\n")
    }
}

fn labels_text(vm: &VmInfo) -> String {
    let labels: Vec<String> = vm.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if labels.is_empty() { "-".to_owned() } else { labels.join(", ") }
}

fn disks_text(vm: &VmInfo) -> String {
    if vm.disks.is_empty() { "-".to_owned() } else { vm.disks.join(",") }
}

fn table(list: &VmList) -> String {
    let headers = [
        "Name",
        "State",
        ">VHDs",
        ">Attached",
        ">Size",
        ">Allocated",
        ">Written",
        ">Quota",
        ">Reserved",
        "Disks",
        "Owner",
        "Labels",
    ];
    let mut table = Table::new(&headers);
    for vm in &list.vms {
        table.row(vec![
            vm.name.clone(),
            health_word(vm.health).to_owned(),
            vm.vhds.len().to_string(),
            vm.attached.to_string(),
            human_size(vm.size_bytes),
            human_size(vm.allocated_bytes),
            human_size(vm.written_bytes),
            capacity::brief(vm.capacity.quota_bytes),
            capacity::brief(vm.capacity.reservation_bytes),
            disks_text(vm),
            vm.owner.clone().unwrap_or_else(|| "-".to_owned()),
            labels_text(vm),
        ]);
    }
    table.render()
}

fn io_text(io: &VmIoStats) -> String {
    let errors = if io.errors > 0 { format!(", {} FAILED", io.errors) } else { String::new() };
    format!("{} requests, {}{errors}", io.requests, human_size(io.bytes))
}

fn details(vm: &VmInfo) -> String {
    let mut text = facts(&[
        ("Name", vm.name.clone()),
        ("UUID", vm.uuid.to_string()),
        ("Labels", labels_text(vm)),
        ("Owner", vm.owner.clone().unwrap_or_else(|| "-".to_owned())),
        ("Limits", limits_text(&vm.limits)),
        ("Of its VHDs", sharing_text(vm.sharing)),
        ("State", health_word(vm.health).to_owned()),
        ("Attached", format!("{} of {} VHDs", vm.attached, vm.vhds.len())),
        ("Size", human_size(vm.size_bytes)),
        ("Allocated", human_size(vm.allocated_bytes)),
        ("Written", human_size(vm.written_bytes)),
        ("Disks", disks_text(vm)),
        ("Quota", capacity::quota_text(&vm.capacity)),
        ("Reservation", capacity::reservation_text(&vm.capacity)),
        ("Reads", io_text(&vm.io.read)),
        ("Writes", io_text(&vm.io.write)),
        ("Flushes", io_text(&vm.io.flush)),
    ]);
    if vm.vhds.is_empty() {
        text.push_str(&format!("It has no VHDs: 'spanblk vhd set VHD --vm {}' gives it one\n", vm.name));
        return text;
    }
    let mut table = Table::new(&["VHD", "State", ">Size", ">Allocated", ">Written", "Attached"]);
    vm.vhds.iter().for_each(|vhd| table.row(row(vhd)));
    text.push('\n');
    text.push_str(&table.render());
    let problems = vm.vhds.iter().filter_map(|vhd| Some((&vhd.name, vhd.problem.as_ref()?)));
    problems.for_each(|(vhd, problem)| text.push_str(&format!("VHD '{vhd}': {problem}\n")));
    text
}

fn row(vhd: &VmVhd) -> Vec<String> {
    let attached = match &vhd.attached {
        Some(Attachment { pid: Some(pid), .. }) => format!("pid {pid}"),
        Some(Attachment { pid: None, .. }) => "yes".to_owned(),
        None => "-".to_owned(),
    };
    vec![
        vhd.name.clone(),
        health_word(vhd.health).to_owned(),
        human_size(vhd.size_bytes),
        human_size(vhd.allocated_bytes),
        human_size(vhd.written_bytes),
        attached,
    ]
}
