//! `spanblk disk`.

mod impact;
mod replace;

use std::path::Path;

use hyper::Method;

use super::args::{DiskAddArgs, DiskCommand, DiskSetArgs, NewDiskArgs};
use super::client::path_segment;
use super::job;
use super::output::{Failure, Outcome, Table, facts, warn};
use super::pool::format;
use super::{Session, stats};
use crate::control::wire::size::human_size;
use crate::control::wire::{
    Accept, DiskAdd, DiskHealth, DiskInfo, DiskList, DiskRemoved, DiskResult, DiskUpdate, ErrorKind, IoStats, JobWish,
};

/// Runs a command.
pub fn run(session: &Session, command: DiskCommand) -> Outcome {
    match command {
        DiskCommand::Add(args) => add(session, args),
        DiskCommand::List => {
            let list: DiskList = session.client()?.get("/disks")?;
            session.output().show(&list, |list| table(&list.disks))
        }
        DiskCommand::Show { disk } => {
            let info: DiskInfo = session.client()?.get(&format!("/disks/{}", path_segment(&disk)))?;
            session.output().show(&info, details)
        }
        DiskCommand::Stats(args) => stats::one(session, "disks", &args.name, args.time),
        DiskCommand::Wipe(args) => format::wipe_disk(session, &args.disk, args.yes),
        DiskCommand::Set(args) => set(session, args),
        DiskCommand::Remove { disk } => remove(session, &disk),
        DiskCommand::Evacuate(args) => {
            let wish = JobWish::Evacuate { disk: args.disk, accept_loss: args.accept_loss };
            job::start(session, wish, &args.options)
        }
        DiskCommand::Replace(args) => replace::run(session, args),
        DiskCommand::Rebuild(args) => job::start(session, JobWish::Rebuild { disk: args.disk }, &args.options),
        DiskCommand::Resync(args) => job::start(session, JobWish::Resync { disk: args.disk }, &args.options),
        DiskCommand::Impact(args) => impact::show(session, &args),
        DiskCommand::Fail(args) => impact::fail(session, &args),
    }
}

fn add(session: &Session, args: DiskAddArgs) -> Outcome {
    let request = disk_to_add(&args.disk, args.new, args.accept)?;
    let result: DiskResult = session.client()?.send(Method::POST, "/disks", &request)?;
    report(session, &result, "added")
}

/// What the daemon is asked to add.
fn disk_to_add(path: &Path, new: NewDiskArgs, accept: Accept) -> Result<DiskAdd, Failure> {
    let NewDiskArgs { name, size: size_bytes, failure_domain, force } = new;
    Ok(DiskAdd { path: absolute(path)?, name, size_bytes, failure_domain, accept, force })
}

/// The daemon has a working directory of its own.
fn absolute(path: &Path) -> Result<String, Failure> {
    let invalid = |reason: &str| Failure::new(ErrorKind::Invalid, format!("the path {} {reason}", path.display()));
    let absolute = std::path::absolute(path).map_err(|error| invalid(&format!("cannot be resolved: {error}")))?;
    absolute.into_os_string().into_string().map_err(|_| invalid("is not valid UTF-8"))
}

fn set(session: &Session, args: DiskSetArgs) -> Outcome {
    let request = DiskUpdate { accept: args.accept, failure_domain: args.failure_domain };
    if request == DiskUpdate::default() {
        return Err(Failure::new(ErrorKind::Invalid, "nothing to set").hint("see 'spanblk disk set --help'"));
    }
    let path = format!("/disks/{}", path_segment(&args.disk));
    let result: DiskResult = session.client()?.send(Method::PATCH, &path, &request)?;
    report(session, &result, "changed")
}

fn remove(session: &Session, disk: &str) -> Outcome {
    let path = format!("/disks/{}", path_segment(disk));
    let removed: DiskRemoved = session.client()?.delete(&path)?;
    session.output().show(&removed, |removed| {
        let place = removed.path.as_ref().map(|path| format!(" ({path})")).unwrap_or_default();
        format!("disk '{}'{place} removed\n", removed.name)
    })?;
    if !session.global.json {
        removed.warnings.iter().for_each(warn);
    }
    Ok(())
}

fn report(session: &Session, result: &DiskResult, what: &str) -> Outcome {
    session.output().show(result, |result| {
        let name = &result.disk.name;
        if result.changed {
            format!("disk '{name}' {what}\n")
        } else {
            format!("disk '{name}' is like that already: nothing changed\n")
        }
    })?;
    if !session.global.json {
        result.warnings.iter().for_each(warn);
    }
    Ok(())
}

fn health_word(health: DiskHealth) -> &'static str {
    match health {
        DiskHealth::Healthy => "healthy",
        DiskHealth::Suspect => "SUSPECT",
        DiskHealth::Failed => "FAILED",
        DiskHealth::Missing => "MISSING",
    }
}

fn accept_word(accept: Accept) -> &'static str {
    match accept {
        Accept::Any => "any",
        Accept::Isolated => "isolated",
        Accept::Spanned => "spanned",
        Accept::None => "none",
    }
}

/// Disks as a table.
#[must_use]
pub fn table(disks: &[DiskInfo]) -> String {
    let headers = [
        "Disk",
        "State",
        ">Errors",
        "Accepts",
        ">Capacity",
        ">Allocated",
        ">Free",
        ">Metadata",
        "Failure domain",
        "Path",
    ];
    let mut table = Table::new(&headers);
    for disk in disks {
        table.row(vec![
            disk.name.clone(),
            health_word(disk.health).to_owned(),
            disk.errors.to_string(),
            accept_word(disk.accept).to_owned(),
            human_size(disk.total_bytes),
            human_size(disk.allocated_bytes),
            human_size(disk.free_bytes),
            if disk.metadata_bytes == 0 { "-".to_owned() } else { human_size(disk.metadata_bytes) },
            disk.failure_domain.clone(),
            disk.path.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    table.render()
}

fn state_text(disk: &DiskInfo) -> String {
    let word = health_word(disk.health);
    disk.suspicion.as_ref().map_or_else(|| word.to_owned(), |why| format!("{word}: {why}"))
}

fn io_text(io: &IoStats) -> String {
    let IoStats { operations, errors, latency_us_mean, latency_us_p99, slow } = io;
    if *operations == 0 {
        return "none yet".to_owned();
    }
    format!(
        "{operations} ({errors} failed), mean {latency_us_mean} us, 99 % within {latency_us_p99} us, {slow} above 8 s"
    )
}

fn details(disk: &DiskInfo) -> String {
    facts(&[
        ("Name", disk.name.clone()),
        ("UUID", disk.uuid.to_string()),
        ("Path", disk.path.clone().unwrap_or_else(|| "-".to_owned())),
        ("State", state_text(disk)),
        ("Accepts", accept_word(disk.accept).to_owned()),
        ("Failure domain", disk.failure_domain.clone()),
        ("Block size", human_size(disk.block_bytes.into())),
        ("Capacity", human_size(disk.total_bytes)),
        ("Allocated", human_size(disk.allocated_bytes)),
        ("Free", human_size(disk.free_bytes)),
        ("Metadata region", if disk.metadata_bytes == 0 { "none".to_owned() } else { human_size(disk.metadata_bytes) }),
        ("Errors", disk.errors.to_string()),
        ("Reads", io_text(&disk.io.read)),
        ("Writes", io_text(&disk.io.write)),
        ("Syncs", io_text(&disk.io.sync)),
        ("VHDs", if disk.vhds.is_empty() { "none".to_owned() } else { disk.vhds.join(", ") }),
    ])
}
