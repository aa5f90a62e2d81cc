//! `spanblk pool`, `check` and `metadata`.

pub mod format;
pub mod offline;

use std::path::{Path, PathBuf};

use anyhow::Context;
use hyper::Method;

use super::Session;
use super::args::PoolCommand;
use super::output::{Failure, Outcome, Table, facts, print, warn};
use crate::control::wire::size::human_size;
use crate::control::wire::{
    API_PREFIX, CheckReport, ErrorKind, Expand, JobInfo, JobWish, MemberHealth, PoolInfo, PoolUpdate,
};

/// Runs a command.
pub fn run(session: &Session, command: PoolCommand) -> Outcome {
    match command {
        PoolCommand::Create(args) => format::create(session, &args),
        PoolCommand::Show => {
            let client = session.client()?;
            let pool: PoolInfo = client.get("/pool")?;
            let jobs = super::job::unfinished(&client)?;
            session.output().show(&pool, |pool| describe(pool, &jobs))?;
            if !session.global.json {
                pool.warnings.iter().for_each(warn);
            }
            Ok(())
        }
        PoolCommand::Rebalance(options) => super::job::start(session, JobWish::Rebalance {}, &options),
        PoolCommand::Set { expand } => {
            let update = PoolUpdate { expand: Some(expand.expand()) };
            let pool: PoolInfo = session.client()?.send(Method::PATCH, "/pool", &update)?;
            session.output().show(&pool, |_| "the pool is as you said\n".to_owned())
        }
        PoolCommand::Destroy(args) => format::destroy(session, &args),
        PoolCommand::Upgrade { disks } => offline::upgrade(session, &disks),
    }
}

fn expand_text(expand: Option<Expand>) -> &'static str {
    match expand {
        None => "spanned VHDs do, and isolated ones that the policy may change (mode auto)",
        Some(Expand::Auto) => "auto",
        Some(Expand::Never) => "never",
    }
}

fn describe(pool: &PoolInfo, jobs: &[JobInfo]) -> String {
    let space = &pool.space;
    let store = &pool.store;
    let mut text = facts(&[
        ("Pool", pool.uuid.to_string()),
        ("Extent size", human_size(pool.extent_bytes)),
        ("Capacity", human_size(space.total_bytes)),
        ("Allocated", format!("{} ({} %)", human_size(space.allocated_bytes), space.used_percent)),
        ("Reserved", format!("{} (not free to others)", human_size(space.reserved_bytes))),
        ("Being freed", human_size(space.freeing_bytes)),
        ("Free", human_size(space.free_bytes)),
        ("Written", human_size(space.written_bytes)),
        (
            "Provisioned",
            format!("{} ({} times the capacity)", human_size(space.provisioned_bytes), space.overcommit_ratio),
        ),
        ("VHDs", pool.vhds.to_string()),
        ("Requests waiting", pool.requests_waiting.to_string()),
        ("Expand", expand_text(pool.expand).to_owned()),
        (
            "Placement store",
            format!(
                "{} of {} used, epoch {}",
                human_size(store.used_bytes),
                human_size(store.region_bytes),
                store.epoch
            ),
        ),
    ]);
    if !store.members.is_empty() {
        let mut members = Table::new(&["Store member", "State", ">Region"]);
        for member in &store.members {
            let state = match member.health {
                MemberHealth::InSync => "in sync",
                MemberHealth::Failed => "FAILED",
            };
            members.row(vec![member.disk.clone(), state.to_owned(), human_size(member.region_bytes)]);
        }
        text.push('\n');
        text.push_str(&members.render());
    }
    text.push('\n');
    text.push_str(&super::disk::table(&pool.disks));
    if !jobs.is_empty() {
        text.push('\n');
        text.push_str(&super::job::table(jobs));
    }
    text
}

/// Checks the pool that the daemon serves, or one that nobody serves.
pub fn check(session: &Session, disks: &[PathBuf]) -> Outcome {
    let report: CheckReport = if disks.is_empty() { session.client()?.get("/check")? } else { offline::check(disks)? };
    session.output().show(&report, |report| {
        let mut text = report.findings.iter().map(|finding| format!("{finding}\n")).collect::<String>();
        let verdict = if report.consistent { "consistent" } else { "NOT CONSISTENT" };
        text.push_str(&format!(
            "{verdict}: {} VHDs, {} extents, {} slots in use\n",
            report.vhds, report.extents, report.slots_used
        ));
        text
    })?;
    if report.consistent {
        return Ok(());
    }
    Err(Failure::new(ErrorKind::Failed, format!("{} findings", report.findings.len()))
        .hint("keep the disks as they are and a 'spanblk metadata dump' of them, and report this"))
}

/// Dumps the placement table of the pool that the daemon serves, or of one that nobody serves.
pub fn dump(session: &Session, disks: &[PathBuf], output: Option<&Path>) -> Outcome {
    let text = if disks.is_empty() {
        session.client()?.get_text(&format!("{API_PREFIX}/metadata"))?
    } else {
        offline::dump(disks)?
    };
    match output {
        None => print(&text),
        Some(path) => {
            Ok(std::fs::write(path, text).with_context(|| format!("cannot write the dump to {}", path.display()))?)
        }
    }
}

/// Replaces the placement table of a pool that nobody serves.
pub fn restore(session: &Session, file: &Path, disks: &[PathBuf], force: bool) -> Outcome {
    let text = std::fs::read_to_string(file).map_err(|error| {
        let kind = if error.kind() == std::io::ErrorKind::NotFound { ErrorKind::NotFound } else { ErrorKind::Failed };
        Failure::new(kind, format!("cannot read the dump {}: {error}", file.display()))
    })?;
    offline::restore(session, &text, disks, force)
}
